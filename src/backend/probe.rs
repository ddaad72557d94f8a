//! The probe: writes to a key of its own and sees how long it takes until that is told.
//!
//! It is off unless asked for, since it writes: one small key with a random name under [`KEY_PREFIX`], which expires.
//! The write goes over a connection of its own, so that to Redis it is somebody else's. A change that Redis
//! acknowledged and does not tell means that the link cannot be relied on, and is the end of it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::multiplexed::Multiplexed;
use crate::metrics::Metrics;

/// Under it the proxy writes, where it was told to.
const KEY_PREFIX: &str = "redis-proxy:probe:";
/// How much longer than the time to the next probe the key lives: never gone in between, and gone soon after the last.
const SPARE_LIFE: Duration = Duration::from_secs(60);

/// The probe's key, and when its change was last heeded.
pub(super) struct Probe {
    key: String,
    applied: watch::Sender<Option<Instant>>,
    /// Whether it has been reported that Redis refuses it.
    reported: AtomicBool,
}

/// How often the probe writes, and for how long it waits each time.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeTiming {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// How probing ended.
#[derive(Debug)]
pub(super) enum ProbeEnd {
    /// Redis acknowledged a change and did not tell of it in time.
    NotInvalidated,
    /// Redis does not let the proxy do what it takes, now at least: its answer.
    ErrorReply(String),
    /// One of the two connections is gone, or silent, which whoever keeps it finds out.
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

    /// Whether it is yet to be reported that Redis refuses the probe: it is one line, not one an attempt.
    pub(super) fn is_first_report(&self) -> bool {
        !self.reported.swap(true, Relaxed)
    }

    /// A change of `key` was heeded.
    pub(super) fn on_invalidated(&self, key: &[u8]) {
        if key == self.key.as_bytes() {
            self.on_flush();
        }
    }

    /// A change of everything was heeded. After it Redis has forgotten who had read the probe's key.
    pub(super) fn on_flush(&self) {
        self.applied.send_replace(Some(Instant::now()));
    }

    /// Writes over `writer` every `interval` and waits, each time no longer than `timeout`, until the change has been
    /// told over `link`. A lag is counted from when the write was acknowledged; zero: it was heeded before.
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
            // Redis tells those who have read the key since it was last told of.
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
