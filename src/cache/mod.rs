//! The cache: what Redis answered, for as long as it may be given again.
//!
//! A read looks in the store; if nothing fresh is there it joins the flight for its key, and the flight's fetch
//! brings an entry that all its readers get and the store keeps. The cache knows nothing of Redis: it is handed
//! the fetch as a future, and told what changed and until when that is all. The rules that must not be broken are in
//! `flight` (every change of the store happens under the lock of the flights it concerns, closing before removing) and
//! in `lease` (who vouches for the store is asked before the store).

mod entry;
mod flight;
mod frequency_sketch;
mod lease;
mod lru;
mod read_buffer;
mod settings;
mod store;
mod sync;
mod thread_cache;
mod ttl;
mod types;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument as _;

pub use self::entry::{Entry, Freshness, Value};
use self::flight::{FlightGuard, FlightWaiter, Flights, Joined};
use self::lease::Lease;
pub use self::lease::{Coherence, Validity};
pub use self::settings::{CoherenceMode, Policy, Settings};
use self::store::Store;
use self::sync::{Mutex, Swapped, lock};
pub use self::ttl::NegativeTtl;
use self::ttl::{CurrentTtls, as_nanos};
use self::types::EvictionCounters;
pub use self::types::{
    Answer, Cancelled, EvictionCause, FetchError, Fetched, Outcome, ReadMode, Statistics,
};
use crate::key::Key;

/// The cache; `E` is what a fetch fails with. Cloning gives another handle to the same cache.
pub struct Cache<E>(Arc<Shared<E>>);

impl<E> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<E> {
    flights: Arc<Flights<FlightResult<E>>>,
    store: Swapped<Store>,
    ttls: CurrentTtls,
    lease: Lease,
    settings: Mutex<Settings>,
    /// Held by whoever goes through the whole store, so that they do so one after the other.
    whole_store: Mutex<()>,
    evictions: Arc<EvictionCounters>,
    background: Handle,
    created: Instant,
}

/// What a flight announces.
#[derive(Clone)]
enum FlightResult<E> {
    Answered(Arc<Entry>),
    ErrorReply(E),
    Failed(E),
}

impl<E: FetchError> FlightResult<E> {
    /// What became of a fetch of `key` that was `requested_at` for then, in nanoseconds on the cache's clock.
    async fn from_fetched(key: &Key, fetched: Fetched<E>, requested_at: u64) -> Option<Self> {
        Some(match fetched {
            Fetched::Value(bytes, expires_in) => {
                let is_large = bytes.len() > INLINE_DIGEST_MAX;
                let entry = Entry::new(key, Some(bytes), requested_at, expires_in);
                if is_large {
                    let digested = Arc::clone(&entry);
                    let digest = tokio::task::spawn_blocking(move || {
                        _ = digested.value().map(|value| *value.digest());
                    });
                    digest.await.ok()?;
                }
                Self::Answered(entry)
            }
            Fetched::Absent => Self::Answered(Entry::new(key, None, requested_at, None)),
            Fetched::ErrorReply(error) => Self::ErrorReply(error),
            Fetched::Failed(error) => Self::Failed(error),
        })
    }
}

/// The digest of a larger value takes so long that other readers would notice.
const INLINE_DIGEST_MAX: usize = 1 << 20;

impl<E: FetchError> Cache<E> {
    /// An empty cache, which has `background` do what takes its time.
    pub fn new(settings: Settings, background: Handle) -> Self {
        let evictions = Arc::new(EvictionCounters::default());
        let store = Store::new(settings.capacity, settings.policy, &evictions);
        Self(Arc::new(Shared {
            flights: Flights::new(),
            store: Swapped::new(store),
            ttls: CurrentTtls::new(settings.ttls()),
            lease: Lease::ttl_only(),
            settings: Mutex::new(settings),
            whole_store: Mutex::new(()),
            evictions,
            background,
            created: Instant::now(),
        }))
    }

    /// Looks in memory only: a fresh entry, or nothing.
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        self.0.lookup(key, now)
    }

    /// These keys are about to be looked for, one by one. Answers nothing, but has the processor fetch what it will need for them
    /// all at once, which takes as long as one.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.0.store.load().prefetch(keys);
    }

    /// A fresh entry from memory, or what the flight for `key` brings, which `fetch` starts if there is none. When the
    /// fetch failed, a stale entry stands in if the reader takes one.
    ///
    /// # Errors
    /// The error of the fetch, to all who waited for it; it is not cached.
    pub async fn get_or_fetch<F>(
        &self,
        key: &[u8],
        mode: ReadMode,
        fetch: impl FnOnce(Key) -> F,
    ) -> Result<Answer, (Outcome, E)>
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = &self.0;
        let arrived_at = Instant::now();
        // Looks in memory as well. Who may well find it there has [looked](Self::lookup) before, for less.
        let (mut requested_at, mut joined) = (arrived_at, shared.join(key, arrived_at));
        if let Joined::Follower(waiter) = joined {
            let answer = shared.await_flight(key, mode, waiter, Outcome::Coalesced).await;
            if !answer.as_ref().is_ok_and(|answer| shared.is_too_old_for(answer, arrived_at)) {
                return answer;
            }
            // Redis was asked before this reader came, and what it said is too old already. A flight that is joined
            // now was opened after he came.
            requested_at = Instant::now();
            joined = shared.join(key, requested_at);
        }
        match joined {
            Joined::Found(answer) => Ok(answer),
            Joined::Follower(waiter) => {
                shared.await_flight(key, mode, waiter, Outcome::Coalesced).await
            }
            Joined::Leader(guard, waiter) => {
                self.spawn_fetch(guard, requested_at, fetch);
                shared.await_flight(key, mode, waiter, Outcome::Miss).await
            }
        }
    }

    /// What `fetch` brings, past everything that is kept, and without keeping it.
    ///
    /// # Errors
    /// The error of the fetch.
    pub async fn bypass(
        &self,
        fetch: impl Future<Output = Fetched<E>>,
    ) -> Result<Answer, (Outcome, E)> {
        let requested_at = self.0.clock(Instant::now());
        // It is kept nowhere, so it needs no name.
        let nameless = Key::from(&[][..]);
        let result = FlightResult::from_fetched(&nameless, fetch.await, requested_at).await;
        let result = result.unwrap_or_else(|| FlightResult::Failed(E::from(Cancelled)));
        match result {
            FlightResult::Answered(entry) => Ok(self.0.answer_from(entry, Outcome::Bypass)),
            FlightResult::ErrorReply(error) | FlightResult::Failed(error) => {
                Err((Outcome::Bypass, error))
            }
        }
    }

    /// Runs the fetch of a flight to its end, whoever still waits for it: in a task of its own, so that a reader who goes away
    /// does not take it with him, on the thread that he is on, since the way to another one and back costs more than it.
    ///
    /// Redis is asked after `requested_at`.
    fn spawn_fetch<F>(
        &self,
        guard: FlightGuard<FlightResult<E>>,
        requested_at: Instant,
        fetch: impl FnOnce(Key) -> F,
    ) where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let requested_at = shared.clock(requested_at);
        let fetch = fetch(guard.key().clone()).instrument(guard.span().clone());
        // Not awaited in a block of its own, which would hold the fetch twice: before it begins and while it runs.
        tokio::spawn(fetch.then(move |fetched| async move {
            // Should making an entry fail, the ticket is dropped, which ends the flight.
            if let Some(result) =
                FlightResult::from_fetched(guard.key(), fetched, requested_at).await
            {
                shared.complete(guard, &result);
            }
        }));
    }

    /// Drops `key`: what is stored, and what is being fetched.
    pub fn invalidate(&self, key: &[u8]) {
        let shared = &self.0;
        if shared.flights.close(key, || shared.store.load().remove(key)) {
            shared.evictions.add(EvictionCause::Invalidated, 1);
        }
    }

    /// Drops the keys of which `matches` says so. Takes time in proportion to the number of entries.
    pub fn invalidate_where(&self, matches: impl Fn(&[u8]) -> bool) {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.flights.close_where(&matches);
        let snapshot = Arc::clone(&shared.store.load());
        for entry in snapshot.collect_where(|entry| matches(entry.key())) {
            self.invalidate(entry.key());
        }
    }

    /// Drops everything: what is stored, and what is being fetched.
    pub fn invalidate_all(&self) {
        let shared = &self.0;
        shared.record_flush(shared.flights.close_all(|| shared.replace_store()));
    }

    /// Begins anew, empty, with Redis telling of changes. Everything it told of writes acknowledged before `requested_at` has
    /// been heeded.
    pub fn start_tracking(&self, requested_at: Instant) {
        let shared = &self.0;
        let was_tracking = shared.lease.next_validity() == Validity::Tracked;
        shared.lease.expire_at(0);
        shared.record_flush(if was_tracking {
            // What is being fetched now was asked for after the loss of the last link, thus over the new one.
            shared.flights.hold_all(|| shared.replace_store())
        } else {
            shared.flights.close_all(|| shared.replace_store())
        });
        self.renew_lease(requested_at);
    }

    /// Everything Redis told of writes acknowledged before `requested_at` has been heeded.
    pub fn renew_lease(&self, requested_at: Instant) {
        let shared = &self.0;
        // Under the lock, lest a timeout be put in force that this proof knows nothing of.
        let settings = lock(&shared.settings);
        shared.lease.renew_until(shared.clock(requested_at + settings.coherence_timeout));
    }

    /// Changes are not told of any more: nothing is fresh, and nothing that is being fetched will be kept. What is stored
    /// is dropped, unless it may stand in until Redis answers again.
    pub fn suspend_tracking(&self) {
        let shared = &self.0;
        shared.lease.expire_at(shared.clock(Instant::now()));
        if shared.settings().stale_if_error.is_zero() {
            self.invalidate_all();
        } else {
            shared.flights.close_all(|| ());
        }
    }

    /// Lets the time to live alone decide. What was kept true by tracking until now is dropped.
    pub fn use_ttl_only(&self) {
        if self.0.lease.next_validity() == Validity::Tracked {
            self.invalidate_all();
            self.0.lease.set_ttl_only();
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.0.settings()
    }

    /// By what the answers are kept true now.
    pub fn coherence(&self) -> Coherence {
        self.0.lease.validity(self.0.clock(Instant::now())).into()
    }

    /// Whether time alone decides what may be given.
    pub fn is_ttl_only(&self) -> bool {
        self.0.lease.next_validity() == Validity::TtlOnly
    }

    /// Puts `settings` in force, for what is cached already too. Takes time in proportion to the number of
    /// entries when the capacity or the policy changes, so call it where blocking is allowed. Returns how many
    /// entries went because the cache became smaller.
    pub fn apply(&self, settings: &Settings) -> u64 {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.ttls.set(settings.ttls());
        shared.shorten_lease(settings.coherence_timeout);
        let before = shared.settings();
        if (before.capacity, before.policy) == (settings.capacity, settings.policy) {
            *lock(&shared.settings) = settings.clone();
            shared.remove_expired(Instant::now());
            return 0;
        }
        // So that what nobody may be given takes no room from anything.
        shared.remove_expired(Instant::now());
        let store = shared.flights.hold_all(|| {
            // With the store, so that a flush makes an empty one of the right size.
            *lock(&shared.settings) = settings.clone();
            let store = Arc::clone(&shared.store.load());
            store.set_limits(settings.capacity, settings.policy);
            store
        });
        let evicted = store.evict_surplus();
        shared.evictions.add(EvictionCause::Resized, evicted);
        evicted
    }

    /// Removes the entries whose time is over. Takes time in proportion to the number of entries.
    pub fn sweep(&self) {
        let _alone = lock(&self.0.whole_store);
        self.0.remove_expired(Instant::now());
    }

    /// What the cache holds now; exact once no read or reload is in progress.
    pub fn statistics(&self) -> Statistics {
        let shared = &self.0;
        let (entries, bytes) = shared.store.load().size();
        Statistics {
            entries,
            bytes,
            evictions: std::array::from_fn(|cause| shared.evictions.0[cause].load(Relaxed)),
            flights: shared.flights.len(),
            flights_discarded: shared.flights.discarded(),
            settings: shared.settings(),
            coherence: self.coherence(),
        }
    }
}

impl<E: FetchError> Shared<E> {
    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// Puts an empty store in the place of what there is. Called with all flights held.
    fn replace_store(&self) -> Arc<Store> {
        let settings = self.settings();
        self.store.swap(Arc::new(Store::new(settings.capacity, settings.policy, &self.evictions)))
    }

    fn record_flush(&self, old_store: Arc<Store>) {
        self.evictions.add(EvictionCause::Flushed, old_store.size().0);
        // Taking down a large store takes its time, which nobody should have to wait for.
        self.background.spawn_blocking(move || drop(old_store));
    }

    /// Puts another timeout in force, for the proof that there is too.
    fn shorten_lease(&self, timeout: Duration) {
        let mut settings = lock(&self.settings);
        settings.coherence_timeout = timeout;
        self.lease.shorten_to(self.clock(Instant::now() + timeout));
    }

    /// The time on the cache's clock: nanoseconds since it was made.
    fn clock(&self, now: Instant) -> u64 {
        as_nanos(now.saturating_duration_since(self.created))
    }

    fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let now = self.clock(now);
        let validity = self.lease.validity(now);
        let entry = self.store.load().get(key, now)?;
        let freshness = entry.freshness(now, self.ttls.get(), validity);
        if !matches!(freshness, Freshness::Fresh { .. }) {
            return None;
        }
        let outcome = if entry.value().is_some() { Outcome::Hit } else { Outcome::NegativeHit };
        Some(Answer::new(entry, outcome, freshness, now))
    }

    /// What an entry may be used for apart from whether Redis was heard of late.
    fn freshness_ignoring_lease(&self, entry: &Entry, now: u64) -> Freshness {
        entry.freshness(now, self.ttls.get(), self.lease.next_validity())
    }

    fn join(&self, key: &[u8], now: Instant) -> Joined<FlightResult<E>, Answer> {
        self.flights.join(key, || self.lookup(key, now))
    }

    /// What a flight brings, or what stands in for it.
    async fn await_flight(
        &self,
        key: &[u8],
        mode: ReadMode,
        waiter: FlightWaiter<FlightResult<E>>,
        outcome: Outcome,
    ) -> Result<Answer, (Outcome, E)> {
        let result =
            waiter.wait().await.unwrap_or_else(|| FlightResult::Failed(E::from(Cancelled)));
        match result {
            FlightResult::Answered(entry) => Ok(self.answer_from(entry, outcome)),
            FlightResult::ErrorReply(error) => Err((outcome, error)),
            FlightResult::Failed(error) if mode == ReadMode::NoCache => Err((outcome, error)),
            FlightResult::Failed(error) => {
                self.serve_stale(key, Instant::now()).ok_or((outcome, error))
            }
        }
    }

    fn answer_from(&self, entry: Arc<Entry>, outcome: Outcome) -> Answer {
        let now = self.clock(Instant::now());
        let freshness = self.freshness_ignoring_lease(&entry, now);
        Answer::new(entry, outcome, freshness, now)
    }

    /// Whether what a flight brought to a reader who `arrived_at` while it was under way is too old for him: its time is over,
    /// or Redis was asked longer before he came than it vouches for what is stored.
    fn is_too_old_for(&self, answer: &Answer, arrived_at: Instant) -> bool {
        let is_tracked = self.lease.next_validity() == Validity::Tracked;
        let long_before =
            || answer.entry.age(self.clock(arrived_at)) >= self.settings().coherence_timeout;
        let is_expired = !matches!(answer.freshness, Freshness::Fresh { .. });
        answer.outcome == Outcome::Coalesced && (is_expired || (is_tracked && long_before()))
    }

    /// What may be given when Redis cannot answer.
    fn serve_stale(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let now = self.clock(now);
        let validity = self.lease.validity(now);
        let entry = self.store.load().get(key, now)?;
        let freshness = entry.freshness(now, self.ttls.get(), validity);
        if freshness == Freshness::Expired {
            return None;
        }
        Some(Answer::new(entry, Outcome::Stale, freshness, now))
    }

    fn complete(&self, guard: FlightGuard<FlightResult<E>>, result: &FlightResult<E>) {
        guard.complete(|key| self.store_result(key, result), result.clone());
    }

    /// Makes the store say what Redis said. Called under the flight's lock.
    fn store_result(&self, key: &Key, result: &FlightResult<E>) {
        let now = self.clock(Instant::now());
        let store = self.store.load();
        match result {
            FlightResult::Failed(_) => {}
            FlightResult::Answered(entry)
                if self.freshness_ignoring_lease(entry, now) != Freshness::Expired =>
            {
                // Only what had ceased to be fresh is fetched again.
                self.evictions.add(EvictionCause::Expired, store.insert(Arc::clone(entry)).into());
            }
            FlightResult::Answered(_) | FlightResult::ErrorReply(_) => {
                if store.remove(key.as_bytes()) {
                    self.evictions.add(EvictionCause::Expired, 1);
                }
            }
        }
    }

    fn remove_expired(&self, now: Instant) {
        let snapshot = Arc::clone(&self.store.load());
        let (now, ttls, validity) = (self.clock(now), self.ttls.get(), self.lease.next_validity());
        for entry in snapshot
            .collect_where(|entry| entry.freshness(now, ttls, validity) == Freshness::Expired)
        {
            let removed = self.flights.hold(entry.key(), || {
                let store = self.store.load();
                store.contains_entry(&entry) && store.remove(entry.key())
            });
            self.evictions.add(EvictionCause::Expired, removed.into());
        }
    }
}

#[cfg(test)]
#[cfg(feature = "shuttle")]
#[path = "tests/model_check.rs"]
mod model_check;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
