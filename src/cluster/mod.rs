//! The primaries of a Redis Cluster, each with a memory and a link of its own.
//!
//! Model: to each primary belongs a [`Unit`]: a cache, and a backend with its tracked link, which are what they are before a
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

use self::routing_table::Routes;
pub use self::shard::NodeName;
use self::shard::Unit;
pub use self::slot_map::slot;
use self::slot_map::{Address, SLOTS, SlotMap};
use crate::backend::{
    self, Asking, Backend, BackendError, Client, EpochStream, Fence, NodeClient, PrepareError,
    Redirect,
};
use crate::cache::{self, Cache, Coherence, CoherenceMode, Fetched, NegativeTtl, Statistics};
use crate::key::Key;
use crate::metrics::{Metrics, Node, Redirect as RedirectResult};
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
    control: Handle,
    routes: ArcSwap<Routes>,
    /// Held by whoever changes the routes.
    changing: Mutex<()>,
    next_name: AtomicU32,
    /// Somebody has reason to believe that the slots are elsewhere.
    wanted: Notify,
    /// How often the nodes have been asked where the slots are.
    asked: watch::Sender<u64>,
    /// What units that are gone have counted.
    gone: Mutex<Counted>,
}

/// What only rises.
#[derive(Default)]
struct Counted {
    evictions: [u64; cache::EvictionCause::ALL.len()],
    flights_discarded: u64,
}

impl Counted {
    fn add(&mut self, statistics: &Statistics) {
        for (sum, count) in self.evictions.iter_mut().zip(statistics.evictions) {
            *sum += count;
        }
        self.flights_discarded += statistics.flights_discarded;
    }
}

/// So often a fetch is sent elsewhere before it is given up.
const MOST_REDIRECTS: usize = 6;
/// How long a fetch waits before it asks again who serves a slot of which nobody says so, or that is on its way.
const AGAIN: Duration = Duration::from_millis(25);

impl Cluster {
    /// A cluster of which nothing is known yet; somebody has to [run](Self::run) it. Fetches and links run on `control`.
    ///
    /// # Errors
    /// A certificate, key or password file that cannot be used.
    pub fn prepare(
        settings: backend::Settings,
        cache_settings: cache::Settings,
        max_value: usize,
        (control, metrics): (Handle, Arc<Metrics>),
    ) -> Result<Self, PrepareError> {
        // Once for all: what is wrong with the files is told at the start.
        let user = Backend::check(&settings)?;
        Ok(Self(Arc::new(Shared {
            settings,
            user,
            cache_settings: Mutex::new(cache_settings),
            max_value,
            metrics,
            control,
            routes: ArcSwap::from_pointee(Routes::empty()),
            changing: Mutex::new(()),
            next_name: AtomicU32::new(0),
            wanted: Notify::new(),
            asked: watch::Sender::new(0),
            gone: Mutex::default(),
        })))
    }

    /// Keeps finding out who serves which slot, for as long as the daemon lives.
    pub async fn run(self) {
        self.0.keep_up().await;
    }

    /// The primary of a key, as far as it is known.
    pub(crate) fn unit_of(&self, key: &[u8]) -> Option<Arc<Unit>> {
        self.0.routes.load().by_slot[usize::from(slot(key))].clone()
    }

    /// Looks at the memory of the key's primary.
    pub(crate) fn look<T>(
        &self,
        key: &[u8],
        look: impl FnOnce(&Cache<BackendError>) -> Option<T>,
    ) -> Option<T> {
        let routes = self.0.routes.load();
        look(&routes.by_slot[usize::from(slot(key))].as_ref()?.cache)
    }

    /// The primary of a key; where none is known, the nodes are asked first.
    ///
    /// # Errors
    /// Nobody says who serves it.
    pub(crate) async fn find_unit(&self, key: &[u8]) -> Result<Arc<Unit>, BackendError> {
        if let Some(unit) = self.unit_of(key) {
            return Ok(unit);
        }
        _ = timeout(self.0.settings.response_timeout, self.refreshed()).await;
        self.unit_of(key).ok_or_else(|| BackendError::Unavailable("CLUSTERDOWN".into()))
    }

    /// Asks for `key`, for the cache of `unit`, wherever that leads. What another than `unit` says is not kept.
    pub(crate) async fn fetch(self, unit: Arc<Unit>, key: Key) -> Fetched<BackendError> {
        let deadline = Instant::now() + self.0.settings.response_timeout;
        let (mut at, mut asking) = (Arc::clone(&unit), Asking::No);
        for _ in 0..MOST_REDIRECTS {
            let reply = at.backend.read(&key, asking, deadline).await;
            match reply {
                Err(BackendError::Moved(Redirect { is_ask, slot, address })) => {
                    let address = at.resolve(address);
                    let next = if is_ask {
                        self.0.unit_at(&address)
                    } else {
                        self.0.moved(slot, &address)
                    };
                    asking = if is_ask { Asking::Yes } else { Asking::No };
                    // Before the answer of another is there to be kept.
                    unit.cache.invalidate(key.as_bytes());
                    match next {
                        Ok(next) => at = next,
                        Err(error) => return unit.backend.fetched(Err(error)),
                    }
                }
                Err(ref error) if self.is_worth_another(error, &mut at, &key, deadline).await => {
                    asking = Asking::No;
                    unit.cache.invalidate(key.as_bytes());
                }
                reply => return at.backend.fetched(reply),
            }
        }
        unit.backend.fetched(Err(BackendError::Unavailable("CLUSTERDOWN".into())))
    }

    /// Whether what failed at `at` is worth another try, and then where.
    async fn is_worth_another(
        &self,
        error: &BackendError,
        at: &mut Arc<Unit>,
        key: &Key,
        deadline: Instant,
    ) -> bool {
        match error {
            BackendError::Unavailable(code) if &**code == "TRYAGAIN" => {
                tokio::time::sleep(AGAIN).await;
            }
            BackendError::Unreachable(_)
            | BackendError::Disconnected
            | BackendError::Unavailable(_) => {
                _ = timeout_at(deadline, self.refreshed()).await;
                // The same would say the same.
                if self.unit_of(key.as_bytes()).is_none_or(|unit| Arc::ptr_eq(&unit, at)) {
                    return false;
                }
            }
            _ => return false,
        }
        if let Some(unit) = self.unit_of(key.as_bytes()) {
            *at = unit;
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
    pub fn patience(&self) -> Duration {
        self.0.settings.response_timeout
    }

    /// Who serves a slot, as far as it is known.
    pub fn owner(&self, slot: u16) -> Option<NodeName> {
        self.0.routes.load().by_slot.get(usize::from(slot))?.as_ref().map(|unit| unit.name())
    }

    /// It rises with every change of who serves what.
    pub fn version(&self) -> u64 {
        self.0.routes.load().version
    }

    /// All who serve slots, in the order of the slots.
    pub fn primaries(&self) -> Vec<NodeName> {
        self.0.routes.load().primaries.clone()
    }

    /// Heeds `MOVED`, which `node` said: who is at `address` serves the slot from now on.
    ///
    /// # Errors
    /// A file of `[redis]` that cannot be used any more.
    pub fn moved(
        &self,
        slot: u16,
        address: &str,
        node: NodeName,
    ) -> Result<NodeName, BackendError> {
        let address = self.address(address, node)?;
        self.0.moved(slot, &address).map(|unit| unit.name())
    }

    /// Who is at `address`, to whom `ASK` of `node` leads.
    ///
    /// # Errors
    /// A file of `[redis]` that cannot be used any more.
    pub fn node_at(&self, address: &str, node: NodeName) -> Result<NodeName, BackendError> {
        let address = self.address(address, node)?;
        self.0.unit_at(&address).map(|unit| unit.name())
    }

    fn address(&self, text: &str, node: NodeName) -> Result<Address, BackendError> {
        let parts = text
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        let address = parts.ok_or_else(|| BackendError::Unavailable("MOVED".into()))?;
        Ok(self.unit(node).map_or_else(|| address.clone(), |unit| unit.resolve(address.clone())))
    }

    fn unit(&self, node: NodeName) -> Option<Arc<Unit>> {
        self.0.routes.load().units.values().find(|unit| unit.name() == node).cloned()
    }

    /// A stream to a node for one client alone. It ends when the node is no primary any more.
    ///
    /// # Errors
    /// The node cannot be reached, refuses the proxy's login, or is no primary any more.
    pub async fn open(&self, client: Client, node: NodeName) -> Result<EpochStream, BackendError> {
        let unit = self.unit(node).ok_or_else(|| BackendError::Unavailable("MOVED".into()))?;
        unit.backend.open(client).await
    }

    /// Counts commands of Redis clients that a node did not run.
    pub fn count_redirects(&self, redirect: RedirectResult, count: u64) {
        self.0.metrics.redirects(redirect, count);
    }

    /// Returns once the nodes have been asked anew who serves what.
    pub async fn refreshed(&self) {
        let mut asked = self.0.asked.subscribe();
        // What is being asked now may have been asked too early.
        let enough = *asked.borrow_and_update() + 2;
        loop {
            self.0.wanted.notify_one();
            if asked.changed().await.is_err() || *asked.borrow() >= enough {
                return;
            }
        }
    }

    /// Whether memory holds all that anybody acknowledged before `since`.
    pub(crate) fn is_current_everywhere(&self, since: Instant) -> bool {
        self.0
            .routes
            .load()
            .units
            .values()
            .all(|unit| unit.backend.is_current(since) || unit.has_nothing_fresh())
    }

    /// Returns once memory holds all that anybody acknowledged before `since`.
    ///
    /// # Errors
    /// One who answers otherwise cannot be asked, or does not answer in time.
    pub(crate) async fn fence_everywhere(&self, since: Instant) -> Result<Fence, BackendError> {
        let mut units = self.0.units();
        units.retain(|unit| !unit.has_nothing_fresh());
        let fences = join_all(units.iter().map(|unit| unit.backend.fence(since))).await;
        let mut weakest = Fence::Told;
        for fence in fences {
            if fence? == Fence::Untold {
                weakest = Fence::Untold;
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
        let routes = self.0.routes.load();
        let mut last =
            BackendError::Unreachable("no node of the cluster has said yet who serves what".into());
        for unit in routes.units.values() {
            match unit.backend.state() {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The primaries, and which of them answer.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<_> =
            self.0.units().iter().flat_map(|unit| unit.backend.nodes()).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes
    }

    /// By what the answers are kept true: the weakest of all.
    pub fn coherence(&self) -> Coherence {
        let each: Vec<_> = self.0.units().iter().map(|unit| unit.cache.coherence()).collect();
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
        self.0.routes.load().units.values().any(|unit| unit.cache.is_ttl_only())
    }

    /// Drops `key` from every memory.
    pub fn invalidate(&self, key: &[u8]) {
        self.0.units().iter().for_each(|unit| unit.cache.invalidate(key));
    }

    /// Drops everything from memory.
    pub fn invalidate_all(&self) {
        self.0.units().iter().for_each(|unit| unit.cache.invalidate_all());
    }

    /// Removes what is over. Takes time in proportion to what there is.
    pub fn sweep(&self) {
        self.0.units().iter().for_each(|unit| unit.cache.sweep());
    }

    /// Puts settings in force, for what is cached already, too. Blocks as [`Cache::apply`] does; returns how many entries went
    /// because there is less room.
    pub fn apply(&self, settings: &cache::Settings) -> u64 {
        let _alone = lock(&self.0.changing);
        *lock(&self.0.cache_settings) = settings.clone();
        self.0.share_out()
    }

    /// The settings were changed.
    pub fn cache_settings_changed(&self) {
        for unit in self.0.units() {
            unit.backend.cache_settings_changed(unit.cache.settings().capacity);
        }
    }

    /// What all memories hold together.
    pub fn statistics(&self) -> Statistics {
        // So that nothing is counted twice or not at all because its unit goes meanwhile.
        let _alone = lock(&self.0.changing);
        let gone = lock(&self.0.gone);
        let mut sum = Statistics {
            entries: 0,
            bytes: 0,
            evictions: gone.evictions,
            flights: 0,
            flights_discarded: gone.flights_discarded,
            settings: lock(&self.0.cache_settings).clone(),
            coherence: self.coherence(),
        };
        for unit in self.0.units() {
            let one = unit.cache.statistics();
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
    fn routes(&self) -> Guard<Arc<Routes>> {
        self.routes.load()
    }

    fn units(&self) -> Vec<Arc<Unit>> {
        self.routes.load().units.values().cloned().collect()
    }

    /// The owner of `slot` says that it is at `address` from now on.
    fn moved(&self, slot: u16, address: &Address) -> Result<Arc<Unit>, BackendError> {
        let _alone = lock(&self.changing);
        let routes = self.routes();
        if routes.map.owner(usize::from(slot)) != Some(address) {
            let mut map = routes.map.clone();
            map.moved(slot, address.clone());
            let unit = self.known_or_new(address)?;
            let mut units = routes.units.clone();
            units.insert(address.clone(), unit);
            self.put_in_force(map, units, routes.others.clone());
            self.wanted.notify_one();
        }
        self.known_or_new(address)
    }

    /// Who is at `address`, known or not.
    fn unit_at(&self, address: &Address) -> Result<Arc<Unit>, BackendError> {
        let _alone = lock(&self.changing);
        let routes = self.routes();
        let unit = self.known_or_new(address)?;
        if !routes.units.contains_key(address) {
            let mut units = routes.units.clone();
            units.insert(address.clone(), Arc::clone(&unit));
            self.put_in_force(routes.map.clone(), units, routes.others.clone());
        }
        Ok(unit)
    }

    fn known_or_new(&self, address: &Address) -> Result<Arc<Unit>, BackendError> {
        if let Some(unit) = self.routes().units.get(address) {
            return Ok(Arc::clone(unit));
        }
        self.new_unit(address).map_err(|error| BackendError::Unreachable(error.to_string().into()))
    }

    fn new_unit(&self, address: &Address) -> Result<Arc<Unit>, PrepareError> {
        let settings = self.settings.for_node(&address.0, address.1);
        let cache = Cache::new(self.settings_of_cache(0), self.control.clone());
        let (backend, link) =
            Backend::prepare(settings, self.max_value, cache.clone(), Arc::clone(&self.metrics))?;
        let name = NodeName(self.next_name.fetch_add(1, Relaxed));
        let link = self.control.spawn(link.run()).abort_handle();
        Ok(Arc::new(Unit::new(name, address.clone(), cache, backend, link)))
    }

    /// Those of the cache of a primary with so many slots.
    fn settings_of_cache(&self, slots: usize) -> cache::Settings {
        let whole = lock(&self.cache_settings).clone();
        let capacity = whole.capacity.saturating_mul(slots).div_ceil(SLOTS).max(1);
        // See above: of a slot that is on its way nobody tells what comes to be.
        let is_told = whole.coherence != CoherenceMode::Ttl;
        let ttl_absent =
            if is_told { NegativeTtl::Fixed(Duration::ZERO) } else { whole.ttl_absent };
        cache::Settings { capacity, ttl_absent, ..whole }
    }

    /// Gives each unit its share of the room. Called while nobody else changes anything.
    fn share_out(&self) -> u64 {
        let routes = self.routes();
        let counts = routes.map.counts();
        let share = |unit: &Arc<Unit>| {
            let settings = self.settings_of_cache(counts.get(unit.address()).copied().unwrap_or(0));
            if unit.cache.settings() == settings { 0 } else { unit.cache.apply(&settings) }
        };
        routes.units.values().map(share).sum()
    }

    /// Makes this what holds. Called while nobody else changes anything. `units` has all who serve a slot; who is not among
    /// them any more is retired.
    fn put_in_force(&self, map: SlotMap, units: HashMap<Address, Arc<Unit>>, others: Vec<Address>) {
        let before = self.routes.load_full();
        for (address, unit) in &before.units {
            if !units.contains_key(address) {
                self.retire(unit);
            }
        }
        self.routes.store(Arc::new(before.replaced_by(map, units, others)));
    }

    /// Nothing is read there any more, and nothing that was is given.
    fn retire(&self, unit: &Unit) {
        unit.retire();
        lock(&self.gone).add(&unit.cache.statistics());
        tracing::info!(node = %format_args!("{}:{}", unit.address().0, unit.address().1), "it is no primary of the cluster any more");
    }
}
