//! What both front ends and the operator's routes ask for: a read, and how things stand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use crate::backend::{BackendError, CacheIdentity, ConnectAs, EpochStream, FenceResult};
use crate::cache::{Answer, Coherence, Outcome, ReadMode, Settings, Statistics};
use crate::cluster::Cluster;
use crate::metrics::{FrontEnd, Metrics, Node, RejectReason};
use crate::telemetry::hot_keys::{HotKeys, TopKeys};
use crate::telemetry::spans;
use crate::upstream::Upstream;

/// The upstream, as both front ends see it. Clones share it.
#[derive(Clone)]
pub struct Proxy {
    upstream: Upstream,
    metrics: Arc<Metrics>,
    hot_keys: HotKeys,
    draining: Arc<AtomicBool>,
}

/// Why reads may not be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The daemon is going down.
    #[error("draining")]
    Draining,
    /// Redis cannot be asked.
    #[error("no link to Redis: {0}")]
    NoUpstream(BackendError),
}

impl Proxy {
    /// A proxy in front of `upstream`.
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>, hot_keys: HotKeys) -> Self {
        Self { upstream, metrics, hot_keys, draining: Arc::default() }
    }

    /// Answers a read of `key`, from memory or from Redis, and counts it. `span` is what it is traced as, the one that
    /// is entered then, or none.
    ///
    /// # Errors
    /// Why Redis gave no value, when nothing in memory could stand in.
    pub async fn get(
        &self,
        front_end: FrontEnd,
        key: &[u8],
        mode: ReadMode,
        span: &Span,
    ) -> Result<Answer, BackendError> {
        let begun = Instant::now();
        self.hot_keys.count(key, begun);
        let found = if mode == ReadMode::Default { self.lookup(key, begun) } else { None };
        let answer = match (found, mode) {
            (Some(answer), _) => Ok(answer),
            // What waits for Redis is large, and who waits for nothing should not have to carry it about.
            (None, ReadMode::Default) => Box::pin(self.upstream.get_or_fetch(key, mode)).await,
            (None, ReadMode::NoCache) => Box::pin(self.get_no_cache(key)).await,
        };
        let outcome = answer.as_ref().map_or_else(|(outcome, _)| *outcome, |answer| answer.outcome);
        self.metrics.record_reads(front_end, outcome, 1, begun.elapsed());
        spans::record_outcome(span, outcome.name());
        answer.map_err(|(_, error)| error)
    }

    /// Has `key` in memory as a reader would, but counts no read; returns whether its value was fetched for that.
    pub async fn warm(&self, key: &[u8]) -> bool {
        let answer = self.upstream.get_or_fetch(key, ReadMode::Default).await;
        let fetched = answer
            .is_ok_and(|answer| answer.outcome == Outcome::Miss && answer.entry.value().is_some());
        if fetched {
            self.metrics.record_warmed();
        }
        fetched
    }

    /// What the cache holds now.
    pub fn statistics(&self) -> Statistics {
        self.upstream.statistics()
    }

    /// From memory once it is proved to be no older than this, or where that cannot be proved past it.
    async fn get_no_cache(&self, key: &[u8]) -> Result<Answer, (Outcome, BackendError)> {
        match self.upstream.fence_for(key, Instant::now()).await {
            Ok(FenceResult::Current) => self.upstream.get_or_fetch(key, ReadMode::NoCache).await,
            Ok(FenceResult::NoTracking) => self.upstream.bypass(key).await,
            Err(error) => Err((Outcome::Miss, error)),
        }
    }

    /// Looks for `key` in memory only. What is made of it is [counted](Self::record) by who asks.
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        self.upstream.lookup(key, now)
    }

    /// These keys are about to be looked for, as far as can be told.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.upstream.prefetch(keys);
    }

    /// Counts a key of a [lookup](Self::lookup) among those that are read most.
    pub fn count_key(&self, key: &[u8], now: Instant) {
        self.hot_keys.count(key, now);
    }

    /// The `limit` keys that are read most; nothing, if keys are not counted.
    pub fn top_keys(&self, limit: usize) -> Option<TopKeys> {
        self.hot_keys.top(limit, Instant::now())
    }

    /// Counts reads that took the same time.
    pub fn record(&self, front_end: FrontEnd, outcome: Outcome, reads: u64, took: Duration) {
        self.metrics.record_reads(front_end, outcome, reads, took);
    }

    /// Counts a command of clients of Redis, said so many times, by its place in the list that the metrics were made with.
    pub fn record_commands(&self, label: usize, count: u64) {
        self.metrics.record_commands(label, count);
    }

    /// Counts that a front end has turned somebody away.
    pub fn record_rejected(&self, front_end: FrontEnd, refusal: RejectReason) {
        self.metrics.reject_counter(front_end, refusal).count();
    }

    /// Returns once memory holds all that Redis acknowledged before `since`, where Redis tells of changes.
    ///
    /// # Errors
    /// Redis cannot be asked, or does not answer in time.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        self.upstream.fence(since).await
    }

    /// Whether memory is known to hold all that Redis acknowledged before `since`.
    pub fn is_current(&self, since: Instant) -> bool {
        self.upstream.is_current(since)
    }

    /// Whether a fetch may bring something: not if Redis does not admit the proxy.
    pub fn may_fetch(&self) -> bool {
        !matches!(self.upstream.state(), Err(BackendError::AuthRejected(_)))
    }

    /// Whether time alone decides what may be given.
    pub fn is_ttl_only(&self) -> bool {
        self.upstream.is_ttl_only()
    }

    /// Drops `key` from memory.
    pub fn invalidate(&self, key: &[u8]) {
        self.upstream.invalidate(key);
    }

    /// Drops everything from memory.
    pub fn invalidate_all(&self) {
        self.upstream.invalidate_all();
    }

    /// As whom the proxy reads, if it logs in, and from which database.
    pub fn identity(&self) -> CacheIdentity {
        self.upstream.identity()
    }

    /// The cluster, if that is what is behind.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.upstream.cluster()
    }

    /// A stream to Redis for one client alone; not to a cluster, which is no one Redis.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses the proxy's login.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        self.upstream.open(client).await
    }

    /// Whether reads can be answered.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), NotReady> {
        if self.draining.load(Relaxed) {
            return Err(NotReady::Draining);
        }
        self.upstream.state().map_err(NotReady::NoUpstream)
    }

    /// Who there is to be asked behind the proxy, and who of them answers.
    pub fn nodes(&self) -> Vec<Node> {
        self.upstream.nodes()
    }

    /// By what the answers are kept true now.
    pub fn coherence(&self) -> Coherence {
        self.upstream.coherence()
    }

    /// The cache's settings have been changed.
    pub fn cache_settings_changed(&self, settings: &Settings) {
        self.upstream.cache_settings_changed(settings);
    }

    /// How things stand, in a line.
    pub fn status_line(&self) -> String {
        let link = match self.ready() {
            Ok(()) => format!("serving, coherence {}", self.coherence().name()),
            Err(reason) => format!("not ready: {reason}"),
        };
        let (from_memory, reads) = self.metrics.read_totals();
        let permille = from_memory.saturating_mul(1000).checked_div(reads).unwrap_or(0);
        format!("{link}; {}.{} % of {reads} reads from memory", permille / 10, permille % 10)
    }

    /// From now on the daemon is going down.
    pub fn start_drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// The Prometheus text.
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }
}
