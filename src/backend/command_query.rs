//! The question to a server which commands it confirms ([`ServerCommands`]).

use redis::Value;

use super::error::BackendError;
use super::multiplexed::Multiplexed;
use super::server_commands::{FIELD_EXPIRY_COMMAND, ServerCommands};
use super::value::field;

/// Requests what the server says about the commands of these names. `hello` is its reply to
/// `HELLO`. If the server refuses, nothing is confirmed.
///
/// # Errors
/// [`BackendError::Unreachable`] if there is no reply.
pub(super) async fn query_server_commands(
    connection: &Multiplexed,
    names: &[String],
    hello: &Value,
) -> Result<ServerCommands, BackendError> {
    if names.is_empty() {
        return Ok(ServerCommands::NONE);
    }
    let mut command = redis::cmd("COMMAND");
    command.arg("INFO").arg(names).arg(FIELD_EXPIRY_COMMAND);
    match connection.send(&command).await? {
        Value::ServerError(error) => {
            tracing::info!(
                reason = %format_args!("{} {}", error.code(), error.details().unwrap_or_default()),
                "Redis refuses COMMAND INFO (ACL right +command|info); only strings are kept"
            );
            Ok(ServerCommands::NONE)
        }
        information => Ok(ServerCommands::read(names, hello, &information)),
    }
}

/// Prepares a connection without tracking for replies that may be kept: switches it to RESP3, and
/// records the commands that the server confirms. A server that refuses stays as it is, and
/// confirms none.
///
/// # Errors
/// [`BackendError::Disconnected`] if there is no reply.
pub(super) async fn confirm_untracked(
    connection: &Multiplexed,
    names: &[String],
) -> Result<(), BackendError> {
    if names.is_empty() {
        return Ok(());
    }
    let hello = connection.send(redis::cmd("HELLO").arg(3)).await?;
    if matches!(field(&hello, "proto"), Some(Value::Int(3))) {
        connection.confirm_untracked(query_server_commands(connection, names, &hello).await?);
    }
    Ok(())
}
