//! The handshake: turns a stream into a connection that accepts requests and, if granted, receives
//! invalidations.
//!
//! No fetch uses a connection before Redis has accepted the login and has granted or refused
//! tracking (invariant C3). Redis's errors are passed on in full. Login errors keep only the first
//! word, because Redis may repeat the credentials that it received.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures_util::FutureExt as _;
use redis::{ServerError, Value};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::address::{Address, ConnectionAddr};
use super::command_query::confirm_untracked;
use super::credentials::{Login, is_in_file, load_login};
use super::dial::{Dialer, Dialled, PrepareError};
use super::endpoint::{Endpoint, EndpointChanged};
use super::error::{BackendError, REDIS_LOGIN, unreachable};
use super::hello::{
    BoxDriver, authenticate, drive_until, expect_ok, handshake_error, ignore_error_reply,
    is_unsupported, send_hello,
};
use super::multiplexed::{Multiplexed, PushHandler, closed};
use super::settings::Settings;
use super::tls_error;
use super::topology::Topology;
use super::tracking::{self, InvalidationHandler, Tracking, TrackingError};
use super::value::text;
use crate::net::{IoProgress, TrackedIo};

/// The name of the proxy's connections in Redis's `CLIENT LIST`.
const CLIENT_NAME: &str = "redis-proxy";

/// The reason for a connection without TLS that never had a reply.
const CLOSED_BEFORE_REPLY: &str = "Redis closed the connection before its first reply; if the \
    port is one with TLS, use rediss:// in redis.url or redis.seeds";

/// The reason for ending a connection that still works.
pub(super) const PRIMARY_CHANGED: &str = "Redis has another primary";

/// A connection with a complete handshake.
pub(super) struct Connected {
    pub(super) connection: Multiplexed,
    pub(super) driver: BoxDriver,
    pub(super) progress: Arc<IoProgress>,
    pub(super) tracking: Option<TrackingGranted>,
    /// The reason why Redis does not track here, if a later request may succeed.
    pub(super) tracking_refusal: Option<String>,
}

/// The tracking that Redis confirmed on a connection, and the time of the request.
#[derive(Clone, Copy)]
pub(super) struct TrackingGranted {
    pub(super) tracking: Tracking,
    pub(super) requested_at: Instant,
}

/// Opens connections to Redis and runs their handshakes.
pub(super) struct Connector {
    settings: Settings,
    dialer: Arc<Dialer>,
    topology: Arc<Topology>,
    /// The endpoint of the last attempt. A failed resolution keeps the previous one. `None` before
    /// the first.
    endpoint: Option<Endpoint>,
    /// The running read of the login. A disk may hang, so there is at most one at a time.
    pending_login: Option<JoinHandle<Result<Option<Login>, PrepareError>>>,
    login: Option<Login>,
    /// The number of failed attempts. Each further attempt starts with the next address of the
    /// host.
    failures: usize,
    /// Whether the attempt has not completed its TLS handshake yet.
    is_tls_pending: AtomicBool,
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
            is_tls_pending: AtomicBool::new(false),
        }
    }

    /// Keeps the topology current: the endpoint of Redis.
    pub(super) fn run_topology(&self) -> impl Future<Output = ()> + Send + use<> {
        let topology = Arc::clone(&self.topology);
        async move { topology.run().await }
    }

    /// Resolves the endpoint of the next connection.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if no endpoint is known.
    pub(super) async fn resolve_endpoint(&mut self) -> Result<(), BackendError> {
        self.endpoint = Some(self.topology.resolve().await?);
        Ok(())
    }

    /// Checks that the endpoint of the connection is still the current one.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] with [`PRIMARY_CHANGED`] if it is not (invariant T3).
    pub(super) fn verify_endpoint(&self) -> Result<(), BackendError> {
        let is_left = self.endpoint_changed().now_or_never().is_some();
        if is_left { Err(unreachable(&PRIMARY_CHANGED)) } else { Ok(()) }
    }

    /// Returns the address of the connection, as configured or as reported by a sentinel.
    pub(super) fn address(&self) -> &Address {
        self.endpoint.as_ref().map_or(&self.settings.url, |endpoint| &endpoint.address)
    }

    /// Completes when the current endpoint differs from that of the connection.
    pub(super) fn endpoint_changed(&self) -> EndpointChanged {
        self.endpoint.as_ref().map_or_else(
            || Box::pin(std::future::pending()) as EndpointChanged,
            |endpoint| self.topology.changed(endpoint),
        )
    }

    /// Returns the reason once the node reports that it is no primary. Stays pending if any role is
    /// allowed.
    pub(super) async fn watch_role(&self, connection: &Multiplexed) -> BackendError {
        loop {
            if !self.topology.requires_primary() {
                std::future::pending::<()>().await;
            }
            sleep(self.settings.ping_interval).await;
            match require_primary(connection).await {
                Err(error) if error != BackendError::Disconnected => return error,
                // The driver reports the end of the stream.
                _ => {}
            }
        }
    }

    /// Whether the node's data may be served (invariant P4).
    ///
    /// A cluster node must still be a primary, and must report that the cluster is up. Any other
    /// Redis always may.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`] if the connection ended; [`BackendError::Unreachable`] if
    /// `CLUSTER INFO` failed.
    pub(super) async fn may_serve(&self, connection: &Multiplexed) -> Result<bool, BackendError> {
        if !self.topology.requires_cluster() {
            return Ok(true);
        }
        match require_primary(connection).await {
            // `watch_role` ends the connection after a demotion.
            Err(error) if error != BackendError::Disconnected => return Ok(false),
            answer => answer?,
        }
        let info = connection.send(redis::cmd("CLUSTER").arg("INFO")).await?;
        Ok(text(&info).is_some_and(|info| info.contains("cluster_state:ok")))
    }

    /// Counts a failed attempt.
    pub(super) fn record_failure(&mut self) {
        self.failures = self.failures.wrapping_add(1);
    }

    /// Returns the reason for an attempt that took longer than `connect_timeout`.
    pub(super) fn timeout_error(&self) -> BackendError {
        if self.is_tls_pending.swap(false, Relaxed) {
            tls_error::handshake_timed_out()
        } else {
            BackendError::TimedOut
        }
    }

    /// Reads the login again, because its file may have changed.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the password file cannot be read.
    pub(super) async fn read_login(&mut self) -> Result<(), BackendError> {
        if !is_in_file(&self.settings) {
            self.login = load_login(&self.settings).map_err(|error| unreachable(&error))?;
            return Ok(());
        }
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

    /// Returns the login that was last read; `None` if neither user nor password is configured.
    pub(super) fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Reads the login, resolves the endpoint, and opens a connection that receives no
    /// invalidations.
    ///
    /// # Errors
    /// The [`BackendError`] of the step that failed.
    pub(super) async fn connect_anew(&mut self) -> Result<Connected, BackendError> {
        self.read_login().await?;
        self.resolve_endpoint().await?;
        self.connect_untracked(&[]).await
    }

    /// Opens a connection that receives no invalidations. The server is asked about the commands
    /// `names`; without any the connection speaks RESP2.
    ///
    /// # Errors
    /// The [`BackendError`] of dialling or of the first handshake command that failed.
    pub(super) async fn connect_untracked(
        &self,
        names: &[String],
    ) -> Result<Connected, BackendError> {
        let mut connected = self.open(Box::new(|_| ())).await?;
        let handshake_done = async {
            if let Some(login) = &self.login {
                authenticate(&connected.connection, login).await?;
            }
            self.handshake(&connected.connection).await?;
            confirm_untracked(&connected.connection, names).await
        };
        drive_until(&mut connected.driver, handshake_done).await?;
        Ok(connected)
    }

    /// Opens a connection over RESP3. `handler` receives the pushes, and the server is asked about
    /// the commands `names`.
    ///
    /// If Redis refuses tracking but may grant it later, the connection has none and carries the
    /// reason.
    ///
    /// # Errors
    /// [`TrackingError::Refused`] if Redis lacks `HELLO` or RESP3; [`TrackingError::NoReply`] if
    /// dialling or a handshake command failed.
    pub(super) async fn connect_tracked(
        &self,
        handler: InvalidationHandler,
        names: &[String],
    ) -> Result<Connected, TrackingError> {
        let mut connected = self.open(Box::new(move |push| handler.handle_push(push))).await?;
        let connection = &connected.connection;
        drive_until(
            &mut connected.driver,
            send_hello(connection, self.login.as_ref(), REDIS_LOGIN),
        )
        .await?;
        let requested_at = Instant::now();
        drive_until(&mut connected.driver, self.handshake(connection)).await?;
        match drive_until(&mut connected.driver, tracking::enable(connection, names)).await {
            Ok(tracking) => connected.tracking = Some(TrackingGranted { tracking, requested_at }),
            Err(TrackingError::Refused(reason)) => {
                let confirmed = confirm_untracked(&connected.connection, names);
                drive_until(&mut connected.driver, confirmed).await?;
                connected.tracking_refusal = Some(reason);
            }
            Err(error) => return Err(error),
        }
        Ok(connected)
    }

    /// Opens a stream and wraps it, without sending anything.
    async fn open(&self, on_push: PushHandler) -> Result<Connected, BackendError> {
        let addr = &self.address().addr;
        let (uses_tls, is_plain) = match addr {
            ConnectionAddr::Tcp { tls, .. } => (*tls, !tls),
            ConnectionAddr::Unix(_) => (false, false),
        };
        self.is_tls_pending.store(uses_tls, Relaxed);
        let dialled = self.dialer.dial(addr, self.failures).await;
        self.is_tls_pending.store(false, Relaxed);
        let Dialled { stream, direct_writer } = dialled?;
        let (stream, progress) = TrackedIo::new(stream);
        let (connection, driver) =
            Multiplexed::new(stream, direct_writer, self.settings.url.database, on_push);
        let handle = connection.clone();
        let driver = async move {
            match driver.await {
                // A TLS port closes a connection that begins without TLS.
                error if is_plain && error == closed() && handle.reply_count() == 0 => {
                    unreachable(&CLOSED_BEFORE_REPLY)
                }
                error => error,
            }
        };
        Ok(Connected {
            connection,
            driver: Box::pin(driver),
            progress,
            tracking: None,
            tracking_refusal: None,
        })
    }

    /// Selects the database, names the connection and checks that Redis replies, and its role if
    /// required.
    async fn handshake(&self, connection: &Multiplexed) -> Result<(), BackendError> {
        if self.settings.url.database != 0 {
            let mut select = redis::cmd("SELECT");
            expect_ok(connection, select.arg(self.settings.url.database), handshake_error).await?;
        }
        // A user without these permissions can still read. The names only help readers of CLIENT
        // LIST.
        let refused = |error: &ServerError| {
            if is_unsupported(error) {
                BackendError::ErrorReply(error.code().into())
            } else {
                handshake_error(error)
            }
        };
        // NO-EVICT keeps Redis short of memory from closing this connection first; otherwise all
        // readers would wait.
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

/// Requires Redis itself to report that it is the primary (invariant T2).
///
/// A node that a sentinel or the cluster reports as the primary may not have been promoted yet.
///
/// # Errors
/// [`BackendError::Unreachable`] if it is a replica; [`BackendError::AuthRejected`] or
/// [`BackendError::Unavailable`] for an error reply; [`BackendError::Disconnected`] if the
/// connection ended.
async fn require_primary(connection: &Multiplexed) -> Result<(), BackendError> {
    match connection.send(&redis::cmd("ROLE")).await? {
        Value::ServerError(error) => Err(handshake_error(&error)),
        Value::Array(parts) if parts.first().and_then(text) == Some("master") => Ok(()),
        _ => Err(unreachable(&"it is called a primary, but it is a replica (ROLE)")),
    }
}
