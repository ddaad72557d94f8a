//! A real Redis Cluster for one test: primaries and replicas, each a `redis-server` of its own.
//!
//! The primaries come first, with the slots in equal parts in order. The replica of each follows as
//! many places later as there are primaries. A test inspects a node over its socket, as any Redis,
//! and gets the owner of a slot from the nodes themselves.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use redis::{FromRedisValue, RedisError, RedisResult, Value, cmd};

use super::authority::Authority;
use super::redis_server::{RedisServer, RedisServerBuilder, connect, free_port};
use super::wait::{eventually, within};

/// The number of slots.
const SLOTS: u16 = 16384;
/// A failover takes about twice as long.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// The votes that a node has received count for as long. A manual failover before the end of this
/// time succeeds without an election: the node calls itself a primary, loses the role to the real
/// one, and with it what was written (<https://github.com/redis/redis/pull/8753>).
const VOTES_VALID: Duration = NODE_TIMEOUT.saturating_mul(4);
const BOUND: Duration = Duration::from_secs(30);

/// The fields of a line of `CLUSTER NODES` before the slots.
const FIELDS: usize = 8;

pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
    primaries: usize,
    is_tls: bool,
    /// The time of the last manual failover to each node.
    promoted: Mutex<HashMap<usize, Instant>>,
}

impl RedisCluster {
    /// Starts this many primaries with a replica each.
    pub(crate) fn with_replicas(primaries: usize) -> Self {
        Self::start(primaries, primaries, &[])
    }

    /// Starts this many primaries without replicas.
    pub(crate) fn of(primaries: usize) -> Self {
        Self::start(primaries, 0, &[])
    }

    pub(crate) fn start(primaries: usize, replicas: usize, arguments: &[&str]) -> Self {
        let nodes =
            (0..primaries + replicas).map(|_| node(arguments, RedisServerBuilder::tcp)).collect();
        Self { nodes, primaries, is_tls: false, promoted: Mutex::default() }.whole(replicas)
    }

    /// Starts this many primaries that accept only TLS, with certificates of this authority.
    pub(crate) fn over_tls(primaries: usize, authority: &Authority) -> Self {
        let (certificate, key) = authority.issue("127.0.0.1");
        let tls = |builder: RedisServerBuilder| builder.tls(&certificate, &key, &authority.file());
        let nodes = (0..primaries).map(|_| node(&["--tls-cluster", "yes"], tls)).collect();
        Self { nodes, primaries, is_tls: true, promoted: Mutex::default() }.whole(0)
    }

    /// Joins the nodes to one cluster.
    fn whole(self, replicas: usize) -> Self {
        let primaries = self.primaries;
        let cluster = self;
        let share =
            |number: usize| u16::try_from(number * usize::from(SLOTS) / primaries).expect("a slot");
        for (number, node) in cluster.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            if number < primaries {
                let (first, last) =
                    (share(number).to_string(), (share(number + 1) - 1).to_string());
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            }
            cluster.introduce(number);
        }
        for number in 0..cluster.nodes.len() {
            cluster.await_all_known(number);
        }
        for number in primaries..primaries + replicas {
            let of = cluster.id(number - primaries);
            cluster.nodes[number].command(&["CLUSTER", "REPLICATE", &of]);
        }
        cluster.await_whole();
        cluster
    }

    /// Introduces this node to the first.
    fn introduce(&self, number: usize) {
        let (port, bus) = (self.port(number).to_string(), self.bus_port(number).to_string());
        if number > 0 {
            self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
    }

    fn await_all_known(&self, number: usize) {
        let known = within(BOUND, || {
            let view = self.view(number);
            let lines = view.lines().filter(|line| !line.contains("handshake")).count();
            (lines == self.nodes.len()).then_some(())
        });
        assert!(known.is_some(), "node {number} does not know the others:\n{}", self.view(number));
    }

    /// Waits until the nodes agree that the cluster works and every replica has a copy.
    pub(crate) fn await_whole(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let works = within(BOUND, || {
                let info: String = try_query(node, &["CLUSTER", "INFO"]).ok()?;
                let replication: String = try_query(node, &["INFO", "replication"]).ok()?;
                let copied = replication.contains("role:master")
                    || replication.contains("master_link_status:up");
                (info.contains("cluster_state:ok") && copied).then_some(())
            });
            assert!(
                works.is_some(),
                "node {number} does not work:\n{}\n{}",
                self.view(number),
                node.log()
            );
        }
    }

    pub(crate) fn port(&self, number: usize) -> u16 {
        let node = &self.nodes[number];
        if self.is_tls { node.tls_address().port() } else { node.tcp_address().port() }
    }

    fn bus_port(&self, number: usize) -> u16 {
        query(&self.nodes[number], &["CONFIG", "GET", "cluster-port"], |pair: Vec<String>| {
            pair[1].parse().expect("a port")
        })
    }

    /// Returns the id of a node.
    pub(crate) fn id(&self, number: usize) -> String {
        query(&self.nodes[number], &["CLUSTER", "MYID"], |id| id)
    }

    /// Returns the id of a node that may stand still, as another node lists it.
    pub(crate) fn id_seen_by(&self, witness: usize, number: usize) -> String {
        let (view, address) = (self.view(witness), format!(":{}@", self.port(number)));
        let line = view.lines().find(|line| line.contains(&address)).expect("a known node");
        line.split(' ').next().expect("a line of words").to_owned()
    }

    /// Returns the `CLUSTER NODES` reply of a node.
    pub(crate) fn view(&self, number: usize) -> String {
        query(&self.nodes[number], &["CLUSTER", "NODES"], |view| view)
    }

    pub(crate) fn slot(&self, key: &str) -> u16 {
        let running =
            self.nodes.iter().find_map(|node| try_query(node, &["CLUSTER", "KEYSLOT", key]).ok());
        running.expect("a node answers")
    }

    /// Returns the index of the node that serves the key, by its own report.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let serves = |node: &RedisServer| match try_query::<Value>(node, &["EXISTS", key]) {
            Ok(Value::Int(_)) => Some(()),
            _ => None,
        };
        eventually("a node serves the key", || {
            self.nodes.iter().position(|node| serves(node).is_some())
        })
    }

    /// Returns a key in the initial slots of this primary, another for each number.
    pub(crate) fn key_of(&self, node: usize, number: usize) -> String {
        let share = usize::from(SLOTS) / self.primaries;
        let is_of = |key: &String| usize::from(self.slot(key)) / share.max(1) == node;
        (0..10_000).map(|tag| format!("{{{tag}}}{number}")).find(is_of).expect("a key of the node")
    }

    /// Writes at the node that serves the key.
    pub(crate) fn set(&self, key: &str, value: &str) {
        eventually("the key is written", || {
            let owner = self.owner(key);
            try_query::<String>(&self.nodes[owner], &["SET", key, value]).ok()
        });
    }

    /// Moves a slot with its keys as an operator would.
    pub(crate) fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_to_move(slot, from, to);
        self.move_keys(slot, from, to);
        self.end_to_move(slot, from, to);
    }

    pub(crate) fn begin_to_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    pub(crate) fn move_keys(&self, slot: u16, from: usize, to: usize) {
        let port = self.port(to).to_string();
        loop {
            let question = ["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"];
            let keys: Vec<String> = query(&self.nodes[from], &question, |keys| keys);
            if keys.is_empty() {
                return;
            }
            for key in keys {
                self.nodes[from].command(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
            }
        }
    }

    pub(crate) fn end_to_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, owner) = (slot.to_string(), self.id(to));
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &owner]);
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &owner]);
    }

    /// Waits until all nodes know the owner of the key's slot. The nodes that a move does not
    /// concern learn of it later.
    pub(crate) fn await_owner(&self, key: &str, owner: usize) {
        let address = format!(":{}", self.port(owner));
        let knows = |(number, node): (usize, &RedisServer)| {
            let asked: RedisResult<Value> = try_query(node, &["GET", key]);
            let names_owner = |error: &RedisError| {
                error.redirect_node().is_some_and(|(node, _)| node.ends_with(&address))
            };
            number == owner || asked.as_ref().is_err_and(names_owner)
        };
        let agree = || self.nodes.iter().enumerate().all(knows).then_some(());
        within(BOUND, agree).expect("all nodes learn of the move");
    }

    /// Promotes a replica while its primary is healthy, and waits until all nodes know of it.
    pub(crate) fn fail_over_to(&self, replica: usize) {
        let mut promoted = self.promoted.lock().expect("no panic of another failover");
        if let Some(before) = promoted.get(&replica) {
            thread::sleep(VOTES_VALID.saturating_sub(before.elapsed()));
        }
        let done = within(BOUND, || {
            let _: RedisResult<Value> = try_query(&self.nodes[replica], &["CLUSTER", "FAILOVER"]);
            within(BOUND / 6, || self.is_agreed_primary(replica).then_some(()))
        });
        assert!(done.is_some(), "no failover:\n{}", self.nodes[replica].log());
        promoted.insert(replica, Instant::now());
    }

    /// Whether all nodes take the node for a primary with slots.
    fn is_agreed_primary(&self, number: usize) -> bool {
        let id = self.id(number);
        let is_so = |view: String| {
            let owner = |line: &str| line.contains("master") && line.split(' ').count() > FIELDS;
            view.lines().any(|line| line.starts_with(&id) && owner(line))
        };
        self.is_primary(number) && (0..self.nodes.len()).all(|node| is_so(self.view(node)))
    }

    /// Waits until the node is a primary.
    pub(crate) fn await_primary(&self, number: usize) {
        let done = within(BOUND, || self.is_primary(number).then_some(()));
        assert!(done.is_some(), "no failover:\n{}", self.nodes[number].log());
    }

    pub(crate) fn is_primary(&self, number: usize) -> bool {
        let role: RedisResult<String> = try_query(&self.nodes[number], &["INFO", "replication"]);
        role.is_ok_and(|role| role.contains("role:master"))
    }

    /// Returns the keys of `[redis]` that lead to it.
    pub(crate) fn settings(&self) -> String {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let seeds = [0, 1].map(|node| format!("\"{scheme}://127.0.0.1:{}\"", self.port(node)));
        format!("redis.mode = \"cluster\"\nredis.seeds = [{}]\n", seeds.join(", "))
    }
}

fn node(
    arguments: &[&str],
    listens: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
) -> RedisServer {
    let bus = free_port().to_string();
    let timeout = NODE_TIMEOUT.as_millis().to_string();
    let own =
        ["--cluster-enabled", "yes", "--cluster-node-timeout", &timeout, "--cluster-port", &bus];
    let quick = ["--repl-diskless-sync-delay", "0", "--cluster-allow-replica-migration", "no"];
    listens(RedisServer::builder()).arguments(&own).arguments(&quick).arguments(arguments).start()
}

/// Returns the reply of a node; panics on an error.
fn query<T: FromRedisValue, R>(node: &RedisServer, words: &[&str], read: impl FnOnce(T) -> R) -> R {
    read(try_query(node, words).expect("the node answers"))
}

pub(crate) fn try_query<T: FromRedisValue>(node: &RedisServer, words: &[&str]) -> RedisResult<T> {
    cmd(words[0]).arg(&words[1..]).query(&mut connect(&node.socket())?)
}
