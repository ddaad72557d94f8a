//! The metrics at `/metrics`. Only this module uses the `prometheus` crate.
//!
//! Every label value exists from the start, at zero. Counts of other modules are pulled at each
//! scrape. Sums that belong together come from one pull: hits and misses are computed from the same
//! reads. So hits + misses = reads in every scrape. A test compares docs/src/operations/metrics.md
//! with the metrics.

mod exemplars;
mod labels;
mod openmetrics;
mod per_thread;
mod pull;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use self::exemplars::Exemplars;
pub use self::labels::{
    BACKEND_ERROR_KINDS, FrontEnd, Invalidation, Kind, Node, REST_STATUSES, Redirect, RejectReason,
    Verified,
};
pub use self::per_thread::BucketCounts;
use self::per_thread::{DURATION_BUCKETS, DurationHistogram, PerThread, seconds};
use self::pull::{
    PullCollector, PullResult, collect_cache, collect_nodes, collect_replies, counter, gauge,
    options,
};
use crate::cache::{Outcome, RuleId, RuleOutcome, Statistics};

/// The commit that the program was built from, where the build named it.
const REVISION: &str = match option_env!("REDIS_PROXY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The status of most REST responses.
const REST_OK: &str = "200";

/// The metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    per_thread: PerThread,
    exemplars: Exemplars,
    backend_up: IntGauge,
    /// The number of connections to Redis.
    connections_up: AtomicUsize,
    backend_errors: IntCounterVec,
    invalidations: IntCounterVec,
    invalidation_lag: Histogram,
    tracking_reconnects: IntCounter,
    connections: IntGaugeVec,
    connections_limit: IntGaugeVec,
    connections_refused: IntCounterVec,
    rejected: IntCounterVec,
    redirects: IntCounterVec,
    rest_requests: IntCounterVec,
    /// Those with the status [`REST_OK`].
    rest_ok: IntCounter,
    rest_streams: IntGauge,
    reloads: IntCounterVec,
    warmed: IntCounter,
    verified: IntCounterVec,
    last_reload: Gauge,
    last_reload_successful: IntGauge,
}

impl Metrics {
    /// Registers every metric. `commands` are the label values of commands.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have the same name, which would be a bug in this
    /// module.
    pub fn new(commands: &[&str]) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let new = Builder(&registry);
        let (rest_requests, rest_ok) = new.rest_requests()?;
        let metrics = Self {
            per_thread: new.per_thread(commands)?,
            exemplars: Exemplars::default(),
            backend_up: new
                .gauge("backend_up", "Whether there is a connection to Redis (1) or not (0).")?,
            connections_up: AtomicUsize::new(0),
            backend_errors: new.counters(
                "backend_errors_total",
                "Failed fetches and connections, by kind.",
                "kind",
            )?,
            invalidations: new.counters(
                "invalidations_total",
                "Invalidations applied, by kind.",
                "kind",
            )?,
            invalidation_lag: new.histogram(
                "invalidation_lag_seconds",
                "Time from the acknowledgement of a probe's write to its invalidation.",
            )?,
            tracking_reconnects: new.counter(
                "tracking_reconnects_total",
                "Connections with tracking that replaced a lost one.",
            )?,
            warmed: new
                .counter("warmed_total", "Keys fetched because they were hot before the start.")?,
            verified: new.verified()?,
            connections: new.gauges("connections", "Open client connections.", "front_end")?,
            connections_limit: new.gauges(
                "connections_limit",
                "Maximum number of client connections; one more is refused.",
                "front_end",
            )?,
            connections_refused: new.counters(
                "connections_refused_total",
                "Client connections refused because the limit was reached.",
                "front_end",
            )?,
            rejected: new.add(IntCounterVec::new(
                options("rejected_total", "Rejections of clients, by front end and reason."),
                &["front_end", "reason"],
            )?)?,
            redirects: new.add(IntCounterVec::new(
                options("redirects_total", "Commands that a cluster node did not run, by result."),
                &["result"],
            )?)?,
            rest_requests,
            rest_ok,
            rest_streams: new.gauge("rest_streams", "Open streams of events.")?,
            reloads: new.counters("config_reloads_total", "Reloads, by result.", "result")?,
            last_reload: new.seconds(
                "config_last_reload_success_timestamp_seconds",
                "Time at which the configuration in force was loaded, in seconds since 1970.",
            )?,
            last_reload_successful: new.gauge(
                "config_last_reload_successful",
                "Whether the last configuration read is in force (1) or was refused (0).",
            )?,
            registry: registry.clone(),
        };
        new.build_info()?;
        metrics.init_labels();
        metrics.mark_config_loaded();
        Ok(metrics)
    }

    fn init_labels(&self) {
        let zero = |counters: &IntCounterVec, label| counters.with_label_values(&[label]).reset();
        for kind in BACKEND_ERROR_KINDS {
            zero(&self.backend_errors, kind);
        }
        for kind in Invalidation::ALL {
            zero(&self.invalidations, kind.name());
        }
        for front_end in FrontEnd::LISTENERS {
            self.connections.with_label_values(&[front_end.name()]).set(0);
            zero(&self.connections_refused, front_end.name());
        }
        for (front_end, reason) in RejectReason::ALL {
            self.reject_counter(front_end, reason).0.reset();
        }
        for status in REST_STATUSES {
            zero(&self.rest_requests, status);
        }
        for result in Verified::ALL {
            zero(&self.verified, result.name());
        }
        for result in ["success", "failure"] {
            zero(&self.reloads, result);
        }
    }

    /// Counts `count` reads with this outcome, each of duration `took`.
    pub fn record_reads(&self, front_end: FrontEnd, outcome: Outcome, count: u64, took: Duration) {
        if let Some(outcomes) = self.per_thread.local().reads.get(front_end as usize) {
            outcomes[outcome as usize].add(count, took);
        }
    }

    /// Keeps the trace of a read that [`record_reads`](Self::record_reads) counts too, as an
    /// exemplar. It is one read, so `took` is its own duration.
    pub fn record_traced_read(
        &self,
        front_end: FrontEnd,
        outcome: Outcome,
        trace: u128,
        took: Duration,
    ) {
        self.exemplars.add_read(front_end, outcome, trace, took);
    }

    /// Counts the kind of `count` reads by commands that [`record_reads`](Self::record_reads)
    /// counts too.
    pub fn record_kind(&self, front_end: FrontEnd, kind: Kind, outcome: Outcome, count: u64) {
        if let Some(by_kind) = self.per_thread.local().by_kind.get(front_end as usize) {
            by_kind[kind as usize][outcome as usize].add(count);
        }
    }

    /// Counts `count` reads of a rule.
    pub fn record_rule(&self, rule: RuleId, outcome: RuleOutcome, count: u64) {
        self.per_thread.local().rules.add(rule, outcome, count);
    }

    /// Returns the reads of a rule by outcome, in the order of [`RuleOutcome::all`].
    pub fn rule_reads(&self, rule: RuleId) -> [u64; RuleOutcome::COUNT] {
        self.per_thread.rule_reads(rule)
    }

    /// Counts `count` commands. `label` is the index of the command's name in the list of names.
    pub fn record_commands(&self, label: usize, count: u64) {
        if let Some(commands) = self.per_thread.local().commands.get(label) {
            commands.add(count);
        }
    }

    /// Returns the numbers of reads.
    pub fn read_totals(&self) -> ReadTotals {
        let reads = self.per_thread.reads();
        let mut totals = ReadTotals::default();
        for (times, outcome) in reads.iter().flatten().zip(Outcome::ALL.iter().cycle()) {
            let count = times.count();
            totals.all += count;
            match outcome {
                Outcome::Error => totals.errors += count,
                _ if outcome.from_memory() => totals.from_memory += count,
                _ => {}
            }
        }
        totals
    }

    /// Returns the durations of reads by outcome, in the order of [`Outcome::ALL`], of all front
    /// ends.
    pub fn outcome_times(&self) -> OutcomeTimes {
        let reads = self.per_thread.reads();
        std::array::from_fn(|outcome| {
            let times = DurationHistogram::default();
            for outcomes in &reads {
                times.add_all(&outcomes[outcome]);
            }
            times.bucket_counts()
        })
    }

    /// Returns the name, the open connections and their limit of each front end.
    pub fn connections(&self) -> [(&'static str, i64, i64); FrontEnd::LISTENERS.len()] {
        FrontEnd::LISTENERS.map(|front_end| {
            let of = |gauges: &IntGaugeVec| gauges.with_label_values(&[front_end.name()]).get();
            (front_end.name(), of(&self.connections), of(&self.connections_limit))
        })
    }

    /// Returns the time of the last applied configuration, in seconds since 1970, and whether the
    /// last one that was read is in force.
    pub fn last_reload(&self) -> (f64, bool) {
        (self.last_reload.get(), self.last_reload_successful.get() == 1)
    }

    /// Returns the counter of responses of a listener.
    pub fn response_counter(&self, front_end: FrontEnd) -> ResponseCounter {
        ResponseCounter { per_thread: self.per_thread.clone(), front_end }
    }

    /// Counts a key that was fetched because it was hot before the start.
    pub fn record_warmed(&self) {
        self.warmed.inc();
    }

    /// Counts the comparison of an answer from memory with Redis.
    pub fn record_verified(&self, result: Verified) {
        self.verified.with_label_values(&[result.name()]).inc();
    }

    /// Returns the numbers of comparisons, in the order of [`Verified::ALL`].
    pub fn verified(&self) -> [u64; Verified::ALL.len()] {
        Verified::ALL.map(|result| self.verified.with_label_values(&[result.name()]).get())
    }

    /// Records the duration of a fetch that Redis answered. `trace` is its trace, if it is sampled.
    pub fn record_fetch(&self, took: Duration, trace: Option<u128>) {
        self.per_thread.local().fetches.add(1, took);
        if let Some(trace) = trace {
            self.exemplars.fetches.add(trace, took);
        }
    }

    /// Counts a failed fetch or connection. `kind` is one of [`BACKEND_ERROR_KINDS`].
    pub fn record_backend_error(&self, kind: &str) {
        self.backend_errors.with_label_values(&[kind]).inc();
    }

    /// Adds or removes one of the connections to Redis.
    pub fn set_backend_up(&self, up: bool) {
        let connections_up = if up {
            self.connections_up.fetch_add(1, Relaxed) + 1
        } else {
            self.connections_up.fetch_sub(1, Relaxed) - 1
        };
        self.backend_up.set(i64::from(connections_up > 0));
    }

    /// Counts invalidations that were applied.
    pub fn record_invalidations(&self, what: Invalidation, count: usize) {
        self.invalidations.with_label_values(&[what.name()]).inc_by(count as u64);
    }

    /// Records the time from the acknowledgement of a probe's write to its applied invalidation.
    pub fn record_invalidation_lag(&self, lag: Duration) {
        self.invalidation_lag.observe(lag.as_secs_f64());
    }

    /// Counts a connection with tracking that replaces a lost one.
    pub fn record_tracking_reconnect(&self) {
        self.tracking_reconnects.inc();
    }

    /// Counts a client connection as open until the guard is dropped.
    pub fn open_connection(&self, front_end: FrontEnd) -> ConnectionGuard {
        let gauge = self.connections.with_label_values(&[front_end.name()]);
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// Counts a REST request. `status` is one of [`REST_STATUSES`].
    pub fn record_rest_request(&self, status: &str) {
        // Most requests have this status, and each lookup by label costs more than a cached read.
        if status == REST_OK {
            self.rest_ok.inc();
        } else {
            self.rest_requests.with_label_values(&[status]).inc();
        }
    }

    /// Counts a stream of events as open until the guard is dropped.
    pub fn open_stream(&self) -> ConnectionGuard {
        self.rest_streams.inc();
        ConnectionGuard(self.rest_streams.clone())
    }

    /// Returns the number of open connections to the front ends that answer reads.
    pub fn open_connections(&self) -> i64 {
        FrontEnd::LISTENERS
            .iter()
            .filter(|front_end| FrontEnd::READERS.contains(front_end))
            .map(|front_end| self.connections.with_label_values(&[front_end.name()]).get())
            .sum()
    }

    /// Sets the most client connections that may be open.
    pub fn set_connections_limit(&self, front_end: FrontEnd, max: usize) {
        self.connections_limit
            .with_label_values(&[front_end.name()])
            .set(i64::try_from(max).unwrap_or(i64::MAX));
    }

    /// Counts a connection that was refused because the limit was reached.
    pub fn record_connection_refused(&self, front_end: FrontEnd) {
        self.connections_refused.with_label_values(&[front_end.name()]).inc();
    }

    /// Counts commands of Redis clients that a cluster node did not run.
    pub fn redirects(&self, redirect: Redirect, count: u64) {
        if count > 0 {
            self.redirects.with_label_values(&[redirect.name()]).inc_by(count);
        }
    }

    /// Returns the counter of rejections by this front end for this reason.
    pub fn reject_counter(&self, front_end: FrontEnd, reason: RejectReason) -> RejectCounter {
        RejectCounter(self.rejected.with_label_values(&[front_end.name(), reason.name()]))
    }

    /// Records that a new configuration was applied.
    pub fn record_config_reload(&self) {
        self.reloads.with_label_values(&["success"]).inc();
        self.mark_config_loaded();
    }

    /// Records that a new configuration was refused.
    pub fn record_config_rejected(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.last_reload_successful.set(0);
    }

    fn mark_config_loaded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload.set(now.as_secs_f64());
        self.last_reload_successful.set(1);
    }

    /// Registers the metrics of the cache. `pull` is called at each scrape.
    ///
    /// # Errors
    /// [`prometheus::Error`] if they are registered already.
    pub fn register_cache(
        &self,
        pull: impl Fn() -> Statistics + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let per_thread = self.per_thread.clone();
        Builder(&self.registry).pull(move || {
            let statistics = pull();
            let mut figures = collect_cache(&statistics)?;
            figures.extend(collect_replies(&statistics.replies)?);
            figures.push(per_thread.collect_rules(&statistics.rule_names)?);
            Ok(figures)
        })
    }

    /// Registers the number of dropped spans. `pull` is called at each scrape.
    ///
    /// # Errors
    /// [`prometheus::Error`] if it is registered already.
    pub fn register_spans_dropped(
        &self,
        pull: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Spans dropped because the collector rejected them or the queue was full.";
        Builder(&self.registry)
            .pull(move || Ok(vec![counter("spans_dropped_total", help, pull())?]))
    }

    /// Registers the number of dropped log lines. `pull` is called at each scrape.
    ///
    /// # Errors
    /// [`prometheus::Error`] if it is registered already.
    pub fn register_lines_dropped(
        &self,
        pull: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Log lines dropped because stderr was not writable.";
        Builder(&self.registry)
            .pull(move || Ok(vec![counter("log_lines_dropped_total", help, pull())?]))
    }

    /// Registers the number of tasks. `pull` is called at each scrape.
    ///
    /// # Errors
    /// [`prometheus::Error`] if it is registered already.
    pub fn register_tasks(
        &self,
        pull: impl Fn() -> usize + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Tasks of the program, including one for each connection.";
        Builder(&self.registry).pull(move || Ok(vec![gauge("tasks", help, pull() as u64)?]))
    }

    /// Registers the states of the nodes. `pull` is called at each scrape.
    ///
    /// # Errors
    /// [`prometheus::Error`] if they are registered already.
    pub fn register_nodes(
        &self,
        pull: impl Fn() -> Vec<Node> + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        Builder(&self.registry).pull(move || collect_nodes(&pull()))
    }

    /// Renders the metrics in this format.
    pub fn render(&self, format: Exposition) -> String {
        let families = self.registry.gather();
        match format {
            Exposition::Text => TextEncoder::new().encode_to_string(&families).unwrap_or_default(),
            Exposition::OpenMetrics => openmetrics::encode(&families, &self.exemplars),
        }
    }
}

/// A format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The Prometheus text format, version 0.0.4.
    Text,
    /// The OpenMetrics text format, version 1.0, which has exemplars.
    OpenMetrics,
}

impl Exposition {
    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The numbers of reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadTotals {
    /// All reads.
    pub all: u64,
    /// Those that were answered from memory.
    pub from_memory: u64,
    /// Those that failed.
    pub errors: u64,
}

impl ReadTotals {
    /// Returns the number of reads that Redis answered.
    pub fn misses(self) -> u64 {
        self.all.saturating_sub(self.from_memory).saturating_sub(self.errors)
    }
}

/// The durations of reads by outcome, in the order of [`Outcome::ALL`].
pub type OutcomeTimes = [BucketCounts; Outcome::ALL.len()];

/// A guard that counts as an open connection, or an open stream, until it is dropped.
#[derive(Debug)]
pub struct ConnectionGuard(IntGauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The counter of rejections by one front end for one reason. Clones share the count.
#[derive(Debug, Clone)]
pub struct RejectCounter(IntCounter);

impl RejectCounter {
    /// Counts a rejection.
    pub fn count(&self) {
        self.0.inc();
    }
}

/// The counter of the HTTP responses of one listener. Clones share the counts.
#[derive(Clone)]
pub struct ResponseCounter {
    per_thread: PerThread,
    front_end: FrontEnd,
}

impl ResponseCounter {
    /// Counts a response with this status.
    pub fn count(&self, status: u16) {
        self.per_thread.local().add_response(self.front_end, status);
    }
}

/// A helper that creates metrics and registers them.
struct Builder<'a>(&'a Registry);

impl Builder<'_> {
    /// Creates the counters of REST requests, and among them that of the status [`REST_OK`].
    fn rest_requests(&self) -> prometheus::Result<(IntCounterVec, IntCounter)> {
        let help = "REST requests, by the status of their response.";
        let all = self.counters("rest_requests_total", help, "status")?;
        let ok = all.with_label_values(&[REST_OK]);
        Ok((all, ok))
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// Calls `pull` at each scrape. It must return the same names each time.
    fn pull(
        &self,
        pull: impl Fn() -> PullResult + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let collect = pull()?;
        let descriptions = collect.iter().flat_map(|figure| figure.desc()).cloned().collect();
        self.0.register(Box::new(PullCollector { pull, descriptions }))
    }

    fn per_thread(&self, commands: &[&str]) -> prometheus::Result<PerThread> {
        let per_thread = PerThread::new(commands);
        let source = per_thread.clone();
        self.pull(move || source.collect())?;
        Ok(per_thread)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::with_opts(options(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(options(name, help), &[label])?)
    }

    fn verified(&self) -> prometheus::Result<IntCounterVec> {
        let help = "Answers from memory that were compared with Redis, by result.";
        self.counters("verified_total", help, "result")
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
        let help = "The version of the program and the commit it was built from; always 1.";
        let labels = ["version", "revision"];
        let info = self.add(IntGaugeVec::new(options("build_info", help), &labels)?)?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION]).set(1);
        #[cfg(target_os = "linux")]
        self.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }
}

fn durations(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(options(name, help)).buckets(DURATION_BUCKETS.map(seconds).to_vec())
}
