//! The fetches of a backend: permits, attempts, and the room for large values.
//!
//! A read may be sent twice. Each attempt waits for the connection, sends the commands of one read,
//! and classifies their replies.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::Either;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::error::BackendError;
use super::fetch_command::{FetchCommand, Reply, UnexpectedReply};
use super::multiplexed::{Multiplexed, Replies, ValueRoom};
use super::reply_fetch::{FetchedReply, ReplyError, ReplyFetch, ReplyRequest, TimedReply};
use super::supervisor::ConnectionState;
use super::suspects::{SentRead, Suspicion};
use super::{Asking, Established, QueueSlot, RECONNECT_WAIT, Shared};
use crate::cache::{Reservation, Turn};
use crate::key::Key;
use crate::telemetry::spans;

impl Shared {
    pub(super) async fn fetch(
        self: &Arc<Self>,
        key: &Key,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Reply, BackendError> {
        let mut reply = self.fetch_into(key, asking, deadline, None).await?;
        loop {
            reply = match reply {
                FetchedValue::Whole(reply) => return Ok(reply),
                FetchedValue::NoRoom(turn) => {
                    Box::pin(async {
                        let room = self.await_room(turn, deadline).await?;
                        self.fetch_into(key, asking, deadline, Some(room)).await
                    })
                    .await?
                }
            }
        }
    }

    /// Fetches a value into the room that is reserved for it, if any.
    fn fetch_into<'a>(
        self: &'a Arc<Self>,
        key: &'a Key,
        asking: Asking,
        deadline: Instant,
        mut room: Option<Reservation>,
    ) -> impl Future<Output = Result<FetchedValue, BackendError>> + Send + 'a {
        let read = match asking {
            Asking::No => SentRead::Value(key),
            Asking::Yes => SentRead::AskedValue(key),
        };
        self.read_twice(read, deadline, move |established, _| {
            self.fetch_once(established, key, asking, deadline, room.take())
        })
    }

    /// Waits for the turn of a value that had no room in flight.
    ///
    /// # Errors
    /// [`BackendError::Overloaded`] after half of `response_timeout`, which leaves time for the
    /// fetch.
    async fn await_room(&self, turn: Turn, deadline: Instant) -> Result<Reservation, BackendError> {
        let until = deadline.min(Instant::now() + self.settings.response_timeout / 2);
        let room = timeout_at(until, turn.wait()).await;
        room.ok().flatten().ok_or(BackendError::Overloaded)
    }

    pub(super) async fn fetch_reply(
        self: &Arc<Self>,
        request: &ReplyRequest,
        max_reply: usize,
        deadline: Instant,
    ) -> Result<FetchedReply, BackendError> {
        let read = SentRead::Command(&request.command);
        self.read_twice(read, deadline, |established, attempt| async move {
            match self.fetch_reply_once(established, request, max_reply, deadline).await? {
                // What the caller noted before the first attempt does not apply to this connection.
                FetchedReply::Keepable { frame, .. } if attempt == Attempt::Second => {
                    Ok(FetchedReply::Unkeepable { frame })
                }
                reply => Ok(reply),
            }
        })
        .await
    }

    /// Calls `send` with a permit to fetch, and again if the connection is lost.
    ///
    /// A read may be sent again. A connection lost under a request usually means a Redis that is
    /// restarting. But if Redis closed the connection, the read itself may be the reason, so it is
    /// [sent alone](Self::try_read) first.
    ///
    /// # Errors
    /// [`BackendError::OutputLimit`] if Redis closes connections over this read; otherwise the
    /// error of the connection, or of `send`.
    async fn read_twice<T, F: Future<Output = Result<T, BackendError>>>(
        self: &Arc<Self>,
        read: SentRead<'_>,
        deadline: Instant,
        mut send: impl FnMut(Established, Attempt) -> F,
    ) -> Result<T, BackendError> {
        let _turn = self.acquire_permit(deadline).await?;
        let (mut slot, mut is_late) = (None, false);
        let connection;
        // A block, so that the task of a fetch has no room for what only its start needs.
        let first = {
            let mut established = self.established(deadline).await?;
            // Asked once there is a connection. By then the reads that lost the last one are
            // suspects.
            if !self.is_free(read) {
                (slot, established, is_late) = Box::pin(self.admit_first(read, deadline)).await?;
            }
            connection = established.0.clone();
            send(established, Attempt::First)
        }
        .await;
        match first {
            Err(BackendError::Disconnected) => {
                drop(slot);
                Box::pin(async {
                    let is_suspect = !is_late && connection.is_closed_by_redis();
                    if is_suspect {
                        self.suspects.suspect(read);
                        self.throttle.lose_read(connection.claim_close());
                    }
                    self.wait_until_down(deadline).await;
                    // Without a connection, Redis is coming back or gone: a trial proves nothing.
                    if let Err(error) = self.connection(deadline).await {
                        if is_suspect {
                            self.try_later(read);
                        }
                        return Err(error);
                    }
                    let _slot = self.admit(read, deadline).await?;
                    send(self.connection(deadline).await?, Attempt::Second).await
                })
                .await
            }
            answer => answer,
        }
    }

    /// Waits until the first attempt of a read may be sent. Returns its slot, the connection, and
    /// whether that has ended already.
    async fn admit_first(
        &self,
        read: SentRead<'_>,
        deadline: Instant,
    ) -> Result<(Option<SemaphorePermit<'_>>, Established, bool), BackendError> {
        let slot = self.admit(read, deadline).await?;
        // The connection may have been lost meanwhile, and its end not be published yet. Then this
        // read was not pending.
        let established = self.established(deadline).await?;
        let is_late = established.0.is_closed();
        Ok((slot, established, is_late))
    }

    /// Whether a read may be sent at once: no suspicion and no bound applies to it.
    fn is_free(&self, read: SentRead<'_>) -> bool {
        self.suspects.suspicion(read) == Suspicion::None && !self.throttle.is_bound()
    }

    /// Waits until a read may be sent: for its trial, if one is due, and for its slot, if there is
    /// a bound. A trial that becomes due while the read waits for its slot comes first, too.
    ///
    /// # Errors
    /// The errors of [`try_read`](Self::try_read); [`BackendError::TimedOut`] at the deadline.
    async fn admit(
        &self,
        read: SentRead<'_>,
        deadline: Instant,
    ) -> Result<Option<SemaphorePermit<'_>>, BackendError> {
        if !self.is_trial_due(read)? {
            let slot = self.throttle.slot(deadline).await?;
            if !self.is_trial_due(read)? {
                return Ok(slot);
            }
        }
        self.try_read(read, deadline).await?;
        self.throttle.slot(deadline).await
    }

    /// Waits until the supervisor has published the end of a closed connection.
    ///
    /// A request on that connection may learn of the end first, and would otherwise use it again.
    async fn wait_until_down(&self, deadline: Instant) {
        let mut state = self.state.clone();
        let is_closed = match &*state.borrow_and_update() {
            ConnectionState::Up(connection, _) => connection.is_closed(),
            _ => false,
        };
        if is_closed {
            _ = timeout_at(deadline.min(Instant::now() + RECONNECT_WAIT), state.changed()).await;
        }
    }

    /// Waits for a permit to fetch.
    ///
    /// # Errors
    /// [`BackendError::Overloaded`] if the queue is full; [`BackendError::TimedOut`] at the
    /// deadline.
    async fn acquire_permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, BackendError> {
        if let Ok(turn) = self.fetch_permits.try_acquire() {
            return Ok(turn);
        }
        let slot = QueueSlot::acquire(&self.fetches_queued, self.settings.max_queue)
            .ok_or(BackendError::Overloaded)?;
        let turn = Box::pin(timeout_at(deadline, self.fetch_permits.acquire())).await;
        drop(slot);
        turn.ok().and_then(Result::ok).ok_or(BackendError::TimedOut)
    }

    /// Fetches a value over this connection. With tracking, no transaction is needed.
    fn fetch_once<'a>(
        &'a self,
        (connection, tracking): Established,
        key: &'a Key,
        asking: Asking,
        deadline: Instant,
        room: Option<Reservation>,
    ) -> impl Future<Output = Result<FetchedValue, BackendError>> + Send + 'a {
        if tracking.is_some() && asking == Asking::No {
            let command = FetchCommand::GetPttlTracked;
            Either::Left(self.execute(command, connection, key, deadline, room))
        } else {
            let fetch = self.fetch_untracked(connection, key, asking, deadline, room);
            Either::Right(Box::pin(fetch))
        }
    }

    async fn fetch_untracked(
        &self,
        connection: Multiplexed,
        key: &Key,
        asking: Asking,
        deadline: Instant,
        room: Option<Reservation>,
    ) -> Result<FetchedValue, BackendError> {
        if asking == Asking::Yes {
            return self.execute(FetchCommand::Asking, connection, key, deadline, room).await;
        }
        let command = FetchCommand::Transaction;
        match self.execute(command, connection.clone(), key, deadline, room).await {
            // Redis short of memory queues no command in a transaction, but still reads.
            Err(BackendError::ErrorReply(code)) if &*code == "OOM" => {
                self.execute(FetchCommand::GetPttl, connection, key, deadline, None).await
            }
            answer => answer,
        }
    }

    async fn execute(
        &self,
        command: FetchCommand,
        connection: Multiplexed,
        key: &Key,
        deadline: Instant,
        room: Option<Reservation>,
    ) -> Result<FetchedValue, BackendError> {
        let sent = SentRequest::begin(&connection, deadline)?;
        let room = room.map_or(ValueRoom::None, ValueRoom::Reserved);
        let replies = if command == FetchCommand::GetPttlTracked {
            connection.fetch_value(Some(deadline), room, key).await
        } else {
            let write = |commands: &mut BytesMut| command.write(key.as_bytes(), commands);
            connection.send_fetch(Some(deadline), room, write).await
        };
        let Replies { values, room } = self.end_request(&sent, &connection, replies)?;
        let (value, expires_in) = match command.parse(values) {
            Ok(Ok(Some(reply))) => reply,
            Ok(Ok(None)) => return Ok(FetchedValue::Whole(None)),
            Ok(Err(error)) => return Err(error),
            Err(UnexpectedReply) => return Err(self.report_desync(deadline).await),
        };
        match room {
            ValueRoom::Unlimited | ValueRoom::None => {
                Ok(FetchedValue::Whole(Some((value.into(), expires_in))))
            }
            ValueRoom::Reserved(room) => {
                Ok(FetchedValue::Whole(Some((room.hold(value), expires_in))))
            }
            ValueRoom::Waits(turn) => Ok(FetchedValue::NoRoom(turn)),
            ValueRoom::Refused => Err(BackendError::Overloaded),
        }
    }

    /// Fetches a reply over this connection.
    async fn fetch_reply_once(
        &self,
        (connection, tracking): Established,
        request: &ReplyRequest,
        max_reply: usize,
        deadline: Instant,
    ) -> Result<FetchedReply, BackendError> {
        let (is_cluster, database) = (self.topology.requires_cluster(), self.settings.url.database);
        let commands = tracking.map_or_else(|| connection.untracked_commands(), |one| one.commands);
        let fetch = match ReplyFetch::plan(request, commands, is_cluster, database) {
            Ok(fetch) if tracking.is_none() => fetch.in_transaction(),
            Ok(fetch) => fetch,
            Err(reason) => return Ok(FetchedReply::Forward(reason)),
        };
        let sent = SentRequest::begin(&connection, deadline)?;
        let replies = connection
            .send_for_frame(Some(deadline), fetch.max_frame(max_reply), |commands| {
                fetch.write(commands)
            })
            .await;
        // The room is free once the reply is with the cache, which counts it if it is kept.
        let (answers, frame) = self.end_request(&sent, &connection, replies)?;
        match fetch.parse(&answers.values, frame) {
            Ok(Ok(reply)) => self.finish_reply(&fetch, reply, &connection, deadline).await,
            Ok(Err(ReplyError::Forward(reason))) => Ok(FetchedReply::Forward(reason)),
            Ok(Err(ReplyError::Backend(error))) => Err(error),
            Err(UnexpectedReply) => Err(self.report_desync(deadline).await),
        }
    }

    /// Requests the times to live of fields that the reply shows, if they are unknown. A failure
    /// costs only the right to keep the reply.
    async fn finish_reply(
        &self,
        fetch: &ReplyFetch<'_>,
        mut reply: TimedReply,
        connection: &Multiplexed,
        deadline: Instant,
    ) -> Result<FetchedReply, BackendError> {
        let names = match fetch.unknown_fields(&reply) {
            Some(names) if names.is_empty() => return Ok(reply.finish()),
            Some(names) => names,
            None => return Ok(reply.unkeepable()),
        };
        let Ok(sent) = SentRequest::begin(connection, deadline) else {
            return Ok(reply.unkeepable());
        };
        let write = |commands: &mut BytesMut| {
            fetch.write_field_expiry(&names, commands);
            1
        };
        let replies = connection.send_batch(Some(deadline), write).await;
        let Ok(replies) = self.end_request(&sent, connection, replies) else {
            return Ok(reply.unkeepable());
        };
        match replies.first().map(|answer| reply.apply_fields(answer, names.len())) {
            Some(Ok(())) => Ok(reply.finish()),
            _ => Err(self.report_desync(deadline).await),
        }
    }

    /// Records the duration of a request. Signals a connection on which nothing arrives.
    fn end_request<T>(
        &self,
        sent: &SentRequest,
        connection: &Multiplexed,
        replies: Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if matches!(replies, Err(BackendError::TimedOut)) {
            // Redis replies in order. If no reply arrived since the fetch was sent, what is pending
            // blocks every later request: a slow value, or replies that no longer parse. The
            // timeout counts only if Redis had at least half of `response_timeout`. A fetch that
            // spent more of it waiting for a permit proves nothing.
            let waited = sent.at.elapsed() >= self.settings.response_timeout / 2;
            if waited && connection.reply_count() == sent.replies_before {
                self.signals.stalled.notify_one();
            }
        }
        let replies = replies?;
        let took = sent.at.elapsed();
        self.metrics.record_fetch(took, spans::current_trace());
        Ok(replies)
    }

    /// Ends the connection, because its replies no longer match commands: the next one could belong
    /// to another key. Returns the error for the request.
    async fn report_desync(&self, deadline: Instant) -> BackendError {
        let mut state = self.state.clone();
        state.mark_unchanged();
        self.signals.desynced.notify_one();
        _ = Box::pin(timeout_at(deadline.min(Instant::now() + RECONNECT_WAIT), state.changed()))
            .await;
        BackendError::Disconnected
    }
}

/// The result of an attempt to fetch a value.
enum FetchedValue {
    /// The reply.
    Whole(Reply),
    /// The value has no room in flight yet.
    NoRoom(Turn),
}

/// The number of an attempt to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Second,
}

/// The state of the connection before a request.
struct SentRequest {
    at: Instant,
    /// The number of replies that had arrived.
    replies_before: u64,
}

impl SentRequest {
    /// Returns the state of the connection before a request.
    ///
    /// # Errors
    /// [`BackendError::TimedOut`] if the deadline has passed.
    fn begin(link: &Multiplexed, deadline: Instant) -> Result<Self, BackendError> {
        let sent = Self { at: Instant::now(), replies_before: link.reply_count() };
        if sent.at >= deadline { Err(BackendError::TimedOut) } else { Ok(sent) }
    }
}
