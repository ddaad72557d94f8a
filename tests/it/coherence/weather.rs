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
        let overlap = |spell: &&Spell| spell.from <= to && spell.until.is_none_or(|until| until >= from);
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
    /// When `cache.stale_grace` was more than zero.
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
