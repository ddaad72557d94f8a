//! The bound on memory, `cache.max_memory`.
//!
//! Promise: everything that is kept stays within the bound, whatever the sizes of the values are.
//! The process takes little more, and gives memory back after a flush.

#![allow(
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a test reports figures, and fails by a panic"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "metrics are small numbers in the form of fractions"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::http::Client;
use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, command};
use crate::support::resp_pair::resp_config;
use crate::support::serving::{await_metric, await_ready, metric};
use crate::support::{Proxy, RedisServer, Reload, within};

const MEBIBYTE: u64 = 1 << 20;

fn settings(max_memory: &str) -> String {
    // A lease that a busy machine does not end.
    format!(
        "cache.ttl = \"1h\"\ncache.coherence_timeout = \"60s\"\ncache.capacity = 50000\n\
         cache.max_memory = \"{max_memory}\""
    )
}

fn bounded(redis: &RedisServer, max_memory: &str) -> Proxy {
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings(max_memory)));
    await_ready(&proxy);
    proxy
}

/// Sets `key:FROM` to `key:TO` to values of this size.
fn fill(redis: &RedisServer, keys: std::ops::Range<usize>, size: usize) {
    let script = "for i = ARGV[1], ARGV[2] - 1 do \
                  redis.call('SET', 'key:' .. i, string.rep('v', ARGV[3])) end";
    let part = ((8 << 20) / size).max(1);
    for first in keys.clone().step_by(part) {
        let [from, to, size] =
            [first, keys.end.min(first + part), size].map(|number| number.to_string());
        redis.command(&["EVAL", script, "0", &from, &to, &size]);
    }
}

/// Reads `key:NUMBER` and asserts that the value has this size.
#[track_caller]
fn read(client: &mut Client, number: usize, size: usize) {
    let response = client.get(format!("/keys/key:{number}"));
    assert_eq!((response.status, response.body.len()), (200, size), "key:{number}");
}

/// Asserts that the counted memory is within the bound. Returns the resident memory.
#[track_caller]
fn assert_within(proxy: &Proxy, bound: u64) -> u64 {
    let counted = metric(proxy, "cache_memory_bytes");
    assert!(counted <= bound as f64, "{counted} bytes count against {bound}");
    resident(proxy.pid())
}

#[test]
fn many_large_values_stay_within_the_bound() {
    const SIZE: usize = 100_000;
    const BOUND: u64 = 256 * MEBIBYTE;
    let keys = large_values();
    let redis = RedisServer::start();
    let proxy = bounded(&redis, "256MiB");
    fill(&redis, 0..keys, SIZE);
    let before = resident(proxy.pid());
    let mut clients = [(); 4].map(|()| Client::connect(proxy.http()));
    let mut most = 0;
    for key in 0..keys {
        read(&mut clients[key % 4], key, SIZE);
        if key % 100 == 0 {
            most = most.max(assert_within(&proxy, BOUND));
        }
    }
    assert!(most < 350 * MEBIBYTE, "{} MiB, {before} bytes before", most / MEBIBYTE);

    // The policy keeps those that were read last.
    let kept = metric(&proxy, "cache_entries") as usize;
    assert!(kept > 2_300, "{kept} entries");
    let calls = redis.calls("get");
    (keys - kept..keys).for_each(|key| read(&mut clients[0], key, SIZE));
    assert_eq!(redis.calls("get"), calls);
    let evicted = metric(&proxy, "cache_evictions_total{cause=\"memory\"}");
    assert_eq!(evicted as usize, keys - kept);

    redis.command(&["FLUSHALL", "ASYNC"]);
    await_metric(&proxy, "cache_entries", 0.0);
    let is_back = || (resident(proxy.pid()) < before + 64 * MEBIBYTE).then_some(());
    let back = within(Duration::from_secs(10), is_back);
    assert!(back.is_some(), "{} MiB after the flush", resident(proxy.pid()) / MEBIBYTE);
}

/// The number of large values: `MEMORY_VALUES` for a longer run, as `make memory` does.
fn large_values() -> usize {
    const FEW: usize = 4_000;
    std::env::var("MEMORY_VALUES").map_or(FEW, |values| values.parse().expect("a number of values"))
}

/// The number of small keys: `MEMORY_KEYS` for a longer run, as `make memory` does.
fn small_keys() -> u64 {
    const FEW: u64 = 100_000;
    std::env::var("MEMORY_KEYS").map_or(FEW, |keys| keys.parse().expect("a number of keys"))
}

/// Reads keys of 16 and values of 100 bytes under a bound of so many bytes a key, then flushes.
/// Returns the part of the keys that was kept.
fn read_and_flush_small_keys(keys: u64, bytes_per_key: u64) -> f64 {
    const BATCH: u64 = 500;
    let bound = keys * bytes_per_key;
    // Otherwise Redis tracks a million keys at most, and invalidates the others.
    let redis = RedisServer::builder().arguments(&["--tracking-table-max-keys", "0"]).start();
    let settings = format!(
        "cache.ttl = \"1h\"\ncache.capacity = {}\ncache.max_memory = \"{bound}B\"",
        2 * keys
    );
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    proxy.expect_log("cannot be reached");
    await_ready(&proxy);
    let script = "for i = ARGV[1], ARGV[2] - 1 do \
                  redis.call('SET', string.format('key:%012d', i), string.rep('v', 100)) end";
    for first in (0..keys).step_by(50_000) {
        let [from, to] = [first, keys.min(first + 50_000)].map(|key| key.to_string());
        redis.command(&["EVAL", script, "0", &from, &to]);
    }
    let before = resident(proxy.pid());
    let mut clients = [(); 4].map(|()| RespClient::connect(proxy.resp_address()));
    let mut most = 0;
    for first in (0..keys).step_by(BATCH as usize) {
        let client = &mut clients[(first / BATCH % 4) as usize];
        let batch = first..keys.min(first + BATCH);
        let count = (batch.end - batch.start) as usize;
        let reads = batch.flat_map(|key| command(&["GET", &format!("key:{key:012}")]));
        client.send(reads.collect::<Vec<_>>());
        client.answers(count);
        most = most.max(resident(proxy.pid()));
        if first % (100 * BATCH) == 0 {
            assert_within(&proxy, bound);
        }
    }
    let kept = metric(&proxy, "cache_entries");
    let allowed = bound * 115 / 100 + 64 * MEBIBYTE;
    assert!(most < allowed, "{most} bytes at most, {allowed} allowed, {before} before");

    let begun = Instant::now();
    redis.command(&["FLUSHALL", "ASYNC"]);
    await_metric(&proxy, "cache_entries", 0.0);
    let is_back = || (resident(proxy.pid()) < before + 64 * MEBIBYTE).then_some(());
    let back = within(Duration::from_secs(10).saturating_sub(begun.elapsed()), is_back);
    let [before, most, left, bound] =
        [before, most, resident(proxy.pid()), bound].map(|bytes| bytes / MEBIBYTE);
    eprintln!(
        "{keys} keys, {kept} kept within {bound} MiB: resident {before} MiB at first, {most} at most, \
         {left} after the flush, in {:?}",
        begun.elapsed()
    );
    assert!(back.is_some(), "{before} MiB at first, {left} MiB after the flush");
    kept / keys as f64
}

#[test]
fn small_keys_stay_within_the_bound() {
    let kept = read_and_flush_small_keys(small_keys(), 54);
    assert!((0.2..0.3).contains(&kept), "{kept} of the keys were kept");
}

#[test]
fn all_small_keys_are_kept_where_the_bound_has_room() {
    let kept = read_and_flush_small_keys(small_keys(), 230);
    assert!(kept > 0.999, "{kept} of the keys were kept");
}

#[test]
fn values_of_all_sizes_stay_within_the_bound() {
    const BOUND: u64 = 128 * MEBIBYTE;
    const SIZES: [usize; 7] = [10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    const EACH: usize = 30;
    // Two values are fetched at once, and each is there up to three times.
    const IN_FLIGHT: u64 = 2 * 3 * 10_000_000;
    let redis = RedisServer::start();
    let proxy = bounded(&redis, "128MiB");
    for (kind, size) in SIZES.iter().enumerate() {
        fill(&redis, kind * EACH..(kind + 1) * EACH, *size);
    }
    let before = resident(proxy.pid());
    let mut clients = [(); 2].map(|()| Client::connect(proxy.http()));
    let mut most = 0;
    for turn in 0..4 * EACH * SIZES.len() {
        // Each key in every round, in an order that mixes the sizes.
        let key = turn * 179 % (EACH * SIZES.len());
        read(&mut clients[turn % 2], key, SIZES[key / EACH]);
        if turn % 10 == 0 {
            most = most.max(assert_within(&proxy, BOUND));
        }
    }
    let allowed = (BOUND + IN_FLIGHT) * 115 / 100 + 64 * MEBIBYTE;
    assert!(most < allowed, "{most} bytes at most, {allowed} allowed, {before} before");
    assert!(metric(&proxy, "cache_memory_bytes") > (BOUND / 2) as f64);
}

#[test]
fn smaller_bound_applies_under_load() {
    const KEYS: usize = 4_000;
    const SIZE: usize = 50_000;
    const BOUND: u64 = 64 * MEBIBYTE;
    let redis = RedisServer::start();
    let proxy = bounded(&redis, "1GiB");
    fill(&redis, 0..KEYS, SIZE);
    let mut client = Client::connect(proxy.http());
    (0..KEYS).for_each(|key| read(&mut client, key, SIZE));
    assert_eq!(metric(&proxy, "cache_entries") as usize, KEYS);
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (proxy, stop, reads) = (&proxy, &stop, &reads);
            scope.spawn(move || {
                let mut client = Client::connect(proxy.http());
                for turn in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    read(&mut client, (turn * 7 + thread * 2_000) % KEYS, SIZE);
                    reads.fetch_add(1, Relaxed);
                }
            });
        }
        let begun = Instant::now();
        let config = resp_config(&redis.url(), &settings("64MiB"));
        assert_eq!(proxy.reload(&config), Reload::Reloaded);
        let is_within = || (metric(&proxy, "cache_memory_bytes") <= BOUND as f64).then_some(());
        let reached = within(Duration::from_secs(2).saturating_sub(begun.elapsed()), is_within);
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Relaxed);
        assert!(reached.is_some(), "{} bytes", metric(&proxy, "cache_memory_bytes"));
    });
    assert!(reads.load(Relaxed) > 100, "{} reads", reads.load(Relaxed));
    await_metric(&proxy, "cache_max_memory_bytes", BOUND as f64);
    assert_within(&proxy, BOUND);
}

#[test]
fn value_of_a_tenth_of_the_bound_is_served_unkept() {
    let redis = RedisServer::start();
    let proxy = bounded(&redis, "4MiB");
    let mut client = Client::connect(proxy.http());
    // Each size has a key of its own: a value just replaced by another client may be served until
    // Redis's invalidation arrives.
    for (key, size, fetches) in [(0, 300_000, 1), (1, 600_000, 3)] {
        fill(&redis, key..key + 1, size);
        let before = redis.calls("get");
        for _ in 0..3 {
            read(&mut client, key, size);
        }
        assert_eq!(redis.calls("get") - before, fetches, "{size}");
    }
    await_metric(&proxy, "cache_entries", 1.0);
    await_metric(&proxy, "cache_values_too_large_total", 3.0);
}

#[test]
fn replies_take_their_share_and_strings_the_rest() {
    const BOUND: u64 = 16 * MEBIBYTE;
    let redis = RedisServer::start();
    let proxy = bounded(&redis, "16MiB");
    fill(&redis, 0..400, 50_000);
    let mut client = Client::connect(proxy.http());
    (0..400).for_each(|key| read(&mut client, key, 50_000));
    assert!(metric(&proxy, "cache_memory_bytes") > 0.95 * BOUND as f64);
    let mut resp = RespClient::connect(proxy.resp_address());
    for list in 0..200 {
        let name = format!("list:{list}");
        redis.command(&["RPUSH", &name, &"v".repeat(50_000)]);
        resp.query(&["LRANGE", &name, "0", "-1"]);
        assert_within(&proxy, BOUND);
    }
    let replies = metric(&proxy, "replies_bytes");
    assert!((0.7..=1.0).contains(&(replies / (BOUND / 4) as f64)), "{replies} bytes of replies");
    assert!(metric(&proxy, "cache_memory_bytes") > 0.9 * BOUND as f64);
}

#[test]
fn unreachable_capacity_is_a_warning() {
    const WARNING: &str = "cannot be reached";
    let redis = RedisServer::start();
    let config = resp_config(&redis.url(), &settings("64MiB"));
    let proxy = Proxy::builder(&config).argument("--k").argument("10000000").start();
    proxy.expect_log(WARNING);
    let line = proxy.wait_for_log(|line| line.text().contains(WARNING));
    assert_eq!(line.level(), "WARN");
    assert!(line.text().contains("10000000"), "{}", line.text());
}

#[test]
fn bound_outside_the_memory_is_refused() {
    for (value, found) in [
        ("1000KB", "found 1000000B, expected at least 1MiB and at most the available memory"),
        ("100000GiB", "found 100000GiB, expected at least 1MiB and at most"),
        ("12XB", "expected a size such as"),
        ("0%", "expected a size such as"),
    ] {
        let builder = Proxy::builder(&settings(value)).argument("check");
        let (code, output) = builder.run_to_end();
        assert!(code == 78 && output.contains(found), "{value}: {code} {output}");
        assert!(output.contains("cache.max_memory"), "{output}");
    }
}

/// Returns the number of MiB behind the first `name` in `text`, which ends with `unit`.
fn mebibytes(text: &str, name: &str, unit: &str) -> Option<u64> {
    let (_, rest) = text.split_once(name)?;
    let (number, _) = rest.split_once(unit)?;
    number.trim().parse().ok()
}

#[test]
fn deployments_have_room_for_both_bounds() {
    /// The memory of the process beside both bounds, with a hundred connections, in MiB.
    const REST: u64 = 64 + 3;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, service, limit, unit) in [
        ("docker-compose.yml", "  cache:\n", "  mem_limit:", "m\n"),
        ("examples/sidecar/docker-compose.yml", "x-proxy:", "  mem_limit:", "m\n"),
        ("charts/redis-proxy/values.yaml", "\nresources:", "limits: {memory:", "Mi}"),
    ] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let (_, service) = text.split_once(service).expect(file);
        let limit = mebibytes(service, limit, unit).expect(file);
        let setting =
            |name: &str| mebibytes(&text, &format!("REDIS_PROXY_CACHE__{name}: "), "MiB\n");
        // The defaults: a quarter of the memory, and 64 MiB.
        let max_memory = setting("MAX_MEMORY").unwrap_or(limit / 4);
        let in_flight = setting("MAX_IN_FLIGHT").unwrap_or(64);
        let needed = (max_memory + in_flight) * 115 / 100 + REST;
        assert!(needed <= limit, "{file}: {needed} MiB needed, {limit} MiB allowed");
    }
}
