//! The cache of replies from Redis, each served only while it is valid.
//!
//! A read looks in the store. If the store has no fresh entry, the read joins the flight for its
//! key. The fetch of the flight produces an entry; all waiting readers receive it and the store
//! keeps it. The cache does not know Redis: callers pass each fetch as a future, and report
//! invalidations and lease renewals.
//!
//! Two rules must not be broken:
//! - Every change of the store holds the lock of the affected flights, and closes before it removes
//!   (`flight`, invariant F2).
//! - A reader reads the lease before it looks in the store (`lease`, invariant C1).

mod block_size;
mod budget;
mod check;
mod entry;
mod flight;
mod in_flight;
mod key_group;
mod leader_fetch;
mod lease;
mod lru;
#[cfg(feature = "planted-faults")]
pub mod planted_faults;
#[cfg(feature = "planted-faults")]
mod planted_orders;
mod policy;
mod purge;
mod read_buffer;
mod recent;
mod refresh;
mod replies;
mod reply_reads;
mod rules;
mod settings;
mod store;
mod sync;
mod thread_cache;
mod ttl;
mod types;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use self::budget::Budget;
pub use self::check::{Guarantee, Life};
pub use self::entry::{Entry, Freshness, Value};
use self::flight::{FlightGuard, FlightWaiter, Flights, Joined};
pub use self::in_flight::FetchedBytes;
pub(crate) use self::in_flight::{Admission, COUNTED_MIN, InFlight, Reservation, Turn};
pub use self::key_group::KeyGroup;
use self::leader_fetch::LeaderFetch;
use self::lease::Lease;
pub use self::lease::{Coherence, Validity};
#[cfg(feature = "planted-faults")]
use self::planted_faults::Fault;
pub use self::purge::{EntryState, KeyState, Purge};
pub use self::recent::Invalidated;
use self::recent::RecentInvalidations;
pub use self::refresh::{Pace, Refresh, RefreshResult, Refreshes};
use self::replies::Replies;
pub use self::replies::{FetchedReply, Reply, ReplyProbe, ReplyResult, ReplyStore};
pub use self::reply_reads::{KeptReply, ReplyRead};
pub use self::rules::Rules;
use self::rules::{RuleSet, Terms};
pub use self::settings::{CoherenceMode, KeyPrefix, KeyRule, Policy, RuleMode, Settings};
pub use self::store::TOGETHER;
use self::store::{Reader, Removed, Store};
use self::sync::{Mutex, Swapped, lock};
pub use self::ttl::NegativeTtl;
use self::ttl::{CurrentTtls, Ttls};
use self::types::EvictionCounters;
pub use self::types::{
    Answer, CacheClock, Cancelled, EvictionCause, FetchError, Fetched, Hit, LookupTime, LookupUse,
    MemoryStatistics, Outcome, ReadMode, ReplyStatistics, RuleId, RuleOutcome, RuleRead,
    Statistics, WalkPosition,
};
use crate::key::{AsKey, Key};
use crate::telemetry::spans;

/// The cache; `E` is the error of a fetch. A clone is another handle to the same cache.
pub struct Cache<E>(Arc<Shared<E>>);

impl<E> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<E> {
    flights: Arc<Flights<FlightResult<E>>>,
    store: Swapped<Contents>,
    replies: Replies<E>,
    budget: Arc<Budget>,
    /// The rules in force and their names, shared by the caches of a cluster.
    rules: Arc<Rules>,
    ttls: CurrentTtls,
    lease: Lease,
    settings: Mutex<Settings>,
    /// Serializes operations on the whole store: sweeps, resizes and pattern invalidations.
    whole_store: Mutex<()>,
    evictions: Arc<EvictionCounters>,
    recent: RecentInvalidations,
    background: Handle,
    clock: CacheClock,
}

/// The store, and the rules that its entries obey. Together, so that a lookup loads both at once.
struct Contents {
    store: Arc<Store>,
    rules: Option<Arc<RuleSet>>,
}

impl Contents {
    /// Returns the answer of the entry for `key` if it is fresh at `now`. `terms` returns its TTLs
    /// and its rule. It is called with the entry at hand: during the search no register is free
    /// for them.
    #[expect(clippy::inline_always, reason = "otherwise a hit costs 30 instructions more")]
    #[inline(always)]
    fn answer(
        reader: &Reader<'_>,
        key: (&[u8], u64),
        now: u64,
        validity: Validity,
        terms: impl FnOnce() -> (Ttls, RuleId),
    ) -> Option<Answer> {
        let entry = reader.get(key, now)?;
        let (ttls, rule) = terms();
        let freshness = entry.freshness(now, ttls, validity);
        if !matches!(freshness, Freshness::Fresh { .. }) {
            return None;
        }
        let outcome = if entry.is_negative() { Outcome::NegativeHit } else { Outcome::Hit };
        Some(Answer::new(entry, outcome, freshness, rule, now))
    }
}

impl Deref for Contents {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// The result that a flight delivers to its readers.
#[derive(Clone)]
enum FlightResult<E> {
    Answered(Entry),
    ErrorReply(E),
    Failed(E),
}

impl<E: FetchError> FlightResult<E> {
    /// Converts the result of a fetch of `key`. `requested_at` is the time before the request was
    /// sent, in nanoseconds on the cache's clock.
    fn from_fetched(key: &Key, fetched: Fetched<E>, requested_at: u64) -> Self {
        match fetched {
            Fetched::Value(bytes, expires_in) => {
                Self::Answered(Entry::fetched(key, bytes, requested_at, expires_in))
            }
            Fetched::Absent => Self::Answered(Entry::new(key, None, requested_at, None)),
            Fetched::ErrorReply(error) => Self::ErrorReply(error),
            Fetched::Failed(error) => Self::Failed(error),
        }
    }

    /// Starts a task that computes the digest of a large value. `None`: there is none.
    fn digest_apart(&self) -> Option<JoinHandle<()>> {
        let is_large = |value: &Value<'_>| value.bytes.len() > INLINE_DIGEST_MAX;
        let Self::Answered(entry) = self else { return None };
        if !entry.value().as_ref().is_some_and(is_large) {
            return None;
        }
        let entry = entry.clone();
        Some(tokio::task::spawn_blocking(move || {
            _ = entry.value().map(|value| *value.digest());
        }))
    }
}

/// The part of the bound on memory that the order of a store may take.
const FIXED_PART: usize = 4;

/// The largest value, in bytes, to digest on the worker. A larger digest would delay other readers
/// noticeably.
const INLINE_DIGEST_MAX: usize = 1 << 20;

impl<E: FetchError> Cache<E> {
    /// Creates an empty cache with its own store of replies. Slow work, such as dropping a large
    /// store, runs on `background`.
    pub fn new(settings: Settings, background: Handle) -> Self {
        let replies = ReplyStore::new(&settings);
        Self::with_reply_store(settings, background, replies)
    }

    /// Creates an empty cache that shares `replies` with other caches.
    pub fn with_reply_store(
        settings: Settings,
        background: Handle,
        replies: Arc<ReplyStore>,
    ) -> Self {
        let evictions = Arc::new(EvictionCounters::default());
        let budget = Arc::clone(replies.budget());
        let rules = Arc::clone(replies.rules());
        let clock = replies.clock();
        let store = Store::new(settings.capacity, settings.policy, &budget, &evictions);
        let contents = Contents { store, rules: rules.current() };
        Self(Arc::new(Shared {
            flights: Flights::new(),
            store: Swapped::new(Arc::new(contents)),
            replies: Replies::new(replies),
            budget,
            rules,
            ttls: CurrentTtls::new(settings.ttls()),
            lease: Lease::ttl_only(),
            settings: Mutex::new(settings),
            whole_store: Mutex::new(()),
            evictions,
            recent: RecentInvalidations::new(),
            background,
            clock,
        }))
    }

    /// Returns the fresh entry for `key` from memory, or `None`. Never fetches.
    #[inline]
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        self.lookup_for(key, self.0.clock.time(now), LookupUse::Serve)
    }

    /// Returns the clock of the cache.
    pub fn clock(&self) -> CacheClock {
        self.0.clock
    }

    /// Returns the fresh entry for `key` that a lookup for this purpose finds. Never fetches.
    pub fn lookup_for(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer> {
        self.0.lookup(key, now.0, purpose)
    }

    /// Looks up these keys as [`lookup_for`](Self::lookup_for) does, in their order, until `each`
    /// returns false. Their memory is fetched together ([`TOGETHER`]).
    #[inline]
    pub fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: LookupTime,
        each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    ) {
        self.0.lookup_each(keys, now.0, each);
    }

    /// Returns the rules in force.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.0.rules
    }

    /// Prefetches the memory of these keys, so that the following lookups overlap their cache
    /// misses. All of them together take as long as one. Returns nothing and changes nothing
    /// (invariant S4).
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.0.store.load().prefetch(keys);
    }

    /// Returns a fresh entry from memory, or the result of the flight for `key`. Starts that flight
    /// with `fetch` if none is in progress. If the fetch failed, [`ReadMode::Default`] also accepts
    /// a stale entry. The reader arrived at `arrived_at`; `fetch` gets a time before its request.
    ///
    /// # Errors
    /// The outcome of the read and the error of the fetch, for every reader that waited. A fetch
    /// that ended without a result counts as [`Cancelled`]. Errors are not cached.
    pub async fn get_or_fetch<F>(
        &self,
        key: impl AsKey,
        mode: ReadMode,
        arrived_at: Instant,
        fetch: impl FnOnce(Key, Instant) -> F,
    ) -> Result<Answer, (Outcome, E)>
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = &self.0;
        if shared.terms_of(key.as_ref()).mode == RuleMode::Off {
            // Boxed. Otherwise every read would be moved and stored with room for this fetch.
            let fetch = fetch(key.into(), arrived_at).instrument(spans::fetch_span());
            return self.bypass(Box::pin(fetch)).await;
        }
        // `join` looks in memory again. A caller that expects a hit calls `lookup` first, which is
        // cheaper.
        let (mut requested_at, mut joined) = (arrived_at, shared.join(key, arrived_at));
        if let Joined::Follower(waiter) = joined {
            let answer = shared.await_flight(key.as_ref(), mode, waiter).await;
            if !answer.as_ref().is_ok_and(|answer| shared.is_too_old_for(answer, arrived_at)) {
                return answer;
            }
            // The request to Redis predates this reader, and its reply is already too old. Any
            // flight that is joined now opened after the reader arrived.
            requested_at = Instant::now();
            joined = shared.join(key, requested_at);
        }
        match joined {
            Joined::Found(answer) => Ok(answer),
            Joined::Follower(waiter) => shared.await_flight(key.as_ref(), mode, waiter).await,
            Joined::Leader(guard) => {
                let result = self.lead(guard, requested_at, fetch).await;
                shared.answer_with(key.as_ref(), mode, result, Outcome::Miss)
            }
        }
    }

    /// Fetches a key that is to be kept hot, as a miss does: readers join the flight, and only what
    /// is fresh is stored. Fetches nothing if that is not needed any more.
    pub async fn refresh<F>(
        &self,
        key: &[u8],
        fetch: impl FnOnce(Key, Instant) -> F,
    ) -> RefreshResult
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = &self.0;
        if !shared.terms_of(key).refreshes {
            return RefreshResult::Unneeded;
        }
        let now = Instant::now();
        let look_again = || shared.is_refreshed(key, now).then_some(());
        let Joined::Leader(guard) = shared.flights.join(key, look_again) else {
            return RefreshResult::Unneeded;
        };
        match self.lead(guard, now, fetch).await {
            Some((FlightResult::Answered(_), _)) if shared.is_refreshed(key, Instant::now()) => {
                RefreshResult::Stored
            }
            Some((FlightResult::Answered(_), _)) => RefreshResult::Discarded,
            _ => RefreshResult::Failed,
        }
    }

    /// Returns the refreshes of all caches that share the store of replies.
    pub fn refreshes(&self) -> &Arc<Refreshes> {
        self.0.refreshes()
    }

    /// Returns the result of `fetch` without reading the cache or storing anything.
    ///
    /// # Errors
    /// [`Outcome::Bypass`] and the error of the fetch.
    pub async fn bypass(
        &self,
        fetch: impl Future<Output = Fetched<E>>,
    ) -> Result<Answer, (Outcome, E)> {
        let requested_at = self.0.clock(Instant::now());
        // The entry is never stored, so it needs no key.
        let nameless = Key::from(&[][..]);
        let result = FlightResult::from_fetched(&nameless, fetch.await, requested_at);
        if let Some(digest) = result.digest_apart()
            && digest.await.is_err()
        {
            return Err((Outcome::Bypass, E::from(Cancelled)));
        }
        match result {
            FlightResult::Answered(entry) => {
                let now = self.0.clock(Instant::now());
                Ok(self.0.answer_from(entry, Outcome::Bypass, self.0.terms_of(&[]), now))
            }
            FlightResult::ErrorReply(error) | FlightResult::Failed(error) => {
                Err((Outcome::Bypass, error))
            }
        }
    }

    /// Returns the fetch of a flight, which completes the flight and stores the result. Its output
    /// is the result and the time of its completion, or `None` if no result could be created.
    /// Dropping it does not cancel it.
    ///
    /// `requested_at` is a time before the request is sent (invariant E1).
    fn lead<F>(
        &self,
        guard: FlightGuard<FlightResult<E>>,
        requested_at: Instant,
        fetch: impl FnOnce(Key, Instant) -> F,
    ) -> impl Future<Output = Option<(FlightResult<E>, u64)>>
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        #[cfg(feature = "planted-faults")]
        if planted_faults::is_planted(Fault::LateFlight) {
            self.delay_flight(&guard);
        }
        let shared = Arc::clone(&self.0);
        let (key, span) = (guard.key().clone(), guard.span().clone());
        let begun_at = shared.clock(requested_at);
        let complete = move |fetched| async move {
            let result = FlightResult::from_fetched(guard.key(), fetched, begun_at);
            if let Some(digest) = result.digest_apart() {
                // If the task was cancelled, the guard is dropped, which ends the flight.
                digest.await.ok()?;
            }
            #[cfg(feature = "planted-faults")]
            if planted_faults::is_planted(Fault::LateFlight) {
                guard.reopen();
            }
            let now = shared.clock(Instant::now());
            shared.complete(guard, &result, now);
            Some((result, now))
        };
        // A combinator, because an `async` block that awaits the fetch would hold it twice: before
        // its start and while it runs.
        LeaderFetch::new(|| fetch(key, requested_at).instrument(span).then(complete))
    }

    /// Returns some stored entries from `position` on, at most `max` of them, and moves the
    /// position behind them. Returns `None` at the end, and moves the position to the start.
    ///
    /// An entry that is stored from the start to the end is returned once. Records no read.
    pub fn walk(&self, position: &mut WalkPosition, max: usize) -> Option<Vec<Entry>> {
        self.0.store.load().walk(&mut position.0, max)
    }

    /// Drops the stored entry for `key` and discards the result of its fetch in progress
    /// (invariant F2).
    pub fn invalidate(&self, key: &[u8]) {
        self.drop_key(key, Invalidated::Key);
    }

    /// Drops `key` for this cause. Returns whether it was stored.
    fn drop_key(&self, key: &[u8], cause: Invalidated) -> bool {
        let shared = &self.0;
        shared.replies.key_changed(key);
        #[cfg(feature = "planted-faults")]
        if planted_faults::is_planted(Fault::RemoveBeforeClose) {
            self.remove_before_close(key);
            return true;
        }
        let removed = shared.flights.close(key, || shared.store.load().take(key));
        if removed.is_some() {
            shared.evictions.add(cause.eviction(), 1);
        }
        shared.recent.add(key, cause, shared.clock.elapsed());
        if cause == Invalidated::Key && removed == Some(Removed { was_hot: true }) {
            shared.request_refresh(key);
        }
        removed.is_some()
    }

    /// Drops every key for which `matches` returns true, stored or being fetched. Takes time in
    /// proportion to the number of entries.
    pub fn invalidate_where(&self, matches: impl Fn(&[u8]) -> bool) {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        // A reply does not tell its keys.
        shared.end_replies();
        shared.flights.close_where(&matches);
        let snapshot = Arc::clone(&shared.store.load());
        for entry in snapshot.collect_where(|entry| matches(entry.key())) {
            self.invalidate(entry.key());
        }
    }

    /// Drops all stored entries and discards the results of all fetches in progress.
    pub fn invalidate_all(&self) {
        let shared = &self.0;
        shared.record_flush(shared.flights.close_all(|| shared.replace_store()));
    }

    /// Starts a lease with an empty store, once Redis has confirmed tracking. The caller has
    /// applied every invalidation of writes that Redis acknowledged before `requested_at`.
    ///
    /// Clears the store before the lease starts (invariant C1). Otherwise the new lease would cover
    /// old entries.
    pub fn start_tracking(&self, requested_at: Instant) {
        let shared = &self.0;
        #[cfg(feature = "planted-faults")]
        if planted_faults::is_planted(Fault::LeaseBeforeFlush) {
            return self.lease_before_flush(requested_at);
        }
        let was_tracking = shared.lease.next_validity() == Validity::Tracked;
        shared.lease.expire_at(0);
        shared.record_flush(if was_tracking {
            // Fetches in progress were sent after the previous connection was lost, so they use the
            // new one.
            shared.flights.hold_all(|| shared.replace_store())
        } else {
            shared.flights.close_all(|| shared.replace_store())
        });
        self.renew_lease(requested_at);
    }

    /// Renews the lease until `requested_at` plus `coherence_timeout`. The caller has applied every
    /// invalidation of writes that Redis acknowledged before `requested_at`.
    pub fn renew_lease(&self, requested_at: Instant) {
        let shared = &self.0;
        // Under the lock. Otherwise a reload could shorten the timeout without shortening this
        // renewal.
        let settings = lock(&shared.settings);
        shared.lease.renew_until(shared.clock(requested_at + settings.coherence_timeout));
    }

    /// Ends the lease because invalidations no longer arrive. No entry is fresh, and no fetch in
    /// progress will be stored. Drops all entries, unless `stale_if_error` allows them to be served
    /// as stale.
    pub fn suspend_tracking(&self) {
        let shared = &self.0;
        shared.lease.expire_at(shared.clock(Instant::now()));
        let store = shared.store.load();
        let longest = store.rules.as_ref().map_or_else(
            || shared.ttls.get().stale_if_error,
            |rules| rules.longest_stale_if_error(),
        );
        drop(store);
        if longest == 0 {
            self.invalidate_all();
        } else {
            shared.end_replies();
            shared.flights.close_all(|| ());
        }
    }

    /// Switches to TTL mode: from now on only the time to live decides about freshness. Drops the
    /// entries that tracking covered until now.
    pub fn use_ttl_only(&self) {
        if self.0.lease.next_validity() == Validity::Tracked {
            self.invalidate_all();
            self.0.lease.set_ttl_only();
        }
    }

    /// Whether room for values in flight is short, as [`ReplyStore::is_room_short`] says.
    pub fn is_room_short(&self) -> bool {
        self.0.replies.store.is_room_short()
    }

    /// Returns the bound on values in flight.
    pub(crate) fn in_flight(&self) -> &Arc<InFlight> {
        self.0.budget.in_flight()
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> Settings {
        self.0.settings()
    }

    /// Returns the mechanism that bounds staleness at this moment.
    pub fn coherence(&self) -> Coherence {
        self.0.lease.validity(self.0.clock(Instant::now())).into()
    }

    /// Whether only the time to live decides about freshness.
    pub fn is_ttl_only(&self) -> bool {
        self.0.lease.next_validity() == Validity::TtlOnly
    }

    /// Applies `settings`, also to entries that are already cached. Returns the number of entries
    /// evicted because the capacity shrank.
    ///
    /// Takes time in proportion to the number of entries if the capacity or the policy changes.
    /// Call it only on a thread that may block.
    pub fn apply(&self, settings: &Settings) -> u64 {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.ttls.set(settings.ttls());
        shared.replies.store.apply(settings);
        shared.apply_rules();
        shared.shorten_lease(settings.coherence_timeout);
        let limits =
            |settings: &Settings| (settings.capacity, settings.policy, settings.max_memory);
        if limits(&shared.settings()) == limits(settings) {
            *lock(&shared.settings) = settings.clone();
            shared.remove_expired(Instant::now());
            return shared.store.load().evict_excess();
        }
        // Otherwise expired entries would take room from usable ones.
        shared.remove_expired(Instant::now());
        let store = shared.flights.hold_all(|| {
            // Together with the store. Otherwise a concurrent flush could create a store with the
            // previous limits.
            *lock(&shared.settings) = settings.clone();
            let store = Arc::clone(&shared.store.load().store);
            store.set_limits(settings.capacity, settings.policy);
            store
        });
        let evicted = store.evict_surplus();
        shared.evictions.add(EvictionCause::Resized, evicted);
        evicted + shared.evict_excess(&store)
    }

    /// Removes all expired entries. Takes time in proportion to the number of entries.
    pub fn sweep(&self) {
        let _alone = lock(&self.0.whole_store);
        self.0.remove_expired(Instant::now());
    }

    /// Returns the current contents and counters. The figures are exact while no read or reload is
    /// in progress.
    pub fn statistics(&self) -> Statistics {
        let shared = &self.0;
        let (entries, bytes) = shared.store.load().size();
        Statistics {
            entries,
            bytes,
            memory: shared.replies.store.memory(),
            evictions: shared.evictions.get(),
            flights: shared.flights.len(),
            flights_discarded: shared.flights.discarded(),
            replies: shared.replies.statistics(),
            settings: shared.settings(),
            coherence: self.coherence(),
            refreshes: shared.refreshes().counts(),
            rule_names: shared.rules.names(),
        }
    }
}

impl<E: FetchError> Shared<E> {
    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// Replaces the store with an empty one and returns the previous one. The caller holds all
    /// flight locks.
    fn replace_store(&self) -> Arc<Store> {
        self.end_replies();
        let settings = self.settings();
        self.new_store(&settings)
    }

    fn new_store(&self, settings: &Settings) -> Arc<Store> {
        let (capacity, policy) = (settings.capacity, settings.policy);
        let store = Store::new(capacity, policy, &self.budget, &self.evictions);
        self.swap_contents(store)
    }

    /// Puts `store` and the rules in force in place. Returns the previous store. The caller holds
    /// all flight locks, otherwise a concurrent call could restore a store that was dropped.
    fn swap_contents(&self, store: Arc<Store>) -> Arc<Store> {
        let contents = Contents { store, rules: self.rules.current() };
        Arc::clone(&self.store.swap(Arc::new(contents)).store)
    }

    /// Applies rules that have changed. A fetch that completes afterwards is stored by them.
    fn apply_rules(&self) {
        if self.store.load().rules != self.rules.current() {
            self.flights.hold_all(|| {
                let store = Arc::clone(&self.store.load().store);
                self.swap_contents(store)
            });
        }
    }

    /// Evicts entries until everything that is kept is within a bound on memory that was reduced.
    /// Returns the number of evicted entries.
    ///
    /// The order of the store never shrinks. If it alone takes much of the memory, the store is
    /// dropped.
    fn evict_excess(&self, store: &Store) -> u64 {
        let evicted = store.evict_excess();
        if evicted > 0 {
            store.shrink_tables();
        }
        if store.fixed_memory() <= self.budget.max() / FIXED_PART {
            return evicted;
        }
        let dropped = self.flights.hold_all(|| self.new_store(&self.settings()));
        let entries = dropped.size().0;
        self.evictions.add(EvictionCause::Resized, entries);
        self.background.spawn_blocking(move || drop(dropped));
        evicted + entries
    }

    /// Ends all replies, and frees them in the background.
    fn end_replies(&self) {
        let ended = self.replies.begin_generation();
        let store = Arc::clone(&self.replies.store);
        // The model checker needs the same steps in each execution, and a thread of its own would
        // remove the replies at any of them.
        if cfg!(not(feature = "shuttle")) && !store.is_empty() {
            self.background.spawn_blocking(move || store.remove_generation(ended));
        }
    }

    fn record_flush(&self, old_store: Arc<Store>) {
        self.count_dropped(old_store, EvictionCause::Flushed);
    }

    /// Counts the entries of a store that was replaced. Returns their number.
    fn count_dropped(&self, old_store: Arc<Store>, cause: EvictionCause) -> u64 {
        let entries = old_store.size().0;
        // Otherwise the first connection would count as an invalidation.
        if entries > 0 {
            self.recent.add_all(self.clock.elapsed());
        }
        self.evictions.add(cause, entries);
        // Dropping a large store takes long, so no reader and no worker waits for it.
        self.background.spawn_blocking(move || drop(old_store));
        entries
    }

    /// Applies a new coherence timeout, also to the current lease.
    fn shorten_lease(&self, timeout: Duration) {
        let mut settings = lock(&self.settings);
        settings.coherence_timeout = timeout;
        self.lease.shorten_to(self.clock(Instant::now() + timeout));
    }

    /// Converts `now` to the cache's clock, in nanoseconds.
    #[inline]
    fn clock(&self, now: Instant) -> u64 {
        self.clock.time(now).0
    }

    #[inline]
    fn lookup(&self, key: &[u8], now: u64, purpose: LookupUse) -> Option<Answer> {
        let validity = self.lease.validity(now);
        let contents = self.store.load();
        let (reader, key) = (contents.reader(), (key, contents.hash_of(key)));
        self.lookup_in(&contents, &reader, key, now, validity, purpose)
    }

    /// Looks up these keys until `each` returns false. Lease and store are read once for all of
    /// them, in the order of invariant C1.
    fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: u64,
        mut each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    ) {
        let validity = self.lease.validity(now);
        let contents = self.store.load();
        let reader = contents.reader();
        for keys in keys.chunks(TOGETHER) {
            for (key, hash) in keys.iter().zip(contents.prefetch(keys)) {
                let purpose = LookupUse::Serve;
                let answer =
                    self.lookup_in(&contents, &reader, (key, hash), now, validity, purpose);
                if !each(key, answer.map(Hit::from)) {
                    return;
                }
            }
        }
    }

    #[expect(clippy::inline_always, reason = "most callers need only a part of the answer")]
    #[inline(always)]
    fn lookup_in(
        &self,
        contents: &Contents,
        reader: &Reader<'_>,
        key: (&[u8], u64),
        now: u64,
        validity: Validity,
        purpose: LookupUse,
    ) -> Option<Answer> {
        let Some(rules) = &contents.rules else {
            return Contents::answer(reader, key, now, validity, || {
                (self.ttls.get(), RuleId::NONE)
            });
        };
        let terms = rules.find(key.0);
        if terms.is_plain {
            return Contents::answer(reader, key, now, validity, || (terms.ttls, terms.id));
        }
        if terms.allows(purpose) {
            self.answer_by_rule(reader, key, now, validity, terms)
        } else {
            None
        }
    }

    /// Answers a read of a key with a rule that is not plain, and counts it if the key may be kept
    /// hot. Apart, so that other reads have no part of it.
    #[inline(never)]
    fn answer_by_rule(
        &self,
        reader: &Reader<'_>,
        key: (&[u8], u64),
        now: u64,
        validity: Validity,
        terms: &Terms,
    ) -> Option<Answer> {
        let answer = Contents::answer(reader, key, now, validity, || (terms.ttls, terms.id))?;
        if terms.refreshes {
            answer.entry.count_read();
            if answer.entry.is_due(now, terms.ttls, validity) && answer.entry.request_refresh() {
                self.request_refresh(key.0);
            }
        }
        Some(answer)
    }

    /// Requests a fetch of a hot key, if its rule still asks for that.
    fn request_refresh(&self, key: &[u8]) {
        if self.terms_of(key).refreshes {
            self.refreshes().request(key);
        }
    }

    fn refreshes(&self) -> &Arc<Refreshes> {
        self.replies.store.refreshes()
    }

    /// Whether a refresh of `key` would gain nothing: a fresh entry is stored and is not due.
    fn is_refreshed(&self, key: &[u8], now: Instant) -> bool {
        let now = self.clock(now);
        // Invariant C1: the lease first.
        let validity = self.lease.validity(now);
        let contents = self.store.load();
        let ttls = self.terms(&contents, key).ttls;
        contents.peek(key).is_some_and(|entry| {
            matches!(entry.freshness(now, ttls, validity), Freshness::Fresh { .. })
                && !entry.is_due(now, ttls, validity)
        })
    }

    /// Returns the terms of `key` by the rules beside the store.
    #[inline]
    fn terms(&self, contents: &Contents, key: &[u8]) -> Terms {
        match &contents.rules {
            None => Terms::without_rule(self.ttls.get()),
            Some(rules) => *rules.find(key),
        }
    }

    /// Returns the terms of `key`.
    #[inline]
    fn terms_of(&self, key: &[u8]) -> Terms {
        if self.rules.are_any() {
            self.terms(&self.store.load(), key)
        } else {
            Terms::without_rule(self.ttls.get())
        }
    }

    /// Returns the freshness of `entry` at `now` as if the lease were valid.
    fn freshness_ignoring_lease(&self, entry: &Entry, now: u64, terms: Terms) -> Freshness {
        entry.freshness(now, terms.ttls, self.lease.next_validity())
    }

    fn join(&self, key: impl AsKey, now: Instant) -> Joined<FlightResult<E>, Answer> {
        self.flights.join(key, || self.lookup(key.as_ref(), self.clock(now), LookupUse::Serve))
    }

    /// Waits for another reader's flight, and answers with its result.
    async fn await_flight(
        &self,
        key: &[u8],
        mode: ReadMode,
        waiter: FlightWaiter<FlightResult<E>>,
    ) -> Result<Answer, (Outcome, E)> {
        let result = waiter.wait().await.map(|result| (result, self.clock(Instant::now())));
        self.answer_with(key, mode, result, Outcome::Coalesced)
    }

    /// Answers a read with the result of its flight, at this time on the cache's clock. After a
    /// failed fetch the answer is a stale entry, if `mode` allows one. A result of `None` counts as
    /// [`Cancelled`].
    fn answer_with(
        &self,
        key: &[u8],
        mode: ReadMode,
        result: Option<(FlightResult<E>, u64)>,
        outcome: Outcome,
    ) -> Result<Answer, (Outcome, E)> {
        let error = match result {
            Some((FlightResult::Answered(entry), now)) => {
                return Ok(self.answer_from(entry, outcome, self.terms_of(key), now));
            }
            Some((FlightResult::ErrorReply(error), _)) => return Err((outcome, error)),
            Some((FlightResult::Failed(error), _)) => error,
            None => E::from(Cancelled),
        };
        let stale = match mode {
            ReadMode::Default => self.serve_stale(key, Instant::now()),
            ReadMode::NoCache => None,
        };
        stale.ok_or((outcome, error))
    }

    fn answer_from(&self, entry: Entry, outcome: Outcome, terms: Terms, now: u64) -> Answer {
        let freshness = self.freshness_ignoring_lease(&entry, now, terms);
        Answer::new(entry, outcome, freshness, terms.id, now)
    }

    /// Whether the result of a flight is too old for a reader that joined it at `arrived_at`. The
    /// result is too old if it has expired. In tracking mode it is also too old if its request
    /// precedes the reader by `coherence_timeout` or more.
    fn is_too_old_for(&self, answer: &Answer, arrived_at: Instant) -> bool {
        let is_tracked = self.lease.next_validity() == Validity::Tracked;
        let long_before =
            || answer.entry.age(self.clock(arrived_at)) >= self.settings().coherence_timeout;
        let is_expired = !matches!(answer.freshness, Freshness::Fresh { .. });
        answer.outcome == Outcome::Coalesced && (is_expired || (is_tracked && long_before()))
    }

    /// Returns the entry to serve while Redis is unavailable, if one is stored and not expired.
    fn serve_stale(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let now = self.clock(now);
        let validity = self.lease.validity(now);
        let contents = self.store.load();
        let terms = self.terms(&contents, key);
        if !terms.allows(LookupUse::Serve) {
            return None;
        }
        let entry = contents.get(key, now)?;
        let freshness = entry.freshness(now, terms.ttls, validity);
        if freshness == Freshness::Expired {
            return None;
        }
        Some(Answer::new(entry, Outcome::Stale, freshness, terms.id, now))
    }

    fn complete(&self, guard: FlightGuard<FlightResult<E>>, result: &FlightResult<E>, now: u64) {
        guard.complete(|key, ()| self.store_result(key, result, now), result);
    }

    /// Updates the store with the result of a fetch that ended at `now`. The caller holds the
    /// flight's lock (invariant F2).
    fn store_result(&self, key: &Key, result: &FlightResult<E>, now: u64) {
        let validity = self.lease.next_validity();
        let store = self.store.load();
        match result {
            FlightResult::Failed(_) => {}
            FlightResult::Answered(entry)
                if self.is_kept(&store, entry, now, validity)
                    && self.budget.admits(entry.footprint()) =>
            {
                let is_replacement = store.insert(entry.clone());
                // A replaced entry counts as expired, because only entries that are no longer fresh
                // are fetched again, but for the mode `observe`.
                let is_observed = self.terms(&store, entry.key()).mode == RuleMode::Observe;
                self.evictions.add(EvictionCause::Expired, (is_replacement && !is_observed).into());
            }
            FlightResult::Answered(_) | FlightResult::ErrorReply(_) => {
                if store.remove(key.as_bytes()) {
                    self.evictions.add(EvictionCause::Expired, 1);
                }
            }
        }
    }

    /// Whether an entry may be kept at `now`: its terms allow its size, and it has not expired.
    /// Runs under the lock of a table, so the lease is not asked here.
    fn is_kept(&self, contents: &Contents, entry: &Entry, now: u64, validity: Validity) -> bool {
        let terms = self.terms(contents, entry.key());
        entry.value().map_or(0, |value| value.bytes.len()) <= terms.max_value
            && entry.freshness(now, terms.ttls, validity) != Freshness::Expired
    }

    fn remove_expired(&self, now: Instant) {
        let snapshot = Arc::clone(&self.store.load());
        let (now, validity) = (self.clock(now), self.lease.next_validity());
        let is_removable = |entry: &Entry| !self.is_kept(&snapshot, entry, now, validity);
        for entry in snapshot.collect_where(is_removable) {
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
#[cfg(feature = "shuttle")]
#[path = "tests/orders.rs"]
mod orders;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
