//! An HTTP/1 connection: its responses are the same with and without the fast path in front of
//! hyper.

use std::cell::OnceCell;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use redis_proxy::backend::{self, Backend, BackendError};
use redis_proxy::cache::{self, Cache, CoherenceMode, Fetched, NegativeTtl, ReadMode};
use redis_proxy::http::{Handler, HttpService, Keys, Observer, Settings};
use redis_proxy::metrics::{FrontEnd, Metrics};
use redis_proxy::net::ClientStream;
use redis_proxy::proxy::Proxy;
use redis_proxy::server::{Drain, Service};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::pieces::{cut, split};

/// Checks the input of a client that then closes its sending side; the first four bytes define the
/// split of the rest.
///
/// # Panics
///
/// If the fast path makes a difference.
pub fn check(input: &[u8]) {
    let Some((cuts, said)) = split(input) else { return };
    // Input behind the preface of HTTP/2 is out of scope.
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

/// The routes without a fast path of their own.
#[derive(Clone)]
struct HyperAlone(Keys);

impl Handler for HyperAlone {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.0.handle(request).await
    }
}

/// Two front ends of one proxy: `a` has a value, `b` is a negative entry, and for all other keys
/// Redis is unavailable.
struct Stage {
    runtime: Runtime,
    hyper_alone: HttpService<HyperAlone>,
    both: HttpService<Keys>,
}

impl Stage {
    fn new() -> Self {
        // No task waits: with no work left, the paused clock advances.
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
        let redis = Backend::prepare(
            backend::Settings::default(),
            1 << 20,
            backend::CommandNames::default(),
            cache.clone(),
            metrics.clone(),
        );
        let proxy = Proxy::new(
            Upstream::Standalone(cache.clone(), redis.expect("a Redis that is never there").0),
            metrics.clone(),
            HotKeys::new(0),
        );
        for (key, fetched) in [
            (b"a", Fetched::Value(Bytes::from_static(b"value").into(), None)),
            (b"b", Fetched::Absent),
        ] {
            runtime
                .block_on(cache.get_or_fetch(key, ReadMode::Default, |_| async { fetched }))
                .expect("an entry");
        }
        let keys = Keys::new(proxy, Settings::default(), Router::new());
        let limits = Settings::default().limits();
        let observer = Observer::new(&metrics, FrontEnd::Http);
        let hyper_alone =
            HttpService::new(HyperAlone(keys.clone()), limits.clone(), None, observer.clone());
        Self { runtime, hyper_alone, both: HttpService::new(keys, limits, None, observer) }
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
                    // A rejected client may have closed the connection.
                    _ = to.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                _ = to.shutdown().await;
            };
            let mut told = Vec::new();
            // A close with unread input cuts off the last response.
            _ = tokio::join!(say, from.read_to_end(&mut told)).1;
            connection.await.expect("no panic");
            without_verdict(without_time(&told))
        })
    }
}

/// Returns the responses without the parts that depend on the time.
fn without_time(told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    let lines =
        told.split("\r\n").filter(|line| !line.starts_with("date: ") && !line.starts_with("age: "));
    lines
        .map(|line| line.split("; ttl=").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// Returns the responses without the final error of hyper about an incomplete request, which
/// depends on the split.
fn without_verdict(mut told: String) -> String {
    let verdict = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    told.truncate(told.strip_suffix(verdict).unwrap_or(&told).len());
    told
}
