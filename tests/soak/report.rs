//! The report of a soak, and of each violation.
//!
//! Model: each reader counts for itself; the sums are printed once. A violation is reported with
//! everything needed to understand it without another run: the read, the history of its key around
//! that time, and the fault in force.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::checker::Judgement;
use super::history::{Moment, millis};
use super::oracle::Verdict;
use super::resource_leaks::ResourceUse;
use super::simulation::Simulation;

/// Ages are counted by the millisecond up to this one.
const MOST_MILLIS: usize = 5000;

/// The age of values when read: the share of reads by age, exact to a millisecond, and the maximum.
pub(super) struct Lags {
    counts: Vec<u64>,
    pub(super) worst: Duration,
}

impl Default for Lags {
    fn default() -> Self {
        Self { counts: vec![0; MOST_MILLIS + 1], worst: Duration::ZERO }
    }
}

impl Lags {
    pub(super) fn count(&mut self, lag: Duration) {
        let slot = usize::try_from(lag.as_millis()).unwrap_or(MOST_MILLIS).min(MOST_MILLIS);
        self.counts[slot] += 1;
        self.worst = self.worst.max(lag);
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.worst = self.worst.max(other.worst);
    }

    /// Returns the whole milliseconds that 999 of 1000 reads did not exceed.
    fn p999(&self) -> usize {
        let beyond = self.counts.iter().sum::<u64>() / 1000;
        let mut seen = 0;
        let slot = self.counts.iter().rposition(|count| {
            seen += count;
            seen > beyond
        });
        slot.unwrap_or(0)
    }
}

/// The counts of one reader.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) reads: u64,
    /// The `no-cache` reads among these.
    pub(super) current: u64,
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    pub(super) no_answers: u64,
    /// Reads that their client abandoned before the reply.
    pub(super) given_up: u64,
    /// Reads and writes of RESP clients, and their outcomes.
    pub(super) client_reads: u64,
    pub(super) own_writes: u64,
    pub(super) client_refusals: u64,
    pub(super) client_ends: u64,
    /// The effects of each fault, by its name and the front end.
    suffering: BTreeMap<(&'static str, &'static str), Suffering>,
    peace: Lags,
    trouble: Lags,
}

/// The effects of a fault on clients.
#[derive(Default)]
struct Suffering {
    answered: u64,
    refused: u64,
    /// The longest wait for a reply or an error.
    longest: Duration,
}

impl Tally {
    /// Records the reply to a request that met a fault.
    pub(super) fn suffered(
        &mut self,
        simulation: &Simulation,
        front_end: &'static str,
        (began, ended): (Moment, Moment),
        answered: bool,
    ) {
        let conditions = &simulation.conditions;
        let faults =
            [&conditions.trouble, &conditions.changes].map(|periods| periods.between(began, ended));
        let Some(fault) = faults.iter().flatten().next().copied() else { return };
        let suffering = self.suffering.entry((fault, front_end)).or_default();
        *if answered { &mut suffering.answered } else { &mut suffering.refused } += 1;
        suffering.longest = suffering.longest.max(ended.saturating_sub(began));
    }

    pub(super) fn count(&mut self, simulation: &Simulation, verdict: &Verdict, began: Moment) {
        let (lag, since) = verdict.lag.unwrap_or((Duration::ZERO, began));
        if simulation.conditions.is_peace(since, began) {
            self.peace.count(lag);
        } else {
            self.trouble.count(lag);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.current += other.current;
        self.no_answers += other.no_answers;
        self.given_up += other.given_up;
        self.client_reads += other.client_reads;
        self.own_writes += other.own_writes;
        self.client_refusals += other.client_refusals;
        self.client_ends += other.client_ends;
        for (fault, seen) in &other.suffering {
            let sum = self.suffering.entry(*fault).or_default();
            sum.answered += seen.answered;
            sum.refused += seen.refused;
            sum.longest = sum.longest.max(seen.longest);
        }
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.peace.add(&other.peace);
        self.trouble.add(&other.trouble);
    }
}

/// The time from the repair of a fault until each front end answered.
pub(super) struct Recovery {
    pub(super) http: Duration,
    pub(super) resp: Duration,
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) seed: u64,
    /// The kind and the version of Redis.
    pub(super) server: String,
    pub(super) took: Duration,
    pub(super) writes: u64,
    pub(super) unacknowledged: u64,
    pub(super) foreign_writes: u64,
    pub(super) tally: Tally,
    /// The recoveries after each fault, by its name.
    pub(super) faults: BTreeMap<&'static str, Vec<Recovery>>,
    pub(super) resource_use: ResourceUse,
    /// Figures of the proxy, by name.
    pub(super) figures: Vec<(&'static str, f64)>,
    pub(super) violations: Vec<String>,
    /// The judgement of the independent checker.
    pub(super) judgement: Judgement,
}

impl Report {
    pub(super) fn text(&self) -> String {
        let tally = &self.tally;
        let from_memory: u64 = ["hit", "negative_hit", "stale"]
            .iter()
            .filter_map(|name| tally.outcomes.get(name))
            .sum();
        let mut text = String::new();
        let (seconds, violations) = (self.took.as_secs(), self.violations.len());
        _ = writeln!(
            text,
            "soak of {seconds} s on {}, SEED={}: {} violations",
            self.server, self.seed, violations
        );
        let outcomes = list(&tally.outcomes);
        _ = writeln!(
            text,
            "  reads       {}, {} of them current: {outcomes}",
            tally.reads, tally.current
        );
        _ = writeln!(
            text,
            "  no answers  {} refused, {} not waited for",
            tally.no_answers, tally.given_up
        );
        _ = writeln!(
            text,
            "  hit ratio   {} %",
            (from_memory * 100).checked_div(tally.reads).unwrap_or(0)
        );
        let (writes, unacknowledged, foreign) =
            (self.writes, self.unacknowledged, self.foreign_writes);
        _ = writeln!(
            text,
            "  writes      {writes}, {unacknowledged} never acknowledged; {foreign} to another \
                database"
        );
        let Tally { client_reads, own_writes, client_refusals, client_ends, .. } = tally;
        _ = writeln!(
            text,
            "  clients     {client_reads} reads, {own_writes} writes of their own read back; \
             {client_refusals} refused, {client_ends} connections ended"
        );
        let faults: usize = self.faults.values().map(Vec::len).sum();
        _ = writeln!(text, "  faults      {faults}");
        self.tell_of_faults(&mut text);
        _ = writeln!(text, "  resource_use   {}", self.resource_use.text());
        for (name, lags) in [("in peace", &tally.peace), ("in trouble", &tally.trouble)] {
            let (worst, p999) = (millis(lags.worst), lags.p999());
            _ = writeln!(
                text,
                "  staleness   {name}: worst {worst}, 99.9 % of reads at most {} ms",
                p999 + 1
            );
        }
        let figures: Vec<_> =
            self.figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
        _ = writeln!(text, "  the proxy   {}", figures.join(", "));
        text.push_str(&self.judgement.text());
        for violation in &self.violations {
            _ = writeln!(text, "\n{violation}");
        }
        if !self.violations.is_empty() || self.judgement.not_accepted() > 0 {
            _ = writeln!(text, "\nagain: make soak SECONDS={} SEED={}", seconds.max(1), self.seed);
        }
        text
    }

    /// Adds a table of the faults: the count, the share of failed requests and the longest wait,
    /// over HTTP and RESP, and the recovery.
    fn tell_of_faults(&self, text: &mut String) {
        let head =
            ["times", "refused", "longest", "well again", "refused", "longest", "well again"];
        let [times, rest @ ..] = head;
        _ = writeln!(text, "    {:<22}{:>6}{:>36}{:>36}", "", "", "over HTTP", "as a Redis client");
        _ = write!(text, "    {:<22}{times:>6}", "");
        for word in rest {
            _ = write!(text, "{word:>12}");
        }
        _ = writeln!(text);
        for (name, recoveries) in &self.faults {
            _ = write!(text, "    {name:<22}{:>6}", recoveries.len());
            let worst = |took: fn(&Recovery) -> Duration| {
                recoveries.iter().map(took).max().unwrap_or_default()
            };
            for (front_end, worst) in
                [("http", worst(|one| one.http)), ("resp", worst(|one| one.resp))]
            {
                let (refused, longest) = self.suffered(name, front_end);
                _ = write!(
                    text,
                    "{:>10} %{:>9} ms{:>9} ms",
                    refused,
                    longest.as_millis(),
                    worst.as_millis()
                );
            }
            _ = writeln!(text);
        }
    }

    /// Returns the failed share in percent and the longest wait.
    fn suffered(&self, fault: &'static str, front_end: &'static str) -> (u64, Duration) {
        let Some(seen) = self.tally.suffering.get(&(fault, front_end)) else {
            return (0, Duration::ZERO);
        };
        let reads = seen.refused + seen.answered;
        ((seen.refused * 100).div_ceil(reads.max(1)), seen.longest)
    }
}

fn list(counts: &BTreeMap<&'static str, u64>) -> String {
    let parts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_read_in_a_thousand_may_be_older() {
        let mut lags = Lags::default();
        for _ in 0..1000 {
            lags.count(Duration::from_millis(3));
        }
        lags.count(Duration::from_secs(60));
        assert_eq!((lags.p999(), lags.worst), (3, Duration::from_secs(60)));
    }
}
