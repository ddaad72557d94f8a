//! Actions on commands that need neither memory nor Redis.

use bytes::Bytes;

/// The reason of a rejection, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// No login, or a wrong password.
    Login,
    /// A key that the listener does not serve.
    Key,
    /// A command that could touch such a key.
    Command,
}

/// An action on a command that is the proxy's own concern.
#[derive(Debug, PartialEq, Eq)]
pub enum LocalAction {
    /// The client has shown the front end's password. `instead` is forwarded in place of the
    /// command.
    LogIn {
        /// The command without its login.
        instead: Option<Bytes>,
    },
    /// Make the session as new, with a new connection to Redis.
    Reset,
    /// Reply with the proxy's own section of `INFO`.
    Info,
    /// Reply with an error.
    Reject {
        /// The error, with its code.
        text: &'static str,
        /// The reason as it is counted; `None`: it is a mistake of the client, not a denial.
        reason: Option<RejectReason>,
    },
}
