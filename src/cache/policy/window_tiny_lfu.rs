//! The rules of windowed `TinyLFU`, with ghosts: which node moves, and which is evicted.
//!
//! A new key enters the window, the newest part of the cache. A key that leaves the window stays
//! only if it was read more often than the victim: the key that has been in probation for longest.
//! A key that was read twice while it was in the window stays in any case. A read in probation
//! protects a key; protected keys are at most four fifths of what is outside the window. A key that
//! returns soon after its eviction enters probation at once.
//!
//! A [`Division`] is the size of the window, and whether ghosts count. The best division depends on
//! the load: `trials` selects one.

use super::super::entry::LruIndex;
use super::frequency_sketch::FrequencySketch;
use super::ghosts::Ghosts;
use super::segments::{Segment, Segments};

/// The sizes of the segments of a cache, and the use of ghosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Division {
    /// The window, in hundredths of the capacity.
    pub(super) window: usize,
    /// Whether a key that was evicted lately skips the window.
    pub(super) uses_ghosts: bool,
}

/// Nodes that leave an oversized window in one insertion, so that no insertion takes long after the
/// division has changed.
const MOVES_MAX: usize = 16;

/// The divided cache, apart from its nodes.
pub(super) struct WindowTinyLfu {
    capacity: usize,
    division: Division,
    window: usize,
    protected: usize,
    ghosts: Ghosts,
}

impl WindowTinyLfu {
    pub(super) fn new(capacity: usize, division: Division) -> Self {
        let ghosts = Ghosts::with_capacity(capacity / 2);
        let mut divided = Self { capacity, division, window: 0, protected: 0, ghosts };
        divided.divide(division);
        divided
    }

    /// Changes the number of keys that the division refers to. No node moves until the next
    /// insertions and reads.
    pub(super) fn resize(&mut self, capacity: usize) {
        if self.capacity != capacity {
            self.capacity = capacity;
            self.divide(self.division);
        }
    }

    /// Returns the bytes of the ghosts.
    pub(super) fn memory(&self) -> usize {
        self.ghosts.memory()
    }

    /// Changes the division. No node moves until the next insertions and reads.
    pub(super) fn divide(&mut self, division: Division) {
        self.division = division;
        self.window = (self.capacity.saturating_mul(division.window) / 100).max(1);
        self.protected = self.capacity.saturating_sub(self.window) / 5 * 4;
    }

    /// Records a read of the linked node at `index`.
    pub(super) fn record_read(&self, nodes: &mut Segments, index: LruIndex) {
        match nodes.segment(index) {
            Segment::Window => {
                nodes.count_read(index);
                nodes.move_to(Segment::Window, index);
            }
            Segment::Probation | Segment::Protected => {
                nodes.move_to(Segment::Protected, index);
                // Two, so that an oversized segment shrinks with each read.
                self.shrink_protected(nodes);
                self.shrink_protected(nodes);
            }
        }
    }

    fn shrink_protected(&self, nodes: &mut Segments) {
        if nodes.len_of(Segment::Protected) > self.protected
            && let Some(oldest) = nodes.oldest(Segment::Protected)
        {
            nodes.move_to(Segment::Probation, oldest);
        }
    }

    /// Adds a node for a new key. The cache may then have one node too many.
    pub(super) fn add(&mut self, nodes: &mut Segments, hash: u64) -> LruIndex {
        let returns = self.ghosts.remove(hash) && self.division.uses_ghosts;
        nodes.add(if returns { Segment::Probation } else { Segment::Window }, hash)
    }

    /// Moves keys out of an oversized window. Returns the node to evict if there are more than
    /// `max`. The caller takes it away.
    pub(super) fn victim(
        &mut self,
        nodes: &mut Segments,
        sketch: &FrequencySketch,
        max: usize,
    ) -> Option<LruIndex> {
        let is_full = nodes.len() > max;
        for _ in 0..MOVES_MAX {
            let surplus = nodes.len_of(Segment::Window).saturating_sub(self.window);
            let Some(candidate) = nodes.oldest(Segment::Window).filter(|_| surplus > 0) else {
                break;
            };
            if is_full && surplus == 1 {
                let victim = Self::contest(nodes, sketch, candidate);
                return Some(self.remember(victim, nodes));
            }
            nodes.move_to(Segment::Probation, candidate);
        }
        let victim = self.surplus(nodes, max)?;
        Some(self.remember(victim, nodes))
    }

    /// Remembers the hash of a victim, and returns the victim.
    fn remember(&mut self, victim: LruIndex, nodes: &Segments) -> LruIndex {
        self.ghosts.insert(nodes.hash(victim));
        victim
    }

    /// Returns the node to evict, the oldest one of the window or of the rest. The other one stays
    /// or moves to probation.
    fn contest(nodes: &mut Segments, sketch: &FrequencySketch, candidate: LruIndex) -> LruIndex {
        let rest = nodes.oldest(Segment::Probation).or_else(|| nodes.oldest(Segment::Protected));
        let Some(victim) = rest else { return candidate };
        let wins = nodes.reads(candidate) >= 2
            || sketch.estimate(nodes.hash(candidate)) > sketch.estimate(nodes.hash(victim));
        if !wins {
            return candidate;
        }
        nodes.move_to(Segment::Probation, candidate);
        victim
    }

    /// Returns a node to evict if there are more than `max`, without a contest.
    pub(super) fn surplus(&self, nodes: &Segments, max: usize) -> Option<LruIndex> {
        if nodes.len() <= max {
            return None;
        }
        let window_first = nodes.len_of(Segment::Window) > self.window + MOVES_MAX;
        let order = if window_first {
            [Segment::Window, Segment::Probation, Segment::Protected]
        } else {
            [Segment::Probation, Segment::Protected, Segment::Window]
        };
        order.into_iter().find_map(|segment| nodes.oldest(segment))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The same rules on plain queues of hashes and reads, the newest first.
    struct Model {
        capacity: usize,
        window_max: usize,
        protected_max: usize,
        uses_ghosts: bool,
        window: VecDeque<(u64, u64)>,
        probation: VecDeque<u64>,
        protected: VecDeque<u64>,
        ghosts: Ghosts,
    }

    impl Model {
        fn new(capacity: usize, division: Division) -> Self {
            let window_max = (capacity * division.window / 100).max(1);
            Self {
                capacity,
                window_max,
                protected_max: (capacity - window_max) / 5 * 4,
                uses_ghosts: division.uses_ghosts,
                window: VecDeque::new(),
                probation: VecDeque::new(),
                protected: VecDeque::new(),
                ghosts: Ghosts::with_capacity(capacity / 2),
            }
        }

        fn len(&self) -> usize {
            self.window.len() + self.probation.len() + self.protected.len()
        }

        /// Reads a key. Returns whether it was there.
        fn read(&mut self, hash: u64, sketch: &FrequencySketch) -> bool {
            if let Some(at) = self.window.iter().position(|(other, _)| *other == hash) {
                let (_, reads) = self.window.remove(at).unwrap();
                self.window.push_front((hash, (reads + 1).min(3)));
                return true;
            }
            if self.probation.contains(&hash) || self.protected.contains(&hash) {
                self.probation.retain(|other| *other != hash);
                self.protected.retain(|other| *other != hash);
                self.protected.push_front(hash);
                if self.protected.len() > self.protected_max {
                    self.probation.push_front(self.protected.pop_back().unwrap());
                }
                return true;
            }
            if self.ghosts.remove(hash) && self.uses_ghosts {
                self.probation.push_front(hash);
            } else {
                self.window.push_front((hash, 0));
            }
            self.evict(sketch);
            false
        }

        fn evict(&mut self, sketch: &FrequencySketch) {
            let is_full = self.len() > self.capacity;
            let mut victim = None;
            if self.window.len() > self.window_max {
                let (candidate, reads) = self.window.pop_back().unwrap();
                let rest = self.probation.back().or(self.protected.back()).copied();
                let stays = !is_full
                    || rest.is_some_and(|rest| {
                        reads >= 2 || sketch.estimate(candidate) > sketch.estimate(rest)
                    });
                if stays {
                    self.probation.push_front(candidate);
                }
                victim = is_full.then(|| if stays { rest.unwrap() } else { candidate });
            } else if is_full {
                victim = self.probation.back().or(self.protected.back()).copied();
            }
            if let Some(victim) = victim {
                self.probation.retain(|hash| *hash != victim);
                self.protected.retain(|hash| *hash != victim);
                self.ghosts.insert(victim);
            }
        }
    }

    fn hashes(nodes: &Segments, segment: Segment) -> Vec<u64> {
        nodes.indices(segment).into_iter().rev().map(|index| nodes.hash(index)).collect()
    }

    fn spread(key: u64) -> u64 {
        super::super::hash_bits((key + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    proptest! {
        #[test]
        fn segments_match_the_model(
            capacity in 2..40_usize,
            window in prop_oneof![Just(1_usize), Just(10), Just(50), Just(100)],
            uses_ghosts: bool,
            keys in prop::collection::vec(0..80_u64, 1..400),
        ) {
            let division = Division { window, uses_ghosts };
            let mut sketch = FrequencySketch::with_capacity(capacity);
            let mut model = Model::new(capacity, division);
            let (mut nodes, mut cache) = (Segments::new(), WindowTinyLfu::new(capacity, division));
            for key in keys {
                let hash = spread(key);
                sketch.increment(hash);
                let hit = model.read(hash, &sketch);
                let mut all = (0..u32::try_from(capacity + 1).unwrap())
                    .filter(|index| nodes.linked_hash(*index) == Some(hash));
                let found = all.next();
                prop_assert_eq!(found.is_some(), hit);
                if let Some(index) = found {
                    cache.record_read(&mut nodes, index);
                } else {
                    cache.add(&mut nodes, hash);
                    if let Some(victim) = cache.victim(&mut nodes, &sketch, capacity) {
                        nodes.begin_evict(victim);
                        nodes.release(victim);
                    }
                }
                let window: Vec<_> = model.window.iter().map(|(hash, _)| *hash).collect();
                prop_assert_eq!(hashes(&nodes, Segment::Window), window);
                let probation = Vec::from(model.probation.clone());
                prop_assert_eq!(hashes(&nodes, Segment::Probation), probation);
                let protected = Vec::from(model.protected.clone());
                prop_assert_eq!(hashes(&nodes, Segment::Protected), protected);
                prop_assert!(nodes.len() <= capacity);
            }
        }

        /// Whatever the divisions and removals are, no key is lost and the capacity holds.
        #[test]
        fn capacity_holds_while_the_division_changes(
            steps in prop::collection::vec((0..60_u64, 0..20_u8), 1..400),
        ) {
            const CAPACITY: usize = 20;
            let divisions = [1, 10, 50, 100]
                .map(|window| Division { window, uses_ghosts: window % 20 != 0 });
            let mut sketch = FrequencySketch::with_capacity(CAPACITY);
            let mut nodes = Segments::new();
            let mut cache = WindowTinyLfu::new(CAPACITY, divisions[1]);
            let mut stored: std::collections::HashMap<u64, LruIndex> = [].into();
            for (key, step) in steps {
                let hash = spread(key);
                sketch.increment(hash);
                match (step, stored.get(&hash).copied()) {
                    (0..4, _) => cache.divide(divisions[usize::from(step)]),
                    (4, Some(index)) => {
                        stored.remove(&hash);
                        nodes.begin_evict(index);
                        nodes.release(index);
                    }
                    (_, Some(index)) => cache.record_read(&mut nodes, index),
                    (_, None) => {
                        stored.insert(hash, cache.add(&mut nodes, hash));
                        if let Some(victim) = cache.victim(&mut nodes, &sketch, CAPACITY) {
                            stored.remove(&nodes.hash(victim));
                            nodes.begin_evict(victim);
                            nodes.release(victim);
                        }
                    }
                }
                prop_assert_eq!(nodes.len(), stored.len());
                prop_assert!(nodes.len() <= CAPACITY);
                for (hash, index) in &stored {
                    prop_assert_eq!(nodes.linked_hash(*index), Some(*hash));
                }
            }
        }
    }
}
