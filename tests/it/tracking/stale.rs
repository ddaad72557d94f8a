//! `cache.stale_if_error` (stale-if-error).
//!
//! Promise: expired values are served only while Redis is unavailable, only within the grace, and
//! never after a newer value.

use std::time::{Duration, Instant};

use super::{assert_metric, keep, tracked, tracked_over_relay};
use crate::support::fault_stage::DOWN;
use crate::support::serving::{
    await_metric, await_ready, cache_status, proxy, read, reads, readyz, set, text, value,
};
use crate::support::{Proxy, RedisServer, eventually};

const GRACE: &str = "cache.stale_if_error = \"5m\"";

#[track_caller]
fn assert_stale(proxy: &Proxy, key: &str, old: &str) {
    let response = read(proxy, key);
    assert_eq!((response.status, text(&response)), (200, old.to_owned()));
    assert!(cache_status(&response).starts_with("redis-proxy; hit; ttl=-"), "{response:?}");
}

#[track_caller]
fn await_loss(proxy: &Proxy) {
    eventually("the loss is noticed", || (readyz(proxy).0 == 503).then_some(()));
}

/// The modes in which a value becomes stale: by the loss of the link, and by its TTL.
const MODES: [&str; 2] = [
    "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"",
    "cache.ttl = \"1s\"\ncache.coherence = \"ttl\"",
];

#[test]
fn stale_values_are_served_only_during_outage() {
    for mode in MODES {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, &format!("{mode}\n{GRACE}"));
        proxy.expect_log(DOWN);
        set(&redis, "key", "old");
        assert_eq!(value(&proxy, "key"), "old");
        assert_eq!(read(&proxy, "nothing").status, 404);
        redis.stop();
        await_loss(&proxy);
        let stale = eventually("the value is stale", || {
            let response = read(&proxy, "key");
            assert_eq!((response.status, text(&response)), (200, "old".to_owned()));
            cache_status(&response).contains("ttl=-").then_some(response)
        });
        assert!(stale.header("age").is_some());
        for number in 2..=4_u32 {
            assert_stale(&proxy, "key", "old");
            assert_eq!(reads(&proxy, "stale").to_string(), number.to_string());
        }
        for never_cached in ["nothing", "another"] {
            assert_eq!(read(&proxy, never_cached).status, 503, "{never_cached}");
        }
        assert_metric(&proxy, "tracking_active", 0);
        redis.restart();
        await_ready(&proxy);
        assert_eq!(read(&proxy, "key").status, 404);
        set(&redis, "key", "new");
        eventually("the new value", || (read(&proxy, "key").status == 200).then_some(()));
        assert_eq!(value(&proxy, "key"), "new");
    }
}

#[test]
fn no_grace_serves_no_stale_value() {
    for mode in MODES {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, mode);
        proxy.expect_log(DOWN);
        set(&redis, "key", "old");
        value(&proxy, "key");
        let fetched = Instant::now();
        redis.stop();
        await_loss(&proxy);
        let is_tracked = mode.contains("tracking");
        eventually("the value is refused", || {
            let elapsed = fetched.elapsed();
            let status = read(&proxy, "key").status;
            let may_hit = !is_tracked && elapsed < Duration::from_secs(1);
            assert!(status == 503 || may_hit, "{status} after {elapsed:?}");
            (status == 503).then_some(())
        });
        if is_tracked {
            assert_metric(&proxy, "cache_entries", 0);
        }
        assert_eq!(reads(&proxy, "stale").to_string(), "0");
    }
}

#[test]
fn old_value_never_follows_the_new_one() {
    let mut redis = RedisServer::start();
    let (relay, proxy) = tracked_over_relay(&redis, GRACE);
    proxy.expect_log(DOWN);
    for round in 0..6 {
        keep(&redis, &proxy, "key", "old");
        relay.cut();
        if round % 2 == 0 {
            redis.stop();
            redis.restart();
        }
        await_loss(&proxy);
        assert_stale(&proxy, "key", "old");
        set(&redis, "key", "new");
        relay.resume();
        if round % 3 == 0 {
            // The stale value is dropped before the new connection is used. On a busy machine a
            // read in between gets 503.
            eventually("the new value", || (text(&read(&proxy, "key")) == "new").then_some(()));
        } else {
            // Once the proxy is ready, no read at all returns the old value.
            await_ready(&proxy);
        }
        for _ in 0..100 {
            assert_eq!(value(&proxy, "key"), "new");
        }
    }
}

#[test]
fn silent_redis_serves_stale_values() {
    let redis = RedisServer::start();
    let timeouts = "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"100ms\"\n\
                    redis.response_timeout = \"500ms\"";
    let (relay, proxy) = tracked_over_relay(&redis, &format!("{GRACE}\n{timeouts}"));
    proxy.expect_log(DOWN);
    keep(&redis, &proxy, "key", "old");
    relay.stall();
    await_metric(&proxy, "tracking_active", 0.0);
    assert_stale(&proxy, "key", "old");
    set(&redis, "key", "new");
    relay.resume();
    eventually("the new value", || (value(&proxy, "key") == "new").then_some(()));
}

#[test]
fn stale_if_error_counts_from_the_loss() {
    const GRACE: Duration = Duration::from_secs(1);
    let mut redis = RedisServer::start();
    let proxy = tracked(&redis, "cache.stale_if_error = \"1s\"");
    proxy.expect_log(DOWN);
    keep(&redis, &proxy, "key", "old");
    let fetched = Instant::now();
    eventually("the value is older than the grace", || (fetched.elapsed() > GRACE).then_some(()));
    let stopped = Instant::now();
    redis.stop();
    // The first stale reply shows that the loss has been noticed.
    let mut noticed = None;
    eventually("the grace is over", || {
        let sent = Instant::now();
        let response = read(&proxy, "key");
        if response.status == 503 {
            return Some(());
        }
        if cache_status(&response).contains("ttl=-") {
            let noticed = *noticed.get_or_insert_with(Instant::now);
            assert!(sent < noticed + GRACE, "{:?} too late", sent - noticed);
        }
        None
    });
    assert!(noticed.is_some(), "it stood in");
    assert!(stopped.elapsed() >= GRACE, "{:?}", stopped.elapsed());
}
