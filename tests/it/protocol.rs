//! HTTP/1.1 and HTTP/2 on the wire.
//!
//! Promise: valid requests in any pieces are served, invalid, slow (slowloris) or oversized ones
//! are rejected, and each connection takes bounded resources.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value as Json;

use crate::support::eventually;
use crate::support::http::{Client, get};
use crate::support::serving::{CONNECTIONS, FLIGHTS, Serving, serving};

const BOUND: Duration = Duration::from_secs(10);

/// Opens a raw connection; reading fails after 10 s.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("a connection to set up");
    stream.set_read_timeout(Some(BOUND)).expect("a connection to set up");
    stream
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        // The proxy may reject a request before its end.
        Err(error)
            if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {}
        sent => sent.expect("bytes sent"),
    }
}

/// Reads until the proxy closes the connection; panics if it does not.
#[track_caller]
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        read => _ = read.expect("the proxy closes the connection"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends the bytes and reads until the proxy closes the connection.
#[track_caller]
fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    send(&mut stream, bytes);
    read_to_close(&mut stream)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

/// Starts a proxy where key `a` holds `value`.
fn serving_a(settings: &[(&str, &str)]) -> Serving {
    let serving = serving(settings);
    serving.set("a", "value");
    serving
}

#[track_caller]
fn assert_serves(serving: &Serving) {
    let response = get(serving.address(), "/keys/a");
    assert_eq!((response.status, &*response.body), (200, &b"value"[..]));
}

// HTTP/1

#[test]
fn connection_serves_many_requests() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    for _ in 0..500 {
        assert_eq!(client.get("/keys/a").body, b"value");
        assert_eq!(client.get("/keys/%").status, 400);
    }
    serving.await_metric(CONNECTIONS, 1);
    drop(client);
    serving.await_metric(CONNECTIONS, 0);
}

#[test]
fn http_1_0_reply_is_followed_by_close() {
    let serving = serving_a(&[]);
    let answer = exchange(serving.address(), b"GET /keys/a HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nvalue"), "{answer}");
}

#[test]
fn http_1_0_keep_alive_is_honoured() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    for _ in 0..3 {
        client.send_raw(b"GET /keys/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.read_response().body, b"value");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let serving = serving(&[]);
    (0..100).for_each(|number| serving.set(format!("k{number}"), format!("v{number}")));
    let request = |number| format!("GET /keys/k{number} HTTP/1.1\r\nHost: x\r\n\r\n");
    let requests = (0..100).map(request).collect::<Vec<_>>().concat();
    let mut client = serving.client();
    // From Redis, then from memory.
    for _ in 0..2 {
        client.send_raw(requests.as_bytes());
        for number in 0..100 {
            assert_eq!(client.read_response().body, format!("v{number}").as_bytes());
        }
    }
}

#[test]
fn reply_does_not_wait_for_the_next_request() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    client.read_timeout(BOUND);
    client.send_raw(b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\nGET /keys/a HTT");
    assert_eq!(client.read_response().body, b"value");
    client.send_raw(b"P/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read_response().body, b"value");
}

#[test]
fn empty_lines_between_requests_are_skipped() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    client.read_timeout(BOUND);
    for _ in 0..3 {
        client.send_raw(b"\r\nGET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n\r\n");
        assert_eq!(client.read_response().body, b"value");
    }
}

#[test]
fn half_closed_client_gets_its_reply() {
    let serving = serving_a(&[]);
    serving.redis.pause();
    let mut stream = connect(serving.address());
    send(&mut stream, b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.shutdown(Shutdown::Write).expect("a connection that is open");
    serving.await_metric(FLIGHTS, 1);
    serving.redis.resume();
    let answer = read_to_close(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nvalue"), "{answer}");
}

#[test]
fn request_may_arrive_bytewise() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    for _ in 0..3 {
        for byte in b"GET /keys/a HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n" {
            client.send_raw(&[*byte]);
        }
        assert_eq!(client.read_response().body, b"value");
    }
}

#[test]
fn connection_close_is_honoured_after_the_reply() {
    let serving = serving_a(&[]);
    let answer = exchange(
        serving.address(),
        b"GET /keys/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nvalue"), "{answer}");
}

#[test]
fn absolute_form_target_is_accepted() {
    let serving = serving_a(&[]);
    let mut client = serving.client();
    for target in ["http://proxy.example:99/keys/a", "http://[::1]/keys/a", "https://x/keys/a"] {
        assert_eq!(client.get(target).body, b"value", "{target}");
    }
    assert_eq!(client.get("http://proxy.example").status, 404);
    assert_eq!(client.request("OPTIONS", "*", &[]).status, 404);
}

#[test]
fn get_body_is_skipped_and_never_a_request() {
    let serving = serving_a(&[]);
    serving.set("b", "other");
    for (length, body) in [
        ("Content-Length: 32", "GET /keys/b HTTP/1.1\r\nHost:x\r\n\r\n"),
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let mut client = serving.client();
        client.read_timeout(BOUND);
        client.send_raw(
            format!("GET /keys/a HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n{body}").as_bytes(),
        );
        assert_eq!(client.read_response().body, b"value", "{length}");
        client.send_raw(b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
        // The proxy may close the connection instead of reading a body to its end.
        let next = client.try_read_response();
        assert!(next.as_ref().map_or(true, |next| next.body == b"value"), "{length}: {next:?}");
    }
}

#[test]
fn expect_continue_is_answered() {
    let serving = serving_a(&[]);
    for (method, expected) in [("GET", 200), ("PUT", 405)] {
        let mut client = serving.client();
        let headers = [("Content-Length", "5"), ("Expect", "100-continue")];
        let mut response = client.request(method, "/keys/a", &headers);
        if response.status == 100 {
            response = client.read_response();
        }
        assert_eq!(response.status, expected, "{method}");
    }
}

#[test]
fn rejected_write_is_explained_at_any_body_size() {
    let serving = serving_a(&[]);
    for length in [10, 10_000, 4_000_000] {
        let mut client = serving.client();
        let head = format!("PUT /keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        client.send_raw(&[head.into_bytes(), vec![b'x'; length]].concat());
        assert_eq!(client.read_response().status, 405, "{length} bytes");
    }
    assert_serves(&serving);
}

// HTTP/2

/// Runs a test over HTTP/2.
fn with_http2<F: Future<Output = ()>>(
    address: SocketAddr,
    test: impl FnOnce(SendRequest<Empty<Bytes>>) -> F,
) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/2 with prior knowledge");
        // The requests report the end of their connection.
        tokio::spawn(async { _ = connection.await });
        test(sender).await;
    };
    let bounded = async { tokio::time::timeout(BOUND, test).await };
    runtime.block_on(bounded).expect("an end of the test");
}

fn request(method: Method, path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("http://proxy.example{path}");
    let request = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
    request.body(Empty::new()).expect("a request")
}

type Answer = (StatusCode, http::HeaderMap, Bytes);

async fn query(mut sender: SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> Answer {
    sender.ready().await.expect("a connection that is open");
    let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head.status, head.headers, body)
}

#[test]
fn http2_serves_concurrent_streams() {
    let serving = serving(&[]);
    (0..300).for_each(|number| serving.set(format!("k{number}"), format!("v{number}")));
    with_http2(serving.address(), async |sender| {
        let reads = (0..300)
            .map(|number| query(sender.clone(), request(Method::GET, &format!("/keys/k{number}"))));
        for (number, (status, _, body)) in
            futures::future::join_all(reads).await.into_iter().enumerate()
        {
            assert_eq!((status, &*body), (StatusCode::OK, format!("v{number}").as_bytes()));
        }
        serving.await_metric(CONNECTIONS, 1);
    });
}

#[test]
fn http2_answers_equal_http1() {
    let serving = serving_a(&[]);
    serving.set("a/b c", "slashed");
    let mut client = serving.client();
    client.get("/keys/a");
    with_http2(serving.address(), async |sender| {
        for path in [
            "/keys/a",
            "/keys/a%2Fb%20c",
            "/keys/absent",
            "/nothing",
            "/keys/%",
            "/keys/",
            "/keys/a?b",
        ] {
            let (status, headers, body) = query(sender.clone(), request(Method::GET, path)).await;
            let plain = client.get(path);
            assert_eq!((status.as_u16(), &body[..]), (plain.status, &plain.body[..]), "{path}");
            let etag = headers.get("etag").and_then(|etag| etag.to_str().ok());
            assert_eq!(etag, plain.header("etag"), "{path}");
        }
    });
}

#[test]
fn http2_head_has_no_body_and_keeps_connection() {
    let serving = serving_a(&[]);
    with_http2(serving.address(), async |sender| {
        for (path, expected, length) in
            [("/keys/a", 200, Some("5")), ("/keys/absent", 404, None), ("/nothing", 404, None)]
        {
            let (status, headers, body) = query(sender.clone(), request(Method::HEAD, path)).await;
            assert_eq!((status.as_u16(), body.len()), (expected, 0), "{path}");
            let received = headers.get("content-length").and_then(|length| length.to_str().ok());
            assert!(
                received.is_some() && length.is_none_or(|length| received == Some(length)),
                "{path}"
            );
        }
        let (status, _, body) = query(sender.clone(), request(Method::PUT, "/keys/a")).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(!body.is_empty());
        assert_eq!(&query(sender, request(Method::GET, "/keys/a")).await.2[..], b"value");
    });
}

#[test]
fn http2_large_value_arrives_whole() {
    let serving = serving(&[]);
    let value: Vec<u8> = (0_u32..1_000_000).flat_map(u32::to_le_bytes).collect();
    serving.set("big", &value);
    with_http2(serving.address(), async |sender| {
        let (status, _, body) = query(sender, request(Method::GET, "/keys/big")).await;
        assert!(status == StatusCode::OK && body == value, "{status}, {} bytes", body.len());
    });
}

#[test]
fn abandoned_http2_stream_does_not_delay_idle_close() {
    let serving = serving_a(&[("HTTP__IDLE_TIMEOUT", "300ms")]);
    with_http2(serving.address(), async |mut sender| {
        serving.redis.pause();
        let given_up = tokio::spawn(sender.send_request(request(Method::GET, "/keys/a")));
        until(|| serving.metric(FLIGHTS) > 0.5).await;
        given_up.abort();
        _ = given_up.await;
        // Redis stays silent until the proxy has answered a later stream, so it knows that this one
        // is over.
        query(sender.clone(), request(Method::GET, "/nothing")).await;
        serving.redis.resume();
        let closed = tokio::time::timeout(Duration::from_secs(3), until(|| sender.is_closed()));
        assert!(closed.await.is_ok(), "still open after ten times its idle_timeout");
    });
}

/// Polls, letting the runtime go on meanwhile.
async fn until(mut seen: impl FnMut() -> bool) {
    while !seen() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// Limits

#[test]
fn oversized_head_is_rejected() {
    let serving = serving_a(&[("HTTP__MAX_HEADER", "8KiB")]);
    let head = |length: usize| {
        format!("GET /keys/a HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(length))
    };
    let mut client = serving.client();
    client.send_raw(head(8000).as_bytes());
    assert_eq!(client.read_response().status, 200);
    for length in [9 << 10, 32 << 10, 1 << 20] {
        let answer = exchange(serving.address(), head(length).as_bytes());
        assert_eq!(status(&answer), "431", "{length}: {answer:?}");
    }
    assert_serves(&serving);
}

#[test]
fn max_header_is_exact_to_a_kibibyte() {
    for (limit, bytes) in [("8KiB", 8 << 10), ("20KiB", 20 << 10), ("64KiB", 64 << 10)] {
        let serving = serving_a(&[("HTTP__MAX_HEADER", limit)]);
        for (length, expected) in [(bytes - 1024, "200"), (bytes + 1024, "431")] {
            let start = "GET /keys/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ";
            let filling = "x".repeat(length - start.len() - 4);
            let answer =
                exchange(serving.address(), format!("{start}{filling}\r\n\r\n").as_bytes());
            assert_eq!(
                status(&answer),
                expected,
                "{length} bytes where {limit} are allowed: {answer:?}"
            );
        }
    }
}

#[test]
fn too_many_header_lines_are_rejected() {
    let serving = serving_a(&[]);
    let lines = "X: y\r\n".repeat(1000);
    let answer =
        exchange(serving.address(), format!("GET /keys/a HTTP/1.1\r\n{lines}\r\n").as_bytes());
    assert_eq!(status(&answer), "431", "{answer:?}");
}

#[test]
fn endless_head_is_cut_off() {
    let serving = serving_a(&[]);
    let mut stream = connect(serving.address());
    send(&mut stream, b"GET /keys/a HTTP/1.1\r\n");
    let line = format!("X: {}\r\n", "x".repeat(1000)).repeat(64);
    let sent = (0..1000).take_while(|_| stream.write_all(line.as_bytes()).is_ok()).count();
    assert!(sent < 1000, "64 MB of a head were taken");
    serving.await_metric(CONNECTIONS, 0);
    assert_serves(&serving);
}

/// Sends one byte each 20 ms until all are sent or the proxy has closed; returns whether it has.
fn dribble(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    let limit = Some(Duration::from_millis(20));
    stream.set_read_timeout(limit).expect("a connection to set up");
    let closed = bytes.iter().any(|byte| {
        let written = stream.write_all(&[*byte]);
        let silent = stream.peek(&mut [0]).is_err_and(|error| {
            [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
        });
        written.is_err() || !silent
    });
    stream.set_read_timeout(Some(BOUND)).expect("a connection to set up");
    closed
}

#[test]
fn slow_head_is_cut_off() {
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "300ms")]);
    let mut stream = connect(serving.address());
    let begun = Instant::now();
    let head = format!("GET /keys/a HTTP/1.1\r\nX: {}", "x".repeat(400));
    assert!(dribble(&mut stream, head.as_bytes()), "the head was taken for 8 s");
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    serving.await_metric(CONNECTIONS, 0);
}

#[test]
fn later_head_has_the_same_timeout() {
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "300ms")]);
    let mut stream = connect(serving.address());
    send(&mut stream, b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = Vec::new();
    while !answer.ends_with(b"value") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    let head = format!("GET /keys/a HTTP/1.1\r\nX: {}", "x".repeat(400));
    assert!(dribble(&mut stream, head.as_bytes()), "the head was taken for 8 s");
}

/// Asserts that the proxy neither sends nor closes for more than twice the `header_timeout` of the
/// test below.
#[track_caller]
fn assert_left_open(client: &mut Client) {
    client.read_timeout(Duration::from_millis(700));
    let silence = client.try_read_response().expect_err("nothing was asked");
    let silent = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&silence.kind());
    assert!(silent, "{silence}");
    client.read_timeout(BOUND);
}

#[test]
fn header_timeout_excludes_idle_time() {
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "300ms")]);
    let mut client = serving.client();
    assert_left_open(&mut client);
    assert_eq!(client.get("/keys/a").body, b"value");
    assert_left_open(&mut client);
    assert_eq!(client.get("/keys/a").body, b"value");
}

#[test]
fn slow_head_within_the_timeout_is_served() {
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "20s"), ("HTTP__IDLE_TIMEOUT", "800ms")]);
    let mut stream = connect(serving.address());
    let head = b"GET /keys/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r";
    assert!(!dribble(&mut stream, head), "cut off although bytes kept coming");
    send(&mut stream, b"\n");
    assert_eq!(status(&read_to_close(&mut stream)), "200");
}

#[test]
fn first_byte_alone_is_cut_off() {
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "200ms"), ("HTTP__IDLE_TIMEOUT", "60s")]);
    // P may begin POST, or the preface of HTTP/2.
    for word in [&b"G"[..], b"P", b"PRI ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let mut stream = connect(serving.address());
        send(&mut stream, word);
        let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        let closed = matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset));
        assert!(closed, "open {BOUND:?} after {}", word.escape_ascii());
    }
}

#[test]
fn client_gone_after_one_byte_is_released() {
    // Timeouts too long to close these connections.
    let serving = serving_a(&[("HTTP__HEADER_TIMEOUT", "60s"), ("HTTP__IDLE_TIMEOUT", "60s")]);
    for word in [&b""[..], b"G", b"P", b"PR", b"PRI "] {
        let mut stream = connect(serving.address());
        send(&mut stream, word);
        serving.await_metric(CONNECTIONS, 1);
        drop(stream);
        let gone = || (serving.metric(CONNECTIONS) < 0.5).then_some(());
        eventually(&format!("no connection is left of \"{}\"", word.escape_ascii()), gone);
    }
}

#[test]
fn idle_connection_is_closed() {
    let serving = serving_a(&[("HTTP__IDLE_TIMEOUT", "200ms")]);
    let (mut silent, mut used) = (connect(serving.address()), connect(serving.address()));
    let begun = Instant::now();
    send(&mut used, b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&read_to_close(&mut used)), "200");
    assert_eq!(read_to_close(&mut silent), "");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(190), "{took:?}");
    serving.await_metric(CONNECTIONS, 0);
}

#[test]
fn connection_waiting_for_redis_is_not_idle() {
    let serving = serving_a(&[("HTTP__IDLE_TIMEOUT", "100ms"), ("HTTP__HEADER_TIMEOUT", "100ms")]);
    serving.proxy.expect_log("no connection to Redis");
    let mut client = serving.client();
    serving.redis.pause();
    // Longer than both timeouts, and shorter than redis.response_timeout.
    let resumed = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(600));
            serving.redis.resume();
        });
        client.get("/keys/a")
    });
    assert_eq!(resumed.body, b"value");
}

/// Sends the last request of a connection, for a large value, through a small receive buffer.
fn request_big(serving: &Serving) -> TcpStream {
    request_big_with(serving, "Connection: close\r\n")
}

/// Sends the request with these headers.
fn request_big_with(serving: &Serving, headers: &str) -> TcpStream {
    serving.set("big", vec![b'x'; BIG]);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 << 10).expect("a smaller buffer");
        let stream = socket.connect(serving.address()).await.expect("a connection");
        stream.into_std().expect("a socket")
    });
    stream.set_nonblocking(false).expect("a connection to set up");
    stream.set_read_timeout(Some(BOUND)).expect("a connection to set up");
    send(&mut stream, format!("GET /keys/big HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
    stream
}

const BIG: usize = 24 << 20;

#[test]
fn slow_reader_gets_the_whole_body() {
    let serving = serving(&[("HTTP__IDLE_TIMEOUT", "1200ms"), ("HTTP__HEADER_TIMEOUT", "500ms")]);
    read_slowly(request_big(&serving));
}

/// The buffers of both kernels hold several megabytes. A write would succeed again when a third of
/// them is empty, which takes such a reader longer than the idle timeout.
#[test]
fn steady_reader_is_not_cut_between_two_writes() {
    const STEP: usize = 10 << 10;
    let serving = serving(&[("HTTP__IDLE_TIMEOUT", "5s")]);
    serving.set("big", vec![b'x'; BIG]);
    let mut stream = TcpStream::connect(serving.address()).expect("a connection");
    stream.set_read_timeout(Some(BOUND)).expect("a connection to set up");
    send(&mut stream, b"GET /keys/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    // A reader that begins fast gets the largest buffers.
    let mut received = vec![0; 2 << 20];
    stream.read_exact(&mut received).expect("the first part");
    let (begun, mut chunk) = (Instant::now(), vec![0; STEP]);
    while begun.elapsed() < Duration::from_secs(15) {
        stream.read_exact(&mut chunk).expect("more of the value");
        received.extend(&chunk);
        std::thread::sleep(Duration::from_millis(50));
    }
    stream.read_to_end(&mut received).expect("the rest");
    assert!(received.len() > BIG, "cut after {} of {BIG} bytes", received.len());
}

#[test]
fn slow_reader_is_not_idle_at_its_end() {
    let serving = serving_a(&[("HTTP__IDLE_TIMEOUT", "1500ms"), ("HTTP__HEADER_TIMEOUT", "100ms")]);
    let mut stream = request_big_with(&serving, "");
    let mut byte = [0];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("more of the head");
        head.push(byte[0]);
    }
    let mut chunk = vec![0; 256 << 10];
    for _ in 0..BIG / chunk.len() {
        stream.read_exact(&mut chunk).expect("more of the value");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Longer than the proxy takes to notice.
    std::thread::sleep(Duration::from_millis(250));
    send(&mut stream, b"GET /keys/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&read_to_close(&mut stream)), "200");
}

#[test]
fn late_body_is_not_a_slow_head() {
    let serving = serving(&[("HTTP__IDLE_TIMEOUT", "1200ms"), ("HTTP__HEADER_TIMEOUT", "500ms")]);
    serving.set("big", vec![b'x'; BIG]);
    serving.redis.pause();
    let mut stream = TcpStream::connect(serving.address()).expect("a connection");
    stream
        .write_all(
            b"GET /keys/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        )
        .expect("sent");
    serving.await_metric(FLIGHTS, 1);
    stream.write_all(b"later").expect("sent");
    serving.redis.resume();
    read_slowly(stream);
}

/// Reads a response to its end at 12 MB a second, which takes longer than the timeouts above.
#[track_caller]
fn read_slowly(mut stream: TcpStream) {
    let begun = Instant::now();
    let mut received = 0;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let length = stream.read(&mut chunk).expect("more of the value");
        if length == 0 {
            break;
        }
        received += length;
        let due = Duration::from_secs_f64(
            f64::from(u32::try_from(received).expect("less than 4 GB")) / 12e6,
        );
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    assert!(received > BIG, "{received} bytes");
    assert!(begun.elapsed() > Duration::from_millis(1500), "too fast to show anything");
}

#[test]
fn stalled_reader_is_cut_off() {
    let serving = serving(&[("HTTP__IDLE_TIMEOUT", "300ms")]);
    let stream = request_big(&serving);
    serving.await_metric(r#"reads_total{front_end="http",outcome="miss"}"#, 1);
    serving.await_metric(CONNECTIONS, 0);
    drop(stream);
}

#[test]
fn connection_beyond_the_limit_is_rejected() {
    let serving = serving_a(&[("HTTP__MAX_CONNECTIONS", "2")]);
    let mut held = [serving.client(), serving.client()];
    for client in &mut held {
        assert_eq!(client.get("/keys/a").body, b"value");
    }
    let refused = get(serving.address(), "/keys/a");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    let after = refused.header("retry-after").and_then(|after| after.parse::<u32>().ok());
    assert!(after.is_some_and(|seconds| seconds > 0), "{refused:?}");
    let problem: Json = serde_json::from_slice(&refused.body).expect("a problem");
    assert_eq!(problem["status"], 503);
    let count = serving.metric(r#"connections_refused_total{front_end="http"}"#);
    assert!((count - 1.0).abs() < 0.5, "{count}");
    // Existing connections are unharmed.
    for client in &mut held {
        assert_eq!(client.get("/keys/a").body, b"value");
    }
}

#[test]
fn freed_connection_slot_is_reused() {
    let serving = serving_a(&[("HTTP__MAX_CONNECTIONS", "1")]);
    for _ in 0..5 {
        eventually("the place is free", || {
            let mut client = Client::connect(serving.address());
            (client.get("/keys/a").status == 200).then_some(())
        });
    }
}

#[test]
fn non_http_input_is_rejected() {
    let serving = serving_a(&[]);
    let tls_hello =
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), vec![7; 512]].concat();
    for garbage in [
        &b"\x00\xff\xfe\r\n\r\n"[..],
        &tls_hello,
        b"GET\r\n\r\n",
        b"GET /keys/a\r\n\r\n",
        b"GET /keys/a HTTP/9.9\r\n\r\n",
        b"GET /keys/a HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /keys/a HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ] {
        let answer = exchange(serving.address(), garbage);
        assert_eq!(status(&answer), "400", "{}: {answer:?}", garbage.escape_ascii());
    }
    serving.await_metric(CONNECTIONS, 0);
    assert_serves(&serving);
}

#[test]
fn invalid_http2_frames_are_cut_off() {
    let serving = serving_a(&[]);
    for garbage in [
        &b"PRI * HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame at all",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x00",
    ] {
        let answer = exchange(serving.address(), garbage);
        assert!(!answer.contains("200"), "{answer:?}");
    }
    serving.await_metric(CONNECTIONS, 0);
    assert_serves(&serving);
}
