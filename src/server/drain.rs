//! The drain signal: announces a shutdown to connections and listeners, and their end to the
//! daemon.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The receiving end of the drain signal. The daemon waits until every clone of it is dropped.
#[derive(Clone)]
pub struct Drain {
    stage: watch::Receiver<Stage>,
    quiet_time: Duration,
    /// Keeps the channel open until every clone is dropped. `None` if no drain waits for this end.
    _alive: Option<mpsc::Sender<()>>,
    /// The guards of listeners. The daemon has one until it drains.
    listening: Option<mpsc::WeakSender<()>>,
}

/// The daemon's end of [`Drain`].
pub struct DrainControl {
    stage: watch::Sender<Stage>,
    gone: mpsc::Receiver<()>,
    /// The guard of the daemon, and the receiver of the end of all guards.
    listening: (Option<ListenerGuard>, mpsc::Receiver<()>),
}

/// The connections learn of the drain once every guard is dropped.
pub(super) struct ListenerGuard(#[expect(dead_code, reason = "dropped")] mpsc::Sender<()>);

/// The stages of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serves,
    /// The listeners close their sockets.
    ClosesListeners,
    /// The connections end.
    EndsConnections,
}

/// The longest quiet time. A client that is in use sends its next request sooner.
const MAX_QUIET_TIME: Duration = Duration::from_secs(1);

impl Drain {
    /// Creates both ends of a drain signal, for a drain that may take `timeout`.
    pub fn new(timeout: Duration) -> (DrainControl, Self) {
        let (sender, stage) = watch::channel(Stage::Serves);
        let (alive, gone) = mpsc::channel(1);
        let (open, closed) = mpsc::channel(1);
        let listening = Some(open.downgrade());
        // A connection is quiet once and lingers once. Both together leave half of the time to
        // requests.
        let quiet_time = MAX_QUIET_TIME.min(timeout / 4);
        let control =
            DrainControl { stage: sender, gone, listening: (Some(ListenerGuard(open)), closed) };
        (control, Self { stage, quiet_time, _alive: Some(alive), listening })
    }

    /// Returns a signal that never fires, for services that run until the process ends.
    pub fn never() -> Self {
        let (_, stage) = watch::channel(Stage::Serves);
        Self { stage, quiet_time: MAX_QUIET_TIME, _alive: None, listening: None }
    }

    /// Returns the time without a byte after which a connection counts as idle in a drain. It also
    /// bounds the time for which a closed connection is still read.
    pub(crate) fn quiet_time(&self) -> Duration {
        self.quiet_time
    }

    /// Returns the guard of a listener. `None` if no drain waits for it.
    pub(super) fn listener_guard(&self) -> Option<ListenerGuard> {
        self.listening.as_ref()?.upgrade().map(ListenerGuard)
    }

    /// Returns once listeners close their sockets.
    pub(super) async fn listeners_close(&mut self) {
        self.reach(Stage::ClosesListeners).await;
    }

    /// Returns once the connections end.
    pub(crate) async fn signaled(&mut self) {
        self.reach(Stage::EndsConnections).await;
    }

    async fn reach(&mut self, stage: Stage) {
        if self.stage.wait_for(|reached| *reached >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl DrainControl {
    /// Has the listeners closed, then the connections ended. Returns once every receiver is
    /// dropped.
    ///
    /// In this order, a client that connects again because its connection ends is refused.
    /// Otherwise the end of a listener could reset its new connection, and with that a request.
    pub async fn drain(&mut self) {
        self.stage.send_replace(Stage::ClosesListeners);
        let (guard, closed) = &mut self.listening;
        *guard = None;
        while closed.recv().await.is_some() {}
        self.stage.send_replace(Stage::EndsConnections);
        while self.gone.recv().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn connections_end_once_the_listeners_are_closed() {
        let (mut control, mut drain) = Drain::new(Duration::from_secs(1));
        let (guard, mut connection) = (drain.listener_guard(), drain.clone());
        let drained = tokio::spawn(async move { control.drain().await });
        drain.listeners_close().await;
        assert!(connection.signaled().now_or_never().is_none());
        drop(guard);
        connection.signaled().await;
        drop((drain, connection));
        drained.await.unwrap();
    }
}
