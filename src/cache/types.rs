//! The requests and answers of readers, and the statistics of the cache.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{Entry, Freshness, LruIndex};
use super::in_flight::FetchedBytes;
use super::lease::Coherence;
use super::refresh::RefreshResult;
use super::settings::Settings;
use super::ttl::as_nanos;

/// The clock of all caches that share a store of replies. It counts nanoseconds from its start.
#[derive(Debug, Clone, Copy)]
pub struct CacheClock(Instant);

impl CacheClock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Converts an instant, for one or more lookups. A conversion costs as much as a third of a
    /// pipelined lookup, so a batch of lookups converts its time once.
    #[inline]
    pub fn time(self, instant: Instant) -> LookupTime {
        LookupTime(as_nanos(instant.saturating_duration_since(self.0)))
    }

    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// A time on the clock of the cache.
#[derive(Debug, Clone, Copy)]
pub struct LookupTime(pub(super) u64);

/// The freshness that a reader requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// A fresh entry, or a stale one while Redis is unavailable.
    Default,
    /// A value that is no older than this read; never a stale one.
    NoCache,
}

/// The source of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A fresh value in memory.
    Hit,
    /// A fetch that this read started.
    Miss,
    /// A fetch that another read had started.
    Coalesced,
    /// A value in memory past its freshness, because Redis was unavailable.
    Stale,
    /// A negative entry in memory: the key is known not to exist.
    NegativeHit,
    /// A fetch that neither read nor filled the cache.
    Bypass,
    /// No answer: the read failed. The cache itself returns what the read would have been.
    Error,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Hit,
        Self::Miss,
        Self::Coalesced,
        Self::Stale,
        Self::NegativeHit,
        Self::Bypass,
        Self::Error,
    ];

    /// Returns the name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Stale => "stale",
            Self::NegativeHit => "negative_hit",
            Self::Bypass => "bypass",
            Self::Error => "error",
        }
    }

    /// Whether the answer came from memory.
    pub fn from_memory(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::NegativeHit)
    }
}

/// The identity of a rule in counts. Rules with the same prefix have the same one, whatever was
/// reloaded between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleId(u16);

impl RuleId {
    /// No rule.
    pub const NONE: Self = Self(0);
    /// The most rules that are counted between two starts, former ones included. The reads of
    /// further ones are not counted apart.
    pub const MOST: usize = 4096;

    /// Returns the identity of the rule at this index of the [names](super::rules::Rules::names).
    pub fn at(index: usize) -> Self {
        let number = u16::try_from(index + 1).unwrap_or(0);
        if usize::from(number) > Self::MOST { Self::NONE } else { Self(number) }
    }

    /// Returns the index of its name; `None` for [`RuleId::NONE`].
    #[inline]
    pub fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

/// The outcome of a read, as it is counted for its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleOutcome {
    /// The read had this outcome.
    Read(Outcome),
    /// The read went to Redis because of the mode `observe`, with this outcome. It would have been
    /// a hit without that mode.
    WouldHit(Outcome),
}

impl RuleOutcome {
    /// The number of outcomes.
    pub const COUNT: usize = 2 * Outcome::ALL.len();

    /// Every outcome, in the order of their indexes.
    pub fn all() -> impl Iterator<Item = Self> {
        let would_hits = Outcome::ALL.into_iter().map(Self::WouldHit);
        Outcome::ALL.into_iter().map(Self::Read).chain(would_hits)
    }

    /// Returns its index.
    #[inline]
    pub fn index(self) -> usize {
        match self {
            Self::Read(outcome) => outcome as usize,
            Self::WouldHit(outcome) => Outcome::ALL.len() + outcome as usize,
        }
    }

    /// Returns the name in labels. All would-be hits have the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read(outcome) => outcome.name(),
            Self::WouldHit(_) => "would_hit",
        }
    }
}

/// The rule of a read, and whether the read would have been a hit but for the mode `observe`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleRead {
    /// The rule.
    pub id: RuleId,
    /// Whether the mode `observe` alone keeps the read from being a hit.
    pub would_hit: bool,
}

impl RuleRead {
    /// A read without a would-be hit.
    pub fn of(id: RuleId) -> Self {
        Self { id, would_hit: false }
    }

    /// Returns the outcome to count for a read with this outcome.
    #[inline]
    pub fn outcome(self, outcome: Outcome) -> RuleOutcome {
        if self.would_hit { RuleOutcome::WouldHit(outcome) } else { RuleOutcome::Read(outcome) }
    }
}

/// The use of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupUse {
    /// The result is served. Keys in the mode `observe` have none.
    Serve,
    /// The result is only counted: it is what would be served if no rule had the mode `observe`.
    Observe,
}

/// The reason for the removal of an entry from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionCause {
    /// Another entry needed the room.
    Capacity,
    /// The entry had expired, or a later fetch replaced or removed it.
    Expired,
    /// Redis reported a change of the key.
    Invalidated,
    /// All entries were dropped.
    Flushed,
    /// The capacity or the bound on memory was reduced.
    Resized,
    /// Everything that is kept took more memory than `cache.max_memory`.
    Memory,
    /// An operator purged the key.
    Purged,
}

impl EvictionCause {
    /// Every cause.
    pub const ALL: [Self; 7] = [
        Self::Capacity,
        Self::Expired,
        Self::Invalidated,
        Self::Flushed,
        Self::Resized,
        Self::Memory,
        Self::Purged,
    ];

    /// Returns the name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::Flushed => "flushed",
            Self::Resized => "resized",
            Self::Memory => "memory",
            Self::Purged => "purged",
        }
    }
}

/// The number of removed entries, by cause.
#[derive(Debug, Default)]
pub(super) struct EvictionCounters(pub(super) [AtomicU64; EvictionCause::ALL.len()]);

impl EvictionCounters {
    pub(super) fn add(&self, cause: EvictionCause, entries: u64) {
        self.0[cause as usize].fetch_add(entries, Relaxed);
    }

    pub(super) fn get(&self) -> [u64; EvictionCause::ALL.len()] {
        std::array::from_fn(|cause| self.0[cause].load(Relaxed))
    }
}

/// The contents and counters of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Current number of entries.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Memory of all that is kept.
    pub memory: MemoryStatistics,
    /// Removed entries by cause, in the order of [`EvictionCause::ALL`].
    pub evictions: [u64; EvictionCause::ALL.len()],
    /// Fetches in progress.
    pub flights: usize,
    /// Fetches that were delivered but not stored, because the key changed meanwhile.
    pub flights_discarded: u64,
    /// The kept replies.
    pub replies: ReplyStatistics,
    /// The settings in force.
    pub settings: Settings,
    /// The mechanism that bounds staleness at this moment.
    pub coherence: Coherence,
    /// Refreshes by result, in the order of [`RefreshResult::ALL`].
    pub refreshes: [u64; RefreshResult::ALL.len()],
    /// The names of all rules since the start, by the index of their identity.
    pub rule_names: Vec<String>,
}

/// The memory of all that is kept, and its bound. The primaries of a cluster have one bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// Bytes of all that counts against the bound.
    pub bytes: u64,
    /// The bound, in bytes.
    pub max: u64,
    /// Values that were not kept because they are too large for the bound.
    pub too_large: u64,
    /// Bytes of large values in flight.
    pub in_flight: u64,
    /// The bound of those, in bytes.
    pub max_in_flight: u64,
    /// Values that were discarded because there was no room for them in flight.
    pub in_flight_discarded: u64,
}

/// The contents and counters of the kept replies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyStatistics {
    /// Current number of replies.
    pub entries: u64,
    /// Bytes that they take, with their change counters.
    pub bytes: u64,
    /// Removed replies by cause, in the order of [`EvictionCause::ALL`].
    pub evictions: [u64; EvictionCause::ALL.len()],
    /// Fetches of replies in progress.
    pub flights: usize,
    /// Replies that were delivered but not kept, because a key changed meanwhile.
    pub discarded: u64,
}

/// A position in the store, from which a walk over all entries goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalkPosition(pub(super) LruIndex);

/// The result of a fetch.
#[derive(Debug, Clone)]
pub enum Fetched<E> {
    /// The value, and its remaining time to live in Redis (`None`: the key does not expire).
    Value(FetchedBytes, Option<Duration>),
    /// The key does not exist.
    Absent,
    /// Redis replied, but not with a value. A stored entry for the key is no longer valid.
    ErrorReply(E),
    /// Redis did not reply. A stored entry may be served as stale.
    Failed(E),
}

/// The fetch of a flight ended without a result, for example during shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was cancelled")]
pub struct Cancelled;

/// The answer to one read.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The reply of Redis.
    pub entry: Entry,
    /// The source of the answer.
    pub outcome: Outcome,
    /// The permitted use of the entry at the time of the answer.
    pub freshness: Freshness,
    /// Time since the request to Redis.
    pub age: Duration,
    /// The rule of the key.
    pub rule: RuleId,
}

/// A fresh entry in memory: the part of an [`Answer`] that a reply to a Redis client needs.
#[derive(Debug)]
pub struct Hit {
    /// The reply of Redis.
    pub entry: Entry,
    /// The source of the answer.
    pub outcome: Outcome,
    /// The rule of the key.
    pub rule: RuleId,
}

impl From<Answer> for Hit {
    #[inline]
    fn from(Answer { entry, outcome, rule, .. }: Answer) -> Self {
        Self { entry, outcome, rule }
    }
}

impl Answer {
    /// Creates an answer at `now`, in nanoseconds on the cache's clock.
    #[inline]
    pub(super) fn new(
        entry: Entry,
        outcome: Outcome,
        freshness: Freshness,
        rule: RuleId,
        now: u64,
    ) -> Self {
        Self { age: entry.age(now), outcome, freshness, rule, entry }
    }
}

/// The error of a fetch. Every waiting reader receives a clone, so a clone must be cheap.
pub trait FetchError: Clone + From<Cancelled> + Send + Sync + 'static {}

impl<E: Clone + From<Cancelled> + Send + Sync + 'static> FetchError for E {}
