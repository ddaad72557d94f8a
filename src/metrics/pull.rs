//! Metrics that are pulled from other modules at each scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::labels::Node;
use crate::cache::{
    Coherence, CoherenceMode, EvictionCause, RefreshResult, ReplyStatistics, Statistics,
};

/// The metrics of one pull.
pub(super) type PullResult = prometheus::Result<Vec<Box<dyn Collector>>>;

pub(super) fn collect_cache(cache: &Statistics) -> PullResult {
    let evictions = options("cache_evictions_total", "Entries that left the cache, by cause.");
    let evictions = IntCounterVec::new(evictions, &["cause"])?;
    for (cause, evicted) in EvictionCause::ALL.iter().zip(cache.evictions) {
        evictions.with_label_values(&[cause.name()]).inc_by(evicted);
    }
    let refreshes = options("refreshes_total", "Fetches of keys that are kept hot, by result.");
    let refreshes = IntCounterVec::new(refreshes, &["result"])?;
    for (result, count) in RefreshResult::ALL.iter().zip(cache.refreshes) {
        refreshes.with_label_values(&[result.name()]).inc_by(count);
    }
    let settings = &cache.settings;
    let (active, expected) =
        (cache.coherence == Coherence::Tracking, settings.coherence != CoherenceMode::Ttl);
    let ttl = Gauge::with_opts(options("cache_ttl_seconds", "Maximum age of a cached value."))?;
    ttl.set(settings.ttl.as_secs_f64());
    Ok(vec![
        Box::new(evictions),
        Box::new(refreshes),
        Box::new(ttl),
        counter(
            "fetches_discarded_total",
            "Fetches answered but not stored, because the key was invalidated meanwhile.",
            cache.flights_discarded,
        )?,
        gauge("inflight_fetches", "Fetches in progress, each for one key.", cache.flights as u64)?,
        gauge("cache_entries", "Entries in the cache.", cache.entries)?,
        gauge("cache_bytes", "Bytes of the keys and values in the cache.", cache.bytes)?,
        gauge(
            "cache_memory_bytes",
            "Bytes of everything that counts against cache.max_memory.",
            cache.memory.bytes,
        )?,
        gauge("cache_max_memory_bytes", "The bound cache.max_memory, in bytes.", cache.memory.max)?,
        counter(
            "cache_values_too_large_total",
            "Values that were not kept, because they are larger than a tenth of cache.max_memory.",
            cache.memory.too_large,
        )?,
        gauge(
            "in_flight_bytes",
            "Bytes of large values in flight: fetched and not kept, or being written to clients.",
            cache.memory.in_flight,
        )?,
        gauge(
            "max_in_flight_bytes",
            "The bound cache.max_in_flight, in bytes.",
            cache.memory.max_in_flight,
        )?,
        counter(
            "in_flight_discarded_total",
            "Replies that were discarded because there was no room for them in flight.",
            cache.memory.in_flight_discarded,
        )?,
        gauge(
            "cache_capacity_entries",
            "Maximum number of entries in the cache.",
            settings.capacity as u64,
        )?,
        gauge(
            "tracking_active",
            "Whether client-side tracking is active and its lease is valid (1), or not (0).",
            active.into(),
        )?,
        gauge(
            "tracking_expected",
            "Whether cache.coherence asks for tracking (1), or leaves freshness to the TTL (0).",
            expected.into(),
        )?,
    ])
}

pub(super) fn collect_replies(replies: &ReplyStatistics) -> PullResult {
    let evictions = options("replies_evictions_total", "Kept replies that were removed, by cause.");
    let evictions = IntCounterVec::new(evictions, &["cause"])?;
    for (cause, evicted) in EvictionCause::ALL.iter().zip(replies.evictions) {
        evictions.with_label_values(&[cause.name()]).inc_by(evicted);
    }
    let discarded = "Replies that were not kept, because a key changed during the fetch.";
    let bytes = "Bytes that kept replies take, with their change counters.";
    Ok(vec![
        Box::new(evictions),
        counter("replies_discarded_total", discarded, replies.discarded)?,
        gauge("replies_entries", "Kept replies.", replies.entries)?,
        gauge("replies_bytes", bytes, replies.bytes)?,
    ])
}

pub(super) fn collect_nodes(nodes: &[Node]) -> PullResult {
    let up = options("node_up", "Whether this node replies (1) or not (0).");
    let up = IntGaugeVec::new(up, &["node", "role"])?;
    for node in nodes {
        up.with_label_values(&[&node.name, node.role]).set(node.up.into());
    }
    Ok(vec![Box::new(up)])
}

pub(super) fn counter(
    name: &str,
    help: &str,
    count: u64,
) -> prometheus::Result<Box<dyn Collector>> {
    let counter = IntCounter::with_opts(options(name, help))?;
    counter.inc_by(count);
    Ok(Box::new(counter))
}

pub(super) fn gauge(name: &str, help: &str, value: u64) -> prometheus::Result<Box<dyn Collector>> {
    let gauge = IntGauge::with_opts(options(name, help))?;
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    Ok(Box::new(gauge))
}

/// A collector that calls `pull` at each scrape.
pub(super) struct PullCollector<F> {
    pub(super) pull: F,
    /// The descriptions, which are the same for each pull.
    pub(super) descriptions: Vec<Desc>,
}

impl<F: Fn() -> PullResult + Send + Sync> Collector for PullCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.pull)().unwrap_or_default().iter().flat_map(|figure| figure.collect()).collect()
    }
}

pub(super) fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("redis_proxy")
}
