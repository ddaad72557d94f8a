//! The handshake: from a stream to a connection on which Redis can be asked, and on which it tells of changes.
//!
//! Nothing is asked before Redis has said who we are to it and that it tells, if it is to. Its errors are passed on in
//! its own words, but those about a login only by their first: Redis may repeat what it was given.

use std::fs;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::FutureExt as _;
use redis::{Cmd, ServerError, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::address::Address;
use super::connection::{Connection, Heed};
use super::reply::{ask, is_final, not_admitted, refused, unreachable};
use super::stream::{Opener, PrepareError, Stream};
use super::topology::{Left, Place, Topology};
use super::tracking::{self, Listener, Tracking, Untracked};
use super::{BackendError, Settings};
use crate::activity::{Activity, Observed};
use crate::units::Secret;

/// The name the link has in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";

/// Whom a password without a user is for.
const DEFAULT_USER: &str = "default";

/// The file in systemd's credential directory that holds the password.
const CREDENTIAL: &str = "redis-password";

/// Why a link that could go on does not.
pub(super) const MOVED: &str = "the sentinels name another primary";

/// What reads and writes the stream, for as long as there is a connection; then, why there is none.
pub(super) type Driver = Pin<Box<dyn Future<Output = BackendError> + Send>>;

/// A connection whose handshake is complete.
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) driver: Driver,
    pub(super) activity: Arc<Activity>,
    pub(super) tracking: Option<Granted>,
    /// Why Redis does not track here, where it might when asked again.
    pub(super) refusal: Option<String>,
}

/// The tracking Redis does for a link, and when it was asked to.
pub(super) type Granted = (Tracking, Instant);

/// The user and password to log in with.
pub(super) struct Login {
    username: String,
    password: Secret,
}

/// Whom to log in as; none: nobody has to.
///
/// # Errors
/// The file of the password cannot be read.
pub(super) fn login(settings: &Settings) -> Result<Option<Login>, PrepareError> {
    let password = password(settings)?;
    let username =
        if settings.username.is_empty() { &settings.url.username } else { &settings.username };
    let login = Login { username: username.clone(), password };
    Ok(if login.password.is_empty() && login.username.is_empty() { None } else { Some(login) })
}

/// Whom to log in as to the sentinels; none: nobody has to.
///
/// # Errors
/// The file of the password cannot be read.
pub(super) fn sentinel_login(settings: &Settings) -> Result<Option<Login>, PrepareError> {
    let path = &settings.sentinel_password_file;
    let password = if path.as_os_str().is_empty() {
        Secret::default()
    } else {
        read_password("sentinel_password_file", path)?
    };
    let login = Login { username: settings.sentinel_username.clone(), password };
    Ok(if login.password.is_empty() && login.username.is_empty() { None } else { Some(login) })
}

impl Login {
    /// The user Redis knows.
    pub(super) fn user(&self) -> &str {
        if self.username.is_empty() { DEFAULT_USER } else { &self.username }
    }

    fn command(&self) -> Cmd {
        let mut command = redis::cmd("AUTH");
        if !self.username.is_empty() {
            command.arg(&self.username);
        }
        command.arg(self.password.reveal());
        command
    }

    /// Logs in on a stream on which nothing has been said.
    pub(super) async fn log_in(&self, stream: &mut dyn Stream) -> Result<(), BackendError> {
        stream
            .write_all(&self.command().get_packed_command())
            .await
            .map_err(|error| unreachable(&error))?;
        stream.flush().await.map_err(|error| unreachable(&error))?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") && answer.len() < LONGEST_ANSWER {
            answer.push(stream.read_u8().await.map_err(|error| unreachable(&error))?);
        }
        if answer.starts_with(b"+") {
            return Ok(());
        }
        if is_full(String::from_utf8_lossy(&answer).trim_start_matches("-ERR ")) {
            return Err(full());
        }
        let code = answer
            .get(1..)
            .unwrap_or_default()
            .split(u8::is_ascii_whitespace)
            .next()
            .unwrap_or_default();
        Err(refused_login(&String::from_utf8_lossy(code)))
    }
}

/// Longer than anything that Redis says to a login.
const LONGEST_ANSWER: usize = 1024;

/// The one who connects.
pub(super) struct Connector {
    settings: Settings,
    opener: Arc<Opener>,
    topology: Arc<Topology>,
    /// Where the last link went, or the one before it if nobody says where the next goes; none before the first.
    place: Option<Place>,
    /// The login, with the password, on its way from a disk that may hang: one read at a time.
    reading: Option<JoinHandle<Result<Option<Login>, PrepareError>>>,
    login: Option<Login>,
    /// Attempts that failed: each that follows begins with another address of the host.
    failures: usize,
}

impl Connector {
    pub(super) fn new(
        settings: &Settings,
        (opener, topology): (Arc<Opener>, Arc<Topology>),
    ) -> Self {
        Self {
            settings: settings.clone(),
            opener,
            topology,
            place: None,
            reading: None,
            login: None,
            failures: 0,
        }
    }

    /// Keeps finding out where Redis is.
    pub(super) fn scout(&self) -> impl Future<Output = ()> + Send + use<> {
        let topology = Arc::clone(&self.topology);
        async move { topology.run().await }
    }

    /// Finds out where the next link goes.
    pub(super) async fn find_place(&mut self) -> Result<(), BackendError> {
        self.place = Some(self.topology.place().await?);
        Ok(())
    }

    /// Redis is still where the link went.
    ///
    /// # Errors
    /// It is elsewhere by now.
    pub(super) fn stay(&self) -> Result<(), BackendError> {
        let is_left = self.left().now_or_never().is_some();
        if is_left { Err(unreachable(&MOVED)) } else { Ok(()) }
    }

    /// Where the link goes, as it is written.
    pub(super) fn address(&self) -> &Address {
        self.place.as_ref().map_or(&self.settings.url, |place| &place.address)
    }

    /// Returns when Redis is elsewhere than where the link went.
    pub(super) fn left(&self) -> Left {
        self.place.as_ref().map_or_else(
            || Box::pin(std::future::pending()) as Left,
            |place| self.topology.left(place),
        )
    }

    /// Returns when what answers there says that it is no primary, where it has to be one.
    pub(super) async fn demoted(&self, connection: &Connection) -> BackendError {
        loop {
            if !self.topology.wants_primary() {
                std::future::pending::<()>().await;
            }
            sleep(self.settings.ping_interval).await;
            match require_primary(connection).await {
                Err(error) if error != BackendError::Disconnected => return error,
                // That the stream has ended is the driver's to report.
                _ => {}
            }
        }
    }

    /// Whether what answers there may say what its keys hold: a node of a cluster has to be a primary still, and the cluster
    /// to work as far as the node knows.
    pub(super) async fn is_in_charge(&self, connection: &Connection) -> Result<bool, BackendError> {
        if !self.topology.wants_cluster() {
            return Ok(true);
        }
        match require_primary(connection).await {
            // Whoever asks whether it was demoted ends the link.
            Err(error) if error != BackendError::Disconnected => return Ok(false),
            answer => answer?,
        }
        let info = ask(connection, redis::cmd("CLUSTER").arg("INFO")).await?;
        Ok(tracking::text(&info).is_some_and(|info| info.contains("cluster_state:ok")))
    }

    /// An attempt came to nothing.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.wrapping_add(1);
    }

    /// Finds out anew whom to log in as.
    pub(super) async fn read_login(&mut self) -> Result<(), BackendError> {
        let settings = self.settings.clone();
        let reading = self
            .reading
            .get_or_insert_with(|| tokio::task::spawn_blocking(move || login(&settings)));
        let login = reading.await;
        self.reading = None;
        self.login =
            login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        Ok(())
    }

    /// A link over RESP2, over which Redis tells nothing.
    pub(super) async fn connect_untracked(&self) -> Result<Connected, BackendError> {
        let mut connected = self.start(Box::new(|_| ())).await?;
        let shaken = async {
            if let Some(login) = &self.login {
                authenticate(&connected.connection, login).await?;
            }
            self.shake_hands(&connected.connection).await
        };
        driven(&mut connected.driver, shaken).await?;
        Ok(connected)
    }

    /// A link over RESP3, with tracking if Redis grants it, and without if it may grant it later. `listener` is told what
    /// Redis tells.
    pub(super) async fn connect_tracked(&self, listener: Listener) -> Result<Connected, Untracked> {
        let mut connected = self.start(Box::new(move |push| listener.heed(push))).await?;
        let connection = &connected.connection;
        driven(&mut connected.driver, greet(connection, self.login.as_ref())).await?;
        let asked = Instant::now();
        driven(&mut connected.driver, self.shake_hands(connection)).await?;
        match driven(&mut connected.driver, tracking::start(connection)).await {
            Ok(tracking) => connected.tracking = Some((tracking, asked)),
            Err(Untracked::Refused(reason)) => connected.refusal = Some(reason),
            Err(error) => return Err(error),
        }
        Ok(connected)
    }

    /// Opens a stream, on which nothing is said yet.
    async fn start(&self, heed: Heed) -> Result<Connected, BackendError> {
        let (stream, activity) =
            Observed::new(self.opener.open(&self.address().endpoint, self.failures).await?);
        let (connection, driver) = Connection::over(stream, self.settings.url.database, heed);
        Ok(Connected {
            connection,
            driver: Box::pin(driver),
            activity,
            tracking: None,
            refusal: None,
        })
    }

    /// Chooses the database, says who we are, and sees whether Redis answers.
    async fn shake_hands(&self, connection: &Connection) -> Result<(), BackendError> {
        if self.settings.url.database != 0 {
            let mut select = redis::cmd("SELECT");
            demand(connection, select.arg(self.settings.url.database), refused_link).await?;
        }
        // A user who may not do these can still read: the names are a courtesy to whoever reads CLIENT LIST.
        let refused = |error: &ServerError| {
            if is_unable(error) {
                BackendError::Refused(error.code().into())
            } else {
                refused_link(error)
            }
        };
        // Redis is asked, too, not to let this link go first when it is short of memory: all its readers would wait.
        let courtesies = [
            ["SETNAME", CLIENT_NAME].as_slice(),
            &["SETINFO", "LIB-NAME", CLIENT_NAME],
            &["NO-EVICT", "on"],
        ];
        for courtesy in courtesies {
            let mut client = redis::cmd("CLIENT");
            accept_refusal(demand(connection, client.arg(courtesy), refused).await)?;
        }
        let ping = redis::cmd("PING");
        accept_refusal(demand(connection, &ping, refused).await)?;
        if self.topology.wants_primary() { require_primary(connection).await } else { Ok(()) }
    }
}

/// Redis itself has to say, too, that it is the primary: who was told so may not be it yet.
async fn require_primary(connection: &Connection) -> Result<(), BackendError> {
    match connection.ask(&redis::cmd("ROLE")).await? {
        Value::ServerError(error) => Err(refused_link(&error)),
        Value::Array(parts) if parts.first().and_then(tracking::text) == Some("master") => Ok(()),
        _ => Err(unreachable(&"it is called a primary, but it is a replica (ROLE)")),
    }
}

/// Runs the handshake while the driver moves its bytes.
pub(super) async fn driven<T, E: From<BackendError>>(
    driver: &mut Driver,
    handshake: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut handshake = pin!(handshake);
    tokio::select! {
        biased;
        shaken = &mut handshake => shaken,
        ended = driver => {
            // What Redis said before it hung up is the better reason.
            handshake.await?;
            Err(ended.into())
        }
    }
}

/// Begins with HELLO, which asks for RESP3 and says who we are.
pub(super) async fn greet(connection: &Connection, login: Option<&Login>) -> Result<(), Untracked> {
    let mut hello = redis::cmd("HELLO");
    hello.arg(3);
    if let Some(login) = login {
        hello.arg("AUTH").arg(login.user()).arg(login.password.reveal());
    }
    match ask(connection, &hello).await? {
        Value::ServerError(error) => {
            Err(hello_refused(error.code(), error.details().unwrap_or_default(), login.is_some()))
        }
        _ => Ok(()),
    }
}

/// What it means that HELLO was answered with an error.
fn hello_refused(code: &str, details: &str, has_login: bool) -> Untracked {
    match code {
        "ERR" if details.to_ascii_lowercase().starts_with("unknown") => {
            Untracked::Refused("it does not know HELLO".to_owned())
        }
        "NOPROTO" => Untracked::Refused("it does not speak RESP3".to_owned()),
        "ERR" if is_full(details) => full().into(),
        code if has_login && is_final(code) => refused_login(code).into(),
        code => refused_with(code, details).into(),
    }
}

async fn authenticate(connection: &Connection, login: &Login) -> Result<(), BackendError> {
    demand(connection, &login.command(), |error| refused_login(error.code())).await
}

/// Only the first word: Redis may repeat what it was given.
fn refused_login(code: &str) -> BackendError {
    not_admitted(&format_args!("Redis refused the login: {code}"))
}

fn refused_link(error: &ServerError) -> BackendError {
    refused_with(error.code(), error.details().unwrap_or_default())
}

fn refused_with(code: &str, details: &str) -> BackendError {
    if is_final(code) {
        not_admitted(&format_args!("Redis refused the link: {code} {details}"))
    } else {
        refused(code)
    }
}

/// One command of the handshake; `refused` says what it means that Redis answers with an error.
async fn demand(
    connection: &Connection,
    command: &Cmd,
    refused: impl FnOnce(&ServerError) -> BackendError,
) -> Result<(), BackendError> {
    match ask(connection, command).await? {
        Value::ServerError(error) if is_full(error.details().unwrap_or_default()) => Err(full()),
        Value::ServerError(error) => Err(refused(&error)),
        _ => Ok(()),
    }
}

/// Whether Redis says that it has as many clients as it may have, as it does before it is asked anything.
fn is_full(details: &str) -> bool {
    details.starts_with(FULL)
}

/// What follows: another link may be had as soon as somebody else goes.
fn full() -> BackendError {
    BackendError::Unavailable(FULL.into())
}

const FULL: &str = "max number of clients reached";

/// Whether the user may not do this, or the server has no such command: it answers, and that is enough.
fn is_unable(error: &ServerError) -> bool {
    let unknown =
        error.details().is_some_and(|details| details.to_ascii_lowercase().starts_with("unknown"));
    error.code() == "NOPERM" || (error.code() == "ERR" && unknown)
}

fn accept_refusal(answer: Result<(), BackendError>) -> Result<(), BackendError> {
    match answer {
        Err(BackendError::Refused(_)) => Ok(()),
        answer => answer,
    }
}

/// The password, from where it is kept: the config, a file, systemd's credentials, or the address.
fn password(settings: &Settings) -> Result<Secret, PrepareError> {
    if !settings.password.is_empty() {
        return Ok(settings.password.clone());
    }
    if !settings.password_file.as_os_str().is_empty() {
        return read_password("password_file", &settings.password_file);
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| Path::new(&directory).join(CREDENTIAL));
    match credential {
        Some(path) if path.exists() => read_password("password (systemd credential)", &path),
        _ => Ok(settings.url.password.clone()),
    }
}

fn read_password(key: &'static str, path: &Path) -> Result<Secret, PrepareError> {
    let text = fs::read_to_string(path).map_err(|error| PrepareError::new(key, path, &error))?;
    Ok(Secret::from(text.trim_end_matches(['\r', '\n']).to_owned()))
}
