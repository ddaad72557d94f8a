//! "Who asks for what is current gets it": a read with `Cache-Control: no-cache` is never older than itself.
//!
//! The line to Redis is slowed or stopped here, so that a change takes a while to be told. A plain read may then give
//! the old value, and does, which shows that the tests can fail; one that asks for what is current may not, ever.

use std::thread;
use std::time::Duration;

use crate::stage::{
    Monitor, assert_hit, await_ready, behind_relay, cache_status, config, linked, metric, proxy,
    reads, relay_url, set, text, value,
};
use crate::support::http::{self, Client, Response};
use crate::support::{Proxy, RedisServer, Relay, eventually};

const LASTING: &str = "cache.ttl = \"1h\"";
const NO_CACHE: [(&str, &str); 1] = [("Cache-Control", "no-cache")];
const DOWN: &str = "no link to Redis";

fn read_current(proxy: &Proxy, key: &str) -> Response {
    Client::connect(proxy.http()).request("GET", format!("/keys/{key}"), &NO_CACHE)
}

#[test]
fn a_write_is_in_every_current_read_that_begins_after_it_however_slow_the_news() {
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
        // Everything has been told by now.
        assert_eq!(text(&plain.get("/keys/key")), written);
    }
    assert!(old > 0, "no plain read was early enough to be old");
}

#[test]
fn a_current_read_costs_redis_no_more_than_a_ping() {
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
fn other_directives_ask_for_nothing() {
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
fn one_question_serves_all_who_wait() {
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
    let asked = redis.calls("ping") - before;
    assert!(asked < 20, "{asked} questions for {READERS} readers");
}

#[test]
fn where_redis_does_not_answer_there_is_no_current_answer() {
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
fn without_tracking_a_current_read_goes_past_the_cache() {
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
fn a_link_that_is_lost_while_it_is_asked_is_asked_no_more() {
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
fn a_link_lost_in_passing_costs_a_current_read_no_more_than_another() {
    const LOSSES: usize = 10;
    let (redis, relay, proxy) = behind_relay(&format!("{LASTING}\ndaemon.worker_threads = 1"));
    proxy.expect_log(DOWN);
    set(&redis, "key", "value");
    let answered = (0..LOSSES).filter(|_| {
        await_ready(&proxy);
        relay.stall();
        let mut waiting = Client::connect(proxy.http());
        waiting.send_raw(b"GET /keys/key HTTP/1.1\r\nHost: x\r\nCache-Control: no-cache\r\n\r\n");
        // One worker serves in turn, so the read has begun.
        assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
        relay.cut_once();
        relay.resume();
        waiting.read_response().status == 200
    });
    // On a machine with much else to do the next link may be late, for any read.
    assert!(answered.count() >= LOSSES / 2);
}
