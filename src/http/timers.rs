//! The timeouts of a connection: idle time, the arrival of request heads, and quiet in a drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::fragment_guard::RequestLines;
use super::service::Limits;
use crate::net::{Inspector, IoProgress};
use crate::server::Drain;

/// The state of a connection that its timeouts depend on.
pub(super) struct ConnectionTimers {
    pub(super) activity: Arc<IoProgress>,
    /// The number of the first request with a fragment in its request line.
    first_fragment: AtomicUsize,
    /// The number of requests that hyper has started to process.
    pub(super) requests: AtomicUsize,
    pub(super) in_flight: Arc<AtomicUsize>,
    is_draining: AtomicBool,
    is_closing: AtomicBool,
    /// Whether no byte has moved for long, so that an empty buffer is freed.
    is_silent: AtomicBool,
}

impl ConnectionTimers {
    pub(super) fn new() -> Self {
        let (activity, requests) = (IoProgress::new(), AtomicUsize::new(0));
        Self {
            activity,
            first_fragment: AtomicUsize::new(usize::MAX),
            requests,
            in_flight: Arc::default(),
            is_draining: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
        }
    }

    /// Closes the connection instead of waiting for further requests.
    pub(super) fn begin_close(&self) {
        self.is_closing.store(true, Relaxed);
    }

    /// Returns the inspector that finds fragments in HTTP/1 request lines.
    pub(super) fn fragment_inspector(self: &Arc<Self>) -> Inspector {
        let (timers, mut guard) = (Arc::clone(self), RequestLines::new());
        Box::new(move |bytes| {
            if let Some(bad) = guard.inspect(bytes) {
                timers.first_fragment.fetch_min(bad, Relaxed);
            }
        })
    }

    /// Whether the request with this number, counted from 1, or an earlier one has a fragment.
    pub(super) fn has_fragment(&self, number: usize) -> bool {
        self.first_fragment.load(Relaxed) <= number
    }

    /// Whether the next response is the last one, and announces that.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    pub(super) fn should_close(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Whether no byte had moved for long at the last check.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.load(Relaxed)
    }

    /// The connection is in use again.
    pub(super) fn end_silence(&self) {
        self.is_silent.store(false, Relaxed);
    }

    /// Returns once the connection has been idle for too long, or a head has taken longer than
    /// `header_timeout`.
    pub(super) async fn expired(&self, limits: &Limits, header_timeout: Option<Duration>) {
        loop {
            let last = self.activity.last_transfer();
            let idle = last + limits.idle_timeout;
            let head = self.activity.unconsumed_since().zip(header_timeout);
            let due = head.map_or(idle, |(since, timeout)| idle.min(since + timeout));
            let now = Instant::now();
            let in_flight = self.in_flight.load(Relaxed) > 0;
            if due <= now && !in_flight {
                return;
            }
            let silent_from = last + SILENCE;
            if silent_from <= now && !in_flight && !self.is_silent() {
                self.is_silent.store(true, Relaxed);
                // The connection is polled before this function, so it is polled again.
                yield_now().await;
                continue;
            }
            let mut look = if in_flight { now + BUSY_RECHECK } else { due };
            if silent_from > now {
                look = look.min(silent_from);
            }
            // A head may begin at any time, so no sleep exceeds the header timeout.
            sleep_until(header_timeout.map_or(look, |timeout| look.min(now + timeout))).await;
        }
    }
}

impl ConnectionTimers {
    /// Returns once the daemon drains and the connection is idle: no request is in flight, none has
    /// arrived in part, and no byte has moved for the quiet time. From the signal on, the next
    /// response announces the end.
    ///
    /// Otherwise a client that is in use would lose the request that it sends at the time of the
    /// close. It cannot know of the close before, except by a response.
    pub(super) async fn idle_in_drain(&self, mut drain: Drain) {
        drain.signaled().await;
        self.is_draining.store(true, Relaxed);
        sleep(DRAIN_GRACE).await;
        loop {
            let (now, due) = (Instant::now(), self.activity.last_transfer() + drain.quiet_time());
            let is_busy = self.in_flight.load(Relaxed) > 0
                || self.activity.unconsumed_since().is_some()
                || self.activity.is_write_blocked();
            if due <= now && !is_busy {
                return;
            }
            sleep_until(if is_busy { now + BUSY_RECHECK } else { due }).await;
        }
    }
}

/// The time without a byte after which the buffers of a connection are freed.
const SILENCE: Duration = Duration::from_secs(5);
/// The time for which every connection still reads after the stop signal. A request may be in
/// transit, or already received and unread.
const DRAIN_GRACE: Duration = Duration::from_millis(50);
/// The interval of checks while a request is in flight: the end of a response is noticed within it.
const BUSY_RECHECK: Duration = Duration::from_millis(100);
