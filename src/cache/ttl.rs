//! The TTLs of cached entries, and their change at run time.
//!
//! Each read loads the TTLs again, so they are plain atomics. A read during a change may combine
//! one previous TTL with one new TTL. That is harmless: both were or will be in force.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lease::Validity;
use crate::settings;

/// The TTLs of cached entries, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ttls {
    /// Maximum age of a value.
    pub(super) ttl: u64,
    /// Maximum age of a negative entry. [`AUTO_NEGATIVE`] means that it depends on the lease.
    negative_ttl: u64,
    /// Time after the end of freshness during which a value may be served while Redis is
    /// unavailable.
    pub(super) stale_if_error: u64,
}

/// The `negative_ttl` of [`NegativeTtl::Auto`]. A configured time of that length becomes one
/// nanosecond shorter.
const AUTO_NEGATIVE: u64 = u64::MAX;

impl Ttls {
    /// Nothing is kept.
    pub(super) const NOTHING: Self = Self { ttl: 0, negative_ttl: 0, stale_if_error: 0 };

    pub(super) fn new(ttl: Duration, negative_ttl: NegativeTtl, stale_if_error: Duration) -> Self {
        let negative_ttl = match negative_ttl {
            NegativeTtl::Auto => AUTO_NEGATIVE,
            NegativeTtl::Fixed(ttl) => as_nanos(ttl).min(AUTO_NEGATIVE - 1),
        };
        Self { ttl: as_nanos(ttl), negative_ttl, stale_if_error: as_nanos(stale_if_error) }
    }

    /// Returns the maximum age of a negative entry, in nanoseconds. 0 disables negative caching.
    pub(super) fn negative_ttl_for(&self, validity: Validity) -> u64 {
        match (self.negative_ttl, validity) {
            (AUTO_NEGATIVE, Validity::TtlOnly) => 0,
            (AUTO_NEGATIVE, Validity::Tracked | Validity::Expired { .. }) => self.ttl,
            (ttl, _) => ttl,
        }
    }
}

/// The maximum age of a negative entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NegativeTtl {
    /// The maximum age of a value in tracking mode, because Redis pushes the creation of the key. 0
    /// in TTL mode.
    Auto,
    /// A fixed maximum age; 0 disables negative caching.
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

/// The TTLs in force.
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

/// Converts to nanoseconds, at most `u64::MAX`. That is more than 500 years and as good as any
/// longer time.
pub(super) fn as_nanos(duration: Duration) -> u64 {
    // Cheaper than `Duration::as_nanos`, which has 128 bits.
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
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
