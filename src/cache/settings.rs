//! The settings of the cache.

use std::fmt;
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
    /// Maximum number of keys that are fetched a second because their rule keeps them hot.
    #[serde(with = "settings::count")]
    pub refresh_rate: usize,
    /// Rules for the keys with a prefix.
    pub rules: Vec<KeyRule>,
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
            refresh_rate: 1000,
            rules: Vec::new(),
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
        let rate = format!(
            "found {}, expected 1 to {REFRESH_RATE_MAX}; keys are refreshed only by rules with \
             refresh = true",
            self.refresh_rate
        );
        violations([
            (!(1..=REFRESH_RATE_MAX).contains(&self.refresh_rate), "cache.refresh_rate", &rate),
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

    /// Whether no value is kept, whatever its key.
    pub fn keeps_nothing(&self) -> bool {
        let is_kept = |rule: &KeyRule| {
            rule.mode != RuleMode::Off && rule.ttl.is_some_and(|ttl| !ttl.is_zero())
        };
        self.ttl.is_zero() && !self.rules.iter().any(is_kept)
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

/// The largest rate of refreshes.
const REFRESH_RATE_MAX: usize = 100_000;

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

/// A table of `[[cache.rules]]`: how the keys with a prefix are cached. A key that is left out has
/// the value of `[cache]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRule {
    /// The prefix of the keys, with a `*` behind it.
    pub keys: KeyPrefix,
    /// Whether reads of the keys are answered from memory.
    #[serde(default)]
    pub mode: RuleMode,
    /// Maximum age of a value.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "settings::optional_duration"
    )]
    pub ttl: Option<Duration>,
    /// Maximum age of a negative entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<NegativeTtl>,
    /// Time after the end of freshness during which a value is served while Redis is unavailable.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "settings::optional_duration"
    )]
    pub stale_if_error: Option<Duration>,
    /// Maximum size of a kept value or reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_value: Option<ByteSize>,
    /// Whether keys that are read often are fetched again after a change, and before their TTL ends.
    #[serde(default)]
    pub refresh: bool,
}

impl KeyRule {
    /// The largest number of rules.
    pub const MOST: usize = 64;

    /// Creates a rule that changes nothing.
    pub fn new(keys: KeyPrefix) -> Self {
        let (ttl, negative_ttl, stale_if_error, max_value) = (None, None, None, None);
        let (mode, refresh) = (RuleMode::Cache, false);
        Self { keys, mode, ttl, negative_ttl, stale_if_error, max_value, refresh }
    }
}

/// Whether reads are answered from memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum RuleMode {
    /// They are.
    #[default]
    Cache,
    /// They are not, but values are kept, and would-be hits are counted.
    Observe,
    /// They are not, and nothing is kept.
    Off,
}

impl RuleMode {
    /// Returns the name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }
}

impl TryFrom<String> for RuleMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let modes = [Self::Cache, Self::Observe, Self::Off].map(|mode| (mode.name(), mode));
        settings::parse_choice(&text, modes)
    }
}

/// The prefix of the keys that a rule is for. `*` alone is every key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPrefix(String);

impl KeyPrefix {
    /// Returns the prefix without the `*`.
    pub fn prefix(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl TryFrom<String> for KeyPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_suffix('*') {
            Some(prefix) if !prefix.contains('*') => Ok(Self(prefix.to_owned())),
            _ => Err(format!(
                "invalid value: string {text:?}, expected a prefix with one * behind it, such as \
                    \"session:*\"; a * elsewhere has no meaning"
            )),
        }
    }
}

impl From<KeyPrefix> for String {
    fn from(prefix: KeyPrefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}*", self.0)
    }
}
