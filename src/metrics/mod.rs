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

pub use self::labels::{BACKEND_ERROR_KINDS, FrontEnd, Invalidation, Node, Redirect, Refusal};
use self::per_thread::{DURATION_BUCKETS, Tallies, seconds};
use self::pull::{Figures, Looked, cache_figures, counted, measured, node_figures, options};
use crate::cache::{Outcome, Statistics};

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

fn durations(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(options(name, help)).buckets(DURATION_BUCKETS.map(seconds).to_vec())
}
