//! Keys that are kept hot (`refresh = true` of a rule).
//!
//! Promise: a key that is read often is fetched again after a change and before its TTL ends, so
//! that no reader waits. Nothing else is, and never more than `cache.refresh_rate` a second.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::cluster::RedisCluster;
use crate::support::fault_stage::DOWN;
use crate::support::resp_client::{RespClient, bulk};
use crate::support::sentinel::Watched;
use crate::support::serving::{
    assert_hit, await_metric, await_ready, config, metric, proxy, read, set, text, value,
};
use crate::support::{Proxy, RedisServer, Reload, eventually};

/// Redis clients are served, and a lease does not end on a busy machine.
const BASE: &str = "resp.listen = \"127.0.0.1:0\"\ncache.coherence_timeout = \"60s\"\n";
const RULE: &str = "{ keys = \"hot:*\", ttl = \"1h\", refresh = true }";

fn settings(rules: &[&str], more: &str) -> String {
    format!("{BASE}{more}\ncache.rules = [{}]", rules.join(", "))
}

fn refreshes(proxy: &Proxy, result: &str) -> f64 {
    metric(proxy, &format!("refreshes_total{{result=\"{result}\"}}"))
}

fn await_stored(proxy: &Proxy, count: u32) {
    await_metric(proxy, "refreshes_total{result=\"stored\"}", count.into());
}

/// Reads a key three times: a fetch and two hits.
fn heat(proxy: &Proxy, key: &str) {
    (0..3).for_each(|_| drop(value(proxy, key)));
}

/// Writes keys of Redis, each of which is kept, and waits until all are refreshed that will be.
/// Refreshes run in the order of the writes, so the last one is that of `hot:fence`.
fn write_and_await(redis: &RedisServer, proxy: &Proxy, keys: &[&str]) {
    if metric(proxy, "cache_entries").total_cmp(&0.0).is_gt() {
        set(redis, "hot:fence", "1");
        heat(proxy, "hot:fence");
    }
    let stored = refreshes(proxy, "stored");
    for key in keys {
        set(redis, key, "other");
    }
    set(redis, "hot:fence", "2");
    eventually("the last key is refreshed", || {
        let is_hit = refreshes(proxy, "stored") > stored && value(proxy, "hot:fence") == "2";
        is_hit.then_some(())
    });
}

#[test]
fn hot_key_is_a_hit_with_the_new_value_after_a_write() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(&[RULE], ""));
    set(&redis, "hot:1", "0");
    heat(&proxy, "hot:1");
    for turn in 1..=20 {
        set(&redis, "hot:1", &turn.to_string());
        await_stored(&proxy, turn);
        for _ in 0..2 {
            let response = read(&proxy, "hot:1");
            assert_hit(&response);
            assert_eq!(text(&response), turn.to_string());
        }
    }
    assert_eq!(metric(&proxy, "cache_misses_total").to_string(), "1");
    assert_eq!(redis.calls("get"), 21);
}

#[test]
fn reads_of_redis_clients_make_a_key_hot() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(&[RULE], ""));
    let mut client = RespClient::connect(proxy.resp_address());
    set(&redis, "hot:1", "one");
    (0..3).for_each(|_| assert_eq!(client.query(&["GET", "hot:1"]), bulk("one")));
    // Its own write too.
    client.query(&["SET", "hot:1", "two"]);
    await_stored(&proxy, 1);
    let calls = redis.calls("get");
    (0..3).for_each(|_| assert_eq!(client.query(&["GET", "hot:1"]), bulk("two")));
    assert_eq!(redis.calls("get"), calls);
}

#[test]
fn absent_key_that_is_hot_is_fetched_once_it_is_there() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(&[RULE], ""));
    (0..3).for_each(|_| assert_eq!(read(&proxy, "hot:1").status, 404));
    set(&redis, "hot:1", "here");
    await_stored(&proxy, 1);
    assert_hit(&read(&proxy, "hot:1"));
}

#[test]
fn only_keys_that_were_read_since_are_fetched() {
    let redis = RedisServer::start();
    let off = "{ keys = \"off:*\", mode = \"off\", refresh = true }";
    let observe = "{ keys = \"see:*\", mode = \"observe\", refresh = true }";
    let without = "{ keys = \"cold:*\", ttl = \"1h\" }";
    let proxy = proxy(&redis, &settings(&[RULE, off, observe, without], ""));
    for key in ["hot:once", "off:1", "see:1", "cold:1", "none"] {
        set(&redis, key, "value");
    }
    value(&proxy, "hot:once");
    for key in ["off:1", "see:1", "cold:1", "none"] {
        heat(&proxy, key);
    }
    write_and_await(&redis, &proxy, &["hot:once", "off:1", "see:1", "cold:1", "none"]);
    assert_eq!(refreshes(&proxy, "stored").to_string(), "1");
    // The fence is hot by now; a refreshed key without a read since then is not.
    set(&redis, "hot:1", "value");
    heat(&proxy, "hot:1");
    write_and_await(&redis, &proxy, &["hot:1"]);
    let stored = refreshes(&proxy, "stored");
    write_and_await(&redis, &proxy, &["hot:1"]);
    assert_eq!((refreshes(&proxy, "stored") - stored).to_string(), "1");
    assert_eq!(refreshes(&proxy, "failed").to_string(), "0");
}

#[test]
fn rate_holds_and_a_reload_changes_it() {
    const KEYS: usize = 100;
    const RATE: u64 = 20;
    let redis = RedisServer::start();
    let with_rate = |rate: u64| settings(&[RULE], &format!("cache.refresh_rate = {rate}"));
    let proxy = proxy(&redis, &with_rate(RATE));
    let write = |value: &str| {
        let key = |number| [format!("hot:{number}"), value.to_owned()];
        let words: Vec<_> =
            ["MSET".to_owned()].into_iter().chain((0..KEYS).flat_map(key)).collect();
        redis.command(&words);
    };
    write("one");
    let mut client = RespClient::connect(proxy.resp_address());
    for number in 0..3 * KEYS {
        client.query(&["GET", &format!("hot:{}", number % KEYS)]);
    }
    let before = redis.calls("get");
    let begun = Instant::now();
    write("two");
    eventually("most are refreshed", || {
        let fetched = redis.calls("get") - before;
        let allowed = RATE * (begun.elapsed().as_secs() + 1);
        assert!(fetched <= allowed, "{fetched} fetches after {:?}", begun.elapsed());
        (fetched >= 3 * RATE).then_some(())
    });
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(proxy.reload(&config(&redis.url(), &with_rate(1000))), Reload::Reloaded);
    let reloaded = Instant::now();
    await_stored(&proxy, 100);
    assert!(reloaded.elapsed() < Duration::from_secs(2), "{:?}", reloaded.elapsed());
}

#[test]
fn hot_key_is_fetched_before_its_ttl_ends() {
    let redis = RedisServer::start();
    let rule = "{ keys = \"hot:*\", ttl = \"4s\", refresh = true }";
    let proxy = proxy(&redis, &settings(&[rule], ""));
    let mut client = RespClient::connect(proxy.resp_address());
    for key in ["hot:1", "hot:2"] {
        set(&redis, key, "value");
        // One of them is not read again.
        (0..3).for_each(|_| drop(client.query(&["GET", key])));
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        assert_eq!(client.query(&["GET", "hot:1"]), bulk("value"));
        sleep(Duration::from_millis(5));
    }
    assert_eq!(metric(&proxy, "cache_misses_total").to_string(), "2");
    assert_eq!(refreshes(&proxy, "stored").to_string(), "2");
    assert_eq!(redis.calls("get"), 4);
}

#[test]
fn rule_without_refresh_applies_to_keys_that_are_hot() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(&[RULE], ""));
    set(&redis, "hot:1", "value");
    heat(&proxy, "hot:1");
    let fence = "{ keys = \"hot:fence*\", refresh = true }";
    let without = "{ keys = \"hot:*\", ttl = \"1h\" }";
    let other = settings(&[without, fence], "");
    assert_eq!(proxy.reload(&config(&redis.url(), &other)), Reload::Reloaded);
    write_and_await(&redis, &proxy, &["hot:1"]);
    assert_eq!(refreshes(&proxy, "stored").to_string(), "1");
}

#[test]
fn each_primary_of_a_cluster_is_asked_for_its_keys() {
    let cluster = RedisCluster::of(3);
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    let rule = "{ keys = \"{*\", ttl = \"1h\", refresh = true }";
    let more = settings(&[rule], "cache.coherence = \"tracking\"");
    let proxy = Proxy::start(&format!("{listen}{more}\n{}", cluster.settings()));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let keys: Vec<_> = (0..9).map(|number| cluster.key_of(number % 3, number)).collect();
    for key in &keys {
        cluster.set(key, "one");
        heat(&proxy, key);
    }
    let misses = metric(&proxy, "cache_misses_total");
    for key in &keys {
        cluster.set(key, "two");
    }
    await_stored(&proxy, 9);
    for key in &keys {
        let response = read(&proxy, key);
        assert_hit(&response);
        assert_eq!(text(&response), "two", "{key}");
    }
    assert_eq!(metric(&proxy, "cache_misses_total").to_string(), misses.to_string());
}

#[test]
fn primary_of_a_sentinel_is_asked_after_a_failover_too() {
    let watched = Watched::by(1);
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    let more = settings(&[RULE], "cache.coherence = \"tracking\"\nredis.ping_interval = \"100ms\"");
    let proxy = Proxy::start(&format!("{listen}{more}\n{}", watched.settings()));
    proxy.expect_log(DOWN);
    proxy.expect_log("a sentinel does not reply");
    await_ready(&proxy);
    let is_refreshed = |primary: &RedisServer, number: u32| {
        set(primary, "hot:1", "value");
        eventually("the key is read", || (read(&proxy, "hot:1").status == 200).then_some(()));
        heat(&proxy, "hot:1");
        set(primary, "hot:1", &number.to_string());
        await_stored(&proxy, number);
        let response = read(&proxy, "hot:1");
        assert_hit(&response);
        assert_eq!(text(&response), number.to_string());
    };
    is_refreshed(&watched.redis[0], 1);
    watched.fail_over();
    watched.await_failover(1);
    await_ready(&proxy);
    let connections = format!("node_up{{node=\"{}\"", watched.address(1));
    eventually("the proxy follows", || proxy.metrics().text().contains(&connections).then_some(()));
    is_refreshed(&watched.redis[1], 2);
}
