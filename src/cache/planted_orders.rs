//! Wrong orders of the cache's steps, which the [planted faults](super::planted_faults) ask for.
//!
//! On one thread nothing runs between two steps of the same function. So where the order of two
//! steps is wrong, the second runs in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::types::{EvictionCause, FetchError};
use super::{Cache, FlightGuard, FlightResult};

impl<E: FetchError> Cache<E> {
    /// Closes a flight that has just opened; [`FlightGuard::reopen`] opens it again.
    pub(super) fn delay_flight(&self, guard: &FlightGuard<FlightResult<E>>) {
        self.0.flights.close(guard.key().as_bytes(), || ());
    }

    /// Removes an entry, and closes its flight later.
    pub(super) fn remove_before_close(&self, key: &[u8]) {
        let shared = Arc::clone(&self.0);
        if shared.flights.hold(key, || shared.store.load().remove(key)) {
            shared.evictions.add(EvictionCause::Invalidated, 1);
        }
        let key = key.to_vec();
        tokio::spawn(async move { shared.flights.close(&key, || ()) });
    }

    /// Starts a lease, and empties the store later.
    pub(super) fn lease_before_flush(&self, requested_at: Instant) {
        self.renew_lease(requested_at);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            sleep(Duration::from_millis(20)).await;
            shared.record_flush(shared.flights.hold_all(|| shared.replace_store()));
        });
    }
}
