//! The soak over a cluster: the slot of the keys moves between primaries, replicas take over,
//! primaries are killed.
//!
//! Model: three primaries with a replica each. The keys of the writers and readers are all in one
//! slot; the own keys of RESP clients are spread over the cluster. While no writer is active and
//! the replica has every write, one of three things happens: the slot moves, key by key, while
//! clients read; the replica replaces its healthy primary; or it replaces a primary that was just
//! killed. Then the writers go on at the new owner.
//!
//! The rule: this loses no write, so each outdated value is a fault of the proxy. A move is no
//! fault: every read gets a reply.

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use redis::Value;

use super::failover::{READY, SETTLED, await_copied, gap, look_for_gaps};
use super::faults::{answers_clients, compare_all};
use super::report::{Recovery, Report};
use super::resource_leaks::ResourceUse;
use super::run::{figures, join, start, start_readers, start_writers, sum, version};
use super::simulation::{Simulation, StopOnPanic};
use crate::support::cluster::{RedisCluster, try_query};
use crate::support::serving::{await_ready, read};
use crate::support::{Proxy, within};

const MOVE: &str = "slot moved";
const TAKEOVER: &str = "replica took over";
const KILL: &str = "primary killed";
const KINDS: [&str; 3] = [MOVE, TAKEOVER, KILL];
const SHARDS: usize = 3;
const KEY: &str = "{soak}key/0";
const COPIED: Duration = Duration::from_secs(40);

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) coherence: &'static str,
    pub(super) expected_log: &'static [&'static str],
}

impl Plan {
    pub(super) fn run(&self) -> Report {
        let mut cluster =
            RedisCluster::start(SHARDS, SHARDS, &["--cluster-require-full-coverage", "no"]);
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
            resp.listen = \"127.0.0.1:0\"\n";
        let waits = "redis.ping_interval = \"100ms\"\nredis.response_timeout = \"2s\"\n\
            daemon.worker_threads = 2\n";
        let proxy =
            Proxy::start(&format!("{listen}{waits}{}{}", cluster.settings(), self.coherence));
        self.expected_log.iter().for_each(|part| proxy.expect_log(part));
        await_ready(&proxy);
        let slot = cluster.slot(KEY);
        let owner = cluster.owner(KEY);
        let simulation = Simulation::new(self.seed, cluster.nodes[owner].socket());
        let longest_gap = AtomicU64::new(0);
        let (tally, faults, owner) = thread::scope(|scope| {
            let _guard = StopOnPanic(&simulation);
            let readers = start_readers(scope, &simulation, from_ref(&proxy));
            start(scope, &simulation, |simulation| {
                simulation.conditions.metronome(&simulation.clock, || simulation.is_read());
            });
            start(scope, &simulation, |simulation| look_for_gaps(simulation, &proxy, &longest_gap));
            let writers = start_writers(scope, &simulation);
            let primaries = std::array::from_fn(|shard| shard);
            let mut changes = Changes {
                simulation: &simulation,
                cluster: &mut cluster,
                proxy: &proxy,
                slot,
                owner,
                primaries,
            };
            let faults = changes.go_on(self.duration);
            let owner = changes.owner;
            simulation.stop_writing();
            writers.into_iter().for_each(join);
            compare_all(&simulation, &cluster.nodes[owner], from_ref(&proxy));
            simulation.stop();
            (sum(readers), faults, owner)
        });
        let mut figures = figures(from_ref(&proxy));
        figures.push(gap(&longest_gap));
        let report = simulation.report(
            version(&cluster.nodes[owner]),
            (tally, faults),
            ResourceUse::default(),
            figures,
        );
        proxy.finish();
        report
    }
}

struct Changes<'a> {
    simulation: &'a Simulation,
    cluster: &'a mut RedisCluster,
    proxy: &'a Proxy,
    slot: u16,
    /// The index of the node that serves the slot.
    owner: usize,
    /// The index of the primary of each shard.
    primaries: [usize; SHARDS],
}

impl Changes<'_> {
    /// Makes changes for this long. Returns the time of each recovery, by kind.
    fn go_on(&mut self, duration: Duration) -> BTreeMap<&'static str, Vec<Recovery>> {
        let mut random = self.simulation.random("changes");
        let mut recoveries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for number in 0_usize.. {
            if !self.simulation.is_written() || self.simulation.clock.now() >= duration {
                break;
            }
            self.simulation.wait(Duration::from_millis(random.random_range(500..1200)));
            let kind = KINDS[number % KINDS.len()];
            let recovery = match kind {
                MOVE => self.move_slot(random.random_range(1..SHARDS)),
                kind => self.hand_over(kind),
            };
            recoveries.entry(kind).or_default().push(recovery);
        }
        recoveries
    }

    fn shard(&self) -> usize {
        self.primaries
            .iter()
            .position(|primary| *primary == self.owner)
            .expect("the owner is a primary")
    }

    /// Moves the slot to the primary that is this many shards further.
    fn move_slot(&mut self, further: usize) -> Recovery {
        let from = self.owner;
        let to = self.primaries[(self.shard() + further) % SHARDS];
        let alone = self.simulation.all.write().unwrap();
        self.cluster.move_slot(self.slot, from, to);
        self.owner = to;
        self.simulation.move_to(self.cluster.nodes[to].socket());
        drop(alone);
        self.recover()
    }

    fn hand_over(&mut self, kind: &'static str) -> Recovery {
        let (before, shard) = (self.owner, self.shard());
        let replica = (before + SHARDS) % (2 * SHARDS);
        let (conditions, clock) = (&self.simulation.conditions, &self.simulation.clock);
        conditions.trouble.begin(kind, clock.now());
        let alone = self.simulation.all.write().unwrap();
        await_copied(&self.cluster.nodes[before]);
        conditions.failovers.begin(kind, clock.now());
        if kind == KILL {
            self.cluster.nodes[before].stop();
            self.cluster.await_primary(replica);
        } else {
            self.cluster.fail_over_to(replica);
        }
        // A new primary serves the slot a moment after it reports its role.
        let is_served = || {
            matches!(try_query(&self.cluster.nodes[replica], &["EXISTS", KEY]), Ok(Value::Int(_)))
                .then_some(())
        };
        assert!(within(COPIED, is_served).is_some(), "no node serves the slot");
        (self.owner, self.primaries[shard]) = (replica, replica);
        self.simulation.move_to(self.cluster.nodes[replica].socket());
        drop(alone);
        let recovery = self.recover();
        thread::sleep(SETTLED);
        conditions.failovers.end(clock.now());
        if kind == KILL {
            self.cluster.nodes[before].restart();
        }
        let copied = || {
            let received: String =
                try_query(&self.cluster.nodes[before], &["INFO", "replication"]).ok()?;
            received.contains("master_link_status:up").then_some(())
        };
        assert!(within(COPIED, copied).is_some(), "the old primary has no copy");
        conditions.trouble.end(clock.now());
        recovery
    }

    /// Returns the time until reads of the slot get replies again.
    fn recover(&self) -> Recovery {
        let over = Instant::now();
        let is_read = || [200, 404].contains(&read(self.proxy, KEY).status).then_some(());
        if within(READY, is_read).is_none() {
            self.simulation.violation(format!(
                "no answer {READY:?} after a change: {}",
                read(self.proxy, KEY).status
            ));
        }
        let http = over.elapsed();
        if within(READY, || answers_clients(self.proxy).then_some(())).is_none() {
            self.simulation
                .violation(format!("no Redis client is answered {READY:?} after a change"));
        }
        Recovery { http, resp: over.elapsed() }
    }
}
