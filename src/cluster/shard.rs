//! A primary of the cluster: its cache and its backend.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::slot_map::NodeAddr;
use crate::backend::{Backend, BackendError};
use crate::cache::{Cache, Coherence};
use crate::sync::lock;

/// The identifier of a primary. It is never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub(super) u32);

#[cfg(test)]
impl NodeId {
    /// Returns an identifier for unit tests.
    pub(crate) const fn for_test(number: u32) -> Self {
        Self(number)
    }
}

/// A primary: the cache of its replies, and the backend that connects to it.
pub(crate) struct Shard {
    name: NodeId,
    address: NodeAddr,
    pub(crate) cache: Cache<BackendError>,
    pub(crate) backend: Backend,
    link: AbortHandle,
    /// Slots that this primary owned once and has lost.
    former_slots: Mutex<HashSet<u16>>,
}

impl Shard {
    /// Creates the shard of the primary at `address`; `link` is the task of its supervisor.
    pub(super) fn new(
        name: NodeId,
        address: NodeAddr,
        cache: Cache<BackendError>,
        backend: Backend,
        link: AbortHandle,
    ) -> Self {
        Self { name, address, cache, backend, link, former_slots: Mutex::default() }
    }

    pub(super) fn name(&self) -> NodeId {
        self.name
    }

    pub(super) fn address(&self) -> &NodeAddr {
        &self.address
    }

    /// Retires the primary: it is no longer read, and its entries are no longer served.
    pub(super) fn retire(&self) {
        self.backend.retire();
        self.link.abort();
        self.cache.suspend_tracking();
        self.cache.invalidate_all();
    }

    /// Records that the primary has lost `slot`.
    pub(super) fn lose_slot(&self, slot: u16) {
        lock(&self.former_slots).insert(slot);
    }

    /// Records that the primary owns `slot`. Returns whether it owned and lost the slot before.
    pub(super) fn regain_slot(&self, slot: u16) -> bool {
        lock(&self.former_slots).remove(&slot)
    }

    /// Returns whether no entry of this shard can be served as fresh, because it has no connection.
    /// The next connection starts with an empty cache.
    pub(super) fn has_nothing_fresh(&self) -> bool {
        self.backend.state().is_err() && self.cache.coherence() == Coherence::None
    }

    /// Resolves the address of a redirect by this primary: an empty host, or `?`, is its own.
    pub(super) fn resolve_redirect(&self, (host, port): NodeAddr) -> NodeAddr {
        if host.is_empty() || host == "?" { (self.address.0.clone(), port) } else { (host, port) }
    }
}

impl Drop for Shard {
    /// Ends the connection. Otherwise its supervisor would outlive the cluster.
    fn drop(&mut self) {
        self.link.abort();
    }
}

/// Signals `wake` whenever a primary becomes suspected to be out of service. Returns once its
/// supervisor has ended.
pub(super) async fn forward_suspicion(mut suspected: watch::Receiver<bool>, wake: Arc<Notify>) {
    while suspected.wait_for(|is_suspected| *is_suspected).await.is_ok() {
        wake.notify_one();
        if suspected.wait_for(|is_suspected| !is_suspected).await.is_err() {
            return;
        }
    }
}
