//! Trials: small caches that try the divisions of `window_tiny_lfu` on a sample of the keys.
//!
//! No single division is best for every load: loops and scans want a small window, and a working
//! set that moves wants plain LRU. Each trial is a cache of up to 1,023 keys, without values, with
//! a division of its own. It sees a sample of the keys that is smaller in the same ratio as it is
//! itself, so its share of hits estimates that of the whole cache. The division whose trial had the
//! most hits lately is used.

use std::collections::HashMap;

use super::super::entry::LruIndex;
use super::frequency_sketch::FrequencySketch;
use super::segments::Segments;
use super::window_tiny_lfu::{Division, WindowTinyLfu};

/// The divisions that are tried.
const DIVISIONS: [Division; 4] = [
    Division { window: 1, uses_ghosts: false },
    Division { window: 10, uses_ghosts: true },
    Division { window: 50, uses_ghosts: true },
    Division { window: 100, uses_ghosts: false },
];
/// The division in use until the trials have seen anything.
const FIRST: usize = 1;
/// A trial has fewer keys than this.
const KEYS_MAX: usize = 1024;
/// The bytes of a key in a trial: its node, its place in the map, and half a ghost.
const TRIAL_KEY: usize = 56;
/// The worth of one hit in a score.
const HIT: u64 = 1 << 16;
/// Each round a score loses this part, so that hits of long ago fade.
const FADE: u64 = 100;

/// One small cache.
struct Trial {
    capacity: usize,
    /// The node of each hash.
    keys: HashMap<u64, LruIndex, ahash::RandomState>,
    nodes: Segments,
    cache: WindowTinyLfu,
    score: u64,
}

impl Trial {
    fn read(&mut self, hash: u64, sketch: &FrequencySketch) {
        let Self { capacity, keys, nodes, cache, score } = self;
        if let Some(index) = keys.get(&hash) {
            *score += HIT;
            cache.record_read(nodes, *index);
            return;
        }
        keys.insert(hash, cache.add(nodes, hash));
        if let Some(victim) = cache.victim(nodes, sketch, *capacity) {
            keys.remove(&nodes.hash(victim));
            nodes.begin_evict(victim);
            nodes.release(victim);
        }
    }
}

/// The trials of all divisions.
pub(super) struct Trials {
    all: [Trial; DIVISIONS.len()],
    selected: usize,
    /// Sampled are the hashes that have none of these bits after a multiplication.
    sample: u64,
    /// Reads until the scores are compared again.
    left: usize,
    round: usize,
}

impl Trials {
    /// Creates the trials for a cache of `capacity` keys.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let mut halvings = 0;
        while capacity >> halvings >= KEYS_MAX {
            halvings += 1;
        }
        let round = (capacity / 10).max(10);
        let trial = |division| Trial {
            capacity: capacity >> halvings,
            keys: HashMap::default(),
            nodes: Segments::new(),
            cache: WindowTinyLfu::new(capacity >> halvings, division),
            score: 0,
        };
        let sample = ((1_u64 << halvings) - 1) << (64 - halvings.max(1));
        Self { all: DIVISIONS.map(trial), selected: FIRST, sample, left: round, round }
    }

    /// Returns the bytes of full trials.
    pub(super) fn memory(&self) -> usize {
        self.all.iter().map(|trial| trial.capacity * TRIAL_KEY).sum()
    }

    pub(super) fn selected(&self) -> Division {
        DIVISIONS[self.selected]
    }

    /// Records a read of a key with this hash, whether it was a hit or not. Returns the division
    /// to change to, if another one has become better.
    pub(super) fn read(&mut self, hash: u64, sketch: &FrequencySketch) -> Option<Division> {
        if hash.wrapping_mul(0x9fb2_1c65_1e98_df25) & self.sample == 0 {
            self.all.iter_mut().for_each(|trial| trial.read(hash, sketch));
        }
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        self.left = self.round;
        self.select()
    }

    fn select(&mut self) -> Option<Division> {
        let before = self.selected;
        let score = self.all[before].score;
        let best = (0..DIVISIONS.len()).max_by_key(|trial| self.all[*trial].score)?;
        // By more than the noise of a sample. Otherwise noise would change the division, and each
        // change costs hits.
        if self.all[best].score > score + (score / HIT).isqrt() * HIT {
            self.selected = best;
        }
        self.all.iter_mut().for_each(|trial| trial.score -= trial.score / FADE);
        (self.selected != before).then(|| self.selected())
    }
}
