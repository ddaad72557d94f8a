//! One kept reply, and how long it may be served.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::block_size::block_size;
use super::super::ttl::{Ttls, as_nanos};
use super::counters::{Count, Counters};
use crate::key::Key;
use crate::protocol::ReplyFrame;

const WORD: usize = size_of::<usize>();
/// The counters of an `Arc`, in bytes.
const COUNTS: usize = 2 * WORD;
/// The block in which the handles to the frame count themselves, in bytes.
const SHARED: usize = 32;

/// The state before a fetch was sent: the generation, and the change counters of all its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Note {
    generation: u64,
    counts: Counts,
}

/// The counters of one key without an allocation, or of several keys.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Counts {
    One(Count),
    Many(Arc<[Count]>),
}

impl Note {
    pub(super) fn new<'a>(
        generation: u64,
        counters: &Counters,
        mut keys: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        let counts = match (keys.next(), keys.next()) {
            (Some(key), None) => Counts::One(counters.note(key)),
            (first, second) => {
                let all = first.into_iter().chain(second).chain(keys);
                Counts::Many(all.map(|key| counters.note(key)).collect())
            }
        };
        Self { generation, counts }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether no key has changed since.
    #[inline]
    pub(super) fn is_unchanged(&self, counters: &Counters) -> bool {
        let table = counters.table();
        let Some(table) = &*table else { return false };
        match &self.counts {
            Counts::One(count) => table.is_current(*count),
            Counts::Many(counts) => counts.iter().all(|count| table.is_current(*count)),
        }
    }

    /// Returns the bytes of what it allocates.
    fn footprint(&self) -> usize {
        match &self.counts {
            Counts::One(_) => 0,
            Counts::Many(counts) => block_size(COUNTS + size_of_val(&**counts), WORD),
        }
    }
}

/// A reply to one command. Times are nanoseconds on the clock of its cache.
#[derive(Debug)]
pub struct Reply {
    frame: ReplyFrame,
    fetched_at: u64,
    /// The time until the first of its keys or fields expires in Redis, from `fetched_at` on. The
    /// maximum means that none does.
    expires_after: u64,
    of: ReplyOf,
    pub(super) note: Note,
}

/// The request that a reply belongs to.
#[derive(Debug, Clone)]
pub(in super::super) struct ReplyOf {
    /// The index of its name.
    pub(in super::super) name_index: usize,
    /// All keys that it reads.
    pub(in super::super) keys: Arc<[Key]>,
    /// The time before the request was sent, which is that of `fetched_at`.
    pub(in super::super) requested_at: Instant,
}

impl Reply {
    pub(super) fn new(
        frame: ReplyFrame,
        fetched_at: u64,
        expires_in: Option<Duration>,
        of: ReplyOf,
        note: Note,
    ) -> Self {
        let expires_after = expires_in.map_or(u64::MAX, as_nanos);
        Self { frame, fetched_at, expires_after, of, note }
    }

    /// Returns all keys that the command reads.
    pub(super) fn keys(&self) -> &[Key] {
        &self.of.keys
    }

    /// Returns the index of the command's name.
    pub(super) fn name_index(&self) -> usize {
        self.of.name_index
    }

    /// Returns the reply as Redis sent it.
    pub fn frame(&self) -> &ReplyFrame {
        &self.frame
    }

    /// Returns the time until the first of its keys or fields expires in Redis. `None`: none does.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let total = Duration::from_nanos(self.expires_after);
        (self.expires_after != u64::MAX).then(|| total.saturating_sub(self.age_at(now)))
    }

    /// Returns the time from the request to `now`.
    pub fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.of.requested_at)
    }

    /// Returns the bytes of all its allocations.
    pub(super) fn footprint(&self) -> usize {
        let keys = &self.of.keys;
        block_size(COUNTS + size_of::<Self>(), WORD)
            + block_size(self.frame.bytes().len(), 1)
            + SHARED
            + self.note.footprint()
            + block_size(COUNTS + size_of_val(&**keys), WORD)
            + keys.iter().map(|key| key.footprint(block_size)).sum::<usize>()
    }

    /// Returns the time from the request to `now`, in nanoseconds.
    pub(in super::super) fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.fetched_at)
    }

    /// Whether its time to live has not ended at `now`. A kept reply is never served stale.
    #[inline]
    pub(in super::super) fn is_fresh(&self, now: u64, ttls: Ttls) -> bool {
        self.age(now) < ttls.ttl.min(self.expires_after)
    }
}
