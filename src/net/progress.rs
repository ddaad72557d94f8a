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
pub(crate) struct Activity {
    opened: Instant,
    /// Nanoseconds after `opened`.
    read: AtomicU64,
    written: AtomicU64,
    /// The first read of what has not been made sense of yet; zero: there is nothing such.
    unsettled: AtomicU64,
}

impl Activity {
    /// Of a stream that counts as opened now.
    pub(crate) fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { opened: Instant::now(), read: zero(), written: zero(), unsettled: zero() })
    }

    fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }

    fn at(&self, clock: &AtomicU64) -> Instant {
        self.opened + Duration::from_nanos(clock.load(Relaxed))
    }

    /// When the last byte came in; when the stream was opened, if none has.
    pub(crate) fn last_read(&self) -> Instant {
        self.at(&self.read)
    }

    /// Everything read so far has been made sense of.
    pub(crate) fn settle(&self) {
        self.unsettled.store(0, Relaxed);
    }

    /// Since when there are bytes that nobody has made sense of yet.
    pub(crate) fn unsettled_since(&self) -> Option<Instant> {
        (self.unsettled.load(Relaxed) > 0).then(|| self.at(&self.unsettled))
    }

    /// Bytes came in now, of which nobody has made sense yet.
    pub(crate) fn note_read(&self, now: Instant) {
        let now = self.clock(now);
        self.read.store(now, Relaxed);
        self.note_unsettled_at(now);
    }

    /// Of what came in up to now, something has not been made sense of yet.
    pub(crate) fn note_unsettled(&self, now: Instant) {
        self.note_unsettled_at(self.clock(now));
    }

    fn note_unsettled_at(&self, now: u64) {
        // Nobody else changes it: what reads and writes a stream is one task.
        if self.unsettled.load(Relaxed) == 0 {
            self.unsettled.store(now.max(1), Relaxed);
        }
    }

    /// Bytes went out now.
    pub(crate) fn note_written(&self, now: Instant) {
        self.written.store(self.clock(now), Relaxed);
    }

    /// When the last byte moved, in or out.
    pub(crate) fn last_moved(&self) -> Instant {
        self.last_read().max(self.at(&self.written))
    }
}

/// Looks at the bytes that a stream brings.
pub(crate) type Inspector = Box<dyn FnMut(&[u8]) + Send>;

/// A stream whose [`Activity`] is noted.
pub(crate) struct Observed<S> {
    stream: S,
    activity: Arc<Activity>,
    /// What was read and is to be read again.
    returned: Bytes,
    /// Looks at what comes in.
    inspector: Option<Inspector>,
}

impl<S> Observed<S> {
    /// Wraps `stream`, which counts as opened now.
    pub(crate) fn new(stream: S) -> (Self, Arc<Activity>) {
        let activity = Activity::new();
        (Self::resuming(stream, Arc::clone(&activity), Bytes::new(), None), activity)
    }

    /// Wraps a stream of which something was read already and is `returned`; the `inspector` sees that and all that follows.
    pub(crate) fn resuming(
        stream: S,
        activity: Arc<Activity>,
        returned: Bytes,
        inspector: Option<Inspector>,
    ) -> Self {
        Self { stream, activity, returned, inspector }
    }

    fn wrote(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.activity.note_written(Instant::now());
            // What is written answers what was read; a body that came late is no head that has begun.
            self.activity.settle();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
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
            this.activity.note_read(Instant::now());
            if let Some(inspect) = &mut this.inspector {
                inspect(new);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written)
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
