//! One soak from its beginning to its report.
//!
//! Model: a Redis that keeps its data, one proxy or several, each behind its own relay, and threads
//! that write, read and cause faults for some seconds. Then the writers end, every fault is
//! repaired, and after one bound every key is read once more. When all clients are gone, the proxy
//! must have released their resources.
//!
//! The rule: only a fault of the proxy may fail the soak. Faults of the machine or the harness are
//! reported as such.

use std::panic::resume_unwind;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use redis::cmd;

use super::clients::{self, CLIENTS};
use super::collections;
use super::faults::{Adversary, Fault, NO_GRACE};
use super::readers::{self, READERS};
use super::report::{Report, Tally};
use super::resource_leaks::{self, Held};
use super::simulation::{Simulation, StopOnPanic};
use super::writers::{self, WRITERS};
use crate::support::serving::{await_ready, config, metric, relay_url};
use crate::support::{Proxy, RedisServer, Relay, within};

const CAPACITY: u32 = 1000;
/// The longest time until the resources of a client are released.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// Persistence without flushes: data in the page cache survives the process, which is enough for a
/// restart.
pub(super) const KEEP_DATA: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-min-size", "16mb"];
/// Redis removes what has expired, and pushes that, a second late. Otherwise a push would hide that
/// the proxy itself does not know an end.
const LATE_EXPIRY: [&str; 2] = ["--hz", "1"];
/// Turns off pages of 2 MiB, which the allocator requests from Linux. Otherwise a single such page,
/// mostly unused, would exceed the allowed growth.
const SMALL_PAGES: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");
/// The names of the counters of collections that were read from memory.
pub(super) const KEPT: [&str; 4] =
    ["hits of hashes", "hits of sets", "hits of sorted sets", "hits of several keys"];
/// Counters of the proxy, by their name in the report.
const FIGURES: [(&str, &str); 15] = [
    ("flights discarded", "fetches_discarded_total"),
    ("reconnects", "tracking_reconnects_total"),
    ("invalidations of a key", "invalidations_total{kind=\"key\"}"),
    ("of all", "invalidations_total{kind=\"all\"}"),
    ("by disconnect", "invalidations_total{kind=\"disconnect\"}"),
    ("evictions for room", "cache_evictions_total{cause=\"capacity\"}"),
    (KEPT[0], "reads_total{front_end=\"resp\",kind=\"hash\",outcome=\"hit\"}"),
    (KEPT[1], "reads_total{front_end=\"resp\",kind=\"set\",outcome=\"hit\"}"),
    (KEPT[2], "reads_total{front_end=\"resp\",kind=\"zset\",outcome=\"hit\"}"),
    (KEPT[3], "reads_total{front_end=\"resp\",kind=\"multi\",outcome=\"hit\"}"),
    ("replies discarded", "replies_discarded_total"),
    ("verified as equal", "verified_total{result=\"equal\"}"),
    ("as changed", "verified_total{result=\"changed\"}"),
    ("as unknown", "verified_total{result=\"unknown\"}"),
    ("as stale", "verified_total{result=\"stale\"}"),
];

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    /// The configuration lines of each proxy: the TTLs and the coherence mode.
    pub(super) proxies: &'static [&'static str],
    pub(super) faults: &'static [Fault],
    /// The log messages of faults.
    pub(super) expected_log: &'static [&'static str],
    /// A variable for each proxy, such as one that plants a fault, and its value.
    pub(super) environment: Option<(&'static str, &'static str)>,
}

impl Plan {
    /// Returns settings with short waits, where nothing expires by age.
    fn config(coherence: &str, relay: &Relay, capacity: u32, grace: &str) -> String {
        let more = format!(
            "daemon.worker_threads = 2\nresp.listen = \"127.0.0.1:0\"\n\
                cache.capacity = {capacity}\n\
             cache.stale_if_error = \"{grace}\"\nredis.ping_interval = \"100ms\"\n\
             redis.response_timeout = \"2s\"\n{coherence}"
        );
        config(&relay_url(relay), &more)
    }

    /// Runs the soak, prints its report and returns it.
    pub(super) fn run(&self) -> Report {
        let mut redis =
            RedisServer::builder().arguments(&KEEP_DATA).arguments(&LATE_EXPIRY).start();
        let relays: Vec<_> =
            self.proxies.iter().map(|_| Relay::to_socket(redis.socket())).collect();
        let config = |number: usize, capacity, grace: &str| {
            Self::config(self.proxies[number], &relays[number], capacity, grace)
        };
        let start_proxy = |number| {
            let builder = Proxy::builder(&config(number, CAPACITY, NO_GRACE))
                .environment(SMALL_PAGES.0, SMALL_PAGES.1);
            let planted = self.environment.into_iter();
            let proxy = planted
                .fold(builder, |builder, (name, value)| builder.environment(name, value))
                .start();
            await_ready(&proxy);
            self.expected_log.iter().for_each(|part| proxy.expect_log(part));
            proxy
        };
        let proxies: Vec<_> = (0..self.proxies.len()).map(start_proxy).collect();
        let held = Held::by(&proxies);
        let simulation = Simulation::new(self.seed, redis.socket());
        let mut adversary = Adversary {
            simulation: &simulation,
            redis: &mut redis,
            relays: &relays,
            proxies: &proxies,
            config: &config,
            random: simulation.random("adversary"),
            capacity: CAPACITY,
            grace: NO_GRACE,
        };
        let (tally, faults, mut resource_use) = thread::scope(|scope| {
            let _guard = StopOnPanic(&simulation);
            let readers = start_readers(scope, &simulation, &proxies);
            let watcher = scope.spawn(|| resource_leaks::watch(&simulation, &proxies));
            start(scope, &simulation, |simulation| {
                simulation.conditions.metronome(&simulation.clock, || simulation.is_read());
            });
            let writers = start_writers(scope, &simulation);
            let faults = adversary.strike(self.faults, self.duration);
            simulation.stop_writing();
            writers.into_iter().for_each(join);
            adversary.settle();
            simulation.stop();
            (sum(readers), faults, join(watcher))
        });
        resource_use.held(held, given_back(&proxies, held));
        if let Some(complaint) = resource_use.complaint() {
            simulation.violation(complaint);
        }
        let report =
            simulation.report(version(&redis), (tally, faults), resource_use, figures(&proxies));
        // Before a proxy may fail the soak by its log.
        eprintln!("{}", report.text());
        proxies.into_iter().for_each(Proxy::finish);
        report
    }
}

pub(super) fn start<'scope, 'simulation: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    simulation: &'simulation Simulation,
    work: impl FnOnce(&Simulation) + Send + 'scope,
) -> ScopedJoinHandle<'scope, ()> {
    scope.spawn(move || {
        let _guard = StopOnPanic(simulation);
        work(simulation);
    })
}

pub(super) fn start_writers<'scope, 'simulation: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    simulation: &'simulation Simulation,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let writers = (0..WRITERS).map(|number| {
        start(scope, simulation, move |simulation| writers::write(simulation, number))
    });
    let mut all: Vec<_> = writers.collect();
    all.extend((0..collections::WRITERS).map(|number| {
        start(scope, simulation, move |simulation| collections::write(simulation, number))
    }));
    all.push(start(scope, simulation, writers::flush));
    all.push(start(scope, simulation, writers::write_elsewhere));
    all.push(start(scope, simulation, readers::read_straight));
    all
}

pub(super) fn start_readers<'scope, 'simulation: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    simulation: &'simulation Simulation,
    proxies: &[Proxy],
) -> Vec<ScopedJoinHandle<'scope, Tally>> {
    let reader = |number: usize| {
        let address = proxies[number % proxies.len()].http();
        scope.spawn(move || {
            let _guard = StopOnPanic(simulation);
            readers::read(simulation, address, number)
        })
    };
    let mut readers: Vec<_> = (0..READERS.max(proxies.len())).map(reader).collect();
    let client = |number: usize| {
        let address = proxies[number % proxies.len()].resp_address();
        scope.spawn(move || {
            let _guard = StopOnPanic(simulation);
            clients::talk(simulation, address, number)
        })
    };
    readers.extend((0..CLIENTS.max(proxies.len())).map(client));
    if proxies.len() > 1 {
        let addresses: Vec<_> = proxies.iter().map(Proxy::http).collect();
        readers.push(scope.spawn(move || {
            let _guard = StopOnPanic(simulation);
            readers::wander(simulation, &addresses)
        }));
    }
    readers
}

/// Returns the remaining resources once they are no more than `before`, or at the deadline.
fn given_back(proxies: &[Proxy], before: Held) -> Held {
    let clients =
        |proxy, front_end| metric(proxy, &format!("connections{{front_end=\"{front_end}\"}}"));
    let are_alone =
        || proxies.iter().all(|proxy| clients(proxy, "http") + clients(proxy, "resp") < 1.0);
    within(GIVEN_BACK, || (are_alone() && Held::by(proxies).is_within(before)).then_some(()));
    let after = Held::by(proxies);
    // A connection that is still open is a leak, whatever else was released meanwhile.
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

/// Returns the version in the words of the server; a fork has a version of its own beside that of
/// Redis.
pub(super) fn version(redis: &RedisServer) -> String {
    let received: String = cmd("INFO")
        .arg("server")
        .query(&mut redis.connection())
        .expect("redis-server tells its version");
    let find = |name| {
        received
            .lines()
            .find(|line| line.starts_with(name))
            .map(|line| line.replacen("_version:", " ", 1))
    };
    find("valkey_version:").or_else(|| find("redis_version:")).unwrap_or_default()
}

/// Returns the sums over all proxies.
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
