//! Commands on their way to the nodes of a cluster, in the order in which the client sent them. No
//! I/O.
//!
//! Model: a command has one [`Part`] for each node that runs some of it. A part waits for its
//! reply, has it, or was rejected. Rejected means that the node replied that it did not run it, or
//! that it was never sent. The connection of each node has its own queue of [`PartId`]s (see
//! [`super::node`]). The identifier leads from a reply to its place here, never the other way
//! round.
//!
//! The rules that must not be broken:
//! - Replies leave in the order of the client's commands (invariant K2).
//! - A part runs at most once. It runs again only if it was rejected, or if it is a read of which
//!   nothing has left (K3).
//! - A rejected part runs again only if no write that the client sent behind it, to the same slot,
//!   has run. Otherwise `[MSET p q][SET p 2]` could end with the older value: the first is
//!   rejected, the second runs, and then the first. The client then gets `-TRYAGAIN` for the
//!   rejected command (K4).
//! - Reads behind a part that runs again, in the same slot, run again after it. Otherwise they
//!   would miss its effect.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::aggregate::Aggregate;
use super::key_specs::Access;
use super::routing::{error, slot_left, unavailable};
use crate::cluster::NodeId;
use crate::protocol::ReplySummary;

/// The place of a part: the number of its command in the client's order, and its index among the
/// parts of that command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartId {
    command: u64,
    part: usize,
}

/// Some or all of a command, for one node.
#[derive(Debug)]
pub(super) struct Part {
    /// The node it was sent to last; none: no node is known to serve its slot.
    pub(super) node: Option<NodeId>,
    /// The slot of its keys; none: it names no key.
    pub(super) slot: Option<u16>,
    pub(super) command: Bytes,
    pub(super) access: Access,
    state: PartState,
    /// The bytes of the reply that have arrived and have not left.
    reply: BytesMut,
    /// Some of the reply has left.
    has_left: bool,
    is_error: bool,
    /// The number of times that it was sent again.
    resends: u32,
    /// The number of connections that were lost while its reply was awaited.
    losses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartState {
    Sent,
    Answered,
    Rejected(Rejection),
}

/// The reason why a part has to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// It was never sent, or it is a read and its connection was lost.
    NotRun,
    /// The slot belongs to another node now.
    Moved,
    /// This node imports the slot and has the keys, if they exist.
    Ask(NodeId),
    /// The slot is at a node that no other node has reported.
    UnknownNode,
    /// The same as [`Ask`](Self::Ask), but other replies were awaited meanwhile, so the slot
    /// may have gone elsewhere. Its owner has to reply again. Otherwise a write could run at a node
    /// without the slot.
    AskedBefore,
    /// Its keys are on two nodes while the slot moves.
    TryAgain,
    /// The node does not serve the slot at present.
    ClusterDown,
    /// It waits for its turn: a read that has run before an earlier command of the client, or a
    /// command whose route has changed.
    Deferred,
}

/// A command with pending replies.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) aggregate: Aggregate,
    parts: Vec<Part>,
    /// The first part without a complete reply.
    next: usize,
    pub(super) kind: CommandKind,
}

/// The rule by which a command may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandKind {
    /// Any node that serves its keys can run it.
    Free,
    /// It belongs to a state that one node keeps (`WATCH`, `MULTI`), so no other node can run it.
    Bound,
    /// `WATCH`, which is bound too.
    Watch,
    /// It logs the client in, and is repeated on every other connection.
    Login,
    /// It may wait at its node for as long as it likes.
    Blocking,
}

impl CommandKind {
    /// Whether no other node can run it.
    pub(super) fn is_bound(self) -> bool {
        matches!(self, Self::Bound | Self::Watch)
    }
}

#[derive(Debug)]
enum Pending {
    Ready(Bytes),
    Sent(Command),
}

/// The state of the command in front.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// There is none.
    Empty,
    /// Its reply, or the next piece of it, can leave.
    Leaves,
    /// The next of its reply comes from this node.
    Waits(NodeId),
    /// One of its parts was rejected.
    Rejected,
}

/// The bytes or the command that leave the front.
pub(super) enum Leaving {
    /// A reply, or a piece of one, for the client.
    Piece(Bytes),
    /// A command with replies to all parts. Those of a passed-on command have left before.
    Whole(Command),
    /// Nothing at present.
    Nothing,
}

/// The result of a decision about the rejected parts in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recovery {
    /// The pause before the remaining ones are sent again. `None`: none of them is.
    pub(super) resend: Option<Pause>,
    /// The number of parts with a rejection that was returned to the client.
    pub(super) returned: u64,
}

/// The condition for sending a part again, the longest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pause {
    None,
    /// The slot is moving; a moment later more of its keys have moved.
    Moment,
    /// The nodes report again which of them serves what.
    Discovery,
}

/// A redirect, or a similar error of a node that has not run a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Moved { slot: u16, address: String },
    Ask { slot: u16, address: String },
    TryAgain,
    ClusterDown,
}

/// The client's commands that have not been answered.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// The number of the command in front.
    first: u64,
    pending: VecDeque<Pending>,
    /// Bytes of replies that have come and not left.
    held: usize,
    /// Bytes of commands, which are kept until they are answered.
    queued: usize,
    /// The time since which no node has answered a part that was sent again.
    retried_since: Option<Instant>,
    last_resend: Option<Instant>,
}

/// The number of redirects that a part follows without a pause: to the owner of its slot, to the
/// node that imports the slot, and once more.
const MAX_IMMEDIATE_RESENDS: u32 = 3;
/// The number of lost connections after which a read is sent again. A node that fails over closes
/// one or two.
const MAX_LOSSES: u32 = 2;
/// The error for the client: a later command of the same slot has run, so this one cannot run any
/// more.
const OVERTAKEN: &str = "TRYAGAIN redis-proxy: the slot is moving, and a write sent behind this \
    command has run; \
                         this command has not run";
/// The error for the client: the nodes redirected the command for as long as a reply may take.
const STILL_MOVING: &str =
    "TRYAGAIN redis-proxy: the slot is moving and no node runs the command; it has not run";

impl Part {
    pub(super) fn new(
        node: Option<NodeId>,
        slot: Option<u16>,
        command: Bytes,
        access: Access,
    ) -> Self {
        let state = match node {
            Some(_) => PartState::Sent,
            None => PartState::Rejected(Rejection::NotRun),
        };
        Self {
            node,
            slot,
            command,
            access,
            state,
            reply: BytesMut::new(),
            has_left: false,
            is_error: false,
            resends: 0,
            losses: 0,
        }
    }

    /// Whether the client can see in which order the two ran, because they may have a key in
    /// common. A read without a key never conflicts with another read. Another client could have
    /// changed the keys in between.
    fn conflicts_with(&self, later: &Self) -> bool {
        if self.access == Access::None || later.access == Access::None {
            return false;
        }
        let is_same_slot = self.slot.is_some() && self.slot == later.slot;
        let names_none = self.slot.is_none() || later.slot.is_none();
        let are_reads = self.access == Access::Read && later.access == Access::Read;
        is_same_slot || (names_none && !are_reads)
    }

    fn has_run(&self) -> bool {
        self.state == PartState::Answered
    }

    /// The condition for sending it again. Nodes that redirect to each other get it with a pause.
    fn pause(&self) -> Option<Pause> {
        let pause = self.rejection()?.pause();
        Some(if self.resends > MAX_IMMEDIATE_RESENDS { pause.max(Pause::Moment) } else { pause })
    }

    /// The reason of the rejection.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        match self.state {
            PartState::Rejected(rejection) => Some(rejection),
            PartState::Sent | PartState::Answered => None,
        }
    }
}

impl Command {
    pub(super) fn new(aggregate: Aggregate, kind: CommandKind, parts: Vec<Part>) -> Self {
        Self { aggregate, parts, next: 0, kind }
    }

    /// The length of its parts, in bytes.
    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.command.len()).sum()
    }

    /// Marks it as not sent, unless it is bound to a node.
    pub(super) fn defer(&mut self) {
        if self.kind == CommandKind::Free {
            for part in &mut self.parts {
                (part.node, part.state) = (None, PartState::Rejected(Rejection::Deferred));
            }
        }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether the reply to any part is an error.
    pub(super) fn is_error(&self) -> bool {
        self.parts.iter().any(|part| part.is_error)
    }

    /// The replies to all parts, in the order of the parts.
    pub(super) fn replies(&self) -> Vec<&[u8]> {
        self.parts.iter().map(|part| &*part.reply).collect()
    }
}

impl Rejection {
    fn pause(self) -> Pause {
        match self {
            Self::Moved | Self::Ask(_) | Self::AskedBefore | Self::Deferred => Pause::None,
            Self::TryAgain => Pause::Moment,
            Self::NotRun | Self::ClusterDown | Self::UnknownNode => Pause::Discovery,
        }
    }
}

impl Refusal {
    /// Parses an error that says that a command was not run. Only errors of Redis itself count. A
    /// script that has written may reply with an error that begins with the same word.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let text = str::from_utf8(line).ok()?.strip_prefix('-')?.strip_suffix("\r\n")?;
        let (code, rest) = text.split_once(' ')?;
        match code {
            "MOVED" | "ASK" => {
                let (slot, address) = rest.split_once(' ')?;
                let (slot, address) = (slot.parse().ok()?, address.to_owned());
                let is_moved = code == "MOVED";
                Some(if is_moved {
                    Self::Moved { slot, address }
                } else {
                    Self::Ask { slot, address }
                })
            }
            "TRYAGAIN" if rest.starts_with("Multiple keys request during rehashing") => {
                Some(Self::TryAgain)
            }
            "CLUSTERDOWN"
                if rest.starts_with("The cluster is down") || rest.starts_with("Hash slot") =>
            {
                Some(Self::ClusterDown)
            }
            "MASTERDOWN" if rest.starts_with("Link with MASTER") => Some(Self::ClusterDown),
            _ => None,
        }
    }

    /// Whether it is about a part of this slot, or of no slot in particular.
    fn is_about(&self, part: &Part) -> bool {
        match self {
            Self::Moved { slot, .. } | Self::Ask { slot, .. } => part.slot == Some(*slot),
            Self::TryAgain | Self::ClusterDown => true,
        }
    }
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The number of commands.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of replies that have come and not left.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of commands that are not answered.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Adds a reply that needs no node.
    pub(super) fn push_ready(&mut self, reply: Bytes) {
        self.pending.push_back(Pending::Ready(reply));
    }

    /// Adds a command. Returns the identifier of its first part; that of each other part follows.
    pub(super) fn push(&mut self, command: Command) -> impl Iterator<Item = PartId> + use<> {
        let number = self.first + self.pending.len() as u64;
        let parts = command.parts.len();
        self.queued += command.bytes();
        self.pending.push_back(Pending::Sent(command));
        (0..parts).map(move |part| PartId { command: number, part })
    }

    fn command(&mut self, number: u64) -> Option<&mut Command> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        match self.pending.get_mut(index)? {
            Pending::Sent(command) => Some(command),
            Pending::Ready(_) => None,
        }
    }

    fn front_command(&mut self) -> Option<&mut Command> {
        self.command(self.first)
    }

    /// The part, and how its command may be repeated.
    pub(super) fn part(&mut self, id: PartId) -> Option<(&mut Part, CommandKind)> {
        let command = self.command(id.command)?;
        let kind = command.kind;
        command.parts.get_mut(id.part).map(|part| (part, kind))
    }

    /// The rejected parts of the command in front.
    pub(super) fn rejected_in_front(&mut self) -> Vec<PartId> {
        let number = self.first;
        let Some(command) = self.front_command() else { return Vec::new() };
        let parts = command.parts.iter().enumerate();
        let rejected = parts.filter(|(_, part)| part.rejection().is_some());
        rejected.map(|(part, _)| PartId { command: number, part }).collect()
    }

    /// The slots of the rejected parts in front, and the nodes that the parts were sent to.
    pub(super) fn targets_of_rejected_in_front(&mut self) -> Vec<(Option<u16>, Option<NodeId>)> {
        let parts = self.front_command().map(|command| &command.parts).into_iter().flatten();
        let rejected = parts.filter(|part| part.rejection().is_some());
        rejected.map(|part| (part.slot, part.node)).collect()
    }

    /// The error of the node is the reply to the part after all.
    pub(super) fn accept_error(&mut self, id: PartId) {
        if let Some((part, _)) = self.part(id) {
            (part.state, part.is_error) = (PartState::Answered, true);
        }
    }

    /// Whether a part belongs to the command in front.
    pub(super) fn is_in_front(&self, id: PartId) -> bool {
        id.command == self.first
    }

    /// The nodes that the parts of the command in front were sent to.
    pub(super) fn nodes_in_front(&mut self) -> Vec<NodeId> {
        let parts = self.front_command().map(|command| &command.parts).into_iter().flatten();
        parts.filter_map(|part| part.node).collect()
    }

    /// Whether a command that is not answered may wait at this node.
    pub(super) fn has_blocking_at(&self, node: NodeId) -> bool {
        self.pending.iter().any(|pending| match pending {
            Pending::Ready(_) => false,
            Pending::Sent(command) => {
                let mut parts = command.parts.iter();
                command.kind == CommandKind::Blocking && parts.any(|part| part.node == Some(node))
            }
        })
    }

    /// Adds bytes of a reply to its part.
    pub(super) fn receive(&mut self, id: PartId, bytes: BytesMut) {
        let length = bytes.len();
        if let Some((part, _)) = self.part(id) {
            part.reply.unsplit(bytes);
            self.held += length;
        }
    }

    /// The reply to a part is complete.
    pub(super) fn complete(&mut self, id: PartId, frame: ReplySummary) {
        if let Some((part, _)) = self.part(id) {
            let was_resent = part.resends > 0;
            (part.state, part.is_error) = (PartState::Answered, frame.is_error());
            if was_resent {
                self.retried_since = None;
            }
        }
    }

    /// The last command is of this kind.
    pub(super) fn mark_last(&mut self, kind: CommandKind) {
        if let Some(Pending::Sent(command)) = self.pending.back_mut() {
            command.kind = kind;
        }
    }

    /// Returns the error of a node that has not run the part, if its complete reply is one. `None`
    /// once any of it has left.
    pub(super) fn refusal(&mut self, id: PartId) -> Option<(Refusal, CommandKind, Option<NodeId>)> {
        let (part, kind) = self.part(id)?;
        let node = part.node;
        let refusal = Refusal::read(&part.reply).filter(|_| !part.has_left)?;
        // Commands of a transaction are sent without a look at their slot.
        let is_about_it = kind.is_bound() || refusal.is_about(part);
        is_about_it.then_some((refusal, kind, node))
    }

    /// The part has not run, or is a read of which nothing has left.
    pub(super) fn reject(&mut self, id: PartId, rejection: Rejection) {
        if let Some((part, _)) = self.part(id) {
            part.state = PartState::Rejected(rejection);
        }
    }

    /// The part is answered with an error instead of its reply.
    pub(super) fn fail(&mut self, id: PartId, reply: Bytes) {
        if let Some((part, _)) = self.part(id) {
            let before = std::mem::replace(&mut part.reply, BytesMut::from(reply)).len();
            let after = part.reply.len();
            (part.state, part.is_error) = (PartState::Answered, true);
            self.held = self.held - before + after;
        }
    }

    /// A part that is bound to a node was rejected: no other node can run it.
    pub(super) fn fail_bound(&mut self, id: PartId) {
        self.fail(id, slot_left());
    }

    /// A rejected part is sent to `node`.
    pub(super) fn resent(&mut self, id: PartId, node: NodeId) {
        if let Some((part, _)) = self.part(id) {
            let dropped = std::mem::take(&mut part.reply).len();
            (part.node, part.state) = (Some(node), PartState::Sent);
            part.resends += 1;
            self.held -= dropped;
            self.last_resend = Some(Instant::now());
        }
    }

    /// Whether nothing is lost with the connection that these parts were sent over. Each must be a
    /// read of which nothing has left, and must not use the state of the connection.
    ///
    /// Counts the loss. A read that has lost too many connections may be the reason, because a node
    /// closes the connection over a reply that is too large for it (`client-output-buffer-limit`).
    pub(super) fn survive_loss(&mut self, ids: &[PartId]) -> bool {
        let mut survive = true;
        for id in ids {
            let Some((part, kind)) = self.part(*id) else { continue };
            part.losses += 1;
            let is_read = part.access == Access::Read && kind == CommandKind::Free;
            survive &= is_read && !part.has_left && part.losses <= MAX_LOSSES;
        }
        survive
    }

    /// The state of the command in front.
    pub(super) fn front(&self) -> Front {
        let command = match self.pending.front() {
            None => return Front::Empty,
            Some(Pending::Ready(_)) => return Front::Leaves,
            Some(Pending::Sent(command)) => command,
        };
        // One rejected part holds up the others: their effects on each other are decided for all at
        // once.
        if command.parts.iter().any(|part| part.rejection().is_some()) {
            return Front::Rejected;
        }
        match command.parts.get(command.next) {
            Some(part) if part.state == PartState::Sent && !command.can_leave(part) => {
                part.node.map_or(Front::Rejected, Front::Waits)
            }
            _ => Front::Leaves,
        }
    }

    /// Takes what can leave now.
    pub(super) fn leave(&mut self) -> Leaving {
        let is_whole = match self.pending.front_mut() {
            None => return Leaving::Nothing,
            Some(Pending::Ready(_)) => true,
            Some(Pending::Sent(command)) => {
                if let Some(piece) = command.take_piece() {
                    self.held -= piece.len();
                    return Leaving::Piece(piece);
                }
                command.advance()
            }
        };
        if !is_whole {
            return Leaving::Nothing;
        }
        self.first += 1;
        match self.pending.pop_front() {
            None => Leaving::Nothing,
            Some(Pending::Ready(reply)) => Leaving::Piece(reply),
            Some(Pending::Sent(command)) => {
                self.held -= command.parts.iter().map(|part| part.reply.len()).sum::<usize>();
                self.queued -= command.bytes();
                Leaving::Whole(command)
            }
        }
    }

    /// Decides about the rejected parts in front, once no other reply is awaited. Those that may
    /// not run any more are answered. Reads behind those that run again are marked to follow them.
    ///
    /// `patience` is the time for which the nodes may reject everything. It counts for all commands
    /// together. Otherwise many commands for a slot without a node would wait one after the other.
    pub(super) fn recover(&mut self, now: Instant, patience: Duration) -> Recovery {
        if self.last_resend.is_some_and(|at| now.saturating_duration_since(at) >= patience) {
            // The part waited at its node, as a blocking command does, before it was rejected.
            (self.retried_since, self.last_resend) = (None, None);
        }
        let since = *self.retried_since.get_or_insert(now);
        let is_late = now.saturating_duration_since(since) >= patience;
        let mut recovery = Recovery { resend: None, returned: 0 };
        for id in self.rejected_in_front() {
            if is_late {
                self.give_up(id);
            } else if let Some(overtaking) = self.overtaking_reads(id) {
                for read in overtaking {
                    self.reject(read, Rejection::Deferred);
                }
                let pause = self.part(id).and_then(|(part, _)| part.pause());
                recovery.resend = recovery.resend.max(pause);
                continue;
            } else {
                self.fail(id, error(OVERTAKEN));
            }
            recovery.returned += 1;
        }
        recovery
    }

    /// Returns the rejection of each part in front to the client. Returns how many there were.
    pub(super) fn give_up_front(&mut self) -> u64 {
        let rejected = self.rejected_in_front();
        for id in &rejected {
            self.fail(*id, error(STILL_MOVING));
        }
        rejected.len() as u64
    }

    /// No node has run the part for as long as a client waits.
    fn give_up(&mut self, id: PartId) {
        let Some((part, _)) = self.part(id) else { return };
        match part.rejection() {
            // The node's own words.
            Some(Rejection::TryAgain | Rejection::ClusterDown) => self.accept_error(id),
            Some(Rejection::NotRun | Rejection::Deferred) | None => self.fail(id, unavailable()),
            Some(_) => self.fail(id, error(STILL_MOVING)),
        }
    }

    /// Returns the reads that have run behind a rejected part and must run again after it. `None`
    /// means that the part must not run: a write behind it, or behind one of these reads, has run.
    fn overtaking_reads(&self, id: PartId) -> Option<Vec<PartId>> {
        let index = usize::try_from(id.command.checked_sub(self.first)?).ok()?;
        let Pending::Sent(command) = self.pending.get(index)? else { return None };
        let mut again: Vec<&Part> = vec![command.parts.get(id.part)?];
        let mut reads = Vec::new();
        for (distance, pending) in self.pending.iter().enumerate().skip(index + 1) {
            let Pending::Sent(command) = pending else { continue };
            for (number, part) in
                command.parts.iter().enumerate().filter(|(_, part)| part.has_run())
            {
                if !again.iter().any(|earlier| earlier.conflicts_with(part)) {
                    continue;
                }
                if part.access != Access::Read {
                    return None;
                }
                again.push(part);
                reads.push(PartId { command: self.first + distance as u64, part: number });
            }
        }
        Some(reads)
    }
}

impl Command {
    fn is_passed_on(&self) -> bool {
        self.aggregate == Aggregate::Pass
    }

    /// Whether the beginning of this part's reply can leave before all of it has arrived. An error
    /// may be a redirect, which only its end reveals.
    fn can_leave(&self, part: &Part) -> bool {
        let may_be_refusal = !part.has_left && part.reply.first() == Some(&b'-');
        let is_known = !may_be_refusal || part.reply.len() >= LONGEST_ERROR;
        self.is_passed_on() && !part.reply.is_empty() && is_known
    }

    fn take_piece(&mut self) -> Option<Bytes> {
        let part = self.parts.get(self.next)?;
        let is_ready = match part.state {
            PartState::Answered => self.is_passed_on() && !part.reply.is_empty(),
            PartState::Sent => self.can_leave(part),
            PartState::Rejected(_) => false,
        };
        let part = self.parts.get_mut(self.next).filter(|_| is_ready)?;
        part.has_left = true;
        Some(part.reply.split().freeze())
    }

    /// Goes on to the first part without a reply. Returns whether there is none.
    fn advance(&mut self) -> bool {
        while self.parts.get(self.next).is_some_and(Part::has_run) {
            self.next += 1;
        }
        self.next >= self.parts.len()
    }
}

/// No redirect is longer than this, in bytes, so that a longer error need not be held back.
const LONGEST_ERROR: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::for_test(1);
    const B: NodeId = NodeId::for_test(2);
    const PATIENCE: Duration = Duration::from_secs(1);
    const OK: &[u8] = b"+OK\r\n";
    const MOVED: &[u8] = b"-MOVED 7 127.0.0.1:7001\r\n";

    fn frame(reply: &[u8]) -> ReplySummary {
        let mut head = [0; 7];
        head.iter_mut().zip(reply).for_each(|(to, from)| *to = *from);
        ReplySummary { head }
    }

    /// Commands of one part each.
    #[derive(Default)]
    struct Sender {
        in_flight: InFlight,
        ids: Vec<PartId>,
    }

    impl Sender {
        fn sends(mut self, slot: impl Into<Option<u16>>, access: Access) -> Self {
            let part = Part::new(Some(A), slot.into(), Bytes::from_static(b"x"), access);
            let command = Command::new(Aggregate::Pass, CommandKind::Free, vec![part]);
            self.ids.extend(self.in_flight.push(command));
            self
        }

        fn writes(self, slot: impl Into<Option<u16>>) -> Self {
            self.sends(slot, Access::Write)
        }

        fn reads(self, slot: impl Into<Option<u16>>) -> Self {
            self.sends(slot, Access::Read)
        }

        fn answered(mut self, index: usize, reply: &[u8]) -> Self {
            self.in_flight.receive(self.ids[index], BytesMut::from(reply));
            self.in_flight.complete(self.ids[index], frame(reply));
            self
        }

        fn rejected(mut self, index: usize, rejection: Rejection) -> Self {
            self.in_flight.reject(self.ids[index], rejection);
            self
        }

        fn recovers(&mut self) -> Recovery {
            self.in_flight.recover(Instant::now(), PATIENCE)
        }

        fn rejection(&mut self, index: usize) -> Option<Rejection> {
            self.in_flight.part(self.ids[index]).and_then(|(part, _)| part.rejection())
        }

        /// All that leaves now, as one text.
        fn left(&mut self) -> String {
            let mut text = Vec::new();
            while self.in_flight.front() == Front::Leaves {
                if let Leaving::Piece(piece) = self.in_flight.leave() {
                    text.extend_from_slice(&piece);
                }
            }
            String::from_utf8(text).unwrap()
        }
    }

    const RESENT: Recovery = Recovery { resend: Some(Pause::None), returned: 0 };
    const RETURNED: Recovery = Recovery { resend: None, returned: 1 };

    #[test]
    fn replies_leave_in_the_order_of_commands() {
        let mut client = Sender::default().reads(1).reads(2).reads(3).answered(1, b":2\r\n");
        assert_eq!(client.in_flight.front(), Front::Waits(A));
        assert_eq!(client.left(), "");
        client = client.answered(0, b":1\r\n");
        assert_eq!(client.left(), ":1\r\n:2\r\n");
        client = client.answered(2, b":3\r\n");
        assert_eq!(client.left(), ":3\r\n");
        assert!(client.in_flight.is_empty() && client.in_flight.held() == 0);
    }

    #[test]
    fn rejected_part_runs_again_while_nothing_overtook_it() {
        let moved = Rejection::Moved;
        for (case, mut client, expected) in [
            ("alone", Sender::default().writes(7), RESENT),
            ("other slot", Sender::default().writes(7).writes(8).answered(1, OK), RESENT),
            ("write", Sender::default().writes(7).writes(7).answered(1, OK), RETURNED),
            ("write behind a read", Sender::default().reads(7).writes(7).answered(1, OK), RETURNED),
            ("write of no key", Sender::default().writes(7).writes(None).answered(1, OK), RETURNED),
            ("read", Sender::default().writes(7).reads(7).answered(1, OK), RESENT),
            (
                "command without access to keys",
                Sender::default().writes(7).sends(None, Access::None).answered(1, OK),
                RESENT,
            ),
            ("rejected write", Sender::default().writes(7).writes(7).rejected(1, moved), RESENT),
            (
                "write behind a read of no key",
                Sender::default().writes(7).reads(None).writes(8).answered(1, OK).answered(2, OK),
                RETURNED,
            ),
            (
                "write behind a rejected write",
                Sender::default().writes(7).writes(7).writes(7).rejected(1, moved).answered(2, OK),
                RETURNED,
            ),
        ] {
            client = client.rejected(0, moved);
            assert_eq!(client.in_flight.front(), Front::Rejected, "{case}");
            assert_eq!(client.recovers(), expected, "{case}");
            if expected == RETURNED {
                assert!(client.left().starts_with("-TRYAGAIN redis-proxy"), "{case}");
            }
        }
    }

    #[test]
    fn reads_that_overtook_a_part_run_again_after_it() {
        let mut client = Sender::default().writes(7).reads(7).reads(8).reads(None);
        for index in 1..4 {
            client = client.answered(index, b"$3\r\nold\r\n");
        }
        client = client.rejected(0, Rejection::Ask(B));
        assert_eq!(client.recovers(), RESENT);
        let rejections = [0, 1, 2, 3].map(|index| client.rejection(index));
        let again = Some(Rejection::Deferred);
        assert_eq!(rejections, [Some(Rejection::Ask(B)), again, None, again]);
        client.in_flight.resent(client.ids[0], B);
        assert_eq!(client.in_flight.front(), Front::Waits(B));
        client = client.answered(0, OK);
        // The reply that came too early is dropped.
        assert_eq!(client.left(), "+OK\r\n");
        assert_eq!(client.in_flight.front(), Front::Rejected);
        assert_eq!(client.recovers(), RESENT);
        client.in_flight.resent(client.ids[1], B);
        client = client.answered(1, b"$3\r\nnew\r\n");
        assert_eq!(client.left(), "$3\r\nnew\r\n$3\r\nold\r\n");
        assert_eq!(client.in_flight.front(), Front::Rejected);
    }

    #[test]
    fn parts_that_have_not_run_are_tried_for_so_long_only() {
        for (rejection, reply) in [
            (Rejection::Moved, "-TRYAGAIN redis-proxy"),
            (Rejection::NotRun, "-LOADING redis-proxy"),
            (Rejection::TryAgain, "-TRYAGAIN Multiple keys"),
        ] {
            let mut client = Sender::default().writes(7);
            if rejection == Rejection::TryAgain {
                client = client.answered(0, b"-TRYAGAIN Multiple keys\r\n");
            }
            client = client.rejected(0, rejection);
            let now = Instant::now();
            assert_eq!(client.in_flight.recover(now, PATIENCE).returned, 0, "{rejection:?}");
            let late = client.in_flight.recover(now + PATIENCE, PATIENCE);
            assert_eq!(late, RETURNED, "{rejection:?}");
            let left = client.left();
            assert!(left.starts_with(reply), "{rejection:?}: {left}");
        }
    }

    #[test]
    fn only_reads_of_which_nothing_left_survive_a_loss() {
        let mut client = Sender::default().reads(1).writes(2);
        let ids = client.ids.clone();
        assert!(client.in_flight.survive_loss(&ids[..1]));
        assert!(!client.in_flight.survive_loss(&ids));
        client.in_flight.receive(ids[0], BytesMut::from(&b"$100\r\nsome"[..]));
        assert_eq!(client.left(), "$100\r\nsome");
        assert!(!client.in_flight.survive_loss(&ids[..1]));
    }

    #[test]
    fn read_survives_two_losses_and_no_more() {
        let mut client = Sender::default().reads(1).reads(2);
        let ids = client.ids.clone();
        let survives: Vec<_> = (0..3).map(|_| client.in_flight.survive_loss(&ids[..1])).collect();
        assert_eq!(survives, [true, true, false]);
        assert!(client.in_flight.survive_loss(&ids[1..]), "each read has its own losses");
    }

    #[test]
    fn errors_are_held_until_they_are_known_to_be_no_redirect() {
        let mut client = Sender::default().reads(7);
        let id = client.ids[0];
        client.in_flight.receive(id, BytesMut::from(&MOVED[..9]));
        assert_eq!(client.left(), "");
        client.in_flight.receive(id, BytesMut::from(&MOVED[9..]));
        let (refusal, kind, node) = client.in_flight.refusal(id).unwrap();
        assert_eq!(refusal, Refusal::Moved { slot: 7, address: "127.0.0.1:7001".into() });
        assert_eq!((kind, node), (CommandKind::Free, Some(A)));
    }

    #[test]
    fn only_errors_of_redis_itself_are_refusals() {
        let read = |line: &'static str| Refusal::read(line.as_bytes());
        let (slot, address) = (7, || "h:1".to_owned());
        assert_eq!(read("-MOVED 7 h:1\r\n"), Some(Refusal::Moved { slot, address: address() }));
        assert_eq!(read("-ASK 7 h:1\r\n"), Some(Refusal::Ask { slot, address: address() }));
        let tryagain = "-TRYAGAIN Multiple keys request during rehashing of slot\r\n";
        assert_eq!(read(tryagain), Some(Refusal::TryAgain));
        for down in ["The cluster is down", "Hash slot not served"] {
            let line = format!("-CLUSTERDOWN {down}\r\n");
            assert_eq!(Refusal::read(line.as_bytes()), Some(Refusal::ClusterDown));
        }
        for other in [
            "-MOVED\r\n",
            "-MOVED x h:1\r\n",
            "-TRYAGAIN said a script\r\n",
            "-CLUSTERDOWN said a script\r\n",
            "-ERR x\r\n",
            "+MOVED 7 h:1\r\n",
            "$5\r\n-MOVED\r\n",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn redirects_of_another_slot_are_replies() {
        for (slot, is_redirect) in [(Some(7), true), (Some(8), false), (None, false)] {
            let mut client = Sender::default().reads(slot);
            client.in_flight.receive(client.ids[0], BytesMut::from(MOVED));
            assert_eq!(client.in_flight.refusal(client.ids[0]).is_some(), is_redirect, "{slot:?}");
        }
    }
}
