//! One soak from its beginning to its report.
//!
//! Model: a Redis that keeps its data, one proxy or several, each behind a relay of its own, and threads that write, read and break things for
//! some seconds. Then the writers end, everything is healed, and after one bound every key is read once more. When all
//! clients are gone, the proxy must have given back what they took.
//!
//! The rule: the soak may fail only for what the proxy did. What the machine or the harness did wrong is told apart.

use std::panic::resume_unwind;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use redis::cmd;

use super::clients::{self, CLIENTS};
use super::faults::{Adversary, Fault, NO_GRACE};
use super::footprint::{self, Held};
use super::readers::{self, READERS};
use super::report::{Report, Tally};
use super::world::{StopOnPanic, World};
use super::writers::{self, WRITERS};
use crate::stage::{await_ready, config, metric, relay_url};
use crate::support::{Proxy, RedisServer, Relay, within};

const CAPACITY: u32 = 1000;
/// What a client took is given back within so long after it has gone.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// What the file system has survives the process, so nothing need be flushed for a restart with data.
pub(super) const KEEP_DATA: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-min-size", "16mb"];
/// The allocator asks Linux for pages of 2 MiB, and a single one more or less is more than memory may grow by, though only a
/// few bytes of it may be in use. Without them what is counted is what the proxy has.
const SMALL_PAGES: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");
/// What the proxy counts, by the name it has in the report.
const FIGURES: [(&str, &str); 6] = [
    ("flights discarded", "fetches_discarded_total"),
    ("reconnects", "tracking_reconnects_total"),
    ("invalidations of a key", "invalidations_total{kind=\"key\"}"),
    ("of all", "invalidations_total{kind=\"all\"}"),
    ("by disconnect", "invalidations_total{kind=\"disconnect\"}"),
    ("evictions for room", "cache_evictions_total{cause=\"capacity\"}"),
];

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    /// Of each proxy, lines of the configuration: how long to keep what is read, and how to learn of writes.
    pub(super) proxies: &'static [&'static str],
    pub(super) faults: &'static [Fault],
    /// What the log says in faults.
    pub(super) expected_log: &'static [&'static str],
}

impl Plan {
    /// Settings that make every wait short, and let nothing end by its age.
    fn config(coherence: &str, relay: &Relay, capacity: u32, grace: &str) -> String {
        let more = format!(
            "daemon.worker_threads = 2\nresp.listen = \"127.0.0.1:0\"\ncache.capacity = {capacity}\n\
             cache.stale_if_error = \"{grace}\"\nredis.ping_interval = \"100ms\"\nredis.response_timeout = \"2s\"\n{coherence}"
        );
        config(&relay_url(relay), &more)
    }

    pub(super) fn run(&self) -> Report {
        let mut redis = RedisServer::builder().arguments(&KEEP_DATA).start();
        let relays: Vec<_> =
            self.proxies.iter().map(|_| Relay::to_socket(redis.socket())).collect();
        let config = |number: usize, capacity, grace: &str| {
            Self::config(self.proxies[number], &relays[number], capacity, grace)
        };
        let start_proxy = |number| {
            let proxy = Proxy::builder(&config(number, CAPACITY, NO_GRACE))
                .environment(SMALL_PAGES.0, SMALL_PAGES.1)
                .start();
            await_ready(&proxy);
            self.expected_log.iter().for_each(|part| proxy.expect_log(part));
            proxy
        };
        let proxies: Vec<_> = (0..self.proxies.len()).map(start_proxy).collect();
        let held = Held::by(&proxies);
        let world = World::new(self.seed, redis.socket());
        let mut adversary = Adversary {
            world: &world,
            redis: &mut redis,
            relays: &relays,
            proxies: &proxies,
            config: &config,
            random: world.random("adversary"),
            capacity: CAPACITY,
            grace: NO_GRACE,
        };
        let (tally, faults, mut footprint) = thread::scope(|scope| {
            let _guard = StopOnPanic(&world);
            let readers = start_readers(scope, &world, &proxies);
            let watcher = scope.spawn(|| footprint::watch(&world, &proxies));
            start(scope, &world, |world| world.weather.metronome(&world.clock, || world.is_read()));
            let writers = start_writers(scope, &world);
            let faults = adversary.strike(self.faults, self.duration);
            world.stop_writing();
            writers.into_iter().for_each(join);
            adversary.settle();
            world.stop();
            (sum(readers), faults, join(watcher))
        });
        footprint.held(held, given_back(&proxies, held));
        if let Some(complaint) = footprint.complaint() {
            world.violation(complaint);
        }
        let report = world.report(version(&redis), (tally, faults), footprint, figures(&proxies));
        proxies.into_iter().for_each(Proxy::finish);
        report
    }
}

pub(super) fn start<'scope, 'world: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'world World,
    work: impl FnOnce(&World) + Send + 'scope,
) -> ScopedJoinHandle<'scope, ()> {
    scope.spawn(move || {
        let _guard = StopOnPanic(world);
        work(world);
    })
}

pub(super) fn start_writers<'scope, 'world: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'world World,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let writers =
        (0..WRITERS).map(|number| start(scope, world, move |world| writers::write(world, number)));
    let mut all: Vec<_> = writers.collect();
    all.push(start(scope, world, writers::flush));
    all.push(start(scope, world, writers::write_elsewhere));
    all.push(start(scope, world, readers::read_straight));
    all
}

pub(super) fn start_readers<'scope, 'world: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'world World,
    proxies: &[Proxy],
) -> Vec<ScopedJoinHandle<'scope, Tally>> {
    let reader = |number: usize| {
        let address = proxies[number % proxies.len()].http();
        scope.spawn(move || {
            let _guard = StopOnPanic(world);
            readers::read(world, address, number)
        })
    };
    let mut readers: Vec<_> = (0..READERS.max(proxies.len())).map(reader).collect();
    let client = |number: usize| {
        let address = proxies[number % proxies.len()].resp_address();
        scope.spawn(move || {
            let _guard = StopOnPanic(world);
            clients::talk(world, address, number)
        })
    };
    readers.extend((0..CLIENTS.max(proxies.len())).map(client));
    if proxies.len() > 1 {
        let addresses: Vec<_> = proxies.iter().map(Proxy::http).collect();
        readers.push(scope.spawn(move || {
            let _guard = StopOnPanic(world);
            readers::wander(world, &addresses)
        }));
    }
    readers
}

/// What is still taken once no more is than `before`, or when it is too late for that.
fn given_back(proxies: &[Proxy], before: Held) -> Held {
    let clients =
        |proxy, front_end| metric(proxy, &format!("connections{{front_end=\"{front_end}\"}}"));
    let are_alone =
        || proxies.iter().all(|proxy| clients(proxy, "http") + clients(proxy, "resp") < 1.0);
    within(GIVEN_BACK, || (are_alone() && Held::by(proxies).is_within(before)).then_some(()));
    let after = Held::by(proxies);
    // Who is still connected is too many, whatever else went meanwhile.
    if are_alone() {
        after
    } else {
        Held { descriptors: after.descriptors.max(before.descriptors + 1), ..after }
    }
}

pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

pub(super) fn sum(readers: Vec<ScopedJoinHandle<'_, Tally>>) -> Tally {
    let mut sum = Tally::default();
    for reader in readers {
        sum.add(&join(reader));
    }
    sum
}

/// As the server tells it; a fork has a version of its own beside that of the Redis it stands for.
pub(super) fn version(redis: &RedisServer) -> String {
    let told: String = cmd("INFO")
        .arg("server")
        .query(&mut redis.connection())
        .expect("redis-server tells its version");
    let find = |name| {
        told.lines()
            .find(|line| line.starts_with(name))
            .map(|line| line.replacen("_version:", " ", 1))
    };
    find("valkey_version:").or_else(|| find("redis_version:")).unwrap_or_default()
}

/// Of all proxies together.
pub(super) fn figures(proxies: &[Proxy]) -> Vec<(&'static str, f64)> {
    let metrics: Vec<_> = proxies.iter().map(Proxy::metrics).collect();
    let sum = |series: &str| {
        metrics
            .iter()
            .map(|of_one| of_one.value(&format!("redis_proxy_{series}")))
            .sum::<Option<f64>>()
    };
    let value = |(name, series): &(_, &str)| Some((*name, sum(series)?));
    FIGURES.iter().filter_map(value).collect()
}
