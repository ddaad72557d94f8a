//! The durations of the last minute: differences of counts that only grow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::metrics::OutcomeTimes;
use crate::sync::lock;

/// The number of samples in a minute, and one to compare the newest with.
const SAMPLES: usize = 13;

/// The samples of the last minute, oldest first. Clones share them. There are at most [`SAMPLES`]
/// of a fixed size.
#[derive(Debug, Clone, Default)]
pub(super) struct Window(Arc<Mutex<VecDeque<OutcomeTimes>>>);

impl Window {
    /// Adds a sample.
    pub(super) fn add(&self, times: &OutcomeTimes) {
        let mut samples = lock(&self.0);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(*times);
    }

    /// Returns the durations within the last minute before `now`, or since the start.
    pub(super) fn recent(&self, now: &OutcomeTimes) -> OutcomeTimes {
        let samples = lock(&self.0);
        let oldest = samples.front().filter(|_| samples.len() == SAMPLES);
        let oldest = oldest.copied().unwrap_or_default();
        std::array::from_fn(|outcome| now[outcome].since(&oldest[outcome]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::Outcome;
    use crate::metrics::{FrontEnd, Metrics};

    #[test]
    fn durations_before_the_last_minute_do_not_count() {
        let metrics = Metrics::new(&[]).unwrap();
        let window = Window::default();
        let read = |micros, count| {
            let took = Duration::from_micros(micros);
            metrics.record_reads(FrontEnd::Http, Outcome::Hit, count, took);
        };
        let recent = || window.recent(&metrics.outcome_times())[Outcome::Hit as usize];
        read(9000, 100);
        for _ in 0..SAMPLES - 1 {
            window.add(&metrics.outcome_times());
        }
        // Less than a minute has passed.
        assert_eq!(recent().count(), 100);
        window.add(&metrics.outcome_times());
        assert_eq!((recent().count(), recent().quantile_bound(500)), (0, None));
        read(20, 10);
        assert_eq!(
            (recent().count(), recent().quantile_bound(990)),
            (10, Some(Duration::from_micros(25)))
        );
        (0..SAMPLES * 2).for_each(|_| window.add(&metrics.outcome_times()));
        assert_eq!((recent().count(), lock(&window.0).len()), (0, SAMPLES));
    }
}
