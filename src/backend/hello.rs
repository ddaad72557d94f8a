//! The first words on a connection: `AUTH` and `HELLO`, and what Redis's answers to them mean.
//!
//! Redis's errors are passed on in its own words, but those about a login only by their first: Redis may repeat what it was
//! given.

use std::pin::{Pin, pin};

use redis::{Cmd, ServerError, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::credentials::Login;
use super::dial::Stream;
use super::error::{BackendError, auth_rejected, error_reply, is_final, unreachable};
use super::multiplexed::{Connection, ask};
use super::tracking::Untracked;

/// What reads and writes the stream, for as long as there is a connection; then, why there is none.
pub(super) type Driver = Pin<Box<dyn Future<Output = BackendError> + Send>>;

/// Longer than anything that Redis says to a login.
const LONGEST_ANSWER: usize = 1024;

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

pub(super) async fn authenticate(
    connection: &Connection,
    login: &Login,
) -> Result<(), BackendError> {
    demand(connection, &login.command(), |error| refused_login(error.code())).await
}

/// Only the first word: Redis may repeat what it was given.
fn refused_login(code: &str) -> BackendError {
    auth_rejected(&format_args!("Redis refused the login: {code}"))
}

pub(super) fn refused_link(error: &ServerError) -> BackendError {
    refused_with(error.code(), error.details().unwrap_or_default())
}

fn refused_with(code: &str, details: &str) -> BackendError {
    if is_final(code) {
        auth_rejected(&format_args!("Redis refused the link: {code} {details}"))
    } else {
        error_reply(code)
    }
}

/// One command of the handshake; `refused` says what it means that Redis answers with an error.
pub(super) async fn demand(
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
pub(super) fn is_unable(error: &ServerError) -> bool {
    let unknown =
        error.details().is_some_and(|details| details.to_ascii_lowercase().starts_with("unknown"));
    error.code() == "NOPERM" || (error.code() == "ERR" && unknown)
}

pub(super) fn accept_refusal(answer: Result<(), BackendError>) -> Result<(), BackendError> {
    match answer {
        Err(BackendError::ErrorReply(_)) => Ok(()),
        answer => answer,
    }
}

impl Login {
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
