//! Kept replies in front of a Redis Cluster.
//!
//! Promise: a kept reply ends when its slot moves or its primary is replaced, whatever its keys.

use std::time::Duration;

use crate::support::cluster::RedisCluster;
use crate::support::fault_stage::DOWN;
use crate::support::resp_client::RespClient;
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer, within};

/// The longest time in which the proxy follows a change of the nodes.
const FOLLOWS: Duration = Duration::from_secs(10);
const SETTINGS: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    redis.ping_interval = \"100ms\"\ncache.coherence_timeout = \"1s\"\n\
    daemon.worker_threads = 2\nresp.max_connections = 500\n";

fn started(cluster: &RedisCluster) -> Proxy {
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
        resp.listen = \"127.0.0.1:0\"\n";
    let proxy = Proxy::start(&format!("{listen}{SETTINGS}{}", cluster.settings()));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    proxy
}

/// Two sets of one slot with a client that reads both.
struct Sets {
    names: [String; 2],
    client: RespClient,
}

impl Sets {
    /// Creates sets with one shared member in a slot of the first node.
    fn create(cluster: &RedisCluster, proxy: &Proxy) -> Self {
        let names = ["one", "two"].map(|name| format!("{{{}}}{name}", tag(cluster)));
        for name in &names {
            cluster.nodes[0].command(&["SADD", name, "shared", name]);
        }
        Self { names, client: RespClient::connect(proxy.resp_address()) }
    }

    fn intersection(&mut self) -> Vec<u8> {
        self.client.query(&["SINTER", &self.names[0], &self.names[1]])
    }

    /// Waits until both sets share so many members.
    #[track_caller]
    fn await_shared(&mut self, count: usize) {
        let start = format!("*{count}\r\n").into_bytes();
        let mut last = Vec::new();
        let is_seen = within(FOLLOWS, || {
            last = self.intersection();
            last.starts_with(&start).then_some(())
        });
        assert!(is_seen.is_some(), "{} is not {count}", String::from_utf8_lossy(&last));
    }

    /// Asserts that a reply is kept: further reads cost the nodes nothing.
    #[track_caller]
    fn assert_kept(&mut self, cluster: &RedisCluster) {
        // A move may have been announced in between.
        let is_kept = within(FOLLOWS, || {
            let before = calls(cluster, "sinter");
            for _ in 0..5 {
                self.intersection();
            }
            (calls(cluster, "sinter") == before).then_some(())
        });
        assert!(is_kept.is_some(), "the reply is not kept");
    }
}

/// A hash tag of the slots of the first node.
fn tag(cluster: &RedisCluster) -> String {
    let key = cluster.key_of(0, 0);
    key.trim_start_matches('{').split('}').next().unwrap_or_default().to_owned()
}

/// Returns how often all nodes together ran a command.
fn calls(cluster: &RedisCluster, name: &str) -> u64 {
    cluster.nodes.iter().map(|node: &RedisServer| node.calls(name)).sum()
}

#[test]
fn kept_reply_to_many_keys_follows_a_moving_slot() {
    let cluster = RedisCluster::of(3);
    let proxy = started(&cluster);
    let mut sets = Sets::create(&cluster, &proxy);
    let [one, two] = sets.names.clone();
    let slot = cluster.slot(&one);
    sets.await_shared(1);
    sets.assert_kept(&cluster);
    let mut writer = RespClient::connect(proxy.resp_address());
    for (from, to) in [(0, 1), (1, 0), (0, 2)] {
        cluster.begin_to_move(slot, from, to);
        // The keys are still here.
        sets.await_shared(1);
        cluster.move_keys(slot, from, to);
        // They are at the next owner, which the slot does not belong to yet.
        assert_eq!(writer.query(&["SADD", &one, "more"]), b":1\r\n");
        assert_eq!(writer.query(&["SADD", &two, "more"]), b":1\r\n");
        sets.await_shared(2);
        cluster.end_to_move(slot, from, to);
        sets.await_shared(2);
        sets.assert_kept(&cluster);
        cluster.nodes[to].command(&["SREM", &two, "more"]);
        sets.await_shared(1);
        sets.assert_kept(&cluster);
        cluster.nodes[to].command(&["SREM", &one, "more"]);
    }
}

#[test]
fn absence_is_not_kept_in_a_cluster() {
    let cluster = RedisCluster::of(3);
    let proxy = started(&cluster);
    let mut sets = Sets::create(&cluster, &proxy);
    let absent = format!("{{{}}}absent", tag(&cluster));
    for read in [vec!["TYPE", &absent], vec!["SUNION", &sets.names[0], &absent]] {
        let name = read[0].to_lowercase();
        let before = calls(&cluster, &name);
        for _ in 0..3 {
            sets.client.query(&read);
        }
        assert_eq!(calls(&cluster, &name) - before, 3, "{read:?}");
    }
    // A key that comes into being at the next owner of a moving slot is not pushed by this one.
    let slot = cluster.slot(&absent);
    cluster.begin_to_move(slot, 0, 1);
    cluster.move_keys(slot, 0, 1);
    let mut writer = RespClient::connect(proxy.resp_address());
    assert_eq!(sets.client.query(&["TYPE", &absent]), b"+none\r\n");
    assert_eq!(writer.query(&["SADD", &absent, "m"]), b":1\r\n");
    assert_eq!(sets.client.query(&["TYPE", &absent]), b"+set\r\n");
    cluster.end_to_move(slot, 0, 1);
}

#[test]
fn kept_reply_ends_with_a_failover() {
    let cluster = RedisCluster::with_replicas(3);
    let proxy = started(&cluster);
    let mut sets = Sets::create(&cluster, &proxy);
    let [one, two] = sets.names.clone();
    sets.await_shared(1);
    sets.assert_kept(&cluster);
    cluster.await_whole();
    cluster.fail_over_to(3);
    for name in [&one, &two] {
        cluster.nodes[3].command(&["SADD", name, "more"]);
    }
    sets.await_shared(2);
    sets.assert_kept(&cluster);
}
