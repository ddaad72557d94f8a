//! The connection to Redis of one client alone, over which forwarded commands and their replies
//! pass, byte for byte.
//!
//! It is opened when it is first needed. It ends with its client, and its client ends with it.
//! Redis keeps state for a connection (a transaction, a database, a login), which cannot be carried
//! to another. The writer of [`DedicatedConnection::out`] keeps that buffer bounded.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::backend::{BackendError, EpochStream};
use crate::net::WriteBuf;

type Opening = Pin<Box<dyn Future<Output = Result<Opened, BackendError>> + Send>>;

/// An open stream to Redis, with the room that it takes among those of the same front end.
pub(super) struct Opened {
    pub(super) stream: EpochStream,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// A connection to Redis in any of its states.
pub(super) struct DedicatedConnection {
    state: State,
    /// Bytes to send.
    pub(super) out: WriteBuf,
    /// Bytes that were read and not passed on.
    pub(super) input: BytesMut,
    /// Whether bytes may be held back by TLS.
    is_to_flush: bool,
    /// Whether the sending side is closed, or is being closed.
    is_sending_closed: bool,
    /// The time of the last write.
    pub(super) last_sent: Instant,
}

enum State {
    Closed,
    Opening(Opening),
    Open(Opened),
}

/// Bytes read at once.
const READ_CHUNK: usize = 32 << 10;
/// A larger buffer is freed once it is empty, in bytes.
const BUF_RETAIN: usize = 4 << 10;

impl DedicatedConnection {
    /// A connection that is not opened yet.
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            out: WriteBuf::default(),
            input: BytesMut::new(),
            is_to_flush: false,
            is_sending_closed: false,
            last_sent: Instant::now(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Closes the sending side. Ready once that is done.
    pub(super) fn poll_close_sending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(opened) => {
                self.is_sending_closed = true;
                Pin::new(&mut opened.stream).poll_shutdown(cx)
            }
            State::Closed | State::Opening(_) => Poll::Pending,
        }
    }

    /// Whether its sending side is closed.
    pub(super) fn is_sending_closed(&self) -> bool {
        self.is_sending_closed
    }

    pub(super) fn open(&mut self, opening: Opening) {
        self.state = State::Opening(opening);
    }

    /// Closes the sending side. Returns a future that is ready when Redis has closed the other one,
    /// so that it has run everything it will. Replies are discarded. `None` if it is not open.
    pub(super) fn run_to_end(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let State::Open(Opened { mut stream, permit }) =
            std::mem::replace(&mut self.state, State::Closed)
        else {
            return None;
        };
        Some(async move {
            _ = stream.shutdown().await;
            _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            drop(permit);
        })
    }

    /// Closes it, whatever its state.
    pub(super) fn close(&mut self) {
        *self = Self::new();
    }

    /// Ready when it has been opened, or could not be.
    #[inline]
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>> {
        let State::Opening(opening) = &mut self.state else { return Poll::Pending };
        match ready!(opening.as_mut().poll(cx)) {
            Ok(opened) => {
                self.state = State::Open(opened);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.close();
                Poll::Ready(Err(error))
            }
        }
    }

    /// Whether it leads to a server that is not the current primary any more.
    pub(super) fn is_revoked(&self) -> bool {
        matches!(&self.state, State::Open(opened) if opened.stream.is_revoked())
    }

    /// Takes the open stream, if Redis has replied to everything and nothing is left to send. The
    /// caller knows that every reply has come.
    pub(super) fn take_quiet(&mut self) -> Option<Opened> {
        let is_quiet = self.out.is_empty() && self.input.is_empty();
        if !is_quiet || self.is_to_flush || self.is_sending_closed || self.is_revoked() {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Open(opened) => Some(opened),
            State::Closed | State::Opening(_) => None,
        }
    }

    /// Reads into `input`. Returns the number of bytes; 0 at the end.
    #[inline]
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let State::Open(Opened { stream, .. }) = &mut self.state else { return Poll::Pending };
        self.input.reserve(READ_CHUNK);
        let read = pin!(stream.read_buf(&mut self.input)).poll(cx);
        if self.input.is_empty() && self.input.capacity() > BUF_RETAIN {
            self.input = BytesMut::new();
        }
        read
    }

    /// Writes `out`. Ready once all of it is written.
    #[inline]
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Open(Opened { stream, .. }) = &mut self.state else { return Poll::Pending };
        if !self.out.is_empty() {
            self.is_to_flush = true;
            self.last_sent = Instant::now();
            ready!(self.out.poll_write(Pin::new(&mut *stream), cx))?;
        }
        if self.is_to_flush {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            self.is_to_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}
