//! For how long entries may be given, and how that is changed while reads go on.
//!
//! Each read asks for the lifetimes anew, so they are plain numbers: a reader who asks while they are being changed may get
//! one of before beside one of after, and both were or will be in force.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::coherence::Voucher;
use crate::units;

/// For how long entries may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// How old a value may be.
    pub ttl: Duration,
    /// How old the knowledge may be that a key does not exist.
    pub ttl_absent: AbsentTtl,
    /// For how long after it ceased to be fresh a value may still stand in when Redis cannot answer.
    pub stale_grace: Duration,
}

impl Lifetimes {
    pub(super) fn of_absence(&self, voucher: Voucher) -> Duration {
        match (self.ttl_absent, voucher) {
            (AbsentTtl::Fixed(ttl), _) => ttl,
            (AbsentTtl::Auto, Voucher::Time) => Duration::ZERO,
            (AbsentTtl::Auto, Voucher::Redis | Voucher::Nobody { .. }) => self.ttl,
        }
    }
}

/// How old the knowledge may be that a key does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsentTtl {
    /// As old as a value where Redis tells when the key comes to be; not kept where it does not.
    Auto,
    /// So old; zero: it is not kept.
    Fixed(Duration),
}

const AUTO: &str = "auto";

impl Serialize for AbsentTtl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Fixed(ttl) => units::duration::serialize(ttl, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AbsentTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ttl = units::duration::or_word(AUTO, deserializer)?;
        Ok(ttl.map_or(Self::Auto, Self::Fixed))
    }
}

/// The lifetimes in force, in nanoseconds.
pub(super) struct InForce {
    ttl: AtomicU64,
    ttl_absent: AtomicU64,
    stale_grace: AtomicU64,
}

/// The `ttl_absent` that is [`AbsentTtl::Auto`]; a time so long is one nanosecond shorter.
const UNTIL_TOLD: u64 = u64::MAX;

impl InForce {
    pub(super) fn new(lifetimes: Lifetimes) -> Self {
        let in_force = Self { ttl: AtomicU64::new(0), ttl_absent: AtomicU64::new(0), stale_grace: AtomicU64::new(0) };
        in_force.put(lifetimes);
        in_force
    }

    pub(super) fn put(&self, lifetimes: Lifetimes) {
        let absent = match lifetimes.ttl_absent {
            AbsentTtl::Auto => UNTIL_TOLD,
            AbsentTtl::Fixed(ttl) => nanoseconds(ttl).min(UNTIL_TOLD - 1),
        };
        self.ttl.store(nanoseconds(lifetimes.ttl), Relaxed);
        self.ttl_absent.store(absent, Relaxed);
        self.stale_grace.store(nanoseconds(lifetimes.stale_grace), Relaxed);
    }

    pub(super) fn get(&self) -> Lifetimes {
        let ttl_absent = match self.ttl_absent.load(Relaxed) {
            UNTIL_TOLD => AbsentTtl::Auto,
            ttl => AbsentTtl::Fixed(Duration::from_nanos(ttl)),
        };
        let [ttl, stale_grace] =
            [&self.ttl, &self.stale_grace].map(|nanoseconds| Duration::from_nanos(nanoseconds.load(Relaxed)));
        Lifetimes { ttl, ttl_absent, stale_grace }
    }
}

/// In nanoseconds; five hundred years are as good as more.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_force_is_in_force() {
        let lifetimes = |ttl, ttl_absent, grace| Lifetimes {
            ttl: Duration::from_secs(ttl),
            ttl_absent,
            stale_grace: Duration::from_nanos(grace),
        };
        let in_force = InForce::new(lifetimes(60, AbsentTtl::Auto, 0));
        assert_eq!(in_force.get(), lifetimes(60, AbsentTtl::Auto, 0));
        for next in [lifetimes(0, AbsentTtl::Fixed(Duration::from_millis(5)), 1), lifetimes(5, AbsentTtl::Auto, 7)] {
            in_force.put(next);
            assert_eq!(in_force.get(), next);
        }
        in_force.put(lifetimes(u64::MAX, AbsentTtl::Fixed(Duration::MAX), 0));
        assert!(in_force.get().ttl > Duration::from_secs(1 << 34));
        assert!(matches!(in_force.get().ttl_absent, AbsentTtl::Fixed(_)));
    }
}
