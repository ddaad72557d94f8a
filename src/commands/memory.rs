//! The cache, as far as decisions need it.

use tokio::time::Instant;

use crate::cache::Answer;

/// The part of the cache that a decision needs.
pub trait Memory {
    /// The fresh entry of a key.
    fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer>;
    /// Counts a read of a key among the hot keys.
    fn count_key(&self, key: &[u8], now: Instant);
    /// Whether a fetch can succeed: not if Redis rejects the proxy's login.
    fn may_fetch(&self) -> bool;
}
