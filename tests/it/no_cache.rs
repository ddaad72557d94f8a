//! Reads with `Cache-Control: no-cache` (linearizable reads).
//!
//! Promise: such a read includes every write that was acknowledged before it began.
//!
//! The relay to Redis is slowed or stopped, so that an invalidation takes a while. A plain read may
//! then return the old value, and does, which shows that the tests can fail.

use std::thread;
use std::time::Duration;

use crate::support::fault_stage::DOWN;
use crate::support::http::{self, Client, Response};
use crate::support::serving::{
    assert_hit, await_ready, behind_relay, cache_status, config, linked, metric, proxy, reads,
    relay_url, set, text, value,
};
use crate::support::{Monitor, Proxy, RedisServer, Relay, eventually};

const LASTING: &str = "cache.ttl = \"1h\"";
const NO_CACHE: [(&str, &str); 1] = [("Cache-Control", "no-cache")];

fn read_current(proxy: &Proxy, key: &str) -> Response {
    Client::connect(proxy.http()).request("GET", format!("/keys/{key}"), &NO_CACHE)
}

#[test]
fn no_cache_read_includes_all_earlier_writes() {
    let (redis, relay, proxy) = behind_relay(LASTING);
    set(&redis, "key", "0");
    value(&proxy, "key");
    relay.delay(Duration::from_millis(10));
    let (mut plain, mut current) = (Client::connect(proxy.http()), Client::connect(proxy.http()));
    let mut old = 0;
    for number in 1..=50 {
        let written = number.to_string();
        set(&redis, "key", &written);
        old += u32::from(text(&plain.get("/keys/key")) != written);
        let response = current.request("GET", "/keys/key", &NO_CACHE);
        assert_eq!(text(&response), written);
        // Every invalidation has arrived by now.
        assert_eq!(text(&plain.get("/keys/key")), written);
    }
    assert!(old > 0, "no plain read was early enough to be old");
}

#[test]
fn no_cache_read_costs_one_ping() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, LASTING);
    set(&redis, "key", "value");
    value(&proxy, "key");
    let monitor = Monitor::start(&redis);
    for directive in
        ["no-cache", "max-age=0", "No-Cache", "no-store, no-cache", "max-stale,  max-age=0"]
    {
        let headers = [("Cache-Control", directive)];
        let response = Client::connect(proxy.http()).request("GET", "/keys/key", &headers);
        assert_hit(&response);
    }
    let commands = monitor.commands();
    let ours = commands.iter().filter(|line| !line.contains("\"AUTH\""));
    let others: Vec<_> = ours.filter(|line| !line.contains("\"PING\"")).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(commands.iter().filter(|line| line.contains("\"PING\"")).count() >= 5, "{commands:#?}");
}

#[test]
fn other_directives_request_no_fence() {
    let (redis, relay, proxy) = behind_relay(LASTING);
    set(&redis, "key", "value");
    value(&proxy, "key");
    relay.stall();
    for directive in ["max-age=1", "max-age=00", "no-transform", "only-if-cached", "xno-cache", ""]
    {
        let headers = [("Cache-Control", directive)];
        assert_hit(&Client::connect(proxy.http()).request("GET", "/keys/key", &headers));
    }
    relay.resume();
}

#[test]
fn one_ping_serves_all_waiting_reads() {
    const READERS: usize = 100;
    let (redis, relay, proxy) = behind_relay(LASTING);
    set(&redis, "key", "value");
    value(&proxy, "key");
    let before = redis.calls("ping");
    relay.delay(Duration::from_millis(100));
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| assert_hit(&read_current(&proxy, "key")));
        }
    });
    let pings = redis.calls("ping") - before;
    assert!(pings < 20, "{pings} pings for {READERS} readers");
}

#[test]
fn no_cache_read_fails_without_redis() {
    let more =
        format!("{LASTING}\ncache.stale_if_error = \"1h\"\nredis.response_timeout = \"300ms\"");
    let (redis, relay, proxy) = behind_relay(&more);
    proxy.expect_log(DOWN);
    set(&redis, "key", "value");
    value(&proxy, "key");
    relay.stall();
    let response = read_current(&proxy, "key");
    assert!([503, 504].contains(&response.status), "{response:?}");
    relay.cut();
    eventually("the loss is noticed", || (read_current(&proxy, "key").status == 503).then_some(()));
    assert_eq!(value(&proxy, "key"), "value", "to a plain read the old value stands in");
    relay.resume();
    await_ready(&proxy);
    assert_eq!(text(&read_current(&proxy, "key")), "value");
}

#[test]
fn untracked_no_cache_read_bypasses_the_cache() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"\ncache.ttl = \"1h\"");
    set(&redis, "key", "old");
    value(&proxy, "key");
    set(&redis, "key", "new");
    let response = read_current(&proxy, "key");
    assert_eq!(
        (text(&response), cache_status(&response)),
        ("new".to_owned(), "redis-proxy; fwd=bypass; ttl=3599")
    );
    assert_eq!(reads(&proxy, "bypass").to_string(), "1");
    assert_eq!(value(&proxy, "key"), "old", "what is kept is as before");
    assert_eq!(read_current(&proxy, "nothing").status, 404);
}

#[test]
fn lost_link_fails_its_fence() {
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let proxy =
        linked(&config(&relay_url(&relay), &format!("{LASTING}\nredis.ping_interval = \"20s\"")));
    proxy.expect_log(DOWN);
    set(&redis, "key", "value");
    value(&proxy, "key");
    relay.stall();
    let waiting = thread::scope(|scope| {
        let reader = scope.spawn(|| read_current(&proxy, "key"));
        eventually("the question is under way", || {
            (metric(&proxy, "connections{front_end=\"http\"}") > 0.0).then_some(())
        });
        relay.cut();
        reader.join().expect("a reader")
    });
    assert_eq!(waiting.status, 503, "{}", text(&waiting));
    relay.resume();
}

#[test]
fn momentary_link_loss_does_not_fail_no_cache_read() {
    const LOSSES: usize = 5;
    let (redis, relay, proxy) = behind_relay(&format!("{LASTING}\ndaemon.worker_threads = 1"));
    proxy.expect_log(DOWN);
    set(&redis, "key", "value");
    let survives = |_: &usize| {
        await_ready(&proxy);
        relay.stall();
        let mut waiting = Client::connect(proxy.http());
        waiting.send_raw(b"GET /keys/key HTTP/1.1\r\nHost: x\r\nCache-Control: no-cache\r\n\r\n");
        // One worker serves in order, so the read has begun.
        assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
        relay.cut_once();
        relay.resume();
        waiting.read_response().status == 200
    };
    // On a busy machine the next link may be late, for any read.
    assert_eq!((0..20 * LOSSES).filter(survives).take(LOSSES).count(), LOSSES);
}
