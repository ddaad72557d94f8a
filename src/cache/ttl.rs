//! For how long entries may be given, and how that is changed while reads go on.
//!
//! Each read asks for the lifetimes anew, so they are plain numbers: a reader who asks while they are being changed may get
//! one of before beside one of after, and both were or will be in force.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lease::Voucher;
use crate::settings;

/// For how long entries may be given, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetimes {
    /// How old a value may be.
    pub(super) ttl: u64,
    /// How old the knowledge may be that a key does not exist; [`UNTIL_TOLD`]: that goes by who vouches for it.
    ttl_absent: u64,
    /// For how long after it ceased to be fresh a value may still stand in when Redis cannot answer.
    pub(super) stale_grace: u64,
}

/// The `ttl_absent` that is [`AbsentTtl::Auto`]; a time so long is one nanosecond shorter.
const UNTIL_TOLD: u64 = u64::MAX;

impl Lifetimes {
    pub(super) fn new(ttl: Duration, ttl_absent: AbsentTtl, stale_grace: Duration) -> Self {
        let ttl_absent = match ttl_absent {
            AbsentTtl::Auto => UNTIL_TOLD,
            AbsentTtl::Fixed(ttl) => nanoseconds(ttl).min(UNTIL_TOLD - 1),
        };
        Self { ttl: nanoseconds(ttl), ttl_absent, stale_grace: nanoseconds(stale_grace) }
    }

    /// How old the knowledge may be that a key does not exist.
    pub(super) fn of_absence(&self, voucher: Voucher) -> u64 {
        match (self.ttl_absent, voucher) {
            (UNTIL_TOLD, Voucher::Time) => 0,
            (UNTIL_TOLD, Voucher::Redis | Voucher::Nobody { .. }) => self.ttl,
            (ttl, _) => ttl,
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
            Self::Fixed(ttl) => settings::duration::serialize(ttl, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AbsentTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ttl = settings::duration::or_keyword(AUTO, deserializer)?;
        Ok(ttl.map_or(Self::Auto, Self::Fixed))
    }
}

/// The lifetimes in force.
pub(super) struct InForce {
    ttl: AtomicU64,
    ttl_absent: AtomicU64,
    stale_grace: AtomicU64,
}

impl InForce {
    pub(super) fn new(Lifetimes { ttl, ttl_absent, stale_grace }: Lifetimes) -> Self {
        let [ttl, ttl_absent, stale_grace] = [ttl, ttl_absent, stale_grace].map(AtomicU64::new);
        Self { ttl, ttl_absent, stale_grace }
    }

    pub(super) fn put(&self, lifetimes: Lifetimes) {
        self.ttl.store(lifetimes.ttl, Relaxed);
        self.ttl_absent.store(lifetimes.ttl_absent, Relaxed);
        self.stale_grace.store(lifetimes.stale_grace, Relaxed);
    }

    pub(super) fn get(&self) -> Lifetimes {
        let [ttl, ttl_absent, stale_grace] = [&self.ttl, &self.ttl_absent, &self.stale_grace]
            .map(|nanoseconds| nanoseconds.load(Relaxed));
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
        let second = Duration::from_secs(1);
        let first = Lifetimes::new(second, AbsentTtl::Auto, Duration::ZERO);
        let in_force = InForce::new(first);
        assert_eq!(in_force.get(), first);
        let next = Lifetimes::new(Duration::ZERO, AbsentTtl::Fixed(second), second);
        in_force.put(next);
        assert_eq!(in_force.get(), next);
    }

    #[test]
    fn a_time_without_end_is_not_taken_for_none() {
        let lifetimes =
            Lifetimes::new(Duration::MAX, AbsentTtl::Fixed(Duration::MAX), Duration::MAX);
        assert_eq!(lifetimes.of_absence(Voucher::Time), u64::MAX - 1);
        assert_eq!(
            Lifetimes::new(Duration::MAX, AbsentTtl::Auto, Duration::ZERO)
                .of_absence(Voucher::Time),
            0
        );
    }
}
