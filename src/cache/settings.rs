//! The settings of the cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ttl::{NegativeTtl, Ttls};
use crate::settings::{
    self, ByteSize, MemorySize, Percent, RuleViolation, available_memory, violations,
};

/// The `[cache]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Maximum number of entries.
    #[serde(with = "settings::count")]
    pub capacity: usize,
    /// Maximum memory of all that is kept.
    pub max_memory: MemorySize,
    /// Part of that memory which kept replies may take.
    pub reply_share: Percent,
    /// Maximum memory of large values that are being fetched or written to clients.
    pub max_in_flight: ByteSize,
    /// Maximum age of a value; 0 disables caching.
    #[serde(with = "settings::duration")]
    pub ttl: Duration,
    /// Maximum age of a negative entry.
    pub negative_ttl: NegativeTtl,
    /// Time after the end of freshness during which a value is served while Redis is unavailable.
    #[serde(with = "settings::duration")]
    pub stale_if_error: Duration,
    /// Eviction policy of a full cache.
    pub policy: Policy,
    /// Required mechanism that bounds staleness.
    pub coherence: CoherenceMode,
    /// Duration of the lease in tracking mode, counted from the request that renews it.
    #[serde(with = "settings::duration")]
    pub coherence_timeout: Duration,
    /// Maximum memory of kept replies, in bytes; 0 keeps none.
    pub max_reply_memory: ByteSize,
    /// Maximum size of a kept reply, in bytes.
    pub max_reply: ByteSize,
    /// Maximum number of fields or members of a kept hash or set from which other replies are
    /// derived; 0 derives none.
    #[serde(with = "settings::count")]
    pub hash_fields: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            max_memory: MemorySize::Auto,
            reply_share: Percent(25),
            max_in_flight: ByteSize(64 << 20),
            ttl: Duration::from_secs(60),
            negative_ttl: NegativeTtl::Auto,
            stale_if_error: Duration::ZERO,
            policy: Policy::Lru,
            coherence: CoherenceMode::Auto,
            coherence_timeout: Duration::from_secs(3),
            max_reply_memory: ByteSize(64 << 20),
            max_reply: ByteSize(1 << 20),
            hash_fields: 64,
        }
    }
}

impl Settings {
    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let nothing = "found 0, expected at least 1; to keep nothing, set cache.ttl to 0";
        let impatient = self.coherence_timeout < COHERENCE_TIMEOUT_MIN;
        let patience = format!(
            "found {:?}, expected at least {COHERENCE_TIMEOUT_MIN:?}",
            self.coherence_timeout
        );
        let available = available_memory();
        let memory = self.max_memory.bytes(|| available);
        let memory_bounds = format!(
            "found {}, expected at least {} and at most the available memory, {available} bytes",
            self.max_memory,
            ByteSize(MAX_MEMORY_MIN)
        );
        let in_flight =
            format!("found {}, expected at least {}", self.max_in_flight, ByteSize(MAX_MEMORY_MIN));
        violations([
            (self.max_in_flight.0 < MAX_MEMORY_MIN, "cache.max_in_flight", &in_flight),
            (self.capacity == 0, "cache.capacity", nothing),
            (impatient, "cache.coherence_timeout", &patience),
            (!(MAX_MEMORY_MIN..=available).contains(&memory), "cache.max_memory", &memory_bounds),
        ])
    }

    /// Returns a warning if the capacity can never be reached within the bound on memory.
    pub fn capacity_warning(&self) -> Option<String> {
        let memory = self.max_memory.bytes(available_memory);
        let needed = self.capacity.saturating_mul(SMALLEST_ENTRY);
        (needed > memory).then(|| {
            format!(
                "cache.capacity (--k) of {} cannot be reached: even entries without key and value \
                 take {needed} bytes, and cache.max_memory allows {memory}",
                self.capacity
            )
        })
    }

    pub(super) fn ttls(&self) -> Ttls {
        Ttls::new(self.ttl, self.negative_ttl, self.stale_if_error)
    }
}

/// The smallest of each bound on memory, in bytes.
const MAX_MEMORY_MIN: usize = 1 << 20;
/// The bytes of an entry without key and value: the smallest block of an entry, its node in the
/// order, and its place in a table that is as full as tables get.
pub(super) const SMALLEST_ENTRY: usize = 48 + 16 + 10;

/// The shortest timeout that leaves time for several renewals.
const COHERENCE_TIMEOUT_MIN: Duration = Duration::from_millis(50);

/// The eviction policy of a full cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Policy {
    /// Evicts the least recently read entry.
    Lru,
    /// Evicts an entry that is read rarely or was not read lately, and learns from the reads which
    /// of the two matters more.
    Tinylfu,
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(&text, [("lru", Self::Lru), ("tinylfu", Self::Tinylfu)])
    }
}

/// The required mechanism that bounds staleness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum CoherenceMode {
    /// Tracking if Redis allows it, otherwise the time to live.
    Auto,
    /// Tracking only: if Redis does not allow it, reads get no answers.
    Tracking,
    /// The time to live.
    Ttl,
}

impl TryFrom<String> for CoherenceMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(
            &text,
            [("auto", Self::Auto), ("tracking", Self::Tracking), ("ttl", Self::Ttl)],
        )
    }
}
