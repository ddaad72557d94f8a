//! Where a command goes when there are many nodes behind one address.
//!
//! What names keys goes to the node that serves them; what names none, to any one; and what is about all keys, to all
//! primaries. What has no meaning behind one address is refused here, in one wording.

use bytes::{Bytes, BytesMut};

use super::aggregate::Aggregate;
use super::key_specs::KeySpecs;
use crate::cluster::slot;
use crate::protocol::{Arguments, is_one_of, write_array_length, write_bulk, write_error};

/// Where a command goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// To the node that serves this slot.
    Slot(u16),
    /// To any one node.
    Any,
    /// The same, but it will say no more than what is wrong with it.
    Wrong,
    /// A command of its own to each slot, and how the answers are put together.
    Split(Vec<(u16, Bytes)>, Aggregate),
    /// To all primaries.
    All(Aggregate),
    /// Nowhere: this is the answer, an error.
    Refused(Bytes),
    Multi,
    Exec,
    Discard,
    Watch(u16),
    Unwatch,
    /// To any one node, and to each that is asked later.
    Login,
    /// The same, but what was said there before is undone by it.
    Reset,
    Quit,
    /// To the node of the slot or any one; from there on whatever comes goes there.
    Pipe(Option<u16>),
}

/// Redis's own words.
const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";

/// What is of one node and nobody can tell which, or would have to be asked of all and has no answer that is right.
const OF_ONE_NODE: &[&str] = &[
    "acl",
    "asking",
    "bgrewriteaof",
    "bgsave",
    "client",
    "cluster",
    "config",
    "debug",
    "failover",
    "function",
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
    "role",
    "save",
    "scan",
    "script",
    "shutdown",
    "slaveof",
    "slowlog",
    "swapdb",
    "sync",
    "wait",
    "waitaof",
];
/// What of the above any node can answer.
const OF_ANY: &[(&str, &[&str])] = &[
    ("acl", &["whoami", "cat", "genpass", "help"]),
    ("client", &["getname", "help", "id", "info", "no-evict", "no-touch", "setinfo", "setname"]),
    ("function", &["dump", "help", "list", "stats"]),
    ("memory", &["help"]),
    ("script", &["help"]),
];
const MULTI_KEY: &[&str] = &["mget", "del", "exists", "unlink", "touch"];

/// An error as it goes over the wire.
pub(super) fn error(text: impl AsRef<[u8]>) -> Bytes {
    let mut out = BytesMut::new();
    write_error(&mut out, text);
    out.freeze()
}

/// That keys of several slots cannot be asked for at once.
pub(super) fn crossslot() -> Bytes {
    error(CROSSSLOT)
}

/// That a command means nothing here.
pub(super) fn of_one_node(arguments: Arguments<'_>) -> Bytes {
    let name = String::from_utf8_lossy(arguments.get(0)).to_ascii_uppercase();
    error(format!(
        "ERR redis-proxy: {name} is about one node, and there are many behind this address; ask a node itself"
    ))
}

/// Where a command goes, and whether it changes nothing.
pub(super) fn route(specs: &KeySpecs, arguments: Arguments<'_>) -> (Route, bool) {
    let name = arguments.get(0);
    let known = specs.find(arguments);
    let is_read = known.is_some_and(|command| command.is_read);
    // Whatever is wrong with it, any node will say.
    let Some(command) = known.filter(|command| command.takes(arguments.len())) else {
        return (
            if is_one_of(name, OF_ONE_NODE) { refused(arguments) } else { Route::Wrong },
            false,
        );
    };
    if let Some(route) = special(arguments) {
        return (route, is_read);
    }
    let keys = command.keys(arguments);
    let mut slots: Vec<_> = keys.iter().map(|key| slot(arguments.get(*key))).collect();
    slots.dedup();
    let route = match slots[..] {
        [] if is_one_of(name, &["ssubscribe", "sunsubscribe"]) => Route::Pipe(None),
        [] if is_one_of(name, OF_ONE_NODE) => refused(arguments),
        [] => Route::Any,
        [slot] if is_one_of(name, &["watch"]) => Route::Watch(slot),
        [slot] if is_one_of(name, &["ssubscribe", "sunsubscribe"]) => Route::Pipe(Some(slot)),
        [_] if is_one_of(name, &["migrate"]) => refused(arguments),
        [slot] => Route::Slot(slot),
        _ => split(arguments, &keys).unwrap_or_else(|| Route::Refused(crossslot())),
    };
    (route, is_read)
}

fn refused(arguments: Arguments<'_>) -> Route {
    let is_of_any = |(name, subcommands): &(&str, &[&str])| {
        is_one_of(arguments.get(0), &[name]) && is_one_of(arguments.get(1), subcommands)
    };
    if OF_ANY.iter().any(is_of_any) { Route::Any } else { Route::Refused(of_one_node(arguments)) }
}

/// What goes by its name.
fn special(arguments: Arguments<'_>) -> Option<Route> {
    let name = arguments.get(0).to_ascii_lowercase();
    let about = |words| is_one_of(arguments.get(1), words);
    Some(match &*name {
        b"multi" => Route::Multi,
        b"exec" => Route::Exec,
        b"discard" => Route::Discard,
        b"unwatch" => Route::Unwatch,
        b"auth" | b"hello" => Route::Login,
        b"reset" => Route::Reset,
        b"quit" => Route::Quit,
        b"subscribe" | b"psubscribe" | b"unsubscribe" | b"punsubscribe" => Route::Pipe(None),
        b"dbsize" => Route::All(Aggregate::Sum),
        b"flushall" | b"flushdb" => Route::All(Aggregate::First),
        b"keys" => Route::All(Aggregate::Concat),
        b"script" if about(&["exists"]) => Route::All(Aggregate::Min),
        b"script" if about(&["load", "flush"]) => Route::All(Aggregate::First),
        b"function" if about(&["load", "delete", "flush", "restore"]) => {
            Route::All(Aggregate::First)
        }
        _ => return None,
    })
}

/// One command for each slot, where that means the same.
fn split(arguments: Arguments<'_>, keys: &[usize]) -> Option<Route> {
    let name = arguments.get(0);
    let words = if is_one_of(name, &["mset"]) {
        if arguments.len().is_multiple_of(2) {
            // A value is missing, and a node would be sent what is none.
            return Some(Route::Refused(error("ERR wrong number of arguments for 'mset' command")));
        }
        2
    } else if is_one_of(name, MULTI_KEY) {
        1
    } else {
        return None;
    };
    let mut slots: Vec<(u16, Vec<usize>)> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (place, key) in keys.iter().enumerate() {
        let slot = slot(arguments.get(*key));
        let at = *known.entry(slot).or_insert_with(|| {
            slots.push((slot, Vec::new()));
            slots.len() - 1
        });
        slots[at].1.push(place);
    }
    let aggregate = match words {
        2 => Aggregate::First,
        _ if is_one_of(name, &["mget"]) => {
            Aggregate::Reorder(slots.iter().map(|(_, places)| places.clone()).collect())
        }
        _ => Aggregate::Sum,
    };
    let command = |places: &[usize]| {
        let mut out = BytesMut::new();
        write_array_length(&mut out, 1 + places.len() * words);
        write_bulk(&mut out, name);
        for place in places {
            (0..words).for_each(|word| write_bulk(&mut out, arguments.get(keys[*place] + word)));
        }
        out.freeze()
    };
    Some(Route::Split(
        slots.iter().map(|(slot, places)| (*slot, command(places))).collect(),
        aggregate,
    ))
}
