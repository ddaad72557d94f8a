//! A connection to Redis on which many ask at the same time.
//!
//! Whoever asks adds his commands to what is to be written, and his place to the queue of those who are owed an answer; one
//! driver writes what has come together, and gives each answer to whoever is first in the queue. What Redis tells unasked is
//! heeded where it is read. The rule that must not be broken: commands and places are added under one lock and taken out
//! under it, in the same order, so the n-th answer is that of the n-th command; and a place stays in the queue until its
//! answers have come, whether or not anybody still waits for them.
//!
//! Those who ask mostly run on other threads than the driver. To wake a thread is a call of the system each time, so what one
//! of them asks at a time wakes the driver once, and the answers of one turn reach him in one parcel.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, PushInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::BackendError;
use super::reader::{Reader, Unreadable};
use super::reply::unreachable;

/// The connection of whoever asks; clones ask over the same.
#[derive(Clone)]
pub(super) struct Connection(Arc<Mutex<Asked>>);

/// What was asked, and is not with the driver yet.
#[derive(Default)]
struct Asked {
    commands: BytesMut,
    owed: Vec<Owed>,
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
const SHORTEST_TURN: usize = 8;

impl Connection {
    /// A connection over `stream`, on which nothing has been said, and its driver.
    pub(super) fn over<S>(stream: S, heed: Heed) -> (Self, Driver<S>) {
        let connection = Self(Arc::default());
        let driver = Driver {
            stream,
            connection: connection.clone(),
            reader: Reader::default(),
            owed: VecDeque::new(),
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
        let (sender, receiver) = oneshot::channel();
        let here = Handle::current();
        let (driver, is_abroad) = {
            let mut asked = self.lock();
            if asked.is_over {
                return Err(BackendError::Disconnected);
            }
            let is_abroad = asked.home != Some(here.id());
            let missing = write(&mut asked.commands);
            let abroad = is_abroad.then(|| here.clone());
            let owed = Owed { missing, answers: Vec::with_capacity(missing), asker: Some(sender), abroad, deadline };
            asked.owed.push(owed);
            (asked.driver.take().map(WakeLater), is_abroad)
        };
        match driver {
            // After those who are about to ask as well.
            Some(driver) if is_abroad => _ = here.spawn(async move { drop(driver) }),
            driver => drop(driver),
        }
        receiver.await.unwrap_or(Err(BackendError::Disconnected))
    }

    /// Whether there is no driver any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Nothing that can panic is done with the lock held, but for memory that cannot be had, which ends the process.
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
                    Err(Unreadable) => return Poll::Ready(unreachable(&"Redis sent what is no answer")),
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
        let Some(first) = self.owed.front_mut() else { return Err(unreachable(&UNASKED)) };
        first.answers.push(answer);
        first.missing = first.missing.saturating_sub(1);
        if first.missing > 0 {
            return Ok(());
        }
        match self.owed.pop_front() {
            Some(Owed { answers, asker: Some(asker), abroad: Some(runtime), .. }) => {
                let is_his = |(other, _): &&mut (Handle, _)| other.id() == runtime.id();
                match self.parcels.iter_mut().find(is_his) {
                    Some((_, parcel)) => parcel.push((asker, answers)),
                    None => self.parcels.push((runtime, vec![(asker, answers)])),
                }
            }
            // He may have gone.
            Some(Owed { answers, asker: Some(asker), .. }) => _ = asker.send(Ok(answers)),
            _ => {}
        }
        Ok(())
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
            for owed in self.owed.iter_mut().filter(|owed| owed.deadline.is_some_and(|deadline| deadline <= now)) {
                owed.deadline = None;
                if let Some(asker) = owed.asker.take() {
                    _ = asker.send(Err(BackendError::TimedOut));
                }
            }
            if let Some(first) = self.owed.iter().filter_map(|owed| owed.deadline).min() {
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
    }
}

fn closed() -> BackendError {
    unreachable(&"Redis closed the connection")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// A connection that is driven, the other end of its stream, and what was told unasked.
    fn connect() -> (Connection, DuplexStream, Arc<Mutex<usize>>, tokio::task::JoinHandle<BackendError>) {
        connect_with_room(64)
    }

    /// The same, with so many bytes under way at most.
    fn connect_with_room(
        room: usize,
    ) -> (Connection, DuplexStream, Arc<Mutex<usize>>, tokio::task::JoinHandle<BackendError>) {
        let (ours, theirs) = duplex(room);
        let told = Arc::new(Mutex::new(0));
        let telling = Arc::clone(&told);
        let (connection, driver) = Connection::over(ours, Box::new(move |_| *telling.lock().unwrap() += 1));
        (connection, theirs, told, tokio::spawn(driver))
    }

    async fn echo(
        connection: Connection,
        number: usize,
        deadline: Option<Instant>,
    ) -> Result<Vec<Value>, BackendError> {
        let words = format!("{number}\r\n");
        let write = |commands: &mut BytesMut| {
            commands.extend_from_slice(words.as_bytes());
            2
        };
        connection.ask_together(deadline, write).await
    }

    async fn line(stream: &mut DuplexStream) -> String {
        let mut line = String::new();
        while !line.ends_with('\n') {
            line.push(char::from(stream.read_u8().await.unwrap()));
        }
        line.trim_end().to_owned()
    }

    #[tokio::test]
    async fn each_gets_its_own_answers_however_many_ask() {
        let (connection, theirs, _, _driven) = connect();
        tokio::spawn(async move {
            let (mut questions, mut answers) = tokio::io::split(tokio::io::BufStream::new(theirs));
            let mut byte = [0];
            let mut number = Vec::new();
            while questions.read(&mut byte).await.unwrap() > 0 {
                if byte[0] == b'\n' {
                    let answer = format!(":{0}\r\n${1}\r\n{0}\r\n", str::from_utf8(&number).unwrap(), number.len());
                    answers.write_all(answer.as_bytes()).await.unwrap();
                    answers.flush().await.unwrap();
                    number.clear();
                } else if byte[0] != b'\r' {
                    number.push(byte[0]);
                }
            }
        });
        let asking: Vec<_> = (0..500).map(|number| tokio::spawn(echo(connection.clone(), number, None))).collect();
        for (number, asked) in asking.into_iter().enumerate() {
            let text = Value::BulkString(number.to_string().into_bytes());
            let number = Value::Int(i64::try_from(number).unwrap());
            assert_eq!(asked.await.unwrap(), Ok(vec![number, text]));
        }
    }

    #[tokio::test]
    async fn who_asks_on_another_thread_gets_his_own_answers_too() {
        let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let echo = |number| tokio::spawn(echo(connection.clone(), number, None));
                let asking: Vec<_> = (0..100).map(echo).collect();
                for (number, asked) in asking.into_iter().enumerate() {
                    let number = i64::try_from(number).unwrap();
                    assert_eq!(asked.await.unwrap(), Ok(vec![Value::Int(number); 2]));
                }
            });
        });
        for number in 0..100 {
            assert_eq!(line(&mut theirs).await, number.to_string());
        }
        for number in 0..100 {
            theirs.write_all(format!(":{number}\r\n").repeat(2).as_bytes()).await.unwrap();
        }
        tokio::task::spawn_blocking(|| asking.join()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn redis_has_something_to_do_while_its_last_answers_are_given_out() {
        let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
        let answered = Arc::new(Mutex::new(0));
        for number in 0..64 {
            let (connection, answered) = (connection.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                echo(connection.clone(), number, None).await.unwrap();
                *answered.lock().unwrap() += 1;
                echo(connection, number, None).await
            });
        }
        for number in 0..64 {
            assert_eq!(line(&mut theirs).await, number.to_string());
        }
        theirs.write_all(&b":1\r\n:1\r\n".repeat(64)).await.unwrap();
        assert_eq!(line(&mut theirs).await, "0");
        assert!(*answered.lock().unwrap() < 64);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_no_longer_keeps_his_place() {
        let (connection, mut theirs, _, _driven) = connect();
        let deadline = Instant::now() + Duration::from_secs(1);
        let late = tokio::spawn(echo(connection.clone(), 1, Some(deadline + Duration::from_secs(1))));
        assert_eq!(line(&mut theirs).await, "1");
        assert_eq!(echo(connection.clone(), 2, Some(deadline)).await, Err(BackendError::TimedOut));
        assert!(!late.is_finished(), "the second is given up first");
        let gone = tokio::spawn(echo(connection.clone(), 3, None));
        assert_eq!((line(&mut theirs).await.as_str(), line(&mut theirs).await.as_str()), ("2", "3"));
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        let next = tokio::spawn(echo(connection, 4, Some(deadline + Duration::from_secs(9))));
        assert_eq!(line(&mut theirs).await, "4");
        theirs.write_all(b":1\r\n:1\r\n:2\r\n:2\r\n:3\r\n:3\r\n:4\r\n:4\r\n").await.unwrap();
        assert_eq!(late.await.unwrap(), Ok(vec![Value::Int(1); 2]));
        assert_eq!(next.await.unwrap(), Ok(vec![Value::Int(4); 2]));
    }

    #[tokio::test]
    async fn what_is_told_unasked_is_heeded_before_the_answer_behind_it() {
        let (connection, mut theirs, told, _driven) = connect();
        let asked = tokio::spawn(echo(connection, 1, None));
        line(&mut theirs).await;
        theirs.write_all(b":1\r\n>1\r\n+a\r\n:1\r\n>1\r\n+b\r\n").await.unwrap();
        assert_eq!(asked.await.unwrap(), Ok(vec![Value::Int(1); 2]));
        assert!(*told.lock().unwrap() >= 1);
    }

    #[tokio::test]
    async fn it_ends_with_an_answer_that_nothing_asked_for_or_with_what_is_none() {
        for (sent, reason) in [(&b":1\r\n"[..], UNASKED), (b"x", "Redis sent what is no answer"), (b"", "Redis closed")]
        {
            let (connection, mut theirs, _, driven) = connect();
            theirs.write_all(sent).await.unwrap();
            drop(theirs);
            assert!(driven.await.unwrap().to_string().starts_with(reason));
            assert_eq!(connection.ask(&redis::cmd("PING")).await, Err(BackendError::Disconnected));
        }
    }

    #[tokio::test]
    async fn all_are_told_when_it_is_over() {
        let (connection, mut theirs, _, driven) = connect();
        let asked = [1, 2].map(|number| tokio::spawn(echo(connection.clone(), number, None)));
        line(&mut theirs).await;
        driven.abort();
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Err(BackendError::Disconnected));
        }
    }
}
