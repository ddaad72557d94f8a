//! The shared connection: one stream to Redis that many requests use at the same time.
//!
//! A request appends its command bytes and an entry of the queue of pending requests ([`pending`],
//! [`submit_queue`]). The bytes are written by the reader's thread or by the driver, a single task
//! that hands each reply to the oldest pending request. Pushes are applied where they are read.
//!
//! The rule that must not be broken: bytes and pending requests are added under one lock and taken
//! under it, in the same order, and one thread writes at a time. So the n-th reply belongs to the
//! n-th command. A pending request stays in the queue until all its replies have arrived, even if
//! its reader was dropped. Otherwise the next request would receive its replies.
//!
//! When many values are requested at once, they are requested without their PTTLs. One shared check
//! behind a batch of them returns whether any key expires ([`expiry_check`](super::expiry_check)).
//! The values stay pending until that reply has arrived too.
//!
//! A large value needs room in flight ([`InFlight`]). A value without room is discarded here, and
//! its request gets its turn for room instead. Reading goes on, because pushes follow.
//!
//! The last reply of a request can be delivered as its bytes ([`Frame`]). Such a reply is not
//! parsed, and its size is limited.
//!
//! Requests mostly come from other threads than the driver's, and waking a thread costs a system
//! call. So the requests of one turn of a runtime are written there together, or wake the driver
//! once. The replies of one turn of the driver return to each runtime in one task.

mod pending;
mod submit_queue;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, PushInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use self::pending::{FrameRequest, OnComplete, PendingRequest, ReplySender, ValueLimits};
pub(super) use self::pending::{Replies, ValueRoom};
use self::submit_queue::{AfterSubmit, BATCHES_PER_TURN, BUF_RETAIN, MIN_BATCH, SubmitQueue};
use super::direct_writer::DirectWriter;
use super::error::{BackendError, repeated_login_error, unreachable};
use super::expiry_check::Expiry;
use super::fetch_command::NO_EXPIRY;
use super::reply_decoder::{Frame, LARGE_VALUE_MIN, ReplyDecoder};
use super::server_commands::ServerCommands;
use super::tls_error;
use crate::cache::InFlight;
use crate::key::Key;
use crate::protocol::InvalidReply;
use crate::sync::lock;

/// A handle of the shared connection; clones use the same stream.
#[derive(Clone)]
pub(super) struct Multiplexed(Arc<Shared>);

struct Shared {
    queue: Mutex<SubmitQueue>,
    /// The number of replies received so far, pushes excluded.
    reply_count: AtomicU64,
    /// The commands that the server confirms, on a connection without tracking.
    untracked_commands: OnceLock<ServerCommands>,
    value_limits: OnceLock<ValueLimits>,
    /// Whether the stream ended from the other side. Set before the pending requests fail.
    closed_by_redis: AtomicBool,
    /// Whether a reader has recorded that end.
    is_close_claimed: AtomicBool,
}

/// Replies, and their receiver.
type Completion = (ReplySender, Replies);

/// The handler of pushes.
pub(super) type PushHandler = Box<dyn FnMut(PushInfo) + Send>;

/// The future that reads and writes the stream while the connection lasts. Its output is the reason
/// for the end.
pub(super) struct ConnectionDriver<S> {
    stream: S,
    connection: Multiplexed,
    reader: ReplyDecoder,
    pending: VecDeque<PendingRequest>,
    /// Requests that have received their value and wait for a shared check.
    awaiting_check: Vec<PendingRequest>,
    /// The bytes to write.
    output: BytesMut,
    /// Whether written bytes may still be buffered by the stream, as TLS does.
    is_to_flush: bool,
    /// Replies to deliver to other runtimes.
    cross_thread_replies: Vec<(Handle, Vec<Completion>)>,
    /// Fires at the earliest deadline of the pending requests, or before it.
    deadline_timer: Option<Pin<Box<Sleep>>>,
    on_push: PushHandler,
}

/// The error text for a connection on which replies no longer match requests; it is closed.
pub(super) const UNEXPECTED_REPLY: &str = "Redis sent a reply without a request";

/// The number of replies to a value and its PTTL.
const VALUE_REPLIES: usize = 2;
impl Multiplexed {
    /// Returns a connection over `stream`, on which nothing may have been sent yet, and its driver.
    /// Shared checks count the keys of `database`. `direct_writer` writes to the stream, too.
    pub(super) fn new<S>(
        stream: S,
        direct_writer: Option<DirectWriter>,
        database: u32,
        on_push: PushHandler,
    ) -> (Self, ConnectionDriver<S>) {
        let connection = Self(Arc::new(Shared {
            queue: Mutex::new(SubmitQueue::new(database, direct_writer)),
            reply_count: AtomicU64::new(0),
            untracked_commands: OnceLock::new(),
            value_limits: OnceLock::new(),
            closed_by_redis: AtomicBool::new(false),
            is_close_claimed: AtomicBool::new(false),
        }));
        let driver = ConnectionDriver {
            stream,
            connection: connection.clone(),
            reader: ReplyDecoder::default(),
            pending: VecDeque::new(),
            awaiting_check: Vec::new(),
            output: BytesMut::new(),
            is_to_flush: false,
            cross_thread_replies: Vec::new(),
            deadline_timer: None,
            on_push,
        };
        (connection, driver)
    }

    /// Records the commands that the server confirms, on a connection without tracking.
    pub(super) fn confirm_untracked(&self, commands: ServerCommands) {
        _ = self.0.untracked_commands.set(commands);
    }

    /// Bounds the values in flight of all later fetches. At most `max_queue` values wait for room.
    pub(super) fn limit_values(&self, in_flight: &Arc<InFlight>, max_queue: usize) {
        let limits = ValueLimits { in_flight: Arc::clone(in_flight), max_queue };
        _ = self.0.value_limits.set(limits);
    }

    /// Returns the commands that the server confirms, on a connection without tracking.
    pub(super) fn untracked_commands(&self) -> ServerCommands {
        self.0.untracked_commands.get().copied().unwrap_or(ServerCommands::NONE)
    }

    /// Sends a command and returns its reply, which may be an error reply.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`] if the connection ends before the reply arrives.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, BackendError> {
        self.send_for_one(&[command]).await
    }

    /// Sends commands that have a single reply together, and returns that reply.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`] if the connection ends before the reply arrives.
    pub(super) async fn send_for_one(&self, commands: &[&Cmd]) -> Result<Value, BackendError> {
        let write = |output: &mut BytesMut| {
            for command in commands {
                output.extend_from_slice(&command.get_packed_command());
            }
            1
        };
        let replies = self.send_batch(None, write).await?;
        replies.into_iter().next().ok_or(BackendError::Disconnected)
    }

    /// Sends the commands that `write` appends, with no other command between them, and returns
    /// their replies. `write` returns the number of replies.
    ///
    /// # Errors
    /// - [`BackendError::Disconnected`] if the connection ends before the last reply arrives.
    /// - [`BackendError::TimedOut`] if `deadline` passes first.
    pub(super) async fn send_batch(
        &self,
        deadline: Option<Instant>,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> Result<Vec<Value>, BackendError> {
        let write = |queue: &mut SubmitQueue| (write(&mut queue.commands), OnComplete::Reply);
        Ok(self.submit(deadline, ValueRoom::Unlimited, write).await?.values)
    }

    /// Sends the commands of a fetch, as [`send_batch`](Self::send_batch) does. `room` is that of
    /// the last attempt.
    ///
    /// # Errors
    /// The errors of [`send_batch`](Self::send_batch).
    pub(super) fn send_fetch(
        &self,
        deadline: Option<Instant>,
        room: ValueRoom,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> impl Future<Output = Result<Replies, BackendError>> {
        let write = |queue: &mut SubmitQueue| (write(&mut queue.commands), OnComplete::Reply);
        self.submit(deadline, room, write)
    }

    /// Sends commands as [`send_batch`](Self::send_batch) does, and returns the last reply apart
    /// from the others, as its bytes. [`Frame::TooLarge`] if it has more than `limit` bytes,
    /// [`Frame::NoRoom`] if it has no room in flight.
    ///
    /// # Errors
    /// The errors of [`send_batch`](Self::send_batch).
    pub(super) async fn send_for_frame(
        &self,
        deadline: Option<Instant>,
        limit: usize,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> Result<(Replies, Frame), BackendError> {
        let (frame_to, mut frame) = oneshot::channel();
        let request = Box::new(FrameRequest { limit, frame_to: Some(frame_to) });
        let write = |queue: &mut SubmitQueue| {
            (write(&mut queue.commands), OnComplete::ReplyWithFrame(request))
        };
        let replies = self.submit(deadline, ValueRoom::None, write).await?;
        // The frame is sent before the replies.
        let frame = frame.try_recv().map_err(|_| BackendError::Disconnected)?;
        Ok((replies, frame))
    }

    /// Repeats a login and sends commands behind it that have one reply each, with no other command
    /// between them. Returns the replies to the commands. If Redis rejects the login, the
    /// connection ends before any later reply is delivered.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`] if the connection ends before the last reply arrives.
    pub(super) async fn send_after_login(
        &self,
        login: Option<&Cmd>,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, BackendError> {
        let write = |queue: &mut SubmitQueue| {
            if let Some(login) = login {
                queue.submit_own(&login.get_packed_command(), OnComplete::LoggedIn);
            }
            for command in commands {
                queue.commands.extend_from_slice(&command.get_packed_command());
            }
            (commands.len(), OnComplete::Reply)
        };
        Ok(self.submit(None, ValueRoom::Unlimited, write).await?.values)
    }

    /// Returns the replies of GET and PTTL for `key`, or equivalents of them. Requires tracking:
    /// the two belong together unless an invalidation of the key arrives before they are delivered.
    /// `room` is that of the last attempt.
    ///
    /// # Errors
    /// The errors of [`send_batch`](Self::send_batch).
    pub(super) fn fetch_value(
        &self,
        deadline: Option<Instant>,
        room: ValueRoom,
        key: &Key,
    ) -> impl Future<Output = Result<Replies, BackendError>> {
        self.submit(deadline, room, |queue| queue.write_value(key))
    }

    async fn submit(
        &self,
        deadline: Option<Instant>,
        room: ValueRoom,
        write: impl FnOnce(&mut SubmitQueue) -> (usize, OnComplete),
    ) -> Result<Replies, BackendError> {
        let (sender, receiver) = oneshot::channel();
        let here = Handle::current();
        let after = {
            let mut queue = self.lock();
            if queue.is_closed() {
                return Err(BackendError::Disconnected);
            }
            let (remaining, on_complete) = write(&mut queue);
            let remote_runtime = queue.is_remote(here.id()).then_some(here);
            queue.push(PendingRequest {
                remaining,
                replies: Vec::with_capacity(remaining.max(VALUE_REPLIES)),
                reply_to: Some(sender),
                remote_runtime,
                deadline,
                room,
                on_complete,
            })
        };
        self.act(after);
        receiver.await.unwrap_or(Err(BackendError::Disconnected))
    }

    /// Wakes the driver, or has the commands written, as a submission requires.
    ///
    /// A task does the work at the end of the turn, so ready tasks of this runtime submit first.
    /// Otherwise each of them would cost a system call of its own.
    fn act(&self, after: AfterSubmit) {
        match after {
            AfterSubmit::Nothing => {}
            AfterSubmit::WakeDriver(driver) => driver.wake(),
            AfterSubmit::WakeDriverLater(driver) => {
                let wake = WakeOnDrop(driver);
                tokio::spawn(async move { drop(wake) });
            }
            AfterSubmit::Write(driver) => {
                if let Some(driver) = driver {
                    driver.wake();
                }
                let write = WriteOnDrop(self.clone());
                tokio::spawn(async move { drop(write) });
            }
        }
    }

    /// Writes the commands of the queue for as long as this thread has the turn to write.
    fn write_commands(&self) {
        loop {
            let Some((commands, socket)) = self.lock().take_for_reader() else { return };
            let written = socket.write(&commands);
            let driver = self.lock().end_write(commands, written);
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }

    /// Returns the number of replies received so far.
    pub(super) fn reply_count(&self) -> u64 {
        self.0.reply_count.load(Relaxed)
    }

    /// Returns whether the driver has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed()
    }

    /// Returns whether the connection has ended because Redis closed it, or the network did.
    pub(super) fn is_closed_by_redis(&self) -> bool {
        self.0.closed_by_redis.load(Relaxed)
    }

    /// Returns whether the caller is the first one to record the end of the connection.
    pub(super) fn claim_close(&self) -> bool {
        !self.0.is_close_claimed.swap(true, Relaxed)
    }

    /// Locks the queue. No code under this lock panics, except for a failed allocation, which
    /// aborts the process.
    fn lock(&self) -> MutexGuard<'_, SubmitQueue> {
        lock(&self.0.queue)
    }
}

/// Wakes a driver when dropped, so the wake-up happens even if the task that holds this never runs.
struct WakeOnDrop(Waker);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake_by_ref();
    }
}

/// Writes the commands of a connection when dropped, so they are written even if the task that
/// holds this never runs.
struct WriteOnDrop(Multiplexed);

impl Drop for WriteOnDrop {
    fn drop(&mut self) {
        self.0.write_commands();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ConnectionDriver<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<BackendError> {
        let read = self.poll_replies(cx);
        for (runtime, completions) in self.cross_thread_replies.drain(..) {
            runtime.spawn(async move {
                for (reply_to, replies) in completions {
                    // The receiver may be gone.
                    _ = reply_to.send(Ok(replies));
                }
            });
        }
        read
    }

    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Poll<BackendError> {
        let mut batch = (self.pending.len() / BATCHES_PER_TURN).max(MIN_BATCH);
        loop {
            loop {
                match self.handle_next() {
                    Ok(true) => {
                        batch -= 1;
                        if batch == 0 {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                    Ok(false) => break,
                    Err(error) => return Poll::Ready(error),
                }
            }
            match ready!(self.reader.poll_read(&mut self.stream, cx)) {
                // The requests of these replies may have been written since the last time.
                Ok(1..) => self.accept_pending(),
                Ok(0) => return Poll::Ready(closed()),
                Err(error) => {
                    return Poll::Ready(tls_error::alert(&error).unwrap_or_else(closed));
                }
            }
        }
    }

    /// Handles the next reply or push of the bytes read so far. Returns whether it was complete.
    fn handle_next(&mut self) -> Result<bool, BackendError> {
        let invalid = |InvalidReply| unreachable(&"Redis sent an invalid reply");
        match self.pending.front().and_then(PendingRequest::frame_limit) {
            None => match self.reader.next_reply().map_err(invalid)? {
                Some(reply) => self.on_reply(reply)?,
                None => return Ok(false),
            },
            Some(limit) => match self.reader.next_frame(limit).map_err(invalid)? {
                Some(frame) => self.on_frame(frame)?,
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    /// Hands a reply to the oldest pending request, or a push to its handler.
    fn on_reply(&mut self, mut answer: Value) -> Result<(), BackendError> {
        if let Value::Push { kind, data } = answer {
            (self.on_push)(PushInfo { kind, data });
            return Ok(());
        }
        self.connection.0.reply_count.fetch_add(1, Relaxed);
        let Some(first) = self.pending.front_mut() else {
            return Err(unreachable(&UNEXPECTED_REPLY));
        };
        first.admit(&mut answer, self.connection.0.value_limits.get());
        first.replies.push(answer);
        first.remaining = first.remaining.saturating_sub(1);
        if first.remaining > 0 {
            return Ok(());
        }
        self.complete_first()
    }

    /// Delivers the last reply of the oldest pending request as its bytes, or hands a push to its
    /// handler.
    fn on_frame(&mut self, frame: Frame) -> Result<(), BackendError> {
        if let Frame::Push(push) = frame {
            return self.on_reply(push);
        }
        self.connection.0.reply_count.fetch_add(1, Relaxed);
        if let Some(first) = self.pending.front_mut() {
            let frame = first.admit_frame(frame, self.connection.0.value_limits.get());
            if let OnComplete::ReplyWithFrame(request) = &mut first.on_complete
                && let Some(frame_to) = request.frame_to.take()
            {
                // The receiver may be gone.
                _ = frame_to.send(frame);
            }
        }
        self.complete_first()
    }

    /// Removes the oldest pending request, which has all its replies, and delivers them or
    /// takes note of them.
    fn complete_first(&mut self) -> Result<(), BackendError> {
        let Some(answered) = self.pending.pop_front() else { return Ok(()) };
        match (&answered.on_complete, answered.replies.first()) {
            (OnComplete::Reply | OnComplete::ReplyWithFrame(_), _) => self.deliver(answered),
            (OnComplete::AwaitExpiryCheck(_), value) => {
                // Large values get their PTTLs. Otherwise the other values of a batch would wait
                // for the large one, for longer than the shared check saves.
                if matches!(value, Some(Value::BulkString(value)) if value.len() >= LARGE_VALUE_MIN)
                {
                    self.connection.lock().expiry_check.defer();
                }
                // Without a receiver there is nothing to hold.
                if answered.reply_to.is_some() {
                    self.awaiting_check.push(answered);
                }
            }
            (OnComplete::ServerIdentified, Some(answer)) => {
                self.connection.lock().expiry_check.on_server_info(answer);
            }
            (OnComplete::ExpiryChecked, Some(answer)) => {
                let finding = self.connection.lock().expiry_check.on_keyspace_info(answer);
                let expiry = finding.map_err(|_| unreachable(&UNEXPECTED_REPLY))?;
                self.deliver_held(expiry);
            }
            (OnComplete::LoggedIn, Some(answer)) => {
                if let Some(error) = repeated_login_error(answer) {
                    return Err(error);
                }
            }
            (
                OnComplete::ServerIdentified | OnComplete::ExpiryChecked | OnComplete::LoggedIn,
                None,
            ) => {}
        }
        Ok(())
    }

    /// Delivers the held values after a shared check. If some key expires, their PTTLs are
    /// requested first.
    fn deliver_held(&mut self, expiry: Expiry) {
        for mut pending in std::mem::take(&mut self.awaiting_check) {
            match (&pending.on_complete, pending.replies.first()) {
                (OnComplete::AwaitExpiryCheck(key), Some(Value::BulkString(_)))
                    if expiry == Expiry::SomeKeys =>
                {
                    let key = key.clone();
                    let pending =
                        PendingRequest { remaining: 1, on_complete: OnComplete::Reply, ..pending };
                    self.connection.lock().submit_expiry(&key, pending);
                }
                _ => {
                    pending.replies.push(Value::Int(NO_EXPIRY));
                    self.deliver(pending);
                }
            }
        }
    }

    fn deliver(&mut self, pending: PendingRequest) {
        match pending {
            PendingRequest {
                replies: values,
                room,
                reply_to: Some(reply_to),
                remote_runtime: Some(runtime),
                ..
            } => {
                let replies = Replies { values, room };
                let same_runtime = |(other, _): &&mut (Handle, _)| other.id() == runtime.id();
                match self.cross_thread_replies.iter_mut().find(same_runtime) {
                    Some((_, completions)) => completions.push((reply_to, replies)),
                    None => self.cross_thread_replies.push((runtime, vec![(reply_to, replies)])),
                }
            }
            // The receiver may be gone.
            PendingRequest { replies: values, room, reply_to: Some(reply_to), .. } => {
                _ = reply_to.send(Ok(Replies { values, room }));
            }
            _ => {}
        }
    }

    /// Takes over the submitted requests, and registers the driver's waker for the next ones.
    fn accept_submissions(&mut self, cx: &Context<'_>) {
        self.connection.lock().register_driver(cx.waker(), || Handle::current().id());
        self.accept_pending();
    }

    /// Takes over the submitted requests. Their commands may have been written already.
    fn accept_pending(&mut self) {
        let timer_at = self.deadline_timer.as_ref().map(|timer| timer.deadline());
        let mut queue = self.connection.lock();
        if self.output.is_empty() {
            queue.take_for_driver(&mut self.output);
        }
        let earlier = queue.accept(&mut self.pending, timer_at);
        drop(queue);
        if let Some(earlier) = earlier {
            self.arm_deadline(earlier);
        }
    }

    fn arm_deadline(&mut self, at: Instant) {
        match &mut self.deadline_timer {
            None => self.deadline_timer = Some(Box::pin(sleep_until(at))),
            Some(deadline_timer) if at < deadline_timer.deadline() => {
                deadline_timer.as_mut().reset(at);
            }
            Some(_) => {}
        }
    }

    /// Fails the requests that have passed their deadline.
    fn expire_overdue(&mut self, cx: &mut Context<'_>) {
        while self
            .deadline_timer
            .as_mut()
            .is_some_and(|deadline_timer| deadline_timer.as_mut().poll(cx).is_ready())
        {
            self.deadline_timer = None;
            self.accept_pending();
            let now = Instant::now();
            let all = self.pending.iter_mut().chain(&mut self.awaiting_check);
            for pending in all.filter(|pending| pending.is_overdue(now)) {
                pending.deadline = None;
                if let Some(reply_to) = pending.reply_to.take() {
                    _ = reply_to.send(Err(BackendError::TimedOut));
                }
            }
            self.awaiting_check.retain(|pending| pending.reply_to.is_some());
            let all = self.pending.iter().chain(&self.awaiting_check);
            if let Some(first) = all.filter_map(|pending| pending.deadline).min() {
                self.arm_deadline(first);
            }
        }
    }

    /// Returns ready once all output is written and flushed, and no more is to be written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            ready!(self.poll_write_output(cx))?;
            if !self.connection.lock().take_for_driver(&mut self.output) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write_output(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.is_to_flush = true;
        }
        if self.is_to_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_to_flush = false;
            if self.output.capacity() > BUF_RETAIN {
                self.output = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for ConnectionDriver<S> {
    type Output = BackendError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<BackendError> {
        // Accepted before anything is read: Redis may send an error and close before it reads a
        // command. That error is the reply to the first request; with no request pending it would
        // be an unexpected reply.
        self.accept_submissions(cx);
        self.expire_overdue(cx);
        let ended = match self.poll_read(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => matches!(self.poll_write(cx), Poll::Ready(Err(_))).then(closed),
        };
        let Some(error) = ended else { return Poll::Pending };
        self.connection.0.closed_by_redis.store(error == closed(), Relaxed);
        self.close();
        Poll::Ready(error)
    }
}

impl<S> Drop for ConnectionDriver<S> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<S> ConnectionDriver<S> {
    /// Fails all requests that are still pending.
    fn close(&mut self) {
        let left = std::mem::replace(&mut *self.connection.lock(), SubmitQueue::closed());
        // Dropped after the queue was closed, and outside the lock: the drop wakes the requests,
        // which may submit again at once.
        drop(left);
        self.pending.clear();
        self.awaiting_check.clear();
    }
}

/// Returns the reason for a connection that Redis has closed.
pub(super) fn closed() -> BackendError {
    unreachable(&"Redis closed the connection")
}

#[cfg(test)]
mod tests;
