//! Two paths to Redis: straight, and through the proxy.
//!
//! Model: two servers with the same arguments receive the same commands. Only the replies of the
//! two paths are compared, so no test has to know the replies of Redis.

use std::env;
use std::fmt::Debug;
use std::net::SocketAddr;

use crate::support::redis_server::RedisServerBuilder;
use crate::support::resp_client::{RespClient, show, words};
use crate::support::serving::{await_ready, config};
use crate::support::skip::skipped;
use crate::support::{Proxy, RedisServer};

/// Entries leave memory only by invalidations.
pub(crate) const LASTING: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"";

/// `reader` may read all that the proxy may, and `other` some of it.
pub(crate) const READER_AND_OTHER: [&str; 14] = [
    "--user",
    "reader",
    "on",
    ">reader-secret",
    "~*",
    "&*",
    "+@all",
    "--user",
    "other",
    "on",
    ">other-secret",
    "~open*",
    "&*",
    "+@all",
];
/// The proxy logs in as `reader`.
pub(crate) const AS_READER: &str =
    "redis.username = \"reader\"\nredis.password = \"reader-secret\"";

/// Both paths. The proxy is the first field, so it ends before its Redis does and logs no warning.
pub(crate) struct RespPair {
    proxy: Option<Proxy>,
    straight: RedisServer,
    behind: RedisServer,
}

/// Whether the proxy is left out, to try the tests themselves.
fn is_without_proxy() -> bool {
    env::var_os("RESP_STRAIGHT").is_some_and(|value| !value.is_empty())
}

/// Whether the running test is skipped because the proxy is left out, which is then reported.
pub(crate) fn is_straight() -> bool {
    let is_skipped = is_without_proxy();
    if is_skipped {
        skipped("it needs the proxy, which RESP_STRAIGHT leaves out");
    }
    is_skipped
}

/// Returns the configuration of a proxy with a RESP front end; `more` is dotted keys, one a line.
pub(crate) fn resp_config(url: &str, more: &str) -> String {
    const FEW: &str =
        "resp.listen = \"127.0.0.1:0\"\ndaemon.worker_threads = 2\nhttp.max_connections = 500\n";
    let limit =
        if more.contains("resp.max_connections") { "" } else { "resp.max_connections = 500\n" };
    config(url, &format!("{FEW}{limit}{more}"))
}

impl RespPair {
    pub(crate) fn start() -> Self {
        Self::between(|server| server, LASTING)
    }

    /// Starts both servers with the arguments of `server`, and a proxy with these settings.
    pub(crate) fn between(
        server: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
        settings: &str,
    ) -> Self {
        let start = || server(RedisServer::builder().tcp()).start();
        let (straight, behind) = (start(), start());
        let proxy = (!is_without_proxy()).then(|| {
            let proxy = Proxy::start(&resp_config(&behind.tcp_url(), settings));
            await_ready(&proxy);
            proxy
        });
        Self { proxy, straight, behind }
    }

    pub(crate) fn straight(&self) -> SocketAddr {
        self.straight.tcp_address()
    }

    pub(crate) fn through(&self) -> SocketAddr {
        self.proxy.as_ref().map_or_else(|| self.behind.tcp_address(), Proxy::resp_address)
    }

    pub(crate) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Returns the Redis behind the proxy.
    pub(crate) fn behind(&self) -> &RedisServer {
        &self.behind
    }

    /// Returns both servers, to prepare them alike.
    pub(crate) fn servers(&self) -> [&RedisServer; 2] {
        [&self.straight, &self.behind]
    }

    /// Runs `say` over both paths and asserts that the results are equal.
    #[track_caller]
    pub(crate) fn same<T: PartialEq + Debug>(&self, say: impl Fn(SocketAddr) -> T) -> T {
        let expected = say(self.straight());
        let found = say(self.through());
        assert_eq!(found, expected, "found through the proxy, expected as straight at Redis");
        found
    }

    /// Compares the replies to lines of words, on one connection for each path.
    #[track_caller]
    pub(crate) fn same_answers(&self, lines: &[&str]) -> Vec<String> {
        self.same(|address| {
            let mut wire = RespClient::connect(address);
            lines
                .iter()
                .map(|line| format!("{line}: {}", show(&wire.query_line(line))))
                .collect::<Vec<_>>()
        })
    }

    /// Returns the number of RESP reads with one of these outcomes, or nothing without a proxy.
    pub(crate) fn reads(&self, outcomes: &[&str]) -> Option<f64> {
        let metrics = self.proxy.as_ref()?.metrics();
        let series = |outcome| {
            format!("redis_proxy_reads_total{{front_end=\"resp\",outcome=\"{outcome}\"}}")
        };
        Some(outcomes.iter().filter_map(|outcome| metrics.value(&series(outcome))).sum())
    }

    /// Returns the number of reads from memory.
    pub(crate) fn answered_from_memory(&self) -> Option<f64> {
        self.reads(&["hit", "negative_hit"])
    }

    /// Runs `act` and asserts that this many reads came from memory.
    #[track_caller]
    pub(crate) fn expect_from_memory<T>(&self, count: f64, act: impl FnOnce() -> T) -> T {
        let before = self.answered_from_memory();
        let done = act();
        if let (Some(before), Some(after)) = (before, self.answered_from_memory()) {
            assert!(
                (after - before - count).abs() < 0.5,
                "{} reads from memory, expected {count}",
                after - before
            );
        }
        done
    }
}

impl RespClient {
    /// Sends a command of words without spaces and returns its reply.
    #[track_caller]
    pub(crate) fn query_line(&mut self, line: &str) -> Vec<u8> {
        self.send(words(line));
        self.answer()
    }

    #[track_caller]
    pub(crate) fn reply_to(&mut self, line: &str) -> String {
        show(&self.query_line(line))
    }
}
