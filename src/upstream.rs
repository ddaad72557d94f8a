//! What is behind the proxy: one Redis with a cache, or the primaries of a cluster, each with a cache of its own.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::backend::{Backend, BackendError, CacheIdentity, ConnectAs, EpochStream, FenceResult};
use crate::cache::{Answer, Cache, Coherence, Outcome, ReadMode, Settings, Statistics};
use crate::cluster::Cluster;
use crate::key::Key;
use crate::metrics::Node;
use crate::telemetry::spans;

/// What is kept, and the Redis it is of.
#[derive(Clone)]
pub enum Upstream {
    /// The cache in front of its backend.
    Standalone(Cache<BackendError>, Backend),
    /// The primaries of a cluster, each with a cache of its own.
    Cluster(Cluster),
}

impl Upstream {
    /// Whether reads can be answered.
    pub(crate) fn state(&self) -> Result<(), BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.state(),
            Self::Cluster(cluster) => cluster.state(),
        }
    }

    /// Who there is to be asked, and who of them answers.
    pub fn nodes(&self) -> Vec<Node> {
        match self {
            Self::Standalone(_, backend) => backend.nodes(),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// What is kept.
    pub fn statistics(&self) -> Statistics {
        match self {
            Self::Standalone(cache, _) => cache.statistics(),
            Self::Cluster(cluster) => cluster.statistics(),
        }
    }

    /// Puts settings in force, as [`Cache::apply`] does.
    pub fn apply(&self, settings: &Settings) -> u64 {
        match self {
            Self::Standalone(cache, _) => cache.apply(settings),
            Self::Cluster(cluster) => cluster.apply(settings),
        }
    }

    /// Removes what is over, as [`Cache::sweep`] does.
    pub fn sweep(&self) {
        match self {
            Self::Standalone(cache, _) => cache.sweep(),
            Self::Cluster(cluster) => cluster.sweep(),
        }
    }

    pub(crate) async fn get_or_fetch(
        &self,
        key: &[u8],
        mode: ReadMode,
    ) -> Result<Answer, (Outcome, BackendError)> {
        match self {
            Self::Standalone(cache, backend) => {
                cache.get_or_fetch(key, mode, |key| backend.clone().fetch(key)).await
            }
            Self::Cluster(cluster) => {
                let shard =
                    cluster.find_shard(key).await.map_err(|error| (Outcome::Miss, error))?;
                let fetch = |key| cluster.clone().fetch(Arc::clone(&shard), key);
                shard.cache.get_or_fetch(key, mode, fetch).await
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
                cache.bypass(backend.clone().fetch(fetched).instrument(spans::fetch_span())).await
            }
            Self::Cluster(cluster) => {
                let shard =
                    cluster.find_shard(key).await.map_err(|error| (Outcome::Miss, error))?;
                let fetch = cluster.clone().fetch(Arc::clone(&shard), fetched);
                shard.cache.bypass(fetch.instrument(spans::fetch_span())).await
            }
        }
    }

    /// Looks for `key` in memory only. What is made of it is counted by who asks.
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        match self {
            Self::Standalone(cache, _) => cache.lookup(key, now),
            Self::Cluster(cluster) => cluster.lookup(key, |cache| cache.lookup(key, now)),
        }
    }

    /// These keys are about to be looked for, as far as can be told.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        match self {
            Self::Standalone(cache, _) => cache.prefetch(keys),
            // Each of them may be in another cache.
            Self::Cluster(_) => {}
        }
    }

    /// Returns once memory holds all that Redis acknowledged before `since`, where Redis tells of changes.
    ///
    /// # Errors
    /// Redis cannot be asked, or does not answer in time.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.fence(since).await,
            Self::Cluster(cluster) => cluster.fence_everywhere(since).await,
        }
    }

    /// Whether memory is known to hold all that Redis acknowledged before `since`.
    pub fn is_current(&self, since: Instant) -> bool {
        match self {
            Self::Standalone(_, backend) => backend.is_current(since),
            Self::Cluster(cluster) => cluster.is_current_everywhere(since),
        }
    }

    /// Whether time alone decides what may be given.
    pub fn is_ttl_only(&self) -> bool {
        match self {
            Self::Standalone(cache, _) => cache.is_ttl_only(),
            Self::Cluster(cluster) => cluster.is_ttl_only(),
        }
    }

    /// Drops `key` from memory.
    pub fn invalidate(&self, key: &[u8]) {
        match self {
            Self::Standalone(cache, _) => cache.invalidate(key),
            Self::Cluster(cluster) => cluster.invalidate(key),
        }
    }

    /// Drops everything from memory.
    pub fn invalidate_all(&self) {
        match self {
            Self::Standalone(cache, _) => cache.invalidate_all(),
            Self::Cluster(cluster) => cluster.invalidate_all(),
        }
    }

    /// As whom the proxy reads, if it logs in, and from which database.
    pub fn identity(&self) -> CacheIdentity {
        match self {
            Self::Standalone(_, backend) => backend.identity(),
            Self::Cluster(cluster) => CacheIdentity { user: cluster.user(), database: 0 },
        }
    }

    /// The cluster, if that is what is behind.
    pub fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Standalone(..) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }

    /// A stream to Redis for one client alone; not to a cluster, which is no one Redis.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses the proxy's login.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        match self {
            Self::Standalone(_, backend) => backend.open(client).await,
            Self::Cluster(_) => Err(BackendError::ErrorReply("CROSSSLOT".into())),
        }
    }

    /// By what the answers are kept true now.
    pub fn coherence(&self) -> Coherence {
        match self {
            Self::Standalone(cache, _) => cache.coherence(),
            Self::Cluster(cluster) => cluster.coherence(),
        }
    }

    /// The cache's settings have been changed.
    pub fn cache_settings_changed(&self, settings: &Settings) {
        match self {
            Self::Standalone(_, backend) => backend.cache_settings_changed(settings.capacity),
            Self::Cluster(cluster) => cluster.cache_settings_changed(),
        }
    }
}
