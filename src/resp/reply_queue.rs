//! The replies that a client waits for, in the order of its commands.
//!
//! The rule that must not be broken: nothing leaves before the reply in front of it. The order
//! forwarded, read, forwarded never occurs here if the read waits for a flight. A command is
//! forwarded only while no read waits (invariant R2). Otherwise a later write of the same client
//! could overtake the read.

use std::collections::VecDeque;

use crate::commands::{Invalidations, PendingKeys, PendingReplies, SessionEffect};
use crate::net::WriteBuf;

/// A run of forwarded commands of one kind, with pending replies.
#[derive(Debug)]
pub(super) struct ForwardedRun {
    pub(super) count: usize,
    pub(super) effect: SessionEffect,
    pub(super) invalidations: Invalidations,
    /// Whether memory relied on TTLs alone when they were sent.
    pub(super) relied_on_ttl: bool,
}

#[derive(Debug)]
enum PendingReply {
    /// It is here, and waits for its turn.
    Ready(WriteBuf),
    /// Redis owes it.
    Forwarded(ForwardedRun),
    /// So many flights bring it, for so many keys.
    Read { flights: usize, keys: usize },
}

/// The replies that are pending, but for what is being written already.
#[derive(Debug, Default)]
pub(super) struct ReplyQueue {
    pending: VecDeque<PendingReply>,
    /// Bytes in those that are ready.
    ready: usize,
    /// Replies that may reflect a write that memory does not know.
    observing: usize,
    blocking: usize,
    /// Replies that drop everything from memory.
    flushes: usize,
    flights: usize,
    /// The keys of the reads that wait for flights.
    keys: PendingKeys,
}

impl ReplyQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes that wait for their turn.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// The facts that a decision depends on. Those about the connection are added by it.
    #[inline]
    pub(super) fn summary(&self) -> PendingReplies {
        PendingReplies {
            replies: self.len(),
            flights: self.flights,
            may_observe_write: self.observing > 0,
            ..PendingReplies::default()
        }
    }

    /// Whether Redis may wait with a reply for something to happen.
    #[inline]
    pub(super) fn has_blocking(&self) -> bool {
        self.blocking > 0
    }

    /// Whether nothing goes on until that happens.
    pub(super) fn is_blocking_first(&self) -> bool {
        self.is_first(&SessionEffect::MayBlock)
    }

    /// Whether the replies to all commands before a passthrough have come.
    pub(super) fn is_passthrough_first(&self) -> bool {
        self.is_first(&SessionEffect::Passthrough)
    }

    /// Whether the first reply is to `INFO` with the proxy's own section.
    pub(super) fn is_info_first(&self) -> bool {
        self.is_first(&SessionEffect::Info)
    }

    fn is_first(&self, wanted: &SessionEffect) -> bool {
        matches!(
            self.pending.front(),
            Some(PendingReply::Forwarded(ForwardedRun { effect, .. })) if effect == wanted
        )
    }

    /// The number of flights that reads wait for.
    pub(super) fn flights(&self) -> usize {
        self.flights
    }

    /// The number of replies, a run of forwarded commands counting once.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether the first reply is that of a read.
    pub(super) fn is_read_first(&self) -> bool {
        matches!(self.pending.front(), Some(PendingReply::Read { .. }))
    }

    /// Adds a reply that is here, behind all that are pending.
    pub(super) fn add_ready(&mut self, write: impl FnOnce(&mut WriteBuf)) {
        if !matches!(self.pending.back(), Some(PendingReply::Ready(_))) {
            self.pending.push_back(PendingReply::Ready(WriteBuf::default()));
        }
        if let Some(PendingReply::Ready(output)) = self.pending.back_mut() {
            let before = output.len();
            write(output);
            self.ready += output.len() - before;
        }
    }

    /// The keys of the reads that wait for flights.
    pub(super) fn pending_keys(&self) -> &PendingKeys {
        &self.keys
    }

    /// Adds the reply of a read of these keys.
    pub(super) fn add_read<'a>(&mut self, flights: usize, keys: impl Iterator<Item = &'a [u8]>) {
        self.flights += flights;
        let keys = self.keys.add(keys);
        self.pending.push_back(PendingReply::Read { flights, keys });
    }

    /// Adds the reply to a forwarded command.
    pub(super) fn add_forwarded(
        &mut self,
        effect: SessionEffect,
        invalidations: Invalidations,
        relied_on_ttl: bool,
    ) {
        self.count_forwarded(&effect, |count| *count += 1);
        self.flushes += usize::from(invalidations == Invalidations::All);
        let can_join = matches!(effect, SessionEffect::Neutral | SessionEffect::MayObserveWrite)
            && invalidations == Invalidations::None;
        if let Some(PendingReply::Forwarded(last)) = self.pending.back_mut()
            && can_join
            && (&last.effect, &last.invalidations, last.relied_on_ttl)
                == (&effect, &Invalidations::None, relied_on_ttl)
        {
            last.count += 1;
            return;
        }
        let run = ForwardedRun { count: 1, effect, invalidations, relied_on_ttl };
        self.pending.push_back(PendingReply::Forwarded(run));
    }

    /// Whether a reply from Redis is pending that drops everything from memory.
    pub(super) fn awaits_flush(&self) -> bool {
        self.flushes > 0
    }

    /// The read in front is forwarded, since its flight could not reply.
    pub(super) fn forward_read(&mut self, relied_on_ttl: bool) {
        self.take_read();
        let effect = SessionEffect::MayObserveWrite;
        self.count_forwarded(&effect, |count| *count += 1);
        let invalidations = Invalidations::None;
        let run = ForwardedRun { count: 1, effect, invalidations, relied_on_ttl };
        self.pending.push_front(PendingReply::Forwarded(run));
    }

    fn count_forwarded(&mut self, effect: &SessionEffect, change: impl Fn(&mut usize)) {
        if *effect != SessionEffect::Neutral {
            change(&mut self.observing);
        }
        if *effect == SessionEffect::MayBlock {
            change(&mut self.blocking);
        }
    }

    /// Redis has replied: takes the first command, if it is one that was forwarded.
    pub(super) fn take_forwarded(&mut self) -> Option<ForwardedRun> {
        let Some(PendingReply::Forwarded(first)) = self.pending.front_mut() else { return None };
        first.count -= 1;
        let taken = ForwardedRun {
            count: 1,
            effect: first.effect.clone(),
            invalidations: std::mem::take(&mut first.invalidations),
            relied_on_ttl: first.relied_on_ttl,
        };
        if first.count == 0 {
            self.pending.pop_front();
        }
        self.count_forwarded(&taken.effect, |count| *count -= 1);
        self.flushes -= usize::from(taken.invalidations == Invalidations::All);
        Some(taken)
    }

    /// Removes the last command, if it was forwarded: no reply to it will come.
    pub(super) fn remove_last_forwarded(&mut self) {
        let Some(PendingReply::Forwarded(last)) = self.pending.back_mut() else { return };
        last.count -= 1;
        let effect = last.effect.clone();
        self.flushes -= usize::from(last.invalidations == Invalidations::All);
        if last.count == 0 {
            self.pending.pop_back();
        }
        self.count_forwarded(&effect, |count| *count -= 1);
    }

    /// Fails every forwarded command, because no reply will come: `write` writes an error in the
    /// place of each. Returns whether later commands may depend on one of them.
    pub(super) fn fail_forwarded(&mut self, write: impl Fn(&mut WriteBuf)) -> bool {
        let mut was_of_state = false;
        for pending in &mut self.pending {
            let PendingReply::Forwarded(run) = pending else { continue };
            was_of_state |= run.effect.is_of_state();
            let mut errors = WriteBuf::default();
            (0..run.count).for_each(|_| write(&mut errors));
            self.ready += errors.len();
            *pending = PendingReply::Ready(errors);
        }
        (self.observing, self.blocking, self.flushes) = (0, 0, 0);
        was_of_state
    }

    /// The read in front was answered.
    pub(super) fn take_read(&mut self) {
        if let Some(PendingReply::Read { flights, keys }) = self.pending.front() {
            self.flights -= flights;
            self.keys.remove_first(*keys);
            self.pending.pop_front();
        }
    }

    /// Takes what is ready in front.
    pub(super) fn take_ready(&mut self) -> Option<WriteBuf> {
        let Some(PendingReply::Ready(_)) = self.pending.front() else { return None };
        let Some(PendingReply::Ready(output)) = self.pending.pop_front() else { return None };
        self.ready -= output.len();
        Some(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(queue: &mut ReplyQueue, effect: SessionEffect) {
        queue.add_forwarded(effect, Invalidations::None, false);
    }

    fn text(output: Option<WriteBuf>) -> String {
        let mut output = output.unwrap_or_default();
        String::from_utf8(output.tail().to_vec()).unwrap()
    }

    #[test]
    fn nothing_leaves_before_what_is_in_front() {
        let mut queue = ReplyQueue::default();
        queue.add_read(2, [&b"a"[..], b"b"].into_iter());
        queue.add_ready(|output| output.tail().extend_from_slice(b"+a\r\n"));
        queue.add_ready(|output| output.tail().extend_from_slice(b"+b\r\n"));
        assert!(queue.is_read_first() && queue.flights() == 2 && queue.ready() == 8);
        assert!(queue.take_ready().is_none() && queue.take_forwarded().is_none());
        queue.take_read();
        assert_eq!(text(queue.take_ready()), "+a\r\n+b\r\n");
        assert!(queue.is_empty() && queue.ready() == 0 && queue.flights() == 0);
    }

    #[test]
    fn forwarded_commands_are_counted_by_what_they_may_do() {
        use SessionEffect::{MayBlock, MayObserveWrite, Neutral};
        let mut queue = ReplyQueue::default();
        for effect in
            [SessionEffect::Neutral, SessionEffect::Neutral, SessionEffect::MayObserveWrite]
        {
            forward(&mut queue, effect);
        }
        assert_eq!(queue.len(), 2, "a run counts once");
        forward(&mut queue, SessionEffect::MayBlock);
        assert!(queue.has_blocking() && !queue.is_blocking_first());
        let effects: Vec<_> =
            std::iter::from_fn(|| queue.take_forwarded()).map(|run| run.effect).collect();
        assert_eq!(effects, [Neutral, Neutral, MayObserveWrite, MayBlock]);
        assert!(!queue.has_blocking() && !queue.summary().may_observe_write);
    }

    #[test]
    fn lost_connection_leaves_an_error_in_each_place() {
        for (effect, was_of_state) in
            [(SessionEffect::MayObserveWrite, false), (SessionEffect::Multi, true)]
        {
            let mut queue = ReplyQueue::default();
            forward(&mut queue, SessionEffect::MayObserveWrite);
            forward(&mut queue, effect);
            queue.add_ready(|output| output.tail().extend_from_slice(b"+c\r\n"));
            let write = |output: &mut WriteBuf| output.tail().extend_from_slice(b"-x\r\n");
            assert_eq!(queue.fail_forwarded(write), was_of_state);
            let left: String = std::iter::from_fn(|| queue.take_ready())
                .map(|output| text(Some(output)))
                .collect();
            assert_eq!(left, "-x\r\n-x\r\n+c\r\n");
        }
    }

    #[test]
    fn read_that_is_forwarded_keeps_its_place() {
        let mut queue = ReplyQueue::default();
        queue.add_read(1, [&b"a"[..]].into_iter());
        queue.add_read(1, [&b"a"[..]].into_iter());
        queue.forward_read(false);
        assert!(queue.summary().may_observe_write && queue.flights() == 1);
        assert!(queue.take_forwarded().is_some() && queue.is_read_first());
    }

    #[test]
    fn command_without_a_reply_is_removed() {
        let mut queue = ReplyQueue::default();
        forward(&mut queue, SessionEffect::Neutral);
        forward(&mut queue, SessionEffect::MayBlock);
        queue.remove_last_forwarded();
        assert!(!queue.has_blocking() && queue.len() == 1);
    }
}
