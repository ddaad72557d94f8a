//! Promise: a connection of a Redis client reads its own writes, pipelined or not.
//!
//! Model: the register, and the number of writes of one session that have taken effect. A read
//! takes effect only behind the writes that the session sent before it. Times do not order a
//! pipelined pair, and the session does.

use std::collections::BTreeMap;

use porcupine_rs::{Model, Operation};

use super::register::{Change, Register};
use super::{Promise, operation, window};
use crate::checker::history::{Key, Terms};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// A change, and whether the session made it.
    Change { change: Change, is_own: bool },
    /// A read behind so many writes of the session.
    Read { behind: u32, value: Option<u32> },
}

#[derive(Clone, Debug)]
pub(crate) struct ReadYourWrites;

impl Model for ReadYourWrites {
    type State = (Register, u32);
    type Op = Op;
    type Metadata = usize;

    fn init() -> Self::State {
        Self::State::default()
    }

    fn step((register, own): &Self::State, op: &Op) -> (bool, Self::State) {
        let next = match op {
            Op::Change { change, is_own } => {
                register.after(*change).map(|register| (register, own + u32::from(*is_own)))
            }
            Op::Read { behind, value } => {
                (own >= behind && register.value == *value).then(|| (register.clone(), *own))
            }
        };
        (next.is_some(), next.unwrap_or_default())
    }
}

impl Promise for ReadYourWrites {
    const NAME: &'static str = "read-your-writes";

    fn histories(key: &Key, _: &Terms) -> Vec<Vec<Operation<Self>>> {
        let mut writes: BTreeMap<u32, Vec<(u32, i64)>> = BTreeMap::new();
        for timed in key.changes.iter().filter(|timed| timed.is_acknowledged()) {
            writes.entry(timed.session).or_default().push((timed.place, timed.window.0));
        }
        let history = |(session, own): (&u32, &Vec<_>)| of_session(key, *session, own);
        writes.iter().filter_map(history).collect()
    }
}

/// Returns the history of a session with these writes, each with its place and call, if the session
/// has read the key after one.
fn of_session(
    key: &Key,
    session: u32,
    own: &[(u32, i64)],
) -> Option<Vec<Operation<ReadYourWrites>>> {
    let (mut operations, mut last) = (Vec::new(), 0);
    let of_session = key.reads.iter().enumerate().filter(|(_, read)| read.session == session);
    for (index, read) in of_session {
        let before = own.iter().filter(|(place, _)| *place < read.place);
        let Some(latest) = before.clone().map(|(_, call)| *call).max() else { continue };
        let behind = u32::try_from(before.count()).unwrap_or(u32::MAX);
        let op = Op::Read { behind, value: read.value };
        operations.push(operation(op, window(key, read, latest), Some(index)));
        last = read.returned.max(last);
    }
    operations.first()?;
    let changes = key.changes.iter().filter(|timed| timed.window.0 <= last);
    operations.extend(changes.map(|timed| {
        let is_own = timed.session == session && timed.is_acknowledged();
        operation(Op::Change { change: timed.change, is_own }, timed.window, None)
    }));
    Some(operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::{History, accepts};

    #[test]
    fn lost_own_write_is_rejected() {
        let history = || History::default().write("c", "1", 0, 10).write("c", "2", 20, 30);
        assert!(accepts::<ReadYourWrites>(history().cached("c", "2", 31, 40)));
        assert!(!accepts::<ReadYourWrites>(history().cached("c", "1", 31, 40)));
        assert!(!accepts::<ReadYourWrites>(history().cached_absence("c", 31, 40)));
        assert!(accepts::<ReadYourWrites>(history().cached("r", "1", 31, 40)), "another client");
    }

    #[test]
    fn pipelined_read_sees_the_write_before_it() {
        let history = || History::default().write("c", "1", 0, 10).write("c", "2", 20, 30);
        assert!(accepts::<ReadYourWrites>(history().cached("c", "2", 20, 31)));
        assert!(!accepts::<ReadYourWrites>(history().cached("c", "1", 20, 31)));
    }

    #[test]
    fn write_of_another_client_may_replace_it() {
        let history = || History::default().write("c", "1", 0, 10).write("w", "2", 5, 40);
        for value in ["1", "2"] {
            assert!(accepts::<ReadYourWrites>(history().cached("c", value, 11, 50)));
        }
        let foreign = History::default().write("w", "2", 0, 10).write("c", "1", 20, 30);
        assert!(!accepts::<ReadYourWrites>(foreign.cached("c", "2", 31, 50)));
    }

    #[test]
    fn unknown_own_write_binds_no_read() {
        let history = || History::default().write("c", "1", 0, 10).unknown("c", "2", 20);
        for value in ["1", "2"] {
            assert!(accepts::<ReadYourWrites>(history().cached("c", value, 50, 60)));
        }
    }

    #[test]
    fn value_never_written_is_rejected() {
        let history = History::default().write("c", "1", 0, 10);
        assert!(!accepts::<ReadYourWrites>(history.cached("c", "7", 20, 30)));
    }
}
