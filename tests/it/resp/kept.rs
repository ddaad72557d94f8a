//! Reads of hashes, lists, sets, sorted sets and streams.
//!
//! Promise: their replies come from memory, as Redis would send them, until a key of them changes.

use std::collections::BTreeMap;

use crate::support::resp_client::{RespClient, bulk};
use crate::support::resp_pair::{LASTING, RespPair};
use crate::support::{RedisServer, eventually};

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
    let ways = RespPair::between(|server| server, LASTING);
    let Some(proxy) = ways.proxy() else { return };
    ways.servers().into_iter().for_each(fill);
    let mut straight =
        [RespClient::connect(ways.straight()), RespClient::connect_resp3(ways.straight())];
    let mut through =
        [RespClient::connect(ways.through()), RespClient::connect_resp3(ways.through())];
    for line in READS {
        let words: Vec<_> = line.split(' ').collect();
        through[0].ask(&words);
        let before = calls(&ways, words[0]);
        assert!(before > 0, "{line} never reached Redis");
        for (straight, through) in straight.iter_mut().zip(&mut through) {
            assert_eq!(through.ask(&words), straight.ask(&words), "{line}");
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
        let before = client.ask(&read);
        ways.behind().command(&write.split(' ').collect::<Vec<_>>());
        eventually("the change is seen", || (client.ask(&read) != before).then_some(()));
    }
}

#[test]
fn own_writes_of_every_type_are_read() {
    let ways = RespPair::between(|server| server, LASTING);
    let mut client = RespClient::connect(ways.through());
    let mut other = RespClient::connect(ways.through());
    for number in 0..300 {
        let field = number.to_string();
        client.ask(&["HSET", "h", "f", &field]);
        assert_eq!(client.ask(&["HGET", "h", "f"]), bulk(&field));
        assert_eq!(client.ask(&["HLEN", "h"]), b":1\r\n");
        client.ask(&["RPUSH", "l", &field]);
        assert_eq!(client.ask(&["LLEN", "l"]), format!(":{}\r\n", number + 1).into_bytes());
        // Another client keeps old replies at hand.
        other.ask(&["HGET", "h", "f"]);
        other.ask(&["LLEN", "l"]);
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
    assert_eq!(client.ask(&["HGETALL", "h"]), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    let is_empty = |client: &mut RespClient| client.ask(&["HGETALL", "h"]) == b"*0\r\n";
    eventually("the hash expires", || is_empty(&mut client).then_some(()));
    server.command(&["HSET", "fields", "f", "v", "g", "w"]);
    let has_field_expiry = server.command(&["COMMAND", "INFO", "HPEXPIRE"]);
    if !matches!(&has_field_expiry, redis::Value::Array(found) if found[0] == redis::Value::Nil) {
        server.command(&["HPEXPIRE", "fields", "3000", "FIELDS", "1", "f"]);
        client.ask(&["HGET", "fields", "f"]);
        client.ask(&["HGETALL", "fields"]);
        let read = ["HGET", "fields", "f"];
        let is_gone = |client: &mut RespClient| client.ask(&read) == b"$-1\r\n";
        eventually("the field expires", || is_gone(&mut client).then_some(()));
        assert_eq!(client.ask(&["HGETALL", "fields"]), b"*2\r\n$1\r\ng\r\n$1\r\nw\r\n");
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
        assert_eq!(through.ask(&read), straight.ask(&read));
    }
    assert_eq!(proxy.metrics().value("redis_proxy_replies_entries"), Some(0.0));
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
        client.ask(&["HGETALL", "h"]);
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
        let expected = lines(straight.ask(&read));
        for _ in 0..2 {
            assert_eq!(lines(through.ask(&read)), expected, "{read:?}");
        }
    }
}
