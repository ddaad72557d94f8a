//! The cache: what Redis answered, for as long as it may be given again.
//!
//! A read looks in the store; if nothing fresh is there it joins the flight for its key, and the flight's fetch
//! brings an entry that all its readers get and the store keeps. The cache knows nothing of Redis: it is handed
//! the fetch as a future, and told what changed and until when that is all. The rules that must not be broken are in
//! `flight` (every change of the store happens under the lock of the flights it concerns, closing before removing) and
//! in `coherence` (who vouches for the store is asked before the store).
//!
//! While the capacity or the policy is being changed there are two stores: readers look in both, landings go to the
//! new one, invalidations to both, and a mover carries the old entries over. So a resize fails no read, loses no
//! invalidation and no entry, and keeps the order of reads.

mod coherence;
mod entry;
mod flight;
mod store;
mod sync;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::coherence::Proof;
pub use self::coherence::{Coherence, Voucher};
pub use self::entry::{AbsentTtl, Entry, Freshness, Lifetimes, Value};
use self::flight::{Arrival, Flights, Joined, Ticket};
use self::store::Store;
use self::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use self::sync::{Mutex, MutexGuard, Swapped};
use crate::key::Key;
use crate::units::{self, Contradiction, broken};

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many keys are kept at most.
    #[serde(with = "units::count")]
    pub capacity: usize,
    /// How old a value may be; zero: nothing is kept.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
    /// How old the knowledge may be that a key does not exist.
    pub ttl_absent: AbsentTtl,
    /// For how long after it ceased to be fresh a value stands in when Redis cannot answer.
    #[serde(with = "units::duration")]
    pub stale_grace: Duration,
    /// Which entry goes when the cache is full.
    pub policy: Policy,
    /// By what the answers are to be kept true.
    pub coherence: CoherenceMode,
    /// With tracking: for how long one sign of Redis proves that all changes are known.
    #[serde(with = "units::duration")]
    pub coherence_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            ttl: Duration::from_secs(60),
            ttl_absent: AbsentTtl::Auto,
            stale_grace: Duration::ZERO,
            policy: Policy::Lru,
            coherence: CoherenceMode::Auto,
            coherence_timeout: Duration::from_secs(3),
        }
    }
}

impl Settings {
    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        let nothing = "found 0, expected at least 1; to keep nothing, set cache.ttl to 0";
        let impatient = self.coherence_timeout < COHERENCE_TIMEOUT_MIN;
        let patience = format!("found {:?}, expected at least {COHERENCE_TIMEOUT_MIN:?}", self.coherence_timeout);
        broken([(self.capacity == 0, "cache.capacity", nothing), (impatient, "cache.coherence_timeout", &patience)])
    }

    fn lifetimes(&self) -> Lifetimes {
        Lifetimes { ttl: self.ttl, ttl_absent: self.ttl_absent, stale_grace: self.stale_grace }
    }
}

/// Redis has to be asked several times in it.
const COHERENCE_TIMEOUT_MIN: Duration = Duration::from_millis(50);

/// Which entry goes when the cache is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Policy {
    /// The least recently read one.
    Lru,
    /// One read seldom: a new key must have been asked for more often than the one it would drive out.
    Tinylfu,
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::choose(&text, [("lru", Self::Lru), ("tinylfu", Self::Tinylfu)])
    }
}

/// By what the answers are to be kept true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum CoherenceMode {
    /// By tracking where Redis allows it, else by the time to live.
    Auto,
    /// By tracking; where Redis does not allow it, there are no answers.
    Tracking,
    /// By the time to live.
    Ttl,
}

impl TryFrom<String> for CoherenceMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::choose(&text, [("auto", Self::Auto), ("tracking", Self::Tracking), ("ttl", Self::Ttl)])
    }
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
    pub const ALL: [Self; 6] = [Self::Hit, Self::Miss, Self::Coalesced, Self::Stale, Self::Absent, Self::Bypass];

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
    pub const ALL: [Self; 5] = [Self::Capacity, Self::Expired, Self::Invalidated, Self::Flushed, Self::Resized];

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
    fn new(entry: Arc<Entry>, outcome: Outcome, freshness: Freshness, now: Instant) -> Self {
        Self { age: entry.age(now), outcome, freshness, entry }
    }

    /// Whether it came from Redis, and is too old all the same.
    fn is_past(&self) -> bool {
        self.outcome == Outcome::Coalesced && !matches!(self.freshness, Freshness::Fresh { .. })
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
    stores: Swapped<Stores>,
    lifetimes: ArcSwap<Lifetimes>,
    proof: Proof,
    settings: Mutex<Settings>,
    /// Held by whoever goes through the whole store, so that they do so one after the other.
    whole_store: Mutex<()>,
    evictions: Arc<Evictions>,
    fetches: Handle,
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
    async fn of(fetched: Fetched<E>, asked: Instant) -> Option<Self> {
        Some(match fetched {
            Fetched::Value(bytes, expires_in) if bytes.len() > DIGEST_AT_ONCE => {
                let entry = tokio::task::spawn_blocking(move || Entry::new(Some(bytes), asked, expires_in));
                Self::Answered(Arc::new(entry.await.ok()?))
            }
            Fetched::Value(bytes, expires_in) => Self::Answered(Arc::new(Entry::new(Some(bytes), asked, expires_in))),
            Fetched::Absent => Self::Answered(Arc::new(Entry::new(None, asked, None))),
            Fetched::Refused(error) => Self::Refused(error),
            Fetched::Failed(error) => Self::Failed(error),
        })
    }
}

/// The digest of a larger value takes so long that other fetches would notice.
const DIGEST_AT_ONCE: usize = 1 << 20;

/// The store, and while it is being replaced, its successor.
struct Stores {
    active: Arc<Store>,
    next: Option<Arc<Successor>>,
}

struct Successor {
    store: Arc<Store>,
    /// Entries that landed in it, which leave so much less room for those that are carried.
    landed: AtomicUsize,
}

impl Stores {
    fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let in_next = self.next.as_ref().and_then(|next| next.store.get(key));
        in_next.or_else(|| self.active.get(key))
    }

    /// Puts `entry` where it is to stay. Returns whether another had to go for it.
    fn insert(&self, key: &Key, entry: &Arc<Entry>) -> bool {
        let Some(next) = &self.next else { return self.active.insert(key, Arc::clone(entry)) };
        next.landed.fetch_add(1, Relaxed);
        next.store.insert(key, Arc::clone(entry)) | self.active.remove(key.as_bytes())
    }

    /// Removes `key` from each; tells whether one had it.
    fn remove(&self, key: &[u8]) -> bool {
        let in_next = self.next.as_ref().is_some_and(|next| next.store.remove(key));
        self.active.remove(key) | in_next
    }

    /// Whether `key` stands for this very entry.
    fn holds(&self, key: &[u8], entry: &Arc<Entry>) -> bool {
        self.get(key).is_some_and(|stored| Arc::ptr_eq(&stored, entry))
    }

    fn iter(&self) -> impl Iterator<Item = (Arc<Key>, Arc<Entry>)> {
        self.active.iter().chain(self.next.iter().flat_map(|next| next.store.iter()))
    }

    /// Entries, and bytes of their keys and values.
    fn size(&self) -> (u64, u64) {
        let (entries, bytes) = self.active.size();
        let (more_entries, more_bytes) = self.next.as_ref().map_or((0, 0), |next| next.store.size());
        (entries + more_entries, bytes + more_bytes)
    }
}

impl<E: FetchError> Cache<E> {
    /// An empty cache, whose fetches run on `fetches`, so that a reader who goes away takes none with him.
    pub fn new(settings: Settings, fetches: Handle) -> Self {
        let evictions = Arc::new(Evictions::default());
        let active = Store::new(settings.capacity, settings.policy, &evictions);
        Self(Arc::new(Shared {
            flights: Flights::new(),
            stores: Swapped::new(Stores { active, next: None }),
            lifetimes: ArcSwap::from_pointee(settings.lifetimes()),
            proof: Proof::not_needed(),
            settings: Mutex::new(settings),
            whole_store: Mutex::new(()),
            evictions,
            fetches,
            created: Instant::now(),
        }))
    }

    /// Looks in memory only: a fresh entry, or nothing.
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        self.0.lookup(key, now)
    }

    /// A fresh entry from memory, or what the flight for `key` brings, which `fetch` starts if there is none. A
    /// stale entry stands in when the fetch failed.
    ///
    /// # Errors
    /// The error of the fetch, to all who waited for it; it is not cached.
    pub async fn get_or_fetch<F>(&self, key: &[u8], fetch: impl FnOnce(Key) -> F) -> Result<Answer, (Outcome, E)>
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = &self.0;
        if let Some(answer) = shared.lookup(key, Instant::now()) {
            return Ok(answer);
        }
        let mut joined = shared.join(key);
        if let Joined::Follower(arrival) = joined {
            let answer = shared.arrival(key, arrival, Outcome::Coalesced).await;
            if !answer.as_ref().is_ok_and(Answer::is_past) {
                return answer;
            }
            // Redis was asked before this reader came, and what it said is too old already. A flight that is joined
            // now was opened after he came.
            joined = shared.join(key);
        }
        match joined {
            Joined::Found(answer) => Ok(answer),
            Joined::Follower(arrival) => shared.arrival(key, arrival, Outcome::Coalesced).await,
            Joined::Leader(ticket, arrival) => {
                self.take_off(ticket, fetch);
                shared.arrival(key, arrival, Outcome::Miss).await
            }
        }
    }

    /// Runs the fetch of a flight to its end, whoever still waits for it.
    fn take_off<F>(&self, ticket: Ticket<Landed<E>>, fetch: impl FnOnce(Key) -> F)
    where
        F: Future<Output = Fetched<E>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let asked = Instant::now();
        let fetch = fetch(ticket.key().clone());
        self.0.fetches.spawn(async move {
            // Should making an entry fail, the ticket is dropped, which ends the flight.
            if let Some(landed) = Landed::of(fetch.await, asked).await {
                shared.land(ticket, &landed);
            }
        });
    }

    /// Drops `key`: what is stored, and what is being fetched.
    pub fn invalidate(&self, key: &[u8]) {
        let shared = &self.0;
        if shared.flights.close(key, || shared.stores.load().remove(key)) {
            shared.evictions.count(Cause::Invalidated, 1);
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
        let before = shared.proof.next_voucher();
        shared.proof.end(0);
        shared.flushed(match before {
            Voucher::Time => shared.flights.close_all(|| shared.start_over()),
            // What is being fetched now was asked for after the loss of the last link, thus over the new one.
            Voucher::Redis | Voucher::Nobody { .. } => shared.flights.hold_all(|| shared.start_over()),
        });
        self.prove(asked);
    }

    /// Everything Redis told of writes acknowledged before `asked` has been heeded.
    pub fn prove(&self, asked: Instant) {
        let shared = &self.0;
        shared.proof.hold_until(shared.clock(asked + shared.settings().coherence_timeout));
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

    /// Puts `settings` in force, for what is cached already too. Takes time in proportion to the number of
    /// entries when the capacity or the policy changes, so call it where blocking is allowed. Returns how many
    /// entries went because the cache became smaller.
    pub fn apply(&self, settings: &Settings) -> u64 {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        shared.lifetimes.store(Arc::new(settings.lifetimes()));
        let before = shared.settings();
        if (before.capacity, before.policy) == (settings.capacity, settings.policy) {
            *lock(&shared.settings) = settings.clone();
            shared.remove_dead(Instant::now());
            return 0;
        }
        shared.move_to_new_store(settings, Instant::now())
    }

    /// Removes the entries whose time is over. Takes time in proportion to the number of entries.
    pub fn sweep(&self) {
        let _alone = lock(&self.0.whole_store);
        self.0.remove_dead(Instant::now());
    }

    /// What the cache holds now; exact once no read or reload is in progress.
    pub fn statistics(&self) -> Statistics {
        let shared = &self.0;
        let (entries, bytes) = shared.stores.load().size();
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
    fn start_over(&self) -> Arc<Stores> {
        let settings = self.settings();
        let empty = Store::new(settings.capacity, settings.policy, &self.evictions);
        self.stores.swap(Arc::new(Stores { active: empty, next: None }))
    }

    fn flushed(&self, full: Arc<Stores>) {
        // What a mover had not carried yet and what it had is there only once.
        self.evictions.count(Cause::Flushed, full.size().0);
        // Taking down a large store takes its time, which nobody should have to wait for.
        self.fetches.spawn_blocking(move || drop(full));
    }

    fn lifetimes(&self) -> Lifetimes {
        **self.lifetimes.load()
    }

    fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.created).as_nanos()).unwrap_or(u64::MAX)
    }

    fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let clock = self.clock(now);
        let voucher = self.proof.voucher(clock);
        let entry = self.stores.load().get(key)?;
        let freshness = entry.freshness(now, self.lifetimes(), voucher);
        if !matches!(freshness, Freshness::Fresh { .. }) {
            return None;
        }
        entry.touch(clock);
        let outcome = if entry.value().is_some() { Outcome::Hit } else { Outcome::Absent };
        Some(Answer::new(entry, outcome, freshness, now))
    }

    /// What an entry may be used for apart from whether Redis was heard of late.
    fn own_freshness(&self, entry: &Entry, now: Instant) -> Freshness {
        entry.freshness(now, self.lifetimes(), self.proof.next_voucher())
    }

    fn join(&self, key: &[u8]) -> Joined<Landed<E>, Answer> {
        self.flights.join(key, || self.lookup(key, Instant::now()))
    }

    /// What a flight brings, or what stands in for it.
    async fn arrival(&self, key: &[u8], arrival: Arrival<Landed<E>>, outcome: Outcome) -> Result<Answer, (Outcome, E)> {
        let landed = arrival.wait().await.unwrap_or_else(|| Landed::Failed(E::from(Vanished)));
        let now = Instant::now();
        match landed {
            Landed::Answered(entry) => {
                let freshness = self.own_freshness(&entry, now);
                Ok(Answer::new(entry, outcome, freshness, now))
            }
            Landed::Refused(error) => Err((outcome, error)),
            Landed::Failed(error) => self.stand_in(key, now).ok_or((outcome, error)),
        }
    }

    /// What may be given when Redis cannot answer.
    fn stand_in(&self, key: &[u8], now: Instant) -> Option<Answer> {
        let clock = self.clock(now);
        let voucher = self.proof.voucher(clock);
        // Under the lock, or a mover might have it in its hands.
        let entry = self.flights.hold(key, || self.stores.load().get(key))?;
        let freshness = entry.freshness(now, self.lifetimes(), voucher);
        if freshness == Freshness::Dead {
            return None;
        }
        entry.touch(clock);
        Some(Answer::new(entry, Outcome::Stale, freshness, now))
    }

    fn land(&self, ticket: Ticket<Landed<E>>, landed: &Landed<E>) {
        let key = ticket.key().clone();
        ticket.land(|| self.keep(&key, landed), landed.clone());
    }

    /// Makes the store say what Redis said. Called under the flight's lock.
    fn keep(&self, key: &Key, landed: &Landed<E>) {
        let now = Instant::now();
        let stores = self.stores.load();
        match landed {
            Landed::Failed(_) => {}
            Landed::Answered(entry) if self.own_freshness(entry, now) != Freshness::Dead => {
                entry.touch(self.clock(now));
                // Only what had ceased to be fresh is fetched again.
                self.evictions.count(Cause::Expired, stores.insert(key, entry).into());
            }
            Landed::Answered(_) | Landed::Refused(_) => {
                if stores.remove(key.as_bytes()) {
                    self.evictions.count(Cause::Expired, 1);
                }
            }
        }
    }

    fn remove_dead(&self, now: Instant) {
        let seen = Arc::clone(&self.stores.load());
        for (key, entry) in seen.iter().filter(|(_, entry)| self.own_freshness(entry, now) == Freshness::Dead) {
            let bytes = key.as_bytes();
            let removed = self.flights.hold(bytes, || {
                let stores = self.stores.load();
                stores.holds(bytes, &entry) && stores.remove(bytes)
            });
            self.evictions.count(Cause::Expired, removed.into());
        }
    }

    /// Moves everything whose time is not over to a store for `settings`. Returns how many entries it had no room for.
    fn move_to_new_store(&self, settings: &Settings, now: Instant) -> u64 {
        let store = Store::new(settings.capacity, settings.policy, &self.evictions);
        let next = Arc::new(Successor { store, landed: AtomicUsize::new(0) });
        let old = self.flights.hold_all(|| {
            let old = Arc::clone(&self.stores.load().active);
            // With the stores, so that a flush makes an empty one of the right size.
            *lock(&self.settings) = settings.clone();
            self.stores.store(Arc::new(Stores { active: Arc::clone(&old), next: Some(Arc::clone(&next)) }));
            old
        });
        let mut entries = self.alive(&old, &next, now);
        entries.sort_unstable_by_key(|(last_read, ..)| *last_read);
        let mut dropped = 0;
        let mut left = entries.len();
        for (_, key, entry) in entries {
            left -= 1;
            dropped += self.flights.hold(key.as_bytes(), || {
                let room = settings.capacity.saturating_sub(next.landed.load(Relaxed));
                if !self.take_out(&old, &next, &key) {
                    return 0;
                }
                if left >= room {
                    return 1;
                }
                next.store.carry(&key, entry);
                0
            });
        }
        next.store.read_again_since(self.clock(now));
        self.flights.hold_all(|| {
            if self.is_next(&next) {
                self.stores.store(Arc::new(Stores { active: Arc::clone(&next.store), next: None }));
            }
        });
        self.evictions.count(Cause::Resized, dropped);
        dropped
    }

    /// The entries of `old` whose time is not over, each with its last read as of now, since readers go on meanwhile.
    /// The others are removed.
    fn alive(&self, old: &Store, next: &Arc<Successor>, now: Instant) -> Vec<(u64, Arc<Key>, Arc<Entry>)> {
        let mut alive = Vec::new();
        for (key, entry) in old.iter() {
            if self.own_freshness(&entry, now) == Freshness::Dead {
                let removed = self.flights.hold(key.as_bytes(), || self.take_out(old, next, &key));
                self.evictions.count(Cause::Expired, removed.into());
            } else {
                alive.push((entry.last_read(), key, entry));
            }
        }
        alive
    }

    /// Takes `key` out of `old`, under the key's lock; tells whether it was there. What was invalidated or fetched anew
    /// meanwhile is not; after a flush nothing is to be taken.
    fn take_out(&self, old: &Store, next: &Arc<Successor>, key: &Key) -> bool {
        self.is_next(next) && old.remove(key.as_bytes())
    }

    fn is_next(&self, successor: &Arc<Successor>) -> bool {
        self.stores.load().next.as_ref().is_some_and(|next| Arc::ptr_eq(next, successor))
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
