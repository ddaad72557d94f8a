//! A connection to Redis on which many ask at the same time.
//!
//! Whoever asks adds his commands to what is to be written, and his place to the queue of those who are owed an answer; one
//! driver writes what has come together, and gives each answer to whoever is first in the queue. What Redis tells unasked is
//! heeded where it is read. The rule that must not be broken: commands and places are added under one lock and taken out
//! under it, in the same order, so the n-th answer is that of the n-th command; and a place stays in the queue until its
//! answers have come, whether or not anybody still waits for them.
//!
//! Values whose readers are many are asked for without their times to live, with one question behind some of them whether any
//! key has one ([`expiry_check`](super::expiry_check)). They are owed until that is answered too.
//!
//! Those who ask mostly run on other threads than the driver. To wake a thread is a call of the system each time, so what one
//! of them asks at a time wakes the driver once, and the answers of one turn reach him in one parcel.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, PushInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::error::{BackendError, unreachable};
use super::expiry_check::{Expiry, ExpiryCheck, INFO_KEYSPACE, INFO_SERVER_KEYSPACE};
use super::fetch_command::{FetchCommand, NO_EXPIRY, write_expiry, write_value};
use super::reply_decoder::{LARGE_VALUE_MIN, ReplyDecoder};
use crate::key::Key;
use crate::protocol::InvalidReply;
use crate::sync::lock;

/// The connection of whoever asks; clones ask over the same.
#[derive(Clone)]
pub(super) struct Multiplexed(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<SubmitQueue>,
    /// Answers so far.
    reply_count: AtomicU64,
}

/// What was asked, and is not with the driver yet.
#[derive(Default)]
struct SubmitQueue {
    commands: BytesMut,
    pending: Vec<PendingRequest>,
    /// How many of them are values.
    values: usize,
    /// How many values were asked for without their time to live, and no question about all keys behind them yet.
    unchecked: usize,
    /// Behind how many such values that question is asked; none: values are asked for with their times to live.
    check_every: Option<usize>,
    /// The driver, where it waits.
    driver: Option<Waker>,
    /// The runtime that it runs on.
    driver_runtime: Option<runtime::Id>,
    /// There is no driver any more.
    is_closed: bool,
}

/// Somebody who is owed answers.
struct PendingRequest {
    /// How many are still to come.
    remaining: usize,
    replies: Vec<Value>,
    /// None: nobody waits for them any more.
    reply_to: Option<ReplySender>,
    /// Where that one runs, unless it is where the driver does.
    remote_runtime: Option<Handle>,
    /// Until when they are waited for; none: for as long as there is a driver.
    deadline: Option<Instant>,
    on_complete: OnComplete,
}

/// What follows once all answers have come.
enum OnComplete {
    /// Who asked gets them.
    Reply,
    /// He gets them once it is known whether the key has a time to live.
    AwaitExpiryCheck(Key),
    /// It is known for those that are held.
    ExpiryChecked,
    /// It is known for those who ask next, and from whom.
    ServerIdentified,
}

type ReplySender = oneshot::Sender<Result<Vec<Value>, BackendError>>;

/// Answers, and who has asked for them.
type Completion = (ReplySender, Vec<Value>);

/// What is done about what Redis tells unasked.
pub(super) type PushHandler = Box<dyn FnMut(PushInfo) + Send>;

/// What reads and writes the stream, for as long as there is a connection; then, why it ended.
pub(super) struct ConnectionDriver<S> {
    stream: S,
    connection: Multiplexed,
    reader: ReplyDecoder,
    pending: VecDeque<PendingRequest>,
    /// Those whose value is here, of which it is not known yet whether it has a time to live.
    awaiting_check: Vec<PendingRequest>,
    expiry_check: ExpiryCheck,
    /// What is to be written.
    output: BytesMut,
    /// Something written may still be held back, as TLS does.
    is_to_flush: bool,
    /// What is to be given to those who run elsewhere.
    cross_thread_replies: Vec<(Handle, Vec<Completion>)>,
    /// Goes off at the first deadline of those who are owed an answer, or before it.
    deadline_timer: Option<Pin<Box<Sleep>>>,
    on_push: PushHandler,
}

/// Why a connection is given up on which answers and questions do not match.
pub(super) const UNEXPECTED_REPLY: &str = "Redis gave an answer that nothing asked for";

/// A buffer that has grown beyond this is given back once it is empty.
const BUF_RETAIN: usize = 256 << 10;
/// Answers are given out in so many turns, with what is asked meanwhile sent in between: so Redis goes on with the next while
/// the last are made use of.
const BATCHES_PER_TURN: usize = 4;
/// Answers of one turn at least.
const MIN_BATCH: usize = 16;
/// Answers about a value, with its time to live.
const VALUE_REPLIES: usize = 2;
/// For fewer values at a time, to ask for all keys at once would cost Redis more.
const BATCH_THRESHOLD: usize = 4;

impl Multiplexed {
    /// A connection over `stream`, on which nothing has been said, and its driver. Values will be those of `database`.
    pub(super) fn new<S>(
        stream: S,
        database: u32,
        on_push: PushHandler,
    ) -> (Self, ConnectionDriver<S>) {
        let connection = Self(Arc::default());
        let driver = ConnectionDriver {
            stream,
            connection: connection.clone(),
            reader: ReplyDecoder::default(),
            pending: VecDeque::new(),
            awaiting_check: Vec::new(),
            expiry_check: ExpiryCheck::new(database),
            output: BytesMut::new(),
            is_to_flush: false,
            cross_thread_replies: Vec::new(),
            deadline_timer: None,
            on_push,
        };
        (connection, driver)
    }

    /// The answer to one command, which may be an error of Redis's.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`].
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, BackendError> {
        self.send_for_one(&[command]).await
    }

    /// The one answer that commands have together.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`].
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

    /// The answers to commands, which `write` writes one behind the other, with nobody else's in between; it returns how
    /// many answers they have.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`], or [`BackendError::TimedOut`] at the `deadline`.
    pub(super) async fn send_batch(
        &self,
        deadline: Option<Instant>,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> Result<Vec<Value>, BackendError> {
        self.submit(deadline, |queue| (write(&mut queue.commands), OnComplete::Reply)).await
    }

    /// What GET and then PTTL answer about `key`, or would, where Redis tells of changes: they belong together if nothing is
    /// told of the key before they are given out.
    ///
    /// # Errors
    /// As those of [`send_batch`](Self::send_batch).
    pub(super) async fn fetch_value(
        &self,
        deadline: Option<Instant>,
        key: &Key,
    ) -> Result<Vec<Value>, BackendError> {
        self.submit(deadline, |queue| queue.write_value(key)).await
    }

    async fn submit(
        &self,
        deadline: Option<Instant>,
        write: impl FnOnce(&mut SubmitQueue) -> (usize, OnComplete),
    ) -> Result<Vec<Value>, BackendError> {
        let (sender, receiver) = oneshot::channel();
        let here = Handle::current();
        let (driver, is_remote) = {
            let mut queue = self.lock();
            if queue.is_closed {
                return Err(BackendError::Disconnected);
            }
            let is_remote = queue.driver_runtime != Some(here.id());
            let (remaining, on_complete) = write(&mut queue);
            let remote_runtime = is_remote.then(|| here.clone());
            queue.pending.push(PendingRequest {
                remaining,
                replies: Vec::with_capacity(remaining.max(VALUE_REPLIES)),
                reply_to: Some(sender),
                remote_runtime,
                deadline,
                on_complete,
            });
            queue.check_if_due();
            (queue.driver.take().map(WakeOnDrop), is_remote)
        };
        match driver {
            // After those who are about to ask as well.
            Some(driver) if is_remote => _ = here.spawn(async move { drop(driver) }),
            driver => drop(driver),
        }
        receiver.await.unwrap_or(Err(BackendError::Disconnected))
    }

    /// How many answers there were so far.
    pub(super) fn reply_count(&self) -> u64 {
        self.0.reply_count.load(Relaxed)
    }

    /// Whether there is no driver any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Nothing that can panic is done with the lock held, but for memory that cannot be had, which ends the process.
    fn lock(&self) -> MutexGuard<'_, SubmitQueue> {
        lock(&self.0.queue)
    }
}

impl SubmitQueue {
    fn write_value(&mut self, key: &Key) -> (usize, OnComplete) {
        self.values += 1;
        if self.check_every.is_none() {
            return (
                FetchCommand::GetPttlTracked.write(key.as_bytes(), &mut self.commands),
                OnComplete::Reply,
            );
        }
        write_value(key.as_bytes(), &mut self.commands);
        self.unchecked += 1;
        (1, OnComplete::AwaitExpiryCheck(key.clone()))
    }

    /// Asks about all keys once there are enough values that wait for it.
    fn check_if_due(&mut self) {
        if self.check_every.is_some_and(|check_every| self.unchecked >= check_every) {
            self.submit_check(INFO_KEYSPACE, OnComplete::ExpiryChecked);
        }
    }

    /// Asks what is left to ask about all keys, and settles how values are asked for from here on, while so many answers are
    /// outstanding already.
    fn finish_batch(&mut self, expiry_check: &mut ExpiryCheck, outstanding: usize) {
        let are_many = std::mem::take(&mut self.values) >= BATCH_THRESHOLD;
        if self.unchecked > 0 {
            self.submit_check(INFO_KEYSPACE, OnComplete::ExpiryChecked);
        }
        if are_many && expiry_check.is_due() {
            expiry_check.defer();
            self.submit_check(INFO_SERVER_KEYSPACE, OnComplete::ServerIdentified);
        }
        let check_every = (outstanding + self.pending.len()) / BATCHES_PER_TURN;
        self.check_every =
            (are_many && expiry_check.no_key_expires()).then_some(check_every.max(MIN_BATCH));
    }

    fn submit_check(&mut self, question: &[u8], on_complete: OnComplete) {
        self.unchecked = 0;
        self.commands.extend_from_slice(question);
        let pending = PendingRequest {
            remaining: 1,
            replies: Vec::new(),
            reply_to: None,
            remote_runtime: None,
            deadline: None,
            on_complete,
        };
        self.pending.push(pending);
    }
}

impl PendingRequest {
    fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// Wakes a driver when it is dropped, so that it is woken whatever becomes of who was to do it.
struct WakeOnDrop(Waker);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake_by_ref();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ConnectionDriver<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<BackendError> {
        let read = self.poll_replies(cx);
        for (runtime, completions) in self.cross_thread_replies.drain(..) {
            runtime.spawn(async move {
                for (reply_to, replies) in completions {
                    // He may have gone.
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
                match self.reader.next_reply() {
                    Ok(Some(answer)) => {
                        if let Err(error) = self.on_reply(answer) {
                            return Poll::Ready(error);
                        }
                        batch -= 1;
                        if batch == 0 {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                    Ok(None) => break,
                    Err(InvalidReply) => {
                        return Poll::Ready(unreachable(&"Redis sent what is no answer"));
                    }
                }
            }
            match ready!(self.reader.poll_read(&mut self.stream, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(closed()),
            }
        }
    }

    /// Gives an answer to whom it is owed.
    fn on_reply(&mut self, answer: Value) -> Result<(), BackendError> {
        if let Value::Push { kind, data } = answer {
            (self.on_push)(PushInfo { kind, data });
            return Ok(());
        }
        self.connection.0.reply_count.fetch_add(1, Relaxed);
        let Some(first) = self.pending.front_mut() else {
            return Err(unreachable(&UNEXPECTED_REPLY));
        };
        first.replies.push(answer);
        first.remaining = first.remaining.saturating_sub(1);
        if first.remaining > 0 {
            return Ok(());
        }
        let Some(answered) = self.pending.pop_front() else { return Ok(()) };
        match (&answered.on_complete, answered.replies.first()) {
            (OnComplete::Reply, _) => self.deliver(answered),
            (OnComplete::AwaitExpiryCheck(_), value) => {
                // Those beside him would wait for it, and for longer than one question saves.
                if matches!(value, Some(Value::BulkString(value)) if value.len() >= LARGE_VALUE_MIN)
                {
                    self.expiry_check.defer();
                }
                // Unless he has gone.
                if answered.reply_to.is_some() {
                    self.awaiting_check.push(answered);
                }
            }
            (OnComplete::ServerIdentified, Some(answer)) => {
                self.expiry_check.on_server_info(answer);
            }
            (OnComplete::ExpiryChecked, Some(answer)) => {
                let expiry = self
                    .expiry_check
                    .on_keyspace_info(answer)
                    .map_err(|_| unreachable(&UNEXPECTED_REPLY))?;
                self.deliver_held(expiry);
            }
            (OnComplete::ServerIdentified | OnComplete::ExpiryChecked, None) => {}
        }
        Ok(())
    }

    /// It is known whether keys had a time to live after the values were read that are held.
    fn deliver_held(&mut self, expiry: Expiry) {
        for mut pending in std::mem::take(&mut self.awaiting_check) {
            match (&pending.on_complete, pending.replies.first()) {
                (OnComplete::AwaitExpiryCheck(key), Some(Value::BulkString(_)))
                    if expiry == Expiry::SomeKeys =>
                {
                    write_expiry(key.as_bytes(), &mut self.output);
                    self.pending.push_back(PendingRequest {
                        remaining: 1,
                        on_complete: OnComplete::Reply,
                        ..pending
                    });
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
                replies,
                reply_to: Some(reply_to),
                remote_runtime: Some(runtime),
                ..
            } => {
                let same_runtime = |(other, _): &&mut (Handle, _)| other.id() == runtime.id();
                match self.cross_thread_replies.iter_mut().find(same_runtime) {
                    Some((_, completions)) => completions.push((reply_to, replies)),
                    None => self.cross_thread_replies.push((runtime, vec![(reply_to, replies)])),
                }
            }
            // He may have gone.
            PendingRequest { replies, reply_to: Some(reply_to), .. } => {
                _ = reply_to.send(Ok(replies));
            }
            _ => {}
        }
    }

    /// Takes over what was asked; whoever asks from here on wakes the driver.
    fn accept_submissions(&mut self, cx: &Context<'_>) {
        let mut queue = self.connection.lock();
        if queue.driver.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            queue.driver = Some(cx.waker().clone());
            queue.driver_runtime = Some(Handle::current().id());
        }
        if queue.pending.is_empty() {
            return;
        }
        queue.finish_batch(&mut self.expiry_check, self.pending.len());
        if self.output.is_empty() {
            std::mem::swap(&mut self.output, &mut queue.commands);
        } else {
            self.output.extend_from_slice(&queue.commands);
            queue.commands.clear();
        }
        let first = queue.pending.iter().filter_map(|pending| pending.deadline).min();
        self.pending.extend(queue.pending.drain(..));
        drop(queue);
        if let Some(first) = first {
            self.arm_deadline(first);
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

    /// Tells those whose time is over.
    fn expire_overdue(&mut self, cx: &mut Context<'_>) {
        while self
            .deadline_timer
            .as_mut()
            .is_some_and(|deadline_timer| deadline_timer.as_mut().poll(cx).is_ready())
        {
            self.deadline_timer = None;
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

    /// Ready once all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
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
        // Before anything is read: what a Redis that hangs up says first of all is the answer to the first question.
        self.accept_submissions(cx);
        self.expire_overdue(cx);
        let ended = match self.poll_read(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => matches!(self.poll_write(cx), Poll::Ready(Err(_))).then(closed),
        };
        let Some(error) = ended else { return Poll::Pending };
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
    /// Whoever is still owed an answer is told that none will come.
    fn close(&mut self) {
        let over = SubmitQueue { is_closed: true, ..SubmitQueue::default() };
        let left = std::mem::replace(&mut *self.connection.lock(), over);
        // Not before it is over, nor under the lock: who is told may ask again at once.
        drop(left);
        self.pending.clear();
        self.awaiting_check.clear();
    }
}

/// One command of the handshake, whose answer may be an error.
pub(super) async fn handshake_command(
    connection: &Multiplexed,
    command: &Cmd,
) -> Result<Value, BackendError> {
    let answer = connection.send(command).await;
    answer.map_err(|error| unreachable(&format_args!("the handshake failed: {error}")))
}

fn closed() -> BackendError {
    unreachable(&"Redis closed the connection")
}

#[cfg(test)]
mod tests;
