//! The decision about one command: from memory, to Redis, or a reply of the proxy's own. It is a
//! pure function, so its rules are tested as a table.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::auth::{Credentials, NO_AUTH, authenticate, hello_logins};
use super::authorize::{NO_COMMAND, authorize};
use super::cached_read::{CacheableRead, CachedReply, FetchKeys};
use super::info::{has_own_section, is_own_info};
use super::kept_read::KeptRead;
use super::local_action::{LocalAction, RejectReason};
use super::memory::Memory;
use super::pending_keys::PendingKeys;
use super::reply_fetch::ReplyFetch;
use super::rule_reads::RuleReads;
use super::session::{Identity, SessionEffect, SessionState};
use super::table::Class;
use super::xread::xread_may_block;
use crate::access::KeyAllowlist;
use crate::backend::CacheIdentity;
use crate::cache::{KeptReply, LookupTime, LookupUse, Outcome, RuleId, RuleMode, RuleRead};
use crate::metrics::Kind;
use crate::protocol::{
    Arguments, ReplyFrame, is_one_of, parse_integer, write_array_length, write_bulk,
};
use crate::verify::ReplySample;

/// The settings that decisions depend on.
pub struct Policy {
    /// The user and database that memory was read with.
    pub identity: CacheIdentity,
    /// The longest key that is cached, in bytes.
    pub max_key: usize,
    /// The keys that the listener serves.
    pub allow_keys: KeyAllowlist,
    /// Whether replies to `INFO` with several sections have the proxy's own.
    pub info: bool,
}

/// The replies that a client waits for.
#[derive(Debug, Clone, Copy, Default)]
pub struct PendingReplies {
    /// The number of replies. A run of equal ones may count once.
    pub replies: usize,
    /// Reads that wait for a flight.
    pub flights: usize,
    /// Whether one of them may reflect a write that memory does not know.
    pub may_observe_write: bool,
    /// Whether Redis owes the reply to a command of the proxy's own.
    pub is_keepalive: bool,
    /// Whether the client has closed its sending side behind a command that may block.
    pub is_close_due: bool,
}

/// The writes seen by the client that memory is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// All of them.
    Full,
    /// Perhaps not all; a fence would tell.
    Unfenced,
    /// Perhaps not all, and a fence was tried in vain.
    Bypassed,
}

/// The state that a decision depends on.
pub struct View<'a, M> {
    /// The settings.
    pub policy: &'a Policy,
    /// The front end's own credentials; `None`: Redis decides who a client is.
    pub credentials: Option<&'a Credentials>,
    /// The client's session.
    pub session: &'a SessionState,
    /// The replies that it waits for.
    pub pending: PendingReplies,
    /// The keys of the reads among them that wait for a flight.
    pub pending_keys: &'a PendingKeys,
    /// The writes that memory is known to hold.
    pub coverage: Coverage,
    /// The cache.
    pub memory: &'a M,
    /// The time of the decision.
    pub now: Instant,
    /// The same on the clock of the cache.
    pub lookup_time: LookupTime,
}

impl<M> View<'_, M> {
    /// Whether a read of one of these keys has no reply yet (invariant R6).
    fn has_pending_read<'a>(&self, mut keys: impl Iterator<Item = &'a [u8]>) -> bool {
        self.pending.flights > 0 && keys.any(|key| self.pending_keys.may_contain(key))
    }
}

/// A command.
#[derive(Clone, Copy)]
pub struct Command<'a> {
    /// Its class.
    pub class: Class,
    /// Whether it may be answered from memory, if its class allows that.
    pub is_cached: bool,
    /// Its name and arguments.
    pub arguments: Arguments<'a>,
    /// Its bytes, as far as they have arrived.
    pub bytes: &'a [u8],
}

/// The decision about a command.
#[derive(Debug)]
pub enum Action {
    /// Look at it again when something has changed.
    Wait,
    /// Begin a fence, and look at it again.
    Fence,
    /// Reply from memory.
    Reply(CachedReply),
    /// Fetch its keys.
    Fetch(FetchKeys),
    /// Fetch its reply, to be kept. Boxed, because each decision about a `GET` moves an action.
    FetchReply(Box<ReplyFetch>),
    /// Forward a read of this kind past memory.
    BypassReply(Kind, RuleReads),
    /// Forward a read of so many keys past memory.
    Bypass(usize, RuleReads),
    /// Forward it.
    Forward(SessionEffect),
    /// Forward it, and pass all bytes on from there.
    Passthrough,
    /// Let the client go when all before is answered.
    Quit,
    /// Reply without memory and without Redis.
    Local(LocalAction),
}

/// The decision about a command that is too long to be held.
#[derive(Debug, PartialEq, Eq)]
pub enum LongAction {
    /// Look at it again when something has changed.
    Wait,
    /// Reply with an error, and let the client go.
    Reject(&'static str, RejectReason),
    /// Forward it as it arrives.
    Stream(SessionEffect),
}

/// Decides about a command. `count` receives the outcome and the rule of each entry that a reply
/// from memory uses.
#[inline]
pub fn decide<M: Memory>(
    view: &View<'_, M>,
    command: Command<'_>,
    count: impl FnMut(Outcome, RuleId),
) -> Action {
    let action = choose(view, command, count);
    if has_to_wait(view, &action) { Action::Wait } else { action }
}

/// Whether [`decide`] answers each `GET` from memory that has the value of its key, whatever the
/// key, if that is not too long.
#[inline]
pub fn answers_gets<M>(view: &View<'_, M>) -> bool {
    (view.credentials.is_none() || view.session.is_authenticated())
        && view.policy.allow_keys.allows_all()
        && view.pending.flights == 0
        && !view.pending.may_observe_write
        && view.coverage == Coverage::Full
        && view.session.may_read_from_cache(&view.policy.identity)
}

#[inline]
fn choose<M: Memory>(
    view: &View<'_, M>,
    command: Command<'_>,
    count: impl FnMut(Outcome, RuleId),
) -> Action {
    let Command { class, arguments, is_cached, .. } = command;
    let authenticated = view
        .credentials
        .and_then(|credentials| authenticate(credentials, view.session, class, arguments));
    if let Some(action) = authenticated {
        return Action::Local(action);
    }
    let Policy { identity, allow_keys, .. } = view.policy;
    if let Some(rejection) = authorize(allow_keys, identity.database, class, arguments) {
        return Action::Local(rejection);
    }
    match class {
        _ if class.is_read() => match CacheableRead::new(class, arguments) {
            Some(read) if !is_cached => bypass(view, read),
            Some(read) => choose_read(view, read, count),
            None => Action::Forward(SessionEffect::MayObserveWrite),
        },
        Class::Kept(kept) => match KeptRead::new(kept, arguments) {
            Some(read) if !is_cached => bypass_reply(view, &read, None),
            Some(read) => choose_kept_read(view, &read, command, count),
            None => Action::Forward(SessionEffect::MayObserveWrite),
        },
        Class::Quit => Action::Quit,
        Class::Info => choose_info(view, arguments),
        _ if is_passthrough(class, arguments) => Action::Passthrough,
        _ => Action::Forward(effect(class, arguments)),
    }
}

#[inline]
fn choose_read<M: Memory>(
    view: &View<'_, M>,
    read: CacheableRead<'_>,
    count: impl FnMut(Outcome, RuleId),
) -> Action {
    if view.has_pending_read(read.keys()) {
        return Action::Wait;
    }
    let is_bypassed = view.coverage == Coverage::Bypassed
        || read.has_longer_key(view.policy.max_key)
        || view.pending.may_observe_write
        || !view.session.may_read_from_cache(&view.policy.identity);
    if is_bypassed {
        return bypass(view, read);
    }
    if view.coverage == Coverage::Unfenced {
        return Action::Fence;
    }
    if let Some(reply) = read.lookup(view.memory, view.now, view.lookup_time, count) {
        return Action::Reply(reply);
    }
    if is_off(view.memory.rule_of(read.keys())) {
        return bypass(view, read);
    }
    let fetch = read.fetch().filter(|_| view.memory.may_fetch());
    fetch.map_or_else(|| bypass(view, read), Action::Fetch)
}

/// Whether one of the keys of a read has a rule that keeps it from memory.
fn is_off(rule: Option<(RuleId, RuleMode)>) -> bool {
    rule.is_some_and(|(_, mode)| mode == RuleMode::Off)
}

/// Forwards a read past memory.
fn bypass<M: Memory>(view: &View<'_, M>, read: CacheableRead<'_>) -> Action {
    Action::Bypass(read.key_count(), read.rule_reads(view.memory, view.lookup_time))
}

/// Forwards a read past memory. `name` are the bytes under which its reply may be kept.
fn bypass_reply<M: Memory>(view: &View<'_, M>, read: &KeptRead<'_>, name: Option<&[u8]>) -> Action {
    Action::BypassReply(read.kind(), RuleReads::one(rule_read(view, read, name)))
}

/// Returns the rule of a read that memory does not answer. `name` are the bytes under which its
/// reply may be kept.
fn rule_read<M: Memory>(view: &View<'_, M>, read: &KeptRead<'_>, name: Option<&[u8]>) -> RuleRead {
    let Some((id, mode)) = view.memory.rule_of(read.keys()) else { return RuleRead::default() };
    let is_kept = |name: &[u8]| find_kept(view, read, name, LookupUse::Observe).is_some();
    RuleRead { id, would_hit: mode == RuleMode::Observe && name.is_some_and(is_kept) }
}

fn choose_kept_read<M: Memory>(
    view: &View<'_, M>,
    read: &KeptRead<'_>,
    command: Command<'_>,
    mut count: impl FnMut(Outcome, RuleId),
) -> Action {
    if view.has_pending_read(read.keys()) {
        return Action::Wait;
    }
    let is_bypassed = view.coverage == Coverage::Bypassed
        || view.pending.may_observe_write
        || !view.session.may_read_from_cache(&view.policy.identity)
        || read.has_longer_key(view.policy.max_key)
        || !read.has_form(view.session.protocol());
    if is_bypassed {
        return bypass_reply(view, read, None);
    }
    if view.coverage == Coverage::Unfenced {
        return Action::Fence;
    }
    let name = reply_name(command);
    if let Some((reply, rule)) = find_kept(view, read, &name, LookupUse::Serve) {
        count(Outcome::Hit, rule);
        if view.memory.is_sampled() {
            sample_reply(view, read, &name);
        }
        return Action::Reply(reply);
    }
    let may_fetch = view.memory.may_fetch_replies(read.command().may_write());
    if !may_fetch || is_off(view.memory.rule_of(read.keys())) {
        return bypass_reply(view, read, Some(&name));
    }
    let rule = rule_read(view, read, Some(&name));
    Action::FetchReply(Box::new(ReplyFetch::new(read, name.into_owned(), rule)))
}

/// Returns the reply to a read from a kept one, and its rule. `name` are the bytes under which its
/// own reply is kept.
fn find_kept<M: Memory>(
    view: &View<'_, M>,
    read: &KeptRead<'_>,
    name: &[u8],
    purpose: LookupUse,
) -> Option<(CachedReply, RuleId)> {
    let kept = view.memory.lookup_reply(name, read.first_key(), view.lookup_time, purpose);
    let reply = kept.map(|KeptReply { reply, rule }| {
        (CachedReply::kept(reply, read.kind(), read.time_unit(), view.now), rule)
    });
    reply.or_else(|| {
        let (frame, kept) = derive(view, read, purpose)?;
        Some((CachedReply::Derived(Box::new(frame), read.kind()), kept.rule))
    })
}

/// Samples the reply that memory has for a read. It is looked up again, so that reply and basis are
/// of one moment.
#[cold]
fn sample_reply<M: Memory>(view: &View<'_, M>, read: &KeptRead<'_>, name: &[u8]) {
    let Some(order) = read.verified_order() else { return };
    let (time, purpose) = (view.lookup_time, LookupUse::Serve);
    let kept = view.memory.lookup_reply(name, read.first_key(), time, purpose);
    let found = kept.map(|kept| (kept.reply.frame().clone(), kept.reply));
    let derived = || derive(view, read, purpose).map(|(frame, kept)| (frame, kept.reply));
    if let Some((frame, basis)) = found.or_else(derived) {
        let (request, shape) = ReplyFetch::request_of(read, name.to_vec());
        view.memory.verify_reply(ReplySample { request, shape, frame, basis, order }, view.now);
    }
}

/// Returns the reply to a read if it follows from the kept reply for the whole hash or set, and
/// that reply.
fn derive<M: Memory>(
    view: &View<'_, M>,
    read: &KeptRead<'_>,
    purpose: LookupUse,
) -> Option<(ReplyFrame, KeptReply)> {
    let max = view.memory.max_hash_fields();
    if max == 0 {
        return None;
    }
    let name = read.whole_name()?;
    let derived = read.command().index();
    let found =
        view.memory.lookup_whole(&name, read.first_key(), derived, view.lookup_time, purpose)?;
    let frame = read.derive(found.reply.frame().bytes(), max)?;
    Some((frame, found))
}

/// Decides about `INFO`. Its own section needs no Redis, unless only Redis knows whether the client
/// may have a reply.
fn choose_info<M: Memory>(view: &View<'_, M>, arguments: Arguments<'_>) -> Action {
    let is_admitted = view.session.is_admitted(&view.policy.identity)
        && !view.pending.may_observe_write
        && view.memory.may_fetch();
    if is_admitted && is_own_info(arguments.len(), arguments.get(1)) {
        return Action::Local(LocalAction::Info);
    }
    let has_section = has_own_section(arguments, view.policy.info);
    Action::Forward(if has_section { SessionEffect::Info } else { SessionEffect::MayObserveWrite })
}

/// The bytes under which the reply to a command is kept: the command with its name in capitals.
fn reply_name(command: Command<'_>) -> Cow<'_, [u8]> {
    let Command { arguments, bytes, .. } = command;
    let is_array = bytes.first() == Some(&b'*');
    if is_array && !arguments.get(0).iter().any(u8::is_ascii_lowercase) {
        return Cow::Borrowed(bytes);
    }
    let mut name = BytesMut::with_capacity(bytes.len() + 16);
    write_array_length(&mut name, arguments.len());
    write_bulk(&mut name, &arguments.get(0).to_ascii_uppercase());
    arguments.skip(1).for_each(|argument| write_bulk(&mut name, argument));
    Cow::Owned(name.into())
}

/// Whether an action has to wait for the replies that are pending.
#[inline]
fn has_to_wait<M>(view: &View<'_, M>, action: &Action) -> bool {
    let is_behind_flights = view.pending.flights > 0;
    match action {
        Action::Wait
        | Action::Fence
        | Action::Reply(_)
        | Action::Fetch(_)
        | Action::FetchReply(_)
        | Action::Local(
            LocalAction::LogIn { instead: None } | LocalAction::Reject { .. } | LocalAction::Info,
        ) => false,
        Action::Local(LocalAction::Reset) => view.pending.replies > 0,
        // Otherwise a read could see what its own client wrote behind it (invariant R2).
        Action::Bypass(..)
        | Action::BypassReply(..)
        | Action::Passthrough
        | Action::Quit
        | Action::Local(LocalAction::LogIn { .. }) => is_behind_flights,
        Action::Forward(effect) => is_behind_flights || has_to_go_alone(view, effect),
    }
}

/// Whether its reply may be missing, and the reply to another command would be taken for it.
fn has_to_go_alone<M>(view: &View<'_, M>, effect: &SessionEffect) -> bool {
    let is_reply_due = view.pending.replies > 0 || view.pending.is_keepalive;
    let matters = !(view.session.is_desynced() || view.pending.is_close_due);
    is_reply_due && effect.may_go_unanswered() && matters
}

/// Decides about a command that is too long to be held, by the arguments that have arrived.
pub fn decide_long<M: Memory>(view: &View<'_, M>, command: Command<'_>) -> LongAction {
    let Command { class, arguments, .. } = command;
    let is_authenticated = view.credentials.is_none_or(|credentials| {
        authenticate(credentials, view.session, class, arguments).is_none()
    });
    if !is_authenticated {
        return LongAction::Reject(NO_AUTH, RejectReason::Login);
    }
    // The keys that it names are still to come.
    if !view.policy.allow_keys.allows_all() {
        return LongAction::Reject(NO_COMMAND, RejectReason::Command);
    }
    let is_passthrough = is_passthrough(class, arguments);
    let effect = effect(class, arguments);
    if view.pending.flights > 0 || has_to_go_alone(view, &effect) {
        return LongAction::Wait;
    }
    LongAction::Stream(match effect {
        _ if is_passthrough => SessionEffect::Passthrough,
        // What it asks for is still to come.
        effect if effect.is_of_state() => SessionEffect::Unknown,
        effect => effect,
    })
}

/// Whether replies cannot be told from pushes from the command on.
fn is_passthrough(class: Class, arguments: Arguments<'_>) -> bool {
    match class {
        Class::Passthrough => true,
        Class::Client => is_one_of(arguments.get(1), &["reply", "tracking"]),
        // Scripts may be debugged from then on, and a debugger takes all bytes for its own
        // commands.
        Class::Script => is_one_of(arguments.get(1), &["debug"]),
        _ => false,
    }
}

/// The effect of a forwarded command on its client's session.
fn effect(class: Class, arguments: Arguments<'_>) -> SessionEffect {
    match class {
        Class::Neutral | Class::Client => SessionEffect::Neutral,
        Class::Blocking => SessionEffect::MayBlock,
        Class::Xread if xread_may_block(arguments.skip(1)) => SessionEffect::MayBlock,
        Class::Multi => SessionEffect::Multi,
        Class::Exec if arguments.len() == 1 => SessionEffect::Exec,
        Class::Discard => SessionEffect::Discard,
        Class::Watch => SessionEffect::Watch,
        Class::Unwatch => SessionEffect::Unwatch,
        Class::Reset => SessionEffect::Reset,
        Class::Select => {
            let database = parse_integer(arguments.get(1));
            let database = database.and_then(|database| u32::try_from(database).ok());
            database.map_or(SessionEffect::Unknown, SessionEffect::Select)
        }
        Class::Auth => SessionEffect::Auth(match arguments.len() {
            2 => Identity::default_user(),
            _ => named(arguments, 1),
        }),
        Class::Hello => match *hello_logins(arguments) {
            [] => SessionEffect::Hello(None),
            [at] => SessionEffect::Hello(Some(named(arguments, at + 1))),
            // One version of Redis applies each of them, and another only the last.
            [_, _, ..] => SessionEffect::Unknown,
        },
        _ => SessionEffect::MayObserveWrite,
    }
}

fn named(arguments: Arguments<'_>, at: usize) -> Identity {
    Identity::Named(Bytes::copy_from_slice(arguments.get(at)))
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use tokio::runtime::Handle;

    use super::super::table::CommandTable;
    use super::*;
    use crate::cache::{
        Answer, Cache, Cancelled, Entry, Fetched, FetchedReply, Hit, KeyRule, ReadMode, ReplyRead,
        Settings,
    };
    use crate::key::Key;
    use crate::protocol::Shape;
    use crate::protocol::tests::parsed;

    #[derive(Debug, Clone)]
    struct NoFetch;

    impl From<Cancelled> for NoFetch {
        fn from(_: Cancelled) -> Self {
            Self
        }
    }

    /// A cache in which the key `kept` has the value `value`.
    struct Kept {
        cache: Cache<NoFetch>,
        may_fetch: bool,
    }

    impl Kept {
        async fn new(settings: Settings) -> Self {
            let cache = Cache::new(settings, Handle::current());
            for key in [&b"kept"[..], b"see:k"] {
                let value = Fetched::Value(Bytes::from_static(b"value").into(), None);
                cache
                    .get_or_fetch(key, ReadMode::Default, Instant::now(), |_, _| async { value })
                    .await
                    .unwrap();
            }
            Self { cache, may_fetch: true }
        }
    }

    impl Memory for Kept {
        fn lookup(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer> {
            self.cache.lookup_for(key, now, purpose)
        }
        fn lookup_each<'a>(
            &self,
            keys: &[&'a [u8]],
            now: LookupTime,
            each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
        ) {
            self.cache.lookup_each(keys, now, each);
        }
        fn lookup_reply(
            &self,
            command: &[u8],
            _: &[u8],
            now: LookupTime,
            purpose: LookupUse,
        ) -> Option<KeptReply> {
            self.cache.lookup_reply(command, now, purpose)
        }
        fn rule_of<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Option<(RuleId, RuleMode)> {
            self.cache.rules().find(keys)
        }
        fn lookup_whole(
            &self,
            command: &[u8],
            _: &[u8],
            derived: usize,
            now: LookupTime,
            purpose: LookupUse,
        ) -> Option<KeptReply> {
            self.cache.lookup_whole(command, derived, now, purpose)
        }
        fn may_fetch_replies(&self, _: bool) -> bool {
            self.may_fetch
        }
        fn max_hash_fields(&self) -> usize {
            64
        }
        fn count_hit(&self, _: &[u8], _: &Entry, _: Instant) {}
        fn is_sampled(&self) -> bool {
            false
        }
        fn verify_reply(&self, _: ReplySample, _: Instant) {}
        fn may_fetch(&self) -> bool {
            self.may_fetch
        }
    }

    /// Everything that a decision depends on but the command.
    struct Case {
        policy: Policy,
        session: SessionState,
        pending: PendingReplies,
        pending_keys: PendingKeys,
        coverage: Coverage,
        memory: Kept,
    }

    impl Case {
        async fn new() -> Self {
            Self::with(Settings::default()).await
        }

        async fn with(settings: Settings) -> Self {
            let identity = CacheIdentity { user: None, database: 0 };
            Self {
                policy: Policy {
                    identity,
                    max_key: 10,
                    allow_keys: KeyAllowlist::default(),
                    info: false,
                },
                session: SessionState::new(Identity::Unauthenticated),
                pending: PendingReplies::default(),
                pending_keys: PendingKeys::default(),
                coverage: Coverage::Full,
                memory: Kept::new(settings).await,
            }
        }

        fn view(&self) -> View<'_, Kept> {
            View {
                policy: &self.policy,
                credentials: None,
                session: &self.session,
                pending: self.pending,
                pending_keys: &self.pending_keys,
                coverage: self.coverage,
                memory: &self.memory,
                now: Instant::now(),
                lookup_time: self.memory.cache.clock().time(Instant::now()),
            }
        }

        fn with_line<T>(
            &self,
            line: &str,
            decide: impl FnOnce(&View<'_, Kept>, Command<'_>) -> T,
        ) -> T {
            let (input, parser) = parsed(line);
            let arguments = parser.arguments(&input);
            let class = CommandTable::new().find(arguments.get(0)).class;
            decide(&self.view(), Command { class, is_cached: true, arguments, bytes: &input })
        }

        fn decides(&self, line: &str) -> Action {
            self.with_line(line, |view, command| decide(view, command, |_, _| {}))
        }

        fn decides_long(&self, line: &str) -> LongAction {
            self.with_line(line, decide_long)
        }

        #[track_caller]
        fn expect(&self, line: &str, expected: &Action) {
            let found = self.decides(line);
            let is_equal = match (&found, expected) {
                (Action::Forward(found), Action::Forward(expected)) => found == expected,
                (Action::Bypass(found, _), Action::Bypass(expected, _)) => found == expected,
                _ => discriminant(&found) == discriminant(expected),
            };
            assert!(is_equal, "{line}: found {found:?}, expected {expected:?}");
        }
    }

    fn reply() -> Action {
        Action::Reply(CachedReply::Number(0))
    }

    fn bypassed(keys: usize) -> Action {
        Action::Bypass(keys, RuleReads::default())
    }

    fn fetch() -> Action {
        let (input, parser) = parsed("GET absent");
        let read = CacheableRead::new(Class::Get, parser.arguments(&input));
        Action::Fetch(read.and_then(|read| read.fetch()).unwrap())
    }

    #[tokio::test]
    async fn read_is_answered_from_memory_if_all_of_it_is_there() {
        let mut case = Case::new().await;
        for (line, expected) in [
            ("GET kept", reply()),
            ("get kept", reply()),
            ("MGET kept kept", reply()),
            ("EXISTS kept", reply()),
            ("STRLEN kept", reply()),
            ("GETRANGE kept 1 2", reply()),
            ("GETRANGE kept -9 2", bypassed(1)),
            ("GET absent", fetch()),
            ("MGET kept absent", fetch()),
            ("EXISTS kept absent", bypassed(2)),
            ("STRLEN absent", bypassed(1)),
            ("GET too-long-a-key", bypassed(1)),
            ("MGET kept too-long-a-key", bypassed(2)),
            ("GET", Action::Forward(SessionEffect::MayObserveWrite)),
            ("GET kept kept", Action::Forward(SessionEffect::MayObserveWrite)),
        ] {
            case.expect(line, &expected);
        }
        case.memory.may_fetch = false;
        case.expect("GET kept", &reply());
        case.expect("GET absent", &bypassed(1));
    }

    #[tokio::test]
    async fn rule_keeps_reads_from_memory() {
        let rule = |keys: &str, mode| KeyRule {
            mode,
            ..KeyRule::new(keys.to_owned().try_into().unwrap())
        };
        let rules = vec![rule("off:*", RuleMode::Off), rule("see:*", RuleMode::Observe)];
        let case = Case::with(Settings { rules, ..Settings::default() }).await;
        let forwarded = Action::BypassReply(Kind::Hash, RuleReads::default());
        for (line, expected) in [
            ("GET off:k", bypassed(1)),
            ("MGET kept off:k", bypassed(2)),
            ("MGET kept kept", reply()),
            ("GET see:k", fetch()),
            ("MGET see:k kept", fetch()),
            ("STRLEN see:k", bypassed(1)),
            ("HGETALL off:h", forwarded),
        ] {
            case.expect(line, &expected);
        }
        let counted = |line: &str| match case.decides(line) {
            Action::Bypass(_, reads) | Action::BypassReply(_, reads) => {
                reads.iter().map(|(_, outcome, count)| (outcome.name(), count)).collect::<Vec<_>>()
            }
            action => panic!("{action:?}"),
        };
        assert_eq!(counted("STRLEN see:k"), [("would_hit", 1)]);
        assert_eq!(counted("GETRANGE see:k -9 2"), [("bypass", 1)]);
        let found = counted("EXISTS see:k see:k off:k see:x kept");
        assert_eq!(found, [("would_hit", 2), ("bypass", 1), ("bypass", 1)]);
        assert_eq!(counted("HGETALL off:h"), [("bypass", 1)]);
    }

    #[tokio::test]
    async fn read_waits_for_a_fence_or_passes_memory_by() {
        let mut case = Case::new().await;
        for (coverage, expected) in [
            (Coverage::Full, reply()),
            (Coverage::Unfenced, Action::Fence),
            (Coverage::Bypassed, bypassed(1)),
        ] {
            case.coverage = coverage;
            case.expect("GET kept", &expected);
        }
        case.coverage = Coverage::Full;
        case.pending.replies = 1;
        case.expect("GET kept", &reply());
        case.pending.may_observe_write = true;
        case.expect("GET kept", &bypassed(1));
        case.pending = PendingReplies::default();
        case.session.sent(&SessionEffect::Multi);
        case.expect("GET kept", &bypassed(1));
    }

    #[tokio::test]
    async fn gets_together_are_decided_as_alone() {
        type Change = fn(&mut Case);
        let changes: [(bool, Change); 8] = [
            (true, |_| {}),
            (true, |case| case.pending.replies = 1),
            (false, |case| case.coverage = Coverage::Unfenced),
            (false, |case| case.coverage = Coverage::Bypassed),
            (false, |case| case.pending.may_observe_write = true),
            (false, |case| case.session.sent(&SessionEffect::Watch)),
            (false, |case| case.session.desync()),
            (false, |case| {
                case.policy.allow_keys = serde_json::from_str(r#"["public:*"]"#).unwrap();
            }),
        ];
        for (number, (expected, change)) in changes.into_iter().enumerate() {
            let mut case = Case::new().await;
            change(&mut case);
            let is_reply = matches!(case.decides("GET kept"), Action::Reply(_));
            assert_eq!(is_reply, expected, "{number}");
            assert_eq!(answers_gets(&case.view()), expected, "{number}");
            // A read of one of the keys may be pending.
            case.pending.flights = 1;
            assert!(!answers_gets(&case.view()), "{number}");
        }
        let case = Case::new().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pw").unwrap();
        let credentials = Credentials::read("", file.path()).unwrap();
        let view = View { credentials: Some(&credentials), ..case.view() };
        assert!(!answers_gets(&view), "before a login");
    }

    #[tokio::test]
    async fn read_of_another_type_is_decided() {
        let mut case = Case::new().await;
        let bypass = Action::BypassReply(Kind::Hash, RuleReads::default());
        let forward = Action::Forward(SessionEffect::MayObserveWrite);
        let (input, parser) = parsed("HGETALL h");
        let class = CommandTable::new().find(b"HGETALL").class;
        let Class::Kept(command) = class else { panic!("{class:?}") };
        let read = KeptRead::new(command, parser.arguments(&input)).unwrap();
        let fetch = Action::FetchReply(Box::new(ReplyFetch::new(
            &read,
            input.clone(),
            RuleRead::default(),
        )));
        case.memory.cache.start_tracking(Instant::now());
        let name = b"*2\r\n$7\r\nHGETALL\r\n$1\r\nh\r\n";
        let frame = ReplyFrame::new(Bytes::from_static(b"%0\r\n"), Shape::default());
        let kept = move || async { FetchedReply::Keepable(frame, None) };
        let keys = [Key::from(&b"h"[..])];
        let read = ReplyRead { command: name, name_index: command.index(), keys: &keys };
        case.memory.cache.get_or_fetch_reply(read, kept).await;
        case.expect("HGET h f", &fetch);
        let Class::Kept(hget) = CommandTable::new().find(b"HGET").class else { panic!() };
        let other = ReplyRead { command: b"other", name_index: hget.index(), keys: &keys };
        let null = ReplyFrame::new(Bytes::from_static(b"_\r\n"), Shape::default());
        let replied = move || async { FetchedReply::Keepable(null, None) };
        case.memory.cache.get_or_fetch_reply(other, replied).await;
        for (line, expected) in [
            ("HGETALL h", &reply()),
            ("hGetAll h", &reply()),
            ("HGET h f", &reply()),
            ("HKEYS h", &fetch),
            ("HLEN h", &fetch),
            ("HGETALL other", &fetch),
            ("HGETALL too-long-a-key", &bypass),
            ("HGETALL", &forward),
        ] {
            case.expect(line, expected);
        }
        case.memory.may_fetch = false;
        case.expect("HGETALL other", &bypass);
        case.coverage = Coverage::Unfenced;
        case.expect("HGETALL h", &Action::Fence);
        case.coverage = Coverage::Bypassed;
        case.expect("HGETALL h", &bypass);
        case.coverage = Coverage::Full;
        case.pending.may_observe_write = true;
        case.expect("HGETALL h", &bypass);
        case.pending = PendingReplies::default();
        case.session.sent(&SessionEffect::Multi);
        case.expect("HGETALL h", &bypass);
    }

    #[tokio::test]
    async fn nothing_is_forwarded_while_a_read_waits_for_a_flight() {
        let mut case = Case::new().await;
        case.pending = PendingReplies { replies: 1, flights: 1, ..PendingReplies::default() };
        for line in
            ["SET k v", "GET too-long-a-key", "STRLEN absent", "SUBSCRIBE c", "QUIT", "HGET h"]
        {
            case.expect(line, &Action::Wait);
        }
        case.expect("GET kept", &reply());
        case.expect("GET absent", &fetch());
        case.pending_keys.add([&b"kept"[..]].into_iter());
        for line in ["GET kept", "MGET other kept", "LLEN kept", "SINTER other kept"] {
            case.expect(line, &Action::Wait);
        }
        case.expect("GET absent", &fetch());
        assert_eq!(case.decides_long("SET k"), LongAction::Wait);
    }

    #[tokio::test]
    async fn login_goes_alone_since_its_reply_may_be_missing() {
        let mut case = Case::new().await;
        let auth = || Action::Forward(SessionEffect::Auth(Identity::default_user()));
        case.expect("AUTH password", &auth());
        case.pending.replies = 1;
        for line in ["AUTH password", "HELLO 3 AUTH a b", "HELLO 3 AUTH a b AUTH c d", "SELECT x"] {
            case.expect(line, &Action::Wait);
        }
        case.expect("HELLO 3", &Action::Forward(SessionEffect::Hello(None)));
        case.expect("SELECT 1", &Action::Forward(SessionEffect::Select(1)));
        case.pending.is_close_due = true;
        case.expect("AUTH password", &auth());
        case.pending = PendingReplies { is_keepalive: true, ..PendingReplies::default() };
        case.expect("AUTH password", &Action::Wait);
        case.session.desync();
        case.expect("AUTH password", &auth());
    }

    #[tokio::test]
    async fn own_section_of_info_needs_redis_only_to_know_the_client() {
        let own = || Action::Local(LocalAction::Info);
        let forwarded = |effect| Action::Forward(effect);
        let mut case = Case::new().await;
        case.expect("INFO redis_proxy", &own());
        case.expect("INFO", &forwarded(SessionEffect::MayObserveWrite));
        case.expect("INFO server", &forwarded(SessionEffect::MayObserveWrite));
        case.policy.info = true;
        case.expect("INFO", &forwarded(SessionEffect::Info));
        case.expect("INFO everything", &forwarded(SessionEffect::Info));
        case.expect("INFO server", &forwarded(SessionEffect::MayObserveWrite));
        case.policy.allow_keys = serde_json::from_str(r#"["public:*"]"#).unwrap();
        case.expect("INFO redis_proxy", &own());
        case.policy.allow_keys = KeyAllowlist::default();
        // The reply of Redis may be NOAUTH, QUEUED, or in another protocol.
        case.memory.may_fetch = false;
        case.expect("INFO redis_proxy", &forwarded(SessionEffect::Info));
        case.memory.may_fetch = true;
        case.policy.identity.user = Some("reader".into());
        case.expect("INFO redis_proxy", &forwarded(SessionEffect::Info));
        case.policy.identity.user = None;
        case.pending.may_observe_write = true;
        case.expect("INFO redis_proxy", &forwarded(SessionEffect::Info));
        case.pending.may_observe_write = false;
        case.session.sent(&SessionEffect::Multi);
        case.expect("INFO redis_proxy", &forwarded(SessionEffect::Info));
    }

    #[tokio::test]
    async fn effect_follows_from_the_command() {
        use SessionEffect::{
            Discard, Exec, MayBlock, MayObserveWrite, Multi, Neutral, Reset, Select, Unknown,
            Unwatch, Watch,
        };
        let case = Case::new().await;
        let user = |name: &'static str| Identity::Named(Bytes::from_static(name.as_bytes()));
        for (line, effect) in [
            ("PING", Neutral),
            ("HGETALL", MayObserveWrite),
            ("HSCAN h 0", MayObserveWrite),
            ("XPENDING x g", MayObserveWrite),
            ("INFO", MayObserveWrite),
            ("CLIENT ID", Neutral),
            ("SET k v", MayObserveWrite),
            ("EXPIRETIME k", MayObserveWrite),
            ("NONESUCH", MayObserveWrite),
            ("BLPOP q 0", MayBlock),
            ("XREAD STREAMS s 0", MayObserveWrite),
            ("XREAD BLOCK 0 STREAMS s 0", MayBlock),
            ("MULTI", Multi),
            ("EXEC", Exec),
            ("EXEC x", MayObserveWrite),
            ("DISCARD", Discard),
            ("WATCH k", Watch),
            ("UNWATCH", Unwatch),
            ("SELECT 7", Select(7)),
            ("SELECT -1", Unknown),
            ("RESET", Reset),
            ("AUTH alice pw", SessionEffect::Auth(user("alice"))),
            ("HELLO 2 AUTH alice pw", SessionEffect::Hello(Some(user("alice")))),
            ("HELLO 2 AUTH a b AUTH c d", Unknown),
        ] {
            case.expect(line, &Action::Forward(effect));
        }
        for line in
            ["SUBSCRIBE c", "MONITOR", "CLIENT TRACKING ON", "CLIENT REPLY OFF", "SCRIPT DEBUG YES"]
        {
            case.expect(line, &Action::Passthrough);
        }
        case.expect("QUIT", &Action::Quit);
    }

    #[tokio::test]
    async fn command_too_long_to_hold_changes_the_session_unknown() {
        let mut case = Case::new().await;
        for (line, effect) in [
            ("SET k", SessionEffect::MayObserveWrite),
            ("SELECT", SessionEffect::Unknown),
            ("AUTH", SessionEffect::Unknown),
            ("SUBSCRIBE c", SessionEffect::Passthrough),
        ] {
            assert_eq!(case.decides_long(line), LongAction::Stream(effect), "{line}");
        }
        case.policy.allow_keys = serde_json::from_str(r#"["public:*"]"#).unwrap();
        let rejected = LongAction::Reject(NO_COMMAND, RejectReason::Command);
        assert_eq!(case.decides_long("MGET public:a"), rejected);
    }
}
