//! The keys that are read most in the last one to two minutes.
//!
//! Each thread that reads counts in its own sketch of a fixed number of keys. The sketch is Apache
//! `DataSketches`' "frequent items" (Misra and Gries). The count of a key is too low by at most the
//! sketch's error. A key that is read more often than that error is never missed.
//!
//! So counting waits for no other thread. The memory of a thread is bounded by the number of keys
//! times [`MAX_KEY_LEN`] times two. Counts restart with each `WINDOW`; a result covers the last
//! complete window and the current one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use thread_local::ThreadLocal;
use tokio::time::Instant;

use crate::sync::lock;

/// The length of a counting window.
const WINDOW: Duration = Duration::from_secs(60);
/// The longest key that is counted, in bytes. Longer keys are ignored.
pub const MAX_KEY_LEN: usize = 1024;
/// The bytes that are escaped: all that have a meaning in a path, in JSON, in lines or on a
/// terminal.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':').remove(b'/');

/// Escapes a key as it is written behind `/keys/`.
pub fn path_escape(key: &[u8]) -> String {
    percent_encode(key, ESCAPED).to_string()
}

/// A counter of reads by key, or none. Clones share the counts.
#[derive(Clone, Default)]
pub struct HotKeys(Option<Arc<Shared>>);

struct Shared {
    /// The visibility of the counts to operators.
    visibility: Visibility,
    /// The table size of a sketch, which fills three quarters of it.
    capacity: usize,
    started: Instant,
    counts: ThreadLocal<Mutex<ThreadCounts>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visibility {
    Public,
    Internal,
}

type Sketch = FrequentItemsSketch<Vec<u8>>;

/// The counts of one thread.
struct ThreadCounts {
    /// The number of the current window since the start.
    window: u64,
    current: Sketch,
    last: Sketch,
}

/// The hottest keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopKeys {
    /// The time that the counts cover.
    pub period: Duration,
    /// The reads of all keys in that time.
    pub reads: u64,
    /// The keys, hottest first.
    pub keys: Vec<HotKey>,
}

/// A key that is read often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotKey {
    /// The key.
    pub key: Vec<u8>,
    /// The upper bound of its reads.
    pub reads: u64,
    /// The upper bound minus the lower bound.
    pub error: u64,
}

impl HotKeys {
    /// Counts up to `keys` keys at once in each thread. Zero disables counting.
    pub fn new(keys: usize) -> Self {
        Self::with_warmup(keys, 0)
    }

    /// Counts as [`new`](Self::new) does, and enough for [`warmup_keys`](Self::warmup_keys) to
    /// return the `warmup_keys` hottest keys. Operators do not see the latter unless `keys` is
    /// positive.
    pub fn with_warmup(keys: usize, warmup_keys: usize) -> Self {
        let visibility = if keys > 0 { Visibility::Public } else { Visibility::Internal };
        let keys = keys.max(warmup_keys.saturating_mul(WARMUP_FACTOR));
        let capacity =
            (keys.saturating_mul(4) / 3).next_power_of_two().clamp(MIN_CAPACITY, MAX_CAPACITY);
        let shared = || {
            Arc::new(Shared {
                visibility,
                capacity,
                started: Instant::now(),
                counts: ThreadLocal::new(),
            })
        };
        Self((keys > 0).then(shared))
    }

    /// Counts a read of `key`.
    #[inline]
    pub fn count(&self, key: &[u8], now: Instant) {
        if let Some(shared) = &self.0
            && key.len() <= MAX_KEY_LEN
        {
            shared.count(key, now);
        }
    }

    /// Returns the `limit` keys that are read most, or `None` if keys are not counted for
    /// operators.
    pub fn top(&self, limit: usize, now: Instant) -> Option<TopKeys> {
        self.0
            .as_ref()
            .filter(|shared| shared.visibility == Visibility::Public)
            .and_then(|shared| shared.top(limit, now))
    }

    /// Returns the `limit` keys that are read most. Only the daemon may see the result.
    pub fn warmup_keys(&self, limit: usize, now: Instant) -> Vec<Vec<u8>> {
        let hottest = self.0.as_ref().and_then(|shared| shared.top(limit, now));
        hottest
            .map(|hottest| hottest.keys.into_iter().map(|hot| hot.key).collect())
            .unwrap_or_default()
    }
}

/// The number of counted keys for each key that is saved. A sketch separates the head of a long
/// tail only if it counts several times as many.
const WARMUP_FACTOR: usize = 8;
/// The limits of a table size: the least that the sketch accepts, and more than any reader of the
/// counts needs.
const MIN_CAPACITY: usize = 8;
const MAX_CAPACITY: usize = 1 << 17;

impl Shared {
    fn window(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / WINDOW.as_secs()
    }

    fn count(&self, key: &[u8], now: Instant) {
        let window = self.window(now);
        // It fails only for a size that is no power of two, and this one is.
        let new = || ThreadCounts::new(self.capacity).map(Mutex::new);
        if let Ok(counts) = self.counts.get_or_try(new) {
            // The lock belongs to this thread, so it waits at most for a query.
            let mut counts = lock(counts);
            counts.roll_to(window);
            counts.current.update_ref(key);
        }
    }

    fn top(&self, limit: usize, now: Instant) -> Option<TopKeys> {
        let window = self.window(now);
        let mut all = Sketch::new(MAX_CAPACITY).ok()?;
        for counts in &self.counts {
            let mut counts = lock(counts);
            counts.roll_to(window);
            all.merge(&counts.last);
            all.merge(&counts.current);
        }
        let mut rows = all.frequent_items(ErrorType::NoFalseNegatives);
        rows.sort_by(|a, b| {
            b.upper_bound().cmp(&a.upper_bound()).then_with(|| a.item().cmp(b.item()))
        });
        let key = |row: &datasketches::frequencies::Row<Vec<u8>>| HotKey {
            key: row.item().clone(),
            reads: row.upper_bound(),
            error: row.upper_bound() - row.lower_bound(),
        };
        let started =
            self.started + WINDOW * u32::try_from(window.saturating_sub(1)).unwrap_or(u32::MAX);
        Some(TopKeys {
            period: now.saturating_duration_since(started),
            reads: all.total_weight(),
            keys: rows.iter().take(limit).map(key).collect(),
        })
    }
}

impl ThreadCounts {
    fn new(capacity: usize) -> Result<Self, datasketches::error::Error> {
        Ok(Self { window: 0, current: Sketch::new(capacity)?, last: Sketch::new(capacity)? })
    }

    /// Drops counts of windows before the previous one.
    fn roll_to(&mut self, window: u64) {
        if window > self.window {
            std::mem::swap(&mut self.current, &mut self.last);
            self.current.reset();
            if window > self.window + 1 {
                self.last.reset();
            }
            self.window = window;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hot_keys_are_off_by_default() {
        let (none, now) = (HotKeys::new(0), Instant::now());
        none.count(b"key", now);
        assert_eq!(none.top(10, now), None);
    }

    #[test]
    fn counts_merge_over_threads_and_decay() {
        let (hot, now) = (HotKeys::new(10), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..5).for_each(|_| hot.count(b"often", now)));
            }
        });
        hot.count(b"once", now);
        hot.count(&[b'x'; MAX_KEY_LEN + 1], now);
        let expected = |key: &[u8], reads| HotKey { key: key.to_vec(), reads, error: 0 };
        let top = |later| hot.top(10, now + Duration::from_secs(later)).unwrap();
        assert_eq!(top(0).keys, [expected(b"often", 15), expected(b"once", 1)]);
        assert_eq!((top(1).reads, hot.top(1, now).unwrap().keys.len()), (16, 1));
        assert_eq!(top(61).keys.len(), 2, "the previous window is included");
        assert!((60..=62).contains(&top(61).period.as_secs()));
        assert!(top(125).keys.is_empty());
    }

    proptest! {
        /// The bounds of a key contain its number of reads. A key that is read more often than any
        /// error is in the result.
        #[test]
        fn counts_are_within_their_error_bound(
            keys in proptest::collection::vec(0_u8..60, 0..3000),
        ) {
            let (hot, now) = (HotKeys::new(12), Instant::now());
            let mut exact: HashMap<Vec<u8>, u64> = HashMap::new();
            // A few of them are read far more often than the others.
            for key in keys.iter().map(|key| if key % 3 == 0 { key % 6 } else { *key }) {
                hot.count(&[key], now);
                *exact.entry(vec![key]).or_default() += 1;
            }
            let top = hot.top(100, now).unwrap();
            prop_assert_eq!(top.reads, exact.values().sum::<u64>());
            let error = top.keys.iter().map(|key| key.error).max().unwrap_or(0);
            for HotKey { key, reads, error } in &top.keys {
                let was = exact[key];
                prop_assert!((*reads - error..=*reads).contains(&was), "{key:?}: {reads} - \
                    {error}, was {was}");
            }
            for (key, was) in &exact {
                let is_told = top.keys.iter().any(|top| top.key == *key);
                prop_assert!(*was <= error || is_told, "{key:?}, {was}, {error}");
            }
        }
    }
}
