//! What those who ask tell the one who keeps the link.

use tokio::sync::Notify;

/// What those who ask tell the one who keeps the link.
#[derive(Default)]
pub(super) struct SupervisorSignals {
    /// Somebody waits for a proof.
    pub(super) renew_lease: Notify,
    /// A link is needed, and there is none.
    pub(super) connect_now: Notify,
    /// The link gave an answer that no question of ours has.
    pub(super) desynced: Notify,
    /// The link owes answers that cannot be waited for.
    pub(super) stalled: Notify,
}
