//! A connection to Redis that a test can make fail.
//!
//! Model: a TCP listener on 127.0.0.1. Each accepted connection is joined to one of its own to the
//! upstream, chunk by chunk. The conditions are read again for each chunk, so a change holds for
//! all connections, existing ones included, from the return of the call. After `stall` all data
//! stays in place, the end of the stream included, so each end sees a silent peer.
//!
//! It runs on a thread of its own and works the same under synchronous and asynchronous tests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::wait::eventually;

const CHUNK: usize = 16 * 1024;
const PENDING_INJECTIONS: usize = 64;

/// A TCP address that leads to an upstream; dropping it ends it and all its connections.
pub(crate) struct Relay {
    runtime: Option<Runtime>,
    line: Arc<Line>,
    address: SocketAddr,
    listening: Mutex<Option<JoinHandle<()>>>,
    /// Bound without listening: the port stays reserved while the relay refuses connections.
    _reservation: TcpSocket,
}

/// The state that the connections of a relay share.
struct Line {
    /// The unix socket of the upstream.
    upstream: PathBuf,
    flow: watch::Sender<Flow>,
    injections: broadcast::Sender<Vec<u8>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    /// The number of accepted connections.
    joined: AtomicUsize,
    /// The number of bytes of the upstream that may still pass.
    allowance: AtomicUsize,
}

#[derive(Clone, Copy, Default)]
struct Flow {
    /// The number of connections, in the order of their acceptance, that pass nothing.
    stalled: usize,
    delay: Duration,
    byte_at_a_time: bool,
}

/// The gate that lets the chunks of one connection pass.
struct Gate {
    flow: watch::Receiver<Flow>,
    /// The position of the connection in the order of acceptance.
    number: usize,
}

impl Relay {
    pub(crate) fn to_socket(path: impl AsRef<Path>) -> Self {
        Self::start(path.as_ref().to_owned())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and refuses new ones until `resume`.
    pub(crate) fn cut(&self) {
        if let Some(listening) = self.listening.lock().unwrap().take() {
            end(&[listening]);
            // A process that another test is starting holds a copy until its exec.
            eventually("the relay refuses connections", || {
                std::net::TcpStream::connect(self.address).err()
            });
        }
        self.cut_once();
    }

    /// Closes all connections and accepts new ones.
    pub(crate) fn cut_once(&self) {
        let connections = std::mem::take(&mut *self.line.connections.lock().unwrap());
        end(&connections);
    }

    /// Keeps all connections, new ones included, and passes nothing either way.
    pub(crate) fn stall(&self) {
        self.line.flow.send_modify(|flow| flow.stalled = usize::MAX);
    }

    /// Stalls the existing connections, while new ones pass.
    pub(crate) fn stall_old(&self) {
        self.line.flow.send_modify(|flow| flow.stalled = self.line.joined.load(SeqCst));
    }

    /// Repairs the relay: held data passes, without delay, and connections are accepted.
    pub(crate) fn resume(&self) {
        self.line.flow.send_replace(Flow::default());
        self.line.allowance.store(usize::MAX, SeqCst);
        let mut listening = self.listening.lock().unwrap();
        if listening.is_none() {
            *listening = Some(self.listen());
        }
    }

    /// Passes each chunk only after `delay`; the chunks behind it wait for it.
    pub(crate) fn delay(&self, delay: Duration) {
        self.line.flow.send_modify(|flow| flow.delay = delay);
    }

    /// Makes every byte a chunk. Without a delay the other end may still read several at once.
    pub(crate) fn byte_at_a_time(&self) {
        self.line.flow.send_modify(|flow| flow.byte_at_a_time = true);
    }

    /// Passes this many bytes of the upstream over all connections together. Then each connection
    /// that would pass another byte is closed, until `resume`.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.line.allowance.store(bytes, SeqCst);
    }

    /// Sends bytes that the upstream never sent to all connections, between two of its chunks.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        // Without any connection, sending fails, which is no error.
        let _ = self.line.injections.send(bytes.to_owned());
    }

    fn start(upstream: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the relay");
        let reservation = bind((Ipv4Addr::LOCALHOST, 0).into());
        let relay = Self {
            runtime: Some(runtime),
            address: reservation.local_addr().expect("the relay's address"),
            line: Arc::new(Line::new(upstream)),
            listening: Mutex::new(None),
            _reservation: reservation,
        };
        relay.resume();
        relay
    }

    fn listen(&self) -> JoinHandle<()> {
        let runtime = self.runtime.as_ref().expect("a relay until it is dropped");
        let _context = runtime.enter();
        let listener = bind(self.address).listen(128).expect("the relay listens");
        runtime.spawn(Arc::clone(&self.line).accept(listener))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Without waiting for the tasks: this may run where blocking is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Line {
    fn new(upstream: PathBuf) -> Self {
        Self {
            upstream,
            flow: watch::Sender::new(Flow::default()),
            injections: broadcast::Sender::new(PENDING_INJECTIONS),
            connections: Mutex::default(),
            joined: AtomicUsize::new(0),
            allowance: AtomicUsize::new(usize::MAX),
        }
    }

    /// Takes from the allowance up to `wanted`; an unlimited one stays unlimited.
    fn allow(&self, wanted: usize) -> usize {
        let spend = |left: usize| (left != usize::MAX).then(|| left - left.min(wanted));
        let before = self.allowance.fetch_update(SeqCst, SeqCst, spend);
        before.map_or(wanted, |left| left.min(wanted))
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((downstream, _)) = listener.accept().await {
            // Subscribed here, so that an injection reaches every connection that is counted.
            let injections = self.injections.subscribe();
            let number = self.joined.fetch_add(1, SeqCst);
            let joined = Arc::clone(&self).join(downstream, injections, number);
            let mut connections = self.connections.lock().unwrap();
            connections.retain(|one| !one.is_finished());
            connections.push(tokio::spawn(joined));
        }
    }

    /// Carries both directions until both ends are done, or one is gone.
    async fn join(
        self: Arc<Self>,
        downstream: TcpStream,
        mut injections: broadcast::Receiver<Vec<u8>>,
        number: usize,
    ) {
        let Ok(upstream) = UnixStream::connect(&self.upstream).await else {
            return;
        };
        let _ = downstream.set_nodelay(true);
        let (from_upstream, to_upstream) = tokio::io::split(upstream);
        let (from_downstream, to_downstream) = tokio::io::split(downstream);
        let flow = || Gate { flow: self.flow.subscribe(), number };
        let up = carry(from_downstream, to_upstream, flow(), None, |length| length);
        let down = carry(from_upstream, to_downstream, flow(), Some(&mut injections), |length| {
            self.allow(length)
        });
        // The two ends see an error of the connection themselves.
        let _ = tokio::try_join!(up, down);
    }
}

/// Passes on the stream and the injections until the end of the stream or of the allowance.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: Gate,
    mut injections: Option<&mut broadcast::Receiver<Vec<u8>>>,
    allow: impl Fn(usize) -> usize,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        gate.open().await?;
        tokio::select! {
            read = from.read(&mut buffer) => {
                let length = read?;
                let allowed = allow(length);
                pass(&buffer[..allowed], &mut to, &mut gate).await?;
                if allowed < length {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                if length == 0 {
                    return to.shutdown().await;
                }
            }
            bytes = next_injection(&mut injections) => {
                pass(&bytes, &mut to, &mut gate).await?;
            }
        }
    }
}

async fn pass(chunk: &[u8], to: &mut (impl AsyncWrite + Unpin), gate: &mut Gate) -> io::Result<()> {
    let now = gate.open().await?;
    let most = if now.byte_at_a_time { 1 } else { CHUNK };
    for piece in chunk.chunks(most) {
        let delay = gate.flow.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // The relay may have been stalled meanwhile.
        gate.open().await?;
        to.write_all(piece).await?;
        to.flush().await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

impl Gate {
    /// Waits until a stall is over.
    async fn open(&mut self) -> io::Result<Flow> {
        let now = self.flow.wait_for(|flow| flow.stalled <= self.number).await;
        now.map(|flow| *flow).map_err(io::Error::other)
    }
}

async fn next_injection(injections: &mut Option<&mut broadcast::Receiver<Vec<u8>>>) -> Vec<u8> {
    if let Some(injections) = injections
        && let Ok(bytes) = injections.recv().await
    {
        return bytes;
    }
    std::future::pending().await
}

/// Ends tasks, and with them the connections they hold, before it returns.
fn end(tasks: &[JoinHandle<()>]) {
    tasks.iter().for_each(JoinHandle::abort);
    eventually("the relay's tasks end", || tasks.iter().all(JoinHandle::is_finished).then_some(()));
}

/// Binds without listening; several sockets may share an address of which one listens.
fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an address to be shared");
    socket.bind(address).expect("an address of 127.0.0.1");
    socket
}
