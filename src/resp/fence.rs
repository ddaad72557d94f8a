//! Read-your-writes: whether memory holds every write that one client may have seen (invariant R3).

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::step::{Step, Task};
use crate::backend::{BackendError, FenceResult};
use crate::commands::Coverage;
use crate::proxy::Proxy;

/// The longest time that a read waits for a fence before it is forwarded. It is longer than a reply
/// usually takes. It is short enough if Redis replies to this client and not to the proxy.
const FENCE_TIMEOUT: Duration = Duration::from_millis(250);
/// The time for which reads are forwarded then, without another fence.
const BYPASS_TIME: Duration = Duration::from_millis(500);

/// The fences of one client.
#[derive(Default)]
pub(super) struct Fences {
    /// The time of the last reply that may reflect a write that memory does not know.
    unfenced_since: Option<Instant>,
    /// The time of the last reply that may reflect a write.
    last_write: Option<Instant>,
    running: Option<Task<Result<FenceResult, BackendError>>>,
    /// No fence could be had, so reads are forwarded until then.
    bypass_until: Option<Instant>,
    /// Whether the client has seen writes elsewhere. Without tracking its reads are forwarded.
    has_seen_writes: bool,
}

impl Fences {
    /// The client has received a reply that may reflect a write.
    pub(super) fn write_observed(&mut self) {
        self.unfenced_since = Some(Instant::now());
        self.last_write = self.unfenced_since;
    }

    /// Fences of a client that has seen the writes until `since`, perhaps elsewhere.
    pub(super) fn since(since: Option<Instant>) -> Self {
        Self { unfenced_since: since, has_seen_writes: since.is_some(), ..Self::default() }
    }

    /// Returns the time of the last reply that may reflect a write.
    pub(super) fn last_write(&self) -> Option<Instant> {
        self.last_write
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns the writes seen by the client that memory is known to hold.
    #[inline]
    pub(super) fn coverage(&mut self, proxy: &Proxy, now: Instant) -> Coverage {
        if self.has_seen_writes && proxy.is_ttl_only() {
            return Coverage::Bypassed;
        }
        if self.unfenced_since.is_some_and(|since| proxy.is_current(since)) {
            self.unfenced_since = None;
        }
        if self.bypass_until.is_some_and(|until| until <= now) {
            self.bypass_until = None;
        }
        match (self.bypass_until, self.unfenced_since) {
            (Some(_), _) => Coverage::Bypassed,
            (None, Some(_)) => Coverage::Unfenced,
            (None, None) => Coverage::Full,
        }
    }

    /// Begins a fence.
    pub(super) fn begin(&mut self, proxy: Proxy) {
        let since = self.unfenced_since.unwrap_or_else(Instant::now);
        self.running = Some(Box::pin(async move {
            let fence = timeout(FENCE_TIMEOUT, proxy.fence(since)).await;
            fence.unwrap_or(Err(BackendError::TimedOut))
        }));
    }

    pub(super) fn poll(&mut self, proxy: &Proxy, cx: &mut Context<'_>) -> Step {
        let Some(running) = &mut self.running else { return Step::Idle };
        let Poll::Ready(fence) = running.as_mut().poll(cx) else { return Step::Idle };
        self.running = None;
        match fence {
            Ok(FenceResult::NoTracking) => self.unfenced_since = None,
            // A reply that came meanwhile needs another.
            Ok(FenceResult::Current) => {
                self.unfenced_since = self.unfenced_since.filter(|since| !proxy.is_current(*since));
            }
            Err(_) => self.bypass_until = Some(Instant::now() + BYPASS_TIME),
        }
        Step::Progress
    }
}
