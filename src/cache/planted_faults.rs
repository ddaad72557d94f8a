//! Faults for tests of verification and for the simulation. They are in no release: the feature
//! `planted-faults` compiles them, and a test looks for one of their names in the program.

use std::cell::Cell;

/// The variable that has a flight store its result although an invalidation has closed it.
const CLOSED_FLIGHTS: &str = "PLANTED_FAULT_CLOSED_FLIGHTS";

/// Whether a flight stores its result although an invalidation has closed it.
pub(super) fn closed_flights_store() -> bool {
    std::env::var_os(CLOSED_FLIGHTS).is_some()
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A flight opens only when its fetch has its reply (invariant F1).
    LateFlight,
    /// An invalidation removes the entry before it closes the flight (invariant F2).
    RemoveBeforeClose,
    /// A lease begins before the store is emptied (invariant C1).
    LeaseBeforeFlush,
    /// One in so many pushed keys is ignored.
    IgnoredPushes(u64),
    /// A session's own writes need no fence (invariant R3).
    NoFence,
    /// The connections of clients to Redis outlive a failover (invariant T3).
    OutlivedFailover,
    /// A login is taken for one that Redis always replies to (invariant R1).
    UnansweredLogin,
    /// The reply to a redirected fetch is kept for the primary that redirected it (invariant P1).
    KeptRedirect,
    /// The absence of a key of a cluster is kept (invariant P5).
    KeptAbsence,
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Plants a fault in all that runs on this thread, in the place of the last one.
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Returns the fault that is planted on this thread.
pub(crate) fn planted() -> Option<Fault> {
    PLANTED.get()
}

/// Whether this fault is planted on this thread.
pub(crate) fn is_planted(fault: Fault) -> bool {
    planted() == Some(fault)
}
