//! The decision whether a command may run: by its kind, by the settings, by the token. No I/O.
//!
//! The rules that must not be broken:
//! - A command that needs a connection of the client's own, or changes the state of one, is
//!   refused: requests share connections.
//! - A token with keys runs only commands of which every key is known and allowed. In doubt the
//!   command is refused (invariant A4).

use crate::access::TokenRights;
use crate::commands::{
    Class, CommandInfo, CommandList, allows_read, is_own_info, names, xread_may_block,
};
use crate::protocol::Arguments;

use super::request::Words;
use super::settings::Settings;

/// The reason why a command does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No request may use the command.
    NotAvailable(String),
    /// The token, or no token, may use the command.
    Command(String),
    /// The token may not use a key of the command.
    Key,
}

impl Refusal {
    /// Returns the error for the client.
    pub(super) fn text(&self) -> String {
        match self {
            Self::NotAvailable(name) => format!("ERR Command is not available: '{name}'"),
            Self::Command(name) => {
                format!("NOPERM this token has no permissions to run the '{name}' command")
            }
            Self::Key => "NOPERM No permissions to access a key".to_owned(),
        }
    }

    /// Whether the token lacks the right.
    pub(super) fn is_of_token(&self) -> bool {
        !matches!(self, Self::NotAvailable(_))
    }
}

/// Commands without keys that a token with keys may use.
const KEYLESS: [&str; 3] = ["ping", "echo", "time"];
/// Commands of the class of those that change no key, which show or list all keys, or describe the
/// server.
const OF_ALL_KEYS: [&str; 9] =
    ["dbsize", "keys", "latency", "memory", "object", "randomkey", "role", "scan", "slowlog"];
/// Commands that may use other keys than they name, or keys of another database. The "key" of
/// `SPUBLISH` is a channel.
const OF_OTHER_KEYS: [&str; 13] = [
    "copy",
    "eval",
    "eval_ro",
    "evalsha",
    "evalsha_ro",
    "fcall",
    "fcall_ro",
    "georadius",
    "georadiusbymember",
    "migrate",
    "move",
    "sort",
    "spublish",
];
/// The command that has its keys behind the word `STREAMS`. Its group and consumer are any words in
/// front of it.
const XREADGROUP: &str = "xreadgroup";
/// Commands of no class of their own that change the state of a connection.
const STATEFUL: [&str; 3] = ["asking", "readonly", "readwrite"];

fn is_one_of(words: &[&str], word: &[u8]) -> bool {
    words.iter().any(|one| word.eq_ignore_ascii_case(one.as_bytes()))
}

/// The commands that no token may use.
pub(super) struct Denied {
    list: CommandList,
    /// Whether the list names each known command, perhaps with a subcommand, by its label.
    is_named: Vec<bool>,
}

impl Denied {
    /// The commands of this list.
    pub(super) fn new(list: CommandList) -> Self {
        let is_named = names().into_iter().map(|name| list.names(name.as_bytes())).collect();
        Self { list, is_named }
    }

    fn has(&self, info: CommandInfo, words: Words<'_>) -> bool {
        // The names of a list would cost more to compare than a command that memory answers.
        let may_have = !info.is_known || self.is_named.get(info.label) != Some(&false);
        may_have && self.list.denies(words.get(0), words.get(1))
    }
}

/// Returns the reason why a command does not run for this token, as far as its keys do not matter.
pub(super) fn refusal(
    denied: &Denied,
    rights: &TokenRights,
    info: CommandInfo,
    words: Words<'_>,
) -> Option<Refusal> {
    let name = words.get(0);
    if !is_available(info.class, words) {
        return Some(Refusal::NotAvailable(shown(name)));
    }
    let is_allowed = !denied.has(info, words)
        && (!rights.is_read_only || is_read(info.class, words))
        && (rights.keys.allows_all() || !hides_keys(words));
    (!is_allowed).then(|| Refusal::Command(shown(name)))
}

/// Returns the reason why a command does not run for a token with keys. `keys` returns the keys of
/// a command that is no read of the cache.
pub(super) fn key_refusal<'a>(
    rights: &TokenRights,
    class: Class,
    arguments: Arguments<'a>,
    keys: impl FnOnce() -> Vec<&'a [u8]>,
) -> Option<Refusal> {
    if rights.keys.allows_all() {
        return None;
    }
    let name = arguments.get(0);
    if let Some(is_allowed) = allows_read(&rights.keys, class, arguments) {
        return (!is_allowed).then_some(Refusal::Key);
    }
    let is_own_info = class == Class::Info && is_own_info(arguments.len(), arguments.get(1));
    if is_own_info || is_one_of(&KEYLESS, name) {
        return None;
    }
    let keys = keys();
    if keys.is_empty() {
        return Some(Refusal::Command(shown(name)));
    }
    (!keys.iter().all(|key| rights.keys.allows(key))).then_some(Refusal::Key)
}

/// Whether a command may use other keys than its key specification finds.
fn hides_keys(words: Words<'_>) -> bool {
    let name = words.get(0);
    let is_streams = |word: &&[u8]| word.eq_ignore_ascii_case(b"streams");
    // The specification takes the first `STREAMS`, which may be the name of the consumer.
    let is_ambiguous = || words.iter().skip(1).filter(is_streams).count() > 1;
    is_one_of(&OF_OTHER_KEYS, name) || (is_one_of(&[XREADGROUP], name) && is_ambiguous())
}

/// The command of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// `SUBSCRIBE` or `PSUBSCRIBE`.
    Subscription,
    /// `MONITOR`.
    Monitor,
}

impl StreamKind {
    /// Returns the kind of the stream that a command opens.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"subscribe") || name.eq_ignore_ascii_case(b"psubscribe") {
            Some(Self::Subscription)
        } else {
            name.eq_ignore_ascii_case(b"monitor").then_some(Self::Monitor)
        }
    }
}

/// Returns the reason why a stream of events does not begin. Its channels are no keys.
pub(super) fn stream_refusal(
    settings: &Settings,
    rights: &TokenRights,
    kind: StreamKind,
    words: Words<'_>,
) -> Option<Refusal> {
    let name = words.get(0);
    if kind == StreamKind::Monitor && !settings.allow_monitor {
        return Some(Refusal::NotAvailable(shown(name)));
    }
    // MONITOR shows the commands of all clients with their values.
    let is_within_rights =
        rights.keys.allows_all() && (kind == StreamKind::Subscription || !rights.is_read_only);
    let is_allowed = is_within_rights && !settings.deny_commands.denies(name, words.get(1));
    (!is_allowed).then(|| Refusal::Command(shown(name)))
}

/// Whether a request may use a command of this kind at all.
fn is_available(class: Class, words: Words<'_>) -> bool {
    match class {
        Class::Blocking
        | Class::Multi
        | Class::Exec
        | Class::Discard
        | Class::Watch
        | Class::Unwatch
        | Class::Select
        | Class::Auth
        | Class::Hello
        | Class::Reset
        | Class::Client
        | Class::Quit
        | Class::Passthrough => false,
        Class::Xread => !xread_may_block(words.iter().skip(1)),
        Class::Script => !words.get(1).eq_ignore_ascii_case(b"debug"),
        _ => !is_one_of(&STATEFUL, words.get(0)),
    }
}

/// Whether a token that may change nothing may use the command.
fn is_read(class: Class, words: Words<'_>) -> bool {
    let name = words.get(0);
    match class {
        Class::Info => is_own_info(words.len(), words.get(1)),
        // PFCOUNT writes the count that it keeps in its key.
        Class::Kept(command) => !command.may_write(),
        Class::ReadOnly => !is_one_of(&OF_ALL_KEYS, name),
        Class::Neutral => is_one_of(&KEYLESS, name),
        Class::Xread => name.eq_ignore_ascii_case(b"xread"),
        class => class.is_read(),
    }
}

/// Whether a command leaves no state on its connection, for certain. Commands of the modules in
/// this list leave none.
pub(super) fn is_stateless(is_known: bool, name: &[u8]) -> bool {
    const MODULES: [&str; 7] = ["json.", "ft.", "bf.", "cf.", "cms.", "topk.", "ts."];
    is_known
        || MODULES.iter().any(|module| {
            name.get(..module.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(module.as_bytes()))
        })
}

/// The name of a command in an error, at most so long that it is no burden.
fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 64;
    String::from_utf8_lossy(&name[..name.len().min(LONGEST)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::request::Commands;
    use super::*;
    use crate::commands::CommandTable;

    fn rights(is_read_only: bool, keys: &str) -> TokenRights {
        let keys = serde_json::from_value(serde_json::Value::String(keys.into())).unwrap();
        TokenRights { is_read_only, keys, ..TokenRights::default() }
    }

    fn refused(rights: &TokenRights, line: &str) -> Option<Refusal> {
        let words: Vec<_> = line.split(' ').collect();
        let commands = Commands::of(&[&words]);
        let words = commands.iter().next().unwrap();
        let info = CommandTable::new().find(words.get(0));
        refusal(&Denied::new(Settings::default().deny_commands), rights, info, words)
    }

    #[test]
    fn command_with_state_is_never_available() {
        for line in [
            "BLPOP q 0",
            "wait 1 0",
            "MULTI",
            "EXEC",
            "DISCARD",
            "WATCH k",
            "UNWATCH",
            "SELECT 1",
            "AUTH x",
            "HELLO 3",
            "RESET",
            "CLIENT ID",
            "QUIT",
            "SUBSCRIBE c",
            "PSUBSCRIBE c",
            "MONITOR",
            "SYNC",
            "PSYNC ? -1",
            "REPLCONF a b",
            "READONLY",
            "readwrite",
            "ASKING",
            "XREAD BLOCK 0 STREAMS s 0",
            "XREADGROUP GROUP g c block 1 STREAMS s >",
            "XREADGROUP GROUP streams c BLOCK 1 STREAMS s >",
            "XREADGROUP GROUP g streams COUNT 1 BLOCK 1 STREAMS s >",
            "SCRIPT DEBUG YES",
            "script debug sync",
        ] {
            let found = refused(&rights(false, ""), line);
            assert!(matches!(found, Some(Refusal::NotAvailable(_))), "{line}: {found:?}");
        }
    }

    #[test]
    fn denied_commands_are_refused() {
        for line in [
            "FLUSHALL",
            "flushdb async",
            "CONFIG GET x",
            "KEYS *",
            "DEBUG SLEEP 1",
            "SHUTDOWN",
            "ACL LIST",
            "MODULE LIST",
            "REPLICAOF NO ONE",
            "SCRIPT FLUSH",
            "script kill",
            "FUNCTION FLUSH",
            "SWAPDB 0 1",
            "CLUSTER INFO",
            "pfselftest",
            "RESTORE-ASKING k 0 x",
        ] {
            let found = refused(&rights(false, ""), line);
            assert!(matches!(found, Some(Refusal::Command(_))), "{line}: {found:?}");
        }
        for line in [
            "GET a",
            "SET a b",
            "EVAL x 0",
            "EVALSHA x 0",
            "SCRIPT LOAD x",
            "SCRIPT EXISTS x",
            "PUBLISH c m",
            "SCAN 0",
            "DEL a",
            "JSON.SET a $ 1",
            "NONESUCH",
            "XREAD STREAMS block 0",
            "XADD s * a b",
            "FUNCTION LIST",
            "INFO",
            "DBSIZE",
        ] {
            assert_eq!(refused(&rights(false, ""), line), None, "{line}");
        }
    }

    #[test]
    fn read_only_token_changes_nothing_and_lists_no_keys() {
        let rights = rights(true, "");
        for line in [
            "GET a",
            "mget a b",
            "EXISTS a",
            "HGETALL h",
            "LRANGE l 0 -1",
            "ZSCORE z m",
            "TTL a",
            "HSCAN h 0",
            "PING",
            "ECHO x",
            "TIME",
            "XREAD STREAMS s 0",
            "XRANGE s - +",
            "TYPE a",
            "INFO redis_proxy",
        ] {
            assert_eq!(refused(&rights, line), None, "{line}");
        }
        for line in [
            "SET a b",
            "DEL a",
            "GETDEL a",
            "GETEX a",
            "EXPIRE a 1",
            "EVAL x 0",
            "EVAL_RO x 0",
            "SCRIPT LOAD x",
            "PUBLISH c m",
            "SCAN 0",
            "KEYS *",
            "RANDOMKEY",
            "INFO",
            "OBJECT FREQ a",
            "MEMORY USAGE a",
            "XREADGROUP GROUP g c STREAMS s >",
            "NONESUCH",
            "JSON.SET a $ 1",
            "FLUSHALL",
            "COMMAND",
            "SORT l STORE d",
            "PFCOUNT a",
            "ROLE",
        ] {
            let found = refused(&rights, line);
            assert!(matches!(found, Some(Refusal::Command(_))), "{line}: {found:?}");
        }
    }

    #[test]
    fn token_with_keys_uses_only_them() {
        use crate::protocol::tests::parsed;
        let rights = rights(false, "a:*");
        let found = |line: &str, keys: &[&'static str]| {
            if let Some(refusal) = refused(&rights, line) {
                return Some(refusal);
            }
            let (input, parser) = parsed(line);
            let arguments = parser.arguments(&input);
            let class = CommandTable::new().find(arguments.get(0)).class;
            let keys = || keys.iter().map(|key| key.as_bytes()).collect();
            key_refusal(&rights, class, arguments, keys)
        };
        for (line, keys) in [
            ("GET a:1", &[][..]),
            ("MGET a:1 a:2", &[]),
            ("HGETALL a:h", &[]),
            ("SET a:1 x", &["a:1"]),
            ("SUNIONSTORE a:1 a:2", &["a:1", "a:2"]),
            ("XREADGROUP GROUP g c STREAMS a:s >", &["a:s"]),
            ("XREAD STREAMS a:s a:streams 0 0", &["a:s", "a:streams"]),
            ("PING", &[]),
        ] {
            assert_eq!(found(line, keys), None, "{line}");
        }
        for (line, keys) in [
            ("GET b", &[][..]),
            ("MGET a:1 b", &[]),
            ("GET", &[]),
            ("SET b x", &["b"]),
            ("SUNIONSTORE a:1 b", &["a:1", "b"]),
        ] {
            assert_eq!(found(line, keys), Some(Refusal::Key), "{line}");
        }
        for (line, keys) in [
            ("EVAL x 1 a:1", &["a:1"][..]),
            ("SORT a:1", &["a:1"]),
            ("MOVE a:1 1", &["a:1"]),
            ("SCAN 0", &[]),
            ("PUBLISH c m", &[]),
            ("SPUBLISH a:c m", &["a:c"]),
            ("DBSIZE", &[]),
            ("NONESUCH a:1", &[]),
            ("XREADGROUP NOACK GROUP g streams STREAMS b >", &["STREAMS"]),
            ("xreadgroup GROUP g c GROUP g Streams streams b >", &["streams"]),
        ] {
            let refusal = found(line, keys);
            assert!(matches!(refusal, Some(Refusal::Command(_))), "{line}: {refusal:?}");
        }
    }

    #[test]
    fn commands_of_known_modules_leave_no_state() {
        assert!(is_stateless(true, b"GET") && is_stateless(false, b"Json.Set"));
        assert!(!is_stateless(false, b"NONESUCH") && !is_stateless(false, b"json"));
    }
}
