//! Where Redis is, and streams that end when it is elsewhere.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::address::Address;
use super::dial::Stream;

/// Where Redis is, and since which failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Address,
    /// It rises with each failover.
    pub(super) term: u64,
}

/// Returns when another place is the place, or none; not if nobody will say so.
pub(super) async fn left(mut now: watch::Receiver<Option<Place>>, place: Place) {
    if now.wait_for(|now| is_left(now.as_ref(), &place)).await.is_err() {
        // Nobody says anything any more, as when the daemon is going down.
        std::future::pending::<()>().await;
    }
}

/// Where the sentinels have named no primary yet, nobody has gone anywhere.
fn is_left(now: Option<&Place>, place: &Place) -> bool {
    now != Some(place)
}

pub(super) type Left = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream that ends when the place it leads to is no longer the place.
///
/// Where the place may change, every end of it is [`io::ErrorKind::ConnectionAborted`]: what was said over it may not be known
/// at the next place.
pub struct Tied {
    pub(super) stream: Box<dyn Stream>,
    pub(super) tie: Option<Tie>,
}

pub(super) struct Tie {
    pub(super) place: Place,
    pub(super) now: watch::Receiver<Option<Place>>,
    /// None once it is.
    pub(super) left: Option<Left>,
}

impl Tied {
    /// A stream that leads nowhere in particular.
    pub(crate) fn loose(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self { stream: Box::new(stream), tie: None }
    }

    /// Whether it leads to where Redis no longer is, though nobody has read that from it yet.
    pub(crate) fn is_cut(&self) -> bool {
        let Some(Tie { place, now, .. }) = &self.tie else { return false };
        is_left(now.borrow().as_ref(), place)
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(tie) = &mut self.tie else { return Ok(()) };
        if tie.left.as_mut().is_some_and(|left| left.as_mut().poll(cx).is_ready()) {
            tie.left = None;
        }
        if tie.left.is_some() { Ok(()) } else { Err(cut()) }
    }
}

fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncRead for Tied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, buffer));
        let is_over = read.is_err() || buffer.filled().len() == before;
        Poll::Ready(if is_over && self.tie.is_some() { Err(cut()) } else { read })
    }
}

impl AsyncWrite for Tied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut *self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
