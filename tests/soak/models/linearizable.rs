//! Promise: a `no-cache` read, and a read behind a write of the same connection, is linearizable.
//!
//! Model: a register for each key. Such a read takes effect between its request and its reply, like
//! the reads straight from Redis, which show that the record itself is right. In a failover the
//! proxy has to learn of the new primary first, so a `no-cache` read may be as old as a push. It
//! may be of the [previous primary](super::primaries) then, where a time to live ends by itself.

use porcupine_rs::{Model, Operation};

use super::primaries::{Op, Primaries};
use super::{Promise, histories};
use crate::checker::history::{Key, Terms};

#[derive(Clone, Debug)]
pub(crate) struct Linearizable;

impl Model for Linearizable {
    type State = Primaries;
    type Op = Op;
    type Metadata = usize;

    fn init() -> Primaries {
        Primaries::default()
    }

    fn step(state: &Primaries, op: &Op) -> (bool, Primaries) {
        let next = state.after(*op);
        (next.is_some(), next.unwrap_or_default())
    }
}

impl Promise for Linearizable {
    const NAME: &'static str = "linearizable";

    fn histories(key: &Key, terms: &Terms) -> Vec<Vec<Operation<Self>>> {
        let current = key.reads.iter().enumerate().filter(|(_, read)| read.must_be_current());
        let reads = current.map(|(index, read)| (index, terms.oldest(read).unwrap_or(read.call)));
        histories(key, terms, reads, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::{History, PUSH, accepts};

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

    /// A value that ends from 498 ms on, and is replaced behind a switch at 400 ms.
    fn switched() -> History {
        let history = History::default().expiring("w", "1", 500_000, 0, 10).switch(400_000);
        history.period("failover", 300_000, 900_000)
    }

    #[test]
    fn value_may_be_gone_at_old_primary() {
        let replaced = || switched().write("w", "2", 450_000, 450_010);
        let persisted = || switched().persist("w", 450_000, 450_010);
        for history in [replaced, persisted] {
            let absent = |call, returned| {
                accepts::<Linearizable>(history().current_absence("r", call, returned))
            };
            assert!(absent(510_000, 510_010));
            assert!(absent(400_000 + PUSH, 660_000));
            assert!(!absent(400_001 + PUSH, 660_000), "after the bound");
            assert!(!absent(496_000, 497_000), "before its end");
            let straight = history().direct_absence("s", 510_000, 510_010);
            assert!(!accepts::<Linearizable>(straight));
        }
    }

    #[test]
    fn lasting_value_is_not_gone_in_a_failover() {
        let failover = |history: History| history.period("failover", 300_000, 900_000);
        let absent = |history: History| {
            accepts::<Linearizable>(failover(history).current_absence("r", 510_000, 510_010))
        };
        let plain = History::default().write("w", "1", 0, 10).switch(400_000);
        assert!(!absent(plain.write("w", "2", 450_000, 450_010)), "it had no end");
        let expiring = || History::default().expiring("w", "1", 500_000, 0, 10);
        let before = expiring().persist("w", 390_000, 390_010).switch(400_000);
        assert!(!absent(before), "persisted before the switch");
        assert!(!absent(expiring().persist("w", 450_000, 450_010)), "no switch");
        let behind = History::default().write("w", "1", 0, 10).switch(400_000);
        let behind = behind.expiring("w", "2", 50_000, 410_000, 410_010);
        assert!(!absent(behind.persist("w", 440_000, 440_010)), "an end set at the next primary");
    }
}
