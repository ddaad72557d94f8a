//! Where entries are kept: moka, with its bookkeeping done at once.
//!
//! moka applies reads to its order and evicts in batches, later. Running what is pending after each insertion
//! makes a sequential reader's least-recently-read order and the size exact. moka cannot change its capacity, so
//! a store of another size is another [`Store`]; what moves entries from one to the other is in the parent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use super::entry::Entry;
use super::sync::preemption_point;
use super::{Cause, Evictions, Policy};
use crate::key::Key;

pub(super) struct Store {
    entries: moka::sync::Cache<Key, Arc<Entry>, ahash::RandomState>,
    ledger: Arc<Ledger>,
}

/// What a store's evictions are written down in.
struct Ledger {
    evictions: Arc<Evictions>,
    bytes: AtomicU64,
}

impl Ledger {
    fn removed(&self, key: &Key, entry: &Entry, cause: RemovalCause) {
        self.bytes.fetch_sub(size(key, entry), Relaxed);
        // Of the others whoever caused them knows why.
        if cause == RemovalCause::Size {
            self.evictions.count(Cause::Capacity, 1);
        }
    }
}

fn size(key: &Key, entry: &Entry) -> u64 {
    (key.len() + entry.size()) as u64
}

impl Store {
    pub(super) fn new(capacity: usize, policy: Policy, evictions: &Arc<Evictions>) -> Arc<Self> {
        let ledger = Arc::new(Ledger { evictions: Arc::clone(evictions), bytes: AtomicU64::new(0) });
        let removals = Arc::clone(&ledger);
        let entries = moka::sync::Cache::builder()
            .max_capacity(capacity as u64)
            .eviction_policy(match policy {
                Policy::Lru => EvictionPolicy::lru(),
                Policy::Tinylfu => EvictionPolicy::tiny_lfu(),
            })
            .eviction_listener(move |key: Arc<Key>, entry: Arc<Entry>, cause| removals.removed(&key, &entry, cause))
            .build_with_hasher(ahash::RandomState::new());
        Arc::new(Self { entries, ledger })
    }

    /// The entry for `key`; moves it to the front of the order of reads.
    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        preemption_point();
        self.entries.get(key)
    }

    /// Inserts an entry; tells whether another of that key had to go for it.
    pub(super) fn insert(&self, key: &Key, entry: Arc<Entry>) -> bool {
        let replaces = self.entries.contains_key(key);
        self.carry(key, entry);
        self.settle();
        replaces
    }

    /// Inserts one of many; after the last of them the store has to be [settled](Self::settle).
    pub(super) fn carry(&self, key: &Key, entry: Arc<Entry>) {
        preemption_point();
        self.ledger.bytes.fetch_add(size(key, &entry), Relaxed);
        self.entries.insert(key.clone(), entry);
    }

    /// Applies the reads and insertions so far to the order and the size.
    pub(super) fn settle(&self) {
        self.entries.run_pending_tasks();
    }

    /// Removes `key`; tells whether it was there.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        preemption_point();
        self.entries.remove(key).is_some()
    }

    /// Every key and entry, in no order; moves nothing in the order of reads.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Arc<Key>, Arc<Entry>)> {
        preemption_point();
        self.entries.iter()
    }

    /// Reads again, in their order, the entries last read at `clock` or later, and so settles the order of a store that
    /// was filled in another.
    pub(super) fn read_again_since(&self, clock: u64) {
        self.settle();
        let mut recent: Vec<_> = self.iter().map(|(key, entry)| (entry.last_read(), key)).collect();
        recent.retain(|(last_read, _)| *last_read >= clock);
        recent.sort_unstable_by_key(|(last_read, _)| *last_read);
        for (_, key) in recent {
            self.get(key.as_bytes());
        }
        self.settle();
    }

    /// How many entries there are, exactly, and the bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        self.settle();
        (self.entries.entry_count(), self.ledger.bytes.load(Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn reading_again_puts_entries_in_the_order_of_their_last_reads() {
        let store = Store::new(3, Policy::Lru, &Arc::default());
        // Inserted in another order than they were read in.
        for (key, last_read) in [("b", 2), ("c", 3), ("a", 1)] {
            let entry = Entry::new(None, Instant::now(), None);
            entry.touch(last_read);
            store.carry(&Key::from(key.as_bytes()), Arc::new(entry));
        }
        store.read_again_since(2);
        store.insert(&Key::from(&b"d"[..]), Arc::new(Entry::new(None, Instant::now(), None)));
        let mut keys: Vec<_> = store.iter().map(|(key, _)| key.as_bytes().to_vec()).collect();
        keys.sort();
        assert_eq!(keys, [b"b", b"c", b"d"]);
    }
}
