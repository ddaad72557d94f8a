//! The lease: a time limit until which the stored entries are known to match Redis.
//!
//! While tracking is active, Redis pushes an invalidation for each change of a tracked key. A reply
//! to `PING` renews the lease. Before that reply, Redis queued the invalidations of all writes that
//! it had acknowledged when the `PING` was sent. The proxy reads both in order. A renewal is valid
//! for `coherence_timeout` from the time of the request. So no unseen write is ever older than
//! that, whatever happens to the connection. Without tracking, only the time to live limits
//! staleness.
//!
//! Invariant C1: a reader reads the lease *before* it looks in the store, and the store is cleared
//! before a new lease starts. In the other order the new lease would cover an entry from before it.

use std::time::Duration;

use super::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

/// The guarantee for the stored entries at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// No lease is needed: the time to live alone limits the age of an entry.
    TtlOnly,
    /// The lease is valid: every change older than `coherence_timeout` has been applied.
    Tracked,
    /// The lease has expired: the connection was lost, or Redis did not reply in time.
    Expired {
        /// Time since the lease expired.
        since: Duration,
    },
}

/// The mechanism that bounds the staleness of cached values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coherence {
    /// Invalidations from Redis, under a valid lease.
    Tracking,
    /// The time to live.
    Ttl,
    /// None at present: no entry is served as fresh.
    None,
}

impl Coherence {
    /// Returns the name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tracking => "tracking",
            Self::Ttl => "ttl",
            Self::None => "none",
        }
    }
}

impl From<Validity> for Coherence {
    fn from(validity: Validity) -> Self {
        match validity {
            Validity::TtlOnly => Self::Ttl,
            Validity::Tracked => Self::Tracking,
            Validity::Expired { .. } => Self::None,
        }
    }
}

/// The end of the lease, in nanoseconds on the cache's clock; or [`TTL_ONLY`].
pub(super) struct Lease(AtomicU64);

/// No lease is needed.
const TTL_ONLY: u64 = u64::MAX;

impl Lease {
    pub(super) fn ttl_only() -> Self {
        Self(AtomicU64::new(TTL_ONLY))
    }

    pub(super) fn set_ttl_only(&self) {
        self.0.store(TTL_ONLY, Release);
    }

    /// Sets the end of the lease to `clock`, in nanoseconds on the cache's clock.
    pub(super) fn renew_until(&self, clock: u64) {
        self.0.store(clock.min(TTL_ONLY - 1), Release);
    }

    /// Ends the lease at `clock` at the latest. Ends TTL mode too: a lease is needed from now on.
    pub(super) fn expire_at(&self, clock: u64) {
        self.0.fetch_min(clock.min(TTL_ONLY - 1), AcqRel);
    }

    /// Shortens the lease to `clock` at the latest. Changes nothing in TTL mode.
    pub(super) fn shorten_to(&self, clock: u64) {
        let shorter = |until| (until != TTL_ONLY).then_some(clock.min(until));
        _ = self.0.fetch_update(AcqRel, Acquire, shorter);
    }

    pub(super) fn validity(&self, clock: u64) -> Validity {
        match self.0.load(Acquire) {
            TTL_ONLY => Validity::TtlOnly,
            until if clock < until => Validity::Tracked,
            until => Validity::Expired { since: Duration::from_nanos(clock - until) },
        }
    }

    /// Returns the time that is left of the lease at `clock`; the maximum in TTL mode.
    pub(super) fn remaining(&self, clock: u64) -> Duration {
        Duration::from_nanos(self.0.load(Acquire).saturating_sub(clock))
    }

    /// Returns the guarantee that applies now, or after the next renewal if the lease has expired.
    pub(super) fn next_validity(&self) -> Validity {
        if self.0.load(Acquire) == TTL_ONLY { Validity::TtlOnly } else { Validity::Tracked }
    }
}
