//! A connection to Redis on which many ask at the same time.
//!
//! Whoever asks adds his commands to what is to be written, and his place to the queue of those who are owed an answer; one
//! driver writes what has come together, and gives each answer to whoever is first in the queue. What Redis tells unasked is
//! heeded where it is read. The rule that must not be broken: commands and places are added under one lock and taken out
//! under it, in the same order, so the n-th answer is that of the n-th command; and a place stays in the queue until its
//! answers have come, whether or not anybody still waits for them.
//!
//! Values whose readers are many are asked for without their times to live, with one question behind some of them whether any
//! key has one ([`keyspace`](super::expiry_check)). They are owed until that is answered too.
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
use super::expiry_check::{Expiry, Keyspace, WHETHER, WHO_AND_WHETHER};
use super::fetch_command::{NO_EXPIRY, Question, write_expiry, write_value};
use super::reply_decoder::{LARGE, Reader, Unreadable};
use crate::key::Key;
use crate::sync::lock;

/// The connection of whoever asks; clones ask over the same.
#[derive(Clone)]
pub(super) struct Connection(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: Mutex<Asked>,
    /// Answers so far.
    answered: AtomicU64,
}

/// What was asked, and is not with the driver yet.
#[derive(Default)]
struct Asked {
    commands: BytesMut,
    owed: Vec<Owed>,
    /// How many of them are values.
    values: usize,
    /// How many values were asked for without their time to live, and no question about all keys behind them yet.
    uncovered: usize,
    /// Behind how many such values that question is asked; none: values are asked for with their times to live.
    share: Option<usize>,
    /// The driver, where it waits.
    driver: Option<Waker>,
    /// The runtime that it runs on.
    home: Option<runtime::Id>,
    /// There is no driver any more.
    is_over: bool,
}

/// Somebody who is owed answers.
struct Owed {
    /// How many are still to come.
    missing: usize,
    answers: Vec<Value>,
    /// None: nobody waits for them any more.
    asker: Option<Asker>,
    /// Where that one runs, unless it is where the driver does.
    abroad: Option<Handle>,
    /// Until when they are waited for; none: for as long as there is a driver.
    deadline: Option<Instant>,
    then: Then,
}

/// What follows once all answers have come.
enum Then {
    /// Who asked gets them.
    GiveOut,
    /// He gets them once it is known whether the key has a time to live.
    Hold(Key),
    /// It is known for those that are held.
    Counted,
    /// It is known for those who ask next, and from whom.
    Introduced,
}

type Asker = oneshot::Sender<Result<Vec<Value>, BackendError>>;

/// Answers, and who has asked for them.
type Delivery = (Asker, Vec<Value>);

/// What is done about what Redis tells unasked.
pub(super) type Heed = Box<dyn FnMut(PushInfo) + Send>;

/// What reads and writes the stream, for as long as there is a connection; then, why it ended.
pub(super) struct Driver<S> {
    stream: S,
    connection: Connection,
    reader: Reader,
    owed: VecDeque<Owed>,
    /// Those whose value is here, of which it is not known yet whether it has a time to live.
    held: Vec<Owed>,
    keyspace: Keyspace,
    /// What is to be written.
    output: BytesMut,
    /// Something written may still be held back, as TLS does.
    is_to_flush: bool,
    /// What is to be given to those who run elsewhere.
    parcels: Vec<(Handle, Vec<Delivery>)>,
    /// Goes off at the first deadline of those who are owed an answer, or before it.
    alarm: Option<Pin<Box<Sleep>>>,
    heed: Heed,
}

/// Why a connection is given up on which answers and questions do not match.
pub(super) const UNASKED: &str = "Redis gave an answer that nothing asked for";

/// A buffer that has grown beyond this is given back once it is empty.
const KEPT: usize = 256 << 10;
/// Answers are given out in so many turns, with what is asked meanwhile sent in between: so Redis goes on with the next while
/// the last are made use of.
const TURNS: usize = 4;
/// Answers of one turn at least.
const SHORTEST_TURN: usize = 16;
/// Answers about a value, with its time to live.
const VALUE_AND_EXPIRY: usize = 2;
/// For fewer values at a time, to ask for all keys at once would cost Redis more.
const MANY: usize = 4;

impl Connection {
    /// A connection over `stream`, on which nothing has been said, and its driver. Values will be those of `database`.
    pub(super) fn over<S>(stream: S, database: u32, heed: Heed) -> (Self, Driver<S>) {
        let connection = Self(Arc::default());
        let driver = Driver {
            stream,
            connection: connection.clone(),
            reader: Reader::default(),
            owed: VecDeque::new(),
            held: Vec::new(),
            keyspace: Keyspace::of(database),
            output: BytesMut::new(),
            is_to_flush: false,
            parcels: Vec::new(),
            alarm: None,
            heed,
        };
        (connection, driver)
    }

    /// The answer to one command, which may be an error of Redis's.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`].
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, BackendError> {
        self.ask_for_one(&[command]).await
    }

    /// The one answer that commands have together.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`].
    pub(super) async fn ask_for_one(&self, commands: &[&Cmd]) -> Result<Value, BackendError> {
        let write = |output: &mut BytesMut| {
            for command in commands {
                output.extend_from_slice(&command.get_packed_command());
            }
            1
        };
        let answers = self.ask_together(None, write).await?;
        answers.into_iter().next().ok_or(BackendError::Disconnected)
    }

    /// The answers to commands, which `write` writes one behind the other, with nobody else's in between; it returns how
    /// many answers they have.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`], or [`BackendError::TimedOut`] at the `deadline`.
    pub(super) async fn ask_together(
        &self,
        deadline: Option<Instant>,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> Result<Vec<Value>, BackendError> {
        self.put(deadline, |asked| (write(&mut asked.commands), Then::GiveOut)).await
    }

    /// What GET and then PTTL answer about `key`, or would, where Redis tells of changes: they belong together if nothing is
    /// told of the key before they are given out.
    ///
    /// # Errors
    /// As those of [`ask_together`](Self::ask_together).
    pub(super) async fn ask_for_value(
        &self,
        deadline: Option<Instant>,
        key: &Key,
    ) -> Result<Vec<Value>, BackendError> {
        self.put(deadline, |asked| asked.write_value(key)).await
    }

    async fn put(
        &self,
        deadline: Option<Instant>,
        write: impl FnOnce(&mut Asked) -> (usize, Then),
    ) -> Result<Vec<Value>, BackendError> {
        let (sender, receiver) = oneshot::channel();
        let here = Handle::current();
        let (driver, is_abroad) = {
            let mut asked = self.lock();
            if asked.is_over {
                return Err(BackendError::Disconnected);
            }
            let is_abroad = asked.home != Some(here.id());
            let (missing, then) = write(&mut asked);
            let abroad = is_abroad.then(|| here.clone());
            asked.owed.push(Owed {
                missing,
                answers: Vec::with_capacity(missing.max(VALUE_AND_EXPIRY)),
                asker: Some(sender),
                abroad,
                deadline,
                then,
            });
            asked.ask_for_share();
            (asked.driver.take().map(WakeLater), is_abroad)
        };
        match driver {
            // After those who are about to ask as well.
            Some(driver) if is_abroad => _ = here.spawn(async move { drop(driver) }),
            driver => drop(driver),
        }
        receiver.await.unwrap_or(Err(BackendError::Disconnected))
    }

    /// How many answers there were so far.
    pub(super) fn answered(&self) -> u64 {
        self.0.answered.load(Relaxed)
    }

    /// Whether there is no driver any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Nothing that can panic is done with the lock held, but for memory that cannot be had, which ends the process.
    fn lock(&self) -> MutexGuard<'_, Asked> {
        lock(&self.0.asked)
    }
}

impl Asked {
    fn write_value(&mut self, key: &Key) -> (usize, Then) {
        self.values += 1;
        if self.share.is_none() {
            return (Question::Told.write(key.as_bytes(), &mut self.commands), Then::GiveOut);
        }
        write_value(key.as_bytes(), &mut self.commands);
        self.uncovered += 1;
        (1, Then::Hold(key.clone()))
    }

    /// Asks about all keys once there are enough values that wait for it.
    fn ask_for_share(&mut self) {
        if self.share.is_some_and(|share| self.uncovered >= share) {
            self.ask_about_all(WHETHER, Then::Counted);
        }
    }

    /// Asks what is left to ask about all keys, and settles how values are asked for from here on, while so many answers are
    /// outstanding already.
    fn complete(&mut self, keyspace: &mut Keyspace, outstanding: usize) {
        let are_many = std::mem::take(&mut self.values) >= MANY;
        if self.uncovered > 0 {
            self.ask_about_all(WHETHER, Then::Counted);
        }
        if are_many && keyspace.is_due() {
            keyspace.put_off();
            self.ask_about_all(WHO_AND_WHETHER, Then::Introduced);
        }
        let share = (outstanding + self.owed.len()) / TURNS;
        self.share = (are_many && keyspace.is_without_expiry()).then_some(share.max(SHORTEST_TURN));
    }

    fn ask_about_all(&mut self, question: &[u8], then: Then) {
        self.uncovered = 0;
        self.commands.extend_from_slice(question);
        let owed = Owed {
            missing: 1,
            answers: Vec::new(),
            asker: None,
            abroad: None,
            deadline: None,
            then,
        };
        self.owed.push(owed);
    }
}

impl Owed {
    fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// Wakes a driver when it is dropped, so that it is woken whatever becomes of who was to do it.
struct WakeLater(Waker);

impl Drop for WakeLater {
    fn drop(&mut self) {
        self.0.wake_by_ref();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<BackendError> {
        let read = self.poll_answers(cx);
        for (runtime, parcel) in self.parcels.drain(..) {
            runtime.spawn(async move {
                for (asker, answers) in parcel {
                    // He may have gone.
                    _ = asker.send(Ok(answers));
                }
            });
        }
        read
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<BackendError> {
        let mut turn = (self.owed.len() / TURNS).max(SHORTEST_TURN);
        loop {
            loop {
                match self.reader.take_answer() {
                    Ok(Some(answer)) => {
                        if let Err(error) = self.settle(answer) {
                            return Poll::Ready(error);
                        }
                        turn -= 1;
                        if turn == 0 {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                    Ok(None) => break,
                    Err(Unreadable) => {
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
    fn settle(&mut self, answer: Value) -> Result<(), BackendError> {
        if let Value::Push { kind, data } = answer {
            (self.heed)(PushInfo { kind, data });
            return Ok(());
        }
        self.connection.0.answered.fetch_add(1, Relaxed);
        let Some(first) = self.owed.front_mut() else { return Err(unreachable(&UNASKED)) };
        first.answers.push(answer);
        first.missing = first.missing.saturating_sub(1);
        if first.missing > 0 {
            return Ok(());
        }
        let Some(answered) = self.owed.pop_front() else { return Ok(()) };
        match (&answered.then, answered.answers.first()) {
            (Then::GiveOut, _) => self.give_out(answered),
            (Then::Hold(_), value) => {
                // Those beside him would wait for it, and for longer than one question saves.
                if matches!(value, Some(Value::BulkString(value)) if value.len() >= LARGE) {
                    self.keyspace.put_off();
                }
                // Unless he has gone.
                if answered.asker.is_some() {
                    self.held.push(answered);
                }
            }
            (Then::Introduced, Some(answer)) => self.keyspace.introduced(answer),
            (Then::Counted, Some(answer)) => {
                let expiry = self.keyspace.counted(answer).map_err(|_| unreachable(&UNASKED))?;
                self.give_out_held(expiry);
            }
            (Then::Introduced | Then::Counted, None) => {}
        }
        Ok(())
    }

    /// It is known whether keys had a time to live after the values were read that are held.
    fn give_out_held(&mut self, expiry: Expiry) {
        for mut owed in std::mem::take(&mut self.held) {
            match (&owed.then, owed.answers.first()) {
                (Then::Hold(key), Some(Value::BulkString(_))) if expiry == Expiry::Somewhere => {
                    write_expiry(key.as_bytes(), &mut self.output);
                    self.owed.push_back(Owed { missing: 1, then: Then::GiveOut, ..owed });
                }
                _ => {
                    owed.answers.push(Value::Int(NO_EXPIRY));
                    self.give_out(owed);
                }
            }
        }
    }

    fn give_out(&mut self, owed: Owed) {
        match owed {
            Owed { answers, asker: Some(asker), abroad: Some(runtime), .. } => {
                let is_his = |(other, _): &&mut (Handle, _)| other.id() == runtime.id();
                match self.parcels.iter_mut().find(is_his) {
                    Some((_, parcel)) => parcel.push((asker, answers)),
                    None => self.parcels.push((runtime, vec![(asker, answers)])),
                }
            }
            // He may have gone.
            Owed { answers, asker: Some(asker), .. } => _ = asker.send(Ok(answers)),
            _ => {}
        }
    }

    /// Takes over what was asked; whoever asks from here on wakes the driver.
    fn take_over(&mut self, cx: &Context<'_>) {
        let mut asked = self.connection.lock();
        if asked.driver.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            asked.driver = Some(cx.waker().clone());
            asked.home = Some(Handle::current().id());
        }
        if asked.owed.is_empty() {
            return;
        }
        asked.complete(&mut self.keyspace, self.owed.len());
        if self.output.is_empty() {
            std::mem::swap(&mut self.output, &mut asked.commands);
        } else {
            self.output.extend_from_slice(&asked.commands);
            asked.commands.clear();
        }
        let first = asked.owed.iter().filter_map(|owed| owed.deadline).min();
        self.owed.extend(asked.owed.drain(..));
        drop(asked);
        if let Some(first) = first {
            self.set_alarm(first);
        }
    }

    fn set_alarm(&mut self, at: Instant) {
        match &mut self.alarm {
            None => self.alarm = Some(Box::pin(sleep_until(at))),
            Some(alarm) if at < alarm.deadline() => alarm.as_mut().reset(at),
            Some(_) => {}
        }
    }

    /// Tells those whose time is over.
    fn give_up_overdue(&mut self, cx: &mut Context<'_>) {
        while self.alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready()) {
            self.alarm = None;
            let now = Instant::now();
            let all = self.owed.iter_mut().chain(&mut self.held);
            for owed in all.filter(|owed| owed.is_overdue(now)) {
                owed.deadline = None;
                if let Some(asker) = owed.asker.take() {
                    _ = asker.send(Err(BackendError::TimedOut));
                }
            }
            self.held.retain(|owed| owed.asker.is_some());
            let all = self.owed.iter().chain(&self.held);
            if let Some(first) = all.filter_map(|owed| owed.deadline).min() {
                self.set_alarm(first);
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
            if self.output.capacity() > KEPT {
                self.output = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = BackendError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<BackendError> {
        // Before anything is read: what a Redis that hangs up says first of all is the answer to the first question.
        self.take_over(cx);
        self.give_up_overdue(cx);
        let ended = match self.poll_read(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => matches!(self.poll_write(cx), Poll::Ready(Err(_))).then(closed),
        };
        let Some(error) = ended else { return Poll::Pending };
        self.end();
        Poll::Ready(error)
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<S> Driver<S> {
    /// Whoever is still owed an answer is told that none will come.
    fn end(&mut self) {
        let over = Asked { is_over: true, ..Asked::default() };
        let left = std::mem::replace(&mut *self.connection.lock(), over);
        // Not before it is over, nor under the lock: who is told may ask again at once.
        drop(left);
        self.owed.clear();
        self.held.clear();
    }
}

/// One command of the handshake, whose answer may be an error.
pub(super) async fn ask(connection: &Connection, command: &Cmd) -> Result<Value, BackendError> {
    let answer = connection.ask(command).await;
    answer.map_err(|error| unreachable(&format_args!("the handshake failed: {error}")))
}

fn closed() -> BackendError {
    unreachable(&"Redis closed the connection")
}

#[cfg(test)]
mod tests;
