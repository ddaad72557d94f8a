//! Rules that concern the value of a key beside its type, or several keys.

use std::time::Duration;

/// A key and what is wrong with its value although the value by itself is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleViolation {
    /// The key to be named.
    pub key: &'static str,
    /// What was found and what is expected.
    pub text: String,
}

/// Those of `rules` that are broken: each is whether it is, the key to be named, and the text.
pub fn violations<const N: usize>(rules: [(bool, &'static str, &str); N]) -> Vec<RuleViolation> {
    rules
        .into_iter()
        .filter(|(is_violated, ..)| *is_violated)
        .map(|(_, key, text)| RuleViolation { key, text: text.to_owned() })
        .collect()
}

/// Those of `limits` that are zero, which would let nothing through, or more than a semaphore can count.
pub fn out_of_range<const N: usize>(limits: [(usize, &'static str); N]) -> Vec<RuleViolation> {
    let wrong = limits.into_iter().filter(|(limit, _)| !(1..=MAX_LIMIT).contains(limit));
    wrong
        .map(|(limit, key)| RuleViolation {
            key,
            text: format!("found {limit}, expected a number from 1 to {MAX_LIMIT}"),
        })
        .collect()
}

/// More than any machine has of anything that is limited by number.
const MAX_LIMIT: usize = 1 << 28;

/// Those of `timeouts` that are zero and would strike at once.
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
