//! The hashes of keys that were evicted lately.
//!
//! A hash is kept as a tag of 32 bits. The tags are in buckets of eight, each ordered from the
//! newest to the oldest, so that together they forget nearly the oldest first. Two keys with one
//! tag in one bucket are taken for the same; that is rare, and only moves a key to another segment.

/// Tags per bucket.
const WAYS: usize = 8;

/// The hashes of the keys evicted last.
pub(super) struct Ghosts(Box<[[u32; WAYS]]>);

impl Ghosts {
    /// Creates room for nearly this many hashes.
    pub(super) fn with_capacity(hashes: usize) -> Self {
        Self(vec![[0; WAYS]; hashes.div_ceil(WAYS).max(1)].into())
    }

    /// Returns the bytes of the tags.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.0)
    }

    pub(super) fn insert(&mut self, hash: u64) {
        let (bucket, tag) = self.place(hash);
        bucket.rotate_right(1);
        bucket[0] = tag;
    }

    /// Removes the hash. Returns whether it was there.
    pub(super) fn remove(&mut self, hash: u64) -> bool {
        let (bucket, tag) = self.place(hash);
        let Some(at) = bucket.iter().position(|other| *other == tag) else { return false };
        bucket[at..].rotate_left(1);
        bucket[WAYS - 1] = 0;
        true
    }

    #[expect(clippy::cast_possible_truncation, reason = "a part of the hash is wanted")]
    fn place(&mut self, hash: u64) -> (&mut [u32; WAYS], u32) {
        let spread = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let index = (u128::from(spread) * self.0.len() as u128) >> 64;
        // A tag of 0 is no tag.
        (&mut self.0[index as usize], (spread as u32 ^ hash as u32) | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn ghost_is_found_once() {
        let mut ghosts = Ghosts::with_capacity(10);
        ghosts.insert(hash(1));
        ghosts.insert(hash(2));
        assert!(ghosts.remove(hash(1)));
        assert!(!ghosts.remove(hash(1)));
        assert!(ghosts.remove(hash(2)));
        assert!(!ghosts.remove(hash(3)));
    }

    #[test]
    fn oldest_ghosts_are_forgotten_first() {
        let mut ghosts = Ghosts::with_capacity(1000);
        (0..10_000).for_each(|number| ghosts.insert(hash(number)));
        let found = |ghosts: &mut Ghosts, from: u64, to: u64| {
            (from..to).filter(|number| ghosts.remove(hash(*number))).count()
        };
        let recent = found(&mut ghosts, 9_500, 10_000);
        assert!(recent > 450, "{recent} of the last 500");
        let old = found(&mut ghosts, 0, 8_000);
        assert!(old < 100, "{old} of the first 8,000");
    }
}
