//! One link to Redis: connecting, logging in, keeping watch, and connecting again.
//!
//! A link is [`LinkState::Up`] only once its handshake is complete, and down from the moment its stream ends or a
//! PING goes unanswered; nobody is ever given a link that is neither. What was learnt over a link is worth nothing once
//! it is lost, since changes may have gone untold: the cache is told after nobody can get the link any more and nothing
//! is read from it, and it starts anew before anybody can get the next. The redis crate's `MultiplexedConnection`
//! carries the requests; connecting and watching are done here, because its `ConnectionManager` hides when a link
//! was lost, and loses the tracking with it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, ServerError, Value,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::Endpoint;
use super::probe::{Ended, Probe};
use super::tracking::{self, Listener, Tracking, Untracked};
use super::{BackendError, Calls, LinkState, Reply, Settings, Unexpected};
use crate::activity::{Activity, Observed};
use crate::cache::{Cache, CoherenceMode};
use crate::metrics::{Invalidation, Metrics};
use crate::units::Secret;

/// The name the link has in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";
/// Whom a password without a user is for.
const DEFAULT_USER: &str = "default";
/// A link is not tried again sooner than this, however urgently it is needed.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// Where Redis refused to track, it is asked again so often: its operator may have allowed it meanwhile.
const TRACKING_RETRY: Duration = Duration::from_secs(5);
/// The file in systemd's credential directory that holds the password.
const CREDENTIAL: &str = "redis-password";

/// A file that `[redis]` names and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("redis.{key}: \"{}\" cannot be used: {problem}", path.display())]
pub struct PrepareError {
    key: &'static str,
    path: PathBuf,
    problem: String,
}

impl PrepareError {
    fn new(key: &'static str, path: &Path, problem: &dyn fmt::Display) -> Self {
        Self { key, path: path.to_owned(), problem: problem.to_string() }
    }
}

/// The one who connects, and connects again.
pub struct Link {
    settings: Settings,
    mode: CoherenceMode,
    cache: Cache<BackendError>,
    probe: Arc<Probe>,
    tls: Option<TlsConnector>,
    state: watch::Sender<LinkState>,
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    /// Whether the present outage has been reported: it is one line, not one an attempt.
    reported: bool,
    /// Whether it has been reported that Redis does not track.
    reported_untracked: bool,
    /// Whether there has been a link with tracking before.
    has_tracked: bool,
    /// Attempts that failed: each that follows begins with another address of the host.
    attempts: usize,
    /// The password, on its way from a disk that may hang: one read at a time.
    reading: Option<JoinHandle<Result<Secret, PrepareError>>>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What reads and writes the stream, for as long as there is a link.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Connected {
    connection: MultiplexedConnection,
    driver: Driver,
    activity: Arc<Activity>,
    login: Option<Login>,
    tracking: Option<Granted>,
    /// Redis refused to track, and might grant it when asked again.
    may_track: bool,
}

/// The tracking Redis does for a link, and when it was asked to.
type Granted = (Tracking, Instant);

/// The user and password to log in with.
struct Login {
    username: String,
    password: Secret,
}

impl Link {
    pub(super) fn prepare(
        settings: &Settings,
        cache: Cache<BackendError>,
        calls: Arc<Calls>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, watch::Receiver<LinkState>), PrepareError> {
        let mode = cache.settings().coherence;
        if mode != CoherenceMode::Ttl {
            cache.forsake();
        }
        let tls = if settings.url.is_tls() { Some(tls_connector(settings)?) } else { None };
        password(settings)?;
        let starting = LinkState::Down(BackendError::Unreachable("not connected yet".into()));
        let (state, receiver) = watch::channel(starting);
        Ok((
            Self {
                settings: settings.clone(),
                mode,
                cache,
                probe: Arc::new(Probe::new()),
                tls,
                state,
                calls,
                metrics,
                reported: false,
                reported_untracked: false,
                has_tracked: false,
                attempts: 0,
                reading: None,
            },
            receiver,
        ))
    }

    /// Keeps a link for as long as the daemon lives.
    pub async fn run(mut self) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            let attempt = Instant::now();
            let connected = timeout(self.settings.connect_timeout, self.connect()).await;
            let error = match connected.unwrap_or(Err(BackendError::TimedOut)) {
                Err(error) => {
                    self.attempts = self.attempts.wrapping_add(1);
                    error
                }
                Ok(connected) => {
                    delay = RECONNECT_DELAY_MIN;
                    self.up(&connected, attempt);
                    self.watch_over(connected).await
                }
            };
            self.down(&error);
            self.pause(delay, attempt, &error).await;
            delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
        }
    }

    /// Waits before the next attempt: `delay`, or until a reader needs the link, unless trying sooner would only knock
    /// at a door that is shut on purpose.
    async fn pause(&self, delay: Duration, attempt: Instant, error: &BackendError) {
        let until = Instant::now() + delay.mul_f64(rand::random_range(0.5..=1.0));
        // Who needed a link during the attempt has been answered by its failure.
        settle(&self.calls.needed).await;
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.calls.needed.notified(), if !matches!(error, BackendError::NotAdmitted(_)) => {
                sleep_until(attempt + RECONNECT_DELAY_MIN).await;
            }
        }
    }

    fn up(&mut self, connected: &Connected, since: Instant) {
        self.give_out(connected);
        self.metrics.backend_up(true);
        self.reported = false;
        let (took, coherence) = (since.elapsed(), self.cache.coherence().name());
        tracing::info!(redis = %self.settings.url, took = ?took, coherence, "connected to Redis");
    }

    /// Gives the link out. The cache has begun anew before anybody can get it.
    fn give_out(&mut self, connected: &Connected) {
        match connected.tracking {
            Some((tracking, asked)) => self.tracked(tracking, asked),
            None => self.cache.rely_on_ttl(),
        }
        let tracking = connected.tracking.map(|(tracking, _)| tracking);
        self.state.send_replace(LinkState::Up(connected.connection.clone(), tracking));
    }

    /// From now on Redis tells of changes.
    fn tracked(&mut self, tracking: Tracking, asked: Instant) {
        self.cache.rely_on_tracking(asked);
        if std::mem::replace(&mut self.has_tracked, true) {
            self.metrics.tracking_reconnected();
        }
        self.reported_untracked = false;
        tracking::warn_of_small_table(tracking, self.cache.settings().capacity);
    }

    /// Takes the link back. Nothing is read from it any more, so once the cache is told, nothing that came over it will
    /// be kept.
    fn down(&mut self, error: &BackendError) {
        self.metrics.backend_up(false);
        let before = self.state.send_replace(LinkState::Down(error.clone()));
        if let LinkState::Up(_, Some(_)) = before {
            self.metrics.invalidated(Invalidation::Disconnect, 1);
            self.cache.forsake();
        }
        if self.reported {
            tracing::debug!(redis = %self.settings.url, reason = %error, "still no link to Redis");
            return;
        }
        self.reported = true;
        self.metrics.backend_error(error.kind());
        tracing::warn!(redis = %self.settings.url, reason = %error, "no link to Redis; trying again until there is");
    }

    async fn connect(&mut self) -> Result<Connected, BackendError> {
        let login = self.login().await?;
        if self.mode == CoherenceMode::Ttl {
            return self.connect_untracked(login.as_ref()).await;
        }
        match self.connect_tracked(login.as_ref()).await {
            Ok(connected) => Ok(Connected { login, ..connected }),
            Err(Untracked::NoAnswer(error)) => Err(error),
            Err(Untracked::Refused(reason)) => {
                self.untracked(&reason)?;
                self.connect_untracked(login.as_ref()).await
            }
        }
    }

    /// What follows when Redis does not track: another way where there may be one, else no link.
    fn untracked(&mut self, reason: &str) -> Result<(), BackendError> {
        if self.mode == CoherenceMode::Tracking {
            return Err(not_admitted(&format_args!("Redis does not tell of changes (CLIENT TRACKING): {reason}")));
        }
        if !std::mem::replace(&mut self.reported_untracked, true) {
            tracing::warn!(
                redis = %self.settings.url, reason,
                "Redis does not tell of changes (CLIENT TRACKING); cached values may be as old as cache.ttl"
            );
        }
        Ok(())
    }

    /// A link over RESP2, over which Redis tells nothing.
    async fn connect_untracked(&self, login: Option<&Login>) -> Result<Connected, BackendError> {
        let mut connected = match self.start(RedisConnectionInfo::default(), AsyncConnectionConfig::new()).await {
            Ok(connected) => connected,
            Err(Untracked::NoAnswer(error)) => return Err(error),
            Err(Untracked::Refused(reason)) => return Err(unreachable(&reason)),
        };
        let mut connection = connected.connection.clone();
        let shaken = async {
            if let Some(login) = login {
                authenticate(&mut connection, login).await?;
            }
            self.shake_hands(&mut connection).await
        };
        driven(&mut connected.driver, shaken).await?;
        Ok(connected)
    }

    /// A link over RESP3, with tracking if Redis grants it, and without if it may grant it later and that is enough.
    async fn connect_tracked(&mut self, login: Option<&Login>) -> Result<Connected, Untracked> {
        let (cache, metrics, probe) = (self.cache.clone(), Arc::clone(&self.metrics), Arc::clone(&self.probe));
        let listener = Listener { cache, metrics, probe };
        let heed = move |push| {
            listener.heed(push);
            Ok::<_, ()>(())
        };
        let info = hello_info(login);
        let mut connected = self.start(info, AsyncConnectionConfig::new().set_push_sender(heed)).await?;
        let mut connection = connected.connection.clone();
        let asked = Instant::now();
        let started = async {
            self.shake_hands(&mut connection).await?;
            Ok(tracking::start(&mut connection).await)
        };
        match driven(&mut connected.driver, started).await? {
            Ok(tracking) => connected.tracking = Some((tracking, asked)),
            Err(Untracked::Refused(reason)) => {
                self.untracked(&reason)?;
                connected.may_track = true;
            }
            Err(error) => return Err(error),
        }
        Ok(connected)
    }

    /// Opens a stream and speaks the protocol of `info` on it, which for RESP3 begins with HELLO.
    async fn start(&self, info: RedisConnectionInfo, config: AsyncConnectionConfig) -> Result<Connected, Untracked> {
        let (stream, activity) = Observed::new(self.open().await?);
        let config = config.set_response_timeout(None).set_connection_timeout(None);
        let has_login = info.password().is_some();
        let started = MultiplexedConnection::new_with_config(&info.set_skip_set_lib_name(), stream, config).await;
        let (connection, driver) = started.map_err(|error| hello_refused(&error, has_login))?;
        let driver = Box::pin(driver);
        Ok(Connected { connection, driver, activity, login: None, tracking: None, may_track: false })
    }

    async fn open(&self) -> Result<Box<dyn Stream>, BackendError> {
        let (host, port) = match &self.settings.url.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| unreachable(&error))?;
                return Ok(Box::new(stream));
            }
            Endpoint::Tcp { host, port, .. } => (host, *port),
        };
        let stream = self.connect_to_any(host, port).await.map_err(|error| unreachable(&error))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(host.clone()).map_err(|error| not_admitted(&error))?;
        let stream = tls.connect(name, stream).await.map_err(|error| match error.kind() {
            // What rustls says of a certificate.
            io::ErrorKind::InvalidData => not_admitted(&error),
            _ => unreachable(&error),
        })?;
        Ok(Box::new(stream))
    }

    /// Tries the addresses of `host` one after the other, each for its share of the time and each attempt another first,
    /// so that one that swallows everything does not hide the next.
    async fn connect_to_any(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut addresses: Vec<_> = lookup_host((host, port)).await?.collect();
        let first = self.attempts % addresses.len().max(1);
        addresses.rotate_left(first);
        let share = self.settings.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    /// Chooses the database, says who we are, and sees whether Redis answers.
    async fn shake_hands(&self, connection: &mut MultiplexedConnection) -> Result<(), BackendError> {
        if self.settings.url.database != 0 {
            let mut select = redis::cmd("SELECT");
            demand(connection, select.arg(self.settings.url.database), refused_link).await?;
        }
        // A user who may not do these can still read: the names are a courtesy to whoever reads CLIENT LIST.
        let refused = |error: &ServerError| {
            if is_unable(error) { BackendError::Refused(error.code().into()) } else { refused_link(error) }
        };
        // Redis is asked, too, not to let this link go first when it is short of memory: all its readers would wait.
        let courtesies =
            [["SETNAME", CLIENT_NAME].as_slice(), &["SETINFO", "LIB-NAME", CLIENT_NAME], &["NO-EVICT", "on"]];
        for courtesy in courtesies {
            let mut client = redis::cmd("CLIENT");
            accept_refusal(demand(connection, client.arg(courtesy), refused).await)?;
        }
        let ping = redis::cmd("PING");
        accept_refusal(demand(connection, &ping, refused).await)
    }

    async fn login(&mut self) -> Result<Option<Login>, BackendError> {
        let settings = self.settings.clone();
        let reading = self.reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || password(&settings)));
        let password = reading.await;
        self.reading = None;
        let password = password.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        let settings = &self.settings;
        let username = if settings.username.is_empty() { &settings.url.username } else { &settings.username };
        let login = Login { username: username.clone(), password };
        Ok(if login.password.is_empty() && login.username.is_empty() { None } else { Some(login) })
    }

    /// Drives the link until it is lost; returns how that was.
    async fn watch_over(&mut self, mut connected: Connected) -> BackendError {
        // What was said of the link before this one has been heeded.
        settle(&self.calls.distrusted).await;
        settle(&self.calls.overdue).await;
        loop {
            let Connected { connection, driver, activity, login, tracking, may_track } = &mut connected;
            let granted = tokio::select! {
                () = driver => return BackendError::Unreachable("Redis closed the connection".into()),
                () = self.silence(connection.clone(), activity, *tracking) => return BackendError::TimedOut,
                () = self.calls.overdue.notified() => return BackendError::TimedOut,
                () = self.calls.distrusted.notified() => {
                    return unreachable(&"Redis gave an answer that nothing asked for");
                }
                () = self.probe(connection.clone(), login.as_ref()), if self.is_probing(*tracking) => {
                    return unreachable(&"Redis did not tell of a change that it had acknowledged");
                }
                granted = track_again(connection.clone()), if *may_track => granted,
            };
            (*tracking, *may_track) = (Some(granted), false);
            self.give_out(&connected);
            tracing::info!(redis = %self.settings.url, "Redis tells of changes now");
        }
    }

    /// Returns when a PING went unanswered and not a byte of anything else came either. Without tracking a link is
    /// asked only when it is silent; with it always, since each answer proves that all changes are known.
    async fn silence(&self, mut connection: MultiplexedConnection, activity: &Activity, tracking: Option<Granted>) {
        let ping = redis::cmd("PING");
        let mut asked = tracking.map_or_else(Instant::now, |(_, asked)| asked);
        loop {
            sleep_until(match tracking {
                Some(_) => asked + self.proof_interval(),
                None => activity.last_read() + self.settings.ping_interval,
            })
            .await;
            if tracking.is_none() && activity.last_read().elapsed() < self.settings.ping_interval {
                continue;
            }
            asked = Instant::now();
            match self.unless_silent(activity, connection.send_packed_command(&ping)).await {
                None => return,
                // The stream has ended, which is the driver's to report.
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(Value::SimpleString(_) | Value::ServerError(_))) if tracking.is_some() => {
                    self.cache.prove(asked);
                }
                Some(Ok(_)) => {}
            }
        }
    }

    fn is_probing(&self, tracking: Option<Granted>) -> bool {
        tracking.is_some() && !self.settings.probe_interval.is_zero()
    }

    /// Probes the link for as long as it tells; returns when it does not.
    async fn probe(&self, link: MultiplexedConnection, login: Option<&Login>) {
        let times = (self.settings.probe_interval, self.settings.response_timeout);
        loop {
            let connected = timeout(self.settings.connect_timeout, self.connect_untracked(login)).await;
            if let Ok(Ok(Connected { connection: writer, driver, .. })) = connected {
                let ended = tokio::select! {
                    ended = self.probe.run(link.clone(), writer, times, &self.metrics) => ended,
                    () = driver => Ended::Disconnected,
                };
                match ended {
                    Ended::Untold => return,
                    Ended::Disconnected => {}
                    Ended::Refused(reason) => {
                        tracing::warn!(reason, "Redis refuses the probe (redis.probe_interval); it is not tried again");
                        std::future::pending::<()>().await;
                    }
                }
            }
            sleep(self.settings.probe_interval).await;
        }
    }

    /// How often proof is asked for, so that one answer that is late leaves no time without.
    fn proof_interval(&self) -> Duration {
        self.settings.ping_interval.min(self.cache.settings().coherence_timeout / 3)
    }

    /// The answer, however long it takes while bytes come in; `None` when none come either.
    async fn unless_silent<T>(&self, activity: &Activity, answer: impl Future<Output = T>) -> Option<T> {
        let patience = self.settings.response_timeout;
        let mut answer = pin!(answer);
        let mut until = Instant::now() + patience;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Some(answer),
                () = sleep_until(until) => {}
            }
            until = activity.last_read() + patience;
            if until <= Instant::now() {
                return None;
            }
        }
    }
}

/// Asks for tracking now and then, until Redis grants it.
async fn track_again(mut connection: MultiplexedConnection) -> Granted {
    loop {
        sleep(TRACKING_RETRY).await;
        let asked = Instant::now();
        if let Ok(tracking) = tracking::start(&mut connection).await {
            return (tracking, asked);
        }
    }
}

/// Runs the handshake while the driver moves its bytes.
async fn driven<T>(
    driver: &mut Driver,
    handshake: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let mut handshake = pin!(handshake);
    tokio::select! {
        biased;
        shaken = &mut handshake => shaken,
        () = driver => {
            // What Redis said before it hung up is the better reason.
            handshake.await?;
            Err(unreachable(&"Redis closed the connection during the handshake"))
        }
    }
}

/// Takes back a call that nobody has heard yet.
async fn settle(call: &Notify) {
    tokio::select! {
        biased;
        () = call.notified() => {}
        () = std::future::ready(()) => {}
    }
}

fn unreachable(reason: &dyn fmt::Display) -> BackendError {
    BackendError::Unreachable(reason.to_string().into())
}

fn not_admitted(reason: &dyn fmt::Display) -> BackendError {
    BackendError::NotAdmitted(reason.to_string().into())
}

fn refused_link(error: &ServerError) -> BackendError {
    refused_with(error.code(), error.details().unwrap_or_default())
}

fn refused_with(code: &str, details: &str) -> BackendError {
    if is_final(code) { not_admitted(&format_args!("Redis refused the link: {code} {details}")) } else { refused(code) }
}

/// Whether Redis will say the same in a moment.
fn is_final(code: &str) -> bool {
    !matches!(refused(code), BackendError::Unavailable(_))
}

/// What HELLO is told of who we are.
fn hello_info(login: Option<&Login>) -> RedisConnectionInfo {
    let info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    let Some(Login { username, password }) = login else { return info };
    info.set_username(if username.is_empty() { DEFAULT_USER } else { username }).set_password(password.reveal())
}

/// What it means that a connection could not begin with HELLO.
fn hello_refused(error: &RedisError, has_login: bool) -> Untracked {
    let details = error.detail().unwrap_or_default();
    let begins = |with| details.to_ascii_lowercase().starts_with(with);
    match error.code() {
        None if error.kind() == ErrorKind::RESP3NotSupported => Untracked::Refused("it does not know HELLO".to_owned()),
        None => unreachable(&format_args!("the handshake failed: {error}")).into(),
        Some("ERR") if begins("unknown") => Untracked::Refused("it does not know HELLO".to_owned()),
        Some("NOPROTO") => Untracked::Refused("it does not speak RESP3".to_owned()),
        // Said of every client, so it repeats nothing.
        Some(code @ "ERR") if begins("max number of clients") => refused_with(code, details).into(),
        Some(code) if has_login && is_final(code) => refused_login(code).into(),
        Some(code) => refused_with(code, details).into(),
    }
}

async fn authenticate(connection: &mut MultiplexedConnection, login: &Login) -> Result<(), BackendError> {
    let mut command = redis::cmd("AUTH");
    if !login.username.is_empty() {
        command.arg(&login.username);
    }
    demand(connection, command.arg(login.password.reveal()), |error| refused_login(error.code())).await
}

/// Only the first word: Redis may repeat what it was given.
fn refused_login(code: &str) -> BackendError {
    not_admitted(&format_args!("Redis refused the login: {code}"))
}

/// One command of the handshake, whose answer may be an error.
pub(super) async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, BackendError> {
    let answer = connection.send_packed_command(command).await;
    answer.map_err(|error| unreachable(&format_args!("the handshake failed: {error}")))
}

/// One command of the handshake; `refused` says what it means that Redis answers with an error.
async fn demand(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    refused: impl FnOnce(&ServerError) -> BackendError,
) -> Result<(), BackendError> {
    match ask(connection, command).await? {
        Value::ServerError(error) => Err(refused(&error)),
        _ => Ok(()),
    }
}

/// Whether the user may not do this, or the server has no such command: it answers, and that is enough.
fn is_unable(error: &ServerError) -> bool {
    let unknown = error.details().is_some_and(|details| details.to_ascii_lowercase().starts_with("unknown"));
    error.code() == "NOPERM" || (error.code() == "ERR" && unknown)
}

fn accept_refusal(answer: Result<(), BackendError>) -> Result<(), BackendError> {
    match answer {
        Err(BackendError::Refused(_)) => Ok(()),
        answer => answer,
    }
}

/// What a request's error means: the link carries on after an answer, and nothing else.
pub(super) fn classify(error: &RedisError) -> BackendError {
    match error.code() {
        Some(code) => refused(code),
        None => BackendError::Disconnected,
    }
}

/// What an error reply means, by its first word.
fn refused(code: &str) -> BackendError {
    match code {
        "WRONGTYPE" => BackendError::WrongType,
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => BackendError::Unavailable(code.into()),
        code => BackendError::Refused(code.into()),
    }
}

/// Reads the replies to MULTI, GET, PTTL, EXEC. Each must be one that its command can have: a link on which answers
/// have shifted would otherwise give one key's value for another.
///
/// The pipeline is not declared a transaction to the redis crate, because 1.8.1 computes the place of a refused MULTI
/// as 1 - 2, which panics in a debug build.
pub(super) fn read_reply(replies: Vec<Value>) -> Result<Result<Reply, BackendError>, Unexpected> {
    let [multi, get, pttl, exec] = <[Value; 4]>::try_from(replies).map_err(|_| Unexpected)?;
    // A command refused before EXEC says why; EXEC then says only that it was.
    if let Some(error) = [&multi, &get, &pttl, &exec].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    let queued = |reply: &Value| matches!(reply, Value::SimpleString(text) if text == "QUEUED");
    if multi != Value::Okay || !queued(&get) || !queued(&pttl) {
        return Err(Unexpected);
    }
    let Value::Array(results) = exec else { return Err(Unexpected) };
    let [value, expiry] = <[Value; 2]>::try_from(results).map_err(|_| Unexpected)?;
    if let Some(error) = [&value, &expiry].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    match (value, expiry) {
        (Value::Nil, Value::Int(_)) => Ok(Ok(None)),
        (Value::BulkString(value), Value::Int(milliseconds)) => {
            // PTTL: -1 is a key without expiry, -2 no key at all.
            let expires_in = u64::try_from(milliseconds).ok().map(Duration::from_millis);
            Ok(Ok(Some((Bytes::from(value), expires_in))))
        }
        _ => Err(Unexpected),
    }
}

fn server_error(reply: &Value) -> Option<BackendError> {
    match reply {
        Value::ServerError(error) => Some(refused(error.code())),
        _ => None,
    }
}

/// The password, from where it is kept: the config, a file, systemd's credentials, or the address.
fn password(settings: &Settings) -> Result<Secret, PrepareError> {
    let read = |key, path: &Path| {
        let text = fs::read_to_string(path).map_err(|error| PrepareError::new(key, path, &error))?;
        Ok(Secret::from(text.trim_end_matches(['\r', '\n']).to_owned()))
    };
    if !settings.password.is_empty() {
        return Ok(settings.password.clone());
    }
    if !settings.password_file.as_os_str().is_empty() {
        return read("password_file", &settings.password_file);
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|directory| Path::new(&directory).join(CREDENTIAL));
    match credential {
        Some(path) if path.exists() => read("password (systemd credential)", &path),
        _ => Ok(settings.url.password.clone()),
    }
}

fn tls_connector(settings: &Settings) -> Result<TlsConnector, PrepareError> {
    let roots = root_certificates(&settings.tls_ca_file)?;
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = if settings.tls_cert_file.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let certificates = certificates("tls_cert_file", &settings.tls_cert_file)?;
        let path = &settings.tls_key_file;
        let key =
            PrivateKeyDer::from_pem_file(path).map_err(|error| PrepareError::new("tls_key_file", path, &error))?;
        let config = builder.with_client_auth_cert(certificates, key);
        config.map_err(|error| PrepareError::new("tls_cert_file", &settings.tls_cert_file, &error))?
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn root_certificates(ca_file: &Path) -> Result<RootCertStore, PrepareError> {
    let mut roots = RootCertStore::empty();
    if ca_file.as_os_str().is_empty() {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(PrepareError::new("tls_ca_file", ca_file, &"empty, and the system has no root certificates"));
        }
    } else {
        for certificate in certificates("tls_ca_file", ca_file)? {
            roots.add(certificate).map_err(|error| PrepareError::new("tls_ca_file", ca_file, &error))?;
        }
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PrepareError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(PrepareError::new(key, path, &"no certificate in it (PEM)")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(PrepareError::new(key, path, &error)),
    }
}
