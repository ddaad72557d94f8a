//! Limits of a RESP client.
//!
//! Promise: every resource of one client is bounded, and the reply at the bound is in the words of
//! Redis.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::env::number;
use crate::support::memory::resident;
use crate::support::redis_server::{RedisServer, RedisServerBuilder};
use crate::support::resp_client::{RespClient, bulk, command, show, words};
use crate::support::resp_pair::{
    AS_READER, LASTING, READER_AND_OTHER, RespPair, is_straight, resp_config,
};
use crate::support::serving::{await_metric, metric};
use crate::support::{Proxy, eventually, within};

const COMMANDS: u64 = 1_000_000;
const MEBIBYTE: u64 = 1 << 20;

/// Starts both paths, the proxy with these settings on top; returns nothing in a run without a
/// proxy.
fn limited(settings: &str) -> Option<RespPair> {
    (!is_straight()).then(|| RespPair::between(|server| server, &format!("{LASTING}\n{settings}")))
}

#[test]
fn connection_beyond_the_limit_is_rejected() {
    let Some(ways) = limited("resp.max_connections = 3") else { return };
    let proxy = ways.proxy().unwrap();
    let mut wires: Vec<_> = (0..3).map(|_| RespClient::connect(ways.through())).collect();
    for wire in &mut wires {
        assert_eq!(wire.reply_to("PING"), "+PONG\\r\\n");
    }
    let mut refused = RespClient::connect(ways.through());
    assert_eq!(show(&refused.rest()), "-ERR max number of clients reached\\r\\n");
    await_metric(proxy, r#"connections{front_end="resp"}"#, 3.0);
    assert!(metric(proxy, r#"connections_refused_total{front_end="resp"}"#) >= 1.0);
    // A closed connection makes room for another.
    drop(wires.pop());
    await_metric(proxy, r#"connections{front_end="resp"}"#, 2.0);
    assert_eq!(RespClient::connect(ways.through()).reply_to("PING"), "+PONG\\r\\n");
}

#[test]
fn silent_client_is_closed_unless_a_reply_is_pending() {
    let Some(ways) = limited("resp.idle_timeout = \"1s\"") else { return };
    let (mut idle, mut waiting) =
        (RespClient::connect(ways.through()), RespClient::connect(ways.through()));
    waiting.send(words("BLPOP list 0"));
    let begun = Instant::now();
    assert_eq!(idle.reply_to("GET key"), "$-1\\r\\n");
    assert_eq!(show(&idle.rest()), "");
    assert!(begun.elapsed() >= Duration::from_millis(990), "closed after {:?}", begun.elapsed());
    // Longer than any idle connection may live.
    eventually("only who waits is left", || {
        (metric(ways.proxy().unwrap(), r#"connections{front_end="resp"}"#) < 1.5).then_some(())
    });
    assert_eq!(RespClient::connect(ways.through()).reply_to("RPUSH list job"), ":1\\r\\n");
    assert_eq!(show(&waiting.answer()), "*2\\r\\n$4\\r\\nlist\\r\\n$3\\r\\njob\\r\\n");
}

#[test]
fn slow_reader_is_not_idle() {
    let Some(ways) = limited("resp.idle_timeout = \"2s\"") else { return };
    let value = vec![b'v'; 16 << 20];
    let mut wire = RespClient::connect(ways.through());
    wire.query(&[b"SET", &b"key"[..], &value]);
    // First from Redis, then from memory.
    for _ in 0..2 {
        wire.send(words("GET key"));
        // Longer than the idle timeout, with most of the value in flight.
        assert_eq!(within(Duration::from_secs(4), || None::<()>), None);
        assert_eq!(wire.answer(), bulk(&value));
    }
}

#[test]
fn excess_fetches_fall_back_to_redis() {
    const KEYS: usize = 500;
    let Some(ways) = limited("redis.max_fetches = 1\nredis.max_queue = 1") else { return };
    ways.behind().command(&["SET", "k:7", "seven"]);
    let mut wires: Vec<_> = (0..2).map(|_| RespClient::connect(ways.through())).collect();
    let reads: Vec<u8> = (0..KEYS).flat_map(|number| words(&format!("GET k:{number}"))).collect();
    for wire in &mut wires {
        wire.send(&reads);
    }
    for wire in &mut wires {
        for number in 0..KEYS {
            let expected = if number == 7 { "$5\\r\\nseven\\r\\n" } else { "$-1\\r\\n" };
            assert_eq!(show(&wire.answer()), expected, "k:{number}");
        }
    }
}

#[test]
fn slow_reader_loses_no_cached_read() {
    let Some(ways) = limited("resp.max_output_buffer = \"64KiB\"") else { return };
    let item = vec![b'i'; 60_000];
    for _ in 0..70 {
        ways.behind().command(&[b"RPUSH", &b"list"[..], &item]);
    }
    ways.behind().command(&["SET", "k", "value"]);
    RespClient::connect(ways.through()).query_line("GET k");
    for number in 0..20 {
        let mut wire = RespClient::connect(ways.through());
        let range = format!("LRANGE list 0 {}", 70 - number);
        wire.send([words("SET own 1"), words(&range)].concat());
        assert_eq!(show(&wire.answer()), "+OK\\r\\n");
        wire.send(words("GET k"));
        // Both buffers are full now.
        assert_eq!(within(Duration::from_millis(50), || None::<()>), None);
        assert!(wire.answer().starts_with(b"*"));
        assert_eq!(wire.answer(), bulk("value"), "after {range}");
    }
}

#[test]
fn oversized_argument_closes_the_connection() {
    let Some(ways) = limited("resp.max_bulk = \"1MiB\"") else { return };
    let most = vec![b'x'; 1 << 20];
    let mut wire = RespClient::connect(ways.through());
    assert_eq!(show(&wire.query(&[b"SET", &b"key"[..], &most])), "+OK\\r\\n");
    assert_eq!(wire.query_line("GET key"), bulk(&most));
    wire.send(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1048577\r\n");
    assert_eq!(show(&wire.answer()), "-ERR Protocol error: invalid bulk length\\r\\n");
    assert_eq!(wire.is_closed(), Some(true));
    assert_eq!(RespClient::connect(ways.through()).query_line("GET key"), bulk(&most));
}

#[test]
fn too_many_arguments_close_the_connection() {
    let Some(ways) = limited("resp.max_arguments = 5") else { return };
    let mut wire = RespClient::connect(ways.through());
    assert_eq!(wire.reply_to("MSET a 1 b 2"), "+OK\\r\\n");
    wire.send(words("MGET a b a b a"));
    assert_eq!(show(&wire.answer()), "-ERR Protocol error: invalid multibulk length\\r\\n");
    assert_eq!(wire.is_closed(), Some(true));
}

#[test]
fn oversized_command_is_streamed() {
    let Some(ways) = limited("resp.max_query_buffer = \"256KiB\"") else { return };
    let (large, keys) =
        (vec![b'x'; 8 << 20], (0..20_000).map(|key| format!("key:{key}")).collect::<Vec<_>>());
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        let many: Vec<_> = ["MSET"]
            .into_iter()
            .chain(keys.iter().flat_map(|key| [key.as_str(), "value"]))
            .collect();
        let all: Vec<_> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        let mut received = vec![
            wire.query(&[b"SET", &b"large"[..], &large]),
            wire.query_line("GET large"),
            wire.query_line("GET large"),
        ];
        received.extend([wire.query(&many), wire.query_line("GET key:19999"), wire.query(&all)]);
        // Pipelined between reads from memory.
        let both = [
            words("GET large"),
            command(&[b"SET", &b"large"[..], &large[1..]]),
            words("STRLEN large"),
            command(&all),
        ];
        wire.send(both.concat());
        received.extend(wire.answers(4));
        received.push(wire.query_line("STRLEN large"));
        received
    });
}

#[test]
fn million_commands_may_precede_the_first_read() {
    let ways = RespPair::start();
    let count = number("RESP_PIPELINE").unwrap_or(COMMANDS);
    let mut wire = RespClient::connect(ways.through());
    wire.query_line("SET k value");
    let begun = Instant::now();
    for _ in 0..count / 1000 {
        wire.send("GET k\r\n".repeat(1000));
    }
    let sent = begun.elapsed();
    wire.send(words("ECHO end"));
    for number in 0..count {
        assert_eq!(wire.answer(), b"$5\r\nvalue\r\n", "answer {number}");
    }
    assert_eq!(wire.answer(), bulk("end"));
    eprintln!("{count} commands sent in {sent:?}, answered in {:?}", begun.elapsed());
}

#[test]
fn other_clients_have_turns_within_a_long_pipeline() {
    /// A tenth of the turns that the pipeline takes.
    const MIN_READS: u64 = 10;
    let redis = RedisServer::start();
    let config = resp_config(&redis.url(), LASTING);
    let config = config.replace("worker_threads = 2", "worker_threads = 1");
    let proxy = Proxy::start(&config);
    let (mut long, mut other) =
        (RespClient::connect(proxy.resp_address()), RespClient::connect(proxy.resp_address()));
    long.query_line("SET k value");
    other.query_line("GET k");
    long.send([&*words("GET k").repeat(100_000), &words("ECHO end")].concat());
    let is_answered = AtomicBool::new(false);
    let reads = thread::scope(|scope| {
        scope.spawn(|| {
            (0..100_000).for_each(|number| {
                assert_eq!(long.answer(), b"$5\r\nvalue\r\n", "answer {number}");
            });
            is_answered.store(true, Relaxed);
        });
        let mut reads = 0;
        while !is_answered.load(Relaxed) {
            assert_eq!(other.reply_to("GET k"), "$5\\r\\nvalue\\r\\n");
            reads += 1;
        }
        reads
    });
    assert!(reads >= MIN_READS, "{reads} reads beside 100,000 commands");
}

#[test]
fn unread_replies_take_no_memory() {
    const LIMIT: u64 = 4 * MEBIBYTE;
    let Some(ways) = limited("resp.max_output_buffer = \"4MiB\"") else { return };
    let proxy = ways.proxy().unwrap();
    // Small enough to be copied, and more in total than any buffer could hold.
    let value = "v".repeat(8000);
    RespClient::connect(ways.through()).query(&["SET", "key", &value]);
    RespClient::connect(ways.through()).query(&["RPUSH", "list", &value]);
    for line in ["GET key", "LRANGE list 0 -1"] {
        let mut wire = RespClient::connect(ways.through());
        let expected = wire.query_line(line);
        let count = 200 * usize::try_from(MEBIBYTE).unwrap() / expected.len();
        let mut sender = wire.sender();
        let before = resident(proxy.pid());
        let sending = thread::spawn(move || sender.write_all(&words(line).repeat(count)));
        let stood_still = stands_still(proxy);
        let most = resident(proxy.pid()).saturating_sub(before);
        for number in 0..count {
            assert_eq!(wire.answer().len(), expected.len(), "answer {number} to {line}");
        }
        sending.join().unwrap().unwrap();
        let commands = metric(proxy, "commands_total{command=\"get\"}")
            + metric(proxy, "commands_total{command=\"lrange\"}");
        eprintln!(
            "{line}: {count} answers, at most {most} bytes more, {stood_still} of {commands} \
                commands taken up at first"
        );
        // Twice the limit, for the buffers of both connections and the reserve of the allocator.
        assert!(most < 2 * LIMIT + 24 * MEBIBYTE, "{line}: {most} bytes more than before");
    }
}

#[test]
fn fetches_for_a_stalled_reader_are_bounded() {
    const KEYS: usize = 300;
    let Some(ways) = limited("resp.max_output_buffer = \"4MiB\"\ncache.capacity = 10") else {
        return;
    };
    let (proxy, value) = (ways.proxy().unwrap(), vec![b'v'; 1 << 20]);
    for number in 0..KEYS {
        ways.behind().command(&[b"SET", format!("k:{number}").as_bytes(), &value]);
    }
    let mut wire = RespClient::connect(ways.through());
    let before = resident(proxy.pid());
    wire.send((0..KEYS).flat_map(|number| words(&format!("GET k:{number}"))).collect::<Vec<_>>());
    let mut most = 0;
    within(Duration::from_secs(2), || {
        most = most.max(resident(proxy.pid()).saturating_sub(before));
        None::<()>
    });
    for number in 0..KEYS {
        assert_eq!(wire.answer().len(), bulk(&value).len(), "k:{number}");
    }
    eprintln!("{most} bytes more");
    assert!(most < 150 * MEBIBYTE, "{most} bytes more than before");
}

/// Waits until no more commands are accepted; returns the number.
fn stands_still(proxy: &Proxy) -> f64 {
    let taken = || {
        metric(proxy, "commands_total{command=\"get\"}")
            + metric(proxy, "commands_total{command=\"lrange\"}")
    };
    let (mut last, mut since) = (taken(), Instant::now());
    eventually("no more commands are taken up", || {
        let now = taken();
        if now > last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(500)).then_some(now)
    })
}

/// Starts both paths with users of which the default one needs a password.
fn locked() -> Option<RespPair> {
    let users = [&["--requirepass", "default-secret"], &READER_AND_OTHER[..]].concat();
    let settings = format!("{LASTING}\n{AS_READER}");
    (!is_straight()).then(|| RespPair::between(|server| server.arguments(&users), &settings))
}

/// Returns a read of this many keys.
fn read_of(keys: usize) -> Vec<u8> {
    let keys: Vec<_> = (0..keys).map(|number| format!("key:{number}")).collect();
    command(&["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect::<Vec<_>>())
}

#[test]
fn client_before_its_login_meets_the_limits_of_redis() {
    let Some(ways) = locked() else { return };
    let login = words("AUTH reader reader-secret");
    for input in [
        b"*11\r\n".to_vec(),
        b"*100\r\n".to_vec(),
        b"*2147483648\r\n".to_vec(),
        b"*1\r\n$16385\r\n".to_vec(),
        b"*2\r\n$3\r\nGET\r\n$16385\r\n".to_vec(),
        b"*1\r\n$536870913\r\n".to_vec(),
        b"PING\r\n*11\r\n".to_vec(),
        b"NONESUCH\r\n*11\r\n".to_vec(),
        [&words("AUTH reader wrong")[..], b"*11\r\n"].concat(),
        [&login[..], &read_of(10), &words("RESET"), b"*11\r\n"].concat(),
        [&login[..], &words("RESET"), b"*1\r\n$16385\r\n"].concat(),
    ] {
        let received = ways.same(|address| {
            let mut wire = RespClient::connect(address);
            wire.send(&input);
            show(&wire.rest())
        });
        assert!(received.ends_with("length\\r\\n"), "{}: {received}", show(&input));
    }
}

#[test]
fn client_within_the_limits_needs_only_its_login() {
    let Some(ways) = locked() else { return };
    let (most, more) = ("x".repeat(16 << 10), "x".repeat((16 << 10) + 1));
    for (input, answers) in [
        (read_of(9), 1),
        (command(&["ECHO", &most]), 1),
        (format!("MGET{}\r\n", " key".repeat(20)).into_bytes(), 1),
        (format!("ECHO {more}\r\n").into_bytes(), 1),
        ([words("AUTH reader reader-secret"), read_of(10)].concat(), 2),
        ([words("AUTH reader reader-secret"), command(&["ECHO", &more])].concat(), 2),
        ([words("AUTH reader reader-secret"), words("PING"), read_of(200)].concat(), 3),
    ] {
        ways.same(|address| {
            let mut wire = RespClient::connect(address);
            wire.send(&input);
            let received: Vec<_> = wire.answers(answers).iter().map(|one| show(one)).collect();
            (received, wire.is_closed())
        });
    }
}

#[test]
fn client_without_need_of_a_login_has_no_such_limits() {
    let more = "x".repeat((16 << 10) + 1);
    for settings in ["", AS_READER] {
        let users = |server: RedisServerBuilder| server.arguments(&READER_AND_OTHER);
        let ways = RespPair::between(users, &format!("{LASTING}\n{settings}"));
        for input in [read_of(10), read_of(200), command(&["ECHO", &more])] {
            ways.same(|address| {
                let mut wire = RespClient::connect(address);
                wire.send(&input);
                (wire.answer(), wire.is_closed())
            });
        }
    }
}

#[test]
fn read_of_many_cached_keys_opens_no_connection() {
    let Some(ways) = limited("") else { return };
    assert_eq!(RespClient::connect(ways.through()).reply_to_words(&["GET", "key:1"]), "$-1\\r\\n");
    let before = ways.behind().calls("mget");
    let mut wire = RespClient::connect(ways.through());
    for _ in 0..2 {
        wire.send(read_of(20));
        assert!(wire.answer().starts_with(b"*20\r\n"));
    }
    assert_eq!(ways.behind().calls("mget"), before);
}
