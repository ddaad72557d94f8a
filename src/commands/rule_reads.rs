//! The rules of the keys of a forwarded read, to be counted when it is sent.

use super::memory::Memory;
use crate::cache::{Outcome, RuleId, RuleMode, RuleOutcome, RuleRead};

/// Reads by rule and outcome. Empty without rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleReads(Vec<(RuleRead, u64)>);

impl RuleReads {
    /// The reads of `keys`. `would_hit` returns whether a read of a key would have been a hit but
    /// for the mode `observe`.
    pub(super) fn new<'a>(
        memory: &impl Memory,
        keys: impl Iterator<Item = &'a [u8]>,
        would_hit: impl Fn(&[u8]) -> bool,
    ) -> Self {
        let mut reads: Vec<(RuleRead, u64)> = Vec::new();
        for key in keys {
            let Some((id, mode)) = memory.rule_of([key].into_iter()) else { break };
            if id == RuleId::NONE {
                continue;
            }
            let read = RuleRead { id, would_hit: mode == RuleMode::Observe && would_hit(key) };
            match reads.iter_mut().find(|(other, _)| *other == read) {
                Some((_, count)) => *count += 1,
                None => reads.push((read, 1)),
            }
        }
        Self(reads)
    }

    /// One read of this rule.
    pub(super) fn one(read: RuleRead) -> Self {
        Self(if read.id == RuleId::NONE { Vec::new() } else { vec![(read, 1)] })
    }

    /// The reads, each with its rule, its outcome and their number.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, RuleOutcome, u64)> {
        self.0.iter().map(|(read, count)| (read.id, read.outcome(Outcome::Bypass), *count))
    }
}
