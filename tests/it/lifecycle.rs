//! Signals and shutdown.
//!
//! Promise: TERM and INT finish the requests in flight and lose none.
//!
//! A stalled relay keeps a request in flight.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::http::{self, Client};
use crate::support::metrics::Metrics;
use crate::support::serving::{
    await_metric, behind_relay, config, linked, proxy, request, request_and_await_flight, set,
    text, value,
};
use crate::support::{Http2, Proxy, RedisServer, Relay, Signal, eventually};

/// Below `daemon.drain_timeout`, which is 8 s.
const SOON: Duration = Duration::from_secs(5);
const PATIENT: &str = "redis.response_timeout = \"10s\"\nredis.ping_interval = \"10s\"";

/// Starts a proxy with a request in flight.
fn with_a_request_in_flight(more: &str) -> (RedisServer, Relay, Proxy, Client) {
    let (redis, relay, proxy) = behind_relay(&format!("{PATIENT}\n{more}"));
    set(&redis, "key", "value");
    relay.stall();
    let client = request_and_await_flight(&proxy, "key", 1);
    (redis, relay, proxy, client)
}

fn signal_stop(proxy: &Proxy, signal: Signal) {
    proxy.signal(signal);
    proxy.wait_for_log(|line| line.has_message("stopping"));
}

/// Asserts that the connection was closed in order.
#[track_caller]
fn assert_closed(client: &mut Client) {
    let error = client.try_read_response().expect_err("no further answer");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
}

/// Asserts that the connection was cut; a worker may have sent a 503 before.
#[track_caller]
fn assert_not_answered(client: &mut Client) {
    if let Ok(response) = client.try_read_response() {
        assert_eq!(response.status, 503, "{response:?}");
    }
}

#[test]
fn term_and_int_finish_requests_in_flight() {
    for signal in [Signal::TERM, Signal::INT] {
        let (redis, relay, proxy) = behind_relay("");
        set(&redis, "key", "value");
        relay.delay(Duration::from_millis(150));
        let mut client = request_and_await_flight(&proxy, "key", 1);
        signal_stop(&proxy, signal);
        let response = client.read_response();
        assert_eq!((response.status, text(&response)), (200, "value".to_owned()));
        assert_closed(&mut client);
        proxy.wait_for_log(|line| line.has_message("stopped") && line.level() == "INFO");
        proxy.finish();
    }
}

#[test]
fn last_reply_announces_close() {
    let (_redis, relay, proxy, mut client) = with_a_request_in_flight("daemon.worker_threads = 1");
    let mut idle = Client::connect(proxy.http());
    await_metric(&proxy, "connections{front_end=\"http\"}", 2.0);
    signal_stop(&proxy, Signal::TERM);
    assert_closed(&mut idle);
    // The one worker has woken both connections, so by now the other knows of the drain too.
    await_metric(&proxy, "connections{front_end=\"http\"}", 1.0);
    relay.resume();
    let response = client.read_response();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert_closed(&mut client);
}

#[test]
fn first_request_sent_before_term_is_served() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let clients = (0..100).map(|_| Client::connect(proxy.http())).collect();
    assert_answered_though_signalled(&proxy, clients);
}

#[test]
fn request_on_idle_connection_before_term_is_served() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(proxy.http())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/keys/key").status, 200);
    }
    assert_answered_though_signalled(&proxy, clients);
}

#[track_caller]
fn assert_answered_though_signalled(proxy: &Proxy, mut clients: Vec<Client>) {
    for client in &mut clients {
        client.send_raw(&request("key"));
    }
    proxy.signal(Signal::TERM);
    let answers =
        clients.iter_mut().map(|client| client.try_read_response().map(|response| response.status));
    let lost: Vec<_> = answers.filter(|answer| !matches!(answer, Ok(200))).collect();
    assert!(lost.is_empty(), "{} of {}: {:?}", lost.len(), clients.len(), lost[0]);
}

#[test]
fn unaccepted_connection_before_term_is_served() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    // The order in which the proxy sees the signal and the clients is random.
    for _ in 0..8 {
        let proxy = proxy(&redis, "");
        value(&proxy, "key");
        proxy.signal(Signal::STOP);
        let mut clients: Vec<_> = (0..30).map(|_| Client::connect(proxy.http())).collect();
        for client in &mut clients {
            client.send_raw(&request("key"));
        }
        proxy.signal(Signal::TERM);
        proxy.signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.read_response().status, 200);
        }
    }
}

#[test]
fn hanging_reload_does_not_block_shutdown() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let path = proxy.config_path();
    std::fs::remove_file(&path).expect("the file was there");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    proxy.signal(Signal::HUP);
    set(&redis, "key", "value");
    assert_eq!(value(&proxy, "key"), "value", "reads go on");
    proxy.signal(Signal::TERM);
    proxy.wait_for_log(|line| line.has_message("stopped"));
}

#[test]
fn drain_log_counts_open_connections() {
    let (_redis, relay, proxy, _client) = with_a_request_in_flight("");
    await_metric(&proxy, "connections{front_end=\"admin\"}", 1.0);
    proxy.signal(Signal::TERM);
    let line = proxy.wait_for_log(|line| line.has_message("stopping"));
    let connections: u32 = line.field("connections").and_then(|count| count.parse().ok()).unwrap();
    assert!(
        (1..=2).contains(&connections),
        "the client, and perhaps the look at the metrics: {connections}"
    );
    relay.resume();
}

#[test]
fn large_reply_in_flight_is_completed() {
    const SIZE: usize = 32 << 20;
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "large", &"x".repeat(SIZE));
    let mut stream = TcpStream::connect(proxy.http()).unwrap();
    stream.write_all(&request("large")).unwrap();
    let mut start = [0; 1024];
    stream.read_exact(&mut start).unwrap();
    signal_stop(&proxy, Signal::TERM);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let head = start.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(start.len() - head + rest.len(), SIZE);
}

#[test]
fn idle_connections_close_immediately() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let mut idle: Vec<Client> = (0..5).map(|_| Client::connect(proxy.http())).collect();
    for client in &mut idle {
        assert_eq!(client.get("/keys/key").status, 200);
    }
    let silent = Client::connect(proxy.http());
    await_metric(&proxy, "connections{front_end=\"http\"}", 6.0);
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    idle.iter_mut().for_each(assert_closed);
    proxy.finish();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn new_connections_are_refused_during_drain() {
    let (_redis, relay, proxy, mut client) = with_a_request_in_flight("");
    signal_stop(&proxy, Signal::TERM);
    eventually("the listener is closed", || {
        let error = TcpStream::connect(proxy.http()).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    relay.resume();
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn drain_timeout_cuts_and_counts_connections() {
    let (_redis, _relay, proxy, mut client) =
        with_a_request_in_flight("daemon.drain_timeout = \"300ms\"");
    proxy.expect_log("did not finish in time");
    await_metric(&proxy, "connections{front_end=\"http\"}", 1.0);
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    let line = proxy.wait_for_log(|line| {
        line.has_message("stopped; connections were cut because they did not finish in time")
    });
    assert_eq!(line.field("cut").as_deref(), Some("1"));
    assert_not_answered(&mut client);
    proxy.finish();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300) && took < SOON, "{took:?}");
}

#[test]
fn second_signal_aborts() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let (_redis, _relay, proxy, mut client) = with_a_request_in_flight("");
        proxy.expect_log("second shutdown signal");
        proxy.expect_exit(1);
        signal_stop(&proxy, first);
        let begun = Instant::now();
        proxy.signal(second);
        assert_not_answered(&mut client);
        proxy.finish();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}

#[test]
fn reload_during_drain_changes_nothing() {
    let (_redis, relay, proxy, mut client) = with_a_request_in_flight("");
    signal_stop(&proxy, Signal::TERM);
    proxy.signal(Signal::HUP);
    relay.resume();
    assert_eq!(client.read_response().status, 200);
    proxy.finish();
}

#[test]
fn readyz_reports_draining() {
    let (_redis, relay, proxy, mut client) = with_a_request_in_flight("");
    // A connection without a request yet is served for a moment more.
    let mut operator = Client::connect(proxy.admin());
    await_metric(&proxy, "connections{front_end=\"admin\"}", 2.0);
    signal_stop(&proxy, Signal::TERM);
    let response = operator.get("/readyz");
    assert_eq!(response.status, 503);
    assert!(text(&response).contains("draining"), "{}", text(&response));
    relay.resume();
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn pipelined_requests_in_flight_are_served() {
    let (redis, relay, proxy) = behind_relay(PATIENT);
    for key in ["0", "1", "2"] {
        set(&redis, key, key);
    }
    relay.stall();
    let mut client = Client::connect(proxy.http());
    client.send_raw(&[request("0"), request("1"), request("2")].concat());
    await_metric(&proxy, "inflight_fetches", 1.0);
    signal_stop(&proxy, Signal::TERM);
    relay.resume();
    for key in ["0", "1", "2"] {
        let response = client.read_response();
        assert_eq!((response.status, text(&response)), (200, key.to_owned()));
        // A client may repeat requests behind a reply with `Connection: close`, and only these.
        if response.header("connection") == Some("close") {
            break;
        }
    }
    assert_closed(&mut client);
}

#[test]
fn http2_streams_in_flight_are_served() {
    let (redis, relay, proxy) = behind_relay(PATIENT);
    let client = Http2::connect(proxy.http());
    relay.stall();
    let keys: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    for key in &keys {
        set(&redis, key, key);
    }
    let streams: Vec<_> = keys.iter().map(|key| client.send(key)).collect();
    await_metric(&proxy, "inflight_fetches", 10.0);
    signal_stop(&proxy, Signal::TERM);
    relay.resume();
    for (stream, key) in streams.into_iter().zip(keys) {
        assert_eq!(client.answer(stream), (200, key.into()));
    }
    client.end().unwrap();
    proxy.finish();
}

#[test]
fn idle_http2_connection_closes_immediately() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let client = Http2::connect(proxy.http());
    let stream = client.send("key");
    assert_eq!(client.answer(stream).0, 404);
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    client.end().unwrap();
    proxy.finish();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn shutdown_works_without_redis() {
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&config(&redis.url(), ""));
    proxy.expect_log("no connection to Redis");
    let begun = Instant::now();
    signal_stop(&proxy, Signal::TERM);
    proxy.finish();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn same_port_is_reusable_immediately() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let first = proxy(&redis, "");
    let address = first.http();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/keys/key").status, 200);
    }
    first.finish();
    let same_port = config(&redis.url(), "").replacen("127.0.0.1:0", &address.to_string(), 1);
    let second = linked(&same_port);
    assert_eq!(second.http(), address);
    assert_eq!(value(&second, "key"), "value");
}

#[test]
fn admin_routes_have_own_or_shared_listener() {
    let redis = RedisServer::start();
    let routes = ["/metrics", "/livez", "/readyz"];
    let apart = proxy(&redis, "");
    for route in routes {
        assert_eq!(http::get(apart.admin(), route).status, 200, "{route}");
        assert_eq!(http::get(apart.http(), route).status, 404, "{route}");
    }
    assert_eq!(http::get(apart.admin(), "/keys/key").status, 404);
    assert_eq!(redis.calls("get"), 0, "keys are not read through the operators' listener");

    let beside = config(&redis.url(), "").replacen("admin.listen = \"127.0.0.1:0\"\n", "", 1);
    let together = Proxy::start(&beside);
    eventually("ready", || (http::get(together.http(), "/readyz").status == 200).then_some(()));
    for route in routes {
        assert_eq!(http::get(together.http(), route).status, 200, "{route}");
    }
}

#[test]
fn closed_connections_release_descriptors() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let proxy = proxy(&redis, "");
    let mut operator = Client::connect(proxy.admin());
    let mut look = |series| {
        let text = String::from_utf8(operator.get("/metrics").body).expect("metrics are text");
        Metrics::parse(text).value(series).expect("a figure")
    };
    eventually("earlier looks are over", || {
        (look("redis_proxy_connections{front_end=\"admin\"}") < 2.0).then_some(())
    });
    let before = look("process_open_fds");
    let mut clients: Vec<Client> = (0..200).map(|_| Client::connect(proxy.http())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/keys/key").status, 200);
    }
    let with_clients = look("process_open_fds");
    assert!(with_clients >= before + 200.0, "{before}, then {with_clients}");
    drop(clients);
    eventually("as many descriptors as before", || {
        (look("process_open_fds") <= before).then_some(())
    });
    assert_eq!(look("redis_proxy_connections{front_end=\"http\"}").to_string(), "0");
}

/// Bytes behind a request that ends its connection belong to no request and must not cost the
/// reply.
#[test]
fn final_reply_survives_trailing_bytes() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let last = "GET /keys/key HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let old = "GET /keys/key HTTP/1.0\r\n\r\n";
    for bytes in
        [last.to_owned(), format!("{last}{last}"), format!("{last}\r\n"), format!("{old}\r\n")]
    {
        let mut client = Client::connect(proxy.http());
        client.send_raw(bytes.as_bytes());
        match client.try_read_response() {
            Ok(response) => assert_eq!(text(&response), "value", "{bytes:?}"),
            Err(error) => panic!("no answer to {bytes:?}: {error}"),
        }
    }
}
