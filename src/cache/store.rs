//! Where entries are kept: moka, with its bookkeeping done at once.
//!
//! moka applies reads to its order and evicts in batches, later. Running what is pending after each insertion
//! makes a sequential reader's least-recently-read order and the size exact. moka cannot change its capacity, so
//! a store of another size is another [`Store`]; what moves entries from one to the other is in the parent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use super::entry::Entry;
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
    /// A store that is being left is emptied without that being an eviction.
    retired: AtomicBool,
}

impl Ledger {
    fn removed(&self, key: &Key, entry: &Entry, cause: RemovalCause) {
        self.bytes.fetch_sub(size(key, entry), Relaxed);
        if self.retired.load(Relaxed) {
            return;
        }
        match cause {
            RemovalCause::Size => self.evictions.count(Cause::Capacity, 1),
            // Only an entry that had ceased to be fresh is fetched again.
            RemovalCause::Replaced | RemovalCause::Expired => self.evictions.count(Cause::Expired, 1),
            // Counted by who removed it, who knows why.
            RemovalCause::Explicit => {}
        }
    }
}

fn size(key: &Key, entry: &Entry) -> u64 {
    (key.len() + entry.size()) as u64
}

impl Store {
    pub(super) fn new(capacity: usize, policy: Policy, evictions: &Arc<Evictions>) -> Arc<Self> {
        let ledger = Arc::new(Ledger {
            evictions: Arc::clone(evictions),
            bytes: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        });
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
        self.entries.get(key)
    }

    pub(super) fn insert(&self, key: &Key, entry: Arc<Entry>) {
        self.carry(key, entry);
        self.settle();
    }

    /// Inserts one of many; after the last of them the store has to be [settled](Self::settle).
    pub(super) fn carry(&self, key: &Key, entry: Arc<Entry>) {
        self.ledger.bytes.fetch_add(size(key, &entry), Relaxed);
        self.entries.insert(key.clone(), entry);
    }

    /// Applies the reads and insertions so far to the order and the size.
    pub(super) fn settle(&self) {
        self.entries.run_pending_tasks();
    }

    /// Removes `key`; tells whether it was there.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Whether `key` stands for this very entry.
    pub(super) fn holds(&self, key: &[u8], entry: &Arc<Entry>) -> bool {
        self.entries.get(key).is_some_and(|stored| Arc::ptr_eq(&stored, entry))
    }

    /// Every key and entry, in no order; moves nothing in the order of reads.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Arc<Key>, Arc<Entry>)> {
        self.entries.iter()
    }

    /// How many entries there are, exactly, and the bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        self.settle();
        (self.entries.entry_count(), self.ledger.bytes.load(Relaxed))
    }

    pub(super) fn retire(&self) {
        self.ledger.retired.store(true, Relaxed);
    }
}
