//! A proxy in front of a Redis of its own, linked and ready: where tests of the HTTP side begin.
//!
//! The proxy is the first field, so it ends before its Redis does and has nothing to complain about.

use std::net::SocketAddr;

use crate::support::http::{self, Client};
use crate::support::{Proxy, RedisServer, eventually};

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
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[redis]\nurl = \"{url}\"\n\
         [daemon]\nworker_threads = 1\n"
    );
    let builder = Proxy::builder(&config);
    let proxy = settings
        .iter()
        .fold(builder, |builder, (name, value)| builder.environment(&format!("REDIS_PROXY_{name}"), value))
        .start();
    eventually("the proxy is ready", || (http::get(proxy.admin(), "/readyz").status == 200).then_some(()));
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

    /// A metric's value now; zero if it is not shown.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        self.proxy.metrics().value(series).unwrap_or(0.0)
    }

    /// Waits until a metric has this value.
    #[track_caller]
    pub(crate) fn await_metric(&self, series: &str, value: u32) {
        eventually(&format!("{series} is {value}"), || {
            let equal = (self.metric(series) - f64::from(value)).abs() < 0.5;
            equal.then_some(())
        });
    }
}

/// How many connections of clients are open.
pub(crate) const CONNECTIONS: &str = r#"redis_proxy_connections{front_end="http"}"#;
/// How many fetches Redis has not answered yet.
pub(crate) const FLIGHTS: &str = "redis_proxy_flights";
