//! Slot discovery: the nodes are polled for the owners of the slots.
//!
//! One node is polled every `ping_interval`. All of them are polled if its view is new or missing,
//! or if a request was redirected or found no owner. All known nodes are polled, replicas too,
//! since a replica may be the first to know of its promotion.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::Shared;
use super::slot_map::{ClusterView, NodeAddr};
use crate::backend::{BackendError, NodeClient};
use crate::sync::lock;

/// The clients of the polled nodes.
type Clients = HashMap<NodeAddr, NodeClient>;

impl Shared {
    pub(super) async fn run_discovery(self: &Arc<Self>) {
        let mut clients = Clients::new();
        let mut reported = false;
        for turn in 0_usize.. {
            let views = self.poll_all(&mut clients).await;
            let (asked, views) = (views.len(), views.into_iter().flatten().collect::<Vec<_>>());
            let none = views.is_empty();
            if none && !reported {
                tracing::warn!("no node of the cluster reports the slots; retrying");
            }
            reported = none;
            if !none {
                let shared = Arc::clone(self);
                let is_all = views.len() == asked;
                // Spawned as blocking: entries may have to be removed, and files to be read.
                let updated =
                    tokio::task::spawn_blocking(move || shared.apply_views(&views, is_all)).await;
                if let Ok(Err(error)) = updated {
                    tracing::warn!(reason = %error, "a node of the cluster cannot be queried");
                }
            }
            self.refreshes.send_modify(|refreshes| *refreshes += 1);
            self.wait_for_change(&mut clients, turn).await;
        }
    }

    /// Returns when all nodes have to be polled.
    async fn wait_for_change(&self, clients: &mut Clients, turn: usize) {
        for next in turn.. {
            tokio::select! {
                () = sleep(self.settings.ping_interval) => {}
                () = self.refresh_now.notified() => return,
            }
            let addresses = self.addresses();
            let Some(address) = addresses.get(next % addresses.len().max(1)) else { return };
            let view = match clients.get_mut(address) {
                Some(client) => self.view(address, client).await,
                None => return,
            };
            let is_news = |view: &ClusterView| {
                self.table().map.merged(std::slice::from_ref(view), false) != self.table().map
            };
            if view.is_none_or(|view| is_news(&view)) {
                return;
            }
        }
    }

    /// Returns the addresses of all nodes that may be polled, each once.
    pub(super) fn addresses(&self) -> Vec<NodeAddr> {
        let table = self.table();
        let known = table.shards.keys().chain(&table.other_nodes).cloned();
        let seeds = self.settings.seed_addrs();
        let mut seen = HashSet::new();
        known.chain(seeds).filter(|address| seen.insert(address.clone())).collect()
    }

    /// Polls all nodes and returns the view of each; `None` for a node without a valid reply.
    async fn poll_all(&self, clients: &mut Clients) -> Vec<Option<ClusterView>> {
        let addresses: HashSet<_> = self.addresses().into_iter().collect();
        clients.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !clients.contains_key(&address)
                && let Ok(client) = NodeClient::new(&self.settings.for_node(&address.0, address.1))
            {
                clients.insert(address, client);
            }
        }
        join_all(clients.iter_mut().map(|(address, client)| self.view(address, client))).await
    }

    async fn view(&self, address: &NodeAddr, client: &mut NodeClient) -> Option<ClusterView> {
        let answer = client.send_for_text(redis::cmd("CLUSTER").arg("NODES")).await;
        let view = answer.and_then(|text| {
            let view = ClusterView::parse(&text, address, self.settings.prefers_hostnames());
            view.ok_or_else(|| {
                BackendError::Unreachable("it does not say who serves what (CLUSTER NODES)".into())
            })
        });
        let report = |error: &BackendError| {
            tracing::debug!(node = %format_args!("{}:{}", address.0, address.1), reason = %error, "a node of the cluster does not reply");
        };
        view.inspect_err(report).ok()
    }

    /// Applies the views of the nodes to the routing table. `is_all`: every node has replied.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the files for a connection to a new primary cannot be used.
    fn apply_views(&self, views: &[ClusterView], is_all: bool) -> Result<(), BackendError> {
        let _alone = lock(&self.update_lock);
        let before = self.table();
        let map = before.map.merged(views, is_all);
        let primaries =
            views.iter().flat_map(|view| view.primaries.iter().map(|claim| &claim.address));
        let owners = map.counts();
        let wanted: HashSet<NodeAddr> = primaries.chain(owners.keys().copied()).cloned().collect();
        let replicas = views.iter().flat_map(|view| &view.replicas);
        let other_nodes: HashSet<_> =
            replicas.filter(|address| !owners.contains_key(address)).cloned().collect();
        // A node that some view calls a replica and that owns no slot is no primary, whatever other
        // views call it.
        let shards = wanted.iter().filter(|address| !other_nodes.contains(*address));
        let shards = shards.map(|address| Ok((address.clone(), self.get_or_create(address)?)));
        let shards = shards.collect::<Result<HashMap<_, _>, BackendError>>()?;
        let mut other_nodes: Vec<_> = other_nodes.into_iter().collect();
        other_nodes.sort();
        let is_same = map == before.map
            && other_nodes == before.other_nodes
            && same_keys(&shards, &before.shards);
        if !is_same {
            self.install(map, shards, other_nodes);
            self.distribute_capacity();
            tracing::info!(
                primaries = self.table().map.counts().len(),
                "the slots of the cluster are known"
            );
        }
        Ok(())
    }
}

fn same_keys<A, B>(one: &HashMap<NodeAddr, A>, other: &HashMap<NodeAddr, B>) -> bool {
    one.len() == other.len() && one.keys().all(|address| other.contains_key(address))
}
