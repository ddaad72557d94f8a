//! The handshake: from a stream to a connection on which Redis can be asked, and on which it tells of changes.
//!
//! Nothing is asked before Redis has said who we are to it and that it tells, if it is to. Its errors are passed on in
//! its own words, but those about a login only by their first: Redis may repeat what it was given.

use std::sync::Arc;

use futures_util::FutureExt as _;
use redis::{ServerError, Value};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::address::Address;
use super::credentials::{Login, login};
use super::dial::{Dialer, PrepareError};
use super::endpoint::{Endpoint, EndpointChanged};
use super::error::{BackendError, unreachable};
use super::hello::{
    Driver, accept_refusal, authenticate, demand, driven, greet, is_unable, refused_link,
};
use super::multiplexed::{Connection, Heed, ask};
use super::settings::Settings;
use super::topology::Topology;
use super::tracking::{self, Listener, Tracking, Untracked};
use crate::net::{IoProgress, TrackedIo};

/// The name the link has in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";

/// Why a link that could go on does not.
pub(super) const MOVED: &str = "the sentinels name another primary";

/// A connection whose handshake is complete.
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) driver: Driver,
    pub(super) activity: Arc<IoProgress>,
    pub(super) tracking: Option<Granted>,
    /// Why Redis does not track here, where it might when asked again.
    pub(super) refusal: Option<String>,
}

/// The tracking Redis does for a link, and when it was asked to.
pub(super) type Granted = (Tracking, Instant);

/// The one who connects.
pub(super) struct Connector {
    settings: Settings,
    dialer: Arc<Dialer>,
    topology: Arc<Topology>,
    /// Where the last link went, or the one before it if nobody says where the next goes; none before the first.
    place: Option<Endpoint>,
    /// The login, with the password, on its way from a disk that may hang: one read at a time.
    reading: Option<JoinHandle<Result<Option<Login>, PrepareError>>>,
    login: Option<Login>,
    /// Attempts that failed: each that follows begins with another address of the host.
    failures: usize,
}

impl Connector {
    pub(super) fn new(
        settings: &Settings,
        (dialer, topology): (Arc<Dialer>, Arc<Topology>),
    ) -> Self {
        Self {
            settings: settings.clone(),
            dialer,
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
        self.place = Some(self.topology.resolve().await?);
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
    pub(super) fn left(&self) -> EndpointChanged {
        self.place.as_ref().map_or_else(
            || Box::pin(std::future::pending()) as EndpointChanged,
            |place| self.topology.changed(place),
        )
    }

    /// Returns when what answers there says that it is no primary, where it has to be one.
    pub(super) async fn demoted(&self, connection: &Connection) -> BackendError {
        loop {
            if !self.topology.requires_primary() {
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
        if !self.topology.requires_cluster() {
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
            TrackedIo::new(self.dialer.dial(&self.address().addr, self.failures).await?);
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
                BackendError::ErrorReply(error.code().into())
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
        if self.topology.requires_primary() { require_primary(connection).await } else { Ok(()) }
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
