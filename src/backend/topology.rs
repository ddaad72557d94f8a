//! The topology: the endpoint of the next connection, and whether the last one is still current.
//!
//! Model: an [`Endpoint`] is an address and the config epoch in which it is valid. A Redis with a
//! configured address has one endpoint permanently, and nothing here waits. With sentinels, a
//! failover replaces the endpoint.
//!
//! The rule that must not be broken: every connection ends when its endpoint has been replaced,
//! whatever role the Redis there reports (invariant T3).

use std::sync::Arc;

use tokio::sync::watch;

use super::dial::{Dialer, PrepareError};
use super::endpoint::{Endpoint, EndpointChanged, EpochGuard, EpochStream, endpoint_changed};
use super::error::{BackendError, unreachable};
use super::network::Stream;
use super::sentinel::Sentinels;
use super::settings::{Mode, Settings};
use crate::metrics::Node;
use crate::telemetry::spans;

/// The source of the endpoint of Redis.
pub(super) enum Topology {
    /// The configured address.
    Fixed(Endpoint),
    /// The primary that the sentinels report.
    Sentinels(Box<Sentinels>),
    /// A primary of a cluster, until it is retired, which removes its endpoint.
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

    /// Keeps the endpoint up to date. Never returns.
    pub(super) async fn run(&self) {
        match self {
            Self::Fixed(_) | Self::Primary(_) => std::future::pending().await,
            Self::Sentinels(sentinels) => sentinels.run().await,
        }
    }

    /// Returns the endpoint of the next connection, as currently known.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the primary was retired, or if the sentinels report none.
    pub(super) async fn resolve(&self) -> Result<Endpoint, BackendError> {
        match self {
            Self::Fixed(endpoint) => Ok(endpoint.clone()),
            Self::Primary(endpoint) => {
                endpoint.borrow().clone().ok_or_else(|| unreachable(&RETIRED))
            }
            Self::Sentinels(sentinels) => sentinels.resolve().await,
        }
    }

    /// Returns the endpoint that was known last.
    pub(super) fn last_known(&self) -> Option<Endpoint> {
        match self {
            Self::Fixed(endpoint) => Some(endpoint.clone()),
            Self::Primary(endpoint) => endpoint.borrow().clone(),
            Self::Sentinels(sentinels) => sentinels.primary(),
        }
    }

    /// Removes the endpoint of a primary of a cluster, which ends its connections. Does nothing in
    /// the other modes.
    pub(super) fn retire(&self) {
        if let Self::Primary(endpoint) = self {
            endpoint.send_replace(None);
        }
    }

    /// Returns whether the endpoint has to be a primary.
    pub(super) fn requires_primary(&self) -> bool {
        matches!(self, Self::Sentinels(_) | Self::Primary(_))
    }

    /// Returns whether the endpoint has to belong to a cluster that is up.
    pub(super) fn requires_cluster(&self) -> bool {
        matches!(self, Self::Primary(_))
    }

    /// Returns a future that completes when `endpoint` has been replaced.
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

    /// Binds `stream`, which is connected to `endpoint`, to that endpoint: it ends when the
    /// endpoint is replaced.
    pub(super) fn bind(&self, stream: Box<dyn Stream>, endpoint: Endpoint) -> EpochStream {
        #[cfg(feature = "planted-faults")]
        if super::planted_faults::is_failover_outlived() {
            return EpochStream::unbound(stream);
        }
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

    /// Records the endpoint as the target of the current span.
    pub(super) fn record_span_target(&self) {
        if !spans::is_enabled() {
            return;
        }
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

    /// Returns Redis and the sentinels, each with its state. `is_up` is the state of Redis.
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
