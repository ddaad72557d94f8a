//! What those who ask tell the one who keeps the link.

use tokio::sync::Notify;

/// What those who ask tell the one who keeps the link.
#[derive(Default)]
pub(super) struct Calls {
    /// Somebody waits for a proof.
    pub(super) proof: Notify,
    /// A link is needed, and there is none.
    pub(super) needed: Notify,
    /// The link gave an answer that no question of ours has.
    pub(super) distrusted: Notify,
    /// The link owes answers that cannot be waited for.
    pub(super) overdue: Notify,
}
