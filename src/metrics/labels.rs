//! The values of labels.

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontEnd {
    /// Reads over HTTP.
    Http,
    /// Clients of Redis.
    Resp,
    /// The operator's listener.
    Admin,
}

impl FrontEnd {
    pub(super) const ALL: [Self; 3] = [Self::Http, Self::Resp, Self::Admin];
    /// Those that answer reads.
    pub(super) const READERS: [Self; 2] = [Self::Http, Self::Resp];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Resp => "resp",
            Self::Admin => "admin",
        }
    }
}

/// The result of a command that a node of a cluster did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// It was sent again.
    Followed,
    /// The client got an error.
    Returned,
}

impl Redirect {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Returned => "returned",
        }
    }
}

/// Why somebody was turned away who was connected, or nearly so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// He showed no token, or none that is right.
    Token,
    /// He has not said the front end's password.
    Login,
    /// The key is none of those that are given out.
    Key,
    /// Of the command it is not certain that it touches none but these.
    Command,
    /// TLS was not agreed on.
    Tls,
}

impl RejectReason {
    /// Who refuses for which reasons.
    pub(super) const ALL: [(FrontEnd, Self); 7] = [
        (FrontEnd::Http, Self::Token),
        (FrontEnd::Http, Self::Key),
        (FrontEnd::Http, Self::Tls),
        (FrontEnd::Resp, Self::Login),
        (FrontEnd::Resp, Self::Key),
        (FrontEnd::Resp, Self::Command),
        (FrontEnd::Resp, Self::Tls),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Login => "login",
            Self::Key => "key",
            Self::Command => "command",
            Self::Tls => "tls",
        }
    }
}

/// The label values of `redis_proxy_backend_errors_total`.
pub const BACKEND_ERROR_KINDS: [&str; 10] = [
    "unreachable",
    "auth",
    "timeout",
    "disconnected",
    "overloaded",
    "unavailable",
    "error_reply",
    "wrong_type",
    "too_large",
    "cancelled",
];

/// What Redis, or the loss of it, invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// A key.
    Key,
    /// Everything: a database was flushed.
    All,
    /// Everything: a link was lost, and what would have been told over it.
    Disconnect,
}

impl Invalidation {
    pub(super) const ALL: [Self; 3] = [Self::Key, Self::All, Self::Disconnect];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::All => "all",
            Self::Disconnect => "disconnect",
        }
    }
}

/// Somebody the proxy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is: `host:port`, or the path of a socket.
    pub name: String,
    /// What it is: `redis` or `sentinel`.
    pub role: &'static str,
    /// Whether it answers.
    pub up: bool,
}
