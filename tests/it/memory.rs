//! Memory that is not needed any more.
//!
//! Promise: within 10 s after values have left the cache, or after replies have left for their
//! clients, their memory is back at the operating system. An idle proxy needs no traffic for that.

use std::time::Duration;

use crate::support::http::Client;
use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, command};
use crate::support::resp_pair::resp_config;
use crate::support::serving::{await_metric, await_ready};
use crate::support::{Proxy, RedisServer, within};

const MEBIBYTE: u64 = 1 << 20;
/// The time in which memory has to be given back.
const LIMIT: Duration = Duration::from_secs(10);
/// The most that may be left: buffers of the allocator, of each thread.
const MOST_LEFT: u64 = 48 * MEBIBYTE;

/// Starts a proxy with two workers, both front ends, and room for all keys.
fn roomy() -> (RedisServer, Proxy) {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&resp_config(
        &redis.url(),
        "cache.ttl = \"1h\"\ncache.capacity = 1000000\ncache.max_memory = \"600MiB\"",
    ));
    await_ready(&proxy);
    (redis, proxy)
}

/// Sets `key:0`, `key:1` and so on to values of this size, a part of them with each command.
fn fill(redis: &RedisServer, keys: usize, size: usize) {
    let script = "for i = ARGV[1], ARGV[2] - 1 do \
                  redis.call('SET', 'key:' .. i, string.rep('v', ARGV[3])) end";
    let part = (8 << 20) / size;
    for first in (0..keys).step_by(part) {
        let [from, to, size] =
            [first, keys.min(first + part), size].map(|number| number.to_string());
        redis.command(&["EVAL", script, "0", &from, &to, &size]);
    }
}

/// Asserts that at most `MOST_LEFT` more than `before` is resident within the limit.
#[track_caller]
fn assert_given_back(proxy: &Proxy, before: u64) {
    let full = resident(proxy.pid());
    let back = within(LIMIT, || (resident(proxy.pid()) < before + MOST_LEFT).then_some(()));
    let left = resident(proxy.pid());
    let [before, full, left] = [before, full, left].map(|bytes| bytes / MEBIBYTE);
    assert!(back.is_some(), "{before} MiB at first, {full} MiB full, {left} MiB after {LIMIT:?}");
}

#[track_caller]
fn assert_more_than(proxy: &Proxy, before: u64, expected: u64) {
    let more = resident(proxy.pid()).saturating_sub(before);
    assert!(more > expected, "only {} MiB more to give back", more / MEBIBYTE);
}

#[test]
fn memory_of_flushed_large_values_is_given_back() {
    const KEYS: usize = 3000;
    const SIZE: usize = 100 << 10;
    let (redis, proxy) = roomy();
    fill(&redis, KEYS, SIZE);
    let before = resident(proxy.pid());
    let mut clients = [(); 4].map(|()| Client::connect(proxy.http()));
    for key in 0..KEYS {
        let response = clients[key % clients.len()].get(format!("/keys/key:{key}"));
        assert_eq!((response.status, response.body.len()), (200, SIZE));
    }
    assert_more_than(&proxy, before, 250 * MEBIBYTE);
    redis.command(&["FLUSHALL", "ASYNC"]);
    await_metric(&proxy, "cache_entries", 0.0);
    assert_given_back(&proxy, before);
}

#[test]
fn memory_of_flushed_small_values_is_given_back() {
    const KEYS: usize = 150_000;
    const BATCH: usize = 500;
    let (redis, proxy) = roomy();
    fill(&redis, KEYS, 1500);
    let before = resident(proxy.pid());
    let mut clients = [(); 4].map(|()| RespClient::connect(proxy.resp_address()));
    for first in (0..KEYS).step_by(BATCH) {
        let client = &mut clients[first / BATCH % 4];
        let reads = (first..first + BATCH).flat_map(|key| command(&["GET", &format!("key:{key}")]));
        client.send(reads.collect::<Vec<_>>());
        client.answers(BATCH);
    }
    assert_more_than(&proxy, before, 200 * MEBIBYTE);
    redis.command(&["FLUSHALL", "ASYNC"]);
    await_metric(&proxy, "cache_entries", 0.0);
    assert_given_back(&proxy, before);
}

#[test]
fn memory_of_a_large_pipeline_is_given_back() {
    const COMMANDS: usize = 300;
    let (redis, proxy) = roomy();
    let before = resident(proxy.pid());
    let mut client = RespClient::connect(proxy.resp_address());
    let (mut sender, value) = (client.sender(), vec![b'v'; 1 << 20]);
    let pipeline = std::thread::spawn(move || {
        let key = |number: usize| format!("key:{number}");
        let sets = (0..COMMANDS).map(|number| command(&[b"SET", key(number).as_bytes(), &value]));
        let gets = (0..COMMANDS).map(|number| command(&["GET", &key(number)]));
        sets.chain(gets).try_for_each(|command| std::io::Write::write_all(&mut sender, &command))
    });
    for _ in 0..2 * COMMANDS {
        client.answer();
    }
    pipeline.join().unwrap().unwrap();
    redis.command(&["FLUSHALL", "ASYNC"]);
    await_metric(&proxy, "cache_entries", 0.0);
    assert_given_back(&proxy, before);
}
