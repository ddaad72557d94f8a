//! Listeners, workers and connections.
//!
//! One task per listener accepts and hands each connection to the worker that has the fewest; a worker is a
//! thread with a runtime of its own, and a connection never leaves it, so a hit is answered where it was read,
//! without another thread. Every connection is counted before it is handed over, watched while it lives
//! (`idle_timeout`, `header_timeout`), and told when the daemon drains.

mod connection;
mod drain;
mod head;
mod http;
mod listener;
mod plain;
mod stream;
mod tls;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use self::connection::Connection;
pub use self::drain::{Drain, DrainControl};
pub use self::head::PlainRequest;
pub use self::http::{Http, Routes};
pub use self::listener::{BindError, Listen, Listener, Serving};
pub use self::plain::{PlainAnswer, Taken};
pub use self::stream::Stream;
pub(crate) use self::tls::HTTP_PROTOCOLS;
pub use self::tls::{Tls, TlsFiles, TlsKeys};
pub use self::worker::Workers;

/// What is spoken on the connections of a listener.
pub trait Serve: Send + Sync {
    /// Serves a connection to its end, which comes soon after the daemon drains.
    fn serve(&self, stream: Stream, drain: Drain) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// What is said to a connection that is one too many.
    fn refusal(&self) -> Vec<u8>;
}

/// What holds for the connections of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a connection may go without moving a byte while no request is being answered.
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    pub header_timeout: Duration,
    /// How large the headers of a request may be, in bytes.
    pub max_header: usize,
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
