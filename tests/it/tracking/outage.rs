//! Lost, half-open and silent connections under tracking.
//!
//! Promise: whatever becomes of the connection, no value is served without a lease, which lasts at
//! most `cache.coherence_timeout` beyond the last reply of Redis.

use std::time::{Duration, Instant};

use super::{
    CONNECTED, assert_metric, coherence, is_hit, keep, lasting, run, tracked, tracked_over_relay,
    truth,
};
use crate::support::fault_stage::DOWN;
use crate::support::http::{self, Client};
use crate::support::serving::{
    FLIGHTS, assert_hit, await_metric, await_ready, config, lines_with_message, metric, read,
    readyz, request_and_await_flight, set, start_read, text, value,
};
use crate::support::{Proxy, RedisServer, Reload, eventually};

const RECONNECTS: &str = "tracking_reconnects_total";
const DISCONNECTS: &str = "invalidations_total{kind=\"disconnect\"}";

#[test]
fn write_during_reconnect_is_seen() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    proxy.expect_log(DOWN);
    for round in 1..=10 {
        keep(&redis, &proxy, "key", "old");
        keep(&redis, &proxy, "bystander", "untouched");
        // In one step, so that no invalidation can have been pushed.
        run(&redis, "key", "MULTI; CLIENT KILL TYPE normal; SET K new; EXEC");
        await_metric(&proxy, RECONNECTS, f64::from(round));
        assert_eq!(value(&proxy, "key"), "new");
        assert!(
            !is_hit(&read(&proxy, "bystander")),
            "what was learnt over a lost link is worth nothing"
        );
        assert_metric(&proxy, DISCONNECTS, u64::try_from(round).unwrap());
        assert_metric(&proxy, "tracking_active", 1);
    }
}

#[test]
fn write_during_cut_link_is_seen() {
    let redis = RedisServer::start();
    let (relay, proxy) = tracked_over_relay(&redis, "");
    proxy.expect_log(DOWN);
    keep(&redis, &proxy, "key", "old");
    keep(&redis, &proxy, "deleted", "old");
    assert_eq!(read(&proxy, "created").status, 404);
    relay.cut();
    assert_incoherent(&proxy);
    run(&redis, "key", "SET K new; DEL deleted; SET created new");
    relay.resume();
    await_ready(&proxy);
    assert_eq!(value(&proxy, "key"), "new");
    assert_eq!(read(&proxy, "deleted").status, 404);
    assert_eq!(value(&proxy, "created"), "new");
    assert_made_anew(&proxy);
}

#[test]
fn redis_restarted_with_data_is_read_again() {
    // Otherwise Redis may reply before it has written to its file.
    let always = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = RedisServer::builder().arguments(&always).start();
    let (relay, proxy) = tracked_over_relay(&redis, "");
    proxy.expect_log(DOWN);
    keep(&redis, &proxy, "key", "old");
    keep(&redis, &proxy, "bystander", "untouched");
    redis.stop();
    relay.cut();
    assert_incoherent(&proxy);
    redis.restart();
    assert_eq!(truth(&redis, "key"), (200, "old".to_owned()));
    set(&redis, "key", "new");
    relay.resume();
    await_ready(&proxy);
    assert_eq!(value(&proxy, "key"), "new");
    assert_eq!(value(&proxy, "bystander"), "untouched");
    assert_made_anew(&proxy);
}

/// Asserts that nothing is served while there is no link.
#[track_caller]
fn assert_incoherent(proxy: &Proxy) {
    eventually("the loss is noticed", || (readyz(proxy).0 == 503).then_some(()));
    assert_eq!(coherence(proxy), "none");
    assert_metric(proxy, "tracking_active", 0);
    assert_metric(proxy, "cache_entries", 0);
    assert_eq!(read(proxy, "key").status, 503);
}

/// Asserts that the link was lost once, and that the new one is as good as the first.
#[track_caller]
fn assert_made_anew(proxy: &Proxy) {
    assert_eq!(coherence(proxy), "tracking");
    assert_metric(proxy, "tracking_active", 1);
    assert_metric(proxy, DISCONNECTS, 1);
    assert_metric(proxy, RECONNECTS, 1);
    read(proxy, "key");
    assert!(is_hit(&read(proxy, "key")) || read(proxy, "key").status == 404);
}

const TIMEOUT: Duration = Duration::from_millis(300);
/// A link with a short lease that is not dropped for silence.
const PATIENT: &str = "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"100ms\"\n\
    redis.response_timeout = \"20s\"";

/// Reads `key` until memory stops answering, which it may until `TIMEOUT` after `since`. Returns
/// the client of the read that waits for Redis.
#[track_caller]
fn await_doubt(proxy: &Proxy, key: &str, old: &str, since: Instant) -> Client {
    eventually("the old value is given no more", || {
        let elapsed = since.elapsed();
        let mut client = start_read(proxy, key);
        client.read_timeout(TIMEOUT / 3);
        match client.try_read_response() {
            Ok(response) => {
                assert_hit(&response);
                assert_eq!(text(&response), old);
                assert!(elapsed < TIMEOUT, "given {elapsed:?} later");
                None
            }
            // It waits for Redis, unless it is merely slow.
            Err(_) => (metric(proxy, FLIGHTS) > 0.0).then_some(client),
        }
    })
}

/// Returns the value of a read that has been waiting.
#[track_caller]
fn answer(mut client: Client) -> String {
    client.read_timeout(Duration::from_secs(10));
    text(&client.read_response())
}

#[test]
fn half_open_link_serves_at_most_coherence_timeout() {
    let redis = RedisServer::start();
    let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
    keep(&redis, &proxy, "key", "old");
    keep(&redis, &proxy, "bystander", "untouched");
    assert_eq!(read(&proxy, "nothing").status, 404);
    let before = redis.calls("get");

    relay.stall();
    set(&redis, "key", "new");
    let reader = await_doubt(&proxy, "key", "old", Instant::now());
    assert_eq!(coherence(&proxy), "none");
    assert_metric(&proxy, "tracking_active", 0);
    relay.resume();

    assert_eq!(answer(reader), "new");
    await_metric(&proxy, "tracking_active", 1.0);
    assert_eq!(value(&proxy, "key"), "new");
    assert_hit(&read(&proxy, "bystander"));
    assert!(is_hit(&read(&proxy, "nothing")));
    // The invalidation overtook the fetch that waited.
    let gets = redis.calls("get") - before;
    assert!((1..=2).contains(&gets), "only what was changed is asked for again: {gets}");
    assert_eq!(lines_with_message(&proxy, CONNECTED), 1, "the link was not given up");
    assert_metric(&proxy, "invalidations_total{kind=\"disconnect\"}", 0);
}

#[test]
fn frozen_redis_hits_for_coherence_timeout() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, PATIENT);
    keep(&redis, &proxy, "key", "value");
    keep(&redis, &proxy, "bystander", "untouched");
    let before = redis.calls("get");
    redis.pause();
    let reader = await_doubt(&proxy, "key", "value", Instant::now());
    redis.resume();
    assert_eq!(answer(reader), "value");
    await_metric(&proxy, "tracking_active", 1.0);
    for key in ["key", "bystander"] {
        assert_hit(&read(&proxy, key));
    }
    assert_eq!(redis.calls("get"), before + 1);
    assert_eq!(lines_with_message(&proxy, CONNECTED), 1);
}

#[test]
fn ping_replies_keep_hits_going() {
    let redis = RedisServer::start();
    let proxy =
        tracked(&redis, "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"1h\"");
    keep(&redis, &proxy, "key", "value");
    let begun = Instant::now();
    // A busy machine may be late, which costs a fetch.
    let (mut hits, mut others) = (0, 0);
    while begun.elapsed() < TIMEOUT * 5 {
        if is_hit(&read(&proxy, "key")) { hits += 1 } else { others += 1 }
    }
    assert!(hits > others, "{hits} hits, {others} others");
}

#[test]
fn invalidation_behind_large_value_is_bounded() {
    let redis = RedisServer::start();
    let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
    set(&redis, "large", &"x".repeat(1 << 20));
    keep(&redis, &proxy, "key", "old");
    // 16 KiB each 20 ms: more than a second for the large value.
    relay.delay(Duration::from_millis(20));
    let large = request_and_await_flight(&proxy, "large", 1);
    eventually("Redis has answered", || (redis.calls("get") == 2).then_some(()));
    set(&redis, "key", "new");
    let written = Instant::now();
    let mut client = Client::connect(proxy.http());
    eventually("the new value", || {
        let elapsed = written.elapsed();
        let new = text(&client.get("/keys/key")) == "new";
        assert!(new || elapsed < TIMEOUT, "given {elapsed:?} later");
        new.then_some(())
    });
    assert_eq!(answer(large).len(), 1 << 20);
}

#[test]
fn ping_proves_nothing_after_its_request() {
    const DELAY: Duration = Duration::from_millis(50);
    let redis = RedisServer::start();
    let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
    for round in 1..=8 {
        keep(&redis, &proxy, "key", "old");
        relay.delay(DELAY);
        let pings = redis.calls("ping");
        eventually("signs of life that are late", || {
            (redis.calls("ping") >= pings + 3).then_some(())
        });
        set(&redis, "key", "new");
        let written = Instant::now();
        // A PING reply from before the write may still pass, and the invalidation may not.
        eventually("its moment", || (written.elapsed() > DELAY * round / 6).then_some(()));
        relay.stall();
        let reader = eventually("the old value is given no more", || {
            let elapsed = written.elapsed();
            let mut client = start_read(&proxy, "key");
            client.read_timeout(TIMEOUT / 3);
            let Ok(response) = client.try_read_response() else {
                return (metric(&proxy, FLIGHTS) > 0.0).then_some(client);
            };
            assert!(text(&response) == "new" || elapsed < TIMEOUT, "given {elapsed:?} later");
            None
        });
        relay.resume();
        assert_eq!(answer(reader), "new");
    }
}

#[test]
fn follower_gets_no_result_older_than_its_bound() {
    let redis = RedisServer::start();
    let (relay, proxy) =
        tracked_over_relay(&redis, &format!("{PATIENT}\ndaemon.worker_threads = 1"));
    set(&redis, "key", "old");
    relay.delay(Duration::from_millis(100));
    let mut first = request_and_await_flight(&proxy, "key", 1);
    eventually("Redis has answered", || (redis.calls("get") == 1).then_some(()));
    // The reply is in flight, and is held there.
    relay.stall();
    set(&redis, "key", "new");
    let written = Instant::now();
    eventually("the coherence timeout is over", || (written.elapsed() > TIMEOUT * 2).then_some(()));
    let mut late = start_read(&proxy, "key");
    // One worker serves in order, so the read has begun.
    assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
    relay.resume();
    assert_eq!(
        text(&first.read_response()),
        "old",
        "a read from before the write may return the old value"
    );
    assert_eq!(text(&late.read_response()), "new");
}

#[test]
fn coherence_timeout_applies_immediately() {
    let redis = RedisServer::start();
    let long = "cache.coherence_timeout = \"1m\"\nredis.ping_interval = \"20s\"\n\
        redis.response_timeout = \"20s\"";
    let proxy = tracked(&redis, long);
    keep(&redis, &proxy, "key", "value");
    let short = long.replace("1m", "300ms");
    assert_eq!(proxy.reload(&config(&redis.url(), &lasting(&short))), Reload::Reloaded);
    redis.pause();
    let reader = await_doubt(&proxy, "key", "value", Instant::now());
    redis.resume();
    assert_eq!(answer(reader), "value");
}
