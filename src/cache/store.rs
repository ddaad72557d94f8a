//! Where entries are kept: tables of keys, and the order in which they were last read.
//!
//! A table's lock is held for as long as it takes to find a key; the order has a lock of its own, which a reader takes
//! once for many reads (`read_buffer`). A reader who finds the order locked then does not wait: that one read is not noted, so
//! readers never queue for it, and the order is exact wherever reads do not meet, for a client that reads one key after the
//! other above all. What changes the order otherwise waits, and begins with the reads that are not noted yet.
//!
//! The rule that must not be broken: whoever holds a table's lock waits for no other table's, and whoever holds the order's
//! takes no table's; the other way round is allowed. A place in the order is made under the lock of its key's table, so every
//! place that can be taken away has its key in a table; who takes one away because there is no room takes the key out
//! afterwards, and only then may the place be used again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use hashbrown::HashTable;
use hashbrown::hash_table;
use thread_local::ThreadLocal;

use super::entry::{Entry, LruIndex};
use super::lru::{LruList, hash_tag};
use super::read_buffer::{ReadBuffer, ReadRecord};
use super::settings::Policy;
use super::sync::preemption_point;
use super::thread_cache::ThreadCache;
use super::types::{EvictionCause, EvictionCounters};
use crate::sync::lock;

/// Many, so that readers seldom meet, and none is so large that going through it keeps them waiting. Where every order of
/// steps is tried, which makes a store for each, one is enough.
const TABLES: usize = if cfg!(feature = "shuttle") { 1 } else { 512 };

pub(super) struct Store {
    tables: Box<[Mutex<Table>]>,
    hasher: ahash::RandomState,
    lru: Mutex<LruList>,
    /// Those of each thread that the order does not know of yet.
    reads: ThreadLocal<Arc<ReadBuffer>>,
    /// What each thread reads most.
    thread_caches: ThreadLocal<RefCell<ThreadCache>>,
    /// For which of them there is room.
    capacity: usize,
    bytes: AtomicU64,
    evictions: Arc<EvictionCounters>,
}

type Table = HashTable<Arc<Entry>>;

impl Store {
    pub(super) fn new(capacity: usize, policy: Policy, evictions: &Arc<EvictionCounters>) -> Self {
        Self {
            tables: (0..TABLES).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: ahash::RandomState::new(),
            lru: Mutex::new(LruList::new(capacity, policy)),
            reads: ThreadLocal::new(),
            thread_caches: ThreadLocal::new(),
            capacity,
            bytes: AtomicU64::new(0),
            evictions: Arc::clone(evictions),
        }
    }

    fn table(&self, hash: u64) -> MutexGuard<'_, Table> {
        lock(self.table_of(hash))
    }

    #[cfg_attr(feature = "shuttle", expect(clippy::modulo_one, reason = "there is one table then"))]
    fn table_of(&self, hash: u64) -> &Mutex<Table> {
        // Of the middle of the hash, since a table goes by its ends. The remainder always fits.
        &self.tables[usize::try_from(hash >> 32).unwrap_or(0) % TABLES]
    }

    /// The order as it is after all reads so far.
    fn lru(&self) -> MutexGuard<'_, LruList> {
        let mut lru = lock(&self.lru);
        lru.apply_reads();
        lru
    }

    /// The entry for `key`; notes that it was read at `now`, in nanoseconds on the cache's clock.
    pub(super) fn get(&self, key: &[u8], now: u64) -> Option<Arc<Entry>> {
        preemption_point();
        let hash = self.hasher.hash_one(key);
        let reads = self.reads.get_or(|| lock(&self.lru).register_thread());
        let thread_cache = self.thread_cache(reads);
        let entry = if let Some(entry) =
            thread_cache.and_then(|thread_cache| thread_cache.borrow().get(key, hash).cloned())
        {
            entry
        } else {
            let entry = Arc::clone(self.table(hash).find(hash, |entry| entry.key() == key)?);
            if let Some(thread_cache) = thread_cache {
                thread_cache.borrow_mut().offer(&entry, hash);
            }
            entry
        };
        let read = ReadRecord { at: now, index: entry.lru_index(), tag: hash_tag(hash) };
        if !reads.push(read)
            && let Ok(mut lru) = self.lru.try_lock()
        {
            lru.apply_reads();
            lru.record_read(read.index, read.tag);
        }
        Some(entry)
    }

    /// What this thread reads most, if it has read enough since the store was made for that to be worth its memory.
    fn thread_cache(&self, reads: &ReadBuffer) -> Option<&RefCell<ThreadCache>> {
        // Where every order of steps is tried, nothing is read often.
        (cfg!(feature = "shuttle") || reads.has_been_full()).then(|| {
            self.thread_caches.get_or(|| RefCell::new(ThreadCache::with_capacity(self.capacity)))
        })
    }

    /// These keys will be read, one by one. A processor that takes a lock waits first for all that it has asked of memory, so the
    /// tables of what the front has not are locked before, as many as nobody else has locked, and looked into together.
    pub(super) fn prefetch(&self, keys: &[&[u8]]) {
        let Some(thread_cache) = self.thread_caches.get() else { return };
        let misses =
            thread_cache.borrow().prefetch(keys.iter().map(|key| self.hasher.hash_one(*key)));
        if misses.len() < 2 {
            return;
        }
        let open = |hash: &u64| Some((self.table_of(*hash).try_lock().ok()?, *hash));
        let tables: Vec<_> = misses.iter().filter_map(open).collect();
        let found: Vec<_> =
            tables.iter().filter_map(|(table, hash)| table.find(*hash, |_| true)).collect();
        // Where all entries are before what is in the first, so that few instructions lie between one wait and the next.
        let entries: Vec<&Entry> = found.into_iter().map(|entry| &**entry).collect();
        std::hint::black_box(entries.iter().fold(0, |touched, entry| touched ^ entry.touch()));
    }

    /// Inserts an entry; tells whether another of that key had to go for it.
    pub(super) fn insert(&self, entry: Arc<Entry>) -> bool {
        preemption_point();
        let hash = self.hash(&entry);
        let mut table = self.table(hash);
        match table.entry(hash, |other| other.key() == entry.key(), |entry| self.hash(entry)) {
            hash_table::Entry::Occupied(mut found) => {
                let index = found.get().lru_index();
                self.bytes.fetch_add(entry.size() as u64, Relaxed);
                self.bytes.fetch_sub(found.get().size() as u64, Relaxed);
                entry.set_index(index);
                std::mem::replace(found.get_mut(), entry).unlink();
                self.lru().record_read(index, hash_tag(hash));
                true
            }
            hash_table::Entry::Vacant(vacancy) => {
                let mut lru = self.lru();
                let index = lru.push_newest(hash);
                let victim = lru.evict_for(index);
                // Where there are too many because the capacity was made smaller, one more goes.
                let more = lru.pop_surplus();
                drop(lru);
                self.bytes.fetch_add(entry.size() as u64, Relaxed);
                entry.set_index(index);
                vacancy.insert(entry);
                drop(table);
                let evicted =
                    [victim, more].into_iter().flatten().map(|victim| self.evict(victim)).sum();
                self.evictions.add(EvictionCause::Capacity, evicted);
                false
            }
        }
    }

    fn hash(&self, entry: &Entry) -> u64 {
        self.hasher.hash_one(entry.key())
    }

    /// Takes out the key whose place in the order was taken away; tells how many that were: if somebody else has taken it
    /// out meanwhile, none.
    fn evict(&self, (index, hash): (LruIndex, u64)) -> u64 {
        let mut table = self.table(hash);
        let entry = table
            .find_entry(hash, |entry| entry.lru_index() == index)
            .ok()
            .map(|found| found.remove().0);
        if let Some(entry) = &entry {
            entry.unlink();
        }
        drop(table);
        lock(&self.lru).release(index);
        entry.map_or(0, |entry| {
            self.bytes.fetch_sub(entry.size() as u64, Relaxed);
            1
        })
    }

    /// Removes `key`; tells whether it was there.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        preemption_point();
        let hash = self.hasher.hash_one(key);
        let mut table = self.table(hash);
        let Ok(found) = table.find_entry(hash, |entry| entry.key() == key) else { return false };
        let (entry, _) = found.remove();
        lock(&self.lru).remove(entry.lru_index());
        entry.unlink();
        self.bytes.fetch_sub(entry.size() as u64, Relaxed);
        true
    }

    /// Whether this very entry stands for its key.
    pub(super) fn contains_entry(&self, entry: &Arc<Entry>) -> bool {
        preemption_point();
        let hash = self.hash(entry);
        self.table(hash).find(hash, |other| Arc::ptr_eq(other, entry)).is_some()
    }

    /// Entries of which `wanted` says so, in no order; notes no read. `wanted` is asked with a table locked, so it must look
    /// at nothing but these.
    pub(super) fn collect_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        preemption_point();
        let mut selected = Vec::new();
        for table in &self.tables {
            selected.extend(lock(table).iter().filter(|entry| wanted(entry)).cloned());
        }
        selected
    }

    /// From now on there may be so many entries, of which `policy` says which go. Those that are too many stay until they
    /// are [evicted](Self::evict_surplus).
    pub(super) fn set_limits(&self, capacity: usize, policy: Policy) {
        preemption_point();
        self.lru().set_limits(capacity, policy);
    }

    /// Takes out the least recently read until there are no more than may be; returns how many.
    pub(super) fn evict_surplus(&self) -> u64 {
        let mut evicted = 0;
        loop {
            preemption_point();
            let Some(victim) = self.lru().pop_surplus() else { break };
            evicted += self.evict(victim);
        }
        for table in &self.tables {
            lock(table).shrink_to_fit(|entry| self.hash(entry));
        }
        evicted
    }

    /// How many entries there are, and the bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        (lock(&self.lru).len() as u64, self.bytes.load(Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key::Key;

    fn entry(key: &Key, number: usize) -> Arc<Entry> {
        Entry::new(key, Some(Bytes::from(number.to_string())), 0, None)
    }

    fn key(number: usize) -> Key {
        Key::from(number.to_string().as_bytes())
    }

    /// What threads do with few keys and little room, each step from a number.
    fn step(store: &Store, number: usize) -> u64 {
        let key = key(number / 7 % 40);
        match number % 7 {
            0 | 1 => u64::from(!store.insert(entry(&key, number))),
            2 => u64::from(store.remove(key.as_bytes())),
            3 if number % 50 == 3 => {
                store.set_limits(
                    5 + number / 50 % 20,
                    if number.is_multiple_of(3) { Policy::Lru } else { Policy::Tinylfu },
                );
                store.evict_surplus()
            }
            _ => u64::from(store.get(key.as_bytes(), 0).is_some()),
        }
    }

    /// So often that a thread finds by itself what it reads.
    const OFTEN: usize = 100;

    #[test]
    fn what_has_left_the_store_is_given_no_more_however_often_it_was_read() {
        let (key, other) = (key(1), key(2));
        let ways: [fn(&Store, &Key, &Key); 3] = [
            |store, key, _| assert!(store.remove(key.as_bytes())),
            |store, _, other| assert!(!store.insert(entry(other, 2))),
            |store, _, _| {
                store.set_limits(0, Policy::Lru);
                assert_eq!(store.evict_surplus(), 1);
            },
        ];
        for leave in ways {
            let store = Store::new(1, Policy::Lru, &Arc::default());
            store.insert(entry(&key, 1));
            for _ in 0..OFTEN {
                assert!(store.get(key.as_bytes(), 0).is_some());
            }
            leave(&store, &key, &other);
            assert!(store.get(key.as_bytes(), 0).is_none());
        }
        let store = Store::new(1, Policy::Lru, &Arc::default());
        for number in [1, 2, 3] {
            store.insert(entry(&key, number));
            for _ in 0..OFTEN {
                let found = store.get(key.as_bytes(), 0).unwrap();
                assert_eq!(found.value().unwrap().bytes, number.to_string().as_bytes());
            }
        }
    }

    #[test]
    fn what_is_foreseen_waits_for_nobody_and_changes_nothing() {
        let store = Store::new(OFTEN, Policy::Lru, &Arc::default());
        let keys: Vec<_> = (0..20).map(key).collect();
        for (number, key) in keys.iter().enumerate() {
            store.insert(entry(key, number));
        }
        for _ in 0..OFTEN {
            assert!(store.get(keys[0].as_bytes(), 0).is_some(), "so that this thread has a front");
        }
        // Each twice, so its table too, and one that the store has not.
        let unknown = key(999);
        let names: Vec<_> = keys.iter().chain(&keys).chain([&unknown]).map(Key::as_bytes).collect();
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (foreseen, is_foreseen) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let store = &store;
            scope.spawn(move || {
                let _held: Vec<_> = store.tables.iter().map(lock).collect();
                locked.send(()).unwrap();
                is_foreseen
                    .recv_timeout(std::time::Duration::from_secs(10))
                    .expect("it waited for a table");
            });
            is_locked.recv().unwrap();
            store.prefetch(&names);
            foreseen.send(()).unwrap();
        });
        store.prefetch(&names);
        store.set_limits(0, Policy::Lru);
        assert_eq!((store.evict_surplus(), store.collect_where(|_| true).len()), (20, 0));
    }

    #[test]
    fn tables_and_order_agree_whatever_went_on_at_the_same_time() {
        for _ in 0..20 {
            let store = Store::new(20, Policy::Lru, &Arc::default());
            std::thread::scope(|scope| {
                for thread in 0..4_usize {
                    let store = &store;
                    let next = |number: usize| {
                        number
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407)
                    };
                    let numbers =
                        std::iter::successors(Some(thread), move |number| Some(next(*number)));
                    scope.spawn(move || {
                        numbers.take(5_000).for_each(|number| _ = step(store, number >> 33));
                    });
                }
            });
            let kept = store.collect_where(|_| true);
            let bytes: u64 = kept.iter().map(|entry| entry.size() as u64).sum();
            assert_eq!(store.size(), (kept.len() as u64, bytes));
            // Each that is kept can be driven out: its place is in the order.
            store.set_limits(0, Policy::Lru);
            assert_eq!(store.evict_surplus(), kept.len() as u64);
            assert_eq!((store.size(), store.collect_where(|_| true).len()), ((0, 0), 0));
        }
    }
}
