//! The transaction of one client, before a cluster. No I/O.
//!
//! Model: one node has to keep all commands of a transaction, and the first key says which. So
//! `MULTI` is answered here, as are the commands without a key that follow it. With the first key,
//! or with `EXEC`, the node becomes known. It is then sent `MULTI` and the commands kept until
//! then. `WATCH` chooses the node before that. If the slot goes to another node meanwhile, the
//! client has to begin again: the new node has neither the commands nor the watch.
//!
//! <https://redis.io/docs/latest/develop/interact/transactions/>

use bytes::Bytes;

use super::routing::{crossslot, error, slot_left, unavailable};
use crate::cluster::NodeId;

/// The state of a client's transaction.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    state: State,
    /// The node that watches keys for the client.
    watching: Option<NodeId>,
    /// The slot of the first key, watched or in a command.
    slot: Option<u16>,
    /// Whether the node has confirmed a `WATCH`.
    is_watch_confirmed: bool,
    /// Commands that no node knows of yet.
    kept: Vec<Bytes>,
    /// A command was refused here, so `EXEC` has to fail.
    is_aborted: bool,
}

/// The reply to a `WATCH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WatchReply {
    Confirmed,
    Rejected,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    None,
    /// The client sent `MULTI`, and no node knows of it.
    Begun,
    /// This node keeps the commands.
    At(NodeId),
}

/// A command of the client, as far as it matters to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Multi,
    Exec,
    Discard,
    Unwatch,
    /// `WATCH` of keys of one slot.
    Watch(Keys),
    /// A command with keys of one slot.
    Keyed(Keys),
    Keyless,
    /// A command that any node replies to with an error.
    Invalid,
    /// A command that aborts a transaction.
    RefusedInMulti,
}

/// The keys of a command: their slot, and the node that serves it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) slot: u16,
    pub(super) owner: Option<NodeId>,
}

/// The next step for the command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Reply without a node.
    Reply(Bytes),
    /// Keep it, and reply `QUEUED`.
    Keep,
    /// Send it to this node, which keeps state for the client.
    Send(NodeId),
    /// Send `WATCH` to this node.
    Watch(NodeId),
    /// Send it to any node.
    SendAnywhere,
    /// Send this node another command in its place.
    SendInstead(NodeId, &'static [u8]),
    /// Send this node a command, drop its reply, and then send the client this reply.
    ReplyBehind(NodeId, &'static [u8], Bytes),
    /// Begin the transaction at this node once all earlier commands are answered, and then look at
    /// the command again.
    Begin(Option<NodeId>),
}

/// Redis's own words.
const ABORTED: &[u8] = b"-EXECABORT Transaction discarded because of previous errors.\r\n";
const REFUSED_IN_MULTI: &str = "ERR Command not allowed inside a transaction";
const OK: Bytes = Bytes::from_static(b"+OK\r\n");
const UNWATCH: &[u8] = b"UNWATCH\r\n";
const DISCARD: &[u8] = b"DISCARD\r\n";

impl Transaction {
    /// Whether `MULTI` was sent.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::None
    }

    /// Whether this node keeps commands or watches keys for the client.
    pub(super) fn is_bound_to(&self, node: NodeId) -> bool {
        self.state == State::At(node) || self.watching == Some(node)
    }

    /// A command of the transaction was refused.
    pub(super) fn abort(&mut self) {
        self.is_aborted |= self.is_open();
    }

    /// Ends the transaction and what is watched.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Binds the transaction to this node. Returns the commands that must be sent to it behind
    /// `MULTI`.
    pub(super) fn begin_at(&mut self, node: NodeId) -> Vec<Bytes> {
        self.state = State::At(node);
        std::mem::take(&mut self.kept)
    }

    /// The node replied to `WATCH`. If it has rejected the first one, it watches nothing.
    pub(super) fn watch_replied(&mut self, reply: WatchReply) {
        self.is_watch_confirmed |= reply == WatchReply::Confirmed;
        if !self.is_watch_confirmed && !self.is_open() {
            self.watching = None;
            self.slot = None;
        }
    }

    /// Bytes of commands that no node knows of yet.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.iter().map(Bytes::len).sum()
    }

    /// Adds a command that no node knows of yet.
    pub(super) fn keep(&mut self, command: Bytes) {
        self.kept.push(command);
    }

    /// Decides about a command. `home` is the node for commands without keys.
    pub(super) fn decide(&mut self, input: Input, home: Option<NodeId>) -> Action {
        match self.state {
            State::None => self.decide_outside(input),
            State::Begun => self.decide_begun(input, home),
            State::At(node) => self.decide_at(node, input),
        }
    }

    fn decide_outside(&mut self, input: Input) -> Action {
        match input {
            Input::Multi => {
                (self.state, self.is_aborted) = (State::Begun, false);
                Action::Reply(OK)
            }
            Input::Watch(keys) => match keys.owner {
                Some(owner) if self.watching.is_none_or(|watching| watching == owner) => {
                    self.watching = Some(owner);
                    self.slot.get_or_insert(keys.slot);
                    Action::Watch(owner)
                }
                Some(_) => Action::Reply(self.other_node(keys.slot)),
                None => Action::Reply(unavailable()),
            },
            Input::Unwatch => self.end_watch(),
            _ => Action::SendAnywhere,
        }
    }

    fn decide_begun(&mut self, input: Input, home: Option<NodeId>) -> Action {
        match input {
            Input::Multi => Action::Reply(error("ERR MULTI calls can not be nested")),
            Input::Watch(_) => Action::Reply(error("ERR WATCH inside MULTI is not allowed")),
            Input::Discard => self.end_watch(),
            Input::Exec if self.is_aborted => self.end_begun(Bytes::from_static(ABORTED)),
            Input::Exec if self.watching.is_some() || !self.kept.is_empty() => {
                Action::Begin(self.watching.or(home))
            }
            Input::Exec => self.end_begun(Bytes::from_static(b"*0\r\n")),
            Input::Keyless | Input::Unwatch => Action::Keep,
            Input::Invalid => {
                self.is_aborted = true;
                Action::SendAnywhere
            }
            Input::RefusedInMulti => {
                self.is_aborted = true;
                Action::Reply(error(REFUSED_IN_MULTI))
            }
            Input::Keyed(keys) if self.watching.is_none() || self.watching == keys.owner => {
                self.slot.get_or_insert(keys.slot);
                Action::Begin(keys.owner)
            }
            Input::Keyed(keys) => self.refuse(keys),
        }
    }

    fn decide_at(&mut self, node: NodeId, input: Input) -> Action {
        match input {
            Input::Exec if self.is_aborted => {
                self.clear();
                Action::ReplyBehind(node, DISCARD, Bytes::from_static(ABORTED))
            }
            Input::Exec | Input::Discard => {
                self.clear();
                Action::Send(node)
            }
            Input::Keyed(keys) if keys.owner != Some(node) => self.refuse(keys),
            _ => Action::Send(node),
        }
    }

    fn refuse(&mut self, keys: Keys) -> Action {
        self.is_aborted = true;
        Action::Reply(self.other_node(keys.slot))
    }

    /// The error for keys that the transaction's node does not serve. Clients repeat a transaction
    /// after `TRYAGAIN`. `CROSSSLOT` tells them that their keys can never be in one transaction.
    fn other_node(&self, slot: u16) -> Bytes {
        if self.slot == Some(slot) { slot_left() } else { crossslot() }
    }

    /// `UNWATCH`, or `DISCARD` before a node knows of the transaction; the reply is the same.
    fn end_watch(&mut self) -> Action {
        let watching = self.watching;
        self.clear();
        watching.map_or(Action::Reply(OK), |node| Action::SendInstead(node, UNWATCH))
    }

    /// `EXEC` before a node knows of the transaction.
    fn end_begun(&mut self, reply: Bytes) -> Action {
        let watching = self.watching;
        self.clear();
        match watching {
            Some(node) => Action::ReplyBehind(node, UNWATCH, reply),
            None => Action::Reply(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::for_test(1);
    const B: NodeId = NodeId::for_test(2);

    /// Keys of a slot that is the node's own.
    fn keys_of(owner: NodeId) -> Keys {
        Keys { slot: if owner == A { 1 } else { 2 }, owner: Some(owner) }
    }

    fn begun(inputs: &[Input]) -> Transaction {
        let mut transaction = Transaction::default();
        for input in inputs {
            match transaction.decide(*input, Some(A)) {
                Action::Keep => transaction.keep(Bytes::from_static(b"PING\r\n")),
                Action::Begin(Some(node)) => {
                    transaction.begin_at(node);
                }
                _ => {}
            }
        }
        transaction
    }

    #[test]
    fn action_follows_from_state_and_command() {
        use Input::{
            Discard, Exec, Invalid, Keyed, Keyless, Multi, RefusedInMulti, Unwatch, Watch,
        };
        let ok = || Action::Reply(OK);
        let aborted = || Action::Reply(Bytes::from_static(ABORTED));
        let at = |owner| Keyed(keys_of(owner));
        let watch = |owner| Watch(keys_of(owner));
        // The slot was B's.
        let moved = || Keys { owner: Some(A), ..keys_of(B) };
        let left = || Action::Reply(slot_left());
        let cases: [(&[Input], Input, Action); 29] = [
            (&[], Multi, ok()),
            (&[], Exec, Action::SendAnywhere),
            (&[], Discard, Action::SendAnywhere),
            (&[], Unwatch, ok()),
            (&[], watch(A), Action::Watch(A)),
            (&[watch(A)], watch(B), Action::Reply(crossslot())),
            (&[watch(A)], Unwatch, Action::SendInstead(A, UNWATCH)),
            (&[Multi], Multi, Action::Reply(error("ERR MULTI calls can not be nested"))),
            (&[Multi], watch(A), Action::Reply(error("ERR WATCH inside MULTI is not allowed"))),
            (&[Multi], Keyless, Action::Keep),
            (&[Multi], at(B), Action::Begin(Some(B))),
            (&[Multi], Exec, Action::Reply(Bytes::from_static(b"*0\r\n"))),
            (&[Multi, Keyless], Exec, Action::Begin(Some(A))),
            (&[Multi, Invalid], Exec, aborted()),
            (&[Multi], RefusedInMulti, Action::Reply(error(REFUSED_IN_MULTI))),
            (&[Multi, RefusedInMulti], Exec, aborted()),
            (&[Multi, at(B)], RefusedInMulti, Action::Send(B)),
            (&[Multi], Discard, ok()),
            (&[watch(B), Multi], Discard, Action::SendInstead(B, UNWATCH)),
            (&[watch(B), Multi], at(A), Action::Reply(crossslot())),
            (&[watch(B), Multi], Exec, Action::Begin(Some(B))),
            (&[Multi, at(B)], at(B), Action::Send(B)),
            (&[Multi, at(B)], at(A), Action::Reply(crossslot())),
            (
                &[Multi, at(B), at(A)],
                Exec,
                Action::ReplyBehind(B, DISCARD, Bytes::from_static(ABORTED)),
            ),
            (&[Multi, at(B)], Exec, Action::Send(B)),
            (&[Multi, at(B)], Keyed(moved()), left()),
            (
                &[Multi, at(B), Keyed(moved())],
                Exec,
                Action::ReplyBehind(B, DISCARD, Bytes::from_static(ABORTED)),
            ),
            (&[watch(B)], Watch(moved()), left()),
            (&[watch(B), Multi], Keyed(moved()), left()),
        ];
        for (before, input, expected) in cases {
            let found = begun(before).decide(input, Some(A));
            assert_eq!(found, expected, "{before:?}, then {input:?}");
        }
    }

    #[test]
    fn commands_kept_are_sent_once_a_key_names_the_node() {
        let mut transaction = begun(&[Input::Multi, Input::Keyless]);
        assert!(transaction.is_open() && !transaction.is_bound_to(B));
        assert_eq!(transaction.begin_at(B), ["PING\r\n"]);
        assert!(transaction.is_bound_to(B));
        assert_eq!(transaction.decide(Input::Exec, Some(A)), Action::Send(B));
        assert!(!transaction.is_open());
    }

    #[test]
    fn abort_counts_only_within_a_transaction() {
        let mut transaction = begun(&[]);
        transaction.abort();
        transaction.decide(Input::Multi, None);
        assert_eq!(
            transaction.decide(Input::Exec, None),
            Action::Reply(Bytes::from_static(b"*0\r\n"))
        );
    }

    #[test]
    fn rejected_watch_watches_nothing() {
        use WatchReply::{Confirmed, Rejected};
        for (replies, is_watching) in [
            (&[Rejected][..], false),
            (&[Confirmed], true),
            (&[Confirmed, Rejected], true),
            (&[Rejected, Confirmed], true),
        ] {
            let mut transaction = Transaction::default();
            for reply in replies {
                transaction.decide(Input::Watch(keys_of(A)), None);
                transaction.watch_replied(*reply);
            }
            assert_eq!(transaction.is_bound_to(A), is_watching, "{replies:?}");
        }
    }
}
