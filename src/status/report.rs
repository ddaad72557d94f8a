//! The report: how many reads of each rule needed no request to Redis, or would have needed none.

use serde_json::{Map, Value, json};

use super::history::ratio;
use crate::cache::{Outcome, RuleId, RuleMode, RuleOutcome, Statistics};
use crate::metrics::Metrics;

/// Reads by outcome, in the order of [`RuleOutcome::all`].
type Reads = [u64; RuleOutcome::COUNT];

/// Returns the reads of the rules in force, and those of all other keys.
pub(super) fn report(statistics: &Statistics, metrics: &Metrics) -> Value {
    let mut others: Reads = [0; RuleOutcome::COUNT];
    for (outcome, times) in Outcome::ALL.into_iter().zip(metrics.outcome_times()) {
        others[RuleOutcome::Read(outcome).index()] = times.count();
    }
    let reads = statistics.rule_names.iter().enumerate();
    let reads: Vec<(&String, Reads)> =
        reads.map(|(index, name)| (name, metrics.rule_reads(RuleId::at(index)))).collect();
    for (_, of_rule) in &reads {
        for (outcome, count) in RuleOutcome::all().zip(of_rule) {
            // The count of all reads knows no would-be hits.
            let (RuleOutcome::Read(as_read) | RuleOutcome::WouldHit(as_read)) = outcome;
            let all = &mut others[RuleOutcome::Read(as_read).index()];
            *all = all.saturating_sub(*count);
        }
    }
    let rules = statistics.settings.rules.iter().map(|rule| {
        let name = rule.keys.to_string();
        let own = reads.iter().find(|(other, _)| **other == name);
        row(&name, rule.mode, own.map_or([0; RuleOutcome::COUNT], |(_, reads)| *reads))
    });
    json!({
        "rules": rules.collect::<Vec<_>>(),
        "others": row("others", RuleMode::Cache, others),
    })
}

fn row(keys: &str, mode: RuleMode, reads: Reads) -> Value {
    let sum = |counts: fn(RuleOutcome) -> bool| -> u64 {
        RuleOutcome::all().zip(reads).filter(|(outcome, _)| counts(*outcome)).map(|(_, n)| n).sum()
    };
    let (total, spared) = (sum(|_| true), sum(is_spared));
    let would_hit = sum(|outcome| matches!(outcome, RuleOutcome::WouldHit(_)));
    let mut outcomes: Map<_, _> = Outcome::ALL
        .into_iter()
        .zip(reads)
        .map(|(outcome, n)| (outcome.name().to_owned(), n.into()))
        .collect();
    outcomes.insert("would_hit".to_owned(), would_hit.into());
    json!({
        "keys": keys,
        "mode": mode.name(),
        "reads": total,
        "spared": spared,
        "spared_ratio": ratio(spared, total),
        "would_hit": would_hit,
        "outcomes": outcomes,
    })
}

/// Whether such a read needs no request of its own, or would need none.
fn is_spared(outcome: RuleOutcome) -> bool {
    match outcome {
        RuleOutcome::WouldHit(_) => true,
        RuleOutcome::Read(outcome) => outcome.from_memory() || outcome == Outcome::Coalesced,
    }
}
