//! The sentinels, which report the address of the primary.
//!
//! Model: each sentinel has its own connection. It is polled every `ping_interval`, and at once
//! when a connection attempt needs the primary. A sentinel also publishes failovers
//! (`+switch-master`), after which all are polled. The last report of each is kept. Among them, the
//! one with the highest `config-epoch` wins. A sentinel with an overdue reply is not waited for.
//!
//! The rules that must not be broken:
//! - A failover that was reported is never forgotten (invariant T1). Otherwise a sentinel that was
//!   cut off from the others would lead back to a demoted primary. An older report is accepted only
//!   if every sentinel repeats it, because then the deployment was set up again.
//! - No connection is made from an earlier report (invariant T2): at least one sentinel has to
//!   report the primary during the attempt.
//!
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::address::{Address, ConnectionAddr};
use super::credentials::{Login, load_sentinel_login};
use super::dial::{Dialer, PrepareError};
use super::endpoint::Endpoint;
use super::error::{BackendError, SENTINEL_LOGIN, unreachable};
use super::hello::{BoxDriver, drive_until, send_hello};
use super::multiplexed::Multiplexed;
use super::settings::Settings;
use super::tracking::TrackingError;
use super::value::{field, text};
use crate::metrics::Node;

/// The channel on which a sentinel publishes failovers: the name, and the old and the new address.
const CHANNEL: &str = "+switch-master";
/// The longest wait for the other sentinels after one has replied. One of them may know a later
/// failover.
const GATHER_TIMEOUT: Duration = Duration::from_millis(250);
/// The minimum delay between two attempts to connect to a sentinel.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// The address of the primary, as reported by one sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MasterReport {
    /// The config epoch: the number of the failover that made it the primary.
    config_epoch: u64,
    host: String,
    port: u16,
}

/// The last result of polling a sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SentinelState {
    /// The first poll has not finished.
    Connecting,
    /// The sentinel's report, and the time at which the poll began.
    Primary(MasterReport, Instant),
    /// The sentinel knows no such primary. Holds the time at which the poll began.
    Unknown(Instant),
    /// The sentinel cannot be polled.
    Unreachable(BackendError),
}

impl SentinelState {
    fn report(&self) -> Option<&MasterReport> {
        match self {
            Self::Primary(report, _) => Some(report),
            _ => None,
        }
    }

    /// Returns whether the sentinel has reported a primary in a poll that began after `since`.
    fn is_reported_since(&self, since: Instant) -> bool {
        matches!(self, Self::Primary(_, asked) if *asked >= since)
    }

    /// Returns whether there is no poll to wait for: one has finished that began after `since`, or
    /// the sentinel is unreachable.
    fn is_known_since(&self, since: Instant) -> bool {
        match self {
            Self::Connecting => false,
            Self::Primary(_, asked) | Self::Unknown(asked) => *asked >= since,
            Self::Unreachable(_) => true,
        }
    }
}

/// The results of polling all sentinels, in the order of the seeds.
struct Reports {
    states: Vec<SentinelState>,
    /// Whether the running poll of a sentinel has had no reply for [`GATHER_TIMEOUT`].
    overdue: Vec<bool>,
}

impl Reports {
    fn new(sentinels: usize) -> Self {
        Self { states: vec![SentinelState::Connecting; sentinels], overdue: vec![false; sentinels] }
    }

    /// Returns whether there is no poll to wait for.
    fn are_known_since(&self, since: Instant) -> bool {
        self.states.iter().all(|state| state.is_known_since(since))
    }

    /// Returns whether every sentinel is known or overdue. A sentinel that hangs would otherwise
    /// delay each connection attempt.
    fn are_gathered_since(&self, since: Instant) -> bool {
        let mut each = self.states.iter().zip(&self.overdue);
        each.all(|(state, is_overdue)| *is_overdue || state.is_known_since(since))
    }

    /// Returns whether a sentinel has reported a primary in a poll that began after `since`.
    fn is_any_since(&self, since: Instant) -> bool {
        self.states.iter().any(|state| state.is_reported_since(since))
    }

    /// Returns whether a sentinel has reported a later failover than `known` since `since`. It
    /// decides alone, because the highest epoch wins (invariant T1).
    fn is_failover_since(&self, since: Instant, known: Option<u64>) -> bool {
        let is_later = |state: &SentinelState| {
            state.report().map(|report| report.config_epoch) > known && known.is_some()
        };
        self.states.iter().any(|state| state.is_reported_since(since) && is_later(state))
    }
}

/// All sentinels of the configuration.
pub(super) struct Sentinels {
    settings: Settings,
    dialer: Arc<Dialer>,
    reports: watch::Sender<Reports>,
    /// The primary that results from the reports.
    primary: watch::Sender<Option<Endpoint>>,
    /// Signals that a connection attempt needs the primary now.
    poll_now: Arc<watch::Sender<()>>,
}

impl Sentinels {
    pub(super) fn prepare(settings: &Settings, dialer: Arc<Dialer>) -> Result<Self, PrepareError> {
        load_sentinel_login(settings)?;
        Ok(Self {
            settings: settings.clone(),
            dialer,
            reports: watch::Sender::new(Reports::new(settings.seeds.0.len())),
            primary: watch::Sender::new(None),
            poll_now: Arc::new(watch::Sender::new(())),
        })
    }

    /// Watches all sentinels. Never returns.
    pub(super) async fn run(&self) {
        join_all(
            self.settings
                .seeds
                .0
                .iter()
                .enumerate()
                .map(|(number, seed)| self.watch_sentinel(number, seed)),
        )
        .await;
    }

    /// Returns the primary, as reported by at least one sentinel in a poll that begins after this
    /// call.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if no sentinel replies, none of them knows the primary, or
    /// they have not agreed on one.
    pub(super) async fn resolve(&self) -> Result<Endpoint, BackendError> {
        let mut reports = self.reports.subscribe();
        let since = Instant::now();
        let known = self.primary().map(|endpoint| endpoint.epoch);
        self.poll_now.send_replace(());
        let is_gathered = |reports: &Reports| {
            reports.are_gathered_since(since) || reports.is_failover_since(since, known)
        };
        _ = timeout(GATHER_TIMEOUT, reports.wait_for(is_gathered)).await;
        let is_decided =
            |reports: &Reports| reports.are_known_since(since) || reports.is_any_since(since);
        let reports = reports.wait_for(is_decided).await.map_err(|error| unreachable(&error))?;
        if reports.is_any_since(since) {
            let primary = self.primary();
            return primary
                .ok_or_else(|| unreachable(&"the sentinels have not agreed on a primary"));
        }
        Err(self.unavailable_reason(&reports.states))
    }

    /// Returns a receiver of changes of the primary.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Endpoint>> {
        self.primary.subscribe()
    }

    /// Returns the primary that was reported last.
    pub(super) fn primary(&self) -> Option<Endpoint> {
        self.primary.borrow().clone()
    }

    pub(super) fn record_span_target(&self) {
        if let Some(endpoint) = &*self.primary.borrow() {
            endpoint.address.record_span_target();
        }
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        let reports = self.reports.borrow();
        let answers = |states: &SentinelState| {
            matches!(states, SentinelState::Primary(..) | SentinelState::Unknown(_))
        };
        let node = |(seed, states): (&ConnectionAddr, &SentinelState)| Node {
            name: seed.node(),
            role: "sentinel",
            up: answers(states),
        };
        self.settings.seeds.0.iter().zip(&reports.states).map(node).collect()
    }

    fn unavailable_reason(&self, states: &[SentinelState]) -> BackendError {
        let silent = states.iter().find_map(|state| match state {
            SentinelState::Unreachable(error) => Some(error),
            _ => None,
        });
        match silent {
            Some(error)
                if !states.iter().any(|state| matches!(state, SentinelState::Unknown(_))) =>
            {
                unreachable(&format_args!("no sentinel answers: {error}"))
            }
            _ => {
                let name = &self.settings.sentinel_master;
                unreachable(&format_args!(
                    "the sentinels know no primary called {name:?} (redis.sentinel_master)"
                ))
            }
        }
    }

    /// Watches one sentinel, and connects again whenever its connection ends.
    async fn watch_sentinel(&self, number: usize, seed: &ConnectionAddr) {
        let mut delay = RECONNECT_DELAY_MIN;
        let mut poll_now = self.poll_now.subscribe();
        for attempt in 0_usize.. {
            let Err(error) = self.connect_and_poll(number, seed, attempt).await;
            if matches!(self.reports.borrow().states[number], SentinelState::Unreachable(_)) {
                delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
            } else {
                delay = RECONNECT_DELAY_MIN;
                tracing::warn!(sentinel = %seed, reason = %error, "a sentinel does not reply; \
                    trying again until it does");
            }
            self.record(number, SentinelState::Unreachable(error));
            let soonest = Instant::now() + RECONNECT_DELAY_MIN;
            poll_now.mark_unchanged();
            tokio::select! {
                () = sleep(delay) => {}
                _ = poll_now.changed() => sleep_until(soonest).await,
            }
        }
    }

    /// Connects to one sentinel and polls it as long as it replies.
    async fn connect_and_poll(
        &self,
        number: usize,
        seed: &ConnectionAddr,
        attempt: usize,
    ) -> Result<Infallible, BackendError> {
        let connecting = timeout(self.settings.connect_timeout, self.connect(seed, attempt));
        let (connection, driver) = connecting.await.unwrap_or(Err(BackendError::TimedOut))?;
        tokio::select! {
            biased;
            ended = self.poll(number, connection) => ended,
            ended = driver => Err(ended),
        }
    }

    async fn connect(
        &self,
        seed: &ConnectionAddr,
        attempt: usize,
    ) -> Result<(Multiplexed, BoxDriver), BackendError> {
        let login = self.read_login().await?;
        let stream = self.dialer.dial(seed, attempt).await?.stream;
        let (poll_now, name) =
            (Arc::clone(&self.poll_now), format!("{} ", self.settings.sentinel_master));
        let on_push = move |push| {
            if is_switch_master(&push, &name) {
                poll_now.send_replace(());
            }
        };
        let (connection, driver) = Multiplexed::new(stream, None, 0, Box::new(on_push));
        let mut driver = Box::pin(driver) as BoxDriver;
        drive_until(&mut driver, send_hello(&connection, login.as_ref(), SENTINEL_LOGIN))
            .await
            .map_err(|error| match error {
                TrackingError::NoReply(error) => error,
                TrackingError::Refused(reason) => {
                    unreachable(&format_args!("a sentinel of Redis 6 or newer is needed: {reason}"))
                }
            })?;
        Ok((connection, driver))
    }

    /// Reads the login to the sentinels.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the password file cannot be read.
    async fn read_login(&self) -> Result<Option<Login>, BackendError> {
        let login = if self.settings.sentinel_password_file.as_os_str().is_empty() {
            load_sentinel_login(&self.settings)
        } else {
            let settings = self.settings.clone();
            // The disk that holds the file may hang, so it is read on a blocking thread.
            let read = tokio::task::spawn_blocking(move || load_sentinel_login(&settings)).await;
            read.map_err(|error| unreachable(&error))?
        };
        login.map_err(|error| unreachable(&error))
    }

    /// Polls one sentinel repeatedly.
    async fn poll(
        &self,
        number: usize,
        connection: Multiplexed,
    ) -> Result<Infallible, BackendError> {
        let mut poll_now = self.poll_now.subscribe();
        let timeout_after = self.settings.connect_timeout;
        expect_no_error(
            &timeout(timeout_after, subscribe(&connection))
                .await
                .unwrap_or(Err(BackendError::TimedOut))?,
        )?;
        loop {
            // A request that arrives after this line needs another poll.
            poll_now.mark_unchanged();
            let asked = Instant::now();
            let report = timeout(timeout_after, self.query_or_note_delay(number, &connection))
                .await
                .unwrap_or(Err(BackendError::TimedOut))?;
            self.record(
                number,
                report.map_or(SentinelState::Unknown(asked), |report| {
                    SentinelState::Primary(report, asked)
                }),
            );
            tokio::select! {
                () = sleep(self.settings.ping_interval) => {}
                _ = poll_now.changed() => {}
            }
        }
    }

    /// Queries the primary of one sentinel, and marks the sentinel as overdue while its reply is
    /// late.
    async fn query_or_note_delay(
        &self,
        number: usize,
        connection: &Multiplexed,
    ) -> Result<Option<MasterReport>, BackendError> {
        let mut query = pin!(self.query_master(connection));
        tokio::select! {
            report = &mut query => report,
            () = sleep(GATHER_TIMEOUT) => {
                self.reports.send_modify(|reports| reports.overdue[number] = true);
                query.await
            }
        }
    }

    /// Queries the primary of one sentinel; `None` if the sentinel does not know it. The epoch is
    /// queried before and after the address, until both are equal, so that epoch and address belong
    /// together.
    async fn query_master(
        &self,
        connection: &Multiplexed,
    ) -> Result<Option<MasterReport>, BackendError> {
        let mut before = self.config_epoch(connection).await?;
        loop {
            let address = connection.send(&self.command("GET-MASTER-ADDR-BY-NAME")).await?;
            expect_no_error(&address)?;
            let epoch = self.config_epoch(connection).await?;
            if epoch != before {
                before = epoch;
                continue;
            }
            let Value::Array(parts) = &address else { return Ok(None) };
            let parts: Vec<_> = parts.iter().filter_map(text).collect();
            let [host, port] = parts[..] else {
                return Err(unreachable(&"a sentinel replied with an invalid address"));
            };
            let port = port.parse().map_err(|error| unreachable(&error))?;
            return Ok(Some(MasterReport { config_epoch: epoch, host: host.to_owned(), port }));
        }
    }

    /// Queries the config epoch: the number of the last failover, or zero if there was none.
    async fn config_epoch(&self, connection: &Multiplexed) -> Result<u64, BackendError> {
        let master = connection.send(&self.command("MASTER")).await?;
        let epoch =
            field(&master, "config-epoch").and_then(text).and_then(|epoch| epoch.parse().ok());
        Ok(epoch.unwrap_or_default())
    }

    fn command(&self, subcommand: &str) -> Cmd {
        let mut command = redis::cmd("SENTINEL");
        command.arg(subcommand).arg(&self.settings.sentinel_master);
        command
    }

    /// Stores the state of one sentinel and updates the primary.
    fn record(&self, number: usize, now: SentinelState) {
        self.reports.send_modify(|reports| {
            (reports.states[number], reports.overdue[number]) = (now, false);
            // In the same step: a resolution that sees the report must not see the previous
            // primary.
            self.update_primary(&reports.states);
        });
    }

    fn update_primary(&self, states: &[SentinelState]) {
        self.primary.send_if_modified(|primary| {
            let Some(report) = latest(states, primary.as_ref().map(|endpoint| endpoint.epoch))
            else {
                return false;
            };
            let endpoint = self.endpoint_of(report);
            if primary.as_ref() == Some(&endpoint)
                || conflicts(states, primary.as_ref(), report.config_epoch)
            {
                return false;
            }
            let before = primary
                .as_ref()
                .map_or_else(|| "nobody".to_owned(), |endpoint| endpoint.address.addr.node());
            let after = endpoint.address.addr.node();
            tracing::info!(
                before,
                after,
                failover = report.config_epoch,
                "the sentinels name a primary"
            );
            *primary = Some(endpoint);
            true
        });
    }

    fn endpoint_of(&self, report: &MasterReport) -> Endpoint {
        let url = &self.settings.url;
        let addr =
            ConnectionAddr::Tcp { host: report.host.clone(), port: report.port, tls: url.is_tls() };
        Endpoint { address: Address { addr, ..url.clone() }, epoch: report.config_epoch }
    }
}

/// Subscribes to failovers. Redis confirms the subscription by a push, so the reply is that of a
/// `HELLO` sent behind it, which every user may send. If the subscription fails, the reply is its
/// error.
async fn subscribe(connection: &Multiplexed) -> Result<Value, BackendError> {
    connection.send_for_one(&[redis::cmd("SUBSCRIBE").arg(CHANNEL), &redis::cmd("HELLO")]).await
}

/// Returns the report that counts: the one with the highest config epoch. If it is older than
/// `known`, it counts only if all sentinels agree on it (invariant T1).
fn latest(states: &[SentinelState], known: Option<u64>) -> Option<&MasterReport> {
    let latest =
        states.iter().filter_map(SentinelState::report).max_by_key(|report| report.config_epoch)?;
    let is_older = known.is_some_and(|known| latest.config_epoch < known);
    let all_say_so = || states.iter().all(|state| state.report() == Some(latest));
    (!is_older || all_say_so()).then_some(latest)
}

/// Returns whether some sentinel still reports the known primary with this epoch. In that case,
/// another sentinel was polled while its own state changed.
fn conflicts(states: &[SentinelState], known: Option<&Endpoint>, epoch: u64) -> bool {
    let says_known = |report: &MasterReport, endpoint: &Endpoint| {
        report.config_epoch == epoch
            && matches!(&endpoint.address.addr, ConnectionAddr::Tcp { host, port, .. } if (host, port) == (&report.host, &report.port))
    };
    known.is_some_and(|endpoint| {
        endpoint.epoch == epoch
            && states
                .iter()
                .filter_map(SentinelState::report)
                .any(|report| says_known(report, endpoint))
    })
}

/// Returns whether a push announces a failover of the primary. `name` is the primary's name and a
/// space.
fn is_switch_master(push: &PushInfo, name: &str) -> bool {
    let told = push.data.get(1).and_then(text);
    push.kind == PushKind::Message && told.is_some_and(|told| told.starts_with(name))
}

fn expect_no_error(answer: &Value) -> Result<(), BackendError> {
    match answer {
        Value::ServerError(error) => {
            let (code, details) = (error.code(), error.details().unwrap_or_default());
            Err(unreachable(&format_args!("a sentinel answered: {code} {details}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(epoch: u64, port: u16) -> SentinelState {
        SentinelState::Primary(
            MasterReport { config_epoch: epoch, host: "host".to_owned(), port },
            Instant::now(),
        )
    }

    fn silent() -> SentinelState {
        SentinelState::Unreachable(BackendError::TimedOut)
    }

    fn endpoint(epoch: u64, port: u16) -> Endpoint {
        let address = format!("redis://host:{port}").parse().unwrap();
        Endpoint { address, epoch }
    }

    fn elected(states: &[SentinelState], known: Option<u64>) -> Option<(u64, u16)> {
        latest(states, known).map(|report| (report.config_epoch, report.port))
    }

    #[test]
    fn highest_config_epoch_wins() {
        assert_eq!(elected(&[says(1, 10), says(2, 20), says(1, 10)], None), Some((2, 20)));
        assert_eq!(elected(&[says(1, 10), silent(), says(2, 20)], Some(1)), Some((2, 20)));
        assert_eq!(
            elected(
                &[SentinelState::Connecting, silent(), SentinelState::Unknown(Instant::now())],
                None
            ),
            None
        );
    }

    #[test]
    fn older_epoch_needs_unanimous_sentinels() {
        assert_eq!(elected(&[says(1, 10), silent(), silent()], Some(2)), None);
        assert_eq!(elected(&[says(1, 10), says(1, 10), silent()], Some(2)), None);
        assert_eq!(elected(&[says(1, 10), says(1, 11)], Some(2)), None);
        assert_eq!(
            elected(&[says(1, 10), says(1, 10)], Some(2)),
            Some((1, 10)),
            "all sentinels are new"
        );
    }

    #[test]
    fn sentinel_mid_update_does_not_contradict() {
        let known = endpoint(1, 10);
        assert!(conflicts(&[says(1, 20), says(1, 10)], Some(&known), 1));
        assert!(!conflicts(&[says(2, 20), says(1, 10)], Some(&known), 2));
        assert!(!conflicts(&[says(1, 20), says(1, 20)], Some(&known), 1));
        assert!(!conflicts(&[says(1, 20)], None, 1));
    }

    #[test]
    fn overdue_sentinel_is_not_waited_for() {
        let before = Instant::now();
        let mut reports =
            Reports { states: vec![says(1, 10), says(1, 10)], overdue: vec![false; 2] };
        assert!(reports.are_gathered_since(before));
        let since = Instant::now() + Duration::from_secs(1);
        reports.overdue[0] = true;
        assert!(!reports.are_gathered_since(since), "the other may reply");
        reports.overdue[1] = true;
        assert!(reports.are_gathered_since(since));
        assert!(!reports.are_known_since(since), "one of them has to reply");
    }

    #[test]
    fn later_failover_decides_without_the_others() {
        let since = Instant::now();
        let reports = |epoch| Reports {
            states: vec![SentinelState::Connecting, says(epoch, 20)],
            overdue: vec![false; 2],
        };
        assert!(reports(2).is_failover_since(since, Some(1)));
        assert!(!reports(1).is_failover_since(since, Some(1)));
        assert!(!reports(2).is_failover_since(since, None), "any may know a later one");
        let later = Instant::now() + Duration::from_secs(1);
        assert!(!reports(2).is_failover_since(later, Some(1)), "a poll from before");
    }

    #[test]
    fn switch_of_another_primary_is_ignored() {
        let push = |text: &str| {
            let data = ["+switch-master", text].map(|part| Value::BulkString(part.into())).to_vec();
            PushInfo { kind: PushKind::Message, data }
        };
        assert!(is_switch_master(&push("main 127.0.0.1 1 127.0.0.1 2"), "main "));
        assert!(!is_switch_master(&push("main2 127.0.0.1 1 127.0.0.1 2"), "main "));
        assert!(!is_switch_master(
            &PushInfo { kind: PushKind::Subscribe, ..push("main 1") },
            "main "
        ));
    }
}
