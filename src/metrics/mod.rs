//! What an operator sees at `/metrics`; the only user of the `prometheus` crate.
//!
//! Every label value is there from the start, at zero. What others count is looked at when somebody asks, and what
//! belongs together comes from one look: hits and misses are sums over the same reads, so hits + misses = reads in every
//! scrape. docs/src/operations/metrics.md tells of each; a test holds the two together.

mod labels;
mod per_thread;
mod pull;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

pub use self::labels::{BACKEND_ERROR_KINDS, FrontEnd, Invalidation, Node, Redirect, RejectReason};
use self::per_thread::{DURATION_BUCKETS, PerThread, seconds};
use self::pull::{
    PullCollector, PullResult, collect_cache, collect_nodes, counter, gauge, options,
};
use crate::cache::{Outcome, Statistics};

/// The metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    per_thread: PerThread,
    backend_duration: Histogram,
    backend_up: IntGauge,
    /// Links there are.
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
        let new = Builder(&registry);
        let metrics = Self {
            per_thread: new.per_thread(commands)?,
            backend_duration: new.histogram("backend_duration_seconds", "How long Redis took to answer fetches.")?,
            backend_up: new.gauge("backend_up", "Whether there is a link to Redis (1) or not (0).")?,
            connections_up: AtomicUsize::new(0),
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
            rejected: new.add(IntCounterVec::new(
                options("rejected_total", "What was refused to clients, by front end and by why."),
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
        for front_end in FrontEnd::ALL {
            self.connections.with_label_values(&[front_end.name()]).set(0);
            zero(&self.connections_refused, front_end.name());
        }
        for (front_end, reason) in RejectReason::ALL {
            self.reject_counter(front_end, reason).0.reset();
        }
        for result in ["success", "failure"] {
            zero(&self.reloads, result);
        }
    }

    /// So many reads were answered, each in this time.
    pub fn record_reads(&self, front_end: FrontEnd, outcome: Outcome, count: u64, took: Duration) {
        if let Some(outcomes) = self.per_thread.local().reads.get(front_end as usize) {
            outcomes[outcome as usize].add(count, took);
        }
    }

    /// A client of Redis said the command with this place in the list of names, so many times.
    pub fn record_commands(&self, label: usize, count: u64) {
        if let Some(commands) = self.per_thread.local().commands.get(label) {
            commands.add(count);
        }
    }

    /// How many reads there were: those answered from memory, and all.
    pub fn read_totals(&self) -> (u64, u64) {
        let reads = self.per_thread.reads();
        let counts = || reads.iter().flatten().zip(Outcome::ALL.iter().cycle());
        let sum = |of: fn(&Outcome) -> bool| {
            counts().filter(|(_, outcome)| of(outcome)).map(|(times, _)| times.count()).sum()
        };
        (sum(|outcome| outcome.from_memory()), sum(|_| true))
    }

    /// A key that was hot before the start was fetched.
    pub fn record_warmed(&self) {
        self.warmed.inc();
    }

    /// Redis answered a fetch, in this time.
    pub fn record_fetch(&self, took: Duration) {
        self.backend_duration.observe(took.as_secs_f64());
    }

    /// A fetch or a link failed; `kind` is one of [`BACKEND_ERROR_KINDS`].
    pub fn record_backend_error(&self, kind: &str) {
        self.backend_errors.with_label_values(&[kind]).inc();
    }

    /// Whether there is a link to Redis.
    pub fn set_backend_up(&self, up: bool) {
        let connections_up = if up {
            self.connections_up.fetch_add(1, Relaxed) + 1
        } else {
            self.connections_up.fetch_sub(1, Relaxed) - 1
        };
        self.backend_up.set(i64::from(connections_up > 0));
    }

    /// So much was invalidated.
    pub fn record_invalidations(&self, what: Invalidation, count: usize) {
        self.invalidations.with_label_values(&[what.name()]).inc_by(count as u64);
    }

    /// An invalidation was heeded so long after its write had been acknowledged.
    pub fn record_invalidation_lag(&self, lag: Duration) {
        self.invalidation_lag.observe(lag.as_secs_f64());
    }

    /// A link with tracking took the place of one that was lost.
    pub fn record_tracking_reconnect(&self) {
        self.tracking_reconnects.inc();
    }

    /// Counts a connection for as long as the guard lives.
    pub fn open_connection(&self, front_end: FrontEnd) -> ConnectionGuard {
        let gauge = self.connections.with_label_values(&[front_end.name()]);
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// How many connections are open to the front ends that answer reads.
    pub fn open_connections(&self) -> i64 {
        FrontEnd::READERS
            .iter()
            .map(|front_end| self.connections.with_label_values(&[front_end.name()]).get())
            .sum()
    }

    /// So many connections may be open.
    pub fn set_connections_limit(&self, front_end: FrontEnd, max: usize) {
        self.connections_limit
            .with_label_values(&[front_end.name()])
            .set(i64::try_from(max).unwrap_or(i64::MAX));
    }

    /// A connection was refused because there were as many as may be.
    pub fn record_connection_refused(&self, front_end: FrontEnd) {
        self.connections_refused.with_label_values(&[front_end.name()]).inc();
    }

    /// Counts commands of Redis clients that a cluster node did not run.
    pub fn redirects(&self, redirect: Redirect, count: u64) {
        if count > 0 {
            self.redirects.with_label_values(&[redirect.name()]).inc_by(count);
        }
    }

    /// The count of those that this front end turned away for this reason.
    pub fn reject_counter(&self, front_end: FrontEnd, reason: RejectReason) -> RejectCounter {
        RejectCounter(self.rejected.with_label_values(&[front_end.name(), reason.name()]))
    }

    /// A new configuration was put in force.
    pub fn record_config_reload(&self) {
        self.reloads.with_label_values(&["success"]).inc();
        self.mark_config_loaded();
    }

    /// A new configuration was refused.
    pub fn record_config_rejected(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.last_reload_successful.set(0);
    }

    fn mark_config_loaded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload.set(now.as_secs_f64());
        self.last_reload_successful.set(1);
    }

    /// From now on the cache's figures are told too.
    ///
    /// # Errors
    /// They are told already.
    pub fn register_cache(
        &self,
        pull: impl Fn() -> Statistics + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        Builder(&self.registry).pull(move || collect_cache(&pull()))
    }

    /// From now on it is told how many spans were dropped.
    ///
    /// # Errors
    /// It is told already.
    pub fn register_spans_dropped(
        &self,
        pull: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Spans that no collector got: it did not take them, or there were more than may wait for it.";
        Builder(&self.registry)
            .pull(move || Ok(vec![counter("spans_dropped_total", help, pull())?]))
    }

    /// From now on it is told how many lines of the log were dropped.
    ///
    /// # Errors
    /// It is told already.
    pub fn register_lines_dropped(
        &self,
        pull: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Log lines dropped because stderr was not writable.";
        Builder(&self.registry)
            .pull(move || Ok(vec![counter("log_lines_dropped_total", help, pull())?]))
    }

    /// From now on it is told how many tasks there are.
    ///
    /// # Errors
    /// It is told already.
    pub fn register_tasks(
        &self,
        pull: impl Fn() -> usize + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let help = "Tasks of the program, one for each connection among them.";
        Builder(&self.registry).pull(move || Ok(vec![gauge("tasks", help, pull() as u64)?]))
    }

    /// From now on it is told who answers of those there are.
    ///
    /// # Errors
    /// It is told already.
    pub fn register_nodes(
        &self,
        pull: impl Fn() -> Vec<Node> + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        Builder(&self.registry).pull(move || collect_nodes(&pull()))
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// Counts as an open connection until dropped.
#[derive(Debug)]
pub struct ConnectionGuard(IntGauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How often a front end has turned somebody away for one reason. Clones count together.
#[derive(Debug, Clone)]
pub struct RejectCounter(IntCounter);

impl RejectCounter {
    /// One more.
    pub fn count(&self) {
        self.0.inc();
    }
}

/// Makes metrics and registers them.
struct Builder<'a>(&'a Registry);

impl Builder<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// Has `pull` asked for each scrape; it gives the same names each time.
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

fn durations(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(options(name, help)).buckets(DURATION_BUCKETS.map(seconds).to_vec())
}
