//! The faults in force at each time, and so the allowed age of a value.
//!
//! Model: named periods of time. While no fault affects the link between the write that superseded
//! a value and the read, invalidations travel at once. Otherwise the proxy may trust its memory
//! until Redis has been silent for `cache.coherence_timeout`. A period ends when the proxy is ready
//! after the repair.
//!
//! The rule: a time in which this machine ran no thread counts as a fault. The metronome detects
//! these times, so that a bound for the proxy is not a bound for the machine.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::history::Moment;

/// `cache.coherence_timeout`, and as much again for threads that wait for the processor.
pub(super) const BOUND_IN_TROUBLE: Duration = Duration::from_secs(1);
pub(super) const BOUND_IN_PEACE: Duration = Duration::from_millis(250);

const TICK: Duration = Duration::from_millis(5);
/// The delay beyond plan that counts as a standstill of the machine.
const LATE: Duration = Duration::from_millis(50);
const STANDSTILL: &str = "the machine stood still";

pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Moment {
        self.0.elapsed()
    }
}

struct Period {
    name: &'static str,
    from: Moment,
    until: Option<Moment>,
}

/// Periods in the order of their beginning.
#[derive(Default)]
pub(super) struct Periods(Mutex<Vec<Period>>);

impl Periods {
    pub(super) fn begin(&self, name: &'static str, from: Moment) {
        self.0.lock().unwrap().push(Period { name, from, until: None });
    }

    /// Ends all open periods.
    pub(super) fn end(&self, until: Moment) {
        self.0.lock().unwrap().iter_mut().filter(|period| period.until.is_none()).for_each(
            |period| {
                period.until = Some(until);
            },
        );
    }

    /// Returns the periods between two moments, the latest first.
    pub(super) fn between(&self, from: Moment, to: Moment) -> Vec<&'static str> {
        let periods = self.0.lock().unwrap();
        let overlap =
            |period: &&Period| period.from <= to && period.until.is_none_or(|until| until >= from);
        periods.iter().rev().filter(overlap).map(|period| period.name).collect()
    }

    /// Calls `visit` with each period, in the order of their beginning.
    pub(super) fn each(&self, mut visit: impl FnMut(&'static str, Moment, Option<Moment>)) {
        for Period { name, from, until } in &*self.0.lock().unwrap() {
            visit(name, *from, *until);
        }
    }

    pub(super) fn add(&self, name: &'static str, from: Moment, until: Moment) {
        self.0.lock().unwrap().push(Period { name, from, until: Some(until) });
    }
}

#[derive(Default)]
pub(super) struct Conditions {
    /// Faults that delay invalidations.
    pub(super) trouble: Periods,
    /// Changes that must not delay invalidations.
    pub(super) changes: Periods,
    /// Each from the moment in which another Redis may have become primary until it was written to
    /// and the proxy could know.
    pub(super) failovers: Periods,
    /// The moments from which the writers went on at another primary.
    pub(super) switches: Periods,
    /// The periods with a `cache.stale_if_error` above zero.
    pub(super) grace: Periods,
}

impl Conditions {
    pub(super) fn is_peace(&self, from: Moment, to: Moment) -> bool {
        self.trouble.between(from, to).is_empty()
    }

    /// Returns the allowed age of a value that was superseded at `from` and is read at `to`.
    pub(super) fn bound(&self, from: Moment, to: Moment) -> Duration {
        if self.is_peace(from, to) { BOUND_IN_PEACE } else { BOUND_IN_TROUBLE }
    }

    /// Returns the allowed age of a `no-cache` reply between these moments: zero, except in a
    /// failover, of which the proxy has to learn first.
    pub(super) fn bound_of_current(&self, began: Moment, ended: Moment) -> Duration {
        if self.failovers.between(began, ended).is_empty() {
            Duration::ZERO
        } else {
            BOUND_IN_PEACE
        }
    }

    /// Whether a read between these moments may return a stale value: with a grace, and during a
    /// fault.
    pub(super) fn may_be_stale(&self, began: Moment, ended: Moment) -> bool {
        !self.grace.between(began, ended).is_empty() && !self.is_peace(began, ended)
    }

    /// Whether there was a failover that may have lost writes of clients.
    pub(super) fn has_switched(&self) -> bool {
        !self.switches.0.lock().unwrap().is_empty()
    }

    pub(super) fn tell(&self, from: Moment, to: Moment) -> String {
        let mut names = self.trouble.between(from, to);
        names.extend(self.changes.between(from, to));
        names.extend(self.grace.between(from, to));
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Records delays of this machine for as long as `goes_on`.
    pub(super) fn metronome(&self, clock: &Clock, goes_on: impl Fn() -> bool) {
        while goes_on() {
            let before = clock.now();
            thread::sleep(TICK);
            let after = clock.now();
            if after > before + TICK + LATE {
                self.trouble.add(STANDSTILL, before, after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Moment {
        Duration::from_millis(millis)
    }

    /// A fault from 100 to 200 ms, and one that goes on since 500 ms; the grace is from 150 to 600
    /// ms.
    fn conditions() -> Conditions {
        let conditions = Conditions::default();
        conditions.trouble.begin("a fault", ms(100));
        conditions.trouble.end(ms(200));
        conditions.trouble.begin("another fault", ms(500));
        conditions.grace.begin("stale_if_error", ms(150));
        conditions.grace.end(ms(600));
        conditions
    }

    #[test]
    fn late_invalidation_needs_a_fault_in_its_way() {
        let bound = |from, to| conditions().bound(ms(from), ms(to));
        for (from, to) in [(0, 99), (201, 499)] {
            assert_eq!(bound(from, to), BOUND_IN_PEACE, "{from} {to}");
        }
        for (from, to) in [(0, 100), (120, 130), (200, 300), (50, 450), (400, 501), (9000, 9001)] {
            assert_eq!(bound(from, to), BOUND_IN_TROUBLE, "{from} {to}");
        }
    }

    #[test]
    fn stale_value_needs_a_grace_and_a_fault() {
        let may_be_stale = |began, ended| conditions().may_be_stale(ms(began), ms(ended));
        assert!(may_be_stale(160, 170));
        assert!(may_be_stale(450, 510), "the fault came before the answer");
        assert!(!may_be_stale(110, 120), "no grace");
        assert!(!may_be_stale(300, 310), "no fault");
        assert!(!may_be_stale(700, 710), "no grace any more");
    }
}
