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
//!
//! The table of the counters has a part of the memory for replies. Another bound may need another
//! table. The numbers of each table begin where no earlier table can have come, so no note of an
//! earlier one is ever current again. A push may still count in a table that was just replaced, or
//! in none: every push that concerns a noted fetch arrives after that fetch was sent, and so after
//! its table was set.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use super::super::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use super::super::sync::{Mutex, lock, preemption_point};

/// The most counters. A change ends the replies of another key with a probability of one in
/// this number. So at 50,000 changes a second, a reply that is read ten times a second loses one
/// hit in 200. The model checker uses few, because it would have to
/// create all of them for each order of steps.
const MOST: usize = if cfg!(feature = "shuttle") { 4 } else { 1 << 20 };
/// The counters take this part of the memory for replies at most.
const PART: usize = 8;
/// The numbers that a table has for each of its counters. At a million changes a second of one key,
/// a counter reaches those of the next table after nine years.
const NUMBERS: u64 = 1 << 48;
/// A table with so many times too few counters is replaced.
const MAX_GROWTH: usize = 4;

/// A counter and its number at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    index: u32,
    count: u64,
}

/// The counters of one size.
pub(super) struct Table(Box<[AtomicU64]>);

impl Table {
    fn new(size: Size) -> Self {
        Self((0..size.number).map(|_| AtomicU64::new(size.first)).collect())
    }

    /// Whether no key of this counter has changed since it was noted.
    #[inline]
    pub(super) fn is_current(&self, noted: Count) -> bool {
        let count = self.0.get(noted.index as usize);
        count.is_some_and(|count| count.load(Acquire) == noted.count)
    }

    fn index(&self, hash: u64) -> usize {
        // The number of counters is a power of two.
        usize::try_from(hash).unwrap_or(0) & (self.0.len() - 1)
    }
}

/// The size of the next table.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// A power of two.
    number: usize,
    /// The number that each counter begins with.
    first: u64,
}

/// The change counters of all keys.
pub(super) struct Counters {
    /// Created with the first note: a proxy that keeps no replies needs no counters. A push before
    /// that has no reply to end.
    table: ArcSwapOption<Table>,
    /// Locked while a table is created or removed.
    size: Mutex<Size>,
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

/// Returns the number of counters where replies may take this many bytes.
fn number_for(bytes: usize) -> usize {
    let number = (bytes / PART / size_of::<AtomicU64>()).clamp(1, MOST);
    // The greatest power of two that is not above it.
    1 << number.ilog2()
}

impl Counters {
    /// Creates the counters for replies that may take this many bytes.
    pub(super) fn for_memory(bytes: usize) -> Self {
        let size = Size { number: number_for(bytes), first: 0 };
        Self { table: ArcSwapOption::empty(), size: Mutex::new(size), hasher: hasher() }
    }

    /// Replaces the counters if they are too many for this bound, or far too few. Returns whether
    /// it did. Then no earlier note is current.
    pub(super) fn resize(&self, bytes: usize) -> bool {
        let number = number_for(bytes);
        let mut size = lock(&self.size);
        let is_fitting = size.number <= number && number < size.number * MAX_GROWTH;
        if !is_fitting {
            size.number = number;
            preemption_point();
            self.table.store(None);
        }
        !is_fitting
    }

    /// Counts a change of `key`.
    pub(super) fn add(&self, key: &[u8]) {
        preemption_point();
        if let Some(table) = &*self.table.load() {
            table.0[table.index(self.hasher.hash_one(key))].fetch_add(1, Release);
        }
    }

    /// Returns the counter of `key` and its number now.
    pub(super) fn note(&self, key: &[u8]) -> Count {
        preemption_point();
        let table = self.table.load_full().unwrap_or_else(|| self.create());
        let index = table.index(self.hasher.hash_one(key));
        // An index below MOST always fits.
        Count { index: u32::try_from(index).unwrap_or(0), count: table.0[index].load(Acquire) }
    }

    #[cold]
    fn create(&self) -> Arc<Table> {
        let mut size = lock(&self.size);
        // Another thread may have created it.
        self.table.load_full().unwrap_or_else(|| {
            let table = Arc::new(Table::new(*size));
            size.first = size.first.wrapping_add(NUMBERS);
            preemption_point();
            self.table.store(Some(Arc::clone(&table)));
            table
        })
    }

    /// Returns the table that counts now, if a note was taken.
    #[inline]
    pub(super) fn table(&self) -> Guard<Option<Arc<Table>>> {
        preemption_point();
        self.table.load()
    }

    /// Returns the size of the counters once a note was taken, in bytes.
    pub(super) fn size_in_use(&self) -> usize {
        lock(&self.size).number * size_of::<AtomicU64>()
    }

    /// Returns the size of the counters, in bytes.
    pub(super) fn size(&self) -> usize {
        self.table.load().as_ref().map_or(0, |table| size_of_val(&*table.0))
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    fn is_current(counters: &Counters, noted: Count) -> bool {
        counters.table().as_ref().is_some_and(|table| table.is_current(noted))
    }

    #[test]
    fn change_ends_what_was_noted_before_it() {
        let counters = Counters::for_memory(64 << 20);
        let noted = counters.note(b"key");
        assert!(is_current(&counters, noted));
        counters.add(b"key");
        assert!(!is_current(&counters, noted));
        assert!(is_current(&counters, counters.note(b"key")));
    }

    #[test]
    fn keys_rarely_share_a_counter() {
        let counters = Counters::for_memory(64 << 20);
        let noted = counters.note(b"key");
        (0..1000).for_each(|other: u32| counters.add(&other.to_ne_bytes()));
        assert!(is_current(&counters, noted), "1,000 of 1,048,576 counters changed");
    }

    #[test]
    fn unused_counters_take_no_memory() {
        let counters = Counters::for_memory(64 << 20);
        counters.add(b"key");
        assert_eq!(counters.size(), 0);
        counters.note(b"key");
        assert_eq!(counters.size(), 8 << 20);
    }

    #[test]
    fn note_ends_with_its_table() {
        let counters = Counters::for_memory(64 << 20);
        let noted = counters.note(b"key");
        assert!(counters.resize(1 << 20));
        assert_eq!(counters.size(), 0);
        assert!(!is_current(&counters, noted), "without a table");
        let small = counters.note(b"key");
        assert_eq!(counters.size(), 128 << 10);
        assert!(is_current(&counters, small) && !is_current(&counters, noted));
        assert!(counters.resize(64 << 20));
        assert!(is_current(&counters, counters.note(b"key")));
        assert!(!is_current(&counters, noted), "a table of the first size");
    }

    #[test]
    fn table_is_replaced_when_it_is_too_large_or_far_too_small() {
        for (before, after, is_replaced) in [
            (8 << 20, 8 << 20, false),
            (8 << 20, 31 << 20, false),
            (8 << 20, 32 << 20, true),
            (8 << 20, (8 << 20) - 1, true),
            (64 << 20, 1 << 40, false),
            (0, 64 << 20, true),
            (64 << 20, 0, true),
        ] {
            let counters = Counters::for_memory(before);
            assert_eq!(counters.resize(after), is_replaced, "{before} to {after}");
        }
    }
}
