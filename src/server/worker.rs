//! The threads that serve, each with a runtime of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

use super::{Connection, Count};

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

    pub(super) fn serve(&self, connection: Connection) {
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
