//! Reads of hashes, lists, sets, sorted sets and streams.
//!
//! Promise: their replies come from memory, as Redis would send them, until a key of them changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::memory::resident;
use crate::support::redis_server::RedisServerBuilder;
use crate::support::resp_client::{RespClient, bulk, command, show};
use crate::support::resp_pair::{LASTING, RespPair, resp_config};
use crate::support::{Proxy, RedisServer, eventually};

/// Fills a server with one key of each type.
fn fill(server: &RedisServer) {
    for line in [
        "HSET h a 1 b 2",
        "RPUSH l x y z",
        "SADD s 1 2 3",
        "SADD s2 2 3 4",
        "ZADD z 1.5 m -inf n",
        "XADD x 1-1 f v",
        "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
        "SET k string",
    ] {
        server.command(&line.split(' ').collect::<Vec<_>>());
    }
}

/// Returns how often the Redis behind the proxy ran a command.
fn calls(ways: &RespPair, name: &str) -> u64 {
    ways.behind().calls(&name.to_lowercase())
}

/// Reads, each of which costs Redis nothing when it is repeated.
const READS: [&str; 24] = [
    "HGET h a",
    "HMGET h a none",
    "HGETALL h",
    "HEXISTS h a",
    "HLEN h",
    "HKEYS h",
    "HVALS h",
    "LRANGE l 0 -1",
    "LLEN l",
    "LINDEX l 1",
    "SMEMBERS s",
    "SISMEMBER s 2",
    "SCARD s",
    "SINTER s s2",
    "ZRANGE z 0 -1 WITHSCORES",
    "ZSCORE z m",
    "ZRANK z m",
    "XRANGE x - +",
    "XLEN x",
    "GEOPOS g Palermo none",
    "GEODIST g Palermo Catania km",
    "TYPE k",
    "BITCOUNT k",
    "SORT_RO l ALPHA",
];

#[test]
fn repeated_read_costs_redis_nothing() {
    // Otherwise some replies would follow from those to HGETALL and SMEMBERS.
    let settings = format!("{LASTING}\ncache.hash_fields = 0");
    let ways = RespPair::between(|server| server, &settings);
    let Some(proxy) = ways.proxy() else { return };
    ways.servers().into_iter().for_each(fill);
    let mut straight =
        [RespClient::connect(ways.straight()), RespClient::connect_resp3(ways.straight())];
    let mut through =
        [RespClient::connect(ways.through()), RespClient::connect_resp3(ways.through())];
    for line in READS {
        let words: Vec<_> = line.split(' ').collect();
        through[0].query(&words);
        let before = calls(&ways, words[0]);
        assert!(before > 0, "{line} never reached Redis");
        for (straight, through) in straight.iter_mut().zip(&mut through) {
            assert_eq!(through.query(&words), straight.query(&words), "{line}");
        }
        assert_eq!(calls(&ways, words[0]), before, "{line} reached Redis again");
    }
    let metrics = proxy.metrics();
    for (kind, least) in
        [("hash", 14.0), ("list", 8.0), ("set", 6.0), ("zset", 6.0), ("multi", 2.0)]
    {
        let labels = format!("{{front_end=\"resp\",kind=\"{kind}\",outcome=\"hit\"}}");
        let hits = metrics.value(&format!("redis_proxy_reads_total{labels}")).unwrap();
        assert!(hits >= least, "{hits} hits of kind {kind}");
    }
    let entries = metrics.value("redis_proxy_replies_entries").unwrap();
    assert!(entries > 20.0, "{entries} replies are kept");
}

/// Returns the number in an integer reply.
fn number(reply: &[u8]) -> i64 {
    let text = std::str::from_utf8(reply).unwrap();
    text.strip_prefix(':').and_then(|text| text.trim_end().parse().ok()).unwrap()
}

#[test]
fn time_to_live_is_computed_from_memory() {
    let ways = RespPair::between(|server| server, LASTING);
    let Some(proxy) = ways.proxy() else { return };
    let redis = ways.behind();
    let mut client = RespClient::connect(ways.through());
    redis.command(&["SET", "k", "v", "PX", "100000"]);
    let mut straight = redis.connection();
    let mut pttl = || -> i64 { redis::cmd("PTTL").arg("k").query(&mut straight).unwrap() };
    for (line, unit) in [("PTTL k", 1), ("TTL k", 1000)] {
        let fetching = Instant::now();
        client.query_line(line);
        let longest_fetch = i64::try_from(fetching.elapsed().as_millis()).unwrap() + 1;
        for _ in 0..20 {
            let before = pttl();
            let computed = ways.expect_from_memory(1.0, || number(&client.query_line(line)));
            let after = pttl() - longest_fetch;
            let [least, most] =
                [after, before].map(|time| if unit == 1 { time } else { (time + 500) / 1000 });
            assert!((least..=most).contains(&computed), "{line}: {computed} of {least} to {most}");
        }
    }
    let await_reply = |line: &str, expected: &str| {
        let mut client = RespClient::connect(proxy.resp_address());
        let is_expected = || (client.reply_to(line) == expected).then_some(());
        eventually(&format!("{line} is {expected}"), is_expected);
        client
    };
    redis.command(&["PERSIST", "k"]);
    for (line, expected) in [("PTTL k", ":-1\\r\\n"), ("TTL absent", ":-2\\r\\n")] {
        let mut client = await_reply(line, expected);
        ways.expect_from_memory(1.0, || assert_eq!(client.reply_to(line), expected, "{line}"));
    }
    redis.command(&["PEXPIRE", "k", "50"]);
    await_reply("PTTL k", ":-2\\r\\n");
}

/// Reads that follow from a read of the whole hash or set.
const DERIVED: [&str; 12] = [
    "HGET h a",
    "HGET h none",
    "HMGET h b none a b",
    "HEXISTS h a",
    "HEXISTS h none",
    "HKEYS h",
    "HVALS h",
    "HSTRLEN h a",
    "HSTRLEN h none",
    "SISMEMBER s 2",
    "SMISMEMBER s 9 2",
    "SCARD s",
];

#[test]
fn kept_hash_or_set_answers_reads_of_its_parts() {
    let ways = RespPair::between(|server| server, LASTING);
    if ways.proxy().is_none() {
        return;
    }
    ways.servers().into_iter().for_each(fill);
    let mut straight =
        [RespClient::connect(ways.straight()), RespClient::connect_resp3(ways.straight())];
    let mut through =
        [RespClient::connect(ways.through()), RespClient::connect_resp3(ways.through())];
    for whole in [["HGETALL", "h"], ["SMEMBERS", "s"]] {
        through[0].query(&whole);
    }
    // The first of each command goes to Redis, which might refuse it.
    for line in DERIVED {
        let words: Vec<_> = line.split(' ').collect();
        through[0].query(&[&words[..1], &["other"], &words[2..]].concat());
        let before = calls(&ways, words[0]);
        for (straight, through) in straight.iter_mut().zip(&mut through) {
            assert_eq!(through.query(&words), straight.query(&words), "{line}");
        }
        assert_eq!(calls(&ways, words[0]), before, "{line} reached Redis");
    }
    // HLEN counts expired fields, which HGETALL hides.
    through[0].query(&["HLEN", "h"]);
    assert_eq!(calls(&ways, "HLEN"), 1);
    ways.behind().command(&["HSET", "h", "a", "changed"]);
    let read = ["HGET", "h", "a"];
    let is_seen = |client: &mut RespClient| client.query(&read) == bulk("changed");
    eventually("the change is seen", || is_seen(&mut through[0]).then_some(()));
}

#[test]
fn command_that_redis_refuses_is_not_derived() {
    let redis = RedisServer::start();
    fill(&redis);
    let rules = "on >word ~* +@all -hget -hkeys -sismember -scard";
    let user = [&["ACL", "SETUSER", "app"][..], &rules.split(' ').collect::<Vec<_>>()].concat();
    redis.command(&user);
    let login = "redis.username = \"app\"\nredis.password = \"word\"\n";
    let proxy = Proxy::start(&resp_config(&redis.url(), &format!("{LASTING}\n{login}")));
    let mut client = RespClient::connect(proxy.resp_address());
    client.query(&["AUTH", "app", "word"]);
    for line in ["HGETALL h", "SMEMBERS s", "HMGET h a", "HMGET h b"] {
        assert!(!client.query_line(line).starts_with(b"-"), "{line}");
    }
    for line in ["HGET h a", "HKEYS h", "SISMEMBER s 2", "SCARD s"] {
        for _ in 0..3 {
            let reply = client.query_line(line);
            assert!(reply.starts_with(b"-NOPERM"), "{line}: {}", show(&reply));
        }
    }
}

/// Returns the number in a reply such as `:3`, `*3` or `$3`.
fn length(reply: &[u8]) -> usize {
    let line = reply.split(|byte| *byte == b'\r').next().unwrap_or_default();
    str::from_utf8(&line[1..]).unwrap().parse().unwrap()
}

/// A read must not show an older state than a read of the same key before it.
#[test]
fn read_is_never_older_than_the_pending_read_before_it() {
    let ways = RespPair::between(RedisServerBuilder::tcp, LASTING);
    if ways.proxy().is_none() {
        return;
    }
    let redis = ways.behind();
    let mut client = RespClient::connect(ways.through());
    let mut writer = RespClient::connect(redis.tcp_address());
    for round in 0..10 {
        let key = format!("list{round}");
        writer.query(&["RPUSH", &key, "x"]);
        client.query(&["LRANGE", &key, "0", "-1"]);
        // Redis runs the write before the first of the two reads, and has pushed nothing when they
        // are decided.
        redis.pause();
        writer.send(command(&["RPUSH", &key, "x"]));
        client.send([command(&["LLEN", &key]), command(&["LRANGE", &key, "0", "-1"])].concat());
        redis.resume();
        writer.answer();
        let replies = client.answers(2);
        assert!(length(&replies[1]) >= length(&replies[0]), "round {round}");
    }
}

#[test]
fn read_behind_one_that_is_forwarded_is_not_older() {
    let ways = RespPair::between(
        RedisServerBuilder::tcp,
        &format!("{LASTING}\ncache.max_reply = \"1KiB\""),
    );
    if ways.proxy().is_none() {
        return;
    }
    let redis = ways.behind();
    let mut client = RespClient::connect(ways.through());
    let mut writer = RespClient::connect(redis.tcp_address());
    let large = "x".repeat(1000);
    let until = Instant::now() + Duration::from_secs(2);
    for round in 0.. {
        let key = format!("list{round}");
        writer.query(&["RPUSH", &key, &large, &large]);
        // Whether the write comes between the two depends on the machine.
        client.send([command(&["LRANGE", &key, "0", "-1"]), command(&["LLEN", &key])].concat());
        writer.query(&["RPUSH", &key, "x"]);
        let replies = client.answers(2);
        assert!(length(&replies[1]) >= length(&replies[0]), "round {round}");
        if Instant::now() > until {
            break;
        }
    }
}

#[test]
fn count_that_redis_stores_is_seen_by_the_next_read() {
    for coherence in ["tracking", "ttl"] {
        let settings = format!("cache.ttl = \"1h\"\ncache.coherence = \"{coherence}\"");
        let ways = RespPair::between(|server| server, &settings);
        if ways.proxy().is_none() {
            return;
        }
        let mut client = RespClient::connect(ways.through());
        for round in 0..20 {
            let key = format!("log{round}");
            ways.behind().command(&["PFADD", &key, "a", "b"]);
            client.query(&["GET", &key]);
            let words = [["GET", &key], ["PFCOUNT", &key], ["GET", &key]];
            client.send(words.map(|words| command(&words)).concat());
            let replies = client.answers(3);
            assert_eq!(replies[1], b":2\r\n", "{coherence}");
            assert_ne!(replies[0], replies[2], "{coherence}: PFCOUNT has changed the value");
        }
    }
}

#[test]
fn large_hash_answers_no_reads_of_its_parts() {
    let ways = RespPair::between(|server| server, &format!("{LASTING}\ncache.hash_fields = 1"));
    if ways.proxy().is_none() {
        return;
    }
    fill(ways.behind());
    let mut client = RespClient::connect(ways.through());
    client.query(&["HGETALL", "h"]);
    client.query(&["HGET", "h", "a"]);
    assert_eq!(calls(&ways, "HGET"), 1);
}

#[test]
fn excepted_commands_are_never_answered_from_memory() {
    let except = "resp.cache_except = [\"HGET\", \"get\"]";
    let ways = RespPair::between(|server| server, &format!("{LASTING}\n{except}"));
    if ways.proxy().is_none() {
        return;
    }
    fill(ways.behind());
    let mut client = RespClient::connect(ways.through());
    for (read, expected) in [("HGET h a", 3), ("GET k", 3), ("HGETALL h", 1), ("STRLEN k", 3)] {
        let words: Vec<_> = read.split(' ').collect();
        let before = calls(&ways, words[0]);
        for _ in 0..3 {
            client.query(&words);
        }
        assert_eq!(calls(&ways, words[0]) - before, expected, "{read}");
    }
}

/// Commands of which Redis itself rejects most.
const BAD_INPUT: [&str; 44] = [
    "HGET h",
    "HGET h a b",
    "HGETALL",
    "HGETALL h a",
    "HMGET h",
    "LRANGE l 0",
    "LRANGE l x y",
    "LRANGE l 0 9223372036854775808",
    "LINDEX l x",
    "LPOS l x RANK 0",
    "LPOS l x COUNT -1",
    "SISMEMBER s",
    "ZRANGE z 0 -1 NOTHING",
    "ZRANGE z 0 -1 WITHSCORES BYLEX",
    "ZRANGEBYSCORE z x y",
    "ZRANK z m NOTHING",
    "ZCOUNT z (x 1",
    "ZLEXCOUNT z a b",
    "XRANGE x y z",
    "XRANGE x - + COUNT x",
    "GEODIST g Palermo Catania parsec",
    "GEOSEARCH g FROMMEMBER none BYRADIUS 1 km",
    "GETBIT k -1",
    "BITCOUNT k 0",
    "BITPOS k 2",
    "BITFIELD_RO k SET u8 0 1",
    "LCS k",
    "LCS k k LEN IDX",
    "SORT_RO l LIMIT 0",
    "SORT_RO z",
    "SINTER",
    "SINTER s s",
    "SINTER s k",
    "SUNION s s s2 s",
    "SINTERCARD 3 s s2",
    "SINTERCARD 0 s",
    "SINTERCARD -1 s",
    "SINTERCARD x s",
    "SINTERCARD 2 s s2 LIMIT -1",
    "ZUNION 2 z",
    "ZUNION 18446744073709551617 z",
    "ZINTER 2 z z WEIGHTS 1",
    "ZDIFF 1 z z",
    "TYPE",
];

#[test]
fn bad_input_gets_the_reply_of_redis_and_is_not_kept() {
    let ways = RespPair::between(|server| server, LASTING);
    ways.servers().into_iter().for_each(fill);
    let mut straight = RespClient::connect(ways.straight());
    let mut through = RespClient::connect(ways.through());
    let mut compare = |words: &[&str]| {
        let expected = straight.query(words);
        for _ in 0..3 {
            assert_eq!(through.query(words), expected, "{words:?}");
        }
        expected
    };
    let mut errors = 0;
    for line in BAD_INPUT {
        errors += usize::from(compare(&line.split(' ').collect::<Vec<_>>())[0] == b'-');
    }
    assert!(errors > 30, "{errors} errors");
    // Each command once for a key of another type, then for one of its own type.
    let of_wrong_type = ["HGETALL k", "LRANGE k 0 -1", "SMEMBERS k", "ZRANGE k 0 -1", "XLEN k"];
    for line in of_wrong_type {
        let error = compare(&line.split(' ').collect::<Vec<_>>());
        assert!(error.starts_with(b"-WRONGTYPE"), "{line}");
    }
    for write in ["HSET k f v", "RPUSH k e", "SADD k m", "ZADD k 1 m", "XADD k 1-1 f v"] {
        for server in ways.servers() {
            server.command(&["DEL", "k"]);
            server.command(&write.split(' ').collect::<Vec<_>>());
        }
        for line in of_wrong_type {
            let words: Vec<_> = line.split(' ').collect();
            let expected = straight.query(&words);
            eventually("the new type is seen", || {
                (through.query(&words) == expected).then_some(())
            });
        }
    }
}

#[test]
fn many_and_binary_keys_get_the_reply_of_redis() {
    let ways = RespPair::between(|server| server, LASTING);
    let binary: [&[u8]; 4] = [b"", b"\0", b"a\r\n$3\r\nb", b"\xff\xfe*2"];
    for server in ways.servers() {
        for key in binary {
            // One member, because each server has an order of its own for several.
            server.command(&[b"SADD", key, b"shared"]);
            server.command(&[b"HSET", &[b"h", key].concat()[..], key, key]);
        }
    }
    let many: Vec<Vec<u8>> = (0..10_000).map(|number| format!("s{number}").into_bytes()).collect();
    let mut reads: Vec<Vec<Vec<u8>>> = Vec::new();
    for key in binary {
        reads.push(vec![b"SINTER".to_vec(), key.to_vec(), binary[1].to_vec()]);
        reads.push(vec![b"HGETALL".to_vec(), [b"h", key].concat()]);
        reads.push(vec![b"HGET".to_vec(), [b"h", key].concat(), key.to_vec()]);
        reads.push(vec![b"SISMEMBER".to_vec(), key.to_vec(), key.to_vec()]);
    }
    reads.push([vec![b"SUNION".to_vec()], many.clone()].concat());
    reads.push([vec![b"SINTERCARD".to_vec(), b"10000".to_vec()], many.clone()].concat());
    reads.push([vec![b"PFCOUNT".to_vec()], many].concat());
    for protocol in [RespClient::connect, RespClient::connect_resp3] {
        let (mut straight, mut through) = (protocol(ways.straight()), protocol(ways.through()));
        for read in &reads {
            let expected = straight.query(read);
            for _ in 0..3 {
                assert_eq!(through.query(read), expected, "{}", String::from_utf8_lossy(&read[0]));
            }
        }
    }
}

#[test]
fn foreign_change_ends_the_reply() {
    let ways = RespPair::between(|server| server, LASTING);
    fill(ways.behind());
    let mut client = RespClient::connect(ways.through());
    for (read, write) in [
        ("HGETALL h", "HSET h c 3"),
        ("LRANGE l 0 -1", "LPUSH l w"),
        ("SINTER s s2", "SREM s2 3"),
        ("ZRANGE z 0 -1", "ZADD z 9 o"),
        ("XRANGE x - +", "XADD x 2-1 f v"),
        ("HGET none f", "HSET none f v"),
        ("TYPE k", "DEL k"),
    ] {
        let read: Vec<_> = read.split(' ').collect();
        let before = client.query(&read);
        ways.behind().command(&write.split(' ').collect::<Vec<_>>());
        eventually("the change is seen", || (client.query(&read) != before).then_some(()));
    }
}

#[test]
fn own_writes_of_every_type_are_read() {
    let ways = RespPair::between(|server| server, LASTING);
    let mut client = RespClient::connect(ways.through());
    let mut other = RespClient::connect(ways.through());
    for number in 0..300 {
        let field = number.to_string();
        client.query(&["HSET", "h", "f", &field]);
        assert_eq!(client.query(&["HGET", "h", "f"]), bulk(&field));
        assert_eq!(client.query(&["HLEN", "h"]), b":1\r\n");
        client.query(&["RPUSH", "l", &field]);
        assert_eq!(client.query(&["LLEN", "l"]), format!(":{}\r\n", number + 1).into_bytes());
        // Another client keeps old replies at hand.
        other.query(&["HGET", "h", "f"]);
        other.query(&["LLEN", "l"]);
    }
}

#[test]
fn expired_key_or_field_ends_the_reply() {
    let ways =
        RespPair::between(|server| server.arguments(&["--enable-debug-command", "yes"]), LASTING);
    let server = ways.behind();
    // Redis removes nothing by itself, so it pushes nothing: only the proxy's own clock can end it.
    server.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let mut client = RespClient::connect(ways.through());
    server.command(&["HSET", "h", "f", "v"]);
    server.command(&["PEXPIRE", "h", "3000"]);
    assert_eq!(client.query(&["HGETALL", "h"]), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    let is_empty = |client: &mut RespClient| client.query(&["HGETALL", "h"]) == b"*0\r\n";
    eventually("the hash expires", || is_empty(&mut client).then_some(()));
    server.command(&["HSET", "fields", "f", "v", "g", "w"]);
    let has_field_expiry = server.command(&["COMMAND", "INFO", "HPEXPIRE"]);
    if !matches!(&has_field_expiry, redis::Value::Array(found) if found[0] == redis::Value::Nil) {
        server.command(&["HPEXPIRE", "fields", "3000", "FIELDS", "1", "f"]);
        client.query(&["HGET", "fields", "f"]);
        client.query(&["HGETALL", "fields"]);
        let read = ["HGET", "fields", "f"];
        let is_gone = |client: &mut RespClient| client.query(&read) == b"$-1\r\n";
        eventually("the field expires", || is_gone(&mut client).then_some(()));
        assert_eq!(client.query(&["HGETALL", "fields"]), b"*2\r\n$1\r\ng\r\n$1\r\nw\r\n");
    }
}

#[test]
fn oversized_reply_is_forwarded_and_not_kept() {
    let ways =
        RespPair::between(|server| server, &format!("{LASTING}\ncache.max_reply = \"1KiB\""));
    let Some(proxy) = ways.proxy() else { return };
    for server in ways.servers() {
        for number in 0..100_u32 {
            server.command(&["RPUSH", "l", &number.to_string().repeat(10)]);
        }
    }
    let mut straight = RespClient::connect(ways.straight());
    let mut through = RespClient::connect(ways.through());
    for _ in 0..3 {
        let read = ["LRANGE", "l", "0", "-1"];
        assert_eq!(through.query(&read), straight.query(&read));
    }
    assert_eq!(proxy.metrics().value("redis_proxy_replies_entries"), Some(0.0));
}

/// Its first read is forwarded, since its reply has been too large before. Its second one opens a
/// flight, which another client joins.
#[test]
fn client_that_reads_no_reply_delays_no_other_reader() {
    let ways =
        RespPair::between(|server| server, &format!("{LASTING}\ncache.max_reply = \"1KiB\""));
    if ways.proxy().is_none() {
        return;
    }
    // More than the buffers of the sockets hold.
    let part = vec![b'x'; 1 << 20];
    for _ in 0..32 {
        ways.behind().command(&[&b"RPUSH"[..], b"l", &part]);
    }
    ways.behind().command(&["SET", "k", "value"]);
    let mut stalled = RespClient::connect(ways.through());
    let mut other = RespClient::connect(ways.through());
    let large = command(&["LRANGE", "l", "0", "-1"]);
    other.send(large.clone());
    assert!(other.answer().len() > 32 << 20);
    let before = calls(&ways, "LRANGE");
    stalled.send([large, command(&["GET", "k"])].concat());
    eventually("the large read is forwarded", || {
        (calls(&ways, "LRANGE") == before + 1 && calls(&ways, "GET") == 1).then_some(())
    });
    assert_eq!(other.query(&["GET", "k"]), b"$5\r\nvalue\r\n");
    assert_eq!(calls(&ways, "GET"), 1);
}

/// Kept replies of very different sizes replace each other, several times as many as fit.
#[test]
fn reply_memory_stays_within_its_bound_under_churn() {
    const LISTS: u64 = 400;
    const SIZES: [usize; 9] = [100, 320, 1_000, 3_200, 10_000, 32_000, 100_000, 320_000, 1_000_000];
    const BOUND: u64 = 64 << 20;
    // The rest is freed memory that the allocator has not returned yet.
    const MOST: u64 = BOUND * 11 / 10 + (16 << 20);
    let ways = RespPair::between(|server| server, LASTING);
    let Some(proxy) = ways.proxy() else { return };
    let mut sum = 0;
    for (number, size) in (0..LISTS).zip(SIZES.into_iter().cycle()) {
        ways.behind().command(&[b"RPUSH", format!("l{number}").as_bytes(), &vec![b'x'; size]]);
        sum += size as u64;
    }
    let mut client = RespClient::connect(ways.through());
    client.query(&["LLEN", "l0"]);
    let before = resident(proxy.pid());
    let ends = ["0", "-1", "1", "2", "3", "4", "5", "6"];
    let mut most = 0;
    for end in ends {
        for number in 0..LISTS {
            // Every list in every tenth of the time.
            let name = format!("l{}", number * 179 % LISTS);
            client.query(&["LRANGE", &name, "0", end]);
            most = most.max(resident(proxy.pid()).saturating_sub(before));
        }
    }
    let kept = proxy.metrics().value("redis_proxy_replies_bytes").unwrap();
    eprintln!("{} replies of {sum} bytes: {kept} kept, {most} bytes more at most", ends.len());
    assert!(sum * ends.len() as u64 > 4 * BOUND, "only {sum} bytes");
    assert!(kept > 32e6, "only {kept} bytes are kept");
    assert!(most <= MOST, "{most} bytes more, allowed are {MOST}");
}

#[test]
fn no_reply_memory_forwards_every_read() {
    let ways =
        RespPair::between(|server| server, &format!("{LASTING}\ncache.max_reply_memory = 0"));
    if ways.proxy().is_none() {
        return;
    }
    fill(ways.behind());
    let mut client = RespClient::connect(ways.through());
    let before = calls(&ways, "HGETALL");
    for _ in 0..3 {
        client.query(&["HGETALL", "h"]);
    }
    assert_eq!(calls(&ways, "HGETALL"), before + 3);
}

/// Redis gives the elements of a large hash or set in any order.
#[test]
fn large_collections_have_all_elements() {
    let ways = RespPair::between(|server| server, LASTING);
    for server in ways.servers() {
        for number in 0..5000_u32 {
            let name = format!("member {number}");
            server.command(&["SADD", "s", &name]);
            server.command(&["HSET", "h", &name, &number.to_string()]);
        }
    }
    let mut straight = RespClient::connect(ways.straight());
    let mut through = RespClient::connect(ways.through());
    for read in [["SMEMBERS", "s"], ["HGETALL", "h"], ["HKEYS", "h"], ["HVALS", "h"]] {
        let lines = |reply: Vec<u8>| {
            let mut counts: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
            for line in reply.split(|byte| *byte == b'\n') {
                *counts.entry(line.to_vec()).or_default() += 1;
            }
            counts
        };
        let expected = lines(straight.query(&read));
        for _ in 0..2 {
            assert_eq!(lines(through.query(&read)), expected, "{read:?}");
        }
    }
}
