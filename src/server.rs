//! Listeners, workers and connections.
//!
//! One task per listener accepts and hands each connection to the worker that has the fewest; a worker is a
//! thread with a runtime of its own, and a connection never leaves it, so a hit is answered where it was read,
//! without another thread. Every connection is counted before it is handed over, watched while it lives
//! (`idle_timeout`, `header_timeout`), and told when the daemon drains.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tower_service::Service as _;

use crate::activity::{Activity, Observed};
use crate::metrics::{FrontEnd, Metrics, OpenConnection};
use crate::problem::Kind;
use crate::request_line::RequestLines;

/// Where a listener is bound: `host:port`, or empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(String);

impl Listen {
    /// For the defaults.
    pub fn from_static(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Whether there is to be no such listener.
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both would want the same port of the same address.
    pub fn collides(&self, other: &Self) -> bool {
        !self.is_off() && self == other && !self.0.ends_with(":0")
    }

    /// The same with another host or port, as `--proxy_host` and `--proxy_port` ask for.
    pub fn with_host_and_port(&self, host: Option<&str>, port: Option<u16>) -> String {
        let (old_host, old_port) = self.0.rsplit_once(':').unwrap_or(("127.0.0.1", "8080"));
        let host = host.unwrap_or(old_host);
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        port.map_or_else(|| format!("{host}:{old_port}"), |port| format!("{host}:{port}"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.0
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let valid = match text.rsplit_once(':') {
            None => text.is_empty(),
            Some((host, port)) => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let host_is_one = bare.map_or(!host.is_empty() && !host.contains([':', '[', ']', '/']), |host| {
                    host.parse::<std::net::Ipv6Addr>().is_ok()
                });
                host_is_one && port.parse::<u16>().is_ok()
            }
        };
        if valid {
            return Ok(Self(text));
        }
        Err(format!("invalid value: string {text:?}, expected host:port such as \"127.0.0.1:8080\" or \"[::1]:8080\""))
    }
}

/// What holds for the connections of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at most.
    pub max_connections: usize,
    /// How long a connection may go without moving a byte while no request is being answered.
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    pub header_timeout: Duration,
    /// How large the headers of a request may be, in bytes.
    pub max_header: usize,
}

/// A bound socket with what it serves.
pub struct Listener {
    front_end: FrontEnd,
    socket: TcpListener,
    service: Service,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
struct Service {
    router: Router,
    limits: Arc<Limits>,
}

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{}.listen: cannot listen on {address}: {error}", front_end.name())]
pub struct BindError {
    front_end: FrontEnd,
    address: String,
    error: io::Error,
}

impl Listener {
    /// Binds `listen` and says where that is.
    ///
    /// # Errors
    /// The address cannot be resolved or is taken.
    pub async fn bind(
        front_end: FrontEnd,
        listen: &Listen,
        router: Router,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BindError> {
        let failed = |error| BindError { front_end, address: listen.to_string(), error };
        let addresses: Vec<SocketAddr> = listen.0.to_socket_addrs().map_err(failed)?.collect();
        let socket = TcpListener::bind(&*addresses).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        tracing::info!(front_end = front_end.name(), %address, "listening");
        let permits = Arc::new(Semaphore::new(limits.max_connections));
        Ok(Self { front_end, socket, service: Service { router, limits: Arc::new(limits) }, permits, metrics })
    }

    /// Who is asked there.
    pub fn front_end(&self) -> FrontEnd {
        self.front_end
    }

    /// Accepts until `drain` says that the daemon is going down; the socket closes then.
    pub async fn accept(self, workers: Arc<Workers>, mut drain: Drain) {
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        let mut failing = false;
        // Who has connected already is not turned away by a stop; who goes on connecting does not put it off.
        let mut latecomers = LATECOMERS;
        while latecomers > 0 {
            let accepted = tokio::select! {
                biased;
                accepted = self.socket.accept() => accepted,
                () = drain.begun() => return,
            };
            latecomers -= usize::from(drain.has_begun());
            match accepted {
                Ok((stream, _)) => {
                    failing = false;
                    self.admit(stream, &workers, &drain, &refusals);
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(front_end = self.front_end.name(), %error, "cannot accept connections");
                    }
                    failing = true;
                    // Out of descriptors most likely: some will be closed, and until then accepting again at once
                    // would only burn the processor.
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, workers: &Workers, drain: &Drain, refusals: &Arc<Semaphore>) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.metrics.connection_refused(self.front_end);
            if let Ok(turn) = Arc::clone(refusals).try_acquire_owned() {
                tokio::spawn(refuse(stream, turn));
            }
            return;
        };
        // The runtime of the worker takes the socket over; a socket that cannot be moved is gone already.
        let Ok(stream) = stream.into_std() else { return };
        let counted = Counted { _permit: permit, _open: self.metrics.connection(self.front_end) };
        workers.serve(Connection { stream, service: self.service.clone(), drain: drain.clone(), counted });
    }
}

/// Connections taken at most after the daemon was told to stop: as many as the system holds ready for us.
const LATECOMERS: usize = 1024;
/// Connections that are being told that there are too many; any more are closed without a word.
const REFUSALS: usize = 32;
const TOO_MANY: Kind =
    Kind::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-connections", "There are as many connections as may be");
const HEADER_TOO_LARGE: Kind =
    Kind::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "The headers are too large");
const NO_HOST: Kind = Kind::new(StatusCode::BAD_REQUEST, "no-host", "The request does not say which host it is for");
const FRAGMENT: Kind = Kind::new(StatusCode::BAD_REQUEST, "fragment", "A request has no fragment");

/// Answers without looking at the request, then reads a little, since closing with unread bytes would reset the
/// connection and take the answer with it.
async fn refuse(mut stream: TcpStream, _turn: OwnedSemaphorePermit) {
    let body = TOO_MANY.body(None);
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n\
         Retry-After: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let goodbye = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 4096];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    _ = timeout(Duration::from_secs(1), goodbye).await;
}

/// Tells connections and listeners that the daemon is going down, and the daemon when the last of them is gone.
#[derive(Clone)]
pub struct Drain {
    signal: watch::Receiver<bool>,
    /// Closed when every clone is gone; none where nobody waits for that.
    _alive: Option<mpsc::Sender<()>>,
}

/// The daemon's end of [`Drain`].
pub struct DrainControl {
    signal: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

impl Drain {
    /// Both ends.
    pub fn new() -> (DrainControl, Self) {
        let (sender, signal) = watch::channel(false);
        let (alive, gone) = mpsc::channel(1);
        (DrainControl { signal: sender, gone }, Self { signal, _alive: Some(alive) })
    }

    /// For what goes on until the process ends.
    pub fn never() -> Self {
        Self { signal: watch::channel(false).1, _alive: None }
    }

    fn has_begun(&self) -> bool {
        *self.signal.borrow()
    }

    /// Returns once the daemon is going down.
    async fn begun(&mut self) {
        if self.signal.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl DrainControl {
    /// Tells all, and returns when all are gone.
    pub async fn drain(&mut self) {
        self.signal.send_replace(true);
        while self.gone.recv().await.is_some() {}
    }
}

/// A connection on its way to its worker.
struct Connection {
    stream: std::net::TcpStream,
    service: Service,
    drain: Drain,
    counted: Counted,
}

/// What a connection takes up until it is dropped.
struct Counted {
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

/// Counts one for as long as it lives, so that whatever ends early, by a panic even, is not counted for ever.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Relaxed);
        Self(Arc::clone(of))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The threads that serve.
pub struct Workers(Vec<Worker>);

struct Worker {
    /// Never longer than the listeners' `max_connections`, since each holds a permit.
    connections: mpsc::UnboundedSender<(Connection, Count)>,
    open: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `threads` workers.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub fn start(threads: usize) -> io::Result<Self> {
        (0..threads).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    fn serve(&self, connection: Connection) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.open.load(Relaxed)) else {
            return;
        };
        // A worker ends only with the daemon; then the connection is closed by being dropped.
        _ = worker.connections.send((connection, Count::one(&worker.open)));
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (connections, mut arriving) = mpsc::unbounded_channel::<(Connection, Count)>();
        let work = async move {
            while let Some((connection, count)) = arriving.recv().await {
                tokio::spawn(async move {
                    connection.serve().await;
                    drop(count);
                });
            }
        };
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || runtime.block_on(work))?;
        Ok(Self { connections, open: Arc::default() })
    }
}

/// For how long after the daemon was told to stop a connection still listens: a request may be on its way, or here
/// and unread.
const LAST_WORD: Duration = Duration::from_millis(50);
/// What a client of HTTP/2 with prior knowledge says first (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Connection {
    async fn serve(self) {
        let Self { stream, service, mut drain, counted: _counted } = self;
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        _ = stream.set_nodelay(true);
        let (mut stream, activity) = Observed::new(stream);
        let limits = Arc::clone(&service.limits);
        let first = tokio::select! {
            biased;
            first = first_bytes(&mut stream, &limits) => first,
            () = async { drain.begun().await; sleep(LAST_WORD).await } => None,
        };
        let Some(first) = first else { return };
        let http2 = first == HTTP2_PREFACE[..];
        let stream = TokioIo::new(stream.returning(first, (!http2).then(RequestLines::new)));
        let watch = Arc::new(Watch { activity, requests: AtomicUsize::new(0), answering: Arc::default() });
        let watching = Arc::clone(&watch);
        let answer = service_fn(move |request| service.clone().answer(request, Arc::clone(&watching)));
        if http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX))
                .serve_connection(stream, answer);
            // Later bytes may be of the connection itself, so there is no telling when a head begins.
            let overdue = watch.overdue(&limits, None);
            run(pin!(connection), drain, overdue, http2::Connection::graceful_shutdown).await;
        } else {
            // No `pipeline_flush`: with it hyper holds an answer back, or loses it, while more bytes have come in. Room
            // for more than the head may have, so that it is refused here, in words.
            let connection = http1::Builder::new()
                .half_close(true)
                .header_read_timeout(None)
                .max_buf_size(limits.max_header.saturating_add(LONGEST_TARGET))
                .serve_connection(stream, answer);
            let overdue = watch.overdue(&limits, Some(limits.header_timeout));
            run(pin!(connection), drain, overdue, http1::Connection::graceful_shutdown).await;
        }
    }
}

/// The longest request target that hyper takes.
const LONGEST_TARGET: usize = 64 << 10;

/// As many of the first bytes as it takes to tell the protocol; none if they do not come, or not in time.
async fn first_bytes(stream: &mut Observed<TcpStream>, limits: &Limits) -> Option<Bytes> {
    let mut first = BytesMut::with_capacity(HTTP2_PREFACE.len());
    let mut deadline = Instant::now() + limits.idle_timeout;
    while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
        let mut wanted = (&mut *stream).take((HTTP2_PREFACE.len() - first.len()) as u64);
        let nothing_yet = first.is_empty();
        if timeout_at(deadline, wanted.read_buf(&mut first)).await.ok()?.ok()? == 0 {
            return None;
        }
        if nothing_yet {
            // A head has begun.
            deadline = Instant::now() + limits.header_timeout;
        }
    }
    Some(first.freeze())
}

/// Drives a connection to its end. When it is overdue, or the daemon drains, it is told to finish.
async fn run<C: Future>(
    mut connection: Pin<&mut C>,
    mut drain: Drain,
    overdue: impl Future<Output = ()>,
    finish: impl FnOnce(Pin<&mut C>),
) {
    let mut overdue = pin!(overdue);
    let patience = tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = &mut overdue => FAREWELL,
        () = async { drain.begun().await; sleep(LAST_WORD).await } => Duration::MAX,
    };
    finish(connection.as_mut());
    tokio::select! {
        _ = connection => {}
        () = overdue, if patience > FAREWELL => {}
        () = sleep(patience) => {}
    }
}

/// How long an overdue connection has to say that it ends, as HTTP/2 does.
const FAREWELL: Duration = Duration::from_millis(100);

impl Service {
    /// An answer, during which the connection is not idle.
    async fn answer(
        mut self,
        request: Request<Incoming>,
        watch: Arc<Watch>,
    ) -> Result<Response<Body>, std::convert::Infallible> {
        watch.activity.settle();
        let number = watch.requests.fetch_add(1, Relaxed) + 1;
        let _answering = Count::one(&watch.answering);
        if watch.activity.has_fragment(number) {
            return Ok(last_answer(FRAGMENT.response(Some("A number sign that belongs to the key is written %23."))));
        }
        if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
            return Ok(last_answer(NO_HOST.response(Some("HTTP/1.1 asks for one Host header."))));
        }
        if header_size(request.headers()) > self.limits.max_header {
            return Ok(last_answer(HEADER_TOO_LARGE.response(None)));
        }
        self.router.call(request).await
    }
}

/// An answer after which the connection is closed.
fn last_answer(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// How large the headers of a request are, as they came.
fn header_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// What is known about a connection from outside.
struct Watch {
    activity: Arc<Activity>,
    requests: AtomicUsize,
    answering: Arc<AtomicUsize>,
}

impl Watch {
    /// Returns when the connection has been idle for too long, or a head longer than `header_timeout` on its way.
    async fn overdue(&self, limits: &Limits, header_timeout: Option<Duration>) {
        loop {
            let idle = self.activity.last_moved() + limits.idle_timeout;
            let head = self.activity.unsettled_since().zip(header_timeout);
            let due = head.map_or(idle, |(since, timeout)| idle.min(since + timeout));
            let now = Instant::now();
            let answering = self.answering.load(Relaxed) > 0;
            if due <= now && !answering {
                return;
            }
            let look = if answering { now + WHILE_ANSWERING } else { due };
            // A head may begin at any time, and must not have begun longer ago than it may take.
            sleep_until(header_timeout.map_or(look, |timeout| look.min(now + timeout))).await;
        }
    }
}

/// How long after an answer it may be noticed that there was one.
const WHILE_ANSWERING: Duration = Duration::from_millis(100);
