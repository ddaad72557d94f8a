//! A fault for tests of the judges. It is in no release: the feature `planted-faults` compiles it.

/// The variable that turns the fault on, with any value.
const VARIABLE: &str = "PLANTED_FAULT_CLOSED_FLIGHTS";

/// Whether a flight stores its result although an invalidation has closed it.
pub(super) fn closed_flights_store() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
