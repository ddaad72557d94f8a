//! The front end's own password: who knows it may read what the proxy reads, and writes as the proxy.
//!
//! Where there is one, nobody gets past it but with `AUTH` or `HELLO ... AUTH`, answered here in Redis's words; a client that
//! has is the proxy's own user to Redis. A new password is asked of who logs in from then on; who is in, stays in.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::command::Class;
use super::connection::Connection;
use super::owed::Dropped;
use super::standing::{DEFAULT_USER, Effect, Standing, User};
use crate::metrics::{FrontEnd, RejectReason};
use crate::protocol::Arguments;
use crate::protocol::{write_array_length, write_bulk, write_error};

/// What the front end itself says.
pub(super) enum Verdict {
    /// It knows the password; this, if anything, is to be asked of Redis in place of what it said.
    Admitted(Option<BytesMut>),
    /// With what it is counted as, if somebody is turned away.
    Refused(&'static str, Option<RejectReason>),
    /// It is to be forgotten who the client is.
    Reset,
}

pub(super) const NO_AUTH: &str = "NOAUTH Authentication required.";
const NO_AUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> \
                             AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol \
                             version at the same time";
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const SYNTAX: &str = "ERR syntax error";
const ARITY: &str = "ERR wrong number of arguments for 'auth' command";

impl Connection {
    /// What the front end itself has to say to a command; nothing, if it is none of its business.
    pub(super) fn judge(&self, class: Class, arguments: Arguments<'_>) -> Option<Verdict> {
        let login = self.shared.login.as_ref()?;
        let is_right = |user: &[u8], found: &[u8]| login.get().is(user, found);
        let turned_away = |text| Verdict::Refused(text, Some(RejectReason::Login));
        let judged = |is_right, instead| {
            if is_right { Verdict::Admitted(instead) } else { turned_away(WRONG_PASSWORD) }
        };
        Some(match (class, arguments.len()) {
            (Class::Auth, 0 | 1) => Verdict::Refused(ARITY, None),
            (Class::Auth, 2) => judged(is_right(DEFAULT_USER, arguments.get(1)), None),
            (Class::Auth, 3) => judged(is_right(arguments.get(1), arguments.get(2)), None),
            (Class::Auth, _) => Verdict::Refused(SYNTAX, None),
            (Class::Reset, _) => Verdict::Reset,
            (Class::Hello, count) => match *hello_logins(arguments) {
                [at] if at + 2 < count => judged(
                    is_right(arguments.get(at + 1), arguments.get(at + 2)),
                    Some(without(arguments, at)),
                ),
                [_, _, ..] => Verdict::Refused(SYNTAX, None),
                _ if self.standing.is_admitted() => return None,
                _ => turned_away(NO_AUTH_HELLO),
            },
            (Class::Quit, _) => return None,
            _ if self.standing.is_admitted() => return None,
            _ => turned_away(NO_AUTH),
        })
    }

    pub(super) fn carry_out(&mut self, verdict: Verdict, length: usize) {
        match verdict {
            Verdict::Refused(text, turned_away) => {
                if let Some(refusal) = turned_away {
                    self.shared.proxy.record_rejected(FrontEnd::Resp, refusal);
                }
                self.reply(|output| write_error(output.tail(), text));
            }
            Verdict::Admitted(None) => {
                self.standing.admit();
                self.reply(|output| output.push(Bytes::from_static(b"+OK\r\n")));
            }
            Verdict::Admitted(Some(command)) => {
                self.standing.admit();
                self.expect_answer(Effect::Hello(None), Dropped::Nothing);
                self.link.out.push(command.freeze());
            }
            Verdict::Reset => {
                self.drop_link();
                self.standing = Standing::of(User::Nobody);
                self.transaction = Dropped::Nothing;
                self.reply(|output| output.tail().put_slice(b"+RESET\r\n"));
            }
        }
        _ = self.input.split_to(length);
    }
}

/// Where the logins of a HELLO stand: each the word AUTH, which a user and a password follow.
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
fn without(arguments: Arguments<'_>, at: usize) -> BytesMut {
    let mut command = BytesMut::new();
    write_array_length(&mut command, arguments.len() - 3);
    let kept = arguments.skip(0).enumerate().filter(|(index, _)| !(at..at + 3).contains(index));
    kept.for_each(|(_, word)| write_bulk(&mut command, word));
    command
}
