//! The bound on large values in flight, `cache.max_in_flight`.
//!
//! Promise: values that are fetched and not kept, or written to clients, stay within the bound,
//! whatever clients do. A value that does not fit waits and is then served; nothing that a client
//! does keeps the proxy from reading what Redis pushes.

#![allow(
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a test reports figures, and fails by a panic"
)]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "metrics are small numbers in the form of fractions"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::support::http::{Client, get};
use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, command};
use crate::support::resp_pair::resp_config;
use crate::support::serving::{await_metric, await_ready, metric};
use crate::support::{Proxy, RedisServer, Reload, within};

const MEBIBYTE: u64 = 1 << 20;

fn config(redis: &RedisServer, more: &str) -> String {
    // A lease that a busy machine does not end.
    let lasting = "cache.ttl = \"1h\"\ncache.coherence_timeout = \"60s\"";
    resp_config(&redis.url(), &format!("{lasting}\n{more}"))
}

fn start(redis: &RedisServer, more: &str) -> Proxy {
    let proxy = Proxy::start(&config(redis, more));
    await_ready(&proxy);
    proxy
}

/// Sets `key:0` and so on to values of this size, a multiple of 1,000.
fn fill(redis: &RedisServer, keys: usize, size: usize) {
    let script = "local value = string.rep(string.rep('v', 1000), ARGV[1] / 1000) \
                  redis.call('SET', KEYS[1], value)";
    for key in 0..keys {
        redis.command(&["EVAL", script, "1", &format!("key:{key}"), &size.to_string()]);
    }
}

fn discarded(proxy: &Proxy) -> f64 {
    metric(proxy, "in_flight_discarded_total")
}

/// Sends a request, and reads nothing of the reply.
fn request(proxy: &Proxy, key: usize) -> Client {
    let mut client = Client::connect(proxy.http());
    client.send_raw(format!("GET /keys/key:{key} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    client
}

#[test]
fn many_large_values_at_once_stay_within_the_bounds() {
    const CLIENTS: usize = 40;
    const SIZE: usize = 10_000_000;
    /// For a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(240);
    let redis = RedisServer::start();
    fill(&redis, CLIENTS, SIZE);
    let proxy = start(
        &redis,
        "cache.max_memory = \"128MiB\"\ncache.max_in_flight = \"64MiB\"\n\
         redis.response_timeout = \"500s\"",
    );
    let before = resident(proxy.pid());
    let (is_done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let may_read = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !is_done.load(Relaxed) {
                most.fetch_max(resident(proxy.pid()), Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let readers: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (proxy, may_read) = (&proxy, &may_read);
                scope.spawn(move || {
                    // Half of them over each front end. They read when the bound is reached.
                    let is_reached = || may_read.load(Relaxed).then_some(());
                    if client % 2 == 0 {
                        let mut http = request(proxy, client);
                        within(PATIENCE, is_reached).expect("the bound is reached");
                        http.read_timeout(PATIENCE);
                        let response = http.read_response();
                        assert_eq!((response.status, response.body.len()), (200, SIZE));
                    } else {
                        let mut resp = RespClient::connect(proxy.resp_address());
                        resp.send(command(&["GET", &format!("key:{client}")]));
                        within(PATIENCE, is_reached).expect("the bound is reached");
                        resp.wait_at_most(PATIENCE);
                        assert!(resp.answer().len() > SIZE);
                    }
                })
            })
            .collect();
        let is_reached = within(PATIENCE, || (discarded(&proxy) > 0.0).then_some(()));
        may_read.store(true, Relaxed);
        let failed = readers.into_iter().filter_map(|reader| reader.join().err()).count();
        is_done.store(true, Relaxed);
        watch.join().unwrap();
        assert_eq!((is_reached, failed), (Some(()), 0), "the bound, and readers that failed");
    });
    let most = most.into_inner();
    let allowed = (128 + 64) * MEBIBYTE * 115 / 100 + 64 * MEBIBYTE + CLIENTS as u64 * (32 << 10);
    eprintln!("{} MiB at most, {} MiB allowed", most / MEBIBYTE, allowed / MEBIBYTE);
    assert!(most < allowed, "{most} bytes at most, {allowed} allowed, {before} before");
    await_metric(&proxy, "in_flight_bytes", 0.0);
}

/// The size of a value that the buffers of the operating system do not hold.
const HUGE: usize = 33_000_000;
/// Room for one such value, and none in the cache. A value waits for room for half of the timeout.
const ONE_HUGE: &str = "cache.max_memory = \"16MiB\"\ncache.max_in_flight = \"32MiB\"\n\
                        redis.response_timeout = \"60s\"";

/// Starts a proxy whose room is taken by a client that does not read.
fn with_slow_client(redis: &RedisServer, settings: &str) -> (Proxy, Client) {
    fill(redis, 2, HUGE);
    let proxy = start(redis, settings);
    let slow = request(&proxy, 0);
    await_metric(&proxy, "in_flight_bytes", HUGE as f64);
    (proxy, slow)
}

#[test]
fn value_that_waits_delays_no_push_and_no_small_value() {
    let redis = RedisServer::start();
    redis.command(&["SET", "small", "old"]);
    let (proxy, mut slow) = with_slow_client(&redis, ONE_HUGE);
    assert_eq!(get(proxy.http(), "/keys/small").body, b"old");
    let mut waiting = request(&proxy, 1);
    await_metric(&proxy, "in_flight_discarded_total", 1.0);
    redis.command(&["SET", "small", "new"]);
    let is_new = || (get(proxy.http(), "/keys/small").body == b"new").then_some(());
    assert!(within(Duration::from_secs(10), is_new).is_some(), "the push was not read");
    assert_eq!(get(proxy.http(), "/keys/absent").status, 404);
    let fetches = metric(&proxy, "inflight_fetches") as usize;
    assert_eq!(fetches, 1, "the large value waits still");

    // It has its turn when the other one is written.
    assert_eq!(slow.read_response().body.len(), HUGE);
    assert_eq!(waiting.read_response().body.len(), HUGE);
    await_metric(&proxy, "in_flight_bytes", 0.0);
}

#[test]
fn value_without_room_in_time_comes_from_redis() {
    let redis = RedisServer::start();
    let (proxy, slow) = with_slow_client(&redis, &ONE_HUGE.replace("60s", "2s"));
    assert_eq!(get(proxy.http(), "/keys/key:1").status, 503);
    let mut resp = RespClient::connect(proxy.resp_address());
    resp.send(command(&["GET", "key:1"]));
    assert!(resp.answer().len() > HUGE);
    await_metric(&proxy, "in_flight_bytes", HUGE as f64);
    drop(slow);
    await_metric(&proxy, "in_flight_bytes", 0.0);
    assert_eq!(get(proxy.http(), "/keys/key:1").body.len(), HUGE);
}

#[test]
fn value_that_left_the_cache_counts_while_a_client_reads_it() {
    let redis = RedisServer::start();
    let proxy = start(&redis, "cache.max_memory = \"512MiB\"\nredis.response_timeout = \"60s\"");
    let hits = || metric(&proxy, r#"reads_total{front_end="http",outcome="hit"}"#);
    for end in [&["DEL", "key:0"][..], &["FLUSHALL"]] {
        fill(&redis, 1, HUGE);
        let no_cache = [("Cache-Control", "no-cache")];
        let response = Client::connect(proxy.http()).request("GET", "/keys/key:0", &no_cache);
        assert_eq!(response.body.len(), HUGE);
        await_metric(&proxy, "in_flight_bytes", 0.0);
        let before = hits();
        let slow = request(&proxy, 0);
        let is_hit = || (hits() > before).then_some(());
        assert!(within(Duration::from_secs(10), is_hit).is_some(), "the value is no hit");
        assert!(metric(&proxy, "in_flight_bytes") < 1.0, "the cache counts it");
        redis.command(end);
        await_metric(&proxy, "in_flight_bytes", HUGE as f64);
        drop(slow);
        await_metric(&proxy, "in_flight_bytes", 0.0);
    }
}

#[test]
fn reply_without_room_is_forwarded() {
    let redis = RedisServer::start();
    let (proxy, slow) = with_slow_client(&redis, ONE_HUGE);
    let large = "v".repeat(1_000_000);
    let mut resp = RespClient::connect(proxy.resp_address());
    for number in 0..3 {
        let list = format!("list:{number}");
        redis.command(&["RPUSH", &list, &large]);
        resp.send(command(&["LRANGE", &list, "0", "-1"]));
        assert!(resp.answer().len() > large.len());
    }
    await_metric(&proxy, "in_flight_discarded_total", 3.0);
    await_metric(&proxy, "in_flight_bytes", HUGE as f64);
    drop(slow);
}

#[test]
fn redis_client_that_does_not_read_is_cut_off() {
    // It takes 30 s.
    if std::env::var_os("RESP_LONG").is_none() {
        return;
    }
    let redis = RedisServer::start();
    fill(&redis, 2, HUGE);
    let proxy = start(&redis, ONE_HUGE);
    let mut slow = RespClient::connect(proxy.resp_address());
    slow.send(command(&["GET", "key:0"]));
    await_metric(&proxy, "in_flight_bytes", HUGE as f64);
    let is_free = || (metric(&proxy, "in_flight_bytes") < 1.0).then_some(());
    assert!(within(Duration::from_secs(25), is_free).is_none(), "the client was cut off early");
    assert!(within(Duration::from_secs(30), is_free).is_some(), "the client was not cut off");
    assert_eq!(get(proxy.http(), "/keys/key:1").body.len(), HUGE);
}

#[test]
fn larger_bound_lets_waiting_values_pass() {
    let redis = RedisServer::start();
    let (proxy, slow) = with_slow_client(&redis, ONE_HUGE);
    let mut waiting = request(&proxy, 1);
    await_metric(&proxy, "in_flight_discarded_total", 1.0);
    let larger = config(&redis, &ONE_HUGE.replace("32MiB", "64MiB"));
    assert_eq!(proxy.reload(&larger), Reload::Reloaded);
    assert_eq!(waiting.read_response().body.len(), HUGE);
    await_metric(&proxy, "max_in_flight_bytes", (64 * MEBIBYTE) as f64);
    drop(slow);
}

#[test]
fn value_larger_than_the_bound_is_served() {
    const SIZE: usize = 5_000_000;
    let redis = RedisServer::start();
    fill(&redis, 4, SIZE);
    let proxy = start(&redis, "cache.max_in_flight = \"1MiB\"\nredis.response_timeout = \"60s\"");
    std::thread::scope(|scope| {
        for key in 0..4 {
            let proxy = &proxy;
            scope.spawn(move || {
                let path = format!("/keys/key:{key}");
                assert_eq!(get(proxy.http(), path).body.len(), SIZE);
            });
        }
    });
    let kept = metric(&proxy, "cache_entries") as usize;
    assert_eq!(kept, 4);
    await_metric(&proxy, "in_flight_bytes", 0.0);
}

#[test]
fn bound_below_a_mebibyte_is_refused() {
    for (value, found) in
        [("1000KB", "found 1000000B, expected at least 1MiB"), ("12XB", "expected a size")]
    {
        let builder =
            Proxy::builder(&format!("cache.max_in_flight = \"{value}\"")).argument("check");
        let (code, output) = builder.run_to_end();
        assert!(code == 78 && output.contains(found), "{value}: {code} {output}");
        assert!(output.contains("cache.max_in_flight"), "{output}");
    }
}
