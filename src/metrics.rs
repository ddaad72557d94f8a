//! What an operator sees at `/metrics`; the only user of the `prometheus` crate.
//!
//! Every label value is there from the start, at zero. What others count is looked at when somebody asks, and what
//! belongs together comes from one look: hits and misses are sums over the same reads, so hits + misses = reads in every
//! scrape. docs/src/operations/metrics.md tells of each; a test holds the two together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc, Describer as _};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use thread_local::ThreadLocal;

use crate::cache::{Cause, Coherence, CoherenceMode, Outcome, Statistics};

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontEnd {
    /// Reads over HTTP.
    Http,
    /// Clients of Redis.
    Resp,
    /// The operator's listener.
    Admin,
}

impl FrontEnd {
    const ALL: [Self; 3] = [Self::Http, Self::Resp, Self::Admin];
    /// Those that answer reads.
    const READERS: [Self; 2] = [Self::Http, Self::Resp];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Resp => "resp",
            Self::Admin => "admin",
        }
    }
}

/// The result of a command that a node of a cluster did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// It was sent again.
    Followed,
    /// The client got an error.
    Returned,
}

impl Redirect {
    fn name(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Returned => "returned",
        }
    }
}

/// Why somebody was turned away who was connected, or nearly so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// He showed no token, or none that is right.
    Token,
    /// He has not said the front end's password.
    Login,
    /// The key is none of those that are given out.
    Key,
    /// Of the command it is not certain that it touches none but these.
    Command,
    /// TLS was not agreed on.
    Tls,
}

impl Refusal {
    /// Who refuses for which reasons.
    const ALL: [(FrontEnd, Self); 7] = [
        (FrontEnd::Http, Self::Token),
        (FrontEnd::Http, Self::Key),
        (FrontEnd::Http, Self::Tls),
        (FrontEnd::Resp, Self::Login),
        (FrontEnd::Resp, Self::Key),
        (FrontEnd::Resp, Self::Command),
        (FrontEnd::Resp, Self::Tls),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Login => "login",
            Self::Key => "key",
            Self::Command => "command",
            Self::Tls => "tls",
        }
    }
}

/// The label values of `redis_proxy_backend_errors_total`.
pub const BACKEND_ERROR_KINDS: [&str; 10] = [
    "unreachable",
    "not_admitted",
    "timeout",
    "disconnected",
    "overloaded",
    "unavailable",
    "refused",
    "wrong_type",
    "too_large",
    "vanished",
];

/// What Redis, or the loss of it, invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// A key.
    Key,
    /// Everything: a database was flushed.
    All,
    /// Everything: a link was lost, and what would have been told over it.
    Disconnect,
    /// Everything: more was told than could be heeded.
    Overflow,
}

impl Invalidation {
    const ALL: [Self; 4] = [Self::Key, Self::All, Self::Disconnect, Self::Overflow];

    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::All => "all",
            Self::Disconnect => "disconnect",
            Self::Overflow => "overflow",
        }
    }
}

/// Somebody the proxy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is: `host:port`, or the path of a socket.
    pub name: String,
    /// What it is: `redis` or `sentinel`.
    pub role: &'static str,
    /// Whether it answers.
    pub up: bool,
}

/// From ten microseconds, where a hit is, to ten seconds, where every time-out has struck; in nanoseconds.
const DURATION_BUCKETS: [u64; 19] = [
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

/// The metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    tallies: Tallies,
    backend_duration: Histogram,
    backend_up: IntGauge,
    /// Links there are.
    links: AtomicUsize,
    backend_errors: IntCounterVec,
    invalidations: IntCounterVec,
    invalidation_lag: Histogram,
    tracking_reconnects: IntCounter,
    connections: IntGaugeVec,
    connections_limit: IntGaugeVec,
    connections_refused: IntCounterVec,
    refused: IntCounterVec,
    redirects: IntCounterVec,
    reloads: IntCounterVec,
    warmed: IntCounter,
    last_reload: Gauge,
    last_reload_successful: IntGauge,
}

impl Metrics {
    /// Registers every metric; `commands` are the names by which commands are told apart.
    ///
    /// # Errors
    /// Two metrics with one name, which would be a mistake in this file.
    pub fn new(commands: &[&str]) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let new = Registration(&registry);
        let metrics = Self {
            tallies: new.tallies(commands)?,
            backend_duration: new.histogram("backend_duration_seconds", "How long Redis took to answer fetches.")?,
            backend_up: new.gauge("backend_up", "Whether there is a link to Redis (1) or not (0).")?,
            links: AtomicUsize::new(0),
            backend_errors: new.counters("backend_errors_total", "Fetches and links that failed, by kind.", "kind")?,
            invalidations: new.counters("invalidations_total", "Changes heeded, by what was invalidated.", "kind")?,
            invalidation_lag: new.histogram(
                "invalidation_lag_seconds",
                "How long after Redis acknowledged a write of the probe its invalidation was heeded.",
            )?,
            tracking_reconnects: new.counter(
                "tracking_reconnects_total",
                "Links with tracking that took the place of one that was lost.",
            )?,
            warmed: new
                .counter("warmed_total", "Keys fetched after a start because they were hot before (warm.file).")?,
            connections: new.gauges("connections", "Open client connections.", "front_end")?,
            connections_limit: new.gauges(
                "connections_limit",
                "How many client connections may be open; one more is refused.",
                "front_end",
            )?,
            connections_refused: new.counters(
                "connections_refused_total",
                "Client connections refused because there were as many as may be.",
                "front_end",
            )?,
            refused: new.add(IntCounterVec::new(
                options("refused_total", "What was refused to clients, by front end and by why."),
                &["front_end", "reason"],
            )?)?,
            redirects: new.add(IntCounterVec::new(
                options("redirects_total", "Commands that a cluster node did not run, by result."),
                &["result"],
            )?)?,
            reloads: new.counters("config_reloads_total", "Reloads of the configuration, by result.", "result")?,
            last_reload: new.seconds(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was loaded, in seconds since 1970.",
            )?,
            last_reload_successful: new.gauge(
                "config_last_reload_successful",
                "Whether the last configuration that was read is in force (1), or was refused (0).",
            )?,
            registry: registry.clone(),
        };
        new.build_info()?;
        metrics.start_labels();
        metrics.config_in_force();
        Ok(metrics)
    }

    fn start_labels(&self) {
        let zero = |counters: &IntCounterVec, label| counters.with_label_values(&[label]).reset();
        for kind in BACKEND_ERROR_KINDS {
            zero(&self.backend_errors, kind);
        }
        for kind in Invalidation::ALL {
            zero(&self.invalidations, kind.name());
        }
        for front_end in FrontEnd::ALL {
            self.connections.with_label_values(&[front_end.name()]).set(0);
            zero(&self.connections_refused, front_end.name());
        }
        for (front_end, refusal) in Refusal::ALL {
            self.refusals(front_end, refusal).0.reset();
        }
        for result in ["success", "failure"] {
            zero(&self.reloads, result);
        }
    }

    /// So many reads were answered, each in this time.
    pub fn reads(&self, front_end: FrontEnd, outcome: Outcome, count: u64, took: Duration) {
        if let Some(outcomes) = self.tallies.own().reads.get(front_end as usize) {
            outcomes[outcome as usize].add(count, took);
        }
    }

    /// A client of Redis said the command with this place in the list of names, so many times.
    pub fn commands(&self, label: usize, count: u64) {
        if let Some(commands) = self.tallies.own().commands.get(label) {
            commands.add(count);
        }
    }

    /// How many reads there were: those answered from memory, and all.
    pub fn reads_so_far(&self) -> (u64, u64) {
        let reads = self.tallies.reads();
        let counts = || reads.iter().flatten().zip(Outcome::ALL.iter().cycle());
        let sum = |of: fn(&Outcome) -> bool| {
            counts().filter(|(_, outcome)| of(outcome)).map(|(times, _)| times.count()).sum()
        };
        (sum(|outcome| outcome.from_memory()), sum(|_| true))
    }

    /// A key that was hot before the start was fetched.
    pub fn warmed(&self) {
        self.warmed.inc();
    }

    /// Redis answered a fetch, in this time.
    pub fn fetched(&self, took: Duration) {
        self.backend_duration.observe(took.as_secs_f64());
    }

    /// A fetch or a link failed; `kind` is one of [`BACKEND_ERROR_KINDS`].
    pub fn backend_error(&self, kind: &str) {
        self.backend_errors.with_label_values(&[kind]).inc();
    }

    /// Whether there is a link to Redis.
    pub fn backend_up(&self, up: bool) {
        let links = if up {
            self.links.fetch_add(1, Relaxed) + 1
        } else {
            self.links.fetch_sub(1, Relaxed) - 1
        };
        self.backend_up.set(i64::from(links > 0));
    }

    /// So much was invalidated.
    pub fn invalidated(&self, what: Invalidation, count: usize) {
        self.invalidations.with_label_values(&[what.name()]).inc_by(count as u64);
    }

    /// An invalidation was heeded so long after its write had been acknowledged.
    pub fn invalidation_lag(&self, lag: Duration) {
        self.invalidation_lag.observe(lag.as_secs_f64());
    }

    /// A link with tracking took the place of one that was lost.
    pub fn tracking_reconnected(&self) {
        self.tracking_reconnects.inc();
    }

    /// Counts a connection for as long as the guard lives.
    pub fn connection(&self, front_end: FrontEnd) -> OpenConnection {
        let gauge = self.connections.with_label_values(&[front_end.name()]);
        gauge.inc();
        OpenConnection(gauge)
    }

    /// How many connections are open to the front ends that answer reads.
    pub fn open_connections(&self) -> i64 {
        FrontEnd::READERS
            .iter()
            .map(|front_end| self.connections.with_label_values(&[front_end.name()]).get())
            .sum()
    }

    /// So many connections may be open.
    pub fn connections_limit(&self, front_end: FrontEnd, most: usize) {
        self.connections_limit
            .with_label_values(&[front_end.name()])
            .set(i64::try_from(most).unwrap_or(i64::MAX));
    }

    /// A connection was refused because there were as many as may be.
    pub fn connection_refused(&self, front_end: FrontEnd) {
        self.connections_refused.with_label_values(&[front_end.name()]).inc();
    }

    /// Counts commands of Redis clients that a cluster node did not run.
    pub fn redirects(&self, redirect: Redirect, count: u64) {
        if count > 0 {
            self.redirects.with_label_values(&[redirect.name()]).inc_by(count);
        }
    }

    /// The count of those that this front end turned away for this reason.
    pub fn refusals(&self, front_end: FrontEnd, refusal: Refusal) -> Refusals {
        Refusals(self.refused.with_label_values(&[front_end.name(), refusal.name()]))
    }

    /// A new configuration was put in force.
    pub fn config_reloaded(&self) {
        self.reloads.with_label_values(&["success"]).inc();
        self.config_in_force();
    }

    /// A new configuration was refused.
    pub fn config_refused(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.last_reload_successful.set(0);
    }

    fn config_in_force(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload.set(now.as_secs_f64());
        self.last_reload_successful.set(1);
    }

    /// From now on the cache's figures are told too.
    ///
    /// # Errors
    /// They are told already.
    pub fn tell_of_cache(
        &self,
        look: impl Fn() -> Statistics + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        Registration(&self.registry).look(move || cache_figures(&look()))
    }

    /// From now on it is told how many spans were dropped.
    ///
    /// # Errors
    /// It is told already.
    pub fn tell_of_spans_dropped(
        &self,
        look: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Spans that no collector got: it did not take them, or there were more than may wait for it.";
        Registration(&self.registry)
            .look(move || Ok(vec![counted("spans_dropped_total", help, look())?]))
    }

    /// From now on it is told how many lines of the log were dropped.
    ///
    /// # Errors
    /// It is told already.
    pub fn tell_of_lines_dropped(
        &self,
        look: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Lines of the log that were dropped, because standard error did not take them.";
        Registration(&self.registry)
            .look(move || Ok(vec![counted("log_lines_dropped_total", help, look())?]))
    }

    /// From now on it is told how many tasks there are.
    ///
    /// # Errors
    /// It is told already.
    pub fn tell_of_tasks(
        &self,
        look: impl Fn() -> usize + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Tasks of the program, one for each connection among them.";
        Registration(&self.registry).look(move || Ok(vec![measured("tasks", help, look() as u64)?]))
    }

    /// From now on it is told who answers of those there are.
    ///
    /// # Errors
    /// It is told already.
    pub fn tell_of_nodes(
        &self,
        look: impl Fn() -> Vec<Node> + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        Registration(&self.registry).look(move || node_figures(&look()))
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// One look at what somebody else counts.
type Figures = prometheus::Result<Vec<Box<dyn Collector>>>;

fn cache_figures(cache: &Statistics) -> Figures {
    let evictions = options("cache_evictions_total", "Entries that left the cache, by cause.");
    let evictions = IntCounterVec::new(evictions, &["cause"])?;
    for (cause, evicted) in Cause::ALL.iter().zip(cache.evictions) {
        evictions.with_label_values(&[cause.name()]).inc_by(evicted);
    }
    let settings = &cache.settings;
    let (coherent, wanted) =
        (cache.coherence == Coherence::Tracking, settings.coherence != CoherenceMode::Ttl);
    let ttl = Gauge::with_opts(options("cache_ttl_seconds", "How old a cached value may be."))?;
    ttl.set(settings.ttl.as_secs_f64());
    Ok(vec![
        Box::new(evictions),
        Box::new(ttl),
        counted(
            "flights_discarded_total",
            "Fetches answered but not stored, because the key was invalidated meanwhile.",
            cache.flights_discarded,
        )?,
        measured("flights", "Fetches in progress, each for one key.", cache.flights as u64)?,
        measured("cache_entries", "Entries in the cache.", cache.entries)?,
        measured("cache_bytes", "Bytes of the keys and values in the cache.", cache.bytes)?,
        measured(
            "cache_capacity_entries",
            "How many entries the cache keeps at most.",
            settings.capacity as u64,
        )?,
        measured(
            "coherent",
            "Whether Redis tells of changes, and is heard (1), or not (0).",
            coherent.into(),
        )?,
        measured(
            "coherence_wanted",
            "Whether Redis is to tell of changes (1), or cache.coherence leaves it to the TTL (0).",
            wanted.into(),
        )?,
    ])
}

fn node_figures(nodes: &[Node]) -> Figures {
    let up =
        options("node_up", "Whether this node of those that are asked answers (1) or not (0).");
    let up = IntGaugeVec::new(up, &["node", "role"])?;
    for node in nodes {
        up.with_label_values(&[&node.name, node.role]).set(node.up.into());
    }
    Ok(vec![Box::new(up)])
}

fn counted(name: &str, help: &str, count: u64) -> prometheus::Result<Box<dyn Collector>> {
    let counter = IntCounter::with_opts(options(name, help))?;
    counter.inc_by(count);
    Ok(Box::new(counter))
}

fn measured(name: &str, help: &str, value: u64) -> prometheus::Result<Box<dyn Collector>> {
    let gauge = IntGauge::with_opts(options(name, help))?;
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    Ok(Box::new(gauge))
}

/// What somebody else counts, looked at for each scrape.
struct Looked<F> {
    look: F,
    /// Of the names that every look has.
    descriptions: Vec<Desc>,
}

impl<F: Fn() -> Figures + Send + Sync> Collector for Looked<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.look)().unwrap_or_default().iter().flat_map(|figure| figure.collect()).collect()
    }
}

const READ_LABELS: [&str; 2] = ["front_end", "outcome"];

fn read_labels(front_end: usize, outcome: usize) -> [&'static str; 2] {
    [FrontEnd::READERS[front_end].name(), Outcome::ALL[outcome].name()]
}

/// A count that one thread alone adds to, so that it takes no turns with others for it; whoever wants to may read it.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long reads took.
#[derive(Default)]
struct Times {
    /// How many took no longer than a bucket's bound but longer than the one before; those that took longer than all last.
    buckets: [Count; DURATION_BUCKETS.len() + 1],
    /// All times together.
    nanoseconds: Count,
}

impl Times {
    fn add(&self, count: u64, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS
            .iter()
            .position(|bound| took <= *bound)
            .unwrap_or(DURATION_BUCKETS.len());
        self.buckets[bucket].add(count);
        self.nanoseconds.add(took.saturating_mul(count));
    }

    /// Adds what another has counted.
    fn add_all(&self, other: &Self) {
        self.buckets.iter().zip(&other.buckets).for_each(|(count, more)| count.add(more.get()));
        self.nanoseconds.add(other.nanoseconds.get());
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(Count::get).sum()
    }

    fn told(&self) -> proto::Histogram {
        let mut so_far = 0;
        let bucket = |(bound, count): (&u64, &Count)| {
            so_far += count.get();
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            bucket.set_cumulative_count(so_far);
            bucket
        };
        let buckets = DURATION_BUCKETS.iter().zip(&self.buckets).map(bucket).collect();
        let mut told = proto::Histogram::default();
        told.set_bucket(buckets);
        told.set_sample_count(self.count());
        told.set_sample_sum(seconds(self.nanoseconds.get()));
        told
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// How long reads took, by front end and outcome, in the order of their `ALL`.
type ReadTimes = [[Times; Outcome::ALL.len()]; FrontEnd::READERS.len()];

/// What a thread has counted. It has lines of the processor's caches of its own, so no other thread waits for them.
#[repr(align(128))]
struct Tally {
    reads: ReadTimes,
    /// By name, in the order of the list that the metrics were made with.
    commands: Box<[Count]>,
}

/// What is counted at each read, by each thread for itself. What a thread has counted stays when it ends.
#[derive(Clone)]
struct Tallies {
    by_thread: Arc<ThreadLocal<Tally>>,
    commands: Arc<[String]>,
}

impl Tallies {
    fn of(commands: &[&str]) -> Self {
        Self {
            by_thread: Arc::default(),
            commands: commands.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// What this thread has counted.
    fn own(&self) -> &Tally {
        let new = || Tally {
            reads: ReadTimes::default(),
            commands: self.commands.iter().map(|_| Count::default()).collect(),
        };
        self.by_thread.get_or(new)
    }

    fn reads(&self) -> ReadTimes {
        let all = ReadTimes::default();
        for tally in self.by_thread.iter() {
            all.iter()
                .flatten()
                .zip(tally.reads.iter().flatten())
                .for_each(|(times, more)| times.add_all(more));
        }
        all
    }

    fn figures(&self) -> Figures {
        let reads = options("reads_total", "Reads, by front end and by how they were answered.");
        let hits = options("cache_hits_total", "Reads answered from memory: hit, stale or absent.");
        let misses =
            options("cache_misses_total", "Reads that needed Redis: miss, coalesced or bypass.");
        let said = options("commands_total", "Commands of clients of Redis (resp), by name.");
        let reads = IntCounterVec::new(reads, &READ_LABELS)?;
        let (hits, misses) = (IntCounter::with_opts(hits)?, IntCounter::with_opts(misses)?);
        let said = IntCounterVec::new(said, &["command"])?;
        let mut durations = Durations::new()?;
        for (front_end, outcomes) in self.reads().iter().enumerate() {
            for (outcome, times) in outcomes.iter().enumerate() {
                let count = times.count();
                reads.with_label_values(&read_labels(front_end, outcome)).inc_by(count);
                if Outcome::ALL[outcome].from_memory() { &hits } else { &misses }.inc_by(count);
                durations.add(read_labels(front_end, outcome), times);
            }
        }
        for (label, name) in self.commands.iter().enumerate() {
            let count = self.by_thread.iter().map(|tally| tally.commands[label].get()).sum();
            said.with_label_values(&[name]).inc_by(count);
        }
        Ok(vec![
            Box::new(reads),
            Box::new(hits),
            Box::new(misses),
            Box::new(said),
            Box::new(durations),
        ])
    }
}

/// How long reads took, to be told.
struct Durations {
    description: Desc,
    metrics: Vec<proto::Metric>,
}

impl Durations {
    fn new() -> prometheus::Result<Self> {
        let options =
            options("request_duration_seconds", "How long reads took, by front end and outcome.");
        let labels = READ_LABELS.map(str::to_owned).to_vec();
        Ok(Self { description: options.variable_labels(labels).describe()?, metrics: Vec::new() })
    }

    fn add(&mut self, labels: [&'static str; 2], times: &Times) {
        let label = |(name, value): (&str, &str)| {
            let mut label = LabelPair::default();
            label.set_name(name.to_owned());
            label.set_value(value.to_owned());
            label
        };
        let labels = READ_LABELS.into_iter().zip(labels).map(label).collect();
        let mut metric = proto::Metric::from_label(labels);
        metric.set_histogram(times.told());
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

/// Counts as an open connection until dropped.
#[derive(Debug)]
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How often a front end has turned somebody away for one reason. Clones count together.
#[derive(Debug, Clone)]
pub struct Refusals(IntCounter);

impl Refusals {
    /// One more.
    pub fn count(&self) {
        self.0.inc();
    }
}

/// Makes metrics and registers them.
struct Registration<'a>(&'a Registry);

impl Registration<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// Has `look` asked for each scrape; it gives the same names each time.
    fn look(&self, look: impl Fn() -> Figures + Send + Sync + 'static) -> prometheus::Result<()> {
        let figures = look()?;
        let descriptions = figures.iter().flat_map(|figure| figure.desc()).cloned().collect();
        self.0.register(Box::new(Looked { look, descriptions }))
    }

    fn tallies(&self, commands: &[&str]) -> prometheus::Result<Tallies> {
        let tallies = Tallies::of(commands);
        let looked_at = tallies.clone();
        self.look(move || looked_at.figures())?;
        Ok(tallies)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::with_opts(options(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(options(name, help), &[label])?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::with_opts(options(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(options(name, help), &[label])?)
    }

    fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.add(Gauge::with_opts(options(name, help))?)
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(durations(name, help))?)
    }

    fn build_info(&self) -> prometheus::Result<()> {
        let info = self.gauges("build_info", "The program that runs; always 1.", "version")?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        self.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("redis_proxy")
}

fn durations(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(options(name, help)).buckets(DURATION_BUCKETS.map(seconds).to_vec())
}
