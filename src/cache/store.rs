//! The store: tables of keys, and the LRU list.
//!
//! A table's lock is held only while one key is looked up. The LRU list has a lock of its own,
//! which a reader takes once for many reads (`read_buffer`). A reader that finds it locked does not
//! wait; that one read is not recorded. So readers never queue for the list. The order is exact
//! while reads do not overlap, above all for a sequential client. Other changes of the list wait
//! for the lock and apply all buffered reads first (invariant S2).
//!
//! Invariant S1: the holder of a table lock waits for no other table lock. The holder of the list's
//! lock takes no table lock; the reverse order is allowed. A list index is created under the lock
//! of its key's table, so every index that can be evicted has its key in a table. An eviction
//! removes the key from the table afterwards. Only then is the index freed.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashTable;
use hashbrown::hash_table;
use thread_local::ThreadLocal;

use super::budget::{Budget, Evictable};
use super::entry::{Entry, LruIndex};
use super::lru::{LruList, hash_tag};
use super::policy::hash_bits;
use super::read_buffer::{ReadBuffer, ReadRecord};
use super::settings::Policy;
use super::sync::preemption_point;
use super::thread_cache::ThreadCache;
use super::types::{EvictionCause, EvictionCounters};
use crate::sync::lock;

/// The number of keys that are looked up together. Their memory is fetched at the same time.
pub const TOGETHER: usize = 16;

/// Many tables, so contention is rare and no scan of one table delays readers. The model checker
/// creates a store for each order of steps, so it uses one table.
const TABLES: usize = if cfg!(feature = "shuttle") { 1 } else { 512 };

pub(super) struct Store {
    tables: Box<[Mutex<Table>]>,
    hasher: ahash::RandomState,
    lru: Mutex<LruList>,
    /// The read buffer of each thread, with reads that the LRU list has not applied yet.
    reads: ThreadLocal<Arc<ReadBuffer>>,
    /// The entries that each thread reads most.
    thread_caches: ThreadLocal<RefCell<ThreadCache>>,
    /// The capacity, in entries, that the thread caches are sized for.
    capacity: usize,
    /// Bytes of keys and values.
    bytes: AtomicU64,
    /// Bytes of all allocations: entries, tables, and the order.
    memory: AtomicU64,
    budget: Arc<Budget>,
    evictions: Arc<EvictionCounters>,
}

type Table = HashTable<Entry>;

/// An entry that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    /// Whether it was read from memory more than once since its fetch, if its rule counts that.
    pub(super) was_hot: bool,
}

/// The store, as one thread reads it.
pub(super) struct Reader<'a> {
    store: &'a Store,
    reads: &'a ReadBuffer,
    thread_cache: Option<&'a RefCell<ThreadCache>>,
}

impl Reader<'_> {
    /// Returns the entry for a key with this hash, and records a read at `now`, in nanoseconds on
    /// the cache's clock.
    pub(super) fn get(&self, (key, hash): (&[u8], u64), now: u64) -> Option<Entry> {
        preemption_point();
        let Self { store, reads, thread_cache } = self;
        let entry = if let Some(entry) =
            thread_cache.and_then(|thread_cache| thread_cache.borrow().get(key, hash).cloned())
        {
            entry
        } else {
            let entry = store.table(hash).find(hash, |entry| entry.key() == key)?.clone();
            if let Some(thread_cache) = thread_cache {
                thread_cache.borrow_mut().offer(&entry, hash);
            }
            entry
        };
        let read = ReadRecord { at: now, index: entry.lru_index(), tag: hash_tag(hash) };
        if !reads.push(read)
            && let Ok(mut lru) = store.lru.try_lock()
        {
            lru.apply_reads(Some(read));
        }
        Some(entry)
    }
}

impl Store {
    /// Creates an empty store that counts against `budget`.
    pub(super) fn new(
        capacity: usize,
        policy: Policy,
        budget: &Arc<Budget>,
        evictions: &Arc<EvictionCounters>,
    ) -> Arc<Self> {
        let lru = LruList::new(capacity, policy, budget.max_entries());
        let store = Arc::new(Self {
            tables: (0..TABLES).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: ahash::RandomState::new(),
            lru: Mutex::new(lru),
            reads: ThreadLocal::new(),
            thread_caches: ThreadLocal::new(),
            capacity,
            bytes: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            budget: Arc::clone(budget),
            evictions: Arc::clone(evictions),
        });
        store.count_change(0, lock(&store.lru).memory());
        let evictable: Weak<Self> = Arc::downgrade(&store);
        budget.register(evictable);
        store
    }

    /// Counts what the store takes more or less than before, in bytes.
    fn count_change(&self, before: usize, after: usize) {
        let (before, after) = (before as u64, after as u64);
        self.memory.fetch_add(after.wrapping_sub(before), Relaxed);
        self.budget.change(before, after);
    }

    fn table(&self, hash: u64) -> MutexGuard<'_, Table> {
        lock(self.table_of(hash))
    }

    #[cfg_attr(feature = "shuttle", expect(clippy::modulo_one, reason = "there is one table then"))]
    fn table_of(&self, hash: u64) -> &Mutex<Table> {
        // The middle of the hash, because a table uses both ends. The remainder always fits.
        &self.tables[usize::try_from(hash >> 32).unwrap_or(0) % TABLES]
    }

    /// Locks the LRU list and applies all buffered reads (invariant S2).
    fn lru(&self) -> MutexGuard<'_, LruList> {
        let mut lru = lock(&self.lru);
        lru.apply_reads(None);
        lru
    }

    /// Returns the entry for `key` and records a read at `now`, in nanoseconds on the cache's
    /// clock.
    pub(super) fn get(&self, key: &[u8], now: u64) -> Option<Entry> {
        self.reader().get((key, self.hash_of(key)), now)
    }

    /// Returns what this thread reads with.
    #[inline]
    pub(super) fn reader(&self) -> Reader<'_> {
        let reads = self.reads.get_or(|| lock(&self.lru).register_thread());
        Reader { store: self, reads, thread_cache: self.thread_cache(reads) }
    }

    /// Returns the thread cache, or `None` if this thread has read too little of this store to be
    /// worth its memory.
    fn thread_cache(&self, reads: &ReadBuffer) -> Option<&RefCell<ThreadCache>> {
        // No thread reads that often in the model checker.
        (cfg!(feature = "shuttle") || reads.has_been_full())
            .then(|| self.thread_caches.get_or(|| self.new_thread_cache()))
    }

    #[cold]
    fn new_thread_cache(&self) -> RefCell<ThreadCache> {
        let thread_cache = ThreadCache::with_capacity(self.capacity);
        self.count_change(0, thread_cache.memory());
        RefCell::new(thread_cache)
    }

    /// Prefetches the memory of these keys, which the caller will read one by one (invariant S4).
    /// Returns the hashes of the first [`TOGETHER`] of them.
    ///
    /// Acquiring a lock waits for outstanding loads. The tables of keys outside the thread cache
    /// are therefore locked first and read afterwards. A table that another thread holds is
    /// skipped.
    pub(super) fn prefetch(&self, keys: &[&[u8]]) -> [u64; TOGETHER] {
        let mut hashes = [0; TOGETHER];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.hash_of(key);
        }
        if keys.len() > 1
            && let Some(thread_cache) = self.thread_caches.get()
        {
            let misses = thread_cache.borrow().prefetch(&hashes[..keys.len().min(TOGETHER)]);
            if misses.len() > 1 {
                self.prefetch_tables(&misses);
            }
        }
        hashes
    }

    fn prefetch_tables(&self, misses: &[u64]) {
        let open = |hash: &u64| Some((self.table_of(*hash).try_lock().ok()?, *hash));
        let tables: Vec<_> = misses.iter().filter_map(open).collect();
        let found: Vec<&Entry> =
            tables.iter().filter_map(|(table, hash)| table.find(*hash, |_| true)).collect();
        // All tables are read before the first entry. Few instructions between two cache misses let
        // them overlap.
        std::hint::black_box(found.iter().fold(0, |touched, entry| touched ^ entry.touch()));
    }

    /// Inserts an entry. Returns whether it replaced another entry of the same key.
    pub(super) fn insert(&self, entry: Entry) -> bool {
        preemption_point();
        let hash = self.hash(&entry);
        let mut table = self.table(hash);
        let table_memory = table.allocation_size();
        self.bytes.fetch_add(entry.size() as u64, Relaxed);
        self.count_change(0, entry.footprint());
        let mut victims = [None, None];
        let is_replacement =
            match table.entry(hash, |other| other.key() == entry.key(), |entry| self.hash(entry)) {
                hash_table::Entry::Occupied(mut found) => {
                    let index = found.get().lru_index();
                    entry.set_index(index);
                    let replaced = std::mem::replace(found.get_mut(), entry);
                    replaced.unlink();
                    self.count_removed(&replaced);
                    let replacement = ReadRecord { at: u64::MAX, index, tag: hash_tag(hash) };
                    lock(&self.lru).apply_reads(Some(replacement));
                    true
                }
                hash_table::Entry::Vacant(vacancy) => {
                    let mut lru = self.lru();
                    let before = lru.memory();
                    let index = lru.push_newest(hash);
                    // After a reduction of the capacity the store may have a surplus. Each insert
                    // then evicts one entry more.
                    victims = [lru.evict_for_room(), lru.pop_surplus()];
                    self.count_change(before, lru.memory());
                    drop(lru);
                    entry.set_index(index);
                    vacancy.insert(entry);
                    false
                }
            };
        self.count_change(table_memory, table.allocation_size());
        drop(table);
        let evicted = victims.into_iter().flatten().map(|victim| self.evict(victim)).sum();
        self.evictions.add(EvictionCause::Capacity, evicted);
        self.evict_excess();
        is_replacement
    }

    /// Evicts entries until everything that is kept is within the bound on memory. Returns their
    /// number.
    #[inline]
    pub(super) fn evict_excess(&self) -> u64 {
        self.budget.evict_excess(self)
    }

    fn count_removed(&self, entry: &Entry) {
        self.bytes.fetch_sub(entry.size() as u64, Relaxed);
        self.count_change(entry.footprint(), 0);
    }

    fn hash(&self, entry: &Entry) -> u64 {
        self.hash_of(entry.key())
    }

    /// Returns the hash of a key, without the bits that the list's nodes have no room for.
    /// Otherwise an eviction could not find the key in its table by the hash in its node.
    #[inline]
    pub(super) fn hash_of(&self, key: &[u8]) -> u64 {
        hash_bits(self.hasher.hash_one(key))
    }

    /// Removes the key of an evicted index from its table, then frees the index (invariant S1).
    /// Returns the number of removed entries: 0 if another thread removed the entry first.
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
            self.count_removed(&entry);
            1
        })
    }

    /// Removes `key`. Returns whether it was stored.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        self.take(key).is_some()
    }

    /// Removes `key`. Returns `None` if it was not stored.
    pub(super) fn take(&self, key: &[u8]) -> Option<Removed> {
        preemption_point();
        let hash = self.hash_of(key);
        let mut table = self.table(hash);
        let found = table.find_entry(hash, |entry| entry.key() == key).ok()?;
        let (entry, _) = found.remove();
        lock(&self.lru).remove(entry.lru_index());
        let was_hot = entry.unlink();
        self.count_removed(&entry);
        Some(Removed { was_hot })
    }

    /// Returns the entry for `key` and records no read.
    pub(super) fn peek(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash_of(key);
        self.table(hash).find(hash, |entry| entry.key() == key).cloned()
    }

    /// Whether the store has this very entry, not only its key.
    pub(super) fn contains_entry(&self, entry: &Entry) -> bool {
        preemption_point();
        let hash = self.hash(entry);
        self.table(hash).find(hash, |other| other.is_same(entry)).is_some()
    }

    /// Returns the entries for which `wanted` returns true, in no particular order. Records no
    /// read. `wanted` runs under a table lock, so it must look at nothing but its entry.
    pub(super) fn collect_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        preemption_point();
        let mut selected = Vec::new();
        for table in &self.tables {
            selected.extend(lock(table).iter().filter(|entry| wanted(entry)).cloned());
        }
        selected
    }

    /// Returns some entries from `position` on, at most `max` of them, and moves the position
    /// behind them. Returns `None` at the end, and moves the position to the start. Records no
    /// read.
    ///
    /// An entry that is stored from the start to the end is returned once, whatever else is
    /// inserted or removed meanwhile. The list's lock is free before a table is locked
    /// (invariant S1).
    pub(super) fn walk(&self, position: &mut LruIndex, max: usize) -> Option<Vec<Entry>> {
        preemption_point();
        let nodes = lock(&self.lru).linked_from(position, max)?;
        let find = |(index, hash): (LruIndex, u64)| {
            self.table(hash).find(hash, |entry| entry.lru_index() == index).cloned()
        };
        Some(nodes.into_iter().filter_map(find).collect())
    }

    /// Sets the capacity in entries and the eviction policy. A surplus stays until it is
    /// [evicted](Self::evict_surplus).
    pub(super) fn set_limits(&self, capacity: usize, policy: Policy) {
        preemption_point();
        let mut lru = self.lru();
        let before = lru.memory();
        lru.set_limits(capacity, policy, self.budget.max_entries());
        self.count_change(before, lru.memory());
    }

    /// Evicts the least recently read entries until the capacity is respected. Returns the number
    /// of evicted entries.
    pub(super) fn evict_surplus(&self) -> u64 {
        let mut evicted = 0;
        loop {
            preemption_point();
            let Some(victim) = self.lru().pop_surplus() else { break };
            evicted += self.evict(victim);
        }
        self.shrink_tables();
        evicted
    }

    /// Returns what tables without room for more entries leave free.
    pub(super) fn shrink_tables(&self) {
        for table in &self.tables {
            let mut table = lock(table);
            let before = table.allocation_size();
            table.shrink_to_fit(|entry| self.hash(entry));
            self.count_change(before, table.allocation_size());
        }
    }

    /// Returns the bytes that stay with the store whatever is evicted: those of its order. A node
    /// keeps its index, so the order never shrinks.
    pub(super) fn fixed_memory(&self) -> usize {
        lock(&self.lru).memory()
    }

    /// Returns the number of entries, and the bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        (lock(&self.lru).len() as u64, self.bytes.load(Relaxed))
    }
}

impl Evictable for Store {
    fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    fn evict_one(&self) -> bool {
        preemption_point();
        let mut lru = self.lru();
        let before = lru.memory();
        let victim = lru.evict_for_memory();
        self.count_change(before, lru.memory());
        drop(lru);
        let Some(victim) = victim else { return false };
        self.evictions.add(EvictionCause::Memory, self.evict(victim));
        true
    }
}

impl Drop for Store {
    /// A store that was replaced counts against the bound for as long as it takes memory.
    /// A client may still read its large values.
    fn drop(&mut self) {
        for table in &mut self.tables {
            let table = table.get_mut().unwrap_or_else(PoisonError::into_inner);
            table.iter().for_each(Entry::count_in_flight);
        }
        self.budget.change(*self.memory.get_mut(), 0);
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::settings::Settings;
    use super::*;
    use crate::key::Key;
    use crate::settings::{ByteSize, MemorySize};

    fn entry(key: &Key, number: usize) -> Entry {
        Entry::new(key, Some(Bytes::from(number.to_string())), 0, None)
    }

    /// Creates a store with a bound on memory that is not reached.
    fn empty_store(capacity: usize) -> Arc<Store> {
        let budget = Budget::new(&Settings::default());
        Store::new(capacity, Policy::Lru, &budget, &Arc::default())
    }

    fn key(number: usize) -> Key {
        Key::from(number.to_string().as_bytes())
    }

    /// Runs one operation, chosen by `number`, on few keys with little capacity. Returns the number
    /// of entries that it inserted, removed, evicted or found.
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

    /// Enough reads for a thread to start its thread cache.
    const OFTEN: usize = 100;

    #[test]
    fn removed_entry_is_never_served_again() {
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
            let store = empty_store(1);
            store.insert(entry(&key, 1));
            for _ in 0..OFTEN {
                assert!(store.get(key.as_bytes(), 0).is_some());
            }
            leave(&store, &key, &other);
            assert!(store.get(key.as_bytes(), 0).is_none());
        }
        let store = empty_store(1);
        for number in [1, 2, 3] {
            store.insert(entry(&key, number));
            for _ in 0..OFTEN {
                let found = store.get(key.as_bytes(), 0).unwrap();
                assert_eq!(found.value().unwrap().bytes, number.to_string().as_bytes());
            }
        }
    }

    #[test]
    fn thread_cache_counts_against_the_bound() {
        let budget = Budget::new(&Settings::default());
        let store = Store::new(1 << 20, Policy::Lru, &budget, &Arc::default());
        let key = key(1);
        store.insert(entry(&key, 1));
        let before = (store.memory(), budget.memory());
        // A thread that starts after another has ended takes over its thread cache.
        let both = std::sync::Barrier::new(2);
        let read = || {
            (0..OFTEN).for_each(|_| drop(store.get(key.as_bytes(), 0)));
            both.wait();
        };
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(read))));
        let thread_caches = 2 * ThreadCache::with_capacity(1 << 20).memory() as u64;
        assert!(thread_caches > 100_000, "{thread_caches}");
        let after = (before.0 + thread_caches, before.1 + thread_caches);
        assert_eq!((store.memory(), budget.memory()), after);
        drop(store);
        assert_eq!(budget.memory(), 0);
    }

    #[test]
    fn prefetch_never_blocks_or_mutates() {
        let store = empty_store(OFTEN);
        let keys: Vec<_> = (0..20).map(key).collect();
        for (number, key) in keys.iter().enumerate() {
            store.insert(entry(key, number));
        }
        for _ in 0..OFTEN {
            assert!(store.get(keys[0].as_bytes(), 0).is_some(), "so that this thread has a front");
        }
        // Each key twice, so its table too; and a key that is not in the store.
        let unknown = key(999);
        let names: Vec<_> = keys.iter().chain(&keys).chain([&unknown]).map(Key::as_bytes).collect();
        let prefetch =
            |store: &Store| names.chunks(TOGETHER).for_each(|keys| _ = store.prefetch(keys));
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
            prefetch(store);
            foreseen.send(()).unwrap();
        });
        prefetch(&store);
        store.set_limits(0, Policy::Lru);
        assert_eq!((store.evict_surplus(), store.collect_where(|_| true).len()), (20, 0));
    }

    #[test]
    fn walk_returns_lasting_entries_once() {
        const LASTING: usize = 300;
        let store = empty_store(1000);
        (0..LASTING).for_each(|number| _ = store.insert(entry(&key(number), number)));
        let (mut position, mut found, mut next) = (0, Vec::new(), LASTING);
        while let Some(entries) = store.walk(&mut position, 7) {
            assert!(entries.len() <= 7);
            found.extend(entries.iter().map(|entry| entry.key().to_vec()));
            // Others come and go, and the lasting ones are read and replaced.
            (next..next + 5).for_each(|number| _ = store.insert(entry(&key(number), number)));
            assert!(store.remove(key(next + 2).as_bytes()));
            store.insert(entry(&key(next % LASTING), next));
            store.get(key(next * 7 % LASTING).as_bytes(), 0);
            next += 5;
            if next > 5 * LASTING {
                break;
            }
        }
        for number in 0..LASTING {
            let times = found.iter().filter(|one| *one == key(number).as_bytes()).count();
            assert_eq!(times, 1, "{number}");
        }
    }

    #[test]
    fn walk_ends_and_begins_again() {
        let store = empty_store(10);
        let mut position = 0;
        assert!(store.walk(&mut position, 3).is_none());
        (0..5).for_each(|number| _ = store.insert(entry(&key(number), number)));
        store.remove(key(0).as_bytes());
        let mut sizes = || store.walk(&mut position, 3).map(|entries| entries.len());
        assert_eq!([sizes(), sizes(), sizes(), sizes()], [Some(3), Some(1), None, Some(3)]);
        let emptied = empty_store(10);
        assert!(emptied.walk(&mut position, 3).is_none(), "a store that replaced it is shorter");
        assert_eq!(position, 0);
    }

    #[test]
    fn tables_and_lru_agree_under_concurrency() {
        for _ in 0..20 {
            let store = empty_store(20);
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
            // Every stored entry can be evicted, because its index is in the list.
            store.set_limits(0, Policy::Lru);
            assert_eq!(store.evict_surplus(), kept.len() as u64);
            assert_eq!((store.size(), store.collect_where(|_| true).len()), ((0, 0), 0));
        }
    }

    /// Returns the bytes that the store takes: the sum over all its entries.
    fn counted_again(store: &Store) -> usize {
        let tables: usize = store
            .tables
            .iter()
            .map(|table| {
                let table = lock(table);
                table.allocation_size() + table.iter().map(Entry::footprint).sum::<usize>()
            })
            .sum();
        let thread_cache = store.thread_caches.get().map_or(0, |own| own.borrow().memory());
        tables + lock(&store.lru).memory() + thread_cache
    }

    #[test]
    fn memory_is_counted_exactly() {
        let budget = Budget::new(&Settings::default());
        let store = Store::new(20, Policy::Lru, &budget, &Arc::default());
        for number in 0..5_000 {
            step(&store, number * 31);
            assert_eq!(store.memory(), counted_again(&store) as u64, "after {number}");
            assert_eq!(budget.memory(), store.memory());
        }
        drop(store);
        assert_eq!(budget.memory(), 0);
    }

    const BOUND: usize = 1 << 20;

    fn bounded(policy: Policy, budget: &Arc<Budget>) -> Arc<Store> {
        Store::new(10_000, policy, budget, &Arc::default())
    }

    fn budget(bytes: usize) -> Arc<Budget> {
        let max_memory = MemorySize::Bytes(ByteSize(bytes));
        Budget::new(&Settings { max_memory, ..Settings::default() })
    }

    fn sized(number: u8, length: usize) -> Entry {
        Entry::new(&key(number.into()), Some(vec![b'v'; length].into()), 0, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The entries are those that were read last, as many as there is room for.
        #[test]
        fn least_recently_read_entries_make_room_for_bytes(
            steps in prop::collection::vec((any::<u8>(), 0..3_u8, 0..60_000_usize), 1..300),
        ) {
            let budget = budget(BOUND);
            let store = bounded(Policy::Lru, &budget);
            // The keys from the least to the most recently read, with the bytes of their entries.
            let mut model: Vec<(u8, usize)> = Vec::new();
            for (number, kind, length) in steps {
                let found = model.iter().position(|(other, _)| *other == number);
                let found = found.map(|at| model.remove(at));
                match kind {
                    0 => {
                        let read = store.get(key(number.into()).as_bytes(), 0);
                        prop_assert_eq!(read.is_some(), found.is_some());
                        model.extend(found);
                    }
                    1 => _ = store.remove(key(number.into()).as_bytes()),
                    _ => {
                        let entry = sized(number, length);
                        model.push((number, entry.footprint()));
                        store.insert(entry);
                    }
                }
                let entries: usize =
                    store.collect_where(|_| true).iter().map(Entry::footprint).sum();
                let others = counted_again(&store) - entries;
                while model.iter().map(|(_, bytes)| bytes).sum::<usize>() + others > BOUND {
                    model.remove(0);
                }
                let kept = model.iter().map(|(number, _)| key((*number).into()));
                let kept: BTreeSet<_> = kept.collect();
                let stored = store.collect_where(|_| true);
                let stored = stored.iter().map(|entry| Key::from(entry.key())).collect();
                prop_assert_eq!(kept, stored);
                prop_assert!(budget.memory() <= BOUND as u64);
            }
        }

        /// Whatever the policy evicts, the bytes of two stores with one budget stay within it.
        #[test]
        fn stores_of_a_cluster_have_one_bound(
            steps in prop::collection::vec((any::<u8>(), 0..5_u8, 0..60_000_usize), 1..300),
        ) {
            let budget = budget(BOUND);
            let stores = [Policy::Lru, Policy::Tinylfu].map(|policy| bounded(policy, &budget));
            for (number, kind, length) in steps {
                let store = &stores[usize::from(number % 2)];
                match kind {
                    0 => _ = store.get(key(number.into()).as_bytes(), 0),
                    1 => _ = store.remove(key(number.into()).as_bytes()),
                    2 => {
                        budget.set_replies(4 * length as u64);
                        store.evict_excess();
                    }
                    _ => _ = store.insert(sized(number, length)),
                }
                let sum = stores.iter().map(|store| store.memory()).sum::<u64>();
                let again: usize = stores.iter().map(|store| counted_again(store)).sum();
                prop_assert_eq!(sum, again as u64);
                prop_assert!(budget.memory() <= BOUND as u64, "{} bytes", budget.memory());
            }
        }
    }

    #[test]
    fn small_store_takes_room_from_the_largest() {
        let budget = budget(BOUND);
        let [large, small] = [(); 2].map(|()| bounded(Policy::Lru, &budget));
        (0..100).for_each(|number| _ = large.insert(sized(number, 20_000)));
        let before = large.size().0;
        assert!(before > 40, "{before} entries");
        (0..10).for_each(|number| _ = small.insert(sized(number, 20_000)));
        assert_eq!(small.size().0, 10);
        assert!(large.size().0 < before);
        (0..100).for_each(|number| _ = small.insert(sized(number, 20_000)));
        let (large, small) = (large.memory(), small.memory());
        assert!(large.abs_diff(small) < 100_000, "{large} and {small} bytes");
    }

    #[test]
    fn dropped_store_returns_its_room() {
        let budget = budget(BOUND);
        let [dropped, store] = [(); 2].map(|()| bounded(Policy::Lru, &budget));
        (0..100).for_each(|number| _ = dropped.insert(sized(number, 20_000)));
        drop(dropped);
        (0..40).for_each(|number| _ = store.insert(sized(number, 20_000)));
        assert_eq!(store.size().0, 40);
    }

    /// Sixteen bytes of key and a hundred of value, as Redis takes 207 bytes for.
    #[test]
    fn small_entry_takes_at_most_two_hundred_bytes() {
        const ENTRIES: u32 = 200_000;
        let store = empty_store(ENTRIES as usize);
        for number in 0..ENTRIES {
            let key = Key::from(format!("{number:016}").as_bytes());
            store.insert(Entry::new(&key, Some(vec![b'v'; 100].into()), 0, None));
        }
        let each = store.memory() / u64::from(ENTRIES);
        assert!(each <= 200, "{each} bytes");
    }
}
