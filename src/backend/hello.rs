//! The first commands on a connection, `AUTH` and `HELLO`, and the meaning of their replies.
//!
//! Redis's errors are passed on in full. Login errors keep only the first word, because Redis may
//! repeat the credentials that it received.

use std::pin::{Pin, pin};

use redis::{Cmd, ServerError, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::credentials::Login;
use super::error::{
    BackendError, NO_PERMISSION, REDIS_LOGIN, auth_rejected, error_reply, is_final, login_error,
    unreachable,
};
use super::multiplexed::Multiplexed;
use super::network::Stream;
use super::tracking::TrackingError;

/// The future that reads and writes the stream. It completes with the reason once the connection
/// ends.
pub(super) type BoxDriver = Pin<Box<dyn Future<Output = BackendError> + Send>>;

/// The limit for a login reply, in bytes. Every reply of Redis to a login is shorter.
const MAX_LOGIN_REPLY: usize = 1024;

/// The error of a handshake.
pub(super) trait HandshakeError: From<BackendError> {
    /// Whether it has no other cause than the end of the connection.
    fn is_disconnection(&self) -> bool;
}

impl HandshakeError for BackendError {
    fn is_disconnection(&self) -> bool {
        *self == Self::Disconnected
    }
}

impl HandshakeError for TrackingError {
    fn is_disconnection(&self) -> bool {
        matches!(self, Self::NoReply(BackendError::Disconnected))
    }
}

/// Runs the handshake while the driver moves its bytes.
///
/// # Errors
/// The error of the handshake; the driver's, which has the reason, if the stream ends first.
pub(super) async fn drive_until<T, E: HandshakeError>(
    driver: &mut BoxDriver,
    handshake: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut handshake = pin!(handshake);
    tokio::select! {
        biased;
        shaken = &mut handshake => shaken,
        ended = driver => {
            // An error that Redis sent before it closed the connection is the better reason.
            match handshake.await {
                Err(error) if !error.is_disconnection() => Err(error),
                _ => Err(ended.into()),
            }
        }
    }
}

/// Sends HELLO, which requests RESP3 and includes the login. `login_settings` names the settings of
/// the login, for messages.
///
/// # Errors
/// [`TrackingError::Refused`] if Redis lacks `HELLO` or RESP3; [`TrackingError::NoReply`] for any
/// other error or no reply.
pub(super) async fn send_hello(
    connection: &Multiplexed,
    login: Option<&Login>,
    login_settings: &str,
) -> Result<(), TrackingError> {
    let mut hello = redis::cmd("HELLO");
    hello.arg(3);
    if let Some(login) = login {
        hello.arg("AUTH").arg(login.user()).arg(login.password.reveal());
    }
    match connection.send(&hello).await? {
        Value::ServerError(error) => {
            let details = error.details().unwrap_or_default();
            Err(hello_error(error.code(), details, login.is_some(), login_settings))
        }
        _ => Ok(()),
    }
}

/// Returns the error for an error reply to HELLO.
fn hello_error(code: &str, details: &str, has_login: bool, login_settings: &str) -> TrackingError {
    match code {
        "ERR" if details.to_ascii_lowercase().starts_with("unknown") => {
            TrackingError::Refused("it does not know HELLO".to_owned())
        }
        "NOPROTO" => TrackingError::Refused("it does not speak RESP3".to_owned()),
        "ERR" if is_max_clients(details) => max_clients_error().into(),
        "NOAUTH" => login_required(login_settings).into(),
        code if has_login && is_final(code) => login_error(code, login_settings).into(),
        code => error_for_code(code, details).into(),
    }
}

pub(super) async fn authenticate(
    connection: &Multiplexed,
    login: &Login,
) -> Result<(), BackendError> {
    expect_ok(connection, &login.command(), |error| login_error(error.code(), REDIS_LOGIN)).await
}

/// Returns the error for a connection without a login to a Redis that requires one.
fn login_required(login_settings: &str) -> BackendError {
    auth_rejected(&format_args!("Redis requires a login: NOAUTH (set {login_settings})"))
}

pub(super) fn handshake_error(error: &ServerError) -> BackendError {
    error_for_code(error.code(), error.details().unwrap_or_default())
}

fn error_for_code(code: &str, details: &str) -> BackendError {
    if code == "NOAUTH" {
        login_required(REDIS_LOGIN)
    } else if is_final(code) {
        auth_rejected(&format_args!("Redis refused the connection: {code} {details}"))
    } else {
        error_reply(code)
    }
}

/// Sends one command of the handshake. `refused` converts an error reply.
///
/// # Errors
/// [`BackendError::Unavailable`] at Redis's client limit; the result of `refused` for other error
/// replies; [`BackendError::Unreachable`] without a reply.
pub(super) async fn expect_ok(
    connection: &Multiplexed,
    command: &Cmd,
    refused: impl FnOnce(&ServerError) -> BackendError,
) -> Result<(), BackendError> {
    match connection.send(command).await? {
        Value::ServerError(error) if is_max_clients(error.details().unwrap_or_default()) => {
            Err(max_clients_error())
        }
        Value::ServerError(error) => Err(refused(&error)),
        _ => Ok(()),
    }
}

/// Whether Redis reports that it has reached its client limit. It does so before any request.
fn is_max_clients(details: &str) -> bool {
    details.starts_with(MAX_CLIENTS)
}

/// Returns a transient error: a connection is possible once another client disconnects.
fn max_clients_error() -> BackendError {
    BackendError::Unavailable(MAX_CLIENTS.into())
}

const MAX_CLIENTS: &str = "max number of clients reached";

/// Whether the user lacks the permission or the server lacks the command. Either way Redis replies,
/// which suffices.
pub(super) fn is_unsupported(error: &ServerError) -> bool {
    let unknown =
        error.details().is_some_and(|details| details.to_ascii_lowercase().starts_with("unknown"));
    error.code() == NO_PERMISSION || (error.code() == "ERR" && unknown)
}

pub(super) fn ignore_error_reply(answer: Result<(), BackendError>) -> Result<(), BackendError> {
    match answer {
        Err(BackendError::ErrorReply(_)) => Ok(()),
        answer => answer,
    }
}

impl Login {
    /// Logs in on a stream on which nothing was sent yet.
    ///
    /// # Errors
    /// [`BackendError::AuthRejected`] if Redis rejects the login; [`BackendError::Unavailable`] at
    /// its client limit; [`BackendError::Unreachable`] if the stream fails.
    pub(super) async fn log_in(&self, stream: &mut dyn Stream) -> Result<(), BackendError> {
        stream
            .write_all(&self.command().get_packed_command())
            .await
            .map_err(|error| unreachable(&error))?;
        stream.flush().await.map_err(|error| unreachable(&error))?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") && answer.len() < MAX_LOGIN_REPLY {
            answer.push(stream.read_u8().await.map_err(|error| unreachable(&error))?);
        }
        if answer.starts_with(b"+") {
            return Ok(());
        }
        if is_max_clients(String::from_utf8_lossy(&answer).trim_start_matches("-ERR ")) {
            return Err(max_clients_error());
        }
        let code = answer
            .get(1..)
            .unwrap_or_default()
            .split(u8::is_ascii_whitespace)
            .next()
            .unwrap_or_default();
        Err(login_error(&String::from_utf8_lossy(code), REDIS_LOGIN))
    }
}
