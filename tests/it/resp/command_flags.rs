//! Promise: the lists of commands that are kept by hand agree with what the server says of its
//! commands.
//!
//! Redis does not tell which replies depend on strings, or which commands concern one node, so some
//! lists cannot come from it. Its flags bound them: a list may be more careful than the flags,
//! never less.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use redis::{Value, cmd};
use redis_proxy::commands::{Class, CommandTable, cached_names, names, opt_in_names};

use crate::support::RedisServer;

/// A command as the server describes it.
struct Described {
    name: String,
    flags: Vec<String>,
    tips: Vec<String>,
    has_keys: bool,
}

impl Described {
    fn read(command: &Value) -> Self {
        let parts = items(command);
        let flags: Vec<_> = items(&parts[2]).iter().map(text).collect();
        // A channel counts as a key in a cluster, and is marked as none.
        let is_key = |spec: &Value| !items_of(spec, "flags").iter().any(|flag| flag == "not_key");
        let has_keys = items(&parts[8]).iter().any(is_key)
            || flags.iter().any(|flag| flag == "movablekeys")
            || items(&parts[9]).iter().any(|subcommand| Self::read(subcommand).has_keys);
        let tips = items(&parts[7]).iter().map(text).collect();
        Self { name: text(&parts[0]), flags, tips, has_keys }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    fn has_tip(&self, tip: &str) -> bool {
        self.tips.iter().any(|one| one == tip)
    }

    /// Whether equal keys give equal replies, as far as the server says.
    fn is_function_of_keys(&self) -> bool {
        let varies = self.has_tip("nondeterministic_output") || self.has_tip("dont_cache");
        self.has("readonly") && self.has_keys && !self.has("blocking") && !varies
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        other => panic!("{other:?}"),
    }
}

/// Returns the texts of a property in a list of properties with their values.
fn items_of(properties: &Value, name: &str) -> Vec<String> {
    let mut pairs = items(properties).chunks_exact(2);
    let found = pairs.find(|pair| text(&pair[0]) == name);
    found.map(|pair| items(&pair[1]).iter().map(text).collect()).unwrap_or_default()
}

fn commands() -> Vec<Described> {
    let redis = RedisServer::start();
    let reply: Value = cmd("COMMAND").query(&mut redis.connection()).unwrap();
    let commands: Vec<_> = items(&reply).iter().map(Described::read).collect();
    assert!(commands.len() > 150, "{} commands", commands.len());
    commands
}

#[test]
fn classes_are_as_careful_as_the_flags_of_the_server() {
    let table = CommandTable::new();
    for command in commands() {
        let Described { name, flags, .. } = &command;
        let class = table.find(name.as_bytes()).class;
        let is_kept = matches!(class, Class::Kept(_));
        let changes_nothing =
            matches!(class, Class::Neutral | Class::ReadOnly) || is_kept || class.is_read();
        assert!(
            !(changes_nothing && command.has("write")),
            "{name} writes: {flags:?}, found {class:?}"
        );
        let may_block = matches!(class, Class::Blocking | Class::Xread);
        assert!(
            may_block || !command.has("blocking"),
            "{name} may block: {flags:?}, found {class:?}"
        );
        let is_neutral = class == Class::Neutral;
        assert!(
            !(is_neutral
                && command.has("may_replicate")
                && name != "publish"
                && name != "spublish"),
            "{name} may write: {flags:?}, found {class:?}"
        );
    }
}

/// Commands without keys that are not neutral, although they neither write nor change the session:
/// their replies depend on keys that they do not name, or show what others have written.
const SHOW_SOME_KEY: &str =
    "dbsize function info keys latency memory object randomkey role scan slowlog";

#[test]
fn neutral_commands_name_no_key_of_the_server() {
    let table = CommandTable::new();
    for command in commands() {
        let name = &command.name;
        let is_neutral = table.find(name.as_bytes()).class == Class::Neutral;
        assert!(!(is_neutral && command.has_keys), "{name} names keys");
        let shows_some = SHOW_SOME_KEY.split(' ').any(|one| one == name);
        assert!(!(is_neutral && shows_some), "{name} shows the state of some key");
    }
}

/// Reads with replies that are never kept: those of consumer groups, of chance, of cursors, of what
/// is beside the value, of scripts and of modules, and commands that may write.
const NEVER_KEPT: &str = "xread xreadgroup xpending xinfo srandmember hrandfield zrandmember \
    randomkey scan hscan sscan zscan keys dbsize object dump memory touch eval_ro evalsha_ro \
    fcall_ro sort georadius georadiusbymember getex hgetex bitfield vsim ts.get ts.range bf.exists \
    cf.exists cms.query topk.query tdigest.quantile ft.search json.get digest";
/// Reads with a reply that ages, which is computed.
const COMPUTED: &str = "ttl pttl";
/// Reads with a reply that ages and is not computed.
const AGEING: &str = "expiretime pexpiretime httl hpttl hexpiretime hpexpiretime";

#[test]
fn kept_commands_are_those_that_the_server_confirms() {
    let table = CommandTable::new();
    let is_kept = |name: &str| matches!(table.find(name.as_bytes()).class, Class::Kept(_));
    let is_known = |name: &str| names()[table.find(name.as_bytes()).label] == name;
    let excluded = || NEVER_KEPT.split_whitespace().chain(AGEING.split(' '));
    for name in excluded() {
        let is_read = table.find(name.as_bytes()).class.is_read();
        assert!(!is_kept(name) && !is_read, "{name} is kept");
    }
    let commands = commands();
    for command in &commands {
        let (name, flags, tips) = (&command.name, &command.flags, &command.tips);
        if is_kept(name) && !COMPUTED.split(' ').any(|one| one == name) {
            assert!(command.is_function_of_keys(), "{name}: {flags:?}, {tips:?}");
        } else if is_known(name) && command.is_function_of_keys() {
            let is_string_read = table.find(name.as_bytes()).class.is_read();
            let is_excluded = excluded().any(|one| one == name);
            assert!(is_string_read || is_excluded, "{name} might be kept: {flags:?}, {tips:?}");
        }
    }
    for name in cached_names() {
        let is_there = commands.iter().any(|command| command.name == name);
        assert!(is_there, "{name} is no command of the server");
    }
}

/// Returns a file of the project.
fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Returns the words in backticks that are names of commands, in lower case.
fn named_commands(text: &str) -> BTreeSet<String> {
    let all: BTreeSet<_> = names().into_iter().collect();
    let words = text.split('`').skip(1).step_by(2).map(str::to_lowercase);
    words.filter(|word| all.contains(word.as_str())).collect()
}

#[test]
fn book_lists_the_commands_that_are_cached() {
    let page = file("docs/src/using/resp.md");
    let section = page.split("## Which commands are cached").nth(1).unwrap();
    let table = section.split("| everything else |").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let listed = named_commands(&rows.collect::<Vec<_>>().join("\n"));
    let strings = ["get", "mget", "exists", "strlen", "getrange", "substr"];
    let cached: BTreeSet<_> = cached_names().chain(strings).map(str::to_owned).collect();
    assert_eq!(listed, cached);
    let also = section.split("- `resp.").nth(2).unwrap().split("\n\n").next().unwrap();
    let also = also.split_once('`').unwrap().1;
    let opt_in: BTreeSet<_> = opt_in_names().map(str::to_owned).collect();
    assert_eq!(named_commands(also), opt_in);
    let count = format!("[{} deterministic reads]", cached.len());
    assert!(file("README.md").contains(&count), "the README does not have: {count}");
}
