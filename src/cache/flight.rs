//! Single flight: at most one fetch in progress per key, shared by all its readers. Two rules keep
//! stale values out of the store:
//!
//! 1. Invariant F1: a flight opens *before* its fetch is sent.
//! 2. Invariant F2: an invalidation closes the flight *before* it removes the stored entry. A
//!    completed fetch stores *under the flight's lock*, and only if the flight is still open.
//!
//! A reply that precedes an invalidation may reach the readers that waited for it. It is never
//! stored after that invalidation. Each wrong order leaves a stale value behind: check then store,
//! opening late, or removing before closing.
//!
//! A flight may carry a note of the state before its fetch was sent. The kept replies use it
//! (`replies`): a reader joins such a flight only if its note is still current.
//!
//! Every change of the store therefore goes through this module and holds the lock of the key's
//! shard. The closures below run under that lock. They must be short, must not wait, and must not
//! call this module again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use tokio::sync::Notify;
use tracing::Span;

use super::sync::{Mutex, MutexGuard, lock, preemption_point};
use crate::key::{AsKey, Key};
use crate::telemetry::spans;

/// More shards than threads that fetch or invalidate, so contention is rare. The model checker uses
/// one shard: its scenarios have one key, and locks of other keys would only multiply the orders.
const SHARDS: usize = if cfg!(feature = "shuttle") { 1 } else { 64 };

/// The flights in progress; `T` is the result of a flight, `N` the note that it carries.
pub(super) struct Flights<T, N = ()> {
    shards: Box<[Mutex<Shard<T, N>>]>,
    hasher: ahash::RandomState,
    discarded: AtomicU64,
    #[cfg(feature = "planted-faults")]
    stores_closed: bool,
}

/// A table that is given hashes, so a flight computes the hash of its key once.
type Shard<T, N> = HashTable<Arc<Flight<T, N>>>;

/// A fetch in progress, shared by the table, its leader and its followers. Its address identifies
/// it, because a later flight may have the same key.
struct Flight<T, N> {
    key: Key,
    hash: u64,
    note: N,
    /// The span of the fetch.
    span: Span,
    /// The result for the followers, set once. It is `None` if the fetch was dropped unfinished.
    result: OnceLock<Option<T>>,
    completed: Notify,
}

impl<T, N> Flight<T, N> {
    fn is_for(&self, key: &[u8]) -> bool {
        self.key.as_bytes() == key
    }

    /// Wakes the followers with the result.
    fn deliver(&self, result: Option<T>) {
        // Only the first result counts; there is never a second one.
        _ = self.result.set(result);
        self.completed.notify_waiters();
    }
}

/// The role of a reader in a flight.
pub(super) enum Joined<T, R, N = ()> {
    /// The second lookup found the entry in the store.
    Found(R),
    /// No flight was open. The caller runs the fetch.
    Leader(FlightGuard<T, N>),
    /// Another reader's fetch is in progress.
    Follower(FlightWaiter<T, N>),
}

/// Waits for the result of a flight.
pub(super) struct FlightWaiter<T, N = ()>(Arc<Flight<T, N>>);

impl<T: Clone, N> FlightWaiter<T, N> {
    /// Returns the result of the flight, or `None` if its fetch was dropped unfinished.
    pub(super) async fn wait(self) -> Option<T> {
        let Self(flight) = self;
        // Registered before the check. Otherwise a completion between the check and the wait would
        // be missed.
        let completed = flight.completed.notified();
        if flight.result.get().is_none() {
            completed.await;
        }
        flight.result.get().cloned().flatten()
    }
}

/// The right and the duty to complete a flight. If it is dropped first, it closes the flight, so
/// the next reader opens a new one.
pub(super) struct FlightGuard<T, N = ()> {
    flights: Arc<Flights<T, N>>,
    flight: Arc<Flight<T, N>>,
    is_complete: bool,
}

impl<T, N> Flights<T, N> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect(),
            hasher: ahash::RandomState::new(),
            discarded: AtomicU64::new(0),
            #[cfg(feature = "planted-faults")]
            stores_closed: super::planted_faults::closed_flights_store(),
        })
    }

    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Locks the shard of the keys with this hash.
    #[cfg_attr(feature = "shuttle", expect(clippy::modulo_one, reason = "there is one shard then"))]
    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<T, N>> {
        // The high bits, because the shard's own table uses the low bits. The remainder always
        // fits.
        let index = usize::try_from(hash >> 32).unwrap_or(0) % SHARDS;
        lock(&self.shards[index])
    }

    /// Joins the flight for `key` if its note is current, or opens one with a new note. A flight
    /// with a note that is not current is replaced: its waiters still receive its result, but it no
    /// longer stores. If no flight is joined, `look_again` runs before one is opened, because a
    /// flight may have completed since the caller's lookup.
    pub(super) fn join_noted<R>(
        self: &Arc<Self>,
        key: impl AsKey,
        is_current: impl FnOnce(&N) -> bool,
        look_again: impl FnOnce() -> Option<R>,
        note: impl FnOnce() -> N,
    ) -> Joined<T, R, N> {
        let hash = self.hash(key.as_ref());
        let mut shard = self.shard(hash);
        let found = shard.find_entry(hash, |flight| flight.is_for(key.as_ref())).ok();
        if let Some(found) = &found
            && is_current(&found.get().note)
        {
            spans::follow(&found.get().span);
            return Joined::Follower(FlightWaiter(Arc::clone(found.get())));
        }
        if let Some(found) = look_again() {
            return Joined::Found(found);
        }
        let flight = Arc::new(Flight {
            key: key.into(),
            hash,
            // Before the fetch is sent (invariant F1).
            note: note(),
            span: spans::fetch_span(),
            result: OnceLock::new(),
            completed: Notify::new(),
        });
        match found {
            Some(mut found) => *found.get_mut() = Arc::clone(&flight),
            None => insert(&mut shard, Arc::clone(&flight)),
        }
        Joined::Leader(FlightGuard { flights: Arc::clone(self), flight, is_complete: false })
    }

    /// Closes the flight for `key`, then calls `remove` (invariant F2). Readers still receive the
    /// result of the fetch, but it is not stored.
    pub(super) fn close<R>(&self, key: &[u8], remove: impl FnOnce() -> R) -> R {
        let hash = self.hash(key);
        let mut shard = self.shard(hash);
        if let Ok(flight) = shard.find_entry(hash, |flight| flight.is_for(key)) {
            flight.remove();
        }
        remove()
    }

    /// Closes every flight for a key for which `matches` returns true.
    pub(super) fn close_where(&self, matches: impl Fn(&[u8]) -> bool) {
        for shard in &self.shards {
            lock(shard).retain(|flight| !matches(flight.key.as_bytes()));
        }
    }

    /// Closes every flight, then calls `clear`. No flight completes or opens in between.
    pub(super) fn close_all<R>(&self, clear: impl FnOnce() -> R) -> R {
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        for shard in &mut shards {
            shard.clear();
        }
        clear()
    }

    /// Calls `change` while no flight for `key` can complete. Closes no flight.
    pub(super) fn hold<R>(&self, key: &[u8], change: impl FnOnce() -> R) -> R {
        let _shard = self.shard(self.hash(key));
        change()
    }

    /// Calls `change` while no flight can complete. Closes no flight.
    pub(super) fn hold_all<R>(&self, change: impl FnOnce() -> R) -> R {
        let _shards: Vec<_> = self.shards.iter().map(lock).collect();
        change()
    }

    /// Whether a flight for `key` is in progress.
    pub(super) fn is_open(&self, key: &[u8]) -> bool {
        let hash = self.hash(key);
        self.shard(hash).find(hash, |flight| flight.is_for(key)).is_some()
    }

    /// Returns the number of flights in progress.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns the number of flights that completed after they were closed: delivered, but not
    /// stored.
    pub(super) fn discarded(&self) -> u64 {
        self.discarded.load(Relaxed)
    }
}

impl<T> Flights<T> {
    /// Joins the flight for `key`, or opens one, as [`join_noted`](Self::join_noted) does.
    pub(super) fn join<R>(
        self: &Arc<Self>,
        key: impl AsKey,
        look_again: impl FnOnce() -> Option<R>,
    ) -> Joined<T, R> {
        self.join_noted(key, |()| true, look_again, || ())
    }
}

/// Adds a flight to the shard of its hash.
fn insert<T, N>(shard: &mut Shard<T, N>, flight: Arc<Flight<T, N>>) {
    shard.insert_unique(flight.hash, flight, |flight| flight.hash);
}

impl<T, N> FlightGuard<T, N> {
    pub(super) fn key(&self) -> &Key {
        &self.flight.key
    }

    /// Returns the note of the state before the fetch.
    pub(super) fn note(&self) -> &N {
        &self.flight.note
    }

    /// Returns the span of the flight's fetch.
    pub(super) fn span(&self) -> &Span {
        &self.flight.span
    }

    /// Completes the flight and delivers `result` to its followers. If the flight is still open,
    /// calls `store` with the key and the note under the flight's lock (invariant F2).
    pub(super) fn complete(mut self, store: impl FnOnce(&Key, &N), result: &T)
    where
        T: Clone,
    {
        let has_followers = self.close(|flight, is_open| {
            #[cfg(feature = "planted-faults")]
            let is_open = is_open || self.flights.stores_closed;
            if is_open {
                store(&flight.key, &flight.note);
            } else {
                self.flights.discarded.fetch_add(1, Relaxed);
            }
        });
        preemption_point();
        if has_followers {
            self.flight.deliver(Some(result.clone()));
        }
        self.is_complete = true;
    }

    /// Calls `finish` under the flight's lock with whether the flight is open, and removes it after
    /// that: a reader that finds no flight finds the entry. Returns whether it has followers.
    fn close(&self, finish: impl FnOnce(&Flight<T, N>, bool)) -> bool {
        let flight = &self.flight;
        let mut shard = self.flights.shard(flight.hash);
        let open = shard.find_entry(flight.hash, |other| Arc::ptr_eq(other, flight)).ok();
        finish(flight, open.is_some());
        if let Some(open) = open {
            open.remove();
        }
        // Each follower has a handle. It got it under this lock, and no reader gets one any more.
        Arc::strong_count(flight) > 1
    }
}

#[cfg(feature = "planted-faults")]
impl<T> FlightGuard<T> {
    /// Opens the flight again.
    pub(super) fn reopen(&self) {
        insert(&mut self.flights.shard(self.flight.hash), Arc::clone(&self.flight));
    }
}

impl<T, N> Drop for FlightGuard<T, N> {
    fn drop(&mut self) {
        if !self.is_complete && self.close(|_, _| {}) {
            self.flight.deliver(None);
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    const KEY: &[u8] = b"key";

    fn lead(flights: &Arc<Flights<u32>>) -> FlightGuard<u32> {
        match flights.join(KEY, || None::<()>) {
            Joined::Leader(guard) => guard,
            _ => panic!("a flight is in progress"),
        }
    }

    fn follow(flights: &Arc<Flights<u32>>) -> FlightWaiter<u32> {
        match flights.join(KEY, || Some(())) {
            Joined::Follower(waiter) => waiter,
            _ => panic!("no flight to follow"),
        }
    }

    fn complete(guard: FlightGuard<u32>, value: u32) -> bool {
        let mut stored = false;
        guard.complete(|_, ()| stored = true, &value);
        stored
    }

    #[tokio::test]
    async fn followers_get_the_leaders_result() {
        let flights = Flights::new();
        let guard = lead(&flights);
        let followers = [follow(&flights), follow(&flights)];
        assert!(complete(guard, 7));
        for follower in followers {
            assert_eq!(follower.wait().await, Some(7));
        }
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn invalidated_flight_answers_without_storing() {
        let flights = Flights::new();
        let guard = lead(&flights);
        let follower = follow(&flights);
        flights.close(KEY, || ());
        let second = lead(&flights);
        assert!(!complete(guard, 1), "the first flight left before the invalidation");
        assert_eq!(follower.wait().await, Some(1));
        assert!(complete(second, 2), "the second one after it");
        assert_eq!(flights.discarded(), 1);
    }

    #[tokio::test]
    async fn flush_closes_every_flight() {
        let flights = Flights::new();
        let guard = lead(&flights);
        flights.close_all(|| ());
        assert!(!complete(guard, 1));
    }

    #[tokio::test]
    async fn cancelled_leader_frees_the_flight() {
        let flights = Flights::new();
        let guard = lead(&flights);
        let follower = follow(&flights);
        drop(guard);
        assert_eq!(follower.wait().await, None);
        assert!(complete(lead(&flights), 1));
    }

    #[tokio::test]
    async fn join_finds_a_result_stored_meanwhile() {
        let flights = Flights::<u32>::new();
        assert!(matches!(flights.join(KEY, || Some(9)), Joined::Found(9)));
        assert_eq!(flights.len(), 0);
    }
}
