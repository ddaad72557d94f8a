//! Promise: a client that has seen a value never sees an older one after it.
//!
//! Model: the register, and the number of reads of one session so far. The reads take effect in the
//! order of the session, each within its allowed age. So two reads that are both young enough are
//! still rejected if the second shows an earlier state. Stale replies that
//! `cache.stale_if_error` allows are left out.

use std::collections::BTreeMap;

use porcupine_rs::{Model, Operation};

use super::register::{Change, Register};
use super::{PART, Promise, operation, window};
use crate::checker::history::{Key, Read, Terms};
use crate::record::How;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Change(Change),
    /// The read with this place in the order of the session.
    Read {
        place: u32,
        value: Option<u32>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct MonotonicReads;

impl Model for MonotonicReads {
    type State = (Register, u32);
    type Op = Op;
    type Metadata = usize;

    fn init() -> Self::State {
        Self::State::default()
    }

    fn step((register, read): &Self::State, op: &Op) -> (bool, Self::State) {
        let next = match op {
            Op::Change(change) => register.after(*change).map(|register| (register, *read)),
            Op::Read { place, value } => {
                (place == read && register.value == *value).then(|| (register.clone(), read + 1))
            }
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
        several.flat_map(|reads| of_session(key, &reads)).collect()
    }
}

/// Returns the parts of a session. Each begins with the last read of the part before it.
fn of_session(key: &Key, reads: &[(usize, &Read, i64)]) -> Vec<Vec<Operation<MonotonicReads>>> {
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
    starts.map(|start| part(key, &windows[start..windows.len().min(start + PART + 1)])).collect()
}

fn part(key: &Key, reads: &[(usize, (i64, i64))]) -> Vec<Operation<MonotonicReads>> {
    let read = |(place, (index, window)): (u32, &(usize, (i64, i64)))| {
        let value = key.reads[*index].value;
        operation(Op::Read { place, value }, *window, Some(*index))
    };
    let changes = key.changes_within((reads[0].1.0, reads[reads.len() - 1].1.1));
    let changes = changes.map(|timed| operation(Op::Change(timed.change), timed.window, None));
    changes.chain((0..).zip(reads).map(read)).collect()
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
}
