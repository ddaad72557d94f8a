//! The worker threads, each with its own runtime.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::handoff::Accepted;
use crate::sync::CountGuard;

/// The threads that serve connections.
pub struct Workers(Vec<Worker>);

struct Worker {
    /// Bounded although the channel is not: each connection holds a permit of its listener's
    /// `max_connections`, and only one caller sends pings.
    tasks: mpsc::UnboundedSender<Task>,
    connections: Arc<AtomicUsize>,
    runtime: Handle,
}

enum Task {
    Serve(Box<Accepted>, CountGuard),
    /// Proves that the worker runs its tasks: the worker itself sends the reply.
    Ping(oneshot::Sender<()>),
}

impl Workers {
    /// Starts `threads` workers.
    ///
    /// # Errors
    /// `io::Error` if the system provides no thread or no event queue.
    pub fn start(threads: usize) -> io::Result<Self> {
        (0..threads).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    pub(super) fn serve(&self, connection: Accepted) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.connections.load(Relaxed))
        else {
            return;
        };
        // A worker ends only with the daemon. In that case the connection is dropped and so closed.
        _ = worker
            .tasks
            .send(Task::Serve(Box::new(connection), CountGuard::new(&worker.connections)));
    }

    /// Returns the number of tasks on all workers.
    pub fn alive_tasks(&self) -> usize {
        self.0.iter().map(|worker| worker.runtime.metrics().num_alive_tasks()).sum()
    }

    /// Returns once every worker has replied to a ping. Never returns if a worker has ended.
    pub async fn check_alive(&self) {
        for worker in &self.0 {
            let (say, said) = oneshot::channel();
            _ = worker.tasks.send(Task::Ping(say));
            if said.await.is_err() {
                // The worker has ended and will never reply.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (tasks, mut arriving) = mpsc::unbounded_channel();
        let work = async move {
            while let Some(task) = arriving.recv().await {
                match task {
                    Task::Serve(connection, count) => _ = tokio::spawn(serve(connection, count)),
                    Task::Ping(say) => _ = say.send(()),
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(work))?;
        Ok(Self { tasks, connections: Arc::default(), runtime: handle })
    }
}

async fn serve(connection: Box<Accepted>, _count: CountGuard) {
    connection.serve().await;
}
