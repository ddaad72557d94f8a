//! What can go wrong when Redis is asked.

use std::fmt;
use std::sync::Arc;

use crate::cache::Cancelled;

/// Why Redis gave no value. Cheap to clone: every reader of a flight gets one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no link to Redis.
    #[error("{0}")]
    Unreachable(Arc<str>),
    /// There is no link to Redis, because it, or the certificate it shows, does not admit one.
    #[error("{0}")]
    AuthRejected(Arc<str>),
    /// Redis, or the way to it, did not answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The link was lost while the answer was awaited.
    #[error("the link was lost")]
    Disconnected,
    /// As many reads wait as may.
    #[error("too many reads are waiting")]
    Overloaded,
    /// Redis answered that it cannot answer now (`LOADING`, `MASTERDOWN`...).
    #[error("Redis is not able to answer now: {0}")]
    Unavailable(Arc<str>),
    /// Redis answered with an error, known by its first word.
    #[error("Redis answered with the error {0}")]
    ErrorReply(Arc<str>),
    /// A node of a cluster sent us to another.
    #[error("Redis answered with the error {code}: it is a node of a cluster (redis.mode)", code = _0.code())]
    Moved(Redirect),
    /// The key holds something else than a string.
    #[error("the key holds another type than a string")]
    WrongType,
    /// The value is larger than may be given out.
    #[error("the value is larger than is given out")]
    TooLarge,
    /// The daemon is going down.
    #[error("the fetch was given up")]
    Cancelled,
}

impl BackendError {
    /// The kind, as a label: one of [`BACKEND_ERROR_KINDS`](crate::metrics::BACKEND_ERROR_KINDS).
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
            Self::TooLarge => "too_large",
            Self::Cancelled => "cancelled",
        }
    }

    /// The first word of Redis's error, if it is one of its own.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Unavailable(code) | Self::ErrorReply(code) => Some(code),
            Self::Moved(redirect) => Some(redirect.code()),
            Self::WrongType => Some("WRONGTYPE"),
            _ => None,
        }
    }

    /// Whether a client of the same Redis had better ask itself: it may be told something else, or the same in Redis's own
    /// words.
    pub fn should_forward(&self) -> bool {
        !matches!(self, Self::TimedOut | Self::Cancelled)
    }

    /// Whether it may be over in a moment without anybody doing something about it.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::AuthRejected(_))
    }

    /// Whether Redis said this, rather than saying nothing.
    pub(super) fn is_reply(&self) -> bool {
        matches!(self, Self::ErrorReply(_) | Self::Moved(_) | Self::WrongType | Self::TooLarge)
    }
}

impl From<Cancelled> for BackendError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Where a node of a cluster sends whoever asks for a key that it does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Only this once, since the slot is on its way there.
    pub is_ask: bool,
    /// The slot.
    pub slot: u16,
    /// Host, or nothing where it is that of who says so, and port.
    pub address: (String, u16),
}

impl Redirect {
    /// Reads `MOVED slot host:port` or `ASK slot host:port`; `None` if it is something else.
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

/// What an error reply means, by its first word.
pub(super) fn error_reply(code: &str) -> BackendError {
    match code {
        "WRONGTYPE" => BackendError::WrongType,
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => {
            BackendError::Unavailable(code.into())
        }
        code => BackendError::ErrorReply(code.into()),
    }
}

/// Whether Redis will say the same in a moment.
pub(super) fn is_final(code: &str) -> bool {
    !matches!(error_reply(code), BackendError::Unavailable(_))
}

pub(super) fn unreachable(reason: &dyn fmt::Display) -> BackendError {
    BackendError::Unreachable(one_line(reason).into())
}

pub(super) fn auth_rejected(reason: &dyn fmt::Display) -> BackendError {
    BackendError::AuthRejected(one_line(reason).into())
}

/// A reason may hold what the other side said, and goes into logs and to systemd, where a line end begins something new.
fn one_line(reason: &dyn fmt::Display) -> String {
    reason.to_string().replace(char::is_control, " ")
}
