//! How a client stands with Redis: who it is there, in which database, in what kind of talk.
//!
//! The rule that must not be broken: what is not known for certain counts as what forbids an answer from memory. So what
//! takes something away from a client holds from when it is asked for, and what gives it something only once Redis has
//! said yes.

use bytes::Bytes;

use crate::backend::{CacheIdentity, ConnectAs};
use crate::protocol::Protocol;
use crate::protocol::ReplySummary;

/// Whom Redis, or the proxy, takes a client for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    /// Nobody has been named.
    Nobody,
    /// This one, as Redis said.
    Named(Bytes),
    /// It knows the front end's password, so its link is the proxy's own user.
    Proxy,
    /// Redis wants it to log in, whatever it was before.
    Unknown,
}

/// Whom a password without a name is for.
pub(super) const DEFAULT_USER: &[u8] = b"default";

impl User {
    pub(super) fn default_user() -> Self {
        Self::Named(Bytes::from_static(DEFAULT_USER))
    }

    /// Whether this is the user as whom the proxy reads; none: it does not log in.
    fn is(&self, proxy: Option<&str>) -> bool {
        match (self, proxy) {
            (Self::Proxy, _) | (Self::Nobody, None) => true,
            (Self::Nobody, Some(_)) | (Self::Unknown, _) => false,
            (Self::Named(name), proxy) => *name == proxy.map_or(DEFAULT_USER, str::as_bytes),
        }
    }
}

impl Effect {
    /// Whether what follows on the connection may depend on it.
    pub(super) fn is_of_state(&self) -> bool {
        !matches!(self, Self::Aside | Self::Reveal | Self::Block)
    }

    /// Whether Redis may say nothing to it where another answer is on its way: from 7.2 on, and so does Valkey, it says so
    /// little of a login that it refuses, and what it says next is the answer to another command.
    pub(super) fn may_go_unanswered(&self) -> bool {
        matches!(self, Self::Auth(_) | Self::Hello(Some(_)) | Self::Unknown)
    }
}

/// What a forwarded command changes in how its client stands, once it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, and nothing that was read from memory can be newer or older than what it says.
    Aside,
    /// What it did or said may not be known in memory yet.
    Reveal,
    /// The same, and it may take for ever.
    Block,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Select(u32),
    Auth(User),
    /// With the user it logs in as, if it does.
    Hello(Option<User>),
    Reset,
    /// It changed how the client stands, and nobody knows to what.
    Unknown,
}

/// How a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    user: User,
    database: u32,
    protocol: Protocol,
    is_in_multi: bool,
    is_watching: bool,
    /// How often `MULTI` and `WATCH` were said and are not answered.
    multis_asked: usize,
    watches_asked: usize,
    doubt: Doubt,
}

/// How far what is known of a client may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    None,
    /// Something was asked for of which nobody knows whether it came to be; `RESET` undoes it.
    UntilReset,
    /// Which answer is to which command is not certain any more, that to `RESET` included.
    ForGood,
}

impl Standing {
    pub(super) fn of(user: User) -> Self {
        Self {
            user,
            database: 0,
            protocol: Protocol::Resp2,
            is_in_multi: false,
            is_watching: false,
            multis_asked: 0,
            watches_asked: 0,
            doubt: Doubt::None,
        }
    }

    /// Whether what Redis would say to this client is what it said to the proxy.
    pub(super) fn may_be_given(&self, origin: &CacheIdentity) -> bool {
        let is_watching = self.is_watching || self.watches_asked > 0;
        let is_plain = !(self.is_in_multi() || is_watching) && self.doubt == Doubt::None;
        is_plain && self.database == origin.database && self.user.is(origin.user.as_deref())
    }

    /// How the same client stands once there is no link.
    pub(super) fn without_link(&self) -> Self {
        Self::of(if self.user == User::Proxy { User::Proxy } else { User::Nobody })
    }

    /// Whether it has shown the front end's password.
    pub(super) fn is_admitted(&self) -> bool {
        self.user == User::Proxy
    }

    pub(super) fn admit(&mut self) {
        self.user = User::Proxy;
    }

    /// As whom Redis is to know it from the start.
    pub(super) fn client(&self) -> ConnectAs {
        if self.user == User::Proxy { ConnectAs::ProxyUser } else { ConnectAs::Anonymous }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether commands are kept for `EXEC`.
    pub(super) fn is_in_multi(&self) -> bool {
        self.is_in_multi || self.multis_asked > 0
    }

    /// Whether a new link would be as good to it.
    pub(super) fn is_as_new(&self) -> bool {
        *self == self.without_link()
    }

    /// What Redis said is no answer to what it was taken for, so nothing it says proves anything any more.
    pub(super) fn doubt(&mut self) {
        self.doubt = Doubt::ForGood;
    }

    /// Whether nothing more can be taken from a client by what it says.
    pub(super) fn is_doubted_for_good(&self) -> bool {
        self.doubt == Doubt::ForGood
    }

    fn doubt_until_reset(&mut self) {
        self.doubt = self.doubt.max(Doubt::UntilReset);
    }

    /// A command with this effect was sent on.
    pub(super) fn asked(&mut self, effect: &Effect) {
        match effect {
            Effect::Multi => self.multis_asked += 1,
            Effect::Watch => self.watches_asked += 1,
            _ => {}
        }
    }

    /// Redis answered a command with this effect.
    pub(super) fn answered(&mut self, effect: Effect, frame: ReplySummary) {
        match effect {
            Effect::Multi => self.multis_asked -= 1,
            Effect::Watch => self.watches_asked -= 1,
            _ => {}
        }
        if frame.is_noauth() {
            self.user = User::Unknown;
        }
        if frame.is_queued() {
            // It takes effect, or not, at EXEC, among the answers to other commands.
            if effect.may_go_unanswered() {
                self.doubt();
            } else if effect.is_of_state() {
                self.doubt_until_reset();
            }
        } else if frame.is_error() {
            self.refused(&effect);
        } else {
            self.granted(effect, frame);
        }
    }

    fn granted(&mut self, effect: Effect, frame: ReplySummary) {
        match effect {
            Effect::Multi => self.is_in_multi = true,
            Effect::Watch => self.is_watching = true,
            Effect::Exec | Effect::Discard => self.leave_multi(),
            Effect::Unwatch => self.is_watching = false,
            Effect::Select(database) => self.database = database,
            Effect::Unknown => self.doubt_until_reset(),
            Effect::Auth(_) if !frame.is_ok() => self.doubt(),
            Effect::Hello(_) if !frame.is_hello_reply() => self.doubt(),
            Effect::Reset if !frame.is_reset() => self.doubt(),
            Effect::Auth(user) => self.user = user,
            Effect::Hello(user) => {
                self.protocol =
                    if frame.head[0] == b'%' { Protocol::Resp3 } else { Protocol::Resp2 };
                if let Some(user) = user {
                    self.user = user;
                }
            }
            Effect::Reset => {
                let (multis_asked, watches_asked) = (self.multis_asked, self.watches_asked);
                let doubt = if self.doubt == Doubt::ForGood { Doubt::ForGood } else { Doubt::None };
                *self = Self { multis_asked, watches_asked, doubt, ..Self::of(User::Nobody) };
            }
            Effect::Aside | Effect::Reveal | Effect::Block => {}
        }
    }

    fn refused(&mut self, effect: &Effect) {
        match effect {
            // However it ends, it ends the transaction.
            Effect::Exec => self.leave_multi(),
            // It may have logged in, or whatever it does, before it came to what was wrong.
            Effect::Hello(Some(_)) | Effect::Unknown => self.doubt_until_reset(),
            _ => {}
        }
    }

    fn leave_multi(&mut self) {
        self.is_in_multi = false;
        self.is_watching = false;
    }
}
