//! Reads that may be answered from memory: what is found there, what a flight brings, and how it is told.
//!
//! An answer is derived from a cached value only where every version of Redis would give the same; in doubt Redis is asked.

use std::ops::Range;

use bytes::{BufMut as _, Bytes};
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::command::Class;
use crate::backend::BackendError;
use crate::cache::{Answer, Outcome, ReadMode};
use crate::metrics::FrontEnd;
use crate::net::WriteBuf;
use crate::protocol::{Arguments, parse_integer};
use crate::protocol::{
    Protocol, write_array_length, write_bulk, write_bulk_length, write_integer, write_null,
};
use crate::proxy::Proxy;
use crate::telemetry::spans;

/// Keys of one command at most that are fetched each by itself; more are left to Redis, which answers them at once.
const MOST_FETCHES: usize = 256;

/// A read that is one in its form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read<'a> {
    class: Class,
    arguments: Arguments<'a>,
}

/// What answers a read.
#[derive(Debug)]
pub(super) enum Found {
    Value(Answer),
    /// For each key; none, where it holds something else than a value.
    Values(Vec<Option<Answer>>),
    Number(usize),
    Part(Answer, Range<usize>),
}

/// What became of a read that was not in memory.
pub(super) enum Landed {
    Found(Found),
    /// Redis has to be asked by the client itself, with this command.
    Ask(Bytes),
    /// Redis does not answer.
    Failed(BackendError),
}

impl<'a> Read<'a> {
    /// `None` where Redis would see an error, or something this proxy does not know.
    pub(super) fn of(class: Class, arguments: Arguments<'a>) -> Option<Self> {
        let is_one = match class {
            Class::Get | Class::Strlen => arguments.len() == 2,
            Class::Mget | Class::Exists => arguments.len() >= 2,
            Class::Getrange => arguments.len() == 4,
            _ => false,
        };
        is_one.then_some(Self { class, arguments })
    }

    /// The keys it names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        self.arguments.skip(1).take(self.keys())
    }

    /// How many keys it names.
    pub(super) fn keys(&self) -> usize {
        if self.is_of_many() { self.arguments.len() - 1 } else { 1 }
    }

    fn is_of_many(&self) -> bool {
        matches!(self.class, Class::Mget | Class::Exists)
    }

    /// The answer, if memory has all of it. The outcome of each entry that it takes is told to `count`.
    pub(super) fn look(
        &self,
        proxy: &Proxy,
        now: Instant,
        mut count: impl FnMut(Outcome),
    ) -> Option<Found> {
        if self.is_of_many() {
            let answers = self.arguments.skip(1).map(|key| proxy.lookup(key, now).map(Some));
            let answers = answers.collect::<Option<Vec<_>>>()?;
            answers.iter().flatten().for_each(|answer| count(answer.outcome));
            self.arguments.skip(1).for_each(|key| proxy.count_key(key, now));
            return Some(if self.class == Class::Mget {
                Found::Values(answers)
            } else {
                Found::Number(present(&answers))
            });
        }
        let answer = proxy.lookup(self.arguments.get(1), now)?;
        let part =
            if self.class == Class::Getrange { Some(self.part(length(&answer))?) } else { None };
        count(answer.outcome);
        proxy.count_key(self.arguments.get(1), now);
        Some(match (self.class, part) {
            (Class::Strlen, _) => Found::Number(length(&answer)),
            (_, Some(part)) => Found::Part(answer, part),
            _ => Found::Value(answer),
        })
    }

    fn part(&self, length: usize) -> Option<Range<usize>> {
        part(length, (parse_integer(self.arguments.get(2))?, parse_integer(self.arguments.get(3))?))
    }

    /// Whether a key of it is so long that it is not kept.
    pub(super) fn has_longer_key(&self, longest: usize) -> bool {
        let is_longer = |key: &[u8]| key.len() > longest;
        if self.is_of_many() {
            self.names().any(is_longer)
        } else {
            is_longer(self.arguments.get(1))
        }
    }

    /// The keys to fetch, if this is a read whose values are worth keeping.
    pub(super) fn fetch(&self) -> Option<Fetch> {
        let is_worth =
            matches!(self.class, Class::Get | Class::Mget) && self.keys() <= MOST_FETCHES;
        let keys = || self.arguments.skip(1).map(Bytes::copy_from_slice).collect();
        is_worth.then(|| Fetch { keys: keys(), is_of_many: self.is_of_many() })
    }
}

/// Keys whose values are fetched.
pub(super) struct Fetch {
    keys: Vec<Bytes>,
    is_of_many: bool,
}

impl Fetch {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// What their flights bring; `command` is what asked for them.
    pub(super) async fn run(self, proxy: Proxy, command: Bytes) -> Landed {
        let span = spans::command_span(if self.is_of_many { "MGET" } else { "GET" });
        let fetches =
            self.keys.iter().map(|key| proxy.get(FrontEnd::Resp, key, ReadMode::Default, &span));
        let mut answers = Vec::with_capacity(self.keys.len());
        for answer in join_all(fetches).instrument(span.clone()).await {
            match answer {
                Ok(answer) => answers.push(Some(answer)),
                Err(BackendError::WrongType) if self.is_of_many => answers.push(None),
                Err(error) if error.should_forward() => return Landed::Ask(command),
                Err(error) => return Landed::Failed(error),
            }
        }
        if self.is_of_many {
            return Landed::Found(Found::Values(answers));
        }
        answers
            .pop()
            .flatten()
            .map_or(Landed::Ask(command), |answer| Landed::Found(Found::Value(answer)))
    }
}

impl Found {
    /// Writes it as Redis would.
    pub(super) fn write(&self, output: &mut WriteBuf, protocol: Protocol) {
        match self {
            Self::Value(answer) => write_value(output, Some(answer), protocol),
            Self::Number(number) => write_integer(output.tail(), *number),
            Self::Part(answer, part) => {
                let value =
                    answer.entry.value().map_or(&[][..], |value| &value.bytes[part.clone()]);
                write_bulk(output.tail(), value);
            }
            Self::Values(answers) => {
                write_array_length(output.tail(), answers.len());
                for answer in answers {
                    write_value(output, answer.as_ref(), protocol);
                }
            }
        }
    }
}

fn write_value(output: &mut WriteBuf, answer: Option<&Answer>, protocol: Protocol) {
    match answer.and_then(|answer| answer.entry.value()) {
        None => write_null(output.tail(), protocol),
        Some(value) => {
            write_bulk_length(output.tail(), value.bytes.len());
            output.push_slice_or(value.bytes, || value.to_bytes());
            output.tail().put_slice(b"\r\n");
        }
    }
}

fn present(answers: &[Option<Answer>]) -> usize {
    answers.iter().flatten().filter(|answer| answer.entry.value().is_some()).count()
}

fn length(answer: &Answer) -> usize {
    answer.entry.value().map_or(0, |value| value.bytes.len())
}

/// The part of a value of this length from the first to the last of `ends`, both counted from the back if negative.
/// `None` where versions of Redis do not agree: an end before the beginning.
fn part(length: usize, (first, last): (i64, i64)) -> Option<Range<usize>> {
    let from_front = |end: i64| {
        let end = if end < 0 { i64::try_from(length).ok()?.checked_add(end)? } else { end };
        usize::try_from(end).ok()
    };
    if length == 0 {
        return Some(0..0);
    }
    let (first, last) = (from_front(first)?, from_front(last)?);
    let end = last.min(length - 1) + 1;
    Some(if first < end { first..end } else { 0..0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_that_of_redis_or_none() {
        for (ends, expected) in [
            ((0, 3), Some(0..4)),
            ((-3, -1), Some(2..5)),
            ((0, -1), Some(0..5)),
            ((10, 100), Some(0..0)),
            ((3, 1), Some(0..0)),
            ((4, 4), Some(4..5)),
            ((5, 5), Some(0..0)),
            ((0, i64::MAX), Some(0..5)),
            ((-6, 2), None),
            ((0, -6), None),
            ((i64::MIN, 1), None),
        ] {
            assert_eq!(part(5, ends), expected, "{ends:?}");
        }
        assert_eq!(part(0, (-5, -9)), Some(0..0));
    }
}
