//! The client side of one Redis: fetches values, and classifies each failure by one word.
//!
//! A value and its time to live belong together. They are fetched in one transaction, or one after
//! the other with tracking. Every wait is bounded: `response_timeout` limits a fetch from its first
//! step to its last, whatever Redis does.

mod address;
mod command_query;
mod connector;
mod credentials;
mod dial;
mod direct_writer;
mod endpoint;
mod error;
mod events;
mod expiry_check;
mod fetch;
mod fetch_command;
mod hello;
mod liveness;
mod multiplexed;
mod network;
mod node_client;
mod outage;
#[cfg(feature = "planted-faults")]
mod planted_faults;
mod probe;
mod read_after_reset;
mod reply_decoder;
mod reply_fetch;
mod rights;
mod seeds;
mod sentinel;
mod server_commands;
mod settings;
mod signals;
mod supervisor;
mod suspects;
mod throttle;
mod tls_error;
mod topology;
mod tracking;
mod trial;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::address::{Address, ConnectionAddr};
use self::credentials::Login;
pub use self::credentials::OtherLogin;
use self::dial::Dialer;
pub use self::dial::PrepareError;
use self::endpoint::Endpoint;
pub use self::endpoint::EpochStream;
pub use self::error::{BackendError, Redirect};
use self::error::{NO_PERMISSION, unreachable};
use self::events::Events;
pub(crate) use self::fetch_command::Reply;
use self::multiplexed::Multiplexed;
pub use self::network::{Connecting, Network, SimulatedNetwork, Stream};
pub(crate) use self::node_client::NodeClient;
pub(crate) use self::outage::Outage;
pub use self::reply_fetch::{FetchedReply, ForwardReason, ReplyRequest, RequestedFields};
pub use self::seeds::Seeds;
pub use self::server_commands::CommandNames;
pub use self::settings::{Mode, Settings};
use self::signals::SupervisorSignals;
pub use self::supervisor::ConnectionSupervisor;
use self::supervisor::{ConnectionState, Published};
use self::suspects::Suspects;
use self::throttle::Throttle;
use self::topology::Topology;
use self::tracking::Tracking;
// Used by the fuzz targets.
#[doc(hidden)]
pub use self::reply_decoder::ReplyDecoder;
#[doc(hidden)]
pub use self::tracking::{Invalidated, parse_push};
use crate::cache::{Cache, Fetched};
use crate::key::Key;
use crate::metrics::{Metrics, Node};
use crate::telemetry::spans;

/// A handle to one Redis. Clones share its connection and its limits.
#[derive(Clone)]
pub struct Backend(Arc<Shared>);

/// The state that all clones of a [`Backend`] share.
///
/// Its methods box the futures of rare paths. Otherwise every fetch would be moved and stored with
/// room for all of them.
struct Shared {
    settings: Settings,
    dialer: Arc<Dialer>,
    topology: Arc<Topology>,
    /// The user of the proxy in Redis; `None` if it does not log in.
    user: Option<String>,
    state: watch::Receiver<ConnectionState>,
    /// The time of the last lease renewal.
    ///
    /// Invalidations of all writes that Redis acknowledged before it have been applied.
    lease_renewed: watch::Receiver<Instant>,
    suspected: watch::Receiver<bool>,
    signals: Arc<SupervisorSignals>,
    events: Arc<Events>,
    fetch_permits: Semaphore,
    fetches_queued: AtomicUsize,
    /// The number of reads that wait for a fence.
    fences_queued: AtomicUsize,
    suspects: Suspects,
    throttle: Throttle,
    /// The size of the largest value served, in bytes.
    max_value: usize,
    metrics: Arc<Metrics>,
}

/// Whether `ASKING` precedes the commands because another node redirected them.
///
/// It makes a node reply for a slot that is moving to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    No,
    Yes,
}

/// The user and the database with which the cached values were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheIdentity {
    /// The user; `None` if the proxy does not log in.
    pub user: Option<String>,
    /// The number of the database.
    pub database: u32,
}

/// The login of a dedicated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectAs {
    /// No login: the client logs in itself, or Redis requires none.
    Anonymous,
    /// The login of the proxy.
    ProxyUser,
    /// Another login, which the configuration names.
    Other(Arc<OtherLogin>),
}

/// The result of a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceResult {
    /// The cache is at least as recent as the start of the fence.
    Current,
    /// Redis sends no invalidations, so the age of the cache is unknown.
    NoTracking,
}

/// The longest wait of a reader for a connection attempt.
///
/// It suffices for a Redis that has just come back, and otherwise still gives a fast error.
const RECONNECT_WAIT: Duration = Duration::from_millis(100);

impl Backend {
    /// Creates a backend that serves values of at most `max_value` bytes, and its supervisor.
    ///
    /// The supervisor keeps the connection on `network` while it
    /// [runs](ConnectionSupervisor::run). Invalidations from Redis are applied to `cache`. `names`
    /// are the commands with replies that may be kept.
    ///
    /// # Errors
    /// [`PrepareError`] if a certificate, key or password file cannot be used.
    pub fn prepare(
        network: Network,
        settings: Settings,
        max_value: usize,
        names: CommandNames,
        cache: Cache<BackendError>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, ConnectionSupervisor), PrepareError> {
        let signals = Arc::new(SupervisorSignals::default());
        let dialer = Arc::new(Dialer::new(&settings)?.on(network));
        let user = Self::user(&settings)?;
        let topology = Arc::new(Topology::prepare(&settings, &dialer)?);
        let prepared = ConnectionSupervisor::prepare(
            &settings,
            names,
            Arc::clone(&dialer),
            Arc::clone(&topology),
            cache,
            Arc::clone(&signals),
            Arc::clone(&metrics),
        );
        let (supervisor, Published { state, lease_renewed, suspected, events }) = prepared;
        let shared = Shared {
            dialer,
            topology,
            user,
            fetch_permits: Semaphore::new(settings.max_fetches),
            state,
            lease_renewed,
            suspected,
            signals,
            events,
            fetches_queued: AtomicUsize::new(0),
            fences_queued: AtomicUsize::new(0),
            suspects: Suspects::new(),
            throttle: Throttle::new(),
            max_value,
            metrics,
            settings,
        };
        Ok((Self(Arc::new(shared)), supervisor))
    }

    /// Checks that a backend could be prepared from `settings`; returns the user with which it
    /// would read.
    ///
    /// # Errors
    /// [`PrepareError`] if a certificate, key or password file cannot be used.
    pub(crate) fn check(settings: &Settings) -> Result<Option<String>, PrepareError> {
        Dialer::new(settings)?;
        Self::user(settings)
    }

    /// Returns the errors of all files that `settings` name.
    pub(crate) fn file_errors(settings: &Settings) -> Vec<PrepareError> {
        let mut errors = Dialer::file_errors(settings);
        errors.extend(credentials::load_login(settings).err());
        if settings.mode == Mode::Sentinel {
            errors.extend(credentials::load_sentinel_login(settings).err());
        }
        errors
    }

    /// Returns the user of the proxy in Redis; `None` if it does not log in.
    ///
    /// # Errors
    /// [`PrepareError`] if the password file cannot be read.
    fn user(settings: &Settings) -> Result<Option<String>, PrepareError> {
        Ok(credentials::load_login(settings)?.map(|login| login.user().to_owned()))
    }

    /// Fetches the value of `key` together with its time to live, within `response_timeout` from
    /// `now` on.
    pub async fn fetch(self, key: Key, now: Instant) -> Fetched<BackendError> {
        let deadline = now + self.0.settings.response_timeout;
        let reply = self.read(&key, Asking::No, deadline).await;
        self.to_fetched(reply)
    }

    /// Fetches `key` before `deadline`, like [`fetch`](Self::fetch), but returns redirects of a
    /// cluster node.
    ///
    /// # Errors
    /// The [`BackendError`] of the fetch, [`BackendError::Moved`] for a redirect.
    pub(crate) fn read<'a>(
        &'a self,
        key: &'a Key,
        asking: Asking,
        deadline: Instant,
    ) -> impl Future<Output = Result<Reply, BackendError>> + 'a {
        self.0.topology.record_span_target();
        self.0.fetch(key, asking, deadline)
    }

    /// Fetches the reply to a read, with the time for which it may be kept, within
    /// `response_timeout`. A reply of more than `max_reply` bytes is not returned.
    ///
    /// The caller notes what invalidates the reply before the call, and compares it afterwards: a
    /// change while the fetch runs is pushed before this returns.
    ///
    /// # Errors
    /// The [`BackendError`] if Redis does not reply. An error reply is
    /// [`FetchedReply::Forward`].
    pub async fn fetch_reply(
        &self,
        request: &ReplyRequest,
        max_reply: usize,
    ) -> Result<FetchedReply, BackendError> {
        let reply = self.read_reply(request, max_reply).await;
        self.to_fetched_reply(reply)
    }

    /// Fetches a reply, like [`fetch_reply`](Self::fetch_reply), but returns error replies.
    ///
    /// # Errors
    /// The [`BackendError`] of the fetch, [`BackendError::Moved`] for a redirect.
    pub(crate) async fn read_reply(
        &self,
        request: &ReplyRequest,
        max_reply: usize,
    ) -> Result<FetchedReply, BackendError> {
        self.0.topology.record_span_target();
        let deadline = Instant::now() + self.0.settings.response_timeout;
        self.0.fetch_reply(request, max_reply, deadline).await
    }

    /// Converts the error replies of [`read_reply`](Self::read_reply), and counts a failure.
    ///
    /// # Errors
    /// The [`BackendError`] if Redis did not reply.
    pub(crate) fn to_fetched_reply(
        &self,
        reply: Result<FetchedReply, BackendError>,
    ) -> Result<FetchedReply, BackendError> {
        match reply {
            Err(BackendError::Moved(_)) => Ok(FetchedReply::Forward(ForwardReason::Redirected)),
            Err(error) if error.is_reply() => Ok(FetchedReply::Forward(ForwardReason::ErrorReply)),
            reply => reply.inspect_err(|error| self.0.record_failure(error)),
        }
    }

    /// Converts the result of a read for the cache, and counts a failure.
    pub(crate) fn to_fetched(&self, reply: Result<Reply, BackendError>) -> Fetched<BackendError> {
        match reply {
            Ok(Some((value, _))) if value.len() > self.0.max_value => {
                self.0.failed(BackendError::TooLarge)
            }
            Ok(Some((value, expires_in))) => Fetched::Value(value, expires_in),
            Ok(None) => Fetched::Absent,
            Err(error) => self.0.failed(error),
        }
    }

    /// Retires the endpoint: no new connection goes to it, and the streams opened for clients end.
    pub(crate) fn retire(&self) {
        self.0.topology.retire();
    }

    /// Returns `Ok` while the connection is up.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] during the first attempt; otherwise the reason of the last
    /// disconnection or failed attempt.
    pub fn state(&self) -> Result<(), BackendError> {
        match &*self.0.state.borrow() {
            ConnectionState::Connecting => {
                Err(BackendError::Unreachable("not connected yet".into()))
            }
            ConnectionState::Up(..) => Ok(()),
            ConnectionState::Down(error) => Err(error.clone()),
        }
    }

    /// Returns a receiver of whether Redis may be out of service: there is no connection, the reply
    /// to a check is overdue, or the node reports that it may not serve.
    pub(crate) fn suspected(&self) -> watch::Receiver<bool> {
        self.0.suspected.clone()
    }

    /// Returns whether Redis may be out of service.
    pub(crate) fn is_suspected(&self) -> bool {
        *self.0.suspected.borrow()
    }

    /// Returns the known nodes, each with its state.
    pub fn nodes(&self) -> Vec<Node> {
        self.0.topology.nodes(matches!(*self.0.state.borrow(), ConnectionState::Up(..)))
    }

    /// Waits until the cache reflects every write that Redis acknowledged before `since`.
    ///
    /// All invalidations of those writes have then been applied. One PING serves all waiting
    /// fences.
    ///
    /// # Errors
    /// [`BackendError::Overloaded`] if `max_queue` fences wait; [`BackendError::TimedOut`] after
    /// `response_timeout`; [`BackendError::Disconnected`] if the connection was lost twice;
    /// otherwise the reason why there is no connection.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        let fence = self.0.fence(since).await;
        fence.inspect_err(|error| {
            self.0.metrics.record_backend_error(error.kind());
            self.0.signals.failed_fetches.fetch_add(1, Relaxed);
        })
    }

    /// Whether a fence for `since` would return at once. A lease that starts at `since` itself does
    /// not count, because its PING may have run at Redis before the write.
    pub fn is_current(&self, since: Instant) -> bool {
        #[cfg(feature = "planted-faults")]
        if planted_faults::is_no_fence() {
            return true;
        }
        *self.0.lease_renewed.borrow() > since
    }

    /// Returns the time since the cache was last known to reflect every write.
    pub(crate) fn lease_age(&self) -> Duration {
        self.0.lease_renewed.borrow().elapsed()
    }

    /// Returns the last events of the connection in words.
    pub(crate) fn recent_events(&self) -> String {
        self.0.events.text()
    }

    /// Returns the user and the database with which the proxy reads.
    pub fn identity(&self) -> CacheIdentity {
        CacheIdentity { user: self.0.user.clone(), database: self.0.settings.url.database }
    }

    /// Opens a stream for one dedicated connection, on which nothing but the login was sent.
    ///
    /// # Errors
    /// [`BackendError::TimedOut`] after `connect_timeout`; [`BackendError::Unreachable`] if Redis
    /// cannot be reached; [`BackendError::AuthRejected`] if it rejects the login;
    /// [`BackendError::Unavailable`] at its client limit.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let opened = timeout(self.0.settings.connect_timeout, self.0.open(client)).await;
        let opened = opened.unwrap_or(Err(BackendError::TimedOut));
        opened.inspect_err(|error| self.0.metrics.record_backend_error(error.kind()))
    }

    /// Applies a change of the cache's settings. `capacity` is the new maximum number of keys.
    pub fn cache_settings_changed(&self, capacity: usize) {
        // The current lease may not last for the new coherence_timeout, so it is renewed at once.
        self.0.signals.renew_lease.notify_one();
        if let ConnectionState::Up(_, Some(tracking)) = *self.0.state.borrow() {
            tracking::warn_if_table_small(tracking, capacity);
        }
    }
}

impl Shared {
    fn record_failure(&self, error: &BackendError) {
        self.metrics.record_backend_error(error.kind());
        spans::record_failure(error.kind(), error.code());
        if error.code() == Some(NO_PERMISSION) {
            self.signals.fetch_forbidden.notify_one();
        }
        tracing::debug!(kind = error.kind(), %error, "fetch failed");
    }

    fn failed(&self, error: BackendError) -> Fetched<BackendError> {
        self.record_failure(&error);
        if error.is_reply() {
            return Fetched::ErrorReply(error);
        }
        self.signals.failed_fetches.fetch_add(1, Relaxed);
        Fetched::Failed(error)
    }

    /// Returns the connection, as [`connection`](Self::connection) does.
    async fn established(&self, deadline: Instant) -> Result<Established, BackendError> {
        match self.current_connection() {
            Some(established) => Ok(established),
            None => Box::pin(self.connection(deadline)).await,
        }
    }

    /// Returns the connection if it is up.
    fn current_connection(&self) -> Option<Established> {
        match &*self.state.borrow() {
            ConnectionState::Up(connection, tracking) => Some((connection.clone(), *tracking)),
            ConnectionState::Connecting | ConnectionState::Down(_) => None,
        }
    }

    /// Returns the connection. If it is down, triggers an attempt to connect and waits for the
    /// result.
    ///
    /// # Errors
    /// [`BackendError::TimedOut`] if the first attempt is not over at the deadline; otherwise the
    /// reason why the connection is down.
    async fn connection(&self, deadline: Instant) -> Result<Established, BackendError> {
        let mut state = self.state.clone();
        let until = match &*state.borrow_and_update() {
            ConnectionState::Up(connection, tracking) => {
                return Ok((connection.clone(), *tracking));
            }
            // A daemon that has just replaced another rejects no reads before its first attempt has
            // ended.
            ConnectionState::Connecting => deadline,
            ConnectionState::Down(_) => deadline.min(Instant::now() + RECONNECT_WAIT),
        };
        self.signals.connect_now.notify_one();
        _ = timeout_at(until, state.changed()).await;
        let state = state.borrow().clone();
        match state {
            ConnectionState::Connecting => Err(BackendError::TimedOut),
            ConnectionState::Up(connection, tracking) => Ok((connection, tracking)),
            ConnectionState::Down(error) => Err(error),
        }
    }

    async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let login = match client {
            ConnectAs::Anonymous => None,
            ConnectAs::ProxyUser => {
                // The password file may be on a disk that hangs.
                let settings = self.settings.clone();
                let login =
                    tokio::task::spawn_blocking(move || credentials::load_login(&settings)).await;
                login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?
            }
            ConnectAs::Other(login) => {
                let login = tokio::task::spawn_blocking(move || login.load()).await;
                let login = login.map_err(|error| unreachable(&error))?;
                Some(login.map_err(|error| unreachable(&error))?)
            }
        };
        // Uses the endpoint of the proxy's own connection while that is up. Otherwise every client
        // would query the sentinels.
        let mut known = self
            .topology
            .last_known()
            .filter(|_| matches!(*self.state.borrow(), ConnectionState::Up(..)));
        loop {
            let endpoint = match known.take() {
                Some(endpoint) => endpoint,
                None => self.topology.resolve().await?,
            };
            let replaced = self.topology.changed(&endpoint);
            tokio::select! {
                opened = self.open_at(&endpoint, login.as_ref()) => {
                    return Ok(self.topology.bind(opened?, endpoint));
                }
                // The client has sent nothing yet, so the next endpoint serves as well.
                () = replaced => {}
            }
        }
    }

    async fn open_at(
        &self,
        endpoint: &Endpoint,
        login: Option<&Login>,
    ) -> Result<Box<dyn Stream>, BackendError> {
        let mut stream = self.dialer.dial(&endpoint.address.addr, 0).await?.stream;
        if let Some(login) = login {
            login.log_in(&mut stream).await?;
        }
        Ok(stream)
    }

    /// Waits for a lease that starts after `since`, and once more if the connection is lost.
    async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        let _slot = QueueSlot::acquire(&self.fences_queued, self.settings.max_queue)
            .ok_or(BackendError::Overloaded)?;
        let deadline = Instant::now() + self.settings.response_timeout;
        match self.await_lease(since, deadline).await {
            // A new connection is as good as a reply: its cache starts empty (invariant C2).
            Err(BackendError::Disconnected) => self.await_lease(since, deadline).await,
            fence => fence,
        }
    }

    async fn await_lease(
        &self,
        since: Instant,
        deadline: Instant,
    ) -> Result<FenceResult, BackendError> {
        if let (_, None) = self.connection(deadline).await? {
            return Ok(FenceResult::NoTracking);
        }
        let mut link = self.state.clone();
        let lost = link.wait_for(|state| !matches!(state, ConnectionState::Up(_, Some(_))));
        tokio::select! {
            biased;
            () = self.later_lease(since) => Ok(FenceResult::Current),
            _ = lost => Err(BackendError::Disconnected),
            () = sleep_until(deadline) => Err(BackendError::TimedOut),
        }
    }

    /// Requests a PING, and waits for a lease that starts after `since`.
    async fn later_lease(&self, since: Instant) {
        let mut lease_renewed = self.lease_renewed.clone();
        self.signals.renew_lease.notify_one();
        loop {
            let renewed = *lease_renewed.borrow_and_update();
            if renewed > since {
                return;
            }
            // The requested PING itself may have this time, so another one is needed.
            if renewed == since {
                self.signals.renew_lease.notify_one();
            }
            if lease_renewed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A connection, with its tracking if Redis has granted it.
type Established = (Multiplexed, Option<Tracking>);

/// A place in a queue of limited length. Dropping it frees the place.
struct QueueSlot<'a>(&'a AtomicUsize);

impl<'a> QueueSlot<'a> {
    fn acquire(queued: &'a AtomicUsize, max: usize) -> Option<Self> {
        let slot = Self(queued);
        // Dropping the slot undoes the addition.
        (queued.fetch_add(1, Relaxed) < max).then_some(slot)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
