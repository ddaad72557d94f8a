//! What is still to be written to a stream.
//!
//! Small pieces are copied together, so that one write carries many; large ones are kept as they are and never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Bytes on their way out, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// What goes before `tail`.
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    in_chunks: usize,
    tail: BytesMut,
}

/// Pieces from this size on are not copied.
pub(crate) const LARGE: usize = 16 << 10;
/// Pieces in one write at most.
const SLICES: usize = 16;
/// A buffer that has grown beyond this is given back once it is empty.
const KEPT: usize = 64 << 10;

impl Output {
    pub(crate) fn len(&self) -> usize {
        self.in_chunks + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where small pieces are written to.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.len() < LARGE {
            self.tail.extend_from_slice(&piece);
            return;
        }
        self.close_tail();
        self.in_chunks += piece.len();
        self.chunks.push_back(piece);
    }

    /// Adds the same bytes as `whole` makes of them, which is asked only if they are large.
    pub(crate) fn push_either(&mut self, bytes: &[u8], whole: impl FnOnce() -> Bytes) {
        if bytes.len() < LARGE {
            self.tail.extend_from_slice(bytes);
        } else {
            self.push(whole());
        }
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        for piece in other.chunks.drain(..) {
            self.push(piece);
        }
        self.push(other.tail.freeze());
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.in_chunks += self.tail.len();
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    /// Writes as much as the stream takes; ready once all is written.
    pub(crate) fn poll_write(
        &mut self,
        mut stream: Pin<&mut (impl AsyncWrite + ?Sized)>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.chunks.is_empty() {
                ready!(stream.as_mut().poll_write(cx, &self.tail))?
            } else {
                self.close_tail();
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count =
                    self.chunks.iter().zip(&mut slices).map(|(chunk, slice)| *slice = IoSlice::new(chunk)).count();
                ready!(stream.as_mut().poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.chunks.front_mut() {
            let part = written.min(first.len());
            first.advance(part);
            self.in_chunks -= part;
            written -= part;
            if first.has_remaining() {
                return;
            }
            self.chunks.pop_front();
        }
        if written < self.tail.len() {
            self.tail.advance(written);
        } else if self.tail.capacity() > KEPT {
            self.tail = BytesMut::new();
        } else {
            // So what comes next is written to where this was.
            self.tail.clear();
        }
    }
}
