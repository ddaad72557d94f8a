//! The sentinels: who is the primary.
//!
//! Model: each sentinel is listened to over a connection of its own, is asked every `ping_interval` and whenever somebody
//! needs to know, and tells by itself of a failover (`+switch-master`), upon which all are asked. What each said last is
//! kept, and of all that was said the latest failover counts, by the number that the sentinels give it (`config-epoch`).
//!
//! The rules that must not be broken: a failover that was heard of is never forgotten, so a sentinel that was cut off from
//! the others leads nobody back to a primary that was demoted; only if every one of them says something older is it
//! believed, since then they were set up anew. And no link is made because of what was known before: at least one sentinel
//! has to say then where the primary is.
//!
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::address::{Address, ConnectionAddr};
use super::credentials::load_sentinel_login;
use super::dial::{Dialer, PrepareError};
use super::endpoint::Endpoint;
use super::error::{BackendError, unreachable};
use super::hello::{BoxDriver, drive_until, send_hello};
use super::multiplexed::{Multiplexed, handshake_command};
use super::settings::Settings;
use super::tracking::{TrackingError, field, text};
use crate::metrics::Node;

/// On it a sentinel tells of failovers: the name, and where the primary was and is.
const CHANNEL: &str = "+switch-master";
/// For so long those who have been asked are waited for when another has answered: one of them may know of a failover.
const GATHER_TIMEOUT: Duration = Duration::from_millis(250);
/// A sentinel is not tried again sooner than this.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// Where the primary is, in the words of one sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MasterReport {
    /// Which failover made it the primary.
    config_epoch: u64,
    host: String,
    port: u16,
}

/// What a sentinel said last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SentinelState {
    /// It is being asked for the first time.
    Connecting,
    /// This, when it was asked then.
    Primary(MasterReport, Instant),
    /// That it knows no such primary, when it was asked then.
    Unknown(Instant),
    /// Nothing: it cannot be asked.
    Unreachable(BackendError),
}

impl SentinelState {
    fn report(&self) -> Option<&MasterReport> {
        match self {
            Self::Primary(report, _) => Some(report),
            _ => None,
        }
    }

    /// Whether it says where the primary is, having been asked after `since`.
    fn is_reported_since(&self, since: Instant) -> bool {
        matches!(self, Self::Primary(_, asked) if *asked >= since)
    }

    /// Whether there is nothing to wait for.
    fn is_known_since(&self, since: Instant) -> bool {
        match self {
            Self::Connecting => false,
            Self::Primary(_, asked) | Self::Unknown(asked) => *asked >= since,
            Self::Unreachable(_) => true,
        }
    }
}

/// All sentinels there are.
pub(super) struct Sentinels {
    settings: Settings,
    dialer: Arc<Dialer>,
    /// In the order of the seeds.
    states: watch::Sender<Vec<SentinelState>>,
    /// What it comes to.
    primary: watch::Sender<Option<Endpoint>>,
    /// Somebody needs to know where the primary is now.
    poll_now: Arc<watch::Sender<()>>,
}

impl Sentinels {
    pub(super) fn prepare(settings: &Settings, dialer: Arc<Dialer>) -> Result<Self, PrepareError> {
        load_sentinel_login(settings)?;
        let states = vec![SentinelState::Connecting; settings.seeds.0.len()];
        Ok(Self {
            settings: settings.clone(),
            dialer,
            states: watch::Sender::new(states),
            primary: watch::Sender::new(None),
            poll_now: Arc::new(watch::Sender::new(())),
        })
    }

    /// Listens to all of them for as long as the daemon lives.
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

    /// Where the primary is, said by at least one of them from now on.
    pub(super) async fn resolve(&self) -> Result<Endpoint, BackendError> {
        let mut states = self.states.subscribe();
        let since = Instant::now();
        self.poll_now.send_replace(());
        let all_known =
            |all: &Vec<SentinelState>| all.iter().all(|state| state.is_known_since(since));
        _ = timeout(GATHER_TIMEOUT, states.wait_for(all_known)).await;
        let is_decided = |all: &Vec<SentinelState>| {
            all_known(all) || all.iter().any(|state| state.is_reported_since(since))
        };
        let states = states.wait_for(is_decided).await.map_err(|error| unreachable(&error))?;
        if states.iter().any(|state| state.is_reported_since(since)) {
            let primary = self.primary();
            return primary
                .ok_or_else(|| unreachable(&"the sentinels have not agreed on a primary"));
        }
        Err(self.unavailable_reason(&states))
    }

    /// The primary that is heard of, from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Endpoint>> {
        self.primary.subscribe()
    }

    /// The primary that was heard of last.
    pub(super) fn primary(&self) -> Option<Endpoint> {
        self.primary.borrow().clone()
    }

    pub(super) fn record_span_target(&self) {
        if let Some(endpoint) = &*self.primary.borrow() {
            endpoint.address.record_span_target();
        }
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        let states = self.states.borrow();
        let answers = |states: &SentinelState| {
            matches!(states, SentinelState::Primary(..) | SentinelState::Unknown(_))
        };
        let node = |(seed, states): (&ConnectionAddr, &SentinelState)| Node {
            name: seed.node(),
            role: "sentinel",
            up: answers(states),
        };
        self.settings.seeds.0.iter().zip(states.iter()).map(node).collect()
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

    /// Listens to one of them, and begins again whenever that ends.
    async fn watch_sentinel(&self, number: usize, seed: &ConnectionAddr) {
        let mut delay = RECONNECT_DELAY_MIN;
        let mut poll_now = self.poll_now.subscribe();
        for attempt in 0_usize.. {
            let Err(error) = self.connect_and_poll(number, seed, attempt).await;
            if matches!(self.states.borrow()[number], SentinelState::Unreachable(_)) {
                delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
            } else {
                delay = RECONNECT_DELAY_MIN;
                tracing::warn!(sentinel = %seed, reason = %error, "a sentinel does not answer; trying again until it does");
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

    /// Listens to one of them for as long as it answers.
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
        let settings = self.settings.clone();
        // The file of the password may be on a disk that hangs.
        let login = tokio::task::spawn_blocking(move || load_sentinel_login(&settings)).await;
        let login =
            login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        let stream = self.dialer.dial(seed, attempt).await?;
        let (poll_now, name) =
            (Arc::clone(&self.poll_now), format!("{} ", self.settings.sentinel_master));
        let on_push = move |push| {
            if is_switch_master(&push, &name) {
                poll_now.send_replace(());
            }
        };
        let (connection, driver) = Multiplexed::new(stream, 0, Box::new(on_push));
        let mut driver = Box::pin(driver) as BoxDriver;
        drive_until(&mut driver, send_hello(&connection, login.as_ref())).await.map_err(
            |error| match error {
                TrackingError::NoReply(error) => error,
                TrackingError::Refused(reason) => {
                    unreachable(&format_args!("a sentinel of Redis 6 or newer is needed: {reason}"))
                }
            },
        )?;
        Ok((connection, driver))
    }

    /// Asks one of them again and again.
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
            // What is wanted from here on needs another question.
            poll_now.mark_unchanged();
            let asked = Instant::now();
            let report = timeout(timeout_after, self.query_master(&connection))
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

    /// The failover is asked for before the address and after it, and again until it is the same, so that the two belong
    /// together.
    async fn query_master(
        &self,
        connection: &Multiplexed,
    ) -> Result<Option<MasterReport>, BackendError> {
        let mut before = self.config_epoch(connection).await?;
        loop {
            let address =
                handshake_command(connection, &self.command("GET-MASTER-ADDR-BY-NAME")).await?;
            expect_no_error(&address)?;
            let epoch = self.config_epoch(connection).await?;
            if epoch != before {
                before = epoch;
                continue;
            }
            let Value::Array(parts) = &address else { return Ok(None) };
            let parts: Vec<_> = parts.iter().filter_map(text).collect();
            let [host, port] = parts[..] else {
                return Err(unreachable(&"a sentinel gave an address that is none"));
            };
            let port = port.parse().map_err(|error| unreachable(&error))?;
            return Ok(Some(MasterReport { config_epoch: epoch, host: host.to_owned(), port }));
        }
    }

    /// The number of the last failover; none yet: zero.
    async fn config_epoch(&self, connection: &Multiplexed) -> Result<u64, BackendError> {
        let master = handshake_command(connection, &self.command("MASTER")).await?;
        let epoch =
            field(&master, "config-epoch").and_then(text).and_then(|epoch| epoch.parse().ok());
        Ok(epoch.unwrap_or_default())
    }

    fn command(&self, subcommand: &str) -> Cmd {
        let mut command = redis::cmd("SENTINEL");
        command.arg(subcommand).arg(&self.settings.sentinel_master);
        command
    }

    /// Notes what one of them says, and what that changes.
    fn record(&self, number: usize, now: SentinelState) {
        self.states.send_modify(|states| states[number] = now);
        let states = self.states.borrow();
        self.primary.send_if_modified(|primary| {
            let Some(report) = latest(&states, primary.as_ref().map(|endpoint| endpoint.epoch))
            else {
                return false;
            };
            let endpoint = self.endpoint_of(report);
            if primary.as_ref() == Some(&endpoint)
                || conflicts(&states, primary.as_ref(), report.config_epoch)
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

/// Has it told when there was a failover. It says that it will unasked, so the answer is that to a HELLO behind it, which
/// everybody may say, or why it will not.
async fn subscribe(connection: &Multiplexed) -> Result<Value, BackendError> {
    connection.send_for_one(&[redis::cmd("SUBSCRIBE").arg(CHANNEL), &redis::cmd("HELLO")]).await
}

/// The word that counts: of the latest failover, and no older than `known` unless all say so.
fn latest(states: &[SentinelState], known: Option<u64>) -> Option<&MasterReport> {
    let latest =
        states.iter().filter_map(SentinelState::report).max_by_key(|report| report.config_epoch)?;
    let is_older = known.is_some_and(|known| latest.config_epoch < known);
    let all_say_so = || states.iter().all(|state| state.report() == Some(latest));
    (!is_older || all_say_so()).then_some(latest)
}

/// Whether somebody still says what is known, of the same failover: then one of them was asked while it changed its mind.
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

/// Whether this tells of a failover of the primary whose name, and a space, `name` is.
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
            "they were set up anew"
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
