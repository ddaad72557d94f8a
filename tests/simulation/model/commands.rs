//! The commands that the model knows.

use super::Version;

/// The facts about a command.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) arity: i64,
    pub(super) kind: Kind,
    /// The first and last key and the step between keys, as `COMMAND INFO` has them.
    pub(super) keys: (i64, i64, i64),
    /// The policies of requests and replies in a cluster.
    pub(super) tips: &'static [&'static str],
}

/// The use of keys by a command.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// It reads keys, and has their changes pushed.
    Read,
    Write,
    /// It concerns no key.
    Other,
}

const fn spec(name: &'static str, arity: i64, kind: Kind, keys: (i64, i64, i64)) -> Spec {
    Spec { name, arity, kind, keys, tips: &[] }
}

impl Spec {
    const fn tips(self, tips: &'static [&'static str]) -> Self {
        Self { tips, ..self }
    }
}

/// Each node runs a part for its keys, and the replies are added.
const SUM: &[&str] = &["request_policy:multi_shard", "response_policy:agg_sum"];
const EACH: &[&str] = &["request_policy:multi_shard", "response_policy:all_succeeded"];
const MANY: &[&str] = &["request_policy:multi_shard"];
const SPECIAL: &[&str] = &["request_policy:all_shards", "response_policy:special"];
const ALL: &[&str] = &["request_policy:all_shards", "response_policy:all_succeeded"];

const NO_KEYS: (i64, i64, i64) = (0, 0, 0);
const ONE_KEY: (i64, i64, i64) = (1, 1, 1);
const ALL_KEYS: (i64, i64, i64) = (1, -1, 1);

use Kind::{Other, Read, Write};

const COMMANDS: [Spec; 36] = [
    spec("acl", -2, Other, NO_KEYS),
    spec("asking", 1, Other, NO_KEYS),
    spec("auth", -2, Other, NO_KEYS),
    spec("client", -2, Other, NO_KEYS),
    spec("cluster", -2, Other, NO_KEYS),
    spec("command", -1, Other, NO_KEYS),
    spec("config", -2, Other, NO_KEYS),
    spec("del", -2, Write, ALL_KEYS).tips(SUM),
    spec("discard", 1, Other, NO_KEYS),
    spec("echo", 2, Other, NO_KEYS),
    spec("exec", 1, Other, NO_KEYS),
    spec("exists", -2, Read, ALL_KEYS).tips(SUM),
    spec("expire", -3, Write, ONE_KEY),
    spec("flushall", -1, Write, NO_KEYS).tips(ALL),
    spec("get", 2, Read, ONE_KEY),
    spec("hdel", -3, Write, ONE_KEY),
    spec("hello", -1, Other, NO_KEYS),
    spec("hget", 3, Read, ONE_KEY),
    spec("hgetall", 2, Read, ONE_KEY),
    spec("hlen", 2, Read, ONE_KEY),
    spec("hset", -4, Write, ONE_KEY),
    spec("info", -1, Other, NO_KEYS).tips(SPECIAL),
    spec("mget", -2, Read, ALL_KEYS).tips(MANY),
    spec("mset", -3, Write, (1, -1, 2)).tips(EACH),
    spec("multi", 1, Other, NO_KEYS),
    spec("persist", 2, Write, ONE_KEY),
    spec("pexpire", -3, Write, ONE_KEY),
    spec("ping", -1, Other, NO_KEYS).tips(ALL),
    spec("pttl", 2, Read, ONE_KEY),
    spec("role", 1, Other, NO_KEYS),
    spec("select", 2, Other, NO_KEYS),
    spec("set", -3, Write, ONE_KEY),
    spec("strlen", 2, Read, ONE_KEY),
    spec("ttl", 2, Read, ONE_KEY),
    spec("type", 2, Read, ONE_KEY),
    spec("unlink", -2, Write, ALL_KEYS).tips(SUM),
];

/// The commands that Redis 7.0 lacks.
const LATER_COMMANDS: [Spec; 3] = [
    spec("hpersist", -5, Write, ONE_KEY),
    spec("hpexpire", -6, Write, ONE_KEY),
    spec("hpttl", -5, Read, ONE_KEY),
];

impl Spec {
    pub(super) fn find(name: &[u8], version: Version) -> Option<&'static Self> {
        let later: &'static [Self] = if version == Version::Seven { &[] } else { &LATER_COMMANDS };
        let mut all = COMMANDS.iter().chain(later);
        all.find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes()))
    }

    /// Returns the names of all commands.
    pub(super) fn names(version: Version) -> Vec<&'static str> {
        let later: &'static [Self] = if version == Version::Seven { &[] } else { &LATER_COMMANDS };
        COMMANDS.iter().chain(later).map(|spec| spec.name).collect()
    }

    pub(super) fn accepts(&self, arguments: usize) -> bool {
        let arguments = i64::try_from(arguments).unwrap_or(i64::MAX);
        if self.arity < 0 { arguments >= -self.arity } else { arguments == self.arity }
    }

    pub(super) fn keys<'a>(&self, command: &'a [Vec<u8>]) -> Vec<&'a Vec<u8>> {
        let (first, last, step) = self.keys;
        let last = if last < 0 { command.len() } else { usize::try_from(last).unwrap_or(0) + 1 };
        let (first, step) =
            (usize::try_from(first).unwrap_or(0), usize::try_from(step).unwrap_or(0));
        if first == 0 { Vec::new() } else { command[first..last].iter().step_by(step).collect() }
    }
}
