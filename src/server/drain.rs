//! The drain signal: announces a shutdown to connections and listeners, and their end to the
//! daemon.

use tokio::sync::{mpsc, watch};

/// The receiving end of the drain signal. The daemon waits until every clone of it is dropped.
#[derive(Clone)]
pub struct Drain {
    signal: watch::Receiver<bool>,
    /// Keeps the channel open until every clone is dropped. `None` if no drain waits for this end.
    _alive: Option<mpsc::Sender<()>>,
}

/// The daemon's end of [`Drain`].
pub struct DrainControl {
    signal: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

impl Drain {
    /// Creates both ends of a drain signal.
    pub fn new() -> (DrainControl, Self) {
        let (sender, signal) = watch::channel(false);
        let (alive, gone) = mpsc::channel(1);
        (DrainControl { signal: sender, gone }, Self { signal, _alive: Some(alive) })
    }

    /// Returns a signal that never fires, for services that run until the process ends.
    pub fn never() -> Self {
        Self { signal: watch::channel(false).1, _alive: None }
    }

    pub(super) fn is_signaled(&self) -> bool {
        *self.signal.borrow()
    }

    /// Returns once the daemon drains.
    pub(crate) async fn signaled(&mut self) {
        if self.signal.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl DrainControl {
    /// Sends the signal, and returns once every receiver is dropped.
    pub async fn drain(&mut self) {
        self.signal.send_replace(true);
        while self.gone.recv().await.is_some() {}
    }
}
