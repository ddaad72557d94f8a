//! The front end's own password. A client that shows it reads as the proxy reads, and writes as the
//! proxy's user.
//!
//! With a password, only `AUTH`, `HELLO ... AUTH`, `RESET` and `QUIT` are accepted before the
//! login. They are answered here in Redis's words. A new password applies to later logins;
//! authenticated clients stay authenticated.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use blake3::Hash;
use bytes::{Bytes, BytesMut};

use super::local_action::{LocalAction, RejectReason};
use super::session::{DEFAULT_USER, SessionState};
use super::table::Class;
use crate::access::FileError;
use crate::protocol::{Arguments, write_command};

pub(super) const NO_AUTH: &str = "NOAUTH Authentication required.";
const NO_AUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already authenticated, \
    otherwise the HELLO <proto> \
                             AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol \
                             version at the same time";
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const SYNTAX: &str = "ERR syntax error";
const ARITY: &str = "ERR wrong number of arguments for 'auth' command";

/// The user and the password that a client has to show. The password is kept as a digest.
pub struct Credentials {
    user: String,
    password: Hash,
}

impl Credentials {
    /// Reads the credentials of `user` with the password in the file `path`. An empty `user` means
    /// Redis's default user.
    ///
    /// # Errors
    /// [`FileError`]: the file cannot be read, or is empty.
    pub fn read(user: &str, path: &Path) -> Result<Self, FileError> {
        let wrong = |problem: &dyn Display| FileError::new("resp.password_file", path, problem);
        let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(wrong(&"found nothing in it, expected a password"));
        }
        Ok(Self::new(user, password))
    }

    fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: blake3::hash(password.as_bytes()) }
    }

    /// Whether the credentials are right. Digests are compared, so the duration reveals nothing
    /// about the password.
    fn are(&self, user: &[u8], password: &[u8]) -> bool {
        let is_password = blake3::hash(password) == self.password;
        let is_user = match &*self.user {
            "" => user.eq_ignore_ascii_case(DEFAULT_USER),
            name => user == name.as_bytes(),
        };
        is_password & is_user
    }
}

/// The front end's own action for a command; `None` if the command is none of its concern.
pub(super) fn authenticate(
    credentials: &Credentials,
    session: &SessionState,
    class: Class,
    arguments: Arguments<'_>,
) -> Option<LocalAction> {
    let reject = |text| LocalAction::Reject { text, reason: Some(RejectReason::Login) };
    let syntax = |text| LocalAction::Reject { text, reason: None };
    let log_in = |user: &[u8], password: &[u8], instead: Option<Bytes>| {
        let is_right = credentials.are(user, password);
        if is_right { LocalAction::LogIn { instead } } else { reject(WRONG_PASSWORD) }
    };
    Some(match (class, arguments.len()) {
        (Class::Auth, 0 | 1) => syntax(ARITY),
        (Class::Auth, 2) => log_in(DEFAULT_USER, arguments.get(1), None),
        (Class::Auth, 3) => log_in(arguments.get(1), arguments.get(2), None),
        (Class::Auth, _) => syntax(SYNTAX),
        (Class::Reset, _) => LocalAction::Reset,
        (Class::Hello, count) => match *hello_logins(arguments) {
            [at] if at + 2 < count => {
                let instead = Some(without_login(arguments, at));
                log_in(arguments.get(at + 1), arguments.get(at + 2), instead)
            }
            [_, _, ..] => syntax(SYNTAX),
            _ if session.is_authenticated() => return None,
            _ => reject(NO_AUTH_HELLO),
        },
        (Class::Quit, _) => return None,
        _ if session.is_authenticated() => return None,
        _ => reject(NO_AUTH),
    })
}

/// The indexes of `AUTH` in a `HELLO`. A user and a password follow each.
pub(super) fn hello_logins(arguments: Arguments<'_>) -> Vec<usize> {
    let (mut logins, mut at) = (Vec::new(), 2);
    while at < arguments.len() {
        let word = arguments.get(at);
        at += if word.eq_ignore_ascii_case(b"auth") {
            logins.push(at);
            3
        } else if word.eq_ignore_ascii_case(b"setname") {
            2
        } else {
            1
        };
    }
    logins
}

/// The command without the three words of its login.
fn without_login(arguments: Arguments<'_>, at: usize) -> Bytes {
    let mut command = BytesMut::new();
    let words = arguments.skip(0).enumerate();
    let kept = words.filter(|(index, _)| !(at..at + 3).contains(index)).map(|(_, word)| word);
    write_command(&mut command, arguments.len() - 3, kept);
    command.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::session::Identity;
    use super::super::table::CommandTable;
    use super::*;
    use crate::protocol::tests::parsed;

    fn action(user: &str, session: &SessionState, line: &str) -> Option<LocalAction> {
        let (input, parser) = parsed(line);
        let arguments = parser.arguments(&input);
        let class = CommandTable::new().find(arguments.get(0)).class;
        authenticate(&Credentials::new(user, "secret"), session, class, arguments)
    }

    #[test]
    fn only_the_right_password_gets_past() {
        let new = SessionState::new(Identity::Unauthenticated);
        let reject = |text| Some(LocalAction::Reject { text, reason: Some(RejectReason::Login) });
        let log_in = || Some(LocalAction::LogIn { instead: None });
        let syntax = |text| Some(LocalAction::Reject { text, reason: None });
        for (user, line, expected) in [
            ("", "AUTH secret", log_in()),
            ("", "auth DEFAULT secret", log_in()),
            ("", "AUTH alice secret", reject(WRONG_PASSWORD)),
            ("", "AUTH wrong", reject(WRONG_PASSWORD)),
            ("alice", "AUTH secret", reject(WRONG_PASSWORD)),
            ("alice", "AUTH alice secret", log_in()),
            ("alice", "AUTH Alice secret", reject(WRONG_PASSWORD)),
            ("", "AUTH", syntax(ARITY)),
            ("", "AUTH a b c", syntax(SYNTAX)),
            ("", "HELLO 3", reject(NO_AUTH_HELLO)),
            ("", "HELLO 3 AUTH default", reject(NO_AUTH_HELLO)),
            ("", "HELLO 3 AUTH default wrong", reject(WRONG_PASSWORD)),
            ("", "HELLO 3 AUTH default secret AUTH a b", syntax(SYNTAX)),
            ("", "GET k", reject(NO_AUTH)),
            ("", "NONESUCH", reject(NO_AUTH)),
            ("", "RESET", Some(LocalAction::Reset)),
            ("", "QUIT", None),
        ] {
            assert_eq!(action(user, &new, line), expected, "{user:?}: {line}");
        }
    }

    #[test]
    fn login_of_a_hello_is_taken_out_of_it() {
        let new = SessionState::new(Identity::Unauthenticated);
        let found = action("", &new, "HELLO 3 SETNAME auth AUTH default secret");
        let instead = "*4\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$7\r\nSETNAME\r\n$4\r\nauth\r\n";
        assert_eq!(found, Some(LocalAction::LogIn { instead: Some(instead.into()) }));
    }

    #[test]
    fn authenticated_client_is_not_asked_again() {
        let mut session = SessionState::new(Identity::Unauthenticated);
        session.authenticate();
        for line in ["GET k", "HELLO 3", "MULTI"] {
            assert_eq!(action("", &session, line), None, "{line}");
        }
        let wrong =
            Some(LocalAction::Reject { text: WRONG_PASSWORD, reason: Some(RejectReason::Login) });
        assert_eq!(action("", &session, "AUTH wrong"), wrong);
    }
}
