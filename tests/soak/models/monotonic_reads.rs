//! Promise: a client that has seen a value never sees an older one after it.
//!
//! Model: the register, and the number of reads of one session so far. The reads take effect in the
//! order of the session, each within its allowed age. So two reads that are both young enough are
//! still rejected if the second shows an earlier state. Stale replies that `cache.stale_if_error`
//! allows are left out. A session may see a write that a failover then loses, and the older value
//! once it sees the next primary.

use std::collections::BTreeMap;

use porcupine_rs::{Model, Operation};

use super::primaries::{self, Primaries};
use super::{PART, Promise, changes, operation, window};
use crate::checker::history::{Key, Read, Terms};
use crate::record::How;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Other(primaries::Op),
    /// The read with this place in the order of the session.
    Read {
        place: u32,
        read: primaries::Op,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct MonotonicReads;

impl Model for MonotonicReads {
    type State = (Primaries, u32);
    type Op = Op;
    type Metadata = usize;

    fn init() -> Self::State {
        Self::State::default()
    }

    fn step((state, reads): &Self::State, op: &Op) -> (bool, Self::State) {
        let next = match op {
            Op::Other(op) => state.after_in_session(*op).map(|state| (state, *reads)),
            Op::Read { place, .. } if place != reads => None,
            Op::Read { read, .. } => state.after_in_session(*read).map(|state| (state, reads + 1)),
        };
        (next.is_some(), next.unwrap_or_default())
    }
}

impl Promise for MonotonicReads {
    const NAME: &'static str = "monotonic reads";

    fn histories(key: &Key, terms: &Terms) -> Vec<Vec<Operation<Self>>> {
        let mut sessions: BTreeMap<u32, Vec<(usize, &Read, i64)>> = BTreeMap::new();
        for (index, read) in key.reads.iter().enumerate() {
            if let Some(from) = terms.oldest(read).filter(|_| read.how != How::Direct) {
                sessions.entry(read.session).or_default().push((index, read, from));
            }
        }
        let several = sessions.into_values().filter(|reads| reads.len() > 1);
        several.flat_map(|reads| of_session(key, terms, &reads)).collect()
    }
}

/// Returns the parts of a session. Each begins with the last read of the part before it.
fn of_session(
    key: &Key,
    terms: &Terms,
    reads: &[(usize, &Read, i64)],
) -> Vec<Vec<Operation<MonotonicReads>>> {
    let mut earliest = 0;
    let windows: Vec<_> = reads
        .iter()
        .map(|(index, read, from)| {
            let window = window(key, read, (*from).max(earliest));
            earliest = window.0;
            (*index, window)
        })
        .collect();
    let starts = (0..windows.len() - 1).step_by(PART);
    let end = |start: usize| windows.len().min(start + PART + 1);
    starts.map(|start| part(key, terms, &windows[start..end(start)])).collect()
}

fn part(key: &Key, terms: &Terms, reads: &[(usize, (i64, i64))]) -> Vec<Operation<MonotonicReads>> {
    let read = |(place, (index, window)): (u32, &(usize, (i64, i64)))| {
        let Read { value, switch, .. } = key.reads[*index];
        let read = primaries::Op::Read { value, switch };
        operation(Op::Read { place, read }, *window, Some(*index))
    };
    let within = (reads[0].1.0, reads[reads.len() - 1].1.1);
    let switches = reads.iter().filter_map(|(index, _)| key.reads[*index].switch);
    let mut operations = changes(key, terms, within, switches.collect(), Op::Other);
    operations.extend((0..).zip(reads).map(read));
    operations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::{History, accepts};

    fn superseded() -> History {
        History::default().write("w", "1", 0, 10).write("w", "2", 20, 30)
    }

    #[test]
    fn old_value_after_the_new_one_is_rejected() {
        let history = || superseded().cached("r", "2", 31, 40);
        assert!(!accepts::<MonotonicReads>(history().cached("r", "1", 41, 50)));
        assert!(accepts::<MonotonicReads>(history().cached("r", "2", 41, 50)));
        assert!(accepts::<MonotonicReads>(history().cached("s", "1", 41, 50)), "another client");
        assert!(!accepts::<MonotonicReads>(history().cached_absence("r", 41, 50)));
    }

    #[test]
    fn new_value_after_the_old_one_is_accepted() {
        let history = superseded().cached("r", "1", 31, 40).cached("r", "1", 41, 50);
        assert!(accepts::<MonotonicReads>(history.cached("r", "2", 51, 60)));
    }

    #[test]
    fn current_read_counts_for_later_reads() {
        let history = superseded().current("r", "2", 31, 40);
        assert!(!accepts::<MonotonicReads>(history.cached("r", "1", 41, 50)));
    }

    #[test]
    fn absence_may_come_back_but_not_go_back() {
        let history = || superseded().remove("w", 40, 50);
        let gone = || history().cached("r", "2", 35, 38).cached_absence("r", 55, 60);
        assert!(accepts::<MonotonicReads>(gone()));
        assert!(!accepts::<MonotonicReads>(gone().cached("r", "2", 65, 70)));
    }

    #[test]
    fn unknown_write_may_be_seen_late() {
        let history = || History::default().write("w", "1", 0, 10).unknown("w", "2", 20);
        let late = || history().cached("r", "1", 30, 40).cached("r", "2", 900_000, 900_010);
        assert!(accepts::<MonotonicReads>(late()));
        assert!(!accepts::<MonotonicReads>(late().cached("r", "1", 900_020, 900_030)));
    }

    #[test]
    fn parts_of_a_long_session_overlap() {
        let long = (0..).take(PART).fold(superseded(), |history, read| {
            history.cached("r", "2", 31 + read * 20, 40 + read * 20)
        });
        assert!(accepts::<MonotonicReads>(long.clone()));
        assert!(!accepts::<MonotonicReads>(long.cached("r", "1", 20_000, 20_010)));
    }

    #[test]
    fn stale_reply_is_left_out() {
        let history = superseded().cached("r", "2", 31, 40).marked("r", "1", Some(true), 41, 50);
        assert!(!accepts::<MonotonicReads>(history.clone()));
        let allowed = history.period("fault", 35, 60).period("grace", 35, 60);
        assert!(accepts::<MonotonicReads>(allowed));
    }

    /// A write within a push after a switch, and a read of it.
    fn seen() -> History {
        let history = History::default().proxied("c", "1", 0, 10).switch(400_000);
        history.proxied("c", "2", 450_000, 450_010).cached("r", "2", 460_000, 460_010)
    }

    #[test]
    fn older_value_may_follow_a_lost_write() {
        let back = |history: History| history.cached("r", "1", 500_000, 500_010);
        assert!(accepts::<MonotonicReads>(back(seen())));
        let late = back(seen()).cached("s", "1", 9_000_000, 9_000_010);
        assert!(accepts::<MonotonicReads>(late.clone()));
        assert!(
            !accepts::<MonotonicReads>(back(seen()).cached("r", "2", 510_000, 510_010)),
            "twice"
        );
        let survived = back(seen()).cached("s", "2", 9_000_000, 9_000_010);
        assert!(!accepts::<MonotonicReads>(survived), "it was not lost");
    }

    #[test]
    fn kept_write_is_never_left() {
        let goes_back = |history: History| {
            let history = history.cached("r", "2", 460_000, 460_010);
            accepts::<MonotonicReads>(history.cached("r", "1", 500_000, 500_010))
        };
        let first = || History::default().proxied("c", "1", 0, 10);
        let second = |history: History| history.proxied("c", "2", 450_000, 450_010);
        assert!(goes_back(second(first().switch(400_000))), "lost");
        assert!(!goes_back(second(first())), "no failover");
        assert!(!goes_back(second(first()).switch(455_000)), "before the failover");
        assert!(!goes_back(second(first().switch(100_000))), "after the bound");
        let straight = first().switch(400_000).write("w", "2", 450_000, 450_010);
        assert!(!goes_back(straight), "straight at the next primary");
    }

    #[test]
    fn session_never_returns_to_old_primary() {
        let history = History::default().expiring("w", "1", 500_000, 0, 10).switch(400_000);
        let history = || history.clone().write("w", "2", 450_000, 450_010);
        let gone = || history().cached_absence("r", 510_000, 510_010);
        assert!(accepts::<MonotonicReads>(gone().cached("r", "2", 520_000, 520_010)));
        let back = history().cached("r", "2", 460_000, 460_010);
        assert!(!accepts::<MonotonicReads>(back.cached_absence("r", 510_000, 510_010)));
        let twice = gone().cached("r", "2", 520_000, 520_010);
        assert!(!accepts::<MonotonicReads>(twice.cached_absence("r", 530_000, 530_010)));
    }
}
