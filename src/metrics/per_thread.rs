//! The counts of reads and commands. Each thread counts in its own memory, and a scrape sums them.
//! Otherwise threads would contend for the same cache lines.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::core::{Collector, Desc, Describer as _};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{IntCounter, IntCounterVec};
use thread_local::ThreadLocal;

use super::labels::{FrontEnd, Kind};
use super::pull::{PullResult, options};
use crate::cache::{Outcome, RuleId, RuleOutcome};

/// The upper bounds in nanoseconds: from 10 µs, the duration of a hit, to 10 s, beyond every
/// timeout.
pub(super) const DURATION_BUCKETS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

const READ_LABELS: [&str; 2] = ["front_end", "outcome"];

fn read_labels(front_end: usize, outcome: usize) -> [&'static str; 2] {
    [FrontEnd::READERS[front_end].name(), Outcome::ALL[outcome].name()]
}

/// A counter that only one thread adds to, so it needs no atomic addition. Any thread may read it.
#[derive(Default)]
pub(super) struct ThreadCounter(AtomicU64);

impl ThreadCounter {
    pub(super) fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The durations of reads or fetches.
#[derive(Default)]
pub(super) struct DurationHistogram {
    /// Those above the previous bound and up to this one. The last bucket has those above all
    /// bounds.
    buckets: [ThreadCounter; DURATION_BUCKETS.len() + 1],
    /// The sum of all durations.
    nanoseconds: ThreadCounter,
}

impl DurationHistogram {
    pub(super) fn add(&self, count: u64, took: Duration) {
        self.buckets[bucket_of(took)].add(count);
        self.nanoseconds.add(nanoseconds(took).saturating_mul(count));
    }

    /// Adds the counts of another histogram.
    pub(super) fn add_all(&self, other: &Self) {
        self.buckets.iter().zip(&other.buckets).for_each(|(count, more)| count.add(more.get()));
        self.nanoseconds.add(other.nanoseconds.get());
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(ThreadCounter::get).sum()
    }

    /// Returns the number of durations in each bucket.
    pub(super) fn bucket_counts(&self) -> BucketCounts {
        BucketCounts(std::array::from_fn(|bucket| self.buckets[bucket].get()))
    }

    fn to_proto(&self) -> proto::Histogram {
        let mut so_far = 0;
        let bucket = |(bound, count): (&u64, &ThreadCounter)| {
            so_far += count.get();
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            bucket.set_cumulative_count(so_far);
            bucket
        };
        let buckets = DURATION_BUCKETS.iter().zip(&self.buckets).map(bucket).collect();
        let mut to_proto = proto::Histogram::default();
        to_proto.set_bucket(buckets);
        to_proto.set_sample_count(self.count());
        to_proto.set_sample_sum(seconds(self.nanoseconds.get()));
        to_proto
    }
}

/// The number of durations in each bucket at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BucketCounts([u64; DURATION_BUCKETS.len() + 1]);

impl BucketCounts {
    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the durations that were added after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|bucket| self.0[bucket].saturating_sub(earlier.0[bucket])))
    }

    /// Returns the bound of the bucket with the `permille` quantile; `None` without durations, or
    /// if it is above all bounds.
    pub fn quantile_bound(&self, permille: u64) -> Option<Duration> {
        let rank = self.count().saturating_mul(permille).div_ceil(1000).max(1);
        let mut so_far = 0;
        let bucket = self.0.iter().position(|count| {
            so_far += count;
            so_far >= rank
        });
        bucket.and_then(|bucket| DURATION_BUCKETS.get(bucket)).copied().map(Duration::from_nanos)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the index of a duration's bucket. The last one has the durations above all bounds.
#[inline]
pub(super) fn bucket_of(took: Duration) -> usize {
    let took = nanoseconds(took);
    DURATION_BUCKETS.iter().position(|bound| took <= *bound).unwrap_or(DURATION_BUCKETS.len())
}

pub(super) fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// The durations of reads by front end and outcome, in the order of their `ALL`.
pub(super) type ReadTimes = [[DurationHistogram; Outcome::ALL.len()]; FrontEnd::READERS.len()];

/// The number of reads by front end, kind and outcome, in the order of their `ALL`.
type ReadsByKind =
    [[[ThreadCounter; Outcome::ALL.len()]; Kind::ALL.len()]; FrontEnd::READERS.len()];

/// The counts of one thread. The alignment gives them cache lines of their own, otherwise
/// neighbouring threads would slow each other down.
#[repr(align(128))]
pub(super) struct ThreadMetrics {
    /// All reads of values and replies.
    pub(super) reads: ReadTimes,
    /// Those among them that are not of plain strings, by kind and outcome. Apart, so that the most
    /// frequent reads are counted once.
    pub(super) by_kind: ReadsByKind,
    /// The fetches that Redis answered.
    pub(super) fetches: DurationHistogram,
    /// The commands by name, in the order of the list of names.
    pub(super) commands: Box<[ThreadCounter]>,
    /// The HTTP responses by listener and class of their status.
    responses: [[ThreadCounter; CLASSES.len()]; RESPONDERS.len()],
    /// The reads by rule.
    pub(super) rules: RuleCounters,
}

/// The front ends with responses over HTTP. Beside the keys, the responses of REST count as those
/// of that listener.
const RESPONDERS: [FrontEnd; 3] = [FrontEnd::Http, FrontEnd::Admin, FrontEnd::Rest];
/// The classes of status codes, from 200 on.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

impl ThreadMetrics {
    /// Counts a response with this status.
    pub(super) fn add_response(&self, front_end: FrontEnd, status: u16) {
        let listener = RESPONDERS.iter().position(|responder| *responder == front_end);
        let class = usize::from(status / 100).wrapping_sub(2);
        if let Some(count) = listener.and_then(|at| self.responses[at].get(class)) {
            count.add(1);
        }
    }
}

/// The rules that are allocated at once.
const RULES_TOGETHER: usize = 64;

type RuleOutcomes = [ThreadCounter; RuleOutcome::COUNT];

/// The reads by rule and outcome. Most proxies have few rules or none, so the counters are
/// allocated with the first read.
pub(super) struct RuleCounters([OnceLock<Box<[RuleOutcomes]>>; RuleId::MOST / RULES_TOGETHER]);

impl RuleCounters {
    fn new() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }

    pub(super) fn add(&self, rule: RuleId, outcome: RuleOutcome, count: u64) {
        let Some(index) = rule.index() else { return };
        let new = || (0..RULES_TOGETHER).map(|_| RuleOutcomes::default()).collect();
        let Some(some) = self.0.get(index / RULES_TOGETHER) else { return };
        some.get_or_init(new)[index % RULES_TOGETHER][outcome.index()].add(count);
    }

    fn get(&self, rule: RuleId) -> Option<&RuleOutcomes> {
        let index = rule.index()?;
        self.0.get(index / RULES_TOGETHER)?.get()?.get(index % RULES_TOGETHER)
    }
}

/// The counts of all threads. Those of a thread remain when it ends.
#[derive(Clone)]
pub(super) struct PerThread {
    by_thread: Arc<ThreadLocal<ThreadMetrics>>,
    commands: Arc<[String]>,
}

impl PerThread {
    pub(super) fn new(commands: &[&str]) -> Self {
        Self {
            by_thread: Arc::default(),
            commands: commands.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// Returns the counts of this thread.
    pub(super) fn local(&self) -> &ThreadMetrics {
        let new = || ThreadMetrics {
            reads: ReadTimes::default(),
            by_kind: ReadsByKind::default(),
            fetches: DurationHistogram::default(),
            commands: self.commands.iter().map(|_| ThreadCounter::default()).collect(),
            responses: Default::default(),
            rules: RuleCounters::new(),
        };
        self.by_thread.get_or(new)
    }

    pub(super) fn reads(&self) -> ReadTimes {
        let all = ReadTimes::default();
        for thread in self.by_thread.iter() {
            all.iter()
                .flatten()
                .zip(thread.reads.iter().flatten())
                .for_each(|(times, more)| times.add_all(more));
        }
        all
    }

    /// Returns the durations of fetches.
    fn fetches(&self) -> DurationHistogram {
        let all = DurationHistogram::default();
        self.by_thread.iter().for_each(|thread| all.add_all(&thread.fetches));
        all
    }

    /// Returns the reads of a rule by outcome.
    pub(super) fn rule_reads(&self, rule: RuleId) -> [u64; RuleOutcome::COUNT] {
        let mut sum = [0; RuleOutcome::COUNT];
        for counts in self.by_thread.iter().filter_map(|thread| thread.rules.get(rule)) {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count.get());
        }
        sum
    }

    /// Collects the reads of the rules with these names, in the order of their identities.
    pub(super) fn collect_rules(&self, names: &[String]) -> prometheus::Result<Box<dyn Collector>> {
        let reads = options("rule_reads_total", "Reads of keys with a rule, by rule and outcome.");
        let reads = IntCounterVec::new(reads, &["rule", "outcome"])?;
        for (index, name) in names.iter().enumerate() {
            let counts = self.rule_reads(RuleId::at(index));
            for (outcome, count) in RuleOutcome::all().zip(counts) {
                reads.with_label_values(&[name, outcome.name()]).inc_by(count);
            }
        }
        Ok(Box::new(reads))
    }

    /// Returns the reads of a front end by kind that are counted apart.
    fn by_kind(&self, front_end: usize) -> [[u64; Outcome::ALL.len()]; Kind::ALL.len()] {
        let sum = |kind: usize, outcome: usize| {
            let counts = self.by_thread.iter().map(|thread| &thread.by_kind[front_end]);
            counts.map(|counts| counts[kind][outcome].get()).sum()
        };
        std::array::from_fn(|kind| std::array::from_fn(|outcome| sum(kind, outcome)))
    }

    fn responses(&self) -> prometheus::Result<IntCounterVec> {
        let help = "HTTP responses, by listener and class of their status.";
        let responses =
            IntCounterVec::new(options("http_responses_total", help), &["front_end", "class"])?;
        for (listener, front_end) in RESPONDERS.iter().enumerate() {
            for (index, class) in CLASSES.iter().enumerate() {
                let counts = self.by_thread.iter().map(|thread| &thread.responses[listener][index]);
                let labels = [front_end.name(), class];
                responses.with_label_values(&labels).inc_by(counts.map(ThreadCounter::get).sum());
            }
        }
        Ok(responses)
    }

    pub(super) fn collect(&self) -> PullResult {
        let reads = options("reads_total", "Reads, by front end, outcome and type of the data.");
        let hits =
            options("cache_hits_total", "Reads answered from memory: hit, stale or negative_hit.");
        let misses =
            options("cache_misses_total", "Reads that Redis answered: miss, coalesced or bypass.");
        let errors = options("read_errors_total", "Reads that failed.");
        let commands_said = options("commands_total", "Commands of Redis clients, by name.");
        let reads = IntCounterVec::new(reads, &["front_end", "outcome", "kind"])?;
        let (hits, misses) = (IntCounter::with_opts(hits)?, IntCounter::with_opts(misses)?);
        let errors = IntCounter::with_opts(errors)?;
        let commands_said = IntCounterVec::new(commands_said, &["command"])?;
        let help = "Duration of reads, by front end and outcome.";
        let mut durations = Durations::new("request_duration_seconds", help, &READ_LABELS)?;
        let mut fetches = Durations::new("backend_duration_seconds", "Duration of fetches.", &[])?;
        fetches.add(&[], &self.fetches());
        // Before the sums. A read in between then counts as one of a string until the next scrape.
        let by_kind: [_; FrontEnd::READERS.len()] =
            std::array::from_fn(|front_end| self.by_kind(front_end));
        for (front_end, outcomes) in self.reads().iter().enumerate() {
            for (outcome, times) in outcomes.iter().enumerate() {
                let count = times.count();
                // Reads over HTTP are of strings only.
                let has_kinds = front_end != FrontEnd::Http as usize;
                let of_kinds = by_kind[front_end].iter().filter(|_| has_kinds);
                let mut strings = count;
                for (kind, counts) in Kind::ALL.iter().zip(of_kinds) {
                    let [front_end, outcome_name] = read_labels(front_end, outcome);
                    let labels = [front_end, outcome_name, kind.name()];
                    reads.with_label_values(&labels).inc_by(counts[outcome]);
                    strings = strings.saturating_sub(counts[outcome]);
                }
                let [front_end_name, outcome_name] = read_labels(front_end, outcome);
                let labels = [front_end_name, outcome_name, Kind::String.name()];
                reads.with_label_values(&labels).inc_by(strings);
                let total = match Outcome::ALL[outcome] {
                    Outcome::Error => &errors,
                    outcome if outcome.from_memory() => &hits,
                    _ => &misses,
                };
                total.inc_by(count);
                durations.add(&read_labels(front_end, outcome), times);
            }
        }
        for (label, name) in self.commands.iter().enumerate() {
            let count: u64 = self.by_thread.iter().map(|thread| thread.commands[label].get()).sum();
            // Otherwise every command that there is would have a series, most of them at zero for
            // ever.
            if count > 0 {
                commands_said.with_label_values(&[name]).inc_by(count);
            }
        }
        Ok(vec![
            Box::new(reads),
            Box::new(hits),
            Box::new(misses),
            Box::new(errors),
            Box::new(self.responses()?),
            Box::new(commands_said),
            Box::new(durations),
            Box::new(fetches),
        ])
    }
}

/// A collector of durations.
struct Durations {
    description: Desc,
    metrics: Vec<proto::Metric>,
}

impl Durations {
    /// No durations yet, of a family with these names of labels.
    fn new(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let description = options(name, help).variable_labels(labels).describe()?;
        Ok(Self { description, metrics: Vec::new() })
    }

    /// Adds the durations with these values of the labels.
    fn add(&mut self, values: &[&str], times: &DurationHistogram) {
        let label = |(name, value): (&String, &&str)| {
            let mut label = LabelPair::default();
            label.set_name(name.clone());
            label.set_value((*value).to_owned());
            label
        };
        let names = &self.description.variable_labels;
        let labels = names.iter().zip(values).map(label).collect();
        let mut metric = proto::Metric::from_label(labels);
        metric.set_histogram(times.to_proto());
        self.metrics.push(metric);
    }
}

impl Collector for Durations {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.description.fq_name.clone());
        family.set_help(self.description.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(self.metrics.clone());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_bound_is_that_of_its_bucket() {
        let times = DurationHistogram::default();
        let bound = |permille| times.bucket_counts().quantile_bound(permille);
        assert_eq!(bound(500), None);
        times.add(98, Duration::from_micros(7));
        times.add(2, Duration::from_millis(3));
        assert_eq!(bound(500), Some(Duration::from_micros(10)));
        assert_eq!(bound(980), Some(Duration::from_micros(10)));
        assert_eq!(bound(990), Some(Duration::from_millis(5)));
        let earlier = times.bucket_counts();
        times.add(1000, Duration::from_secs(60));
        assert_eq!(bound(500), None);
        times.add(3000, Duration::from_millis(3));
        let later = times.bucket_counts().since(&earlier);
        assert_eq!((later.count(), earlier.count()), (4000, 100));
        assert_eq!(later.quantile_bound(1), Some(Duration::from_millis(5)));
    }
}
