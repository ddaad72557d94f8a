//! Purges, and the explanation why a key is kept or not.
//!
//! A purge is an invalidation that an operator asks for. It ends kept replies and closes the
//! flights before it removes entries (invariant F2). So a fetch that was answered before the purge
//! is never stored after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use super::entry::Freshness;
use super::lease::Coherence;
use super::recent::Invalidated;
use super::rules::Terms;
use super::settings::RuleMode;
use super::sync::lock;
use super::types::{EvictionCause, FetchError};

/// The keys of a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// This key.
    Key(Vec<u8>),
    /// All keys that begin with this prefix.
    Prefix(Vec<u8>),
    /// All keys.
    All,
}

/// The state of a key in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyState {
    /// The entry; `None`: the key is not kept as a string.
    pub entry: Option<EntryState>,
    /// The name of the rule of the key; `None`: it has none.
    pub rule: Option<String>,
    /// The mode of that rule.
    pub mode: RuleMode,
    /// The maximum age of a value of this key.
    pub ttl: Duration,
    /// Whether a fetch of the key is in progress.
    pub is_fetching: bool,
    /// The number of valid replies to reads of the key, by the name of their command.
    pub replies: BTreeMap<String, usize>,
    /// The time since the last invalidation that is known, and its cause.
    pub last_invalidation: Option<(Duration, Invalidated)>,
    /// The mechanism that bounds staleness at this moment.
    pub coherence: Coherence,
}

/// An entry at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryState {
    /// The permitted use.
    pub freshness: Freshness,
    /// The time since the request to Redis.
    pub age: Duration,
    /// The bytes of the value; `None`: the key does not exist.
    pub value_bytes: Option<usize>,
    /// The remaining time until the key expires in Redis; `None`: it does not.
    pub expires_in: Option<Duration>,
}

impl<E: FetchError> Cache<E> {
    /// Drops entries and replies, and discards the results of fetches in progress. Returns the
    /// number of entries. Takes time in proportion to what is kept, except for [`Purge::Key`].
    pub fn purge(&self, purge: &Purge) -> u64 {
        match purge {
            Purge::Key(key) => self.drop_key(key, Invalidated::Purged).into(),
            Purge::Prefix(prefix) => self.purge_prefix(prefix),
            Purge::All => {
                let shared = &self.0;
                let dropped = shared.flights.close_all(|| shared.replace_store());
                shared.count_dropped(dropped, EvictionCause::Purged)
            }
        }
    }

    fn purge_prefix(&self, prefix: &[u8]) -> u64 {
        let shared = &self.0;
        let _alone = lock(&shared.whole_store);
        let matches = |key: &[u8]| key.starts_with(prefix);
        shared.replies.purge_where(matches);
        shared.flights.close_where(matches);
        let snapshot = Arc::clone(&shared.store.load());
        let found = snapshot.collect_where(|entry| matches(entry.key()));
        let dropped = |key: &[u8]| u64::from(self.drop_key(key, Invalidated::Purged));
        found.iter().map(|entry| dropped(entry.key())).sum()
    }

    /// Returns the state of `key`. Records no read. Takes time in proportion to the number of
    /// replies.
    pub fn explain(&self, key: &[u8]) -> KeyState {
        let shared = &self.0;
        let now = shared.clock(Instant::now());
        // Invariant C1: the lease first.
        let validity = shared.lease.validity(now);
        let contents = shared.store.load();
        let terms = shared.terms(&contents, key);
        let Terms { id, mode, ttls, .. } = terms;
        let entry = contents.peek(key).map(|entry| EntryState {
            freshness: entry.freshness(now, ttls, validity),
            age: entry.age(now),
            value_bytes: entry.value().map(|value| value.bytes.len()),
            expires_in: entry.expires_in(now),
        });
        let since = |(at, cause)| (Duration::from_nanos(now).saturating_sub(at), cause);
        KeyState {
            entry,
            rule: id.index().and_then(|index| shared.rules.names().into_iter().nth(index)),
            mode,
            ttl: Duration::from_nanos(ttls.ttl),
            is_fetching: shared.flights.is_open(key),
            replies: shared.replies.commands_of(key, now, ttls),
            last_invalidation: shared.recent.last(key).map(since),
            coherence: validity.into(),
        }
    }
}
