//! Promise: a cached value is no older than the time of a push, or than the lease while Redis or
//! the network does not reply. In ttl mode it is no older than its time to live.
//!
//! Model: the register of linearizability, but the window of a read begins that much before its
//! request. While `cache.stale_if_error` is set and a fault is in force, a reply that is marked as
//! stale has no such bound. It must have been a value of the key all the same. Replies to Redis
//! clients have no mark, so they may be stale then. What the [previous primary](super::primaries)
//! has counts within a push after a switch. A write that a failover loses supersedes nothing.

use porcupine_rs::{Model, Operation};

use super::primaries::{Op, Primaries};
use super::{Promise, histories};
use crate::checker::history::{Key, Terms};

/// The number of histories over which the reads of a key are spread. The promise is about each read
/// by itself. Many reads at once would only be tried in all their combinations.
const DEALT: usize = 6;

#[derive(Clone, Debug)]
pub(crate) struct BoundedStaleness;

impl Model for BoundedStaleness {
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

impl Promise for BoundedStaleness {
    const NAME: &'static str = "bounded staleness";

    fn histories(key: &Key, terms: &Terms) -> Vec<Vec<Operation<Self>>> {
        let cached = key.reads.iter().enumerate().filter(|(_, read)| !read.must_be_current());
        // Each key is absent at first, so a stale absence is always possible.
        let reads = cached.map(|(index, read)| (index, terms.oldest(read).unwrap_or(0)));
        histories(key, terms, reads, DEALT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::{History, LEASE, PUSH, accepts};

    fn superseded() -> History {
        History::default().write("w", "1", 0, 10).write("w", "2", 20, 30)
    }

    #[test]
    fn old_value_is_accepted_within_a_push() {
        assert!(accepts::<BoundedStaleness>(superseded().cached("r", "1", 30 + PUSH, 999_000)));
        assert!(!accepts::<BoundedStaleness>(superseded().cached("r", "1", 31 + PUSH, 999_000)));
        assert!(accepts::<BoundedStaleness>(superseded().cached("r", "2", 999_000, 999_010)));
    }

    #[test]
    fn fault_allows_the_time_of_the_lease() {
        let fault = || superseded().period("fault", 100, 900_000);
        assert!(accepts::<BoundedStaleness>(fault().cached("r", "1", 800_000, 800_010)));
        assert!(!accepts::<BoundedStaleness>(fault().cached("r", "1", 31 + LEASE, 31 + LEASE)));
        let over = superseded().period("fault", 100, 200_000);
        assert!(!accepts::<BoundedStaleness>(over.cached("r", "1", 800_000, 800_010)));
    }

    #[test]
    fn old_absence_is_rejected_like_a_value() {
        let history = History::default().write("w", "1", 20, 30);
        let read = |call| history.clone().cached_absence("r", call, call + 10);
        assert!(accepts::<BoundedStaleness>(read(PUSH)));
        assert!(!accepts::<BoundedStaleness>(read(31 + PUSH)));
        let removed = history.clone().remove("w", 40, 50);
        assert!(!accepts::<BoundedStaleness>(removed.cached("r", "1", 51 + PUSH, 60 + PUSH)));
    }

    #[test]
    fn stale_mark_needs_a_grace_and_a_fault() {
        let read = |mark| superseded().marked("r", "1", mark, 5_000_000, 5_000_010);
        let fault = |history: History| history.period("fault", 4_000_000, 6_000_000);
        let grace = |history: History| history.period("grace", 4_000_000, 6_000_000);
        assert!(accepts::<BoundedStaleness>(grace(fault(read(Some(true))))));
        assert!(!accepts::<BoundedStaleness>(grace(fault(read(Some(false))))), "not marked");
        assert!(!accepts::<BoundedStaleness>(fault(read(Some(true)))), "no grace");
        assert!(!accepts::<BoundedStaleness>(grace(read(Some(true)))), "no fault");
        assert!(accepts::<BoundedStaleness>(grace(fault(read(None)))), "of a Redis client");
    }

    #[test]
    fn stale_value_was_written_all_the_same() {
        let read = superseded().marked("r", "7", Some(true), 5_000_000, 5_000_010);
        let allowed = |op, history: History| history.period(op, 4_000_000, 6_000_000);
        assert!(!accepts::<BoundedStaleness>(allowed("grace", allowed("fault", read))));
    }

    #[test]
    fn ttl_mode_allows_the_time_to_live() {
        let history = || superseded().ttl_mode(10_000_000);
        let read = |call| history().cached("r", "1", call, call + 10);
        assert!(accepts::<BoundedStaleness>(read(10_000_000)));
        assert!(!accepts::<BoundedStaleness>(read(10_000_031 + PUSH)));
    }

    #[test]
    fn unknown_write_supersedes_nothing() {
        let history = History::default().write("w", "1", 0, 10).unknown("w", "2", 20);
        let read = |value| history.clone().cached("r", value, 5_000_000, 5_000_010);
        assert!(accepts::<BoundedStaleness>(read("1")));
        assert!(accepts::<BoundedStaleness>(read("2")));
    }

    #[test]
    fn expired_value_is_stale_after_a_push() {
        let history = History::default().expiring("w", "1", 500_000, 0, 10);
        let read = |call| history.clone().cached("r", "1", call, call + 10);
        assert!(accepts::<BoundedStaleness>(read(700_000)));
        assert!(!accepts::<BoundedStaleness>(read(800_000)));
    }

    #[test]
    fn value_may_be_gone_at_old_primary() {
        let written = History::default().write("w", "0", 0, 10).write("w", "1", 20, 30);
        let switched = written.expire("w", 1_500_000, 1_000_000, 1_000_010).switch(2_400_000);
        let persisted = switched.persist("w", 2_450_000, 2_450_010);
        let fault = persisted.period("fault", 2_300_000, 2_900_000);
        let absent = |call| fault.clone().cached_absence("r", call, call + 10);
        assert!(accepts::<BoundedStaleness>(absent(2_510_000)));
        assert!(accepts::<BoundedStaleness>(absent(2_400_000 + PUSH)));
        assert!(!accepts::<BoundedStaleness>(absent(2_400_001 + PUSH)), "the lease does not count");
    }

    #[test]
    fn lost_write_may_stay_unseen_for_ever() {
        let read = |history: History| history.cached("r", "1", 9_000_000, 9_000_010);
        let history = || History::default().proxied("c", "1", 0, 10);
        let lost = |history: History| history.proxied("c", "2", 450_000, 450_010);
        assert!(accepts::<BoundedStaleness>(read(lost(history().switch(400_000)))));
        assert!(!accepts::<BoundedStaleness>(read(lost(history()))), "no failover");
        assert!(!accepts::<BoundedStaleness>(read(lost(history()).switch(460_000))), "before it");
        let survived = lost(history().switch(400_000)).direct("s", "2", 8_000_000, 8_000_010);
        assert!(!accepts::<BoundedStaleness>(read(survived)), "it was not lost");
        let straight = history().switch(400_000).write("w", "2", 450_000, 450_010);
        assert!(!accepts::<BoundedStaleness>(read(straight)), "straight at the next primary");
    }
}
