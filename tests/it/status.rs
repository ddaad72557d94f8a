//! The status page.
//!
//! Promise: it shows the same counts as `/metrics`, needs nothing from elsewhere, and is served
//! beside `/metrics`.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use serde_json::{Value, json};

use crate::support::http;
use crate::support::serving::{metric, proxy, read, reads, set};
use crate::support::{Proxy, RedisServer, eventually};

fn status(proxy: &Proxy) -> Value {
    let response = http::get(proxy.admin(), "/status.json");
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&response.body).expect("JSON")
}

/// Returns the element of `list` that has `value` at `key`.
fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    list.as_array().expect("a list").iter().find(|each| each[key] == value).expect("an element")
}

#[test]
fn status_has_the_counts_of_the_metrics() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "admin.hotkeys = 10");
    set(&redis, "key", "value");
    (0..5).for_each(|_| assert_eq!(read(&proxy, "key").status, 200));
    (0..3).for_each(|_| assert_eq!(read(&proxy, "absent").status, 404));
    let status = status(&proxy);
    assert_eq!(status["state"]["level"], "fresh");
    let shown_reads = &status["reads"];
    assert_eq!((&shown_reads["total"], &shown_reads["from_memory"]), (&json!(8), &json!(6)));
    assert_eq!(shown_reads["hit_ratio"], 0.75);
    for (outcome, expected) in [("hit", 4.0), ("negative_hit", 2.0), ("miss", 2.0), ("stale", 0.0)]
    {
        let metric = json!(reads(&proxy, outcome));
        assert_eq!(metric, json!(expected), "{outcome}");
        let shown = find(&shown_reads["outcomes"], "outcome", outcome);
        assert_eq!(shown["reads"].as_f64(), Some(expected), "{outcome}");
        assert_eq!(shown["p99_seconds"].is_null(), expected == 0.0, "{outcome}");
    }
    let values = find(&status["memory"], "store", "values");
    for (key, series) in [
        ("entries", "cache_entries"),
        ("bytes", "cache_bytes"),
        ("max_entries", "cache_capacity_entries"),
    ] {
        assert_eq!(values[key].as_f64(), Some(metric(&proxy, series)), "{key}");
        assert!(values[key].as_f64() > Some(0.0), "{key}");
    }
    let open = &find(&status["connections"], "front_end", "admin")["open"];
    assert!(open.as_i64() >= Some(1), "{open}");
    assert_eq!(status["nodes"][0]["up"], true);
    assert_eq!(status["hot_keys"][0], json!({ "key": "key", "reads": 5, "error": 0 }));
    assert_eq!(status["last_reload"]["applied"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn status_history_has_the_reads_of_each_interval() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    assert_eq!(status(&proxy)["hot_keys"], Value::Null);
    (0..10).for_each(|_| assert_eq!(read(&proxy, "absent").status, 404));
    eventually("the history has the reads", || {
        let history = &status(&proxy)["history"];
        let reads = history["reads"].as_array().expect("a list");
        let total: f64 = reads.iter().filter_map(Value::as_f64).sum();
        let seconds = history["interval_seconds"].as_f64().expect("seconds");
        ((total * seconds - 10.0).abs() < 0.01).then_some(())
    });
}

#[test]
fn status_page_needs_nothing_from_elsewhere() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    for (path, content_type) in [
        ("/status", "text/html; charset=utf-8"),
        ("/status.css", "text/css; charset=utf-8"),
        ("/status.js", "text/javascript; charset=utf-8"),
    ] {
        let response = http::get(proxy.admin(), path);
        assert_eq!((response.status, response.header("content-type")), (200, Some(content_type)));
        let policy = response.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'self'; ") && !policy.contains("unsafe"));
        let text = String::from_utf8(response.body.clone()).expect("UTF-8");
        assert!(!text.contains("://") && !text.contains(" style=") && !text.contains("onclick"));
    }
    let root = http::get(proxy.admin(), "/");
    assert_eq!((root.status, root.header("location")), (307, Some("/status")));
    assert_eq!(http::get(proxy.http(), "/status").status, 404);
}
