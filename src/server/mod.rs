//! Listeners, workers and connections.
//!
//! One task per listener accepts and hands each connection to the worker that has the fewest; a worker is a
//! thread with a runtime of its own, and a connection never leaves it, so a hit is answered where it was read,
//! without another thread. Every connection is counted before it is handed over, watched while it lives
//! (`idle_timeout`, `header_timeout`), and told when the daemon drains.

mod drain;
mod handoff;
mod listener;
mod settings;
mod tls;
mod worker;

use std::pin::Pin;

pub use self::drain::{Drain, DrainControl};
pub use self::listener::{BindError, Listener, ListenerConfig};
pub use self::settings::{TlsFiles, TlsKeys};
pub use self::tls::Tls;
pub use self::worker::Workers;
use crate::net::ClientStream;

/// What is spoken on the connections of a listener.
pub trait Service: Send + Sync {
    /// Serves a connection to its end, which comes soon after the daemon drains.
    fn serve(&self, stream: ClientStream, drain: Drain)
    -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// What is said to a connection that is one too many.
    fn overload_response(&self) -> Vec<u8>;
}
