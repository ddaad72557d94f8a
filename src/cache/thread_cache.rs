//! The thread cache: the entries that one thread read most recently, invisible to other threads.
//!
//! A hit takes no lock and looks nowhere else. Each entry carries a mark that shows whether it is
//! still in the store, so removals need not reach the threads. Invariant S3: a removal marks the
//! entry ([`Entry::unlink`]) before it returns. Otherwise a thread cache could serve a removed
//! entry.
//!
//! An occupied way goes to another entry only if that entry is read twice in a row among the keys
//! that compete for the way. Keys that are read rarely therefore do not displace keys that are read
//! often.

use super::entry::Entry;
use super::lru::hash_tag;

/// Number of sets; a key belongs to exactly one set.
const SETS: usize = 8192;
/// Entries per set.
const WAYS: usize = 2;
/// Entries larger than this many bytes are not kept. A removed entry keeps its memory while a
/// thread cache refers to it.
const MAX_ENTRY_SIZE: usize = 400;

/// The entries of one thread.
pub(super) struct ThreadCache(Box<[Set]>);

#[derive(Default)]
struct Set {
    /// The hash tag of each entry.
    tags: [u32; WAYS],
    /// The tag of the last key that was read and is not here.
    candidate: u32,
    entries: [Option<Entry>; WAYS],
}

impl ThreadCache {
    /// Creates a cache for `capacity` keys, at most [`SETS`] sets.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let sets = capacity.clamp(1, SETS).next_power_of_two();
        Self((0..sets).map(|_| Set::default()).collect())
    }

    /// Returns the bytes of the sets.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Returns the entry for `key` if it is here and still in the store.
    #[inline]
    pub(super) fn get(&self, key: &[u8], hash: u64) -> Option<&Entry> {
        let (set, tag) = (&self.0[self.set(hash)], hash_tag(hash));
        let found = set.tags.iter().zip(&set.entries).filter(|(other, _)| **other == tag);
        found
            .filter_map(|(_, entry)| entry.as_ref())
            .find(|entry| entry.is_linked() && entry.key() == key)
    }

    /// Touches the entries with these hashes and returns the hashes that are not here. No load
    /// depends on the previous one, so the processor fetches all of them from memory at the same
    /// time.
    pub(super) fn prefetch(&self, hashes: &[u64]) -> Vec<u64> {
        let (mut touched, mut misses) = (0, Vec::new());
        for hash in hashes {
            let (set, tag) = (&self.0[self.set(*hash)], hash_tag(*hash));
            let found = set.tags.iter().zip(&set.entries).find(|(other, _)| **other == tag);
            match found.and_then(|(_, entry)| entry.as_ref()) {
                Some(entry) => touched ^= entry.touch(),
                None => misses.push(*hash),
            }
        }
        std::hint::black_box(touched);
        misses
    }

    /// Offers an entry that was read but is not here.
    pub(super) fn offer(&mut self, entry: &Entry, hash: u64) {
        let (at, tag) = (self.set(hash), hash_tag(hash));
        let set = &mut self.0[at];
        let has_room = set.entries.iter().any(Option::is_none);
        if (has_room || set.candidate == tag) && entry.size() <= MAX_ENTRY_SIZE {
            let is_free =
                |entry: &Option<Entry>| entry.as_ref().is_none_or(|entry| !entry.is_linked());
            let victim = set.entries.iter().position(is_free).unwrap_or(WAYS - 1);
            set.tags[..=victim].rotate_right(1);
            set.entries[..=victim].rotate_right(1);
            (set.tags[0], set.entries[0]) = (tag, Some(entry.clone()));
        }
        set.candidate = tag;
    }

    /// Selects the set by the middle of the hash, because the tag is its low end.
    fn set(&self, hash: u64) -> usize {
        usize::try_from(hash >> 32).unwrap_or(0) & (self.0.len() - 1)
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::super::policy::hash_bits;
    use super::*;
    use crate::key::Key;

    /// The bits of a hash that nodes have no room for must not choose the set.
    #[test]
    fn keys_use_every_set() {
        let thread_cache = ThreadCache::with_capacity(usize::MAX);
        let sets = (0..SETS as u64).map(|set| thread_cache.set(hash_bits(set << 32 | set)));
        assert_eq!(sets.collect::<BTreeSet<_>>().len(), SETS);
    }

    fn entry(key: &str, value: &[u8]) -> Entry {
        let entry =
            Entry::new(&Key::from(key.as_bytes()), Some(Bytes::copy_from_slice(value)), 0, None);
        entry.set_index(0);
        entry
    }

    #[test]
    fn thread_cache_serves_until_store_removal() {
        let mut cache = ThreadCache::with_capacity(100);
        let entry = entry("k", b"v");
        assert!(cache.get(b"k", 7).is_none());
        cache.offer(&entry, 7);
        assert!(cache.get(b"k", 7).is_some_and(|found| found.is_same(&entry)));
        assert!(cache.get(b"other", 7).is_none(), "of another key that has the same hash");
        assert!(cache.get(b"k", 8).is_none());
        entry.unlink();
        assert!(cache.get(b"k", 7).is_none());
    }

    #[test]
    fn keys_read_once_displace_nothing() {
        let mut cache = ThreadCache::with_capacity(1);
        let hot = [(entry("a", b"1"), 1), (entry("b", b"2"), 2)];
        for (entry, hash) in &hot {
            (0..2).for_each(|_| cache.offer(entry, *hash));
        }
        (10..1000).for_each(|hash| cache.offer(&entry(&hash.to_string(), b"v"), hash));
        assert!(cache.get(b"a", 1).is_some() && cache.get(b"b", 2).is_some());
        hot[1].0.unlink();
        let candidate = entry("d", b"4");
        (0..2).for_each(|_| cache.offer(&candidate, 4));
        assert!(cache.get(b"a", 1).is_some() && cache.get(b"d", 4).is_some(), "there was a place");
        let candidate = entry("c", b"3");
        (0..2).for_each(|_| cache.offer(&candidate, 3));
        assert!(
            cache.get(b"a", 1).is_none()
                && cache.get(b"d", 4).is_some()
                && cache.get(b"c", 3).is_some()
        );
    }

    #[test]
    fn large_values_are_not_kept() {
        let mut cache = ThreadCache::with_capacity(10);
        let entry = entry("k", &[b'v'; MAX_ENTRY_SIZE]);
        (0..3).for_each(|_| cache.offer(&entry, 1));
        assert!(cache.get(b"k", 1).is_none());
        assert_eq!(entry.handles(), 1);
    }
}
