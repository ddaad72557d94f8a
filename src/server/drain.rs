//! How connections and listeners learn that the daemon is going down, and the daemon that they are gone.

use tokio::sync::{mpsc, watch};

/// Tells connections and listeners that the daemon is going down, and the daemon when the last of them is gone.
#[derive(Clone)]
pub struct Drain {
    signal: watch::Receiver<bool>,
    /// Closed when every clone is gone; none where nobody waits for that.
    _alive: Option<mpsc::Sender<()>>,
}

/// The daemon's end of [`Drain`].
pub struct DrainControl {
    signal: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

impl Drain {
    /// Both ends.
    pub fn new() -> (DrainControl, Self) {
        let (sender, signal) = watch::channel(false);
        let (alive, gone) = mpsc::channel(1);
        (DrainControl { signal: sender, gone }, Self { signal, _alive: Some(alive) })
    }

    /// For what goes on until the process ends.
    pub fn never() -> Self {
        Self { signal: watch::channel(false).1, _alive: None }
    }

    pub(super) fn is_signaled(&self) -> bool {
        *self.signal.borrow()
    }

    /// Returns once the daemon is going down.
    pub(crate) async fn signaled(&mut self) {
        if self.signal.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl DrainControl {
    /// Tells all, and returns when all are gone.
    pub async fn drain(&mut self) {
        self.signal.send_replace(true);
        while self.gone.recv().await.is_some() {}
    }
}
