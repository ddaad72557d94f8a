//! A client's connection over HTTP/1: what it is told is the same whether plain requests are taken up apart or hyper has all
//! of them.

use std::cell::OnceCell;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use redis_proxy::backend::{self, Backend, BackendError};
use redis_proxy::cache::{self, Cache, CoherenceMode, Fetched, NegativeTtl, ReadMode};
use redis_proxy::http::{Handler, HttpService, Keys, Settings};
use redis_proxy::metrics::Metrics;
use redis_proxy::net::ClientStream;
use redis_proxy::proxy::Proxy;
use redis_proxy::server::{Drain, Service};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::pieces::{cut, split};

/// The first four bytes cut the rest, which is what a client says before it has no more to say.
///
/// # Panics
/// If it makes a difference who answers.
pub fn check(input: &[u8]) {
    let Some((cuts, said)) = split(input) else { return };
    // What follows the preface of HTTP/2 is none of this.
    if said.starts_with(b"PRI") {
        return;
    }
    STAGE.with(|stage| {
        let stage = stage.get_or_init(Stage::new);
        for pieces in [vec![said], cut(said, cuts)] {
            let expected = stage.answers(&stage.hyper_alone, &pieces);
            assert_eq!(
                stage.answers(&stage.both, &pieces),
                expected,
                "{} pieces: {}",
                pieces.len(),
                said.escape_ascii()
            );
        }
    });
}

thread_local! {
    static STAGE: OnceCell<Stage> = const { OnceCell::new() };
}

/// The routes with no part of their own in what requests are.
#[derive(Clone)]
struct HyperAlone(Keys);

impl Handler for HyperAlone {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.0.handle(request).await
    }
}

/// Two front ends of one proxy: `a` has a value, `b` is known not to be, and of the others Redis, which is not there, would
/// know.
struct Stage {
    runtime: Runtime,
    hyper_alone: HttpService<HyperAlone>,
    both: HttpService<Keys>,
}

impl Stage {
    fn new() -> Self {
        // Nobody waits: where nothing is left to do, time passes.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let (ttl, coherence) = (Duration::from_secs(1 << 30), CoherenceMode::Ttl);
        let settings = cache::Settings {
            ttl,
            negative_ttl: NegativeTtl::Fixed(ttl),
            coherence,
            ..Default::default()
        };
        let cache = Cache::<BackendError>::new(settings, runtime.handle().clone());
        let metrics = std::sync::Arc::new(Metrics::new(&[]).expect("metrics"));
        let redis =
            Backend::prepare(backend::Settings::default(), 1 << 20, cache.clone(), metrics.clone());
        let proxy = Proxy::new(
            Upstream::Standalone(cache.clone(), redis.expect("a Redis that is never there").0),
            metrics,
            HotKeys::new(0),
        );
        for (key, fetched) in
            [(b"a", Fetched::Value(Bytes::from_static(b"value"), None)), (b"b", Fetched::Absent)]
        {
            runtime
                .block_on(cache.get_or_fetch(key, ReadMode::Default, |_| async { fetched }))
                .expect("an entry");
        }
        let keys = Keys::new(proxy, Settings::default(), Router::new());
        let limits = Settings::default().limits();
        let hyper_alone = HttpService::new(HyperAlone(keys.clone()), limits.clone(), None);
        Self { runtime, hyper_alone, both: HttpService::new(keys, limits, None) }
    }

    fn answers(&self, front_end: &dyn Service, pieces: &[&[u8]]) -> String {
        let _entered = self.runtime.enter();
        let (mut client, served) = UnixStream::pair().expect("two ends");
        let connection =
            self.runtime.spawn(front_end.serve(ClientStream::Unix(served), Drain::never()));
        self.runtime.block_on(async {
            let (mut from, mut to) = client.split();
            let say = async {
                for piece in pieces {
                    // Who is told no may have hung up.
                    _ = to.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                _ = to.shutdown().await;
            };
            let mut told = Vec::new();
            // Who hangs up with something unread cuts off what it has said.
            _ = tokio::join!(say, from.read_to_end(&mut told)).1;
            connection.await.expect("no panic");
            without_verdict(without_time(&told))
        })
    }
}

/// What was told, but for what depends on when.
fn without_time(told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    let lines =
        told.split("\r\n").filter(|line| !line.starts_with("date: ") && !line.starts_with("age: "));
    lines
        .map(|line| line.split("; ttl=").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// What was told, but for hyper's last word on what is no request: if it is not whole when the client has no more to say,
/// that is said or not as the pieces come.
fn without_verdict(mut told: String) -> String {
    let verdict = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    told.truncate(told.strip_suffix(verdict).unwrap_or(&told).len());
    told
}
