//! `[verify]`: the comparison of answers from memory with Redis.

use serde::{Deserialize, Serialize};

use crate::settings::{self, Ratio, RuleViolation, violations};

/// The most checks a second that can be set.
const MAX_RATE_MOST: usize = 10_000;

/// `[verify]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The part of the answers from memory that is compared, from 0 to 1.
    pub sample: Ratio,
    /// The most comparisons a second.
    #[serde(with = "settings::count")]
    pub max_rate: usize,
    /// The reaction to a stale answer.
    pub on_stale: OnStale,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sample: Ratio(0.0), max_rate: 100, on_stale: OnStale::Drop }
    }
}

impl Settings {
    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let rate = format!(
            "found {}, expected 1 to {MAX_RATE_MOST}; nothing is verified with verify.sample = 0",
            self.max_rate
        );
        violations([(!(1..=MAX_RATE_MOST).contains(&self.max_rate), "verify.max_rate", &rate)])
    }
}

/// The reaction to a stale answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum OnStale {
    /// Everything in memory is dropped.
    #[default]
    Drop,
    /// The keys of the answer are dropped.
    Log,
}

impl TryFrom<String> for OnStale {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(&text, [("drop", Self::Drop), ("log", Self::Log)])
    }
}
