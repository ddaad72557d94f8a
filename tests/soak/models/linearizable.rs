//! Promise: a `no-cache` read, and a read behind a write of the same connection, is linearizable.
//!
//! Model: a register for each key. Such a read takes effect between its request and its reply, like
//! the reads straight from Redis, which show that the record itself is right. In a failover the
//! proxy has to learn of the new primary first, so a `no-cache` read may be as old as a push.

use porcupine_rs::{Model, Operation};

use super::register::{Change, Register};
use super::{Promise, histories};
use crate::checker::history::{Key, Terms};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Change(Change),
    Read(Option<u32>),
}

#[derive(Clone, Debug)]
pub(crate) struct Linearizable;

impl Model for Linearizable {
    type State = Register;
    type Op = Op;
    type Metadata = usize;

    fn init() -> Register {
        Register::default()
    }

    fn step(state: &Register, op: &Op) -> (bool, Register) {
        let next = match op {
            Op::Change(change) => state.after(*change),
            Op::Read(value) => (state.value == *value).then(|| state.clone()),
        };
        (next.is_some(), next.unwrap_or_default())
    }
}

impl Promise for Linearizable {
    const NAME: &'static str = "linearizable";

    fn histories(key: &Key, terms: &Terms) -> Vec<Vec<Operation<Self>>> {
        let current = key.reads.iter().enumerate().filter(|(_, read)| read.must_be_current());
        let reads = current.map(|(index, read)| (index, terms.oldest(read).unwrap_or(read.call)));
        histories(key, reads, 1, (Op::Read, Op::Change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::{History, accepts};

    #[test]
    fn current_read_of_the_old_value_is_rejected() {
        let history = History::default().write("w", "1", 0, 10).write("w", "2", 20, 30);
        assert!(accepts::<Linearizable>(history.clone().current("r", "2", 31, 40)));
        assert!(!accepts::<Linearizable>(history.clone().current("r", "1", 31, 40)));
        assert!(!accepts::<Linearizable>(history.current_absence("r", 31, 40)));
    }

    #[test]
    fn concurrent_write_may_be_seen_or_not() {
        let history = History::default().write("w", "1", 0, 10).write("w", "2", 20, 50);
        for value in ["1", "2"] {
            assert!(accepts::<Linearizable>(history.clone().current("r", value, 25, 30)));
        }
        let new_then_old = history.current("r", "2", 25, 30).current("s", "1", 35, 40);
        assert!(!accepts::<Linearizable>(new_then_old));
    }

    #[test]
    fn value_never_written_is_rejected() {
        let history = History::default().write("w", "1", 0, 10);
        assert!(!accepts::<Linearizable>(history.clone().current("r", "7", 20, 30)));
        assert!(!accepts::<Linearizable>(history.direct("r", "7", 20, 30)));
    }

    #[test]
    fn unknown_write_may_come_late_or_never() {
        let history = History::default().write("w", "1", 0, 10).unknown("w", "2", 20);
        let late = history.clone().current("r", "1", 30, 40).current("r", "2", 900_000, 900_010);
        assert!(accepts::<Linearizable>(late.clone()));
        assert!(accepts::<Linearizable>(history.clone().current("r", "1", 900_000, 900_010)));
        assert!(!accepts::<Linearizable>(late.current("r", "1", 950_000, 950_010)));
        assert!(!accepts::<Linearizable>(history.current("r", "2", 5, 15)), "before it was sent");
    }

    #[test]
    fn value_is_gone_after_its_end() {
        let history = History::default().expiring("w", "1", 500_000, 0, 10);
        let read = |call| history.clone().current("r", "1", call, call + 10);
        assert!(accepts::<Linearizable>(read(490_000)));
        assert!(!accepts::<Linearizable>(read(506_000)));
        let absent = |call| history.clone().current_absence("r", call, call + 10);
        assert!(!accepts::<Linearizable>(absent(490_000)));
        assert!(accepts::<Linearizable>(absent(499_000)));
    }

    #[test]
    fn read_behind_an_own_write_is_current() {
        let history = History::default().write("w", "1", 0, 10).write("c", "2", 20, 30);
        assert!(accepts::<Linearizable>(history.clone().cached("c", "2", 31, 40)));
        assert!(!accepts::<Linearizable>(history.clone().cached("c", "1", 31, 40)));
        assert!(accepts::<Linearizable>(history.cached("other", "1", 31, 40)), "not judged here");
    }

    #[test]
    fn failover_allows_the_time_of_a_push() {
        let history = History::default().write("w", "1", 0, 10).write("w", "2", 20, 30);
        let read = |call| history.clone().current("r", "1", call, call + 10);
        assert!(accepts::<Linearizable>(read(200_000).period("failover", 100, 300_000)));
        assert!(!accepts::<Linearizable>(read(200_000).period("fault", 100, 300_000)));
        assert!(!accepts::<Linearizable>(read(280_000).period("failover", 100, 300_000)));
    }
}
