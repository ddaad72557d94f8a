//! The usual stage: a Redis, the proxy in front of it with an admin listener, and short ways to look at both.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::support::http::{self, Client, Response, key_path};
use crate::support::{Proxy, RedisServer, Relay, eventually};

/// A configuration with ports of its own choice; `more` is dotted keys, one a line.
pub(crate) fn config(url: &str, more: &str) -> String {
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    format!("{listen}redis.url = \"{url}\"\n{more}\n")
}

/// A proxy and its own Redis. The proxy is the first field, so it ends before its Redis does and has nothing to
/// complain about.
pub(crate) struct Serving {
    pub(crate) proxy: Proxy,
    pub(crate) redis: RedisServer,
}

/// A proxy with these settings, written as in the environment but without the prefix: `("CACHE__TTL", "5s")`.
pub(crate) fn serving(settings: &[(&str, &str)]) -> Serving {
    let redis = RedisServer::start();
    let url = redis.url();
    serving_from(redis, &url, settings)
}

/// The same, in front of this Redis at this of its addresses.
pub(crate) fn serving_from(redis: RedisServer, url: &str, settings: &[(&str, &str)]) -> Serving {
    let mut builder = Proxy::builder(&config(url, "daemon.worker_threads = 1"));
    for (name, value) in settings {
        builder = builder.environment(&format!("REDIS_PROXY_{name}"), value);
    }
    let proxy = builder.start();
    await_ready(&proxy);
    Serving { proxy, redis }
}

impl Serving {
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.http()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address())
    }

    pub(crate) fn set(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.redis.command(&[b"SET", key.as_ref(), value.as_ref()]);
    }

    /// The value of `redis_proxy_{series}`.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metric(&self.proxy, series)
    }

    #[track_caller]
    pub(crate) fn await_metric(&self, series: &str, value: u32) {
        await_metric(&self.proxy, series, f64::from(value));
    }
}

/// How many connections of clients are open.
pub(crate) const CONNECTIONS: &str = r#"connections{front_end="http"}"#;
/// How many fetches Redis has not answered yet.
pub(crate) const FLIGHTS: &str = "inflight_fetches";

/// A proxy that has its link to `redis`.
pub(crate) fn proxy(redis: &RedisServer, more: &str) -> Proxy {
    linked(&config(&redis.url(), more))
}

/// A proxy that has its link to the Redis of `config`.
pub(crate) fn linked(config: &str) -> Proxy {
    let proxy = Proxy::start(config);
    await_ready(&proxy);
    proxy
}

/// A Redis, a line to it that can be made to fail, and a proxy that has its link through that.
pub(crate) fn behind_relay(more: &str) -> (RedisServer, Relay, Proxy) {
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let proxy = linked(&config(&relay_url(&relay), more));
    (redis, relay, proxy)
}

pub(crate) fn relay_url(relay: &Relay) -> String {
    format!("redis://{}", relay.address())
}

pub(crate) fn await_ready(proxy: &Proxy) {
    eventually("the proxy has its link", || (readyz(proxy).0 == 200).then_some(()));
}

/// The status of /readyz and what it says.
pub(crate) fn readyz(proxy: &Proxy) -> (u16, String) {
    let response = http::get(proxy.admin(), "/readyz");
    (response.status, text(&response))
}

pub(crate) fn set(redis: &RedisServer, key: &str, value: &str) {
    redis.command(&["SET", key, value]);
}

/// A read on a connection of its own.
pub(crate) fn read(proxy: &Proxy, key: &str) -> Response {
    http::get(proxy.http(), key_path(key.as_bytes()))
}

/// A read, and how long it took.
pub(crate) fn timed_read(proxy: &Proxy, key: &str) -> (Response, Duration) {
    let begun = Instant::now();
    (read(proxy, key), begun.elapsed())
}

/// The text of a value that must be there.
#[track_caller]
pub(crate) fn value(proxy: &Proxy, key: &str) -> String {
    let response = read(proxy, key);
    assert_eq!(response.status, 200, "{key}: {}", text(&response));
    text(&response)
}

/// Asks for a key without waiting for the answer.
pub(crate) fn ask(proxy: &Proxy, key: &str) -> Client {
    let mut client = Client::connect(proxy.http());
    client.send_raw(&request(key));
    client
}

/// A request as it goes over the wire.
pub(crate) fn request(key: &str) -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", key_path(key.as_bytes())).into_bytes()
}

/// Asks for a key and returns once its flight, by then the `flights`th, is under way.
pub(crate) fn ask_and_await_flight(proxy: &Proxy, key: &str, flights: u32) -> Client {
    let client = ask(proxy, key);
    await_metric(proxy, "inflight_fetches", f64::from(flights));
    client
}

pub(crate) fn text(response: &Response) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

pub(crate) fn cache_status(response: &Response) -> &str {
    response.header("cache-status").unwrap_or_default()
}

#[track_caller]
pub(crate) fn assert_hit(response: &Response) {
    let status = cache_status(response);
    assert!(status.starts_with("redis-proxy; hit; ttl="), "no hit: {status}");
}

/// The value of `redis_proxy_{series}`.
#[track_caller]
pub(crate) fn metric(proxy: &Proxy, series: &str) -> f64 {
    let value = proxy.metrics().value(&format!("redis_proxy_{series}"));
    // A command has no series before it was seen.
    value.unwrap_or(if series.starts_with("commands_total{") { 0.0 } else { f64::NAN })
}

#[track_caller]
pub(crate) fn await_metric(proxy: &Proxy, series: &str, expected: f64) {
    eventually(&format!("{series} is {expected}"), || {
        (metric(proxy, series).total_cmp(&expected).is_eq()).then_some(())
    });
}

/// How many reads had this outcome.
pub(crate) fn reads(proxy: &Proxy, outcome: &str) -> f64 {
    metric(proxy, &format!("reads_total{{front_end=\"http\",outcome=\"{outcome}\"}}"))
}

/// How many lines of the log say this.
pub(crate) fn lines_that_say(proxy: &Proxy, message: &str) -> usize {
    let lines = proxy.log_lines();
    lines.iter().filter(|line| line.says(message)).count()
}

/// The commands Redis runs, as `MONITOR` tells them.
pub(crate) struct Monitor<'a> {
    redis: &'a RedisServer,
    lines: BufReader<UnixStream>,
}

impl<'a> Monitor<'a> {
    pub(crate) fn start(redis: &'a RedisServer) -> Self {
        let mut stream = UnixStream::connect(redis.socket()).expect("a connection to redis-server");
        stream.write_all(b"MONITOR\r\n").expect("redis-server takes the command");
        let mut monitor = Self { redis, lines: BufReader::new(stream) };
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    /// All commands so far.
    pub(crate) fn commands(mut self) -> Vec<String> {
        const LAST: &str = "\"ECHO\" \"that is all\"";
        self.redis.command(&["ECHO", "that is all"]);
        let mut commands = Vec::new();
        loop {
            let line = self.line();
            if line.contains(LAST) {
                return commands;
            }
            commands.push(line);
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("redis-server goes on");
        line.trim_end().to_owned()
    }
}

/// A connection that speaks HTTP/2 with prior knowledge.
pub(crate) struct Http2 {
    runtime: Runtime,
    requests: SendRequest<Empty<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

/// A request on its way; aborting it resets its stream.
pub(crate) type Stream = JoinHandle<hyper::Result<(u16, Bytes)>>;

impl Http2 {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the client");
        let (requests, connection) = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.expect("an HTTP connection");
            let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            shaken.expect("the proxy speaks HTTP/2")
        });
        Self { connection: runtime.spawn(connection), runtime, requests }
    }

    pub(crate) fn send(&self, key: &str) -> Stream {
        let uri = format!("http://proxy{}", key_path(key.as_bytes()));
        let request = hyper::Request::get(uri).body(Empty::new()).expect("a request");
        let mut requests = self.requests.clone();
        self.runtime.spawn(async move {
            let response = requests.send_request(request).await?;
            let status = response.status().as_u16();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        })
    }

    /// The status and the body.
    pub(crate) fn answer(&self, stream: Stream) -> (u16, Bytes) {
        let answer = self.runtime.block_on(stream).expect("a request that goes on");
        answer.expect("an answer")
    }

    /// How the connection ended, once it has.
    pub(crate) fn end(self) -> hyper::Result<()> {
        self.runtime.block_on(self.connection).expect("a connection that goes on")
    }
}
