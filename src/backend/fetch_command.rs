//! What is asked of Redis, and what its answers mean.
//!
//! An answer that its question cannot have means that answers and questions do not match any more, so whose would the
//! next one be? It is told apart from every error that Redis may give.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use redis::Value;

use super::error::{BackendError, Redirect, error_reply};

/// What Redis has for a key: nothing, or its value, with its time to live if it has one.
pub(crate) type Reply = Option<(Bytes, Option<Duration>)>;

/// How a key's value and its time to live are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchCommand {
    /// As [`GetPttl`](Self::GetPttl), or the value alone where one question tells that no key has a time to live
    /// ([`expiry_check`](super::expiry_check)). Only where Redis tells of changes.
    GetPttlTracked,
    /// Both in a transaction, so they belong together.
    Transaction,
    /// A pair, with leave to answer for a slot that is on its way.
    Asking,
    /// One after the other. What comes in between is told before the second answer where Redis tells of changes, and
    /// then the answer is not kept.
    GetPttl,
}

impl FetchCommand {
    /// Writes the commands; returns how many answers they have.
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

    /// Reads the answers. Each must be one that its command can have: a link on which answers have shifted would
    /// otherwise give one key's value for another.
    pub(super) fn parse(
        self,
        replies: Vec<Value>,
    ) -> Result<Result<Reply, BackendError>, UnexpectedReply> {
        match self {
            Self::GetPttlTracked | Self::GetPttl => parse_pair(replies),
            Self::Asking => parse_asking(replies),
            Self::Transaction => parse_transaction(replies),
        }
    }
}

/// Asks for a value.
pub(super) fn write_value(key: &[u8], commands: &mut BytesMut) {
    write_with_key(b"*2\r\n$3\r\nGET\r\n$", key, commands);
}

/// Asks for a time to live.
pub(super) fn write_expiry(key: &[u8], commands: &mut BytesMut) {
    write_with_key(b"*2\r\n$4\r\nPTTL\r\n$", key, commands);
}

/// What is written besides the keys at most.
const COMMANDS_OVERHEAD: usize = 160;

/// Writes commands of which the key is the last word; `words` is what goes before its length.
fn write_with_key(words: &[u8], key: &[u8], commands: &mut BytesMut) {
    commands.put_slice(words);
    commands.put_slice(itoa::Buffer::new().format(key.len()).as_bytes());
    commands.put_slice(b"\r\n");
    commands.put_slice(key);
    commands.put_slice(b"\r\n");
}

/// A reply that nothing that was asked can have.
#[derive(Debug, PartialEq)]
pub(super) struct UnexpectedReply;

fn parse_transaction(replies: Vec<Value>) -> Result<Result<Reply, BackendError>, UnexpectedReply> {
    let [multi, get, pttl, exec] = <[Value; 4]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    // A command refused before EXEC says why; EXEC then says only that it was.
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

fn parse_asking(replies: Vec<Value>) -> Result<Result<Reply, BackendError>, UnexpectedReply> {
    let [asking, value, asking_again, expiry] =
        <[Value; 4]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    if let Some(error) = [&asking, &asking_again].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    parse_pair(vec![value, expiry])
}

fn parse_pair(replies: Vec<Value>) -> Result<Result<Reply, BackendError>, UnexpectedReply> {
    let [value, expiry] = <[Value; 2]>::try_from(replies).map_err(|_| UnexpectedReply)?;
    if let Some(error) = [&value, &expiry].into_iter().find_map(server_error) {
        return Ok(Err(error));
    }
    match (value, expiry) {
        (Value::Nil, Value::Int(_)) => Ok(Ok(None)),
        (Value::BulkString(value), Value::Int(milliseconds)) => {
            let expires_in = match milliseconds {
                NO_EXPIRY => None,
                // The value was there, and is gone by now.
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

/// What PTTL says of a key without expiry, and of one that is not there.
pub(super) const NO_EXPIRY: i64 = -1;
const NO_KEY: i64 = -2;

fn server_error(reply: &Value) -> Option<BackendError> {
    match reply {
        Value::ServerError(error) => {
            let redirect = Redirect::parse(error.code(), error.details().unwrap_or_default());
            Some(redirect.map_or_else(|| error_reply(error.code()), BackendError::Moved))
        }
        _ => None,
    }
}
