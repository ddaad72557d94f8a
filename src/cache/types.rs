//! What readers ask for and get, and what the cache tells of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;

use super::entry::{Entry, Freshness};
use super::lease::Coherence;
use super::settings::Settings;

/// What a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// What is fresh, or if Redis cannot answer, what may stand in.
    Default,
    /// What is no older than the question; nothing else will do.
    NoCache,
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
    NegativeHit,
    /// Past the cache.
    Bypass,
}

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 6] =
        [Self::Hit, Self::Miss, Self::Coalesced, Self::Stale, Self::NegativeHit, Self::Bypass];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Stale => "stale",
            Self::NegativeHit => "negative_hit",
            Self::Bypass => "bypass",
        }
    }

    /// Whether the answer came from memory.
    pub fn from_memory(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::NegativeHit)
    }
}

/// Why an entry left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionCause {
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

impl EvictionCause {
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
pub(super) struct EvictionCounters(pub(super) [AtomicU64; EvictionCause::ALL.len()]);

impl EvictionCounters {
    pub(super) fn add(&self, cause: EvictionCause, entries: u64) {
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
    /// Entries that left, by cause, in the order of [`EvictionCause::ALL`].
    pub evictions: [u64; EvictionCause::ALL.len()],
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
    ErrorReply(E),
    /// Redis did not answer: what is stored may stand in.
    Failed(E),
}

/// The fetch of a flight ended without bringing anything, as when the daemon is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was given up")]
pub struct Cancelled;

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
    pub(super) fn new(entry: Arc<Entry>, outcome: Outcome, freshness: Freshness, now: u64) -> Self {
        Self { age: entry.age(now), outcome, freshness, entry }
    }
}

/// The error of a fetch is what its readers get, each of them, so it must be cheap to clone.
pub trait FetchError: Clone + From<Cancelled> + Send + Sync + 'static {}

impl<E: Clone + From<Cancelled> + Send + Sync + 'static> FetchError for E {}
