//! Where the next link goes, and whether the last one is still where it should be.
//!
//! Model: a [`Endpoint`] is an address together with the term in which it holds. A Redis that is known by its address has one
//! place for good, and nothing here waits or asks. Where sentinels are asked, a failover makes another place of it.
//!
//! The rule that must not be broken: whoever reads or writes at a place learns when it is no longer the place, and lets
//! go of it then, whatever Redis there says of itself.

use std::sync::Arc;

use tokio::sync::watch;

use super::dial::{Dialer, PrepareError, Stream};
use super::endpoint::{Endpoint, EndpointChanged, EpochGuard, EpochStream, endpoint_changed};
use super::error::{BackendError, unreachable};
use super::sentinel::Sentinels;
use super::settings::{Mode, Settings};
use crate::metrics::Node;

/// How it is known where Redis is.
pub(super) enum Topology {
    /// It was told once and for all.
    Fixed(Endpoint),
    /// The sentinels say it.
    Sentinels(Box<Sentinels>),
    /// A primary of a cluster, until it is retired, which makes its place another's.
    Primary(watch::Sender<Option<Endpoint>>),
}

impl Topology {
    pub(super) fn prepare(settings: &Settings, dialer: &Arc<Dialer>) -> Result<Self, PrepareError> {
        let fixed = Endpoint { address: settings.url.clone(), epoch: 0 };
        Ok(match settings.mode {
            Mode::Standalone => Self::Fixed(fixed),
            Mode::Cluster => Self::Primary(watch::Sender::new(Some(fixed))),
            Mode::Sentinel => {
                Self::Sentinels(Box::new(Sentinels::prepare(settings, Arc::clone(dialer))?))
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
    pub(super) async fn resolve(&self) -> Result<Endpoint, BackendError> {
        match self {
            Self::Fixed(endpoint) => Ok(endpoint.clone()),
            Self::Primary(endpoint) => {
                endpoint.borrow().clone().ok_or_else(|| unreachable(&RETIRED))
            }
            Self::Sentinels(sentinels) => sentinels.resolve().await,
        }
    }

    /// Where Redis was last known to be.
    pub(super) fn last_known(&self) -> Option<Endpoint> {
        match self {
            Self::Fixed(endpoint) => Some(endpoint.clone()),
            Self::Primary(endpoint) => endpoint.borrow().clone(),
            Self::Sentinels(sentinels) => sentinels.primary(),
        }
    }

    /// Nobody is to go there any more, if that can be.
    pub(super) fn retire(&self) {
        if let Self::Primary(endpoint) = self {
            endpoint.send_replace(None);
        }
    }

    /// Whether what answers there has to be a primary.
    pub(super) fn requires_primary(&self) -> bool {
        matches!(self, Self::Sentinels(_) | Self::Primary(_))
    }

    /// Whether what answers there has to be a part of a cluster that works.
    pub(super) fn requires_cluster(&self) -> bool {
        matches!(self, Self::Primary(_))
    }

    /// Returns when another place has taken the place of `endpoint`.
    pub(super) fn changed(&self, endpoint: &Endpoint) -> EndpointChanged {
        match self {
            Self::Fixed(_) => Box::pin(std::future::pending()),
            Self::Primary(current) => {
                Box::pin(endpoint_changed(current.subscribe(), endpoint.clone()))
            }
            Self::Sentinels(sentinels) => {
                Box::pin(endpoint_changed(sentinels.subscribe(), endpoint.clone()))
            }
        }
    }

    /// `stream`, which leads to `endpoint`, for as long as that is the place; then it ends.
    pub(super) fn bind(&self, stream: Box<dyn Stream>, endpoint: Endpoint) -> EpochStream {
        let guard = match self {
            Self::Fixed(_) => None,
            Self::Primary(current) => Some(EpochGuard {
                changed: Some(self.changed(&endpoint)),
                current: current.subscribe(),
                endpoint,
            }),
            Self::Sentinels(sentinels) => Some(EpochGuard {
                changed: Some(self.changed(&endpoint)),
                current: sentinels.subscribe(),
                endpoint,
            }),
        };
        EpochStream { stream, guard }
    }

    /// The fetch that goes on here asks Redis at its place.
    pub(super) fn record_span_target(&self) {
        match self {
            Self::Fixed(endpoint) => endpoint.address.record_span_target(),
            Self::Primary(endpoint) => {
                _ = endpoint
                    .borrow()
                    .as_ref()
                    .map(|endpoint| endpoint.address.record_span_target());
            }
            Self::Sentinels(sentinels) => sentinels.record_span_target(),
        }
    }

    /// Who there is to be asked; `is_up`: whether Redis answers.
    pub(super) fn nodes(&self, is_up: bool) -> Vec<Node> {
        let redis = |endpoint: &Endpoint| Node {
            name: endpoint.address.addr.node(),
            role: "redis",
            up: is_up,
        };
        match self {
            Self::Fixed(endpoint) => vec![redis(endpoint)],
            Self::Primary(endpoint) => endpoint.borrow().iter().map(redis).collect(),
            Self::Sentinels(sentinels) => {
                sentinels.primary().iter().map(redis).chain(sentinels.nodes()).collect()
            }
        }
    }
}

const RETIRED: &str = "the cluster has no such primary any more";
