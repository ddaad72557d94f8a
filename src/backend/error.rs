//! Errors of requests to Redis.

use std::fmt;
use std::sync::Arc;

use redis::Value;

use crate::cache::Cancelled;

/// The reason why Redis returned no value. Cheap to clone: every reader of a flight gets a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no connection to Redis, for this reason.
    #[error("{0}")]
    Unreachable(Arc<str>),
    /// There is no connection, because Redis rejected the handshake or its certificate is invalid.
    #[error("{0}")]
    AuthRejected(Arc<str>),
    /// Redis did not reply within the timeout.
    #[error("no reply in time")]
    TimedOut,
    /// The connection ended before the reply.
    #[error("the connection was lost")]
    Disconnected,
    /// The queue of waiting reads is full (`redis.max_queue`).
    #[error("too many reads are waiting")]
    Overloaded,
    /// Redis is temporarily unable to reply (`LOADING`, `MASTERDOWN`...); the first word of its
    /// error.
    #[error("Redis cannot reply now: {0}")]
    Unavailable(Arc<str>),
    /// Redis replied with another error; its first word.
    #[error("Redis replied with the error {0}")]
    ErrorReply(Arc<str>),
    /// A node of a cluster redirected the request to another node.
    #[error("Redis replied with the error {code}: it is a node of a cluster \
        (redis.mode)", code = _0.code())]
    Moved(Redirect),
    /// The value of the key is not a string.
    #[error("the key holds another type than a string")]
    WrongType,
    /// The value is larger than the limit for served values.
    #[error("the value is larger than http.max_value")]
    TooLarge,
    /// Redis closes each connection over which it would send the reply.
    #[error("Redis closes the connection over the reply (client-output-buffer-limit)")]
    OutputLimit,
    /// The fetch was cancelled because the daemon is shutting down.
    #[error("the fetch was cancelled")]
    Cancelled,
}

impl BackendError {
    /// Returns the kind as a label: one of
    /// [`BACKEND_ERROR_KINDS`](crate::metrics::BACKEND_ERROR_KINDS).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::AuthRejected(_) => "auth",
            Self::TimedOut => "timeout",
            Self::Disconnected => "disconnected",
            Self::Overloaded => "overloaded",
            Self::Unavailable(_) => "unavailable",
            Self::ErrorReply(_) | Self::Moved(_) => "error_reply",
            Self::WrongType => "wrong_type",
            Self::TooLarge | Self::OutputLimit => "too_large",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the first word of Redis's error, or `None` if the error is not a reply of Redis.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Unavailable(code) | Self::ErrorReply(code) => Some(code),
            Self::Moved(redirect) => Some(redirect.code()),
            Self::WrongType => Some("WRONGTYPE"),
            _ => None,
        }
    }

    /// Whether a client's command should be forwarded to Redis after this error.
    ///
    /// The client may then receive another reply, or the same error in Redis's own words.
    pub fn should_forward(&self) -> bool {
        !matches!(self, Self::TimedOut | Self::Cancelled)
    }

    /// Whether the condition may end shortly without an operator's action.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::AuthRejected(_))
    }

    /// Whether Redis replied, or would close the connection instead, rather than being unavailable.
    pub(super) fn is_reply(&self) -> bool {
        matches!(
            self,
            Self::ErrorReply(_)
                | Self::Moved(_)
                | Self::WrongType
                | Self::TooLarge
                | Self::OutputLimit
        )
    }
}

impl From<Cancelled> for BackendError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// The target to which a cluster node redirects a request for a key that it does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Whether the redirect applies to this request only, because the slot is still moving (`ASK`).
    pub is_ask: bool,
    /// The hash slot of the key.
    pub slot: u16,
    /// Host and port. An empty host means that of the node that redirects.
    pub address: (String, u16),
}

impl Redirect {
    /// Parses `MOVED slot host:port` or `ASK slot host:port`; returns `None` for any other error.
    pub(crate) fn parse(code: &str, details: &str) -> Option<Self> {
        let is_ask = match code {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let (slot, address) = details.split_once(' ')?;
        let (host, port) = address.rsplit_once(':')?;
        Some(Self {
            is_ask,
            slot: slot.parse().ok()?,
            address: (host.to_owned(), port.parse().ok()?),
        })
    }

    pub(super) fn code(&self) -> &'static str {
        if self.is_ask { "ASK" } else { "MOVED" }
    }
}

/// The first word of Redis's error for a request that the user may not send.
pub(super) const NO_PERMISSION: &str = "NOPERM";

/// Returns the error for a reply with this first word.
pub(super) fn error_reply(code: &str) -> BackendError {
    match code {
        "WRONGTYPE" => BackendError::WrongType,
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => {
            BackendError::Unavailable(code.into())
        }
        code => BackendError::ErrorReply(code.into()),
    }
}

/// Whether Redis would send the same error again shortly.
pub(super) fn is_final(code: &str) -> bool {
    !matches!(error_reply(code), BackendError::Unavailable(_))
}

pub(super) fn unreachable(reason: &dyn fmt::Display) -> BackendError {
    BackendError::Unreachable(one_line(reason).into())
}

pub(super) fn auth_rejected(reason: &dyn fmt::Display) -> BackendError {
    BackendError::AuthRejected(one_line(reason).into())
}

/// The settings of the login to Redis, for messages.
pub(super) const REDIS_LOGIN: &str = "redis.username and redis.password_file";
/// The settings of the login to the sentinels, for messages.
pub(super) const SENTINEL_LOGIN: &str = "redis.sentinel_username and redis.sentinel_password_file";

/// Returns the error for a rejected login. It keeps only the first word: Redis may repeat the
/// credentials. `login_settings` names the settings of the login.
pub(super) fn login_error(code: &str, login_settings: &str) -> BackendError {
    auth_rejected(&format_args!("Redis refused the login: {code} (see {login_settings})"))
}

/// Returns the error for the reply to a login that is repeated behind other requests, unless the
/// user may go on.
///
/// From version 7.2 on, Redis sends no reply to a rejected login while it sends another reply. The
/// reply at its place is then that to the next command.
pub(super) fn repeated_login_error(reply: &Value) -> Option<BackendError> {
    match reply {
        Value::Okay => None,
        Value::ServerError(error) if error.code() == "ERR" => {
            // Versions before 6 reject with this code. Its other errors concern the command.
            let is_rejected = error.details().is_some_and(|text| text == "invalid password");
            is_rejected.then(|| login_error("ERR invalid password", REDIS_LOGIN))
        }
        Value::ServerError(error) if error.code() == "WRONGPASS" => {
            Some(login_error("WRONGPASS", REDIS_LOGIN))
        }
        _ => Some(login_error("it got no reply", REDIS_LOGIN)),
    }
}

/// Replaces control characters by spaces.
///
/// A reason may quote the remote side and goes to logs and to systemd, where a line end starts a
/// new record.
fn one_line(reason: &dyn fmt::Display) -> String {
    reason.to_string().replace(char::is_control, " ")
}
