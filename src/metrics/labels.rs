//! The values of labels.

/// A listener, by the protocol or purpose of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontEnd {
    /// Reads over HTTP.
    Http,
    /// Redis clients.
    Resp,
    /// Commands over HTTP.
    Rest,
    /// Operators.
    Admin,
}

impl FrontEnd {
    /// The front ends with a listener of their own.
    pub(super) const LISTENERS: [Self; 4] = [Self::Http, Self::Resp, Self::Rest, Self::Admin];
    /// The front ends that answer reads.
    pub(super) const READERS: [Self; 3] = [Self::Http, Self::Resp, Self::Rest];

    /// Returns the name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Resp => "resp",
            Self::Rest => "rest",
            Self::Admin => "admin",
        }
    }
}

/// The type of the data that a read is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Strings, bitmaps and the type of any key.
    String,
    /// Hashes.
    Hash,
    /// Lists, and whatever `SORT_RO` sorts.
    List,
    /// Sets.
    Set,
    /// Sorted sets.
    Zset,
    /// Streams.
    Stream,
    /// Sorted sets of places.
    Geo,
    /// Documents of the JSON module.
    Json,
    /// Commands that may name more than one key.
    Multi,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::String,
        Self::Hash,
        Self::List,
        Self::Set,
        Self::Zset,
        Self::Stream,
        Self::Geo,
        Self::Json,
        Self::Multi,
    ];

    /// Returns the name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Hash => "hash",
            Self::List => "list",
            Self::Set => "set",
            Self::Zset => "zset",
            Self::Stream => "stream",
            Self::Geo => "geo",
            Self::Json => "json",
            Self::Multi => "multi",
        }
    }
}

/// The result of a command that a node of a cluster did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// The proxy sent it again.
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

/// The reason why a front end rejected a request or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// The bearer token is missing or wrong.
    Token,
    /// The client has not authenticated with the front end's password.
    Login,
    /// The key is not in the allowlist.
    Key,
    /// The command is not certain to use only keys of the allowlist, or no right allows it.
    Command,
    /// The TLS handshake failed.
    Tls,
}

impl RejectReason {
    /// The reasons of each front end.
    pub(super) const ALL: [(FrontEnd, Self); 12] = [
        (FrontEnd::Http, Self::Token),
        (FrontEnd::Http, Self::Key),
        (FrontEnd::Http, Self::Tls),
        (FrontEnd::Resp, Self::Login),
        (FrontEnd::Resp, Self::Key),
        (FrontEnd::Resp, Self::Command),
        (FrontEnd::Resp, Self::Tls),
        (FrontEnd::Rest, Self::Token),
        (FrontEnd::Rest, Self::Key),
        (FrontEnd::Rest, Self::Command),
        (FrontEnd::Rest, Self::Tls),
        (FrontEnd::Admin, Self::Token),
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

/// The label values of `redis_proxy_rest_requests_total`: the statuses of REST responses.
pub const REST_STATUSES: [&str; 9] =
    ["200", "400", "401", "403", "405", "413", "502", "503", "504"];

/// The cause and extent of an invalidation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// Redis pushed a key.
    Key,
    /// Redis pushed the flush of a database: everything is invalidated.
    All,
    /// The connection was lost, and with it any further pushes: everything is invalidated.
    Disconnect,
    /// The rights of the proxy's user changed: everything is invalidated.
    Rights,
}

impl Invalidation {
    pub(super) const ALL: [Self; 4] = [Self::Key, Self::All, Self::Disconnect, Self::Rights];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::All => "all",
            Self::Disconnect => "disconnect",
            Self::Rights => "rights",
        }
    }
}

/// The result of the comparison of an answer from memory with Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// Redis has the same value.
    Equal,
    /// The answer was no longer kept: its key has changed or ended meanwhile, or it was evicted.
    Changed,
    /// Redis has another value, and has pushed no change.
    Stale,
    /// The comparison was not possible.
    Unknown,
}

impl Verified {
    /// Every result.
    pub const ALL: [Self; 4] = [Self::Equal, Self::Changed, Self::Stale, Self::Unknown];

    /// Returns the name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Changed => "changed",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// A node behind the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The address: `host:port`, or the path of a socket.
    pub name: String,
    /// The role: `redis` or `sentinel`.
    pub role: &'static str,
    /// Whether the node replies.
    pub up: bool,
}
