//! Reads of kept replies: the lookup, and the flight of a read that finds none.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::flight::{FlightGuard, FlightWaiter, Joined};
use super::lease::Validity;
use super::replies::{FetchedReply, Note, Reply, ReplyResult};
use super::ttl::as_nanos;
use super::types::{Cancelled, FetchError, Outcome};
use super::{Cache, Shared};
use crate::key::Key;

impl<E: FetchError> Cache<E> {
    /// Returns the kept reply to `command`, or `None`. Never fetches.
    ///
    /// `command` is the command with its name in capitals, in RESP.
    #[inline]
    pub fn lookup_reply(&self, command: &[u8], now: Instant) -> Option<Arc<Reply>> {
        let shared = &self.0;
        if !shared.replies.store.is_enabled() {
            return None;
        }
        shared.lookup_reply(command, shared.clock(now))
    }

    /// Returns the kept reply to `command`, or the result of the flight for it. Starts that flight
    /// with `fetch` if none can be joined.
    ///
    /// `keys` are all keys that the command reads.
    pub async fn get_or_fetch_reply<F>(
        &self,
        command: &[u8],
        keys: &[Key],
        fetch: impl FnOnce() -> F,
    ) -> (Outcome, ReplyResult<E>)
    where
        F: Future<Output = FetchedReply<E>> + Send + 'static,
    {
        let shared = &self.0;
        let arrived_at = Instant::now();
        if !shared.may_fetch_reply(command, arrived_at) {
            return (Outcome::Bypass, ReplyResult::Forward);
        }
        let mut requested_at = arrived_at;
        let mut joined = shared.join_reply(command, keys, arrived_at);
        if let Joined::Follower(waiter) = joined {
            let result = shared.await_reply(waiter).await;
            if !shared.is_reply_too_old_for(&result, arrived_at) {
                return (Outcome::Coalesced, result);
            }
            // As for strings: any flight that is joined now opened after the reader arrived.
            requested_at = Instant::now();
            joined = shared.join_reply(command, keys, requested_at);
        }
        match joined {
            Joined::Found(reply) => (Outcome::Hit, ReplyResult::Reply(reply)),
            Joined::Follower(waiter) => (Outcome::Coalesced, shared.await_reply(waiter).await),
            Joined::Leader(guard, waiter) => {
                self.spawn_reply_fetch(guard, requested_at, keys.into(), fetch());
                (Outcome::Miss, shared.await_reply(waiter).await)
            }
        }
    }

    /// Returns the most fields or members of a kept hash or set from which other replies are
    /// derived.
    pub fn max_hash_fields(&self) -> usize {
        self.0.replies.store.max_hash_fields()
    }

    /// Returns the keys of all kept replies, each as often as it is read. Takes time in proportion
    /// to the number of replies.
    pub fn reply_keys(&self) -> Vec<Key> {
        self.0.replies.keys()
    }

    /// Spawns the fetch of a flight, as it is done for strings.
    fn spawn_reply_fetch(
        &self,
        guard: FlightGuard<ReplyResult<E>, Note>,
        requested_at: Instant,
        keys: Arc<[Key]>,
        fetch: impl Future<Output = FetchedReply<E>> + Send + 'static,
    ) {
        let shared = Arc::clone(&self.0);
        let requested_at = shared.clock(requested_at);
        tokio::spawn(fetch.instrument(guard.span().clone()).map(move |fetched| {
            let now = shared.clock(Instant::now());
            shared.replies.complete(guard, fetched, requested_at, now, keys);
        }));
    }
}

impl<E: FetchError> Shared<E> {
    #[inline]
    fn lookup_reply(&self, command: &[u8], now: u64) -> Option<Arc<Reply>> {
        // Invariant V2.
        if matches!(self.lease.validity(now), Validity::Expired { .. }) {
            return None;
        }
        self.replies.lookup(command, now, self.ttls.get())
    }

    /// Whether a fetch could be kept.
    fn may_fetch_reply(&self, command: &[u8], now: Instant) -> bool {
        let store = &self.replies.store;
        store.is_enabled()
            && self.ttls.get().ttl > 0
            && !store.is_oversized(command, self.clock(now))
    }

    fn join_reply(
        &self,
        command: &[u8],
        keys: &[Key],
        now: Instant,
    ) -> Joined<ReplyResult<E>, Arc<Reply>, Note> {
        let replies = &self.replies;
        replies.flights.join_noted(
            command,
            |note| replies.is_current(note),
            || self.lookup_reply(command, self.clock(now)),
            || replies.note(keys.iter().map(Key::as_bytes)),
        )
    }

    async fn await_reply(&self, waiter: FlightWaiter<ReplyResult<E>>) -> ReplyResult<E> {
        waiter.wait().await.unwrap_or_else(|| ReplyResult::Failed(E::from(Cancelled)))
    }

    /// Whether the result of a flight is too old for a reader that joined it at `arrived_at`: it
    /// has expired, or its request precedes the reader by `coherence_timeout` or more.
    fn is_reply_too_old_for(&self, result: &ReplyResult<E>, arrived_at: Instant) -> bool {
        let ReplyResult::Reply(reply) = result else { return false };
        let is_expired = !reply.is_fresh(self.clock(Instant::now()), self.ttls.get());
        let age = reply.age(self.clock(arrived_at));
        is_expired || age >= as_nanos(self.settings().coherence_timeout)
    }
}
