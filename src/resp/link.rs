//! A link of a client's own, over which what is not answered from memory goes to Redis and comes back, byte for byte.
//!
//! It is opened when it is first needed and ends with its client, as its client ends with it: what Redis keeps for a
//! connection (a transaction, a database, a login) cannot be carried to another. What is not sent yet is bounded by whoever
//! writes to [`Link::out`], who asks how much there is.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::Instant;

use crate::backend::{BackendError, Tied};
use crate::output::Output;

type Opening = Pin<Box<dyn Future<Output = Result<Tied, BackendError>> + Send>>;

/// The link, in all its states.
pub(super) struct Link {
    state: State,
    /// What is to be sent over it.
    pub(super) out: Output,
    /// What came over it and is not passed on yet.
    pub(super) input: BytesMut,
    /// Something written may still be held back, as TLS does.
    is_to_flush: bool,
    /// Whether the sending side is closed, or about to be.
    is_finished: bool,
    /// When something was sent last.
    pub(super) last_sent: Instant,
}

enum State {
    None,
    Opening(Opening),
    Open(Tied),
}

/// Bytes asked for at once.
const READ: usize = 32 << 10;
/// A buffer that has grown is given back once it is empty.
const KEPT: usize = 4 << 10;

impl Link {
    pub(super) fn none() -> Self {
        Self {
            state: State::None,
            out: Output::default(),
            input: BytesMut::new(),
            is_to_flush: false,
            is_finished: false,
            last_sent: Instant::now(),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self.state, State::None)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Tells Redis that nothing more will come: ready once that is done.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(stream) => {
                self.is_finished = true;
                Pin::new(&mut *stream).poll_shutdown(cx)
            }
            State::None | State::Opening(_) => Poll::Pending,
        }
    }

    /// Whether nothing more can be sent over it.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    pub(super) fn open(&mut self, opening: Opening) {
        self.state = State::Opening(opening);
    }

    /// Gives up what there is.
    pub(super) fn close(&mut self) {
        *self = Self::none();
    }

    /// Ready when an opening has ended.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>> {
        let State::Opening(opening) = &mut self.state else { return Poll::Pending };
        match ready!(opening.as_mut().poll(cx)) {
            Ok(stream) => {
                self.state = State::Open(stream);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.close();
                Poll::Ready(Err(error))
            }
        }
    }

    /// Whether it leads to where Redis no longer is.
    pub(super) fn is_cut(&self) -> bool {
        matches!(&self.state, State::Open(stream) if stream.is_cut())
    }

    /// Reads into `input`: how many bytes; none at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let State::Open(stream) = &mut self.state else { return Poll::Pending };
        self.input.reserve(READ);
        let read = pin!(stream.read_buf(&mut self.input)).poll(cx);
        if self.input.is_empty() && self.input.capacity() > KEPT {
            self.input = BytesMut::new();
        }
        read
    }

    /// Writes what is to be sent: ready once all is.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Open(stream) = &mut self.state else { return Poll::Pending };
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
