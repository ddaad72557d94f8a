//! The drain signal: announces a shutdown to connections and listeners, and their end to the
//! daemon.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The receiving end of the drain signal. The daemon waits until every clone of it is dropped.
#[derive(Clone)]
pub struct Drain {
    signal: watch::Receiver<bool>,
    quiet_time: Duration,
    /// Keeps the channel open until every clone is dropped. `None` if no drain waits for this end.
    _alive: Option<mpsc::Sender<()>>,
}

/// The daemon's end of [`Drain`].
pub struct DrainControl {
    signal: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

/// The longest quiet time. A client that is in use sends its next request sooner.
const MAX_QUIET_TIME: Duration = Duration::from_secs(1);

impl Drain {
    /// Creates both ends of a drain signal, for a drain that may take `timeout`.
    pub fn new(timeout: Duration) -> (DrainControl, Self) {
        let (sender, signal) = watch::channel(false);
        let (alive, gone) = mpsc::channel(1);
        // A connection is quiet once and lingers once. Both together leave half of the time to
        // requests.
        let quiet_time = MAX_QUIET_TIME.min(timeout / 4);
        (DrainControl { signal: sender, gone }, Self { signal, quiet_time, _alive: Some(alive) })
    }

    /// Returns a signal that never fires, for services that run until the process ends.
    pub fn never() -> Self {
        Self { signal: watch::channel(false).1, quiet_time: MAX_QUIET_TIME, _alive: None }
    }

    /// Returns the time without a byte after which a connection counts as idle in a drain. It also
    /// bounds the time for which a closed connection is still read.
    pub(crate) fn quiet_time(&self) -> Duration {
        self.quiet_time
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
