//! The upstream: one Redis with a cache, or the primaries of a cluster, each with its own cache.

mod check;

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument as _;

pub(crate) use self::check::{Check, Details};
use self::check::{CheckedReply, check_entry, check_reply};
pub use self::check::{Comparison, Observations};
use crate::backend::{
    self, Backend, BackendError, CacheIdentity, ConnectAs, EpochStream, FenceResult, ForwardReason,
    ReplyRequest,
};
use crate::cache::{
    Answer, Cache, CacheClock, Coherence, Entry, FetchedReply, Hit, KeptReply, KeyState,
    LookupTime, LookupUse, Outcome, Purge, ReadMode, RefreshResult, Refreshes, Reply, ReplyRead,
    ReplyResult, RuleMode, RuleRead, Rules, Settings, Statistics,
};
use crate::cluster::Cluster;
use crate::key::Key;
use crate::metrics::Node;
use crate::protocol::{MemberOrder, ReplyFrame, Shape};
use crate::telemetry::spans;

/// The Redis behind the proxy, with its cached values.
#[derive(Clone)]
pub enum Upstream {
    /// One Redis, with the cache in front of it.
    Standalone(Cache<BackendError>, Backend),
    /// The primaries of a cluster, each with its own cache.
    Cluster(Cluster),
}

impl Upstream {
    /// Checks whether reads can be answered. The error is the reason if they cannot.
    pub(crate) fn state(&self) -> Result<(), BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.state(),
            Self::Cluster(cluster) => cluster.state(),
        }
    }

    /// Returns the nodes, each with its state.
    pub fn nodes(&self) -> Vec<Node> {
        match self {
            Self::Standalone(_, backend) => backend.nodes(),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Returns the counts and the settings of the cache, summed over a cluster.
    pub fn statistics(&self) -> Statistics {
        match self {
            Self::Standalone(cache, _) => cache.statistics(),
            Self::Cluster(cluster) => cluster.statistics(),
        }
    }

    /// Applies settings, as [`Cache::apply`] does. Returns the number of evicted entries.
    pub fn apply(&self, settings: &Settings) -> u64 {
        match self {
            Self::Standalone(cache, _) => cache.apply(settings),
            Self::Cluster(cluster) => cluster.apply(settings),
        }
    }

    /// Removes expired entries, as [`Cache::sweep`] does.
    pub fn sweep(&self) {
        match self {
            Self::Standalone(cache, _) => cache.sweep(),
            Self::Cluster(cluster) => cluster.sweep(),
        }
    }

    /// Reads `key` as [`Cache::get_or_fetch`] does.
    pub(crate) async fn get_or_fetch(
        &self,
        key: &Key,
        mode: ReadMode,
        now: Instant,
    ) -> Result<Answer, (Outcome, BackendError)> {
        match self {
            Self::Standalone(cache, backend) => {
                cache.get_or_fetch(key, mode, now, |key, at| backend.clone().fetch(key, at)).await
            }
            // Boxed. Otherwise every read of one Redis would be moved and stored with room for it.
            Self::Cluster(cluster) => {
                Box::pin(async {
                    let shard = cluster.find_shard(key.as_bytes()).await;
                    let shard = shard.map_err(|error| (Outcome::Miss, error))?;
                    let fetch = |key, at| cluster.clone().fetch(Arc::clone(&shard), key, at);
                    // Read again, because the search for the shard may have waited.
                    let now = Instant::now();
                    shard.cache.get_or_fetch(key, mode, now, fetch).await
                })
                .await
            }
        }
    }

    /// Returns the refreshes of keys that are kept hot.
    pub(crate) fn refreshes(&self) -> &Arc<Refreshes> {
        match self {
            Self::Standalone(cache, _) => cache.refreshes(),
            Self::Cluster(cluster) => cluster.refreshes(),
        }
    }

    /// Fetches a key that is kept hot, as [`Cache::refresh`] does.
    pub(crate) async fn refresh(&self, key: &[u8]) -> RefreshResult {
        match self {
            Self::Standalone(cache, backend) => {
                cache.refresh(key, |key, at| backend.clone().fetch(key, at)).await
            }
            Self::Cluster(cluster) => {
                let Ok(shard) = cluster.find_shard(key).await else {
                    return RefreshResult::Failed;
                };
                let fetch = |key, at| cluster.clone().fetch(Arc::clone(&shard), key, at);
                shard.cache.refresh(key, fetch).await
            }
        }
    }

    /// Compares an entry that was served with Redis.
    pub(crate) async fn check_entry(&self, entry: &Entry) -> Check {
        match self {
            Self::Standalone(cache, backend) => {
                let fetch = |key| backend.clone().fetch(key, Instant::now());
                check_entry(cache, backend, entry, fetch).await
            }
            Self::Cluster(cluster) => {
                let Ok(shard) = cluster.find_shard(entry.key()).await else {
                    return Check::impossible();
                };
                let fetch = |key| cluster.clone().fetch(Arc::clone(&shard), key, Instant::now());
                check_entry(&shard.cache, &shard.backend, entry, fetch).await
            }
        }
    }

    /// Compares a reply that was served with Redis. `basis` is the kept reply that it follows from.
    pub(crate) async fn check_reply(
        &self,
        request: &ReplyRequest,
        shape: Shape,
        frame: &ReplyFrame,
        basis: &Reply,
        order: MemberOrder,
    ) -> Check {
        let checked = CheckedReply { read: read_of(request), frame, basis, order };
        match self {
            Self::Standalone(cache, backend) => {
                let max = cache.max_reply(&request.keys);
                let fetch =
                    || async move { to_cache(backend.fetch_reply(request, max).await, shape) };
                check_reply(cache, backend, &checked, fetch).await
            }
            Self::Cluster(cluster) => {
                let keys = request.keys.iter().map(Key::as_bytes);
                let Ok(Some(shard)) = cluster.find_shard_of_all(keys).await else {
                    return Check::impossible();
                };
                let (max, at) = (shard.cache.max_reply(&request.keys), &shard);
                let fetch =
                    || async move { to_cache(cluster.fetch_reply(at, request, max).await, shape) };
                check_reply(&shard.cache, &shard.backend, &checked, fetch).await
            }
        }
    }

    pub(crate) async fn fence_for(
        &self,
        key: &[u8],
        since: Instant,
    ) -> Result<FenceResult, BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.fence(since).await,
            Self::Cluster(cluster) => cluster.find_shard(key).await?.backend.fence(since).await,
        }
    }

    pub(crate) async fn bypass(&self, key: &[u8]) -> Result<Answer, (Outcome, BackendError)> {
        let fetched = Key::from(key);
        match self {
            Self::Standalone(cache, backend) => {
                let fetch = backend.clone().fetch(fetched, Instant::now());
                cache.bypass(fetch.instrument(spans::fetch_span())).await
            }
            Self::Cluster(cluster) => {
                let shard =
                    cluster.find_shard(key).await.map_err(|error| (Outcome::Miss, error))?;
                let fetch = cluster.clone().fetch(Arc::clone(&shard), fetched, Instant::now());
                shard.cache.bypass(fetch.instrument(spans::fetch_span())).await
            }
        }
    }

    /// Returns the clock of the cache.
    pub(crate) fn clock(&self) -> CacheClock {
        match self {
            Self::Standalone(cache, _) => cache.clock(),
            Self::Cluster(cluster) => cluster.clock(),
        }
    }

    /// Looks up `key` in memory only. The caller counts the read.
    #[inline]
    pub fn lookup(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer> {
        let lookup = |cache: &Cache<BackendError>| cache.lookup_for(key, now, purpose);
        match self {
            Self::Standalone(cache, _) => lookup(cache),
            Self::Cluster(cluster) => cluster.lookup(key, lookup),
        }
    }

    /// Looks up these keys in memory only, in their order, until `each` returns false. The caller
    /// counts the reads.
    #[inline]
    pub fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: LookupTime,
        mut each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    ) {
        match self {
            Self::Standalone(cache, _) => cache.lookup_each(keys, now, each),
            // Each key may be in another cache.
            Self::Cluster(_) => {
                let mut lookup =
                    |key| each(key, self.lookup(key, now, LookupUse::Serve).map(Hit::from));
                _ = keys.iter().all(|key| lookup(key));
            }
        }
    }

    /// Returns the rules in force.
    pub(crate) fn rules(&self) -> &Arc<Rules> {
        match self {
            Self::Standalone(cache, _) => cache.rules(),
            Self::Cluster(cluster) => cluster.rules(),
        }
    }

    /// Returns the rule of a read of `key` that memory did not answer, and whether it would have
    /// been a hit but for the mode `observe`.
    pub(crate) fn rule_read(&self, key: &[u8], now: LookupTime) -> RuleRead {
        let Some((id, mode)) = self.rules().find([key].into_iter()) else {
            return RuleRead::default();
        };
        let would_hit =
            mode == RuleMode::Observe && self.lookup(key, now, LookupUse::Observe).is_some();
        RuleRead { id, would_hit }
    }

    /// Returns the kept reply to `command`. `key` is its first key.
    #[inline]
    pub fn lookup_reply(
        &self,
        command: &[u8],
        key: &[u8],
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        let lookup = |cache: &Cache<BackendError>| cache.lookup_reply(command, now, purpose);
        match self {
            Self::Standalone(cache, _) => lookup(cache),
            Self::Cluster(cluster) => cluster.lookup(key, lookup),
        }
    }

    /// Returns the kept reply to `command`, as [`Cache::lookup_whole`] does. `key` is its key.
    #[inline]
    pub fn lookup_whole(
        &self,
        command: &[u8],
        key: &[u8],
        derived: usize,
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        let lookup =
            |cache: &Cache<BackendError>| cache.lookup_whole(command, derived, now, purpose);
        match self {
            Self::Standalone(cache, _) => lookup(cache),
            Self::Cluster(cluster) => cluster.lookup(key, lookup),
        }
    }

    /// Returns the most fields or members of a kept hash or set from which other replies are
    /// derived.
    pub fn max_hash_fields(&self) -> usize {
        match self {
            Self::Standalone(cache, _) => cache.max_hash_fields(),
            Self::Cluster(cluster) => cluster.max_hash_fields(),
        }
    }

    /// Returns the kept reply to a read, or fetches it. `shape` is the difference of its RESP2
    /// form.
    pub(crate) async fn get_or_fetch_reply(
        &self,
        request: Arc<ReplyRequest>,
        shape: Shape,
    ) -> (Outcome, ReplyResult<BackendError>) {
        let fetched = Arc::clone(&request);
        match self {
            Self::Standalone(cache, backend) => {
                let (backend, max) = (backend.clone(), cache.max_reply(&request.keys));
                let fetch = move || async move {
                    to_cache(backend.fetch_reply(&fetched, max).await, shape)
                };
                cache.get_or_fetch_reply(read_of(&request), fetch).await
            }
            Self::Cluster(cluster) => {
                let shard =
                    match cluster.find_shard_of_all(request.keys.iter().map(Key::as_bytes)).await {
                        Ok(Some(shard)) => shard,
                        Ok(None) => return (Outcome::Bypass, ReplyResult::Forward),
                        Err(error) => return (Outcome::Miss, ReplyResult::Failed(error)),
                    };
                let (cluster, max) = (cluster.clone(), shard.cache.max_reply(&request.keys));
                let at = Arc::clone(&shard);
                let fetch = move || async move {
                    to_cache(cluster.fetch_reply(&at, &fetched, max).await, shape)
                };
                shard.cache.get_or_fetch_reply(read_of(&request), fetch).await
            }
        }
    }

    /// Prefetches the memory of these keys, for the lookups that follow.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        match self {
            Self::Standalone(cache, _) => cache.prefetch(keys),
            // Each key may be in another cache.
            Self::Cluster(_) => {}
        }
    }

    /// Waits until memory reflects every write that Redis acknowledged before `since`. Without
    /// tracking it returns [`FenceResult::NoTracking`] at once.
    ///
    /// # Errors
    /// [`BackendError`] if Redis is unreachable or does not reply in time.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.fence(since).await,
            Self::Cluster(cluster) => cluster.fence_everywhere(since).await,
        }
    }

    /// Whether memory is known to reflect every write that Redis acknowledged before `since`.
    pub fn is_current(&self, since: Instant) -> bool {
        match self {
            Self::Standalone(_, backend) => backend.is_current(since),
            Self::Cluster(cluster) => cluster.is_current_everywhere(since),
        }
    }

    /// Whether only the TTL decides which values are served.
    pub fn is_ttl_only(&self) -> bool {
        match self {
            Self::Standalone(cache, _) => cache.is_ttl_only(),
            Self::Cluster(cluster) => cluster.is_ttl_only(),
        }
    }

    /// Removes `key` from memory.
    pub fn invalidate(&self, key: &[u8]) {
        match self {
            Self::Standalone(cache, _) => cache.invalidate(key),
            Self::Cluster(cluster) => cluster.invalidate(key),
        }
    }

    /// Removes everything from memory.
    pub fn invalidate_all(&self) {
        match self {
            Self::Standalone(cache, _) => cache.invalidate_all(),
            Self::Cluster(cluster) => cluster.invalidate_all(),
        }
    }

    /// Drops entries and replies, as [`Cache::purge`] does. Returns the number of entries.
    pub fn purge(&self, purge: &Purge) -> u64 {
        match self {
            Self::Standalone(cache, _) => cache.purge(purge),
            Self::Cluster(cluster) => cluster.purge(purge),
        }
    }

    /// Returns the state of `key` in memory; `None` if no owner of its slot is known.
    pub fn explain(&self, key: &[u8]) -> Option<KeyState> {
        match self {
            Self::Standalone(cache, _) => Some(cache.explain(key)),
            Self::Cluster(cluster) => cluster.lookup(key, |cache| Some(cache.explain(key))),
        }
    }

    /// Returns the user of the cached values, if the proxy authenticates, and their database.
    pub fn identity(&self) -> CacheIdentity {
        match self {
            Self::Standalone(_, backend) => backend.identity(),
            Self::Cluster(cluster) => CacheIdentity { user: cluster.user(), database: 0 },
        }
    }

    /// Returns the cluster, if the upstream is one.
    pub fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Standalone(..) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }

    /// Opens a dedicated stream to Redis for one client. Clients of a cluster need a router
    /// instead.
    ///
    /// # Errors
    /// [`BackendError`] if Redis is unreachable or rejects the proxy's credentials.
    /// [`BackendError::ErrorReply`] if the upstream is a cluster.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.open(client).await,
            Self::Cluster(_) => Err(BackendError::ErrorReply("CROSSSLOT".into())),
        }
    }

    /// Whether room for values in flight is short, so that clients should not hold it for long.
    pub fn is_room_short(&self) -> bool {
        match self {
            Self::Standalone(cache, _) => cache.is_room_short(),
            Self::Cluster(cluster) => cluster.is_room_short(),
        }
    }

    /// Returns the mechanism that keeps cached values current now.
    pub fn coherence(&self) -> Coherence {
        match self {
            Self::Standalone(cache, _) => cache.coherence(),
            Self::Cluster(cluster) => cluster.coherence(),
        }
    }

    /// Informs the backend that settings of the cache have changed.
    pub fn cache_settings_changed(&self, settings: &Settings) {
        match self {
            Self::Standalone(_, backend) => backend.cache_settings_changed(settings.capacity),
            Self::Cluster(cluster) => cluster.cache_settings_changed(),
        }
    }
}

/// Converts a request for the cache.
fn read_of(request: &ReplyRequest) -> ReplyRead<'_> {
    ReplyRead { command: &request.command, name_index: request.name_index, keys: &request.keys }
}

/// Converts the result of a fetch for the cache.
fn to_cache(
    fetched: Result<backend::FetchedReply, BackendError>,
    shape: Shape,
) -> FetchedReply<BackendError> {
    match fetched {
        Ok(backend::FetchedReply::Keepable { frame, expires_in }) => {
            FetchedReply::Keepable(ReplyFrame::new(frame, shape), expires_in)
        }
        Ok(backend::FetchedReply::Unkeepable { frame }) => {
            FetchedReply::Unkeepable(ReplyFrame::new(frame, shape))
        }
        Ok(backend::FetchedReply::Forward(ForwardReason::TooLarge)) => FetchedReply::TooLarge,
        Ok(backend::FetchedReply::Forward(_)) => FetchedReply::Forward,
        Err(error) => FetchedReply::Failed(error),
    }
}
