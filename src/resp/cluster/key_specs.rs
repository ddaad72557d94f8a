//! The commands of a server, as it reports them itself (`COMMAND`): which arguments are keys, and
//! which commands concern all shards.
//!
//! Keys are found by the key specifications, which cover commands of every kind. Some are
//! incomplete, as for `SORT ... STORE`. The keys that they do name lead to a node. That node knows
//! the rest, and replies with an error if they do not belong there.
//!
//! <https://redis.io/docs/latest/develop/reference/key-specs/>

use std::collections::HashMap;

use redis::Value;

use super::aggregate::Aggregate;
use crate::protocol::{Arguments, parse_integer};

/// All commands of a server, by name.
#[derive(Debug, Default)]
pub struct KeySpecs(HashMap<Box<[u8]>, CommandSpec>);

/// One command of a server.
#[derive(Debug)]
pub(super) struct CommandSpec {
    /// The number of its arguments, the name included. Negative: the minimum.
    arity: i64,
    pub(super) access: Access,
    /// Whether Redis may wait with its reply.
    pub(super) may_block: bool,
    /// Whether a transaction that contains it is aborted. Valkey has this flag for `MULTI` and
    /// `WATCH`, which Redis rejects without an effect on the transaction.
    pub(super) is_refused_in_multi: bool,
    pub(super) distribution: Distribution,
    specifications: Vec<Specification>,
    subcommands: KeySpecs,
}

/// The shards that a command concerns, by its command tips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Distribution {
    /// The shard of its keys, or any one. It is also used if the router does not know the rule for
    /// the replies.
    One,
    /// All shards, and how their replies become one.
    AllShards(Aggregate),
    /// Each shard of its keys. A key has so many words: itself, and what belongs to it.
    MultiShard { aggregate: Aggregate, words: usize },
}

/// The access of a command to keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// None, so its order with other commands does not matter. It may change the session.
    None,
    /// It changes nothing, so it may run twice.
    Read,
    /// It may change any key of its slot, or of any slot if it names no key.
    Write,
}

#[derive(Debug, PartialEq)]
struct Specification {
    begin: Begin,
    find: Find,
}

/// The place of the first key.
#[derive(Debug, PartialEq)]
enum Begin {
    Index(usize),
    /// Behind this word, searched from that index on; from the end backwards if it is negative.
    Keyword(Vec<u8>, i64),
}

/// The places of the other keys.
#[derive(Debug, PartialEq)]
enum Find {
    /// The arguments up to `last`, every `step` words. `last` counts from the first key, or from
    /// the end if it is negative. Only the first of `limit` equal parts of the rest counts.
    Range { last: i64, step: usize, limit: usize },
    /// The number of keys is the word at `at`. They begin at `first`, every `step` words.
    Count { at: usize, first: usize, step: usize },
}

impl KeySpecs {
    /// Reads the reply to `COMMAND`. Commands in a form that is not known are left out.
    pub fn read(reply: &Value) -> Self {
        let Value::Array(commands) = reply else { return Self::default() };
        Self(commands.iter().filter_map(read_command).collect())
    }

    /// The indexes of the arguments that are keys, as far as they are known.
    pub fn keys(&self, arguments: Arguments<'_>) -> Vec<usize> {
        self.find(arguments).map(|command| command.keys(arguments)).unwrap_or_default()
    }

    /// Whether no command is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The command, or its subcommand.
    pub(super) fn find(&self, arguments: Arguments<'_>) -> Option<&CommandSpec> {
        let command = self.0.get(&*arguments.get(0).to_ascii_lowercase())?;
        let subcommand = (arguments.len() > 1)
            .then(|| [arguments.get(0), b"|", arguments.get(1)].concat().to_ascii_lowercase())
            .and_then(|name| command.subcommands.0.get(&*name));
        Some(subcommand.unwrap_or(command))
    }
}

impl CommandSpec {
    /// Whether it can have so many words.
    pub(super) fn takes(&self, words: usize) -> bool {
        let words = i64::try_from(words).unwrap_or(i64::MAX);
        if self.arity < 0 { words >= -self.arity } else { words == self.arity }
    }

    /// The indexes of the arguments that are keys, as far as they are known.
    pub(super) fn keys(&self, arguments: Arguments<'_>) -> Vec<usize> {
        self.specifications.iter().flat_map(|one| one.keys(arguments).unwrap_or_default()).collect()
    }
}

impl Specification {
    fn keys(&self, arguments: Arguments<'_>) -> Option<Vec<usize>> {
        let count = arguments.len();
        let mut first = match &self.begin {
            Begin::Index(index) => *index,
            Begin::Keyword(word, from) => keyword(arguments, word, *from)? + 1,
        };
        let (last, step) = match self.find {
            Find::Range { last, step, .. } if last >= 0 => {
                (first.checked_add(usize::try_from(last).ok()?)?, step)
            }
            Find::Range { last, step, limit: 0 } => (back_from(count, last)?, step),
            Find::Range { last, step, limit } => {
                (back_from(first + count.checked_sub(first)? / limit, last)?, step)
            }
            Find::Count { at, first: from, step } => {
                let keys = usize::try_from(parse_integer(arguments.get(first + at))?).ok()?;
                first += from;
                ((first + keys.min(count) * step).checked_sub(step)?, step)
            }
        };
        Some((first..=last.min(count.checked_sub(1)?)).step_by(step.max(1)).collect())
    }
}

fn back_from(end: usize, back: i64) -> Option<usize> {
    end.checked_sub(usize::try_from(back.unsigned_abs()).ok()?)
}

fn keyword(arguments: Arguments<'_>, word: &[u8], from: i64) -> Option<usize> {
    let is_it = |at: &usize| arguments.get(*at).eq_ignore_ascii_case(word);
    match usize::try_from(from) {
        Ok(from) => (from..arguments.len()).find(is_it),
        Err(_) => (1..=back_from(arguments.len(), from)?).rev().find(is_it),
    }
}

fn read_command(value: &Value) -> Option<(Box<[u8]>, CommandSpec)> {
    let Value::Array(parts) = value else { return None };
    let [name, Value::Int(arity), flags, _, _, _, _, tips, specifications, subcommands, ..] =
        &parts[..]
    else {
        return None;
    };
    let specified: Vec<_> = items(specifications).iter().filter_map(read_specification).collect();
    let has = |name: &[u8]| items(flags).iter().any(|flag| bytes(flag) == Some(name));
    let command = CommandSpec {
        arity: *arity,
        may_block: has(b"blocking"),
        is_refused_in_multi: has(b"no_multi"),
        access: read_access(has),
        distribution: read_tips(tips, &specified),
        specifications: specified,
        subcommands: KeySpecs::read(subcommands),
    };
    Some((bytes(name)?.to_ascii_lowercase().into(), command))
}

/// Reads the access from the flags. A command that may be replicated may change keys.
fn read_access(has: impl Fn(&[u8]) -> bool) -> Access {
    if has(b"readonly") {
        Access::Read
    } else if has(b"write") || has(b"may_replicate") {
        Access::Write
    } else {
        Access::None
    }
}

/// Reads the request policy and the response policy.
fn read_tips(tips: &Value, specifications: &[Specification]) -> Distribution {
    let tip = |name: &str| {
        let mut tips = items(tips).iter().filter_map(bytes);
        tips.find_map(|tip| str::from_utf8(tip).ok()?.strip_prefix(name)?.strip_prefix(':'))
    };
    let response = tip("response_policy");
    match tip("request_policy") {
        Some("all_shards" | "all_nodes") => match response {
            Some("all_succeeded") => Distribution::AllShards(Aggregate::First),
            Some("agg_sum") => Distribution::AllShards(Aggregate::Sum),
            Some("agg_logical_and") => Distribution::AllShards(Aggregate::Min),
            None => Distribution::AllShards(Aggregate::Concat),
            Some(_) => Distribution::One,
        },
        Some("multi_shard") => {
            let aggregate = match response {
                Some("all_succeeded") => Aggregate::First,
                Some("agg_sum") => Aggregate::Sum,
                None => Aggregate::Reorder(Vec::new()),
                // `MSETNX`, which writes all keys or none, so it cannot be split.
                Some(_) => return Distribution::One,
            };
            let words = words_of_key(specifications);
            words.map_or(Distribution::One, |words| Distribution::MultiShard { aggregate, words })
        }
        _ => Distribution::One,
    }
}

/// The number of words of each key, where a command has nothing but keys and what belongs to them.
fn words_of_key(specifications: &[Specification]) -> Option<usize> {
    match specifications {
        [
            Specification {
                begin: Begin::Index(1),
                find: Find::Range { last: -1, step, limit: 0 },
            },
        ] if *step > 0 => Some(*step),
        _ => None,
    }
}

fn read_specification(value: &Value) -> Option<Specification> {
    let (begin, find) = (field(value, b"begin_search")?, field(value, b"find_keys")?);
    let (begin_by, find_by) = (field(begin, b"spec")?, field(find, b"spec")?);
    let begin = match bytes(field(begin, b"type")?)? {
        b"index" => Begin::Index(number(begin_by, b"index")?.try_into().ok()?),
        b"keyword" => Begin::Keyword(
            bytes(field(begin_by, b"keyword")?)?.to_vec(),
            number(begin_by, b"startfrom")?,
        ),
        _ => return None,
    };
    let place = |name| usize::try_from(number(find_by, name)?).ok();
    let find = match bytes(field(find, b"type")?)? {
        b"range" => Find::Range {
            last: number(find_by, b"lastkey")?,
            step: place(b"keystep")?,
            limit: place(b"limit")?,
        },
        b"keynum" => Find::Count {
            at: place(b"keynumidx")?,
            first: place(b"firstkey")?,
            step: place(b"keystep")?,
        },
        _ => return None,
    };
    Some(Specification { begin, find })
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// A field of a map, which with RESP2 is an array of names and values.
fn field<'a>(map: &'a Value, name: &[u8]) -> Option<&'a Value> {
    match map {
        Value::Map(fields) => {
            fields.iter().find(|(key, _)| bytes(key) == Some(name)).map(|(_, value)| value)
        }
        Value::Array(items) => {
            items.chunks_exact(2).find(|pair| bytes(&pair[0]) == Some(name)).map(|pair| &pair[1])
        }
        _ => None,
    }
}

fn number(map: &Value, name: &[u8]) -> Option<i64> {
    match field(map, name)? {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}
