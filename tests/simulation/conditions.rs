//! The time for which faults may delay invalidations or cause errors.

use std::sync::Mutex;
use std::time::Duration;

use super::world::lock;

/// The effects that the present and past faults allow.
#[derive(Default)]
pub(super) struct Conditions(Mutex<State>);

#[derive(Default)]
struct State {
    late_until: Duration,
    errors_until: Duration,
    /// The last time at which bytes were lost without a sign.
    lost_at: Option<Duration>,
}

impl Conditions {
    /// Invalidations may be late until the first time, and errors may occur until the second.
    pub(super) fn disturb(&self, late_until: Duration, errors_until: Duration) {
        let mut state = lock(&self.0);
        state.late_until = state.late_until.max(late_until);
        state.errors_until = state.errors_until.max(errors_until);
    }

    pub(super) fn lose(&self, now: Duration) {
        lock(&self.0).lost_at = Some(now);
    }

    /// Whether invalidations may be late at this time.
    pub(super) fn may_be_late(&self, at: Duration) -> bool {
        at <= lock(&self.0).late_until
    }

    pub(super) fn may_fail(&self, at: Duration) -> bool {
        at <= lock(&self.0).errors_until
    }

    /// Whether bytes were lost without a sign since then.
    pub(super) fn has_lost_since(&self, moment: Duration) -> bool {
        lock(&self.0).lost_at.is_some_and(|at| at >= moment)
    }
}
