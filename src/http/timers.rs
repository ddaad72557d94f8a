//! The timeouts of a connection: idle time, and the arrival of request heads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::fragment_guard::RequestLines;
use super::service::Limits;
use crate::net::{Inspector, IoProgress};

/// The state of a connection that its timeouts depend on.
pub(super) struct ConnectionTimers {
    pub(super) activity: Arc<IoProgress>,
    /// The number of the first request with a fragment in its request line.
    first_fragment: AtomicUsize,
    /// The number of requests that hyper has started to process.
    pub(super) requests: AtomicUsize,
    pub(super) in_flight: Arc<AtomicUsize>,
    is_closing: AtomicBool,
}

impl ConnectionTimers {
    pub(super) fn new() -> Self {
        let (activity, requests) = (IoProgress::new(), AtomicUsize::new(0));
        Self {
            activity,
            first_fragment: AtomicUsize::new(usize::MAX),
            requests,
            in_flight: Arc::default(),
            is_closing: AtomicBool::new(false),
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

    pub(super) fn should_close(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Returns once the connection has been idle for too long, or a head has taken longer than
    /// `header_timeout`.
    pub(super) async fn expired(&self, limits: &Limits, header_timeout: Option<Duration>) {
        loop {
            let idle = self.activity.last_transfer() + limits.idle_timeout;
            let head = self.activity.unconsumed_since().zip(header_timeout);
            let due = head.map_or(idle, |(since, timeout)| idle.min(since + timeout));
            let now = Instant::now();
            let in_flight = self.in_flight.load(Relaxed) > 0;
            if due <= now && !in_flight {
                return;
            }
            let look = if in_flight { now + BUSY_RECHECK } else { due };
            // A head may begin at any time, so no sleep exceeds the header timeout.
            sleep_until(header_timeout.map_or(look, |timeout| look.min(now + timeout))).await;
        }
    }
}

/// The interval of checks while a request is in flight: the end of a response is noticed within it.
const BUSY_RECHECK: Duration = Duration::from_millis(100);
