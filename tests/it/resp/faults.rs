//! Whatever fails, a client is told the truth, or nothing more.
//!
//! Model: a relay between the proxy and Redis breaks. A client whose link is lost has got a prefix of what Redis said, and
//! then the end of its connection; one that needs no link, or has none yet, goes on.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ways::{LASTING, is_straight, resp_config};
use super::wire::{Wire, bulk, show, words};
use crate::stage::{await_metric, await_ready, relay_url};
use crate::support::{Proxy, RedisServer, Relay, Reload, Signal, eventually, within};

const DOWN: &str = "no link to Redis";
const CUT: &str = "connections were cut";
const CONNECTIONS: &str = r#"connections{front_end="resp"}"#;
/// For anything that is to happen at once to have happened.
const ENOUGH: Duration = Duration::from_millis(600);
const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable";

/// A proxy whose Redis is behind a line that can fail.
struct Stage {
    proxy: Proxy,
    relay: Relay,
    redis: RedisServer,
    config: String,
}

impl Stage {
    /// With these settings; nothing where there is no proxy.
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

    fn connect(&self) -> Wire {
        Wire::connect(self.address())
    }

    /// How many connections of clients Redis has, beside the proxy's own and the one that asks.
    fn links(&self) -> usize {
        let redis::Value::BulkString(list) = self.redis.command(&["CLIENT", "LIST"]) else {
            panic!("no list")
        };
        let list = String::from_utf8_lossy(&list).into_owned();
        list.lines()
            .filter(|line| {
                !line.contains("user=integration-test") && !line.contains("name=redis-proxy")
            })
            .count()
    }
}

#[test]
fn a_link_that_is_lost_within_an_answer_ends_its_client_behind_a_part_of_it() {
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
    // Within the first, between two, within the head of the large one, within its body, and within the last.
    for bytes in [0, 3, 5, 16, 18, 30, 100_000, 3_000_000, whole.len() - 5] {
        let mut wire = stage.connect();
        // The link is there before the line is about to break.
        assert_eq!(show(&wire.ask_line("ECHO link")), "$4\\r\\nlink\\r\\n");
        stage.relay.cut_after(bytes);
        wire.send(&pipeline);
        let found = wire.rest();
        assert!(whole.starts_with(&found), "cut after {bytes}: {}", show(&found));
        // What the proxy's own link was told meanwhile counts as well.
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
fn a_fetch_that_is_cut_gives_the_whole_value_or_an_error() {
    let Some(stage) = Stage::start("redis.response_timeout = \"2s\"") else { return };
    stage.proxy.expect_log(DOWN);
    let value = "v".repeat(4 << 20);
    stage.redis.command(&["SET", "large", &value]);
    let mut wire = stage.connect();
    stage.relay.cut_after(1 << 20);
    wire.send(words("GET large"));
    // What the proxy could not fetch is asked over the client's own link, which is cut as well.
    match wire.try_answer() {
        Ok(answer) => assert!(show(&answer).starts_with(NO_REDIS), "{}", show(&answer)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
    stage.relay.resume();
    await_ready(&stage.proxy);
    let mut wire = stage.connect();
    for _ in 0..2 {
        assert_eq!(wire.ask_line("GET large"), bulk(&value));
    }
    // Lost once only, it is asked for again.
    stage.redis.command(&["SET", "other", &value]);
    stage.relay.cut_once();
    let answer = eventually("the value again", || {
        let answer = wire.ask_line("GET other");
        (!answer.starts_with(b"-")).then_some(answer)
    });
    assert_eq!(answer, bulk(&value));
}

#[test]
fn without_redis_commands_are_refused_and_the_connection_stays() {
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    let mut wire = Wire::connect(proxy.resp_address());
    for line in ["GET key", "SET key value", "PING", "LRANGE list 0 -1", "GET key"] {
        let told = wire.told_line(line);
        assert!(told.starts_with(NO_REDIS), "{line}: {told}");
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
        (wire.told_line("SET key value") == "+OK\\r\\n").then_some(())
    });
    assert_eq!(wire.told_line("GET key"), "$5\\r\\nvalue\\r\\n");
    assert_eq!(wire.told_line("GET absent"), "$-1\\r\\n");
}

#[test]
fn what_belongs_to_a_transaction_that_was_refused_is_not_done_by_itself() {
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    let mut wire = Wire::connect(proxy.resp_address());
    wire.send([words("MULTI"), words("SET a 1")].concat());
    for _ in 0..2 {
        // Refused, or the end.
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
fn a_client_that_reads_from_memory_outlives_its_idle_link() {
    if is_straight() {
        return;
    }
    let redis = RedisServer::builder().arguments(&["--timeout", "1"]).start();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    await_ready(&proxy);
    let mut wire = Wire::connect(proxy.resp_address());
    wire.ask_line("SET key value");
    let begun = Instant::now();
    // Redis looks once a second who has been silent for longer than one.
    while begun.elapsed() < Duration::from_millis(3500) {
        assert_eq!(wire.told_line("GET key"), "$5\\r\\nvalue\\r\\n", "after {:?}", begun.elapsed());
    }
    assert_eq!(wire.told_line("SET key other"), "+OK\\r\\n");
}

#[test]
fn what_was_said_last_is_done_though_nobody_waits_for_the_answer() {
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
fn a_redis_that_goes_takes_along_who_has_a_state_there_and_nobody_else() {
    let Some(stage) = Stage::start("cache.stale_if_error = \"1h\"") else { return };
    stage.proxy.expect_log(DOWN);
    stage.redis.command(&["SET", "key", "value"]);
    let (mut reader, mut writer) = (stage.connect(), stage.connect());
    assert_eq!(reader.told_line("GET key"), "$5\\r\\nvalue\\r\\n");
    assert_eq!(writer.told_line("SET other 1"), "+OK\\r\\n");
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
    let told = writer.told_line("SET other 2");
    assert!(told.starts_with(NO_REDIS), "{told}");
    // A value that is cached may stand in; nothing else may.
    let told = eventually("the reader is told something", || Some(reader.told_line("GET key")));
    assert!(told == "$5\\r\\nvalue\\r\\n" || told.starts_with(NO_REDIS), "{told}");
    let told = reader.told_line("SET key 2");
    assert!(told.starts_with(NO_REDIS), "{told}");
    stage.relay.resume();
    await_ready(&stage.proxy);
    stage.redis.command(&["SET", "key", "new"]);
    assert_eq!(reader.told_line("SET more 1"), "+OK\\r\\n");
    assert_eq!(reader.told_line("GET key"), "$3\\r\\nnew\\r\\n");
}

#[test]
fn a_client_that_redis_hangs_up_on_loses_what_it_had_there_and_is_told() {
    let Some(stage) = Stage::start("") else { return };
    for (state, is_lost) in
        [("SET key value", false), ("SELECT 1", true), ("WATCH key", true), ("MULTI", true)]
    {
        let (mut one, mut other) = (stage.connect(), stage.connect());
        let id = show(&one.ask_line("CLIENT ID"));
        let id = id.trim_start_matches(':').trim_end_matches("\\r\\n");
        one.ask_line(state);
        assert_eq!(other.told_line("SET other value"), "+OK\\r\\n");
        stage.redis.command(&["CLIENT", "KILL", "ID", id]);
        if is_lost {
            assert_eq!(show(&one.rest()), "", "{state}");
        } else {
            assert_eq!(one.told_line("GET key"), "$5\\r\\nvalue\\r\\n", "{state}");
        }
        assert_eq!(other.told_line("GET other"), "$5\\r\\nvalue\\r\\n");
    }
}

#[test]
fn a_stop_lets_what_was_sent_be_answered() {
    const COMMANDS: u32 = 1000;
    const CLIENTS: u32 = 4;
    let Some(stage) = Stage::start("") else { return };
    let mut wires: Vec<_> = (0..CLIENTS).map(|_| stage.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.told_line("SET key value"), "+OK\\r\\n");
        assert_eq!(wire.told_line("GET key"), "$5\\r\\nvalue\\r\\n");
    }
    stage.relay.stall();
    for wire in &mut wires {
        for number in 0..COMMANDS / 2 {
            wire.send([words(&format!("ECHO {number}")), words("GET key")].concat());
        }
    }
    await_metric(
        &stage.proxy,
        "commands_total{command=\"echo\"}",
        f64::from(CLIENTS * COMMANDS / 2),
    );
    stage.proxy.signal(Signal::TERM);
    stage.proxy.wait_for_log(|line| line.says("stopping"));
    let ended = within(ENOUGH, || {
        stage.proxy.log_lines().iter().any(|line| line.says("stopped")).then_some(())
    });
    assert_eq!(ended, None, "it ended without what it owes");
    stage.relay.resume();
    for wire in &mut wires {
        for number in 0..COMMANDS / 2 {
            assert_eq!(wire.answer(), bulk(number.to_string()));
            assert_eq!(wire.answer(), bulk("value"));
        }
        assert_eq!(show(&wire.rest()), "");
    }
    stage.proxy.finish();
}

#[test]
fn a_stop_ends_idle_connections_and_subscribers_at_once() {
    let Some(stage) = Stage::start("daemon.drain_timeout = \"20s\"") else { return };
    let (mut idle, mut linked, mut subscriber) =
        (stage.connect(), stage.connect(), stage.connect());
    idle.ask_line("GET key");
    linked.ask_line("SET key value");
    subscriber.ask_line("SUBSCRIBE news");
    let begun = Instant::now();
    stage.proxy.signal(Signal::TERM);
    for wire in [&mut idle, &mut linked, &mut subscriber] {
        assert_eq!(show(&wire.rest()), "");
    }
    stage.proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}

#[test]
fn a_stop_cuts_who_waits_for_ever_when_its_time_is_over() {
    let Some(stage) = Stage::start("daemon.drain_timeout = \"1s\"") else { return };
    stage.proxy.expect_log(CUT);
    let mut waiting = stage.connect();
    waiting.send(words("BLPOP list 0"));
    eventually("it waits", || (stage.links() == 1).then_some(()));
    stage.proxy.signal(Signal::TERM);
    assert_eq!(show(&waiting.rest()), "");
    stage.proxy.finish();
    // Nobody takes from the list any more.
    eventually("its link is gone", || {
        let list = stage.redis.command(&["CLIENT", "LIST"]);
        (!format!("{list:?}").contains("cmd=blpop")).then_some(())
    });
    stage.redis.command(&["RPUSH", "list", "job"]);
    assert_eq!(stage.redis.command(&["LLEN", "list"]), redis::Value::Int(1));
}

#[test]
fn a_reload_leaves_connections_as_they_are() {
    let Some(stage) = Stage::start("") else { return };
    let (mut transaction, mut subscriber, mut reader) =
        (stage.connect(), stage.connect(), stage.connect());
    for line in ["SET key value", "GET key", "MULTI", "INCR n"] {
        transaction.ask_line(line);
    }
    subscriber.ask_line("SUBSCRIBE news");
    let shorter = stage.config.replace("cache.ttl = \"1h\"", "cache.ttl = \"30m\"");
    assert_ne!(shorter, stage.config);
    for config in [&shorter, &stage.config] {
        reader.send(words("GET key").repeat(100));
        assert_eq!(stage.proxy.reload(config), Reload::Reloaded);
        assert!(reader.answers(100).iter().all(|answer| *answer == bulk("value")));
    }
    // What needs a restart is refused, and changes nothing.
    stage.proxy.expect_log("config refused");
    let other = format!("{}\nresp.max_bulk = \"1MiB\"", stage.config);
    assert_eq!(stage.proxy.reload(&other), Reload::Refused);
    assert_eq!(transaction.told_line("GET key"), "+QUEUED\\r\\n");
    assert_eq!(transaction.told_line("EXEC"), "*2\\r\\n:1\\r\\n$5\\r\\nvalue\\r\\n");
    assert_eq!(reader.told_line("PUBLISH news hello"), ":1\\r\\n");
    assert_eq!(
        show(&subscriber.answer()),
        "*3\\r\\n$7\\r\\nmessage\\r\\n$4\\r\\nnews\\r\\n$5\\r\\nhello\\r\\n"
    );
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
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
    assert_eq!(stage.connect().told_line("GET key"), "$5\\r\\nvalue\\r\\n");
}

#[test]
fn who_says_no_more_is_answered_to_the_end() {
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
