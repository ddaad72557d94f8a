//! Single flight: at most one fetch in progress for a key, shared by all who ask meanwhile; and the two rules
//! that keep stale values out of the store.
//!
//! 1. A flight is opened *before* its fetch is sent.
//! 2. An invalidation closes the flight *before* it removes the stored entry, and a landing stores *while it
//!    holds the flight's lock* and only if the flight is still open.
//!
//! So whatever Redis said before an invalidation can be answered to those who had asked, but never stored after
//! it. Check-then-store, opening late, and removing before closing each leave a stale value behind. Everything
//! that changes the store therefore goes through here, with the lock of the key's shard held: the closures
//! below run under it, so they must be short, must not wait, and must not come back in here.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tracing::Span;

use super::sync::atomic::{self, Ordering::Relaxed};
use super::sync::{Mutex, MutexGuard, lock, preemption_point};
use crate::key::Key;
use crate::telemetry::spans;

/// More shards than threads that fetch or invalidate, so that they seldom meet. They meet always where every order of
/// their steps is tried: that is about one key, and locks of other keys would only multiply the orders.
const SHARDS: usize = if cfg!(feature = "shuttle") { 1 } else { 64 };

/// The flights in progress; `T` is what a flight brings home.
pub(super) struct Flights<T> {
    shards: Box<[Mutex<Shard<T>>]>,
    hasher: ahash::RandomState,
    next_number: atomic::AtomicU64,
    discarded: AtomicU64,
}

type Shard<T> = HashMap<Key, Flight<T>, ahash::RandomState>;

struct Flight<T> {
    /// Tells this flight from a later one for the same key.
    number: u64,
    waiter: FlightWaiter<T>,
    /// What its fetch is traced as.
    span: Span,
}

/// How a reader takes part in a flight.
pub(super) enum Joined<T, R> {
    /// It was in the store after all.
    Found(R),
    /// Nobody was fetching: the caller does, and waits like the others.
    Leader(FlightGuard<T>, FlightWaiter<T>),
    /// Somebody is fetching already.
    Follower(FlightWaiter<T>),
}

/// What a reader waits on.
pub(super) struct FlightWaiter<T>(Arc<FlightCell<T>>);

/// Where a flight lays down what it brings, once: nothing, when its fetch was dropped unfinished.
struct FlightCell<T> {
    value: OnceLock<Option<T>>,
    completed: Notify,
}

impl<T> FlightCell<T> {
    fn complete(&self, value: Option<T>) {
        // Only the first counts, and there is no second.
        _ = self.value.set(value);
        self.completed.notify_waiters();
    }
}

impl<T> Clone for FlightWaiter<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> FlightWaiter<T> {
    /// What the flight brings, or `None` when it vanished (its fetch was dropped unfinished).
    pub(super) async fn wait(self) -> Option<T> {
        let Self(cell) = self;
        // Told of what comes from here on, so nothing is missed between the look and the wait.
        let completed = cell.completed.notified();
        if cell.value.get().is_none() {
            completed.await;
        }
        cell.value.get().cloned().flatten()
    }
}

/// The right and the duty to land a flight. Dropped without landing, it closes the flight, so the next reader
/// opens a new one.
pub(super) struct FlightGuard<T> {
    flights: Arc<Flights<T>>,
    key: Key,
    number: u64,
    cell: Arc<FlightCell<T>>,
    span: Span,
}

impl<T> Flights<T> {
    pub(super) fn new() -> Arc<Self> {
        let hasher = ahash::RandomState::new();
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard::with_hasher(hasher.clone()))).collect();
        Arc::new(Self {
            shards,
            hasher,
            next_number: atomic::AtomicU64::new(0),
            discarded: AtomicU64::new(0),
        })
    }

    #[cfg_attr(feature = "shuttle", expect(clippy::modulo_one, reason = "there is one shard then"))]
    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard<T>> {
        // The high bits, since the shard's own table goes by the low ones. The remainder always fits.
        let index = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or(0) % SHARDS;
        lock(&self.shards[index])
    }

    /// Joins the flight for `key`, or opens one. `look_again` is asked first: a flight may have landed since the
    /// caller looked.
    pub(super) fn join<R>(
        self: &Arc<Self>,
        key: &[u8],
        look_again: impl FnOnce() -> Option<R>,
    ) -> Joined<T, R> {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key) {
            spans::follow(&flight.span);
            return Joined::Follower(flight.waiter.clone());
        }
        if let Some(found) = look_again() {
            return Joined::Found(found);
        }
        let cell = Arc::new(FlightCell { value: OnceLock::new(), completed: Notify::new() });
        let waiter = FlightWaiter(Arc::clone(&cell));
        let number = self.next_number.fetch_add(1, Relaxed);
        let key = Key::from(key);
        let span = spans::fetch_span();
        shard.insert(key.clone(), Flight { number, waiter: waiter.clone(), span: span.clone() });
        Joined::Leader(FlightGuard { flights: Arc::clone(self), key, number, cell, span }, waiter)
    }

    /// Closes the flight for `key`, then calls `remove`: what is being fetched will be answered, not stored.
    pub(super) fn close<R>(&self, key: &[u8], remove: impl FnOnce() -> R) -> R {
        let mut shard = self.shard(key);
        shard.remove(key);
        remove()
    }

    /// Closes every flight for a key of which `matches` says so.
    pub(super) fn close_where(&self, matches: impl Fn(&[u8]) -> bool) {
        for shard in &self.shards {
            lock(shard).retain(|key, _| !matches(key.as_bytes()));
        }
    }

    /// Closes every flight, then calls `clear`, with no flight landing or opening in between.
    pub(super) fn close_all<R>(&self, clear: impl FnOnce() -> R) -> R {
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        for shard in &mut shards {
            shard.clear();
        }
        clear()
    }

    /// Calls `change` while no flight for `key` can land; closes none.
    pub(super) fn hold<R>(&self, key: &[u8], change: impl FnOnce() -> R) -> R {
        let _shard = self.shard(key);
        change()
    }

    /// Calls `change` while no flight can land; closes none.
    pub(super) fn hold_all<R>(&self, change: impl FnOnce() -> R) -> R {
        let _shards: Vec<_> = self.shards.iter().map(lock).collect();
        change()
    }

    /// How many flights are in progress.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// How many flights landed after they had been closed: answered, not stored.
    pub(super) fn discarded(&self) -> u64 {
        self.discarded.load(Relaxed)
    }
}

impl<T> FlightGuard<T> {
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// What the fetch of the flight is traced as.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Ends the flight: `store` is called with its key, under the flight's lock, and only if the flight is still open; `value` is
    /// what all who wait get either way.
    pub(super) fn complete(self, store: impl FnOnce(&Key), value: T) {
        let mut shard = self.flights.shard(self.key.as_bytes());
        let open =
            shard.get(self.key.as_bytes()).is_some_and(|flight| flight.number == self.number);
        if open {
            store(&self.key);
            shard.remove(self.key.as_bytes());
        } else {
            self.flights.discarded.fetch_add(1, Relaxed);
        }
        drop(shard);
        preemption_point();
        self.cell.complete(Some(value));
    }
}

impl<T> Drop for FlightGuard<T> {
    fn drop(&mut self) {
        if self.cell.value.get().is_some() {
            return;
        }
        let mut shard = self.flights.shard(self.key.as_bytes());
        if shard.get(self.key.as_bytes()).is_some_and(|flight| flight.number == self.number) {
            shard.remove(self.key.as_bytes());
        }
        drop(shard);
        self.cell.complete(None);
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    const KEY: &[u8] = b"key";

    fn lead(flights: &Arc<Flights<u32>>) -> (FlightGuard<u32>, FlightWaiter<u32>) {
        match flights.join(KEY, || None::<()>) {
            Joined::Leader(guard, waiter) => (guard, waiter),
            _ => panic!("a flight is in progress"),
        }
    }

    fn complete(guard: FlightGuard<u32>, value: u32) -> bool {
        let mut stored = false;
        guard.complete(|_| stored = true, value);
        stored
    }

    #[tokio::test]
    async fn followers_get_the_leaders_result() {
        let flights = Flights::new();
        let (guard, waiter) = lead(&flights);
        let Joined::Follower(follower) = flights.join(KEY, || Some(())) else {
            panic!("no flight to follow")
        };
        assert!(complete(guard, 7));
        assert_eq!((waiter.wait().await, follower.wait().await), (Some(7), Some(7)));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn invalidated_flight_answers_without_storing() {
        let flights = Flights::new();
        let (guard, waiter) = lead(&flights);
        flights.close(KEY, || ());
        let (second, _) = lead(&flights);
        assert!(!complete(guard, 1), "the first flight left before the invalidation");
        assert_eq!(waiter.wait().await, Some(1));
        assert!(complete(second, 2), "the second one after it");
        assert_eq!(flights.discarded(), 1);
    }

    #[tokio::test]
    async fn flush_closes_every_flight() {
        let flights = Flights::new();
        let (guard, _) = lead(&flights);
        flights.close_all(|| ());
        assert!(!complete(guard, 1));
    }

    #[tokio::test]
    async fn cancelled_leader_frees_the_flight() {
        let flights = Flights::new();
        let (guard, waiter) = lead(&flights);
        drop(guard);
        assert_eq!(waiter.wait().await, None);
        let (guard, _) = lead(&flights);
        assert!(complete(guard, 1));
    }

    #[tokio::test]
    async fn join_finds_a_result_stored_meanwhile() {
        let flights = Flights::<u32>::new();
        assert!(matches!(flights.join(KEY, || Some(9)), Joined::Found(9)));
        assert_eq!(flights.len(), 0);
    }
}
