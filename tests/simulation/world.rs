//! The state that all parts of one simulation share: the time, chance, and the trace.
//!
//! The rule: every choice comes from one generator, and all parts run on one thread. So the seed
//! decides everything, and the trace of two runs of a seed is the same.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::chance::number;

/// Locks a mutex that no other thread uses.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[derive(Clone)]
pub(super) struct World(Arc<Shared>);

struct Shared {
    start: Instant,
    seed: u64,
    drawn: AtomicU64,
    trace: Mutex<Trace>,
}

struct Trace {
    hasher: DefaultHasher,
    events: u64,
    is_printed: bool,
}

impl World {
    /// A world that begins now. With `is_printed` each event goes to standard error too.
    pub(super) fn new(seed: u64, is_printed: bool) -> Self {
        let trace = Trace { hasher: DefaultHasher::new(), events: 0, is_printed };
        Self(Arc::new(Shared {
            start: Instant::now(),
            seed,
            drawn: AtomicU64::new(0),
            trace: Mutex::new(trace),
        }))
    }

    /// Returns the time since the start.
    pub(super) fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    pub(super) fn instant(&self, moment: Duration) -> Instant {
        self.0.start + moment
    }

    /// Returns a random number from `least` to `most`.
    pub(super) fn between(&self, least: u64, most: u64) -> u64 {
        least + number(self.0.seed, self.0.drawn.fetch_add(1, Relaxed)) % (most - least + 1)
    }

    /// Returns a random index of a list of this length.
    pub(super) fn index(&self, length: usize) -> usize {
        let last = u64::try_from(length).unwrap_or(1).saturating_sub(1);
        usize::try_from(self.between(0, last)).unwrap_or(0)
    }

    pub(super) fn chance(&self, percent: u64) -> bool {
        self.between(1, 100) <= percent
    }

    /// Returns a random duration, in whole milliseconds.
    pub(super) fn duration(&self, least: u64, most: u64) -> Duration {
        ms(self.between(least, most))
    }

    /// Adds an event to the trace.
    pub(super) fn record(&self, event: impl FnOnce() -> String) {
        let (now, text) = (self.now(), event());
        let mut trace = lock(&self.0.trace);
        trace.events += 1;
        trace.hasher.write_u128(now.as_nanos());
        trace.hasher.write(text.as_bytes());
        if trace.is_printed {
            eprintln!("{:>12.3} ms  {text}", now.as_secs_f64() * 1000.0);
        }
    }

    /// Returns the digest of the trace, and the number of its events.
    pub(super) fn trace(&self) -> (u64, u64) {
        let trace = lock(&self.0.trace);
        (trace.hasher.finish(), trace.events)
    }
}
