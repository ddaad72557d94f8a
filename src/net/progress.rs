//! The times at which a stream last moved a byte, readable outside the task that reads and writes
//! it.
//!
//! Progress timeouts need them. Otherwise a peer that is still sending half a gigabyte would count
//! as silent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::LingeringClose;

/// The times of a stream's last read and last write.
#[derive(Debug)]
pub(crate) struct IoProgress {
    opened: Instant,
    /// Nanoseconds after `opened`.
    read: AtomicU64,
    written: AtomicU64,
    /// The first read of bytes that are not consumed yet; 0 if there are none.
    unconsumed: AtomicU64,
    /// Whether the peer has yet to take bytes before more can be written.
    is_write_blocked: AtomicBool,
}

impl IoProgress {
    /// Creates the times of a stream that counts as opened now.
    pub(crate) fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            opened: Instant::now(),
            read: zero(),
            written: zero(),
            unconsumed: zero(),
            is_write_blocked: AtomicBool::new(false),
        })
    }

    fn nanos_since_open(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }

    fn instant(&self, clock: &AtomicU64) -> Instant {
        self.opened + Duration::from_nanos(clock.load(Relaxed))
    }

    /// Returns the time of the last read byte, or the opening time if there is none.
    pub(crate) fn last_read(&self) -> Instant {
        self.instant(&self.read)
    }

    /// Marks all bytes read so far as consumed, that is, parsed.
    pub(crate) fn mark_consumed(&self) {
        self.unconsumed.store(0, Relaxed);
    }

    /// Returns the time since which unconsumed bytes wait, or `None` if there are none.
    pub(crate) fn unconsumed_since(&self) -> Option<Instant> {
        (self.unconsumed.load(Relaxed) > 0).then(|| self.instant(&self.unconsumed))
    }

    /// Records a read at `now`, of bytes that are not consumed yet.
    pub(crate) fn record_read(&self, now: Instant) {
        let now = self.nanos_since_open(now);
        self.read.store(now, Relaxed);
        self.mark_unconsumed_at(now);
    }

    /// Marks a part of the bytes read up to `now` as not consumed.
    pub(crate) fn mark_unconsumed(&self, now: Instant) {
        self.mark_unconsumed_at(self.nanos_since_open(now));
    }

    fn mark_unconsumed_at(&self, now: u64) {
        // No other task changes it: one task reads and writes a stream.
        if self.unconsumed.load(Relaxed) == 0 {
            self.unconsumed.store(now.max(1), Relaxed);
        }
    }

    /// Records a write at `now`.
    pub(crate) fn record_written(&self, now: Instant) {
        self.written.store(self.nanos_since_open(now), Relaxed);
    }

    /// Records whether a write waits for the peer.
    pub(crate) fn set_write_blocked(&self, is_blocked: bool) {
        self.is_write_blocked.store(is_blocked, Relaxed);
    }

    /// Whether a write waits for the peer.
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.is_write_blocked.load(Relaxed)
    }

    /// Returns the time of the last byte in either direction, or the opening time if there is none.
    pub(crate) fn last_transfer(&self) -> Instant {
        self.last_read().max(self.instant(&self.written))
    }
}

/// Inspects the bytes that a stream delivers.
pub(crate) type Inspector = Box<dyn FnMut(&[u8]) + Send>;

/// A stream that records its [`IoProgress`].
pub(crate) struct TrackedIo<S> {
    stream: S,
    activity: Arc<IoProgress>,
    /// Bytes that were already read and are delivered again first.
    returned: Bytes,
    /// Inspects the incoming bytes.
    inspector: Option<Inspector>,
    /// The close of a client's stream; `None` if the stream is closed at once.
    lingering_close: Option<LingeringClose>,
}

impl<S> TrackedIo<S> {
    /// Wraps `stream`, which counts as opened now. Returns it with its times.
    pub(crate) fn new(stream: S) -> (Self, Arc<IoProgress>) {
        let activity = IoProgress::new();
        let tracked = Self {
            stream,
            activity: Arc::clone(&activity),
            returned: Bytes::new(),
            inspector: None,
            lingering_close: None,
        };
        (tracked, activity)
    }

    /// Wraps a client's stream from which the bytes in `returned` were already read. The
    /// `inspector` sees these bytes and all that follow.
    pub(crate) fn of_client(
        stream: S,
        activity: Arc<IoProgress>,
        returned: Bytes,
        inspector: Option<Inspector>,
        close: LingeringClose,
    ) -> Self {
        Self { stream, activity, returned, inspector, lingering_close: Some(close) }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    fn record_write(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        self.activity.set_write_blocked(written.is_pending());
        if let Poll::Ready(Ok(1..)) = written {
            self.activity.record_written(Instant::now());
            // A write answers the bytes that were read. Otherwise a late body would count as an
            // unfinished head.
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TrackedIo<S> {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let Self { stream, lingering_close, .. } = self.get_mut();
        match lingering_close {
            Some(close) => close.poll(Pin::new(stream), cx),
            None => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
