//! The soak over failovers: sentinels promote the replica again and again, and the proxy follows.
//!
//! Model: a primary, its replica and a sentinel, with the writers and readers of the plain soak.
//! While no writer is active and the replica has every write, the sentinel promotes the replica.
//! Then the writers go on there. Every second old primary stays a primary with its data and its
//! connections, and pushes no invalidations, so a client that still reads there gets outdated
//! values. Later it becomes a replica, and the next failover leads back to it.
//!
//! The rule: the failover itself loses no write, so each outdated value is a fault of the proxy.

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use redis::cmd;

use super::faults::{answers_clients, compare_all};
use super::report::{Recovery, Report};
use super::resource_leaks::ResourceUse;
use super::run::{figures, join, start, start_readers, start_writers, sum, version};
use super::simulation::{Simulation, StopOnPanic};
use crate::support::http::Client;
use crate::support::redis_server::connect;
use crate::support::sentinel::{Watched, in_the_end, information};
use crate::support::serving::{await_ready, readyz};
use crate::support::{Proxy, RedisServer, eventually, within};

const FAILOVER: &str = "failover";
/// Longer than a busy machine stands still; otherwise the sentinel would fail over on its own.
const DOWN_AFTER: &str = "sentinel down-after-milliseconds main 2500";
const STUBBORN: &str = "failover with a stubborn primary";
/// The time for which an old primary stays one: longer than the allowed age of any value.
const STUBBORN_TIME: Duration = Duration::from_millis(1800);
pub(super) const READY: Duration = Duration::from_secs(3);
/// The time in which delayed requests are done.
pub(super) const SETTLED: Duration = Duration::from_millis(250);
/// The time in which a sentinel tells an old primary its new primary.
const COPIED: Duration = Duration::from_secs(40);
/// A key that no client reads, in the slot of all others.
const COPIED_KEY: &str = "{soak}copied";
const LOOK: Duration = Duration::from_millis(3);

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) coherence: &'static str,
    pub(super) expected_log: &'static [&'static str],
}

impl Plan {
    pub(super) fn run(&self) -> Report {
        let watched = Watched::with("", 1, &[DOWN_AFTER], &[]);
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
            resp.listen = \"127.0.0.1:0\"\n";
        let waits = "redis.ping_interval = \"100ms\"\nredis.response_timeout = \"2s\"\n\
            daemon.worker_threads = 2\n";
        let proxy =
            Proxy::start(&format!("{listen}{waits}{}{}", watched.settings(), self.coherence));
        self.expected_log.iter().for_each(|part| proxy.expect_log(part));
        await_ready(&proxy);
        let simulation = Simulation::new(self.seed, watched.redis[0].socket());
        let longest_gap = AtomicU64::new(0);
        let mut failovers =
            Failovers { simulation: &simulation, watched: &watched, proxy: &proxy, primary: 0 };
        let (tally, faults) = thread::scope(|scope| {
            let _guard = StopOnPanic(&simulation);
            let readers = start_readers(scope, &simulation, from_ref(&proxy));
            start(scope, &simulation, |simulation| {
                simulation.conditions.metronome(&simulation.clock, || simulation.is_read());
            });
            start(scope, &simulation, |simulation| look_for_gaps(simulation, &proxy, &longest_gap));
            let writers = start_writers(scope, &simulation);
            let faults = failovers.go_on(self.duration);
            simulation.stop_writing();
            writers.into_iter().for_each(join);
            compare_all(&simulation, &watched.redis[failovers.primary], from_ref(&proxy));
            simulation.stop();
            (sum(readers), faults)
        });
        let primary = &watched.redis[failovers.primary];
        let mut figures = figures(from_ref(&proxy));
        figures.push(gap(&longest_gap));
        let report =
            simulation.report(version(primary), (tally, faults), ResourceUse::default(), figures);
        proxy.finish();
        report
    }
}

struct Failovers<'a> {
    simulation: &'a Simulation,
    watched: &'a Watched,
    proxy: &'a Proxy,
    /// The index of the primary.
    primary: usize,
}

impl Failovers<'_> {
    /// Fails over for this long. Returns the time of each recovery, by kind.
    fn go_on(&mut self, duration: Duration) -> BTreeMap<&'static str, Vec<Recovery>> {
        let mut random = self.simulation.random("failovers");
        let mut recoveries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        while self.simulation.is_written() && self.simulation.clock.now() < duration {
            self.simulation.wait(Duration::from_millis(random.random_range(500..1200)));
            let so_far: usize = recoveries.values().map(Vec::len).sum();
            let kind = if so_far.is_multiple_of(2) { STUBBORN } else { FAILOVER };
            let recovery = self.fail_over(kind);
            recoveries.entry(kind).or_default().push(recovery);
        }
        recoveries
    }

    fn fail_over(&mut self, kind: &'static str) -> Recovery {
        let (before, after) = (self.primary, 1 - self.primary);
        let (old, new) = (&self.watched.redis[before], &self.watched.redis[after]);
        let (conditions, clock) = (&self.simulation.conditions, &self.simulation.clock);
        await_copied(old);
        conditions.trouble.begin(kind, clock.now());
        if kind == STUBBORN {
            old.command(&["ACL", "SETUSER", "default", "-replicaof", "-slaveof"]);
        }
        let alone = self.simulation.all.write().unwrap();
        await_copied(old);
        conditions.failovers.begin(kind, clock.now());
        self.watched.fail_over_to(after);
        self.simulation.switch_to(new.socket(), kind);
        self.primary = after;
        drop(alone);
        let over = Instant::now();
        if within(READY, || (readyz(self.proxy).0 == 200).then_some(())).is_none() {
            self.simulation.violation(format!(
                "not ready {READY:?} after a failover: {}",
                readyz(self.proxy).1
            ));
        }
        let http = over.elapsed();
        if within(READY, || answers_clients(self.proxy).then_some(())).is_none() {
            self.simulation
                .violation(format!("no Redis client is answered {READY:?} after a failover"));
        }
        let resp = over.elapsed();
        thread::sleep(SETTLED);
        conditions.failovers.end(clock.now());
        if kind == STUBBORN {
            self.simulation.wait(STUBBORN_TIME);
            // A sentinel may demote it before the reply.
            let _: () = in_the_end(old, &["ACL", "SETUSER", "default", "+replicaof", "+slaveof"]);
            let port = self.watched.address(after).port().to_string();
            let _: () = in_the_end(old, &["REPLICAOF", "127.0.0.1", &port]);
        }
        conditions.trouble.end(clock.now());
        let copied =
            within(COPIED, || information(old).contains("master_link_status:up").then_some(()));
        assert!(copied.is_some(), "the old primary has no copy");
        Recovery { http, resp }
    }
}

/// Waits until the replica has every write. `WAIT` is about the writes of its own connection, so it
/// follows one; otherwise a replica that has just been synchronized and gets no writes yet counts.
pub(super) fn await_copied(primary: &RedisServer) {
    let (mut write, mut wait) = (cmd("SET"), cmd("WAIT"));
    write.arg(COPIED_KEY).arg(0);
    wait.arg(1).arg(5000);
    let copied: u64 = eventually("redis-server answers", || {
        let mut connection = connect(&primary.socket()).ok()?;
        write.exec(&mut connection).ok()?;
        wait.query(&mut connection).ok()
    });
    assert_eq!(copied, 1, "the replica has not got everything");
}

/// Returns the longest gap as a figure of the report.
pub(super) fn gap(longest: &AtomicU64) -> (&'static str, f64) {
    let longest = Duration::from_nanos(longest.load(Relaxed));
    ("longest time without reads, ms", (longest.as_secs_f64() * 1000.0).round())
}

/// Reads a key that is never cached, and records the longest time without a reply.
pub(super) fn look_for_gaps(simulation: &Simulation, proxy: &Proxy, longest: &AtomicU64) {
    let mut client = Client::connect(proxy.http());
    let mut answered = Instant::now();
    for number in 0_u64.. {
        if !simulation.is_read() {
            return;
        }
        if client.get(format!("/keys/{{soak}}gap/{number}")).status == 404 {
            let gap = u64::try_from(answered.elapsed().as_nanos()).unwrap_or(u64::MAX);
            longest.fetch_max(gap, Relaxed);
            answered = Instant::now();
        }
        thread::sleep(LOOK);
    }
}
