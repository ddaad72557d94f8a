//! The session of a client at Redis: its user, its database, its protocol, its transaction.
//!
//! The rule that must not be broken (invariant R1): anything that is not known for certain forbids
//! an answer from memory. So a restriction applies from the moment its command is sent, and a
//! permission only once Redis has confirmed it. Otherwise a client could read another user's values
//! in the time between.

use bytes::Bytes;

use crate::backend::{CacheIdentity, ConnectAs};
#[cfg(feature = "planted-faults")]
use crate::cache::planted_faults::{self, Fault};
use crate::protocol::{Protocol, ReplySummary};

/// The user that Redis, or the proxy, takes a client for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The client has named no user.
    Unauthenticated,
    /// Redis has confirmed this user.
    Named(Bytes),
    /// The client has shown the front end's password, so its connection to Redis is the proxy's own
    /// user.
    Proxy,
    /// Redis requires a login, whatever the client was before.
    Unknown,
}

/// The user that a password without a name is for.
pub(super) const DEFAULT_USER: &[u8] = b"default";

impl Identity {
    /// Redis's default user.
    pub fn default_user() -> Self {
        Self::Named(Bytes::from_static(DEFAULT_USER))
    }

    /// Whether this is the user as which the proxy reads. `None`: the proxy does not log in.
    fn is(&self, proxy: Option<&str>) -> bool {
        match (self, proxy) {
            (Self::Proxy, _) | (Self::Unauthenticated, None) => true,
            (Self::Unauthenticated, Some(_)) | (Self::Unknown, _) => false,
            (Self::Named(name), proxy) => *name == proxy.map_or(DEFAULT_USER, str::as_bytes),
        }
    }
}

/// The change of a session, or of what it has seen, once a forwarded command is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEffect {
    /// None, and the reply says nothing about cached values.
    Neutral,
    /// The reply may reflect a write that memory does not know yet.
    MayObserveWrite,
    /// The same, and Redis may wait with the reply without a limit.
    MayBlock,
    /// The reply may reflect a write, and the proxy's own section of `INFO` follows it.
    Info,
    /// Commands are queued for `EXEC`.
    Multi,
    /// The transaction ends.
    Exec,
    /// The transaction ends without an effect.
    Discard,
    /// Keys are watched.
    Watch,
    /// No key is watched.
    Unwatch,
    /// Another database.
    Select(u32),
    /// Another user.
    Auth(Identity),
    /// Another protocol, and another user if it logs in.
    Hello(Option<Identity>),
    /// The session is as new.
    Reset,
    /// Bytes are passed on as they come, after its reply if it has one.
    Passthrough,
    /// The session changes in a way that is not known.
    Unknown,
}

impl SessionEffect {
    /// Whether later commands of the connection may depend on it.
    pub fn is_of_state(&self) -> bool {
        !matches!(
            self,
            Self::Neutral | Self::MayObserveWrite | Self::MayBlock | Self::Info | Self::Passthrough
        )
    }

    /// Whether Redis may leave it without a reply while another reply is on its way. Redis from 7.2
    /// on, and Valkey, do so with a login that they reject. The next reply then belongs to another
    /// command.
    pub fn may_go_unanswered(&self) -> bool {
        #[cfg(feature = "planted-faults")]
        if planted_faults::is_planted(Fault::UnansweredLogin) {
            return false;
        }
        matches!(self, Self::Auth(_) | Self::Hello(Some(_)) | Self::Unknown)
    }
}

/// The session of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionState {
    identity: Identity,
    /// `None`: a `SELECT` was queued for `EXEC`, whose reply does not tell whether it ran.
    database: Option<u32>,
    protocol: Protocol,
    is_in_multi: bool,
    is_watching: bool,
    /// The number of `MULTI` and `WATCH` that were sent and are not answered.
    pending_multis: usize,
    pending_watches: usize,
    desync: Desync,
}

/// The certainty of the state, compared with the session at Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Desync {
    None,
    /// A command with an unknown effect was sent. `RESET` undoes it.
    UntilReset,
    /// Replies cannot be matched to commands any more, and neither can the reply to `RESET`.
    Permanent,
}

impl SessionState {
    /// A new session.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            database: Some(0),
            protocol: Protocol::Resp2,
            is_in_multi: false,
            is_watching: false,
            pending_multis: 0,
            pending_watches: 0,
            desync: Desync::None,
        }
    }

    /// Whether Redis would reply to this client as it replied to the proxy, so that values in
    /// memory may be served.
    pub fn may_read_from_cache(&self, cache: &CacheIdentity) -> bool {
        let is_watching = self.is_watching || self.pending_watches > 0;
        let is_plain = !(self.is_in_multi() || is_watching) && self.desync == Desync::None;
        is_plain && self.database == Some(cache.database) && self.identity.is(cache.user.as_deref())
    }

    /// Whether Redis is known to have admitted the client, and replies to each of its commands at
    /// once. `cache` has the user that the proxy reads as.
    pub fn is_admitted(&self, cache: &CacheIdentity) -> bool {
        let is_admitted = match &self.identity {
            Identity::Proxy | Identity::Named(_) => true,
            Identity::Unauthenticated => cache.user.is_none(),
            Identity::Unknown => false,
        };
        is_admitted && !self.is_in_multi() && self.desync == Desync::None
    }

    /// The same client's session once its connection to Redis has ended.
    #[must_use]
    pub fn without_connection(&self) -> Self {
        let is_proxy = self.identity == Identity::Proxy;
        Self::new(if is_proxy { Identity::Proxy } else { Identity::Unauthenticated })
    }

    /// Whether the client has shown the front end's password.
    pub fn is_authenticated(&self) -> bool {
        self.identity == Identity::Proxy
    }

    /// The client has shown the front end's password.
    pub fn authenticate(&mut self) {
        self.identity = Identity::Proxy;
    }

    /// The user that a new connection to Redis logs in as.
    pub fn connect_as(&self) -> ConnectAs {
        if self.identity == Identity::Proxy { ConnectAs::ProxyUser } else { ConnectAs::Anonymous }
    }

    /// The protocol in which Redis replies.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether commands are, or may be, queued for `EXEC`.
    pub fn is_in_multi(&self) -> bool {
        self.is_in_multi || self.pending_multis > 0
    }

    /// Whether a new connection to Redis would serve the client as well.
    pub fn is_pristine(&self) -> bool {
        *self == self.without_connection()
    }

    /// A reply was no reply to its command, so no later reply proves anything.
    pub fn desync(&mut self) {
        self.desync = Desync::Permanent;
    }

    /// Whether replies cannot be matched to commands any more.
    pub fn is_desynced(&self) -> bool {
        self.desync == Desync::Permanent
    }

    fn desync_until_reset(&mut self) {
        self.desync = self.desync.max(Desync::UntilReset);
    }

    /// A command with this effect was sent.
    pub fn sent(&mut self, effect: &SessionEffect) {
        match effect {
            SessionEffect::Multi => self.pending_multis += 1,
            SessionEffect::Watch => self.pending_watches += 1,
            _ => {}
        }
    }

    /// Redis replied to a command with this effect.
    pub fn replied(&mut self, effect: SessionEffect, frame: ReplySummary) {
        match effect {
            SessionEffect::Multi => self.pending_multis -= 1,
            SessionEffect::Watch => self.pending_watches -= 1,
            _ => {}
        }
        if frame.is_noauth() {
            self.identity = Identity::Unknown;
        }
        if frame.is_queued() {
            // It takes effect, or not, at EXEC, among the replies to other commands.
            if effect.may_go_unanswered() {
                self.desync();
            } else if matches!(effect, SessionEffect::Select(_)) {
                self.database = None;
            } else if effect.is_of_state() {
                self.desync_until_reset();
            }
        } else if frame.is_error() {
            self.rejected(&effect);
        } else {
            self.confirmed(effect, frame);
        }
    }

    fn confirmed(&mut self, effect: SessionEffect, frame: ReplySummary) {
        match effect {
            SessionEffect::Multi => self.is_in_multi = true,
            SessionEffect::Watch => self.is_watching = true,
            SessionEffect::Exec | SessionEffect::Discard => self.leave_multi(),
            SessionEffect::Unwatch => self.is_watching = false,
            SessionEffect::Select(database) => self.database = Some(database),
            SessionEffect::Unknown => self.desync_until_reset(),
            SessionEffect::Auth(_) if !frame.is_ok() => self.desync(),
            SessionEffect::Hello(_) if !frame.is_hello_reply() => self.desync(),
            SessionEffect::Reset if !frame.is_reset() => self.desync(),
            SessionEffect::Auth(user) => self.identity = user,
            SessionEffect::Hello(user) => {
                let is_resp3 = frame.head[0] == b'%';
                self.protocol = if is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
                if let Some(user) = user {
                    self.identity = user;
                }
            }
            SessionEffect::Reset => {
                let (pending_multis, pending_watches) = (self.pending_multis, self.pending_watches);
                let desync = if self.is_desynced() { Desync::Permanent } else { Desync::None };
                let new = Self::new(Identity::Unauthenticated);
                *self = Self { pending_multis, pending_watches, desync, ..new };
            }
            SessionEffect::Neutral
            | SessionEffect::MayObserveWrite
            | SessionEffect::MayBlock
            | SessionEffect::Info
            | SessionEffect::Passthrough => {}
        }
    }

    fn rejected(&mut self, effect: &SessionEffect) {
        match effect {
            // EXEC ends the transaction, whatever the reply.
            SessionEffect::Exec => self.leave_multi(),
            // Redis may have logged the client in before it found the error.
            SessionEffect::Hello(Some(_)) | SessionEffect::Unknown => self.desync_until_reset(),
            _ => {}
        }
    }

    fn leave_multi(&mut self) {
        self.is_in_multi = false;
        self.is_watching = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"+OK\r\n";
    const ERROR: &[u8] = b"-ERR no\r\n";
    const QUEUED: &[u8] = b"+QUEUED\r\n";
    const HELLO3: &[u8] = b"%7\r\n$6\r\n";

    fn frame(reply: &[u8]) -> ReplySummary {
        let mut head = [0; 7];
        head.iter_mut().zip(reply).for_each(|(to, from)| *to = *from);
        ReplySummary { head }
    }

    /// A command, by its effect, and the reply to it.
    type Exchange = (SessionEffect, &'static [u8]);

    /// A session after these commands and their replies.
    fn after(talk: &[Exchange]) -> SessionState {
        let mut session = SessionState::new(Identity::Unauthenticated);
        for (effect, reply) in talk {
            session.sent(effect);
            session.replied(effect.clone(), frame(reply));
        }
        session
    }

    fn cache(user: Option<&str>, database: u32) -> CacheIdentity {
        CacheIdentity { user: user.map(str::to_owned), database }
    }

    fn named(user: &'static str) -> Identity {
        Identity::Named(Bytes::from_static(user.as_bytes()))
    }

    #[test]
    fn cache_is_read_only_in_a_session_known_to_be_plain() {
        use SessionEffect::{
            Auth, Discard, Exec, Hello, MayBlock, MayObserveWrite, Multi, Neutral, Passthrough,
            Reset, Select, Unknown, Unwatch, Watch,
        };
        let alice = || Auth(named("alice"));
        let cases: [(&[Exchange], bool); 34] = [
            (&[], true),
            (&[(Neutral, OK), (MayObserveWrite, b":1\r\n"), (MayBlock, b"*-1\r\n")], true),
            (&[(Multi, OK)], false),
            (&[(Multi, ERROR)], true),
            (&[(Multi, OK), (Exec, b"*0\r\n")], true),
            (&[(Multi, OK), (Exec, ERROR)], true),
            (&[(Multi, OK), (Discard, OK)], true),
            (&[(Multi, OK), (Discard, ERROR)], false),
            (&[(Watch, OK)], false),
            (&[(Watch, ERROR)], true),
            (&[(Watch, OK), (Unwatch, OK)], true),
            (&[(Watch, OK), (Multi, OK), (Exec, b"*0\r\n")], true),
            (&[(Select(1), OK)], false),
            (&[(Select(1), ERROR)], true),
            (&[(Select(1), OK), (Select(0), OK)], true),
            (&[(Multi, OK), (Select(1), QUEUED), (Exec, b"*1\r\n")], false),
            (&[(Multi, OK), (Select(0), QUEUED), (Exec, b"*1\r\n")], false),
            (&[(Multi, OK), (Select(1), QUEUED), (Exec, b"*1\r\n"), (Select(0), OK)], true),
            (&[(Multi, OK), (Select(1), QUEUED), (Exec, b"*1\r\n"), (Select(0), ERROR)], false),
            (&[(alice(), OK)], false),
            (&[(alice(), ERROR)], true),
            (&[(alice(), b":1\r\n")], false),
            (&[(alice(), b":1\r\n"), (Reset, b"+RESET\r\n")], false),
            (&[(alice(), OK), (Reset, b"+RESET\r\n")], true),
            (&[(Auth(Identity::default_user()), OK)], true),
            (&[(Neutral, b"-NOAUTH Authentication required.\r\n")], false),
            (&[(Hello(None), HELLO3)], true),
            (&[(Hello(None), OK)], false),
            (&[(Hello(Some(named("alice"))), ERROR)], false),
            (&[(Hello(Some(named("alice"))), ERROR), (Reset, b"+RESET\r\n")], true),
            (&[(Unknown, OK)], false),
            (&[(Unknown, OK), (Reset, b"+RESET\r\n")], true),
            (&[(Multi, OK), (Unknown, QUEUED), (Reset, b"+RESET\r\n")], false),
            (&[(Passthrough, OK)], true),
        ];
        for (talk, expected) in cases {
            assert_eq!(after(talk).may_read_from_cache(&cache(None, 0)), expected, "{talk:?}");
        }
    }

    #[test]
    fn restriction_applies_when_sent_permission_when_confirmed() {
        for (effect, is_restriction) in [
            (SessionEffect::Multi, true),
            (SessionEffect::Watch, true),
            (SessionEffect::Unwatch, false),
            (SessionEffect::Select(0), false),
        ] {
            let mut session = after(&[]);
            session.sent(&effect);
            assert_eq!(session.may_read_from_cache(&cache(None, 0)), !is_restriction, "{effect:?}");
        }
        let mut session = after(&[(SessionEffect::Select(1), OK)]);
        session.sent(&SessionEffect::Select(0));
        assert!(!session.may_read_from_cache(&cache(None, 0)));
    }

    #[test]
    fn cache_of_a_user_is_read_by_that_user_alone() {
        let of = |identity| SessionState::new(identity);
        for (identity, user, expected) in [
            (Identity::Unauthenticated, None, true),
            (Identity::Unauthenticated, Some("proxy"), false),
            (Identity::default_user(), None, true),
            (Identity::default_user(), Some("proxy"), false),
            (Identity::default_user(), Some("default"), true),
            (named("proxy"), Some("proxy"), true),
            (named("proxy"), None, false),
            (named("alice"), Some("proxy"), false),
            (Identity::Proxy, Some("proxy"), true),
            (Identity::Proxy, None, true),
            (Identity::Unknown, None, false),
            (Identity::Unknown, Some("proxy"), false),
        ] {
            let found = of(identity.clone()).may_read_from_cache(&cache(user, 0));
            assert_eq!(found, expected, "{identity:?}, cache of {user:?}");
        }
        assert!(!of(Identity::Proxy).may_read_from_cache(&cache(None, 1)), "another database");
    }

    #[test]
    fn new_connection_serves_only_a_session_without_state() {
        assert!(after(&[]).is_pristine());
        assert!(
            after(&[(SessionEffect::Select(1), OK), (SessionEffect::Select(0), OK)]).is_pristine()
        );
        for effect in [SessionEffect::Multi, SessionEffect::Watch, SessionEffect::Select(1)] {
            assert!(!after(&[(effect.clone(), OK)]).is_pristine(), "{effect:?}");
        }
        let mut session = after(&[]);
        session.authenticate();
        assert!(session.is_pristine() && session.connect_as() == ConnectAs::ProxyUser);
        session.desync();
        assert!(!session.is_pristine() && session.without_connection().is_authenticated());
    }

    #[test]
    fn protocol_follows_the_greeting() {
        let hello = SessionEffect::Hello(None);
        assert_eq!(after(&[]).protocol(), Protocol::Resp2);
        assert_eq!(after(&[(hello.clone(), HELLO3)]).protocol(), Protocol::Resp3);
        let back = [(hello.clone(), HELLO3), (hello, &b"*14\r\n$6"[..])];
        assert_eq!(after(&back).protocol(), Protocol::Resp2);
    }
}
