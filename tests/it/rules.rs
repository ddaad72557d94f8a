//! Rules by prefix (`[[cache.rules]]`).
//!
//! Promise: the rule with the longest prefix decides how a key is cached, for every front end and
//! every kind of read, and a reload applies it to what is cached already.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::cluster::RedisCluster;
use crate::support::fault_stage::DOWN;
use crate::support::resp_client::{RespClient, bulk};
use crate::support::serving::{
    assert_hit, await_ready, cache_status, config, metric, proxy, read, set, text, value,
};
use crate::support::{Proxy, RedisServer, Reload, eventually, http};

/// Nothing expires by age, and Redis clients are served.
const BASE: &str = "cache.ttl = \"1h\"\nresp.listen = \"127.0.0.1:0\"\n";

/// The lines of a configuration with these rules, each an inline table.
fn rules(rules: &[&str]) -> String {
    format!("{BASE}cache.rules = [{}]", rules.join(", "))
}

fn client(proxy: &Proxy) -> RespClient {
    RespClient::connect(proxy.resp_address())
}

/// Compares the counts of rules and outcomes with the expected ones.
#[track_caller]
fn assert_rule_reads(proxy: &Proxy, expected: &[(&str, &str, &str)]) {
    for (rule, outcome, expected) in expected {
        let found = rule_reads(proxy, rule, outcome).to_string();
        assert_eq!(found, *expected, "{rule} {outcome}");
    }
}

fn rule_reads(proxy: &Proxy, rule: &str, outcome: &str) -> f64 {
    metric(proxy, &format!("rule_reads_total{{rule=\"{rule}\",outcome=\"{outcome}\"}}"))
}

/// Returns the number of commands that Redis ran while `action` did.
fn calls(redis: &RedisServer, name: &str, action: impl FnOnce()) -> u64 {
    let before = redis.calls(name);
    action();
    redis.calls(name) - before
}

fn report(proxy: &Proxy) -> Value {
    let response = http::get(proxy.admin(), "/report");
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&response.body).expect("JSON")
}

mod off {
    use super::*;

    #[test]
    fn every_read_goes_to_redis_and_nothing_is_kept() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&["{ keys = \"off:*\", mode = \"off\" }"]));
        let mut client = client(&proxy);
        set(&redis, "off:1", "value");
        set(&redis, "on:1", "value");
        redis.command(&["HSET", "off:h", "f", "v"]);
        let over_http = calls(&redis, "get", || {
            for _ in 0..3 {
                let response = read(&proxy, "off:1");
                assert_eq!(text(&response), "value");
                assert!(cache_status(&response).contains("fwd=bypass"), "{response:?}");
            }
        });
        let over_resp = calls(&redis, "get", || {
            (0..3).for_each(|_| assert_eq!(client.query(&["GET", "off:1"]), bulk("value")));
        });
        let of_hash = calls(&redis, "hgetall", || {
            (0..3).for_each(|_| drop(client.query(&["HGETALL", "off:h"])));
        });
        assert_eq!([over_http, over_resp, of_hash], [3, 3, 3]);
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "0");
        assert_eq!(metric(&proxy, "replies_entries").to_string(), "0");
        assert_eq!(rule_reads(&proxy, "off:*", "bypass").to_string(), "9");
        value(&proxy, "on:1");
        assert_hit(&read(&proxy, "on:1"));
    }

    #[test]
    fn one_key_takes_the_whole_command_to_redis() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&["{ keys = \"off:*\", mode = \"off\" }"]));
        let mut client = client(&proxy);
        for key in ["off:1", "on:1"] {
            set(&redis, key, key);
            redis.command(&["SADD", &format!("{key}:set"), "member"]);
        }
        for (line, name) in [
            ("MGET on:1 off:1", "mget"),
            ("EXISTS on:1 off:1", "exists"),
            ("SINTER on:1:set off:1:set", "sinter"),
            ("SUNION off:1:set on:1:set", "sunion"),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            let count = calls(&redis, name, || (0..3).for_each(|_| drop(client.query(&words))));
            assert_eq!(count, 3, "{line}");
        }
        let kept = ["SINTER", "on:1:set"];
        client.query(&kept);
        assert_eq!(calls(&redis, "sinter", || drop(client.query(&kept))), 0);
    }

    #[test]
    fn stale_value_is_not_served() {
        let mut redis = RedisServer::start();
        let with = |mode: &str| {
            let rule = format!("{{ keys = \"k*\", mode = \"{mode}\", stale_if_error = \"5m\" }}");
            rules(&[&rule])
        };
        let proxy = proxy(&redis, &with("cache"));
        set(&redis, "k1", "value");
        value(&proxy, "k1");
        proxy.expect_log("connection to Redis lost");
        proxy.expect_log(DOWN);
        redis.stop();
        eventually("a stale value is served", || {
            (cache_status(&read(&proxy, "k1")).contains("ttl=-")).then_some(())
        });
        for mode in ["observe", "off"] {
            assert_eq!(proxy.reload(&config(&redis.url(), &with(mode))), Reload::Reloaded);
            let response = read(&proxy, "k1");
            assert!(response.status >= 500, "{mode}: {response:?}");
        }
    }
}

mod observe {
    use super::*;

    const RULE: &str = "{ keys = \"see:*\", mode = \"observe\" }";

    #[test]
    fn reads_go_to_redis_and_would_be_hits_are_counted() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&[RULE]));
        let mut client = client(&proxy);
        set(&redis, "see:1", "value");
        let gets = calls(&redis, "get", || {
            for _ in 0..2 {
                let response = read(&proxy, "see:1");
                assert!(cache_status(&response).contains("fwd=miss"), "{response:?}");
                assert_eq!(client.query(&["GET", "see:1"]), bulk("value"));
            }
            client.query(&["MGET", "see:1", "see:2"]);
        });
        // Five of the first key and one of the other, which MGET reads one by one.
        assert_eq!(gets, 6);
        assert_eq!(rule_reads(&proxy, "see:*", "miss").to_string(), "2");
        assert_eq!(rule_reads(&proxy, "see:*", "would_hit").to_string(), "4");
        assert_eq!(metric(&proxy, "cache_hits_total").to_string(), "0");
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "2");
        assert_eq!(metric(&proxy, "cache_evictions_total{cause=\"expired\"}").to_string(), "0");
        // After a write the entry is not valid, so the next read would be a miss.
        let invalidations = metric(&proxy, "invalidations_total{kind=\"key\"}");
        set(&redis, "see:1", "other");
        eventually("the write is pushed", || {
            (metric(&proxy, "invalidations_total{kind=\"key\"}") > invalidations).then_some(())
        });
        assert_eq!(value(&proxy, "see:1"), "other");
        assert_eq!(rule_reads(&proxy, "see:*", "miss").to_string(), "3");
    }

    #[test]
    fn replies_of_other_types_are_observed_too() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&[RULE]));
        let mut client = client(&proxy);
        redis.command(&["HSET", "see:h", "f", "v"]);
        redis.command(&["SET", "see:s", "value"]);
        // HGET would follow from the reply to HGETALL, once it has been run itself.
        for (line, name, would_hit) in [
            ("HGETALL see:h", "hgetall", 0),
            ("HGET see:h f", "hget", 0),
            ("HGETALL see:h", "hgetall", 1),
            ("HGET see:h f", "hget", 2),
            ("HGET see:h none", "hget", 3),
            ("STRLEN see:s", "strlen", 3),
            ("GET see:s", "get", 3),
            ("STRLEN see:s", "strlen", 4),
            ("GETRANGE see:s 0 1", "getrange", 5),
            ("EXISTS see:s see:s", "exists", 7),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(calls(&redis, name, || drop(client.query(&words))), 1, "{line}");
            let found = rule_reads(&proxy, "see:*", "would_hit");
            assert_eq!(found.to_string(), would_hit.to_string(), "{line}");
        }
    }

    #[test]
    fn report_has_the_reads_that_redis_would_be_spared() {
        let redis = RedisServer::start();
        let more = rules(&[RULE, "{ keys = \"see:admin:*\", ttl = \"5m\" }"]);
        let proxy = proxy(&redis, &more);
        for key in ["see:1", "see:admin:1", "other"] {
            set(&redis, key, "value");
            (0..4).for_each(|_| drop(read(&proxy, key)));
        }
        // It is forwarded, so all reads have it as a bypass and not as a miss.
        client(&proxy).query(&["STRLEN", "see:1"]);
        let report = report(&proxy);
        let expected = [
            ("see:*", "observe", 5, 4, 4, 0.8),
            ("see:admin:*", "cache", 4, 3, 0, 0.75),
            ("others", "cache", 4, 3, 0, 0.75),
        ];
        let rows = report["rules"].as_array().expect("rules").iter().chain([&report["others"]]);
        for (row, (keys, mode, reads, spared, would_hit, ratio)) in rows.zip(expected) {
            assert_eq!((&row["keys"], &row["mode"]), (&keys.into(), &mode.into()));
            let numbers = [&row["reads"], &row["spared"], &row["would_hit"]];
            assert_eq!(numbers, [&Value::from(reads), &spared.into(), &would_hit.into()], "{row}");
            assert_eq!(row["spared_ratio"], ratio);
        }
        let admin = proxy.admin().to_string();
        let output = Proxy::spawn_raw(&["report", "--admin", &admin], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let table = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["KEYS", "MODE", "READS", "SPARED", "SHARE", "WOULD", "HIT"]);
        assert_eq!(lines[1], ["see:*", "observe", "5", "4", "80.0", "%", "4"]);
        assert_eq!(lines[2], ["see:admin:*", "cache", "4", "3", "75.0", "%", "0"]);
    }
}

mod counts {
    use super::*;
    use crate::support::resp_client::command;

    #[test]
    fn reads_of_a_pipeline_count_for_their_own_rules() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&["{ keys = \"a:*\" }", "{ keys = \"b:*\" }"]));
        let mut client = client(&proxy);
        let keys = ["a:1", "b:1", "none"];
        for key in keys {
            set(&redis, key, "value");
            client.query(&["GET", key]);
        }
        client.query(&["GET", "b:absent"]);
        let order = ["a:1", "b:1", "b:1", "none", "b:absent", "b:1", "a:1", "none", "a:1", "b:1"];
        let pipeline: Vec<u8> = order.iter().flat_map(|key| command(&["GET", *key])).collect();
        client.send(pipeline);
        client.answers(order.len());
        assert_rule_reads(
            &proxy,
            &[
                ("a:*", "hit", "3"),
                ("a:*", "miss", "1"),
                ("b:*", "hit", "4"),
                ("b:*", "miss", "2"),
                ("b:*", "negative_hit", "1"),
            ],
        );
    }
}

mod limits {
    use super::*;

    #[test]
    fn longest_prefix_decides_the_ttl() {
        let redis = RedisServer::start();
        let more = rules(&[
            "{ keys = \"s*\", ttl = \"1h\" }",
            "{ keys = \"s:short:*\", ttl = \"300ms\", negative_ttl = \"0s\" }",
        ]);
        let proxy = proxy(&redis, &more);
        for key in ["s:short:1", "s:long:1"] {
            set(&redis, key, "value");
            value(&proxy, key);
        }
        assert_hit(&read(&proxy, "s:long:1"));
        eventually("the short TTL has ended", || {
            (cache_status(&read(&proxy, "s:short:1")).contains("fwd=")).then_some(())
        });
        assert_hit(&read(&proxy, "s:long:1"));
        (0..2).for_each(|_| assert_eq!(read(&proxy, "s:short:none").status, 404));
        (0..2).for_each(|_| assert_eq!(read(&proxy, "s:long:none").status, 404));
        assert_eq!(rule_reads(&proxy, "s:short:*", "negative_hit").to_string(), "0");
        assert_eq!(rule_reads(&proxy, "s*", "negative_hit").to_string(), "1");
    }

    #[test]
    fn reply_to_several_keys_has_the_smallest_ttl() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&["{ keys = \"short:*\", ttl = \"300ms\" }"]));
        let mut client = client(&proxy);
        redis.command(&["SADD", "short:s", "a"]);
        redis.command(&["SADD", "long:s", "a"]);
        for (line, is_short) in [("SINTER long:s short:s", true), ("SINTER long:s", false)] {
            let words: Vec<_> = line.split(' ').collect();
            client.query(&words);
            let mut repeats = || calls(&redis, "sinter", || drop(client.query(&words)));
            if is_short {
                eventually("the TTL has ended", || (repeats() == 1).then_some(()));
            } else {
                thread::sleep(Duration::from_millis(400));
                assert_eq!(repeats(), 0);
            }
        }
    }

    #[test]
    fn larger_value_is_served_and_not_kept() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &rules(&["{ keys = \"small:*\", max_value = 10 }"]));
        let mut client = client(&proxy);
        for (key, length, entries) in [("small:1", 10, 1), ("small:2", 11, 1), ("large:1", 11, 2)] {
            let long = "v".repeat(length);
            set(&redis, key, &long);
            (0..2).for_each(|_| assert_eq!(value(&proxy, key), long));
            assert_eq!(metric(&proxy, "cache_entries").to_string(), entries.to_string(), "{key}");
        }
        redis.command(&["RPUSH", "small:l", &"e".repeat(20)]);
        redis.command(&["RPUSH", "large:l", &"e".repeat(20)]);
        for (key, expected) in [("small:l", 2), ("large:l", 0)] {
            let words = ["LRANGE", key, "0", "-1"];
            client.query(&words);
            let count = calls(&redis, "lrange", || (0..2).for_each(|_| drop(client.query(&words))));
            assert_eq!(count, expected, "{key}");
        }
    }

    #[test]
    fn ttl_mode_uses_the_ttl_of_the_rule() {
        let redis = RedisServer::start();
        let more = format!(
            "{}\ncache.coherence = \"ttl\"",
            rules(&[
                "{ keys = \"old:*\", ttl = \"300ms\" }",
                "{ keys = \"off:*\", mode = \"off\" }",
                "{ keys = \"see:*\", mode = \"observe\" }",
            ])
        );
        let proxy = proxy(&redis, &more);
        for key in ["old:1", "other", "off:1", "see:1"] {
            set(&redis, key, "before");
            value(&proxy, key);
            set(&redis, key, "after");
        }
        assert_eq!(value(&proxy, "off:1"), "after");
        assert_eq!(value(&proxy, "see:1"), "after");
        assert_eq!(rule_reads(&proxy, "see:*", "would_hit").to_string(), "1");
        eventually("the TTL of the rule has ended", || {
            (value(&proxy, "old:1") == "after").then_some(())
        });
        assert_eq!(value(&proxy, "other"), "before");
    }
}

mod reload {
    use super::*;

    #[test]
    fn changed_rule_applies_to_cached_values() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        let mut client = client(&proxy);
        for key in ["a:1", "b:1", "c:1"] {
            set(&redis, key, "0123456789");
            value(&proxy, key);
        }
        redis.command(&["HSET", "a:h", "f", "v"]);
        client.query(&["HGETALL", "a:h"]);
        let more = rules(&[
            "{ keys = \"a:*\", mode = \"off\" }",
            "{ keys = \"b:*\", max_value = 9 }",
            "{ keys = \"c:*\", mode = \"observe\" }",
        ]);
        assert_eq!(proxy.reload(&config(&redis.url(), &more)), Reload::Reloaded);
        assert_eq!(metric(&proxy, "cache_entries").to_string(), "1");
        for key in ["a:1", "b:1", "c:1"] {
            assert!(cache_status(&read(&proxy, key)).contains("fwd="), "{key}");
        }
        assert_eq!(rule_reads(&proxy, "c:*", "would_hit").to_string(), "1");
        assert_eq!(calls(&redis, "hgetall", || drop(client.query(&["HGETALL", "a:h"]))), 1);
        assert_eq!(proxy.reload(&config(&redis.url(), BASE)), Reload::Reloaded);
        assert_hit(&read(&proxy, "c:1"));
        assert_eq!(rule_reads(&proxy, "a:*", "bypass").to_string(), "2");
        assert_eq!(report(&proxy)["rules"], Value::Array(Vec::new()));
    }

    #[test]
    fn reads_go_on_while_rules_change() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        set(&redis, "k:1", "value");
        redis.command(&["HSET", "k:h", "f", "v"]);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut resp, mut reads) = (client(&proxy), 0);
                let mut http = http::Client::connect(proxy.http());
                while !is_over.load(Relaxed) {
                    assert_eq!(text(&http.get("/keys/k:1")), "value");
                    assert_eq!(resp.query(&["GET", "k:1"]), bulk("value"));
                    assert_eq!(resp.query(&["HGET", "k:h", "f"]), bulk("v"));
                    reads += 1;
                }
                reads
            });
            for round in 0..12 {
                let mode = ["off", "cache", "observe"][round % 3];
                let changed = rules(&[&format!("{{ keys = \"k:*\", mode = \"{mode}\" }}")]);
                assert_eq!(proxy.reload(&config(&redis.url(), &changed)), Reload::Reloaded);
            }
            is_over.store(true, Relaxed);
            assert!(reader.join().expect("a reader") > 0);
        });
        let counted: f64 = ["hit", "miss", "bypass", "would_hit"]
            .map(|name| rule_reads(&proxy, "k:*", name))
            .iter()
            .sum();
        assert!(counted > 0.0, "{counted}");
    }

    #[test]
    fn bad_rules_are_refused_and_named() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        proxy.expect_log("config refused");
        for (bad, expected) in [
            ("{ keys = \"a\" }", "cache.rules[0].keys: found string \\\"a\\\", expected a prefix"),
            ("{ keys = \"a*\", mode = \"on\" }", "cache.rules[0].mode: found string \\\"on\\\""),
            ("{ keys = \"a*\", ttl = \"5 parsecs\" }", "cache.rules[0].ttl: found"),
            ("{ keys = \"a*\", max_value = \"1 stone\" }", "cache.rules[0].max_value: found"),
            ("{ keys = \"a*\" }, { keys = \"a*\" }", "cache.rules[1].keys: found \\\"a*\\\" again"),
            ("{ ttl = \"5m\" }", "cache.rules[0].keys: missing"),
            (
                "{ keys = \"a*\", stale = 1 }",
                "cache.rules[0].stale: unknown key; did you mean stale_if_error?",
            ),
        ] {
            let refused = proxy.reload(&config(&redis.url(), &rules(&[bad])));
            assert_eq!(refused, Reload::Refused, "{bad}");
            let unescaped = expected.replace('\\', "");
            let is_named = |text: &str| text.contains(expected) || text.contains(&unescaped);
            let lines = proxy.log_lines();
            let last = lines.iter().rev().find(|line| line.text().contains("config refused"));
            let last = last.expect("a line").text();
            assert!(is_named(last), "{bad}: {last}");
        }
    }

    #[test]
    fn check_notes_rules_that_overlap() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "[[cache.rules]]\nkeys = \"s*\"\n[[cache.rules]]\nkeys = \"s:*\"\nttl = 5\n";
        std::fs::write(file.path(), text).expect("the file is written");
        let path = file.path().to_str().expect("a path that is text");
        let output = Proxy::spawn_raw(&["check", "--config", path], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(warnings.contains("cache.rules[1].keys: \"s:*\" overlaps \"s*\""), "{warnings}");
        let printed = Proxy::spawn_raw(&["--print-config", "--config", path], &[]);
        let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
        std::fs::write(file.path(), &printed).expect("the file is written");
        let again = Proxy::spawn_raw(&["--print-config", "--config", path], &[]);
        assert_eq!(String::from_utf8_lossy(&again.stdout), printed, "{again:?}");
        assert!(printed.contains("[[cache.rules]]\nkeys = \"s:*\""), "{printed}");
    }
}

mod sessions {
    use super::*;

    #[test]
    fn transaction_and_own_writes_are_as_without_rules() {
        let redis = RedisServer::start();
        let more = rules(&[
            "{ keys = \"off:*\", mode = \"off\" }",
            "{ keys = \"see:*\", mode = \"observe\" }",
            "{ keys = \"on:*\", ttl = \"5m\" }",
        ]);
        let proxy = proxy(&redis, &more);
        let mut client = client(&proxy);
        for key in ["off:1", "see:1", "on:1"] {
            for round in 0..50 {
                let value = round.to_string();
                assert_eq!(client.query(&["SET", key, &value]), b"+OK\r\n");
                assert_eq!(client.query(&["GET", key]), bulk(&value), "{key}");
            }
            assert_eq!(client.query(&["MULTI"]), b"+OK\r\n");
            assert_eq!(client.query(&["SET", key, "in multi"]), b"+QUEUED\r\n");
            assert_eq!(client.query(&["GET", key]), b"+QUEUED\r\n");
            let expected = [&b"*2\r\n+OK\r\n"[..], &bulk("in multi")].concat();
            assert_eq!(client.query(&["EXEC"]), expected, "{key}");
            assert_eq!(client.query(&["GET", key]), bulk("in multi"), "{key}");
        }
    }

    #[test]
    fn pipeline_keeps_its_order_whatever_the_rules() {
        let redis = RedisServer::start();
        let more = rules(&[
            "{ keys = \"off:*\", mode = \"off\" }",
            "{ keys = \"see:*\", mode = \"observe\" }",
        ]);
        let proxy = proxy(&redis, &more);
        let mut client = client(&proxy);
        let keys = ["off:1", "see:1", "on:1"];
        for key in keys {
            set(&redis, key, key);
        }
        let requests: Vec<u8> = (0..60)
            .flat_map(|number| crate::support::resp_client::command(&["GET", keys[number % 3]]))
            .collect();
        for _ in 0..5 {
            client.send(&requests);
            for (number, answer) in client.answers(60).into_iter().enumerate() {
                assert_eq!(answer, bulk(keys[number % 3]));
            }
        }
    }
}

mod cluster {
    use super::*;

    #[test]
    fn rules_hold_at_each_primary() {
        let cluster = RedisCluster::of(3);
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
        let settings = "cache.coherence = \"tracking\"\ndaemon.worker_threads = 1\n";
        // A negative entry could outlive the migration of its slot, so the rule asks in vain.
        let more = rules(&[
            "{ keys = \"off:*\", mode = \"off\" }",
            "{ keys = \"see:*\", mode = \"observe\" }",
            "{ keys = \"none:*\", negative_ttl = \"1h\" }",
        ]);
        let proxy = Proxy::start(&format!("{listen}{settings}{more}\n{}", cluster.settings()));
        proxy.expect_log(DOWN);
        await_ready(&proxy);
        for number in 0..6 {
            for prefix in ["off", "see", "on", "none"] {
                let key = format!("{prefix}:{number}");
                if prefix != "none" {
                    cluster.set(&key, &key);
                }
                for _ in 0..3 {
                    let response = read(&proxy, &key);
                    let expected = if prefix == "none" { 404 } else { 200 };
                    assert_eq!(response.status, expected, "{key}: {response:?}");
                    assert!(response.status == 404 || text(&response) == key);
                }
            }
        }
        assert_eq!(rule_reads(&proxy, "off:*", "bypass").to_string(), "18");
        assert_eq!(rule_reads(&proxy, "see:*", "would_hit").to_string(), "12");
        assert_eq!(rule_reads(&proxy, "see:*", "miss").to_string(), "6");
        assert_eq!(rule_reads(&proxy, "none:*", "miss").to_string(), "18");
        assert_eq!(metric(&proxy, "cache_hits_total").to_string(), "12");
    }
}

mod commands_over_http {
    use serde_json::json;

    use super::*;
    use crate::support::secret_file::SecretFile;

    /// Returns the results of a request, which has run.
    fn post(proxy: &Proxy, path: &str, body: &str) -> Value {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\
                Content-Length: {length}\r\n\r\n{body}"
        );
        let mut client = http::Client::connect(proxy.http());
        client.send_raw(request.as_bytes());
        let response = client.read_response();
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_slice(&response.body).expect("JSON")
    }

    #[test]
    fn rules_hold_for_rest() {
        let (redis, file) = (RedisServer::start(), SecretFile::new("token\n"));
        let more = rules(&[
            "{ keys = \"off:*\", mode = \"off\" }",
            "{ keys = \"see:*\", mode = \"observe\" }",
            "{ keys = \"on:*\" }",
        ]);
        let rest = format!("rest.path = \"/rest\"\nrest.tokens_file = \"{}\"", file.name());
        let proxy = proxy(&redis, &format!("{more}\n{rest}"));
        for (key, fetches) in [("off:1", 4), ("see:1", 4), ("on:1", 1)] {
            set(&redis, key, "value");
            let get = format!(r#"["GET","{key}"]"#);
            let gets = calls(&redis, "get", || {
                for _ in 0..2 {
                    let found = json!({"result": "value"});
                    assert_eq!(post(&proxy, "/rest", &get), found);
                    assert_eq!(post(&proxy, "/rest/pipeline", &format!("[{get}]")), json!([found]));
                }
            });
            assert_eq!(gets, fetches, "{key}");
        }
        assert_rule_reads(
            &proxy,
            &[
                ("off:*", "bypass", "4"),
                ("see:*", "miss", "1"),
                ("see:*", "would_hit", "3"),
                ("on:*", "miss", "1"),
                ("on:*", "hit", "3"),
            ],
        );
    }
}
