//! Where entries are kept: tables of keys, and the order in which they were last read.
//!
//! A table's lock is held for as long as it takes to find a key; the order has a lock of its own. A reader who finds the
//! order locked does not wait: that one read is not noted, so readers never queue for it, and the order is exact wherever
//! reads do not meet, for a client that reads one key after the other above all. What changes the order otherwise waits.
//!
//! The rule that must not be broken: whoever holds the order's lock takes no table's; the other way round is allowed. A
//! place in the order is made under the lock of its key's table, so every place that can be taken away has its key in a
//! table; who takes one away because there is no room takes the key out afterwards, and only then may the place be used
//! again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table;

use super::entry::Entry;
use super::order::{Order, Place};
use super::sync::preemption_point;
use super::{Cause, Evictions, Policy};
use crate::key::Key;

/// Many, so that readers seldom meet, and none is so large that going through it keeps them waiting. Where every order of
/// steps is tried, which makes a store for each, one is enough.
const TABLES: usize = if cfg!(feature = "shuttle") { 1 } else { 512 };
/// Entries that go for one that comes, where there are too many because the capacity was made smaller.
const MOST_FOR_ONE: usize = 2;

pub(super) struct Store {
    tables: Box<[Mutex<HashTable<Record>>]>,
    hasher: ahash::RandomState,
    order: Mutex<Order>,
    bytes: AtomicU64,
    evictions: Arc<Evictions>,
}

struct Record {
    key: Box<[u8]>,
    entry: Arc<Entry>,
    place: Place,
}

impl Record {
    fn size(&self) -> u64 {
        (self.key.len() + self.entry.size()) as u64
    }
}

impl Store {
    pub(super) fn new(capacity: usize, policy: Policy, evictions: &Arc<Evictions>) -> Self {
        Self {
            tables: (0..TABLES).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: ahash::RandomState::new(),
            order: Mutex::new(Order::new(capacity, policy)),
            bytes: AtomicU64::new(0),
            evictions: Arc::clone(evictions),
        }
    }

    #[cfg_attr(feature = "shuttle", expect(clippy::modulo_one, reason = "there is one table then"))]
    fn table(&self, hash: u64) -> MutexGuard<'_, HashTable<Record>> {
        // Of the middle of the hash, since a table goes by its ends. The remainder always fits.
        let index = usize::try_from(hash >> 32).unwrap_or(0) % TABLES;
        lock(&self.tables[index])
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        lock(&self.order)
    }

    /// The entry for `key`; notes that it was read.
    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        preemption_point();
        let hash = self.hasher.hash_one(key);
        let table = self.table(hash);
        let record = table.find(hash, |record| *record.key == *key)?;
        let (entry, place) = (Arc::clone(&record.entry), record.place);
        drop(table);
        if let Ok(mut order) = self.order.try_lock() {
            order.read(place, hash);
        }
        Some(entry)
    }

    /// Inserts an entry; tells whether another of that key had to go for it.
    pub(super) fn insert(&self, key: &Key, entry: Arc<Entry>) -> bool {
        preemption_point();
        let hash = self.hasher.hash_one(key.as_bytes());
        let mut table = self.table(hash);
        let found =
            table.entry(hash, |record| *record.key == *key.as_bytes(), |record| self.hasher.hash_one(&*record.key));
        match found {
            hash_table::Entry::Occupied(mut record) => {
                let record = record.get_mut();
                let before = record.size();
                record.entry = entry;
                self.bytes.fetch_add(record.size(), Relaxed);
                self.bytes.fetch_sub(before, Relaxed);
                self.order().read(record.place, hash);
                true
            }
            hash_table::Entry::Vacant(vacancy) => {
                let place = self.order().add(hash);
                let record = Record { key: key.as_bytes().into(), entry, place };
                self.bytes.fetch_add(record.size(), Relaxed);
                vacancy.insert(record);
                drop(table);
                let victim = self.order().choose_between(place);
                let more = std::iter::from_fn(|| self.order().oldest_of_too_many()).take(MOST_FOR_ONE - 1);
                let gone = victim.into_iter().chain(more).map(|victim| self.evict(victim)).sum();
                self.evictions.count(Cause::Capacity, gone);
                false
            }
        }
    }

    /// Takes out the key whose place in the order was taken away; tells how many that were: if somebody else has taken it
    /// out meanwhile, none.
    fn evict(&self, (place, hash): (Place, u64)) -> u64 {
        let record =
            self.table(hash).find_entry(hash, |record| record.place == place).ok().map(|found| found.remove().0);
        self.order().free(place);
        record.map_or(0, |record| {
            self.bytes.fetch_sub(record.size(), Relaxed);
            1
        })
    }

    /// Removes `key`; tells whether it was there.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        preemption_point();
        let hash = self.hasher.hash_one(key);
        let mut table = self.table(hash);
        let Ok(found) = table.find_entry(hash, |record| *record.key == *key) else { return false };
        let (record, _) = found.remove();
        self.order().remove(record.place);
        self.bytes.fetch_sub(record.size(), Relaxed);
        true
    }

    /// Whether `key` stands for this very entry.
    pub(super) fn holds(&self, key: &[u8], entry: &Arc<Entry>) -> bool {
        preemption_point();
        let hash = self.hasher.hash_one(key);
        let table = self.table(hash);
        table.find(hash, |record| *record.key == *key).is_some_and(|record| Arc::ptr_eq(&record.entry, entry))
    }

    /// Keys and entries of which `wanted` says so, in no order; notes no read. `wanted` is asked with a table locked, so it
    /// must look at nothing but these.
    pub(super) fn select(&self, wanted: impl Fn(&[u8], &Entry) -> bool) -> Vec<(Box<[u8]>, Arc<Entry>)> {
        preemption_point();
        let mut selected = Vec::new();
        for table in &self.tables {
            let table = lock(table);
            let found = table.iter().filter(|record| wanted(&record.key, &record.entry));
            selected.extend(found.map(|record| (record.key.clone(), Arc::clone(&record.entry))));
        }
        selected
    }

    /// From now on there may be so many entries, of which `policy` says which go. Those that are too many stay until they
    /// are [evicted](Self::evict_surplus).
    pub(super) fn limit(&self, capacity: usize, policy: Policy) {
        preemption_point();
        self.order().limit(capacity, policy);
    }

    /// Takes out the least recently read until there are no more than may be; returns how many.
    pub(super) fn evict_surplus(&self) -> u64 {
        let mut gone = 0;
        loop {
            preemption_point();
            let Some(victim) = self.order().oldest_of_too_many() else { break };
            gone += self.evict(victim);
        }
        for table in &self.tables {
            lock(table).shrink_to_fit(|record| self.hasher.hash_one(&*record.key));
        }
        gone
    }

    /// How many entries there are, and the bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.order().len() as u64, self.bytes.load(Relaxed))
    }
}

/// Nothing that can panic is called with a lock held, but for memory that cannot be had, which ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    fn entry(number: usize) -> Arc<Entry> {
        Arc::new(Entry::new(Some(Bytes::from(number.to_string())), Instant::now(), None))
    }

    fn key(number: usize) -> Key {
        Key::from(number.to_string().as_bytes())
    }

    /// What threads do with few keys and little room, each step from a number.
    fn step(store: &Store, number: usize) -> u64 {
        let key = key(number / 7 % 40);
        match number % 7 {
            0 | 1 => u64::from(!store.insert(&key, entry(number))),
            2 => u64::from(store.remove(key.as_bytes())),
            3 if number % 50 == 3 => {
                store.limit(5 + number / 50 % 20, if number.is_multiple_of(3) { Policy::Lru } else { Policy::Tinylfu });
                store.evict_surplus()
            }
            _ => u64::from(store.get(key.as_bytes()).is_some()),
        }
    }

    #[test]
    fn tables_and_order_agree_whatever_went_on_at_the_same_time() {
        for _ in 0..20 {
            let store = Store::new(20, Policy::Lru, &Arc::default());
            std::thread::scope(|scope| {
                for thread in 0..4_usize {
                    let store = &store;
                    let next = |number: usize| {
                        number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
                    };
                    let numbers = std::iter::successors(Some(thread), move |number| Some(next(*number)));
                    scope.spawn(move || numbers.take(5_000).for_each(|number| _ = step(store, number >> 33)));
                }
            });
            let kept = store.select(|_, _| true);
            let bytes: u64 = kept.iter().map(|(key, entry)| (key.len() + entry.size()) as u64).sum();
            assert_eq!(store.size(), (kept.len() as u64, bytes));
            // Each that is kept can be driven out: its place is in the order.
            store.limit(0, Policy::Lru);
            assert_eq!(store.evict_surplus(), kept.len() as u64);
            assert_eq!((store.size(), store.select(|_, _| true).len()), ((0, 0), 0));
        }
    }
}
