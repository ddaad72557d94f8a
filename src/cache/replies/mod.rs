//! Kept replies: the reply to a read of any type, kept whole under the bytes of its command.
//!
//! Model: a reply may be served while nothing that it depends on has changed. This is decided by
//! comparison, not by removal:
//!
//! - Each key has a change counter ([`counters`]). A push of the key adds one to it.
//! - A generation begins wherever the store of strings is emptied or suspended: a lost connection,
//!   a flush, an unreadable push, tracking that begins or ends.
//! - A fetch notes the generation and the counters of all its keys. The reply carries that note,
//!   and is served only while generation and counters are the same.
//!
//! The rules that must not be broken:
//! - A fetch notes *before* its command is queued (invariant V1). Otherwise a change between
//!   command and note would count as seen.
//! - A reader reads the lease, then looks in the store, then compares the note (invariant V2), and
//!   a new generation begins before a new lease. Otherwise a reply that was compared while no lease
//!   was valid would be served under the next one.
//! - A reader joins a flight only if the note of that flight is current, compared under the
//!   flights' lock (invariant V3). Otherwise a client that has passed the fence behind its own
//!   write could join a flight that was answered before, and read the value from before its own
//!   write.

mod counters;
mod proofs;
mod reply;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::proofs::{MAX_NAMES, Proofs};
pub use self::reply::Reply;
pub(super) use self::reply::{Note, ReplyOf};
pub use self::store::ReplyStore;
use super::flight::{FlightGuard, Flights};
use super::rules::Terms;
use super::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire};
use super::ttl::{Ttls, as_nanos};
use super::types::{EvictionCause, FetchError, ReplyStatistics};
use crate::key::Key;
use crate::protocol::ReplyFrame;

/// The time for which a command is not fetched after its reply was too large.
const OVERSIZED_PAUSE: Duration = Duration::from_secs(60);
/// The time for which a command is not fetched after its reply could not be kept. A fetch asks for
/// the times to live too, so fetching each time would cost Redis up to three commands a read.
const UNKEEPABLE_PAUSE: Duration = Duration::from_secs(1);

/// The kept replies of one cache.
pub(super) struct Replies<E> {
    pub(super) store: Arc<ReplyStore>,
    /// Never equal to that of another cache on the same store, so a cluster's primaries share the
    /// store and never serve each other's replies (invariant P1).
    generation: AtomicU64,
    pub(super) flights: Arc<Flights<ReplyResult<E>, Note>>,
    proofs: Proofs,
}

/// The commands and keys that prove the user's rights to all kept replies.
#[derive(Debug, Default)]
pub struct ReplyProbe {
    /// A command for each name, in RESP.
    pub commands: Vec<Key>,
    /// The keys of all replies, each as often as it is read.
    pub keys: Vec<Key>,
}

/// The result of a fetch of a reply.
#[derive(Debug, Clone)]
pub enum FetchedReply<E> {
    /// The reply, which may be kept until its first key or field expires (`None`: none does).
    Keepable(ReplyFrame, Option<Duration>),
    /// The reply, for the readers that waited when it was requested. Its end is unknown, so a field
    /// may have ended since then. The command is not fetched for a second.
    Unkeepable(ReplyFrame),
    /// Each reader has to send the command itself.
    Forward,
    /// The same, because the reply is too large. The command is not fetched for a minute.
    TooLarge,
    /// Redis did not reply.
    Failed(E),
}

/// The result that a flight delivers to its readers.
#[derive(Debug, Clone)]
pub enum ReplyResult<E> {
    /// The reply.
    Reply(Arc<Reply>),
    /// The reader has to send the command itself.
    Forward,
    /// Redis did not reply.
    Failed(E),
}

impl<E> FetchedReply<E> {
    /// Returns the time for which the command is not fetched again, and each reader sends it.
    fn pause(&self) -> Option<Duration> {
        match self {
            Self::TooLarge => Some(OVERSIZED_PAUSE),
            Self::Unkeepable(_) => Some(UNKEEPABLE_PAUSE),
            Self::Keepable(..) | Self::Forward | Self::Failed(_) => None,
        }
    }

    /// Returns the result for the readers of the flight, which noted `note` before the request.
    fn into_result(self, requested_at: u64, of: ReplyOf, note: Note) -> ReplyResult<E> {
        let reply = |frame, expires_in| {
            ReplyResult::Reply(Arc::new(Reply::new(frame, requested_at, expires_in, of, note)))
        };
        match self {
            Self::Keepable(frame, expires_in) => reply(frame, expires_in),
            Self::Unkeepable(frame) => reply(frame, Some(Duration::ZERO)),
            Self::Forward | Self::TooLarge => ReplyResult::Forward,
            Self::Failed(error) => ReplyResult::Failed(error),
        }
    }
}

impl<E: FetchError> Replies<E> {
    pub(super) fn new(store: Arc<ReplyStore>) -> Self {
        let generation = AtomicU64::new(store.next_generation());
        Self { store, generation, flights: Flights::new(), proofs: Proofs::new() }
    }

    /// Ends all replies that depend on `key`.
    pub(super) fn key_changed(&self, key: &[u8]) {
        self.store.counters.add(key);
    }

    /// Ends all replies that depend on a key for which `matches` returns true. Takes time in
    /// proportion to the number of replies.
    ///
    /// Flights close first. A reply that one of them has stored before is found afterwards.
    pub(super) fn purge_where(&self, matches: impl Fn(&[u8]) -> bool) {
        self.flights.close_all(|| ());
        let generation = self.generation.load(Acquire);
        self.store.remove_where(EvictionCause::Purged, |reply| {
            if reply.note.generation() != generation {
                return false;
            }
            let keys = reply.keys().iter().map(Key::as_bytes);
            keys.filter(|key| matches(key)).map(|key| self.key_changed(key)).count() > 0
        });
    }

    /// Returns the number of valid replies to reads of `key`, by the name of their command. Takes
    /// time in proportion to the number of replies.
    pub(super) fn commands_of(&self, key: &[u8], now: u64, ttls: Ttls) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (command, reply) in self.store.of_generation(self.generation.load(Acquire)) {
            let has_key = reply.keys().iter().any(|other| other.as_bytes() == key);
            if has_key && reply.is_fresh(now, ttls) && self.is_current(&reply.note) {
                *counts.entry(name_of(command.as_bytes())).or_default() += 1;
            }
        }
        counts
    }

    /// Ends all replies of this cache. Returns the generation that ended;
    /// [`ReplyStore::remove_generation`] frees its memory.
    pub(super) fn begin_generation(&self) -> u64 {
        self.generation.swap(self.store.next_generation(), AcqRel)
    }

    /// Returns the number of the generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Returns the counts. Those of the store are of all caches that share it.
    pub(super) fn statistics(&self) -> ReplyStatistics {
        let (entries, bytes) = self.store.size();
        ReplyStatistics {
            entries,
            bytes,
            evictions: self.store.evictions.get(),
            flights: self.flights.len(),
            discarded: self.flights.discarded(),
        }
    }

    /// Whether Redis has replied to the command with the name at this index, in this generation.
    #[inline]
    pub(super) fn is_proven(&self, name_index: usize) -> bool {
        self.proofs.has(name_index, self.generation.load(Acquire))
    }

    /// Returns the commands and keys that prove the rights to all replies. The proof of each name
    /// without a command in it ends.
    pub(super) fn probe(&self, max_size: usize) -> ReplyProbe {
        let generation = self.generation.load(Acquire);
        let mut probe = ReplyProbe::default();
        let mut is_probed = [false; MAX_NAMES];
        for (command, reply) in self.store.of_generation(generation) {
            probe.keys.extend_from_slice(reply.keys());
            let is_small = reply.frame().bytes().len() <= max_size;
            if let Some(is_probed) = is_probed.get_mut(reply.name_index())
                && is_small
                && !*is_probed
            {
                *is_probed = true;
                probe.commands.push(command);
            }
        }
        self.proofs.end_where(|name_index| !is_probed[name_index], generation);
        probe
    }

    pub(super) fn note<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Note {
        Note::new(self.generation.load(Acquire), &self.store.counters, keys)
    }

    #[inline]
    pub(super) fn is_current(&self, note: &Note) -> bool {
        note.generation() == self.generation.load(Acquire)
            && note.is_unchanged(&self.store.counters)
    }

    /// Whether no key of `reply` has changed since its fetch.
    pub(super) fn is_reply_current(&self, reply: &Reply) -> bool {
        self.is_current(&reply.note)
    }

    /// Returns the reply to `command`, if it is valid at `now` by the terms of its keys. The caller
    /// has read the lease before (invariant V2).
    #[inline]
    pub(super) fn lookup(
        &self,
        command: &[u8],
        now: u64,
        terms_of: impl FnOnce(&[Key]) -> Terms,
    ) -> Option<Arc<Reply>> {
        let reply = self.store.get(command)?;
        let Terms { ttls, max_value, .. } = terms_of(reply.keys());
        let is_small = reply.frame().bytes().len() <= max_value;
        if is_small && reply.is_fresh(now, ttls) && self.is_current(&reply.note) {
            return Some(reply);
        }
        self.remove_ended(command, &reply, now, ttls);
        None
    }

    #[cold]
    fn remove_ended(&self, command: &[u8], reply: &Arc<Reply>, now: u64, ttls: Ttls) {
        let is_expired = !reply.is_fresh(now, ttls);
        let cause = if is_expired { EvictionCause::Expired } else { EvictionCause::Invalidated };
        self.store.remove(command, reply, cause);
    }

    /// Completes a flight: keeps the reply if its note is still current, delivers it to the readers
    /// that wait, and returns it.
    pub(super) fn complete(
        &self,
        guard: FlightGuard<ReplyResult<E>, Note>,
        fetched: FetchedReply<E>,
        requested_at: u64,
        now: u64,
        of: ReplyOf,
    ) -> ReplyResult<E> {
        let note = guard.note().clone();
        if matches!(fetched, FetchedReply::Keepable(..) | FetchedReply::Unkeepable(_)) {
            self.proofs.add(of.name_index, note.generation());
        }
        if let Some(pause) = fetched.pause() {
            let until = now.saturating_add(as_nanos(pause));
            self.store.pause(guard.key().as_bytes(), now, until);
        }
        let is_keepable = matches!(fetched, FetchedReply::Keepable(..));
        let result = fetched.into_result(requested_at, of, note);
        let keep = |command: &Key, note: &Note| match &result {
            ReplyResult::Reply(reply) if is_keepable && self.is_current(note) => {
                self.store.insert(command.clone(), Arc::clone(reply));
            }
            _ => {}
        };
        guard.complete(keep, &result);
        result
    }
}

impl<E: FetchError> Replies<E> {
    /// Completes the flight of a check: delivers the reply and keeps nothing.
    pub(super) fn complete_check(
        guard: FlightGuard<ReplyResult<E>, Note>,
        fetched: FetchedReply<E>,
        requested_at: u64,
        of: ReplyOf,
    ) {
        let result = fetched.into_result(requested_at, of, guard.note().clone());
        guard.complete(|_, _| {}, &result);
    }
}

/// Returns the name of a command in RESP: the bytes behind the two lengths.
fn name_of(command: &[u8]) -> String {
    let name = command.split(|byte| *byte == b'\r').nth(2).unwrap_or_default();
    String::from_utf8_lossy(name.trim_ascii_start()).into_owned()
}

#[cfg(test)]
#[cfg(feature = "shuttle")]
mod model_check;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
