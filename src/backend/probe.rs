//! The probe: it writes to its own key and measures how long the invalidation takes to arrive.
//!
//! It is off by default, because it writes: one small key with a random name under [`KEY_PREFIX`],
//! which expires. The write uses another connection, so Redis sees another client. If Redis
//! acknowledges a change and pushes no invalidation in time, the tracked connection is unreliable
//! and is closed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::multiplexed::Multiplexed;
use crate::metrics::Metrics;

/// The prefix of the keys that the proxy writes when the probe is enabled.
const KEY_PREFIX: &str = "redis-proxy:probe:";
/// The lifetime of the key beyond the probe interval. The key never expires between two probes, and
/// soon after the last one.
const SPARE_LIFE: Duration = Duration::from_secs(60);

/// The probe's key, and the time at which its last invalidation was applied.
pub(super) struct Probe {
    key: String,
    applied: watch::Sender<Option<Instant>>,
    /// Whether it has been logged that Redis rejects the probe.
    reported: AtomicBool,
}

/// The interval between two writes, and the timeout of each wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeTiming {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// The reason for which probing ended.
#[derive(Debug)]
pub(super) enum ProbeEnd {
    /// Redis acknowledged a change, and no invalidation arrived in time.
    NotInvalidated,
    /// Redis rejects a command of the probe, at least for now. Holds the error reply.
    ErrorReply(String),
    /// One of the two connections ended or is silent. Its owner detects that too.
    Disconnected,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self {
            key: format!("{KEY_PREFIX}{:016x}", rand::random::<u64>()),
            applied: watch::Sender::new(None),
            reported: AtomicBool::new(false),
        }
    }

    /// Returns whether a rejected probe is still to be logged, and marks it as logged. Otherwise
    /// every attempt would log a line.
    pub(super) fn is_first_report(&self) -> bool {
        !self.reported.swap(true, Relaxed)
    }

    /// Records that an invalidation of `key` was applied.
    pub(super) fn on_invalidated(&self, key: &[u8]) {
        if key == self.key.as_bytes() {
            self.on_flush();
        }
    }

    /// Records that a full invalidation was applied. After it, Redis no longer remembers that the
    /// probe's key was read.
    pub(super) fn on_flush(&self) {
        self.applied.send_replace(Some(Instant::now()));
    }

    /// Writes over `writer` every `interval`, and waits up to `timeout` until the invalidation has
    /// arrived over `link`. Records the time from the acknowledgement to the invalidation; zero if
    /// the invalidation was applied first. Returns when a step fails.
    pub(super) async fn run(
        &self,
        link: &Multiplexed,
        writer: &Multiplexed,
        ProbeTiming { interval, timeout: timeout_after }: ProbeTiming,
        metrics: &Metrics,
    ) -> ProbeEnd {
        let mut applied = self.applied.subscribe();
        let life = u64::try_from((interval + SPARE_LIFE).as_millis()).unwrap_or(u64::MAX);
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg("").arg("PX").arg(life);
        let mut get = redis::cmd("GET");
        get.arg(&self.key);
        loop {
            // Redis pushes an invalidation only to connections that have read the key since the
            // last one.
            if let Err(ended) = ask(link, &get, timeout_after).await {
                return ended;
            }
            applied.mark_unchanged();
            if let Err(ended) = ask(writer, &set, timeout_after).await {
                return ended;
            }
            let acknowledged = Instant::now();
            if timeout(timeout_after, applied.changed()).await.is_err() {
                return ProbeEnd::NotInvalidated;
            }
            let at = applied.borrow_and_update().unwrap_or(acknowledged);
            metrics.record_invalidation_lag(at.saturating_duration_since(acknowledged));
            self.reported.store(false, Relaxed);
            sleep(interval).await;
        }
    }
}

async fn ask(
    connection: &Multiplexed,
    command: &Cmd,
    timeout_after: Duration,
) -> Result<(), ProbeEnd> {
    let Ok(answer) = timeout(timeout_after, connection.send(command)).await else {
        return Err(ProbeEnd::Disconnected);
    };
    match answer {
        Ok(Value::ServerError(error)) => Err(ProbeEnd::ErrorReply(format!(
            "{} {}",
            error.code(),
            error.details().unwrap_or_default()
        ))),
        Ok(_) => Ok(()),
        Err(_) => Err(ProbeEnd::Disconnected),
    }
}
