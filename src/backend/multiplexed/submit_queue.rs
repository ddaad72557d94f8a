//! The queue of the requests that the driver has not accepted yet, and the turn to write.
//!
//! The bytes of the queue are written by one thread at a time, in their order. Mostly that is the
//! thread of a reader, so a request wakes no other thread ([`Turn::Reader`]). The driver writes if
//! the stream has no second writer, as with TLS; if the stream accepts no more bytes; and if a
//! request comes from the driver's own thread, which must not wait for the threads of readers.
//!
//! Bytes that were taken to be written are not in the queue any more, but their pending requests
//! are, until the driver accepts them. So the driver accepts again after each read, before it
//! handles what it has read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::{Buf as _, BytesMut};
use tokio::runtime;
use tokio::time::Instant;

use super::pending::{OnComplete, PendingRequest};
use crate::backend::direct_writer::DirectWriter;
use crate::backend::expiry_check::{ExpiryCheck, INFO_KEYSPACE, INFO_SERVER_KEYSPACE};
use crate::backend::fetch_command::{FetchCommand, write_expiry, write_value};
use crate::key::Key;

/// The requests that the driver has not accepted yet.
pub(super) struct SubmitQueue {
    pub(super) commands: BytesMut,
    pending: Vec<PendingRequest>,
    /// The number of requests that the driver has accepted and that still wait.
    outstanding: usize,
    /// The number of values in `commands`.
    values: usize,
    /// The number of values requested without a PTTL and without a shared check behind them yet.
    unchecked: usize,
    /// The number of such values after which a shared check follows. `None`: each value is
    /// requested with its PTTL.
    check_every: Option<usize>,
    pub(super) expiry_check: ExpiryCheck,
    turn: Turn,
    /// The second writer of the stream, if it has one.
    socket: Option<Arc<DirectWriter>>,
    /// The waker of the driver, while it waits for requests.
    driver: Option<Waker>,
    /// The runtime of the driver.
    driver_runtime: Option<runtime::Id>,
    /// The time at which the driver looks for requests that have passed their deadline.
    timer_at: Option<Instant>,
    /// Whether the driver has ended.
    is_closed: bool,
}

/// The turn to write: that of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next one that submits a request.
    Free,
    /// A reader's, at the end of its turn of the runtime.
    Reader,
    /// A reader's, which has taken bytes and writes them.
    ReaderWrites,
    /// The driver's.
    Driver,
}

/// The action that follows a submission.
pub(super) enum AfterSubmit {
    /// Another thread writes the request, or the driver is awake.
    Nothing,
    /// The driver is woken at once.
    WakeDriver(Waker),
    /// The driver is woken at the end of the turn.
    WakeDriverLater(Waker),
    /// The reader writes at the end of its turn. The driver is woken too, if no timer covers the
    /// request's deadline.
    Write(Option<Waker>),
}

/// The capacity in bytes above which an empty buffer is freed.
pub(super) const BUF_RETAIN: usize = 256 << 10;
/// The number of batches in which the pending replies are delivered. New requests are sent between
/// two batches, so Redis works on them while readers use the last replies.
pub(super) const BATCHES_PER_TURN: usize = 4;
/// The minimum number of replies in a batch, and the minimum of `check_every`.
pub(super) const MIN_BATCH: usize = 16;
/// The minimum number of values at a time for a shared check. For fewer, the check would cost Redis
/// more than their PTTLs.
pub(super) const BATCH_THRESHOLD: usize = 4;

impl SubmitQueue {
    /// An empty queue for a stream with this second writer.
    pub(super) fn new(database: u32, socket: Option<DirectWriter>) -> Self {
        let turn = if socket.is_some() { Turn::Free } else { Turn::Driver };
        Self {
            commands: BytesMut::new(),
            pending: Vec::new(),
            outstanding: 0,
            values: 0,
            unchecked: 0,
            check_every: None,
            expiry_check: ExpiryCheck::new(database),
            turn,
            socket: socket.map(Arc::new),
            driver: None,
            driver_runtime: None,
            timer_at: None,
            is_closed: false,
        }
    }

    /// The queue of a connection that has ended.
    pub(super) fn closed() -> Self {
        Self { is_closed: true, ..Self::new(0, None) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether `runtime` is another one than the driver's.
    pub(super) fn is_remote(&self, runtime: runtime::Id) -> bool {
        self.driver_runtime != Some(runtime)
    }

    /// Appends a request, the commands of which are in `commands`.
    pub(super) fn push(&mut self, pending: PendingRequest) -> AfterSubmit {
        let is_remote = pending.remote_runtime.is_some();
        let needs_timer =
            pending.deadline.is_some_and(|deadline| self.timer_at.is_none_or(|at| deadline < at));
        self.pending.push(pending);
        self.submit_check_if_due();
        self.after_submit(is_remote, needs_timer)
    }

    fn after_submit(&mut self, is_remote: bool, needs_timer: bool) -> AfterSubmit {
        match (self.turn, is_remote) {
            (Turn::Free, true) => {
                self.turn = Turn::Reader;
                AfterSubmit::Write(if needs_timer { self.driver.take() } else { None })
            }
            // The driver's thread does not wait for a reader, which may be busy.
            (Turn::Free | Turn::Reader | Turn::Driver, false) => {
                self.turn = Turn::Driver;
                self.driver.take().map_or(AfterSubmit::Nothing, AfterSubmit::WakeDriver)
            }
            (Turn::Driver, true) => {
                self.driver.take().map_or(AfterSubmit::Nothing, AfterSubmit::WakeDriverLater)
            }
            (Turn::Reader | Turn::ReaderWrites, _) if needs_timer => {
                self.driver.take().map_or(AfterSubmit::Nothing, AfterSubmit::WakeDriver)
            }
            (Turn::Reader | Turn::ReaderWrites, _) => AfterSubmit::Nothing,
        }
    }

    /// Appends the request for a value and its PTTL, or for the value alone.
    pub(super) fn write_value(&mut self, key: &Key) -> (usize, OnComplete) {
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

    /// Appends a shared check if enough values wait for one.
    fn submit_check_if_due(&mut self) {
        if self.check_every.is_some_and(|check_every| self.unchecked >= check_every) {
            self.submit_check(INFO_KEYSPACE, OnComplete::ExpiryChecked);
        }
    }

    /// Appends a shared check for the values that still lack one. Then decides how the next values
    /// are requested. A batch without values, such as a `PING`, decides nothing.
    fn finish_batch(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values == 0 {
            return;
        }
        let are_many = values >= BATCH_THRESHOLD;
        if self.unchecked > 0 {
            self.submit_check(INFO_KEYSPACE, OnComplete::ExpiryChecked);
        }
        if are_many && self.expiry_check.is_due() {
            self.expiry_check.defer();
            self.submit_check(INFO_SERVER_KEYSPACE, OnComplete::ServerIdentified);
        }
        let check_every = (self.outstanding + self.pending.len()) / BATCHES_PER_TURN;
        self.check_every =
            (are_many && self.expiry_check.no_key_expires()).then_some(check_every.max(MIN_BATCH));
    }

    fn submit_check(&mut self, question: &[u8], on_complete: OnComplete) {
        self.unchecked = 0;
        self.submit_own(question, on_complete);
    }

    /// Appends a request of the driver's own, which has one reply.
    pub(super) fn submit_own(&mut self, question: &[u8], on_complete: OnComplete) {
        self.commands.extend_from_slice(question);
        self.pending.push(PendingRequest::without_reader(on_complete));
    }

    /// Appends the request for the PTTL of a value that `pending` holds. The driver writes it.
    pub(super) fn submit_expiry(&mut self, key: &Key, pending: PendingRequest) {
        write_expiry(key.as_bytes(), &mut self.commands);
        self.pending.push(pending);
        if self.turn != Turn::ReaderWrites {
            self.turn = Turn::Driver;
        }
    }

    /// Registers the driver, which is being polled on `runtime`.
    pub(super) fn register_driver(&mut self, waker: &Waker, runtime: impl FnOnce() -> runtime::Id) {
        if self.driver.as_ref().is_none_or(|driver| !driver.will_wake(waker)) {
            self.driver = Some(waker.clone());
            self.driver_runtime = Some(runtime());
        }
    }

    /// Moves the requests behind those in `accepted`, which the driver has accepted and which still
    /// wait. `timer_at` is when the driver looks for requests that have passed their deadline.
    /// Returns an earlier time if one of the requests needs it.
    pub(super) fn accept(
        &mut self,
        accepted: &mut VecDeque<PendingRequest>,
        timer_at: Option<Instant>,
    ) -> Option<Instant> {
        let first = self.pending.iter().filter_map(|pending| pending.deadline).min();
        let earlier = first.filter(|first| timer_at.is_none_or(|at| *first < at));
        self.timer_at = earlier.or(timer_at);
        accepted.extend(self.pending.drain(..));
        self.outstanding = accepted.len();
        earlier
    }

    /// Moves the bytes to the empty `output` if the driver has the turn. Returns whether there are
    /// any. Without any the turn is over, unless the stream has no second writer.
    pub(super) fn take_for_driver(&mut self, output: &mut BytesMut) -> bool {
        if self.turn != Turn::Driver {
            return false;
        }
        if self.commands.is_empty() {
            if self.socket.is_some() {
                self.turn = Turn::Free;
            }
            return false;
        }
        self.finish_batch();
        std::mem::swap(output, &mut self.commands);
        true
    }

    /// Takes the bytes for a reader if it still has the turn, and the writer.
    pub(super) fn take_for_reader(&mut self) -> Option<(BytesMut, Arc<DirectWriter>)> {
        let socket = self.socket.clone().filter(|_| self.turn == Turn::Reader)?;
        self.turn = Turn::ReaderWrites;
        self.finish_batch();
        Some((std::mem::take(&mut self.commands), socket))
    }

    /// Ends the write of a reader, of which the stream has accepted the first `written` of `bytes`.
    /// If that is not all of them, the driver has the turn. Returns its waker then.
    pub(super) fn end_write(&mut self, mut bytes: BytesMut, written: usize) -> Option<Waker> {
        if self.turn != Turn::ReaderWrites {
            // The connection has ended.
            return None;
        }
        if written < bytes.len() {
            bytes.advance(written);
            bytes.extend_from_slice(&self.commands);
            self.commands = bytes;
            self.turn = Turn::Driver;
            return self.driver.take();
        }
        if self.commands.is_empty() {
            self.turn = Turn::Free;
            if bytes.capacity() <= BUF_RETAIN {
                // The next commands then reuse the same memory.
                bytes.clear();
                self.commands = bytes;
            }
        } else {
            self.turn = Turn::Reader;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn rest_of_a_write_stays_in_front() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut queue = SubmitQueue::new(0, Some(DirectWriter::new(&ours).unwrap()));
        queue.commands.extend_from_slice(b"older");
        assert!(matches!(queue.after_submit(true, false), AfterSubmit::Write(None)));
        let (bytes, _) = queue.take_for_reader().unwrap();
        queue.commands.extend_from_slice(b"newer");
        assert!(matches!(queue.after_submit(true, false), AfterSubmit::Nothing));
        let mut output = BytesMut::new();
        assert!(!queue.take_for_driver(&mut output), "two would write");
        queue.end_write(bytes, 2);
        assert!(queue.take_for_reader().is_none());
        assert!(queue.take_for_driver(&mut output));
        assert_eq!(output, b"dernewer"[..]);
        assert!(!queue.take_for_driver(&mut BytesMut::new()));
        assert!(matches!(queue.after_submit(true, false), AfterSubmit::Write(None)));
    }
}
