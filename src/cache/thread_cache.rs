//! What one thread read most of late, where no other thread looks.
//!
//! A read that finds its entry here takes no lock and looks nowhere else. An entry says itself whether it is still in the
//! store, so nobody has to tell the threads when one leaves it. That is the rule that must not be broken: whoever takes an
//! entry out of the store [says so](Entry::unlink) before anybody may rely on its being gone.
//!
//! A place that somebody has is given to another entry when that is asked for twice in a row among those that would have the
//! place, so keys of which each is read seldom leave those alone that are read often.

use std::sync::Arc;

use super::entry::Entry;
use super::lru::hash_tag;

/// Sets of entries; a key may be in one of them only.
const SETS: usize = 8192;
/// Entries of a set.
const WAYS: usize = 2;
/// Larger entries are not kept here, since what has left the store keeps its memory for as long as it is.
const MAX_ENTRY_SIZE: usize = 400;

/// The entries of one thread.
pub(super) struct ThreadCache(Box<[Set]>);

#[derive(Default)]
struct Set {
    /// Of the hash of each.
    tags: [u32; WAYS],
    /// That of the key that was read last and is not here.
    candidate: u32,
    entries: [Option<Arc<Entry>>; WAYS],
}

impl ThreadCache {
    /// With room for this many keys, or as many as are worth it.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let sets = capacity.clamp(1, SETS).next_power_of_two();
        Self((0..sets).map(|_| Set::default()).collect())
    }

    /// The entry for `key`, if it is here and still in the store.
    #[inline]
    pub(super) fn get(&self, key: &[u8], hash: u64) -> Option<&Arc<Entry>> {
        let (set, tag) = (&self.0[self.set(hash)], hash_tag(hash));
        let found = set.tags.iter().zip(&set.entries).filter(|(other, _)| **other == tag);
        found
            .filter_map(|(_, entry)| entry.as_ref())
            .find(|entry| entry.is_linked() && entry.key() == key)
    }

    /// Touches what will be read for keys with these hashes, if it is here, and returns the others. Nothing waits for one of them
    /// before it asks for the next, so the processor has them all fetched from memory at the same time.
    pub(super) fn prefetch(&self, hashes: impl Iterator<Item = u64>) -> Vec<u64> {
        let (mut touched, mut misses) = (0, Vec::new());
        for hash in hashes {
            let (set, tag) = (&self.0[self.set(hash)], hash_tag(hash));
            let found = set.tags.iter().zip(&set.entries).find(|(other, _)| **other == tag);
            match found.and_then(|(_, entry)| entry.as_ref()) {
                Some(entry) => touched ^= entry.touch(),
                None => misses.push(hash),
            }
        }
        std::hint::black_box(touched);
        misses
    }

    /// An entry was read that is not here.
    pub(super) fn offer(&mut self, entry: &Arc<Entry>, hash: u64) {
        let (at, tag) = (self.set(hash), hash_tag(hash));
        let set = &mut self.0[at];
        let has_room = set.entries.iter().any(Option::is_none);
        if (has_room || set.candidate == tag) && entry.size() <= MAX_ENTRY_SIZE {
            let is_free =
                |entry: &Option<Arc<Entry>>| entry.as_ref().is_none_or(|entry| !entry.is_linked());
            let victim = set.entries.iter().position(is_free).unwrap_or(WAYS - 1);
            set.tags[..=victim].rotate_right(1);
            set.entries[..=victim].rotate_right(1);
            (set.tags[0], set.entries[0]) = (tag, Some(Arc::clone(entry)));
        }
        set.candidate = tag;
    }

    /// By the middle of the hash, since the tag is its end.
    fn set(&self, hash: u64) -> usize {
        usize::try_from(hash >> 32).unwrap_or(0) & (self.0.len() - 1)
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key::Key;

    fn entry(key: &str, value: &[u8]) -> Arc<Entry> {
        let entry =
            Entry::new(&Key::from(key.as_bytes()), Some(Bytes::copy_from_slice(value)), 0, None);
        entry.set_index(0);
        entry
    }

    #[test]
    fn what_was_read_is_here_until_it_leaves_the_store() {
        let mut cache = ThreadCache::with_capacity(100);
        let entry = entry("k", b"v");
        assert!(cache.get(b"k", 7).is_none());
        cache.offer(&entry, 7);
        assert!(cache.get(b"k", 7).is_some_and(|found| Arc::ptr_eq(found, &entry)));
        assert!(cache.get(b"other", 7).is_none(), "of another key that has the same hash");
        assert!(cache.get(b"k", 8).is_none());
        entry.unlink();
        assert!(cache.get(b"k", 7).is_none());
    }

    #[test]
    fn keys_that_are_read_once_drive_out_nobody() {
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
    fn large_values_are_not_held() {
        let mut cache = ThreadCache::with_capacity(10);
        let entry = entry("k", &[b'v'; MAX_ENTRY_SIZE]);
        (0..3).for_each(|_| cache.offer(&entry, 1));
        assert!(cache.get(b"k", 1).is_none());
        assert_eq!(Arc::strong_count(&entry), 1);
    }
}
