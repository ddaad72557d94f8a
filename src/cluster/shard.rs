//! A primary of the cluster: its cache, and the way to it.

use std::collections::HashSet;
use std::sync::Mutex;

use tokio::task::AbortHandle;

use super::slot_map::NodeAddr;
use crate::backend::{Backend, BackendError};
use crate::cache::{Cache, Coherence};
use crate::sync::lock;

/// The name of a primary; never another's later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub(super) u32);

#[cfg(test)]
impl NodeId {
    /// A name for unit tests.
    pub(crate) const fn for_test(number: u32) -> Self {
        Self(number)
    }
}

/// A primary: what it said, and the way to it.
pub(crate) struct Shard {
    name: NodeId,
    address: NodeAddr,
    pub(crate) cache: Cache<BackendError>,
    pub(crate) backend: Backend,
    link: AbortHandle,
    /// Slots that were its own once and are not any more.
    former_slots: Mutex<HashSet<u16>>,
}

impl Shard {
    /// The primary at `address`, with the task that keeps its link.
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

    /// Nothing is read there any more, and nothing that was is given.
    pub(super) fn retire(&self) {
        self.backend.retire();
        self.link.abort();
        self.cache.suspend_tracking();
        self.cache.invalidate_all();
    }

    /// It serves `slot` no more.
    pub(super) fn lose_slot(&self, slot: u16) {
        lock(&self.former_slots).insert(slot);
    }

    /// It serves `slot` again; tells whether it has before.
    pub(super) fn regain_slot(&self, slot: u16) -> bool {
        lock(&self.former_slots).remove(&slot)
    }

    /// Whether there is no link, so nothing of it is given as fresh; with the next, its memory begins anew.
    pub(super) fn has_nothing_fresh(&self) -> bool {
        self.backend.state().is_err() && self.cache.coherence() == Coherence::None
    }

    /// Where it sends whoever asks: a host that is not named is its own.
    pub(super) fn resolve_redirect(&self, (host, port): NodeAddr) -> NodeAddr {
        if host.is_empty() || host == "?" { (self.address.0.clone(), port) } else { (host, port) }
    }
}
