//! Slot discovery: the nodes are polled for the owners of the slots.
//!
//! One node is polled every `ping_interval`, and more often while a primary is suspected to be out
//! of service. All known nodes are polled in a round if a view is new or missing, or if a request
//! was redirected or found no owner. Replicas are polled too, since a replica may be the first to
//! know of its promotion.
//!
//! The rule that must not be broken: nothing waits for a node that hangs. A view with a higher
//! config epoch is applied when it arrives, and a round is over [`PATIENCE`] after its start.
//! Otherwise one node that stands still would delay the failover of every other.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::routing_table::RoutingTable;
use super::slot_map::{ClusterView, Evidence, NodeAddr, SlotMap};
use crate::backend::{BackendError, NodeClient, Outage, PrepareError};
use crate::sync::lock;

/// The longest wait of a round for a node. It suffices for a node that works; the reply of any
/// other is applied when it arrives.
const PATIENCE: Duration = Duration::from_millis(250);
/// The longest interval of polls while a primary is suspected to be out of service.
const SUSPICION_INTERVAL: Duration = Duration::from_millis(50);

/// The polls, and the round that they belong to.
struct Discovery {
    shared: Arc<Shared>,
    /// The clients of the nodes without a running poll.
    idle: HashMap<NodeAddr, NodeClient>,
    /// The start of each running poll.
    running: HashMap<NodeAddr, Instant>,
    /// The nodes whose last poll had no valid reply.
    failed: HashSet<NodeAddr>,
    polls: FuturesUnordered<Pin<Box<dyn Future<Output = Polled> + Send>>>,
    round: Round,
    last_poll: Instant,
    /// The number of single polls so far.
    turn: usize,
    /// The current outage: rounds without any view. `None` while nodes report the slots.
    outage: Option<Outage>,
}

/// The result of a poll.
struct Polled {
    address: NodeAddr,
    client: NodeClient,
    begun: Instant,
    view: Result<ClusterView, BackendError>,
}

/// A poll of all nodes.
struct Round {
    begun: Instant,
    /// The nodes without a result yet.
    awaited: HashSet<NodeAddr>,
    views: Vec<ClusterView>,
    /// The last node without a valid reply, and the reason.
    failure: Option<(NodeAddr, BackendError)>,
    /// Whether each result so far is a view.
    is_complete: bool,
    /// Whether its requesters have been released.
    is_over: bool,
}

impl Round {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            awaited: HashSet::new(),
            views: Vec::new(),
            failure: None,
            is_complete: true,
            is_over: true,
        }
    }

    /// Returns the time at which it is over even without the results that are missing. Without any
    /// view it waits for the first.
    fn deadline(&self) -> Option<Instant> {
        (!self.is_over && !self.views.is_empty()).then(|| self.begun + PATIENCE)
    }

    fn evidence(&self) -> Evidence {
        let is_whole = self.is_complete && self.awaited.is_empty();
        if is_whole { Evidence::EveryNode } else { Evidence::SomeNodes }
    }
}

impl Discovery {
    async fn run(mut self) {
        self.begin_round().await;
        loop {
            let due = self.last_poll + self.interval();
            tokio::select! {
                Some(polled) = self.polls.next() => self.on_polled(polled).await,
                () = sleep_until_some(self.round.deadline()) => self.end_round().await,
                () = self.shared.refresh_now.notified(), if self.round.is_over => {
                    self.begin_round().await;
                }
                // The next poll is due earlier.
                () = self.shared.suspicion.notified() => {}
                () = sleep_until(due) => self.poll_next(),
            }
        }
    }

    fn interval(&self) -> Duration {
        let interval = self.shared.settings.ping_interval;
        if self.shared.is_any_suspected() { interval.min(SUSPICION_INTERVAL) } else { interval }
    }

    /// Polls all nodes. A round does not wait for those that did not reply last time.
    async fn begin_round(&mut self) {
        self.shared.rounds.send_modify(|rounds| rounds.begun += 1);
        self.last_poll = Instant::now();
        self.round = Round { is_over: false, ..Round::new() };
        let mut addresses = self.shared.addresses();
        self.update_clients(&addresses);
        addresses.retain(|address| self.has_client(address));
        for address in addresses {
            let hangs = self.is_silent(&address);
            self.poll(&address);
            if hangs {
                self.round.is_complete = false;
            } else {
                self.round.awaited.insert(address);
            }
        }
        if self.round.awaited.is_empty() {
            self.end_round().await;
        }
    }

    /// Creates the clients of new nodes, and drops those of nodes that are gone.
    fn update_clients(&mut self, addresses: &[NodeAddr]) {
        self.idle.retain(|address, _| addresses.contains(address));
        self.failed.retain(|address| addresses.contains(address));
        for (host, port) in addresses {
            let address = (host.clone(), *port);
            if !self.has_client(&address)
                && let Ok(client) = self.shared.node_client(host, *port)
            {
                self.idle.insert(address, client);
            }
        }
    }

    fn has_client(&self, address: &NodeAddr) -> bool {
        self.idle.contains_key(address) || self.running.contains_key(address)
    }

    /// Returns whether the last poll of a node failed, or has been running for [`PATIENCE`].
    fn is_silent(&self, address: &NodeAddr) -> bool {
        let running = self.running.get(address);
        self.failed.contains(address) || running.is_some_and(|begun| begun.elapsed() >= PATIENCE)
    }

    /// Polls the next node without a running poll.
    fn poll_next(&mut self) {
        self.last_poll = Instant::now();
        self.turn = self.turn.wrapping_add(1);
        let mut addresses = self.shared.addresses();
        if !addresses.iter().all(|address| self.has_client(address)) {
            return self.shared.refresh_now.notify_one();
        }
        let first = self.turn % addresses.len().max(1);
        addresses.rotate_left(first);
        if let Some(address) = addresses.iter().find(|address| self.idle.contains_key(*address)) {
            self.poll(address);
        }
    }

    /// Begins to poll a node, unless a poll of it is running.
    fn poll(&mut self, address: &NodeAddr) {
        let Some(mut client) = self.idle.remove(address) else { return };
        let (address, begun) = (address.clone(), Instant::now());
        self.running.insert(address.clone(), begun);
        let shared = Arc::clone(&self.shared);
        self.polls.push(Box::pin(async move {
            let view = shared.view(&address, &mut client).await;
            Polled { address, client, begun, view }
        }));
    }

    async fn on_polled(&mut self, polled: Polled) {
        let Polled { address, client, begun, view } = polled;
        self.running.remove(&address);
        self.idle.insert(address.clone(), client);
        let is_news = match &view {
            Ok(view) => {
                self.failed.remove(&address);
                self.shared.apply_news(view).await || self.shared.is_contradicted_by(view)
            }
            // Otherwise a node that stays away would cause one round after the other.
            Err(_) => self.failed.insert(address.clone()),
        };
        if !self.round.awaited.contains(&address) {
            if is_news {
                self.shared.refresh_now.notify_one();
            }
            return;
        }
        if begun < self.round.begun {
            // The round has to be later than the requests for it.
            return self.poll(&address);
        }
        self.round.awaited.remove(&address);
        match view {
            Ok(view) => self.round.views.push(view),
            Err(error) => {
                self.round.is_complete = false;
                self.round.failure = Some((address, error));
            }
        }
        if self.round.awaited.is_empty() {
            self.end_round().await;
        }
    }

    async fn end_round(&mut self) {
        let evidence = self.round.evidence();
        self.round.is_over = true;
        self.round.awaited.clear();
        let views = take(&mut self.round.views);
        if views.is_empty() {
            self.note_failure();
        } else {
            self.outage = None;
            self.shared.set_failure(None);
            self.shared.apply(views, evidence).await;
        }
        self.shared.rounds.send_modify(|rounds| rounds.done = rounds.begun);
    }

    /// Notes and logs why a round had no view. A round that waited for no node has no new reason.
    fn note_failure(&mut self) {
        let Some(((host, port), error)) = self.round.failure.take() else { return };
        let (now, reason) = (Instant::now(), error.to_string());
        if self.outage.get_or_insert_with(|| Outage::new(now, 0)).should_log(&reason, now) {
            tracing::warn!(
                node = %format_args!("{host}:{port}"), reason,
                "no node of the cluster reports the slots; retrying"
            );
        }
        self.shared.set_failure(Some(error));
    }
}

impl Shared {
    pub(super) async fn run_discovery(self: &Arc<Self>) {
        let discovery = Discovery {
            shared: Arc::clone(self),
            idle: HashMap::new(),
            running: HashMap::new(),
            failed: HashSet::new(),
            polls: FuturesUnordered::new(),
            round: Round::new(),
            last_poll: Instant::now(),
            turn: 0,
            outage: None,
        };
        discovery.run().await;
    }

    fn node_client(&self, host: &str, port: u16) -> Result<NodeClient, PrepareError> {
        NodeClient::new(self.network.clone(), &self.settings.for_node(host, port))
    }

    /// Returns the addresses of all nodes that may be polled, each once.
    pub(super) fn addresses(&self) -> Vec<NodeAddr> {
        let table = self.table();
        let known = table.shards.keys().chain(&table.other_nodes).cloned();
        let seeds = self.settings.seed_addrs();
        let mut seen = HashSet::new();
        known.chain(seeds).filter(|address| seen.insert(address.clone())).collect()
    }

    /// Returns whether an owner of slots is suspected to be out of service.
    fn is_any_suspected(&self) -> bool {
        let table = self.table();
        let mut owners =
            table.shards.values().filter(|shard| table.primaries.contains(&shard.name()));
        owners.any(|shard| shard.backend.is_suspected())
    }

    /// Applies a view if it reports a later failover or migration than is known. Returns whether
    /// it does.
    async fn apply_news(self: &Arc<Self>, view: &ClusterView) -> bool {
        let is_news = self.is_changed_by(view, Evidence::OneNode);
        if is_news {
            self.apply(vec![view.clone()], Evidence::OneNode).await;
        }
        is_news
    }

    async fn apply(self: &Arc<Self>, views: Vec<ClusterView>, evidence: Evidence) {
        let shared = Arc::clone(self);
        // It may block: entries may have to be removed, and files to be read.
        let updated = self.network.run_blocking(move || shared.apply_views(&views, evidence)).await;
        if let Ok(Err(error)) = updated {
            tracing::warn!(reason = %error, "a node of the cluster cannot be queried");
        }
    }

    /// Returns whether a view differs from the slot map, although it is not older.
    fn is_contradicted_by(&self, view: &ClusterView) -> bool {
        self.is_changed_by(view, Evidence::SomeNodes)
    }

    fn is_changed_by(&self, view: &ClusterView, evidence: Evidence) -> bool {
        self.table().map.is_changed_by(view, evidence)
    }

    /// Polls a node.
    ///
    /// # Errors
    /// The error of the request, or [`BackendError::Unreachable`] if the reply has no slots.
    async fn view(
        &self,
        address: &NodeAddr,
        client: &mut NodeClient,
    ) -> Result<ClusterView, BackendError> {
        let answer = client.send_for_text(redis::cmd("CLUSTER").arg("NODES")).await;
        let view = answer.map_err(explain).and_then(|text| {
            let view = ClusterView::parse(&text, address, self.settings.prefers_hostnames());
            let malformed = "its reply to CLUSTER NODES is malformed";
            view.ok_or_else(|| BackendError::Unreachable(malformed.into()))
        });
        let report = |error: &BackendError| {
            let node = format_args!("{}:{}", address.0, address.1);
            tracing::debug!(%node, reason = %error, "a node of the cluster does not reply");
        };
        view.inspect_err(report)
    }

    fn set_failure(&self, failure: Option<BackendError>) {
        *lock(&self.failure) = failure;
    }

    /// Applies views of nodes to the routing table.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the files for a connection to a new primary cannot be used.
    fn apply_views(&self, views: &[ClusterView], evidence: Evidence) -> Result<(), BackendError> {
        let _alone = lock(&self.update_lock);
        let before = self.table();
        let map = before.map.merged(views, evidence);
        let (wanted, other_nodes) = nodes(&before, &map, views, evidence);
        let shards = wanted.iter().filter(|address| !other_nodes.contains(*address));
        let shards = shards.map(|address| Ok((address.clone(), self.get_or_create(address)?)));
        let shards = shards.collect::<Result<HashMap<_, _>, BackendError>>()?;
        let mut other_nodes: Vec<_> = other_nodes.into_iter().collect();
        other_nodes.sort();
        let is_same = map == before.map
            && other_nodes == before.other_nodes
            && same_keys(&shards, &before.shards);
        if !is_same {
            // Before the map is in force: a new shard has room for one entry until then, so a read
            // would evict what the last one stored.
            self.distribute_capacity(&map, &shards);
            self.install(map, shards, other_nodes);
            tracing::info!(
                primaries = self.table().map.counts().len(),
                "the slots of the cluster are known"
            );
        }
        Ok(())
    }
}

/// Returns the error of a poll, with what the operator can do about it.
fn explain(error: BackendError) -> BackendError {
    match error {
        // "ERR This instance has cluster support disabled", among others.
        BackendError::ErrorReply(code) if &*code == "ERR" => BackendError::Unreachable(
            "Redis replied to CLUSTER NODES with the error ERR: is it a node of a cluster? (see \
             redis.mode)"
                .into(),
        ),
        BackendError::ErrorReply(code) => BackendError::AuthRejected(
            format!(
                "Redis replied to CLUSTER NODES with the error {code} (see redis.username and \
                 redis.password_file)"
            )
            .into(),
        ),
        error => error,
    }
}

/// Returns the nodes that may be primaries, and those that are none. A node that some view calls a
/// replica and that owns no slot is none, whatever other views call it.
fn nodes(
    before: &RoutingTable,
    map: &SlotMap,
    views: &[ClusterView],
    evidence: Evidence,
) -> (HashSet<NodeAddr>, HashSet<NodeAddr>) {
    let owners = map.counts();
    let primaries = views.iter().flat_map(|view| view.primaries.iter().map(|claim| &claim.address));
    let mut wanted: HashSet<_> = primaries.chain(owners.keys().copied()).cloned().collect();
    let mut other_nodes: HashSet<_> =
        views.iter().flat_map(|view| &view.replicas).cloned().collect();
    if evidence == Evidence::OneNode {
        // One node may not know all that the others know.
        wanted.extend(before.shards.keys().cloned());
        other_nodes.extend(before.other_nodes.iter().cloned());
    }
    other_nodes.retain(|address| !owners.contains_key(address));
    (wanted, other_nodes)
}

fn same_keys<A, B>(one: &HashMap<NodeAddr, A>, other: &HashMap<NodeAddr, B>) -> bool {
    one.len() == other.len() && one.keys().all(|address| other.contains_key(address))
}

/// Waits until `deadline`; permanently if there is none.
async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> NodeAddr {
        ("host".to_owned(), port)
    }

    fn view(text: &str) -> ClusterView {
        ClusterView::parse(text, &address(1), false).unwrap()
    }

    #[test]
    fn round_waits_for_one_view_and_then_no_longer_than_patience() {
        let awaited = HashSet::from([address(1), address(2)]);
        let mut round = Round { awaited, is_over: false, ..Round::new() };
        assert_eq!(round.deadline(), None, "no view yet");
        round.views.push(ClusterView::default());
        round.awaited.remove(&address(1));
        assert_eq!(round.deadline(), Some(round.begun + PATIENCE));
        assert_eq!(round.evidence(), Evidence::SomeNodes);
        round.awaited.clear();
        assert_eq!(round.evidence(), Evidence::EveryNode);
        round.is_complete = false;
        assert_eq!(round.evidence(), Evidence::SomeNodes, "a node did not reply");
        round.is_over = true;
        assert_eq!(round.deadline(), None);
    }

    #[test]
    fn single_view_removes_no_node_that_it_does_not_list() {
        let mut before = RoutingTable::empty();
        before.other_nodes = vec![address(7), address(2)];
        before.map = before
            .map
            .merged(&[view("a host:1@9 master - 0 0 1 connected 0-16383")], Evidence::SomeNodes);
        let views = [view(
            "a host:1@9 master,fail - 0 0 1 connected\n\
             b host:2@9 master - 0 0 2 connected 0-16383\n",
        )];
        let map = before.map.merged(&views, Evidence::OneNode);
        let (wanted, other_nodes) = nodes(&before, &map, &views, Evidence::OneNode);
        assert_eq!(wanted, HashSet::from([address(2)]));
        assert_eq!(other_nodes, HashSet::from([address(1), address(7)]));
        let (_, other_nodes) = nodes(&before, &map, &views, Evidence::SomeNodes);
        assert_eq!(other_nodes, HashSet::from([address(1)]));
    }
}
