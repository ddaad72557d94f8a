//! Random commands in random pieces.
//!
//! Promise: every reply equals that of Redis.
//!
//! Model: seeded scripts of random commands go over both paths. A script is a few rounds on two
//! connections. A round is sent after all replies to the previous one, so that both servers run the
//! same commands in the same order. One connection may not see the latest write of the other, so a
//! `no-cache` read over HTTP comes between two rounds. Keys are few and most commands read, so
//! memory often has the value, and other commands often change it.
//!
//! Commands with different replies by their nature are left out: identifiers, clocks, and random
//! choices of Redis.

use std::net::SocketAddr;

use memchr::memmem;

use crate::support::cluster::RedisCluster;
use crate::support::env::{number, seed_or};
use crate::support::http::Client;
use crate::support::resp_client::{RespClient, show};
use crate::support::resp_pair::{LASTING, RespPair, is_straight, resp_config};
use crate::support::script::{Round, Script};
use crate::support::serving::await_ready;
use crate::support::{Proxy, Relay};

const SEED: u64 = 1;
const SCRIPTS: u64 = 400;
const SCRIPTS_BYTE_BY_BYTE: u64 = 25;
const OTHER_USER: [&str; 8] = ["--user", "other", "on", ">secret", "~k1", "~k2", "&*", "+@all"];

#[test]
fn random_commands_match_redis() {
    let ways = RespPair::between(|server| server.arguments(&OTHER_USER), LASTING);
    let commands =
        compare(&ways, ways.proxy(), ways.through(), number("RESP_SCRIPTS").unwrap_or(SCRIPTS));
    let Some(from_memory) = ways.answered_from_memory() else { return };
    let all = ways.reads(&["hit", "miss", "coalesced", "negative_hit", "stale", "bypass"]).unwrap();
    eprintln!("{commands} commands, {all} reads, {from_memory} of them answered from memory");
    assert!(from_memory > all / 8.0, "{from_memory} of {all} reads were answered from memory");
    for kind in ["string", "hash", "list", "set", "zset", "stream", "multi"] {
        let metrics = ways.proxy().unwrap().metrics();
        let series = format!(
            "redis_proxy_reads_total{{front_end=\"resp\",kind=\"{kind}\",outcome=\"hit\"}}"
        );
        let hits = metrics.value(&series).unwrap();
        eprintln!("{hits} hits of kind {kind}");
        assert!(hits > 0.0, "no read of kind {kind} was answered from memory");
    }
}

#[test]
fn random_commands_match_redis_in_ttl_mode() {
    let ways = RespPair::between(
        |server| server.arguments(&OTHER_USER),
        "cache.ttl = \"1h\"\ncache.coherence = \"ttl\"",
    );
    compare(&ways, ways.proxy(), ways.through(), number("RESP_SCRIPTS").unwrap_or(SCRIPTS / 4));
    assert!(ways.answered_from_memory().is_none_or(|from_memory| from_memory > 100.0));
}

#[test]
fn bytewise_commands_match_redis() {
    if is_straight() {
        return;
    }
    let ways = RespPair::between(|server| server.arguments(&OTHER_USER), LASTING);
    let line = Relay::to_socket(ways.behind().socket());
    line.byte_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("resp.sock");
    // The reply to COMMAND INFO is long, and comes byte by byte, too.
    let patience = "redis.connect_timeout = \"20s\"";
    let settings = format!("{LASTING}\n{patience}\nresp.listen = \"unix://{}\"", socket.display());
    let url = format!("redis://{}", line.address());
    let config = resp_config(&url, &settings).replacen("resp.listen = \"127.0.0.1:0\"\n", "", 1);
    let proxy = Proxy::start(&config);
    await_ready(&proxy);
    let client = Relay::to_socket(&socket);
    client.byte_at_a_time();
    compare(
        &ways,
        Some(&proxy),
        client.address(),
        number("RESP_SCRIPTS").unwrap_or(SCRIPTS_BYTE_BY_BYTE),
    );
}

#[test]
fn single_slot_commands_match_redis_over_cluster() {
    let cluster = RedisCluster::of(3);
    // One node that serves all slots.
    let alone = RedisCluster::start(1, 0, &OTHER_USER);
    for node in &cluster.nodes {
        node.command(&["ACL", "SETUSER", "other", "on", ">secret", "~k1", "~k2", "&*", "+@all"]);
    }
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
        resp.listen = \"127.0.0.1:0\"\n";
    let limits = "daemon.worker_threads = 2\nresp.max_connections = 500\n";
    let proxy = Proxy::start(&format!("{listen}{limits}{LASTING}\n{}", cluster.settings()));
    await_ready(&proxy);
    let ends = (alone.nodes[0].tcp_address(), proxy.resp_address());
    compare_between(
        ends,
        Some(&proxy),
        number("RESP_SCRIPTS").unwrap_or(SCRIPTS / 8),
        Script::in_one_slot,
    );
}

/// Runs this many scripts over both paths; returns the number of commands.
fn compare(ways: &RespPair, proxy: Option<&Proxy>, through: SocketAddr, scripts: u64) -> usize {
    compare_between((ways.straight(), through), proxy, scripts, Script::from_seed)
}

fn compare_between(
    (straight, through): (SocketAddr, SocketAddr),
    proxy: Option<&Proxy>,
    scripts: u64,
    script: impl Fn(u64) -> Script,
) -> usize {
    let first = seed_or(SEED);
    let mut pairs = [Pair::connect(straight, through), Pair::connect(straight, through)];
    let mut news = proxy.map(|proxy| Client::connect(proxy.http()));
    let mut commands = 0;
    for seed in first..first + scripts {
        let script = script(seed);
        commands += script.rounds.iter().map(|round| round.commands.len()).sum::<usize>();
        for round in &script.rounds {
            if let Some(news) = &mut news {
                news.request("GET", "/keys/none", &[("Cache-Control", "no-cache")]);
            }
            pairs[round.connection].compare(seed, &script, round);
        }
        // Each script has to work after any other; now and then the connection is a new one.
        if seed % 8 == 0 {
            pairs = [Pair::connect(straight, through), Pair::connect(straight, through)];
        }
    }
    commands
}

/// A connection for each path.
struct Pair {
    addresses: [SocketAddr; 2],
    straight: RespClient,
    through: RespClient,
}

impl Pair {
    fn connect(straight: SocketAddr, through: SocketAddr) -> Self {
        let addresses = [straight, through];
        Self {
            addresses,
            straight: RespClient::connect(straight),
            through: RespClient::connect(through),
        }
    }

    fn compare(&mut self, seed: u64, script: &Script, round: &Round) {
        for piece in round.pieces() {
            self.through.send(piece);
        }
        self.straight.send(round.pieces().collect::<Vec<_>>().concat());
        let expected = answers(&mut self.straight, round);
        let found = answers(&mut self.through, round);
        if found != expected {
            let index = (0..=expected.len())
                .find(|&index| expected.get(index) != found.get(index))
                .unwrap_or(expected.len());
            let received = |answers: &[Vec<u8>]| {
                answers.get(index).map_or("nothing".to_owned(), |answer| show(answer))
            };
            panic!(
                "REDIS_PROXY_TEST_SEED={seed} RESP_SCRIPTS=1 repeats this\n{}\n\
                    answer {index} of this round is to\n  {}\nexpected {}\nfound    {}",
                script.text_as_far_as(round),
                round.answered(index),
                received(&expected),
                received(&found),
            );
        }
        if round.ends_connection {
            *self = Self::connect(self.addresses[0], self.addresses[1]);
        }
    }
}

/// Returns the replies to a round, without identifiers.
fn answers(wire: &mut RespClient, round: &Round) -> Vec<Vec<u8>> {
    let owed = round.answers();
    let mut answers: Vec<_> = (0..owed).map_while(|_| wire.try_answer().ok()).collect();
    if round.ends_connection {
        answers.push(wire.try_rest().unwrap_or_else(|_| b"not closed".to_vec()));
    }
    for answer in &mut answers {
        mask_identifiers(answer);
    }
    answers
}

/// Masks the ids of connections in replies to `HELLO`.
fn mask_identifiers(answer: &mut Vec<u8>) {
    const BEFORE: &[u8] = b"$2\r\nid\r\n:";
    let mut from = 0;
    while let Some(found) = memmem::find(&answer[from..], BEFORE) {
        from += found + BEFORE.len();
        let digits = answer[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        answer.drain(from..from + digits);
    }
}
