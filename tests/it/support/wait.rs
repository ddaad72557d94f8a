//! Waiting by observation: the one place that polls.
//!
//! Model: an attempt yields a result or nothing yet. It is repeated every few milliseconds until a
//! bound, so a fast machine waits little and a slow one does not fail.

use std::thread;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// Returns the result of `attempt` once there is one; panics with `description` if there is none.
#[track_caller]
pub(crate) fn eventually<T>(description: &str, attempt: impl FnMut() -> Option<T>) -> T {
    match within(BOUND, attempt) {
        Some(found) => found,
        None => panic!("not within {BOUND:?}: {description}"),
    }
}

/// Returns the result of `attempt`, or nothing at the limit; the caller reports the failure.
pub(crate) fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let found = attempt();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(PAUSE);
    }
}
