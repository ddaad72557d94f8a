//! The endpoint of Redis, and streams that end when it changes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::address::Address;
use super::network::Stream;

/// The address of Redis, and the config epoch in which it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Address,
    /// The config epoch, which rises with each failover.
    pub(super) epoch: u64,
}

/// Completes when the current endpoint differs from `endpoint` or is gone; never if updates have
/// stopped.
pub(super) async fn endpoint_changed(
    mut current: watch::Receiver<Option<Endpoint>>,
    endpoint: Endpoint,
) {
    if current.wait_for(|current| is_changed(current.as_ref(), &endpoint)).await.is_err() {
        // The sender is gone, for example during shutdown.
        std::future::pending::<()>().await;
    }
}

/// Whether the current endpoint differs from `endpoint`, or there is none.
///
/// Before the sentinels report a primary, no connection depends on the result.
fn is_changed(current: Option<&Endpoint>, endpoint: &Endpoint) -> bool {
    current != Some(endpoint)
}

pub(super) type EndpointChanged = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream that ends when its endpoint is no longer the current one (invariant T3).
///
/// If the endpoint can change, every end is [`io::ErrorKind::ConnectionAborted`], because the next
/// endpoint may not know the writes that this one acknowledged.
pub struct EpochStream {
    pub(super) stream: Box<dyn Stream>,
    pub(super) guard: Option<EpochGuard>,
}

pub(super) struct EpochGuard {
    pub(super) endpoint: Endpoint,
    pub(super) current: watch::Receiver<Option<Endpoint>>,
    /// The pending change; `None` once the endpoint has changed.
    pub(super) changed: Option<EndpointChanged>,
}

impl EpochStream {
    /// Wraps a stream that no endpoint change ends.
    pub(crate) fn unbound(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self { stream: Box::new(stream), guard: None }
    }

    /// Whether the endpoint has changed, even if no read has reported it yet.
    pub(crate) fn is_revoked(&self) -> bool {
        let Some(EpochGuard { endpoint, current, .. }) = &self.guard else { return false };
        is_changed(current.borrow().as_ref(), endpoint)
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        if guard.changed.as_mut().is_some_and(|changed| changed.as_mut().poll(cx).is_ready()) {
            guard.changed = None;
        }
        if guard.changed.is_some() { Ok(()) } else { Err(revoked()) }
    }
}

fn revoked() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncRead for EpochStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_revoked(cx)?;
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, buffer));
        let is_over = read.is_err() || buffer.filled().len() == before;
        Poll::Ready(if is_over && self.guard.is_some() { Err(revoked()) } else { read })
    }
}

impl AsyncWrite for EpochStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_revoked(cx)?;
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_revoked(cx)?;
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
