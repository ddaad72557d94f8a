//! Who vouches that what is stored is what Redis holds.
//!
//! Where Redis tells of changes, memory is as good as the last proof that all it told has been heeded. The answer to a
//! question asked at a certain time is such a proof: Redis queued what it had to tell of every write it had
//! acknowledged by then before the answer, and both are read in order. A proof holds for `coherence_timeout` from when
//! the question was asked, so no write is ever older than that and unseen, whatever became of the link. Where Redis does
//! not tell, time alone decides.
//!
//! The rule that must not be broken: a reader asks here *before* it looks in the store. Whoever lets the proofs begin
//! anew empties the store first; asked afterwards, the new proof would vouch for an entry of before.

use std::time::Duration;

use super::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

/// Who vouches for what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Nobody needs to: the time to live alone bounds how old it is.
    TtlOnly,
    /// Redis, which tells of changes.
    Tracked,
    /// Nobody, for so long: Redis has not shown that it was heard.
    Expired {
        /// How long ago the last proof ran out.
        since: Duration,
    },
}

/// By what the answers of the cache are kept true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coherence {
    /// Redis tells of changes.
    Tracking,
    /// The time to live bounds how old they are.
    Ttl,
    /// Nothing: nothing is given as fresh.
    None,
}

impl Coherence {
    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tracking => "tracking",
            Self::Ttl => "ttl",
            Self::None => "none",
        }
    }
}

impl From<Validity> for Coherence {
    fn from(voucher: Validity) -> Self {
        match voucher {
            Validity::TtlOnly => Self::Ttl,
            Validity::Tracked => Self::Tracking,
            Validity::Expired { .. } => Self::None,
        }
    }
}

/// Until when the last proof holds, in nanoseconds on the cache's clock.
pub(super) struct Lease(AtomicU64);

/// No proof is needed.
const TTL_ONLY: u64 = u64::MAX;

impl Lease {
    pub(super) fn ttl_only() -> Self {
        Self(AtomicU64::new(TTL_ONLY))
    }

    pub(super) fn set_ttl_only(&self) {
        self.0.store(TTL_ONLY, Release);
    }

    /// There is a proof that holds until `clock`.
    pub(super) fn renew_until(&self, clock: u64) {
        self.0.store(clock.min(TTL_ONLY - 1), Release);
    }

    /// Whatever proof there was holds no longer than `clock`, and one is needed from now on.
    pub(super) fn expire_at(&self, clock: u64) {
        self.0.fetch_min(clock.min(TTL_ONLY - 1), AcqRel);
    }

    /// If a proof is needed, that which there is holds no longer than `clock`.
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

    /// Who will vouch for what is stored now, if not at this moment then as soon as Redis is heard again.
    pub(super) fn next_validity(&self) -> Validity {
        if self.0.load(Acquire) == TTL_ONLY { Validity::TtlOnly } else { Validity::Tracked }
    }
}
