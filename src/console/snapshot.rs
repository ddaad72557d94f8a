//! The state of a proxy at one time, as `/status.json` has it, and what lies between two of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The seconds by which an uptime may grow less than the time between two snapshots: it is rounded
/// down, and a response may take two seconds.
const UPTIME_TOLERANCE: u64 = 3;

/// The state at one time. Fields that are unknown here are left out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Snapshot {
    pub(super) version: String,
    pub(super) uptime_seconds: u64,
    pub(super) state: State,
    pub(super) reads: Reads,
    pub(super) verified: Verified,
    pub(super) memory: Vec<Store>,
    pub(super) memory_total: Bound,
    pub(super) evictions: Vec<Evictions>,
    pub(super) connections: Vec<Connections>,
    pub(super) nodes: Vec<Node>,
    pub(super) hot_keys: Option<Vec<HotKey>>,
    pub(super) last_reload: Reload,
    pub(super) history: History,
}

/// Whether answers are fresh, and why.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) level: String,
    pub(super) text: String,
    pub(super) coherence: String,
}

/// The reads since the start.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Reads {
    pub(super) total: u64,
    pub(super) from_memory: u64,
    pub(super) hit_ratio: Option<f64>,
    pub(super) outcomes: Vec<Outcome>,
}

/// The reads with one outcome.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Outcome {
    #[serde(rename = "outcome")]
    pub(super) name: String,
    pub(super) reads: u64,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// The answers from memory that were compared with Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Verified {
    /// The part of the answers that is compared, from 0 to 1.
    pub(super) sample: f64,
    pub(super) equal: u64,
    pub(super) changed: u64,
    pub(super) stale: u64,
    pub(super) unknown: u64,
}

impl Verified {
    /// Whether answers are compared, or were.
    pub(super) fn is_shown(&self) -> bool {
        self.sample > 0.0 || self.equal + self.changed + self.stale + self.unknown > 0
    }
}

/// The contents of a store.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Store {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Bytes, and the most of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Bound {
    pub(super) bytes: u64,
    pub(super) max_bytes: u64,
}

/// The evictions of one cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Evictions {
    pub(super) cause: String,
    pub(super) values: u64,
    pub(super) replies: u64,
}

/// The clients of a front end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Connections {
    pub(super) front_end: String,
    pub(super) open: i64,
    pub(super) limit: i64,
}

/// A node behind the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    #[serde(rename = "node")]
    pub(super) name: String,
    pub(super) role: String,
    pub(super) up: bool,
}

/// A key that is read often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct HotKey {
    pub(super) key: String,
    pub(super) reads: u64,
}

/// The last reload.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Reload {
    pub(super) time: f64,
    pub(super) applied: bool,
}

/// The last 15 minutes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct History {
    pub(super) reads: Vec<f64>,
}

/// The reads per second between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// All reads per second.
    pub(super) reads: f64,
    /// Those that Redis answered.
    pub(super) redis_reads: f64,
    /// The share of reads from memory; `None` without reads.
    pub(super) hit_ratio: Option<f64>,
    /// The reads per second by outcome, in the order of the snapshot.
    pub(super) outcomes: Vec<f64>,
}

impl Snapshot {
    /// Parses `/status.json`.
    ///
    /// # Errors
    /// [`serde_json::Error`] if it is another document.
    pub(super) fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// Returns the number of entries in memory, kept replies included.
    pub(super) fn entries(&self) -> u64 {
        self.memory.iter().map(|store| store.entries).sum()
    }

    /// Returns the number of clients that read.
    pub(super) fn clients(&self) -> i64 {
        let readers = self.connections.iter().filter(|each| each.front_end != "admin");
        readers.map(|each| each.open).sum()
    }

    /// Returns the rates since `before`, which was taken `elapsed` earlier. `None` if the proxy
    /// was restarted in between.
    pub(super) fn rates_since(&self, before: &Self, elapsed: Duration) -> Option<Rates> {
        if self.is_restart_of(before, elapsed) || elapsed.is_zero() {
            return None;
        }
        let rate = |before: u64, after: u64| {
            as_float(after.saturating_sub(before)) / elapsed.as_secs_f64()
        };
        let (now, then) = (&self.reads, &before.reads);
        let reads = rate(then.total, now.total);
        let from_memory = rate(then.from_memory, now.from_memory);
        let of = |outcome: &Outcome| {
            let old = then.outcomes.iter().find(|old| old.name == outcome.name);
            rate(old.map_or(0, |old| old.reads), outcome.reads)
        };
        Some(Rates {
            reads,
            redis_reads: (reads - from_memory).max(0.0),
            hit_ratio: (reads > 0.0).then(|| from_memory / reads),
            outcomes: now.outcomes.iter().map(of).collect(),
        })
    }

    /// Whether the proxy was restarted since `before`: its uptime has not grown by the time between.
    fn is_restart_of(&self, before: &Self, elapsed: Duration) -> bool {
        let expected = before.uptime_seconds.saturating_add(elapsed.as_secs());
        self.uptime_seconds < before.uptime_seconds
            || self.uptime_seconds + UPTIME_TOLERANCE < expected
            || self.reads.total < before.reads.total
    }

    /// Returns what has happened since `before`, which was taken `elapsed` earlier, each in a few
    /// words.
    pub(super) fn events_since(&self, before: &Self, elapsed: Duration) -> Vec<String> {
        let mut events = Vec::new();
        let is_restart = self.is_restart_of(before, elapsed);
        if is_restart {
            events.push(format!("started, version {}", self.version));
        }
        if self.state.text != before.state.text {
            events.push(self.state.text.clone());
        }
        for node in &self.nodes {
            let was_up = before.nodes.iter().find(|old| old.name == node.name).map(|old| old.up);
            if was_up != Some(node.up) {
                let state = if node.up { "up" } else { "down" };
                events.push(format!("{} {} is {state}", node.role, node.name));
            }
        }
        for old in &before.nodes {
            if !self.nodes.iter().any(|node| node.name == old.name) {
                events.push(format!("{} {} is gone", old.role, old.name));
            }
        }
        let stale = self.verified.stale.saturating_sub(before.verified.stale);
        if stale > 0 && !is_restart {
            events.push(format!("{stale} stale from memory, found by verification"));
        }
        let is_newer = self.last_reload.time > before.last_reload.time;
        if self.last_reload.applied && is_newer && !is_restart {
            events.push("a new configuration is in force".to_owned());
        }
        if !self.last_reload.applied && before.last_reload.applied {
            events.push("a new configuration was refused".to_owned());
        }
        events
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs fewer digits than 2^53")]
pub(super) fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A proxy with these reads.
    pub(in crate::console) fn snapshot(hits: u64, misses: u64, up: bool) -> Snapshot {
        let text = serde_json::json!({
            "version": "1.2.3",
            "uptime_seconds": 7500 + hits,
            "state": { "level": "fresh", "text": "Fresh.", "coherence": "tracking" },
            "reads": {
                "total": hits + misses, "from_memory": hits, "hit_ratio": 0.5, "unknown": 1,
                "outcomes": [
                    {
                        "outcome": "hit", "reads": hits,
                        "p50_seconds": 0.000_025, "p99_seconds": 0.0025,
                    },
                    { "outcome": "miss", "reads": misses, "p50_seconds": null, "p99_seconds": 1 },
                ],
            },
            "memory": [
                { "store": "values", "entries": 40, "bytes": 4096 },
                { "store": "replies", "entries": 2, "bytes": 1024 },
            ],
            "memory_total": { "bytes": 5120, "max_bytes": 10240 },
            "evictions": [
                { "cause": "capacity", "values": 12, "replies": 0 },
                { "cause": "expired", "values": 3456, "replies": 7 },
            ],
            "connections": [
                { "front_end": "http", "open": 3, "limit": 100 },
                { "front_end": "resp", "open": 4, "limit": 0 },
                { "front_end": "admin", "open": 1, "limit": 10 },
            ],
            "nodes": [{ "node": "10.0.0.1:6379", "role": "redis", "up": up }],
            "hot_keys": [{ "key": "user:1", "reads": 77, "error": 0 }],
            "last_reload": { "time": 5.0, "applied": true },
            "history": { "reads": [1.0, 2.0, 4.0] },
        });
        Snapshot::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn rates_are_differences_of_snapshots() {
        let (before, after) = (snapshot(100, 10, true), snapshot(160, 30, true));
        let rates = after.rates_since(&before, Duration::from_secs(2)).unwrap();
        assert_eq!((rates.reads, rates.redis_reads, rates.hit_ratio), (40.0, 10.0, Some(0.75)));
        assert_eq!(rates.outcomes, [30.0, 10.0]);
        let idle = after.rates_since(&after, Duration::from_secs(1)).unwrap();
        assert_eq!((idle.reads, idle.hit_ratio), (0.0, None));
        assert_eq!(before.rates_since(&after, Duration::from_secs(1)), None);
        assert_eq!((after.entries(), after.clients()), (42, 7));
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn restart_during_an_outage_is_seen_by_the_uptime() {
        let (before, mut after) = (snapshot(10, 1, true), snapshot(1000, 1, true));
        after.uptime_seconds = before.uptime_seconds + 50;
        let minute = Duration::from_secs(60);
        assert_eq!(after.rates_since(&before, minute), None);
        assert_eq!(after.events_since(&before, minute), ["started, version 1.2.3"]);
        after.uptime_seconds = before.uptime_seconds + 58;
        assert!(after.rates_since(&before, minute).is_some());
        assert_eq!(after.events_since(&before, minute), [""; 0]);
    }

    #[test]
    fn event_is_a_change_of_the_state() {
        let before = snapshot(100, 10, true);
        assert_eq!(before.events_since(&before, SECOND), [""; 0]);
        let mut after = snapshot(110, 10, false);
        assert_eq!(after.events_since(&before, SECOND), ["redis 10.0.0.1:6379 is down"]);
        after = snapshot(110, 10, true);
        after.state.text = "Not ready.".to_owned();
        after.last_reload.applied = false;
        after.nodes.clear();
        assert_eq!(
            after.events_since(&before, SECOND),
            ["Not ready.", "redis 10.0.0.1:6379 is gone", "a new configuration was refused"]
        );
        after = snapshot(110, 10, true);
        after.last_reload.time = 6.0;
        assert_eq!(after.events_since(&before, SECOND), ["a new configuration is in force"]);
        after = snapshot(110, 10, true);
        after.verified.stale = 2;
        assert_eq!(
            after.events_since(&before, SECOND),
            ["2 stale from memory, found by verification"]
        );
        // A start loads a configuration too.
        after = snapshot(0, 0, true);
        after.last_reload.time = 6.0;
        assert_eq!(after.events_since(&before, SECOND), ["started, version 1.2.3"]);
    }
}
