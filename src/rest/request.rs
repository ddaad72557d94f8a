//! The decoder of requests: JSON bodies and paths become commands. No I/O.
//!
//! Model: the words of all commands lie one behind the other in one buffer. A body is JSON: an
//! array of words for one command, an array of such arrays for a pipeline. A path is one command,
//! of which the body and the query are the last arguments.
//!
//! The rule that must not be broken: a word has exactly the bytes that the client wrote. A number
//! keeps its own digits, otherwise a large one would reach Redis rounded.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::key::percent_decode;
use crate::protocol::{Arguments, write_command};

/// The limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// The most commands of a request.
    pub max_commands: usize,
}

/// A request that is not a list of commands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The body is not UTF-8.
    #[error("ERR the body is not valid UTF-8")]
    NotText,
    /// The body is not JSON, or has another form.
    #[error("ERR cannot parse the body: {0}")]
    NotJson(String),
    /// A command has no name.
    #[error("ERR empty command")]
    EmptyCommand,
    /// The body has no command.
    #[error("ERR empty pipeline")]
    EmptyPipeline,
    /// The body has more commands than the limit.
    #[error("ERR more than {0} commands in one request")]
    TooManyCommands(usize),
    /// An escape of the path or the query is invalid.
    #[error("ERR {0}")]
    BadEscape(String),
}

/// Commands, each a name with its arguments.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Commands {
    bytes: Vec<u8>,
    /// The place of each word in `bytes`.
    words: Vec<Range<usize>>,
    /// The end of each command in `words`.
    ends: Vec<usize>,
}

/// One of several [`Commands`].
#[derive(Debug, Clone, Copy)]
pub struct Words<'a>(Arguments<'a>);

impl Commands {
    /// Decodes a body with one command.
    ///
    /// # Errors
    /// [`BadRequest`] if the body is not a JSON array of at least one word.
    pub fn single(body: &[u8]) -> Result<Self, BadRequest> {
        let text = text_of(body)?;
        if let Some(commands) = plain::single(body) {
            return Ok(commands);
        }
        let mut commands = Self::with_room(body.len());
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_seq(CommandVisitor(&mut commands)).map_err(|error| not_json(&error))?;
        json.end().map_err(|error| not_json(&error))?;
        commands.end_command()?;
        Ok(commands)
    }

    /// Decodes a body with several commands.
    ///
    /// # Errors
    /// [`BadRequest`] if the body is not a JSON array of arrays of words, or has too many of them.
    pub fn pipeline(body: &[u8], limits: DecodeLimits) -> Result<Self, BadRequest> {
        let text = text_of(body)?;
        if let Some(commands) = plain::pipeline(body, limits) {
            return Ok(commands);
        }
        let mut commands = Self::with_room(body.len());
        let mut json = serde_json::Deserializer::from_str(text);
        let mut failed = None;
        let visitor = PipelineVisitor { commands: &mut commands, limits, failed: &mut failed };
        let decoded = json.deserialize_seq(visitor).and_then(|()| json.end());
        if let Some(failed) = failed {
            return Err(failed);
        }
        decoded.map_err(|error| not_json(&error))?;
        if commands.is_empty() { Err(BadRequest::EmptyPipeline) } else { Ok(commands) }
    }

    /// Decodes a path without its prefix, such as `set/key/value`. `body` is the last argument
    /// before those of the query, unless it is empty. The parameter `_token` is left out.
    ///
    /// # Errors
    /// [`BadRequest`] if the path has no command, or an escape is invalid.
    pub fn path(path: &str, body: &[u8], query: Option<&str>) -> Result<Self, BadRequest> {
        let mut commands = Self::default();
        let bad = |error: &dyn std::fmt::Display| BadRequest::BadEscape(error.to_string());
        for part in path.split('/') {
            let word = percent_decode(part.as_bytes()).map_err(|error| bad(&error))?;
            commands.add_word(&word);
        }
        if !body.is_empty() {
            commands.add_word(body);
        }
        for (name, value) in query_pairs(query) {
            let name = decode_query(name).map_err(|error| bad(&error))?;
            if *name == *TOKEN_PARAMETER.as_bytes() {
                continue;
            }
            let value = decode_query(value).map_err(|error| bad(&error))?;
            commands.add_word(&name);
            if !value.is_empty() {
                commands.add_word(&value);
            }
        }
        commands.end_command()?;
        Ok(commands)
    }

    /// No commands, with the room for those that most bodies of this size have.
    fn with_room(body: usize) -> Self {
        let (words, ends) = ((body / 8).min(1 << 10), (body / 16).min(1 << 9));
        Self {
            bytes: Vec::with_capacity(body),
            words: Vec::with_capacity(words + 2),
            ends: Vec::with_capacity(ends + 1),
        }
    }

    /// The commands of these words.
    #[cfg(test)]
    pub(super) fn of(lines: &[&[&str]]) -> Self {
        let mut commands = Self::default();
        for line in lines {
            line.iter().for_each(|word| commands.add_word(word.as_bytes()));
            commands.end_command().unwrap();
        }
        commands
    }

    fn add_word(&mut self, word: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(word);
        self.words.push(start..self.bytes.len());
    }

    fn end_command(&mut self) -> Result<(), BadRequest> {
        let start = self.ends.last().copied().unwrap_or_default();
        // The first word is the name, which is not empty.
        if self.words.get(start).is_none_or(Range::is_empty) {
            return Err(BadRequest::EmptyCommand);
        }
        self.ends.push(self.words.len());
        Ok(())
    }

    /// The number of commands.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The commands in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Words<'_>> {
        (0..self.len()).map(|index| {
            let first = index.checked_sub(1).map_or(0, |last| self.ends[last]);
            Words(Arguments::new(&self.bytes, &self.words[first..self.ends[index]]))
        })
    }
}

impl<'a> Words<'a> {
    /// The number of words.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none. A decoded command has at least its name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The word at `index`; empty if there is none.
    pub fn get(&self, index: usize) -> &'a [u8] {
        self.0.get(index)
    }

    /// The words in their order.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.skip(0)
    }

    /// The words as the arguments of a command.
    pub(super) fn arguments(self) -> Arguments<'a> {
        self.0
    }

    /// Writes the command as RESP.
    pub fn write(&self, out: &mut bytes::BytesMut) {
        // Otherwise a small buffer would grow several times.
        let words: usize = self.iter().map(<[u8]>::len).sum();
        out.reserve(words + LINES_OF_A_WORD * (self.len() + 1));
        write_command(out, self.len(), self.iter());
    }

    /// Writes the command as RESP, with another word at `index`.
    pub(super) fn write_with(&self, index: usize, word: &[u8], out: &mut bytes::BytesMut) {
        let own = self.iter().enumerate();
        let words = own.map(|(at, own)| if at == index { word } else { own });
        write_command(out, self.len(), words);
    }
}

/// The bytes of RESP around a word, but for one of many megabytes.
const LINES_OF_A_WORD: usize = 16;

/// The query parameter that holds the token.
const TOKEN_PARAMETER: &str = "_token";

/// Returns the token in a query, if it has one. Several are as good as none.
pub fn query_token(query: Option<&str>) -> Option<Vec<u8>> {
    let mut tokens = query_pairs(query).filter_map(|(name, value)| {
        let is_token = decode_query(name).is_ok_and(|name| *name == *TOKEN_PARAMETER.as_bytes());
        is_token.then(|| decode_query(value).ok().map(Cow::into_owned))
    });
    match (tokens.next(), tokens.next()) {
        (Some(token), None) => token,
        _ => None,
    }
}

/// The names and values of a query.
fn query_pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Decodes a part of a query, in which `+` is a space.
fn decode_query(text: &str) -> Result<Cow<'_, [u8]>, crate::key::BadEscape> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes());
    }
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).map(|decoded| Cow::Owned(decoded.into_owned()))
}

fn text_of(body: &[u8]) -> Result<&str, BadRequest> {
    std::str::from_utf8(body).map_err(|_| BadRequest::NotText)
}

fn not_json(error: &serde_json::Error) -> BadRequest {
    BadRequest::NotJson(error.to_string())
}

/// The bodies that clients send most: strings without an escape, and whole numbers. They are read
/// several times as fast as by a JSON decoder. All others, good or bad, are left to that.
mod plain {
    use super::{Commands, DecodeLimits};

    /// The decoder is faster for large words.
    const MAX_BODY: usize = 64 << 10;

    /// Returns the command of a body, which is UTF-8.
    pub(super) fn single(body: &[u8]) -> Option<Commands> {
        let mut commands = start(body)?;
        let rest = command(&mut commands, body)?;
        rest.is_empty().then_some(commands)
    }

    /// Returns the commands of a body, which is UTF-8.
    pub(super) fn pipeline(body: &[u8], limits: DecodeLimits) -> Option<Commands> {
        let mut commands = start(body)?;
        let mut rest = body.strip_prefix(b"[")?;
        loop {
            rest = command(&mut commands, rest)?;
            match rest {
                b"]" => return (commands.len() <= limits.max_commands).then_some(commands),
                _ => rest = behind_comma(rest)?,
            }
        }
    }

    fn start(body: &[u8]) -> Option<Commands> {
        (body.len() <= MAX_BODY).then(|| Commands::with_room(body.len()))
    }

    /// Adds the command at the start of the text. Returns the text behind it.
    fn command<'a>(commands: &mut Commands, text: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = text.strip_prefix(b"[")?;
        loop {
            let (word, behind) = word(rest)?;
            commands.add_word(word);
            if let Some(behind) = behind.strip_prefix(b"]") {
                commands.end_command().ok()?;
                return Some(behind);
            }
            rest = behind_comma(behind)?;
        }
    }

    fn behind_comma(text: &[u8]) -> Option<&[u8]> {
        let rest = text.strip_prefix(b",")?;
        Some(rest.strip_prefix(b" ").unwrap_or(rest))
    }

    /// Returns the word at the start of the text, and the text behind it.
    fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
        match text {
            [b'"', text @ ..] => {
                let is_special = |byte: &u8| matches!(byte, 0..=0x1f | b'"' | b'\\');
                let (word, behind) = text.split_at(text.iter().position(is_special)?);
                Some((word, behind.strip_prefix(b"\"")?))
            }
            [b'1'..=b'9', ..] => {
                let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
                Some(text.split_at(end))
            }
            _ => None,
        }
    }
}

/// Reads the words of one command into the buffer.
struct CommandVisitor<'a>(&'a mut Commands);

impl<'de> Visitor<'de> for CommandVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of strings, numbers and booleans")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<(), A::Error> {
        while let Some(word) = words.next_element::<&RawValue>()? {
            add_json_word(self.0, word.get())?;
        }
        Ok(())
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for CommandVisitor<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

/// Reads the commands of a pipeline into the buffer.
struct PipelineVisitor<'a> {
    commands: &'a mut Commands,
    limits: DecodeLimits,
    /// The error that the JSON decoder cannot carry.
    failed: &'a mut Option<BadRequest>,
}

impl<'de> Visitor<'de> for PipelineVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of commands")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut commands: A) -> Result<(), A::Error> {
        let fail = |error: BadRequest, failed: &mut Option<BadRequest>| {
            let text = serde::de::Error::custom(&error);
            *failed = Some(error);
            Err(text)
        };
        while commands.next_element_seed(CommandVisitor(self.commands))?.is_some() {
            if let Err(error) = self.commands.end_command() {
                return fail(error, self.failed);
            }
            if self.commands.len() > self.limits.max_commands {
                let error = BadRequest::TooManyCommands(self.limits.max_commands);
                return fail(error, self.failed);
            }
        }
        Ok(())
    }
}

/// Adds a JSON value as a word.
fn add_json_word<E: serde::de::Error>(commands: &mut Commands, json: &str) -> Result<(), E> {
    let found = match json.as_bytes() {
        [b'"', inner @ .., b'"'] if memchr::memchr(b'\\', inner).is_none() => {
            commands.add_word(inner);
            return Ok(());
        }
        [b'"', ..] => {
            let word: String = serde_json::from_str(json).map_err(E::custom)?;
            commands.add_word(word.as_bytes());
            return Ok(());
        }
        [b'-' | b'0'..=b'9' | b't' | b'f', ..] => {
            commands.add_word(json.as_bytes());
            return Ok(());
        }
        [b'[', ..] => "an array",
        [b'{', ..] => "an object",
        _ => "null",
    };
    Err(E::custom(format!("found {found} in a command, expected strings, numbers and booleans")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The command that the JSON decoder finds. The space keeps the body from being plain.
    fn decoded(body: &str) -> Result<Commands, BadRequest> {
        Commands::single(format!(" {body}").as_bytes())
    }

    fn lines(commands: &Commands) -> Vec<String> {
        let line = |command: Words<'_>| {
            let words: Vec<_> =
                command.iter().map(|word| word.escape_ascii().to_string()).collect();
            words.join("|")
        };
        commands.iter().map(line).collect()
    }

    const LIMITS: DecodeLimits = DecodeLimits { max_commands: 3 };

    #[test]
    fn body_of_one_command_keeps_each_word() {
        for (body, expected) in [
            (r#"["GET","a"]"#, "GET|a"),
            (r#" [ "SET" , "a" , "" , "EX" , 100 ] "#, "SET|a||EX|100"),
            (r#"["SET","é\n\u0000","\"\\"]"#, r#"SET|\xc3\xa9\n\x00|\"\\"#),
            (r#"["SET","\ud83d\ude00",true,false]"#, r"SET|\xf0\x9f\x98\x80|true|false"),
            (
                r#"["X",1.0,1e400,-0,12345678901234567890123]"#,
                "X|1.0|1e400|-0|12345678901234567890123",
            ),
        ] {
            let commands = Commands::single(body.as_bytes()).unwrap();
            assert_eq!(lines(&commands), [expected], "{body}");
        }
    }

    #[test]
    fn body_of_another_form_is_rejected() {
        for body in [
            "",
            "{}",
            "\"GET\"",
            "1",
            "null",
            "[\"GET\"",
            "[\"GET\"] x",
            "[null]",
            "[\"a\",{}]",
            "[[\"GET\",\"a\"]]",
            "[\"\\ud800\"]",
            "[\"a\u{1}\"]",
            "[01]",
            "['a']",
            "[]",
            "[\"\"]",
            "[\"\",\"a\"]",
        ] {
            assert!(Commands::single(body.as_bytes()).is_err(), "{body}");
        }
        assert_eq!(Commands::single(b"[\"\xff\"]"), Err(BadRequest::NotText));
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(Commands::single(&deep).is_err() && Commands::pipeline(&deep, LIMITS).is_err());
    }

    #[test]
    fn pipeline_has_its_commands_in_order() {
        let found = Commands::pipeline(br#"[["GET","a"],["SET","b",1],["PING"]]"#, LIMITS).unwrap();
        assert_eq!(lines(&found), ["GET|a", "SET|b|1", "PING"]);
        for (body, expected) in [
            ("[]", BadRequest::EmptyPipeline),
            ("[[]]", BadRequest::EmptyCommand),
            (r#"[["GET","a"],[]]"#, BadRequest::EmptyCommand),
            (r#"[["GET","a"],[""]]"#, BadRequest::EmptyCommand),
            (r#"[["a"],["b"],["c"],["d"]]"#, BadRequest::TooManyCommands(3)),
        ] {
            assert_eq!(Commands::pipeline(body.as_bytes(), LIMITS), Err(expected), "{body}");
        }
        for body in [r#"["GET","a"]"#, r#"[["GET",["a"]]]"#, "[[\"a\"]", "[[\"a\"]]]", "{}"] {
            let found = Commands::pipeline(body.as_bytes(), LIMITS);
            assert!(matches!(found, Err(BadRequest::NotJson(_))), "{body}: {found:?}");
        }
    }

    #[test]
    fn plain_body_is_read_without_a_decoder() {
        for body in [r#"["SET","a","é b",1,20]"#, r#"["GET", "a"]"#, r#"["X",""]"#] {
            let found = plain::single(body.as_bytes());
            assert_eq!(found, Some(decoded(body).unwrap()), "{body}");
            assert_eq!(Commands::single(body.as_bytes()), decoded(body));
        }
        let all = r#"[["GET","a"], ["PING"]]"#.as_bytes();
        assert_eq!(plain::pipeline(all, LIMITS), Commands::pipeline(all, LIMITS).ok());
        assert!(plain::pipeline(all, LIMITS).is_some());
        for body in [r#"["a\n"]"#, r#"["a",01]"#, r#"["a",1.5]"#, "[1e3]", "[\"\"]", "[\"a\"] "] {
            assert_eq!(plain::single(body.as_bytes()), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn plain_body_has_the_words_that_the_decoder_finds(
            body in r#"\[("[a-c\\"é\x00-\x20\x7f]{0,3}"|[0-9]{1,2}|[,\[\]\-. a]|, ?){0,9}\]?"#,
        ) {
            if let Some(found) = plain::single(body.as_bytes()) {
                prop_assert_eq!(Ok(found), decoded(&body));
            }
            let limits = DecodeLimits { max_commands: 2 };
            let all = format!("[{body},{body}]");
            if let Some(found) = plain::pipeline(all.as_bytes(), limits) {
                let one = lines(&decoded(&body).unwrap());
                prop_assert_eq!(lines(&found), [one.clone(), one].concat());
            }
        }
    }

    #[test]
    fn path_has_body_and_query_behind_it() {
        for (path, body, query, expected) in [
            ("get/a", "", None, "get|a"),
            ("set/a%2Fb/%FF%00", "", None, r"set|a/b|\xff\x00"),
            ("set/foo", "V\n", Some("EX=100"), r"set|foo|V\n|EX|100"),
            ("set/foo/v", "", Some("_token=x&EX=100&NX&"), "set|foo|v|EX|100|NX"),
            ("set/foo", "a b", Some("%5Ftoken=x&a+b=c%2B"), r"set|foo|a b|a b|c+"),
            ("get/", "", None, "get|"),
        ] {
            let found = Commands::path(path, body.as_bytes(), query).unwrap();
            assert_eq!(lines(&found), [expected], "{path} {query:?}");
        }
        assert_eq!(Commands::path("", b"x", None), Err(BadRequest::EmptyCommand));
        assert_eq!(Commands::path("/a", b"x", None), Err(BadRequest::EmptyCommand));
        for (path, query) in [("get/%2", None), ("get/a", Some("%zz=1")), ("get/a", Some("a=%1"))] {
            let found = Commands::path(path, b"", query);
            assert!(matches!(found, Err(BadRequest::BadEscape(_))), "{path} {query:?}: {found:?}");
        }
    }

    #[test]
    fn token_of_a_query_is_found() {
        for (query, expected) in [
            (None, None),
            (Some("EX=100"), None),
            (Some("_token="), Some("")),
            (Some("a=b&_token=x%2Fy"), Some("x/y")),
            (Some("%5Ftoken=x"), Some("x")),
            (Some("_token=x&_token=y"), None),
            (Some("_token=%"), None),
        ] {
            let expected = expected.map(|token| token.as_bytes().to_vec());
            assert_eq!(query_token(query), expected, "{query:?}");
        }
    }

    #[test]
    fn command_is_written_as_resp() {
        let commands = Commands::of(&[&["SET", "a", ""], &["PING"]]);
        let mut out = bytes::BytesMut::new();
        commands.iter().for_each(|command| command.write(&mut out));
        assert_eq!(out, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n");
        let last = commands.iter().last().map(|last| (last.len(), last.get(0), last.get(1)));
        assert_eq!(last, Some((1, &b"PING"[..], &b""[..])));
    }
}
