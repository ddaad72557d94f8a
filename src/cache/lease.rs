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
pub enum Voucher {
    /// Nobody needs to: the time to live alone bounds how old it is.
    Time,
    /// Redis, which tells of changes.
    Redis,
    /// Nobody, for so long: Redis has not shown that it was heard.
    Nobody {
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

impl From<Voucher> for Coherence {
    fn from(voucher: Voucher) -> Self {
        match voucher {
            Voucher::Time => Self::Ttl,
            Voucher::Redis => Self::Tracking,
            Voucher::Nobody { .. } => Self::None,
        }
    }
}

/// Until when the last proof holds, in nanoseconds on the cache's clock.
pub(super) struct Proof(AtomicU64);

/// No proof is needed.
const FOR_GOOD: u64 = u64::MAX;

impl Proof {
    pub(super) fn not_needed() -> Self {
        Self(AtomicU64::new(FOR_GOOD))
    }

    pub(super) fn set_not_needed(&self) {
        self.0.store(FOR_GOOD, Release);
    }

    /// There is a proof that holds until `clock`.
    pub(super) fn hold_until(&self, clock: u64) {
        self.0.store(clock.min(FOR_GOOD - 1), Release);
    }

    /// Whatever proof there was holds no longer than `clock`, and one is needed from now on.
    pub(super) fn end(&self, clock: u64) {
        self.0.fetch_min(clock.min(FOR_GOOD - 1), AcqRel);
    }

    /// If a proof is needed, that which there is holds no longer than `clock`.
    pub(super) fn shorten(&self, clock: u64) {
        let shorter = |until| (until != FOR_GOOD).then_some(clock.min(until));
        _ = self.0.fetch_update(AcqRel, Acquire, shorter);
    }

    pub(super) fn voucher(&self, clock: u64) -> Voucher {
        match self.0.load(Acquire) {
            FOR_GOOD => Voucher::Time,
            until if clock < until => Voucher::Redis,
            until => Voucher::Nobody { since: Duration::from_nanos(clock - until) },
        }
    }

    /// Who will vouch for what is stored now, if not at this moment then as soon as Redis is heard again.
    pub(super) fn next_voucher(&self) -> Voucher {
        if self.0.load(Acquire) == FOR_GOOD { Voucher::Time } else { Voucher::Redis }
    }
}
