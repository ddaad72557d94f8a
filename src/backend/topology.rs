//! Where the next link goes, and whether the last one is still where it should be.
//!
//! Model: a [`Place`] is an address together with the term in which it holds. A Redis that is known by its address has one
//! place for good, and nothing here waits or asks. Where sentinels are asked, a failover makes another place of it.
//!
//! The rule that must not be broken: whoever reads or writes at a place learns when it is no longer the place, and lets
//! go of it then, whatever Redis there says of itself.

use std::sync::Arc;

use tokio::sync::watch;

use super::dial::{Opener, PrepareError, Stream};
use super::endpoint::{Left, Place, Tie, Tied, left};
use super::error::{BackendError, unreachable};
use super::sentinel::Sentinels;
use super::settings::{Mode, Settings};
use crate::metrics::Node;

/// How it is known where Redis is.
pub(super) enum Topology {
    /// It was told once and for all.
    Fixed(Place),
    /// The sentinels say it.
    Sentinels(Box<Sentinels>),
    /// A primary of a cluster, until it is retired, which makes its place another's.
    Primary(watch::Sender<Option<Place>>),
}

impl Topology {
    pub(super) fn prepare(settings: &Settings, opener: &Arc<Opener>) -> Result<Self, PrepareError> {
        let fixed = Place { address: settings.url.clone(), term: 0 };
        Ok(match settings.mode {
            Mode::Standalone => Self::Fixed(fixed),
            Mode::Cluster => Self::Primary(watch::Sender::new(Some(fixed))),
            Mode::Sentinel => {
                Self::Sentinels(Box::new(Sentinels::prepare(settings, Arc::clone(opener))?))
            }
        })
    }

    /// Keeps asking for as long as the daemon lives, where there is anything to ask.
    pub(super) async fn run(&self) {
        match self {
            Self::Fixed(_) | Self::Primary(_) => std::future::pending().await,
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
            Self::Primary(place) => place.borrow().clone().ok_or_else(|| unreachable(&RETIRED)),
            Self::Sentinels(sentinels) => sentinels.place().await,
        }
    }

    /// Where Redis was last known to be.
    pub(super) fn known(&self) -> Option<Place> {
        match self {
            Self::Fixed(place) => Some(place.clone()),
            Self::Primary(place) => place.borrow().clone(),
            Self::Sentinels(sentinels) => sentinels.primary(),
        }
    }

    /// Nobody is to go there any more, if that can be.
    pub(super) fn retire(&self) {
        if let Self::Primary(place) = self {
            place.send_replace(None);
        }
    }

    /// Whether what answers there has to be a primary.
    pub(super) fn wants_primary(&self) -> bool {
        matches!(self, Self::Sentinels(_) | Self::Primary(_))
    }

    /// Whether what answers there has to be a part of a cluster that works.
    pub(super) fn wants_cluster(&self) -> bool {
        matches!(self, Self::Primary(_))
    }

    /// Returns when another place has taken the place of `place`.
    pub(super) fn left(&self, place: &Place) -> Left {
        match self {
            Self::Fixed(_) => Box::pin(std::future::pending()),
            Self::Primary(now) => Box::pin(left(now.subscribe(), place.clone())),
            Self::Sentinels(sentinels) => Box::pin(left(sentinels.follow(), place.clone())),
        }
    }

    /// `stream`, which leads to `place`, for as long as that is the place; then it ends.
    pub(super) fn tie(&self, stream: Box<dyn Stream>, place: Place) -> Tied {
        let tie = match self {
            Self::Fixed(_) => None,
            Self::Primary(now) => {
                Some(Tie { left: Some(self.left(&place)), now: now.subscribe(), place })
            }
            Self::Sentinels(sentinels) => {
                Some(Tie { left: Some(self.left(&place)), now: sentinels.follow(), place })
            }
        };
        Tied { stream, tie }
    }

    /// The fetch that goes on here asks Redis at its place.
    pub(super) fn trace(&self) {
        match self {
            Self::Fixed(place) => place.address.trace(),
            Self::Primary(place) => _ = place.borrow().as_ref().map(|place| place.address.trace()),
            Self::Sentinels(sentinels) => sentinels.trace(),
        }
    }

    /// Who there is to be asked; `has_link`: whether Redis answers.
    pub(super) fn nodes(&self, has_link: bool) -> Vec<Node> {
        let redis = |place: &Place| Node {
            name: place.address.endpoint.node(),
            role: "redis",
            up: has_link,
        };
        match self {
            Self::Fixed(place) => vec![redis(place)],
            Self::Primary(place) => place.borrow().iter().map(redis).collect(),
            Self::Sentinels(sentinels) => {
                sentinels.primary().iter().map(redis).chain(sentinels.nodes()).collect()
            }
        }
    }
}

const RETIRED: &str = "the cluster has no such primary any more";
