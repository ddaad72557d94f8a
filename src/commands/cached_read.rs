//! Reads that may be answered from memory.
//!
//! A reply is derived from a cached value only where every version of Redis would send the same. In
//! doubt the command is forwarded.

use std::iter;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::memory::Memory;
use super::rule_reads::RuleReads;
use super::table::Class;
use super::time_to_live::TimeUnit;
use crate::backend::BackendError;
use crate::boxed::pinned;
use crate::cache::{
    Answer, Entry, Hit, KeyGroup, LookupTime, LookupUse, Outcome, ReadMode, Reply, RuleId,
};
use crate::key::Key;
use crate::metrics::{FrontEnd, Kind};
use crate::net::{WriteBuf, ZERO_COPY_MIN};
use crate::protocol::{
    Arguments, BULK_OVERHEAD, Protocol, ReplyFrame, Resp2Form, parse_integer, write_array_length,
    write_bulk, write_bulk_length, write_command, write_integer, write_null, write_resp2,
};
use crate::proxy::Proxy;
use crate::telemetry::spans;

/// The most keys of one command that are fetched one by one. Redis replies to more of them at once.
const MAX_FETCHES: usize = 256;
/// The name of the command that fetches one key.
const GET: &str = "GET";
/// The name of the command that fetches several keys.
const MGET: &str = "MGET";

/// The entries of several keys, and the outcome and rule of each.
type Entries = (Vec<Option<Entry>>, Vec<(Outcome, RuleId)>);

/// A read with the right number of arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheableRead<'a> {
    class: Class,
    arguments: Arguments<'a>,
}

/// A reply from memory.
#[derive(Debug)]
pub enum CachedReply {
    /// The value of a key.
    Value(Entry),
    /// One value for each key; `None`: the key holds another type.
    Values(Vec<Option<Entry>>),
    /// An integer.
    Number(usize),
    /// Some bytes of a value.
    Part(Entry, Range<usize>),
    /// A kept reply.
    Kept(Arc<Reply>, Kind),
    /// A reply that follows from a kept one. Boxed, because it is larger than the others.
    Derived(Box<ReplyFrame>, Kind),
}

/// The result of a read that was not in memory.
pub enum FetchOutcome {
    /// The reply.
    Reply(CachedReply),
    /// The reply to a command that may have changed a value, such as `PFCOUNT`.
    MayHaveWritten(CachedReply),
    /// The command has to be forwarded on the client's own connection.
    Forward(Bytes),
    /// Redis did not reply.
    Failed(BackendError),
}

impl<'a> CacheableRead<'a> {
    /// `None` if Redis would reply with an error, or the class is no read.
    pub(super) fn new(class: Class, arguments: Arguments<'a>) -> Option<Self> {
        let is_valid = match class {
            Class::Get | Class::Strlen => arguments.len() == 2,
            Class::Mget | Class::Exists => arguments.len() >= 2,
            Class::Getrange => arguments.len() == 4,
            _ => false,
        };
        is_valid.then_some(Self { class, arguments })
    }

    /// The keys that it names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        self.arguments.skip(1).take(self.key_count())
    }

    /// The number of keys that it names.
    pub(super) fn key_count(&self) -> usize {
        if self.has_many_keys() { self.arguments.len() - 1 } else { 1 }
    }

    fn has_many_keys(&self) -> bool {
        matches!(self.class, Class::Mget | Class::Exists)
    }

    /// Returns the reply, if memory has all of it. `count` receives the outcome and the rule of
    /// each entry that the reply uses.
    pub(super) fn lookup(
        &self,
        memory: &impl Memory,
        now: Instant,
        lookup_time: LookupTime,
        mut count: impl FnMut(Outcome, RuleId),
    ) -> Option<CachedReply> {
        if self.has_many_keys() {
            let (entries, counts) = self.lookup_many(memory, lookup_time)?;
            for (outcome, rule) in counts {
                count(outcome, rule);
            }
            for (key, entry) in self.keys().zip(entries.iter().flatten()) {
                memory.count_hit(key, entry, now);
            }
            return Some(if self.class == Class::Mget {
                CachedReply::Values(entries)
            } else {
                CachedReply::Number(present(&entries))
            });
        }
        let Answer { entry, outcome, rule, .. } =
            memory.lookup(self.arguments.get(1), lookup_time, LookupUse::Serve)?;
        let part =
            if self.class == Class::Getrange { Some(self.part(length(&entry))?) } else { None };
        count(outcome, rule);
        memory.count_hit(self.arguments.get(1), &entry, now);
        Some(match (self.class, part) {
            (Class::Strlen, _) => CachedReply::Number(length(&entry)),
            (_, Some(part)) => CachedReply::Part(entry, part),
            _ => CachedReply::Value(entry),
        })
    }

    /// Returns the entries of all keys with their outcomes and rules, if memory has them all.
    fn lookup_many(&self, memory: &impl Memory, time: LookupTime) -> Option<Entries> {
        let count = self.key_count();
        let (mut entries, mut counts) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut keys = self.keys();
        while entries.len() < count {
            let (group, before) = (KeyGroup::take_from(&mut keys), entries.len());
            memory.lookup_each(group.as_slice(), time, |_, hit| {
                let Some(Hit { entry, outcome, rule }) = hit else { return false };
                entries.push(Some(entry));
                counts.push((outcome, rule));
                true
            });
            if entries.len() < before + group.as_slice().len() {
                return None;
            }
        }
        Some((entries, counts))
    }

    /// Returns the rules of the keys of a read that is forwarded.
    pub(super) fn rule_reads(&self, memory: &impl Memory, time: LookupTime) -> RuleReads {
        RuleReads::new(memory, self.keys(), |key| {
            let answer = memory.lookup(key, time, LookupUse::Observe);
            answer.is_some_and(|answer| {
                self.class != Class::Getrange || self.part(length(&answer.entry)).is_some()
            })
        })
    }

    fn part(&self, length: usize) -> Option<Range<usize>> {
        part(length, (parse_integer(self.arguments.get(2))?, parse_integer(self.arguments.get(3))?))
    }

    /// Whether one of its keys is too long to be cached. `max_key` is in bytes.
    #[inline]
    pub(super) fn has_longer_key(&self, max_key: usize) -> bool {
        let is_longer = |key: &[u8]| key.len() > max_key;
        if self.has_many_keys() {
            self.keys().any(is_longer)
        } else {
            is_longer(self.arguments.get(1))
        }
    }

    /// The keys to fetch, if the values are the reply and worth caching.
    pub(super) fn fetch(&self) -> Option<FetchKeys> {
        let is_worth =
            matches!(self.class, Class::Get | Class::Mget) && self.key_count() <= MAX_FETCHES;
        is_worth.then(|| {
            if self.has_many_keys() {
                FetchKeys::Many(self.keys().map(Key::from).collect())
            } else {
                FetchKeys::One(Key::from(self.arguments.get(1)))
            }
        })
    }
}

/// The keys that are fetched for one command.
#[derive(Debug)]
pub enum FetchKeys {
    /// The key of a `GET`.
    One(Key),
    /// The keys of an `MGET`.
    Many(Vec<Key>),
}

impl FetchKeys {
    fn as_slice(&self) -> &[Key] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }

    /// The number of keys.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.as_slice().iter().map(Key::as_bytes)
    }

    /// Fetches the values.
    pub fn run(
        self,
        front_end: FrontEnd,
        proxy: Proxy,
    ) -> Pin<Box<dyn Future<Output = FetchOutcome> + Send>> {
        match self {
            Self::One(key) => pinned(|| fetch_one(key, front_end, proxy)),
            Self::Many(keys) => pinned(|| fetch_many(keys, front_end, proxy)),
        }
    }
}

async fn fetch_one(key: Key, front_end: FrontEnd, proxy: Proxy) -> FetchOutcome {
    let span = spans::command_span(GET);
    // Cloned first. Otherwise the future would be dropped if the clone panicked, so it would be
    // built elsewhere and copied.
    let current = span.clone();
    match proxy.get_missed(front_end, &key, &span).instrument(current).await {
        Ok(answer) => FetchOutcome::Reply(CachedReply::Value(answer.entry)),
        Err(error) => FetchOutcome::failed(error, GET, &[key]),
    }
}

async fn fetch_many(keys: Vec<Key>, front_end: FrontEnd, proxy: Proxy) -> FetchOutcome {
    let span = spans::command_span(MGET);
    let default = ReadMode::Default;
    // Some of them may be in memory.
    let fetches = keys.iter().map(|key| proxy.get(front_end, key.as_bytes(), default, &span));
    let mut entries = Vec::with_capacity(keys.len());
    for answer in join_all(fetches).instrument(span.clone()).await {
        match answer {
            Ok(answer) => entries.push(Some(answer.entry)),
            Err(BackendError::WrongType) => entries.push(None),
            Err(error) => return FetchOutcome::failed(error, MGET, &keys),
        }
    }
    FetchOutcome::Reply(CachedReply::Values(entries))
}

impl FetchOutcome {
    /// The outcome of a fetch that failed, for a client that sent the command with this name.
    ///
    /// The command is written again, because that is rare: a handle to the bytes that the client
    /// sent would cost each miss the buffer of the connection.
    fn failed(error: BackendError, name: &str, keys: &[Key]) -> Self {
        if !error.should_forward() {
            return Self::Failed(error);
        }
        let mut command = BytesMut::new();
        let words = iter::once(name.as_bytes()).chain(keys.iter().map(Key::as_bytes));
        write_command(&mut command, 1 + keys.len(), words);
        Self::Forward(command.freeze())
    }
}

impl CachedReply {
    /// The reply to a read at `now`, from the reply that Redis sent. `unit` is that of a time that
    /// ages.
    #[inline]
    pub(super) fn kept(
        reply: Arc<Reply>,
        kind: Kind,
        unit: Option<TimeUnit>,
        now: Instant,
    ) -> Self {
        let aged = |unit: TimeUnit| {
            unit.aged(reply.frame().bytes(), reply.remaining(now), reply.age_at(now))
        };
        match unit.and_then(aged) {
            Some(frame) => Self::Derived(Box::new(frame), kind),
            None => Self::Kept(reply, kind),
        }
    }

    /// Writes the reply as Redis would. Takes the reply, so that one look at its kind serves the
    /// write and the release of its memory.
    pub(crate) fn write(self, output: &mut WriteBuf, protocol: Protocol) {
        match self {
            Self::Value(entry) => write_value(output, Some(&entry), protocol),
            Self::Number(number) => write_integer(output.tail(), number),
            Self::Part(entry, part) => {
                let value = entry.value().map_or(&[][..], |value| &value.bytes[part]);
                write_bulk(output.tail(), value);
            }
            Self::Kept(reply, _) => write_frame(output, reply.frame(), protocol),
            Self::Derived(frame, _) => write_frame(output, &frame, protocol),
            Self::Values(entries) => {
                write_array_length(output.tail(), entries.len());
                for entry in entries {
                    write_value(output, entry.as_ref(), protocol);
                }
            }
        }
    }
}

/// Writes a value, or a null where there is none.
pub(crate) fn write_value(output: &mut WriteBuf, entry: Option<&Entry>, protocol: Protocol) {
    match entry.and_then(Entry::value) {
        None => write_null(output.tail(), protocol),
        Some(value) if value.bytes.len() < ZERO_COPY_MIN => {
            write_bulk(output.tail_for(value.bytes.len() + BULK_OVERHEAD), value.bytes);
        }
        Some(value) => {
            write_bulk_length(output.tail(), value.bytes.len());
            output.push_slice_or(value.bytes, || value.to_bytes());
            output.tail().put_slice(b"\r\n");
        }
    }
}

fn write_frame(output: &mut WriteBuf, frame: &ReplyFrame, protocol: Protocol) {
    let bytes = frame.bytes();
    match (protocol, frame.resp2()) {
        (Protocol::Resp3, _) | (_, Resp2Form::Same) => output.push(bytes.clone()),
        (_, Resp2Form::Head { elements, skip }) => {
            write_array_length(output.tail(), elements);
            output.push_slice_or(&bytes[skip..], || bytes.slice(skip..));
        }
        (_, Resp2Form::Converted) => write_resp2(bytes, frame.shape(), output.tail()),
    }
}

fn present(entries: &[Option<Entry>]) -> usize {
    entries.iter().flatten().filter(|entry| entry.value().is_some()).count()
}

fn length(entry: &Entry) -> usize {
    entry.value().map_or(0, |value| value.bytes.len())
}

/// Returns the part of a value of `length` bytes, from the first to the last of `ends`. A negative
/// end counts from the back. `None` if versions of Redis differ, because an end lies before the
/// beginning of the value.
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
    fn getrange_matches_redis() {
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
