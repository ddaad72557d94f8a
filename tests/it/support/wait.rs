//! Waiting by looking: the one place that polls.
//!
//! Model: an attempt either yields what was awaited or nothing yet. It is made again every few
//! milliseconds until a bound, so a fast machine waits little and a slow one is not failed.

use std::thread;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// Returns what `attempt` yields once it yields something; panics with `description` if it
/// never does.
#[track_caller]
pub(crate) fn eventually<T>(description: &str, attempt: impl FnMut() -> Option<T>) -> T {
    match within(BOUND, attempt) {
        Some(found) => found,
        None => panic!("not within {BOUND:?}: {description}"),
    }
}

/// As [`eventually`], for a bound of its own and a caller that has more to say on failure.
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
