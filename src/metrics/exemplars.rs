//! Exemplars: for each bucket of a histogram of durations, the last traced read or fetch in it.
//!
//! Only reads and fetches with a sampled trace come here. They have created a span already, so a
//! lock costs them little. The rule: an exemplar lies within its bucket, and its time is taken
//! under the lock. Otherwise Prometheus rejects it as being out of order.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::labels::FrontEnd;
use super::per_thread::{DURATION_BUCKETS, bucket_of};
use crate::cache::Outcome;
use crate::sync::lock;

/// A traced read or fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exemplar {
    /// The identity of the trace.
    pub(super) trace: u128,
    pub(super) took: Duration,
    /// The time since 1970.
    pub(super) at: Duration,
}

/// The exemplars of one histogram, by bucket.
pub(super) type BucketExemplars = [Option<Exemplar>; DURATION_BUCKETS.len() + 1];

/// The exemplars of one histogram. Any thread may add.
#[derive(Default)]
pub(super) struct Recent(Mutex<BucketExemplars>);

impl Recent {
    pub(super) fn add(&self, trace: u128, took: Duration) {
        let mut buckets = lock(&self.0);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        buckets[bucket_of(took)] = Some(Exemplar { trace, took, at });
    }

    fn get(&self) -> BucketExemplars {
        *lock(&self.0)
    }
}

/// The exemplars of all histograms that have some.
#[derive(Default)]
pub(super) struct Exemplars {
    /// Those of reads by front end and outcome, in the order of their `ALL`.
    reads: [[Recent; Outcome::ALL.len()]; FrontEnd::READERS.len()],
    pub(super) fetches: Recent,
}

impl Exemplars {
    pub(super) fn add_read(
        &self,
        front_end: FrontEnd,
        outcome: Outcome,
        trace: u128,
        took: Duration,
    ) {
        if let Some(outcomes) = self.reads.get(front_end as usize) {
            outcomes[outcome as usize].add(trace, took);
        }
    }

    /// Returns the exemplars of the histogram with these labels; `None` if it has none.
    pub(super) fn of<'a>(
        &self,
        family: &str,
        label: impl Fn(&str) -> Option<&'a str>,
    ) -> Option<BucketExemplars> {
        match family {
            "redis_proxy_backend_duration_seconds" => Some(self.fetches.get()),
            "redis_proxy_request_duration_seconds" => {
                let (front_end, outcome) = (label("front_end")?, label("outcome")?);
                let front_end = FrontEnd::READERS.iter().position(|one| one.name() == front_end)?;
                let outcome = Outcome::ALL.iter().position(|one| one.name() == outcome)?;
                Some(self.reads[front_end][outcome].get())
            }
            _ => None,
        }
    }
}
