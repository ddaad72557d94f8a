//! The network of a backend: that of the system, or a simulated one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinError, spawn_blocking};

use super::address::ConnectionAddr;

/// A stream to Redis: TCP, TLS, a unix socket or a simulation.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection attempt.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A network that a simulation brings.
pub trait SimulatedNetwork: Send + Sync {
    /// Connects to an address.
    fn connect(&self, addr: &ConnectionAddr) -> Connecting;
}

/// The network of a backend.
#[derive(Clone, Default)]
pub enum Network {
    /// The sockets of the system.
    #[default]
    System,
    /// A simulation.
    Simulated(Arc<dyn SimulatedNetwork>),
}

impl Network {
    /// Runs work that may block on a thread for such work. In a simulation it runs in place, since
    /// the end of that thread would be a matter of real time.
    ///
    /// # Errors
    /// [`JoinError`] if the work panicked.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Self::System => spawn_blocking(work).await,
            Self::Simulated(_) => Ok(work()),
        }
    }
}
