//! The fetch of a reply that may be kept, as bytes, with the time for which it stays right.
//!
//! The time to live of each key is requested *before* the command, in the same batch. Each question
//! is a read, so Redis tracks the key from there on, whether it exists or not. A change between a
//! question and the command is therefore pushed before the reply, and the caller discards the
//! reply. Asked behind the command, "the key is gone" would be ambiguous: the key may have expired
//! after the reply was made, and such a push arrives late.
//!
//! Fields of hashes may have a time to live too. A reply that hides an expired field is right; one
//! that shows a field past its end is not. So the questions are:
//!
//! - fields that the command names: `HPTTL`, before the command;
//! - all fields: `INFO keyspace`, before the command, which may report that no field of the
//!   database has a time to live. If some field has one, `HPTTL` for the fields in the reply
//!   follows. A field that is gone by then may have expired without a push, so the reply is not
//!   kept.
//!
//! Without tracking nothing is pushed. There the questions and the command are one transaction, so
//! that all describe the same state. A reply about a key that does not exist is not kept, and
//! `HPTTL` does not follow.
//!
//! <https://redis.io/docs/latest/commands/hpttl/>

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis::{Value, parse_redis_value};

use super::error::BackendError;
use super::expiry_check::{INFO_KEYSPACE, no_field_expires};
use super::fetch_command::{NO_EXPIRY, NO_KEY, UnexpectedReply, server_error, write_expiry};
use super::reply_decoder::Frame;
use super::server_commands::{FieldExpiry, ServerCommands};
use crate::key::Key;
use crate::protocol::{ReplyScanner, write_command};

/// A read with a reply that may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyRequest {
    /// The whole command as RESP bytes.
    pub command: Bytes,
    /// The index of its name in the [`CommandNames`](super::CommandNames).
    pub name_index: usize,
    /// All keys that it reads.
    pub keys: Vec<Key>,
    /// The fields of the first key that it reads.
    pub fields: RequestedFields,
}

/// The fields of a hash that a command reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedFields {
    /// None: the command reads no hash.
    None,
    /// These fields: `HGET`, `HMGET`, `HEXISTS`, `HSTRLEN`.
    Named(Vec<Bytes>),
    /// All fields, and the reply has their names: `HGETALL`, `HKEYS`.
    All,
    /// All fields, but the reply does not have their names: `HVALS`, `HLEN`.
    Unnamed,
}

/// The result of a fetch of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchedReply {
    /// A reply that may be kept for `expires_in`, counted from before the fetch began. `None`:
    /// until a push.
    Keepable {
        /// The bytes of the reply in RESP3.
        frame: Bytes,
        /// Never zero.
        expires_in: Option<Duration>,
    },
    /// A reply for those who requested it, which may not be kept.
    Unkeepable {
        /// The bytes of the reply in RESP3.
        frame: Bytes,
    },
    /// No reply: the command has to be forwarded, for this reason.
    Forward(ForwardReason),
}

/// The reason for which a command has to be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardReason {
    /// The server does not confirm the command, or was not tested with hashes.
    Unconfirmed,
    /// Redis replied with an error to the command or to a question about it.
    ErrorReply,
    /// A node of a cluster redirected the command.
    Redirected,
    /// The reply has more bytes than the limit.
    TooLarge,
    /// The reply has no room in flight.
    NoRoom,
}

/// The room in bytes for the answers to the questions, in the reply to a transaction.
const MAX_ANSWERS: usize = 16 << 10;
/// The greatest number of fields of which the time to live is requested one by one.
const MAX_FIELDS: usize = 1000;

/// The commands of one fetch, and the meaning of their replies.
#[derive(Debug)]
pub(super) struct ReplyFetch<'a> {
    request: &'a ReplyRequest,
    question: FieldQuestion<'a>,
    /// Whether the server is a node of a cluster. A slot moves without pushes for keys that the
    /// node never had. So there a reply is kept only if all its keys exist.
    is_cluster: bool,
    is_transaction: bool,
    database: u32,
}

/// The question about fields before the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldQuestion<'a> {
    /// None: no field that the command reads can have a time to live.
    None,
    /// The times to live of these fields.
    Each(&'a [Bytes]),
    /// Whether any field of the database has one.
    Any,
}

/// A reply, and what is known about its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimedReply {
    pub(super) frame: Bytes,
    /// The time until the earliest known end. Zero: the reply may not be kept. `None`: no end is
    /// known.
    expires_in: Option<Duration>,
    /// Whether some field of the reply may have a time to live that is not known yet.
    has_unknown_fields: bool,
}

impl<'a> ReplyFetch<'a> {
    /// Plans the fetch from a server that is a primary of a cluster if `is_cluster`.
    ///
    /// # Errors
    /// [`ForwardReason::Unconfirmed`] if the reply may not be kept.
    pub(super) fn plan(
        request: &'a ReplyRequest,
        server: ServerCommands,
        is_cluster: bool,
        database: u32,
    ) -> Result<Self, ForwardReason> {
        // Without a key, nothing is tracked.
        if request.keys.is_empty() || !server.confirms(request.name_index) {
            return Err(ForwardReason::Unconfirmed);
        }
        let question = match (&request.fields, server.field_expiry) {
            (RequestedFields::None, _) | (_, FieldExpiry::Absent) => FieldQuestion::None,
            (_, FieldExpiry::Untested) => return Err(ForwardReason::Unconfirmed),
            (RequestedFields::Named(names), _) if (1..=MAX_FIELDS).contains(&names.len()) => {
                FieldQuestion::Each(names)
            }
            _ => FieldQuestion::Any,
        };
        Ok(Self { request, question, is_cluster, is_transaction: false, database })
    }

    /// Makes the fetch one transaction, for a connection without tracking.
    pub(super) fn in_transaction(self) -> Self {
        Self { is_transaction: true, ..self }
    }

    /// The greatest size in bytes of the last reply, for a reply of at most `max_reply`.
    pub(super) fn max_frame(&self, max_reply: usize) -> usize {
        max_reply.saturating_add(if self.is_transaction { MAX_ANSWERS } else { 0 })
    }

    /// Appends the questions and the command. Returns the number of their replies.
    pub(super) fn write(&self, output: &mut BytesMut) -> usize {
        if !self.is_transaction {
            return self.write_commands(output);
        }
        output.extend_from_slice(b"*1\r\n$5\r\nMULTI\r\n");
        let commands = self.write_commands(output);
        output.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n");
        commands + 2
    }

    fn write_commands(&self, output: &mut BytesMut) -> usize {
        for key in &self.request.keys {
            write_expiry(key.as_bytes(), output);
        }
        let questions = match self.question {
            FieldQuestion::None => 0,
            FieldQuestion::Each(names) => {
                self.write_field_expiry(names, output);
                1
            }
            FieldQuestion::Any => {
                output.extend_from_slice(INFO_KEYSPACE);
                1
            }
        };
        output.extend_from_slice(&self.request.command);
        self.request.keys.len() + questions + 1
    }

    /// Appends `HPTTL` for these fields of the first key.
    pub(super) fn write_field_expiry(&self, names: &[Bytes], output: &mut BytesMut) {
        let Some(key) = self.request.keys.first() else { return };
        let count = names.len().to_string();
        let head = [&b"HPTTL"[..], key.as_bytes(), b"FIELDS", count.as_bytes()];
        let words = head.into_iter().chain(names.iter().map(|name| &**name));
        write_command(output, head.len() + names.len(), words);
    }

    /// Parses the replies to the commands that [`write`](Self::write) appended: `frame` is the last
    /// one. `Err` inside is the reason to forward, or an error.
    ///
    /// # Errors
    /// [`UnexpectedReply`] if a reply is not possible for its command.
    pub(super) fn parse(
        &self,
        answers: &[Value],
        frame: Frame,
    ) -> Result<Result<TimedReply, ReplyError>, UnexpectedReply> {
        if !self.is_transaction {
            return self.parse_commands(answers, frame);
        }
        // The error of a command rejected before EXEC has the reason; EXEC only reports the abort.
        if let Some(error) = answers.iter().find_map(server_error) {
            return Ok(Err(ReplyError::Backend(error)));
        }
        match frame {
            Frame::Reply(results) => {
                let (answers, frame) = split_results(&results).ok_or(UnexpectedReply)?;
                self.parse_commands(&answers, frame)
            }
            frame => self.parse_commands(&[], frame),
        }
    }

    /// Parses `answers` to the questions, and `frame` to the command.
    fn parse_commands(
        &self,
        answers: &[Value],
        frame: Frame,
    ) -> Result<Result<TimedReply, ReplyError>, UnexpectedReply> {
        // A refused INFO is no obstacle: HPTTL follows instead.
        let needed = match self.question {
            FieldQuestion::Any => &answers[..answers.len().saturating_sub(1)],
            _ => answers,
        };
        if let Some(error) = needed.iter().find_map(server_error) {
            return Ok(Err(ReplyError::Backend(error)));
        }
        let frame = match frame {
            Frame::Reply(frame) => frame,
            Frame::TooLarge => return Ok(Err(ReplyError::Forward(ForwardReason::TooLarge))),
            Frame::NoRoom => return Ok(Err(ReplyError::Forward(ForwardReason::NoRoom))),
            Frame::Error(error) => {
                return server_error(&error)
                    .map(|error| Err(ReplyError::Backend(error)))
                    .ok_or(UnexpectedReply);
            }
            Frame::Push(_) => return Err(UnexpectedReply),
        };
        let (expires_in, has_unknown_fields) = self.expiry(answers, &frame)?;
        Ok(Ok(TimedReply { frame, expires_in, has_unknown_fields }))
    }

    /// Returns the earliest end of a reply that the answers report, and whether ends of fields are
    /// still unknown.
    fn expiry(
        &self,
        answers: &[Value],
        reply: &[u8],
    ) -> Result<(Option<Duration>, bool), UnexpectedReply> {
        let (keys, fields) =
            answers.split_at_checked(self.request.keys.len()).ok_or(UnexpectedReply)?;
        let needs_keys = self.is_cluster || self.is_transaction;
        let absent_key = if needs_keys { Some(Duration::ZERO) } else { None };
        let mut expires_in = None;
        for key in keys {
            expires_in = earliest(expires_in, time_to_live(key, absent_key)?);
        }
        match (self.question, fields) {
            (FieldQuestion::None, []) => Ok((expires_in, false)),
            (FieldQuestion::Each(names), [fields]) => {
                // A field that is missing before the command is pushed when it appears.
                let gone = shows_gone_field(fields, reply).then_some(Duration::ZERO);
                let fields_expire_in = fields_to_live(fields, names.len(), None)?;
                Ok((earliest(earliest(expires_in, fields_expire_in), gone), false))
            }
            (FieldQuestion::Any, [info]) => {
                Ok((expires_in, !no_field_expires(info, self.database)?))
            }
            _ => Err(UnexpectedReply),
        }
    }

    /// Returns the fields of which the time to live has to be requested. `None`: the reply may
    /// not be kept, because its fields are unknown or too many.
    pub(super) fn unknown_fields(&self, reply: &TimedReply) -> Option<Vec<Bytes>> {
        if !reply.has_unknown_fields {
            return Some(Vec::new());
        }
        match self.request.fields {
            RequestedFields::All if !self.is_transaction => field_names(&reply.frame),
            _ => None,
        }
    }
}

/// The reason for which there is no reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyError {
    Forward(ForwardReason),
    Backend(BackendError),
}

impl TimedReply {
    /// Applies the reply to `HPTTL` for the fields of the reply.
    ///
    /// # Errors
    /// [`UnexpectedReply`] if it is no reply to `HPTTL` for so many fields.
    pub(super) fn apply_fields(
        &mut self,
        answer: &Value,
        fields: usize,
    ) -> Result<(), UnexpectedReply> {
        let gone = Some(Duration::ZERO);
        let fields_expire_in = match answer {
            Value::ServerError(_) => gone,
            answer => fields_to_live(answer, fields, gone)?,
        };
        self.expires_in = earliest(self.expires_in, fields_expire_in);
        Ok(())
    }

    /// Returns the reply as one that may not be kept.
    pub(super) fn unkeepable(self) -> FetchedReply {
        FetchedReply::Unkeepable { frame: self.frame }
    }

    /// Returns the reply as one that may be kept until its end, if that is later.
    pub(super) fn finish(self) -> FetchedReply {
        if self.expires_in == Some(Duration::ZERO) {
            return self.unkeepable();
        }
        FetchedReply::Keepable { frame: self.frame, expires_in: self.expires_in }
    }
}

/// Splits the results of a transaction into the answers to the questions and the last one.
fn split_results(results: &[u8]) -> Option<(Vec<Value>, Frame)> {
    let end = memchr::memchr(b'\n', results)?;
    let (line, mut rest) = results.split_at(end + 1);
    let count = line.strip_prefix(b"*")?.strip_suffix(b"\r\n")?;
    let count: usize = str::from_utf8(count).ok()?.parse().ok()?;
    let mut answers = Vec::new();
    for _ in 1..count {
        let (length, _) = ReplyScanner::default().scan(rest).ok()?;
        let (answer, others) = rest.split_at(length);
        answers.push(parse_redis_value(answer).ok()?);
        rest = others;
    }
    let last = match rest.first()? {
        b'-' | b'!' => Frame::Error(parse_redis_value(rest).ok()?),
        _ => Frame::Reply(Bytes::copy_from_slice(rest)),
    };
    Some((answers, last))
}

/// Returns the earlier of two ends; `None` is no end.
fn earliest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// Reads one answer of `PTTL` or `HPTTL`. `absent` is the result for what does not exist.
fn time_to_live(
    answer: &Value,
    absent: Option<Duration>,
) -> Result<Option<Duration>, UnexpectedReply> {
    match answer {
        Value::Int(NO_EXPIRY) => Ok(None),
        Value::Int(NO_KEY) => Ok(absent),
        Value::Int(milliseconds @ 0..) => {
            Ok(Some(Duration::from_millis(milliseconds.unsigned_abs())))
        }
        _ => Err(UnexpectedReply),
    }
}

/// Reads the reply to `HPTTL` for so many fields: the earliest end.
fn fields_to_live(
    answer: &Value,
    fields: usize,
    absent: Option<Duration>,
) -> Result<Option<Duration>, UnexpectedReply> {
    let Value::Array(answers) = answer else { return Err(UnexpectedReply) };
    if answers.len() != fields {
        return Err(UnexpectedReply);
    }
    let mut expires_in = None;
    for answer in answers {
        expires_in = earliest(expires_in, time_to_live(answer, absent)?);
    }
    Ok(expires_in)
}

/// Whether a reply shows a field that `HPTTL` has reported as gone before.
///
/// In its last millisecond, Redis 8.0.2 reports a field as gone and still shows its value. Kept as
/// a field without an end, it would be served until Redis deletes it.
fn shows_gone_field(times: &Value, frame: &[u8]) -> bool {
    let Value::Array(times) = times else { return false };
    let is_gone = |time: &Value| *time == Value::Int(NO_KEY);
    if !times.iter().any(is_gone) {
        return false;
    }
    match parse_redis_value(frame) {
        Ok(Value::Array(values)) if values.len() == times.len() => {
            let mut fields = times.iter().zip(&values);
            fields.any(|(time, value)| is_gone(time) && *value != Value::Nil)
        }
        // HGET, and HEXISTS or HSTRLEN.
        Ok(Value::Nil | Value::Int(0)) => false,
        _ => true,
    }
}

/// Returns the names of fields in a reply to `HGETALL` or `HKEYS`; `None` if they are more than
/// [`MAX_FIELDS`], or if it is another reply.
fn field_names(frame: &[u8]) -> Option<Vec<Bytes>> {
    // The count is read first, because a reply of many fields takes long to parse.
    let line = frame.get(1..memchr::memchr(b'\r', frame)?)?;
    let count: usize = str::from_utf8(line).ok()?.parse().ok()?;
    if count > MAX_FIELDS {
        return None;
    }
    let names = match parse_redis_value(frame).ok()? {
        Value::Map(fields) => fields.into_iter().map(|(name, _)| name).collect(),
        Value::Array(names) => names,
        _ => return None,
    };
    let bytes = |name| match name {
        Value::BulkString(name) => Some(Bytes::from(name)),
        _ => None,
    };
    names.into_iter().map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&[u8]; 2] = [b"f", b"g"];

    fn request(keys: usize, fields: RequestedFields) -> ReplyRequest {
        let keys = (0..keys).map(|number| Key::from(format!("k{number}").as_bytes())).collect();
        ReplyRequest { command: Bytes::from_static(b"PING\r\n"), name_index: 0, keys, fields }
    }

    fn named() -> RequestedFields {
        RequestedFields::Named(NAMES.map(Bytes::from_static).to_vec())
    }

    fn server(field_expiry: FieldExpiry) -> ServerCommands {
        ServerCommands::for_test(1, field_expiry)
    }

    fn ints(numbers: &[i64]) -> Vec<Value> {
        numbers.iter().copied().map(Value::Int).collect()
    }

    fn keyspace(counts: &str) -> Value {
        let text = format!("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0{counts}\r\n");
        Value::VerbatimString { format: redis::VerbatimFormat::Text, text }
    }

    fn error(code: &'static str) -> Value {
        redis::parse_redis_value(format!("-{code} 7 host:1\r\n").as_bytes()).unwrap()
    }

    fn reply(bytes: &'static [u8]) -> Frame {
        Frame::Reply(Bytes::from_static(bytes))
    }

    /// The commands of a fetch, without lengths and line ends.
    fn written(request: &ReplyRequest, field_expiry: FieldExpiry) -> (String, usize) {
        let fetch = ReplyFetch::plan(request, server(field_expiry), false, 0).unwrap();
        let mut output = BytesMut::new();
        let replies = fetch.write(&mut output);
        let words = str::from_utf8(&output).unwrap().split("\r\n").map(str::to_owned);
        let words: Vec<_> =
            words.filter(|word| !word.is_empty() && !word.starts_with(['*', '$'])).collect();
        (words.join(" "), replies)
    }

    /// The end of a reply after these answers, in milliseconds. `Some(0)`: it may not be kept.
    fn end(
        request: &ReplyRequest,
        is_cluster: bool,
        answers: &[Value],
    ) -> Result<(Option<u128>, bool), UnexpectedReply> {
        let fetch =
            ReplyFetch::plan(request, server(FieldExpiry::Reported), is_cluster, 0).unwrap();
        let shown = reply(b"*2\r\n_\r\n_\r\n");
        let parsed = fetch.parse(answers, shown)?.unwrap();
        Ok((parsed.expires_in.map(|end| end.as_millis()), parsed.has_unknown_fields))
    }

    #[test]
    fn gone_field_in_the_reply_is_found() {
        for (times, frame, expected) in [
            (&[-2][..], &b"$1\r\n2\r\n"[..], true),
            (&[-2], b"_\r\n", false),
            (&[-2], b":1\r\n", true),
            (&[-2], b":0\r\n", false),
            (&[-2], b"*1\r\n_\r\n", false),
            (&[-1, -2], b"*2\r\n_\r\n$1\r\n2\r\n", true),
            (&[-1, -2], b"*2\r\n$1\r\n2\r\n_\r\n", false),
            (&[-2, -2], b"*1\r\n_\r\n", true),
            (&[5], b"$1\r\n2\r\n", false),
        ] {
            let found = shows_gone_field(&Value::Array(ints(times)), frame);
            assert_eq!(found, expected, "{times:?} {}", frame.escape_ascii());
        }
        let request = request(1, named());
        let fetch = ReplyFetch::plan(&request, server(FieldExpiry::Reported), false, 0).unwrap();
        let answers = [Value::Int(-1), Value::Array(ints(&[-1, -2]))];
        let shown = reply(b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n");
        let parsed = fetch.parse(&answers, shown).unwrap().unwrap();
        assert_eq!(parsed.expires_in, Some(Duration::ZERO));
    }

    #[test]
    fn questions_precede_the_command() {
        let keys = request(2, RequestedFields::None);
        assert_eq!(written(&keys, FieldExpiry::Untested), ("PTTL k0 PTTL k1 PING".into(), 3));
        let hash = request(1, named());
        assert_eq!(written(&hash, FieldExpiry::Absent), ("PTTL k0 PING".into(), 2));
        let fields = "PTTL k0 HPTTL k0 FIELDS 2 f g PING";
        assert_eq!(written(&hash, FieldExpiry::Reported), (fields.into(), 3));
        let many = RequestedFields::Named(vec![Bytes::from_static(b"f"); MAX_FIELDS + 1]);
        for fields in [RequestedFields::All, RequestedFields::Unnamed, many] {
            let any = ("PTTL k0 INFO keyspace PING".into(), 3);
            assert_eq!(written(&request(1, fields), FieldExpiry::Reported), any);
        }
    }

    #[test]
    fn unconfirmed_command_is_not_planned() {
        let plan = |request: &ReplyRequest, server| {
            ReplyFetch::plan(request, server, false, 0)
                .map(|fetch| fetch.question == FieldQuestion::None)
        };
        let (keyed, hash) = (request(1, RequestedFields::None), request(1, named()));
        let unconfirmed = Err(ForwardReason::Unconfirmed);
        assert_eq!(plan(&keyed, server(FieldExpiry::Untested)), Ok(true));
        assert_eq!(plan(&hash, server(FieldExpiry::Untested)), unconfirmed);
        assert_eq!(plan(&keyed, ServerCommands::NONE), unconfirmed);
        let other = ReplyRequest { name_index: 1, ..keyed.clone() };
        assert_eq!(plan(&other, server(FieldExpiry::Absent)), unconfirmed);
        let keyless = request(0, RequestedFields::None);
        assert_eq!(plan(&keyless, server(FieldExpiry::Absent)), unconfirmed);
    }

    #[test]
    fn reply_ends_with_the_first_key_or_field() {
        let (keyed, hash) = (request(2, RequestedFields::None), request(1, named()));
        // The request, the answers, and the end in a standalone Redis and in a cluster.
        for (request, answers, standalone, cluster) in [
            (&keyed, ints(&[-1, -1]), None, None),
            (&keyed, ints(&[-1, 5]), Some(5), Some(5)),
            (&keyed, ints(&[7, 5]), Some(5), Some(5)),
            (&keyed, ints(&[7, 0]), Some(0), Some(0)),
            (&keyed, ints(&[-2, -2]), None, Some(0)),
            (&keyed, ints(&[-2, 5]), Some(5), Some(0)),
            (&hash, vec![Value::Int(-1), Value::Array(ints(&[-1, -2]))], None, None),
            (&hash, vec![Value::Int(9), Value::Array(ints(&[8, -2]))], Some(8), Some(8)),
            (&hash, vec![Value::Int(7), Value::Array(ints(&[8, 9]))], Some(7), Some(7)),
            (&hash, vec![Value::Int(-1), Value::Array(ints(&[-1, 0]))], Some(0), Some(0)),
            (&hash, vec![Value::Int(-2), Value::Array(ints(&[-2, -2]))], None, Some(0)),
        ] {
            assert_eq!(end(request, false, &answers), Ok((standalone, false)), "{answers:?}");
            assert_eq!(end(request, true, &answers), Ok((cluster, false)), "{answers:?}");
        }
    }

    #[test]
    fn whole_hash_is_known_only_without_any_field_expiry() {
        let hash = request(1, RequestedFields::All);
        for (info, is_unknown) in [
            (keyspace(",subexpiry=0"), false),
            (keyspace(",subexpiry=2"), true),
            (keyspace(""), true),
            (error("NOPERM"), true),
        ] {
            let answers = [Value::Int(5), info];
            assert_eq!(end(&hash, false, &answers), Ok((Some(5), is_unknown)), "{answers:?}");
        }
    }

    #[test]
    fn impossible_answer_is_a_desync() {
        let (keyed, hash) = (request(1, RequestedFields::None), request(1, named()));
        let all = request(1, RequestedFields::All);
        for (request, answers) in [
            (&keyed, vec![Value::Nil]),
            (&keyed, vec![Value::BulkString(b"-1".to_vec())]),
            (&keyed, ints(&[-3])),
            (&keyed, ints(&[-1, -1])),
            (&keyed, vec![]),
            (&hash, ints(&[-1, -1])),
            (&hash, vec![Value::Int(-1), Value::Array(ints(&[-1]))]),
            (&all, ints(&[-1, -1])),
            (&all, vec![Value::Int(-1), Value::BulkString(b"# Keyspace\r\n".to_vec())]),
        ] {
            assert_eq!(end(request, false, &answers), Err(UnexpectedReply), "{answers:?}");
        }
    }

    #[test]
    fn error_or_large_reply_is_not_returned() {
        let keyed = request(1, RequestedFields::None);
        let fetch = ReplyFetch::plan(&keyed, server(FieldExpiry::Absent), false, 0).unwrap();
        let parse = |answer, frame| fetch.parse(&[answer], frame).unwrap().unwrap_err();
        let none = Value::Int(-1);
        let too_large = ReplyError::Forward(ForwardReason::TooLarge);
        assert_eq!(parse(none.clone(), Frame::TooLarge), too_large);
        let wrong_type = ReplyError::Backend(BackendError::WrongType);
        assert_eq!(parse(none, Frame::Error(error("WRONGTYPE"))), wrong_type);
        let refused = ReplyError::Backend(BackendError::ErrorReply("NOPERM".into()));
        assert_eq!(parse(error("NOPERM"), reply(b"+OK\r\n")), refused);
        let moved = parse(error("MOVED"), Frame::Error(error("MOVED")));
        assert!(matches!(moved, ReplyError::Backend(BackendError::Moved(_))), "{moved:?}");
    }

    #[test]
    fn transaction_describes_one_state() {
        let keyed = request(1, RequestedFields::None);
        let plan = || ReplyFetch::plan(&keyed, server(FieldExpiry::Absent), false, 0).unwrap();
        let fetch = plan().in_transaction();
        let mut output = BytesMut::new();
        assert_eq!(fetch.write(&mut output), 4);
        assert!(output.starts_with(b"*1\r\n$5\r\nMULTI") && output.ends_with(b"EXEC\r\n"));
        let queued = || vec![Value::Okay, Value::Int(0), Value::Int(0)];
        let exec = |results| fetch.parse(&queued(), reply(results));
        let kept = |results| exec(results).unwrap().unwrap();
        let list = kept(b"*2\r\n:70\r\n*1\r\n$1\r\na\r\n");
        assert_eq!(
            (&list.frame[..], list.expires_in),
            (&b"*1\r\n$1\r\na\r\n"[..], Some(Duration::from_millis(70)))
        );
        assert_eq!(
            kept(b"*2\r\n:-2\r\n*0\r\n").finish(),
            FetchedReply::Unkeepable { frame: Bytes::from_static(b"*0\r\n") }
        );
        let wrong_type = ReplyError::Backend(BackendError::WrongType);
        assert_eq!(exec(b"*2\r\n:-1\r\n-WRONGTYPE x\r\n").unwrap(), Err(wrong_type));
        for wrong in [&b"*1\r\n*0\r\n"[..], b"_\r\n", b"*0\r\n", b"*2\r\n+OK\r\n*0\r\n"] {
            assert_eq!(fetch.parse(&queued(), Frame::Reply(wrong.into())), Err(UnexpectedReply));
        }
        let refused = ReplyError::Backend(BackendError::ErrorReply("NOPERM".into()));
        let answers = [Value::Okay, error("NOPERM"), Value::Int(0)];
        let aborted = Frame::Error(error("EXECABORT"));
        assert_eq!(fetch.parse(&answers, aborted).unwrap(), Err(refused));
        let hash = request(1, RequestedFields::All);
        let all = ReplyFetch::plan(&hash, server(FieldExpiry::Reported), false, 0).unwrap();
        let unknown =
            TimedReply { frame: Bytes::new(), expires_in: None, has_unknown_fields: true };
        assert_eq!(all.in_transaction().unknown_fields(&unknown), None);
    }

    #[test]
    fn unknown_fields_are_those_of_the_reply() {
        let hash = request(1, RequestedFields::All);
        let fetch = ReplyFetch::plan(&hash, server(FieldExpiry::Reported), false, 0).unwrap();
        let fields = |frame: &[u8], has_unknown_fields| {
            let frame = Bytes::copy_from_slice(frame);
            fetch.unknown_fields(&TimedReply { frame, expires_in: None, has_unknown_fields })
        };
        let names = || Some(NAMES.map(Bytes::from_static).to_vec());
        let map = b"%2\r\n$1\r\nf\r\n$1\r\n1\r\n$1\r\ng\r\n$0\r\n\r\n";
        assert_eq!(fields(map, true), names());
        assert_eq!(fields(map, false), Some(Vec::new()));
        assert_eq!(fields(b"*2\r\n$1\r\nf\r\n$1\r\ng\r\n", true), names());
        assert_eq!(fields(b"%0\r\n", true), Some(Vec::new()));
        assert_eq!(fields(b":2\r\n", true), None);
        let many = [b"*1001\r\n", &b"$1\r\nf\r\n".repeat(1001)[..]].concat();
        assert_eq!(fields(&many, true), None);
    }

    #[test]
    fn gone_field_forbids_keeping_a_reply() {
        for (answer, expected) in [
            (Value::Array(ints(&[-1, -1])), Ok(Some(90))),
            (Value::Array(ints(&[-1, 50])), Ok(Some(50))),
            (Value::Array(ints(&[-1, -2])), Ok(Some(0))),
            (error("NOPERM"), Ok(Some(0))),
            (Value::Array(ints(&[-1])), Err(UnexpectedReply)),
            (Value::Nil, Err(UnexpectedReply)),
        ] {
            let mut reply = TimedReply {
                frame: Bytes::new(),
                expires_in: Some(Duration::from_millis(90)),
                has_unknown_fields: true,
            };
            let applied = reply.apply_fields(&answer, 2);
            let end = applied.map(|()| reply.expires_in.map(|end| end.as_millis()));
            assert_eq!(end, expected, "{answer:?}");
        }
    }
}
