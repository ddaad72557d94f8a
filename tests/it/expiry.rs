//! TTLs of keys in batches of reads.
//!
//! Promise: where no key of the database has a TTL, one `INFO keyspace` answers for a whole batch;
//! otherwise each value ends with its key.
//!
//! Redis does not expire keys actively here, so it pushes no invalidation. A value ends only by the
//! proxy's knowledge of the TTL. `EXPIRY_STORMS=200` makes one of the tests longer.

#![expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::env::{number, seed};
use crate::support::resp_client::{RespClient, bulk, words};
use crate::support::resp_pair::resp_config;
use crate::support::serving::await_ready;
use crate::support::{Monitor, Proxy, RedisServer, eventually};

/// The reads of one batch.
const READS: usize = 64;
/// A TTL in milliseconds, long enough for a batch of reads on a busy machine.
const LIFE: usize = 2000;
const ABSENT: &[u8] = b"$-1\r\n";

/// Starts a Redis with keys named by numbers, which are their values too.
fn redis_with(keys: usize) -> RedisServer {
    let redis =
        RedisServer::builder().tcp().arguments(&["--enable-debug-command", "local"]).start();
    redis.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    name(&redis, keys);
    redis
}

/// Sets this many keys to their own names, without a TTL.
fn name(redis: &RedisServer, keys: usize) {
    let pairs = (0..keys).flat_map(|key| [key.to_string(), key.to_string()]);
    redis.command(&[vec!["MSET".to_owned()], pairs.collect()].concat());
}

/// Sets a TTL on each key of a [batch](read) from `first` on, in one pipeline.
fn expire(redis: &RedisServer, first: usize, milliseconds: usize) {
    let mut commands = redis::pipe();
    (first..first + READS)
        .for_each(|key| _ = commands.cmd("PEXPIRE").arg(key).arg(milliseconds).ignore());
    commands.exec(&mut redis.connection()).unwrap();
}

fn proxy_of(redis: &RedisServer, more: &str) -> Proxy {
    let proxy =
        Proxy::start(&resp_config(&redis.tcp_url(), &format!("cache.ttl = \"1h\"\n{more}")));
    await_ready(&proxy);
    proxy
}

/// Reads a batch of keys from `first` on in one pipeline.
fn read(proxy: &Proxy, first: usize) -> Vec<Vec<u8>> {
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.send(
        (first..first + READS).flat_map(|key| words(&format!("GET {key}"))).collect::<Vec<_>>(),
    );
    wire.answers(READS)
}

fn values(first: usize) -> Vec<Vec<u8>> {
    (first..first + READS).map(|key| bulk(key.to_string())).collect()
}

/// Reads batches until no `PTTL` is sent; returns the first key that was not read yet.
fn read_until_unasked(redis: &RedisServer, proxy: &Proxy, first: usize) -> usize {
    let mut next = first;
    eventually("no time to live is asked for", || {
        let before = redis.calls("pttl");
        assert_eq!(read(proxy, next), values(next));
        next += READS;
        (redis.calls("pttl") == before).then_some(next)
    })
}

#[test]
fn batched_reads_share_one_expiry_check() {
    let redis = redis_with(10_000);
    let proxy = proxy_of(&redis, "");
    let first = read_until_unasked(&redis, &proxy, 0);
    let monitor = Monitor::start(&redis);
    assert_eq!(read(&proxy, first), values(first));
    let commands = monitor.commands();
    let count = |command: &str| commands.iter().filter(|line| line.contains(command)).count();
    assert_eq!((count("\"GET\""), count("\"PTTL\"")), (READS, 0), "{commands:#?}");
    let questions = count("\"INFO\" \"keyspace\"");
    assert!((1..=READS / 4).contains(&questions), "{questions}");
}

#[test]
fn batched_values_expire_with_their_keys() {
    let redis = redis_with(10_000);
    let proxy = proxy_of(&redis, "");
    let first = read_until_unasked(&redis, &proxy, 0);
    expire(&redis, first, LIFE);
    assert_eq!(read(&proxy, first), values(first));
    thread::sleep(Duration::from_millis(LIFE as u64 + 1));
    assert_eq!(read(&proxy, first), vec![ABSENT; READS]);
}

/// The longest TTL that a storm of changes sets.
const SHORT: Duration = Duration::from_millis(20);
/// The changes of one storm.
const CHANGES: usize = 3000;

#[test]
fn expiry_storm_leaves_memory_equal_to_redis() {
    // After a storm the proxy looks again for keys with a TTL a second later. A fast machine reads
    // more than 10,000 keys until then.
    let redis = redis_with(100_000);
    let proxy = proxy_of(&redis, "");
    let mut random = StdRng::seed_from_u64(seed());
    let mut next = READS;
    for storm in 0..number("EXPIRY_STORMS").unwrap_or(2) {
        // The storm changes the first keys; the keys of these reads are others.
        next = read_until_unasked(&redis, &proxy, next % 5_000);
        thread::scope(|scope| {
            let changes = scope.spawn(|| change_at_random(&redis, &mut random));
            while !changes.is_finished() {
                read(&proxy, 0);
            }
        });
        thread::sleep(10 * SHORT);
        // Invalidations are in order: this one is behind those of the storm.
        redis.command(&["SET", "marker", &storm.to_string()]);
        eventually("every invalidation has arrived", || {
            let marker = RespClient::connect(proxy.resp_address()).query_line("GET marker");
            (marker == bulk(storm.to_string())).then_some(())
        });
        let found = read(&proxy, 0);
        // Not before: Redis would notice expired keys here, and push their invalidations.
        let names: Vec<_> = (0..READS).map(|key| key.to_string()).collect();
        let truth: Vec<Option<Vec<u8>>> =
            redis::cmd("MGET").arg(&names).query(&mut redis.connection()).unwrap();
        let truth: Vec<_> =
            truth.into_iter().map(|value| value.map_or(ABSENT.to_vec(), bulk)).collect();
        assert_eq!(found, truth);
        name(&redis, next);
    }
}

/// Writes values with and without TTL to the first keys, and changes and removes the TTLs of
/// others.
fn change_at_random(redis: &RedisServer, random: &mut StdRng) {
    let mut connection = redis.connection();
    let life = SHORT.as_millis();
    for version in 1..=CHANGES {
        let key = random.random_range(0..READS);
        let change = match random.random_range(0..6) {
            0 => format!("SET {key} {version} PX {life}"),
            1 => format!("PEXPIRE {key} {life}"),
            2 => format!("PERSIST {key}"),
            3 => format!("GETEX {key} PERSIST"),
            4 => format!("DEL {key}"),
            _ => format!("SET {key} {version}"),
        };
        let mut words = change.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        command.exec(&mut connection).unwrap();
    }
}

#[test]
fn ttl_set_after_the_read_invalidates() {
    let redis = redis_with(10_000);
    let proxy = proxy_of(&redis, "");
    let first = read_until_unasked(&redis, &proxy, 0);
    assert_eq!(read(&proxy, first), values(first));
    expire(&redis, first, 1);
    eventually("all are gone", || (read(&proxy, first) == vec![ABSENT; READS]).then_some(()));
}

#[test]
fn denied_info_falls_back_to_pttl_per_key() {
    let redis = redis_with(1_000);
    redis.command(&["ACL", "SETUSER", "default", "-info"]);
    let proxy = proxy_of(&redis, "");
    let monitor = Monitor::start(&redis);
    for first in [0, READS, 2 * READS] {
        assert_eq!(read(&proxy, first), values(first));
    }
    let commands = monitor.commands();
    assert_eq!(
        commands.iter().filter(|line| line.contains("\"PTTL\"")).count(),
        3 * READS,
        "{commands:#?}"
    );
    let redis::Value::Array(refusals) = redis.command(&["ACL", "LOG"]) else {
        panic!("the log of refusals")
    };
    assert_eq!(refusals.len(), 1, "{refusals:?}");
}
