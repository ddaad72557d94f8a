//! The truth of one key over failovers: what the primary holds, and what the previous one still
//! has.
//!
//! Model: a register for the primary, and one for the previous primary. At a switch the writers
//! that are straight at Redis go on at the next primary; until then both have the same. The proxy
//! has to learn of it. So for the time of a push its reads and its clients' writes may still be at
//! the previous primary. There no straight write arrives any more, but a time to live ends as it
//! was set before the switch. A client's write there is lost. The record does not say which of the
//! two a client's write reached, so every possible state is kept.
//!
//! The rules, each no wider than the documents:
//!
//! 1. A read may be of the previous primary only if it was sent within a push after the switch.
//!    A read straight from Redis never is.
//! 2. Nothing but a write through the proxy can be lost, and only one within a push after the
//!    switch. It is not lost if the next primary shows its value: to a straight read, or to any
//!    read that is too late for the previous one.
//! 3. A session that has seen the next primary never sees the previous one again.

use super::register::{Change, Register};

/// An operation of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// A change; with a switch it may be at the previous primary, and lost.
    Change { change: Change, switch: Option<u32> },
    /// The switch with this number.
    Switch(u32),
    /// A read; with a switch it may be of the previous primary.
    Read { value: Option<u32>, switch: Option<u32> },
}

/// The possible states, in one form: the first in order, and the others.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Primaries {
    first: State,
    others: Vec<State>,
}

#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct State {
    primary: Register,
    /// The previous primary, and the number of the switch since which it is that.
    previous: Option<(u32, Register)>,
    /// Whether the session has seen the primary since the switch.
    has_moved: bool,
}

impl State {
    fn after(&self, change: Change, switch: Option<u32>) -> [Option<Self>; 2] {
        let at_primary = self.primary.after(change).map(|primary| {
            let previous = self.previous.clone();
            let previous = previous.map(|(number, register)| (number, register.ended_by(change)));
            Self { primary, previous, has_moved: self.has_moved }
        });
        let may_be_lost = |previous: &&(u32, Register)| switch == Some(previous.0);
        let at_previous =
            self.previous.as_ref().filter(may_be_lost).and_then(|(number, register)| {
                let previous = Some((*number, register.after(change)?));
                Some(Self { primary: self.primary.without(change), previous, ..self.clone() })
            });
        [at_primary, at_previous]
    }

    fn switched(&self, number: u32) -> Self {
        let previous = Some((number, self.primary.clone()));
        Self { primary: self.primary.clone(), previous, has_moved: false }
    }

    fn is_of_previous(&self, value: Option<u32>, switch: Option<u32>) -> bool {
        let is_it = |(number, register): &(u32, Register)| {
            switch == Some(*number) && register.value == value
        };
        !self.has_moved && self.previous.as_ref().is_some_and(is_it)
    }

    /// Returns the state after a read by the session that all reads are of; nothing if the read
    /// cannot have this value.
    fn seen(&self, value: Option<u32>, switch: Option<u32>) -> Option<Self> {
        // What both hold may be of either. Only a session that has not moved may see both later.
        if self.is_of_previous(value, switch) {
            return Some(self.clone());
        }
        (self.primary.value == value).then(|| Self { has_moved: true, ..self.clone() })
    }
}

impl Primaries {
    /// Returns what is possible after an operation, or nothing if it cannot come now. The reads are
    /// of many sessions.
    pub(crate) fn after(&self, op: Op) -> Option<Self> {
        match op {
            Op::Change { change, switch } => {
                Self::of(self.states().flat_map(|state| state.after(change, switch)).flatten())
            }
            Op::Switch(number) => Self::of(self.states().map(|state| state.switched(number))),
            Op::Read { value, switch } => {
                let shows = |state: &&State| {
                    state.primary.value == value || state.is_of_previous(value, switch)
                };
                Self::of(self.states().filter(shows).cloned())
            }
        }
    }

    /// Returns what is possible after an operation, where all reads are of one session.
    pub(crate) fn after_in_session(&self, op: Op) -> Option<Self> {
        match op {
            Op::Read { value, switch } => {
                Self::of(self.states().filter_map(|state| state.seen(value, switch)))
            }
            _ => self.after(op),
        }
    }

    fn states(&self) -> impl Iterator<Item = &State> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn of(mut states: impl Iterator<Item = State>) -> Option<Self> {
        let first = states.next()?;
        let mut others: Vec<_> = states.collect();
        if others.is_empty() {
            return Some(Self { first, others });
        }
        others.push(first);
        others.sort();
        others.dedup();
        Some(Self { first: others.remove(0), others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the switch.
    const LAST: u32 = 7;

    fn put(number: u32, ends: bool) -> Op {
        let change = Change::Put { number, value: number + 10, ends };
        Op::Change { change, switch: None }
    }

    fn end(of: u32) -> Op {
        Op::Change { change: Change::End { of }, switch: None }
    }

    fn read(value: Option<u32>) -> Op {
        Op::Read { value, switch: Some(LAST) }
    }

    /// A write through the proxy.
    fn doubtful(number: u32) -> Op {
        let Op::Change { change, .. } = put(number, false) else { unreachable!() };
        Op::Change { change, switch: Some(LAST) }
    }

    /// Whether these operations can come in this order.
    fn can_come(operations: &[Op]) -> bool {
        let mut all = operations.iter();
        all.try_fold(Primaries::default(), |state, op| state.after(*op)).is_some()
    }

    fn can_be_seen(operations: &[Op]) -> bool {
        let mut all = operations.iter();
        all.try_fold(Primaries::default(), |state, op| state.after_in_session(*op)).is_some()
    }

    #[test]
    fn time_to_live_ends_at_old_primary() {
        let gone = [put(1, true), Op::Switch(LAST), put(2, false), end(1), read(None)];
        assert!(can_come(&gone));
        let [first, switch, second, end, read] = gone;
        assert!(!can_come(&[first, switch, second, read]), "it has not ended");
        assert!(!can_come(&[put(1, false), switch, second, end, read]), "it has no end");
        assert!(!can_come(&[first, second, switch, end, read]), "it was replaced before");
        let late = Op::Read { value: None, switch: None };
        assert!(!can_come(&[first, switch, second, end, late]), "the bound is over");
        let other = Op::Read { value: None, switch: Some(LAST - 1) };
        assert!(!can_come(&[first, switch, second, end, other]), "another switch");
        assert!(!can_come(&[first, switch, put(2, true), end, Op::Switch(LAST + 1), read]));
    }

    #[test]
    fn lost_write_is_seen_at_old_primary() {
        let lost = [put(1, false), Op::Switch(LAST), doubtful(2), read(Some(12))];
        assert!(can_come(&[&lost[..], &[read(Some(11))]].concat()));
        let late = |value| Op::Read { value: Some(value), switch: None };
        assert!(can_come(&[&lost[..], &[late(11)]].concat()), "lost");
        assert!(can_come(&[&lost[..], &[late(12)]].concat()), "not lost");
        assert!(!can_come(&[&lost[..], &[late(11), late(12)]].concat()), "either or");
        assert!(!can_come(&[&lost[..], &[late(12), late(11)]].concat()), "either or");
        let Op::Change { change, .. } = doubtful(2) else { unreachable!() };
        let earlier = Op::Change { change, switch: Some(LAST - 1) };
        assert!(!can_come(&[lost[0], lost[1], earlier, late(11)]), "of another switch");
        assert!(!can_come(&[put(1, false), put(2, false), Op::Switch(LAST), late(11)]));
        assert!(!can_come(&[put(1, false), Op::Switch(LAST), put(2, false), late(11)]), "straight");
    }

    #[test]
    fn session_goes_back_once_a_failover() {
        let lost = [put(1, false), Op::Switch(LAST), doubtful(2)];
        let seen = |values: &[u32]| {
            let reads = values.iter().map(|value| read(Some(*value)));
            can_be_seen(&lost.into_iter().chain(reads).collect::<Vec<_>>())
        };
        assert!(seen(&[12, 12, 11, 11]), "lost");
        assert!(seen(&[11, 12, 12]), "not lost");
        assert!(!seen(&[12, 11, 12]), "there and back");
        assert!(!seen(&[11, 12, 11]), "lost, or not lost");
        let [first, switch, write] = lost;
        let straight = [first, put(2, false), switch, read(Some(12)), read(Some(11))];
        assert!(!can_be_seen(&straight), "before the switch");
        let both = [first, switch, read(Some(11)), write, read(Some(12)), read(Some(11))];
        assert!(can_be_seen(&both), "no move is known before the second 11");
        assert!(!can_be_seen(&[&both[..], &[read(Some(12))]].concat()), "back twice");
    }
}
