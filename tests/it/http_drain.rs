//! HTTP connections that are in use while the proxy stops.
//!
//! Promise: a stop loses no request. Each connection that is in use gets `Connection: close` with
//! its last response, or `GOAWAY` over HTTP/2, and is closed after that.
//!
//! Model: clients that send the next request as soon as the previous response is here. A request
//! without a response is lost if no response announced the end of its connection.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::http::Client;
use crate::support::serving::{await_metric, proxy, request, set};
use crate::support::skip::skipped_without;
use crate::support::{Http2, Proxy, RedisServer, Signal, eventually};

/// Bounds a drain that hangs. Nothing waits that long.
const PATIENT: &str = "daemon.drain_timeout = \"60s\"";

/// Starts a proxy that has the key `key` in its cache.
fn warm() -> (RedisServer, Proxy) {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, PATIENT);
    set(&redis, "key", "value");
    assert_eq!(Client::connect(proxy.http()).get("/keys/key").status, 200);
    (redis, proxy)
}

fn stop(proxy: &Proxy) {
    proxy.signal(Signal::TERM);
    proxy.wait_for_log(|line| line.has_message("stopping"));
}

/// Returns a request that the fast path leaves to hyper.
fn request_for_hyper() -> Vec<u8> {
    b"GET /keys/key HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_vec()
}

/// Sends requests until a response announces the end.
///
/// # Errors
/// The number of answered requests and the error, if one gets no response.
fn use_until_close(
    address: SocketAddr,
    request: &[u8],
    pause: Duration,
    answered: &AtomicUsize,
) -> Result<(), String> {
    let mut client = Client::connect(address);
    for number in 1_usize.. {
        client.send_raw(request);
        let response =
            client.try_read_response().map_err(|error| format!("request {number}: {error}"))?;
        assert_eq!(response.status, 200, "{response:?}");
        answered.fetch_add(1, SeqCst);
        if response.header("connection") == Some("close") {
            break;
        }
        thread::sleep(pause);
    }
    let end = client.try_read_response().expect_err("no response behind the last one");
    if end.kind() == ErrorKind::UnexpectedEof { Ok(()) } else { Err(format!("the end: {end}")) }
}

/// Stops the proxy once all clients are busy, and asserts that none of them lost a request.
#[track_caller]
fn assert_stop_loses_no_request(
    proxy: Proxy,
    clients: Vec<JoinHandle<Result<(), String>>>,
    answered: &AtomicUsize,
) {
    let count = clients.len();
    eventually("all are busy", || (answered.load(SeqCst) > 50 * count).then_some(()));
    stop(&proxy);
    let lost: Vec<String> = clients
        .into_iter()
        .filter_map(|client| client.join().expect("a client that goes on").err())
        .collect();
    assert!(lost.is_empty(), "{} of {count} lost a request: {lost:?}", lost.len());
    proxy.finish();
}

#[test]
fn busy_connections_lose_no_request_at_term() {
    const CLIENTS: usize = 32;
    let (_redis, proxy) = warm();
    let (address, answered) = (proxy.http(), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<JoinHandle<_>> = (0..CLIENTS)
        .map(|number| {
            let answered = Arc::clone(&answered);
            let request = if number % 2 == 0 { request("key") } else { request_for_hyper() };
            // Some clients need time between a response and the next request.
            let pause = Duration::from_millis([0, 0, 20, 200][number / 2 % 4]);
            thread::spawn(move || use_until_close(address, &request, pause, &answered))
        })
        .collect();
    assert_stop_loses_no_request(proxy, clients, &answered);
}

#[test]
fn wrk_loses_no_request_at_term() {
    let (_redis, proxy) = warm();
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", "64", "--timeout", "20s", "--duration", "2s"])
        .arg(format!("http://{}/keys/key", proxy.http()));
    let wrk = wrk.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let wrk = match wrk {
        Ok(wrk) => wrk,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped_without("wrk", "it is Debian's package of this name");
        }
        Err(error) => panic!("wrk does not start: {error}"),
    };
    await_metric(&proxy, "connections{front_end=\"http\"}", 64.0);
    stop(&proxy);
    let output = wrk.wait_with_output().expect("wrk ends");
    let report = String::from_utf8(output.stdout).expect("wrk writes text");
    // A request without a response is a read error. wrk tries to connect again and again, and
    // counts that as write errors.
    let errors = report.lines().find(|line| line.contains("Socket errors"));
    assert!(errors.is_none_or(|errors| errors.contains(" read 0, ")), "{report}");
    assert!(!report.contains("Non-2xx"), "{report}");
    proxy.finish();
}

#[test]
fn pipelined_requests_are_all_answered_at_term() {
    let (redis, proxy) = warm();
    set(&redis, "other", "value");
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.http())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/keys/key").status, 200);
    }
    stop(&proxy);
    for client in &mut clients {
        // The signal may reach the connection after the first requests.
        loop {
            client.send_raw(&[request("key"), request("other"), request("key")].concat());
            let announced = [(); 3].map(|()| {
                let response = client.read_response();
                assert_eq!(response.status, 200, "{response:?}");
                response.header("connection") == Some("close")
            });
            assert!(!announced[0] && !announced[1], "a request has no response: {announced:?}");
            if announced[2] {
                break;
            }
        }
    }
    proxy.finish();
}

#[test]
fn bytes_behind_the_last_response_do_not_reset() {
    let (_redis, proxy) = warm();
    let mut stream = TcpStream::connect(proxy.http()).expect("a connection");
    stop(&proxy);
    let mut received = [0; 1024];
    loop {
        stream.write_all(&request("key")).expect("a request is sent");
        // Not read, so that a reset would discard it.
        let response = eventually("a response", || {
            let length = stream.peek(&mut received).expect("a response");
            let text = String::from_utf8_lossy(&received[..length]).into_owned();
            text.ends_with("value").then_some(text)
        });
        if response.contains("connection: close") {
            break;
        }
        stream.read_exact(&mut received[..response.len()]).expect("the response");
    }
    for _ in 0..100 {
        stream.write_all(&request("key")).expect("more is sent");
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end of the connection, and no reset");
    assert!(rest.ends_with(b"value"), "{}", String::from_utf8_lossy(&rest));
    drop(stream);
    proxy.finish();
}

#[test]
fn request_that_arrives_in_parts_is_answered_at_term() {
    let (_redis, proxy) = warm();
    let (whole, mut idle) = (request("key"), Client::connect(proxy.http()));
    assert_eq!(idle.get("/keys/key").status, 200);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(proxy.http())).collect();
    let (first, second) = whole.split_at(whole.len() / 2);
    for client in &mut clients {
        client.send_raw(first);
    }
    stop(&proxy);
    let end = idle.try_read_response().expect_err("an idle connection is closed");
    assert_eq!(end.kind(), ErrorKind::UnexpectedEof, "{end}");
    for client in &mut clients {
        client.send_raw(second);
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    }
    drop((idle, clients));
    proxy.finish();
}

#[test]
fn busy_http2_connections_lose_no_request_at_term() {
    const CLIENTS: usize = 8;
    let (_redis, proxy) = warm();
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<JoinHandle<_>> = (0..CLIENTS)
        .map(|_| {
            let (client, answered) = (Http2::connect(proxy.http()), Arc::clone(&answered));
            thread::spawn(move || {
                let lost = client.read_until_goaway("key", &answered);
                lost.and_then(|()| client.end().map_err(|error| format!("the end: {error:?}")))
            })
        })
        .collect();
    assert_stop_loses_no_request(proxy, clients, &answered);
}
