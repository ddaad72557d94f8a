//! The primaries of a Redis Cluster, each with a memory and a link of its own.
//!
//! Model: to each primary belongs a `Shard`: a cache, and a backend with its tracked link, which are what they are before a
//! single Redis. A slot map says whose a key is. What one primary says reaches its own cache alone, so the loss of one
//! primary, or a flush of it, touches nobody else's keys.
//!
//! The rules that must not be broken: what a primary said is kept in its own cache and nowhere else; a slot that comes back to
//! a primary finds nothing of before in its cache; and a primary that is none any more is retired with all that it said
//! before anybody is sent to the next. That a key does not exist is never kept: while a slot is on its way, its keys come to be
//! at another primary, and the one that said so tells of nothing.

mod discovery;
mod routing_table;
mod shard;
mod slot_map;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use futures_util::future::join_all;
use redis::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use self::routing_table::RoutingTable;
pub use self::shard::NodeId;
use self::shard::Shard;
pub use self::slot_map::slot;
use self::slot_map::{NodeAddr, SLOT_COUNT, SlotMap};
use crate::backend::{
    self, Asking, Backend, BackendError, ConnectAs, EpochStream, FenceResult, NodeClient,
    PrepareError, Redirect,
};
use crate::cache::{self, Cache, Coherence, CoherenceMode, Fetched, NegativeTtl, Statistics};
use crate::key::Key;
use crate::metrics::{Metrics, Node};
use crate::sync::lock;

/// The cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    settings: backend::Settings,
    user: Option<String>,
    cache_settings: Mutex<cache::Settings>,
    max_value: usize,
    metrics: Arc<Metrics>,
    /// Where fetches and links run.
    runtime: Handle,
    table: ArcSwap<RoutingTable>,
    /// Held by whoever changes the routes.
    update_lock: Mutex<()>,
    next_id: AtomicU32,
    /// Somebody has reason to believe that the slots are elsewhere.
    refresh_now: Notify,
    /// How often the nodes have been asked where the slots are.
    refreshes: watch::Sender<u64>,
    /// What units that are gone have counted.
    retired_totals: Mutex<RetiredTotals>,
}

/// What only rises.
#[derive(Default)]
struct RetiredTotals {
    evictions: [u64; cache::EvictionCause::ALL.len()],
    flights_discarded: u64,
}

impl RetiredTotals {
    fn add(&mut self, statistics: &Statistics) {
        for (sum, count) in self.evictions.iter_mut().zip(statistics.evictions) {
            *sum += count;
        }
        self.flights_discarded += statistics.flights_discarded;
    }
}

/// So often a fetch is sent elsewhere before it is given up.
const MAX_REDIRECTS: usize = 6;
/// How long a fetch waits before it asks again who serves a slot of which nobody says so, or that is on its way.
const RETRY_DELAY: Duration = Duration::from_millis(25);

impl Cluster {
    /// A cluster of which nothing is known yet; somebody has to [run](Self::run) it. Fetches and links run on `runtime`.
    ///
    /// # Errors
    /// A certificate, key or password file that cannot be used.
    pub fn prepare(
        settings: backend::Settings,
        cache_settings: cache::Settings,
        max_value: usize,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Result<Self, PrepareError> {
        // Once for all: what is wrong with the files is told at the start.
        let user = Backend::check(&settings)?;
        Ok(Self(Arc::new(Shared {
            settings,
            user,
            cache_settings: Mutex::new(cache_settings),
            max_value,
            metrics,
            runtime,
            table: ArcSwap::from_pointee(RoutingTable::empty()),
            update_lock: Mutex::new(()),
            next_id: AtomicU32::new(0),
            refresh_now: Notify::new(),
            refreshes: watch::Sender::new(0),
            retired_totals: Mutex::default(),
        })))
    }

    /// Keeps finding out who serves which slot, for as long as the daemon lives.
    pub async fn run(self) {
        self.0.run_discovery().await;
    }

    /// The primary of a key, as far as it is known.
    pub(crate) fn shard_of(&self, key: &[u8]) -> Option<Arc<Shard>> {
        self.0.table.load().by_slot[usize::from(slot(key))].clone()
    }

    /// Looks at the memory of the key's primary.
    pub(crate) fn lookup<T>(
        &self,
        key: &[u8],
        lookup: impl FnOnce(&Cache<BackendError>) -> Option<T>,
    ) -> Option<T> {
        let table = self.0.table.load();
        lookup(&table.by_slot[usize::from(slot(key))].as_ref()?.cache)
    }

    /// The primary of a key; where none is known, the nodes are asked first.
    ///
    /// # Errors
    /// Nobody says who serves it.
    pub(crate) async fn find_shard(&self, key: &[u8]) -> Result<Arc<Shard>, BackendError> {
        if let Some(shard) = self.shard_of(key) {
            return Ok(shard);
        }
        _ = timeout(self.0.settings.response_timeout, self.refresh()).await;
        self.shard_of(key).ok_or_else(|| BackendError::Unavailable("CLUSTERDOWN".into()))
    }

    /// Asks for `key`, for the cache of `shard`, wherever that leads. What another than `shard` says is not kept.
    pub(crate) async fn fetch(self, shard: Arc<Shard>, key: Key) -> Fetched<BackendError> {
        let deadline = Instant::now() + self.0.settings.response_timeout;
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
                    // Before the answer of another is there to be kept.
                    shard.cache.invalidate(key.as_bytes());
                    match next {
                        Ok(next) => at = next,
                        Err(error) => return shard.backend.to_fetched(Err(error)),
                    }
                }
                Err(ref error) if self.should_retry(error, &mut at, &key, deadline).await => {
                    asking = Asking::No;
                    shard.cache.invalidate(key.as_bytes());
                }
                reply => return at.backend.to_fetched(reply),
            }
        }
        shard.backend.to_fetched(Err(BackendError::Unavailable("CLUSTERDOWN".into())))
    }

    /// Whether what failed at `at` is worth another try, and then where.
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
                _ = timeout_at(deadline, self.refresh()).await;
                // The same would say the same.
                if self.shard_of(key.as_bytes()).is_none_or(|shard| Arc::ptr_eq(&shard, at)) {
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

    /// What the nodes answer to `COMMAND`.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn command_table(&self) -> Result<Value, BackendError> {
        let mut last = BackendError::Unreachable("no node of the cluster is known".into());
        for (host, port) in self.0.addresses() {
            let client = NodeClient::new(&self.0.settings.for_node(&host, port));
            let mut client =
                client.map_err(|error| BackendError::Unreachable(error.to_string().into()))?;
            match client.send(&redis::cmd("COMMAND")).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// For how long a command that no node has done is tried again.
    pub fn retry_timeout(&self) -> Duration {
        self.0.settings.response_timeout
    }

    /// Who serves a slot, as far as it is known.
    pub fn owner(&self, slot: u16) -> Option<NodeId> {
        self.0.table.load().by_slot.get(usize::from(slot))?.as_ref().map(|shard| shard.name())
    }

    /// It rises with every change of who serves what.
    pub fn version(&self) -> u64 {
        self.0.table.load().version
    }

    /// All who serve slots, in the order of the slots.
    pub fn primaries(&self) -> Vec<NodeId> {
        self.0.table.load().primaries.clone()
    }

    /// Heeds `MOVED`, which `node` said: who is at `address` serves the slot from now on.
    ///
    /// # Errors
    /// A file of `[redis]` that cannot be used any more.
    pub fn apply_moved(
        &self,
        slot: u16,
        address: &str,
        node: NodeId,
    ) -> Result<NodeId, BackendError> {
        let address = self.address(address, node)?;
        self.0.apply_moved(slot, &address).map(|shard| shard.name())
    }

    /// Who is at `address`, to whom `ASK` of `node` leads.
    ///
    /// # Errors
    /// A file of `[redis]` that cannot be used any more.
    pub fn node_at(&self, address: &str, node: NodeId) -> Result<NodeId, BackendError> {
        let address = self.address(address, node)?;
        self.0.shard_at(&address).map(|shard| shard.name())
    }

    fn address(&self, text: &str, node: NodeId) -> Result<NodeAddr, BackendError> {
        let parts = text
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        let address = parts.ok_or_else(|| BackendError::Unavailable("MOVED".into()))?;
        Ok(self
            .shard(node)
            .map_or_else(|| address.clone(), |shard| shard.resolve_redirect(address.clone())))
    }

    fn shard(&self, node: NodeId) -> Option<Arc<Shard>> {
        self.0.table.load().shards.values().find(|shard| shard.name() == node).cloned()
    }

    /// A stream to a node for one client alone. It ends when the node is no primary any more.
    ///
    /// # Errors
    /// The node cannot be reached, refuses the proxy's login, or is no primary any more.
    pub async fn open(&self, client: ConnectAs, node: NodeId) -> Result<EpochStream, BackendError> {
        let shard = self.shard(node).ok_or_else(|| BackendError::Unavailable("MOVED".into()))?;
        shard.backend.open(client).await
    }

    /// Returns once the nodes have been asked anew who serves what.
    pub async fn refresh(&self) {
        let mut asked = self.0.refreshes.subscribe();
        // What is being asked now may have been asked too early.
        let enough = *asked.borrow_and_update() + 2;
        loop {
            self.0.refresh_now.notify_one();
            if asked.changed().await.is_err() || *asked.borrow() >= enough {
                return;
            }
        }
    }

    /// Whether memory holds all that anybody acknowledged before `since`.
    pub(crate) fn is_current_everywhere(&self, since: Instant) -> bool {
        self.0
            .table
            .load()
            .shards
            .values()
            .all(|shard| shard.backend.is_current(since) || shard.has_nothing_fresh())
    }

    /// Returns once memory holds all that anybody acknowledged before `since`.
    ///
    /// # Errors
    /// One who answers otherwise cannot be asked, or does not answer in time.
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

    /// As whom the proxy reads; none: it does not log in.
    pub fn user(&self) -> Option<String> {
        self.0.user.clone()
    }

    /// Whether somebody answers, or why nobody does.
    ///
    /// # Errors
    /// Why not.
    pub fn state(&self) -> Result<(), BackendError> {
        let table = self.0.table.load();
        let mut last =
            BackendError::Unreachable("no node of the cluster has said yet who serves what".into());
        for shard in table.shards.values() {
            match shard.backend.state() {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The primaries, and which of them answer.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<_> =
            self.0.shards().iter().flat_map(|shard| shard.backend.nodes()).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes
    }

    /// By what the answers are kept true: the weakest of all.
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

    /// Whether time alone decides what may be given, at one of them at least.
    pub fn is_ttl_only(&self) -> bool {
        self.0.table.load().shards.values().any(|shard| shard.cache.is_ttl_only())
    }

    /// Drops `key` from every memory.
    pub fn invalidate(&self, key: &[u8]) {
        self.0.shards().iter().for_each(|shard| shard.cache.invalidate(key));
    }

    /// Drops everything from memory.
    pub fn invalidate_all(&self) {
        self.0.shards().iter().for_each(|shard| shard.cache.invalidate_all());
    }

    /// Removes what is over. Takes time in proportion to what there is.
    pub fn sweep(&self) {
        self.0.shards().iter().for_each(|shard| shard.cache.sweep());
    }

    /// Puts settings in force, for what is cached already, too. Blocks as [`Cache::apply`] does; returns how many entries went
    /// because there is less room.
    pub fn apply(&self, settings: &cache::Settings) -> u64 {
        let _alone = lock(&self.0.update_lock);
        *lock(&self.0.cache_settings) = settings.clone();
        self.0.distribute_capacity()
    }

    /// The settings were changed.
    pub fn cache_settings_changed(&self) {
        for shard in self.0.shards() {
            shard.backend.cache_settings_changed(shard.cache.settings().capacity);
        }
    }

    /// What all memories hold together.
    pub fn statistics(&self) -> Statistics {
        // So that nothing is counted twice or not at all because its unit goes meanwhile.
        let _alone = lock(&self.0.update_lock);
        let retired_totals = lock(&self.0.retired_totals);
        let mut sum = Statistics {
            entries: 0,
            bytes: 0,
            evictions: retired_totals.evictions,
            flights: 0,
            flights_discarded: retired_totals.flights_discarded,
            settings: lock(&self.0.cache_settings).clone(),
            coherence: self.coherence(),
        };
        for shard in self.0.shards() {
            let one = shard.cache.statistics();
            sum.entries += one.entries;
            sum.bytes += one.bytes;
            sum.flights += one.flights;
            sum.flights_discarded += one.flights_discarded;
            for (sum, count) in sum.evictions.iter_mut().zip(one.evictions) {
                *sum += count;
            }
        }
        sum
    }
}

impl Shared {
    fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    fn shards(&self) -> Vec<Arc<Shard>> {
        self.table.load().shards.values().cloned().collect()
    }

    /// The owner of `slot` says that it is at `address` from now on.
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

    /// Who is at `address`, known or not.
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
        let cache = Cache::new(self.cache_settings_for(0), self.runtime.clone());
        let (backend, link) =
            Backend::prepare(settings, self.max_value, cache.clone(), Arc::clone(&self.metrics))?;
        let name = NodeId(self.next_id.fetch_add(1, Relaxed));
        let link = self.runtime.spawn(link.run()).abort_handle();
        Ok(Arc::new(Shard::new(name, address.clone(), cache, backend, link)))
    }

    /// Those of the cache of a primary with so many slots.
    fn cache_settings_for(&self, slots: usize) -> cache::Settings {
        let whole = lock(&self.cache_settings).clone();
        let capacity = whole.capacity.saturating_mul(slots).div_ceil(SLOT_COUNT).max(1);
        // See above: of a slot that is on its way nobody tells what comes to be.
        let is_tracked = whole.coherence != CoherenceMode::Ttl;
        let negative_ttl =
            if is_tracked { NegativeTtl::Fixed(Duration::ZERO) } else { whole.negative_ttl };
        cache::Settings { capacity, negative_ttl, ..whole }
    }

    /// Gives each unit its share of the room. Called while nobody else changes anything.
    fn distribute_capacity(&self) -> u64 {
        let table = self.table();
        let counts = table.map.counts();
        let share = |shard: &Arc<Shard>| {
            let settings =
                self.cache_settings_for(counts.get(shard.address()).copied().unwrap_or(0));
            if shard.cache.settings() == settings { 0 } else { shard.cache.apply(&settings) }
        };
        table.shards.values().map(share).sum()
    }

    /// Makes this what holds. Called while nobody else changes anything. `shards` has all who serve a slot; who is not among
    /// them any more is retired.
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
        self.table.store(Arc::new(before.replaced_by(map, shards, other_nodes)));
    }

    /// Nothing is read there any more, and nothing that was is given.
    fn retire(&self, shard: &Shard) {
        shard.retire();
        lock(&self.retired_totals).add(&shard.cache.statistics());
        tracing::info!(node = %format_args!("{}:{}", shard.address().0, shard.address().1), "shard retired: no longer a primary");
    }
}
