//! The counts of the last 15 minutes, for the sparklines of the status page.
//!
//! The memory is bounded: there are at most [`SAMPLES`] samples of a fixed size.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use crate::sync::lock;

/// The time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// The number of samples in 15 minutes, and one to compare the first with.
const SAMPLES: usize = 181;

/// The totals at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// All reads so far.
    pub(super) reads: u64,
    /// Those from memory among them.
    pub(super) from_memory: u64,
    /// The bytes in memory.
    pub(super) bytes: u64,
}

/// The samples, oldest first. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<Sample>>>);

/// The history as rates. Each list has a value for each interval, oldest first.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// The length of an interval.
    interval_seconds: u64,
    /// Reads per second.
    reads: Vec<f64>,
    /// The share of reads from memory; `None` without reads.
    hit_ratio: Vec<Option<f64>>,
    /// The bytes in memory at the end of the interval.
    bytes: Vec<u64>,
}

impl History {
    /// Adds a sample. The oldest one leaves if there are too many.
    pub(super) fn add(&self, sample: Sample) {
        let mut samples = lock(&self.0);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Returns the differences of neighbouring samples.
    pub(super) fn rates(&self) -> Rates {
        let samples = lock(&self.0);
        let mut rates = Rates { interval_seconds: INTERVAL.as_secs(), ..Rates::default() };
        for (before, after) in samples.iter().zip(samples.iter().skip(1)) {
            let reads = after.reads.saturating_sub(before.reads);
            let from_memory = after.from_memory.saturating_sub(before.from_memory);
            rates.reads.push(as_float(reads) / INTERVAL.as_secs_f64());
            rates.hit_ratio.push(ratio(from_memory, reads));
            rates.bytes.push(after.bytes);
        }
        rates
    }
}

/// Returns a part as a share of the whole; `None` if there is nothing.
pub(super) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| as_float(part) / as_float(whole))
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs fewer digits than 2^53")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_of_samples() {
        let history = History::default();
        assert!(history.rates().reads.is_empty());
        for (reads, from_memory, bytes) in [(10, 5, 1), (30, 20, 2), (30, 20, 3)] {
            history.add(Sample { reads, from_memory, bytes });
        }
        let rates = history.rates();
        assert_eq!(rates.reads, [4.0, 0.0]);
        assert_eq!(rates.hit_ratio, [Some(0.75), None]);
        assert_eq!(rates.bytes, [2, 3]);
    }

    #[test]
    fn history_keeps_fifteen_minutes() {
        let history = History::default();
        for reads in 0..1000 {
            history.add(Sample { reads, ..Sample::default() });
        }
        assert_eq!(history.rates().reads.len(), 180);
        assert_eq!(lock(&history.0).front().unwrap().reads, 819);
    }
}
