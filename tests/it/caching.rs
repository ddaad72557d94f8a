//! Memory: hits, single flight, eviction and TTLs.
//!
//! Promise: the second read does not reach Redis, and no reply outlives its TTL.
//!
//! Redis itself counts the requests that reach it, by its number of GETs or in MONITOR. The age of
//! a reply is measured by the clock of the test.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::http::{self, Client};
use crate::support::serving::{
    assert_hit, await_metric, behind_relay, cache_status, metric, proxy, read, reads, request, set,
    start_read, text, value,
};
use crate::support::{Http2, Monitor, Proxy, RedisServer, eventually};

#[test]
fn second_read_does_not_reach_redis() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "greeting", "hello");

    let first = read(&proxy, "greeting");
    assert_eq!((first.status, text(&first)), (200, "hello".to_owned()));
    assert!(cache_status(&first).contains("fwd=miss"), "{first:?}");
    for _ in 0..5 {
        let again = read(&proxy, "greeting");
        assert_hit(&again);
        assert_eq!(text(&again), "hello");
    }
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn least_recently_read_of_three_is_evicted() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 3");
    for key in ["a", "b", "c", "d"] {
        set(&redis, key, key);
    }

    for key in ["a", "b", "c", "a", "d"] {
        assert_eq!(value(&proxy, key), key);
    }
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "3");
    assert_eq!(redis.calls("get"), 4, "a, b, c and d once each");

    for key in ["a", "c", "d"] {
        assert_hit(&read(&proxy, key));
    }
    assert_eq!(redis.calls("get"), 4, "a, c and d were still there");
    value(&proxy, "b");
    assert_eq!(redis.calls("get"), 5, "b had gone");
}

#[test]
fn lru_order_is_exact_for_every_sequence() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 4");
    for key in 0..8 {
        set(&redis, &key.to_string(), "value");
    }
    let mut client = Client::connect(proxy.http());
    let mut model: Vec<u32> = Vec::new();
    let mut seed = 12_345_u32;
    for step in 0..400 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = (seed >> 16) % 8;
        let response = client.get(format!("/keys/{key}"));
        let expected_hit = model.contains(&key);
        let hit = cache_status(&response).contains("; hit");
        assert_eq!(hit, expected_hit, "step {step}: {key}, kept: {model:?}");
        model.retain(|&kept| kept != key);
        model.insert(0, key);
        model.truncate(4);
    }
}

#[test]
fn thousand_readers_of_a_cold_key_are_one_get() {
    const READERS: u32 = 1000;
    allow_open_files();
    let (redis, relay, proxy) =
        behind_relay("redis.response_timeout = \"20s\"\nredis.ping_interval = \"20s\"");
    set(&redis, "cold", "one for all");
    let monitor = Monitor::start(&redis);

    relay.stall();
    let mut readers: Vec<Client> = (0..READERS).map(|_| start_read(&proxy, "cold")).collect();
    await_metric(&proxy, "connections{front_end=\"http\"}", f64::from(READERS));
    relay.resume();
    for reader in &mut readers {
        let response = reader.read_response();
        assert_eq!((response.status, text(&response)), (200, "one for all".to_owned()));
    }

    assert_eq!(redis.calls("get"), 1);
    let commands = monitor.commands();
    let gets = commands.iter().filter(|line| line.contains("\"GET\" \"cold\"")).count();
    assert_eq!(gets, 1, "{commands:#?}");
    assert_eq!(reads(&proxy, "miss").to_string(), "1");
    let others = reads(&proxy, "coalesced") + reads(&proxy, "hit");
    assert_eq!(others.to_string(), (READERS - 1).to_string());
    assert!(reads(&proxy, "coalesced") > 0.0);
}

/// Raises the limit of open files, because a thousand connections exceed the usual one.
fn allow_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit { current: maximum, maximum };
    assert!(setrlimit(Resource::Nofile, raised).is_ok());
}

#[test]
fn disconnected_reader_does_not_cancel_others() {
    let (redis, relay, proxy) = behind_relay("daemon.worker_threads = 1");
    set(&redis, "key", "value");
    relay.stall();
    let leader = Client::connect(proxy.http());
    let leader = request_with_a_response_unread(&proxy, leader, "key");
    let mut follower = start_read(&proxy, "key");
    await_arrivals(&proxy);
    drop(leader);
    await_arrivals(&proxy);
    relay.resume();

    assert_eq!(text(&follower.read_response()), "value");
    assert_hit(&read(&proxy, "key"));
    assert_eq!(redis.calls("get"), 1, "the fetch of the one who left served the others");
}

/// Sends a read on a connection with an unread response; dropping the connection resets it.
fn request_with_a_response_unread(proxy: &Proxy, mut client: Client, key: &str) -> Client {
    client.send_raw(&[request(""), request(key)].concat());
    await_metric(proxy, "inflight_fetches", 1.0);
    client
}

#[test]
fn reset_http2_stream_does_not_cancel_others() {
    let (redis, relay, proxy) = behind_relay("");
    set(&redis, "key", "value");
    relay.stall();
    let client = Http2::connect(proxy.http());
    let leader = client.send("key");
    await_metric(&proxy, "inflight_fetches", 1.0);
    let follower = client.send("key");
    // The connection serves streams in order of arrival.
    assert_eq!(client.answer(client.send("")).0, 400);
    leader.abort();
    assert_eq!(client.answer(client.send("")).0, 400);
    relay.resume();

    assert_eq!(client.answer(follower), (200, "value".into()));
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn abandoned_fetch_still_fills_the_cache() {
    let (redis, relay, proxy) = behind_relay("");
    set(&redis, "key", "value");
    relay.stall();
    let client = Http2::connect(proxy.http());
    let reader = client.send("key");
    await_metric(&proxy, "inflight_fetches", 1.0);
    reader.abort();
    drop(client);
    await_metric(&proxy, "connections{front_end=\"http\"}", 0.0);
    relay.resume();
    await_metric(&proxy, "inflight_fetches", 0.0);
    assert_hit(&read(&proxy, "key"));
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn fetch_error_reaches_all_readers_uncached() {
    let (redis, relay, proxy) = behind_relay("daemon.worker_threads = 1");
    redis.command(&["LPUSH", "key", "element"]);
    relay.stall();
    let mut readers: Vec<Client> = (0..10).map(|_| start_read(&proxy, "key")).collect();
    await_arrivals(&proxy);
    relay.resume();
    for reader in &mut readers {
        assert_eq!(reader.read_response().status, 409);
    }
    assert_eq!(redis.calls("get"), 1, "one question for all of them");

    redis.command(&["DEL", "key"]);
    set(&redis, "key", "a string now");
    assert_eq!(value(&proxy, "key"), "a string now");
}

/// Waits until the earlier requests have been read, for a proxy with one worker, which serves in
/// order.
fn await_arrivals(proxy: &Proxy) {
    assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
}

#[test]
fn entry_is_not_served_past_its_ttl() {
    const TTL: Duration = Duration::from_millis(200);
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"\ncache.ttl = \"200ms\"");
    let mut client = Client::connect(proxy.http());
    let mut connection = redis.connection();
    let mut written: Vec<Instant> = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < TTL * 5 {
        let set = redis::cmd("SET").arg("counter").arg(written.len()).exec(&mut connection);
        assert_eq!(set, Ok(()));
        written.push(Instant::now());
        let started = Instant::now();
        let response = client.get("/keys/counter");
        let number: usize = text(&response).parse().unwrap();
        if let Some(overwritten) = written.get(number + 1) {
            let age = started.saturating_duration_since(*overwritten);
            assert!(age < TTL, "value {number} was overwritten {age:?} before it was asked for");
        }
    }
    let (gets, ttls) = (redis.calls("get"), begun.elapsed().as_millis() / TTL.as_millis());
    assert!(gets >= 3 && u128::from(gets) <= ttls + 1, "{gets} fetches in {ttls} TTLs");
}

#[test]
fn absent_keys_not_cached_without_tracking() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"");
    assert_eq!(read(&proxy, "nothing").status, 404);
    assert_eq!(read(&proxy, "nothing").status, 404);
    assert_eq!(redis.calls("get"), 2);
    set(&redis, "nothing", "something");
    assert_eq!(value(&proxy, "nothing"), "something");
}

#[test]
fn expired_value_is_not_served_past_the_grace() {
    /// The TTL and the grace together.
    const LIFE: Duration = Duration::from_secs(2);
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"100ms\"\ncache.stale_if_error = \"1900ms\"");
    proxy.expect_log("no connection to Redis");
    set(&redis, "key", "value");
    value(&proxy, "key");
    let fetched = Instant::now();
    redis.stop();
    let mut stood_in = false;
    eventually("the grace is over", || {
        // The value has to be within its grace when it is served, and so when the read began.
        let elapsed = fetched.elapsed();
        let response = read(&proxy, "key");
        stood_in |= cache_status(&response).contains("ttl=-");
        match response.status {
            503 => Some(()),
            200 => {
                assert!(elapsed < LIFE, "served {elapsed:?} after the fetch");
                None
            }
            other => panic!("status {other}"),
        }
    });
    assert!(stood_in);
    assert_eq!(read(&proxy, "key").status, 503);
}

#[test]
fn redis_reply_is_never_replaced_by_stale_value() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"50ms\"\ncache.stale_if_error = \"60s\"");
    set(&redis, "key", "value");
    value(&proxy, "key");
    redis.command(&["DEL", "key"]);
    redis.command(&["LPUSH", "key", "element"]);
    eventually("the list is noticed", || (read(&proxy, "key").status == 409).then_some(()));
    redis.command(&["DEL", "key"]);
    assert_eq!(read(&proxy, "key").status, 404);
}

#[test]
fn tinylfu_serves_within_its_capacity() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.policy = \"tinylfu\"\ncache.capacity = 5");
    for number in 0..20 {
        let key = number.to_string();
        set(&redis, &key, &key);
        assert_eq!(value(&proxy, &key), key);
    }
    assert!(metric(&proxy, "cache_entries") <= 5.0);
    for _ in 0..10 {
        assert_eq!(value(&proxy, "7"), "7");
    }
    assert_hit(&read(&proxy, "7"));
}

#[test]
fn zero_ttl_caches_nothing() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = 0");
    for number in 1..=3 {
        set(&redis, "key", &number.to_string());
        assert_eq!(value(&proxy, "key"), number.to_string());
        assert_eq!(redis.calls("get"), number);
    }
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "0");
}

#[test]
fn untracked_fetch_uses_multi_exec() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"");
    set(&redis, "key", "value");
    let monitor = Monitor::start(&redis);
    value(&proxy, "key");
    let commands = monitor.commands();
    let multi = commands.iter().position(|line| line.contains("\"MULTI\""));
    let transaction = &commands[multi.unwrap()..];
    let client = |line: &str| line.split(['[', ']']).nth(1).map(str::to_owned);
    for (line, expected) in
        transaction.iter().zip(["\"MULTI\"", "\"GET\" \"key\"", "\"PTTL\" \"key\"", "\"EXEC\""])
    {
        assert!(line.contains(expected), "{transaction:#?}");
        assert_eq!(client(line), client(&transaction[0]));
    }
}
