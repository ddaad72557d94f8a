//! Reads for both front ends, counted and traced, and the state of the proxy for operators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use crate::backend::{
    BackendError, CacheIdentity, ConnectAs, EpochStream, FenceResult, ReplyRequest,
};
use crate::cache::{
    Answer, CacheClock, Coherence, Entry, Hit, KeptReply, KeyState, LookupTime, LookupUse, Outcome,
    Purge, ReadMode, ReplyResult, RuleId, RuleMode, RuleOutcome, RuleRead, Settings, Statistics,
};
use crate::cluster::Cluster;
use crate::key::Key;
use crate::metrics::{
    ConnectionGuard, Exposition, FrontEnd, Kind, Metrics, Node, ReadTotals, RejectReason,
};
use crate::protocol::Shape;
use crate::telemetry::hot_keys::{HotKeys, TopKeys};
use crate::telemetry::spans;
use crate::upstream::Upstream;
use crate::verify::{ReplySample, Settings as VerifySettings, Verifier};

/// The upstream with its metrics, for both front ends. Clones share all of it.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

/// Behind one counter of handles, because each miss takes a handle.
#[derive(Clone)]
struct Shared {
    upstream: Upstream,
    clock: CacheClock,
    metrics: Arc<Metrics>,
    hot_keys: HotKeys,
    verifier: Verifier,
    draining: Arc<AtomicBool>,
}

/// The reason why reads cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The daemon is shutting down.
    #[error("draining")]
    Draining,
    /// There is no usable connection to Redis.
    #[error("no connection to Redis: {0}")]
    NoUpstream(BackendError),
}

impl Proxy {
    /// Creates a proxy in front of `upstream`. No answer is verified.
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>, hot_keys: HotKeys) -> Self {
        let (verifier, _) = Verifier::new(&VerifySettings::default());
        let clock = upstream.clock();
        let draining = Arc::default();
        Self(Arc::new(Shared { upstream, clock, metrics, hot_keys, verifier, draining }))
    }

    /// The same with answers from memory sampled by `verifier`.
    #[must_use]
    pub fn with_verifier(self, verifier: Verifier) -> Self {
        Self(Arc::new(Shared { verifier, ..Shared::clone(&self.0) }))
    }

    /// Reads `key` from memory or from Redis, and counts the read. `span` is the span of the
    /// request; it is either the current span or disabled.
    ///
    /// # Errors
    /// [`BackendError`] if Redis returned no value and memory had none to serve in its place.
    pub async fn get(
        &self,
        front_end: FrontEnd,
        key: &[u8],
        mode: ReadMode,
        span: &Span,
    ) -> Result<Answer, BackendError> {
        let begun = Instant::now();
        self.0.hot_keys.count(key, begun);
        let found = if mode == ReadMode::Default { self.lookup(key, begun) } else { None };
        let rule = found.as_ref().map_or_else(
            || self.0.upstream.rule_read(key, self.time(begun)),
            |found| RuleRead::of(found.rule),
        );
        let answer = match (found, mode) {
            (Some(answer), _) => Ok(answer),
            // A fetch is a large future. Boxed, it does not enlarge the future of a hit.
            (None, ReadMode::Default) => {
                Box::pin(self.0.upstream.get_or_fetch(&Key::from(key), mode, begun)).await
            }
            (None, ReadMode::NoCache) => Box::pin(self.get_no_cache(key)).await,
        };
        self.count_answer(front_end, answer, rule, begun, span)
    }

    /// Reads `key` as [`get`](Self::get) does, after a lookup has not found it.
    ///
    /// # Errors
    /// The errors of [`get`](Self::get).
    pub async fn get_missed(
        &self,
        front_end: FrontEnd,
        key: &Key,
        span: &Span,
    ) -> Result<Answer, BackendError> {
        let begun = Instant::now();
        self.0.hot_keys.count(key.as_bytes(), begun);
        let rule = self.0.upstream.rule_read(key.as_bytes(), self.time(begun));
        let answer = self.0.upstream.get_or_fetch(key, ReadMode::Default, begun).await;
        self.count_answer(front_end, answer, rule, begun, span)
    }

    /// Counts a read that began at `begun`.
    #[inline]
    fn count_answer(
        &self,
        front_end: FrontEnd,
        answer: Result<Answer, (Outcome, BackendError)>,
        rule: RuleRead,
        begun: Instant,
        span: &Span,
    ) -> Result<Answer, BackendError> {
        let outcome = answer.as_ref().map_or(Outcome::Error, |answer| answer.outcome);
        if let Ok(answer) = &answer
            && matches!(outcome, Outcome::Hit | Outcome::NegativeHit)
            && self.0.verifier.is_sampled()
        {
            self.0.verifier.add_entry(&answer.entry, begun);
        }
        let took = begun.elapsed();
        self.0.metrics.record_reads(front_end, outcome, 1, took);
        self.record_rule(rule.id, rule.outcome(outcome), 1);
        self.record_trace(front_end, outcome, took, span);
        answer.map_err(|(_, error)| error)
    }

    /// Loads `key` into memory and counts no read. Returns whether its value was fetched for that.
    pub async fn warm(&self, key: &[u8]) -> bool {
        let rule = self.0.upstream.rules().find([key].into_iter());
        if rule.is_some_and(|(_, mode)| mode == RuleMode::Off) {
            return false;
        }
        let (key, now) = (Key::from(key), Instant::now());
        let answer = self.0.upstream.get_or_fetch(&key, ReadMode::Default, now).await;
        let fetched = answer
            .is_ok_and(|answer| answer.outcome == Outcome::Miss && answer.entry.value().is_some());
        if fetched {
            self.0.metrics.record_warmed();
        }
        fetched
    }

    /// Returns the counts and the settings of the cache.
    pub fn statistics(&self) -> Statistics {
        self.0.upstream.statistics()
    }

    /// Reads from memory after a fence, or past memory if there is no tracking.
    async fn get_no_cache(&self, key: &[u8]) -> Result<Answer, (Outcome, BackendError)> {
        match self.0.upstream.fence_for(key, Instant::now()).await {
            Ok(FenceResult::Current) => {
                let (key, now) = (Key::from(key), Instant::now());
                self.0.upstream.get_or_fetch(&key, ReadMode::NoCache, now).await
            }
            Ok(FenceResult::NoTracking) => self.0.upstream.bypass(key).await,
            Err(error) => Err((Outcome::Miss, error)),
        }
    }

    /// Looks up `key` in memory only. The caller [counts](Self::record) the read.
    #[inline]
    pub fn lookup(&self, key: &[u8], now: Instant) -> Option<Answer> {
        self.lookup_for(key, self.time(now), LookupUse::Serve)
    }

    /// Converts an instant to the clock of the cache, for one or more lookups.
    #[inline]
    pub fn time(&self, instant: Instant) -> LookupTime {
        self.0.clock.time(instant)
    }

    /// Looks up `key` in memory only, for this purpose.
    #[inline]
    pub fn lookup_for(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer> {
        self.0.upstream.lookup(key, now, purpose)
    }

    /// Looks up these keys in memory only, in their order, until `each` returns false. The caller
    /// [counts](Self::record) the reads.
    #[inline]
    pub fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: LookupTime,
        each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    ) {
        self.0.upstream.lookup_each(keys, now, each);
    }

    /// Returns the kept reply to `command`. `key` is its first key. The caller
    /// [counts](Self::record) the read.
    #[inline]
    pub fn lookup_reply(
        &self,
        command: &[u8],
        key: &[u8],
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        self.0.upstream.lookup_reply(command, key, now, purpose)
    }

    /// Returns the rule and the mode for a read of these keys; `None` without rules.
    pub fn rule_of<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Option<(RuleId, RuleMode)> {
        self.0.upstream.rules().find(keys)
    }

    /// Counts `reads` reads of a rule. The caller [counts](Self::record) them as reads too.
    #[inline]
    pub fn record_rule(&self, rule: RuleId, outcome: RuleOutcome, reads: u64) {
        if rule != RuleId::NONE {
            self.0.metrics.record_rule(rule, outcome, reads);
        }
    }

    /// Returns the kept reply to `command`, which reads the whole of `key`, if the user may run the
    /// command with the index `derived` too.
    #[inline]
    pub fn lookup_whole(
        &self,
        command: &[u8],
        key: &[u8],
        derived: usize,
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        self.0.upstream.lookup_whole(command, key, derived, now, purpose)
    }

    /// Returns the kept reply to a read, or fetches it, and counts the read. `shape` is the
    /// difference of its RESP2 form.
    pub async fn get_reply(
        &self,
        front_end: FrontEnd,
        request: Arc<ReplyRequest>,
        shape: Shape,
        (kind, rule): (Kind, RuleRead),
        span: &Span,
    ) -> ReplyResult<BackendError> {
        let begun = Instant::now();
        let (outcome, result) = self.0.upstream.get_or_fetch_reply(request, shape).await;
        let outcome = match result {
            ReplyResult::Reply(_) => outcome,
            ReplyResult::Forward => Outcome::Bypass,
            ReplyResult::Failed(_) => Outcome::Error,
        };
        let took = begun.elapsed();
        self.record(front_end, outcome, 1, took);
        self.record_kind(front_end, kind, outcome, 1);
        self.record_rule(rule.id, rule.outcome(outcome), 1);
        self.record_trace(front_end, outcome, took, span);
        result
    }

    /// Records the outcome of a read in its span, and keeps the span's trace as an exemplar if it
    /// is sampled.
    #[inline]
    fn record_trace(&self, front_end: FrontEnd, outcome: Outcome, took: Duration, span: &Span) {
        if span.is_disabled() {
            return;
        }
        spans::record_outcome(span, outcome.name());
        if let Some(trace) = spans::sampled_trace(span) {
            self.0.metrics.record_traced_read(front_end, outcome, trace, took);
        }
    }

    /// Counts the kind of `reads` reads by commands that [`record`](Self::record) counts too.
    pub fn record_kind(&self, front_end: FrontEnd, kind: Kind, outcome: Outcome, reads: u64) {
        self.0.metrics.record_kind(front_end, kind, outcome, reads);
    }

    /// Returns the most fields or members of a kept hash or set from which other replies are
    /// derived.
    pub fn max_hash_fields(&self) -> usize {
        self.0.upstream.max_hash_fields()
    }

    /// Prefetches the memory of these keys, for the lookups that follow.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.0.upstream.prefetch(keys);
    }

    /// Counts a key of a [lookup](Self::lookup) for the list of hot keys, and samples the answer to
    /// be verified.
    #[inline]
    pub fn count_hit(&self, key: &[u8], entry: &Entry, now: Instant) {
        self.0.hot_keys.count(key, now);
        if self.0.verifier.is_sampled() {
            self.0.verifier.add_entry(entry, now);
        }
    }

    /// Whether the reply to a read that memory answered is to be verified.
    #[inline]
    pub fn is_sampled(&self) -> bool {
        self.0.verifier.is_sampled()
    }

    /// Samples a reply from memory to be verified.
    pub fn verify_reply(&self, sample: ReplySample, now: Instant) {
        self.0.verifier.add_reply(sample, now);
    }

    /// Returns the part of the answers from memory that is verified, from 0 to 1.
    pub fn verified_part(&self) -> f64 {
        self.0.verifier.sample()
    }

    /// Returns the `limit` keys that are read most, or `None` if keys are not counted.
    pub fn top_keys(&self, limit: usize) -> Option<TopKeys> {
        self.0.hot_keys.top(limit, Instant::now())
    }

    /// Counts `reads` reads with this outcome, each of duration `took`.
    pub fn record(&self, front_end: FrontEnd, outcome: Outcome, reads: u64, took: Duration) {
        self.0.metrics.record_reads(front_end, outcome, reads, took);
    }

    /// Counts `count` commands of Redis clients. `label` is the index of the command's name in the
    /// list that [`Metrics::new`] received.
    pub fn record_commands(&self, label: usize, count: u64) {
        self.0.metrics.record_commands(label, count);
    }

    /// Counts a rejection by a front end.
    pub fn record_rejected(&self, front_end: FrontEnd, refusal: RejectReason) {
        self.0.metrics.reject_counter(front_end, refusal).count();
    }

    /// Counts a REST request by the status of its response.
    pub fn record_rest_request(&self, status: &str) {
        self.0.metrics.record_rest_request(status);
    }

    /// Counts a stream of events as open until the guard is dropped.
    pub fn open_stream(&self) -> ConnectionGuard {
        self.0.metrics.open_stream()
    }

    /// Waits until memory reflects every write that Redis acknowledged before `since`. Without
    /// tracking it returns [`FenceResult::NoTracking`] at once.
    ///
    /// # Errors
    /// [`BackendError`] if Redis is unreachable or does not reply in time.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        self.0.upstream.fence(since).await
    }

    /// Whether memory is known to reflect every write that Redis acknowledged before `since`.
    pub fn is_current(&self, since: Instant) -> bool {
        self.0.upstream.is_current(since)
    }

    /// Whether a fetch can succeed. It cannot while Redis rejects the proxy's credentials.
    pub fn may_fetch(&self) -> bool {
        !matches!(self.0.upstream.state(), Err(BackendError::AuthRejected(_)))
    }

    /// Whether only the TTL decides which values are served.
    pub fn is_ttl_only(&self) -> bool {
        self.0.upstream.is_ttl_only()
    }

    /// Removes `key` from memory.
    pub fn invalidate(&self, key: &[u8]) {
        self.0.upstream.invalidate(key);
    }

    /// Removes everything from memory.
    pub fn invalidate_all(&self) {
        self.0.upstream.invalidate_all();
    }

    /// Drops entries and replies that an operator purges. Returns the number of entries. Takes time
    /// in proportion to what is kept, except for a single key.
    pub fn purge(&self, purge: &Purge) -> u64 {
        self.0.upstream.purge(purge)
    }

    /// Returns the state of `key` in memory; `None` if no owner of its slot is known.
    pub fn explain(&self, key: &[u8]) -> Option<KeyState> {
        self.0.upstream.explain(key)
    }

    /// Returns the user of the cached values, if the proxy authenticates, and their database.
    pub fn identity(&self) -> CacheIdentity {
        self.0.upstream.identity()
    }

    /// Returns the cluster, if the upstream is one.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.0.upstream.cluster()
    }

    /// Opens a dedicated stream to Redis for one client. Clients of a cluster need a router
    /// instead.
    ///
    /// # Errors
    /// [`BackendError`] if Redis is unreachable or rejects the proxy's credentials.
    /// [`BackendError::ErrorReply`] if the upstream is a cluster.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        self.0.upstream.open(client).await
    }

    /// Checks whether reads can be answered.
    ///
    /// # Errors
    /// [`NotReady::Draining`] during the shutdown. [`NotReady::NoUpstream`] while Redis cannot be
    /// queried.
    pub fn ready(&self) -> Result<(), NotReady> {
        if self.0.draining.load(Relaxed) {
            return Err(NotReady::Draining);
        }
        self.0.upstream.state().map_err(NotReady::NoUpstream)
    }

    /// Returns the numbers of reads.
    pub fn read_totals(&self) -> ReadTotals {
        self.0.metrics.read_totals()
    }

    /// Returns the nodes behind the proxy, each with its state.
    pub fn nodes(&self) -> Vec<Node> {
        self.0.upstream.nodes()
    }

    /// Whether room for values in flight is short, so that clients should not hold it for long.
    pub fn is_room_short(&self) -> bool {
        self.0.upstream.is_room_short()
    }

    /// Returns the mechanism that keeps cached values current now.
    pub fn coherence(&self) -> Coherence {
        self.0.upstream.coherence()
    }

    /// Informs the upstream that settings of the cache have changed.
    pub fn cache_settings_changed(&self, settings: &Settings) {
        self.0.upstream.cache_settings_changed(settings);
    }

    /// Describes the state in one line.
    pub fn status_line(&self) -> String {
        let link = match self.ready() {
            Ok(()) => format!("serving, coherence {}", self.coherence().name()),
            Err(reason) => format!("not ready: {reason}"),
        };
        let ReadTotals { from_memory, all: reads, .. } = self.0.metrics.read_totals();
        let permille = from_memory.saturating_mul(1000).checked_div(reads).unwrap_or(0);
        format!("{link}; {}.{} % of {reads} reads from memory", permille / 10, permille % 10)
    }

    /// Marks the proxy as draining, so it is not ready any more.
    pub fn start_drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Renders the metrics in this format.
    pub fn metrics(&self, format: Exposition) -> String {
        self.0.metrics.render(format)
    }
}
