//! The signals from requests to the supervisor of a connection.

use std::sync::atomic::AtomicU64;

use tokio::sync::Notify;

/// The signals from requests to the supervisor of a connection.
#[derive(Default)]
pub(super) struct SupervisorSignals {
    /// A fence waits for the next renewal of the lease.
    pub(super) renew_lease: Notify,
    /// A request needs a connection, and there is none.
    pub(super) connect_now: Notify,
    /// Redis refused a fetch because the user has no permission.
    pub(super) fetch_forbidden: Notify,
    /// A reply arrived that matches no request.
    pub(super) desynced: Notify,
    /// Pending replies do not arrive, and the requests behind them cannot wait any longer.
    pub(super) stalled: Notify,
    /// The number of fetches and fences that failed without a reply of Redis.
    pub(super) failed_fetches: AtomicU64,
}
