//! The log of an outage: which failed attempts to connect get a line.
//!
//! Model: a line for each reason at once, and again after a minute. An attempt is made up to twenty
//! times a second, so a line for each would fill the log. With one line for the whole outage, the
//! operator would see only its first reason, which is often just that the connection was closed.

use std::time::Duration;

use tokio::time::Instant;

/// The time after which the same reason is logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// The number of reasons that may be logged within [`REPEAT_AFTER`]. Otherwise reasons that are all
/// different would be a line for each attempt.
const MAX_REASONS: usize = 16;

/// The time without a connection.
pub(crate) struct Outage {
    began: Instant,
    /// The number of fetches that had failed before.
    failed_before: u64,
    /// The reasons that were logged within [`REPEAT_AFTER`], each with the time.
    logged: Vec<(String, Instant)>,
}

impl Outage {
    pub(crate) fn new(now: Instant, failed_fetches: u64) -> Self {
        Self { began: now, failed_before: failed_fetches, logged: Vec::new() }
    }

    /// Whether a failed attempt with this reason gets a line.
    pub(crate) fn should_log(&mut self, reason: &str, now: Instant) -> bool {
        self.logged.retain(|(_, at)| now.duration_since(*at) < REPEAT_AFTER);
        let is_known = self.logged.iter().any(|(logged, _)| logged == reason);
        if is_known || self.logged.len() == MAX_REASONS {
            return false;
        }
        self.logged.push((reason.to_owned(), now));
        true
    }

    /// Returns the duration so far.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.duration_since(self.began)
    }

    /// Returns the number of fetches that failed in it, given the number of all.
    pub(crate) fn failed_fetches(&self, all: u64) -> u64 {
        all.saturating_sub(self.failed_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_reason_is_logged_at_once_and_repeated_each_minute() {
        let begin = Instant::now();
        let mut outage = Outage::new(begin, 7);
        let mut log =
            |reason, seconds| outage.should_log(reason, begin + Duration::from_secs(seconds));
        assert_eq!([log("closed", 0), log("closed", 1), log("closed", 59)], [true, false, false]);
        assert_eq!([log("refused", 2), log("refused", 3), log("closed", 4)], [true, false, false]);
        assert_eq!([log("closed", 60), log("closed", 61), log("closed", 120)], [true, false, true]);
        assert_eq!(outage.elapsed(begin + REPEAT_AFTER), REPEAT_AFTER);
        assert_eq!([outage.failed_fetches(7), outage.failed_fetches(10)], [0, 3]);
    }

    #[test]
    fn ever_new_reasons_are_bounded() {
        let begin = Instant::now();
        let mut outage = Outage::new(begin, 0);
        let lines = (0..1000).filter(|number| outage.should_log(&number.to_string(), begin));
        assert_eq!(lines.count(), MAX_REASONS);
    }
}
