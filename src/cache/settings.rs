//! The settings of the cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ttl::{NegativeTtl, Ttls};
use crate::settings::{self, ByteSize, RuleViolation, violations};

/// The `[cache]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Maximum number of entries.
    #[serde(with = "settings::count")]
    pub capacity: usize,
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
        violations([
            (self.capacity == 0, "cache.capacity", nothing),
            (impatient, "cache.coherence_timeout", &patience),
        ])
    }

    pub(super) fn ttls(&self) -> Ttls {
        Ttls::new(self.ttl, self.negative_ttl, self.stale_if_error)
    }
}

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
