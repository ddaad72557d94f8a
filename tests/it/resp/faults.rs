//! Faults behind RESP clients.
//!
//! Promise: a client gets correct replies or none: a lost dedicated connection ends its client
//! after a prefix of the replies.
//!
//! Model: a relay between the proxy and Redis breaks. A client without a dedicated connection goes
//! on.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::support::fault_stage::DOWN;
use crate::support::resp_client::{RespClient, bulk, show, words};
use crate::support::resp_pair::{LASTING, is_straight, resp_config};
use crate::support::serving::{await_metric, await_ready, relay_url};
use crate::support::{Proxy, RedisServer, Relay, Reload, eventually};

const CONNECTIONS: &str = r#"connections{front_end="resp"}"#;
const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable";

/// A proxy with its Redis behind a relay.
struct Stage {
    proxy: Proxy,
    relay: Relay,
    redis: RedisServer,
    config: String,
}

impl Stage {
    /// Starts it with these settings; returns nothing in a run without a proxy.
    fn start(settings: &str) -> Option<Self> {
        if is_straight() {
            return None;
        }
        let redis = RedisServer::start();
        let relay = Relay::to_socket(redis.socket());
        let config = resp_config(&relay_url(&relay), &format!("{LASTING}\n{settings}"));
        let proxy = Proxy::start(&config);
        await_ready(&proxy);
        Some(Self { proxy, relay, redis, config })
    }

    fn address(&self) -> SocketAddr {
        self.proxy.resp_address()
    }

    fn connect(&self) -> RespClient {
        RespClient::connect(self.address())
    }

    /// Returns the number of dedicated connections.
    fn links(&self) -> usize {
        dedicated_connections(&self.redis)
    }
}

/// Counts the connections of Redis, without that of the test and the shared one of the proxy.
fn dedicated_connections(redis: &RedisServer) -> usize {
    let redis::Value::BulkString(list) = redis.command(&["CLIENT", "LIST"]) else {
        panic!("no list")
    };
    let list = String::from_utf8_lossy(&list).into_owned();
    let is_other =
        |line: &&str| line.contains("user=integration-test") || line.contains("name=redis-proxy");
    list.lines().filter(|line| !is_other(line)).count()
}

#[test]
fn link_lost_within_a_reply_closes_the_client() {
    let Some(stage) = Stage::start("") else { return };
    stage.proxy.expect_log(DOWN);
    let item = "i".repeat(1 << 20);
    for _ in 0..4 {
        stage.redis.command(&["RPUSH", "list", &item]);
    }
    let pipeline =
        [words("SET a 1"), words("ECHO first"), words("LRANGE list 0 -1"), words("ECHO last")]
            .concat();
    let whole = {
        let mut wire = stage.connect();
        wire.send(&pipeline);
        wire.answers(4).concat()
    };
    // Within the first reply, between two, within the head and the body of the large one, and
    // within the last.
    for bytes in [0, 3, 5, 16, 18, 30, 100_000, 3_000_000, whole.len() - 5] {
        let mut wire = stage.connect();
        // The dedicated connection exists before the relay breaks.
        assert_eq!(show(&wire.query_line("ECHO link")), "$4\\r\\nlink\\r\\n");
        stage.relay.cut_after(bytes);
        wire.send(&pipeline);
        let found = wire.rest();
        assert!(whole.starts_with(&found), "cut after {bytes}: {}", show(&found));
        // Bytes on the shared connection count as well.
        assert!(found.len() <= bytes, "{} bytes of {bytes}", found.len());
        assert!(
            found.len() + 2000 > bytes.min(whole.len()),
            "only {} bytes of {bytes}",
            found.len()
        );
        stage.relay.resume();
        await_ready(&stage.proxy);
    }
    let mut wire = stage.connect();
    wire.send(&pipeline);
    assert_eq!(wire.answers(4).concat(), whole);
}

#[test]
fn cut_fetch_returns_whole_value_or_error() {
    let Some(stage) = Stage::start("redis.response_timeout = \"2s\"") else { return };
    stage.proxy.expect_log(DOWN);
    let value = "v".repeat(4 << 20);
    stage.redis.command(&["SET", "large", &value]);
    let mut wire = stage.connect();
    stage.relay.cut_after(1 << 20);
    wire.send(words("GET large"));
    // The failed fetch is repeated on the dedicated connection, which is cut as well.
    match wire.try_answer() {
        Ok(answer) => assert!(show(&answer).starts_with(NO_REDIS), "{}", show(&answer)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
    stage.relay.resume();
    await_ready(&stage.proxy);
    let mut wire = stage.connect();
    for _ in 0..2 {
        assert_eq!(wire.query_line("GET large"), bulk(&value));
    }
    // After a single loss the fetch is repeated.
    stage.redis.command(&["SET", "other", &value]);
    stage.relay.cut_once();
    let answer = eventually("the value again", || {
        let answer = wire.query_line("GET other");
        (!answer.starts_with(b"-")).then_some(answer)
    });
    assert_eq!(answer, bulk(&value));
}

#[test]
fn commands_fail_without_redis_but_connection_stays() {
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    let mut wire = RespClient::connect(proxy.resp_address());
    for line in ["GET key", "SET key value", "PING", "LRANGE list 0 -1", "GET key"] {
        let received = wire.reply_to(line);
        assert!(received.starts_with(NO_REDIS), "{line}: {received}");
    }
    wire.send(
        [
            words("SET key 1"),
            words("GET key"),
            words("MGET a b"),
            words("INCR key"),
            words("GET key"),
        ]
        .concat(),
    );
    for answer in wire.answers(5) {
        assert!(show(&answer).starts_with(NO_REDIS), "{}", show(&answer));
    }
    redis.restart();
    eventually("Redis is asked again", || {
        (wire.reply_to("SET key value") == "+OK\\r\\n").then_some(())
    });
    assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    assert_eq!(wire.reply_to("GET absent"), "$-1\\r\\n");
}

#[test]
fn commands_of_a_rejected_transaction_are_not_run() {
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.send([words("MULTI"), words("SET a 1")].concat());
    for _ in 0..2 {
        // An error, or the end of the connection.
        assert!(
            wire.try_answer().is_ok_and(|answer| show(&answer).starts_with(NO_REDIS))
                || wire.is_closed() == Some(true)
        );
    }
    redis.restart();
    await_ready(&proxy);
    wire.send([words("SET b 2"), words("EXEC")].concat());
    while wire.try_answer().is_ok_and(|answer| !answer.starts_with(b"-ERR EXEC")) {}
    assert_eq!(redis.command(&["EXISTS", "a", "b"]), redis::Value::Int(0));
}

#[test]
fn memory_reader_outlives_its_dedicated_connection() {
    if is_straight() {
        return;
    }
    let redis = RedisServer::builder().arguments(&["--timeout", "1"]).start();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    await_ready(&proxy);
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.query_line("SET key value");
    eventually("Redis has closed the idle dedicated connection", || {
        assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
        (dedicated_connections(&redis) == 0).then_some(())
    });
    assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    assert_eq!(wire.reply_to("SET key other"), "+OK\\r\\n");
}

#[test]
fn final_commands_run_after_disconnect() {
    let Some(stage) = Stage::start("") else { return };
    let mut silent = stage.connect();
    silent.send([words("CLIENT REPLY OFF"), words("INCR count").repeat(5000)].concat());
    drop(silent);
    let mut waiting = stage.connect();
    waiting.send([words("SET before 1"), words("BLPOP list 0")].concat());
    drop(waiting);
    eventually("all was done", || {
        let count = stage.redis.command(&["MGET", "count", "before"]);
        let all = [b"5000".to_vec(), b"1".to_vec()].map(redis::Value::BulkString);
        (count == redis::Value::Array(all.to_vec())).then_some(())
    });
    eventually("both links are gone", || (stage.links() == 0).then_some(()));
}

#[test]
fn lost_redis_closes_only_stateful_clients() {
    let Some(stage) = Stage::start("cache.stale_if_error = \"1h\"") else { return };
    stage.proxy.expect_log(DOWN);
    stage.redis.command(&["SET", "key", "value"]);
    let (mut reader, mut writer) = (stage.connect(), stage.connect());
    assert_eq!(reader.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    assert_eq!(writer.reply_to("SET other 1"), "+OK\\r\\n");
    let mut bound = ["WATCH key", "MULTI", "SELECT 1", "HELLO 3", "SUBSCRIBE news", "BLPOP list 0"]
        .map(|line| {
            let mut wire = stage.connect();
            wire.send(words(line));
            if !line.starts_with("BLPOP") {
                wire.answer();
            }
            wire
        });
    eventually("all have their links", || (stage.links() == 1 + bound.len()).then_some(()));
    stage.relay.cut();
    for wire in &mut bound {
        assert_eq!(show(&wire.rest()), "");
    }
    let received = writer.reply_to("SET other 2");
    assert!(received.starts_with(NO_REDIS), "{received}");
    // A cached value may be served stale; nothing else may.
    let received = eventually("the reader receives something", || Some(reader.reply_to("GET key")));
    assert!(received == "$5\\r\\nvalue\\r\\n" || received.starts_with(NO_REDIS), "{received}");
    let received = reader.reply_to("SET key 2");
    assert!(received.starts_with(NO_REDIS), "{received}");
    stage.relay.resume();
    await_ready(&stage.proxy);
    stage.redis.command(&["SET", "key", "new"]);
    assert_eq!(reader.reply_to("SET more 1"), "+OK\\r\\n");
    assert_eq!(reader.reply_to("GET key"), "$3\\r\\nnew\\r\\n");
}

#[test]
fn closed_dedicated_connection_ends_its_client() {
    let Some(stage) = Stage::start("") else { return };
    for (state, is_lost) in
        [("SET key value", false), ("SELECT 1", true), ("WATCH key", true), ("MULTI", true)]
    {
        let (mut one, mut other) = (stage.connect(), stage.connect());
        let id = show(&one.query_line("CLIENT ID"));
        let id = id.trim_start_matches(':').trim_end_matches("\\r\\n");
        one.query_line(state);
        assert_eq!(other.reply_to("SET other value"), "+OK\\r\\n");
        stage.redis.command(&["CLIENT", "KILL", "ID", id]);
        if is_lost {
            assert_eq!(show(&one.rest()), "", "{state}");
        } else {
            assert_eq!(one.reply_to("GET key"), "$5\\r\\nvalue\\r\\n", "{state}");
        }
        assert_eq!(other.reply_to("GET other"), "$5\\r\\nvalue\\r\\n");
    }
}

#[test]
fn reload_keeps_resp_connections() {
    let Some(stage) = Stage::start("") else { return };
    let (mut transaction, mut subscriber, mut reader) =
        (stage.connect(), stage.connect(), stage.connect());
    for line in ["SET key value", "GET key", "MULTI", "INCR n"] {
        transaction.query_line(line);
    }
    subscriber.query_line("SUBSCRIBE news");
    let shorter = stage.config.replace("cache.ttl = \"1h\"", "cache.ttl = \"30m\"");
    assert_ne!(shorter, stage.config);
    for config in [&shorter, &stage.config] {
        reader.send(words("GET key").repeat(100));
        assert_eq!(stage.proxy.reload(config), Reload::Reloaded);
        assert!(reader.answers(100).iter().all(|answer| *answer == bulk("value")));
    }
    // A change that needs a restart is rejected and has no effect.
    stage.proxy.expect_log("config refused");
    let other = format!("{}\nresp.max_bulk = \"1MiB\"", stage.config);
    assert_eq!(stage.proxy.reload(&other), Reload::Refused);
    assert_eq!(transaction.reply_to("GET key"), "+QUEUED\\r\\n");
    assert_eq!(transaction.reply_to("EXEC"), "*2\\r\\n:1\\r\\n$5\\r\\nvalue\\r\\n");
    assert_eq!(reader.reply_to("PUBLISH news hello"), ":1\\r\\n");
    assert_eq!(
        show(&subscriber.answer()),
        "*3\\r\\n$7\\r\\nmessage\\r\\n$4\\r\\nnews\\r\\n$5\\r\\nhello\\r\\n"
    );
}

#[test]
fn disconnected_client_leaves_nothing_behind() {
    let Some(stage) = Stage::start("resp.max_output_buffer = \"64KiB\"") else { return };
    let item = "i".repeat(100_000);
    for _ in 0..50 {
        stage.redis.command(&["RPUSH", "list", &item]);
    }
    stage.redis.command(&["SET", "key", "value"]);
    let talks: [Vec<u8>; 8] = [
        b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1000\r\nonly a part".to_vec(),
        b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$9000000\r\n"
            .iter()
            .copied()
            .chain(vec![b'x'; 3_000_000])
            .collect(),
        words("LRANGE list 0 -1").repeat(20),
        words("GET key").repeat(100_000),
        words("BLPOP none 0"),
        [words("MULTI"), words("SET half 1")].concat(),
        [words("SUBSCRIBE news"), words("GET key")].concat(),
        [words("SET other 1"), words("GET other"), b"*2\r\n$3\r\nGE".to_vec()].concat(),
    ];
    for talk in &talks {
        let wire = stage.connect();
        await_metric(&stage.proxy, CONNECTIONS, 1.0);
        wire.send_what_is_taken(talk);
        drop(wire);
        await_metric(&stage.proxy, CONNECTIONS, 0.0);
        eventually("its link is gone", || (stage.links() == 0).then_some(()));
    }
    assert_eq!(stage.redis.command(&["EXISTS", "half"]), redis::Value::Int(0));
    assert_eq!(stage.connect().reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
}

#[test]
fn half_closed_client_is_answered_completely() {
    let Some(stage) = Stage::start("") else { return };
    let item = "i".repeat(100_000);
    stage.redis.command(&["RPUSH", "list", &item]);
    let mut wire = stage.connect();
    wire.send(
        [
            words("GET absent"),
            words("SET key value"),
            words("GET key"),
            words("LRANGE list 0 -1").repeat(20),
        ]
        .concat(),
    );
    wire.end_sending();
    let answers = wire.rest();
    assert!(answers.starts_with(b"$-1\r\n+OK\r\n$5\r\nvalue\r\n*1\r\n"), "{}", show(&answers));
    assert_eq!(answers.len(), 21 + 20 * (4 + bulk(&item).len()));
}
