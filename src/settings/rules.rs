//! Rules beyond the type of a single value: value ranges, and dependencies between keys.

use std::time::Duration;

/// A key with a value that has the right type but violates a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleViolation {
    /// The configuration key to report.
    pub key: &'static str,
    /// The value that was found and the one that is expected.
    pub text: String,
}

/// Returns the violated `rules`. Each rule is a flag for the violation, the key to report, and the
/// text.
pub fn violations<const N: usize>(rules: [(bool, &'static str, &str); N]) -> Vec<RuleViolation> {
    rules
        .into_iter()
        .filter(|(is_violated, ..)| *is_violated)
        .map(|(_, key, text)| RuleViolation { key, text: text.to_owned() })
        .collect()
}

/// Returns a violation for each limit that is zero or above the range of a semaphore. A limit of
/// zero would reject everything.
pub fn out_of_range<const N: usize>(limits: [(usize, &'static str); N]) -> Vec<RuleViolation> {
    let wrong = limits.into_iter().filter(|(limit, _)| !(1..=MAX_LIMIT).contains(limit));
    wrong
        .map(|(limit, key)| RuleViolation {
            key,
            text: format!("found {limit}, expected a number from 1 to {MAX_LIMIT}"),
        })
        .collect()
}

/// The maximum of every limit by number, more than any machine can use.
const MAX_LIMIT: usize = 1 << 28;

/// Returns a violation for each timeout of zero, which would expire at once.
pub fn zero_timeouts<const N: usize>(
    timeouts: [(Duration, &'static str); N],
) -> Vec<RuleViolation> {
    let zero = timeouts.into_iter().filter(|(timeout, _)| timeout.is_zero());
    zero.map(|(_, key)| RuleViolation {
        key,
        text: "found 0s, expected a duration above zero".to_owned(),
    })
    .collect()
}
