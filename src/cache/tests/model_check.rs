//! Every order of steps, tried: the cache's own code in threads of which one runs at a time, changed at every point
//! where it touches what they share (see `sync`).
//!
//! A scenario is a few threads about one key: some read it, some change it in a model of Redis, which tells of changes on
//! the wire its answers come on, and some resize, sweep, flush or lose the link. [`Orders`] runs it once for each order of
//! the steps, or for each with so many preemptions at most. The rules that are asserted: a read that begins after a
//! change was heeded never gives what was there before it; nobody waits for ever; and once all is quiet, memory holds
//! nothing or what Redis holds.
//!
//! That the scenarios see what they are to see is shown by wrong [`Steps`]: the parts of the cache in another order. Each
//! of them must fail the scenario that the right ones pass.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner, thread};
use tokio::runtime::Builder;

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
const HOUR: Duration = Duration::from_secs(3600);
const CAPACITY: usize = 10;
const CAPACITY_NEXT: usize = 20;
/// As many preemptions as there are steps: every order there is.
const ANY: usize = usize::MAX;
const RANDOM_ORDERS: usize = 5_000;
const SEED: u64 = 1;
/// Unoptimized code wants more than shuttle gives a thread.
const STACK_SIZE: usize = 1 << 18;

/// The parts of the cache, each with its steps in some order.
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

/// The right order: the cache's own.
const RIGHT: Steps = Steps {
    lookup: |shared| shared.lookup(KEY, Instant::now()),
    serve_stale: |shared| shared.serve_stale(KEY, Instant::now()),
    fetch: World::fetch,
    complete: |shared, guard, result| shared.complete(guard, result),
    invalidate: |cache| cache.invalidate(KEY),
    resize: |cache| _ = cache.apply(&Settings { capacity: CAPACITY_NEXT, ..cache.settings() }),
    sweep: TestCache::sweep,
    suspend_tracking: TestCache::suspend_tracking,
    start_tracking: TestCache::start_tracking,
};

/// The cache's own, where Redis tells that everything changed instead of the key.
const FLUSHES: Steps = Steps { invalidate: TestCache::invalidate_all, ..RIGHT };

/// A cache in front of one key of a Redis.
struct World {
    steps: Steps,
    cache: TestCache,
    redis: std::sync::Mutex<Redis>,
    /// Held by whoever reads what Redis has sent, so that it is heeded in the order of the wire.
    reading: Mutex<()>,
    /// The oldest version that a read may give that begins now.
    oldest: AtomicU64,
    /// The oldest version that it may give as fresh.
    oldest_fresh: AtomicU64,
    /// Entries that were brought to be stored.
    brought: AtomicU64,
    /// Flights that brought none.
    failed: AtomicU64,
}

/// What Redis has, and what it has sent.
struct Redis {
    version: u64,
    /// The key has been read over the link since it was told of last.
    tracked: bool,
    /// The number of the link; `None`: there is none.
    link: Option<u64>,
    /// The cache knows that there is no link.
    forsaken: bool,
    /// What is under way: a change, up to this version, or an answer.
    wire: VecDeque<Option<u64>>,
    received: usize,
}

/// What a reader was given.
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
        let settings = Settings {
            capacity: CAPACITY,
            ttl: HOUR,
            coherence_timeout: HOUR,
            ..Settings::default()
        };
        let link = Some(0);
        let redis = Redis {
            version: 1,
            tracked: false,
            link,
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

    /// What Redis does in one step.
    fn redis<R>(&self, step: impl FnOnce(&mut Redis) -> R) -> R {
        preemption_point();
        step(&mut self.redis.lock().unwrap())
    }

    /// Asks Redis for the version; `None` when the link is lost before the answer is here.
    fn ask(&self) -> Option<u64> {
        let (link, version, number) = self.redis(|redis| {
            let link = redis.link?;
            redis.tracked = true;
            redis.wire.push_back(None);
            Some((link, redis.version, redis.received + redis.wire.len()))
        })?;
        self.receive(link, number).then_some(version)
    }

    /// Reads what Redis has sent up to message `number`, and heeds it; tells whether the link lasted so long.
    fn receive(&self, link: u64, number: usize) -> bool {
        let _alone = lock(&self.reading);
        loop {
            let mut redis = self.redis.lock().unwrap();
            if redis.link != Some(link) || redis.received >= number {
                return redis.link == Some(link);
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

    /// Heeds all that Redis has told.
    fn apply_pushes(&self) {
        let sent = self.redis(|redis| Some((redis.link?, redis.received + redis.wire.len())));
        if let Some((link, number)) = sent {
            self.receive(link, number);
        }
    }

    fn look_up(&self) -> Option<Answer> {
        (self.steps.lookup)(self.shared())
    }

    /// As [`Cache::get_or_fetch`] does it after the first look, with the fetch in the reader's own thread.
    fn fetch(&self) -> Option<Given> {
        match self.join() {
            Joined::Found(answer) => Some(answer.into()),
            Joined::Follower(waiter) => self.await_flight(waiter, Outcome::Coalesced),
            Joined::Leader(guard, waiter) => {
                let asked = self.shared().clock(Instant::now());
                self.complete(guard, asked, self.ask());
                self.await_flight(waiter, Outcome::Miss)
            }
        }
    }

    fn join(&self) -> Joined<FlightResult<Failure>, Answer> {
        self.shared().flights.join(KEY, || self.look_up())
    }

    fn complete(&self, guard: TestTicket, asked: u64, version: Option<u64>) {
        self.brought.fetch_add(version.is_some().into(), Relaxed);
        self.failed.fetch_add(version.is_none().into(), Relaxed);
        let result = version.map_or(FlightResult::Failed(Failure), |version| {
            FlightResult::Answered(entry(version, asked, None))
        });
        (self.steps.complete)(self.shared(), guard, &result);
    }

    fn await_flight(
        &self,
        waiter: FlightWaiter<FlightResult<Failure>>,
        outcome: Outcome,
    ) -> Option<Given> {
        block_on(self.shared().await_flight(KEY, ReadMode::Default, waiter, outcome))
            .ok()
            .map(Given::from)
    }

    /// What is left when nothing goes on any more.
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

    /// Every entry that was stored is there or was counted when it left.
    fn look_at_the_figures(&self, statistics: &Statistics) {
        let (brought, failed) = (self.brought.load(Relaxed), self.failed.load(Relaxed));
        let counted = statistics.entries + statistics.evictions.iter().sum::<u64>();
        // Of the flights that were discarded some may be among those that failed.
        let stored = brought.saturating_sub(statistics.flights_discarded)
            ..=brought + failed - statistics.flights_discarded;
        assert!(
            stored.contains(&counted),
            "{counted} entries are there or were counted, expected {stored:?}"
        );
    }
}

/// What there is when a scenario begins.
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

/// What a thread of a scenario does.
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

    /// Somebody changes the key in Redis, which tells of it if the key is tracked.
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

    /// Opens a flight, if there is none, and never lands.
    fn cancel_leader(&self) {
        if let Joined::Leader(guard, _) = self.join() {
            drop(guard);
        }
    }

    /// The link is lost and made again, in the order of `backend::supervisor`. Meanwhile somebody writes, of which nobody
    /// is told.
    fn reconnect(&self) {
        let reading = lock(&self.reading);
        self.redis(|redis| {
            redis.link = None;
            redis.tracked = false;
            redis.received += redis.wire.len();
            redis.wire.clear();
        });
        drop(reading);
        (self.steps.suspend_tracking)(&self.cache);
        self.forsaken();
        self.write();
        (self.steps.start_tracking)(&self.cache, Instant::now());
        // Nothing is in memory now, and whoever asks next is told what is current.
        let version = self.redis.lock().unwrap().version;
        self.oldest.fetch_max(version, Relaxed);
        self.redis(|redis| (redis.link, redis.forsaken) = (Some(1), false));
    }

    /// Nothing in memory is fresh from now on.
    fn forsaken(&self) {
        let mut redis = self.redis.lock().unwrap();
        redis.forsaken = true;
        self.oldest_fresh.fetch_max(redis.version, Relaxed);
    }
}

fn entry(version: u64, asked: u64, expires_in: Option<Duration>) -> Arc<Entry> {
    Entry::new(
        &Key::from(KEY),
        Some(Bytes::from(version.to_be_bytes().to_vec())),
        asked,
        expires_in,
    )
}

fn version(entry: &Entry) -> u64 {
    u64::from_be_bytes(entry.value().unwrap().bytes[..].try_into().unwrap())
}

type Act = fn(&World);

/// What there is at first, and threads that begin at once.
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

    /// Runs it in each of the orders; returns how many there were.
    fn run_in(
        self,
        orders: impl Scheduler + 'static,
        failure_persistence: FailurePersistence,
        steps: Steps,
    ) -> usize {
        // Only its threads for blocking work are used, where stores are dropped.
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let fetches = runtime.handle().clone();
        let mut config = Config::new();
        config.stack_size = STACK_SIZE;
        config.failure_persistence = failure_persistence;
        config.silence_warnings = true;
        Runner::new(orders, config).run(move || self.run(steps, &fetches))
    }

    /// Nothing is wrong in any order with so many preemptions at most. `PREEMPTIONS=4` for a longer look.
    fn holds(self, preemptions: usize, steps: Steps) {
        let more = std::env::var("PREEMPTIONS").map_or(0, |number| number.parse().unwrap());
        let preemptions = preemptions.max(more);
        let orders = self.run_in(Orders::new(preemptions), FailurePersistence::Print, steps);
        assert!(orders > 100, "{orders} orders are too few to tell anything");
    }

    /// In some order with so many preemptions at most it fails, with these words.
    fn fails(self, preemptions: usize, steps: Steps, words: &str) {
        let orders = Orders::new(preemptions);
        let run =
            catch_unwind(AssertUnwindSafe(|| self.run_in(orders, FailurePersistence::None, steps)));
        let failure = run.expect_err("the wrong order did no harm");
        let formatted = failure.downcast_ref::<String>().map(String::as_str);
        let failure = formatted.or(failure.downcast_ref::<&str>().copied()).unwrap_or_default();
        assert!(failure.contains(words), "{failure}");
    }
}

/// The orders of a scenario's steps, one an execution, depth first: at every step the thread that runs goes on, or another
/// takes its place, so many times at most. Where it cannot go on, any other may.
struct Orders {
    preemptions: usize,
    begun: bool,
    choices: Vec<Choice>,
    /// Choices made in this execution.
    made: usize,
    preempted: usize,
}

struct Choice {
    threads: Vec<TaskId>,
    taken: usize,
}

impl Orders {
    fn new(preemptions: usize) -> Self {
        Self { preemptions, begun: false, choices: Vec::new(), made: 0, preempted: 0 }
    }

    fn choose(&self, mut threads: Vec<TaskId>, running: Option<usize>) -> Choice {
        if let Some(running) = running {
            threads.swap(0, running);
            if self.preempted == self.preemptions {
                threads.truncate(1);
            }
        }
        Choice { threads, taken: 0 }
    }
}

impl Scheduler for Orders {
    fn new_execution(&mut self) -> Option<Schedule> {
        if std::mem::replace(&mut self.begun, true) {
            while self.choices.pop_if(|choice| choice.taken + 1 == choice.threads.len()).is_some() {
            }
            self.choices.last_mut()?.taken += 1;
        }
        (self.made, self.preempted) = (0, 0);
        Some(Schedule::new(0))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        _is_yielding: bool,
    ) -> Option<TaskId> {
        let threads: Vec<_> = runnable.iter().map(|thread| thread.id()).collect();
        // The first thread prepares, starts the others and looks at the end: where it can go on, nothing else matters.
        let first = TaskId::from(0);
        if threads.contains(&first) {
            return Some(first);
        }
        let running = threads.iter().position(|thread| Some(*thread) == current);
        if self.made == self.choices.len() {
            self.choices.push(self.choose(threads, running));
        }
        let Choice { threads, taken } = &self.choices[self.made];
        self.made += 1;
        self.preempted += usize::from(running.is_some() && *taken > 0);
        Some(threads[*taken])
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}

#[test]
fn nothing_that_was_fetched_before_a_change_is_kept_or_given_after_it() {
    for steps in [RIGHT, FLUSHES] {
        Scenario(World::nothing, &[World::read, World::change_and_read]).holds(3, steps);
        Scenario(World::nothing, &[World::read, World::read, World::change_and_read])
            .holds(2, steps);
    }
    Scenario(World::nothing, &[World::read, World::read, World::change_twice]).holds(2, RIGHT);
    Scenario(World::nothing, &[World::read, World::change, World::change]).holds(2, RIGHT);
}

#[test]
fn a_resize_brings_back_nothing_that_was_changed_or_flushed() {
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
fn a_resize_hides_nothing_from_who_may_be_given_something_stale() {
    Scenario(World::suspended_and_kept_for_stale, &[World::resize, World::be_stood_in_for])
        .holds(3, RIGHT);
}

#[test]
fn nobody_waits_for_a_leader_who_is_gone() {
    Scenario(World::nothing, &[World::cancel_leader, World::read]).holds(ANY, RIGHT);
    Scenario(World::nothing, &[World::cancel_leader, World::read_twice, World::read])
        .holds(2, RIGHT);
}

#[test]
fn a_new_link_vouches_for_nothing_of_before() {
    for before in [World::tracked, World::tracked_and_kept, World::tracked_and_kept_for_stale] {
        Scenario(before, &[World::reconnect, World::read]).holds(3, RIGHT);
        Scenario(before, &[World::reconnect, World::read, World::read]).holds(2, RIGHT);
    }
    Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::serve_stale])
        .holds(3, RIGHT);
}

#[test]
fn a_sweep_takes_nothing_that_landed_meanwhile() {
    Scenario(World::expired, &[World::sweep, World::read]).holds(3, RIGHT);
    Scenario(World::expired, &[World::sweep, World::read, World::change]).holds(2, RIGHT);
}

/// More threads than can be tried in every order: in orders by chance, the same in each run.
#[test]
fn everything_at_once() {
    let acts: &[Act] = &[
        World::read_twice,
        World::read_twice,
        World::change_twice,
        World::resize,
        World::sweep,
        World::reconnect,
    ];
    for before in [World::kept, World::tracked_and_kept_for_stale] {
        let orders = RandomScheduler::new_from_seed(SEED, RANDOM_ORDERS);
        Scenario(before, acts).run_in(orders, FailurePersistence::Print, RIGHT);
    }
}

#[test]
fn check_then_store_keeps_what_was_changed() {
    let complete = |shared: &TestShared, guard: TestTicket, result: &FlightResult<Failure>| {
        let (key, open) = (guard.key().clone(), Cell::new(false));
        guard.complete(|_| open.set(true), result.clone());
        if open.get() {
            shared.store_result(&key, result);
        }
    };
    let threads: &[Act] = &[World::read, World::change_and_read];
    Scenario(World::nothing, threads).fails(3, Steps { complete, ..RIGHT }, "was kept, not");
    Scenario(World::nothing, threads).fails(3, Steps { complete, ..FLUSHES }, "or were counted");
}

#[test]
fn opening_late_keeps_what_was_changed() {
    let fetch = |world: &World| {
        let asked = world.shared().clock(Instant::now());
        let version = world.ask();
        match world.join() {
            Joined::Found(answer) => Some(answer.into()),
            Joined::Follower(waiter) => world.await_flight(waiter, Outcome::Coalesced),
            Joined::Leader(guard, waiter) => {
                world.complete(guard, asked, version);
                world.await_flight(waiter, Outcome::Miss)
            }
        }
    };
    let threads: &[Act] = &[World::read, World::change_and_read];
    Scenario(World::nothing, threads).fails(3, Steps { fetch, ..RIGHT }, "older than");
}

#[test]
fn removing_before_closing_keeps_what_was_changed() {
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
fn a_voucher_asked_after_the_store_vouches_for_what_was_there_before() {
    let lookup = |shared: &TestShared| {
        let now = shared.clock(Instant::now());
        let entry = shared.store.load().get(KEY, now)?;
        let validity = shared.lease.validity(now);
        let freshness = entry.freshness(now, shared.ttls.get(), validity);
        matches!(freshness, Freshness::Fresh { .. })
            .then(|| Answer::new(entry, Outcome::Hit, freshness, now))
    };
    let scenario = Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { lookup, ..RIGHT }, "older than");
}

#[test]
fn a_proof_before_all_is_dropped_vouches_for_what_was_there_before() {
    let start_tracking = |cache: &TestCache, asked| {
        cache.renew_lease(asked);
        cache.0.record_flush(cache.0.flights.hold_all(|| cache.0.replace_store()));
    };
    let scenario = Scenario(World::tracked_and_kept_for_stale, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { start_tracking, ..RIGHT }, "older than");
}

#[test]
fn a_flight_left_open_when_the_link_is_lost_keeps_what_came_over_it() {
    let suspend_tracking =
        |cache: &TestCache| cache.0.lease.expire_at(cache.0.clock(Instant::now()));
    let scenario = Scenario(World::tracked, &[World::reconnect, World::read]);
    scenario.fails(3, Steps { suspend_tracking, ..RIGHT }, "was kept, not");
}

#[test]
fn a_sweep_that_does_not_look_again_takes_what_landed_meanwhile() {
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
fn a_shorter_coherence_timeout_is_obeyed_by_the_proof_that_comes_meanwhile() {
    const SHORT: Duration = Duration::from_secs(60);
    let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let fetches = runtime.handle().clone();
    let mut config = Config::new();
    config.stack_size = STACK_SIZE;
    config.silence_warnings = true;
    let orders = Runner::new(Orders::new(ANY), config).run(move || {
        let settings = Settings { ttl: HOUR, coherence_timeout: HOUR, ..Settings::default() };
        let cache = TestCache::new(settings.clone(), fetches.clone());
        cache.start_tracking(Instant::now());
        let renewed = cache.clone();
        let link = thread::spawn(move || renewed.renew_lease(Instant::now()));
        let changed = cache.clone();
        let reload = thread::spawn(move || {
            changed.apply(&Settings { coherence_timeout: SHORT, ..settings })
        });
        link.join().unwrap();
        reload.join().unwrap();
        let later = cache.0.clock(Instant::now() + SHORT);
        let validity = cache.0.lease.validity(later);
        assert_ne!(
            validity,
            Validity::Tracked,
            "a proof holds for longer than the coherence_timeout in force"
        );
    });
    assert!(orders > 10, "{orders} orders are too few to tell anything");
}
