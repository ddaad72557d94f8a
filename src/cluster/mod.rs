//! The primaries of a Redis Cluster, each with its own cache and connection.
//!
//! Model: each primary has a `Shard`, which holds a cache and a backend with its tracked
//! connection. Both work as they do for a single Redis. A slot map returns the owner of a key. A
//! primary's replies and pushes reach its own cache only. So the loss or a flush of one primary
//! affects no keys of the others.
//!
//! The rules that must not be broken:
//! - A primary's replies are stored in its own cache only (invariant P1).
//! - A slot that returns to a primary finds nothing in that primary's cache (invariant P2).
//! - A node that is no longer a primary is retired, with all its entries, before the routing table
//!   points elsewhere (invariant P3).
//! - Negative entries are not cached while tracking is on (invariant P5). During the migration of a
//!   slot, its keys appear at another primary, and the one that reported them missing pushes
//!   nothing.

mod discovery;
mod routing_table;
mod shard;
mod slot_map;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use self::routing_table::RoutingTable;
pub use self::shard::NodeId;
use self::shard::{Shard, forward_suspicion};
pub use self::slot_map::slot;
use self::slot_map::{NodeAddr, SLOT_COUNT, SlotMap};
use crate::backend::{
    self, Asking, Backend, BackendError, CommandNames, ConnectAs, EpochStream, FenceResult,
    FetchedReply, Network, NodeClient, PrepareError, Redirect, ReplyRequest,
};
#[cfg(feature = "planted-faults")]
use crate::cache::planted_faults::{self, Fault};
use crate::cache::{
    self, Cache, CacheClock, Coherence, CoherenceMode, Fetched, NegativeTtl, Purge, Refreshes,
    ReplyStatistics, ReplyStore, Rules, Statistics,
};
use crate::key::Key;
use crate::metrics::{Metrics, Node, Redirect as RedirectResult};
use crate::sync::lock;

/// A Redis Cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    network: Network,
    settings: backend::Settings,
    user: Option<String>,
    cache_settings: Mutex<cache::Settings>,
    max_value: usize,
    /// The commands with replies that may be kept.
    names: CommandNames,
    metrics: Arc<Metrics>,
    /// The runtime of fetches and connections.
    runtime: Handle,
    table: ArcSwap<RoutingTable>,
    /// Held during every change of the routing table.
    update_lock: Mutex<()>,
    next_id: AtomicU32,
    /// The replies of all primaries: one bound for all of them.
    replies: Arc<ReplyStore>,
    /// Signals that the slots may have moved.
    refresh_now: Notify,
    /// Signals that a primary is suspected to be out of service.
    suspicion: Arc<Notify>,
    rounds: watch::Sender<Rounds>,
    /// The reason for which no node reports the slots. `None` while one does.
    failure: Mutex<Option<BackendError>>,
    /// The version of the routing table, sent after each change.
    versions: watch::Sender<u64>,
    /// The counts of retired shards.
    retired_totals: Mutex<RetiredTotals>,
}

/// The numbers of rounds in which all nodes were polled for the slots.
#[derive(Clone, Copy, Default)]
struct Rounds {
    begun: u64,
    done: u64,
}

/// Counters that never decrease.
#[derive(Default)]
struct RetiredTotals {
    evictions: [u64; cache::EvictionCause::ALL.len()],
    flights_discarded: u64,
    replies_discarded: u64,
}

impl RetiredTotals {
    fn add(&mut self, statistics: &Statistics) {
        for (sum, count) in self.evictions.iter_mut().zip(statistics.evictions) {
            *sum += count;
        }
        self.flights_discarded += statistics.flights_discarded;
        self.replies_discarded += statistics.replies.discarded;
    }
}

/// The maximum number of attempts of a fetch, redirects and retries included.
const MAX_REDIRECTS: usize = 6;
/// The time without a reply to `COMMAND` after which the next node is queried too.
const COMMAND_PATIENCE: Duration = Duration::from_millis(250);
/// The delay before a retry, while no node owns the slot or the slot is being migrated.
const RETRY_DELAY: Duration = Duration::from_millis(25);

impl Cluster {
    /// Creates a cluster without known slots on `network`; [`run`](Self::run) has to be spawned.
    /// Fetches and connections run on `runtime`. Values larger than `max_value` bytes are not
    /// served. `names` are the commands with replies that may be kept.
    ///
    /// # Errors
    /// [`PrepareError`] if a certificate, key or password file cannot be used.
    pub fn prepare(
        network: Network,
        settings: backend::Settings,
        cache_settings: cache::Settings,
        max_value: usize,
        names: CommandNames,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Result<Self, PrepareError> {
        // Checked once here, so problems with the files are reported at startup.
        let user = Backend::check(&settings)?;
        let replies = ReplyStore::new(&for_primaries(cache_settings.clone()));
        Ok(Self(Arc::new(Shared {
            network,
            settings,
            user,
            replies,
            cache_settings: Mutex::new(cache_settings),
            max_value,
            names,
            metrics,
            runtime,
            table: ArcSwap::from_pointee(RoutingTable::empty()),
            update_lock: Mutex::new(()),
            next_id: AtomicU32::new(0),
            refresh_now: Notify::new(),
            suspicion: Arc::default(),
            rounds: watch::Sender::new(Rounds::default()),
            failure: Mutex::default(),
            versions: watch::Sender::new(0),
            retired_totals: Mutex::default(),
        })))
    }

    /// Runs slot discovery. Never returns.
    pub async fn run(self) {
        self.0.run_discovery().await;
    }

    /// Returns the shard that owns the slot of a key, if known.
    pub(crate) fn shard_of(&self, key: &[u8]) -> Option<Arc<Shard>> {
        self.0.table.load().by_slot[usize::from(slot(key))].clone()
    }

    /// Returns the most fields or members of a kept hash or set from which other replies are
    /// derived.
    pub(crate) fn max_hash_fields(&self) -> usize {
        self.0.replies.max_hash_fields()
    }

    /// Returns the rules in force.
    pub(crate) fn rules(&self) -> &Arc<Rules> {
        self.0.replies.rules()
    }

    /// Returns the clock that the caches of all shards share.
    pub(crate) fn clock(&self) -> CacheClock {
        self.0.replies.clock()
    }

    /// Returns the refreshes of all primaries.
    pub(crate) fn refreshes(&self) -> &Arc<Refreshes> {
        self.0.replies.refreshes()
    }

    /// Calls `lookup` with the cache of the shard that owns the key; `None` if no owner is known.
    pub(crate) fn lookup<T>(
        &self,
        key: &[u8],
        lookup: impl FnOnce(&Cache<BackendError>) -> Option<T>,
    ) -> Option<T> {
        let table = self.0.table.load();
        lookup(&table.by_slot[usize::from(slot(key))].as_ref()?.cache)
    }

    /// Returns the shard that owns a key. If none is known, the nodes are polled first, for up to
    /// `response_timeout`.
    ///
    /// # Errors
    /// - [`BackendError::Unavailable`] with `CLUSTERDOWN` if no node reports an owner.
    /// - The reason for which no node has ever reported the slots.
    pub(crate) async fn find_shard(&self, key: &[u8]) -> Result<Arc<Shard>, BackendError> {
        if let Some(shard) = self.shard_of(key) {
            return Ok(shard);
        }
        _ = timeout(self.0.settings.response_timeout, self.refresh()).await;
        self.shard_of(key).ok_or_else(|| self.no_owner())
    }

    /// Returns the error for a key without a known owner.
    fn no_owner(&self) -> BackendError {
        let is_unknown = self.0.table.load().shards.is_empty();
        let failure = lock(&self.0.failure).clone().filter(|_| is_unknown);
        failure.unwrap_or_else(|| BackendError::Unavailable("CLUSTERDOWN".into()))
    }

    /// Returns the shard that owns the slot of all these keys, as [`find_shard`](Self::find_shard)
    /// does; `None` if they are of several slots.
    pub(crate) async fn find_shard_of_all<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Arc<Shard>>, BackendError> {
        let Some(first) = keys.next() else { return Ok(None) };
        if keys.any(|key| slot(key) != slot(first)) {
            return Ok(None);
        }
        self.find_shard(first).await.map(Some)
    }

    /// Fetches `key` for the cache of `shard`, and follows redirects. A reply of another shard is
    /// not stored (invariant P1).
    pub(crate) async fn fetch(
        self,
        shard: Arc<Shard>,
        key: Key,
        now: Instant,
    ) -> Fetched<BackendError> {
        let deadline = now + self.0.settings.response_timeout;
        let (mut at, mut asking) = (Arc::clone(&shard), Asking::No);
        for _ in 0..MAX_REDIRECTS {
            let reply = at.backend.read(&key, asking, deadline).await;
            match reply {
                Err(BackendError::Moved(Redirect { is_ask, slot, address })) => {
                    let address = at.resolve_redirect(address);
                    let next = if is_ask {
                        self.0.shard_at(&address)
                    } else {
                        self.0.apply_moved(slot, &address)
                    };
                    asking = if is_ask { Asking::Yes } else { Asking::No };
                    close_flight(&shard, &key);
                    match next {
                        Ok(next) => at = next,
                        Err(error) => return shard.backend.to_fetched(Err(error)),
                    }
                }
                Err(ref error) if self.should_retry(error, &mut at, &key, deadline).await => {
                    asking = Asking::No;
                    close_flight(&shard, &key);
                }
                reply => return at.backend.to_fetched(reply),
            }
        }
        shard.backend.to_fetched(Err(BackendError::Unavailable("CLUSTERDOWN".into())))
    }

    /// Fetches a reply for the cache of `shard`, which owns the slot of its keys. Follows no
    /// redirect: what another node replies may not be kept here (invariant P1).
    ///
    /// # Errors
    /// The errors of [`Backend::fetch_reply`].
    pub(crate) async fn fetch_reply(
        &self,
        shard: &Shard,
        request: &ReplyRequest,
        max_reply: usize,
    ) -> Result<FetchedReply, BackendError> {
        let reply = shard.backend.read_reply(request, max_reply).await;
        if let Err(BackendError::Moved(Redirect { is_ask: false, slot, address })) = &reply {
            let address = shard.resolve_redirect(address.clone());
            // The command is forwarded in any case, which reports what prevents it.
            _ = self.0.apply_moved(*slot, &address);
        }
        shard.backend.to_fetched_reply(reply)
    }

    /// Returns whether a fetch that failed at `at` is worth a retry, and then points `at` to the
    /// shard for it.
    async fn should_retry(
        &self,
        error: &BackendError,
        at: &mut Arc<Shard>,
        key: &Key,
        deadline: Instant,
    ) -> bool {
        match error {
            BackendError::Unavailable(code) if &**code == "TRYAGAIN" => {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            BackendError::Unreachable(_)
            | BackendError::Disconnected
            | BackendError::Unavailable(_) => {
                let is_replaced = |cluster: &Self| {
                    let owner = cluster.shard_of(key.as_bytes());
                    owner.is_some_and(|owner| !Arc::ptr_eq(&owner, at))
                };
                _ = timeout_at(deadline, self.refresh_until(is_replaced)).await;
                // The same shard would fail the same way.
                if !is_replaced(self) {
                    return false;
                }
            }
            _ => return false,
        }
        if let Some(shard) = self.shard_of(key.as_bytes()) {
            *at = shard;
        }
        Instant::now() < deadline
    }

    /// Returns the reply to `COMMAND` of the first node that sends one.
    ///
    /// # Errors
    /// The error of the last node, or [`BackendError::Unreachable`] if no node is known.
    pub async fn command_table(&self) -> Result<Value, BackendError> {
        let mut addresses = self.0.addresses().into_iter();
        let mut queries = FuturesUnordered::new();
        let mut last = BackendError::Unreachable("no node of the cluster is known".into());
        loop {
            if let Some(address) = addresses.next() {
                queries.push(self.command_table_of(address));
            } else if queries.is_empty() {
                return Err(last);
            }
            // A node that hangs delays the others no longer than this.
            match timeout(COMMAND_PATIENCE, queries.next()).await {
                Ok(Some(Ok(answer))) => return Ok(answer),
                Ok(Some(Err(error))) => last = error,
                Ok(None) | Err(_) => {}
            }
        }
    }

    async fn command_table_of(&self, (host, port): NodeAddr) -> Result<Value, BackendError> {
        let client =
            NodeClient::new(self.0.network.clone(), &self.0.settings.for_node(&host, port));
        let mut client =
            client.map_err(|error| BackendError::Unreachable(error.to_string().into()))?;
        client.send(&redis::cmd("COMMAND")).await
    }

    /// Returns the time for which a command is retried that no node has run.
    pub fn retry_timeout(&self) -> Duration {
        self.0.settings.response_timeout
    }

    /// Returns the owner of a slot, if known.
    pub fn owner(&self, slot: u16) -> Option<NodeId> {
        self.0.table.load().by_slot.get(usize::from(slot))?.as_ref().map(|shard| shard.name())
    }

    /// Returns the version of the routing table, which rises with every change.
    pub fn version(&self) -> u64 {
        self.0.table.load().version
    }

    /// Returns all owners of slots, in the order of the slots.
    pub fn primaries(&self) -> Vec<NodeId> {
        self.0.table.load().primaries.clone()
    }

    /// Applies a `MOVED` reply of `node`. Returns the owner that it names.
    ///
    /// Returns `None` if no node reports the address: a script can reply with an error of the same
    /// form, and would otherwise choose the address that the proxy logs in at.
    pub fn apply_moved(&self, slot: u16, address: &str, node: NodeId) -> Option<NodeId> {
        let address = self.known_address(address, node)?;
        self.0.apply_moved(slot, &address).map(|shard| shard.name()).ok()
    }

    /// Returns the node at `address`, to which an `ASK` reply of `node` leads; `None` as for
    /// [`apply_moved`](Self::apply_moved).
    pub fn node_at(&self, address: &str, node: NodeId) -> Option<NodeId> {
        let address = self.known_address(address, node)?;
        self.0.shard_at(&address).map(|shard| shard.name()).ok()
    }

    fn known_address(&self, text: &str, node: NodeId) -> Option<NodeAddr> {
        let (host, port) = text.rsplit_once(':')?;
        let address = (host.to_owned(), port.parse().ok()?);
        // A node that is no primary any more redirects too.
        let address = match self.shard(node) {
            Some(shard) => shard.resolve_redirect(address),
            None => address,
        };
        let table = self.0.table.load();
        let is_known = table.shards.contains_key(&address) || table.other_nodes.contains(&address);
        is_known.then_some(address)
    }

    fn shard(&self, node: NodeId) -> Option<Arc<Shard>> {
        self.0.table.load().shards.values().find(|shard| shard.name() == node).cloned()
    }

    /// Opens a dedicated connection to a node for one client. It ends when the node is no longer a
    /// primary.
    ///
    /// # Errors
    /// - [`BackendError::Unavailable`] if the node is unknown.
    /// - [`BackendError::Unreachable`] if it cannot be reached or was retired.
    /// - [`BackendError::AuthRejected`] if it rejects the proxy's login.
    pub async fn open(&self, client: ConnectAs, node: NodeId) -> Result<EpochStream, BackendError> {
        let shard = self.shard(node).ok_or_else(|| BackendError::Unavailable("MOVED".into()))?;
        shard.backend.open(client).await
    }

    /// Counts commands of Redis clients that a node did not run.
    pub fn count_redirects(&self, redirect: RedirectResult, count: u64) {
        self.0.metrics.redirects(redirect, count);
    }

    /// Returns once all nodes have been polled for the slots in a round that began after this call.
    /// A round does not wait for nodes that hang.
    pub async fn refresh(&self) {
        let mut rounds = self.0.rounds.subscribe();
        let enough = rounds.borrow_and_update().begun + 1;
        self.0.refresh_now.notify_one();
        _ = rounds.wait_for(|rounds| rounds.done >= enough).await;
    }

    /// Refreshes the slots, and returns early once the routing table satisfies `is_enough`.
    pub async fn refresh_until(&self, is_enough: impl Fn(&Self) -> bool) {
        let mut versions = self.0.versions.subscribe();
        tokio::select! {
            biased;
            _ = versions.wait_for(|_| is_enough(self)) => {}
            () = self.refresh() => {}
        }
    }

    /// Returns whether all fresh entries reflect the writes that were acknowledged before `since`.
    pub(crate) fn is_current_everywhere(&self, since: Instant) -> bool {
        self.0
            .table
            .load()
            .shards
            .values()
            .all(|shard| shard.backend.is_current(since) || shard.has_nothing_fresh())
    }

    /// Returns once all fresh entries reflect the writes that were acknowledged before `since`.
    /// Returns [`FenceResult::NoTracking`] if a shard has no tracking.
    ///
    /// # Errors
    /// The error of a failed fence:
    /// - [`BackendError::Overloaded`] if `max_queue` reads already wait for a fence of that shard.
    /// - [`BackendError::TimedOut`] if it does not complete within `response_timeout`.
    /// - The reason for which the shard has no connection.
    pub(crate) async fn fence_everywhere(
        &self,
        since: Instant,
    ) -> Result<FenceResult, BackendError> {
        let mut shards = self.0.shards();
        shards.retain(|shard| !shard.has_nothing_fresh());
        let fences = join_all(shards.iter().map(|shard| shard.backend.fence(since))).await;
        let mut weakest = FenceResult::Current;
        for fence in fences {
            if fence? == FenceResult::NoTracking {
                weakest = FenceResult::NoTracking;
            }
        }
        Ok(weakest)
    }

    /// Returns the ACL user of the proxy; `None`: it does not log in.
    pub fn user(&self) -> Option<String> {
        self.0.user.clone()
    }

    /// Returns `Ok` if at least one primary is connected.
    ///
    /// # Errors
    /// The error of the last primary, or the reason for which no node has reported the slots yet.
    pub fn state(&self) -> Result<(), BackendError> {
        let table = self.0.table.load();
        let mut last = lock(&self.0.failure).clone().unwrap_or_else(|| {
            BackendError::Unreachable("no node of the cluster has reported the slots yet".into())
        });
        for shard in table.shards.values() {
            match shard.backend.state() {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Returns the primaries, each with its state, sorted by name.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<_> =
            self.0.shards().iter().flat_map(|shard| shard.backend.nodes()).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes
    }

    /// Returns the weakest coherence among the caches of all shards.
    pub fn coherence(&self) -> Coherence {
        let each: Vec<_> = self.0.shards().iter().map(|shard| shard.cache.coherence()).collect();
        let has = |coherence| each.contains(&coherence);
        if each.is_empty() || has(Coherence::None) {
            Coherence::None
        } else if has(Coherence::Ttl) {
            Coherence::Ttl
        } else {
            Coherence::Tracking
        }
    }

    /// Returns whether at least one shard relies on TTLs alone.
    pub fn is_ttl_only(&self) -> bool {
        self.0.table.load().shards.values().any(|shard| shard.cache.is_ttl_only())
    }

    /// Removes `key` from every cache.
    pub fn invalidate(&self, key: &[u8]) {
        self.0.shards().iter().for_each(|shard| shard.cache.invalidate(key));
    }

    /// Removes all entries from every cache.
    pub fn invalidate_all(&self) {
        self.0.shards().iter().for_each(|shard| shard.cache.invalidate_all());
    }

    /// Drops entries and replies from every cache, as [`Cache::purge`] does. Returns the number of
    /// entries.
    pub fn purge(&self, purge: &Purge) -> u64 {
        self.0.shards().iter().map(|shard| shard.cache.purge(purge)).sum()
    }

    /// Removes expired entries. Takes time in proportion to the number of entries.
    pub fn sweep(&self) {
        self.0.shards().iter().for_each(|shard| shard.cache.sweep());
    }

    /// Applies settings to all caches, current entries included. Blocks as [`Cache::apply`] does.
    /// Returns the number of entries that were evicted because the capacity became smaller.
    pub fn apply(&self, settings: &cache::Settings) -> u64 {
        let _alone = lock(&self.0.update_lock);
        *lock(&self.0.cache_settings) = settings.clone();
        self.0.replies.apply(&for_primaries(settings.clone()));
        let table = self.0.table();
        self.0.distribute_capacity(&table.map, &table.shards)
    }

    /// Notifies all backends that the cache settings have changed.
    pub fn cache_settings_changed(&self) {
        for shard in self.0.shards() {
            shard.backend.cache_settings_changed(shard.cache.settings().capacity);
        }
    }

    /// Whether room for values in flight is short, as [`ReplyStore::is_room_short`] says.
    pub fn is_room_short(&self) -> bool {
        self.0.replies.is_room_short()
    }

    /// Returns the sum of the statistics of all caches, retired ones included.
    pub fn statistics(&self) -> Statistics {
        // Held so that no shard is retired meanwhile. Otherwise its counts would be added twice or
        // not at all.
        let _alone = lock(&self.0.update_lock);
        let retired_totals = lock(&self.0.retired_totals);
        let mut sum = Statistics {
            entries: 0,
            bytes: 0,
            memory: self.0.replies.memory(),
            evictions: retired_totals.evictions,
            flights: 0,
            flights_discarded: retired_totals.flights_discarded,
            replies: ReplyStatistics {
                discarded: retired_totals.replies_discarded,
                ..ReplyStatistics::default()
            },
            settings: lock(&self.0.cache_settings).clone(),
            coherence: self.coherence(),
            refreshes: self.refreshes().counts(),
            rule_names: self.0.replies.rules().names(),
        };
        for shard in self.0.shards() {
            let one = shard.cache.statistics();
            sum.entries += one.entries;
            sum.bytes += one.bytes;
            sum.flights += one.flights;
            sum.flights_discarded += one.flights_discarded;
            // All primaries share one store of replies.
            sum.replies = ReplyStatistics {
                flights: sum.replies.flights + one.replies.flights,
                discarded: sum.replies.discarded + one.replies.discarded,
                ..one.replies
            };
            for (sum, count) in sum.evictions.iter_mut().zip(one.evictions) {
                *sum += count;
            }
        }
        sum
    }
}

/// Closes the flight of a key before another node's reply exists (invariant P1). Otherwise that
/// reply would be stored in the cache of this shard.
fn close_flight(shard: &Shard, key: &Key) {
    #[cfg(feature = "planted-faults")]
    if planted_faults::is_planted(Fault::KeptRedirect) {
        return;
    }
    shard.cache.invalidate(key.as_bytes());
}

/// Returns the settings for the caches of primaries: while tracking is on, without negative entries
/// (invariant P5). During the migration of a slot, no node pushes that a missing key was created.
fn for_primaries(mut settings: cache::Settings) -> cache::Settings {
    #[cfg(feature = "planted-faults")]
    if planted_faults::is_planted(Fault::KeptAbsence) {
        return settings;
    }
    if settings.coherence != CoherenceMode::Ttl {
        settings.negative_ttl = NegativeTtl::Fixed(Duration::ZERO);
        settings.rules.iter_mut().for_each(|rule| rule.negative_ttl = None);
    }
    settings
}

impl Shared {
    fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    fn shards(&self) -> Vec<Arc<Shard>> {
        self.table.load().shards.values().cloned().collect()
    }

    /// Applies a `MOVED` reply: `address` owns `slot` from now on. Returns its shard.
    fn apply_moved(&self, slot: u16, address: &NodeAddr) -> Result<Arc<Shard>, BackendError> {
        let _alone = lock(&self.update_lock);
        let table = self.table();
        if table.map.owner(usize::from(slot)) != Some(address) {
            let mut map = table.map.clone();
            map.moved(slot, address.clone());
            let shard = self.get_or_create(address)?;
            let mut shards = table.shards.clone();
            shards.insert(address.clone(), shard);
            self.install(map, shards, table.other_nodes.clone());
            self.refresh_now.notify_one();
        }
        self.get_or_create(address)
    }

    /// Returns the shard at `address`, which is created if it is unknown.
    fn shard_at(&self, address: &NodeAddr) -> Result<Arc<Shard>, BackendError> {
        let _alone = lock(&self.update_lock);
        let table = self.table();
        let shard = self.get_or_create(address)?;
        if !table.shards.contains_key(address) {
            let mut shards = table.shards.clone();
            shards.insert(address.clone(), Arc::clone(&shard));
            self.install(table.map.clone(), shards, table.other_nodes.clone());
        }
        Ok(shard)
    }

    fn get_or_create(&self, address: &NodeAddr) -> Result<Arc<Shard>, BackendError> {
        if let Some(shard) = self.table().shards.get(address) {
            return Ok(Arc::clone(shard));
        }
        self.create_shard(address)
            .map_err(|error| BackendError::Unreachable(error.to_string().into()))
    }

    fn create_shard(&self, address: &NodeAddr) -> Result<Arc<Shard>, PrepareError> {
        let settings = self.settings.for_node(&address.0, address.1);
        let cache = Cache::with_reply_store(
            self.cache_settings_for(0),
            self.runtime.clone(),
            Arc::clone(&self.replies),
        );
        let (backend, link) = Backend::prepare(
            self.network.clone(),
            settings,
            self.max_value,
            Arc::clone(&self.names),
            cache.clone(),
            Arc::clone(&self.metrics),
        )?;
        let name = NodeId(self.next_id.fetch_add(1, Relaxed));
        self.runtime.spawn(forward_suspicion(backend.suspected(), Arc::clone(&self.suspicion)));
        let link = self.runtime.spawn(link.run()).abort_handle();
        Ok(Arc::new(Shard::new(name, address.clone(), cache, backend, link)))
    }

    /// Returns the settings for the cache of a primary with this number of slots.
    fn cache_settings_for(&self, slots: usize) -> cache::Settings {
        let whole = lock(&self.cache_settings).clone();
        let capacity = whole.capacity.saturating_mul(slots).div_ceil(SLOT_COUNT).max(1);
        cache::Settings { capacity, ..for_primaries(whole) }
    }

    /// Distributes the capacity over `shards` by their slots in `map`. Returns the number of
    /// evicted entries. The caller holds `update_lock`.
    fn distribute_capacity(&self, map: &SlotMap, shards: &HashMap<NodeAddr, Arc<Shard>>) -> u64 {
        let counts = map.counts();
        let share = |shard: &Arc<Shard>| {
            let settings =
                self.cache_settings_for(counts.get(shard.address()).copied().unwrap_or(0));
            if shard.cache.settings() == settings { 0 } else { shard.cache.apply(&settings) }
        };
        shards.values().map(share).sum()
    }

    /// Installs a new routing table. The caller holds `update_lock`. `shards` contains every owner
    /// of a slot. Shards that are missing from it are retired first (invariant P3).
    fn install(
        &self,
        map: SlotMap,
        shards: HashMap<NodeAddr, Arc<Shard>>,
        other_nodes: Vec<NodeAddr>,
    ) {
        let before = self.table.load_full();
        for (address, shard) in &before.shards {
            if !shards.contains_key(address) {
                self.retire(shard);
            }
        }
        let next = before.replaced_by(map, shards, other_nodes);
        let version = next.version;
        self.table.store(Arc::new(next));
        self.versions.send_replace(version);
    }

    /// Retires a shard: its connections end, its entries are removed, and its counts are kept.
    fn retire(&self, shard: &Shard) {
        shard.retire();
        lock(&self.retired_totals).add(&shard.cache.statistics());
        let (host, port) = shard.address();
        let node = format_args!("{host}:{port}");
        tracing::info!(%node, "shard retired: no longer a primary");
    }
}
