//! The Redis behind: asks it for a value, and says in one word what went wrong when it cannot.
//!
//! The value and the key's time to live belong together: they are asked for in one transaction, or where Redis tells of
//! changes one after the other. Every wait here has an end: `response_timeout` bounds a fetch from its first step to its
//! last, whatever Redis does.

mod address;
mod connector;
mod credentials;
mod dial;
mod endpoint;
mod error;
mod expiry_check;
mod fetch_command;
mod hello;
mod liveness;
mod multiplexed;
mod node_client;
mod probe;
mod read_after_reset;
mod reply_decoder;
mod seeds;
mod sentinel;
mod settings;
mod signals;
mod supervisor;
mod topology;
mod tracking;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::address::Address;
use self::dial::Dialer;
pub use self::dial::PrepareError;
pub use self::endpoint::EpochStream;
use self::error::unreachable;
pub use self::error::{BackendError, Redirect};
use self::fetch_command::FetchCommand;
pub(crate) use self::fetch_command::Reply;
use self::multiplexed::Multiplexed;
pub(crate) use self::node_client::NodeClient;
pub use self::seeds::Seeds;
pub use self::settings::{Mode, Settings};
use self::signals::SupervisorSignals;
use self::supervisor::ConnectionState;
pub use self::supervisor::ConnectionSupervisor;
use self::topology::Topology;
use self::tracking::Tracking;
// For the fuzz targets.
#[doc(hidden)]
pub use self::reply_decoder::ReplyDecoder;
#[doc(hidden)]
pub use self::tracking::{Invalidated, parse_push};
use crate::cache::{Cache, Fetched};
use crate::key::Key;
use crate::metrics::{Metrics, Node};
use crate::telemetry::spans;

/// A handle to the Redis behind; clones share its link and its limits.
#[derive(Clone)]
pub struct Backend(Arc<Shared>);

/// What a fetch does only when something is amiss is boxed, since each of them is moved about and kept with room for all that
/// it might do.
struct Shared {
    settings: Settings,
    dialer: Arc<Dialer>,
    topology: Arc<Topology>,
    /// As whom the proxy reads; none: it does not log in.
    user: Option<String>,
    state: watch::Receiver<ConnectionState>,
    /// Since when memory is proved to hold no change that was acknowledged before and not heeded.
    lease_renewed: watch::Receiver<Instant>,
    signals: Arc<SupervisorSignals>,
    fetch_permits: Semaphore,
    fetches_queued: AtomicUsize,
    /// Reads that wait for a proof.
    fences_queued: AtomicUsize,
    /// The largest value that is given out, in bytes.
    max_value: usize,
    metrics: Arc<Metrics>,
}

/// Whether a node of a cluster is told that another has sent us, which makes it answer for a slot that is on its way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    No,
    Yes,
}

/// As whom, and from which database, values in memory were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheIdentity {
    /// The user; none: the proxy does not log in.
    pub user: Option<String>,
    /// The database.
    pub database: u32,
}

/// As whom a link of a client's own begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectAs {
    /// As nobody: the client logs in by itself, or Redis asks for no login.
    Anonymous,
    /// As the user that the proxy is.
    ProxyUser,
}

/// How far memory can be relied on after waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceResult {
    /// It is no older than the wait began.
    Current,
    /// Redis does not tell of changes, so nothing is known.
    NoTracking,
}

/// How long a reader waits for a link that is being made: enough for a Redis that has just come back, and short
/// enough to be a quick answer when it has not.
const RECONNECT_WAIT: Duration = Duration::from_millis(100);

impl Backend {
    /// A backend that gives values of at most `max_value` bytes, and the link it asks through, which somebody has to
    /// [run](ConnectionSupervisor::run). What Redis says was changed is dropped from `cache`.
    ///
    /// # Errors
    /// A certificate, key or password file that cannot be used.
    pub fn prepare(
        settings: Settings,
        max_value: usize,
        cache: Cache<BackendError>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, ConnectionSupervisor), PrepareError> {
        let signals = Arc::new(SupervisorSignals::default());
        let dialer = Arc::new(Dialer::new(&settings)?);
        let user = Self::user(&settings)?;
        let topology = Arc::new(Topology::prepare(&settings, &dialer)?);
        let link = ConnectionSupervisor::prepare(
            &settings,
            Arc::clone(&dialer),
            Arc::clone(&topology),
            cache,
            Arc::clone(&signals),
            Arc::clone(&metrics),
        );
        let (link, state, lease_renewed) = link;
        let shared = Shared {
            dialer,
            topology,
            user,
            fetch_permits: Semaphore::new(settings.max_fetches),
            state,
            lease_renewed,
            signals,
            fetches_queued: AtomicUsize::new(0),
            fences_queued: AtomicUsize::new(0),
            max_value,
            metrics,
            settings,
        };
        Ok((Self(Arc::new(shared)), link))
    }

    /// Looks whether a backend could be prepared, and as whom it would read.
    ///
    /// # Errors
    /// A certificate, key or password file that cannot be used.
    pub(crate) fn check(settings: &Settings) -> Result<Option<String>, PrepareError> {
        Dialer::new(settings)?;
        Self::user(settings)
    }

    /// As whom the proxy reads; none: it does not log in.
    ///
    /// # Errors
    /// The file of the password cannot be read.
    fn user(settings: &Settings) -> Result<Option<String>, PrepareError> {
        Ok(credentials::load_login(settings)?.map(|login| login.user().to_owned()))
    }

    /// Asks Redis for `key`: its value and its time to live, as one.
    pub async fn fetch(self, key: Key) -> Fetched<BackendError> {
        let reply =
            self.read(&key, Asking::No, Instant::now() + self.0.settings.response_timeout).await;
        self.to_fetched(reply)
    }

    /// The same, but says where a node of a cluster sends whoever asks.
    pub(crate) async fn read(
        &self,
        key: &Key,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Reply, BackendError> {
        self.0.topology.record_span_target();
        self.0.fetch(key, asking, deadline).await
    }

    /// What came of it.
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

    /// Redis is not to be asked here any more: the streams that were opened for clients end.
    pub(crate) fn retire(&self) {
        self.0.topology.retire();
    }

    /// Whether there is a link now, or why not.
    ///
    /// # Errors
    /// Why there is none.
    pub fn state(&self) -> Result<(), BackendError> {
        match &*self.0.state.borrow() {
            ConnectionState::Connecting => {
                Err(BackendError::Unreachable("not connected yet".into()))
            }
            ConnectionState::Up(..) => Ok(()),
            ConnectionState::Down(error) => Err(error.clone()),
        }
    }

    /// Who there is to be asked, and who of them answers.
    pub fn nodes(&self) -> Vec<Node> {
        self.0.topology.nodes(matches!(*self.0.state.borrow(), ConnectionState::Up(..)))
    }

    /// Returns once everything has been heeded that Redis told of writes that it had acknowledged before `since`, so that
    /// what is in memory then is no older than that. One question serves all who wait.
    ///
    /// # Errors
    /// Redis cannot be asked, or does not answer in time.
    pub async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        let fence = self.0.fence(since).await;
        fence.inspect_err(|error| self.0.metrics.record_backend_error(error.kind()))
    }

    /// Whether a fence for `since` would have nothing to wait for.
    pub fn is_current(&self, since: Instant) -> bool {
        *self.0.lease_renewed.borrow() >= since
    }

    /// As whom the proxy reads, if it logs in, and from which database.
    pub fn identity(&self) -> CacheIdentity {
        CacheIdentity { user: self.0.user.clone(), database: self.0.settings.url.database }
    }

    /// A stream to Redis for one client alone, that nothing has been said on but a login.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses the proxy's login.
    pub async fn open(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let opened = timeout(self.0.settings.connect_timeout, self.0.open(client)).await;
        let opened = opened.unwrap_or(Err(BackendError::TimedOut));
        opened.inspect_err(|error| self.0.metrics.record_backend_error(error.kind()))
    }

    /// The cache's settings were changed; it may now keep so many keys.
    pub fn cache_settings_changed(&self, capacity: usize) {
        // For as long as the new coherence_timeout, which the proofs of before may not hold.
        self.0.signals.renew_lease.notify_one();
        if let ConnectionState::Up(_, Some(tracking)) = *self.0.state.borrow() {
            tracking::warn_if_table_small(tracking, capacity);
        }
    }
}

impl Shared {
    fn failed(&self, error: BackendError) -> Fetched<BackendError> {
        self.metrics.record_backend_error(error.kind());
        spans::record_failure(error.kind(), error.code());
        tracing::debug!(kind = error.kind(), %error, "fetch failed");
        if error.is_reply() { Fetched::ErrorReply(error) } else { Fetched::Failed(error) }
    }

    async fn fetch(
        &self,
        key: &Key,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Reply, BackendError> {
        let _turn = self.acquire_permit(deadline).await?;
        match self.fetch_once(key, asking, deadline).await {
            // A read may be asked again, and a link lost under a request is most often a Redis that is coming back.
            Err(BackendError::Disconnected) => {
                Box::pin(async {
                    self.wait_until_down(deadline).await;
                    self.fetch_once(key, asking, deadline).await
                })
                .await
            }
            answer => answer,
        }
    }

    /// Returns once it is known of a link that is over. Who asked over it may hear of that first.
    async fn wait_until_down(&self, deadline: Instant) {
        let mut link = self.state.clone();
        let is_closed = matches!(&*link.borrow_and_update(), ConnectionState::Up(connection, _) if connection.is_closed());
        if is_closed {
            _ = timeout_at(deadline.min(Instant::now() + RECONNECT_WAIT), link.changed()).await;
        }
    }

    /// Waits for a place among those who ask at the same time.
    async fn acquire_permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, BackendError> {
        if let Ok(turn) = self.fetch_permits.try_acquire() {
            return Ok(turn);
        }
        let slot = QueueSlot::acquire(&self.fetches_queued, self.settings.max_queue)
            .ok_or(BackendError::Overloaded)?;
        let turn = Box::pin(timeout_at(deadline, self.fetch_permits.acquire())).await;
        drop(slot);
        turn.ok().and_then(Result::ok).ok_or(BackendError::TimedOut)
    }

    async fn fetch_once(
        &self,
        key: &Key,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Reply, BackendError> {
        let (link, tracking) = match self.current_connection() {
            Some(linked) => linked,
            None => Box::pin(self.connection(deadline)).await?,
        };
        if asking == Asking::Yes {
            return self.execute(FetchCommand::Asking, &link, key, deadline).await;
        }
        if tracking.is_some() {
            return self.execute(FetchCommand::GetPttlTracked, &link, key, deadline).await;
        }
        match self.execute(FetchCommand::Transaction, &link, key, deadline).await {
            // Short of memory, Redis queues nothing, though it reads.
            Err(BackendError::ErrorReply(code)) if &*code == "OOM" => {
                Box::pin(self.execute(FetchCommand::GetPttl, &link, key, deadline)).await
            }
            answer => answer,
        }
    }

    async fn execute(
        &self,
        command: FetchCommand,
        link: &Multiplexed,
        key: &Key,
        deadline: Instant,
    ) -> Result<Reply, BackendError> {
        let (asked, answered) = (Instant::now(), link.reply_count());
        if asked >= deadline {
            return Err(BackendError::TimedOut);
        }
        let replies = match command {
            FetchCommand::GetPttlTracked => link.fetch_value(Some(deadline), key).await,
            _ => {
                link.send_batch(Some(deadline), |commands| command.write(key.as_bytes(), commands))
                    .await
            }
        };
        if replies == Err(BackendError::TimedOut) {
            // Redis answers in order. If it answered nothing since, what it owes stands in the way of all who ask next:
            // a value that takes too long, or answers that make no sense any more. A fetch that had waited for its turn
            // so long that there was little time left for Redis proves nothing.
            let waited = asked.elapsed() >= self.settings.response_timeout / 2;
            if waited && link.reply_count() == answered {
                self.signals.stalled.notify_one();
            }
        }
        let replies = replies?;
        self.metrics.record_fetch(asked.elapsed());
        if let Ok(reply) = command.parse(replies) {
            return reply;
        }
        // Answers and questions do not match any more, so whose would the next answer be?
        let mut state = self.state.clone();
        state.mark_unchanged();
        self.signals.desynced.notify_one();
        _ = Box::pin(timeout_at(deadline.min(Instant::now() + RECONNECT_WAIT), state.changed()))
            .await;
        Err(BackendError::Disconnected)
    }

    /// The link, if there is one.
    fn current_connection(&self) -> Option<Established> {
        match &*self.state.borrow() {
            ConnectionState::Up(connection, tracking) => Some((connection.clone(), *tracking)),
            ConnectionState::Connecting | ConnectionState::Down(_) => None,
        }
    }

    /// The link, or why there is none. Where there is none, the next attempt to connect decides, which this brings on.
    async fn connection(&self, deadline: Instant) -> Result<Established, BackendError> {
        let mut link = self.state.clone();
        let until = match &*link.borrow_and_update() {
            ConnectionState::Up(connection, tracking) => {
                return Ok((connection.clone(), *tracking));
            }
            // A daemon that has just taken the place of another turns nobody away before it has tried.
            ConnectionState::Connecting => deadline,
            ConnectionState::Down(_) => deadline.min(Instant::now() + RECONNECT_WAIT),
        };
        self.signals.connect_now.notify_one();
        _ = timeout_at(until, link.changed()).await;
        let state = link.borrow().clone();
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
                // The file of the password may be on a disk that hangs.
                let settings = self.settings.clone();
                let login =
                    tokio::task::spawn_blocking(move || credentials::load_login(&settings)).await;
                login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?
            }
        };
        // Where the proxy itself reads, if it does; else it would have to be asked for each client.
        let known = self
            .topology
            .last_known()
            .filter(|_| matches!(*self.state.borrow(), ConnectionState::Up(..)));
        let endpoint = match known {
            Some(endpoint) => endpoint,
            None => self.topology.resolve().await?,
        };
        let mut stream = self.dialer.dial(&endpoint.address.addr, 0).await?;
        if let Some(login) = login {
            login.log_in(&mut stream).await?;
        }
        Ok(self.topology.bind(stream, endpoint))
    }

    /// Returns once everything has been heeded that Redis told of writes acknowledged before `since`.
    async fn fence(&self, since: Instant) -> Result<FenceResult, BackendError> {
        let _slot = QueueSlot::acquire(&self.fences_queued, self.settings.max_queue)
            .ok_or(BackendError::Overloaded)?;
        let deadline = Instant::now() + self.settings.response_timeout;
        match self.await_lease(since, deadline).await {
            // A new link proves as much as an answer: there is nothing in memory then.
            Err(BackendError::Disconnected) => self.await_lease(since, deadline).await,
            fence => fence,
        }
    }

    async fn await_lease(
        &self,
        since: Instant,
        deadline: Instant,
    ) -> Result<FenceResult, BackendError> {
        let mut lease_renewed = self.lease_renewed.clone();
        if let (_, None) = self.connection(deadline).await? {
            return Ok(FenceResult::NoTracking);
        }
        self.signals.renew_lease.notify_one();
        let mut link = self.state.clone();
        let lost = link.wait_for(|state| !matches!(state, ConnectionState::Up(_, Some(_))));
        tokio::select! {
            biased;
            _ = lease_renewed.wait_for(|asked| *asked >= since) => Ok(FenceResult::Current),
            _ = lost => Err(BackendError::Disconnected),
            () = sleep_until(deadline) => Err(BackendError::TimedOut),
        }
    }
}

/// A link, and whether Redis tells of changes over it.
type Established = (Multiplexed, Option<Tracking>);

/// A place in a queue of limited length, free again when dropped.
struct QueueSlot<'a>(&'a AtomicUsize);

impl<'a> QueueSlot<'a> {
    fn acquire(queued: &'a AtomicUsize, max: usize) -> Option<Self> {
        let slot = Self(queued);
        // Dropping the place takes back the addition.
        (queued.fetch_add(1, Relaxed) < max).then_some(slot)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
