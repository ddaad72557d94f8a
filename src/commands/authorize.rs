//! The commands that a listener with `resp.allow_keys` accepts: reads with only allowed keys, and
//! commands about the connection alone.
//!
//! The rule that must not be broken (invariant A4): a command that could touch another key is
//! rejected before any lookup. It does not matter what Redis would reply. So no command is accepted
//! that queues, watches, subscribes, runs scripts or lists keys. Nor is an unknown command, nor one
//! of which only a part has arrived.

use super::cached_read::CacheableRead;
use super::info::is_own_info;
use super::kept_read::KeptRead;
use super::local_action::{LocalAction, RejectReason};
use super::table::Class;
use crate::access::KeyAllowlist;
use crate::protocol::{Arguments, is_one_of, parse_integer};

/// Redis's reply about keys that a user may not read.
const NO_KEY: &str = "NOPERM No permissions to access a key";
/// Redis's reply about commands, but for their names.
pub(super) const NO_COMMAND: &str = "NOPERM This user has no permissions to run this command";
/// Subcommands of `CLIENT` about the connection alone.
const OWN_SUBCOMMANDS: [&str; 5] = ["setname", "setinfo", "getname", "id", "info"];

/// The rejection of a command; `None` if it is allowed. `database` is the one that the proxy reads.
#[inline]
pub(super) fn authorize(
    allowed: &KeyAllowlist,
    database: u32,
    class: Class,
    arguments: Arguments<'_>,
) -> Option<LocalAction> {
    if allowed.allows_all() { None } else { reject(allowed, database, class, arguments) }
}

/// The rejection of a command where only some keys are allowed; `None` if it is allowed.
fn reject(
    allowed: &KeyAllowlist,
    database: u32,
    class: Class,
    arguments: Arguments<'_>,
) -> Option<LocalAction> {
    if let Some(is_allowed) = allows_read(allowed, class, arguments) {
        let reason = Some(RejectReason::Key);
        return (!is_allowed).then_some(LocalAction::Reject { text: NO_KEY, reason });
    }
    let is_own = match class {
        Class::Auth | Class::Hello | Class::Reset | Class::Quit => true,
        Class::Select => selects_proxy_database(database, arguments),
        Class::Client => is_one_of(arguments.get(1), &OWN_SUBCOMMANDS),
        Class::Info => is_own_info(arguments.len(), arguments.get(1)),
        Class::Neutral => is_one_of(arguments.get(0), &["ping", "echo", "command"]),
        _ => false,
    };
    let reason = Some(RejectReason::Command);
    (!is_own).then_some(LocalAction::Reject { text: NO_COMMAND, reason })
}

/// Whether the keys of a read are known and all allowed; `None` if it is no read.
pub fn allows_read(allowed: &KeyAllowlist, class: Class, arguments: Arguments<'_>) -> Option<bool> {
    let is_allowed = |key| allowed.allows(key);
    match class {
        Class::Kept(command) => {
            let read = KeptRead::new(command, arguments);
            Some(read.is_some_and(|read| read.keys().all(is_allowed)))
        }
        _ if class.is_read() => {
            let read = CacheableRead::new(class, arguments);
            Some(read.is_some_and(|read| read.keys().all(is_allowed)))
        }
        _ => None,
    }
}

/// Whether it selects the database that every client begins in, or the one that the proxy reads.
fn selects_proxy_database(database: u32, arguments: Arguments<'_>) -> bool {
    let wanted = parse_integer(arguments.get(1));
    arguments.len() == 2 && (wanted == Some(0) || wanted == Some(database.into()))
}

#[cfg(test)]
mod tests {
    use super::super::table::CommandTable;
    use super::*;
    use crate::protocol::tests::parsed;

    /// Commands that pass.
    const ALLOWED: [&str; 25] = [
        "GET public:a",
        "MGET motd public:b",
        "EXISTS motd",
        "STRLEN motd",
        "GETRANGE motd 0 1",
        "TYPE motd",
        "HGET public:h f",
        "hmget public:h secret f",
        "SINTER public:a motd public:b",
        "ZUNION 2 public:a motd WEIGHTS 1 2",
        "SORT_RO motd LIMIT 0 1",
        "GEOSEARCH public:g FROMMEMBER secret BYRADIUS 1 km",
        "PFCOUNT motd",
        "PING",
        "ECHO x",
        "COMMAND",
        "INFO redis_proxy",
        "SELECT 0",
        "SELECT 3",
        "CLIENT SETNAME x",
        "CLIENT ID",
        "HELLO 3",
        "AUTH x",
        "RESET",
        "QUIT",
    ];
    /// Reads with another key, or with unknown keys.
    const WRONG_KEYS: [&str; 16] = [
        "GET secret",
        "MGET motd secret",
        "GET",
        "GET motd motd",
        "GETRANGE motd 0",
        "TYPE secret",
        "HGET secret f",
        "HGET public:h",
        "SINTER motd secret",
        "LCS motd secret",
        "ZUNION 2 motd secret",
        "ZUNION 2 motd",
        "ZUNION 0 motd",
        "SORT_RO motd BY secret*",
        "SORT_RO motd GET secret",
        "PFCOUNT motd secret",
    ];
    /// Commands that could touch another key.
    const FORBIDDEN: [&str; 19] = [
        "SET motd x",
        "HSCAN public:h 0",
        "EXPIRETIME motd",
        "OBJECT ENCODING motd",
        "XPENDING public:x g",
        "MULTI",
        "WATCH motd",
        "SUBSCRIBE motd",
        "EVAL x 0",
        "SCAN 0",
        "KEYS *",
        "SELECT 1",
        "SELECT",
        "CLIENT LIST",
        "CLIENT KILL x",
        "CLIENT TRACKING ON",
        "NONESUCH",
        "INFO",
        "INFO redis_proxy keyspace",
    ];

    #[test]
    fn only_reads_of_allowed_keys_pass() {
        let allowed = serde_json::from_str(r#"["public:*", "motd"]"#).unwrap();
        let reject = |line: &str| {
            let (input, parser) = parsed(line);
            let arguments = parser.arguments(&input);
            let class = CommandTable::new().find(arguments.get(0)).class;
            authorize(&allowed, 3, class, arguments).map(|action| match action {
                LocalAction::Reject { reason: Some(reason), .. } => reason,
                other => panic!("{other:?}"),
            })
        };
        for (lines, expected) in [
            (&ALLOWED[..], None),
            (&WRONG_KEYS, Some(RejectReason::Key)),
            (&FORBIDDEN, Some(RejectReason::Command)),
        ] {
            for line in lines {
                assert_eq!(reject(line), expected, "{line}");
            }
        }
    }
}
