//! One bound in bytes for all that is kept: the entries of every store of strings, with their
//! tables and orders, and the kept replies.
//!
//! The budget only counts. A store that has grown calls [`Budget::evict_excess`], which evicts from
//! stores of strings until the sum is within the bound. So replies may take their share whenever
//! they are there, and strings have what replies do not take.
//!
//! The primaries of a cluster have one budget. A store that has no more than its fair share, the
//! bound divided by the number of stores, lets the largest store evict. So a primary with little
//! to keep leaves its share to the others.
//!
//! The caller of an eviction holds no lock of a store (invariant S1).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use super::in_flight::InFlight;
use super::settings::{SMALLEST_ENTRY, Settings};
use crate::settings::available_memory;
use crate::sync::lock;

/// A store of strings, as the budget knows it.
pub(super) trait Evictable: Send + Sync {
    /// Returns the bytes of the store.
    fn memory(&self) -> u64;

    /// Evicts one entry because of the bound. Returns whether there was one.
    fn evict_one(&self) -> bool;
}

/// The bound and the bytes that count against it.
pub(super) struct Budget {
    max: AtomicUsize,
    /// The bound of the kept replies, at most a part of the whole.
    max_replies: AtomicUsize,
    strings: AtomicU64,
    replies: AtomicU64,
    /// Values that were not kept because of their size.
    too_large: AtomicU64,
    stores: Mutex<Vec<Weak<dyn Evictable>>>,
    /// Values that are not kept have a bound of their own.
    in_flight: Arc<InFlight>,
}

/// A value of more than this part of the bound is not kept. Otherwise few of them would evict
/// everything else.
const LARGEST_PART: usize = 10;

impl Budget {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let budget = Self {
            max: AtomicUsize::new(0),
            max_replies: AtomicUsize::new(0),
            strings: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            stores: Mutex::default(),
            in_flight: InFlight::new(settings.max_in_flight.0),
        };
        budget.apply(settings);
        Arc::new(budget)
    }

    /// Sets the bounds. Evicts nothing.
    pub(super) fn apply(&self, settings: &Settings) {
        let max = settings.max_memory.bytes(available_memory);
        self.max.store(max, Relaxed);
        self.max_replies.store(reply_bound(max, settings), Relaxed);
        self.in_flight.set_max(settings.max_in_flight.0);
    }

    pub(super) fn register(&self, store: Weak<dyn Evictable>) {
        let mut stores = lock(&self.stores);
        stores.retain(|store| store.strong_count() > 0);
        stores.push(store);
    }

    /// Returns the bound in bytes.
    pub(super) fn max(&self) -> usize {
        self.max.load(Relaxed)
    }

    /// Returns the bound of the kept replies in bytes; 0: none is kept.
    pub(super) fn max_replies(&self) -> usize {
        self.max_replies.load(Relaxed)
    }

    /// Returns the bytes of all that is kept.
    pub(super) fn memory(&self) -> u64 {
        self.strings.load(Relaxed) + self.replies.load(Relaxed)
    }

    /// Returns the most entries that the bound has room for.
    pub(super) fn max_entries(&self) -> usize {
        self.max() / SMALLEST_ENTRY
    }

    /// Whether an entry of this size is kept. Counts it if not.
    pub(super) fn admits(&self, footprint: usize) -> bool {
        let is_admitted = footprint <= self.max() / LARGEST_PART;
        self.too_large.fetch_add((!is_admitted).into(), Relaxed);
        is_admitted
    }

    /// Returns the number of values that were not kept because of their size.
    pub(super) fn too_large(&self) -> u64 {
        self.too_large.load(Relaxed)
    }

    /// Counts what a store takes more or less than before.
    pub(super) fn change(&self, before: u64, after: u64) {
        self.strings.fetch_add(after.wrapping_sub(before), Relaxed);
    }

    pub(super) fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    pub(super) fn set_replies(&self, bytes: u64) {
        self.replies.store(bytes, Relaxed);
    }

    #[inline]
    pub(super) fn is_exceeded(&self) -> bool {
        self.memory() > self.max() as u64
    }

    /// Evicts entries until the sum is within the bound, or no store has any. `own` is the store
    /// that has grown. Returns the number of evicted entries.
    #[inline]
    pub(super) fn evict_excess(&self, own: &dyn Evictable) -> u64 {
        if self.is_exceeded() { self.evict_all_excess(own) } else { 0 }
    }

    #[cold]
    fn evict_all_excess(&self, own: &dyn Evictable) -> u64 {
        let mut evicted = 0;
        while self.is_exceeded() {
            let others: Vec<_> = lock(&self.stores).iter().filter_map(Weak::upgrade).collect();
            let fair_share = self.max() / others.len().max(1);
            let is_small = others.len() > 1 && own.memory() <= fair_share as u64;
            let largest = others.iter().max_by_key(|store| store.memory());
            let from = largest.filter(|_| is_small).map_or(own, |largest| &**largest);
            let has_evicted =
                from.evict_one() || own.evict_one() || others.iter().any(|store| store.evict_one());
            if !has_evicted {
                break;
            }
            evicted += 1;
        }
        evicted
    }
}

/// Returns the bound of the kept replies: the smaller of `cache.reply_share` and
/// `cache.max_reply_memory`.
fn reply_bound(max: usize, settings: &Settings) -> usize {
    let share = max / 100 * usize::from(settings.reply_share.0);
    share.min(settings.max_reply_memory.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ByteSize, MemorySize, Percent};

    const BOUND: usize = 10 << 20;

    fn settings(share: u8, max_reply_memory: usize) -> Settings {
        Settings {
            max_memory: MemorySize::Bytes(ByteSize(BOUND)),
            reply_share: Percent(share),
            max_reply_memory: ByteSize(max_reply_memory),
            ..Settings::default()
        }
    }

    #[test]
    fn value_above_a_tenth_of_the_bound_is_not_admitted() {
        let budget = Budget::new(&settings(25, 0));
        assert!(budget.admits(BOUND / 10) && !budget.admits(BOUND / 10 + 1));
        assert_eq!(budget.too_large(), 1);
        budget.apply(&Settings { max_memory: MemorySize::Bytes(ByteSize(1)), ..settings(25, 0) });
        assert!(!budget.admits(BOUND / 10));
    }

    #[test]
    fn smaller_bound_of_replies_counts() {
        for (share, max_reply_memory, expected) in
            [(20, BOUND, BOUND / 100 * 20), (20, 1000, 1000), (0, BOUND, 0), (20, 0, 0)]
        {
            let budget = Budget::new(&settings(share, max_reply_memory));
            assert_eq!(budget.max_replies(), expected, "{share} {max_reply_memory}");
        }
    }
}
