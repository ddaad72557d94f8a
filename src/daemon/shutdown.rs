//! The shutdown: connections finish the requests that they have begun, until the time limit or a
//! second signal.

use std::time::Duration;

use signal_hook::consts::SIGHUP;
use signal_hook_tokio::Signals;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;

use crate::metrics::Metrics;
use crate::server::DrainControl;

/// The reason why the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// A signal ended it, and the drain finished or reached its time limit.
    Drained,
    /// A second signal ended the drain.
    Forced,
    /// A critical task ended.
    TaskFailed,
}

/// The longest time that the shutdown waits for the disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Drains all connections within `patience`. Then waits shortly for `saving`, which runs beside the
/// drain.
pub(super) async fn drain(
    control: &mut DrainControl,
    signals: &mut Signals,
    metrics: &Metrics,
    patience: Duration,
    saving: Option<JoinHandle<()>>,
) -> ExitReason {
    tracing::info!(connections = metrics.open_connections(), drain_timeout = ?patience, "stopping");
    let second_signal =
        async { while signals.next().await.is_some_and(|signal| signal == SIGHUP) {} };
    tokio::select! {
        () = control.drain() => tracing::info!("stopped"),
        () = tokio::time::sleep(patience) => {
            let cut = metrics.open_connections();
            tracing::warn!(cut, "stopped; connections were cut because they did not finish in \
                time");
        }
        () = second_signal => {
            let cut = metrics.open_connections();
            tracing::warn!(cut, "second shutdown signal; connections aborted");
            return ExitReason::Forced;
        }
    }
    if let Some(saving) = saving
        && tokio::time::timeout(SAVE_TIMEOUT, saving).await.is_err()
    {
        tracing::warn!("the names of the hottest keys were not written in time");
    }
    ExitReason::Drained
}
