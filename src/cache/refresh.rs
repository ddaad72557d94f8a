//! Keeping hot: which keys are fetched again before a reader needs that, and when.
//!
//! Model: an entry is hot once it was answered from memory twice. A hot entry is fetched again when
//! its key is invalidated, and when it is read near the end of its TTL. Each fetch makes an entry
//! that has to become hot again. So Redis gets at most one refresh for two reads that it was
//! spared, and none for a key that nothing reads.
//!
//! Requests wait in a queue that is bounded in keys and in bytes. What does not fit is dropped and
//! counted: its next read is a miss. The rule that must not be broken: a refresh is an ordinary
//! flight ([`Cache::refresh`](super::Cache::refresh)), so it stores under the same rules
//! (invariant F2).

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::key::Key;
use crate::sync::lock;

/// The last part of a TTL, in which a read requests a refresh: an eighth.
const LAST_PART: u64 = 8;
/// The most keys that wait, and the most bytes of them.
const MAX_KEYS: usize = 4096;
const MAX_BYTES: usize = 1 << 20;
/// The fetches of one refresh. A write during a fetch discards its result; with several writes in a
/// row a fetch may meet each of them.
const ATTEMPTS: u8 = 3;
/// The time in which the rate is the most refreshes.
const SECOND: Duration = Duration::from_secs(1);

/// Whether an entry that has lived so long is to be fetched again. `expires_after` is the key's own
/// time to live in Redis: if that ends first, a fetch gains nothing. All are in nanoseconds.
#[inline]
pub(super) fn is_due(lived: u64, ttl: u64, expires_after: u64) -> bool {
    lived >= ttl - ttl / LAST_PART && expires_after > ttl
}

/// The end of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshResult {
    /// The value was fetched and is kept.
    Stored,
    /// A read had fetched the key meanwhile, or was about to; or its rule had changed.
    Unneeded,
    /// The value was fetched and is not kept: the key changed meanwhile, or the value is too large.
    Discarded,
    /// Redis did not reply with a value.
    Failed,
    /// Too many keys waited.
    Dropped,
}

impl RefreshResult {
    /// Every result.
    pub const ALL: [Self; 5] =
        [Self::Stored, Self::Unneeded, Self::Discarded, Self::Failed, Self::Dropped];

    /// Returns the name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unneeded => "unneeded",
            Self::Discarded => "discarded",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// A key to fetch.
#[derive(Debug, PartialEq, Eq)]
pub struct Refresh {
    key: Key,
    attempts: u8,
}

impl Refresh {
    /// Returns the key.
    pub fn key(&self) -> &[u8] {
        self.key.as_bytes()
    }
}

/// The keys that wait, the oldest first.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Refresh>,
    bytes: usize,
}

impl Queue {
    /// Adds a key. Returns whether there was room.
    fn push(&mut self, refresh: Refresh) -> bool {
        let bytes = self.bytes + refresh.key.len();
        let has_room = self.waiting.len() < MAX_KEYS && bytes <= MAX_BYTES;
        if has_room {
            self.bytes = bytes;
            self.waiting.push_back(refresh);
        }
        has_room
    }

    fn pop(&mut self) -> Option<Refresh> {
        let refresh = self.waiting.pop_front()?;
        self.bytes -= refresh.key.len();
        Some(refresh)
    }
}

/// The requested refreshes of all caches that share one bound on memory.
#[derive(Debug)]
pub struct Refreshes {
    queue: Mutex<Queue>,
    requested: Notify,
    rate: AtomicUsize,
    counts: [AtomicU64; RefreshResult::ALL.len()],
}

impl Refreshes {
    pub(super) fn new(rate: usize) -> Self {
        let (queue, requested, counts) = Default::default();
        Self { queue, requested, rate: AtomicUsize::new(rate), counts }
    }

    pub(super) fn set_rate(&self, rate: usize) {
        self.rate.store(rate, Relaxed);
    }

    /// Returns the most refreshes a second.
    pub fn rate(&self) -> usize {
        self.rate.load(Relaxed)
    }

    /// Requests a refresh of `key`. Waits for nothing.
    pub(super) fn request(&self, key: &[u8]) {
        self.push(Refresh { key: Key::from(key), attempts: ATTEMPTS });
    }

    fn push(&self, refresh: Refresh) {
        let has_room = lock(&self.queue).push(refresh);
        if has_room {
            self.requested.notify_one();
        } else {
            self.count(RefreshResult::Dropped);
        }
    }

    /// Waits for the next key to fetch. Only one task may wait.
    pub async fn next(&self) -> Refresh {
        loop {
            // A request between the two leaves a signal behind.
            let next = lock(&self.queue).pop();
            match next {
                Some(refresh) => return refresh,
                None => self.requested.notified().await,
            }
        }
    }

    /// Counts the result of a refresh. Requests it again if a write discarded it.
    pub fn finish(&self, refresh: Refresh, result: RefreshResult) {
        self.count(result);
        let attempts = refresh.attempts.saturating_sub(1);
        if result == RefreshResult::Discarded && attempts > 0 {
            self.push(Refresh { attempts, ..refresh });
        }
    }

    fn count(&self, result: RefreshResult) {
        self.counts[result as usize].fetch_add(1, Relaxed);
    }

    /// Returns the number of refreshes by result, in the order of [`RefreshResult::ALL`].
    pub fn counts(&self) -> [u64; RefreshResult::ALL.len()] {
        std::array::from_fn(|result| self.counts[result].load(Relaxed))
    }
}

/// The times of the last refreshes. Any second has at most as many as the rate.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<Instant>);

impl Pace {
    /// Begins a refresh at `now`.
    ///
    /// # Errors
    /// The time before which none may begin.
    pub fn start(&mut self, now: Instant, rate: usize) -> Result<(), Instant> {
        while self.0.front().is_some_and(|begun| *begun + SECOND <= now) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(oldest) if self.0.len() >= rate => Err(*oldest + SECOND),
            _ => {
                self.0.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    fn refresh(key: &[u8]) -> Refresh {
        Refresh { key: Key::from(key), attempts: ATTEMPTS }
    }

    fn counts(refreshes: &Refreshes) -> [u64; 5] {
        refreshes.counts()
    }

    #[test]
    fn entry_is_due_in_the_last_eighth_of_its_ttl() {
        for (lived, ttl, expires_after, expected) in [
            (0, 800, u64::MAX, false),
            (699, 800, u64::MAX, false),
            (700, 800, u64::MAX, true),
            (900, 800, u64::MAX, true),
            (700, 800, 801, true),
            (700, 800, 800, false),
            (90, 800, 100, false),
            (u64::MAX / 2, u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(is_due(lived, ttl, expires_after), expected, "{lived} {ttl}");
        }
    }

    #[test]
    fn queue_is_bounded_in_keys_and_bytes() {
        let mut queue = Queue::default();
        assert!((0..MAX_KEYS).all(|_| queue.push(refresh(b"k"))));
        assert!(!queue.push(refresh(b"k")));
        assert_eq!(queue.pop(), Some(refresh(b"k")));
        assert!(queue.push(refresh(b"k")));
        let (mut queue, half) = (Queue::default(), vec![b'k'; MAX_BYTES / 2]);
        assert!(queue.push(refresh(&half)) && queue.push(refresh(&half)));
        assert!(!queue.push(refresh(b"k")));
        queue.pop();
        assert!(queue.push(refresh(b"k")));
    }

    #[tokio::test]
    async fn requests_come_in_their_order_and_the_rest_is_counted() {
        let refreshes = Refreshes::new(1);
        for number in 0..MAX_KEYS + 3 {
            refreshes.request(number.to_string().as_bytes());
        }
        for number in 0..MAX_KEYS {
            assert_eq!(refreshes.next().await.key(), number.to_string().as_bytes());
        }
        assert_eq!(counts(&refreshes), [0, 0, 0, 0, 3]);
    }

    #[tokio::test]
    async fn discarded_refresh_is_tried_three_times() {
        let refreshes = Refreshes::new(1);
        refreshes.request(b"k");
        for _ in 0..ATTEMPTS {
            let next = refreshes.next().await;
            refreshes.finish(next, RefreshResult::Discarded);
        }
        assert_eq!(lock(&refreshes.queue).pop(), None);
        refreshes.request(b"k");
        let next = refreshes.next().await;
        refreshes.finish(next, RefreshResult::Failed);
        assert_eq!(lock(&refreshes.queue).pop(), None);
        assert_eq!(counts(&refreshes), [0, 0, 3, 1, 0]);
    }

    #[test]
    fn any_second_has_at_most_the_rate() {
        let (begun, mut pace, mut started) = (Instant::now(), Pace::default(), Vec::new());
        let mut now = begun;
        for step in 0..5_000_u64 {
            now += Duration::from_millis(step * 7 % 5);
            match pace.start(now, 100) {
                Ok(()) => started.push(now),
                Err(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        assert!(started.len() > 1000, "{}", started.len());
        let is_over = |window: &[Instant]| window[100].duration_since(window[0]) >= SECOND;
        assert!(started.windows(101).all(is_over));
        // A smaller rate applies at once.
        assert!(pace.start(now, 1).is_err() || pace.start(now, 1).is_err());
    }
}
