//! Change counters: one number for many keys, which grows with each change of one of them.
//!
//! A kept reply remembers the numbers of all its keys. It is valid while they are the same. So a
//! push costs one addition, whatever depends on the key, and there is no index from keys to
//! replies. Two keys may share a counter. Then a change of one also ends the replies of the other:
//! that costs a hit, and never gives a stale reply.
//!
//! Memory ordering: a push adds with release order before anything else announces it (the renewal
//! of the lease, the end of a fence). A reader loads the announcement first and the counters after
//! it, both with acquire order. So a reader that relies on an announcement sees the additions
//! before it.

use std::sync::OnceLock;

use super::super::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

/// The most counters. A change ends the replies of another key with a probability of one in
/// this number. So at 50,000 changes a second, a reply that is read ten times a second loses one
/// hit in 200. The model checker uses few, because it would have to
/// create all of them for each order of steps.
const MOST: usize = if cfg!(feature = "shuttle") { 4 } else { 1 << 20 };
/// The counters take this part of the memory for replies at most.
const PART: usize = 8;

/// A counter and its number at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    index: u32,
    count: u64,
}

/// The change counters of all keys.
pub(super) struct Counters {
    /// Created with the first note: a proxy that keeps no replies needs no counters. A push before
    /// that has no reply to end. Every push that concerns a noted fetch arrives after that fetch
    /// was sent, and so after this was set.
    counts: OnceLock<Box<[AtomicU64]>>,
    /// Their number, a power of two.
    number: usize,
    /// Seeded at random. Otherwise a client could choose keys that share a counter with others.
    hasher: ahash::RandomState,
}

#[cfg(not(feature = "shuttle"))]
fn hasher() -> ahash::RandomState {
    ahash::RandomState::new()
}

/// The model checker needs the same steps in each execution.
#[cfg(feature = "shuttle")]
fn hasher() -> ahash::RandomState {
    ahash::RandomState::with_seeds(1, 2, 3, 4)
}

impl Counters {
    /// Creates the counters for replies that may take this many bytes.
    pub(super) fn for_memory(bytes: usize) -> Self {
        let number = (bytes / PART / size_of::<AtomicU64>()).clamp(1, MOST);
        // The greatest power of two that is not above it.
        let number = 1 << number.ilog2();
        Self { counts: OnceLock::new(), number, hasher: hasher() }
    }

    /// Counts a change of `key`.
    pub(super) fn add(&self, key: &[u8]) {
        if let Some(counts) = self.counts.get() {
            counts[self.index(key)].fetch_add(1, Release);
        }
    }

    /// Returns the counter of `key` and its number now.
    pub(super) fn note(&self, key: &[u8]) -> Count {
        let counts =
            self.counts.get_or_init(|| (0..self.number).map(|_| AtomicU64::new(0)).collect());
        let index = self.index(key);
        // An index below MOST always fits.
        Count { index: u32::try_from(index).unwrap_or(0), count: counts[index].load(Acquire) }
    }

    /// Whether no key of this counter has changed since it was noted.
    #[inline]
    pub(super) fn is_current(&self, noted: Count) -> bool {
        let counts = self.counts.get();
        counts.is_some_and(|counts| counts[noted.index as usize].load(Acquire) == noted.count)
    }

    /// Returns the size of the counters once a note was taken, in bytes.
    pub(super) fn size_in_use(&self) -> usize {
        self.number * size_of::<AtomicU64>()
    }

    /// Returns the size of the counters, in bytes.
    pub(super) fn size(&self) -> usize {
        self.counts.get().map_or(0, |counts| size_of_val(&**counts))
    }

    fn index(&self, key: &[u8]) -> usize {
        usize::try_from(self.hasher.hash_one(key)).unwrap_or(0) & (self.number - 1)
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn change_ends_what_was_noted_before_it() {
        let counters = Counters::for_memory(64 << 20);
        let noted = counters.note(b"key");
        assert!(counters.is_current(noted));
        counters.add(b"key");
        assert!(!counters.is_current(noted));
        assert!(counters.is_current(counters.note(b"key")));
    }

    #[test]
    fn keys_rarely_share_a_counter() {
        let counters = Counters::for_memory(64 << 20);
        let noted = counters.note(b"key");
        (0..1000).for_each(|other: u32| counters.add(&other.to_ne_bytes()));
        assert!(counters.is_current(noted), "1,000 of 1,048,576 counters changed");
    }

    #[test]
    fn unused_counters_take_no_memory() {
        let counters = Counters::for_memory(64 << 20);
        counters.add(b"key");
        assert_eq!(counters.size(), 0);
        counters.note(b"key");
        assert_eq!(counters.size(), 8 << 20);
    }
}
