//! A Redis Cluster behind the proxy.
//!
//! Promise: clients without cluster support get the replies of a single Redis.
//!
//! Model: the same bytes go to a plain Redis and, through the proxy, to three primaries. Where a
//! command is about one slot, or can be split, the replies have to be equal. Keys `{0}...`,
//! `{1}...` and `{3}...` belong to different primaries.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use redis::Value;
use redis_proxy::protocol::{ParseStatus, RequestLimits, RequestParser};
use redis_proxy::resp::KeySpecs;

use crate::support::cluster::{RedisCluster, try_query};
use crate::support::resp_client::{RespClient, command, show, show_without_id, words};
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer, eventually, within};

/// Hash tags of different primaries, if there are three.
const TAGS: [u8; 3] = [0, 1, 3];
const CROSS_SLOT: &str = "-CROSSSLOT Keys in request don\\'t hash to the same slot\\r\\n";

/// The proxy is the first field, so it ends before its nodes do and logs no warning.
pub(super) struct Stage {
    pub(super) proxy: Proxy,
    plain: RedisServer,
    pub(super) cluster: RedisCluster,
}

impl Stage {
    fn start() -> Self {
        Self::over(RedisCluster::of(3), &[], "")
    }

    pub(super) fn over(cluster: RedisCluster, arguments: &[&str], more: &str) -> Self {
        let plain = RedisServer::builder().tcp().arguments(arguments).start();
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
            resp.listen = \"127.0.0.1:0\"\n";
        let limits =
            "daemon.worker_threads = 2\nhttp.max_connections = 100\nresp.max_connections = 100\n";
        let ping = if more.contains("redis.ping_interval") {
            ""
        } else {
            "redis.ping_interval = \"100ms\"\n"
        };
        let cache = format!("cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n{ping}");
        let proxy = Proxy::start(&format!("{listen}{limits}{cache}{more}{}", cluster.settings()));
        proxy.expect_log("no connection to Redis");
        await_ready(&proxy);
        Self { proxy, plain, cluster }
    }

    pub(super) fn through(&self) -> RespClient {
        RespClient::connect(self.proxy.resp_address())
    }

    /// Returns the replies to lines of words on one connection for each path, which must be equal:
    /// one by one, and then pipelined.
    #[track_caller]
    fn same(&self, lines: &[&str]) -> Vec<String> {
        let (plain, through) = (self.plain.tcp_address(), self.proxy.resp_address());
        let one_by_one = |address: SocketAddr| {
            let mut wire = RespClient::connect(address);
            lines
                .iter()
                .map(|line| transcript_line(line, &wire.query_line(line)))
                .collect::<Vec<_>>()
        };
        let at_once = |address: SocketAddr| {
            let mut wire = RespClient::connect(address);
            wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
            let answers = wire.answers(lines.len());
            lines
                .iter()
                .zip(answers)
                .map(|(line, answer)| transcript_line(line, &answer))
                .collect::<Vec<_>>()
        };
        for say in [&one_by_one as &dyn Fn(SocketAddr) -> Vec<String>, &at_once] {
            let (expected, found) = (say(plain), say(through));
            assert_eq!(found, expected, "found through the proxy, expected as of a plain Redis");
        }
        one_by_one(through)
    }

    fn answered_from_memory(&self) -> f64 {
        let metrics = self.proxy.metrics();
        let reads = |outcome: &str| {
            metrics.value(&format!(
                "redis_proxy_reads_total{{front_end=\"resp\",outcome=\"{outcome}\"}}"
            ))
        };
        reads("hit").unwrap_or_default() + reads("negative_hit").unwrap_or_default()
    }
}

fn transcript_line(line: &str, answer: &[u8]) -> String {
    format!("{line}: {}", show_without_id(answer).replace("$7\\r\\ncluster", "$10\\r\\nstandalone"))
}

#[test]
fn multi_node_commands_are_split_and_merged_in_order() {
    let stage = Stage::start();
    stage.same(&[
        "FLUSHALL",
        "MSET {0}a 1 {1}a 2 {3}a 3 {0}b 4",
        "MGET {3}a {0}b none {1}a {0}a {3}a",
        "DBSIZE",
    ]);
    stage.same(&[
        "EXISTS {0}a {1}a {3}a {0}a none",
        "TOUCH {0}a {3}a x",
        "DEL {0}a {1}a y",
        "UNLINK {3}a {0}b",
        "DBSIZE",
    ]);
    stage.same(&[
        "SET {0}s v",
        "LPUSH {1}l v",
        "MGET {0}s {1}l {3}n",
        "MGET {0}s {1}l {3}n",
        "FLUSHALL",
        "DBSIZE",
    ]);
    stage.same(&[
        "MSET {0}a 1 {1}b",
        "MSET",
        "DEL",
        "MGET",
        "EXISTS",
        "MSET {0}a 1 {0}b 2",
        "MGET {0}a {0}b",
        "FLUSHDB",
    ]);
    let mut wire = stage.through();
    wire.query_line("MSET {0}a 1 {1}a 2 {3}a 3");
    let keys = wire.reply_to("KEYS *");
    assert!(
        keys.starts_with("*3\\r\\n")
            && ["{0}a", "{1}a", "{3}a"].iter().all(|key| keys.contains(key)),
        "{keys}"
    );
}

#[test]
fn multi_node_pipeline_is_answered_in_order() {
    let stage = Stage::start();
    let mut wire = stage.through();
    let mut other = stage.through();
    for round in 0..20 {
        let lines: Vec<_> = (0..300)
            .map(|number| format!("SET {{{}}}{number} {round}-{number}", number % 7))
            .collect();
        wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
        assert!(wire.answers(lines.len()).iter().all(|answer| answer == b"+OK\r\n"));
        let lines: Vec<_> =
            (0..300).map(|number| format!("GET {{{}}}{number}", number % 7)).collect();
        for wire in [&mut wire, &mut other] {
            wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
            for (number, answer) in wire.answers(lines.len()).iter().enumerate() {
                let found = show(answer);
                assert!(
                    found.contains(&format!("{round}-{number}\\r")),
                    "{number} of {round}: {found}"
                );
            }
        }
    }
}

#[test]
fn large_replies_arrive_in_order() {
    let stage = Stage::start();
    let mut wire = stage.through();
    let value = vec![b'x'; 700_000];
    for key in ["{0}l", "{1}l", "{3}l"] {
        wire.query(&[&b"RPUSH"[..], key.as_bytes(), &value, &value, key.as_bytes()]);
    }
    let lines: Vec<_> =
        (0..12).map(|number| format!("LRANGE {{{}}}l 0 -1", TAGS[number % 3])).collect();
    wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    for (number, answer) in wire.answers(lines.len()).iter().enumerate() {
        assert!(
            answer.len() > 1_400_000
                && answer.ends_with(format!("{{{}}}l\r\n", TAGS[number % 3]).as_bytes())
        );
    }
    // More than the part of a command that is kept.
    let long = vec![b'y'; 3 << 20];
    assert_eq!(wire.reply_to_words(&[&b"SET"[..], b"{1}long", &long]), "+OK\\r\\n");
    assert_eq!(wire.query(&["GET", "{1}long"]).len(), long.len() + 12);
    assert_eq!(wire.reply_to("STRLEN {1}long"), ":3145728\\r\\n");
    assert_eq!(wire.reply_to_words(&[&b"MSET"[..], b"{0}a", b"1", b"{1}a", &long]), "+OK\\r\\n");
    assert_eq!(wire.reply_to("STRLEN {1}a"), ":3145728\\r\\n");
}

#[test]
fn memory_replies_include_own_writes() {
    let stage = Stage::start();
    let (mut wire, mut other) = (stage.through(), stage.through());
    for key in ["{0}k", "{1}k", "{3}k"] {
        wire.query_line(&format!("SET {key} first"));
        wire.query_line(&format!("GET {key}"));
        let before = stage.answered_from_memory();
        assert_eq!(wire.reply_to(&format!("GET {key}")), "$5\\r\\nfirst\\r\\n");
        assert_eq!(wire.reply_to(&format!("STRLEN {key}")), ":5\\r\\n");
        assert!((stage.answered_from_memory() - before - 2.0).abs() < 0.5, "{key}");
    }
    for turn in 0..300 {
        let (key, writer) =
            (format!("{{{}}}k", TAGS[turn % 3]), format!("{{{}}}k", TAGS[(turn + 1) % 3]));
        other.query_line(&format!("SET {key} o{turn}"));
        // A read from one node may not be older than an earlier reply of another.
        other.query_line(&format!("SET {writer} p{turn}"));
        assert_eq!(
            other.reply_to(&format!("GET {key}")),
            show(&crate::support::resp_client::bulk(format!("o{turn}")))
        );
        let both = [
            crate::support::resp_client::bulk(format!("o{turn}")),
            crate::support::resp_client::bulk(format!("p{turn}")),
        ]
        .concat();
        assert_eq!(
            other.reply_to(&format!("MGET {key} {writer}")),
            format!("*2\\r\\n{}", show(&both))
        );
        wire.query_line(&format!("EVAL return(redis.call('SET',KEYS[1],ARGV[1])) 1 {key} s{turn}"));
        assert_eq!(
            wire.reply_to(&format!("GET {key}")),
            show(&crate::support::resp_client::bulk(format!("s{turn}")))
        );
    }
    assert!(stage.answered_from_memory() > 100.0, "{}", stage.answered_from_memory());
}

#[test]
fn single_slot_transaction_works_others_are_rejected() {
    let stage = Stage::start();
    let talks: [&[&str]; 16] = [
        &["SET {0}k 1", "MULTI", "GET {0}k", "INCR {0}k", "GET {0}n", "EXEC", "GET {0}k"],
        &["MULTI", "PING", "SET {1}k 5", "ECHO x", "EXEC", "GET {1}k"],
        &["MULTI", "PING", "EXEC", "PING"],
        &["MULTI", "EXEC", "EXEC", "DISCARD", "UNWATCH"],
        &["MULTI", "DISCARD", "MULTI", "SET {3}k 1", "DISCARD", "GET {3}k"],
        &["MULTI", "MULTI", "WATCH {0}k", "SET {0}k 3", "MULTI", "EXEC", "GET {0}k"],
        &["MULTI", "NONESUCH", "SET {0}k 4", "EXEC", "GET {0}k"],
        &["MULTI", "SET {0}k", "SET {0}k 4", "EXEC", "GET {0}k"],
        &["MULTI", "SET {0}k 4", "INCR {0}k x", "EXEC", "GET {0}k"],
        &["MULTI x", "WATCH", "EXEC x", "DISCARD x", "GET {0}k"],
        &["SET {0}k a", "MULTI", "INCR {0}k", "SET {0}j 2", "EXEC", "GET {0}j"],
        &["WATCH {1}k", "GET {3}k", "MULTI", "SET {1}k 7", "EXEC", "GET {1}k"],
        &["WATCH {1}k", "SET {1}k 8", "MULTI", "SET {1}k 9", "EXEC", "GET {1}k"],
        &["WATCH {1}k", "SET {1}k 8", "UNWATCH", "MULTI", "SET {1}k 9", "EXEC", "GET {1}k"],
        &["WATCH {1}k", "SET {1}k 8", "MULTI", "EXEC", "MULTI", "SET {3}k 9", "EXEC", "GET {3}k"],
        &[
            "MULTI",
            "SET {0}k 5",
            "RESET",
            "EXEC",
            "GET {0}k",
            "HELLO 3",
            "MULTI",
            "GET {0}none",
            "EXEC",
        ],
    ];
    for talk in talks {
        stage.same(talk);
    }
    let mut wire = stage.through();
    wire.query_line("MSET {0}k old {1}k old");
    let apart =
        ["MULTI", "SET {0}k new", "SET {1}k new", "SET {0}k newer", "EXEC", "GET {0}k", "GET {1}k"];
    let received: Vec<_> = apart.iter().map(|line| wire.reply_to(line)).collect();
    let aborted = "-EXECABORT Transaction discarded because of previous errors.\\r\\n";
    let old = "$3\\r\\nold\\r\\n";
    assert_eq!(
        received,
        ["+OK\\r\\n", "+QUEUED\\r\\n", CROSS_SLOT, "+QUEUED\\r\\n", aborted, old, old]
    );
    for line in ["MULTI", "DBSIZE", "EXEC", "WATCH {0}k", "WATCH {1}k", "UNWATCH"] {
        let expected = match line {
            "DBSIZE" => "-ERR redis-proxy",
            "EXEC" => "-EXECABORT",
            "WATCH {1}k" => "-CROSSSLOT",
            _ => "+OK",
        };
        let received = wire.reply_to(line);
        assert!(received.starts_with(expected), "{line}: {received}");
    }
}

#[test]
fn watch_survives_moves_of_other_slots() {
    // The slot map is not polled, so a move is noticed only by a redirect.
    let stage = Stage::over(RedisCluster::of(3), &[], "redis.ping_interval = \"60s\"\n");
    let mut wire = stage.through();
    let nodes = ["{0}k", "{1}k", "{3}k"].map(|key| stage.cluster.owner(key));
    for line in ["SET {0}k old", "SET {1}k 1", "WATCH {0}k"] {
        assert_eq!(wire.reply_to(line), "+OK\\r\\n", "{line}");
    }
    stage.cluster.move_slot(stage.cluster.slot("{1}k"), nodes[1], nodes[2]);
    // Sent to the old owner of the slot, and then to the new one.
    assert_eq!(wire.reply_to("SET {1}k 2"), "+OK\\r\\n");
    stage.cluster.set("{0}k", "by another");
    let received: Vec<_> =
        ["MULTI", "SET {0}k mine", "EXEC", "GET {0}k"].map(|line| wire.reply_to(line)).into();
    assert_eq!(received, ["+OK\\r\\n", "+QUEUED\\r\\n", "*-1\\r\\n", "$10\\r\\nby another\\r\\n"]);
    // A key of a moved slot cannot be watched at the old owner, and can be at the new one once that
    // is known.
    stage.cluster.move_slot(stage.cluster.slot("{0}k"), nodes[0], nodes[2]);
    assert!(wire.reply_to("WATCH {0}k").starts_with("-TRYAGAIN"));
    assert_eq!(wire.reply_to("UNWATCH"), "+OK\\r\\n");
    stage.cluster.await_owner("{0}k", nodes[2]);
    // A map that was asked for before may still name the old owner. The commands are refused then.
    let received = within(Duration::from_secs(10), || {
        let watched = wire.reply_to("WATCH {0}k");
        stage.cluster.set("{0}k", "by another again");
        let replies = ["MULTI", "SET {0}k mine", "EXEC"].map(|line| wire.reply_to(line));
        let is_refused = watched.starts_with('-') || replies[2].starts_with('-');
        (!is_refused).then_some(replies)
    });
    let expected = ["+OK\\r\\n", "+QUEUED\\r\\n", "*-1\\r\\n"].map(str::to_owned);
    assert_eq!(received, Some(expected));
}

#[test]
fn transaction_whose_slot_moved_is_to_be_tried_again() {
    let stage = Stage::over(RedisCluster::of(3), &[], "");
    let mut wire = stage.through();
    let owner = stage.cluster.owner("{0}k");
    assert_eq!(wire.reply_to("MULTI"), "+OK\\r\\n");
    assert_eq!(wire.reply_to("SET {0}k mine"), "+QUEUED\\r\\n");
    stage.cluster.move_slot(stage.cluster.slot("{0}k"), owner, (owner + 1) % 3);
    // Until the map of the proxy is new, the old owner has to reply.
    let refused = within(Duration::from_secs(10), || {
        let reply = wire.reply_to("SET {0}k mine");
        (!reply.starts_with("+QUEUED")).then_some(reply)
    });
    assert!(refused.as_ref().is_some_and(|reply| reply.starts_with("-TRYAGAIN")), "{refused:?}");
    let refused = wire.reply_to("EXEC");
    let codes = ["-EXECABORT", "-TRYAGAIN"]; // the second if the old owner redirects it
    assert!(codes.iter().any(|code| refused.starts_with(code)), "{refused}");
    let received = ["MULTI", "SET {0}k mine", "EXEC"].map(|line| wire.reply_to(line));
    assert_eq!(received[2], "*1\\r\\n+OK\\r\\n", "{received:?}");
}

#[test]
fn unroutable_command_is_rejected_with_reason() {
    let stage = Stage::start();
    let mut wire = stage.through();
    for line in [
        "RENAME {0}k {1}k",
        "MSETNX {0}k 1 {1}k 2",
        "SINTER {0}k {1}k",
        "ZUNIONSTORE {0}k 2 {1}k {3}k",
        "EVAL return(1) 2 {0}k {1}k",
        "XREAD COUNT 1 STREAMS {0}k {1}k 0 0",
        "BLPOP {0}k {1}k 1",
        "SORT {0}k STORE {1}k",
        "WATCH {0}k {1}k",
        "SSUBSCRIBE {0}k {1}k",
    ] {
        assert_eq!(wire.reply_to(line), CROSS_SLOT, "{line}");
    }
    for line in [
        "CLUSTER SLOTS",
        "SCAN 0",
        "RANDOMKEY",
        "WAIT 1 1",
        "MONITOR",
        "CLIENT LIST",
        "CLIENT REPLY OFF",
        "CLIENT TRACKING ON",
        "CONFIG GET maxmemory",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "MIGRATE h 1 k 0 1",
        "ASKING",
        "READONLY",
        "DEBUG SLEEP 1",
        "SCRIPT DEBUG YES",
        "PSYNC ? -1",
    ] {
        let received = wire.reply_to(line);
        assert!(
            received.starts_with("-ERR redis-proxy: ") && received.contains("is about one node"),
            "{line}: {received}"
        );
    }
    assert_eq!(wire.reply_to("SELECT 0"), "+OK\\r\\n");
    assert!(wire.reply_to("SELECT 1").starts_with("-ERR SELECT is not allowed in cluster mode"));
    assert_eq!(wire.reply_to("PING"), "+PONG\\r\\n");
}

#[test]
fn scripts_run_at_their_keys() {
    let stage = Stage::start();
    stage.same(&["SCRIPT FLUSH", "SCRIPT LOAD return(redis.call('INCR',KEYS[1]))"]);
    let sha = {
        let mut wire = stage.through();
        let answer = wire.query_line("SCRIPT LOAD return(redis.call('INCR',KEYS[1]))");
        String::from_utf8(answer[5..45].to_vec()).unwrap()
    };
    stage.same(&[
        &format!("EVALSHA {sha} 1 {{0}}n"),
        &format!("EVALSHA {sha} 1 {{1}}n"),
        &format!("EVALSHA {sha} 1 {{3}}n"),
    ]);
    stage.same(&[
        &format!("SCRIPT EXISTS {sha} {}", "0".repeat(40)),
        "EVAL return({1,2}) 0",
        "EVAL return x 1 {0}k",
        "SCRIPT FLUSH",
    ]);
    stage.same(&[&format!("SCRIPT EXISTS {sha}"), &format!("EVALSHA {sha} 1 {{1}}n")]);
    let mut wire = stage.through();
    let library = "#!lua name=lib\n\
        redis.register_function('get', function(keys) return redis.call('GET', keys[1]) end)";
    assert_eq!(wire.reply_to_words(&["FUNCTION", "LOAD", library]), "$3\\r\\nlib\\r\\n");
    for key in ["{0}f", "{1}f", "{3}f"] {
        wire.query(&["SET", key, key]);
        assert_eq!(
            wire.reply_to_words(&["FCALL", "get", "1", key]),
            show(&crate::support::resp_client::bulk(key))
        );
    }
    assert_eq!(wire.reply_to_words(&["FUNCTION", "DELETE", "lib"]), "+OK\\r\\n");
    for key in ["{0}f", "{1}f", "{3}f"] {
        assert!(
            wire.reply_to_words(&["FCALL", "get", "1", key]).starts_with("-ERR Function not found")
        );
    }
}

#[test]
fn subscriptions_work_from_any_node() {
    let stage = Stage::start();
    let (mut listeners, mut wire) =
        ([stage.through(), stage.through(), stage.through()], stage.through());
    for listener in &mut listeners {
        assert!(listener.reply_to("SUBSCRIBE news").starts_with("*3\\r\\n$9\\r\\nsubscribe"));
    }
    wire.query_line("PUBLISH news first");
    for listener in &mut listeners {
        assert!(show(&listener.answer()).contains("first"));
        assert!(listener.reply_to("PING").contains("pong"));
        assert!(listener.reply_to("UNSUBSCRIBE news").contains("unsubscribe"));
    }
    for channel in ["{0}c", "{1}c", "{3}c"] {
        let mut listener = stage.through();
        assert!(listener.reply_to(&format!("SSUBSCRIBE {channel}")).contains("ssubscribe"));
        assert_eq!(wire.reply_to(&format!("SPUBLISH {channel} {channel}!")), ":1\\r\\n");
        assert!(show(&listener.answer()).contains(&format!("{channel}!")));
    }
}

#[test]
fn blocking_command_is_waited_for() {
    let stage = Stage::start();
    let (mut one, mut other) = (stage.through(), stage.through());
    one.send([words("BLPOP {0}l 0"), words("SET {1}k after"), words("GET {1}k")].concat());
    assert_eq!(other.reply_to("SET {1}k before"), "+OK\\r\\n");
    eventually("it is blocked", || {
        let blocked = |node: &RedisServer| {
            format!("{:?}", node.command(&["CLIENT", "LIST"])).contains("flags=b")
        };
        stage.cluster.nodes.iter().any(blocked).then_some(())
    });
    assert_eq!(other.reply_to("GET {1}k"), "$6\\r\\nbefore\\r\\n");
    other.query_line("RPUSH {0}l job");
    let received: Vec<_> = one.answers(3).iter().map(|answer| show(answer)).collect();
    assert_eq!(received[1..], ["+OK\\r\\n", "$5\\r\\nafter\\r\\n"], "{received:?}");
}

#[test]
fn command_keys_match_those_redis_finds() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    let table: Value = redis::cmd("COMMAND").query(&mut connection).unwrap();
    let keys = KeySpecs::read(&table);
    let mut names = Vec::new();
    name_all(&table, &mut names);
    let mut lines: Vec<_> = names.iter().flat_map(|(name, arity)| samples(name, *arity)).collect();
    lines.extend(MOVABLE.iter().map(|line| (*line).to_owned()));
    let mut compared = 0;
    for line in &lines {
        let words: Vec<_> = line.split(' ').collect();
        // Shard channels are no keys, but belong to a slot.
        let has_channels = ["spublish", "ssubscribe", "sunsubscribe"].contains(&words[0]);
        let found: redis::RedisResult<Vec<String>> =
            redis::cmd("COMMAND").arg("GETKEYS").arg(&words).query(&mut connection);
        let mut expected = match found {
            Ok(expected) => expected,
            Err(error) if error.to_string().contains("no key arguments") && !has_channels => {
                Vec::new()
            }
            Err(_) => continue,
        };
        let (mut parser, bytes) = (RequestParser::default(), command(&words));
        let limits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1000 };
        assert_eq!(parser.parse(&bytes, limits), Ok(ParseStatus::Complete(bytes.len())));
        let mut own: Vec<_> = keys
            .keys(parser.arguments(&bytes))
            .into_iter()
            .map(|at| words[at].to_owned())
            .collect();
        expected.sort_unstable();
        own.sort_unstable();
        own.dedup();
        expected.dedup();
        let is_left_to_the_node =
            words[0] == "sort" && words.contains(&"STORE") || words[0] == "migrate";
        if is_left_to_the_node {
            assert!(
                own.iter().all(|key| expected.contains(key)),
                "{line}: {own:?}, Redis says {expected:?}"
            );
        } else {
            assert_eq!(own, expected, "{line}");
        }
        compared += 1;
    }
    assert!(compared > 250, "{compared} of {}", lines.len());
}

/// Collects all commands with their arity.
fn name_all(commands: &Value, names: &mut Vec<(String, i64)>) {
    let Value::Array(commands) = commands else { return };
    for one in commands {
        let Value::Array(parts) = one else { continue };
        if let (Value::BulkString(name), Value::Int(arity)) = (&parts[0], &parts[1]) {
            names.push((String::from_utf8_lossy(name).replace('|', " "), *arity));
        }
        if let Some(subcommands) = parts.get(9) {
            name_all(subcommands, names);
        }
    }
}

/// Returns a command with the minimal number of words, and with two more.
fn samples(name: &str, arity: i64) -> Vec<String> {
    let given = name.split(' ').count();
    let least = usize::try_from(arity.abs()).unwrap().saturating_sub(given);
    let with = |more: usize| {
        let words = (0..least + more).map(|number| format!("w{number}"));
        [name.to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    };
    if arity < 0 { vec![with(0), with(1), with(2)] } else { vec![with(0)] }
}

const MOVABLE: [&str; 30] = [
    "eval s 0 a b",
    "eval s 2 a b c",
    "evalsha s 1 a b",
    "eval_ro s 1 a b",
    "fcall f 2 a b c",
    "fcall_ro f 1 a",
    "xread COUNT 5 BLOCK 0 STREAMS a b 0 0",
    "xread STREAMS streams 0",
    "xreadgroup GROUP g streams COUNT 1 STREAMS a b > >",
    "zunionstore d 2 a b WEIGHTS 1 2",
    "zinterstore d 1 a AGGREGATE SUM",
    "zdiffstore d 2 a b",
    "zunion 2 a b WITHSCORES",
    "zinter 3 a b c",
    "zdiff 1 a",
    "zintercard 2 a b LIMIT 1",
    "sintercard 2 a b LIMIT 1",
    "lmpop 2 a b LEFT",
    "blmpop 0 2 a b LEFT",
    "zmpop 1 a MIN",
    "bzmpop 0 2 a b MAX",
    "sort a BY w_* LIMIT 0 5 GET o_* ASC ALPHA STORE d",
    "sort_ro a BY w_* GET o_*",
    "georadius a 15 37 200 km STORE d",
    "georadiusbymember a m 100 km STOREDIST d",
    "bitop AND d a b c",
    "mset a 1 b 2 c 3",
    "blpop a b c 0",
    "object encoding a",
    "xgroup create a g $",
];

#[test]
fn moving_slots_fail_no_command() {
    let stage = Stage::start();
    let slot = stage.cluster.slot("{0}x");
    let (turns, is_over) = ([0, 1, 2].map(|_| AtomicU64::new(0)), AtomicBool::new(false));
    let a_few_turns = || {
        let before = turns.each_ref().map(|turns| turns.load(SeqCst));
        eventually("every writer goes on", || {
            let is_on = |(turns, before): (&AtomicU64, &u64)| {
                turns.load(SeqCst) > before + 3 || is_over.load(SeqCst)
            };
            turns.iter().zip(&before).all(is_on).then_some(())
        });
    };
    thread::scope(|scope| {
        for (writer, turns) in turns.iter().enumerate() {
            let (mut wire, is_over) = (stage.through(), &is_over);
            scope.spawn(move || {
                let end = Ender(is_over);
                while !is_over.load(SeqCst) {
                    let turn = turns.fetch_add(1, SeqCst);
                    write_in_order(&mut wire, writer, turn);
                }
                std::mem::forget(end);
            });
        }
        for round in 0..4 {
            let end = Ender(&is_over);
            let owner = stage.cluster.owner("{0}x");
            let next = (owner + 1 + round % 2) % 3;
            a_few_turns();
            stage.cluster.begin_to_move(slot, owner, next);
            a_few_turns();
            stage.cluster.move_keys(slot, owner, next);
            a_few_turns();
            // Keys that were created meanwhile are moved too; otherwise the node would not give up
            // the slot.
            stage.cluster.move_keys(slot, owner, next);
            stage.cluster.end_to_move(slot, owner, next);
            std::mem::forget(end);
        }
        a_few_turns();
        is_over.store(true, SeqCst);
    });
}

/// Ends the other threads when a test fails.
pub(super) struct Ender<'a>(pub(super) &'a AtomicBool);

impl Drop for Ender<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Sends commands that build on each other in one pipeline, and the same in a transaction.
fn write_in_order(wire: &mut RespClient, writer: usize, turn: u64) {
    let key = format!("{{0}}{writer}:{}", turn % 50);
    let lines = [
        format!("SET {key} 1"),
        format!("INCRBY {key} {turn}"),
        format!("SET {{1}}{writer} {turn}"),
        format!("APPEND {key} x"),
        format!("GET {key}"),
        format!("MGET {{1}}{writer} {key}"),
    ];
    wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    let received: Vec<_> = wire.answers(lines.len()).iter().map(|answer| show(answer)).collect();
    let value = show(&crate::support::resp_client::bulk(format!("{}x", turn + 1)));
    assert_eq!(received[4], value, "{received:?}");
    assert_eq!(
        received[5],
        format!("*2\\r\\n{}{value}", show(&crate::support::resp_client::bulk(turn.to_string()))),
        "{received:?}"
    );
    let transaction = ["MULTI", &format!("SET {key} c"), &format!("GET {key}"), "EXEC"];
    let received = transaction.map(|line| wire.reply_to(line));
    // The slot was on its way, so nothing was done.
    let is_refused = ["-EXECABORT", "-TRYAGAIN"].iter().any(|code| received[3].starts_with(code));
    assert!(received[3].contains("$1\\r\\nc") || is_refused, "{received:?}");
}

#[test]
fn failover_delays_only_commands_of_its_slots() {
    let stage = Stage::over(RedisCluster::with_replicas(3), &[], "");
    let mut wire = stage.through();
    for key in ["{0}k", "{1}k", "{3}k"] {
        assert_eq!(wire.reply_to(&format!("SET {key} before")), "+OK\\r\\n");
    }
    cluster_copies(&stage.cluster);
    let owner = stage.cluster.owner("{0}k");
    stage.cluster.fail_over_to(owner + 3);
    for key in ["{0}k", "{1}k", "{3}k"] {
        let received = wire.reply_to(&format!("SET {key} after"));
        assert_eq!(received, "+OK\\r\\n", "{key}");
        assert_eq!(wire.reply_to(&format!("GET {key}")), "$5\\r\\nafter\\r\\n", "{key}");
    }
}

/// Waits until each replica has the writes of its primary.
fn cluster_copies(cluster: &RedisCluster) {
    for node in &cluster.nodes {
        // A replica rejects it.
        _ = try_query::<Value>(node, &["WAIT", "1", "5000"]);
    }
}

#[test]
fn dead_primary_command_is_answered_after_failover() {
    let cluster = RedisCluster::with_replicas(3);
    let stage = Stage::over(cluster, &[], "");
    let mut wire = stage.through();
    for key in ["{0}k", "{1}k", "{0}other"] {
        assert_eq!(wire.reply_to(&format!("SET {key} value")), "+OK\\r\\n");
    }
    cluster_copies(&stage.cluster);
    let owner = stage.cluster.owner("{0}k");
    let Stage { proxy, plain, mut cluster } = stage;
    cluster.nodes[owner].stop();
    let begun = Instant::now();
    let received = wire.reply_to("APPEND {0}k x");
    assert!(received == ":6\\r\\n", "{received} after {:?}", begun.elapsed());
    assert_eq!(wire.reply_to("GET {1}k"), "$5\\r\\nvalue\\r\\n");
    drop((proxy, plain));
}

#[test]
fn client_is_the_same_user_at_every_node() {
    let users =
        ["--requirepass", "secret", "--user", "other", "on", ">o", "~{0}*", "~{1}*", "&*", "+@all"];
    let cluster = RedisCluster::start(3, 0, &users);
    let stage = Stage::over(cluster, &users, "redis.password = \"secret\"\n");
    let received = stage.same(&[
        "GET {0}k",
        "SET {1}k v",
        "AUTH secret",
        "SET {0}k v",
        "SET {1}k v",
        "SET {3}k v",
        "GET {0}k",
        "GET {0}k",
        "MULTI",
        "GET {3}k",
        "EXEC",
        "AUTH other o",
        "GET {0}k",
        "GET {1}k",
        "GET {3}k",
        "STRLEN {3}k",
        "SET {1}k w",
        "MULTI",
        "SET {1}k x",
        "EXEC",
        "ACL WHOAMI",
        "HELLO 3 AUTH default secret",
        "GET {3}k",
        "GET {3}none",
        "GET {1}none",
        "HELLO 2",
        "GET {0}none",
        "RESET",
        "GET {3}k",
        "SET {1}k v",
    ]);
    assert!(
        received[14].contains("-NOPERM") && received[22].ends_with("$1\\r\\nv\\r\\n"),
        "{received:#?}"
    );
    assert!(stage.answered_from_memory() > 0.5);
}

#[test]
fn disconnected_client_consumes_no_job() {
    let stage = Stage::start();
    let mut other = stage.through();
    let is_waited_for = || {
        let blocked = |node: &RedisServer| {
            format!("{:?}", node.command(&["CLIENT", "LIST"])).contains("flags=b")
        };
        stage.cluster.nodes.iter().any(blocked)
    };
    let mut one = stage.through();
    one.send(words("BLPOP {0}jobs 0"));
    eventually("it is blocked", || is_waited_for().then_some(()));
    drop(one);
    eventually("the node knows that it is gone", || (!is_waited_for()).then_some(()));
    assert_eq!(other.reply_to("RPUSH {0}jobs job"), ":1\\r\\n");
    assert_eq!(other.reply_to("LLEN {0}jobs"), ":1\\r\\n");
}
