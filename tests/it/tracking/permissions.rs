//! Permissions and limits of Redis that tracking needs.
//!
//! Promise: where tracking is denied or unreliable, the proxy falls back to TTLs or reports itself
//! unready, as configured, and logs one warning.

use std::time::Instant;

use super::{
    A_SECOND, CONNECTED, assert_comes_true, assert_metric, await_coherence, await_told_link,
    await_truth, coherence, is_hit, keep, lasting, run, tracked,
};
use crate::support::fault_stage::DOWN;
use crate::support::serving::{
    assert_hit, await_ready, config, lines_with_message, metric, proxy, read, readyz, set, text,
    value,
};
use crate::support::{Proxy, RedisServer, Reload, eventually};

/// The warning where Redis denies tracking.
const UNTRACKED: &str = "Redis sends no invalidations";
/// The warning where Redis tracks fewer keys than memory keeps.
const SMALL_TABLE: &str = "tracking-table-max-keys";
const LOGIN: &str = "redis.username = \"reader\"\nredis.password = \"hunter2\"";
const READING: [&str; 5] = [">hunter2", "~*", "+@read", "+@connection", "+@transaction"];
const NO_TRACKING: [&str; 2] = ["-client|tracking", "-client|trackinginfo"];

/// Adds ACL rules to those for reading.
fn allow(redis: &RedisServer, rules: &[&str]) {
    redis.command(&[["ACL", "SETUSER", "reader", "on"].as_slice(), rules].concat());
}

/// Starts a proxy for a user that may read, except by these rules.
fn restricted(redis: &RedisServer, rules: &[&str], more: &str) -> Proxy {
    allow(redis, &[&READING, rules].concat());
    let proxy = Proxy::start(&config(&redis.url(), &lasting(&format!("{LOGIN}\n{more}"))));
    proxy.expect_log(UNTRACKED);
    proxy
}

/// Asserts that a change stays unnoticed and that absence is not cached.
#[track_caller]
fn assert_untracked(redis: &RedisServer, proxy: &Proxy) {
    await_ready(proxy);
    await_told_link(proxy);
    assert_eq!(coherence(proxy), "ttl");
    assert_metric(proxy, "tracking_active", 0);
    keep(redis, proxy, "key", "old");
    set(redis, "key", "new");
    assert_hit(&read(proxy, "key"));
    for _ in 0..2 {
        assert!(!is_hit(&read(proxy, "nothing")));
    }
}

fn warnings(proxy: &Proxy, part: &str) -> usize {
    proxy.log_lines().iter().filter(|line| line.is_trouble() && line.text().contains(part)).count()
}

#[test]
fn denied_tracking_serves_no_stale_values() {
    let redis = RedisServer::start();
    let proxy =
        restricted(&redis, &[], "cache.coherence = \"tracking\"\ncache.stale_if_error = \"1h\"");
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    keep(&redis, &proxy, "key", "old");
    allow(&redis, &NO_TRACKING);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("the refusal is noticed", || {
        readyz(&proxy).1.contains("CLIENT TRACKING").then_some(())
    });
    assert_eq!(read(&proxy, "key").status, 503);
    assert_metric(&proxy, "cache_entries", 0);
}

#[test]
fn denied_tracking_falls_back_to_ttl_with_one_warning() {
    let redis = RedisServer::start();
    let proxy = restricted(&redis, &NO_TRACKING, "");
    proxy.expect_log(DOWN);
    assert_untracked(&redis, &proxy);
    for lost in 1..=3 {
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("another link", || {
            (lines_with_message(&proxy, CONNECTED) == lost + 1).then_some(())
        });
    }
    assert_eq!(text(&read(&proxy, "key")), "old", "what is bounded by the TTL outlives a link");
    assert_metric(&proxy, "invalidations_total{kind=\"disconnect\"}", 0);
    assert_metric(&proxy, "tracking_reconnects_total", 0);
    assert_eq!(warnings(&proxy, UNTRACKED), 1);
    let line = proxy.wait_for_log(|line| line.text().contains(UNTRACKED));
    let reason = line.field("reason").unwrap_or_default();
    assert!(reason.contains("CLIENT TRACKING ON") && reason.contains("NOPERM"), "{reason}");
}

#[test]
fn granted_right_enables_tracking_without_restart() {
    let redis = RedisServer::start();
    let proxy = restricted(&redis, &NO_TRACKING, "");
    assert_untracked(&redis, &proxy);
    assert_eq!(value(&proxy, "key"), "old");
    allow(&redis, &["+client|tracking", "+client|trackinginfo"]);
    await_coherence(&proxy, "tracking");
    assert_metric(&proxy, "tracking_active", 1);
    assert_eq!(value(&proxy, "key"), "new", "what was kept before is dropped");
    keep(&redis, &proxy, "key", "newer");
    set(&redis, "key", "newest");
    assert_comes_true(&redis, &proxy, "key", "SET");
    proxy.wait_for_log(|line| line.has_message("Redis sends invalidations now"));
    assert_eq!(lines_with_message(&proxy, CONNECTED), 1, "over the same link");
    assert_eq!(warnings(&proxy, UNTRACKED), 1);
}

#[test]
fn revoked_right_logs_one_more_warning() {
    let redis = RedisServer::start();
    let proxy = restricted(&redis, &[], "cache.stale_if_error = \"5m\"");
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    assert_eq!(coherence(&proxy), "tracking");
    keep(&redis, &proxy, "key", "old");
    allow(&redis, &NO_TRACKING);
    run(&redis, "key", "MULTI; CLIENT KILL TYPE normal; SET K new; EXEC");
    await_coherence(&proxy, "ttl");
    assert_eq!(value(&proxy, "key"), "new", "what was kept before is dropped");
    eventually("the log tells of the link", || {
        (lines_with_message(&proxy, CONNECTED) == 2).then_some(())
    });
    assert_eq!(warnings(&proxy, UNTRACKED), 1);
}

#[test]
fn unverifiable_tracking_is_not_trusted() {
    let redis = RedisServer::start();
    let proxy = restricted(&redis, &["-client|trackinginfo"], "");
    await_ready(&proxy);
    await_told_link(&proxy);
    assert_eq!(coherence(&proxy), "ttl");
    assert_eq!(warnings(&proxy, "CLIENT TRACKINGINFO"), 1);
}

#[test]
fn redis_without_hello_is_read_over_resp2() {
    for (arguments, login) in [
        (["--rename-command", "HELLO", ""].as_slice(), ""),
        (
            &["--rename-command", "HELLO", "", "--requirepass", "hunter2"],
            "redis.password = \"hunter2\"",
        ),
    ] {
        let redis = RedisServer::builder().arguments(arguments).start();
        let proxy = proxy(&redis, &lasting(login));
        proxy.expect_log(UNTRACKED);
        assert_untracked(&redis, &proxy);
        assert_eq!(warnings(&proxy, "HELLO"), 1);
    }
}

#[test]
fn ttl_mode_requests_no_tracking() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &lasting("cache.coherence = \"ttl\""));
    assert_untracked(&redis, &proxy);
    // HELLO is sent: replies are kept in the form of RESP3.
    for command in ["client|tracking", "client|trackinginfo", "config|get"] {
        assert_eq!(redis.calls(command), 0, "{command}");
    }
}

#[test]
fn tracking_mode_is_unready_until_permitted() {
    let redis = RedisServer::start();
    let proxy = restricted(&redis, &NO_TRACKING, "cache.coherence = \"tracking\"");
    proxy.expect_log(DOWN);
    set(&redis, "key", "value");
    proxy.wait_for_log(|line| line.text().contains(DOWN));
    let (status, received) = readyz(&proxy);
    assert!(status == 503 && received.contains("CLIENT TRACKING"), "{status}: {received}");
    assert_eq!(coherence(&proxy), "none");
    assert_eq!(read(&proxy, "key").status, 503);
    allow(&redis, &["+client|tracking", "+client|trackinginfo"]);
    await_ready(&proxy);
    assert_eq!(coherence(&proxy), "tracking");
    assert_eq!(value(&proxy, "key"), "value");
}

#[test]
fn readyz_names_the_mode_before_first_link() {
    let mut redis = RedisServer::start();
    redis.stop();
    for (mode, expected) in [("auto", "none"), ("tracking", "none"), ("ttl", "ttl")] {
        let proxy = Proxy::start(&config(&redis.url(), &format!("cache.coherence = \"{mode}\"")));
        proxy.expect_log(DOWN);
        assert_eq!((readyz(&proxy).0, coherence(&proxy)), (503, expected.to_owned()), "{mode}");
        assert_metric(&proxy, "tracking_active", 0);
    }
}

/// The permissions that a user needs.
const RULES: [&str; 4] = ["+get", "+pttl", "+client|tracking", "+client|trackinginfo"];

fn with_rules(redis: &RedisServer, rules: &[&str]) -> Proxy {
    redis.command(
        &[["ACL", "SETUSER", "redis-proxy", "reset", "on", ">hunter2", "~*"].as_slice(), rules]
            .concat(),
    );
    let login = "redis.username = \"redis-proxy\"\nredis.password = \"hunter2\"";
    let timeout = "cache.coherence_timeout = \"300ms\"";
    Proxy::start(&config(&redis.url(), &lasting(&format!("{login}\n{timeout}"))))
}

#[test]
fn four_permissions_suffice_for_tracking() {
    let redis = RedisServer::start();
    let proxy = with_rules(&redis, &RULES);
    await_ready(&proxy);
    assert_eq!(coherence(&proxy), "tracking");
    for number in 0..100 {
        keep(&redis, &proxy, "key", &number.to_string());
    }
    // A rejected PING renews the lease as well as a reply does. Otherwise the lease would end after
    // 300 ms.
    let begun = Instant::now();
    let (mut tracking, mut others) = (0, 0);
    while begun.elapsed() < A_SECOND {
        if coherence(&proxy) == "tracking" { tracking += 1 } else { others += 1 }
    }
    assert!(tracking > others, "{tracking} with a lease, {others} without");
    assert_eq!(lines_with_message(&proxy, CONNECTED), 1);
}

#[test]
fn each_tracking_permission_is_required() {
    for missing in RULES {
        let redis = RedisServer::start();
        let rules: Vec<&str> = RULES.into_iter().filter(|rule| *rule != missing).collect();
        let proxy = with_rules(&redis, &rules);
        proxy.expect_log(UNTRACKED);
        await_ready(&proxy);
        set(&redis, "key", "value");
        let works = read(&proxy, "key").status == 200 && coherence(&proxy) == "tracking";
        assert!(!works, "without {missing}");
    }
}

const TEN: [&str; 2] = ["--tracking-table-max-keys", "10"];

/// Returns the warnings so far, each with the two numbers it names.
fn table_warnings(proxy: &Proxy) -> Vec<(Option<String>, Option<String>)> {
    let lines = proxy.log_lines();
    let warnings =
        lines.iter().filter(|line| line.level() == "WARN" && line.text().contains(SMALL_TABLE));
    warnings.map(|line| (line.field("capacity"), line.field("limit"))).collect()
}

fn warning_of(capacity: &str) -> (Option<String>, Option<String>) {
    (Some(capacity.to_owned()), Some("10".to_owned()))
}

#[test]
fn capacity_above_tracking_table_warns_once() {
    let redis = RedisServer::builder().arguments(&TEN).start();
    let proxy = tracked(&redis, "cache.capacity = 11");
    proxy.expect_log(SMALL_TABLE);
    await_told_link(&proxy);
    assert_eq!(table_warnings(&proxy), [warning_of("11")]);
}

#[test]
fn capacity_raised_above_tracking_table_warns() {
    let redis = RedisServer::builder().arguments(&TEN).start();
    let proxy = tracked(&redis, "cache.capacity = 10");
    proxy.expect_log(SMALL_TABLE);
    await_told_link(&proxy);
    assert_eq!(table_warnings(&proxy), []);
    for (capacity, expected) in [("50", vec![warning_of("50")]), ("10", vec![warning_of("50")])] {
        let more = lasting(&format!("cache.capacity = {capacity}"));
        assert_eq!(proxy.reload(&config(&redis.url(), &more)), Reload::Reloaded);
        eventually("the warning", || (table_warnings(&proxy) == expected).then_some(()));
    }
}

#[test]
fn hidden_tracking_limit_logs_no_warning() {
    let redis = RedisServer::builder().arguments(&TEN).start();
    redis.command(&["ACL", "SETUSER", "default", "-config"]);
    let proxy = tracked(&redis, "cache.capacity = 1000");
    keep(&redis, &proxy, "key", "old");
    set(&redis, "key", "new");
    assert_comes_true(&redis, &proxy, "key", "SET");
    await_told_link(&proxy);
    assert_eq!(table_warnings(&proxy), []);
}

#[test]
fn full_tracking_table_loses_no_change() {
    let redis = RedisServer::builder().arguments(&TEN).start();
    let proxy = tracked(&redis, "");
    proxy.expect_log(SMALL_TABLE);
    let keys: Vec<String> = (0..100).map(|key| format!("key {key}")).collect();
    for text in ["old", "new", "newer"] {
        for key in &keys {
            set(&redis, key, text);
        }
        await_truth(&redis, &proxy, &keys);
    }
    eventually("the cache keeps no more than Redis remembers", || {
        (metric(&proxy, "cache_entries") <= 10.0).then_some(())
    });
}
