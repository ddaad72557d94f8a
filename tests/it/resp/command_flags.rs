//! Promise: the lists of commands that are kept by hand agree with what the server says of its
//! commands.
//!
//! Redis does not tell which replies depend on strings, or which commands concern one node, so some
//! lists cannot come from it. Its flags bound them: a list may be more careful than the flags,
//! never less.

use redis::{Value, cmd};
use redis_proxy::commands::{Class, CommandTable};

use crate::support::RedisServer;

/// Commands of the server with their flags, and whether they name keys.
fn commands() -> Vec<(String, Vec<String>, bool)> {
    let redis = RedisServer::start();
    let reply: Value = cmd("COMMAND").query(&mut redis.connection()).unwrap();
    let Value::Array(commands) = reply else { panic!("{reply:?}") };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let read = |command: &Value| {
        let Value::Array(parts) = command else { panic!("{command:?}") };
        let (Value::Array(flags) | Value::Set(flags)) = &parts[2] else { panic!("{parts:?}") };
        let Value::Array(keys) = &parts[8] else { panic!("{parts:?}") };
        (text(&parts[0]), flags.iter().map(text).collect(), !keys.is_empty())
    };
    commands.iter().map(read).collect()
}

#[test]
fn classes_are_as_careful_as_the_flags_of_the_server() {
    let (table, mut compared) = (CommandTable::new(), 0);
    for (name, flags, _) in commands() {
        let class = table.find(name.as_bytes()).class;
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        let changes_nothing = matches!(class, Class::Neutral | Class::ReadOnly) || class.is_read();
        assert!(!(changes_nothing && has("write")), "{name} writes: {flags:?}, found {class:?}");
        let may_block = matches!(class, Class::Blocking | Class::Xread);
        assert!(may_block || !has("blocking"), "{name} may block: {flags:?}, found {class:?}");
        let is_neutral = class == Class::Neutral;
        assert!(
            !(is_neutral && has("may_replicate") && name != "publish" && name != "spublish"),
            "{name} may write: {flags:?}, found {class:?}"
        );
        compared += 1;
    }
    assert!(compared > 150, "{compared} commands");
}
