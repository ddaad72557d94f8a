//! The counts of commands that are decided together, so that equal ones are recorded at once.

use tokio::time::Instant;

use crate::cache::{LookupTime, Outcome, RuleId, RuleOutcome};
use crate::commands::CachedReply;
use crate::metrics::{FrontEnd, Kind};
use crate::proxy::Proxy;

/// Commands that were taken together, to be counted together.
pub(super) struct Batch {
    front_end: FrontEnd,
    pub(super) begun: BatchTime,
    /// Reads that were answered, by outcome.
    outcomes: Outcomes,
    /// The label of the last command, and how many in a row have it and are not counted yet.
    commands: (usize, u64),
    /// The kind and outcome of the last kept reads, and how many in a row have them and are not
    /// counted yet.
    kept_reads: Option<(Kind, Outcome, u64)>,
    /// The last reads that memory answered, which are not counted for their rule yet.
    rule_reads: RuleRun,
}

/// The beginning of a batch.
#[derive(Clone, Copy)]
pub(super) struct BatchTime {
    pub(super) now: Instant,
    pub(super) lookup_time: LookupTime,
}

/// The reads of a batch with the same rule in a row.
#[derive(Clone, Copy)]
struct RuleRun {
    rule: RuleId,
    /// The reads of the batch that memory answered before the first of them, by outcome.
    before: [u64; ANSWERED.len()],
}

type Outcomes = [u64; Outcome::ALL.len()];

/// The outcomes of reads that memory answered. Others are counted where they are forwarded.
const ANSWERED: [Outcome; 2] = [Outcome::Hit, Outcome::NegativeHit];

fn answered(outcomes: &Outcomes) -> [u64; ANSWERED.len()] {
    ANSWERED.map(|outcome| outcomes[outcome as usize])
}

impl RuleRun {
    /// Counts the run and begins another, of reads that are not among `outcomes` yet.
    #[cold]
    fn begin(&mut self, rule: RuleId, outcomes: &Outcomes, proxy: &Proxy) {
        self.record(outcomes, proxy);
        (self.rule, self.before) = (rule, answered(outcomes));
    }

    /// Counts those that memory answered.
    #[inline]
    fn record(&self, outcomes: &Outcomes, proxy: &Proxy) {
        if self.rule != RuleId::NONE {
            self.record_answered(outcomes, proxy);
        }
    }

    fn record_answered(&self, outcomes: &Outcomes, proxy: &Proxy) {
        let counts = answered(outcomes).into_iter().zip(self.before);
        for (outcome, (now, before)) in ANSWERED.into_iter().zip(counts) {
            let reads = now - before;
            if reads > 0 {
                proxy.record_rule(self.rule, RuleOutcome::Read(outcome), reads);
            }
        }
    }
}

impl Batch {
    /// No commands yet.
    pub(super) fn new(front_end: FrontEnd, begun: BatchTime) -> Self {
        let outcomes = [0; Outcome::ALL.len()];
        let rule_reads = RuleRun { rule: RuleId::NONE, before: answered(&outcomes) };
        Self { front_end, begun, outcomes, commands: (0, 0), kept_reads: None, rule_reads }
    }

    /// Counts the outcome of an entry that a reply from memory uses, and its rule.
    #[inline]
    pub(super) fn add_hit(&mut self, outcome: Outcome, rule: RuleId, proxy: &Proxy) {
        if rule != self.rule_reads.rule {
            self.rule_reads.begin(rule, &self.outcomes, proxy);
        }
        self.outcomes[outcome as usize] += 1;
    }

    /// Counts `reads` reads that are forwarded past memory.
    pub(super) fn add_bypassed(&mut self, reads: usize) {
        self.outcomes[Outcome::Bypass as usize] += reads as u64;
    }

    /// Counts the kind of a kept reply from memory. Its outcome is counted apart.
    pub(super) fn add_kept_reply(&mut self, reply: &CachedReply, proxy: &Proxy) {
        if let CachedReply::Kept(_, kind) | CachedReply::Derived(_, kind) = reply {
            self.add_kept_read(*kind, Outcome::Hit, proxy);
        }
    }

    /// Counts the kind of a read. `outcomes` counts its outcome.
    pub(super) fn add_kept_read(&mut self, kind: Kind, outcome: Outcome, proxy: &Proxy) {
        match &mut self.kept_reads {
            Some((last, of, count)) if (*last, *of) == (kind, outcome) => *count += 1,
            _ => {
                self.count_kept_reads(proxy);
                self.kept_reads = Some((kind, outcome, 1));
            }
        }
    }

    fn count_kept_reads(&self, proxy: &Proxy) {
        if let Some((kind, outcome, count)) = self.kept_reads {
            proxy.record_kind(self.front_end, kind, outcome, count);
        }
    }

    /// Counts a command by the label of its name.
    pub(super) fn add_command(&mut self, label: usize, proxy: &Proxy) {
        self.add_commands(label, 1, proxy);
    }

    /// Counts commands with the same name by its label.
    pub(super) fn add_commands(&mut self, label: usize, count: usize, proxy: &Proxy) {
        if label != self.commands.0 {
            self.count_commands(proxy);
            self.commands = (label, 0);
        }
        self.commands.1 += count as u64;
    }

    fn count_commands(&self, proxy: &Proxy) {
        let (label, count) = self.commands;
        if count > 0 {
            proxy.record_commands(label, count);
        }
    }

    /// Records everything that was counted, at the end of the batch.
    pub(super) fn count(&self, proxy: &Proxy) {
        self.count_commands(proxy);
        self.count_kept_reads(proxy);
        self.rule_reads.record(&self.outcomes, proxy);
        if self.outcomes.iter().all(|count| *count == 0) {
            return;
        }
        let elapsed = self.begun.now.elapsed();
        let outcomes = Outcome::ALL.into_iter().zip(self.outcomes);
        for (outcome, count) in outcomes.filter(|(_, count)| *count > 0) {
            proxy.record(self.front_end, outcome, count, elapsed);
        }
    }
}
