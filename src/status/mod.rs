//! The state of the proxy for the status page: `/status.json`.
//!
//! Every value that `/metrics` has too comes from the same counters, so both agree. The page itself
//! is three files that are part of the program. It loads nothing from elsewhere.

mod explain;
mod history;
mod info;
mod report;
mod window;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use self::history::{History, INTERVAL, Sample, ratio};
pub use self::info::info_section;
use self::window::Window;
use crate::cache::{Coherence, CoherenceMode, EvictionCause, KeyState, Outcome, Statistics};
use crate::metrics::{BucketCounts, Metrics, Node, ReadTotals, Verified};
use crate::proxy::Proxy;

/// The page at `/status`.
pub const PAGE: &str = include_str!("page.html");
/// The style at `/status.css`.
pub const STYLE: &str = include_str!("page.css");
/// The script at `/status.js`, which shows what `/status.json` has.
pub const SCRIPT: &str = include_str!("page.js");

/// Returns the state of a key as JSON. `name` is the key as it is written behind `/keys/`.
pub fn explain(name: &str, state: &KeyState) -> Value {
    explain::explain(name, state)
}

/// The state of one daemon. Clones share it.
#[derive(Clone)]
pub struct Status {
    proxy: Proxy,
    metrics: Arc<Metrics>,
    history: History,
    window: Window,
    started: Instant,
}

impl Status {
    /// Creates the state of `proxy`, whose daemon starts now.
    pub fn new(proxy: Proxy, metrics: Arc<Metrics>) -> Self {
        Self {
            proxy,
            metrics,
            history: History::default(),
            window: Window::default(),
            started: Instant::now(),
        }
    }

    /// Keeps the history. It never ends.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let ReadTotals { from_memory, all: reads, .. } = self.metrics.read_totals();
            let statistics = self.proxy.statistics();
            let bytes = statistics.bytes + statistics.replies.bytes;
            self.window.add(&self.metrics.outcome_times());
            self.history.add(Sample { reads, from_memory, bytes });
        }
    }

    /// Returns the state as JSON, without hot keys.
    pub fn to_json(&self) -> Value {
        let statistics = self.proxy.statistics();
        let (times, totals) = (self.metrics.outcome_times(), self.metrics.read_totals());
        let recent = self.window.recent(&times);
        let outcomes = Outcome::ALL.into_iter().zip(times.iter().zip(&recent));
        let (reload_time, reload_applied) = self.metrics.last_reload();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "state": self.state(&statistics),
            "reads": {
                "total": totals.all,
                "from_memory": totals.from_memory,
                "errors": totals.errors,
                "hit_ratio": ratio(totals.from_memory, totals.all),
                "outcomes": outcomes.map(outcome).collect::<Vec<_>>(),
            },
            "verified": self.verified(),
            "memory": memory(&statistics),
            "memory_total": {
                "bytes": statistics.memory.bytes, "max_bytes": statistics.memory.max,
            },
            "evictions": evictions(&statistics),
            "connections": self.metrics.connections().map(|(front_end, open, limit)| json!({
                "front_end": front_end, "open": open, "limit": limit,
            })),
            "nodes": self.proxy.nodes().iter().map(node).collect::<Vec<_>>(),
            "last_reload": { "time": reload_time, "applied": reload_applied },
            "history": self.history.rates(),
        })
    }

    /// Returns the part of the answers from memory that is compared with Redis, and the numbers of
    /// comparisons by result.
    fn verified(&self) -> Value {
        let mut verified = json!({ "sample": self.proxy.verified_part() });
        for (result, count) in Verified::ALL.into_iter().zip(self.metrics.verified()) {
            verified[result.name()] = count.into();
        }
        verified
    }

    /// Returns the reads by rule as JSON.
    pub fn report(&self) -> Value {
        let statistics = self.proxy.statistics();
        report::report(&statistics, &self.metrics)
    }

    /// Describes whether answers are fresh, and why.
    fn state(&self, statistics: &Statistics) -> Value {
        let expects_tracking = statistics.settings.coherence != CoherenceMode::Ttl;
        let (level, text) = match (self.proxy.ready(), statistics.coherence) {
            (Err(reason), _) => ("down", format!("Not ready: {reason}.")),
            (Ok(()), Coherence::Tracking) => {
                ("fresh", "Fresh: Redis pushes an invalidation for each change.".to_owned())
            }
            (Ok(()), Coherence::None) => {
                ("degraded", "Nothing is answered from memory: no lease is valid.".to_owned())
            }
            (Ok(()), Coherence::Ttl) => {
                let ttl = humantime::format_duration(statistics.settings.ttl);
                let level = if expects_tracking { "degraded" } else { "ttl" };
                let why = if expects_tracking { "tracking is not active" } else { "by choice" };
                (level, format!("Up to {ttl} old: only the TTL bounds the age ({why})."))
            }
        };
        json!({ "level": level, "text": text, "coherence": statistics.coherence.name() })
    }
}

/// Returns the reads with an outcome since the start, and upper bounds of their durations in the
/// last minute.
fn outcome((outcome, (all, recent)): (Outcome, (&BucketCounts, &BucketCounts))) -> Value {
    let seconds = |permille| recent.quantile_bound(permille).map(|bound| bound.as_secs_f64());
    json!({
        "outcome": outcome.name(),
        "reads": all.count(),
        "p50_seconds": seconds(500),
        "p99_seconds": seconds(990),
    })
}

/// Returns each store with its contents and its bounds. A bound that does not exist is `null`.
fn memory(statistics: &Statistics) -> Value {
    let settings = &statistics.settings;
    json!([
        {
            "store": "values",
            "entries": statistics.entries, "max_entries": settings.capacity,
            "bytes": statistics.bytes, "max_bytes": null,
        },
        {
            "store": "replies",
            "entries": statistics.replies.entries, "max_entries": null,
            "bytes": statistics.replies.bytes, "max_bytes": settings.max_reply_memory.0,
        },
    ])
}

fn evictions(statistics: &Statistics) -> Value {
    let counts = statistics.evictions.iter().zip(statistics.replies.evictions);
    EvictionCause::ALL
        .iter()
        .zip(counts)
        .map(|(cause, (values, replies))| {
            json!({ "cause": cause.name(), "values": values, "replies": replies })
        })
        .collect()
}

fn node(node: &Node) -> Value {
    json!({ "node": node.name, "role": node.role, "up": node.up })
}
