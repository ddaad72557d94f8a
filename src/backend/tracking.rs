//! Tracking: Redis pushes invalidations of the keys that a connection has read (server-assisted
//! client-side caching).
//!
//! A push is applied where it is read, in the order of Redis and before any reply behind it. So no
//! queue of pushes exists that could overflow, and a reply proves that all earlier invalidations
//! have been applied. Every key of a push is invalidated, whatever its database, because a push
//! does not name the database. A push that cannot be parsed invalidates everything.
//!
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};

use super::command_query::query_server_commands;
use super::error::BackendError;
use super::events::Events;
use super::multiplexed::Multiplexed;
#[cfg(feature = "planted-faults")]
use super::planted_faults::PlantedFaults;
use super::probe::Probe;
use super::server_commands::ServerCommands;
use super::value::{field, text};
use crate::cache::Cache;
use crate::metrics::{Invalidation, Metrics};

/// The oldest major version of Redis that is supported. Older ones send pushes inside other
/// replies.
const OLDEST_MAJOR_VERSION: u32 = 7;

/// The tracking that Redis does for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tracking {
    /// The maximum number of keys for which Redis remembers the readers. `None`: no limit, or
    /// unknown.
    pub(super) table_limit: Option<usize>,
    /// The commands with replies that may be kept.
    pub(super) commands: ServerCommands,
}

/// The reason for which a connection has no tracking.
#[derive(Debug)]
pub(super) enum TrackingError {
    /// Redis does not track, or not reliably. Holds the reason.
    Refused(String),
    /// No reply was received.
    NoReply(BackendError),
}

impl From<BackendError> for TrackingError {
    fn from(error: BackendError) -> Self {
        Self::NoReply(error)
    }
}

/// Enables tracking and verifies it without writing anything. The connection has to use RESP3, to a
/// server that supports it. Tracking has to cover all keys read, and changes by all clients.
/// Success of the command proves too little: Redis accepts it over RESP2 as well, and then pushes
/// nothing. Also requests which of the commands `names` the server confirms.
///
/// # Errors
/// - [`TrackingError::Refused`] if the server does not track in this way, or rejects a command.
/// - [`TrackingError::NoReply`] if a command gets no reply.
pub(super) async fn enable(
    connection: &Multiplexed,
    names: &[String],
) -> Result<Tracking, TrackingError> {
    let server = query(connection, &["HELLO"]).await?;
    require_server(&server)?;
    query(connection, &["CLIENT", "TRACKING", "ON"]).await?;
    require_tracking(&query(connection, &["CLIENT", "TRACKINGINFO"]).await?)?;
    // The command may be forbidden. The limit is only needed for a warning.
    let limit = match query(connection, &["CONFIG", "GET", TABLE_LIMIT]).await {
        Ok(limits) => table_limit(&limits),
        Err(TrackingError::Refused(_)) => None,
        Err(error) => return Err(error),
    };
    let commands = query_server_commands(connection, names, &server).await?;
    Ok(Tracking { table_limit: limit, commands })
}

const TABLE_LIMIT: &str = "tracking-table-max-keys";

async fn query(connection: &Multiplexed, words: &[&str]) -> Result<Value, TrackingError> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    match connection.send(&command).await? {
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

/// Requires tracking of the keys that this connection reads, without prefixes or opt-in, and of
/// changes that it makes itself.
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
    // Zero means no limit.
    field(limits, TABLE_LIMIT).and_then(text)?.parse().ok().filter(|limit| *limit != 0)
}

/// The keys that a push invalidates.
#[derive(Debug, PartialEq, Eq)]
pub enum Invalidated {
    /// These keys only.
    Keys(Vec<Vec<u8>>),
    /// All keys.
    All,
}

/// Parses a push. Returns `None` if it is no invalidation, and [`Invalidated::All`] if the
/// invalidation is malformed.
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

/// Applies the pushes of tracked connections to the cache.
#[derive(Clone)]
pub(super) struct InvalidationHandler {
    pub(super) cache: Cache<BackendError>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) probe: Arc<Probe>,
    pub(super) events: Arc<Events>,
    #[cfg(feature = "planted-faults")]
    pub(super) faults: PlantedFaults,
}

impl InvalidationHandler {
    pub(super) fn handle_push(&self, push: PushInfo) {
        match parse_push(push) {
            None => {}
            Some(Invalidated::All) => {
                self.metrics.record_invalidations(Invalidation::All, 1);
                self.events.add("flush");
                self.cache.invalidate_all();
                self.probe.on_flush();
            }
            Some(Invalidated::Keys(keys)) => {
                self.metrics.record_invalidations(Invalidation::Key, keys.len());
                self.events.add_push(keys.len());
                for key in keys {
                    #[cfg(feature = "planted-faults")]
                    if self.faults.ignores_push() {
                        continue;
                    }
                    self.cache.invalidate(&key);
                    self.probe.on_invalidated(&key);
                }
            }
        }
    }
}

/// Logs a warning if the cache may hold more keys than Redis remembers.
pub(super) fn warn_if_table_small(tracking: Tracking, capacity: usize) {
    if let Some(limit) = tracking.table_limit.filter(|limit| *limit < capacity) {
        tracing::warn!(
            capacity,
            limit,
            "cache.capacity is more than Redis's {TABLE_LIMIT}; keys beyond that are dropped \
                from the cache again"
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
