//! The supervisor of one connection to Redis: it connects, watches the connection, and connects
//! again.
//!
//! A connection is [`ConnectionState::Up`] only after its handshake, and down from the moment its
//! stream ends or a PING is not answered. Requests get a connection only while it is up.
//!
//! Knowledge from a lost connection is void, because invalidations may have been missed (invariant
//! C2). So the connection is first withdrawn from requests and no longer read, and then tracking is
//! suspended. The cache starts empty before requests get the next connection. A connection that
//! reconnects by itself would hide its loss, and lose the tracking with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::field;

use super::connector::{Connected, Connector, PRIMARY_CHANGED, TrackingGranted};
use super::dial::Dialer;
use super::error::{BackendError, auth_rejected, unreachable};
use super::events::Events;
use super::hello::drive_until;
use super::liveness::{Liveness, renewal_interval};
use super::multiplexed::{Multiplexed, UNEXPECTED_REPLY};
use super::outage::Outage;
#[cfg(feature = "planted-faults")]
use super::planted_faults::PlantedFaults;
use super::probe::{Probe, ProbeEnd, ProbeTiming};
use super::rights::{self, KeyCheck, Rights, Rules};
use super::server_commands::CommandNames;
use super::settings::Settings;
use super::signals::SupervisorSignals;
use super::topology::Topology;
use super::tracking::{self, InvalidationHandler, Tracking, TrackingError};
use crate::cache::{Cache, CoherenceMode};
use crate::metrics::{Invalidation, Metrics};
use crate::net::IoProgress;

/// The state of the connection to Redis.
#[derive(Clone)]
pub(super) enum ConnectionState {
    /// The first attempt to connect has not finished.
    Connecting,
    /// Ready for requests. Holds the tracking, if Redis pushes invalidations over it.
    Up(Multiplexed, Option<Tracking>),
    /// Not connected, for this reason.
    Down(BackendError),
}

/// The receivers of what a supervisor publishes.
pub(super) struct Published {
    pub(super) state: watch::Receiver<ConnectionState>,
    /// The time of the last lease renewal.
    pub(super) lease_renewed: watch::Receiver<Instant>,
    /// Whether Redis may be out of service: there is no connection, or a check is overdue.
    pub(super) suspected: watch::Receiver<bool>,
    pub(super) events: Arc<Events>,
}

/// The minimum delay between two attempts, even if requests wait for a connection.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// The interval at which tracking is requested again after Redis refused it. Its operator may have
/// granted the permission meanwhile.
const TRACKING_RETRY: Duration = Duration::from_secs(5);

/// The event that ends one round of watching a connection.
enum Event {
    Lost(BackendError),
    /// Redis pushes invalidations over the connection from now on.
    TrackingGranted(TrackingGranted),
}

/// The task that connects, watches the connection, and connects again.
pub struct ConnectionSupervisor {
    settings: Settings,
    mode: CoherenceMode,
    cache: Cache<BackendError>,
    probe: Arc<Probe>,
    rights: Rights,
    connector: Connector,
    /// The commands that the server is asked about.
    names: CommandNames,
    state: watch::Sender<ConnectionState>,
    lease_renewed: watch::Sender<Instant>,
    suspected: watch::Sender<bool>,
    signals: Arc<SupervisorSignals>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    /// The current outage. `None` while there is a connection, and before the first attempt.
    outage: Option<Outage>,
    /// Whether it has been logged that Redis does not track.
    untracked_reported: bool,
    /// Whether an earlier connection had tracking.
    has_tracked: bool,
}

impl ConnectionSupervisor {
    pub(super) fn prepare(
        settings: &Settings,
        names: CommandNames,
        dialer: Arc<Dialer>,
        topology: Arc<Topology>,
        cache: Cache<BackendError>,
        signals: Arc<SupervisorSignals>,
        metrics: Arc<Metrics>,
    ) -> (Self, Published) {
        let connector = Connector::new(settings, dialer, topology);
        let mode = cache.settings().coherence;
        if mode != CoherenceMode::Ttl {
            cache.suspend_tracking();
        }
        let state = watch::Sender::new(ConnectionState::Connecting);
        let lease_renewed = watch::Sender::new(Instant::now());
        let suspected = watch::Sender::new(true);
        let events = Arc::new(Events::new());
        let published = Published {
            state: state.subscribe(),
            lease_renewed: lease_renewed.subscribe(),
            suspected: suspected.subscribe(),
            events: Arc::clone(&events),
        };
        let supervisor = Self {
            settings: settings.clone(),
            mode,
            cache,
            probe: Arc::new(Probe::new()),
            rights: Rights::default(),
            connector,
            names,
            state,
            lease_renewed,
            suspected,
            signals,
            events,
            metrics,
            outage: None,
            untracked_reported: false,
            has_tracked: false,
        };
        (supervisor, published)
    }

    /// Keeps a connection up. Never returns.
    pub async fn run(self) {
        tokio::join!(self.connector.run_topology(), self.keep_connected());
    }

    async fn keep_connected(mut self) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            let attempt = Instant::now();
            let connected = timeout(self.settings.connect_timeout, self.connect()).await;
            let error = match connected.unwrap_or_else(|_| Err(self.connector.timeout_error())) {
                Err(error) => {
                    self.connector.record_failure();
                    error
                }
                Ok(connected) => {
                    delay = RECONNECT_DELAY_MIN;
                    self.on_connected(&connected, attempt);
                    self.supervise(connected).await
                }
            };
            if is_primary_changed(&error) {
                // The failures of the previous address say nothing about the next one.
                delay = RECONNECT_DELAY_MIN;
            }
            self.on_disconnected(&error);
            self.pause(delay, attempt, &error).await;
            delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
        }
    }

    /// Waits before the next attempt: for `delay`, or until a request needs the connection, or
    /// until the endpoint is replaced. A request does not shorten the wait after a rejected login,
    /// because an earlier attempt would be rejected as well.
    async fn pause(&self, delay: Duration, attempt: Instant, error: &BackendError) {
        let until = Instant::now() + delay.mul_f64(rand::random_range(0.5..=1.0));
        // Requests that signalled during the attempt have received its failure. A leftover signal
        // would shorten this wait without need.
        clear_signal(&self.signals.connect_now).await;
        let is_rejected = matches!(error, BackendError::AuthRejected(_));
        // Once replaced, an endpoint stays so. It would shorten every wait until the next is known.
        let is_current = self.connector.verify_endpoint().is_ok();
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.signals.connect_now.notified(), if !is_rejected => {
                sleep_until(attempt + RECONNECT_DELAY_MIN).await;
            }
            () = self.connector.endpoint_changed(), if is_current => {
                sleep_until(attempt + RECONNECT_DELAY_MIN).await;
            }
        }
    }

    /// Prepares the cache, then publishes the connection to requests (invariant C2).
    fn on_connected(&mut self, connected: &Connected, since: Instant) {
        match connected.tracking {
            Some(granted) => self.on_tracking(granted),
            None => self.cache.use_ttl_only(),
        }
        self.metrics.set_backend_up(true);
        self.log_connected(since.elapsed());
        self.publish(connected);
    }

    /// Logs the connection, and the end of the outage before it.
    fn log_connected(&mut self, took: Duration) {
        self.events.add("connected");
        let ended = self.outage.take();
        let outage = ended.as_ref().map(|ended| field::debug(ended.elapsed(Instant::now())));
        let failed_fetches =
            ended.map(|ended| ended.failed_fetches(self.signals.failed_fetches.load(Relaxed)));
        tracing::info!(
            redis = %self.connector.address(), ?took, coherence = self.cache.coherence().name(),
            outage, failed_fetches, "connected to Redis"
        );
    }

    fn publish(&self, connected: &Connected) {
        let tracking = connected.tracking.map(|granted| granted.tracking);
        connected.connection.limit_values(self.cache.in_flight(), self.settings.max_queue);
        self.state.send_replace(ConnectionState::Up(connected.connection.clone(), tracking));
        self.suspected.send_replace(false);
    }

    /// Starts a new lease, after the cache was cleared (invariant C1).
    fn on_tracking(&mut self, granted: TrackingGranted) {
        self.events.add("tracking began");
        self.cache.start_tracking(granted.requested_at);
        // The cache is empty, so all fences that wait are satisfied.
        self.lease_renewed.send_replace(Instant::now());
        if std::mem::replace(&mut self.has_tracked, true) {
            self.metrics.record_tracking_reconnect();
        }
        self.untracked_reported = false;
        tracking::warn_if_table_small(granted.tracking, self.cache.settings().capacity);
    }

    /// Withdraws the connection from requests. It is no longer read, so once the cache has
    /// suspended tracking, nothing that came over it is stored (invariant C2).
    fn retract(&self, error: &BackendError) {
        let before = self.state.send_replace(ConnectionState::Down(error.clone()));
        self.suspected.send_replace(true);
        if let ConnectionState::Up(..) = before {
            self.metrics.set_backend_up(false);
        }
        if let ConnectionState::Up(_, Some(_)) = before {
            self.metrics.record_invalidations(Invalidation::Disconnect, 1);
            self.cache.suspend_tracking();
        }
    }

    fn on_disconnected(&mut self, error: &BackendError) {
        self.events.add("lost");
        self.retract(error);
        if matches!(error, BackendError::AuthRejected(_)) {
            // Redis is reachable and replies, so this is no outage: no entry may be served stale,
            // nor for the rest of its time to live.
            self.cache.invalidate_all();
        }
        self.metrics.record_backend_error(error.kind());
        let (now, reason) = (Instant::now(), error.to_string());
        let failed = self.signals.failed_fetches.load(Relaxed);
        let outage = self.outage.get_or_insert_with(|| Outage::new(now, failed));
        if outage.should_log(&reason, now) {
            tracing::warn!(
                redis = %self.connector.address(), reason, since = ?outage.elapsed(now),
                "no connection to Redis; retrying"
            );
        } else {
            tracing::debug!(redis = %self.connector.address(), reason, "retry failed");
        }
    }

    async fn connect(&mut self) -> Result<Connected, BackendError> {
        self.connector.read_login().await?;
        self.connector.resolve_endpoint().await?;
        let replaced = self.connector.endpoint_changed();
        tokio::select! {
            connected = self.connect_to_endpoint() => connected,
            // Otherwise a previous primary that hangs would hold the attempt for
            // `connect_timeout`.
            () = replaced => Err(unreachable(&PRIMARY_CHANGED)),
        }
    }

    async fn connect_to_endpoint(&mut self) -> Result<Connected, BackendError> {
        let mut connected = self.open().await?;
        let begun = self.rights.begin(&connected.connection, self.connector.login());
        if drive_until(&mut connected.driver, begun).await? == Rules::Changed {
            rights::on_rules_changed(&self.cache, &self.metrics, self.connector.address());
        }
        Ok(connected)
    }

    /// Opens a connection, with tracking if that is configured and granted.
    async fn open(&mut self) -> Result<Connected, BackendError> {
        if self.mode == CoherenceMode::Ttl {
            return self.connector.connect_untracked(&self.names).await;
        }
        let (cache, metrics, probe) =
            (self.cache.clone(), Arc::clone(&self.metrics), Arc::clone(&self.probe));
        let handler = InvalidationHandler {
            cache,
            metrics,
            probe,
            events: Arc::clone(&self.events),
            #[cfg(feature = "planted-faults")]
            faults: PlantedFaults::planted(),
        };
        match self.connector.connect_tracked(handler, &self.names).await {
            Ok(connected) => {
                connected
                    .tracking_refusal
                    .as_ref()
                    .map_or(Ok(()), |reason| self.on_untracked(reason))?;
                self.connector.verify_endpoint()?;
                Ok(connected)
            }
            Err(TrackingError::NoReply(error)) => Err(error),
            Err(TrackingError::Refused(reason)) => {
                self.on_untracked(&reason)?;
                self.connector.connect_untracked(&self.names).await
            }
        }
    }

    /// Decides about a connection without tracking: `Ok` if TTL mode is allowed.
    ///
    /// # Errors
    /// [`BackendError::AuthRejected`] if the configuration requires tracking.
    fn on_untracked(&mut self, reason: &str) -> Result<(), BackendError> {
        if self.mode == CoherenceMode::Tracking {
            return Err(auth_rejected(&format_args!(
                "Redis sends no invalidations (CLIENT TRACKING): {reason}"
            )));
        }
        if !std::mem::replace(&mut self.untracked_reported, true) {
            tracing::warn!(
                redis = %self.connector.address(), reason,
                "Redis sends no invalidations (CLIENT TRACKING); cached values may be as old \
                    as cache.ttl"
            );
        }
        Ok(())
    }

    /// Drives and watches the connection until it is lost, and returns the reason.
    async fn supervise(&mut self, mut connected: Connected) -> BackendError {
        // Signals about the previous connection have been handled; otherwise they would end this
        // one.
        clear_signal(&self.signals.desynced).await;
        clear_signal(&self.signals.stalled).await;
        loop {
            let Connected { connection, driver, progress, tracking, tracking_refusal } =
                &mut connected;
            let driven = async { Event::Lost(driver.await) };
            let watched =
                self.watch_connection(connection, progress, *tracking, tracking_refusal.is_some());
            // The set polls a future only after that future's own waker fired. Otherwise every
            // read, which wakes the driver, would poll the watchers too.
            let both: [Pin<Box<dyn Future<Output = Event> + Send + '_>>; 2] =
                [Box::pin(driven), Box::pin(watched)];
            let granted = match both.into_iter().collect::<FuturesUnordered<_>>().next().await {
                Some(Event::TrackingGranted(granted)) => granted,
                Some(Event::Lost(error)) => return error,
                None => return BackendError::Disconnected,
            };
            (*tracking, *tracking_refusal) = (Some(granted), None);
            self.on_tracking(granted);
            tracing::info!(redis = %self.connector.address(), "Redis sends invalidations now");
            self.publish(&connected);
        }
    }

    /// Returns when the connection is no longer reliable although its stream goes on, or when Redis
    /// grants tracking that `was_refused` before.
    async fn watch_connection(
        &self,
        connection: &Multiplexed,
        progress: &IoProgress,
        tracking: Option<TrackingGranted>,
        was_refused: bool,
    ) -> Event {
        let liveness = Liveness {
            settings: &self.settings,
            connector: &self.connector,
            cache: &self.cache,
            signals: &self.signals,
            lease_renewed: &self.lease_renewed,
            suspected: &self.suspected,
            rights: &self.rights,
            metrics: &self.metrics,
        };
        let key_check = KeyCheck {
            rights: &self.rights,
            cache: &self.cache,
            metrics: &self.metrics,
            signals: &self.signals,
            redis: self.connector.address(),
            interval: renewal_interval(&self.settings, &self.cache),
        };
        Event::Lost(tokio::select! {
            () = self.connector.endpoint_changed() => unreachable(&PRIMARY_CHANGED),
            error = self.connector.watch_role(connection) => error,
            () = liveness.watch(connection, progress, tracking) => BackendError::TimedOut,
            never = key_check.run(connection) => match never {},
            () = self.signals.stalled.notified() => BackendError::TimedOut,
            () = self.signals.desynced.notified() => unreachable(&UNEXPECTED_REPLY),
            () = self.run_probe(connection), if self.probe_enabled(tracking) => {
                unreachable(&"Redis sent no invalidation for a write that it had acknowledged")
            }
            granted = retry_tracking(connection, &self.names), if was_refused => return Event::TrackingGranted(granted),
        })
    }

    fn probe_enabled(&self, tracking: Option<TrackingGranted>) -> bool {
        tracking.is_some() && !self.settings.probe_interval.is_zero()
    }

    /// Runs the probe on the connection. Returns when an invalidation is missing.
    async fn run_probe(&self, connection: &Multiplexed) {
        let timing = ProbeTiming {
            interval: self.settings.probe_interval,
            timeout: self.settings.response_timeout,
        };
        loop {
            let connected =
                timeout(self.settings.connect_timeout, self.connector.connect_untracked(&[])).await;
            if let Ok(Ok(Connected { connection: writer, driver, .. })) = connected {
                let ended = tokio::select! {
                    ended = self.probe.run(connection, &writer, timing, &self.metrics) => ended,
                    _ = driver => ProbeEnd::Disconnected,
                };
                match ended {
                    ProbeEnd::NotInvalidated => return,
                    ProbeEnd::ErrorReply(reason) if self.probe.is_first_report() => {
                        tracing::warn!(reason, "Redis refuses the probe (redis.probe_interval)");
                    }
                    ProbeEnd::ErrorReply(_) | ProbeEnd::Disconnected => {}
                }
            }
            sleep(self.settings.probe_interval).await;
        }
    }
}

impl Drop for ConnectionSupervisor {
    /// Withdraws the connection, so that requests fail instead of using a connection without a
    /// supervisor.
    fn drop(&mut self) {
        if matches!(*self.state.borrow(), ConnectionState::Up(..)) {
            self.retract(&unreachable(&"the supervisor has ended"));
        }
    }
}

/// Whether the connection or the attempt ended because its endpoint was replaced.
fn is_primary_changed(error: &BackendError) -> bool {
    matches!(error, BackendError::Unreachable(reason) if &**reason == PRIMARY_CHANGED)
}

/// Requests tracking every [`TRACKING_RETRY`] until Redis grants it.
async fn retry_tracking(connection: &Multiplexed, names: &[String]) -> TrackingGranted {
    loop {
        sleep(TRACKING_RETRY).await;
        let requested_at = Instant::now();
        if let Ok(tracking) = tracking::enable(connection, names).await {
            return TrackingGranted { tracking, requested_at };
        }
    }
}

/// Clears a signal that has not been received yet.
async fn clear_signal(call: &Notify) {
    tokio::select! {
        biased;
        () = call.notified() => {}
        () = std::future::ready(()) => {}
    }
}
