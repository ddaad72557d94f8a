//! Commands of a client in this process that memory answers, without a connection.
//!
//! Model: a client that has sent nothing to Redis has a new session and waits for no reply. As long
//! as memory answers its commands, this stays so, and each is decided as on a connection. The first
//! command that memory does not answer, and all behind it, need a
//! [`LocalClient`](super::LocalClient).
//!
//! The rule that must not be broken: the view of a decision is that of a new connection. Otherwise
//! the two could answer differently.

use tokio::time::Instant;

use super::batch::{Batch, BatchTime};
use super::fence::Fences;
use super::shared::Shared;
use super::turn::Turn;
use crate::cache::{KeyGroup, TOGETHER};
use crate::commands::{
    Action, Class, Command, CommandInfo, PendingKeys, PendingReplies, SessionState, View, decide,
};
use crate::net::WriteBuf;
use crate::protocol::{Arguments, Protocol};

/// The number of reads for which memory is prefetched together.
pub const PREFETCHED: usize = TOGETHER;

/// The commands of one client that memory answers.
pub struct MemoryReader<'a> {
    shared: &'a Shared,
    session: SessionState,
    fences: Fences,
    pending_keys: PendingKeys,
    batch: Batch,
    turn: Turn,
    output: WriteBuf,
}

impl<'a> MemoryReader<'a> {
    pub(super) fn new(shared: &'a Shared, since: Option<Instant>, now: Instant) -> Self {
        let begun = BatchTime { now, lookup_time: shared.proxy.time(now) };
        Self {
            shared,
            session: SessionState::new(shared.identity.clone()),
            fences: Fences::since(since),
            pending_keys: PendingKeys::default(),
            batch: Batch::new(shared.front_end, begun),
            turn: Turn::default(),
            output: WriteBuf::default(),
        }
    }

    /// Prefetches the memory of the first [`PREFETCHED`] of these keys, which are read next, if
    /// there are several.
    pub fn prefetch<'k>(&self, mut keys: impl Iterator<Item = &'k [u8]>) {
        let group = KeyGroup::take_from(&mut keys);
        if group.as_slice().len() > 1 {
            self.shared.proxy.prefetch(group.as_slice());
        }
    }

    /// Returns the reply to a command in RESP2. `None` if memory does not answer it, or the worker
    /// has others to serve: then this command and all behind it need a connection.
    pub fn reply(&mut self, info: CommandInfo, arguments: Arguments<'_>) -> Option<&[u8]> {
        let is_read = info.class.is_read() || matches!(info.class, Class::Kept(_));
        // A connection answers too many arguments with an error.
        let is_short = arguments.len() <= self.shared.settings.max_arguments;
        if !is_read || !is_short || self.turn.is_over() {
            return None;
        }
        let Self { shared: Shared { proxy, policy, .. }, batch, .. } = self;
        let BatchTime { now, lookup_time } = batch.begun;
        let view = View {
            policy,
            credentials: None,
            session: &self.session,
            pending: PendingReplies::default(),
            pending_keys: &self.pending_keys,
            coverage: self.fences.coverage(proxy, now),
            memory: proxy,
            now,
            lookup_time,
        };
        // Without its bytes, the name of a kept reply is made from the arguments.
        let CommandInfo { class, is_cached, .. } = info;
        let command = Command { class, is_cached, arguments, bytes: &[] };
        let decided = decide(&view, command, |outcome, rule| batch.add_hit(outcome, rule, proxy));
        let Action::Reply(reply) = decided else { return None };
        batch.add_kept_reply(&reply, proxy);
        batch.add_command(info.label, proxy);
        self.turn.add_command();
        self.output.clear();
        reply.write(&mut self.output, Protocol::Resp2);
        Some(self.output.as_one())
    }

    /// Counts the commands that were answered.
    pub fn finish(self) {
        self.batch.count(&self.shared.proxy);
    }
}
