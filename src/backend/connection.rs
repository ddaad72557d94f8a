//! One link to Redis: connecting, logging in, keeping watch, and connecting again.
//!
//! A link is [`LinkState::Up`] only once its handshake is complete, and down from the moment its stream ends or a
//! PING goes unanswered; nobody is ever given a link that is neither. The redis crate's `MultiplexedConnection`
//! carries the requests; connecting and watching are done here, because its `ConnectionManager` hides when a link
//! was lost.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, ServerError, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::Endpoint;
use super::{BackendError, Calls, LinkState, Reply, Settings, Unexpected};
use crate::activity::{Activity, Observed};
use crate::metrics::Metrics;
use crate::units::Secret;

/// The name the link has in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";
/// A link is not tried again sooner than this, however urgently it is needed.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
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
    tls: Option<TlsConnector>,
    state: watch::Sender<LinkState>,
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    /// Whether the present outage has been reported: it is one line, not one an attempt.
    reported: bool,
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
}

impl Link {
    pub(super) fn prepare(
        settings: &Settings,
        calls: Arc<Calls>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, watch::Receiver<LinkState>), PrepareError> {
        let tls = if settings.url.is_tls() { Some(tls_connector(settings)?) } else { None };
        password(settings)?;
        let starting = LinkState::Down(BackendError::Unreachable("not connected yet".into()));
        let (state, receiver) = watch::channel(starting);
        Ok((
            Self {
                settings: settings.clone(),
                tls,
                state,
                calls,
                metrics,
                reported: false,
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
                    self.up(&connected.connection, attempt);
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

    fn up(&mut self, connection: &MultiplexedConnection, since: Instant) {
        self.state.send_replace(LinkState::Up(connection.clone()));
        self.metrics.backend_up(true);
        self.reported = false;
        let took = since.elapsed();
        tracing::info!(redis = %self.settings.url, took = ?took, "connected to Redis");
    }

    fn down(&mut self, error: &BackendError) {
        self.metrics.backend_up(false);
        self.state.send_replace(LinkState::Down(error.clone()));
        if self.reported {
            tracing::debug!(redis = %self.settings.url, reason = %error, "still no link to Redis");
            return;
        }
        self.reported = true;
        self.metrics.backend_error(error.kind());
        tracing::warn!(redis = %self.settings.url, reason = %error, "no link to Redis; trying again until there is");
    }

    async fn connect(&mut self) -> Result<Connected, BackendError> {
        let (stream, activity) = Observed::new(self.open().await?);
        // The handshake is ours, so that its errors are Redis's own words.
        let bare = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&bare, stream, config).await.map_err(|error| unreachable(&error))?;
        let mut driver: Driver = Box::pin(driver);
        let login = self.login().await?;
        let mut shaken = pin!(self.shake_hands(connection.clone(), login));
        tokio::select! {
            biased;
            shaken = &mut shaken => shaken?,
            () = &mut driver => {
                // What Redis said before it hung up is the better reason.
                shaken.await?;
                return Err(unreachable(&"Redis closed the connection during the handshake"));
            }
        }
        Ok(Connected { connection, driver, activity })
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

    /// Logs in, chooses the database, says who we are, and sees whether Redis answers.
    async fn shake_hands(&self, mut connection: MultiplexedConnection, login: Option<Cmd>) -> Result<(), BackendError> {
        if let Some(login) = login {
            // Only the first word: Redis may repeat what it was given.
            let refused =
                |error: &ServerError| not_admitted(&format_args!("Redis refused the login: {}", error.code()));
            ask(&mut connection, &login, refused).await?;
        }
        if self.settings.url.database != 0 {
            let mut select = redis::cmd("SELECT");
            ask(&mut connection, select.arg(self.settings.url.database), refused_link).await?;
        }
        // A user who may not do these can still read: the names are a courtesy to whoever reads CLIENT LIST.
        let refused = |error: &ServerError| {
            if is_unable(error) { BackendError::Refused(error.code().into()) } else { refused_link(error) }
        };
        for courtesy in [["SETNAME", CLIENT_NAME].as_slice(), &["SETINFO", "LIB-NAME", CLIENT_NAME]] {
            let mut client = redis::cmd("CLIENT");
            accept_refusal(ask(&mut connection, client.arg(courtesy), refused).await)?;
        }
        let ping = redis::cmd("PING");
        accept_refusal(ask(&mut connection, &ping, refused).await)
    }

    async fn login(&mut self) -> Result<Option<Cmd>, BackendError> {
        let settings = self.settings.clone();
        let reading = self.reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || password(&settings)));
        let password = reading.await;
        self.reading = None;
        let password = password.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        let settings = &self.settings;
        let username = if settings.username.is_empty() { &settings.url.username } else { &settings.username };
        if password.is_empty() && username.is_empty() {
            return Ok(None);
        }
        let mut login = redis::cmd("AUTH");
        if !username.is_empty() {
            login.arg(username);
        }
        login.arg(password.reveal());
        Ok(Some(login))
    }

    /// Drives the link until it is lost; returns how that was.
    async fn watch_over(&self, Connected { connection, mut driver, activity }: Connected) -> BackendError {
        let silence = self.silence(connection, &activity);
        // What was said of the link before this one has been heeded.
        settle(&self.calls.distrusted).await;
        settle(&self.calls.overdue).await;
        tokio::select! {
            () = &mut driver => BackendError::Unreachable("Redis closed the connection".into()),
            () = silence => BackendError::TimedOut,
            () = self.calls.overdue.notified() => BackendError::TimedOut,
            () = self.calls.distrusted.notified() => unreachable(&"Redis gave an answer that nothing asked for"),
        }
    }

    /// Returns when a PING went unanswered and not a byte of anything else came either.
    async fn silence(&self, mut connection: MultiplexedConnection, activity: &Activity) {
        let patience = self.settings.response_timeout;
        let ping = redis::cmd("PING");
        loop {
            sleep_until(activity.last_read() + self.settings.ping_interval).await;
            if activity.last_read().elapsed() < self.settings.ping_interval {
                continue;
            }
            match timeout(patience, connection.send_packed_command(&ping)).await {
                Ok(Ok(_)) => {}
                // The stream has ended, which is the driver's to report.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) if activity.last_read().elapsed() < patience => {}
                Err(_) => return,
            }
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
    let meaning = refused(error.code());
    if let BackendError::Unavailable(_) = meaning {
        return meaning;
    }
    let details = error.details().unwrap_or_default();
    not_admitted(&format_args!("Redis refused the link: {} {details}", error.code()))
}

/// One command of the handshake; `refused` says what it means that Redis answers with an error.
async fn ask(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    refused: impl FnOnce(&ServerError) -> BackendError,
) -> Result<(), BackendError> {
    match connection.send_packed_command(command).await {
        Ok(Value::ServerError(error)) => Err(refused(&error)),
        Ok(_) => Ok(()),
        Err(error) => Err(unreachable(&format_args!("the handshake failed: {error}"))),
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
