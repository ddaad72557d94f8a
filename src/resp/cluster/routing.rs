//! The route of a command: a slot, any node, several slots, all primaries, or nowhere.
//!
//! The nodes report in `COMMAND` which arguments are keys. Their command tips report which commands
//! concern all shards and how their replies become one. A command without a meaning behind one
//! address is refused here.
//!
//! <https://redis.io/docs/latest/develop/reference/command-tips/>

use bytes::{Bytes, BytesMut};

use super::aggregate::Aggregate;
use super::key_specs::{Access, CommandSpec, Distribution, KeySpecs};
use crate::backend::BackendError;
use crate::cluster::slot;
use crate::net::WriteBuf;
use crate::protocol::{Arguments, is_one_of, write_array_length, write_bulk, write_error};
use crate::resp::failure::write_failure;

/// The destination of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// The node that serves this slot.
    Slot(u16),
    /// Any node.
    Any,
    /// Any node, which replies with an error.
    Invalid,
    /// None before the transaction has a node. A node that keeps the transaction refuses it.
    RefusedInMulti,
    /// A command of its own to each slot, and how the replies become one.
    Split(Vec<(u16, Bytes)>, Aggregate),
    /// All primaries, and how the replies become one.
    All(Aggregate),
    /// None. This is the reply, an error.
    Refused(Bytes),
    /// `MULTI`.
    Multi,
    /// `EXEC`.
    Exec,
    /// `DISCARD`.
    Discard,
    /// `WATCH` of keys in this slot.
    Watch(u16),
    /// `UNWATCH`.
    Unwatch,
    /// Any node, and each node that is used later.
    Login,
    /// Every node's session becomes as new.
    Reset,
    /// `QUIT`.
    Quit,
    /// The node of the slot, or any. From there on all bytes go there.
    Passthrough(Option<u16>),
}

/// Redis's own words.
const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
/// The error for a client with a transaction or a watch at a node that its slot has left.
const SLOT_LEFT: &str =
    "TRYAGAIN redis-proxy: the slot of the transaction has gone to another node; begin it again";

/// Commands that concern one node, and the client cannot say which. Their tips do not help. Those
/// of `CONFIG SET` or `SLOWLOG` request all nodes, including replicas, to which the router has no
/// connections.
const OF_ONE_NODE: &[&str] = &[
    "acl",
    "asking",
    "bgrewriteaof",
    "bgsave",
    "client",
    "cluster",
    "commandlog",
    "config",
    "debug",
    "failover",
    "latency",
    "memory",
    "migrate",
    "module",
    "monitor",
    "move",
    "pfdebug",
    "pfselftest",
    "psync",
    "randomkey",
    "readonly",
    "readwrite",
    "replconf",
    "replicaof",
    "restore-asking",
    "role",
    "save",
    "scan",
    "shutdown",
    "slaveof",
    "slowlog",
    "swapdb",
    "sync",
    "wait",
    "waitaof",
];
/// Commands with some subcommands that concern all shards, as their tips say, and others that
/// concern one node.
const PARTLY_OF_ONE_NODE: &[&str] = &["function", "script"];
/// Subcommands of the above that any node can run.
const OF_ANY_NODE: &[(&str, &[&str])] = &[
    ("acl", &["whoami", "cat", "genpass", "help"]),
    ("client", &["getname", "help", "id", "info", "no-evict", "no-touch", "setinfo", "setname"]),
    ("function", &["dump", "help", "list", "stats"]),
    ("memory", &["help"]),
    ("script", &["help"]),
];

/// An encoded error.
pub(super) fn error(text: impl AsRef<[u8]>) -> Bytes {
    let mut out = BytesMut::new();
    write_error(&mut out, text);
    out.freeze()
}

/// The error for keys of several slots in one command.
pub(super) fn crossslot() -> Bytes {
    error(CROSSSLOT)
}

/// The error for keys that changed their node after the transaction or the watch began.
pub(super) fn slot_left() -> Bytes {
    error(SLOT_LEFT)
}

/// The error for a command that concerns one node.
pub(super) fn of_one_node(arguments: Arguments<'_>) -> Bytes {
    let name = String::from_utf8_lossy(arguments.get(0)).to_ascii_uppercase();
    error(format!(
        "ERR redis-proxy: {name} is about one node, and there are many behind this address; ask \
            a node itself"
    ))
}

/// The reply to a command for which no node is known.
pub(super) fn unavailable() -> Bytes {
    let mut reply = WriteBuf::default();
    write_failure(&mut reply, &BackendError::Unavailable("CLUSTERDOWN".into()));
    reply.tail().split().freeze()
}

/// The route of a command, and what it does to keys.
pub(super) fn route(specs: &KeySpecs, arguments: Arguments<'_>) -> (Route, Access) {
    let known = specs.find(arguments);
    let access = known.map_or(Access::Write, |command| command.access);
    let name = arguments.get(0);
    let is_of_one = is_one_of(name, OF_ONE_NODE) || is_one_of(name, PARTLY_OF_ONE_NODE);
    // Any node replies what is wrong with it.
    let Some(command) = known.filter(|command| command.takes(arguments.len())) else {
        let route = if is_of_one { of_any_node(arguments) } else { Route::Invalid };
        return (route, Access::None);
    };
    let route = by_name(arguments).unwrap_or_else(|| by_keys(command, arguments));
    (route, access)
}

fn by_keys(command: &CommandSpec, arguments: Arguments<'_>) -> Route {
    let name = arguments.get(0);
    let keys = command.keys(arguments);
    let mut slots: Vec<_> = keys.iter().map(|key| slot(arguments.get(*key))).collect();
    slots.dedup();
    let is_shard_channel = is_one_of(name, &["ssubscribe", "sunsubscribe"]);
    match slots[..] {
        [] if is_shard_channel => Route::Passthrough(None),
        [] => keyless(command, arguments),
        [slot] if is_one_of(name, &["watch"]) => Route::Watch(slot),
        [slot] if is_shard_channel => Route::Passthrough(Some(slot)),
        [_] if is_one_of(name, &["migrate"]) => of_any_node(arguments),
        [slot] => Route::Slot(slot),
        _ => split(command, arguments, &keys).unwrap_or_else(|| Route::Refused(crossslot())),
    }
}

fn keyless(command: &CommandSpec, arguments: Arguments<'_>) -> Route {
    let name = arguments.get(0);
    match &command.distribution {
        _ if is_one_of(name, OF_ONE_NODE) => of_any_node(arguments),
        // One node's reply says as much as all of them.
        _ if is_one_of(name, &["ping"]) => Route::Any,
        Distribution::AllShards(aggregate) => Route::All(aggregate.clone()),
        _ if is_one_of(name, PARTLY_OF_ONE_NODE) => of_any_node(arguments),
        _ => Route::Any,
    }
}

/// The route of a command that concerns one node: any, if each would reply the same.
fn of_any_node(arguments: Arguments<'_>) -> Route {
    let is_of_any = |(name, subcommands): &(&str, &[&str])| {
        is_one_of(arguments.get(0), &[name]) && is_one_of(arguments.get(1), subcommands)
    };
    if OF_ANY_NODE.iter().any(is_of_any) {
        Route::Any
    } else {
        Route::Refused(of_one_node(arguments))
    }
}

/// The route of a command that changes the session.
fn by_name(arguments: Arguments<'_>) -> Option<Route> {
    Some(match &*arguments.get(0).to_ascii_lowercase() {
        b"multi" => Route::Multi,
        b"exec" => Route::Exec,
        b"discard" => Route::Discard,
        b"unwatch" => Route::Unwatch,
        b"auth" | b"hello" => Route::Login,
        b"reset" => Route::Reset,
        b"quit" => Route::Quit,
        b"subscribe" | b"psubscribe" | b"unsubscribe" | b"punsubscribe" => Route::Passthrough(None),
        _ => return None,
    })
}

/// One command for each slot, where the command's tips allow it. `None`: it has to run as one.
fn split(command: &CommandSpec, arguments: Arguments<'_>, keys: &[usize]) -> Option<Route> {
    let Distribution::MultiShard { aggregate, words } = &command.distribution else { return None };
    let name = arguments.get(0);
    if !(arguments.len() - 1).is_multiple_of(*words) {
        // A value is missing. Otherwise a node would get a command that is not what the client
        // sent.
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let text = format!("ERR wrong number of arguments for '{name}' command");
        return Some(Route::Refused(error(text)));
    }
    let mut slots: Vec<(u16, Vec<usize>)> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (index, key) in keys.iter().enumerate() {
        let slot = slot(arguments.get(*key));
        let at = *known.entry(slot).or_insert_with(|| {
            slots.push((slot, Vec::new()));
            slots.len() - 1
        });
        slots[at].1.push(index);
    }
    let part = |indexes: &[usize]| {
        let mut out = BytesMut::new();
        write_array_length(&mut out, 1 + indexes.len() * words);
        write_bulk(&mut out, name);
        for index in indexes {
            (0..*words).for_each(|word| write_bulk(&mut out, arguments.get(keys[*index] + word)));
        }
        out.freeze()
    };
    let parts = slots.iter().map(|(slot, indexes)| (*slot, part(indexes))).collect();
    let aggregate = match aggregate {
        Aggregate::Reorder(_) => {
            Aggregate::Reorder(slots.into_iter().map(|(_, indexes)| indexes).collect())
        }
        other => other.clone(),
    };
    Some(Route::Split(parts, aggregate))
}
