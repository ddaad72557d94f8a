//! Coherence mode `ttl`, without invalidations.
//!
//! Promise: writes that pass through the proxy remove the written keys from memory.

use crate::support::eventually;
use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, show, words};
use crate::support::resp_pair::RespPair;
use crate::support::serving::await_metric;

const TTL: &str = "cache.ttl = \"1h\"\ncache.coherence = \"ttl\"";

#[test]
fn write_is_visible_to_later_reads() {
    const WRITES: [&str; 22] = [
        "SET a 1",
        "MSET a 2 b 3",
        "APPEND a x",
        "SETRANGE a 0 yy",
        "GETSET a 4",
        "INCR a",
        "GETDEL a",
        "SETEX a 1000 5",
        "RENAME a b",
        "COPY b a",
        "EXPIRE a -1",
        "SET b 6 GET",
        "BITOP NOT a b",
        "DEL a b",
        "EVAL redis.call('SET',KEYS[1],7) 1 a",
        "RPUSH a 1",
        "SET a 8",
        "MOVE a 1",
        "MSETNX a 9 b 10",
        "FLUSHDB",
        "SET a 11",
        "SWAPDB 0 1",
    ];
    let ways = RespPair::between(|server| server, TTL);
    ways.same(|address| {
        // A second reader has put the old values into memory.
        let (mut writer, mut reader) = (RespClient::connect(address), RespClient::connect(address));
        let mut received = Vec::new();
        for write in WRITES {
            for wire in [&mut reader, &mut writer] {
                received.extend(
                    ["GET a", "GET b", "STRLEN a", "EXISTS a b"].map(|line| wire.reply_to(line)),
                );
            }
            received.push(writer.reply_to(write));
            // Both connections, because the entry is removed for all.
            for wire in [&mut reader, &mut writer] {
                received.extend(
                    ["MGET a b", "GET a", "GETRANGE b 0 -1"].map(|line| wire.reply_to(line)),
                );
            }
        }
        received
    });
    if let Some(from_memory) = ways.answered_from_memory() {
        assert!(from_memory > 10.0, "only {from_memory} reads were answered from memory");
    }
}

#[test]
fn write_ends_kept_replies() {
    const WRITES: [&str; 14] = [
        "HSET h a 2 b 3",
        "HDEL h b",
        "HINCRBY h a 5",
        "SADD s 4 5",
        "SMOVE s t 4",
        "SUNIONSTORE s s t",
        "SPOP s 100",
        "ZADD z 2 n",
        "ZINCRBY z 7 n",
        "RENAME h i",
        "COPY i h",
        "EXPIRE z -1",
        "EVAL redis.call('HSET',KEYS[1],'a',9) 1 h",
        "FLUSHALL",
    ];
    const READS: [&str; 8] = [
        "HGETALL h",
        "HGET h a",
        "HLEN h",
        "SCARD s",
        "SINTERCARD 2 s t",
        "SISMEMBER t 4",
        "ZRANGE z 0 -1 WITHSCORES",
        "TYPE h",
    ];
    let ways = RespPair::between(|server| server, TTL);
    ways.same(|address| {
        let (mut writer, mut reader) =
            (RespClient::connect(address), RespClient::connect_resp3(address));
        let mut received = Vec::new();
        for write in ["HSET h a 1", "SADD s 1 2 3", "SADD t 3", "ZADD z 1 m"] {
            received.push(writer.reply_to(write));
        }
        for write in WRITES {
            // The second time from memory.
            for _ in 0..2 {
                for wire in [&mut reader, &mut writer] {
                    received.extend(READS.map(|line| wire.reply_to(line)));
                }
            }
            received.push(writer.reply_to(write));
            for wire in [&mut reader, &mut writer] {
                received.extend(READS.map(|line| wire.reply_to(line)));
            }
        }
        received
    });
    if let Some(from_memory) = ways.answered_from_memory() {
        assert!(from_memory > 100.0, "only {from_memory} reads were answered from memory");
    }
}

#[test]
fn kept_reply_ends_with_its_keys_and_is_about_keys_that_exist() {
    let ways = RespPair::between(|server| server, TTL);
    if ways.proxy().is_none() {
        return;
    }
    let server = ways.behind();
    let mut client = RespClient::connect(ways.through());
    for _ in 0..3 {
        assert_eq!(client.query_line("HGETALL none"), b"*0\r\n");
    }
    assert_eq!(server.calls("hgetall"), 3);
    server.command(&["HSET", "h", "f", "v"]);
    server.command(&["PEXPIRE", "h", "2000"]);
    let calls = server.calls("hgetall");
    for _ in 0..3 {
        assert_eq!(client.query_line("HGETALL h"), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    }
    assert_eq!(server.calls("hgetall"), calls + 1);
    eventually("the hash expires", || (client.query_line("HGETALL h") == b"*0\r\n").then_some(()));
}

#[test]
fn transaction_and_pipeline_are_visible_to_later_reads() {
    let ways = RespPair::between(|server| server, TTL);
    ways.same_answers(&[
        "SET a 1",
        "SET b 1",
        "GET a",
        "GET b",
        "GET a",
        "MULTI",
        "SET a 2",
        "INCR b",
        "GET a",
        "EXEC",
        "GET a",
        "GET b",
        "GET a",
        "MULTI",
        "SWAPDB 0 1",
        "EXEC",
        "GET a",
        "GET b",
        "MULTI",
        "SWAPDB 0 1",
        "DISCARD",
        "GET a",
        "SWAPDB 0 1",
        "GET a",
    ]);
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        let lines: Vec<u8> = ["GET a", "MULTI", "SET a 3", "EXEC", "SET b 3", "GET a", "GET b"]
            .iter()
            .flat_map(|line| words(line))
            .collect();
        (0..3)
            .flat_map(|_| {
                wire.send(&lines);
                let mut received = wire.answers(7);
                received.extend(["GET a", "GET b", "GET a"].map(|line| wire.query_line(line)));
                received
            })
            .collect::<Vec<_>>()
    });
}

#[test]
fn streamed_command_is_visible_to_later_reads() {
    let ways =
        RespPair::between(|server| server, &format!("{TTL}\nresp.max_query_buffer = \"256KiB\""));
    let (script, key) = (
        format!("--{}\nredis.call('SET', KEYS[1], ARGV[1])", "x".repeat(1_200_000)),
        "k".repeat(1_200_000),
    );
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        let mut received = Vec::new();
        for long in [
            &["EVAL", &script, "1", "a", "1"][..],
            &["DEL", &key, "a"],
            &["MSET", &key, "x", "a", "2"],
        ] {
            // Puts an old value into memory.
            received.extend(["SET a old", "GET a", "GET a"].map(|line| wire.reply_to(line)));
            received.push(wire.reply_to_words(long));
            received.push(wire.reply_to("GET a"));
        }
        received
    });
}

#[test]
fn rejected_transaction_holds_nothing_back() {
    let ways = RespPair::between(|server| server, TTL);
    ways.same(|address| {
        let (mut writer, mut reader) = (RespClient::connect(address), RespClient::connect(address));
        let mut received =
            vec![reader.reply_to("SET a 1"), reader.reply_to("GET a"), reader.reply_to("GET a")];
        for line in ["MULTI x", "SET a 2"] {
            received.push(writer.reply_to(line));
        }
        received.push(reader.reply_to("GET a"));
        received.push(writer.reply_to("GET a"));
        received
    });
}

#[test]
fn queued_write_arguments_are_not_retained() {
    let ways = RespPair::between(|server| server, TTL);
    let Some(proxy) = ways.proxy() else { return };
    let value = vec![b'v'; 900_000];
    let mut wire = RespClient::connect(ways.through());
    wire.query_line("MULTI");
    let before = resident(proxy.pid());
    for _ in 0..200 {
        assert_eq!(wire.query(&[b"SET", &b"a"[..], &value]), b"+QUEUED\r\n");
    }
    let more = resident(proxy.pid()).saturating_sub(before);
    assert_eq!(wire.reply_to("DISCARD"), "+OK\\r\\n");
    assert!(more < 64 << 20, "{more} bytes more after 200 commands were queued");
}

#[test]
fn value_read_during_a_write_is_not_cached() {
    let ways = RespPair::between(|server| server, TTL);
    let Some(proxy) = ways.proxy() else { return };
    let (mut writer, mut reader) =
        (RespClient::connect(ways.through()), RespClient::connect(ways.through()));
    assert_eq!(writer.reply_to("SET a old"), "+OK\\r\\n");
    // Redis delays writes and answers reads.
    ways.behind().command(&["CLIENT", "PAUSE", "20000", "WRITE"]);
    writer.send(words("SET a new"));
    await_metric(proxy, "commands_total{command=\"set\"}", 2.0);
    for _ in 0..2 {
        assert_eq!(reader.reply_to("GET a"), "$3\\r\\nold\\r\\n");
    }
    ways.behind().command(&["CLIENT", "UNPAUSE"]);
    assert_eq!(show(&writer.answer()), "+OK\\r\\n");
    for wire in [&mut writer, &mut reader] {
        assert_eq!(wire.reply_to("GET a"), "$3\\r\\nnew\\r\\n");
    }
}
