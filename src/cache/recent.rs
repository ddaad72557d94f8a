//! The times of recent invalidations, to explain why a key is not kept.
//!
//! Model: a table with one place for many keys. An invalidation overwrites its place, so a later
//! one of another key may hide it. A place has the time and a part of the hash of its key. So
//! another key is taken for it with a probability of one in two million.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::types::EvictionCause;

/// The places: 64 KiB.
const PLACES: usize = 8192;
/// The bits of a place that hold the time in milliseconds: 69 years.
const TIME_BITS: u32 = 41;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// The bit that marks a purge.
const PURGED: u64 = 1 << TIME_BITS;
const TAG_SHIFT: u32 = TIME_BITS + 1;

/// The reason why a key left memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidated {
    /// Redis reported a change of the key, or the client that wrote it did.
    Key,
    /// An operator purged it.
    Purged,
    /// Everything was dropped at once.
    All,
}

impl Invalidated {
    /// Returns the cause in the count of removed entries.
    pub(super) fn eviction(self) -> EvictionCause {
        match self {
            Self::Key => EvictionCause::Invalidated,
            Self::Purged => EvictionCause::Purged,
            Self::All => EvictionCause::Flushed,
        }
    }

    /// Returns the name in answers to operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Purged => "purged",
            Self::All => "all",
        }
    }
}

/// The last invalidations of a cache. Times are since the cache was created.
pub(super) struct RecentInvalidations {
    places: Box<[AtomicU64]>,
    /// The last invalidation of everything. 0: none.
    all: AtomicU64,
    hasher: ahash::RandomState,
}

impl RecentInvalidations {
    pub(super) fn new() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { places, all: AtomicU64::new(0), hasher: ahash::RandomState::new() }
    }

    /// Returns the place of a key, and its part of the hash.
    fn place(&self, key: &[u8]) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash).unwrap_or(0) % PLACES;
        (&self.places[index], hash >> TAG_SHIFT)
    }

    pub(super) fn add(&self, key: &[u8], cause: Invalidated, at: Duration) {
        let (place, tag) = self.place(key);
        let purged = if cause == Invalidated::Purged { PURGED } else { 0 };
        place.store(tag << TAG_SHIFT | purged | milliseconds(at), Relaxed);
    }

    pub(super) fn add_all(&self, at: Duration) {
        self.all.store(milliseconds(at), Relaxed);
    }

    /// Returns the time and the cause of the last invalidation of `key` that is known.
    pub(super) fn last(&self, key: &[u8]) -> Option<(Duration, Invalidated)> {
        let (place, tag) = self.place(key);
        let found = place.load(Relaxed);
        let cause = if found & PURGED == 0 { Invalidated::Key } else { Invalidated::Purged };
        let of_key = (found >> TAG_SHIFT == tag).then_some((found & TIME, cause));
        let of_all = (self.all.load(Relaxed), Invalidated::All);
        let (at, cause) = of_key.into_iter().chain([of_all]).max_by_key(|(at, _)| *at)?;
        (at > 0).then_some((Duration::from_millis(at), cause))
    }
}

/// Returns a time in milliseconds, at least 1, because 0 means never.
fn milliseconds(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(TIME).clamp(1, TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn last_invalidation_of_a_key_is_known() {
        let recent = RecentInvalidations::new();
        assert_eq!(recent.last(b"key"), None);
        recent.add(b"key", Invalidated::Key, SECOND);
        assert_eq!(recent.last(b"key"), Some((SECOND, Invalidated::Key)));
        assert_eq!(recent.last(b"other"), None);
        recent.add(b"key", Invalidated::Purged, 2 * SECOND);
        assert_eq!(recent.last(b"key"), Some((2 * SECOND, Invalidated::Purged)));
        recent.add_all(3 * SECOND);
        assert_eq!(recent.last(b"key"), Some((3 * SECOND, Invalidated::All)));
        assert_eq!(recent.last(b"other"), Some((3 * SECOND, Invalidated::All)));
        recent.add(b"key", Invalidated::Key, 4 * SECOND);
        assert_eq!(recent.last(b"key"), Some((4 * SECOND, Invalidated::Key)));
    }

    #[test]
    fn other_keys_are_not_taken_for_this_one() {
        let recent = RecentInvalidations::new();
        for other in 0..100_000_u32 {
            recent.add(&other.to_ne_bytes(), Invalidated::Key, SECOND);
        }
        let found = (100_000..110_000_u32).filter(|key| recent.last(&key.to_ne_bytes()).is_some());
        assert!(found.count() < 5);
    }
}
