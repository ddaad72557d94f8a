//! Listeners, workers and connections.
//!
//! One task per listener accepts connections and hands each one to the worker with the fewest. A
//! worker is a thread with its own runtime, and a connection never leaves it. A cache hit is
//! therefore answered on the thread that read the request.
//!
//! Every connection is counted before the handoff. Its timeouts (`idle_timeout`, `header_timeout`)
//! are enforced while it is open, and it receives the drain signal.

mod drain;
mod handoff;
mod listener;
mod refusals;
mod settings;
mod tls;
mod worker;

use std::pin::Pin;

pub use self::drain::{Drain, DrainControl};
pub use self::listener::{BindError, Listener, ListenerConfig};
pub use self::refusals::Refusals;
pub use self::settings::{TlsFiles, TlsKeys};
pub use self::tls::Tls;
pub use self::worker::Workers;
use crate::net::ClientStream;

/// The service that handles the connections of a listener.
pub trait Service: Send + Sync {
    /// Serves a connection until it ends, which happens soon after the daemon drains.
    fn serve(&self, stream: ClientStream, drain: Drain)
    -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Returns the bytes to send to a connection above the connection limit.
    fn overload_response(&self) -> Vec<u8>;
}
