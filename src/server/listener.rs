//! A bound socket: accepts, counts, and hands over, or says that there are too many.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::handoff::{Accepted, ConnectionGuards};
use super::{Drain, Service, Tls, Workers};
use crate::access::{AuthRequirement, UnprotectedListener};
use crate::metrics::{FrontEnd, Metrics, RejectCounter, RejectReason};
use crate::net::ClientStream;
use crate::settings::{Listen, UNIX};

/// A bound socket with what it serves.
pub struct Listener {
    front_end: FrontEnd,
    socket: Socket,
    service: Arc<dyn Service>,
    tls: Option<(Tls, RejectCounter)>,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// A listener that could not be bound, or must not be.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refuses it.
    #[error("{}.listen: cannot listen on {address}: {error}", front_end.name())]
    System {
        /// Who was to be asked there.
        front_end: FrontEnd,
        /// Where.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// Strangers would be let in.
    #[error(transparent)]
    UnprotectedListener(#[from] UnprotectedListener),
}

/// What a listener serves, for how many, and what it does about strangers.
pub struct ListenerConfig {
    /// What is spoken.
    pub service: Arc<dyn Service>,
    /// Within TLS, if so.
    pub tls: Option<Tls>,
    /// Connections at most.
    pub max_connections: usize,
    /// What stands between strangers and it.
    pub auth_requirement: AuthRequirement,
}

impl Listener {
    /// Listens on `inherited`, or else binds `listen`, and says where that is.
    ///
    /// # Errors
    /// The address cannot be resolved or is taken, or strangers can reach it unasked.
    pub async fn bind(
        front_end: FrontEnd,
        listen: &Listen,
        inherited: Option<std::net::TcpListener>,
        config: ListenerConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BindError> {
        let ListenerConfig { service, tls, max_connections, auth_requirement } = config;
        let failed = |error| BindError::System { front_end, address: listen.to_string(), error };
        let socket = match inherited {
            Some(socket) => socket
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(socket))
                .map(Socket::Tcp),
            None => Socket::bind(listen).await,
        };
        let socket = socket.map_err(failed)?;
        let address = socket.address().map_err(failed)?;
        // Whatever name it was looked up by, and whoever has bound it.
        if let Some(ip) = socket.ip().map_err(failed)? {
            auth_requirement.check(front_end.name(), ip, &address)?;
        }
        tracing::info!(front_end = front_end.name(), %address, tls = tls.is_some(), "listening");
        let permits = Arc::new(Semaphore::new(max_connections));
        let tls = tls.map(|tls| (tls, metrics.reject_counter(front_end, RejectReason::Tls)));
        Ok(Self { front_end, socket, service, tls, permits, metrics })
    }

    /// Who is asked there.
    pub fn front_end(&self) -> FrontEnd {
        self.front_end
    }

    /// Accepts until `drain` says that the daemon is going down; the socket closes then.
    pub async fn accept(self, workers: Arc<Workers>, mut drain: Drain) {
        let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
        let mut failing = false;
        // Who has connected already is not turned away by a stop; who goes on connecting does not put it off.
        let mut accepts_left = MAX_ACCEPTS_AFTER_DRAIN;
        while accepts_left > 0 {
            let accepted = tokio::select! {
                biased;
                accepted = self.socket.accept() => accepted,
                () = drain.signaled() => return,
            };
            accepts_left -= usize::from(drain.is_signaled());
            match accepted {
                Ok(stream) => {
                    failing = false;
                    self.admit(stream, &workers, &drain, &rejections);
                }
                Err(_) if drain.is_signaled() => return,
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

    fn admit(
        &self,
        stream: ClientStream,
        workers: &Workers,
        drain: &Drain,
        rejections: &Arc<Semaphore>,
    ) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.metrics.record_connection_refused(self.front_end);
            if let Ok(turn) = Arc::clone(rejections).try_acquire_owned() {
                // In clear, nobody would understand it there.
                let answer =
                    if self.tls.is_some() { Vec::new() } else { self.service.overload_response() };
                tokio::spawn(reject(stream, answer, turn));
            }
            return;
        };
        // The runtime of the worker takes the socket over; a socket that cannot be moved is gone already.
        let Ok(stream) = stream.detach() else { return };
        let guards = ConnectionGuards {
            _permit: permit,
            _open: self.metrics.open_connection(self.front_end),
        };
        let (service, tls) = (Arc::clone(&self.service), self.tls.clone());
        workers.serve(Accepted { stream, tls, service, drain: drain.clone(), guards });
    }
}

enum Socket {
    Tcp(TcpListener),
    /// With its path, which goes when it does.
    Unix(UnixListener, PathBuf),
}

impl Socket {
    async fn bind(listen: &Listen) -> io::Result<Self> {
        if let Some(path) = listen.unix_path() {
            remove_stale_socket(path).await?;
            return Ok(Self::Unix(UnixListener::bind(path)?, path.to_owned()));
        }
        let addresses: Vec<SocketAddr> = listen.to_string().to_socket_addrs()?.collect();
        TcpListener::bind(&*addresses).await.map(Self::Tcp)
    }

    fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(|address| address.to_string()),
            Self::Unix(_, path) => Ok(format!("{UNIX}{}", path.display())),
        }
    }

    /// None, if it is a unix socket.
    fn ip(&self) -> io::Result<Option<IpAddr>> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(|address| Some(address.ip())),
            Self::Unix(..) => Ok(None),
        }
    }

    async fn accept(&self) -> io::Result<ClientStream> {
        match self {
            Self::Tcp(socket) => socket.accept().await.map(|(stream, _)| ClientStream::Tcp(stream)),
            Self::Unix(socket, _) => {
                socket.accept().await.map(|(stream, _)| ClientStream::Unix(stream))
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Another daemon may have taken the place already; that it is gone is as well.
            _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the socket of a daemon that did not end well: one at which nobody listens.
async fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

/// Connections taken at most after the daemon was told to stop: as many as the system holds ready for us.
const MAX_ACCEPTS_AFTER_DRAIN: usize = 1024;
/// Connections that are being told that there are too many; any more are closed without a word.
const MAX_REJECTIONS: usize = 32;

/// Answers without looking at what is asked, then reads a little, since closing with unread bytes would reset the
/// connection and take the answer with it.
async fn reject(mut stream: ClientStream, answer: Vec<u8>, _turn: OwnedSemaphorePermit) {
    let goodbye = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 4096];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    _ = timeout(Duration::from_secs(1), goodbye).await;
}
