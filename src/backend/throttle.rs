//! The bound on the reads that are pending on the shared connection, while Redis closes it again
//! and again.
//!
//! Redis closes the connection of a client whose replies exceed `client-output-buffer-limit`
//! together. So reads that are small enough one by one can end the shared connection, and each end
//! empties the cache, after which more reads miss at once. No read of them is the reason, so no
//! suspicion ([`suspects`](super::suspects)) ends that.
//!
//! Model: each close that follows another one raises a level, and each time without a close lowers
//! it. At each level fewer reads are pending at a time. At the highest level it is one read, which
//! must also get its reply alone first, as a suspect must. The lowest levels only end the bound
//! step by step, since a cache that is still cold would end the connection again.
//!
//! A single close has no effect, since a restart of Redis is one. A close counts only if the lost
//! replies could have exceeded a limit together ([`LostReplies`]). Otherwise a network that loses
//! connections would make reads of a remote Redis wait for each other, without any limit there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::error::BackendError;
use crate::sync::lock;

/// The least size of the lost replies, in bytes, for a close to count. A smaller limit would serve
/// no client: Redis's reply to `COMMAND` alone is larger.
pub(super) const LEAST_LIMIT: usize = 64 << 10;
/// The most pending reads at each level above zero.
const WINDOWS: [usize; 8] = [256, 128, 64, 32, 8, 2, 1, 1];
/// The level at which the bound begins. A close at a lower one returns to it.
const FIRST_LEVEL: usize = 4;
/// The time without a close that lowers the level by one. A close within this time after another
/// one raises it.
const CALM: Duration = Duration::from_secs(10);

/// The bound on pending reads.
pub(super) struct Throttle {
    lost: Mutex<LostReplies>,
    closes: Mutex<Closes>,
    /// Whether there may be a bound. While it is false, a read takes no lock.
    is_active: AtomicBool,
    windows: [Semaphore; WINDOWS.len()],
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self {
            lost: Mutex::default(),
            closes: Mutex::default(),
            is_active: AtomicBool::new(false),
            windows: WINDOWS.map(Semaphore::new),
        }
    }

    /// Records a read that lost its reply with the shared connection. `is_first`: no other read
    /// of that connection has been recorded.
    pub(super) fn lose_read(&self, is_first: bool) {
        let is_bound = self.is_bound();
        self.change_lost(|lost| {
            if is_first {
                lost.begin(Instant::now(), is_bound);
            }
            lost.add_read()
        });
    }

    /// Records the trial of a read that lost its reply.
    pub(super) fn try_lost(&self, tried: &Result<Option<usize>, BackendError>) {
        let size = match tried {
            Ok(size) => *size,
            Err(BackendError::OutputLimit) => Some(LEAST_LIMIT),
            Err(_) => None,
        };
        if let Some(size) = size {
            self.change_lost(|lost| lost.add_size(size));
        }
    }

    /// Changes the lost replies. Records a close if `change` returns that there is one.
    fn change_lost(&self, change: impl FnOnce(&mut LostReplies) -> bool) {
        if change(&mut lock(&self.lost)) {
            self.close();
        }
    }

    /// Records that Redis closed the shared connection over replies that it lost.
    fn close(&self) {
        let mut closes = lock(&self.closes);
        let now = Instant::now();
        let was_bound = closes.level(now) > 0;
        let is_bound = closes.close(now) > 0;
        self.is_active.store(true, Relaxed);
        if is_bound && !was_bound {
            tracing::info!(
                "Redis has closed the shared connection again; fewer reads are sent at a time"
            );
        }
    }

    /// Whether there is a bound.
    #[inline]
    pub(super) fn is_bound(&self) -> bool {
        self.level() > 0
    }

    /// Waits for a slot of the current level. `None`: there is no bound.
    ///
    /// # Errors
    /// [`BackendError::TimedOut`] at the deadline.
    pub(super) async fn slot(
        &self,
        deadline: Instant,
    ) -> Result<Option<SemaphorePermit<'_>>, BackendError> {
        loop {
            let level = self.level();
            let Some(index) = level.checked_sub(1) else { return Ok(None) };
            let slot = timeout_at(deadline, self.windows[index].acquire()).await;
            let slot = slot.ok().and_then(Result::ok).ok_or(BackendError::TimedOut)?;
            // Otherwise the reads that waited for slots of a lower level would keep its wider bound.
            if self.level() == level {
                return Ok(Some(slot));
            }
        }
    }

    /// Returns whether every read must get its reply alone first.
    #[inline]
    pub(super) fn suspects_all(&self) -> bool {
        self.level() == WINDOWS.len()
    }

    #[inline]
    fn level(&self) -> usize {
        if !self.is_active.load(Relaxed) {
            return 0;
        }
        let closes = lock(&self.closes);
        let now = Instant::now();
        let level = closes.level(now);
        self.is_active.store(!closes.are_over(now), Relaxed);
        level
    }
}

/// The replies that the last end of the shared connection lost. Together they could have exceeded a
/// limit if they had [`LEAST_LIMIT`] bytes.
///
/// Their sizes are those of the trials of their reads. Only some are tried: a trial of a remote
/// Redis takes longer than the other reads wait. So each untried one counts as the mean of those
/// tried, without the largest, since a single large reply says nothing about the others.
#[derive(Debug, Default)]
struct LostReplies {
    began: Option<Instant>,
    count: usize,
    tried: usize,
    /// The size of those that were tried, in bytes.
    tried_bytes: usize,
    /// The size of the largest of them, in bytes.
    largest: usize,
    /// The likely size of a reply after the end before, in bytes; zero if that was long ago. It
    /// counts until two replies of this end were tried.
    size_before: usize,
    is_close_counted: bool,
}

impl LostReplies {
    /// Begins with another end of the connection. While the bound is in force, the sizes of the end
    /// before count even if that was long ago: closes come again at the first level that is too
    /// low.
    fn begin(&mut self, now: Instant, is_bound: bool) {
        let is_repeated = is_bound || self.began.is_some_and(|began| now < began + CALM);
        let size_before = if is_repeated { self.likely_size() } else { 0 };
        *self = Self { began: Some(now), size_before, ..Self::default() };
    }

    /// Adds a read. Returns whether the end counts as a close now, and did not before.
    fn add_read(&mut self) -> bool {
        self.count += 1;
        self.count_close()
    }

    /// Adds the size of a reply in bytes. Returns the same.
    fn add_size(&mut self, size: usize) -> bool {
        self.tried += 1;
        self.tried_bytes += size;
        self.largest = self.largest.max(size);
        self.count_close()
    }

    fn count_close(&mut self) -> bool {
        let is_new = !self.is_close_counted && self.bytes() >= LEAST_LIMIT;
        self.is_close_counted |= is_new;
        is_new
    }

    /// Returns the size of all replies, in bytes. Trials of reads that an earlier end lost may come
    /// late, so there may be more than replies.
    fn bytes(&self) -> usize {
        if self.tried > self.count {
            return self.largest.max(self.tried_bytes / self.tried * self.count);
        }
        let untried = self.count - self.tried;
        self.tried_bytes.saturating_add(self.untried_size().saturating_mul(untried))
    }

    /// Returns the size that a reply of the next end counts as, in bytes, while none is tried.
    fn likely_size(&self) -> usize {
        // Behind a close of large replies, the next ones are likely as large.
        let mean = self.tried_bytes.checked_div(self.tried).filter(|_| self.is_close_counted);
        mean.unwrap_or_else(|| self.untried_size())
    }

    /// Returns the size that each untried reply counts as, in bytes.
    fn untried_size(&self) -> usize {
        let others = self.tried.saturating_sub(1);
        (self.tried_bytes - self.largest).checked_div(others).unwrap_or(self.size_before)
    }
}

/// The closes so far.
#[derive(Debug, Default)]
struct Closes {
    /// The level at the last close.
    level: usize,
    last: Option<Instant>,
}

impl Closes {
    /// Records a close. Returns the level from now on.
    fn close(&mut self, now: Instant) -> usize {
        let is_repeated = self.last.is_some_and(|last| now < last + CALM);
        self.level = match self.level(now) {
            0 if !is_repeated => 0,
            level if level < FIRST_LEVEL => FIRST_LEVEL,
            level => (level + usize::from(is_repeated)).min(WINDOWS.len()),
        };
        self.last = Some(now);
        self.level
    }

    fn level(&self, now: Instant) -> usize {
        let Some(last) = self.last else { return 0 };
        let calms = now.saturating_duration_since(last).as_secs() / CALM.as_secs();
        self.level.saturating_sub(usize::try_from(calms).unwrap_or(usize::MAX))
    }

    /// Whether the closes have no effect any more.
    fn are_over(&self, now: Instant) -> bool {
        self.level(now) == 0 && self.last.is_none_or(|last| now >= last + CALM)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    /// Returns an end that lost the replies to `count` reads.
    fn lost(count: usize, now: Instant) -> LostReplies {
        let mut lost = LostReplies::default();
        lost.begin(now, false);
        assert!((0..count).all(|_| !lost.add_read()), "their sizes are unknown");
        lost
    }

    #[test]
    fn end_counts_once_if_its_replies_reach_the_least_limit() {
        let mut few = lost(63, Instant::now());
        assert!(!few.add_size(LEAST_LIMIT / 64));
        assert!(!few.add_size(LEAST_LIMIT / 64));
        assert!(few.add_read());
        assert!(!few.add_read() && !few.add_size(LEAST_LIMIT), "once");
        let mut small = lost(500, Instant::now());
        assert!((0..500).all(|_| !small.add_size(100)));
    }

    #[test]
    fn reply_of_the_least_limit_counts_alone() {
        assert!(lost(1, Instant::now()).add_size(LEAST_LIMIT));
    }

    #[test]
    fn untried_count_as_mean_without_the_largest() {
        let mut lost = lost(64, Instant::now());
        assert!(!lost.add_size(LEAST_LIMIT / 2), "nothing is known of the others");
        assert!(!lost.add_size(LEAST_LIMIT / 256));
        assert!(!lost.add_size(LEAST_LIMIT / 256), "half of the limit and a quarter");
        assert!(lost.add_size(LEAST_LIMIT / 64 * 2), "and more than a quarter");
    }

    #[test]
    fn sizes_of_the_last_end_count_for_a_while() {
        for (after, is_bound, is_counted) in
            [(CALM / 2, false, true), (CALM, false, false), (CALM * 9, true, true)]
        {
            let now = Instant::now();
            let mut lost = lost(2, now);
            assert!(!lost.add_size(LEAST_LIMIT / 2 - 1) && !lost.add_size(LEAST_LIMIT / 2));
            lost.begin(now + after, is_bound);
            assert!(!lost.add_read() && !lost.add_read());
            assert_eq!(lost.add_read(), is_counted);
        }
    }

    #[test]
    fn large_reply_counts_for_the_next_end() {
        let now = Instant::now();
        let mut lost = lost(20, now);
        assert!(lost.add_size(LEAST_LIMIT));
        lost.begin(now + CALM / 2, false);
        assert!(lost.add_read());
    }

    #[test]
    fn single_closes_raise_no_level() {
        let (mut closes, mut now) = (Closes::default(), Instant::now());
        for _ in 0..5 {
            assert_eq!(closes.close(now), 0);
            now += CALM;
            assert!(closes.are_over(now));
        }
    }

    #[test]
    fn each_repeated_close_raises_the_level_to_the_highest() {
        let (mut closes, now) = (Closes::default(), Instant::now());
        let levels: Vec<_> = (0..7).map(|number| closes.close(now + MOMENT * number)).collect();
        assert_eq!(levels, [0, 4, 5, 6, 7, 8, 8]);
    }

    #[test]
    fn each_calm_time_lowers_the_level() {
        let (mut closes, now) = (Closes::default(), Instant::now());
        (0..6).for_each(|_| _ = closes.close(now));
        let levels: Vec<_> = (0..10).map(|number| closes.level(now + CALM * number)).collect();
        assert_eq!(levels, [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]);
        assert!(!closes.are_over(now + CALM * 7));
        assert!(closes.are_over(now + CALM * 8));
    }

    #[test]
    fn close_after_a_calm_time_keeps_the_lower_level() {
        let (mut closes, now) = (Closes::default(), Instant::now());
        (0..6).for_each(|_| _ = closes.close(now));
        assert_eq!(closes.close(now + CALM), 7);
        assert_eq!(closes.close(now + CALM + MOMENT), 8);
    }

    #[test]
    fn close_at_the_end_returns_to_the_first_level() {
        let (mut closes, now) = (Closes::default(), Instant::now());
        (0..2).for_each(|_| _ = closes.close(now));
        assert_eq!(closes.level(now + CALM * 3), 1);
        assert_eq!(closes.close(now + CALM * 3), FIRST_LEVEL);
    }

    #[test]
    fn late_trials_count_as_their_mean() {
        let mut few = lost(2, Instant::now());
        assert!((0..9).all(|_| !few.add_size(LEAST_LIMIT / 4)));
        assert!(few.add_size(LEAST_LIMIT));
    }

    #[test]
    fn bound_begins_with_the_second_close() {
        let throttle = Throttle::new();
        throttle.close();
        assert!(!throttle.is_bound());
        throttle.close();
        assert_eq!(throttle.level(), FIRST_LEVEL);
        assert!(!throttle.suspects_all());
        (0..4).for_each(|_| throttle.close());
        assert!(throttle.suspects_all());
    }

    #[tokio::test]
    async fn read_that_waits_gets_a_slot_of_the_current_level() {
        let throttle = Throttle::new();
        (0..2).for_each(|_| throttle.close());
        let wide = &throttle.windows[FIRST_LEVEL - 1];
        let mut held: Vec<_> = (0..WINDOWS[FIRST_LEVEL - 1]).map(|_| wide.try_acquire()).collect();
        let deadline = Instant::now() + CALM;
        let mut waiting = pin!(throttle.slot(deadline));
        assert!(waiting.as_mut().now_or_never().is_none());
        throttle.close();
        held.pop();
        let _slot = waiting.await.unwrap();
        let free = throttle.windows[FIRST_LEVEL].available_permits();
        assert_eq!((wide.available_permits(), free), (1, WINDOWS[FIRST_LEVEL] - 1));
    }
}
