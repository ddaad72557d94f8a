//! The Prometheus metrics.
//!
//! Promise: every series exists from the start, the numbers add up, and the format is valid.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::http::{self, Client};
use crate::support::resp_client::RespClient;
use crate::support::serving::{
    assert_hit, await_metric, behind_relay, cache_status, config, metric, proxy, read, reads, set,
    start_read, text, value,
};
use crate::support::skip::skipped_without;
use crate::support::{Proxy, RedisServer, Reload, eventually};

const OUTCOMES: [&str; 7] =
    ["hit", "miss", "coalesced", "stale", "negative_hit", "bypass", "error"];
const CAUSES: [&str; 6] = ["capacity", "expired", "invalidated", "flushed", "resized", "memory"];

/// Asserts the value of `redis_proxy_{series}`.
#[track_caller]
fn assert_metric(proxy: &Proxy, series: &str, expected: u64) {
    assert_eq!(metric(proxy, series).to_string(), expected.to_string(), "{series}");
}

#[track_caller]
fn assert_evictions(proxy: &Proxy, expected: [(&str, u64); 5]) {
    for (cause, count) in expected {
        assert_metric(proxy, &format!("cache_evictions_total{{cause=\"{cause}\"}}"), count);
    }
}

/// Returns the number of reads and the count of their histogram.
fn all_reads(proxy: &Proxy) -> (f64, f64) {
    let sum = |name: &str| {
        OUTCOMES.map(|outcome| {
            metric(proxy, &format!("{name}{{front_end=\"http\",outcome=\"{outcome}\"}}"))
        })
    };
    (sum("reads_total").iter().sum(), sum("request_duration_seconds_count").iter().sum())
}

#[test]
fn failed_read_is_no_miss_and_its_response_is_counted() {
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    proxy.expect_log("connection to Redis");
    assert_eq!(read(&proxy, "key").status, 404);
    redis.command(&["HSET", "hash", "a", "b"]);
    assert_eq!(read(&proxy, "hash").status, 409);
    redis.stop();
    eventually("Redis is gone", || (read(&proxy, "other").status == 503).then_some(()));
    let errors = metric(&proxy, "read_errors_total");
    assert!(errors >= 2.0, "{errors}");
    let of_errors = |name: &str| format!("{name}{{front_end=\"http\",outcome=\"error\"}}");
    for series in ["reads_total", "request_duration_seconds_count"] {
        assert_eq!(metric(&proxy, &of_errors(series)).to_string(), errors.to_string());
    }
    let of_class = |class: &str| {
        metric(&proxy, &format!("http_responses_total{{front_end=\"http\",class=\"{class}\"}}"))
    };
    assert!(of_class("5xx") >= 1.0);
    assert_eq!((of_class("2xx").to_string(), of_class("4xx") >= 2.0), ("0".to_owned(), true));
}

#[test]
fn responses_are_counted_by_class() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let mut client = http::Client::connect(proxy.http());
    let tag = client.get("/keys/key").header("etag").expect("a tag").to_owned();
    client.get("/keys/key");
    // hyper serves the first of these, and all that follow.
    client.request("GET", "/keys/key", &[("If-None-Match", &tag)]);
    client.request("POST", "/keys/key", &[]);
    client.get("/keys/key");
    for (class, expected) in [("2xx", "3"), ("3xx", "1"), ("4xx", "1"), ("5xx", "0")] {
        let series = format!("http_responses_total{{front_end=\"http\",class=\"{class}\"}}");
        assert_eq!(metric(&proxy, &series).to_string(), expected, "{class}");
    }
    let admin = "http_responses_total{front_end=\"admin\",class=\"2xx\"}";
    assert!(metric(&proxy, admin) >= 1.0);
}

#[test]
fn command_has_a_series_once_it_was_seen() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "resp.listen = \"127.0.0.1:0\"");
    assert!(!proxy.metrics().text().contains("commands_total"));
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.reply_to_words(&["PING"]);
    eventually("the command is counted", || {
        (proxy.metrics().value("redis_proxy_commands_total{command=\"ping\"}") == Some(1.0))
            .then_some(())
    });
    assert_eq!(proxy.metrics().text().matches("redis_proxy_commands_total{").count(), 1);
}

#[test]
fn every_series_exists_from_the_start() {
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&config(&redis.url(), "cache.capacity = 123\ncache.ttl = \"90s\""));
    proxy.expect_log("no connection to Redis");
    let zero =
        ["cache_hits_total", "cache_misses_total", "cache_entries", "cache_bytes", "backend_up"];
    for name in zero.into_iter().chain([
        "tracking_active",
        "tracking_reconnects_total",
        "fetches_discarded_total",
    ]) {
        assert_metric(&proxy, name, 0);
    }
    for cause in &CAUSES {
        assert_metric(&proxy, &format!("cache_evictions_total{{cause=\"{cause}\"}}"), 0);
    }
    for kind in ["key", "all", "disconnect"] {
        assert_metric(&proxy, &format!("invalidations_total{{kind=\"{kind}\"}}"), 0);
    }
    assert_eq!(all_reads(&proxy), (0.0, 0.0));
    assert_metric(&proxy, "backend_duration_seconds_count", 0);
    assert_metric(&proxy, "connections{front_end=\"http\"}", 0);
    for reason in ["token", "key", "tls"] {
        assert_metric(
            &proxy,
            &format!("rejected_total{{front_end=\"http\",reason=\"{reason}\"}}"),
            0,
        );
    }
    for reason in ["login", "key", "command", "tls"] {
        assert_metric(
            &proxy,
            &format!("rejected_total{{front_end=\"resp\",reason=\"{reason}\"}}"),
            0,
        );
    }
    for result in ["success", "failure"] {
        assert_metric(&proxy, &format!("config_reloads_total{{result=\"{result}\"}}"), 0);
    }
    for kind in [
        "timeout",
        "disconnected",
        "overloaded",
        "unavailable",
        "error_reply",
        "wrong_type",
        "cancelled",
    ] {
        assert_metric(&proxy, &format!("backend_errors_total{{kind=\"{kind}\"}}"), 0);
    }
    assert_metric(&proxy, "cache_capacity_entries", 123);
    assert_metric(&proxy, "cache_ttl_seconds", 90);
    assert_metric(&proxy, &format!("build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1);
    let metrics = proxy.metrics();
    for name in [
        "process_open_fds",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_threads",
    ] {
        assert!(metrics.value(name).is_some(), "{name}");
    }
}

#[test]
fn latency_buckets_start_at_ten_microseconds() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let metrics = proxy.metrics();
    let buckets = [
        "redis_proxy_request_duration_seconds_bucket{front_end=\"http\",outcome=\"hit\",le=\"0.00001\"}",
        "redis_proxy_backend_duration_seconds_bucket{le=\"0.00001\"}",
    ];
    for bucket in &buckets {
        assert_eq!(metrics.value(bucket), Some(0.0), "{}", metrics.text());
    }
}

#[test]
fn hits_and_misses_sum_to_all_reads() {
    let (mut redis, relay, proxy) =
        behind_relay("cache.negative_ttl = \"60s\"\ncache.stale_if_error = \"60s\"");
    proxy.expect_log("no connection to Redis");
    set(&redis, "key", "value");
    redis.command(&["LPUSH", "list", "element"]);
    for _ in 0..3 {
        value(&proxy, "key");
        assert_eq!(read(&proxy, "nothing").status, 404);
        assert_eq!(read(&proxy, "list").status, 409);
    }
    relay.stall();
    set(&redis, "shared", "value");
    let mut readers: Vec<Client> = (0..5).map(|_| start_read(&proxy, "shared")).collect();
    await_metric(&proxy, "inflight_fetches", 1.0);
    await_metric(&proxy, "connections{front_end=\"http\"}", 5.0);
    relay.resume();
    for reader in &mut readers {
        assert_eq!(reader.read_response().status, 200);
    }
    redis.stop();
    assert_eq!(
        proxy.reload(&config(&format!("redis://{}", relay.address()), TINY_TTL)),
        Reload::Reloaded
    );
    eventually("a stale read", || {
        cache_status(&read(&proxy, "key")).contains("ttl=-").then_some(())
    });
    assert_eq!(read(&proxy, "never read").status, 503);

    // key: one miss, two hits; nothing: one miss, two negative hits; list: three errors; shared:
    // one miss; never read: an error.
    let hits = metric(&proxy, "cache_hits_total");
    let misses = metric(&proxy, "cache_misses_total");
    let all = hits + misses + metric(&proxy, "read_errors_total");
    assert_eq!((all, all), all_reads(&proxy));
    let from_memory: f64 =
        ["hit", "negative_hit", "stale"].map(|outcome| reads(&proxy, outcome)).iter().sum();
    assert_eq!(hits.to_string(), from_memory.to_string());
    assert_eq!(reads(&proxy, "negative_hit").to_string(), "2");
    assert_eq!(reads(&proxy, "miss").to_string(), "3");
    assert_eq!(reads(&proxy, "error").to_string(), "4");
    let shared = reads(&proxy, "coalesced") + reads(&proxy, "hit");
    assert_eq!(shared.to_string(), (2 + 4).to_string());
    assert!(reads(&proxy, "stale") >= 1.0);
}

const TINY_TTL: &str =
    "cache.ttl = \"1ms\"\ncache.negative_ttl = \"60s\"\ncache.stale_if_error = \"60s\"";

#[test]
fn requests_without_a_read_are_not_counted() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    for path in ["/keys/", "/keys/%zz", "/elsewhere", "/metrics"] {
        http::get(proxy.http(), path);
    }
    assert_eq!(all_reads(&proxy), (0.0, 0.0));
}

#[test]
fn entries_and_bytes_are_exact() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 3\ncache.negative_ttl = \"60s\"");
    // A key of 1, 2, 3... bytes with a value of ten times as many.
    for length in 1..=4 {
        set(&redis, &"k".repeat(length), &"v".repeat(length * 10));
    }
    let mut expected = 0;
    for length in 1..=3 {
        value(&proxy, &"k".repeat(length));
        expected += 11 * length as u64;
        assert_metric(&proxy, "cache_bytes", expected);
        assert_metric(&proxy, "cache_entries", length as u64);
    }
    value(&proxy, "kkkk");
    assert_metric(&proxy, "cache_bytes", 11 * (2 + 3 + 4));
    assert_metric(&proxy, "cache_entries", 3);

    assert_eq!(read(&proxy, "absent").status, 404);
    assert_metric(&proxy, "cache_bytes", 11 * (3 + 4) + 6);

    assert_eq!(
        proxy.reload(&config(&redis.url(), "cache.capacity = 1\ncache.negative_ttl = \"60s\"")),
        Reload::Reloaded
    );
    assert_metric(&proxy, "cache_entries", 1);
    assert_metric(&proxy, "cache_bytes", 6);
    assert_eq!(proxy.reload(&config(&redis.url(), "cache.negative_ttl = 0")), Reload::Reloaded);
    assert_metric(&proxy, "cache_entries", 0);
    assert_metric(&proxy, "cache_bytes", 0);
}

#[test]
fn resized_value_is_recounted() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"20ms\"\ncache.stale_if_error = \"60s\"");
    set(&redis, "key", "short");
    value(&proxy, "key");
    set(&redis, "key", "rather longer");
    eventually("the new value", || (value(&proxy, "key") == "rather longer").then_some(()));
    assert_metric(&proxy, "cache_entries", 1);
    assert_metric(&proxy, "cache_bytes", "keyrather longer".len() as u64);
}

#[test]
fn expired_entries_leave_without_a_read() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"50ms\"");
    for key in ["a", "b", "c"] {
        set(&redis, key, "value");
        value(&proxy, key);
    }
    await_metric(&proxy, "cache_entries", 0.0);
    assert_metric(&proxy, "cache_bytes", 0);
    assert_evictions(
        &proxy,
        [("expired", 3), ("capacity", 0), ("resized", 0), ("invalidated", 0), ("flushed", 0)],
    );
}

#[test]
fn evictions_are_counted_by_cause() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 5");
    for number in 0..8 {
        set(&redis, &number.to_string(), "value");
        value(&proxy, &number.to_string());
    }
    assert_evictions(
        &proxy,
        [("capacity", 3), ("expired", 0), ("resized", 0), ("invalidated", 0), ("flushed", 0)],
    );
    assert_eq!(proxy.reload(&config(&redis.url(), "cache.capacity = 3")), Reload::Reloaded);
    assert_evictions(
        &proxy,
        [("capacity", 3), ("expired", 0), ("resized", 2), ("invalidated", 0), ("flushed", 0)],
    );
    assert_eq!(
        proxy.reload(&config(&redis.url(), "cache.capacity = 3\ncache.ttl = \"1ms\"")),
        Reload::Reloaded
    );
    await_metric(&proxy, "cache_entries", 0.0);
    assert_evictions(
        &proxy,
        [("capacity", 3), ("expired", 3), ("resized", 2), ("invalidated", 0), ("flushed", 0)],
    );
}

#[test]
fn refetched_expired_value_counts_one_expiry() {
    let redis = RedisServer::start();
    // Long enough for the second entry to be there when it is counted.
    let proxy = proxy(&redis, "cache.ttl = \"2s\"");
    set(&redis, "key", "value");
    value(&proxy, "key");
    eventually("fetched again", || {
        value(&proxy, "key");
        (redis.calls("get") == 2).then_some(())
    });
    assert_evictions(
        &proxy,
        [("expired", 1), ("capacity", 0), ("resized", 0), ("invalidated", 0), ("flushed", 0)],
    );
    assert_metric(&proxy, "cache_entries", 1);
}

#[test]
fn every_read_and_fetch_is_timed() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.negative_ttl = 0");
    set(&redis, "key", "value");
    for _ in 0..10 {
        value(&proxy, "key");
        assert_eq!(read(&proxy, "nothing").status, 404);
    }
    assert_eq!(all_reads(&proxy), (20.0, 20.0));
    assert_metric(&proxy, "backend_duration_seconds_count", redis.calls("get"));
    assert_metric(&proxy, "backend_duration_seconds_count", 11);
    assert!(metric(&proxy, "backend_duration_seconds_sum") > 0.0);
    let hits = metric(&proxy, "request_duration_seconds_sum{front_end=\"http\",outcome=\"hit\"}");
    assert!(hits > 0.0 && hits < 1.0, "{hits}");
}

#[test]
fn backend_state_and_errors_are_exported() {
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    proxy.expect_log("no connection to Redis");
    assert_metric(&proxy, "backend_up", 1);
    redis.command(&["LPUSH", "list", "element"]);
    assert_eq!(read(&proxy, "list").status, 409);
    assert_metric(&proxy, "backend_errors_total{kind=\"wrong_type\"}", 1);
    redis.stop();
    await_metric(&proxy, "backend_up", 0.0);
    let before = metric(&proxy, "backend_errors_total{kind=\"unreachable\"}");
    assert_eq!(read(&proxy, "key").status, 503);
    assert!(metric(&proxy, "backend_errors_total{kind=\"unreachable\"}") > before);
    redis.restart();
    await_metric(&proxy, "backend_up", 1.0);
}

#[test]
fn open_connections_are_counted_per_front_end() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let clients: Vec<Client> = (0..3).map(|_| Client::connect(proxy.http())).collect();
    await_metric(&proxy, "connections{front_end=\"http\"}", 3.0);
    drop(clients);
    await_metric(&proxy, "connections{front_end=\"http\"}", 0.0);
    await_metric(&proxy, "connections{front_end=\"admin\"}", 1.0);
}

#[test]
fn tasks_gauge_follows_connections() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "daemon.worker_threads = 3");
    read(&proxy, "key");
    // Without the connections of the test to the admin listener.
    let tasks = || {
        let received = proxy.metrics();
        let value =
            |series: &str| received.value(&format!("redis_proxy_{series}")).expect("a metric");
        (value("tasks")
            - value("connections{front_end=\"admin\"}")
            - value("connections{front_end=\"http\"}"))
        .to_string()
    };
    await_metric(&proxy, "connections{front_end=\"http\"}", 0.0);
    // A connection is counted for a moment longer or shorter than its task lives.
    let (mut own, mut same) = (tasks(), 0);
    eventually("no task comes or goes", || {
        let now = tasks();
        same = if now == own { same + 1 } else { 0 };
        own = now;
        (same > 10).then_some(())
    });
    let mut clients: Vec<Client> = (0..7).map(|_| Client::connect(proxy.http())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/keys/key").status, 404);
    }
    await_metric(&proxy, "connections{front_end=\"http\"}", 7.0);
    eventually("as many more as there are connections", || (tasks() == own).then_some(()));
    assert!(metric(&proxy, "tasks") >= 7.0 + own.parse::<f64>().expect("a number"));
    drop(clients);
    await_metric(&proxy, "connections{front_end=\"http\"}", 0.0);
    eventually("as many as before", || (tasks() == own).then_some(()));
}

#[test]
fn configuration_timestamp_is_exported() {
    let now =
        || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64();
    let redis = RedisServer::start();
    let started = now();
    let proxy = proxy(&redis, "");
    let loaded = || metric(&proxy, "config_last_reload_success_timestamp_seconds");
    let first = loaded();
    assert!(first >= started && first <= now());
    assert_eq!(proxy.reload(&config(&redis.url(), "cache.capacity = 9")), Reload::Reloaded);
    let second = loaded();
    assert!(second > first && second <= now());
    proxy.expect_log("config refused");
    assert_eq!(proxy.reload("cache.capacity = 0"), Reload::Refused);
    assert!(loaded() <= second, "a refused one is not in force");
    assert_metric(&proxy, "config_last_reload_successful", 0);
    assert_metric(&proxy, "config_reloads_total{result=\"success\"}", 1);
    assert_metric(&proxy, "config_reloads_total{result=\"failure\"}", 1);
    assert_eq!(proxy.reload(&config(&redis.url(), "cache.capacity = 9")), Reload::Reloaded);
    assert_metric(&proxy, "config_last_reload_successful", 1);
}

#[test]
fn limits_and_coherence_mode_are_exported() {
    let redis = RedisServer::start();
    let limits = "http.max_connections = 77\nadmin.max_connections = 7";
    let tracking = proxy(&redis, limits);
    assert_metric(&tracking, "connections_limit{front_end=\"http\"}", 77);
    assert_metric(&tracking, "connections_limit{front_end=\"admin\"}", 7);
    assert_metric(&tracking, "tracking_expected", 1);
    let by_ttl = proxy(&redis, "cache.coherence = \"ttl\"");
    assert_metric(&by_ttl, "tracking_expected", 0);
    assert_metric(&by_ttl, "tracking_active", 0);
}

#[test]
fn exposition_format_is_valid() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    value(&proxy, "key");
    assert_hit(&read(&proxy, "key"));
    let response = http::get(proxy.admin(), "/metrics");
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    match check_with_promtool(text(&response).as_bytes()) {
        Ok((success, complaints)) => assert!(success && complaints.is_empty(), "{complaints}"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped_without("promtool", "it is part of Debian's package prometheus");
        }
        Err(error) => panic!("promtool does not start: {error}"),
    }
}

#[test]
fn openmetrics_has_the_same_samples() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    value(&proxy, "key");
    assert_hit(&read(&proxy, "key"));
    let as_asked = |accept: &str| {
        Client::connect(proxy.admin()).request("GET", "/metrics", &[("accept", accept)])
    };
    let (text_format, openmetrics) = (as_asked("*/*"), as_asked("application/openmetrics-text"));
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(openmetrics.header("content-type"), Some(content_type));
    let openmetrics = text(&openmetrics);
    assert!(openmetrics.ends_with("\n# EOF\n"), "{openmetrics}");
    assert!(openmetrics.contains("\n# TYPE redis_proxy_reads counter\nredis_proxy_reads_total{"));

    // Bounds have another spelling, and the process goes on between the two.
    let samples = |exposition: &str| -> Vec<(String, String)> {
        let lines = exposition.lines().filter(|line| !line.starts_with('#'));
        let sample =
            |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.into(), value.into()));
        let steady = |(name, _): &(String, String)| {
            [
                "process_",
                "redis_proxy_http_responses",
                "redis_proxy_tasks",
                "redis_proxy_connections{",
            ]
            .iter()
            .all(|start| !name.starts_with(start))
        };
        lines.filter_map(sample).filter(steady).collect()
    };
    let expected = text(&text_format);
    let spellings = [
        ("0.00001", "1e-05"),
        ("0.000025", "2.5e-05"),
        ("0.00005", "5e-05"),
        ("1", "1.0"),
        ("5", "5.0"),
        ("10", "10.0"),
    ];
    let expected = spellings.iter().fold(expected, |text, (bound, spelling)| {
        text.replace(&format!("le=\"{bound}\""), &format!("le=\"{spelling}\""))
    });
    let (expected, received) = (samples(&expected), samples(&openmetrics));
    assert!(expected.len() > 300, "{}", expected.len());
    assert_eq!(received, expected);
}

/// Returns whether promtool accepts the metrics, and its output.
fn check_with_promtool(metrics: &[u8]) -> std::io::Result<(bool, String)> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("standard input is piped").write_all(metrics)?;
    let output = child.wait_with_output()?;
    let complaints = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&complaints).into_owned()))
}

#[test]
fn hits_and_misses_sum_to_reads_under_load() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let proxy = proxy(&redis, "cache.ttl = \"10ms\"");
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::connect(proxy.http());
                while begun.elapsed() < Duration::from_millis(500) {
                    client.get("/keys/key");
                }
            });
        }
        while begun.elapsed() < Duration::from_millis(500) {
            let metrics = proxy.metrics();
            let of =
                |series: &str| metrics.value(&format!("redis_proxy_{series}")).unwrap_or(f64::NAN);
            let reads = OUTCOMES.map(|outcome| {
                of(&format!("reads_total{{front_end=\"http\",outcome=\"{outcome}\"}}"))
            });
            let sum = ["cache_hits_total", "cache_misses_total", "read_errors_total"]
                .map(of)
                .iter()
                .sum::<f64>();
            assert!((reads.iter().sum::<f64>() - sum).abs() < 0.5, "{reads:?}, {sum}");
        }
    });
}
