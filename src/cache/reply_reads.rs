//! Reads of kept replies: the lookup, and the flight of a read that finds none.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::flight::{FlightGuard, FlightWaiter, Joined};
use super::leader_fetch::LeaderFetch;
use super::lease::Validity;
use super::replies::{FetchedReply, Note, Reply, ReplyOf, ReplyProbe, ReplyResult};
use super::rules::Terms;
use super::ttl::as_nanos;
use super::types::{Cancelled, FetchError, LookupTime, LookupUse, Outcome, RuleId};
use super::{Cache, Shared};
use crate::key::Key;

/// A read with a reply that may be kept.
#[derive(Debug, Clone, Copy)]
pub struct ReplyRead<'a> {
    /// The command with its name in capitals, in RESP.
    pub command: &'a [u8],
    /// The index of its name. No reply is derived for an index above 127.
    pub name_index: usize,
    /// All keys that it reads.
    pub keys: &'a [Key],
}

/// A kept reply that a lookup has found.
#[derive(Debug, Clone)]
pub struct KeptReply {
    /// The reply.
    pub reply: Arc<Reply>,
    /// The rule of its keys.
    pub rule: RuleId,
}

impl<E: FetchError> Cache<E> {
    /// Returns the kept reply to `command`, or `None`. Never fetches.
    ///
    /// `command` is the command with its name in capitals, in RESP.
    #[inline]
    pub fn lookup_reply(
        &self,
        command: &[u8],
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        let shared = &self.0;
        if !shared.replies.store.is_enabled() {
            return None;
        }
        shared.lookup_reply(command, now.0, purpose)
    }

    /// Returns the kept reply to `command`, from which the reply to the command with the name at
    /// `derived` follows. `None` also if Redis has not replied to that command since the beginning
    /// of the generation, or of the last check of rights: the user may lack the right to it.
    #[inline]
    pub fn lookup_whole(
        &self,
        command: &[u8],
        derived: usize,
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        let is_proven = self.0.replies.is_proven(derived);
        if is_proven { self.lookup_reply(command, now, purpose) } else { None }
    }

    /// Returns the kept reply to a read, or the result of the flight for it. Starts that flight
    /// with `fetch` if none can be joined.
    pub async fn get_or_fetch_reply<F>(
        &self,
        read: ReplyRead<'_>,
        fetch: impl FnOnce() -> F,
    ) -> (Outcome, ReplyResult<E>)
    where
        F: Future<Output = FetchedReply<E>> + Send + 'static,
    {
        let shared = &self.0;
        let ReplyRead { command, name_index, keys } = read;
        let arrived_at = Instant::now();
        if !shared.may_fetch_reply(command, keys, arrived_at) {
            return (Outcome::Bypass, ReplyResult::Forward);
        }
        let mut requested_at = arrived_at;
        let mut joined = shared.join_reply(command, keys, arrived_at);
        if let Joined::Follower(waiter) = joined {
            let result = shared.await_reply(waiter).await;
            if !shared.is_reply_too_old_for(&result, keys, arrived_at) {
                return (Outcome::Coalesced, result);
            }
            // As for strings: any flight that is joined now opened after the reader arrived.
            requested_at = Instant::now();
            joined = shared.join_reply(command, keys, requested_at);
        }
        match joined {
            Joined::Found(reply) => (Outcome::Hit, ReplyResult::Reply(reply)),
            Joined::Follower(waiter) => (Outcome::Coalesced, shared.await_reply(waiter).await),
            Joined::Leader(guard) => {
                let of = ReplyOf { name_index, keys: keys.into(), requested_at };
                (Outcome::Miss, self.lead_reply(guard, of, fetch()).await)
            }
        }
    }

    /// Returns the largest reply, in bytes, that is kept for a command with these keys.
    pub fn max_reply(&self, keys: &[Key]) -> usize {
        let shared = &self.0;
        shared.settings().max_reply.0.min(shared.terms_of_all(keys).max_value)
    }

    /// Returns the most fields or members of a kept hash or set from which other replies are
    /// derived.
    pub fn max_hash_fields(&self) -> usize {
        self.0.replies.store.max_hash_fields()
    }

    /// Returns the commands and keys that prove the user's rights to all kept replies.
    /// Takes time in proportion to their number.
    ///
    /// The commands are one for each name, with a reply of at most `max_size` bytes. A name without
    /// one needs a new proof before a reply to it is derived.
    pub fn reply_probe(&self, max_size: usize) -> ReplyProbe {
        self.0.replies.probe(max_size)
    }

    /// Returns the fetch of a flight, as [`lead`](Self::lead) does for strings.
    fn lead_reply(
        &self,
        guard: FlightGuard<ReplyResult<E>, Note>,
        of: ReplyOf,
        fetch: impl Future<Output = FetchedReply<E>> + Send + 'static,
    ) -> impl Future<Output = ReplyResult<E>> {
        let shared = Arc::clone(&self.0);
        let requested_at = shared.clock(of.requested_at);
        let span = guard.span().clone();
        let complete = move |fetched| {
            let now = shared.clock(Instant::now());
            let result = shared.replies.complete(guard, fetched, requested_at, now, of);
            // Strings make room for replies.
            shared.store.load().evict_excess();
            result
        };
        LeaderFetch::new(|| fetch.instrument(span).map(complete))
    }
}

impl<E: FetchError> Shared<E> {
    #[inline]
    pub(super) fn lookup_reply(
        &self,
        command: &[u8],
        now: u64,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        // Invariant V2.
        if matches!(self.lease.validity(now), Validity::Expired { .. }) {
            return None;
        }
        let mut terms = None;
        let reply =
            self.replies.lookup(command, now, |keys| *terms.insert(self.terms_of_all(keys)))?;
        let terms = terms?;
        terms.allows(purpose).then_some(KeptReply { reply, rule: terms.id })
    }

    /// Returns the terms of a command with these keys.
    #[inline]
    fn terms_of_all(&self, keys: &[Key]) -> Terms {
        match &self.store.load().rules {
            None => Terms::without_rule(self.ttls.get()),
            Some(rules) => rules.find_all(keys.iter().map(Key::as_bytes)),
        }
    }

    /// Whether a fetch could be kept.
    fn may_fetch_reply(&self, command: &[u8], keys: &[Key], now: Instant) -> bool {
        let store = &self.replies.store;
        store.is_enabled()
            && self.terms_of_all(keys).ttls.ttl > 0
            && !store.is_paused(command, self.clock(now))
    }

    pub(super) fn join_reply(
        &self,
        command: &[u8],
        keys: &[Key],
        now: Instant,
    ) -> Joined<ReplyResult<E>, Arc<Reply>, Note> {
        let replies = &self.replies;
        let look_again = || self.lookup_reply(command, self.clock(now), LookupUse::Serve);
        replies.flights.join_noted(
            command,
            |note| replies.is_current(note),
            || look_again().map(|found| found.reply),
            || replies.note(keys.iter().map(Key::as_bytes)),
        )
    }

    pub(super) async fn await_reply(
        &self,
        waiter: FlightWaiter<ReplyResult<E>, Note>,
    ) -> ReplyResult<E> {
        waiter.wait().await.unwrap_or_else(|| ReplyResult::Failed(E::from(Cancelled)))
    }

    /// Whether the result of a flight is too old for a reader that joined it at `arrived_at`: it
    /// has expired, or its request precedes the reader by `coherence_timeout` or more.
    fn is_reply_too_old_for(
        &self,
        result: &ReplyResult<E>,
        keys: &[Key],
        arrived_at: Instant,
    ) -> bool {
        let ReplyResult::Reply(reply) = result else { return false };
        let ttls = self.terms_of_all(keys).ttls;
        let is_expired = !reply.is_fresh(self.clock(Instant::now()), ttls);
        let age = reply.age(self.clock(arrived_at));
        is_expired || age >= as_nanos(self.settings().coherence_timeout)
    }
}
