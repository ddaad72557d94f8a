//! Model checking of the kept replies: the production code runs under shuttle in every order of its
//! steps, as in the model check of the strings.
//!
//! A scenario is a few threads that send one command, which reads two keys. Redis tracks each key
//! that was read on the connection, and pushes its next change on the same wire as its replies.
//!
//! Three rules are asserted:
//! - A read that begins after a change was applied never returns an earlier version of that key.
//! - No reader waits forever.
//! - At the end, the reply that would be served is that of Redis.
//!
//! Wrong [`Steps`] show that the scenarios detect failures. Each must fail the scenario that the
//! right order passes.

use std::collections::VecDeque;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::thread;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::flight::{FlightWaiter, Joined};
use super::super::lease::Validity;
use super::super::orders;
use super::super::sync::{Mutex, lock, preemption_point};
use super::super::types::Cancelled;
use super::super::{Cache, LookupUse, Shared};
use super::*;
use crate::protocol::Shape;

#[derive(Debug, Clone)]
struct Failure;

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self
    }
}

type TestCache = Cache<Failure>;
type TestShared = Shared<Failure>;
type TestJoined = Joined<ReplyResult<Failure>, Arc<Reply>, Note>;
/// The version of each key.
type Versions = [u64; 2];

const COMMAND: &[u8] = b"*3\r\n$6\r\nSUNION\r\n$1\r\na\r\n$1\r\nb\r\n";
const KEYS: [&[u8]; 2] = [b"a", b"b"];

/// The operations of the kept replies, each with its steps in some order.
#[derive(Clone, Copy)]
struct Steps {
    lookup: fn(&TestShared) -> Option<Arc<Reply>>,
    join: fn(&World) -> TestJoined,
    fetch: fn(&World) -> Option<Versions>,
    suspend_tracking: fn(&TestCache),
    start_tracking: fn(&TestCache),
}

/// The right order: the production code.
const RIGHT: Steps = Steps {
    lookup: |shared| {
        let found = shared.lookup_reply(COMMAND, shared.clock(Instant::now()), LookupUse::Serve);
        found.map(|found| found.reply)
    },
    join: |world| world.cache.0.join_reply(COMMAND, &KEYS.map(Key::from), Instant::now()),
    fetch: World::fetch,
    suspend_tracking: TestCache::suspend_tracking,
    start_tracking: |cache| cache.start_tracking(Instant::now()),
};

struct World {
    steps: Steps,
    cache: TestCache,
    redis: std::sync::Mutex<Redis>,
    /// Held while messages of Redis are received, so they are applied in the order of the wire.
    reading: Mutex<()>,
    /// The oldest versions that a read may return if it begins now.
    oldest: std::sync::Mutex<Versions>,
}

/// The state of Redis, and the messages that it sent.
struct Redis {
    versions: Versions,
    /// Whether the key was read on the connection since its last push.
    tracked: [bool; 2],
    /// The number of the connection; `None` while there is none.
    connection: Option<u64>,
    /// Messages in transit: the change of a key, up to this version, or a reply (`None`).
    wire: VecDeque<Option<(usize, u64)>>,
    received: usize,
}

impl World {
    fn new(steps: Steps, background: &Handle) -> Arc<Self> {
        let redis = Redis {
            versions: [1; 2],
            tracked: [false; 2],
            connection: Some(0),
            wire: VecDeque::new(),
            received: 0,
        };
        let world = Self {
            steps,
            cache: Cache::new(orders::settings(), background.clone()),
            redis: std::sync::Mutex::new(redis),
            reading: Mutex::new(()),
            oldest: std::sync::Mutex::new([0; 2]),
        };
        world.cache.start_tracking(Instant::now());
        Arc::new(world)
    }

    /// Runs one step of Redis.
    fn redis<R>(&self, step: impl FnOnce(&mut Redis) -> R) -> R {
        preemption_point();
        step(&mut self.redis.lock().unwrap())
    }

    /// Requests the versions from Redis. Returns `None` if the connection is lost before the reply
    /// arrives.
    fn request(&self) -> Option<Versions> {
        let (connection, versions, number) = self.redis(|redis| {
            let connection = redis.connection?;
            redis.tracked = [true; 2];
            redis.wire.push_back(None);
            Some((connection, redis.versions, redis.received + redis.wire.len()))
        })?;
        self.receive(connection, number).then_some(versions)
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
            if let Some((key, version)) = changed {
                self.cache.invalidate(KEYS[key]);
                self.raise_oldest(key, version);
            }
        }
    }

    /// Applies everything that Redis has sent. Returns whether the connection lasted that long.
    fn apply_pushes(&self) -> bool {
        let sent = self.redis(|redis| Some((redis.connection?, redis.received + redis.wire.len())));
        sent.is_some_and(|(connection, number)| self.receive(connection, number))
    }

    /// From now on no read may return an earlier version of the key.
    fn raise_oldest(&self, key: usize, version: u64) {
        let oldest = &mut self.oldest.lock().unwrap()[key];
        *oldest = version.max(*oldest);
    }

    fn look_up(&self) -> Option<Versions> {
        (self.steps.lookup)(&self.cache.0).map(|reply| versions(&reply))
    }

    /// Mirrors [`Cache::get_or_fetch_reply`], with the fetch on the reader's own thread.
    fn fetch(&self) -> Option<Versions> {
        match (self.steps.join)(self) {
            Joined::Found(reply) => Some(versions(&reply)),
            Joined::Follower(waiter) => self.wait(waiter),
            Joined::Leader(guard) => {
                let versions = self.request();
                self.lead(guard, versions)
            }
        }
    }

    /// Completes a flight, and returns the reply to its leader.
    fn lead(
        &self,
        guard: FlightGuard<ReplyResult<Failure>, Note>,
        versions: Option<Versions>,
    ) -> Option<Versions> {
        let now = self.cache.0.clock(Instant::now());
        let fetched = versions.map_or(FetchedReply::Failed(Failure), |versions| {
            let frame = Bytes::from(versions.map(u64::to_be_bytes).concat());
            FetchedReply::Keepable(ReplyFrame::new(frame, Shape::default()), None)
        });
        let of = ReplyOf {
            name_index: 0,
            keys: KEYS.map(Key::from).into(),
            requested_at: Instant::now(),
        };
        versions_in(self.cache.0.replies.complete(guard, fetched, now, now, of))
    }

    fn wait(&self, waiter: FlightWaiter<ReplyResult<Failure>, Note>) -> Option<Versions> {
        versions_in(block_on(self.cache.0.await_reply(waiter)))
    }

    /// Checks the final state, after all threads have ended.
    fn look_at_the_end(&self) {
        self.apply_pushes();
        let current = self.redis.lock().unwrap().versions;
        let kept = self.look_up();
        assert!(
            kept.is_none_or(|versions| versions == current),
            "versions {kept:?} were kept, not {current:?}"
        );
        assert_eq!(self.cache.0.replies.flights.len(), 0, "a flight was left open");
    }
}

fn versions_in(result: ReplyResult<Failure>) -> Option<Versions> {
    match result {
        ReplyResult::Reply(reply) => Some(versions(&reply)),
        ReplyResult::Forward | ReplyResult::Failed(Failure) => None,
    }
}

fn versions(reply: &Reply) -> Versions {
    let number =
        |at: usize| u64::from_be_bytes(reply.frame().bytes()[at..][..8].try_into().unwrap());
    [number(0), number(8)]
}

/// Operations of a scenario's threads.
impl World {
    fn read(&self) {
        let oldest = *self.oldest.lock().unwrap();
        let Some(read) = self.look_up().or_else(|| (self.steps.fetch)(self)) else { return };
        let is_current = read.iter().zip(oldest).all(|(version, oldest)| *version >= oldest);
        assert!(is_current, "a read was given versions {read:?}, older than {oldest:?}");
    }

    fn read_twice(&self) {
        self.read();
        self.read();
    }

    /// Changes a key in Redis. Returns its version.
    fn write(&self, key: usize) -> u64 {
        self.redis(|redis| {
            redis.versions[key] += 1;
            if std::mem::take(&mut redis.tracked[key]) {
                redis.wire.push_back(Some((key, redis.versions[key])));
            }
            redis.versions[key]
        })
    }

    /// Changes a key and waits for the fence behind the write.
    fn change(&self, key: usize) {
        let version = self.write(key);
        if self.apply_pushes() {
            self.raise_oldest(key, version);
        }
    }

    /// Serves from memory only.
    fn serve(&self) {
        let oldest = *self.oldest.lock().unwrap();
        let Some(served) = self.look_up() else { return };
        let is_current = served.iter().zip(oldest).all(|(version, oldest)| *version >= oldest);
        assert!(is_current, "a hit served versions {served:?}, older than {oldest:?}");
    }

    /// Redis stalls until the lease expires. A write of that time is too old to be missed.
    fn stall(&self) {
        self.cache.0.lease.expire_at(0);
        let version = self.write(0);
        self.raise_oldest(0, version);
        self.apply_pushes();
        self.cache.renew_lease(Instant::now());
    }

    fn change_and_read(&self) {
        self.change(0);
        self.read();
    }

    fn change_other_and_read(&self) {
        self.change(1);
        self.read();
    }

    fn change_twice(&self) {
        self.change(0);
        self.change(1);
    }

    fn flush(&self) {
        self.cache.invalidate_all();
    }

    /// Replaces the table of the change counters twice, as two reloads do.
    fn resize_twice(&self) {
        let counters = &self.cache.0.replies.store.counters;
        assert!(counters.resize(0) && counters.resize(1 << 20));
    }

    /// Loses the connection and makes a new one. Meanwhile another client writes, and nothing is
    /// pushed.
    fn reconnect(&self) {
        let reading = lock(&self.reading);
        self.redis(|redis| {
            redis.connection = None;
            redis.tracked = [false; 2];
            redis.received += redis.wire.len();
            redis.wire.clear();
        });
        drop(reading);
        (self.steps.suspend_tracking)(&self.cache);
        let versions = self.redis(|redis| {
            redis.versions[0] += 1;
            redis.versions
        });
        *self.oldest.lock().unwrap() = versions;
        (self.steps.start_tracking)(&self.cache);
        self.redis(|redis| redis.connection = Some(1));
    }
}

type Act = fn(&World);

fn run(steps: Steps, background: &Handle, before: Act, acts: &[Act]) {
    let world = World::new(steps, background);
    before(&world);
    let threads = acts.iter().copied().map(|act| {
        let world = Arc::clone(&world);
        thread::spawn(move || act(&world))
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    world.look_at_the_end();
}

fn holds(preemptions: usize, before: Act, acts: &'static [Act]) {
    orders::holds(preemptions, move |background| run(RIGHT, background, before, acts));
}

fn fails(steps: Steps, before: Act, acts: &'static [Act], words: &str) {
    orders::fails(3, move |background| run(steps, background, before, acts), words);
}

const NOTHING: Act = |_| {};

#[test]
fn reply_older_than_a_change_is_never_served() {
    for before in [NOTHING, World::read] {
        holds(3, before, &[World::read, World::change_and_read]);
        holds(2, before, &[World::read, World::read, World::change_and_read]);
        holds(2, before, &[World::change_and_read, World::change_other_and_read]);
    }
    holds(2, NOTHING, &[World::read_twice, World::change_twice]);
}

#[test]
fn flush_and_new_connection_end_every_reply() {
    for before in [NOTHING, World::read] {
        holds(3, before, &[World::flush, World::read]);
        holds(2, before, &[World::flush, World::read, World::change_and_read]);
        holds(3, before, &[World::reconnect, World::read]);
        holds(2, before, &[World::reconnect, World::read, World::read]);
    }
    holds(3, World::read, &[World::stall, World::serve]);
}

#[test]
fn random_orders_of_all_reply_operations_hold() {
    let acts: &[Act] = &[
        World::read_twice,
        World::read_twice,
        World::change_twice,
        World::change_and_read,
        World::flush,
        World::reconnect,
    ];
    orders::hold_at_random(move |background| run(RIGHT, background, World::read, acts));
}

#[test]
fn new_counters_never_revive_a_changed_reply() {
    let acts: &[Act] = &[World::resize_twice, World::read_twice, World::change_and_read];
    holds(2, World::read, acts);
}

#[test]
fn note_after_the_request_keeps_a_changed_reply() {
    let fetch = |world: &World| {
        let requested = world.request();
        match (world.steps.join)(world) {
            Joined::Found(reply) => Some(versions(&reply)),
            Joined::Follower(waiter) => world.wait(waiter),
            Joined::Leader(guard) => world.lead(guard, requested),
        }
    };
    let acts: &[Act] = &[World::read, World::change_and_read];
    fails(Steps { fetch, ..RIGHT }, NOTHING, acts, "older than");
}

#[test]
fn hit_without_comparison_serves_a_changed_reply() {
    let lookup = |shared: &TestShared| {
        let now = shared.clock(Instant::now());
        let is_tracked = shared.lease.validity(now) == Validity::Tracked;
        shared.replies.store.get(COMMAND).filter(|_| is_tracked)
    };
    let acts: &[Act] = &[World::read, World::change_and_read];
    fails(Steps { lookup, ..RIGHT }, World::read, acts, "older than");
}

#[test]
fn joining_any_flight_returns_old_values() {
    let join = |world: &World| {
        let shared = &world.cache.0;
        let replies = &shared.replies;
        replies.flights.join_noted(
            COMMAND,
            |_| true,
            || (world.steps.lookup)(shared),
            || replies.note(KEYS.into_iter()),
        )
    };
    let acts: &[Act] = &[World::read, World::change_and_read];
    fails(Steps { join, ..RIGHT }, NOTHING, acts, "older than");
}

#[test]
fn late_lease_read_covers_old_replies() {
    let lookup = |shared: &TestShared| {
        let now = shared.clock(Instant::now());
        let reply =
            shared.replies.lookup(COMMAND, now, |_| Terms::without_rule(shared.ttls.get()))?;
        (shared.lease.validity(now) == Validity::Tracked).then_some(reply)
    };
    let acts: &[Act] = &[World::stall, World::serve];
    fails(Steps { lookup, ..RIGHT }, World::read, acts, "older than");
}

#[test]
fn lease_before_the_generation_covers_old_replies() {
    let suspend_tracking =
        |cache: &TestCache| cache.0.lease.expire_at(cache.0.clock(Instant::now()));
    let start_tracking = |cache: &TestCache| {
        cache.renew_lease(Instant::now());
        cache.0.replies.begin_generation();
    };
    let steps = Steps { suspend_tracking, start_tracking, ..RIGHT };
    fails(steps, World::read, &[World::reconnect, World::read], "older than");
}
