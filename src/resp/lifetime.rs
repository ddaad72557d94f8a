//! The end of a client's connection: when it may come, and the timers that bring it.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::step::Task;
use crate::net::{LingeringClose, PollOnWake};
use crate::server::Drain;

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnState {
    /// Commands are taken one by one.
    Commands,
    /// Bytes are passed on as they are, both ways.
    Passthrough,
    /// No command is taken any more. The connection ends when every pending reply is sent.
    Draining,
    /// The connection ends when every reply that is here is sent.
    Flushing,
    /// It has ended.
    Closed,
}

/// The time that a command may still take to arrive after a shutdown signal.
const DRAIN_GRACE: Duration = Duration::from_millis(50);
/// The longest time that a connection that takes no more commands may stall before it is closed.
/// One with a large value for a client that does not read may stall for longer, if room is not
/// short.
const CLOSE_GRACE: Duration = Duration::from_secs(30);
/// The time without a byte after which the buffers of a connection are freed.
const SILENCE: Duration = Duration::from_secs(5);
/// The interval between checks of a silent connection. It may have been in use in between.
const SILENT_RECHECK: Duration = Duration::from_secs(60);
/// The interval between looks at a connection with pending replies.
const RECHECK: Duration = Duration::from_secs(1);

/// The facts about a connection that its end depends on.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each fact is independent of the others")]
pub(super) struct Facts {
    /// Every reply that is here has been sent.
    pub(super) is_written: bool,
    /// No reply is pending, and none is being written.
    pub(super) is_quiet: bool,
    /// The first pending reply may never come.
    pub(super) is_blocked: bool,
    /// The client has closed its sending side.
    pub(super) has_read_eof: bool,
    /// Bytes are passed on as they come.
    pub(super) is_passthrough: bool,
    /// Replies cannot be matched to commands any more.
    pub(super) is_desynced: bool,
    /// Nothing waits to be sent to Redis.
    pub(super) is_forwarded: bool,
}

/// Whether a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Now,
    Later,
    /// The connection ends when the client has been silent for the idle timeout.
    WhenIdle,
}

/// Whether a connection ends, when nothing else can be done now.
pub(super) fn end(state: ConnState, is_draining: bool, facts: Facts) -> End {
    let may_be_blocked_for_ever = is_draining && facts.is_blocked;
    let is_over = match state {
        ConnState::Closed => true,
        ConnState::Flushing => facts.is_written,
        ConnState::Passthrough => {
            let may_end = facts.is_blocked || facts.is_passthrough;
            is_draining && may_end && facts.is_written && facts.is_forwarded
        }
        ConnState::Draining | ConnState::Commands => {
            let may_end = state == ConnState::Draining || facts.has_read_eof || is_draining;
            // What seems to be pending may have come.
            let is_uncertain = facts.is_desynced && is_draining;
            let is_sent = facts.is_written && facts.is_forwarded;
            (facts.is_quiet && may_end) || may_be_blocked_for_ever || (is_uncertain && is_sent)
        }
    };
    match state {
        _ if is_over => End::Now,
        ConnState::Commands => End::WhenIdle,
        _ => End::Later,
    }
}

/// The timers of one connection.
pub(super) struct Lifetime {
    drain: PollOnWake<Task<()>>,
    is_draining: bool,
    /// Zero means none.
    idle_timeout: Duration,
    /// The time for the next check how long the client has been silent.
    /// `None` without an idle timeout: a timer would cost each wake-up of the worker.
    check: Option<PollOnWake<Pin<Box<Sleep>>>>,
    /// The time when a byte last came from the client, or was taken by it.
    last_progress: Instant,
    /// Whether that was long ago, as the last check has found.
    is_silent: bool,
    /// The time for the next check whether a closing connection has stalled for too long.
    close_timer: Option<Pin<Box<Sleep>>>,
    /// While it lives, the daemon waits for the connection.
    drain_guard: Drain,
}

impl Lifetime {
    /// Timers of a new connection. An `idle_timeout` of zero means none.
    pub(super) fn new(idle_timeout: Duration, mut drain: Drain) -> Self {
        let first_check = (!idle_timeout.is_zero()).then(|| SILENCE.min(idle_timeout));
        Self {
            drain_guard: drain.clone(),
            drain: PollOnWake::new(Box::pin(async move {
                drain.signaled().await;
                sleep(DRAIN_GRACE).await;
            })),
            is_draining: false,
            idle_timeout,
            check: first_check.map(|check| PollOnWake::new(Box::pin(sleep(check)))),
            last_progress: Instant::now(),
            is_silent: false,
            close_timer: None,
        }
    }

    /// Bytes came from the client, or were taken by it.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.last_progress = now;
        self.is_silent = false;
    }

    /// Whether the client has been silent for so long that its buffers are freed.
    #[inline]
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Returns the close of the client's stream. A reset would lose replies that the client has not
    /// read yet, if it still sends commands.
    pub(super) fn lingering_close(&self) -> LingeringClose {
        LingeringClose::new(self.drain_guard.quiet_time())
    }

    /// Whether the daemon drains.
    pub(super) fn poll_draining(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_draining && self.drain.poll_unpin(cx).is_ready() {
            self.is_draining = true;
        }
        self.is_draining
    }

    /// Whether the client has been silent for the idle timeout, and nothing is pending.
    pub(super) fn poll_idle(&mut self, is_quiet: bool, cx: &mut Context<'_>) -> bool {
        let Some(check) = &mut self.check else { return false };
        while check.poll_unpin(cx).is_ready() {
            let now = Instant::now();
            self.is_silent = self.last_progress + SILENCE <= now;
            let until = self.last_progress + self.idle_timeout;
            if until <= now && is_quiet {
                return true;
            }
            let next = now + if self.is_silent { SILENT_RECHECK } else { SILENCE };
            let next = next.min(until.max(now + RECHECK));
            check.update(|check| check.set(sleep_until(next)));
        }
        false
    }

    /// Whether a closing connection has stood still for too long.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.close_timer.get_or_insert_with(|| Box::pin(sleep(CLOSE_GRACE)));
        while timer.as_mut().poll(cx).is_ready() {
            let until = self.last_progress + CLOSE_GRACE;
            if until <= Instant::now() {
                return true;
            }
            timer.set(sleep_until(until));
        }
        false
    }

    /// The connection has stood still and does not end. The next look follows later.
    pub(super) fn stall_on(&mut self) {
        self.close_timer = Some(Box::pin(sleep(CLOSE_GRACE)));
    }

    /// The connection is not closing, so it may stand still.
    pub(super) fn may_stall(&mut self) {
        self.close_timer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_follows_from_state_and_facts() {
        use ConnState::{Closed, Commands, Draining, Flushing, Passthrough};
        let none = Facts::default();
        let written = Facts { is_written: true, ..none };
        let quiet = Facts { is_quiet: true, ..written };
        let blocked = Facts { is_blocked: true, ..written };
        let eof = |facts| Facts { has_read_eof: true, ..facts };
        let forwarded = |facts| Facts { is_forwarded: true, ..facts };
        let passing = Facts { is_passthrough: true, ..written };
        let desynced = Facts { is_desynced: true, ..written };
        for (state, is_draining, facts, expected) in [
            (Closed, false, none, End::Now),
            (Flushing, false, none, End::Later),
            (Flushing, false, written, End::Now),
            (Commands, false, quiet, End::WhenIdle),
            (Commands, false, eof(quiet), End::Now),
            (Commands, false, eof(written), End::WhenIdle),
            (Commands, false, eof(blocked), End::WhenIdle),
            (Commands, true, quiet, End::Now),
            (Commands, true, written, End::WhenIdle),
            (Commands, true, blocked, End::Now),
            (Commands, true, desynced, End::WhenIdle),
            (Commands, true, forwarded(desynced), End::Now),
            (Draining, false, written, End::Later),
            (Draining, false, blocked, End::Later),
            (Draining, false, quiet, End::Now),
            (Draining, true, blocked, End::Now),
            (Passthrough, false, forwarded(passing), End::Later),
            (Passthrough, true, passing, End::Later),
            (Passthrough, true, forwarded(passing), End::Now),
            (Passthrough, true, forwarded(written), End::Later),
            (Passthrough, true, forwarded(blocked), End::Now),
        ] {
            assert_eq!(
                end(state, is_draining, facts),
                expected,
                "{state:?} {is_draining} {facts:?}"
            );
        }
    }
}
