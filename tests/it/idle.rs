//! Idle connections.
//!
//! Promise: a silent connection keeps at most a small buffer, so thousands of them take little
//! memory.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::http::Client;
use crate::support::memory::resident;
use crate::support::resp_client::RespClient;
use crate::support::resp_pair::resp_config;
use crate::support::serving::{await_metric, await_ready};
use crate::support::{Proxy, RedisServer, within};

const CONNECTIONS: u32 = 3_000;
/// The longest time until the buffers are freed, and the allocator has returned the memory.
const BOUND: Duration = Duration::from_secs(30);
/// The most memory of an idle connection, in bytes. A build for tests takes 6,200 over HTTP and
/// 7,700 over RESP. A kept buffer would take 8 KiB more over HTTP, and 16 KiB over RESP.
const MOST_HTTP: u64 = 9_500;
const MOST_RESP: u64 = 12_000;

/// Raises the limit of open files, which thousands of connections exceed.
fn allow_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit { current: maximum, maximum };
    assert!(setrlimit(Resource::Nofile, raised).is_ok());
}

/// Opens connections that send one request each and then nothing. Asserts that each takes at most
/// this memory. Returns the connections.
#[track_caller]
fn assert_small<C>(proxy: &Proxy, front_end: &str, most: u64, open: impl Fn() -> C) -> Vec<C> {
    // The first connections also pay for memory that all share.
    let mut held: Vec<_> = (0..100).map(|_| open()).collect();
    let before = resident(proxy.pid());
    held.extend((0..CONNECTIONS).map(|_| open()));
    let series = format!("connections{{front_end=\"{front_end}\"}}");
    await_metric(proxy, &series, f64::from(CONNECTIONS + 100));
    let each = || resident(proxy.pid()).saturating_sub(before) / u64::from(CONNECTIONS);
    let is_small = within(BOUND, || (each() <= most).then_some(()));
    assert!(is_small.is_some(), "{front_end}: {} bytes for each, {most} are allowed", each());
    held
}

fn open_http(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    assert_eq!(client.get("/keys/a").status, 200);
    client
}

fn open_resp(address: SocketAddr) -> RespClient {
    let mut client = RespClient::connect(address);
    assert_eq!(client.query(&["GET", "a"]), b"$5\r\nvalue\r\n");
    client
}

/// Starts a proxy with room for all connections. Each test has its own, because freed memory is
/// used again.
fn start() -> (RedisServer, Proxy) {
    allow_open_files();
    let redis = RedisServer::start();
    redis.command(&["SET", "a", "value"]);
    let config = resp_config(&redis.url(), "resp.max_connections = 4000")
        .replace("http.max_connections = 500", "http.max_connections = 4000");
    let proxy = Proxy::start(&config);
    await_ready(&proxy);
    (redis, proxy)
}

#[test]
fn idle_http_connections_take_little_memory() {
    let (_redis, proxy) = start();
    let held = assert_small(&proxy, "http", MOST_HTTP, || open_http(proxy.http()));
    for mut client in held {
        assert_eq!(client.get("/keys/a").body, b"value");
    }
}

#[test]
fn idle_resp_connections_take_little_memory() {
    let (_redis, proxy) = start();
    let held = assert_small(&proxy, "resp", MOST_RESP, || open_resp(proxy.resp_address()));
    for mut client in held {
        assert_eq!(client.query(&["GET", "a"]), b"$5\r\nvalue\r\n");
    }
}
