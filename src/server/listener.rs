//! A bound socket: accepts connections, counts them, and hands them to workers or rejects those
//! above the limit.

use std::future::poll_fn;
use std::io;
use std::iter;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd as _;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::handoff::{Accepted, ConnectionGuards};
use super::refusals::{Refusals, TlsRefusals};
use super::{Drain, Service, Tls, Workers};
use crate::access::{AuthRequirement, UnprotectedListener};
use crate::metrics::{FrontEnd, Metrics, RejectCounter, RejectReason};
use crate::net::{ClientStream, LingeringClose};
use crate::settings::{Listen, UNIX};

/// A bound socket with the service behind it.
pub struct Listener {
    front_end: FrontEnd,
    socket: Socket,
    service: Arc<dyn Service>,
    tls: Option<(Tls, RejectCounter)>,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
}

/// The reasons for which a listener is not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system rejects the bind.
    #[error("{}.listen: cannot listen on {address}: {error}", front_end.name())]
    System {
        /// The front end of the listener.
        front_end: FrontEnd,
        /// The configured address.
        address: String,
        /// The error that the system returns.
        error: io::Error,
    },
    /// Other hosts could connect without authentication.
    #[error(transparent)]
    UnprotectedListener(#[from] UnprotectedListener),
}

/// The service of a listener, its connection limit, and the authentication that it requires.
pub struct ListenerConfig {
    /// The service that handles connections.
    pub service: Arc<dyn Service>,
    /// TLS, if the listener has it.
    pub tls: Option<Tls>,
    /// The maximum number of connections.
    pub max_connections: usize,
    /// The authentication of the listener, checked against its address.
    pub auth_requirement: AuthRequirement,
}

impl Listener {
    /// Listens on `inherited` if there is such a socket, else binds `listen`, and logs the address.
    ///
    /// # Errors
    /// - `BindError::System` if the address cannot be resolved or is in use.
    /// - `BindError::UnprotectedListener` if other hosts could connect without authentication.
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
        // The bound address counts, not the configured name. The name may resolve to another
        // address, and an inherited socket was bound by another process.
        if let Some(ip) = socket.ip().map_err(failed)? {
            auth_requirement.check(front_end.name(), ip, &address)?;
        }
        tracing::info!(front_end = front_end.name(), %address, tls = tls.is_some(), "listening");
        let permits = Arc::new(Semaphore::new(max_connections));
        let tls = tls.map(|tls| (tls, metrics.reject_counter(front_end, RejectReason::Tls)));
        Ok(Self { front_end, socket, service, tls, permits, metrics, refusals: Arc::default() })
    }

    /// Returns the front end of this listener.
    pub fn front_end(&self) -> FrontEnd {
        self.front_end
    }

    /// Accepts connections until `drain` closes the listeners, then closes the socket.
    pub async fn accept(self, workers: Arc<Workers>, drain: Drain) {
        let guard = drain.listener_guard();
        let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
        self.accept_until_drain(&workers, drain.clone(), &rejections).await;
        // A stop does not reject clients that are already connected. The limit keeps new clients
        // from delaying the stop.
        for stream in self.socket.pending().take(MAX_ACCEPTS_AFTER_DRAIN) {
            self.admit(stream, &workers, &drain, &rejections);
        }
        drop(self);
        // Behind the socket, so that no connection ends before the socket is closed.
        drop(guard);
    }

    async fn accept_until_drain(
        &self,
        workers: &Workers,
        mut drain: Drain,
        rejections: &Arc<Semaphore>,
    ) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.listeners_close() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    failing = false;
                    self.admit(stream, workers, &drain, rejections);
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(front_end = self.front_end.name(), %error, "cannot accept \
                            connections");
                    }
                    failing = true;
                    // The usual cause is a lack of file descriptors, until some are closed.
                    // Accepting again at once would only burn CPU time.
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
            self.refusals.log(self.front_end, "connections", stream.peer());
            if let Ok(turn) = Arc::clone(rejections).try_acquire_owned() {
                // A TLS client could not read a response in plain text.
                let answer =
                    if self.tls.is_some() { Vec::new() } else { self.service.overload_response() };
                tokio::spawn(reject(stream, answer, turn));
            }
            return;
        };
        // The runtime of the worker takes over the socket. An error here means that the socket is
        // closed already.
        let Ok(stream) = stream.detach() else { return };
        let guards = ConnectionGuards {
            _permit: permit,
            _open: self.metrics.open_connection(self.front_end),
        };
        let service = Arc::clone(&self.service);
        let tls = self.tls.clone().map(|(tls, counter)| {
            (
                tls,
                TlsRefusals { front_end: self.front_end, counter, log: Arc::clone(&self.refusals) },
            )
        });
        workers.serve(Accepted { stream, tls, service, drain: drain.clone(), guards });
    }
}

enum Socket {
    Tcp(TcpListener),
    /// A unix socket with its path, which is removed when the socket is dropped.
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

    /// Returns the bound IP address; `None` for a unix socket.
    fn ip(&self) -> io::Result<Option<IpAddr>> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(|address| Some(address.ip())),
            Self::Unix(..) => Ok(None),
        }
    }

    /// Returns the connections that wait to be accepted, until there is none or one fails.
    fn pending(&self) -> impl Iterator<Item = ClientStream> {
        // A connection that its client has ended is not the last one.
        iter::repeat_with(|| self.accept_now())
            .filter(|accepted| !is_aborted(accepted))
            .map_while(Result::ok)
    }

    /// Accepts a connection without waiting.
    ///
    /// It asks the system. A poll of [`accept`](Self::accept) knows only what the runtime saw when
    /// it last looked for events, so it would miss the connections of the last millisecond.
    fn accept_now(&self) -> io::Result<ClientStream> {
        match self {
            Self::Tcp(socket) => {
                let socket = std::net::TcpListener::from(socket.as_fd().try_clone_to_owned()?);
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(ClientStream::Tcp)
            }
            Self::Unix(socket, _) => {
                let socket = net::UnixListener::from(socket.as_fd().try_clone_to_owned()?);
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(ClientStream::Unix)
            }
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
            // The result is ignored: another daemon may have replaced or removed the file already.
            _ = std::fs::remove_file(path);
        }
    }
}

/// Whether the client has ended a connection before it was accepted.
fn is_aborted(accepted: &io::Result<ClientStream>) -> bool {
    matches!(accepted, Err(error) if error.kind() == io::ErrorKind::ConnectionAborted)
}

/// Removes the socket file of a daemon that did not shut down cleanly. A refused connection shows
/// that no process listens there.
async fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

/// The maximum number of connections accepted after the stop signal: the size of the system's
/// accept queue.
const MAX_ACCEPTS_AFTER_DRAIN: usize = 1024;
/// The maximum number of rejections in progress. Further connections are closed without a response.
const MAX_REJECTIONS: usize = 32;

/// The longest time that a rejection takes.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the response without reading the request.
async fn reject(mut stream: ClientStream, answer: Vec<u8>, _turn: OwnedSemaphorePermit) {
    let goodbye = async {
        stream.write_all(&answer).await?;
        let mut close = LingeringClose::new(REJECT_TIMEOUT);
        poll_fn(|cx| close.poll(Pin::new(&mut stream), cx)).await
    };
    _ = timeout(REJECT_TIMEOUT, goodbye).await;
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn stop_accepts_what_the_runtime_has_not_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for listen in ["127.0.0.1:0".to_owned(), format!("{UNIX}{}", path.display())] {
            let socket = Socket::bind(&listen.clone().try_into().unwrap()).await.unwrap();
            assert!(socket.accept().now_or_never().is_none());
            let tcp: Option<SocketAddr> = socket.address().unwrap().parse().ok();
            let connect = || match tcp {
                Some(address) => drop(std::net::TcpStream::connect(address).unwrap()),
                None => drop(net::UnixStream::connect(&path).unwrap()),
            };
            (0..3).for_each(|_| connect());
            assert!(socket.accept().now_or_never().is_none(), "the runtime has looked again");
            assert_eq!(socket.pending().count(), 3, "{listen}");
        }
    }
}
