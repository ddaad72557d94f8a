//! Faults for tests of verification. They are in no release: the feature `planted-faults` compiles
//! them, and a test looks for the name of their variable in the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cache::planted_faults::{self, Fault};

/// The variable with the number N: one in N pushed keys is ignored.
const VARIABLE: &str = "PLANTED_FAULT_IGNORED_PUSHES";

/// The faults of one connection. Clones share their state.
#[derive(Clone)]
pub(super) struct PlantedFaults(Arc<Shared>);

struct Shared {
    /// One in so many pushed keys is ignored. Zero: none is.
    every: u64,
    pushes: AtomicU64,
}

impl PlantedFaults {
    /// Returns the faults that are planted on this thread, or that the environment asks for.
    pub(super) fn planted() -> Self {
        let every = match planted_faults::planted() {
            Some(Fault::IgnoredPushes(every)) => Some(every),
            _ => std::env::var(VARIABLE).ok().and_then(|number| number.parse().ok()),
        };
        Self(Arc::new(Shared { every: every.unwrap_or(0), pushes: AtomicU64::new(0) }))
    }

    /// Whether the next pushed key is to be ignored.
    pub(super) fn ignores_push(&self) -> bool {
        let Shared { every, pushes } = &*self.0;
        *every > 0 && pushes.fetch_add(1, Relaxed) % every == every - 1
    }
}

/// Whether a session's own writes need no fence.
pub(super) fn is_no_fence() -> bool {
    planted_faults::is_planted(Fault::NoFence)
}

/// Whether the connections of clients to Redis outlive a failover.
pub(super) fn is_failover_outlived() -> bool {
    planted_faults::is_planted(Fault::OutlivedFailover)
}
