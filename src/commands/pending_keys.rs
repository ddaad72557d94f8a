//! The keys of the reads that a client waits for.

use std::collections::VecDeque;

use ahash::RandomState;

/// The keys of pending reads, in the order of the reads.
///
/// A key is represented by its hash. Two keys with the same hash cost a read a wait, and nothing
/// else.
#[derive(Debug, Default)]
pub struct PendingKeys {
    hashes: VecDeque<u64>,
    hasher: RandomState,
}

impl PendingKeys {
    /// Adds the keys of one read, behind those of the reads before it. Returns their number.
    pub fn add<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>) -> usize {
        let before = self.hashes.len();
        self.hashes.extend(keys.map(|key| self.hasher.hash_one(key)));
        self.hashes.len() - before
    }

    /// Removes the first `count` keys.
    pub fn remove_first(&mut self, count: usize) {
        self.hashes.drain(..count.min(self.hashes.len()));
    }

    /// Whether a pending read may have this key.
    pub fn may_contain(&self, key: &[u8]) -> bool {
        self.hashes.contains(&self.hasher.hash_one(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_leave_in_the_order_of_their_reads() {
        let mut pending = PendingKeys::default();
        let contains =
            |pending: &PendingKeys| ["a", "b", "c"].map(|key| pending.may_contain(key.as_bytes()));
        assert_eq!(pending.add([&b"a"[..], b"b"].into_iter()), 2);
        assert_eq!(pending.add([&b"c"[..]].into_iter()), 1);
        assert_eq!(contains(&pending), [true, true, true]);
        pending.remove_first(2);
        assert_eq!(contains(&pending), [false, false, true]);
        pending.remove_first(5);
        assert_eq!(contains(&pending), [false; 3]);
    }
}
