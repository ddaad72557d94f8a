//! Checks of answers from memory: the flight of a check, and whether the answer is still valid.
//!
//! A check opens a flight as a miss does, so a change of the key that is pushed meanwhile removes
//! the entry that was served. The rule that must not be broken: a check stores nothing. So it
//! changes no age, no order and no statistics of what is kept. A reader that joins its flight gets
//! the reply, and the next miss stores one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::entry::Entry;
use super::flight::Joined;
use super::lease::Validity;
use super::recent::Invalidated;
use super::replies::{FetchedReply, Replies, Reply, ReplyOf};
use super::reply_reads::ReplyRead;
use super::types::{FetchError, Fetched};
use super::{Cache, FlightResult};
use crate::key::Key;

/// The time before its own end in Redis within which an answer counts as ended, because the clocks
/// of two machines differ.
const END_TOLERANCE: Duration = Duration::from_secs(1);
/// The part of its age that is added to that, for clocks of different speed.
const CLOCK_DRIFT: u32 = 1000;

/// The guarantee for what is kept, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarantee {
    /// Whether the lease is valid.
    pub is_tracked: bool,
    /// The remaining time of the lease.
    pub lease_remaining: Duration,
    /// The number of the generation. A lost connection or a flush begins another.
    pub generation: u64,
}

/// The life of an answer at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The time since its request.
    pub age: Duration,
    /// Whether it ends by its own time to live in Redis now, or has ended.
    pub has_ended: bool,
}

impl Life {
    /// Returns the life with so much of the time to live left.
    fn new(remaining: Option<Duration>, age: Duration) -> Self {
        Self { age, has_ended: remaining.is_some_and(|remaining| has_ended(remaining, age)) }
    }
}

impl Guarantee {
    /// Whether every push was received between `earlier` and now.
    pub fn covers(self, earlier: Self) -> bool {
        self.is_tracked && earlier.is_tracked && self.generation == earlier.generation
    }
}

impl<E: FetchError> Cache<E> {
    /// Returns the guarantee for what is kept now.
    pub fn guarantee(&self) -> Guarantee {
        let shared = &self.0;
        let now = shared.clock(Instant::now());
        Guarantee {
            is_tracked: shared.lease.validity(now) == Validity::Tracked,
            lease_remaining: shared.lease.remaining(now),
            generation: shared.replies.generation(),
        }
    }

    /// Returns the time since the last invalidation of `key` that is known, and its cause.
    pub fn last_invalidation(&self, key: &[u8]) -> Option<(Duration, Invalidated)> {
        let (at, cause) = self.0.recent.last(key)?;
        Some((self.0.clock.elapsed().saturating_sub(at), cause))
    }

    /// Whether the store has this very entry.
    pub fn holds(&self, entry: &Entry) -> bool {
        self.0.store.load().contains_entry(entry)
    }

    /// Whether no key of a kept reply has changed since its fetch.
    pub fn is_reply_current(&self, reply: &Reply) -> bool {
        self.0.replies.is_reply_current(reply)
    }

    /// Returns the life of an entry.
    pub fn entry_life(&self, entry: &Entry) -> Life {
        let now = self.0.clock(Instant::now());
        Life::new(entry.expires_in(now), entry.age(now))
    }

    /// Returns the life of a kept reply, which ends with the first of its keys or fields.
    pub fn reply_life(&self, reply: &Reply) -> Life {
        let now = Instant::now();
        Life::new(reply.remaining(now), reply.age_at(now))
    }

    /// Fetches `key` in a flight of its own and stores nothing. `None` if another fetch of the key
    /// is in progress, or if this one was cancelled.
    pub async fn fetch_for_check<F>(
        &self,
        key: &[u8],
        fetch: impl FnOnce(Key) -> F,
    ) -> Option<Result<Entry, E>>
    where
        F: Future<Output = Fetched<E>> + Send,
    {
        let shared = &self.0;
        let requested_at = shared.clock(Instant::now());
        let Joined::Leader(guard) = shared.flights.join(key, || None::<()>) else {
            return None;
        };
        let fetched = fetch(guard.key().clone()).instrument(guard.span().clone()).await;
        let result = FlightResult::from_fetched(guard.key(), fetched, requested_at);
        if let Some(digest) = result.digest_apart() {
            digest.await.ok()?;
        }
        guard.complete(|_, ()| {}, &result);
        Some(match result {
            FlightResult::Answered(entry) => Ok(entry),
            FlightResult::ErrorReply(error) | FlightResult::Failed(error) => Err(error),
        })
    }

    /// Fetches the reply to a read in a flight of its own and keeps nothing. `None` if another
    /// fetch of it is in progress.
    pub async fn fetch_reply_for_check<F>(
        &self,
        read: ReplyRead<'_>,
        fetch: impl FnOnce() -> F,
    ) -> Option<FetchedReply<E>>
    where
        F: Future<Output = FetchedReply<E>> + Send,
    {
        let shared = &self.0;
        let ReplyRead { command, name_index, keys } = read;
        let requested_at = Instant::now();
        let replies = &shared.replies;
        let joined = replies.flights.join_noted(
            command,
            |note| replies.is_current(note),
            || None::<()>,
            || replies.note(keys.iter().map(Key::as_bytes)),
        );
        let Joined::Leader(guard) = joined else { return None };
        let fetched = fetch().instrument(guard.span().clone()).await;
        let of = ReplyOf { name_index, keys: Arc::from(keys), requested_at };
        Replies::complete_check(guard, fetched.clone(), shared.clock(requested_at), of);
        Some(fetched)
    }
}

/// Whether an answer of this age counts as ended, with so much of its time to live left.
fn has_ended(remaining: Duration, age: Duration) -> bool {
    remaining <= END_TOLERANCE + age / CLOCK_DRIFT
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn end_depends_on_the_clocks() {
        let seconds = Duration::from_secs;
        for (remaining, age, expected) in [
            (Duration::ZERO, seconds(0), true),
            (seconds(1), seconds(0), true),
            (Duration::from_millis(1001), seconds(0), false),
            (Duration::from_millis(1001), seconds(1), true),
            (seconds(4), seconds(3600), true),
            (seconds(5), seconds(3600), false),
        ] {
            assert_eq!(has_ended(remaining, age), expected, "{remaining:?} at {age:?}");
        }
    }
}
