//! The commands of a fetch, and the meaning of their replies.
//!
//! A reply that its command cannot have means that replies no longer match commands. Every later
//! reply could then belong to another key. This error is therefore distinct from every error that
//! Redis may return.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use redis::Value;

use super::error::{BackendError, Redirect, error_reply};
use crate::cache::FetchedBytes;

/// The data of a key in Redis: `None`, or the value with its time to live, if it has one.
pub(crate) type Reply = Option<(FetchedBytes, Option<Duration>)>;

/// The same, before a large value has its room in flight.
type ParsedReply = Option<(Bytes, Option<Duration>)>;

/// The commands that fetch a key's value and its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchCommand {
    /// `GET` and `PTTL` like [`GetPttl`](Self::GetPttl), or `GET` alone.
    ///
    /// Requires tracking. In the second case one request for many keys replaces `PTTL`
    /// ([`expiry_check`](super::expiry_check)).
    GetPttlTracked,
    /// `GET` and `PTTL` in a transaction, so that both describe the same state of the key.
    Transaction,
    /// `GET` and `PTTL`, each behind `ASKING`, which makes a node reply for a slot that is moving
    /// to it.
    Asking,
    /// `GET`, then `PTTL`.
    ///
    /// With tracking, a change between them is pushed before the second reply. The fetched value is
    /// then not stored (invariant F2).
    GetPttl,
}

impl FetchCommand {
    /// Appends the commands for `key` to `commands`; returns the number of their replies.
    pub(super) fn write(self, key: &[u8], commands: &mut BytesMut) -> usize {
        commands.reserve(2 * key.len() + COMMANDS_OVERHEAD);
        match self {
            Self::GetPttlTracked | Self::GetPttl => {
                write_value(key, commands);
                write_expiry(key, commands);
                2
            }
            Self::Asking => {
                write_with_key(b"*1\r\n$6\r\nASKING\r\n*2\r\n$3\r\nGET\r\n$", key, commands);
                write_with_key(b"*1\r\n$6\r\nASKING\r\n*2\r\n$4\r\nPTTL\r\n$", key, commands);
                4
            }
            Self::Transaction => {
                write_with_key(b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nGET\r\n$", key, commands);
                write_with_key(b"*2\r\n$4\r\nPTTL\r\n$", key, commands);
                commands.put_slice(b"*1\r\n$4\r\nEXEC\r\n");
                4
            }
        }
    }

    /// Parses the replies to the commands that [`write`](Self::write) appended.
    ///
    /// Each reply must be possible for its command. Otherwise shifted replies would return one
    /// key's value for another key.
    ///
    /// # Errors
    /// [`UnexpectedReply`] if a reply is not possible for its command. The inner [`BackendError`]
    /// is an error reply of Redis.
    pub(super) fn parse(
        self,
        replies: Vec<Value>,
    ) -> Result<Result<ParsedReply, BackendError>, UnexpectedReply> {
        match self {
            Self::GetPttlTracked | Self::GetPttl => parse_pair(replies),
            Self::Asking => parse_asking(replies),
            Self::Transaction => parse_transaction(replies),
        }
    }
}

/// Appends `GET` for `key`.
pub(super) fn write_value(key: &[u8], commands: &mut BytesMut) {
    write_with_key(b"*2\r\n$3\r\nGET\r\n$", key, commands);
}

/// Appends `PTTL` for `key`.
pub(super) fn write_expiry(key: &[u8], commands: &mut BytesMut) {
    write_with_key(b"*2\r\n$4\r\nPTTL\r\n$", key, commands);
}

/// The greatest number of bytes that the commands take in addition to the keys.
const COMMANDS_OVERHEAD: usize = 160;

/// Appends commands that end with the key. `words` is everything before the key's length.
fn write_with_key(words: &[u8], key: &[u8], commands: &mut BytesMut) {
    commands.put_slice(words);
    commands.put_slice(itoa::Buffer::new().format(key.len()).as_bytes());
    commands.put_slice(b"\r\n");
    commands.put_slice(key);
    commands.put_slice(b"\r\n");
}

/// A reply that no sent command can have.
#[derive(Debug, PartialEq)]
pub(super) struct UnexpectedReply;

fn parse_transaction(
    replies: Vec<Value>,
) -> Result<Result<ParsedReply, BackendError>, UnexpectedReply> {
    let [multi, get, pttl, exec] = <[Value; 4]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    // The error of a command rejected before EXEC has the reason; EXEC only reports the abort.
    if let Some(error) = [&multi, &get, &pttl, &exec].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    let queued = |reply: &Value| matches!(reply, Value::SimpleString(text) if text == "QUEUED");
    if multi != Value::Okay || !queued(&get) || !queued(&pttl) {
        return Err(UnexpectedReply);
    }
    let Value::Array(results) = exec else { return Err(UnexpectedReply) };
    parse_pair(results)
}

fn parse_asking(replies: Vec<Value>) -> Result<Result<ParsedReply, BackendError>, UnexpectedReply> {
    let [asking, value, asking_again, expiry] =
        <[Value; 4]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    if let Some(error) = [&asking, &asking_again].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    parse_pair(vec![value, expiry])
}

fn parse_pair(replies: Vec<Value>) -> Result<Result<ParsedReply, BackendError>, UnexpectedReply> {
    let [value, expiry] = <[Value; 2]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    if let Some(error) = [&value, &expiry].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    match (value, expiry) {
        (Value::Nil, Value::Int(_)) => Ok(Ok(None)),
        (Value::BulkString(value), Value::Int(milliseconds)) => {
            let expires_in = match milliseconds {
                NO_EXPIRY => None,
                // The key expired or was deleted between the two commands.
                NO_KEY => Some(Duration::ZERO),
                milliseconds => Some(Duration::from_millis(
                    u64::try_from(milliseconds).map_err(|_| UnexpectedReply)?,
                )),
            };
            Ok(Ok(Some((Bytes::from(value), expires_in))))
        }
        _ => Err(UnexpectedReply),
    }
}

/// The reply of PTTL for a key without expiry, and for a missing key.
pub(super) const NO_EXPIRY: i64 = -1;
pub(super) const NO_KEY: i64 = -2;

/// Returns the error of an error reply.
pub(super) fn server_error(reply: &Value) -> Option<BackendError> {
    match reply {
        Value::ServerError(error) => {
            let redirect = Redirect::parse(error.code(), error.details().unwrap_or_default());
            Some(redirect.map_or_else(|| error_reply(error.code()), BackendError::Moved))
        }
        _ => None,
    }
}
