//! Model checking of the cache: the production code runs under shuttle in every order of its steps.
//! One thread runs at a time, and threads switch at every point where they touch shared state (see
//! `sync`).
//!
//! A scenario is a few threads that use one key. Some read it. Some change it in a model of Redis,
//! which pushes invalidations on the same wire as its replies. Some resize, sweep, flush, or lose
//! the connection. [`orders`] runs the scenario once per order of steps, or once per order with a
//! limited number of preemptions.
//!
//! Three rules are asserted:
//! - A read that begins after a change was applied never returns an earlier value.
//! - No reader waits forever.
//! - At the end, memory holds nothing for the key, or the value that Redis holds.
//!
//! Wrong [`Steps`] show that the scenarios detect failures: they are parts of the cache in another
//! order. Each must fail the scenario that the right order passes.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::thread;

use super::orders::{self, ANY, HOUR};
use super::sync::preemption_point;
use super::*;

#[derive(Debug, Clone)]
struct Failure;

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self
    }
}

type TestCache = Cache<Failure>;
type TestShared = Shared<Failure>;
type TestTicket = FlightGuard<FlightResult<Failure>>;

const KEY: &[u8] = b"key";
const CAPACITY: usize = 10;
const CAPACITY_NEXT: usize = 20;

/// The operations of the cache, each with its steps in some order.
#[derive(Clone, Copy)]
struct Steps {
    lookup: fn(&TestShared) -> Option<Answer>,
    serve_stale: fn(&TestShared) -> Option<Answer>,
    fetch: fn(&World) -> Option<Given>,
    complete: fn(&TestShared, TestTicket, &FlightResult<Failure>),
    invalidate: fn(&TestCache),
    resize: fn(&TestCache),
    sweep: fn(&TestCache),
    suspend_tracking: fn(&TestCache),
    start_tracking: fn(&TestCache, Instant),
}

/// The right order: the production code.
const RIGHT: Steps = Steps {
    lookup: |shared| shared.lookup(KEY, shared.clock(Instant::now()), LookupUse::Serve),
    serve_stale: |shared| shared.serve_stale(KEY, Instant::now()),
    fetch: World::fetch,
    complete: |shared, guard, result| shared.complete(guard, result, now(shared)),
    invalidate: |cache| cache.invalidate(KEY),
    resize: |cache| _ = cache.apply(&Settings { capacity: CAPACITY_NEXT, ..cache.settings() }),
    sweep: TestCache::sweep,
    suspend_tracking: TestCache::suspend_tracking,
    start_tracking: TestCache::start_tracking,
};

/// Returns the time on the cache's clock.
fn now(shared: &TestShared) -> u64 {
    shared.clock(Instant::now())
}

/// The production code, if Redis pushes a flush instead of an invalidation of the key.
const FLUSHES: Steps = Steps { invalidate: TestCache::invalidate_all, ..RIGHT };

/// A cache in front of one key in Redis.
struct World {
    steps: Steps,
    cache: TestCache,
    redis: std::sync::Mutex<Redis>,
    /// Held while messages of Redis are received, so they are applied in the order of the wire.
    reading: Mutex<()>,
    /// The oldest version that a read may return if it begins now.
    oldest: AtomicU64,
    /// The oldest version that such a read may return as fresh.
    oldest_fresh: AtomicU64,
    /// Entries that a flight delivered to be stored.
    brought: AtomicU64,
    /// Flights that delivered no entry.
    failed: AtomicU64,
}

/// The state of Redis, and the messages that it sent.
struct Redis {
    version: u64,
    /// Whether the key was read on the connection since its last invalidation.
    tracked: bool,
    /// The number of the connection; `None` while there is none.
    connection: Option<u64>,
    /// Whether the cache knows that there is no connection.
    forsaken: bool,
    /// Messages in transit: a change, up to this version, or a reply (`None`).
    wire: VecDeque<Option<u64>>,
    received: usize,
}

/// The answer to one read.
struct Given {
    outcome: Outcome,
    version: u64,
}

impl From<Answer> for Given {
    fn from(answer: Answer) -> Self {
        Self { outcome: answer.outcome, version: version(&answer.entry) }
    }
}

impl World {
    fn new(steps: Steps, fetches: &Handle) -> Arc<Self> {
        let settings = Settings { capacity: CAPACITY, ..orders::settings() };
        let connection = Some(0);
        let redis = Redis {
            version: 1,
            tracked: false,
            connection,
            forsaken: false,
            wire: VecDeque::new(),
            received: 0,
        };
        Arc::new(Self {
            steps,
            cache: Cache::new(settings, fetches.clone()),
            redis: std::sync::Mutex::new(redis),
            reading: Mutex::new(()),
            oldest: AtomicU64::new(0),
            oldest_fresh: AtomicU64::new(0),
            brought: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    fn shared(&self) -> &TestShared {
        &self.cache.0
    }

    /// Runs one step of Redis.
    fn redis<R>(&self, step: impl FnOnce(&mut Redis) -> R) -> R {
        preemption_point();
        step(&mut self.redis.lock().unwrap())
    }

    /// Requests the version from Redis. Returns `None` if the connection is lost before the reply
    /// arrives.
    fn ask(&self) -> Option<u64> {
        let (connection, version, number) = self.redis(|redis| {
            let connection = redis.connection?;
            redis.tracked = true;
            redis.wire.push_back(None);
            Some((connection, redis.version, redis.received + redis.wire.len()))
        })?;
        self.receive(connection, number).then_some(version)
    }

    /// Receives and applies the messages of Redis up to message `number`. Returns whether the
    /// connection lasted that long.
    fn receive(&self, connection: u64, number: usize) -> bool {
        let _alone = lock(&self.reading);
        loop {
            let mut redis = self.redis.lock().unwrap();
            if redis.connection != Some(connection) || redis.received >= number {
                return redis.connection == Some(connection);
            }
            redis.received += 1;
            let changed = redis.wire.pop_front().flatten();
            drop(redis);
            if let Some(version) = changed {
                (self.steps.invalidate)(&self.cache);
                self.oldest.fetch_max(version, Relaxed);
            }
        }
    }

    /// Applies everything that Redis has sent.
    fn apply_pushes(&self) {
        let sent = self.redis(|redis| Some((redis.connection?, redis.received + redis.wire.len())));
        if let Some((connection, number)) = sent {
            self.receive(connection, number);
        }
    }

    fn look_up(&self) -> Option<Answer> {
        (self.steps.lookup)(self.shared())
    }

    /// Mirrors [`Cache::get_or_fetch`] after the first lookup, with the fetch on the reader's own
    /// thread.
    fn fetch(&self) -> Option<Given> {
        match self.join() {
            Joined::Found(answer) => Some(answer.into()),
            Joined::Follower(waiter) => self.await_flight(waiter),
            Joined::Leader(guard) => {
                let sent = self.shared().clock(Instant::now());
                self.lead(guard, sent, self.ask())
            }
        }
    }

    fn join(&self) -> Joined<FlightResult<Failure>, Answer> {
        self.shared().flights.join(KEY, || self.look_up())
    }

    /// Completes a flight, and answers its leader.
    fn lead(&self, guard: TestTicket, sent: u64, version: Option<u64>) -> Option<Given> {
        self.brought.fetch_add(version.is_some().into(), Relaxed);
        self.failed.fetch_add(version.is_none().into(), Relaxed);
        let result = version.map_or(FlightResult::Failed(Failure), |version| {
            FlightResult::Answered(entry(version, sent, None))
        });
        (self.steps.complete)(self.shared(), guard, &result);
        let result = Some((result, now(self.shared())));
        let answer = self.shared().answer_with(KEY, ReadMode::Default, result, Outcome::Miss);
        answer.ok().map(Given::from)
    }

    fn await_flight(&self, waiter: FlightWaiter<FlightResult<Failure>>) -> Option<Given> {
        let answer = block_on(self.shared().await_flight(KEY, ReadMode::Default, waiter));
        answer.ok().map(Given::from)
    }

    /// Checks the final state, after all threads have ended.
    fn look_at_the_end(&self) {
        self.apply_pushes();
        let shared = self.shared();
        let current = self.redis.lock().unwrap().version;
        let kept = shared.store.load().get(KEY, 0).map(|entry| version(&entry));
        assert!(
            kept.is_none_or(|version| version == current),
            "version {kept:?} was kept, not {current}"
        );
        let statistics = self.cache.statistics();
        assert_eq!(statistics.flights, 0, "a flight was left open");
        self.look_at_the_figures(&statistics);
    }

    /// Checks that every stored entry is still there or was counted when it left.
    fn look_at_the_figures(&self, statistics: &Statistics) {
        let (brought, failed) = (self.brought.load(Relaxed), self.failed.load(Relaxed));
        let counted = statistics.entries + statistics.evictions.iter().sum::<u64>();
        // Some of the discarded flights may be among those that failed.
        let stored = brought.saturating_sub(statistics.flights_discarded)
            ..=brought + failed - statistics.flights_discarded;
        assert!(
            stored.contains(&counted),
            "{counted} entries are there or were counted, expected {stored:?}"
        );
    }
}

/// Initial states of a scenario.
impl World {
    fn nothing(&self) {
        assert!(self.look_up().is_none());
    }

    fn kept(&self) {
        self.read();
    }

    fn expired(&self) {
        self.brought.fetch_add(1, Relaxed);
        let entry = entry(0, self.shared().clock(Instant::now()), Some(Duration::ZERO));
        self.shared().store.load().insert(entry);
    }

    fn tracked(&self) {
        self.cache.start_tracking(Instant::now());
    }

    fn tracked_and_kept(&self) {
        self.tracked();
        self.read();
    }

    fn tracked_and_kept_for_stale(&self) {
        self.cache.apply(&Settings { stale_if_error: HOUR, ..self.cache.settings() });
        self.tracked_and_kept();
    }

    fn suspended_and_kept_for_stale(&self) {
        self.tracked_and_kept_for_stale();
        self.cache.suspend_tracking();
    }
}

/// Operations of a scenario's threads.
impl World {
    fn read(&self) {
        let (oldest, oldest_fresh) = (self.oldest.load(Relaxed), self.oldest_fresh.load(Relaxed));
        let given = self.look_up().map(Given::from).or_else(|| (self.steps.fetch)(self));
        let Some(Given { outcome, version }) = given else { return };
        let oldest = if outcome == Outcome::Stale { oldest } else { oldest.max(oldest_fresh) };
        assert!(
            version >= oldest,
            "a read was given version {version}, older than {oldest}: {outcome:?}"
        );
    }

    fn read_twice(&self) {
        self.read();
        self.read();
    }

    fn serve_stale(&self) {
        let oldest = self.oldest.load(Relaxed);
        let given = (self.steps.serve_stale)(self.shared()).map(Given::from);
        assert!(
            given.is_none_or(|given| given.version >= oldest),
            "something older than {oldest} stood in"
        );
    }

    fn be_stood_in_for(&self) {
        assert!((self.steps.serve_stale)(self.shared()).is_some(), "nothing stood in");
    }

    /// Changes the key in Redis, which pushes an invalidation if the key is tracked.
    fn write(&self) {
        self.redis(|redis| {
            redis.version += 1;
            if redis.forsaken {
                self.oldest_fresh.fetch_max(redis.version, Relaxed);
            }
            if std::mem::take(&mut redis.tracked) {
                redis.wire.push_back(Some(redis.version));
            }
        });
    }

    fn change(&self) {
        self.write();
        self.apply_pushes();
    }

    fn change_and_read(&self) {
        self.change();
        self.read();
    }

    fn change_twice(&self) {
        self.change();
        self.change();
    }

    fn flush(&self) {
        self.cache.invalidate_all();
    }

    fn resize(&self) {
        (self.steps.resize)(&self.cache);
    }

    fn sweep(&self) {
        (self.steps.sweep)(&self.cache);
    }

    /// Opens a flight, if none is open, and never completes it.
    fn cancel_leader(&self) {
        if let Joined::Leader(guard) = self.join() {
            drop(guard);
        }
    }

    /// Loses the connection and makes a new one, in the order of `backend::supervisor`
    /// (invariant C2). Meanwhile another client writes, and no invalidation is pushed.
    fn reconnect(&self) {
        let reading = lock(&self.reading);
        self.redis(|redis| {
            redis.connection = None;
            redis.tracked = false;
            redis.received += redis.wire.len();
            redis.wire.clear();
        });
        drop(reading);
        (self.steps.suspend_tracking)(&self.cache);
        self.forsaken();
        self.write();
        (self.steps.start_tracking)(&self.cache, Instant::now());
        // Memory is empty now, and the next request returns the current version.
        let version = self.redis.lock().unwrap().version;
        self.oldest.fetch_max(version, Relaxed);
        self.redis(|redis| (redis.connection, redis.forsaken) = (Some(1), false));
    }

    /// Records that nothing in memory is fresh from now on.
    fn forsaken(&self) {
        let mut redis = self.redis.lock().unwrap();
        redis.forsaken = true;
        self.oldest_fresh.fetch_max(redis.version, Relaxed);
    }
}

fn entry(version: u64, sent: u64, expires_in: Option<Duration>) -> Entry {
    Entry::new(&Key::from(KEY), Some(Bytes::from(version.to_be_bytes().to_vec())), sent, expires_in)
}

fn version(entry: &Entry) -> u64 {
    u64::from_be_bytes(entry.value().unwrap().bytes[..].try_into().unwrap())
}

type Act = fn(&World);

/// An initial state, and threads that start together.
#[derive(Clone, Copy)]
struct Scenario(Act, &'static [Act]);

impl Scenario {
    fn run(self, steps: Steps, fetches: &Handle) {
        let world = World::new(steps, fetches);
        let Self(before, acts) = self;
        before(&world);
        let threads = acts.iter().map(|act| {
            let world = Arc::clone(&world);
            thread::spawn(move || act(&world))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        world.look_at_the_end();
    }

    /// Asserts that every order with at most `preemptions` preemptions passes.
    fn holds(self, preemptions: usize, steps: Steps) {
        orders::holds(preemptions, move |fetches| self.run(steps, fetches));
    }

    /// Asserts that some order with at most `preemptions` preemptions fails, with a message that
    /// contains `words`.
    fn fails(self, preemptions: usize, steps: Steps, words: &str) {
        orders::fails(preemptions, move |fetches| self.run(steps, fetches), words);
    }
}

#[test]
fn fetch_older_than_a_change_is_never_served() {
    for steps in [RIGHT, FLUSHES] {
        Scenario(World::nothing, &[World::read, World::change_and_read]).holds(3, steps);
        Scenario(World::nothing, &[World::read, World::read, World::change_and_read])
            .holds(2, steps);
    }
    Scenario(World::nothing, &[World::read, World::read, World::change_twice]).holds(2, RIGHT);
    Scenario(World::nothing, &[World::read, World::change, World::change]).holds(2, RIGHT);
}

#[test]
fn resize_never_revives_changed_entries() {
    for steps in [RIGHT, FLUSHES] {
        Scenario(World::kept, &[World::resize, World::change_and_read]).holds(3, steps);
        Scenario(World::nothing, &[World::resize, World::change, World::read]).holds(2, steps);
    }
    Scenario(World::kept, &[World::resize, World::change, World::read]).holds(2, RIGHT);
    Scenario(World::kept, &[World::resize, World::flush]).holds(ANY, RIGHT);
    Scenario(World::expired, &[World::resize, World::flush]).holds(ANY, RIGHT);
    Scenario(World::nothing, &[World::resize, World::flush, World::read]).holds(2, RIGHT);
}

#[test]
fn resize_never_hides_stale_entries() {
    Scenario(World::suspended_and_kept_for_stale, &[World::resize, World::be_stood_in_for])
        .holds(3, RIGHT);
}

#[test]
fn follower_never_waits_for_a_lost_leader() {
    Scenario(World::nothing, &[World::cancel_leader, World::read]).holds(ANY, RIGHT);
    Scenario(World::nothing, &[World::cancel_leader, World::read_twice, World::read])
        .holds(2, RIGHT);
}

#[test]
fn new_lease_covers_no_earlier_entry() {
    for before in [World::tracked, World::tracked_and_kept, World::tracked_and_kept_for_stale] {
        Scenario(before, &[World::reconnect, World::read]).holds(3, RIGHT);
        Scenario(before, &[World::reconnect, World::read, World::read]).holds(2, RIGHT);
    }
    Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::serve_stale])
        .holds(3, RIGHT);
}

#[test]
fn sweep_keeps_entries_stored_meanwhile() {
    Scenario(World::expired, &[World::sweep, World::read]).holds(3, RIGHT);
    Scenario(World::expired, &[World::sweep, World::read, World::change]).holds(2, RIGHT);
}

/// Tries random orders, the same in each run, because these are too many threads for every order.
#[test]
fn random_orders_of_all_operations_hold() {
    let acts: &[Act] = &[
        World::read_twice,
        World::read_twice,
        World::change_twice,
        World::resize,
        World::sweep,
        World::reconnect,
    ];
    for before in [World::kept, World::tracked_and_kept_for_stale] {
        orders::hold_at_random(move |fetches| Scenario(before, acts).run(RIGHT, fetches));
    }
}

#[test]
fn check_then_store_keeps_a_changed_entry() {
    let complete = |shared: &TestShared, guard: TestTicket, result: &FlightResult<Failure>| {
        let (key, open) = (guard.key().clone(), Cell::new(false));
        guard.complete(|_, ()| open.set(true), result);
        if open.get() {
            shared.store_result(&key, result, now(shared));
        }
    };
    let threads: &[Act] = &[World::read, World::change_and_read];
    Scenario(World::nothing, threads).fails(3, Steps { complete, ..RIGHT }, "was kept, not");
    Scenario(World::nothing, threads).fails(3, Steps { complete, ..FLUSHES }, "or were counted");
}

#[test]
fn opening_late_keeps_a_changed_entry() {
    let fetch = |world: &World| {
        let sent = world.shared().clock(Instant::now());
        let version = world.ask();
        match world.join() {
            Joined::Found(answer) => Some(answer.into()),
            Joined::Follower(waiter) => world.await_flight(waiter),
            Joined::Leader(guard) => world.lead(guard, sent, version),
        }
    };
    let threads: &[Act] = &[World::read, World::change_and_read];
    Scenario(World::nothing, threads).fails(3, Steps { fetch, ..RIGHT }, "older than");
}

#[test]
fn removing_before_closing_keeps_a_changed_entry() {
    let invalidate = |cache: &TestCache| {
        let shared = &cache.0;
        if shared.flights.hold(KEY, || shared.store.load().remove(KEY)) {
            shared.evictions.add(EvictionCause::Invalidated, 1);
        }
        shared.flights.close(KEY, || ());
    };
    let flush = |cache: &TestCache| {
        let shared = &cache.0;
        shared.record_flush(shared.flights.hold_all(|| shared.replace_store()));
        shared.flights.close_all(|| ());
    };
    let threads: &[Act] = &[World::read, World::change_and_read];
    Scenario(World::nothing, threads).fails(3, Steps { invalidate, ..RIGHT }, "older than");
    Scenario(World::nothing, threads).fails(3, Steps { invalidate: flush, ..RIGHT }, "older than");
}

#[test]
fn lease_read_after_the_store_covers_old_entries() {
    let lookup = |shared: &TestShared| {
        let now = shared.clock(Instant::now());
        let entry = shared.store.load().get(KEY, now)?;
        let validity = shared.lease.validity(now);
        let freshness = entry.freshness(now, shared.ttls.get(), validity);
        matches!(freshness, Freshness::Fresh { .. })
            .then(|| Answer::new(entry, Outcome::Hit, freshness, RuleId::NONE, now))
    };
    let scenario = Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { lookup, ..RIGHT }, "older than");
}

#[test]
fn lease_before_the_flush_covers_old_entries() {
    let start_tracking = |cache: &TestCache, sent| {
        cache.renew_lease(sent);
        cache.0.record_flush(cache.0.flights.hold_all(|| cache.0.replace_store()));
    };
    let scenario = Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { start_tracking, ..RIGHT }, "older than");
}

#[test]
fn open_flight_survives_connection_loss() {
    let suspend_tracking =
        |cache: &TestCache| cache.0.lease.expire_at(cache.0.clock(Instant::now()));
    let scenario = Scenario(World::tracked, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { suspend_tracking, ..RIGHT }, "was kept, not");
}

#[test]
fn sweep_without_recheck_takes_new_entries() {
    let sweep = |cache: &TestCache| {
        let shared = &cache.0;
        let seen = Arc::clone(&shared.store.load());
        let (now, ttls) = (shared.clock(Instant::now()), shared.ttls.get());
        let validity = shared.lease.next_validity();
        for entry in
            seen.collect_where(|entry| entry.freshness(now, ttls, validity) == Freshness::Expired)
        {
            shared.flights.hold(entry.key(), || shared.store.load().remove(entry.key()));
        }
    };
    Scenario(World::expired, &[World::sweep, World::read]).fails(
        3,
        Steps { sweep, ..RIGHT },
        "or were counted",
    );
}

#[test]
fn shorter_coherence_timeout_bounds_next_renewal() {
    const SHORT: Duration = Duration::from_secs(60);
    orders::holds(ANY, |fetches| {
        let settings = orders::settings();
        let cache = TestCache::new(settings.clone(), fetches.clone());
        cache.start_tracking(Instant::now());
        let renewed = cache.clone();
        let renewal = thread::spawn(move || renewed.renew_lease(Instant::now()));
        let changed = cache.clone();
        let reload = thread::spawn(move || {
            changed.apply(&Settings { coherence_timeout: SHORT, ..settings })
        });
        renewal.join().unwrap();
        reload.join().unwrap();
        let later = cache.0.clock(Instant::now() + SHORT);
        let validity = cache.0.lease.validity(later);
        assert_ne!(
            validity,
            Validity::Tracked,
            "a proof holds for longer than the coherence_timeout in force"
        );
    });
}
