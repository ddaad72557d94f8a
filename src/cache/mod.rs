//! The cache: what Redis answered, for as long as it may be given again.
//!
//! A read looks in the store; if nothing fresh is there it joins the flight for its key, and the flight's fetch
//! brings an entry that all its readers get and the store keeps. The cache knows nothing of Redis: it is handed
//! the fetch as a future, and told what changed and until when that is all. The rules that must not be broken are in
//! `flight` (every change of the store happens under the lock of the flights it concerns, closing before removing) and
//! in `coherence` (who vouches for the store is asked before the store).

mod coherence;
mod entry;
mod flight;
mod frequency;
mod front;
mod lifetimes;
mod order;
mod reads;
mod settings;
mod store;
mod sync;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument as _;

use self::coherence::Proof;
pub use self::coherence::{Coherence, Voucher};
pub use self::entry::{Entry, Freshness, Value};
use self::flight::{Arrival, Flights, Joined, Ticket};
pub use self::lifetimes::AbsentTtl;
use self::lifetimes::{InForce, nanoseconds};
pub use self::settings::{CoherenceMode, Policy, Settings};
use self::store::Store;
use self::sync::{Mutex, MutexGuard, Swapped};
use crate::key::Key;

/// What a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// What is fresh, or if Redis cannot answer, what may stand in.
    Usual,
    /// What is no older than the question; nothing else will do.
    Current,
}

/// How a read was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// From memory.
    Hit,
    /// By a fetch of its own.
    Miss,
    /// By a fetch that another read had begun.
    Coalesced,
    /// From memory, past its TTL, because Redis could not answer.
    Stale,
    /// From memory: the key is known not to exist.
    Absent,
    /// Past the cache.
    Bypass,
}

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 6] =
        [Self::Hit, Self::Miss, Self::Coalesced, Self::Stale, Self::Absent, Self::Bypass];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Stale => "stale",
            Self::Absent => "absent",
            Self::Bypass => "bypass",
        }
    }

    /// Whether the answer came from memory.
    pub fn from_memory(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::Absent)
    }
}

/// Why an entry left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// To make room for another.
    Capacity,
    /// Its time was over.
    Expired,
    /// Redis said that the key changed.
    Invalidated,
    /// Everything was dropped.
    Flushed,
    /// The capacity was made smaller.
    Resized,
}

impl Cause {
    /// Every cause there is.
    pub const ALL: [Self; 5] =
        [Self::Capacity, Self::Expired, Self::Invalidated, Self::Flushed, Self::Resized];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::Flushed => "flushed",
            Self::Resized => "resized",
        }
    }
}

/// How many entries left the store, by cause.
#[derive(Debug, Default)]
struct Evictions([AtomicU64; Cause::ALL.len()]);

impl Evictions {
    fn count(&self, cause: Cause, entries: u64) {
        self.0[cause as usize].fetch_add(entries, Relaxed);
    }
}

/// What the cache holds and what became of what it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Entries now.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Entries that left, by cause, in the order of [`Cause::ALL`].
    pub evictions: [u64; Cause::ALL.len()],
    /// Fetches in progress.
    pub flights: usize,
    /// Fetched and answered, but not stored, because the key changed meanwhile.
    pub flights_discarded: u64,
    /// The settings in force.
    pub settings: Settings,
    /// By what the answers are kept true now.
    pub coherence: Coherence,
}

/// What a fetch brought.
#[derive(Debug, Clone)]
pub enum Fetched<E> {
    /// The value, and how long Redis lets it live (`None`: for good).
    Value(Bytes, Option<Duration>),
    /// There is no such key.
    Absent,
    /// Redis answered, and not with a value: what is stored for the key, if anything, is no longer true.
    Refused(E),
    /// Redis did not answer: what is stored may stand in.
    Failed(E),
}

/// The fetch of a flight ended without bringing anything, as when the daemon is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was given up")]
pub struct Vanished;

/// What a reader gets.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What Redis said.
    pub entry: Arc<Entry>,
    /// How it was come by.
    pub outcome: Outcome,
    /// What the entry may be used for at the moment of the answer.
    pub freshness: Freshness,
    /// How long ago Redis was asked.
    pub age: Duration,
}

impl Answer {
    /// `now` is in nanoseconds on the cache's clock.
    fn new(entry: Arc<Entry>, outcome: Outcome, freshness: Freshness, now: u64) -> Self {
        Self { age: entry.age(now), outcome, freshness, entry }
    }
}

/// The error of a fetch is what its readers get, each of them, so it must be cheap to clone.
pub trait FetchError: Clone + From<Vanished> + Send + Sync + 'static {}

impl<E: Clone + From<Vanished> + Send + Sync + 'static> FetchError for E {}

/// The cache; `E` is what a fetch fails with. Cloning gives another handle to the same cache.
pub struct Cache<E>(Arc<Shared<E>>);

impl<E> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<E> {
    flights: Arc<Flights<Landed<E>>>,
    store: Swapped<Store>,
    lifetimes: InForce,
    proof: Proof,
    settings: Mutex<Settings>,
    /// Held by whoever goes through the whole store, so that they do so one after the other.
    whole_store: Mutex<()>,
    evictions: Arc<Evictions>,
    background: Handle,
    created: Instant,
}

/// What a flight announces.
#[derive(Clone)]
enum Landed<E> {
    Answered(Arc<Entry>),
    Refused(E),
    Failed(E),
}

impl<E: FetchError> Landed<E> {
    /// What became of a fetch of `key` that was `asked` for then, in nanoseconds on the cache's clock.
    async fn of(key: &Key, fetched: Fetched<E>, asked: u64) -> Option<Self> {
        Some(match fetched {
            Fetched::Value(bytes, expires_in) => {
                let is_large = bytes.len() > DIGEST_AT_ONCE;
                let entry = Entry::new(key, Some(bytes), asked, expires_in);
                if is_large {
                    let digested = Arc::clone(&entry);
                    let digest = tokio::task::spawn_blocking(move || {
                        _ = digested.value().map(|value| *value.digest());
                    });
                    digest.await.ok()?;
                }
                Self::Answered(entry)
            }
            Fetched::Absent => Self::Answered(Entry::new(key, None, asked, None)),
            Fetched::Refused(error) => Self::Refused(error),
            Fetched::Failed(error) => Self::Failed(error),
        })
    }
}

/// The digest of a larger value takes so long that other readers would notice.
const DIGEST_AT_ONCE: usize = 1 << 20;

impl<E: FetchError> Cache<E> {
    /// An empty cache, which has `background` do what takes its time.
    pub fn new(settings: Settings, background: Handle) -> Self {
        let evictions = Arc::new(Evictions::default());
        let store = Store::new(settings.capacity, settings.policy, &evictions);
        Self(Arc::new(Shared {
            flights: Flights::new(),
            store: Swapped::new(store),
            lifetimes: InForce::new(settings.lifetimes()),
            proof: Proof::not_needed(),
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
    pub fn foresee(&self, keys: &[&[u8]]) {
        self.0.store.load().foresee(keys);
    }

    /// A fresh entry from memory, or what the flight for `key` brings, which `fetch` starts if there is none. When the
    /// fetch failed, a stale entry stands in if the reader takes one.
    ///
    /// # Errors
    /// The error of the fetch, to all who waited for it; it is not cached.
    pub async fn get_or_fetch<F>(
        &self,
        key: &[u8],
        demand: Demand,
        fetch: impl FnOnce(Key) -> F,
    ) -> Result<Answer, (Outcome, E)>
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = &self.0;
        let came = Instant::now();
        // Looks in memory as well. Who may well find it there has [looked](Self::lookup) before, for less.
        let (mut asked, mut joined) = (came, shared.join(key, came));
        if let Joined::Follower(arrival) = joined {
            let answer = shared.arrival(key, demand, arrival, Outcome::Coalesced).await;
            if !answer.as_ref().is_ok_and(|answer| shared.is_past(answer, came)) {
                return answer;
            }
            // Redis was asked before this reader came, and what it said is too old already. A flight that is joined
            // now was opened after he came.
            asked = Instant::now();
            joined = shared.join(key, asked);
        }
        match joined {
            Joined::Found(answer) => Ok(answer),
            Joined::Follower(arrival) => {
                shared.arrival(key, demand, arrival, Outcome::Coalesced).await
            }
            Joined::Leader(ticket, arrival) => {
                self.take_off(ticket, asked, fetch);
                shared.arrival(key, demand, arrival, Outcome::Miss).await
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
        let asked = self.0.clock(Instant::now());
        // It is kept nowhere, so it needs no name.
        let nameless = Key::from(&[][..]);
        let landed = Landed::of(&nameless, fetch.await, asked).await;
        let landed = landed.unwrap_or_else(|| Landed::Failed(E::from(Vanished)));
        match landed {
            Landed::Answered(entry) => Ok(self.0.answered(entry, Outcome::Bypass)),
            Landed::Refused(error) | Landed::Failed(error) => Err((Outcome::Bypass, error)),
        }
    }

    /// Runs the fetch of a flight to its end, whoever still waits for it: in a task of its own, so that a reader who goes away
    /// does not take it with him, on the thread that he is on, since the way to another one and back costs more than it.
    ///
    /// Redis is asked after `asked`.
    fn take_off<F>(&self, ticket: Ticket<Landed<E>>, asked: Instant, fetch: impl FnOnce(Key) -> F)
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let asked = shared.clock(asked);
        let fetch = fetch(ticket.key().clone()).instrument(ticket.span().clone());
        // Not awaited in a block of its own, which would hold the fetch twice: before it begins and while it runs.
        tokio::spawn(fetch.then(move |fetched| async move {
            // Should making an entry fail, the ticket is dropped, which ends the flight.
            if let Some(landed) = Landed::of(ticket.key(), fetched, asked).await {
                shared.land(ticket, &landed);
            }
        }));
    }

    /// Drops `key`: what is stored, and what is being fetched.
    pub fn invalidate(&self, key: &[u8]) {
        let shared = &self.0;
        if shared.flights.close(key, || shared.store.load().remove(key)) {
            shared.evictions.count(Cause::Invalidated, 1);
        }
    }

    /// Drops the keys of which `is_meant` says so. Takes time in proportion to the number of entries.
    pub fn invalidate_where(&self, is_meant: impl Fn(&[u8]) -> bool) {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.flights.close_where(&is_meant);
        let seen = Arc::clone(&shared.store.load());
        for entry in seen.select(|entry| is_meant(entry.key())) {
            self.invalidate(entry.key());
        }
    }

    /// Drops everything: what is stored, and what is being fetched.
    pub fn invalidate_all(&self) {
        let shared = &self.0;
        shared.flushed(shared.flights.close_all(|| shared.start_over()));
    }

    /// Begins anew, empty, with Redis telling of changes. Everything it told of writes acknowledged before `asked` has
    /// been heeded.
    pub fn rely_on_tracking(&self, asked: Instant) {
        let shared = &self.0;
        let was_tracking = shared.proof.next_voucher() == Voucher::Redis;
        shared.proof.end(0);
        shared.flushed(if was_tracking {
            // What is being fetched now was asked for after the loss of the last link, thus over the new one.
            shared.flights.hold_all(|| shared.start_over())
        } else {
            shared.flights.close_all(|| shared.start_over())
        });
        self.prove(asked);
    }

    /// Everything Redis told of writes acknowledged before `asked` has been heeded.
    pub fn prove(&self, asked: Instant) {
        let shared = &self.0;
        // Under the lock, lest a timeout be put in force that this proof knows nothing of.
        let settings = lock(&shared.settings);
        shared.proof.hold_until(shared.clock(asked + settings.coherence_timeout));
    }

    /// Changes are not told of any more: nothing is fresh, and nothing that is being fetched will be kept. What is stored
    /// is dropped, unless it may stand in until Redis answers again.
    pub fn forsake(&self) {
        let shared = &self.0;
        shared.proof.end(shared.clock(Instant::now()));
        if shared.settings().stale_grace.is_zero() {
            self.invalidate_all();
        } else {
            shared.flights.close_all(|| ());
        }
    }

    /// Lets the time to live alone decide. What was kept true by tracking until now is dropped.
    pub fn rely_on_ttl(&self) {
        if self.0.proof.next_voucher() == Voucher::Redis {
            self.invalidate_all();
            self.0.proof.set_not_needed();
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.0.settings()
    }

    /// By what the answers are kept true now.
    pub fn coherence(&self) -> Coherence {
        self.0.proof.voucher(self.0.clock(Instant::now())).into()
    }

    /// Whether time alone decides what may be given.
    pub fn relies_on_ttl(&self) -> bool {
        self.0.proof.next_voucher() == Voucher::Time
    }

    /// Puts `settings` in force, for what is cached already too. Takes time in proportion to the number of
    /// entries when the capacity or the policy changes, so call it where blocking is allowed. Returns how many
    /// entries went because the cache became smaller.
    pub fn apply(&self, settings: &Settings) -> u64 {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.lifetimes.put(settings.lifetimes());
        shared.shorten_proof(settings.coherence_timeout);
        let before = shared.settings();
        if (before.capacity, before.policy) == (settings.capacity, settings.policy) {
            *lock(&shared.settings) = settings.clone();
            shared.remove_dead(Instant::now());
            return 0;
        }
        // So that what nobody may be given takes no room from anything.
        shared.remove_dead(Instant::now());
        let store = shared.flights.hold_all(|| {
            // With the store, so that a flush makes an empty one of the right size.
            *lock(&shared.settings) = settings.clone();
            let store = Arc::clone(&shared.store.load());
            store.limit(settings.capacity, settings.policy);
            store
        });
        let evicted = store.evict_surplus();
        shared.evictions.count(Cause::Resized, evicted);
        evicted
    }

    /// Removes the entries whose time is over. Takes time in proportion to the number of entries.
    pub fn sweep(&self) {
        let _alone = lock(&self.0.whole_store);
        self.0.remove_dead(Instant::now());
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
    fn start_over(&self) -> Arc<Store> {
        let settings = self.settings();
        self.store.swap(Arc::new(Store::new(settings.capacity, settings.policy, &self.evictions)))
    }

    fn flushed(&self, full: Arc<Store>) {
        self.evictions.count(Cause::Flushed, full.size().0);
        // Taking down a large store takes its time, which nobody should have to wait for.
        self.background.spawn_blocking(move || drop(full));
    }

    /// Puts another timeout in force, for the proof that there is too.
    fn shorten_proof(&self, timeout: Duration) {
        let mut settings = lock(&self.settings);
        settings.coherence_timeout = timeout;
        self.proof.shorten(self.clock(Instant::now() + timeout));
    }

    /// The time on the cache's clock: nanoseconds since it was made.
    fn clock(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.created))
    }

    fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let now = self.clock(now);
        let voucher = self.proof.voucher(now);
        let entry = self.store.load().get(key, now)?;
        let freshness = entry.freshness(now, self.lifetimes.get(), voucher);
        if !matches!(freshness, Freshness::Fresh { .. }) {
            return None;
        }
        let outcome = if entry.value().is_some() { Outcome::Hit } else { Outcome::Absent };
        Some(Answer::new(entry, outcome, freshness, now))
    }

    /// What an entry may be used for apart from whether Redis was heard of late.
    fn own_freshness(&self, entry: &Entry, now: u64) -> Freshness {
        entry.freshness(now, self.lifetimes.get(), self.proof.next_voucher())
    }

    fn join(&self, key: &[u8], now: Instant) -> Joined<Landed<E>, Answer> {
        self.flights.join(key, || self.lookup(key, now))
    }

    /// What a flight brings, or what stands in for it.
    async fn arrival(
        &self,
        key: &[u8],
        demand: Demand,
        arrival: Arrival<Landed<E>>,
        outcome: Outcome,
    ) -> Result<Answer, (Outcome, E)> {
        let landed = arrival.wait().await.unwrap_or_else(|| Landed::Failed(E::from(Vanished)));
        match landed {
            Landed::Answered(entry) => Ok(self.answered(entry, outcome)),
            Landed::Refused(error) => Err((outcome, error)),
            Landed::Failed(error) if demand == Demand::Current => Err((outcome, error)),
            Landed::Failed(error) => self.stand_in(key, Instant::now()).ok_or((outcome, error)),
        }
    }

    fn answered(&self, entry: Arc<Entry>, outcome: Outcome) -> Answer {
        let now = self.clock(Instant::now());
        let freshness = self.own_freshness(&entry, now);
        Answer::new(entry, outcome, freshness, now)
    }

    /// Whether what a flight brought to a reader who `came` while it was under way is too old for him: its time is over,
    /// or Redis was asked longer before he came than it vouches for what is stored.
    fn is_past(&self, answer: &Answer, came: Instant) -> bool {
        let told = self.proof.next_voucher() == Voucher::Redis;
        let long_before =
            || answer.entry.age(self.clock(came)) >= self.settings().coherence_timeout;
        let over = !matches!(answer.freshness, Freshness::Fresh { .. });
        answer.outcome == Outcome::Coalesced && (over || (told && long_before()))
    }

    /// What may be given when Redis cannot answer.
    fn stand_in(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let now = self.clock(now);
        let voucher = self.proof.voucher(now);
        let entry = self.store.load().get(key, now)?;
        let freshness = entry.freshness(now, self.lifetimes.get(), voucher);
        if freshness == Freshness::Dead {
            return None;
        }
        Some(Answer::new(entry, Outcome::Stale, freshness, now))
    }

    fn land(&self, ticket: Ticket<Landed<E>>, landed: &Landed<E>) {
        ticket.land(|key| self.keep(key, landed), landed.clone());
    }

    /// Makes the store say what Redis said. Called under the flight's lock.
    fn keep(&self, key: &Key, landed: &Landed<E>) {
        let now = self.clock(Instant::now());
        let store = self.store.load();
        match landed {
            Landed::Failed(_) => {}
            Landed::Answered(entry) if self.own_freshness(entry, now) != Freshness::Dead => {
                // Only what had ceased to be fresh is fetched again.
                self.evictions.count(Cause::Expired, store.insert(Arc::clone(entry)).into());
            }
            Landed::Answered(_) | Landed::Refused(_) => {
                if store.remove(key.as_bytes()) {
                    self.evictions.count(Cause::Expired, 1);
                }
            }
        }
    }

    fn remove_dead(&self, now: Instant) {
        let seen = Arc::clone(&self.store.load());
        let (now, lifetimes, voucher) =
            (self.clock(now), self.lifetimes.get(), self.proof.next_voucher());
        for entry in
            seen.select(|entry| entry.freshness(now, lifetimes, voucher) == Freshness::Dead)
        {
            let removed = self.flights.hold(entry.key(), || {
                let store = self.store.load();
                store.holds(&entry) && store.remove(entry.key())
            });
            self.evictions.count(Cause::Expired, removed.into());
        }
    }
}

/// What these locks guard is replaced whole, so a panic elsewhere leaves nothing half done behind them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(feature = "shuttle")]
mod interleavings;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
