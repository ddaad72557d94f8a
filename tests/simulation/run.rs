//! One simulation: the proxy, the model of Redis, clients and faults, on one thread.
//!
//! The [program](super::program) is the one that is released. Only the network is another.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::clients::{read_all, read_and_write, write};
use super::conditions::Conditions;
use super::faults;
use super::http::read_over_http;
use super::model::{Access, Key, Model, Version};
use super::network::{Path, longest};
use super::partitions::{Division, Partitions};
use super::program::Program;
use super::servers::{Layout, Servers};
use super::world::{World, lock, ms};

/// The time of the faults in a dense simulation.
const FAULTS: Duration = Duration::from_secs(60);
/// The time after the faults in which all has to recover.
const RECOVERY: Duration = Duration::from_secs(20);
/// The delays over the path from a client to the proxy, in milliseconds.
const CLIENT_DELAY: (u64, u64) = (0, 3);
/// The number of hashes.
const HASHES: u64 = 2;
/// The choice of faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Style {
    Mixed,
    /// The proxy has to connect again every few hundred milliseconds.
    Restless,
}

/// The choices of a seed for the whole simulation.
pub(super) struct Plan {
    pub(super) style: Style,
    /// The time of the faults.
    time: Duration,
    pub(super) layout: Layout,
    pub(super) version: Version,
    pub(super) access: Access,
    keys: u64,
    clients: u64,
    clients_over_http: u64,
    /// The longest pauses of clients, writers and faults, in milliseconds.
    pub(super) pause: u64,
    pub(super) write_pause: u64,
    pub(super) fault_pause: u64,
    /// The longest time to live that is set, and the longest fault, in milliseconds.
    pub(super) life: u64,
    pub(super) fault: u64,
    /// The bounds of the delay of a piece between proxy and Redis, in milliseconds.
    pub(super) delay: (u64, u64),
    pub(super) coherence_timeout: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) ttl: Duration,
    pub(super) capacity: usize,
    pub(super) ping_interval: Duration,
    pub(super) response_timeout: Duration,
}

impl Plan {
    /// Returns a string key. In a cluster two keys are of the same slot.
    fn string(&self, number: u64) -> Key {
        match self.division() {
            Division::Whole => format!("s{number}").into_bytes(),
            Division::Slots => {
                let last = if number.is_multiple_of(2) { 'b' } else { 'a' };
                format!("s{{{}}}{last}", number.div_ceil(2)).into_bytes()
            }
        }
    }

    /// Returns all string keys, in a cluster both of each slot.
    pub(super) fn strings(&self) -> Vec<Key> {
        let last = match self.division() {
            Division::Whole => self.keys,
            Division::Slots => self.keys.next_multiple_of(2),
        };
        (1..=last).map(|number| self.string(number)).collect()
    }

    fn hashes() -> Vec<Key> {
        (1..=HASHES).map(|number| format!("h{number}").into_bytes()).collect()
    }

    pub(super) fn division(&self) -> Division {
        self.layout.division()
    }

    /// Half of the plans are dense: short timeouts, and something happens every few milliseconds.
    /// The others have the timeouts of the defaults, and last longer.
    fn choose(world: &World) -> Self {
        let pace = [1, 1, 1, 6, 6, 40][world.index(6)];
        let coherence_timeout = if pace == 1 { world.duration(300, 1500) } else { ms(3000) };
        let is_served_stale = world.chance(40);
        let plan = Self {
            style: Style::Mixed,
            layout: match world.between(1, 100) {
                1..=35 => Layout::Sentinels,
                36..=55 => Layout::Cluster(2 + world.index(2)),
                _ => Layout::One,
            },
            version: if world.chance(50) { Version::Seven } else { Version::Eight },
            access: if world.chance(25) { Access::Users } else { Access::Open },
            time: FAULTS * u32::try_from(pace).unwrap_or(1),
            keys: world.between(2, 8),
            clients: world.between(2, 5),
            clients_over_http: world.between(0, 2),
            pause: pace * world.between(10, 120),
            write_pause: pace * world.between(40, 400),
            fault_pause: pace * world.between(800, 6000),
            life: pace * 4000,
            fault: if pace == 1 { 2000 } else { 8000 },
            delay: (0, world.between(1, 15)),
            coherence_timeout,
            stale_if_error: if is_served_stale { 2 * coherence_timeout } else { Duration::ZERO },
            ttl: Duration::from_secs(world.between(2, 3600)),
            capacity: usize::try_from(world.between(4, 1000)).unwrap_or(0),
            ping_interval: coherence_timeout / 3,
            response_timeout: if pace == 1 { world.duration(400, 2000) } else { ms(5000) },
        };
        if pace == 1 && world.chance(25) { plan.restless(world) } else { plan }
    }

    /// The proxy has to connect again and again, while few keys are read and written all the time.
    fn restless(self, world: &World) -> Self {
        Self {
            style: Style::Restless,
            layout: Layout::One,
            keys: world.between(2, 4),
            pause: world.between(4, 30),
            write_pause: world.between(40, 200),
            fault_pause: world.between(600, 1500),
            delay: (0, world.between(1, 4)),
            stale_if_error: 2 * self.coherence_timeout,
            ..self
        }
    }
}

/// The counts of a simulation.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    /// The reads over HTTP among them.
    pub(super) over_http: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) faults: AtomicU64,
}

/// The parts that clients and faults share.
#[derive(Clone)]
pub(super) struct Stage(Arc<Parts>);

pub(super) struct Parts {
    pub(super) world: World,
    pub(super) plan: Plan,
    pub(super) epochs: Mutex<Partitions>,
    pub(super) conditions: Conditions,
    pub(super) servers: Servers,
    pub(super) to_proxy: Path,
    pub(super) to_http: Path,
    pub(super) program: Program,
    pub(super) counts: Counts,
    texts: AtomicU64,
    breach: Mutex<Option<String>>,
}

impl std::ops::Deref for Stage {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    pub(super) fn random_key(&self) -> Key {
        self.plan.string(self.world.between(1, self.plan.keys))
    }

    /// Returns another key of the same slot, or any other where there are no slots.
    pub(super) fn sibling(&self, key: &[u8]) -> Key {
        if self.plan.division() == Division::Whole {
            return self.random_key();
        }
        let last = if self.world.chance(50) { b'a' } else { b'b' };
        key.iter().copied().take(key.len() - 1).chain([last]).collect()
    }

    pub(super) fn random_hash(&self) -> Key {
        format!("h{}", self.world.between(1, HASHES)).into_bytes()
    }

    /// Returns a text that was never written before.
    pub(super) fn next_text(&self) -> Vec<u8> {
        self.texts.fetch_add(1, Relaxed).to_string().into_bytes()
    }

    /// Returns the time for which a superseded value may still be read by a command of `sent`, and
    /// whether stale values may be served. `was_ready`: the proxy was connected at that time.
    pub(super) fn bound(&self, sent: Duration, was_ready: bool) -> (Duration, bool) {
        if self.has_timely_pushes(sent, was_ready) {
            return (longest(self.plan.delay), false);
        }
        let stale_if_error = self.plan.stale_if_error;
        (self.plan.coherence_timeout + stale_if_error, !stale_if_error.is_zero())
    }

    /// Returns the same time for a reply that says whether it is stale.
    pub(super) fn bound_of_marked(
        &self,
        sent: Duration,
        was_ready: bool,
        is_stale: bool,
    ) -> Duration {
        match (is_stale, self.has_timely_pushes(sent, was_ready)) {
            (true, _) => self.plan.coherence_timeout + self.plan.stale_if_error,
            (false, true) => longest(self.plan.delay),
            (false, false) => self.plan.coherence_timeout,
        }
    }

    /// Whether something fails or changes now, or failed when a command was sent.
    pub(super) fn may_fail_since(&self, sent: Duration) -> bool {
        let may_fail = |at| self.conditions.may_fail(at);
        may_fail(sent) || may_fail(self.world.now()) || self.servers.is_changing()
    }

    /// Whether no fault delayed pushes when a command was sent, and the proxy was connected.
    fn has_timely_pushes(&self, sent: Duration, was_ready: bool) -> bool {
        was_ready && !self.conditions.may_be_late(sent)
    }

    /// Whether clients have to log in.
    pub(super) fn has_users(&self) -> bool {
        self.plan.access == Access::Users
    }

    pub(super) fn fail(&self, breach: String) {
        self.world.record(|| format!("breach: {breach}"));
        lock(&self.breach).get_or_insert(breach);
    }

    pub(super) fn has_failed(&self) -> bool {
        lock(&self.breach).is_some()
    }
}

/// The result of a simulation.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) breach: Option<String>,
    /// The digest of the trace.
    pub(super) trace: String,
    pub(super) events: u64,
    pub(super) time: Duration,
    pub(super) reads: u64,
    pub(super) over_http: u64,
    pub(super) writes: u64,
    pub(super) errors: u64,
    pub(super) faults: u64,
    pub(super) from_memory: u64,
    pub(super) failovers: u64,
    /// The slots that have moved.
    pub(super) moves: u64,
}

/// Runs the simulation of a seed. With `is_printed` its events go to standard error.
pub(super) fn run(seed: u64, is_printed: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(simulate(seed, is_printed))
}

async fn simulate(seed: u64, is_printed: bool) -> Outcome {
    let world = World::new(seed, is_printed);
    let plan = Plan::choose(&world);
    let (strings, hashes) = (plan.strings(), Plan::hashes());
    let epochs = Partitions::new(plan.division(), strings.iter().chain(&hashes));
    let model = || Model::new(plan.version, plan.access);
    let (servers, hosts) = Servers::start(&world, model, plan.layout, plan.delay, &epochs);
    let (to_proxy, at_proxy) = Path::new(&world, CLIENT_DELAY);
    let (to_http, at_http) = Path::new(&world, CLIENT_DELAY);
    let program = Program::start(&plan, hosts, at_proxy, at_http);
    let stage = Stage(Arc::new(Parts {
        world: world.clone(),
        epochs: Mutex::new(epochs),
        conditions: Conditions::default(),
        servers,
        to_proxy,
        to_http,
        program,
        counts: Counts::default(),
        texts: AtomicU64::new(0),
        breach: Mutex::default(),
        plan,
    }));
    // The first connection takes a moment.
    stage.conditions.disturb(ms(1000), ms(1000));
    for number in 0..stage.plan.clients {
        tokio::spawn(read_and_write(stage.clone(), number));
    }
    for number in 0..stage.plan.clients_over_http {
        tokio::spawn(read_over_http(stage.clone(), number));
    }
    for _ in 0..2 {
        tokio::spawn(write(stage.clone()));
    }
    faults::cause(&stage, stage.plan.time).await;
    if !stage.has_failed() {
        sleep(RECOVERY).await;
        if let Err(breach) = read_all(&stage).await {
            stage.fail(breach);
        }
    }
    let (trace, events) = world.trace();
    let counts = &stage.counts;
    Outcome {
        breach: lock(&stage.breach).clone(),
        trace: format!("{trace:016x}"),
        events,
        time: world.now(),
        reads: counts.reads.load(Relaxed),
        over_http: counts.over_http.load(Relaxed),
        writes: counts.writes.load(Relaxed),
        errors: counts.errors.load(Relaxed),
        faults: counts.faults.load(Relaxed),
        from_memory: stage.program.hits(),
        failovers: stage.servers.failovers(),
        moves: stage.servers.moves(),
    }
}
