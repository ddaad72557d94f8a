//! One link to Redis: connecting, keeping watch, and connecting again.
//!
//! A link is [`ConnectionState::Up`] only once its handshake is complete, and down from the moment its stream ends or a
//! PING goes unanswered; nobody is ever given a link that is neither. What was learnt over a link is worth nothing once
//! it is lost, since changes may have gone untold: the cache is told after nobody can get the link any more and nothing
//! is read from it, and it starts anew before anybody can get the next. A connection that mends itself would hide that it
//! was lost, and lose the tracking with it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connector::{Connected, Connector, PRIMARY_CHANGED, TrackingGranted};
use super::dial::Dialer;
use super::error::{BackendError, auth_rejected, unreachable};
use super::liveness::Liveness;
use super::multiplexed::{Multiplexed, UNEXPECTED_REPLY};
use super::probe::{Probe, ProbeEnd, ProbeTiming};
use super::settings::Settings;
use super::signals::SupervisorSignals;
use super::topology::Topology;
use super::tracking::{self, InvalidationHandler, Tracking, TrackingError};
use crate::cache::{Cache, Coherence, CoherenceMode};
use crate::metrics::{Invalidation, Metrics};
use crate::net::IoProgress;

/// What links to Redis there are now.
#[derive(Clone)]
pub(super) enum ConnectionState {
    /// Nothing has come of the first attempt to connect yet.
    Connecting,
    /// Ready for requests, and if Redis tells of changes, how.
    Up(Multiplexed, Option<Tracking>),
    /// Not connected, for this reason.
    Down(BackendError),
}

/// A link is not tried again sooner than this, however urgently it is needed.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// Where Redis refused to track, it is asked again so often: its operator may have allowed it meanwhile.
const TRACKING_RETRY: Duration = Duration::from_secs(5);

/// What can become of a link.
enum Event {
    Lost(BackendError),
    /// Redis tells of changes over it from now on.
    TrackingGranted(TrackingGranted),
}

/// The one who connects, and connects again.
pub struct ConnectionSupervisor {
    settings: Settings,
    mode: CoherenceMode,
    cache: Cache<BackendError>,
    probe: Arc<Probe>,
    connector: Connector,
    state: watch::Sender<ConnectionState>,
    lease_renewed: watch::Sender<Instant>,
    signals: Arc<SupervisorSignals>,
    metrics: Arc<Metrics>,
    /// Whether the present outage has been reported: it is one line, not one an attempt.
    reported: bool,
    /// Whether it has been reported that Redis does not track.
    untracked_reported: bool,
    /// Whether there has been a link with tracking before.
    has_tracked: bool,
}

impl ConnectionSupervisor {
    pub(super) fn prepare(
        settings: &Settings,
        dialer: Arc<Dialer>,
        topology: Arc<Topology>,
        cache: Cache<BackendError>,
        signals: Arc<SupervisorSignals>,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<ConnectionState>, watch::Receiver<Instant>) {
        let connector = Connector::new(settings, dialer, topology);
        let mode = cache.settings().coherence;
        if mode != CoherenceMode::Ttl {
            cache.suspend_tracking();
        }
        let (state, states) = watch::channel(ConnectionState::Connecting);
        let (lease_renewed, lease_renewals) = watch::channel(Instant::now());
        (
            Self {
                settings: settings.clone(),
                mode,
                cache,
                probe: Arc::new(Probe::new()),
                connector,
                state,
                lease_renewed,
                signals,
                metrics,
                reported: false,
                untracked_reported: false,
                has_tracked: false,
            },
            states,
            lease_renewals,
        )
    }

    /// Keeps a link for as long as the daemon lives.
    pub async fn run(self) {
        tokio::join!(self.connector.run_topology(), self.keep_connected());
    }

    async fn keep_connected(mut self) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            let attempt = Instant::now();
            let connected = timeout(self.settings.connect_timeout, self.connect()).await;
            let error = match connected.unwrap_or(Err(BackendError::TimedOut)) {
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
            self.on_disconnected(&error);
            self.pause(delay, attempt, &error).await;
            delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
        }
    }

    /// Waits before the next attempt: `delay`, or until a reader needs the link, unless trying sooner would only knock
    /// at a door that is shut on purpose.
    async fn pause(&self, delay: Duration, attempt: Instant, error: &BackendError) {
        let until = Instant::now() + delay.mul_f64(rand::random_range(0.5..=1.0));
        // Who needed a link during the attempt has been answered by its failure.
        clear_signal(&self.signals.connect_now).await;
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.signals.connect_now.notified(), if !matches!(error, BackendError::AuthRejected(_)) => {
                sleep_until(attempt + RECONNECT_DELAY_MIN).await;
            }
        }
    }

    /// Gives the link out, once the cache has begun anew.
    fn on_connected(&mut self, connected: &Connected, since: Instant) {
        match connected.tracking {
            Some(granted) => self.on_tracking(granted),
            None => self.cache.use_ttl_only(),
        }
        self.metrics.set_backend_up(true);
        self.reported = false;
        let (took, coherence) = (since.elapsed(), self.cache.coherence().name());
        tracing::info!(redis = %self.connector.address(), took = ?took, coherence, "connected to Redis");
        self.publish(connected);
    }

    fn publish(&self, connected: &Connected) {
        let tracking = connected.tracking.map(|granted| granted.tracking);
        self.state.send_replace(ConnectionState::Up(connected.connection.clone(), tracking));
    }

    /// From now on Redis tells of changes.
    fn on_tracking(&mut self, granted: TrackingGranted) {
        self.cache.start_tracking(granted.requested_at);
        // Memory is empty, so there is nothing old in it.
        self.lease_renewed.send_replace(Instant::now());
        if std::mem::replace(&mut self.has_tracked, true) {
            self.metrics.record_tracking_reconnect();
        }
        self.untracked_reported = false;
        tracking::warn_if_table_small(granted.tracking, self.cache.settings().capacity);
    }

    /// Takes the link back. Nothing is read from it any more, so once the cache is told, nothing that came over it will
    /// be kept.
    fn retract(&self, error: &BackendError) {
        let before = self.state.send_replace(ConnectionState::Down(error.clone()));
        if let ConnectionState::Up(..) = before {
            self.metrics.set_backend_up(false);
        }
        if let ConnectionState::Up(_, Some(_)) = before {
            self.metrics.record_invalidations(Invalidation::Disconnect, 1);
            self.cache.suspend_tracking();
        }
    }

    fn on_disconnected(&mut self, error: &BackendError) {
        self.retract(error);
        if matches!(error, BackendError::AuthRejected(_))
            && self.cache.coherence() == Coherence::None
        {
            // Redis is there and answers, so nothing may stand in for it.
            self.cache.invalidate_all();
        }
        if self.reported {
            tracing::debug!(redis = %self.connector.address(), reason = %error, "still no link to Redis");
            return;
        }
        self.reported = true;
        self.metrics.record_backend_error(error.kind());
        tracing::warn!(redis = %self.connector.address(), reason = %error, "no link to Redis; trying again until there is");
    }

    async fn connect(&mut self) -> Result<Connected, BackendError> {
        self.connector.read_login().await?;
        self.connector.resolve_endpoint().await?;
        if self.mode == CoherenceMode::Ttl {
            return self.connector.connect_untracked().await;
        }
        let (cache, metrics, probe) =
            (self.cache.clone(), Arc::clone(&self.metrics), Arc::clone(&self.probe));
        match self.connector.connect_tracked(InvalidationHandler { cache, metrics, probe }).await {
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
                self.connector.connect_untracked().await
            }
        }
    }

    /// What follows when Redis does not track: another way where there may be one, else no link.
    fn on_untracked(&mut self, reason: &str) -> Result<(), BackendError> {
        if self.mode == CoherenceMode::Tracking {
            return Err(auth_rejected(&format_args!(
                "Redis does not tell of changes (CLIENT TRACKING): {reason}"
            )));
        }
        if !std::mem::replace(&mut self.untracked_reported, true) {
            tracing::warn!(
                redis = %self.connector.address(), reason,
                "Redis does not tell of changes (CLIENT TRACKING); cached values may be as old as cache.ttl"
            );
        }
        Ok(())
    }

    /// Drives the link until it is lost; returns how that was.
    async fn supervise(&mut self, mut connected: Connected) -> BackendError {
        // What was said of the link before this one has been heeded.
        clear_signal(&self.signals.desynced).await;
        clear_signal(&self.signals.stalled).await;
        loop {
            let Connected { connection, driver, progress, tracking, tracking_refusal } =
                &mut connected;
            let driven = async { Event::Lost(driver.await) };
            let watched =
                self.watch_connection(connection, progress, *tracking, tracking_refusal.is_some());
            // Each is looked at only when there is something new for it: the driver is woken by every read.
            let both: [Pin<Box<dyn Future<Output = Event> + Send + '_>>; 2] =
                [Box::pin(driven), Box::pin(watched)];
            let granted = match both.into_iter().collect::<FuturesUnordered<_>>().next().await {
                Some(Event::TrackingGranted(granted)) => granted,
                Some(Event::Lost(error)) => return error,
                None => return BackendError::Disconnected,
            };
            (*tracking, *tracking_refusal) = (Some(granted), None);
            self.on_tracking(granted);
            tracing::info!(redis = %self.connector.address(), "Redis tells of changes now");
            self.publish(&connected);
        }
    }

    /// Returns when a link cannot be relied on any more, though its stream goes on, or when Redis grants the tracking that
    /// it `was_refused`.
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
        };
        Event::Lost(tokio::select! {
            () = self.connector.endpoint_changed() => unreachable(&PRIMARY_CHANGED),
            error = self.connector.watch_role(connection) => error,
            () = liveness.watch(connection, progress, tracking) => BackendError::TimedOut,
            () = self.signals.stalled.notified() => BackendError::TimedOut,
            () = self.signals.desynced.notified() => unreachable(&UNEXPECTED_REPLY),
            () = self.run_probe(connection), if self.probe_enabled(tracking) => {
                unreachable(&"Redis did not tell of a change that it had acknowledged")
            }
            granted = retry_tracking(connection), if was_refused => return Event::TrackingGranted(granted),
        })
    }

    fn probe_enabled(&self, tracking: Option<TrackingGranted>) -> bool {
        tracking.is_some() && !self.settings.probe_interval.is_zero()
    }

    /// Probes the link for as long as it tells; returns when it does not.
    async fn run_probe(&self, link: &Multiplexed) {
        let timing = ProbeTiming {
            interval: self.settings.probe_interval,
            timeout: self.settings.response_timeout,
        };
        loop {
            let connected =
                timeout(self.settings.connect_timeout, self.connector.connect_untracked()).await;
            if let Ok(Ok(Connected { connection: writer, driver, .. })) = connected {
                let ended = tokio::select! {
                    ended = self.probe.run(link, &writer, timing, &self.metrics) => ended,
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
    /// Whoever is still there to ask is told that nobody keeps it up.
    fn drop(&mut self) {
        if matches!(*self.state.borrow(), ConnectionState::Up(..)) {
            self.retract(&unreachable(&"the link is kept up no longer"));
        }
    }
}

/// Asks for tracking now and then, until Redis grants it.
async fn retry_tracking(connection: &Multiplexed) -> TrackingGranted {
    loop {
        sleep(TRACKING_RETRY).await;
        let requested_at = Instant::now();
        if let Ok(tracking) = tracking::enable(connection).await {
            return TrackingGranted { tracking, requested_at };
        }
    }
}

/// Takes back a call that nobody has heard yet.
async fn clear_signal(call: &Notify) {
    tokio::select! {
        biased;
        () = call.notified() => {}
        () = std::future::ready(()) => {}
    }
}
