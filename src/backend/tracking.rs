//! Tracking: Redis tells a link which of the keys it has read were changed (server-assisted client-side caching).
//!
//! A push is heeded where it is read, in the order in which Redis sent it and before any answer behind it, so nothing
//! is queued here that could overflow, and an answer to a question proves that everything Redis told before it has been
//! heeded. Every key of a push is invalidated, whichever database it names, since Redis does not say which. A push that
//! cannot be understood means that everything may have changed.
//!
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};

use super::error::BackendError;
use super::multiplexed::{Multiplexed, handshake_command};
use super::probe::Probe;
use crate::cache::Cache;
use crate::metrics::{Invalidation, Metrics};

/// Older ones put pushes into the middle of replies.
const OLDEST_MAJOR_VERSION: u32 = 7;

/// What Redis says of the tracking it does for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tracking {
    /// For how many keys Redis remembers who has read them; `None`: for all, or it does not say.
    pub(super) table_limit: Option<usize>,
}

/// Why there is no tracking on a link.
#[derive(Debug)]
pub(super) enum TrackingError {
    /// Redis does not do it, or not reliably: the reason.
    Refused(String),
    /// Redis cannot be asked.
    NoReply(BackendError),
}

impl From<BackendError> for TrackingError {
    fn from(error: BackendError) -> Self {
        Self::NoReply(error)
    }
}

/// Turns tracking on and sees whether it is, without writing anything: a link that speaks RESP3 to a server that can do
/// it, and for all that the link reads, changes by anyone. Redis says yes to the command over RESP2 as well, and then
/// tells nothing.
pub(super) async fn enable(connection: &Multiplexed) -> Result<Tracking, TrackingError> {
    let server = query(connection, &["HELLO"]).await?;
    require_server(&server)?;
    query(connection, &["CLIENT", "TRACKING", "ON"]).await?;
    require_tracking(&query(connection, &["CLIENT", "TRACKINGINFO"]).await?)?;
    // It may be forbidden, and is only there to be warned of.
    let limit = match query(connection, &["CONFIG", "GET", TABLE_LIMIT]).await {
        Ok(limits) => table_limit(&limits),
        Err(TrackingError::Refused(_)) => None,
        Err(error) => return Err(error),
    };
    Ok(Tracking { table_limit: limit })
}

const TABLE_LIMIT: &str = "tracking-table-max-keys";

async fn query(connection: &Multiplexed, words: &[&str]) -> Result<Value, TrackingError> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    match handshake_command(connection, &command).await? {
        Value::ServerError(error) => {
            let details = error.details().unwrap_or_default();
            Err(TrackingError::Refused(format!(
                "it answered {}: {} {details}",
                words.join(" "),
                error.code()
            )))
        }
        answer => Ok(answer),
    }
}

fn require_server(hello: &Value) -> Result<(), TrackingError> {
    let protocol = field(hello, "proto");
    if !matches!(protocol, Some(Value::Int(3))) {
        return Err(TrackingError::Refused("it does not speak RESP3".to_owned()));
    }
    let version = field(hello, "version").and_then(text).unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= OLDEST_MAJOR_VERSION) {
        return Ok(());
    }
    Err(TrackingError::Refused(format!(
        "its version is {version:?}, expected {OLDEST_MAJOR_VERSION}.0 or newer"
    )))
}

/// Tracking must be on, for what this link reads (no prefixes, no opting), and also for changes that it makes itself.
fn require_tracking(info: &Value) -> Result<(), TrackingError> {
    let flags = match field(info, "flags") {
        Some(Value::Set(flags) | Value::Array(flags)) => flags.iter().filter_map(text).collect(),
        _ => Vec::new(),
    };
    if flags == ["on"] {
        return Ok(());
    }
    Err(TrackingError::Refused(format!("CLIENT TRACKINGINFO says {flags:?}, expected [\"on\"]")))
}

fn table_limit(limits: &Value) -> Option<usize> {
    // Zero is no limit.
    field(limits, TABLE_LIMIT).and_then(text)?.parse().ok().filter(|limit| *limit != 0)
}

pub(super) fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Map(fields) = map else { return None };
    fields.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value)
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// What a push says was changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Invalidated {
    /// These keys, and no others.
    Keys(Vec<Vec<u8>>),
    /// Any key there is.
    All,
}

/// Reads a push; `None` where it is about something else.
pub fn parse_push(push: PushInfo) -> Option<Invalidated> {
    if push.kind != PushKind::Invalidate {
        return None;
    }
    let Ok([Value::Array(keys)]) = <[Value; 1]>::try_from(push.data) else {
        return Some(Invalidated::All);
    };
    let keys = keys.into_iter().map(|key| match key {
        Value::BulkString(key) => Some(key),
        _ => None,
    });
    Some(keys.collect::<Option<_>>().map_or(Invalidated::All, Invalidated::Keys))
}

/// Does what the pushes of tracked links ask for.
#[derive(Clone)]
pub(super) struct InvalidationHandler {
    pub(super) cache: Cache<BackendError>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) probe: Arc<Probe>,
}

impl InvalidationHandler {
    pub(super) fn handle_push(&self, push: PushInfo) {
        match parse_push(push) {
            None => {}
            Some(Invalidated::All) => {
                self.metrics.record_invalidations(Invalidation::All, 1);
                self.cache.invalidate_all();
                self.probe.on_flush();
            }
            Some(Invalidated::Keys(keys)) => {
                self.metrics.record_invalidations(Invalidation::Key, keys.len());
                for key in keys {
                    self.cache.invalidate(&key);
                    self.probe.on_invalidated(&key);
                }
            }
        }
    }
}

/// Says so when Redis is to remember more keys than it does.
pub(super) fn warn_if_table_small(tracking: Tracking, capacity: usize) {
    if let Some(limit) = tracking.table_limit.filter(|limit| *limit < capacity) {
        tracing::warn!(
            capacity,
            limit,
            "cache.capacity is more than Redis's {TABLE_LIMIT}; keys beyond that are dropped from the cache again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn invalidate(data: Vec<Value>) -> Option<Invalidated> {
        parse_push(PushInfo { kind: PushKind::Invalidate, data })
    }

    #[test]
    fn invalidation_lists_keys_or_everything() {
        let two = vec![Value::Array(vec![bulk("a"), bulk("b")])];
        assert_eq!(invalidate(two), Some(Invalidated::Keys(vec![b"a".to_vec(), b"b".to_vec()])));
        assert_eq!(invalidate(vec![Value::Nil]), Some(Invalidated::All));
    }

    #[test]
    fn malformed_invalidation_flushes_everything() {
        for odd in [
            vec![],
            vec![Value::Array(vec![bulk("a"), Value::Int(1)])],
            vec![Value::Array(vec![bulk("a")]), Value::Nil],
            vec![bulk("a")],
        ] {
            assert_eq!(invalidate(odd.clone()), Some(Invalidated::All), "{odd:?}");
        }
    }

    #[test]
    fn unrelated_push_is_ignored() {
        assert_eq!(
            parse_push(PushInfo {
                kind: PushKind::Message,
                data: vec![bulk("channel"), bulk("text")]
            }),
            None
        );
    }

    fn hello(protocol: i64, version: &str) -> Value {
        Value::Map(vec![
            (bulk("server"), bulk("redis")),
            (bulk("version"), bulk(version)),
            (bulk("proto"), Value::Int(protocol)),
        ])
    }

    #[test]
    fn unreliable_tracking_server_is_rejected() {
        assert!(require_server(&hello(3, "7.0.15")).is_ok());
        assert!(require_server(&hello(3, "10.1")).is_ok());
        for bad in [
            hello(2, "7.0.15"),
            hello(3, "6.2.14"),
            hello(3, ""),
            hello(3, "unstable"),
            Value::Okay,
        ] {
            assert!(require_server(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tracking_requires_all_keys_and_writers() {
        let info = |flags: &[&str]| {
            let flags = flags.iter().map(|flag| bulk(flag)).collect();
            Value::Map(vec![(bulk("flags"), Value::Set(flags)), (bulk("redirect"), Value::Int(0))])
        };
        assert!(require_tracking(&info(&["on"])).is_ok());
        for bad in [&["off"][..], &["on", "bcast"], &["on", "noloop"], &["on", "optin"], &[]] {
            assert!(require_tracking(&info(bad)).is_err(), "{bad:?}");
        }
        assert!(require_tracking(&Value::Okay).is_err());
    }
}
