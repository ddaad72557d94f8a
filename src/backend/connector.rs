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
use super::credentials::{Login, load_login};
use super::dial::{Dialer, PrepareError};
use super::endpoint::{Endpoint, EndpointChanged};
use super::error::{BackendError, unreachable};
use super::hello::{
    BoxDriver, authenticate, drive_until, expect_ok, handshake_error, ignore_error_reply,
    is_unsupported, send_hello,
};
use super::multiplexed::{Multiplexed, PushHandler, handshake_command};
use super::settings::Settings;
use super::topology::Topology;
use super::tracking::{self, InvalidationHandler, Tracking, TrackingError};
use crate::net::{IoProgress, TrackedIo};

/// The name the link has in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";

/// Why a link that could go on does not.
pub(super) const PRIMARY_CHANGED: &str = "the sentinels name another primary";

/// A connection whose handshake is complete.
pub(super) struct Connected {
    pub(super) connection: Multiplexed,
    pub(super) driver: BoxDriver,
    pub(super) progress: Arc<IoProgress>,
    pub(super) tracking: Option<TrackingGranted>,
    /// Why Redis does not track here, where it might when asked again.
    pub(super) tracking_refusal: Option<String>,
}

/// The tracking Redis does for a link, and when it was asked to.
#[derive(Clone, Copy)]
pub(super) struct TrackingGranted {
    pub(super) tracking: Tracking,
    pub(super) requested_at: Instant,
}

/// The one who connects.
pub(super) struct Connector {
    settings: Settings,
    dialer: Arc<Dialer>,
    topology: Arc<Topology>,
    /// Where the last link went, or the one before it if nobody says where the next goes; none before the first.
    endpoint: Option<Endpoint>,
    /// The login, with the password, on its way from a disk that may hang: one read at a time.
    pending_login: Option<JoinHandle<Result<Option<Login>, PrepareError>>>,
    login: Option<Login>,
    /// Attempts that failed: each that follows begins with another address of the host.
    failures: usize,
}

impl Connector {
    pub(super) fn new(settings: &Settings, dialer: Arc<Dialer>, topology: Arc<Topology>) -> Self {
        Self {
            settings: settings.clone(),
            dialer,
            topology,
            endpoint: None,
            pending_login: None,
            login: None,
            failures: 0,
        }
    }

    /// Keeps finding out where Redis is.
    pub(super) fn run_topology(&self) -> impl Future<Output = ()> + Send + use<> {
        let topology = Arc::clone(&self.topology);
        async move { topology.run().await }
    }

    /// Finds out where the next link goes.
    pub(super) async fn resolve_endpoint(&mut self) -> Result<(), BackendError> {
        self.endpoint = Some(self.topology.resolve().await?);
        Ok(())
    }

    /// Redis is still where the link went.
    ///
    /// # Errors
    /// It is elsewhere by now.
    pub(super) fn verify_endpoint(&self) -> Result<(), BackendError> {
        let is_left = self.endpoint_changed().now_or_never().is_some();
        if is_left { Err(unreachable(&PRIMARY_CHANGED)) } else { Ok(()) }
    }

    /// Where the link goes, as it is written.
    pub(super) fn address(&self) -> &Address {
        self.endpoint.as_ref().map_or(&self.settings.url, |endpoint| &endpoint.address)
    }

    /// Returns when Redis is elsewhere than where the link went.
    pub(super) fn endpoint_changed(&self) -> EndpointChanged {
        self.endpoint.as_ref().map_or_else(
            || Box::pin(std::future::pending()) as EndpointChanged,
            |endpoint| self.topology.changed(endpoint),
        )
    }

    /// Returns when what answers there says that it is no primary, where it has to be one.
    pub(super) async fn watch_role(&self, connection: &Multiplexed) -> BackendError {
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
    pub(super) async fn may_serve(&self, connection: &Multiplexed) -> Result<bool, BackendError> {
        if !self.topology.requires_cluster() {
            return Ok(true);
        }
        match require_primary(connection).await {
            // Whoever asks whether it was demoted ends the link.
            Err(error) if error != BackendError::Disconnected => return Ok(false),
            answer => answer?,
        }
        let info = handshake_command(connection, redis::cmd("CLUSTER").arg("INFO")).await?;
        Ok(tracking::text(&info).is_some_and(|info| info.contains("cluster_state:ok")))
    }

    /// An attempt came to nothing.
    pub(super) fn record_failure(&mut self) {
        self.failures = self.failures.wrapping_add(1);
    }

    /// Finds out anew whom to log in as.
    pub(super) async fn read_login(&mut self) -> Result<(), BackendError> {
        let settings = self.settings.clone();
        let pending_login = self
            .pending_login
            .get_or_insert_with(|| tokio::task::spawn_blocking(move || load_login(&settings)));
        let login = pending_login.await;
        self.pending_login = None;
        self.login =
            login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        Ok(())
    }

    /// A link over RESP2, over which Redis tells nothing.
    pub(super) async fn connect_untracked(&self) -> Result<Connected, BackendError> {
        let mut connected = self.open(Box::new(|_| ())).await?;
        let handshake_done = async {
            if let Some(login) = &self.login {
                authenticate(&connected.connection, login).await?;
            }
            self.handshake(&connected.connection).await
        };
        drive_until(&mut connected.driver, handshake_done).await?;
        Ok(connected)
    }

    /// A link over RESP3, with tracking if Redis grants it, and without if it may grant it later. `handler` is told what
    /// Redis tells.
    pub(super) async fn connect_tracked(
        &self,
        handler: InvalidationHandler,
    ) -> Result<Connected, TrackingError> {
        let mut connected = self.open(Box::new(move |push| handler.handle_push(push))).await?;
        let connection = &connected.connection;
        drive_until(&mut connected.driver, send_hello(connection, self.login.as_ref())).await?;
        let requested_at = Instant::now();
        drive_until(&mut connected.driver, self.handshake(connection)).await?;
        match drive_until(&mut connected.driver, tracking::enable(connection)).await {
            Ok(tracking) => connected.tracking = Some(TrackingGranted { tracking, requested_at }),
            Err(TrackingError::Refused(reason)) => connected.tracking_refusal = Some(reason),
            Err(error) => return Err(error),
        }
        Ok(connected)
    }

    /// Opens a stream, on which nothing is said yet.
    async fn open(&self, on_push: PushHandler) -> Result<Connected, BackendError> {
        let (stream, progress) =
            TrackedIo::new(self.dialer.dial(&self.address().addr, self.failures).await?);
        let (connection, driver) = Multiplexed::new(stream, self.settings.url.database, on_push);
        Ok(Connected {
            connection,
            driver: Box::pin(driver),
            progress,
            tracking: None,
            tracking_refusal: None,
        })
    }

    /// Chooses the database, says who we are, and sees whether Redis answers.
    async fn handshake(&self, connection: &Multiplexed) -> Result<(), BackendError> {
        if self.settings.url.database != 0 {
            let mut select = redis::cmd("SELECT");
            expect_ok(connection, select.arg(self.settings.url.database), handshake_error).await?;
        }
        // A user who may not do these can still read: the names are a courtesy to whoever reads CLIENT LIST.
        let refused = |error: &ServerError| {
            if is_unsupported(error) {
                BackendError::ErrorReply(error.code().into())
            } else {
                handshake_error(error)
            }
        };
        // Redis is asked, too, not to let this link go first when it is short of memory: all its readers would wait.
        let optional = [
            ["SETNAME", CLIENT_NAME].as_slice(),
            &["SETINFO", "LIB-NAME", CLIENT_NAME],
            &["NO-EVICT", "on"],
        ];
        for arguments in optional {
            let mut client = redis::cmd("CLIENT");
            ignore_error_reply(expect_ok(connection, client.arg(arguments), refused).await)?;
        }
        let ping = redis::cmd("PING");
        ignore_error_reply(expect_ok(connection, &ping, refused).await)?;
        if self.topology.requires_primary() { require_primary(connection).await } else { Ok(()) }
    }
}

/// Redis itself has to say, too, that it is the primary: who was told so may not be it yet.
async fn require_primary(connection: &Multiplexed) -> Result<(), BackendError> {
    match connection.send(&redis::cmd("ROLE")).await? {
        Value::ServerError(error) => Err(handshake_error(&error)),
        Value::Array(parts) if parts.first().and_then(tracking::text) == Some("master") => Ok(()),
        _ => Err(unreachable(&"it is called a primary, but it is a replica (ROLE)")),
    }
}
