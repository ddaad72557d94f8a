//! The state that the threads of a soak share.
//!
//! Model: one clock, the history of every key, the conditions, and the violations. Each writer owns
//! some keys and changes only these, while it holds `all` together with the other writers. A thread
//! that changes every key holds it alone.
//!
//! The rule: every choice of a thread comes from the seed, through a generator of its own. So the
//! threads do the same in each run; only their order is the machine's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis::{Connection, RedisError, RedisResult};

use super::checker;
use super::collections::{self, COLLECTIONS};
use super::conditions::{BOUND_IN_PEACE, BOUND_IN_TROUBLE, Clock, Conditions};
use super::history::{Begun, Effect, Found, KeyHistory, Moment};
use super::record::{Claims, Record, micros};
use super::report::{Recovery, Report, Tally};
use super::resource_leaks::ResourceUse;
use crate::support::redis_server;

/// The number of strings. Their histories come first.
pub(super) const KEYS: usize = 300;
/// The number of all histories.
pub(super) const HISTORIES: usize = KEYS + COLLECTIONS;
/// The number of violations that ends a soak. All of them are reported.
const MOST_VIOLATIONS: usize = 50;
const LOOK: Duration = Duration::from_millis(20);
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// The prefix of the keys with a history, and that of the own keys of Redis clients.
const PREFIXES: [&str; 2] = ["{soak}", "own/"];
/// The delay beyond which a thread stops to catch up.
const MOST_BEHIND: Duration = Duration::from_millis(100);

pub(super) struct Simulation {
    pub(super) clock: Clock,
    pub(super) conditions: Conditions,
    /// The histories of the strings, then those of the collections.
    pub(super) keys: Vec<Mutex<KeyHistory>>,
    pub(super) all: RwLock<()>,
    pub(super) record: Record,
    pub(super) violations: Mutex<Vec<String>>,
    pub(super) writes: AtomicU64,
    pub(super) unacknowledged: AtomicU64,
    pub(super) foreign_writes: AtomicU64,
    writing: AtomicBool,
    reading: AtomicBool,
    /// The socket of the current primary, and the number of its changes.
    socket: Mutex<PathBuf>,
    moves: AtomicU64,
    seed: u64,
}

impl Simulation {
    pub(super) fn new(seed: u64, socket: PathBuf) -> Self {
        Self {
            clock: Clock::start(),
            conditions: Conditions::default(),
            keys: (0..HISTORIES).map(|index| Mutex::new(KeyHistory::new(name(index)))).collect(),
            all: RwLock::default(),
            record: Record::begin(seed, claims()),
            violations: Mutex::default(),
            writes: AtomicU64::new(0),
            unacknowledged: AtomicU64::new(0),
            foreign_writes: AtomicU64::new(0),
            writing: AtomicBool::new(true),
            reading: AtomicBool::new(true),
            socket: Mutex::new(socket),
            moves: AtomicU64::new(0),
            seed,
        }
    }

    /// Moves the writers to another Redis; the caller holds `all` alone.
    pub(super) fn move_to(&self, socket: PathBuf) {
        *self.socket.lock().unwrap() = socket;
        self.moves.fetch_add(1, SeqCst);
    }

    /// Moves the writers to the next primary, while the proxy may still read the previous one; the
    /// caller holds `all` alone.
    pub(super) fn switch_to(&self, socket: PathBuf, kind: &'static str) {
        let now = self.clock.now();
        self.conditions.switches.add(kind, now, now);
        self.keys.iter().for_each(|key| key.lock().unwrap().switch(now));
        self.move_to(socket);
    }

    pub(super) fn moves(&self) -> u64 {
        self.moves.load(SeqCst)
    }

    /// Returns the generator of one thread.
    pub(super) fn random(&self, thread: &str) -> StdRng {
        let name = thread
            .bytes()
            .fold(0_u64, |name, byte| name.wrapping_mul(257).wrapping_add(byte.into()));
        StdRng::seed_from_u64(self.seed ^ name.rotate_left(32))
    }

    pub(super) fn is_written(&self) -> bool {
        self.writing.load(Relaxed) && self.violations.lock().unwrap().len() < MOST_VIOLATIONS
    }

    pub(super) fn is_read(&self) -> bool {
        self.reading.load(Relaxed)
    }

    pub(super) fn stop_writing(&self) {
        self.writing.store(false, Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stop_writing();
        self.reading.store(false, Relaxed);
    }

    pub(super) fn violation(&self, text: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < MOST_VIOLATIONS {
            violations.push(text);
        }
    }

    /// Returns the report.
    pub(super) fn report(
        &self,
        server: String,
        (tally, faults): (Tally, BTreeMap<&'static str, Vec<Recovery>>),
        resource_use: ResourceUse,
        figures: Vec<(&'static str, f64)>,
    ) -> Report {
        Report {
            seed: self.seed,
            server,
            took: self.clock.now(),
            writes: self.writes.load(Relaxed),
            unacknowledged: self.unacknowledged.load(Relaxed),
            foreign_writes: self.foreign_writes.load(Relaxed),
            tally,
            faults,
            resource_use,
            figures,
            violations: self.violations.lock().unwrap().clone(),
            judgement: self.record.finish(&self.conditions).map(checker::judge).unwrap_or_default(),
        }
    }

    /// Waits this long, or until the writers are to end.
    pub(super) fn wait(&self, time: Duration) {
        let until = self.clock.now() + time;
        while self.is_written() && self.clock.now() < until {
            thread::sleep(LOOK);
        }
    }

    /// Records that every key is about to be deleted; the caller holds `all` alone.
    pub(super) fn begin_all(&self, by: &'static str) -> Removal {
        let sent = self.clock.now();
        let begin = |key: &Mutex<KeyHistory>| key.lock().unwrap().begin(by, Effect::Absence, sent);
        Removal { by, sent, begun: self.keys.iter().map(begin).collect() }
    }

    /// Records that every key is deleted, or that this is unknown.
    pub(super) fn end_all(&self, removal: &Removal, outcome: &RedisResult<()>) {
        let now = self.clock.now();
        let done = outcome.is_ok().then_some(now);
        // The own keys may be at other nodes of a cluster, which were not flushed.
        for (prefix, done) in PREFIXES.iter().zip([done, None]) {
            self.record.removal(removal.by, prefix, removal.sent, done);
        }
        for (key, begun) in self.keys.iter().zip(&removal.begun) {
            match outcome {
                Ok(()) => key.lock().unwrap().done(begun, Found::Value, now),
                Err(_) => key.lock().unwrap().lost(),
            }
        }
    }
}

/// A removal of every key that is not yet acknowledged.
pub(super) struct Removal {
    by: &'static str,
    sent: Moment,
    begun: Vec<Begun>,
}

/// Returns the claims for a proxy with tracking, with the time that the oracle allows for threads
/// that wait for the processor.
fn claims() -> Claims {
    Claims { push: micros(BOUND_IN_PEACE), lease: micros(BOUND_IN_TROUBLE), ttl: None }
}

/// Returns the key of the history with this index.
pub(super) fn name(index: usize) -> String {
    match index.checked_sub(KEYS) {
        None => format!("{{soak}}key/{index}"),
        Some(number) => collections::name(number),
    }
}

/// Ends the soak when its thread panics; otherwise the other threads would wait for it.
pub(super) struct StopOnPanic<'a>(pub(super) &'a Simulation);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

/// A connection straight to Redis, opened on first use.
pub(super) struct DirectConnection<'a> {
    simulation: &'a Simulation,
    database: u32,
    connection: Option<Connection>,
    /// The number of moves when it was opened.
    moves: u64,
}

impl<'a> DirectConnection<'a> {
    pub(super) fn to(simulation: &'a Simulation, database: u32) -> Self {
        Self { simulation, database, connection: None, moves: 0 }
    }

    /// Returns the connection, or nothing while there is no Redis to connect to.
    pub(super) fn open(&mut self) -> Option<&mut Connection> {
        let moves = self.simulation.moves();
        if std::mem::replace(&mut self.moves, moves) != moves {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = self.connect().ok();
        }
        if self.connection.is_none() {
            thread::sleep(CONNECT_AGAIN);
        }
        self.connection.as_mut()
    }

    /// Drops the connection after a failed command. The command was killed or rejected, so Redis
    /// cannot run it behind the back of the next connection.
    pub(super) fn close(&mut self, error: &RedisError) {
        assert!(!error.is_timeout(), "Redis kept a command waiting for too long: {error}");
        self.connection = None;
    }

    fn connect(&self) -> RedisResult<Connection> {
        let mut connection =
            redis_server::connect(&self.simulation.socket.lock().unwrap().clone())?;
        redis::cmd("SELECT").arg(self.database).exec(&mut connection)?;
        Ok(connection)
    }
}

/// A fixed rhythm.
pub(super) struct Pace {
    gap: Duration,
    next: Instant,
}

impl Pace {
    pub(super) fn every(gap: Duration) -> Self {
        Self { gap, next: Instant::now() }
    }

    pub(super) fn wait(&mut self) {
        let now = Instant::now();
        self.next += self.gap;
        if self.next + MOST_BEHIND < now {
            self.next = now;
        }
        thread::sleep(self.next.saturating_duration_since(now));
    }
}

/// Returns one of `0..number`, small ones far more often.
pub(super) fn skewed(random: &mut StdRng, number: usize) -> usize {
    (0..3).map(|_| random.random_range(0..number)).min().unwrap_or_default()
}
