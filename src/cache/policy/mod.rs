//! The choice of the entry to evict, without the entries: it knows hashes and nodes only.

mod frequency_sketch;
mod ghosts;
mod segments;
mod trials;
mod window_tiny_lfu;

use self::frequency_sketch::FrequencySketch;
pub(super) use self::segments::{Segment, Segments, hash_bits};
use self::trials::Trials;
use self::window_tiny_lfu::WindowTinyLfu;
use super::entry::LruIndex;

/// The largest capacity, in entries.
pub(super) const CAPACITY_MAX: usize = segments::NODES_MAX;

/// Adaptive windowed `TinyLFU`: the rules of `window_tiny_lfu`, divided as `trials` finds best.
pub(super) struct AdaptiveTinyLfu {
    /// The keys that sketch and trials are made for.
    capacity: usize,
    sketch: FrequencySketch,
    trials: Trials,
    cache: WindowTinyLfu,
}

impl AdaptiveTinyLfu {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let trials = Trials::with_capacity(capacity);
        Self {
            capacity,
            sketch: FrequencySketch::with_capacity(capacity),
            cache: WindowTinyLfu::new(capacity, trials.selected()),
            trials,
        }
    }

    /// Records a read of the linked node at `index`.
    pub(super) fn record_read(&mut self, nodes: &mut Segments, index: LruIndex, hash: u64) {
        self.record_access(hash);
        self.cache.record_read(nodes, index);
    }

    /// Adds a node for a new key. The list may then have one node too many.
    pub(super) fn add(&mut self, nodes: &mut Segments, hash: u64) -> LruIndex {
        self.record_access(hash);
        self.cache.add(nodes, hash)
    }

    fn record_access(&mut self, hash: u64) {
        self.sketch.increment(hash);
        if let Some(division) = self.trials.read(hash, &self.sketch) {
            self.cache.divide(division);
        }
    }

    /// Returns the node to evict after an insertion, if there are more than `max`.
    pub(super) fn victim(&mut self, nodes: &mut Segments, max: usize) -> Option<LruIndex> {
        if nodes.len() > max {
            self.fit(max);
        }
        self.cache.victim(nodes, &self.sketch, max)
    }

    /// Returns a node to evict if there are more than `max`, whatever was inserted last.
    pub(super) fn surplus(&self, nodes: &Segments, max: usize) -> Option<LruIndex> {
        self.cache.surplus(nodes, max)
    }

    /// Fits the policy to the keys that the cache has room for. Where memory limits them, their
    /// number depends on the values. A policy made for twice or half as many starts empty, because
    /// its sketch would forget too late or too early.
    fn fit(&mut self, capacity: usize) {
        let is_near = (self.capacity / 2..=self.capacity.saturating_mul(2)).contains(&capacity);
        if is_near {
            self.cache.resize(capacity);
        } else {
            *self = Self::with_capacity(capacity);
        }
    }

    /// Returns the bytes beside the nodes.
    pub(super) fn memory(&self) -> usize {
        self.sketch.memory() + self.cache.memory() + self.trials.memory()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A cache of keys without values.
    struct Keys {
        policy: AdaptiveTinyLfu,
        nodes: Segments,
        capacity: usize,
        stored: HashMap<u64, LruIndex>,
    }

    impl Keys {
        fn with_capacity(capacity: usize) -> Self {
            let policy = AdaptiveTinyLfu::with_capacity(capacity);
            Self { policy, nodes: Segments::new(), capacity, stored: HashMap::new() }
        }

        /// Reads a key. Returns whether it was there.
        fn read(&mut self, key: u64) -> bool {
            let hash = hash_bits((key + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
            if let Some(index) = self.stored.get(&hash) {
                self.policy.record_read(&mut self.nodes, *index, hash);
                return true;
            }
            self.stored.insert(hash, self.policy.add(&mut self.nodes, hash));
            if let Some(victim) = self.policy.victim(&mut self.nodes, self.capacity) {
                self.stored.remove(&self.nodes.linked_hash(victim).unwrap());
                self.nodes.begin_evict(victim);
                self.nodes.release(victim);
            }
            false
        }

        /// Returns the hits, in percent.
        fn play(&mut self, keys: impl Iterator<Item = u64>) -> usize {
            let (mut reads, mut hits) = (0, 0);
            for key in keys {
                reads += 1;
                hits += usize::from(self.read(key));
            }
            100 * hits / reads
        }
    }

    const CAPACITY: usize = 500;

    /// Each key is read four times, with 439 other keys in between, and then never again.
    fn moving() -> impl Iterator<Item = u64> {
        (0..40_000_u64).flat_map(|turn| [0, 110, 220, 330].map(|ago| turn.saturating_sub(ago)))
    }

    /// All keys again and again, more than fit.
    fn looping() -> impl Iterator<Item = u64> {
        (0..40_000_u64).map(|turn| 1_000_000 + turn % (CAPACITY as u64 + 100))
    }

    #[test]
    fn loop_larger_than_the_cache_has_hits() {
        let percent = Keys::with_capacity(CAPACITY).play(looping());
        assert!(percent >= 75, "{percent} %, of 83 % possible and 0 % of lru");
    }

    #[test]
    fn moving_working_set_has_the_hits_of_lru() {
        let percent = Keys::with_capacity(CAPACITY).play(moving());
        assert!(percent >= 74, "{percent} %, of 75 % possible");
    }

    #[test]
    fn division_follows_a_change_of_load() {
        let mut keys = Keys::with_capacity(CAPACITY);
        for _ in 0..2 {
            let percent = keys.play(looping());
            assert!(percent >= 50, "{percent} % of the loop");
            let percent = keys.play(moving());
            assert!(percent >= 70, "{percent} % of the moving set");
        }
    }

    #[test]
    fn scan_does_not_displace_what_is_read_often() {
        let mut keys = Keys::with_capacity(CAPACITY);
        let often = || (0..10_000).map(|turn: u64| turn * 7 % 300);
        keys.play(often());
        keys.play(5_000..25_000);
        let percent = keys.play(often().take(300));
        assert!(percent >= 75, "{percent} % after the scan");
    }
}
