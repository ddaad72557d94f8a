//! For how long a connection may be idle, and its requests' heads may take to arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::fragment_guard::RequestLines;
use super::service::Limits;
use crate::net::{Activity, Inspector};

/// What is known about a connection from outside.
pub(super) struct Watch {
    pub(super) activity: Arc<Activity>,
    /// The number of the first request whose request line has a fragment.
    bad_request: AtomicUsize,
    /// How many hyper has taken up.
    pub(super) requests: AtomicUsize,
    pub(super) answering: Arc<AtomicUsize>,
    finishing: AtomicBool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let (activity, requests) = (Activity::new(), AtomicUsize::new(0));
        Self {
            activity,
            bad_request: AtomicUsize::new(usize::MAX),
            requests,
            answering: Arc::default(),
            finishing: AtomicBool::new(false),
        }
    }

    /// No more requests are to be waited for.
    pub(super) fn finish(&self) {
        self.finishing.store(true, Relaxed);
    }

    /// What looks for fragments in the request lines of HTTP/1.
    pub(super) fn fragment_inspector(self: &Arc<Self>) -> Inspector {
        let (watch, mut lines) = (Arc::clone(self), RequestLines::new());
        Box::new(move |bytes| {
            if let Some(bad) = lines.take(bytes) {
                watch.bad_request.fetch_min(bad, Relaxed);
            }
        })
    }

    /// Whether the request of this number, counted from 1, or one before it, has a fragment.
    pub(super) fn has_fragment(&self, number: usize) -> bool {
        self.bad_request.load(Relaxed) <= number
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Relaxed)
    }

    /// Returns when the connection has been idle for too long, or a head longer than `header_timeout` on its way.
    pub(super) async fn overdue(&self, limits: &Limits, header_timeout: Option<Duration>) {
        loop {
            let idle = self.activity.last_moved() + limits.idle_timeout;
            let head = self.activity.unsettled_since().zip(header_timeout);
            let due = head.map_or(idle, |(since, timeout)| idle.min(since + timeout));
            let now = Instant::now();
            let answering = self.answering.load(Relaxed) > 0;
            if due <= now && !answering {
                return;
            }
            let look = if answering { now + WHILE_ANSWERING } else { due };
            // A head may begin at any time, and must not have begun longer ago than it may take.
            sleep_until(header_timeout.map_or(look, |timeout| look.min(now + timeout))).await;
        }
    }
}

/// How long after an answer it may be noticed that there was one.
const WHILE_ANSWERING: Duration = Duration::from_millis(100);
