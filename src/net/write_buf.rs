//! The write buffer of a stream.
//!
//! Small pieces are copied together, so one write carries many of them. Large pieces are kept as
//! they are and never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Bytes to be written, in order.
#[derive(Debug, Default)]
pub(crate) struct WriteBuf {
    /// The bytes before `tail`.
    chunks: VecDeque<Bytes>,
    /// Number of bytes in `chunks`.
    in_chunks: usize,
    tail: BytesMut,
}

/// Pieces of at least this many bytes are not copied. A copy of less costs less than a piece of its
/// own in a write.
pub(crate) const ZERO_COPY_MIN: usize = 16 << 10;
/// Maximum number of pieces in one write. It has room for a pipeline of 16 large values.
const MAX_SLICES: usize = 64;
/// Capacity in bytes of a tail behind other chunks, and the most that an empty buffer keeps. A
/// larger buffer is released.
const RETAINED_CAPACITY: usize = 64 << 10;

impl WriteBuf {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.in_chunks + self.tail.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a small piece.
    fn copy(&mut self, piece: &[u8]) {
        self.tail_for(piece.len()).extend_from_slice(piece);
    }

    /// Returns the buffer to which a small piece of this length is written. A full tail that is not
    /// small is closed, not grown. To grow it would copy it and reserve more memory than much of
    /// the pending data needs.
    #[inline]
    pub(crate) fn tail_for(&mut self, length: usize) -> &mut BytesMut {
        if self.tail.capacity() - self.tail.len() < length && self.tail.len() >= ZERO_COPY_MIN {
            self.close_tail();
            self.tail = BytesMut::with_capacity(RETAINED_CAPACITY);
        }
        &mut self.tail
    }

    /// Returns the buffer to which small pieces are written.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.len() < ZERO_COPY_MIN {
            return self.copy(&piece);
        }
        self.close_tail();
        self.in_chunks += piece.len();
        self.chunks.push_back(piece);
    }

    /// Appends `bytes`. `whole` must return the same bytes; it is called only if they are large, to
    /// avoid a copy.
    pub(crate) fn push_slice_or(&mut self, bytes: &[u8], whole: impl FnOnce() -> Bytes) {
        if bytes.len() < ZERO_COPY_MIN {
            self.copy(bytes);
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

    /// Returns all bytes in one piece. Only large pieces are copied for that.
    pub(crate) fn as_one(&mut self) -> &[u8] {
        if !self.chunks.is_empty() {
            let mut whole = BytesMut::with_capacity(self.len());
            self.chunks.drain(..).for_each(|chunk| whole.extend_from_slice(&chunk));
            whole.extend_from_slice(&self.tail);
            (self.in_chunks, self.tail) = (0, whole);
        }
        &self.tail
    }

    /// Removes all bytes.
    pub(crate) fn clear(&mut self) {
        self.advance(self.len());
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.in_chunks += self.tail.len();
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    /// Writes as much as the stream accepts. Ready once everything is written.
    ///
    /// # Errors
    /// `WriteZero` if the stream accepts no more bytes, or the error of the stream.
    #[inline]
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
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = self
                    .chunks
                    .iter()
                    .zip(&mut slices)
                    .map(|(chunk, slice)| *slice = IoSlice::new(chunk))
                    .count();
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
        } else if self.tail.capacity() > RETAINED_CAPACITY {
            self.tail = BytesMut::new();
        } else {
            // The next bytes then reuse the same memory.
            self.tail.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_become_one() {
        let mut output = WriteBuf::default();
        let (small, large) = ([1; 10], [2; ZERO_COPY_MIN]);
        for pieces in [&[&small[..]][..], &[&small, &large], &[&large, &small, &large, &small]] {
            for piece in pieces {
                output.push(Bytes::copy_from_slice(piece));
            }
            assert_eq!(output.as_one(), pieces.concat());
            assert_eq!(output.len(), pieces.concat().len());
            output.clear();
            assert!(output.is_empty() && output.as_one().is_empty());
        }
    }

    #[test]
    fn buffer_capacity_is_close_to_its_length() {
        let mut output = WriteBuf::default();
        let pieces: Vec<Bytes> = (0..250_u8).map(|number| vec![number; 8000].into()).collect();
        pieces.iter().cloned().for_each(|piece| output.push(piece));
        assert_eq!(output.len(), 250 * 8000);
        assert!(output.chunks.iter().all(|chunk| chunk.len() <= RETAINED_CAPACITY));
        assert!(output.tail.capacity() <= RETAINED_CAPACITY, "{}", output.tail.capacity());
        output.close_tail();
        assert_eq!(output.chunks.make_contiguous().concat(), pieces.concat());
    }
}
