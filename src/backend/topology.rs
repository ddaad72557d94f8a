//! Where the next link goes, and whether the last one is still where it should be.
//!
//! Model: a [`Place`] is an address together with the term in which it holds. A Redis that is known by its address has one
//! place for good, and nothing here waits or asks. Where sentinels are asked, a failover makes another place of it.
//!
//! The rule that must not be broken: whoever reads or writes at a place learns when it is no longer the place, and lets
//! go of it then, whatever Redis there says of itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::address::Address;
use super::sentinel::Sentinels;
use super::stream::{Opener, PrepareError, Stream};
use super::{BackendError, Mode, Settings};
use crate::metrics::Node;

/// Where Redis is, and since which failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Address,
    /// It rises with each failover.
    pub(super) term: u64,
}

/// How it is known where Redis is.
pub(super) enum Topology {
    /// It was told once and for all.
    Fixed(Place),
    /// The sentinels say it.
    Sentinels(Box<Sentinels>),
}

impl Topology {
    pub(super) fn prepare(settings: &Settings, opener: &Arc<Opener>) -> Result<Self, PrepareError> {
        Ok(match settings.mode {
            Mode::Standalone => Self::Fixed(Place { address: settings.url.clone(), term: 0 }),
            Mode::Sentinel => Self::Sentinels(Box::new(Sentinels::prepare(settings, Arc::clone(opener))?)),
        })
    }

    /// Keeps asking for as long as the daemon lives, where there is anything to ask.
    pub(super) async fn run(&self) {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Sentinels(sentinels) => sentinels.run().await,
        }
    }

    /// Where the next link goes, as far as can be known now.
    ///
    /// # Errors
    /// Nobody says it.
    pub(super) async fn place(&self) -> Result<Place, BackendError> {
        match self {
            Self::Fixed(place) => Ok(place.clone()),
            Self::Sentinels(sentinels) => sentinels.place().await,
        }
    }

    /// Where Redis was last known to be.
    pub(super) fn known(&self) -> Option<Place> {
        match self {
            Self::Fixed(place) => Some(place.clone()),
            Self::Sentinels(sentinels) => sentinels.primary(),
        }
    }

    /// Whether what answers there has to be a primary.
    pub(super) fn wants_primary(&self) -> bool {
        matches!(self, Self::Sentinels(_))
    }

    /// Returns when another place has taken the place of `place`.
    pub(super) fn left(&self, place: &Place) -> Left {
        match self {
            Self::Fixed(_) => Box::pin(std::future::pending()),
            Self::Sentinels(sentinels) => Box::pin(sentinels.left(place.clone())),
        }
    }

    /// `stream`, which leads to `place`, for as long as that is the place; then it ends.
    pub(super) fn tie(&self, stream: Box<dyn Stream>, place: Place) -> Tied {
        let tie = match self {
            Self::Fixed(_) => None,
            Self::Sentinels(sentinels) => Some(Tie { left: Some(self.left(&place)), now: sentinels.follow(), place }),
        };
        Tied { stream, tie }
    }

    /// The fetch that goes on here asks Redis at its place.
    pub(super) fn trace(&self) {
        match self {
            Self::Fixed(place) => place.address.trace(),
            Self::Sentinels(sentinels) => sentinels.trace(),
        }
    }

    /// Who there is to be asked; `has_link`: whether Redis answers.
    pub(super) fn nodes(&self, has_link: bool) -> Vec<Node> {
        let redis = |place: &Place| Node { name: place.address.endpoint.node(), role: "redis", up: has_link };
        match self {
            Self::Fixed(place) => vec![redis(place)],
            Self::Sentinels(sentinels) => sentinels.primary().iter().map(redis).chain(sentinels.nodes()).collect(),
        }
    }
}

pub(super) type Left = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream that ends when the place it leads to is no longer the place.
///
/// Where the place may change, every end of it is [`io::ErrorKind::ConnectionAborted`]: what was said over it may not be known
/// at the next place.
pub struct Tied {
    stream: Box<dyn Stream>,
    tie: Option<Tie>,
}

struct Tie {
    place: Place,
    now: watch::Receiver<Option<Place>>,
    /// None once it is.
    left: Option<Left>,
}

impl Tied {
    /// Whether it leads to where Redis no longer is, though nobody has read that from it yet.
    pub(crate) fn is_cut(&self) -> bool {
        let Some(Tie { place, now, .. }) = &self.tie else { return false };
        now.borrow().as_ref().is_some_and(|now| now != place)
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
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, buffer));
        let is_over = read.is_err() || buffer.filled().len() == before;
        Poll::Ready(if is_over && self.tie.is_some() { Err(cut()) } else { read })
    }
}

impl AsyncWrite for Tied {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
