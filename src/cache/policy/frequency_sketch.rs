//! Approximate, recent access frequencies of keys, in a few bits per key (`TinyLFU`).
//!
//! A count-min sketch of counters up to 15. Each key has four of them. The smallest is the best
//! estimate, and is never too low before the counters are halved. After ten accesses per key of
//! capacity, all counters are halved, so old accesses fade.
//!
//! Einziger, Friedman, Manes: "`TinyLFU`, a highly efficient cache admission policy" (ACM TOS
//! 2017).

/// Counters of four bits, sixteen per word.
pub(super) struct FrequencySketch {
    words: Box<[u64]>,
    increments: usize,
    sample: usize,
}

/// Maximum number of words: 128 MiB. A larger sketch would add too little precision for its memory.
const MAX_WORDS: usize = 1 << 24;
/// Odd factors that spread a hash in four ways.
const SEEDS: [u64; 4] =
    [0xc3a5_c85c_97cb_3127, 0xb492_b66f_be98_f273, 0x9ae1_6a3b_2f90_404f, 0xcbf2_9ce4_8422_2325];
const MAX_COUNT: u64 = 15;

impl FrequencySketch {
    /// Creates a sketch for a cache of `capacity` keys.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let words = (capacity / 4 * 3).clamp(16, MAX_WORDS);
        Self {
            words: vec![0; words].into(),
            increments: 0,
            sample: capacity.max(16).saturating_mul(10),
        }
    }

    /// Returns the bytes of the counters.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Counts one access to a key with this hash.
    pub(super) fn increment(&mut self, hash: u64) {
        for seed in SEEDS {
            let (word, shift) = self.counter(hash, seed);
            if (self.words[word] >> shift) & MAX_COUNT < MAX_COUNT {
                self.words[word] += 1 << shift;
            }
        }
        self.increments += 1;
        if self.increments >= self.sample {
            self.increments /= 2;
            self.words.iter_mut().for_each(|word| *word = (*word >> 1) & 0x7777_7777_7777_7777);
        }
    }

    /// Returns the approximate number of recent accesses, 0 to 15.
    pub(super) fn estimate(&self, hash: u64) -> u64 {
        let counts = SEEDS.map(|seed| {
            let (word, shift) = self.counter(hash, seed);
            (self.words[word] >> shift) & MAX_COUNT
        });
        counts.into_iter().min().unwrap_or(0)
    }

    /// Returns the position of the hash's counter: the index of its word, and its shift in bits.
    fn counter(&self, hash: u64, seed: u64) -> (usize, u64) {
        let spread = (hash ^ (hash >> 32)).wrapping_mul(seed);
        let word = ((spread >> 32) * self.words.len() as u64) >> 32;
        (usize::try_from(word).unwrap_or(0), ((spread >> 28) & 15) * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sketch_never_undercounts_rarely_overcounts() {
        let mut sketch = FrequencySketch::with_capacity(1000);
        for hash in 0..1000_u64 {
            (0..hash % 8).for_each(|_| sketch.increment(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        let counts = (0..1000_u64)
            .map(|hash| (hash % 8, sketch.estimate(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        assert!(counts.clone().all(|(increments, count)| count >= increments));
        let exact = counts.filter(|(increments, count)| count == increments).count();
        assert!(exact > 950, "{exact} of 1000");
    }

    #[test]
    fn old_counts_decay() {
        let mut sketch = FrequencySketch::with_capacity(16);
        (0..20).for_each(|_| sketch.increment(1));
        assert_eq!(sketch.estimate(1), MAX_COUNT);
        (0..400_u64).for_each(|hash| sketch.increment(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert!(sketch.estimate(1) < MAX_COUNT);
    }
}
