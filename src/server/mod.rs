//! Listeners, workers and connections.
//!
//! One task per listener accepts and hands each connection to the worker that has the fewest; a worker is a
//! thread with a runtime of its own, and a connection never leaves it, so a hit is answered where it was read,
//! without another thread. Every connection is counted before it is handed over, watched while it lives
//! (`idle_timeout`, `header_timeout`), and told when the daemon drains.

mod connection;
mod drain;
mod listener;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;

use self::connection::Connection;
pub use self::drain::{Drain, DrainControl};
pub use self::listener::{BindError, Listen, Listener};
pub use self::worker::Workers;

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

/// What is served on a connection, and what holds for it.
#[derive(Clone)]
struct Service {
    router: Router,
    limits: Arc<Limits>,
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
