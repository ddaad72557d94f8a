//! The commands that the server confirms: those with replies that may be kept.
//!
//! The proxy has its own list of such commands. The server has to agree with it (`COMMAND INFO`): a
//! command reads only, names keys, and always gives the same reply for the same data. Redis's own
//! rule for client-side caching is the same. A command that the server does not confirm is
//! forwarded, so a server in which it means something else cannot cause a stale reply.
//!
//! Replies about hashes also depend on whether fields have a time to live. The version alone does
//! not tell: Valkey can report the version of an older Redis (`extended-redis-compatibility`). So
//! the server must also know `HPTTL` exactly if its version has it.
//!
//! <https://redis.io/docs/latest/commands/command-info/>

use std::sync::Arc;

use redis::Value;

use super::value::{field, text};

/// The names of the commands with replies that may be kept, in the order of
/// [`name_index`](super::ReplyRequest::name_index). Those behind the 128th are never confirmed.
pub type CommandNames = Arc<[String]>;

/// The commands that a server confirms, and what it does about fields of hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerCommands {
    /// One bit for each of the [`CommandNames`], from the lowest on.
    confirmed: u128,
    pub(super) field_expiry: FieldExpiry,
}

/// The time to live of fields of hashes in a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldExpiry {
    /// Fields have none.
    Absent,
    /// Fields may have one; `HPTTL` and the `subexpiry` of `INFO keyspace` report it.
    Reported,
    /// It was not tested with this server, so replies about hashes are not kept.
    Untested,
}

/// The command that a server has if fields can have a time to live.
pub(super) const FIELD_EXPIRY_COMMAND: &str = "HPTTL";
/// The command tips that forbid keeping a reply.
const FORBIDDING_TIPS: [&str; 2] = ["nondeterministic_output", "dont_cache"];
/// The commands with a reply that ages. It is computed from the end of the key, so the first of the
/// [`FORBIDDING_TIPS`] does not concern it.
const COMPUTED: [&str; 2] = ["TTL", "PTTL"];

impl ServerCommands {
    /// Nothing is confirmed.
    pub(super) const NONE: Self = Self { confirmed: 0, field_expiry: FieldExpiry::Untested };

    /// Whether the command at this index is confirmed.
    pub(super) fn confirms(self, index: usize) -> bool {
        bit(index).is_some_and(|bit| self.confirmed & bit != 0)
    }

    /// Returns the commands with these bits.
    #[cfg(test)]
    pub(super) fn for_test(confirmed: u128, field_expiry: FieldExpiry) -> Self {
        Self { confirmed, field_expiry }
    }

    /// Reads the replies to `HELLO` and to `COMMAND INFO` for `names` and
    /// [`FIELD_EXPIRY_COMMAND`].
    pub(super) fn read(names: &[String], hello: &Value, information: &Value) -> Self {
        let Value::Array(commands) = information else { return Self::NONE };
        let Some((field_command, commands)) = commands.split_last() else { return Self::NONE };
        if commands.len() != names.len() {
            return Self::NONE;
        }
        let each = names.iter().zip(commands).enumerate();
        let confirmed = each
            .filter(|(_, (name, command))| is_confirmed(name, command))
            .filter_map(|(index, _)| bit(index))
            .fold(0, |confirmed, bit| confirmed | bit);
        let field_expiry = field_expiry(hello, *field_command != Value::Nil);
        Self { confirmed, field_expiry }
    }
}

fn bit(index: usize) -> Option<u128> {
    1_u128.checked_shl(u32::try_from(index).ok()?)
}

/// Whether one element of the reply to `COMMAND INFO` confirms the command `name`.
fn is_confirmed(name: &str, command: &Value) -> bool {
    // Name, arity, flags, first key, last key, step, ACL categories, tips, key specifications.
    let Value::Array(parts) = command else { return false };
    let [reported, _, flags, first_key, _, _, _, tips, specifications, ..] = &parts[..] else {
        return false;
    };
    let has_keys = matches!(first_key, Value::Int(1..)) || !elements(specifications).is_empty();
    let has_flag = |flag| elements(flags).iter().filter_map(text).any(|one| one == flag);
    let forbidding = &FORBIDDING_TIPS[usize::from(COMPUTED.contains(&name))..];
    let is_forbidden = elements(tips).iter().filter_map(text).any(|tip| forbidding.contains(&tip));
    text(reported).is_some_and(|reported| reported.eq_ignore_ascii_case(name))
        && has_flag("readonly")
        && has_keys
        && !is_forbidden
}

fn elements(list: &Value) -> &[Value] {
    match list {
        Value::Array(elements) | Value::Set(elements) => elements,
        _ => &[],
    }
}

/// Returns what the server does about fields of hashes. `knows_command`: whether it has
/// [`FIELD_EXPIRY_COMMAND`].
fn field_expiry(hello: &Value, knows_command: bool) -> FieldExpiry {
    let server = field(hello, "server").and_then(text).unwrap_or_default();
    let version = field(hello, "version").and_then(text).unwrap_or_default();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return FieldExpiry::Untested;
    };
    match (server, knows_command) {
        ("redis", false) if (major, minor) < (7, 4) => FieldExpiry::Absent,
        ("valkey", false) if major < 9 => FieldExpiry::Absent,
        ("redis", true) if major >= 8 => FieldExpiry::Reported,
        _ => FieldExpiry::Untested,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn simple(texts: &[&str]) -> Vec<Value> {
        texts.iter().map(|text| Value::SimpleString((*text).to_owned())).collect()
    }

    /// Returns one element of the reply to `COMMAND INFO`.
    fn command(name: &str, flags: &[&str], first_key: i64, tips: &[&str], specs: usize) -> Value {
        Value::Array(vec![
            bulk(name),
            Value::Int(-2),
            Value::Set(simple(flags)),
            Value::Int(first_key),
            Value::Int(first_key),
            Value::Int(first_key),
            Value::Set(Vec::new()),
            Value::Array(tips.iter().map(|tip| bulk(tip)).collect()),
            Value::Array(vec![Value::Map(Vec::new()); specs]),
            Value::Array(Vec::new()),
        ])
    }

    fn hello(server: &str, version: &str) -> Value {
        Value::Map(vec![(bulk("server"), bulk(server)), (bulk("version"), bulk(version))])
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_deterministic_reads_of_keys_are_confirmed() {
        let reads = ["readonly", "fast"];
        for (reply, expected) in [
            (command("hget", &reads, 1, &[], 1), true),
            (command("hget", &reads, 1, &["nondeterministic_output_order"], 1), true),
            (command("hget", &["readonly", "movablekeys"], 0, &[], 1), true),
            (command("hget", &reads, 1, &[], 0), true),
            (command("hget", &reads, 0, &[], 0), false),
            (command("hget", &["fast"], 1, &[], 1), false),
            (command("hget", &reads, 1, &["nondeterministic_output"], 1), false),
            (command("hget", &reads, 1, &["request_policy:special", "dont_cache"], 1), false),
            (command("hset", &reads, 1, &[], 1), false),
            (Value::Nil, false),
            (Value::Array(vec![bulk("hget")]), false),
        ] {
            let reply = Value::Array(vec![reply, Value::Nil]);
            let commands =
                ServerCommands::read(&names(&["HGET"]), &hello("redis", "7.0.15"), &reply);
            assert_eq!(commands.confirms(0), expected, "{reply:?}");
        }
    }

    #[test]
    fn each_command_has_its_own_bit() {
        let many: Vec<_> = (0..130).map(|number| format!("c{number}")).collect();
        let infos = many.iter().enumerate().map(|(index, name)| match index % 2 {
            0 => command(name, &["readonly"], 1, &[], 1),
            _ => Value::Nil,
        });
        let infos = Value::Array(infos.chain([Value::Nil]).collect());
        let commands = ServerCommands::read(&many, &hello("redis", "7.0.15"), &infos);
        for index in 0..140 {
            assert_eq!(commands.confirms(index), index < 128 && index % 2 == 0, "{index}");
        }
        assert!(!commands.confirms(usize::MAX));
        // A reply of another length confirms nothing.
        let commands = ServerCommands::read(&many[1..], &hello("redis", "7.0.15"), &infos);
        assert_eq!(commands, ServerCommands::NONE);
    }

    #[test]
    fn field_expiry_needs_the_version_and_the_command() {
        for (server, version, knows_command, expected) in [
            ("redis", "7.0.15", false, FieldExpiry::Absent),
            ("redis", "7.2.4", true, FieldExpiry::Untested),
            ("redis", "7.4.0", false, FieldExpiry::Untested),
            ("redis", "7.4.2", true, FieldExpiry::Untested),
            ("redis", "8.0.2", true, FieldExpiry::Reported),
            ("redis", "8.0.2", false, FieldExpiry::Untested),
            ("redis", "10.1", true, FieldExpiry::Reported),
            ("valkey", "8.1.1", false, FieldExpiry::Absent),
            ("valkey", "9.0.0", true, FieldExpiry::Untested),
            ("valkey", "9.0.0", false, FieldExpiry::Untested),
            ("other", "7.0.0", false, FieldExpiry::Untested),
            ("redis", "unstable", true, FieldExpiry::Untested),
        ] {
            let found = field_expiry(&hello(server, version), knows_command);
            assert_eq!(found, expected, "{server} {version} {knows_command}");
        }
    }
}
