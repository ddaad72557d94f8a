//! Reload by SIGHUP.
//!
//! Promise: a valid configuration takes effect as a whole, on cached values too, without a failed
//! request; an invalid one is rejected with every problem named.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::Client;
use crate::support::log::LogLine;
use crate::support::serving::{
    assert_hit, await_metric, await_ready, cache_status, config, lines_with_message, linked,
    metric, proxy, read, reads, readyz, set, text, value,
};
use crate::support::{Proxy, RedisServer, Reload, Signal, eventually};

#[track_caller]
fn reload(proxy: &Proxy, redis: &RedisServer, more: &str) {
    assert_eq!(proxy.reload(&config(&redis.url(), more)), Reload::Reloaded, "{more}");
}

/// Asserts that a configuration is rejected; returns the log line with the reason.
#[track_caller]
fn refuse(proxy: &Proxy, config: &str) -> LogLine {
    proxy.expect_log(REFUSED);
    let before = refusals(proxy).len();
    assert_eq!(proxy.reload(config), Reload::Refused, "{config}");
    let mut refusals = refusals(proxy);
    assert_eq!(refusals.len(), before + 1, "one line: {refusals:#?}");
    refusals.swap_remove(before)
}

const REFUSED: &str = "config refused";

fn refusals(proxy: &Proxy) -> Vec<LogLine> {
    let mut lines = proxy.log_lines();
    lines.retain(|line| line.text().contains(REFUSED));
    lines
}

/// Sets `keys`, each to its own name, and reads each once, in order.
fn fill(redis: &RedisServer, proxy: &Proxy, keys: Range<usize>) {
    let mut connection = redis.connection();
    let mut pipeline = redis::pipe();
    for key in keys.clone() {
        pipeline.cmd("SET").arg(key).arg(key);
    }
    pipeline.exec(&mut connection).expect("redis-server sets keys");
    read_each(proxy, keys);
}

fn read_each(proxy: &Proxy, keys: impl IntoIterator<Item = usize>) {
    let mut client = Client::connect(proxy.http());
    for key in keys {
        let response = client.get(format!("/keys/{key}"));
        assert_eq!(text(&response), key.to_string());
    }
}

mod live {
    use super::*;

    #[test]
    fn smaller_capacity_keeps_the_most_recent_keys() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 10000");
        fill(&redis, &proxy, 0..1000);
        read_each(&proxy, 0..50);
        reload(&proxy, &redis, "cache.capacity = 100");
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "100");
        assert_eq!(metric(&proxy, "cache_capacity_entries").to_string(), "100");
        assert_eq!(metric(&proxy, "cache_evictions_total{cause=\"resized\"}").to_string(), "900");

        let before = redis.calls("get");
        read_each(&proxy, (0..50).chain(950..1000));
        assert_eq!(redis.calls("get"), before, "the hundred read last were kept");
        read_each(&proxy, [500]);
        assert_eq!(redis.calls("get"), before + 1);
    }

    #[test]
    fn lru_order_survives_a_reload() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 10");
        fill(&redis, &proxy, 0..6);
        read_each(&proxy, [1, 0]);
        reload(&proxy, &redis, "cache.capacity = 4");
        // The entries from least to most recently read: 4, 5, 1, 0.
        fill_one(&redis, &proxy, 100);
        let before = redis.calls("get");
        read_each(&proxy, [5, 1, 0]);
        assert_eq!(redis.calls("get"), before);
        read_each(&proxy, [4]);
        assert_eq!(redis.calls("get"), before + 1, "4 made room");
    }

    fn fill_one(redis: &RedisServer, proxy: &Proxy, key: usize) {
        set(redis, &key.to_string(), &key.to_string());
        read_each(proxy, [key]);
    }

    #[test]
    fn larger_capacity_keeps_all_and_has_room() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 100");
        fill(&redis, &proxy, 0..100);
        reload(&proxy, &redis, "cache.capacity = 200");
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "100");
        read_each(&proxy, 0..100);
        assert_eq!(redis.calls("get"), 100, "the first hundred were still there");
        fill(&redis, &proxy, 100..200);
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "200");
    }

    #[test]
    fn shorter_ttl_applies_to_cached_values() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.coherence = \"ttl\"\ncache.ttl = \"60s\"");
        set(&redis, "key", "old");
        value(&proxy, "key");
        set(&redis, "key", "new");
        let fetched = Instant::now();
        eventually("the entry is older than the new TTL", || {
            (fetched.elapsed() > Duration::from_millis(50)).then_some(())
        });
        assert_eq!(value(&proxy, "key"), "old");
        reload(&proxy, &redis, "cache.coherence = \"ttl\"\ncache.ttl = \"50ms\"");
        assert_eq!(value(&proxy, "key"), "new");
        assert_eq!(metric(&proxy, "cache_ttl_seconds").to_string(), "0.05");
    }

    #[test]
    fn longer_ttl_applies_to_cached_values() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.ttl = \"30s\"");
        set(&redis, "key", "value");
        value(&proxy, "key");
        reload(&proxy, &redis, "cache.ttl = \"1h\"");
        let response = read(&proxy, "key");
        assert_hit(&response);
        let left = cache_status(&response).rsplit_once("ttl=").map(|(_, left)| left.parse::<u64>());
        assert!(left.unwrap().unwrap() > 3500, "{response:?}");
    }

    #[test]
    fn negative_ttl_applies_immediately() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        reload(&proxy, &redis, "cache.negative_ttl = \"60s\"");
        for _ in 0..3 {
            assert_eq!(read(&proxy, "key").status, 404);
        }
        assert_eq!(redis.calls("get"), 1);
        set(&redis, "key", "value");
        reload(&proxy, &redis, "");
        assert_eq!(value(&proxy, "key"), "value");
    }

    #[test]
    fn stale_if_error_applies_immediately() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.ttl = \"10ms\"\ncache.stale_if_error = \"60s\"");
        proxy.expect_log("no connection to Redis");
        set(&redis, "key", "value");
        value(&proxy, "key");
        redis.stop();
        eventually("the value is stale", || {
            cache_status(&read(&proxy, "key")).contains("ttl=-").then_some(())
        });
        reload(&proxy, &redis, "cache.ttl = \"10ms\"");
        assert_eq!(read(&proxy, "key").status, 503);
    }

    #[test]
    fn policy_change_keeps_cached_values() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 100");
        fill(&redis, &proxy, 0..100);
        for policy in ["tinylfu", "lru"] {
            reload(&proxy, &redis, &format!("cache.capacity = 100\ncache.policy = \"{policy}\""));
            assert_eq!(metric(&proxy, "cache_entries").to_string(), "100");
            read_each(&proxy, 0..100);
            assert_eq!(redis.calls("get"), 100, "{policy}");
        }
    }

    #[test]
    fn log_filter_applies_immediately() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        proxy.expect_log("no connection to Redis");
        reload(&proxy, &redis, "telemetry.log_filter = \"info,redis_proxy::backend=off\"");
        redis.stop();
        eventually("Redis is gone", || (readyz(&proxy).0 == 503).then_some(()));
        redis.restart();
        await_ready(&proxy);
        assert_eq!(lines_with_message(&proxy, "no connection to Redis; retrying"), 0);
        assert_eq!(lines_with_message(&proxy, "connected to Redis"), 1, "the one at the start");

        reload(&proxy, &redis, "");
        redis.stop();
        proxy.wait_for_log(|line| line.has_message("no connection to Redis; retrying"));
    }

    #[test]
    fn reload_resets_no_counter() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 10");
        fill(&redis, &proxy, 0..30);
        read_each(&proxy, 25..30);
        let figures = || {
            [
                reads(&proxy, "hit"),
                reads(&proxy, "miss"),
                metric(&proxy, "cache_hits_total"),
                metric(&proxy, "cache_misses_total"),
                metric(&proxy, "cache_evictions_total{cause=\"capacity\"}"),
                metric(&proxy, "backend_duration_seconds_count"),
            ]
            .map(|figure| figure.to_string())
        };
        let before = figures();
        assert_eq!(before, ["5", "30", "5", "30", "20", "30"]);
        for capacity in [1000, 10] {
            reload(&proxy, &redis, &format!("cache.capacity = {capacity}"));
            assert_eq!(figures(), before);
        }
        assert_eq!(metric(&proxy, "config_reloads_total{result=\"success\"}").to_string(), "2");
    }

    #[test]
    fn environment_and_flags_still_override() {
        let redis = RedisServer::start();
        let proxy = Proxy::builder(&config(&redis.url(), "cache.capacity = 5"))
            .environment("REDIS_PROXY_CACHE__CAPACITY", "7")
            .argument("--ttl=33")
            .start();
        reload(
            &proxy,
            &redis,
            "cache.capacity = 500\ncache.ttl = \"10s\"\ncache.negative_ttl = \"60s\"",
        );
        assert_eq!(metric(&proxy, "cache_capacity_entries").to_string(), "7");
        assert_eq!(metric(&proxy, "cache_ttl_seconds").to_string(), "33");
        await_ready(&proxy);
        for _ in 0..3 {
            assert_eq!(read(&proxy, "key").status, 404);
        }
        assert_eq!(redis.calls("get"), 1, "what only the file says holds");
    }
}

mod refusals {
    use super::*;

    /// Asserts that the initial configuration is active.
    #[track_caller]
    fn assert_unchanged(proxy: &Proxy, refusals: u32) {
        assert_eq!(metric(proxy, "cache_capacity_entries").to_string(), "5");
        assert_eq!(metric(proxy, "cache_ttl_seconds").to_string(), "60");
        let results = ["success", "failure"]
            .map(|result| metric(proxy, &format!("config_reloads_total{{result=\"{result}\"}}")));
        assert_eq!(results.map(|count| count.to_string()), ["0".to_owned(), refusals.to_string()]);
    }

    #[test]
    fn restart_only_change_rejects_the_whole_file() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        let more = "cache.capacity = 6\nredis.response_timeout = \"3s\"\nhttp.max_connections = 7\n\
            daemon.drain_timeout = 1";
        let line = refuse(&proxy, &config(&redis.url(), more));
        for key in ["redis.response_timeout", "http.max_connections", "daemon.drain_timeout"] {
            assert!(line.text().contains(key), "{key}: {}", line.text());
        }
        assert!(
            line.text().contains("restart") && !line.text().contains("cache.capacity"),
            "{}",
            line.text()
        );
        assert_eq!(line.level(), "ERROR");
        assert_unchanged(&proxy, 1);
    }

    #[test]
    fn coherence_change_needs_a_restart() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        for mode in ["tracking", "ttl"] {
            let more = format!("cache.capacity = 6\ncache.coherence = \"{mode}\"");
            let line = refuse(&proxy, &config(&redis.url(), &more));
            let named = line.text().contains("cache.coherence") && line.text().contains("restart");
            assert!(named && !line.text().contains("cache.capacity"), "{}", line.text());
        }
        assert_unchanged(&proxy, 2);
        let live = "cache.capacity = 5\ncache.coherence_timeout = \"1s\"";
        assert_eq!(proxy.reload(&config(&redis.url(), live)), Reload::Reloaded);
    }

    #[test]
    fn secret_change_needs_a_restart_and_stays_hidden() {
        let redis = RedisServer::start();
        redis.command(&["ACL", "SETUSER", "default", ">hunter2"]);
        let proxy =
            linked(&config(&redis.url(), "cache.capacity = 5\nredis.password = \"hunter2\""));
        let line = refuse(
            &proxy,
            &config(&redis.url(), "cache.capacity = 6\nredis.password = \"hunter3\""),
        );
        assert!(
            line.text().contains("redis.password") && !line.text().contains("hunter"),
            "{}",
            line.text()
        );
        assert_unchanged(&proxy, 1);
    }

    #[test]
    fn every_problem_of_a_bad_file_is_reported() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        let more = "cache.capacity = \"many\"\ncache.ttl = \"banana\"\ncache.negative_tll = 3\n\
            nonsense.key = 1";
        let line = refuse(&proxy, &config(&redis.url(), more));
        for part in
            ["cache.capacity", "banana", "cache.negative_tll", "cache.negative_ttl", "nonsense.key"]
        {
            assert!(line.text().contains(part), "{part}: {}", line.text());
        }
        assert_unchanged(&proxy, 1);
    }

    #[test]
    fn bad_value_hides_no_restart_only_change() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        let line = refuse(
            &proxy,
            &config(&redis.url(), "cache.ttl = \"banana\"\nredis.response_timeout = \"3s\""),
        );
        for key in ["cache.ttl", "redis.response_timeout"] {
            assert!(line.text().contains(key), "{key}: {}", line.text());
        }
        assert_unchanged(&proxy, 1);
    }

    #[test]
    fn contradictions_and_invalid_toml_are_rejected() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        let zero = refuse(&proxy, &config(&redis.url(), "cache.capacity = 0"));
        assert!(zero.text().contains("cache.capacity"), "{}", zero.text());
        let no_toml = refuse(&proxy, "this is = = no TOML");
        assert!(no_toml.text().contains("TOML"), "{}", no_toml.text());
        assert_unchanged(&proxy, 2);
    }

    #[test]
    fn missing_file_keeps_the_active_config() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        proxy.expect_log(REFUSED);
        let file = file_of(&proxy);
        fs::remove_file(&file).unwrap();
        proxy.signal(Signal::HUP);
        let line = proxy.wait_for_log(|line| line.text().contains(REFUSED));
        assert!(line.text().contains(file.to_str().unwrap()), "{}", line.text());
        assert_unchanged(&proxy, 1);
        reload(&proxy, &redis, "cache.capacity = 9");
        assert_eq!(metric(&proxy, "cache_capacity_entries").to_string(), "9");
    }

    /// Returns the path of the configuration file in the arguments of the process.
    fn file_of(proxy: &Proxy) -> PathBuf {
        let words = fs::read_to_string(format!("/proc/{}/cmdline", proxy.pid()))
            .expect("a process that runs");
        let mut words = words.split('\0').skip_while(|word| *word != "--config");
        words.nth(1).expect("--config FILE").into()
    }

    #[test]
    fn rejected_file_keeps_entries() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "cache.capacity = 5");
        fill(&redis, &proxy, 0..5);
        refuse(&proxy, &config(&redis.url(), "cache.capacity = 1\nhttp.max_connections = 7"));
        read_each(&proxy, 0..5);
        assert_eq!(redis.calls("get"), 5);
    }
}

mod under_load {
    use super::*;

    const READERS: usize = 4;
    const KEYS: usize = 500;

    /// Calls `change` while clients read; returns the number of reads, none of which failed.
    fn while_reading(proxy: &Proxy, change: impl FnOnce(&AtomicU64)) -> u64 {
        let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (over, count) = (&over, &count);
                scope.spawn(move || read_until(over, count, proxy, reader));
            }
            // The readers end even if this fails.
            let _over = Over(&over);
            change(&count);
        });
        count.into_inner()
    }

    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    /// Reads keys, the first ones more often, and asserts each value.
    fn read_until(over: &AtomicBool, count: &AtomicU64, proxy: &Proxy, reader: usize) {
        let mut client = Client::connect(proxy.http());
        let mut random = reader + 1;
        while !over.load(Relaxed) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let key = (random >> 33) % KEYS / ((random >> 20) % 4 + 1);
            let response = client.get(format!("/keys/{key}"));
            assert_eq!((response.status, text(&response)), (200, key.to_string()));
            count.fetch_add(1, Relaxed);
        }
    }

    fn await_reads(count: &AtomicU64, more: u64) {
        let before = count.load(Relaxed);
        eventually("reads go on", || (count.load(Relaxed) >= before + more).then_some(()));
    }

    #[test]
    fn reload_under_load_fails_no_request() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        fill(&redis, &proxy, 0..1000);
        let changes = [
            "cache.capacity = 100\ncache.ttl = 1",
            "cache.capacity = 10000\ncache.ttl = 60",
            "cache.capacity = 100\ncache.ttl = 60",
            "cache.capacity = 10000\ncache.ttl = 1\ncache.policy = \"tinylfu\"",
            "cache.capacity = 100\ncache.ttl = 60",
        ];
        while_reading(&proxy, |count| {
            for change in changes {
                await_reads(count, 200);
                reload(&proxy, &redis, change);
                let capacity = metric(&proxy, "cache_capacity_entries");
                assert!(metric(&proxy, "cache_entries") <= capacity, "{change}");
            }
            await_reads(count, 200);
        });
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "100");
        let sum = ["hit", "miss", "coalesced", "stale", "negative_hit", "bypass", "error"]
            .map(|outcome| reads(&proxy, outcome));
        let counted = metric(&proxy, "cache_hits_total")
            + metric(&proxy, "cache_misses_total")
            + metric(&proxy, "read_errors_total");
        assert_eq!(counted.to_string(), sum.iter().sum::<f64>().to_string());
    }

    #[test]
    fn first_reload_applies_the_exact_capacity() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        fill(&redis, &proxy, 0..1000);
        while_reading(&proxy, |count| {
            await_reads(count, 100);
            reload(&proxy, &redis, "cache.capacity = 100");
            assert_eq!(metric(&proxy, "cache_entries").to_string(), "100");
        });
    }

    #[test]
    fn hundred_signals_end_with_the_latest_file() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        fill(&redis, &proxy, 0..KEYS);
        let read = while_reading(&proxy, |count| {
            await_reads(count, 100);
            for _ in 0..100 {
                proxy.signal(Signal::HUP);
            }
            reload(&proxy, &redis, "cache.capacity = 42");
            await_metric(&proxy, "cache_capacity_entries", 42.0);
            await_reads(count, 100);
        });
        assert!(read >= 200);
        assert!(metric(&proxy, "config_reloads_total{result=\"success\"}") >= 1.0);
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "42");
    }
}
