//! What was being done to the proxy and when, and so how old a value may be.
//!
//! Model: spells of time with a name. In peace, that is with no fault on the link from the moment a value was superseded
//! until it was read, news of a write travels at once; otherwise the proxy may trust its memory until Redis has been
//! silent for `cache.coherence_timeout`. A spell lasts until the proxy has been seen ready after the fault was healed.
//!
//! The rule: a time in which this machine ran nobody is no peace. The metronome finds these, so that a bound
//! for the proxy is not a bound for the machine.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::history::Moment;

/// `cache.coherence_timeout`, and as much again for threads that wait for their turn.
pub(super) const BOUND_IN_TROUBLE: Duration = Duration::from_secs(1);
pub(super) const BOUND_IN_PEACE: Duration = Duration::from_millis(250);

const TICK: Duration = Duration::from_millis(5);
/// So much later than planned is a machine that had no time.
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

struct Spell {
    name: &'static str,
    from: Moment,
    until: Option<Moment>,
}

/// Spells in the order of their beginning.
#[derive(Default)]
pub(super) struct Spells(Mutex<Vec<Spell>>);

impl Spells {
    pub(super) fn begin(&self, name: &'static str, from: Moment) {
        self.0.lock().unwrap().push(Spell { name, from, until: None });
    }

    /// Ends all that have begun.
    pub(super) fn end(&self, until: Moment) {
        self.0.lock().unwrap().iter_mut().filter(|spell| spell.until.is_none()).for_each(|spell| {
            spell.until = Some(until);
        });
    }

    /// What there was between two moments, the latest first.
    pub(super) fn between(&self, from: Moment, to: Moment) -> Vec<&'static str> {
        let spells = self.0.lock().unwrap();
        let overlap =
            |spell: &&Spell| spell.from <= to && spell.until.is_none_or(|until| until >= from);
        spells.iter().rev().filter(overlap).map(|spell| spell.name).collect()
    }

    fn add(&self, name: &'static str, from: Moment, until: Moment) {
        self.0.lock().unwrap().push(Spell { name, from, until: Some(until) });
    }
}

#[derive(Default)]
pub(super) struct Weather {
    /// What keeps news from travelling.
    pub(super) trouble: Spells,
    /// What must not.
    pub(super) changes: Spells,
    /// From when another Redis may have been made the primary until it was written to, and the news could be here.
    pub(super) failovers: Spells,
    /// When `cache.stale_if_error` was more than zero.
    pub(super) grace: Spells,
}

impl Weather {
    pub(super) fn is_peace(&self, from: Moment, to: Moment) -> bool {
        self.trouble.between(from, to).is_empty()
    }

    /// How old a value may be that was superseded at `from` and is read at `to`.
    pub(super) fn bound(&self, from: Moment, to: Moment) -> Duration {
        if self.is_peace(from, to) { BOUND_IN_PEACE } else { BOUND_IN_TROUBLE }
    }

    /// How old what is current may be for a read between these moments: nothing at all, but in a failover, of which the
    /// proxy learns when it is told.
    pub(super) fn bound_of_current(&self, began: Moment, ended: Moment) -> Duration {
        if self.failovers.between(began, ended).is_empty() {
            Duration::ZERO
        } else {
            BOUND_IN_PEACE
        }
    }

    /// Whether a read between these moments may get what is past its time: where that is allowed, and Redis gone.
    pub(super) fn may_be_stale(&self, began: Moment, ended: Moment) -> bool {
        !self.grace.between(began, ended).is_empty() && !self.is_peace(began, ended)
    }

    pub(super) fn tell(&self, from: Moment, to: Moment) -> String {
        let mut names = self.trouble.between(from, to);
        names.extend(self.changes.between(from, to));
        names.extend(self.grace.between(from, to));
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Notes when this machine was late, for as long as `goes_on`.
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

    /// A fault from 100 to 200 ms, and one that goes on since 500 ms; the grace is from 150 to 600 ms.
    fn weather() -> Weather {
        let weather = Weather::default();
        weather.trouble.begin("a fault", ms(100));
        weather.trouble.end(ms(200));
        weather.trouble.begin("another fault", ms(500));
        weather.grace.begin("stale_if_error", ms(150));
        weather.grace.end(ms(600));
        weather
    }

    #[test]
    fn news_may_be_late_only_if_a_fault_fell_into_its_way() {
        let bound = |from, to| weather().bound(ms(from), ms(to));
        for (from, to) in [(0, 99), (201, 499)] {
            assert_eq!(bound(from, to), BOUND_IN_PEACE, "{from} {to}");
        }
        for (from, to) in [(0, 100), (120, 130), (200, 300), (50, 450), (400, 501), (9000, 9001)] {
            assert_eq!(bound(from, to), BOUND_IN_TROUBLE, "{from} {to}");
        }
    }

    #[test]
    fn a_value_past_its_time_needs_both_a_grace_and_a_fault() {
        let may_be_stale = |began, ended| weather().may_be_stale(ms(began), ms(ended));
        assert!(may_be_stale(160, 170));
        assert!(may_be_stale(450, 510), "the fault came before the answer");
        assert!(!may_be_stale(110, 120), "no grace");
        assert!(!may_be_stale(300, 310), "no fault");
        assert!(!may_be_stale(700, 710), "no grace any more");
    }
}
