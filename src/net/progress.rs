//! When a stream last moved a byte, told from outside the task that reads and writes it.
//!
//! Time-outs that go by progress need it: a peer that is sending half a gigabyte is not silent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The times of a stream's last read and write.
#[derive(Debug)]
pub(crate) struct IoProgress {
    opened: Instant,
    /// Nanoseconds after `opened`.
    read: AtomicU64,
    written: AtomicU64,
    /// The first read of what has not been made sense of yet; zero: there is nothing such.
    unconsumed: AtomicU64,
}

impl IoProgress {
    /// Of a stream that counts as opened now.
    pub(crate) fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { opened: Instant::now(), read: zero(), written: zero(), unconsumed: zero() })
    }

    fn nanos_since_open(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }

    fn instant(&self, clock: &AtomicU64) -> Instant {
        self.opened + Duration::from_nanos(clock.load(Relaxed))
    }

    /// When the last byte came in; when the stream was opened, if none has.
    pub(crate) fn last_read(&self) -> Instant {
        self.instant(&self.read)
    }

    /// Everything read so far has been made sense of.
    pub(crate) fn mark_consumed(&self) {
        self.unconsumed.store(0, Relaxed);
    }

    /// Since when there are bytes that nobody has made sense of yet.
    pub(crate) fn unconsumed_since(&self) -> Option<Instant> {
        (self.unconsumed.load(Relaxed) > 0).then(|| self.instant(&self.unconsumed))
    }

    /// Bytes came in now, of which nobody has made sense yet.
    pub(crate) fn record_read(&self, now: Instant) {
        let now = self.nanos_since_open(now);
        self.read.store(now, Relaxed);
        self.mark_unconsumed_at(now);
    }

    /// Of what came in up to now, something has not been made sense of yet.
    pub(crate) fn mark_unconsumed(&self, now: Instant) {
        self.mark_unconsumed_at(self.nanos_since_open(now));
    }

    fn mark_unconsumed_at(&self, now: u64) {
        // Nobody else changes it: what reads and writes a stream is one task.
        if self.unconsumed.load(Relaxed) == 0 {
            self.unconsumed.store(now.max(1), Relaxed);
        }
    }

    /// Bytes went out now.
    pub(crate) fn record_written(&self, now: Instant) {
        self.written.store(self.nanos_since_open(now), Relaxed);
    }

    /// When the last byte moved, in or out.
    pub(crate) fn last_transfer(&self) -> Instant {
        self.last_read().max(self.instant(&self.written))
    }
}

/// Looks at the bytes that a stream brings.
pub(crate) type Inspector = Box<dyn FnMut(&[u8]) + Send>;

/// A stream whose [`IoProgress`] is noted.
pub(crate) struct TrackedIo<S> {
    stream: S,
    activity: Arc<IoProgress>,
    /// What was read and is to be read again.
    returned: Bytes,
    /// Looks at what comes in.
    inspector: Option<Inspector>,
}

impl<S> TrackedIo<S> {
    /// Wraps `stream`, which counts as opened now.
    pub(crate) fn new(stream: S) -> (Self, Arc<IoProgress>) {
        let activity = IoProgress::new();
        (Self::with_returned(stream, Arc::clone(&activity), Bytes::new(), None), activity)
    }

    /// Wraps a stream of which something was read already and is `returned`; the `inspector` sees that and all that follows.
    pub(crate) fn with_returned(
        stream: S,
        activity: Arc<IoProgress>,
        returned: Bytes,
        inspector: Option<Inspector>,
    ) -> Self {
        Self { stream, activity, returned, inspector }
    }

    fn record_write(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.activity.record_written(Instant::now());
            // What is written answers what was read; a body that came late is no head that has begun.
            self.activity.mark_consumed();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        let read = if this.returned.is_empty() {
            Pin::new(&mut this.stream).poll_read(cx, buffer)
        } else {
            let most = this.returned.len().min(buffer.remaining());
            buffer.put_slice(&this.returned.split_to(most));
            Poll::Ready(Ok(()))
        };
        let new = &buffer.filled()[before..];
        if !new.is_empty() {
            this.activity.record_read(Instant::now());
            if let Some(inspect) = &mut this.inspector {
                inspect(new);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
