//! Which words of a command are keys, as the server itself says (`COMMAND`).
//!
//! Only the key specifications are heeded, which say it for commands of every kind. Where one of them is incomplete, as for
//! `SORT ... STORE`, the keys that it does name lead to a node, which knows the rest and says so if they do not belong there.
//!
//! <https://redis.io/docs/latest/develop/reference/key-specs/>

use std::collections::HashMap;

use redis::Value;

use crate::protocol::{Arguments, parse_integer};

/// All commands of a server.
#[derive(Debug, Default)]
pub struct KeySpecs(HashMap<Box<[u8]>, Command>);

/// What is known of a command.
#[derive(Debug)]
pub(super) struct Command {
    /// How many words it has, its name among them; or if negative, at least.
    arity: i64,
    /// Whether it changes nothing.
    pub(super) is_read: bool,
    /// Whether it may wait for something to happen.
    pub(super) may_block: bool,
    specifications: Vec<Specification>,
    subcommands: KeySpecs,
}

#[derive(Debug, PartialEq)]
struct Specification {
    begin: Begin,
    find: Find,
}

/// Where the keys begin.
#[derive(Debug, PartialEq)]
enum Begin {
    Index(usize),
    /// Behind this word, which is looked for from there on; if negative, from the end backwards.
    Keyword(Vec<u8>, i64),
}

/// How many there are.
#[derive(Debug, PartialEq)]
enum Find {
    /// Up to the last one, counted from the first or, if negative, from the end; every so many words; of what follows only
    /// the part that the limit says.
    Range { last: i64, step: usize, limit: usize },
    /// As many as the word at this place says, from another place on.
    Count { at: usize, first: usize, step: usize },
}

impl KeySpecs {
    /// Reads the answer to `COMMAND`; what cannot be understood of it is left out.
    pub fn read(answer: &Value) -> Self {
        let Value::Array(commands) = answer else { return Self::default() };
        Self(commands.iter().filter_map(read_command).collect())
    }

    /// Which words of a command are keys, as far as can be told.
    pub fn keys(&self, arguments: Arguments<'_>) -> Vec<usize> {
        self.find(arguments).map(|command| command.keys(arguments)).unwrap_or_default()
    }

    /// Whether there is any.
    pub(in crate::resp) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is known of this command, or of its subcommand.
    pub(super) fn find(&self, arguments: Arguments<'_>) -> Option<&Command> {
        let command = self.0.get(&*arguments.get(0).to_ascii_lowercase())?;
        let subcommand = (arguments.len() > 1)
            .then(|| [arguments.get(0), b"|", arguments.get(1)].concat().to_ascii_lowercase())
            .and_then(|name| command.subcommands.0.get(&*name));
        Some(subcommand.unwrap_or(command))
    }
}

impl Command {
    /// Whether it may have so many words.
    pub(super) fn takes(&self, words: usize) -> bool {
        let words = i64::try_from(words).unwrap_or(i64::MAX);
        if self.arity < 0 { words >= -self.arity } else { words == self.arity }
    }

    /// Which of the words are keys, as far as can be told.
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

fn read_command(value: &Value) -> Option<(Box<[u8]>, Command)> {
    let Value::Array(parts) = value else { return None };
    let [name, Value::Int(arity), flags, _, _, _, _, _, specifications, subcommands, ..] =
        &parts[..]
    else {
        return None;
    };
    let command = Command {
        arity: *arity,
        may_block: items(flags).iter().any(|flag| bytes(flag) == Some(b"blocking")),
        is_read: items(flags).iter().any(|flag| bytes(flag) == Some(b"readonly")),
        specifications: items(specifications).iter().filter_map(read_specification).collect(),
        subcommands: KeySpecs::read(subcommands),
    };
    Some((bytes(name)?.to_ascii_lowercase().into(), command))
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
