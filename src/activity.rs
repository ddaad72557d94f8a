//! When a stream last moved a byte, told from outside the task that reads and writes it.
//!
//! Time-outs that go by progress need it: a peer that is sending half a gigabyte is not silent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
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
    suspicious: AtomicBool,
}

impl Activity {
    fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            opened: Instant::now(),
            read: zero(),
            written: zero(),
            unsettled: zero(),
            suspicious: AtomicBool::new(false),
        })
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
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

    /// Whether something suspicious has come in.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicious.load(Relaxed)
    }

    fn note_read(&self) {
        let now = self.clock().max(1);
        self.read.store(now, Relaxed);
        _ = self.unsettled.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// When the last byte moved, in or out.
    pub(crate) fn last_moved(&self) -> Instant {
        self.last_read().max(self.at(&self.written))
    }
}

/// A stream whose [`Activity`] is noted.
#[derive(Debug)]
pub(crate) struct Observed<S> {
    stream: S,
    activity: Arc<Activity>,
    /// What was read and is to be read again.
    returned: Bytes,
    /// Looks at what comes in and says whether it is suspicious.
    inspect: fn(&[u8]) -> bool,
}

impl<S> Observed<S> {
    /// Wraps `stream`, which counts as opened now.
    pub(crate) fn new(stream: S) -> (Self, Arc<Activity>) {
        let activity = Activity::new();
        (Self { stream, activity: Arc::clone(&activity), returned: Bytes::new(), inspect: |_| false }, activity)
    }

    /// Gives back what was read, to be read again, and shows `inspect` everything that is read from now on.
    #[must_use]
    pub(crate) fn returning(self, returned: Bytes, inspect: fn(&[u8]) -> bool) -> Self {
        Self { returned, inspect, ..self }
    }

    fn wrote(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.activity.written.store(self.activity.clock(), Relaxed);
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
        let read = if self.returned.is_empty() {
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        } else {
            let most = self.returned.len().min(buffer.remaining());
            buffer.put_slice(&self.returned.split_to(most));
            Poll::Ready(Ok(()))
        };
        let new = &buffer.filled()[before..];
        if !new.is_empty() {
            self.activity.note_read();
            if (self.inspect)(new) {
                self.activity.suspicious.store(true, Relaxed);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
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
