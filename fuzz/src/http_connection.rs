//! An HTTP/1 connection: its responses are the same with and without the fast path in front of
//! hyper.

use std::cell::OnceCell;
use std::io::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use redis_proxy::backend::{self, Backend, BackendError};
use redis_proxy::cache::{self, Cache, CoherenceMode, Fetched, NegativeTtl, ReadMode};
use redis_proxy::http::{
    FastPathResult, Handler, HttpService, Keys, Observer, ResponseWriter, Settings, SimpleRequest,
};
use redis_proxy::metrics::{FrontEnd, Metrics};
use redis_proxy::net::ClientStream;
use redis_proxy::proxy::Proxy;
use redis_proxy::resp;
use redis_proxy::rest::{self, Rest, WithRest};
use redis_proxy::server::{Drain, Service};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

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
    compare(&[said]);
    compare(&cut(said, cuts));
}

/// Checks the pieces that a client sends before it closes its sending side. Returns the responses
/// without their times.
///
/// # Panics
///
/// If the fast path makes a difference.
pub fn compare(pieces: &[&[u8]]) -> String {
    STAGE.with(|stage| {
        let stage = stage.get_or_init(Stage::new);
        let expected = stage.answers(&stage.hyper_alone, pieces);
        let found = stage.answers(&stage.both, pieces);
        let said = pieces.concat();
        assert_eq!(found, expected, "{} pieces: {}", pieces.len(), said.escape_ascii());
        found
    })
}

/// Returns the responses to these pieces, in which the fast path leaves out those of hyper: they
/// have the status 418.
pub fn of_fast_path(pieces: &[&[u8]]) -> String {
    STAGE.with(|stage| {
        let stage = stage.get_or_init(Stage::new);
        stage.answers(&stage.fast_alone, pieces)
    })
}

thread_local! {
    static STAGE: OnceCell<Stage> = const { OnceCell::new() };
}

/// The path of REST, and its only token.
const REST_PATH: &str = "/rest";
const REST_TOKEN: &str = "t";

/// All routes.
type Routes = WithRest<Keys>;

/// The routes without a fast path of their own.
#[derive(Clone)]
struct HyperAlone(Routes);

impl Handler for HyperAlone {
    fn for_connection(&self) -> Self {
        Self(self.0.for_connection())
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.0.handle(request).await
    }

    fn authenticates(&self, path: &str) -> bool {
        self.0.authenticates(path)
    }

    fn refusal(&self, path: &str, status: StatusCode, title: &str) -> Option<Response<Body>> {
        self.0.refusal(path, status, title)
    }
}

/// The routes of the fast path alone.
#[derive(Clone)]
struct FastAlone(Routes);

impl Handler for FastAlone {
    fn for_connection(&self) -> Self {
        Self(self.0.for_connection())
    }

    async fn handle(&self, _: Request<Incoming>) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    }

    fn handle_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        self.0.handle_simple(request, now, answer)
    }

    fn awaits_body(&self, request: &SimpleRequest<'_>, now: Instant) -> bool {
        self.0.awaits_body(request, now)
    }
}

/// Front ends of one proxy: `a` has a value, `b` is a negative entry, and for all other keys Redis
/// is unavailable.
struct Stage {
    runtime: Runtime,
    hyper_alone: HttpService<HyperAlone>,
    fast_alone: HttpService<FastAlone>,
    both: HttpService<Routes>,
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
            backend::Network::System,
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
                .block_on(cache.get_or_fetch(
                    key,
                    ReadMode::Default,
                    Instant::now(),
                    |_, _| async { fetched },
                ))
                .expect("an entry");
        }
        let keys = Keys::new(proxy.clone(), Settings::default(), Router::new());
        // The clock of its tokens is that of the runtime.
        let rest = runtime.block_on(async { rest(proxy) });
        let routes = WithRest::new(rest, keys);
        let limits = Settings::default().limits();
        let observer = Observer::new(&metrics, FrontEnd::Http);
        let alone = (HyperAlone(routes.clone()), FastAlone(routes.clone()));
        Self {
            runtime,
            hyper_alone: HttpService::new(alone.0, limits.clone(), None, observer.clone()),
            fast_alone: HttpService::new(alone.1, limits.clone(), None, observer.clone()),
            both: HttpService::new(routes, limits, None, observer),
        }
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

/// Returns the front end of REST, which takes small bodies.
fn rest(proxy: Proxy) -> Option<Rest> {
    let mut tokens = tempfile::NamedTempFile::new().expect("a file");
    tokens.write_all(REST_TOKEN.as_bytes()).expect("a token");
    let settings = rest::Settings {
        path: REST_PATH.into(),
        tokens_file: tokens.path().to_owned(),
        max_commands: 8,
        ..rest::Settings::default()
    };
    let rest = Rest::prepare(settings, &resp::Settings::default(), 16 << 10, proxy);
    rest.expect("a front end").beside_others()
}

/// Returns the responses without the parts that depend on the time.
fn without_time(told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    let lines = told.split("\r\n").filter(|line| {
        !["date: ", "age: ", "upstash-sync-token: "].iter().any(|name| line.starts_with(name))
    });
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
