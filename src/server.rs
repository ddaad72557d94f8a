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
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_service::Service as _;

use crate::activity::{Activity, Observed};
use crate::metrics::{FrontEnd, Metrics, OpenConnection};

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
    pub fn with_host_and_port(&self, host: Option<&str>, port: Option<&str>) -> String {
        let (old_host, old_port) = self.0.rsplit_once(':').unwrap_or(("127.0.0.1", "8080"));
        let host = host.unwrap_or(old_host);
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        format!("{host}:{}", port.unwrap_or(old_port))
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
    /// The largest head of a request, in bytes.
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

    /// Accepts until `drain` says that the daemon is going down; the socket closes then.
    pub async fn accept(self, workers: Arc<Workers>, mut drain: Drain) {
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = drain.begun() => return,
            };
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

/// Connections that are being told that there are too many; any more are closed without a word.
const REFUSALS: usize = 64;
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
    Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 118\r\n\r\n\
    {\"type\":\"urn:redis-proxy:problem:too-many-connections\",\"title\":\"There are as many connections as may be\",\"status\":503}";

/// Answers without looking at the request, then reads a little, since closing with unread bytes would reset the
/// connection and take the answer with it.
async fn refuse(mut stream: TcpStream, _turn: OwnedSemaphorePermit) {
    let goodbye = async {
        stream.write_all(REFUSAL).await?;
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
    /// Closed when every clone is gone.
    _alive: mpsc::Sender<()>,
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
        (DrainControl { signal: sender, gone }, Self { signal, _alive: alive })
    }

    /// Returns once the daemon is going down.
    async fn begun(&mut self) {
        _ = self.signal.wait_for(|draining| *draining).await;
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

/// How long a connection on which nothing has come yet may still say something once the daemon drains: its
/// request may be on the way.
const FIRST_WORD: Duration = Duration::from_millis(200);
/// The start of the preface of HTTP/2 with prior knowledge (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 4] = b"PRI ";

enum Protocol {
    Http1,
    Http2,
}

impl Connection {
    async fn serve(self) {
        let Self { stream, service, mut drain, counted: _counted } = self;
        let Ok(stream) = TcpStream::from_std(stream) else {
            return;
        };
        _ = stream.set_nodelay(true);
        let first_word = timeout(service.limits.idle_timeout, protocol(&stream));
        let protocol = tokio::select! {
            biased;
            protocol = first_word => protocol.ok().and_then(Result::ok),
            () = async { drain.begun().await; sleep(FIRST_WORD).await } => None,
        };
        let Some(protocol) = protocol else { return };
        let (stream, activity) = Observed::new(stream);
        let watch = Arc::new(Watch { activity, requests: AtomicUsize::new(0), answering: Arc::default() });
        let stream = TokioIo::new(stream);
        let limits = Arc::clone(&service.limits);
        let watching = Arc::clone(&watch);
        let answer = service_fn(move |request| service.clone().answer(request, Arc::clone(&watching)));
        match protocol {
            Protocol::Http1 => {
                let connection = http1::Builder::new()
                    .half_close(true)
                    .pipeline_flush(true)
                    .header_read_timeout(None)
                    .max_buf_size(limits.max_header)
                    .serve_connection(stream, answer);
                let overdue = watch.overdue(&limits, HeadRule::EveryRequest);
                run(pin!(connection), drain, overdue, http1::Connection::graceful_shutdown).await;
            }
            Protocol::Http2 => {
                let largest = u32::try_from(limits.max_header).unwrap_or(u32::MAX);
                let connection = http2::Builder::new(TokioExecutor::new())
                    .max_header_list_size(largest)
                    .serve_connection(stream, answer);
                let overdue = watch.overdue(&limits, HeadRule::FirstRequest);
                run(pin!(connection), drain, overdue, http2::Connection::graceful_shutdown).await;
            }
        }
    }
}

/// Looks at the first bytes without taking them.
async fn protocol(stream: &TcpStream) -> io::Result<Protocol> {
    let mut first = [0; HTTP2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        match seen {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if !HTTP2_PREFACE.starts_with(&first[..seen]) => return Ok(Protocol::Http1),
            _ if seen == HTTP2_PREFACE.len() => return Ok(Protocol::Http2),
            // "P" so far. The socket stays readable, so there is nothing to wait on but time.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Drives a connection to its end: its own, or because it is overdue. When the daemon drains it is told to finish.
async fn run<C: Future>(
    mut connection: Pin<&mut C>,
    mut drain: Drain,
    overdue: impl Future<Output = ()>,
    finish: impl FnOnce(Pin<&mut C>),
) {
    let mut overdue = pin!(overdue);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = &mut overdue => return,
        () = drain.begun() => finish(connection.as_mut()),
    }
    tokio::select! {
        _ = connection => {}
        () = overdue => {}
    }
}

impl Service {
    /// An answer, during which the connection is not idle.
    async fn answer(
        mut self,
        request: Request<Incoming>,
        watch: Arc<Watch>,
    ) -> Result<Response<Body>, std::convert::Infallible> {
        watch.activity.settle();
        watch.requests.fetch_add(1, Relaxed);
        let _answering = Count::one(&watch.answering);
        self.router.call(request).await
    }
}

/// When the time for the head of a request runs.
#[derive(PartialEq)]
enum HeadRule {
    /// HTTP/1: bytes that come while nothing is being answered are a head.
    EveryRequest,
    /// HTTP/2: later bytes may be of the connection itself.
    FirstRequest,
}

/// What is known about a connection from outside.
struct Watch {
    activity: Arc<Activity>,
    requests: AtomicUsize,
    answering: Arc<AtomicUsize>,
}

impl Watch {
    /// Returns when the connection has been idle, or a head on the way, for too long.
    async fn overdue(&self, limits: &Limits, rule: HeadRule) {
        loop {
            let idle = self.activity.last_moved() + limits.idle_timeout;
            let head_counts = rule == HeadRule::EveryRequest || self.requests.load(Relaxed) == 0;
            let head = self.activity.unsettled_since().filter(|_| head_counts);
            let due = head.map_or(idle, |since| idle.min(since + limits.header_timeout));
            let now = Instant::now();
            let answering = self.answering.load(Relaxed) > 0;
            if due <= now && !answering {
                return;
            }
            let look = if answering { now + WHILE_ANSWERING } else { due };
            // A head may begin at any time, and must not have begun longer ago than it may take.
            sleep_until(look.min(now + limits.header_timeout)).await;
        }
    }
}

/// How long after an answer it may be noticed that there was one.
const WHILE_ANSWERING: Duration = Duration::from_millis(100);
