//! The logins of a client before a cluster, which each new connection to a node repeats. No I/O.

use bytes::Bytes;

use crate::protocol::{ParseStatus, RequestLimits, RequestParser};

/// The last accepted login, and the last accepted protocol.
#[derive(Debug, Default)]
pub(super) struct Logins {
    /// `AUTH`, or `HELLO` with a login.
    login: Option<Bytes>,
    /// `HELLO` with a version of the protocol and without a login.
    protocol: Option<Bytes>,
}

impl Logins {
    /// Adds an accepted `AUTH` or `HELLO`.
    ///
    /// A `HELLO` without a login changes the protocol and keeps the user. Otherwise later
    /// connections would be those of the default user.
    pub(super) fn add(&mut self, command: &Bytes, limits: RequestLimits) {
        let mut parser = RequestParser::default();
        if !matches!(parser.parse(command, limits), Ok(ParseStatus::Complete(_))) {
            return;
        }
        let arguments = parser.arguments(command);
        let is_hello = arguments.get(0).eq_ignore_ascii_case(b"hello");
        let has_login = arguments.skip(2).any(|word| word.eq_ignore_ascii_case(b"auth"));
        if !is_hello || has_login {
            self.login = Some(command.clone());
        }
        if is_hello && arguments.len() > 1 {
            let hello = [b"HELLO ", arguments.get(1), b"\r\n"].concat();
            self.protocol = Some(hello.into());
        }
    }

    /// The commands that a new connection repeats, in this order.
    pub(super) fn commands(&self) -> Vec<Bytes> {
        self.login.iter().chain(&self.protocol).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_login_and_last_protocol_are_repeated() {
        let limits = RequestLimits { max_bulk: 1024, max_arguments: 10 };
        for (commands, expected) in [
            (&["HELLO 3"][..], &["HELLO 3"][..]),
            (&["HELLO 3", "HELLO"], &["HELLO 3"]),
            (&["AUTH u p", "HELLO 3"], &["AUTH u p", "HELLO 3"]),
            (&["HELLO 3 AUTH u p", "HELLO 2"], &["HELLO 3 AUTH u p", "HELLO 2"]),
            (&["HELLO 3 AUTH u p", "HELLO"], &["HELLO 3 AUTH u p", "HELLO 3"]),
            (&["HELLO 3 AUTH u p", "AUTH v q"], &["AUTH v q", "HELLO 3"]),
        ] {
            let mut logins = Logins::default();
            for command in commands {
                logins.add(&format!("{command}\r\n").into(), limits);
            }
            let expected: Vec<_> =
                expected.iter().map(|command| format!("{command}\r\n")).collect();
            assert_eq!(logins.commands(), expected, "{commands:?}");
        }
    }
}
