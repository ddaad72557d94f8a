//! The usual setup: a Redis, a proxy in front of it with an admin listener, and short helpers for
//! both.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::http::{self, Client, Response, key_path};
use crate::support::{Proxy, RedisServer, Relay, eventually};

/// Returns a configuration with free ports; `more` is dotted keys, one a line.
pub(crate) fn config(url: &str, more: &str) -> String {
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    format!("{listen}redis.url = \"{url}\"\n{more}\n")
}

/// A proxy and its own Redis. The proxy is the first field, so it ends before its Redis does and
/// logs no warning.
pub(crate) struct Serving {
    pub(crate) proxy: Proxy,
    pub(crate) redis: RedisServer,
}

/// Starts a proxy with these settings, in the form of the environment without the prefix:
/// `("CACHE__TTL", "5s")`.
pub(crate) fn serving(settings: &[(&str, &str)]) -> Serving {
    let redis = RedisServer::start();
    let url = redis.url();
    serving_from(redis, &url, settings)
}

/// Starts a proxy in front of this Redis at this address.
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

    /// Returns the value of `redis_proxy_{series}`.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metric(&self.proxy, series)
    }

    #[track_caller]
    pub(crate) fn await_metric(&self, series: &str, value: u32) {
        await_metric(&self.proxy, series, f64::from(value));
    }
}

/// The number of open client connections.
pub(crate) const CONNECTIONS: &str = r#"connections{front_end="http"}"#;
/// The number of fetches without a reply of Redis.
pub(crate) const FLIGHTS: &str = "inflight_fetches";

/// Starts a proxy and waits for its link to `redis`.
pub(crate) fn proxy(redis: &RedisServer, more: &str) -> Proxy {
    linked(&config(&redis.url(), more))
}

/// Starts a proxy and waits for its link to the Redis of `config`.
pub(crate) fn linked(config: &str) -> Proxy {
    let proxy = Proxy::start(config);
    await_ready(&proxy);
    proxy
}

/// Starts a Redis, a relay that can fail, and a proxy with a link over the relay.
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

/// Returns the status and the body of /readyz.
pub(crate) fn readyz(proxy: &Proxy) -> (u16, String) {
    let response = http::get(proxy.admin(), "/readyz");
    (response.status, text(&response))
}

pub(crate) fn set(redis: &RedisServer, key: &str, value: &str) {
    redis.command(&["SET", key, value]);
}

/// Reads a key on a new connection.
pub(crate) fn read(proxy: &Proxy, key: &str) -> Response {
    http::get(proxy.http(), key_path(key.as_bytes()))
}

/// Reads a key. Returns the response and the time it took.
pub(crate) fn timed_read(proxy: &Proxy, key: &str) -> (Response, Duration) {
    let begun = Instant::now();
    (read(proxy, key), begun.elapsed())
}

/// Returns the text of a value that must exist.
#[track_caller]
pub(crate) fn value(proxy: &Proxy, key: &str) -> String {
    let response = read(proxy, key);
    assert_eq!(response.status, 200, "{key}: {}", text(&response));
    text(&response)
}

/// Sends a request for a key without waiting for the response.
pub(crate) fn start_read(proxy: &Proxy, key: &str) -> Client {
    let mut client = Client::connect(proxy.http());
    client.send_raw(&request(key));
    client
}

/// Returns a request as it goes over the wire.
pub(crate) fn request(key: &str) -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", key_path(key.as_bytes())).into_bytes()
}

/// Sends a request for a key and waits until its flight, by then the `flights`th, is under way.
pub(crate) fn request_and_await_flight(proxy: &Proxy, key: &str, flights: u32) -> Client {
    let client = start_read(proxy, key);
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

/// Returns the value of `redis_proxy_{series}`.
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

/// Returns the number of reads with this outcome.
pub(crate) fn reads(proxy: &Proxy, outcome: &str) -> f64 {
    metric(proxy, &format!("reads_total{{front_end=\"http\",outcome=\"{outcome}\"}}"))
}

/// Returns the number of log lines with this message.
pub(crate) fn lines_with_message(proxy: &Proxy, message: &str) -> usize {
    let lines = proxy.log_lines();
    lines.iter().filter(|line| line.has_message(message)).count()
}
