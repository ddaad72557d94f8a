//! The state of the proxy for the status page: `/status.json`.
//!
//! Every value that `/metrics` has too comes from the same counters, so both agree. The page itself
//! is three files that are part of the program. It loads nothing from elsewhere.

mod explain;
mod history;
mod report;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use self::history::{History, INTERVAL, Sample, ratio};
use crate::cache::{Coherence, CoherenceMode, EvictionCause, KeyState, Outcome, Statistics};
use crate::metrics::{Metrics, Node, OutcomeTimes};
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
    started: Instant,
}

impl Status {
    /// Creates the state of `proxy`, whose daemon starts now.
    pub fn new(proxy: Proxy, metrics: Arc<Metrics>) -> Self {
        Self { proxy, metrics, history: History::default(), started: Instant::now() }
    }

    /// Keeps the history. It never ends.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let (from_memory, reads) = self.metrics.read_totals();
            let statistics = self.proxy.statistics();
            let bytes = statistics.bytes + statistics.replies.bytes;
            self.history.add(Sample { reads, from_memory, bytes });
        }
    }

    /// Returns the state as JSON, without hot keys.
    pub fn to_json(&self) -> Value {
        let statistics = self.proxy.statistics();
        let outcomes = self.metrics.outcome_times();
        let sum = |counts: fn(Outcome) -> bool| -> u64 {
            outcomes.iter().filter(|times| counts(times.outcome)).map(|times| times.count).sum()
        };
        let (reads, from_memory) = (sum(|_| true), sum(Outcome::from_memory));
        let (reload_time, reload_applied) = self.metrics.last_reload();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "state": self.state(&statistics),
            "reads": {
                "total": reads,
                "from_memory": from_memory,
                "hit_ratio": ratio(from_memory, reads),
                "outcomes": outcomes.iter().map(outcome).collect::<Vec<_>>(),
            },
            "memory": memory(&statistics),
            "evictions": evictions(&statistics),
            "connections": self.metrics.connections().map(|(front_end, open, limit)| json!({
                "front_end": front_end, "open": open, "limit": limit,
            })),
            "nodes": self.proxy.nodes().iter().map(node).collect::<Vec<_>>(),
            "last_reload": { "time": reload_time, "applied": reload_applied },
            "history": self.history.rates(),
        })
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

fn outcome(times: &OutcomeTimes) -> Value {
    let seconds = |bound: Option<Duration>| bound.map(|bound| bound.as_secs_f64());
    json!({
        "outcome": times.outcome.name(),
        "reads": times.count,
        "p50_seconds": seconds(times.median),
        "p99_seconds": seconds(times.p99),
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
