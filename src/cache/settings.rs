//! What can be configured of the cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ttl::{NegativeTtl, Ttls};
use crate::settings::{self, RuleViolation, violations};

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many keys are kept at most.
    #[serde(with = "settings::count")]
    pub capacity: usize,
    /// How old a value may be; zero: nothing is kept.
    #[serde(with = "settings::duration")]
    pub ttl: Duration,
    /// How old the knowledge may be that a key does not exist.
    pub negative_ttl: NegativeTtl,
    /// For how long after it ceased to be fresh a value stands in when Redis cannot answer.
    #[serde(with = "settings::duration")]
    pub stale_if_error: Duration,
    /// Which entry goes when the cache is full.
    pub policy: Policy,
    /// By what the answers are to be kept true.
    pub coherence: CoherenceMode,
    /// With tracking: for how long one sign of Redis proves that all changes are known.
    #[serde(with = "settings::duration")]
    pub coherence_timeout: Duration,
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

/// Redis has to be asked several times in it.
const COHERENCE_TIMEOUT_MIN: Duration = Duration::from_millis(50);

/// Which entry goes when the cache is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Policy {
    /// The least recently read one.
    Lru,
    /// One read seldom: a new key must have been asked for more often than the one it would drive out.
    Tinylfu,
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(&text, [("lru", Self::Lru), ("tinylfu", Self::Tinylfu)])
    }
}

/// By what the answers are to be kept true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum CoherenceMode {
    /// By tracking where Redis allows it, else by the time to live.
    Auto,
    /// By tracking; where Redis does not allow it, there are no answers.
    Tracking,
    /// By the time to live.
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
