//! Tracking: Redis pushes an invalidation for each change (client-side caching).
//!
//! Promise: whichever client changes a key, and whatever becomes of the connection, values from
//! memory equal those of Redis.
//!
//! `cache.ttl` is an hour, so that only an invalidation explains a fresh read, and a missed change
//! stays missed. The age of an old value is measured by the clock of the test, from the moment in
//! which Redis acknowledged the new value.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed, which is what it should do"
)]

mod invalidation;
mod outage;
mod permissions;
mod stale;

use std::time::Duration;

use redis::RedisResult;

use crate::support::http::Response;
use crate::support::serving::{
    cache_status, config, linked, metric, proxy, read, readyz, relay_url, set, text,
};
use crate::support::{Proxy, RedisServer, Relay, eventually};

const CONNECTED: &str = "connected to Redis";
const A_SECOND: Duration = Duration::from_secs(1);

/// Returns these settings, with a TTL that explains nothing.
fn lasting(more: &str) -> String {
    format!("cache.ttl = \"1h\"\n{more}")
}

/// Starts a proxy with tracking active.
fn tracked(redis: &RedisServer, more: &str) -> Proxy {
    let proxy = proxy(redis, &lasting(more));
    assert_eq!(coherence(&proxy), "tracking");
    proxy
}

/// Starts a proxy with tracking active, over a relay that can fail.
fn tracked_over_relay(redis: &RedisServer, more: &str) -> (Relay, Proxy) {
    let relay = Relay::to_socket(redis.socket());
    let proxy = linked(&config(&relay_url(&relay), &lasting(more)));
    assert_eq!(coherence(&proxy), "tracking");
    (relay, proxy)
}

/// Returns the coherence mode in /readyz.
fn coherence(proxy: &Proxy) -> String {
    let received: serde_json::Value =
        serde_json::from_str(&readyz(proxy).1).expect("/readyz tells JSON");
    received["coherence"].as_str().expect("/readyz tells the coherence").to_owned()
}

#[track_caller]
fn await_coherence(proxy: &Proxy, expected: &str) {
    eventually(&format!("the coherence is {expected}"), || {
        (coherence(proxy) == expected).then_some(())
    });
}

/// Waits for the log line about the link, which comes after all warnings about it.
#[track_caller]
fn await_told_link(proxy: &Proxy) {
    proxy.wait_for_log(|line| line.has_message(CONNECTED));
}

fn invalidations(proxy: &Proxy, kind: &str) -> f64 {
    metric(proxy, &format!("invalidations_total{{kind=\"{kind}\"}}"))
}

/// Asserts the value of `redis_proxy_{series}`.
#[track_caller]
fn assert_metric(proxy: &Proxy, series: &str, expected: u64) {
    assert_eq!(metric(proxy, series).to_string(), expected.to_string(), "{series}");
}

fn is_hit(response: &Response) -> bool {
    cache_status(response).starts_with("redis-proxy; hit")
}

/// Sets `key` and waits until it is in memory.
#[track_caller]
fn keep(redis: &RedisServer, proxy: &Proxy, key: &str, text: &str) {
    set(redis, key, text);
    eventually("the value is kept", || {
        let response = read(proxy, key);
        (is_hit(&response) && self::text(&response) == text).then_some(())
    });
}

/// Returns the status of a read, and the value if there is one.
fn given(proxy: &Proxy, key: &str) -> (u16, String) {
    let response = read(proxy, key);
    (response.status, if response.status == 200 { text(&response) } else { String::new() })
}

/// Returns the status and value that a read should have, as Redis has it.
fn truth(redis: &RedisServer, key: &str) -> (u16, String) {
    let answer: RedisResult<Option<Vec<u8>>> =
        redis::cmd("GET").arg(key).query(&mut redis.connection());
    match answer {
        Ok(Some(value)) => (200, String::from_utf8_lossy(&value).into_owned()),
        Ok(None) => (404, String::new()),
        Err(error) if error.code() == Some("WRONGTYPE") => (409, String::new()),
        Err(error) => panic!("{key}: {error}"),
    }
}

/// Runs commands on one foreign connection. They are written as `SET K text; DEL K`, where K stands
/// for `key`, O and L for another string and a list of its own, and `<dump>` for the reply to DUMP
/// of O.
fn run(redis: &RedisServer, key: &str, commands: &str) {
    let mut connection = redis.connection();
    for command in commands.split("; ") {
        let mut words = redis::Cmd::new();
        for word in command.split(' ') {
            match word {
                "K" => words.arg(key),
                "O" => words.arg(format!("{key} other")),
                "L" => words.arg(format!("{key} list")),
                "<dump>" => {
                    let dump = redis::cmd("DUMP")
                        .arg(format!("{key} other"))
                        .query::<Vec<u8>>(&mut connection);
                    words.arg(dump.expect("Redis dumps the other key"))
                }
                word => words.arg(word),
            };
        }
        let ran = words.exec(&mut connection);
        ran.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

/// Asserts that reads of `key` become and stay equal to Redis.
#[track_caller]
fn assert_comes_true(redis: &RedisServer, proxy: &Proxy, key: &str, commands: &str) {
    eventually(&format!("{commands}: the read is true"), || {
        (given(proxy, key) == truth(redis, key)).then_some(())
    });
    assert_eq!(given(proxy, key), truth(redis, key), "{commands}");
}

/// Asserts that reads of all keys become and stay equal to Redis.
#[track_caller]
fn await_truth(redis: &RedisServer, proxy: &Proxy, keys: &[String]) {
    let mut connection = redis.connection();
    let truth: Vec<Option<String>> =
        redis::cmd("MGET").arg(keys).query(&mut connection).expect("Redis tells them");
    let untrue = |key: &&String, value: &Option<String>| {
        value.as_ref().is_some_and(|value| given(proxy, key).1 != *value)
    };
    for attempt in ["come true", "stay true"] {
        eventually(&format!("all keys {attempt}"), || {
            let untrue = keys.iter().zip(&truth).filter(|(key, value)| untrue(key, value)).count();
            (untrue == 0).then_some(())
        });
    }
}
