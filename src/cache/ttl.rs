//! For how long entries may be given, and how that is changed while reads go on.
//!
//! Each read asks for the lifetimes anew, so they are plain numbers: a reader who asks while they are being changed may get
//! one of before beside one of after, and both were or will be in force.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lease::Validity;
use crate::settings;

/// For how long entries may be given, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ttls {
    /// How old a value may be.
    pub(super) ttl: u64,
    /// How old the knowledge may be that a key does not exist; [`AUTO_NEGATIVE`]: that goes by who vouches for it.
    negative_ttl: u64,
    /// For how long after it ceased to be fresh a value may still stand in when Redis cannot answer.
    pub(super) stale_if_error: u64,
}

/// The `negative_ttl` that is [`NegativeTtl::Auto`]; a time so long is one nanosecond shorter.
const AUTO_NEGATIVE: u64 = u64::MAX;

impl Ttls {
    pub(super) fn new(ttl: Duration, negative_ttl: NegativeTtl, stale_if_error: Duration) -> Self {
        let negative_ttl = match negative_ttl {
            NegativeTtl::Auto => AUTO_NEGATIVE,
            NegativeTtl::Fixed(ttl) => as_nanos(ttl).min(AUTO_NEGATIVE - 1),
        };
        Self { ttl: as_nanos(ttl), negative_ttl, stale_if_error: as_nanos(stale_if_error) }
    }

    /// How old the knowledge may be that a key does not exist.
    pub(super) fn negative_ttl_for(&self, validity: Validity) -> u64 {
        match (self.negative_ttl, validity) {
            (AUTO_NEGATIVE, Validity::TtlOnly) => 0,
            (AUTO_NEGATIVE, Validity::Tracked | Validity::Expired { .. }) => self.ttl,
            (ttl, _) => ttl,
        }
    }
}

/// How old the knowledge may be that a key does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NegativeTtl {
    /// As old as a value where Redis tells when the key comes to be; not kept where it does not.
    Auto,
    /// So old; zero: it is not kept.
    Fixed(Duration),
}

const AUTO: &str = "auto";

impl Serialize for NegativeTtl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Fixed(ttl) => settings::duration::serialize(ttl, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for NegativeTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ttl = settings::duration::or_keyword(AUTO, deserializer)?;
        Ok(ttl.map_or(Self::Auto, Self::Fixed))
    }
}

/// The lifetimes in force.
pub(super) struct CurrentTtls {
    ttl: AtomicU64,
    negative_ttl: AtomicU64,
    stale_if_error: AtomicU64,
}

impl CurrentTtls {
    pub(super) fn new(Ttls { ttl, negative_ttl, stale_if_error }: Ttls) -> Self {
        let [ttl, negative_ttl, stale_if_error] =
            [ttl, negative_ttl, stale_if_error].map(AtomicU64::new);
        Self { ttl, negative_ttl, stale_if_error }
    }

    pub(super) fn set(&self, ttls: Ttls) {
        self.ttl.store(ttls.ttl, Relaxed);
        self.negative_ttl.store(ttls.negative_ttl, Relaxed);
        self.stale_if_error.store(ttls.stale_if_error, Relaxed);
    }

    pub(super) fn get(&self) -> Ttls {
        let [ttl, negative_ttl, stale_if_error] =
            [&self.ttl, &self.negative_ttl, &self.stale_if_error]
                .map(|as_nanos| as_nanos.load(Relaxed));
        Ttls { ttl, negative_ttl, stale_if_error }
    }
}

/// In nanoseconds; five hundred years are as good as more.
pub(super) fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_ttls_are_read_back() {
        let second = Duration::from_secs(1);
        let first = Ttls::new(second, NegativeTtl::Auto, Duration::ZERO);
        let current = CurrentTtls::new(first);
        assert_eq!(current.get(), first);
        let next = Ttls::new(Duration::ZERO, NegativeTtl::Fixed(second), second);
        current.set(next);
        assert_eq!(current.get(), next);
    }

    #[test]
    fn infinite_ttl_is_not_zero() {
        let ttls = Ttls::new(Duration::MAX, NegativeTtl::Fixed(Duration::MAX), Duration::MAX);
        assert_eq!(ttls.negative_ttl_for(Validity::TtlOnly), u64::MAX - 1);
        assert_eq!(
            Ttls::new(Duration::MAX, NegativeTtl::Auto, Duration::ZERO)
                .negative_ttl_for(Validity::TtlOnly),
            0
        );
    }
}
