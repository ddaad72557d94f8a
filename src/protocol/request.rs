//! The parser of client commands: finds the end of each command and its arguments. No I/O.
//!
//! A command is an array of bulk strings, or a line of words ("inline"). The proxy must see the
//! same commands as Redis, byte for byte (invariant R5). Otherwise the bytes behind a command would
//! be parsed as another command. The parser therefore accepts the same deviations as Redis's own.
//! Any byte after a carriage return ends a line, and a NUL hides the end of a line.
//!
//! Nothing is copied: arguments are ranges of the input. A command that is too long to keep can be
//! streamed. From then on only its end is searched.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>, and `networking.c` of Redis 7.

use std::ops::Range;

use super::inline::split_words;

/// The size limits of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// The maximum length of an argument, in bytes.
    pub max_bulk: usize,
    /// The maximum number of arguments, including the command's name.
    pub max_arguments: usize,
}

/// The limits that Redis applies to an unauthenticated client.
pub const UNAUTHENTICATED: RequestLimits = RequestLimits { max_bulk: 16 << 10, max_arguments: 10 };

/// The first word of the errors about a size that only an unauthenticated client may not use.
const UNAUTHENTICATED_LENGTH: &str = "unauthenticated";

/// The limits that Redis applies to every client. An unauthenticated client below them but above
/// its own gets an error that names the missing authentication.
const MAX_ARGUMENTS: i64 = i32::MAX as i64;
const MAX_BULK: i64 = 512 << 20;

/// The maximum length of an inline command, or of the line with a count or length, in bytes.
const MAX_LINE_LEN: usize = 64 << 10;

/// The error that Redis returns, after `-ERR `, for invalid input before it closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(String);

impl ProtocolError {
    /// Whether the command is too large only for a client that Redis has not admitted yet.
    pub fn is_unauthenticated(&self) -> bool {
        self.0.starts_with(UNAUTHENTICATED_LENGTH)
    }

    /// Returns the text as sent to the client. An unexpected byte in place of `$` is sent as that
    /// byte, not as UTF-8.
    pub fn bytes(&self) -> Vec<u8> {
        self.to_string().chars().map(|letter| u8::try_from(letter).unwrap_or(b'?')).collect()
    }
}

/// The progress of the command at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseStatus {
    /// The number of bytes at the front that are a command, or the rest of a streamed one. The
    /// command may have no words.
    Complete(usize),
    /// The number of bytes at the front that belong to a streamed command, which is incomplete.
    Streamed(usize),
    /// More input is needed.
    Incomplete,
}

/// Finds the end of each command in the input.
#[derive(Debug, Default)]
pub struct RequestParser {
    /// The position of the next byte to parse.
    at: usize,
    /// The arguments so far, as ranges of the input or of `unquoted`.
    arguments: Vec<Range<usize>>,
    /// The words of an inline command, without quotes and escapes.
    unquoted: Vec<u8>,
    is_inline: bool,
    /// The number of arguments that are still to come.
    remaining: usize,
    /// The number of bytes of the current argument that are still to come, its line end included.
    bulk: Option<usize>,
    /// Whether arguments are skipped and not recorded.
    streaming: bool,
}

impl RequestParser {
    /// Parses `input`, which begins where the last complete command ended. It must still hold all
    /// bytes of the previous call that were not consumed.
    ///
    /// # Errors
    /// `ProtocolError` if the input is no command. The rest of the stream cannot be parsed either.
    pub fn parse(
        &mut self,
        input: &[u8],
        limits: RequestLimits,
    ) -> Result<ParseStatus, ProtocolError> {
        if self.remaining == 0 {
            self.begin();
            match input.first() {
                None => return Ok(ParseStatus::Incomplete),
                Some(b'*') => {}
                Some(_) => return self.parse_line(input),
            }
            if let Some((count, width)) =
                parse_short_length(input).filter(|(count, _)| *count <= limits.max_arguments)
            {
                (self.remaining, self.at) = (count, width);
            } else if !self.parse_count(input, limits)? {
                return Ok(ParseStatus::Incomplete);
            }
        }
        self.parse_arguments(input, limits)
    }

    /// Parses the number of arguments. Returns whether its line is complete.
    fn parse_count(&mut self, input: &[u8], limits: RequestLimits) -> Result<bool, ProtocolError> {
        let Some((count, next)) = parse_length(input, 0, "too big mbulk count string")? else {
            return Ok(false);
        };
        let allowed = count.filter(|count| *count <= to_i64(limits.max_arguments));
        let count = allowed.ok_or_else(|| match count {
            Some(0..=MAX_ARGUMENTS) if limits == UNAUTHENTICATED => {
                error(format!("{UNAUTHENTICATED_LENGTH} multibulk length"))
            }
            _ => error("invalid multibulk length"),
        })?;
        self.at = next;
        self.remaining = usize::try_from(count).unwrap_or(0);
        Ok(true)
    }

    fn begin(&mut self) {
        self.at = 0;
        self.arguments.clear();
        self.is_inline = false;
        self.streaming = false;
    }

    fn parse_arguments(
        &mut self,
        input: &[u8],
        limits: RequestLimits,
    ) -> Result<ParseStatus, ProtocolError> {
        while self.remaining > 0 {
            let left = match (self.bulk, parse_short_length(&input[self.at..])) {
                (Some(left), _) => left,
                (None, Some((length, width)))
                    if input[self.at] == b'$' && length <= limits.max_bulk =>
                {
                    self.at += width;
                    length + 2
                }
                (None, _) => match self.parse_bulk_length(input, limits)? {
                    Some(left) => left,
                    None => return Ok(self.partial_status()),
                },
            };
            let there = input.len() - self.at;
            if there < left {
                if self.streaming {
                    self.at += there;
                    self.bulk = Some(left - there);
                } else {
                    self.bulk = Some(left);
                }
                return Ok(self.partial_status());
            }
            if !self.streaming {
                self.arguments.push(self.at..self.at + left - 2);
            }
            self.at += left;
            self.bulk = None;
            self.remaining -= 1;
        }
        Ok(ParseStatus::Complete(std::mem::take(&mut self.at)))
    }

    /// Returns the status of an incomplete command.
    fn partial_status(&mut self) -> ParseStatus {
        if self.streaming {
            ParseStatus::Streamed(std::mem::take(&mut self.at))
        } else {
            ParseStatus::Incomplete
        }
    }

    fn parse_bulk_length(
        &mut self,
        input: &[u8],
        limits: RequestLimits,
    ) -> Result<Option<usize>, ProtocolError> {
        let Some(first) = input.get(self.at) else { return Ok(None) };
        let Some((length, next)) = parse_length(input, self.at, "too big bulk count string")?
        else {
            return Ok(None);
        };
        if *first != b'$' {
            let found = if matches!(first, b'\r' | b'\n') { ' ' } else { char::from(*first) };
            return Err(error(format!("expected '$', got '{found}'")));
        }
        let allowed = length.filter(|length| (0..=to_i64(limits.max_bulk)).contains(length));
        let allowed = allowed.and_then(|length| usize::try_from(length).ok());
        let length = allowed.ok_or_else(|| match length {
            Some(0..=MAX_BULK) if limits == UNAUTHENTICATED => {
                error(format!("{UNAUTHENTICATED_LENGTH} bulk length"))
            }
            _ => error("invalid bulk length"),
        })?;
        self.at = next;
        Ok(Some(length + 2))
    }

    fn parse_line(&mut self, input: &[u8]) -> Result<ParseStatus, ProtocolError> {
        let end = memchr::memchr2(b'\n', 0, input).filter(|end| input[*end] == b'\n');
        let Some(end) = end else {
            let too_long = input.len() > MAX_LINE_LEN;
            return if too_long {
                Err(error("too big inline request"))
            } else {
                Ok(ParseStatus::Incomplete)
            };
        };
        self.is_inline = true;
        let line = &input[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.unquoted.clear();
        split_words(line, &mut self.unquoted, &mut self.arguments)
            .ok_or_else(|| error("unbalanced quotes in request"))?;
        Ok(ParseStatus::Complete(end + 1))
    }

    /// Returns the arguments of the command at the front of `input` that have arrived.
    pub fn arguments<'a>(&'a self, input: &'a [u8]) -> Arguments<'a> {
        Arguments {
            source: if self.is_inline { &self.unquoted } else { input },
            ranges: &self.arguments,
        }
    }

    /// Returns the number of arguments of the command at the front that have not arrived yet.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// Starts to stream the incomplete command at the front, so that its bytes can be removed from
    /// the input. Returns the number of bytes that are known to belong to it.
    pub fn start_streaming(&mut self, input: &[u8]) -> usize {
        self.streaming = true;
        self.arguments.clear();
        if let Some(left) = self.bulk {
            let there = (input.len() - self.at).min(left);
            self.at += there;
            self.bulk = Some(left - there);
        }
        std::mem::take(&mut self.at)
    }

    /// Whether the command at the front is being streamed.
    pub fn is_streaming(&self) -> bool {
        self.streaming && self.remaining > 0
    }
}

/// The arguments of a command; the first is its name.
#[derive(Debug, Clone, Copy)]
pub struct Arguments<'a> {
    source: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl<'a> Arguments<'a> {
    /// The arguments at these places in `source`.
    pub fn new(source: &'a [u8], ranges: &'a [Range<usize>]) -> Self {
        Self { source, ranges }
    }

    /// Returns the number of arguments.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are no arguments.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the argument at `index`; empty if there is none.
    pub fn get(&self, index: usize) -> &'a [u8] {
        self.ranges.get(index).map_or(&[], |range| &self.source[range.clone()])
    }

    /// Returns all arguments from `index` on.
    pub fn skip(self, index: usize) -> impl Iterator<Item = &'a [u8]> {
        self.ranges.iter().skip(index).map(move |range| &self.source[range.clone()])
    }
}

/// A complete `GET` in its usual encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlainGet<'a> {
    /// Its only key, of at most 999 bytes.
    pub(crate) key: &'a [u8],
    /// Its bytes.
    pub(crate) length: usize,
}

/// Returns the `GET` commands at the front of `input` in their usual encoding. The parser finds the
/// same commands, if it is not within one.
#[inline]
pub(crate) fn plain_gets(mut input: &[u8]) -> impl Iterator<Item = PlainGet<'_>> {
    std::iter::from_fn(move || {
        let name = input.strip_prefix(b"*2\r\n$3\r\n")?;
        let [b'G' | b'g', b'E' | b'e', b'T' | b't', b'\r', b'\n', argument @ ..] = name else {
            return None;
        };
        let (length, width) = parse_short_length(argument).filter(|_| argument[0] == b'$')?;
        let (key, rest) = argument.get(width..)?.split_at_checked(length)?;
        let rest = rest.get(b"\r\n".len()..)?;
        let length = input.len() - rest.len();
        input = rest;
        Some(PlainGet { key, length })
    })
}

fn error(text: impl Into<String>) -> ProtocolError {
    ProtocolError(text.into())
}

fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Parses the number after the byte at `from`. Returns it with the start of the next line; the
/// number is `None` if it is invalid. Returns `None` if the line is incomplete.
fn parse_length(
    input: &[u8],
    from: usize,
    too_long: &str,
) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    let line = &input[from..];
    let end = memchr::memchr2(b'\r', 0, line).filter(|end| line[*end] == b'\r');
    match end {
        // The byte after the carriage return must be present, whatever it is.
        Some(end) if end + 1 < line.len() => {
            Ok(Some((line.get(1..end).and_then(parse_integer), from + end + 2)))
        }
        None if line.len() > MAX_LINE_LEN => Err(error(too_long)),
        _ => Ok(None),
    }
}

/// Parses a length of one to three digits, which covers nearly all lengths. Returns it with the
/// length of its line.
#[inline]
fn parse_short_length(line: &[u8]) -> Option<(usize, usize)> {
    let digit = |byte: u8| usize::from(byte - b'0');
    match *line {
        [0, ..] => None,
        [_, one @ b'0'..=b'9', b'\r', _, ..] => Some((digit(one), 4)),
        [_, ten @ b'1'..=b'9', one @ b'0'..=b'9', b'\r', _, ..] => {
            Some((digit(ten) * 10 + digit(one), 5))
        }
        [_, hundred @ b'1'..=b'9', ten @ b'0'..=b'9', one @ b'0'..=b'9', b'\r', _, ..] => {
            Some((digit(hundred) * 100 + digit(ten) * 10 + digit(one), 6))
        }
        _ => None,
    }
}

/// Parses an integer like Redis's `string2ll`: no sign but a minus, and no leading zeros.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let plain = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if plain { str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Returns the value of one or more digits.
pub(crate) fn parse_digits(text: &[u8]) -> Option<usize> {
    let add = |number: usize, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    text.iter().try_fold(0, add).filter(|_| !text.is_empty())
}

/// Whether `word` is one of these `words`, ignoring case.
pub(crate) fn is_one_of(word: &[u8], words: &[&str]) -> bool {
    words.iter().any(|one| word.eq_ignore_ascii_case(one.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: RequestLimits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1024 };

    /// The bytes of a command, and its words.
    type Command = (Vec<u8>, Vec<Vec<u8>>);

    /// Returns all commands of `input`, which arrives in pieces that end at `cuts`.
    fn read(
        input: &[u8],
        cuts: &[usize],
        streaming_at: usize,
    ) -> Result<Vec<Command>, ProtocolError> {
        let mut parser = RequestParser::default();
        let (mut commands, mut held, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        let mut pieces = cuts.to_vec();
        pieces.push(input.len());
        let mut from = 0;
        for to in pieces {
            held.extend_from_slice(&input[from..to]);
            from = to;
            loop {
                match parser.parse(&held, LIMITS)? {
                    ParseStatus::Complete(length) => {
                        let arguments =
                            parser.arguments(&held).skip(0).map(<[u8]>::to_vec).collect::<Vec<_>>();
                        raw.extend(held.drain(..length));
                        commands.push((std::mem::take(&mut raw), arguments));
                    }
                    ParseStatus::Streamed(length) => {
                        raw.extend(held.drain(..length));
                        break;
                    }
                    ParseStatus::Incomplete => {
                        if held.len() > streaming_at && !parser.arguments.is_empty() {
                            let length = parser.start_streaming(&held);
                            raw.extend(held.drain(..length));
                        }
                        break;
                    }
                }
            }
        }
        Ok(commands)
    }

    fn encode(words: &[Vec<u8>]) -> Vec<u8> {
        let mut text = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            text.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            text.extend_from_slice(word);
            text.extend_from_slice(b"\r\n");
        }
        text
    }

    fn words(line: &str) -> Option<Vec<Vec<u8>>> {
        let commands = read(line.as_bytes(), &[], usize::MAX).ok()?;
        commands.into_iter().next().map(|(_, words)| words)
    }

    #[test]
    fn pipelined_get_keys_are_found_ahead() {
        let gets = b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n";
        let keys: Vec<_> = plain_gets(gets).map(|get| get.key).collect();
        assert_eq!(keys, [&b"key"[..], b""]);
        for behind in [
            "*2\r\n$3\r\nGET\r\n$9\r\nke",
            "*2\r\n$3\r\nSET\r\n$1\r\nk\r\n",
            "GET key\r\n",
            "*2\r\n$3\r\nGET\r\n$-1\r\n",
        ] {
            let input = [&gets[..], behind.as_bytes()].concat();
            assert_eq!(plain_gets(&input).count(), 2, "{behind}");
            assert_eq!(plain_gets(behind.as_bytes()).count(), 0, "{behind}");
        }
    }

    #[test]
    fn parser_finds_the_same_gets() {
        let get = |length: usize| {
            let argument = &encode(&[vec![b'k'; length]])[4..];
            [&b"*2\r\n$3\r\ngEt\r\n"[..], argument].concat()
        };
        for length in [0, 1, 9, 10, 99, 100, 999] {
            let input = get(length);
            let commands = read(&input, &[], usize::MAX).unwrap();
            let found: Vec<_> = plain_gets(&input).collect();
            let [(bytes, words)] = &commands[..] else { panic!("{length}") };
            assert_eq!(found, [PlainGet { key: &words[1], length: bytes.len() }]);
        }
        for input in [&get(1000)[..], b"*2\r\n$3\r\nGET\r\n:1\r\nk\r\n"] {
            assert_eq!(plain_gets(input).count(), 0);
        }
        // Whatever the bytes behind a carriage return are, both accept the same ones or only the
        // parser accepts them.
        let odd = b"*2\r\n$3\r\nGET\r\n$1\rxkyy";
        let commands = read(odd, &[], usize::MAX).unwrap();
        assert_eq!(
            plain_gets(odd).map(|get| get.length).collect::<Vec<_>>(),
            [commands[0].0.len()]
        );
    }

    #[test]
    fn inline_command_is_split_as_in_redis() {
        let owned =
            |words: &[&[u8]]| Some(words.iter().map(|word| word.to_vec()).collect::<Vec<_>>());
        assert_eq!(words("GET key\r\n"), owned(&[b"GET", b"key"]));
        assert_eq!(words("  GET\t key \n"), owned(&[b"GET", b"key"]));
        assert_eq!(
            words("SET k \"a b\\n\\x00\\xfF\\q\"\r\n"),
            owned(&[b"SET", b"k", b"a b\n\x00\xffq"])
        );
        assert_eq!(words("SET k 'it\\'s \\n'\r\n"), owned(&[b"SET", b"k", b"it's \\n"]));
        assert_eq!(words("SET k a\"b c\"\r\n"), owned(&[b"SET", b"k", b"ab c"]));
        assert_eq!(words("SET k \"\"\r\n"), owned(&[b"SET", b"k", b""]));
        assert_eq!(words("\r\n"), owned(&[]));
        assert_eq!(
            words("GET a\x0bb\x0c \x0b c \"d\"\x0be\r\n"),
            owned(&[b"GET", b"a\x0bb\x0c", b"c", b"d", b"e"])
        );
        for unbalanced in ["GET \"k\r\n", "GET 'k\r\n", "GET \"k\"x\r\n", "GET 'k'x\r\n"] {
            let error = read(unbalanced.as_bytes(), &[], usize::MAX).unwrap_err();
            assert_eq!(
                error.to_string(),
                "Protocol error: unbalanced quotes in request",
                "{unbalanced}"
            );
        }
    }

    #[test]
    fn protocol_errors_match_redis() {
        for (input, said) in [
            ("*1048577\r\n", "invalid multibulk length"),
            ("*2147483648\r\n", "invalid multibulk length"),
            ("*abc\r\n", "invalid multibulk length"),
            ("*+1\r\n", "invalid multibulk length"),
            ("*01\r\n", "invalid multibulk length"),
            ("*1\r\n:1\r\n", "expected '$', got ':'"),
            ("*1\r\n\r\n", "expected '$', got ' '"),
            ("*1\r\n$-1\r\n", "invalid bulk length"),
            ("*1\r\n$1048577\r\n", "invalid bulk length"),
            ("*1\r\n$99999999999999999999\r\n", "invalid bulk length"),
        ] {
            let error = read(input.as_bytes(), &[], usize::MAX).unwrap_err();
            assert_eq!(error.to_string(), format!("Protocol error: {said}"), "{input}");
        }
        for (begin, said) in [
            ("*", "too big mbulk count string"),
            ("*1\r\n$", "too big bulk count string"),
            ("G", "too big inline request"),
        ] {
            let endless = begin.to_owned() + &"1".repeat(MAX_LINE_LEN + 1);
            let error = read(endless.as_bytes(), &[], usize::MAX).unwrap_err();
            assert_eq!(error.to_string(), format!("Protocol error: {said}"), "{begin}");
        }
    }

    #[test]
    fn unauthenticated_limits_are_lower() {
        let said = |input: &[u8]| {
            RequestParser::default().parse(input, UNAUTHENTICATED).unwrap_err().to_string()
        };
        assert_eq!(said(b"*11\r\n"), "Protocol error: unauthenticated multibulk length");
        assert_eq!(said(b"*2147483647\r\n"), "Protocol error: unauthenticated multibulk length");
        assert_eq!(said(b"*1\r\n$16385\r\n"), "Protocol error: unauthenticated bulk length");
        assert_eq!(said(b"*1\r\n$536870912\r\n"), "Protocol error: unauthenticated bulk length");
        // Values above the limit of every client get the same error with and without
        // authentication.
        for wrong in ["*abc\r\n", "*2147483648\r\n"] {
            assert_eq!(
                said(wrong.as_bytes()),
                "Protocol error: invalid multibulk length",
                "{wrong}"
            );
        }
        for wrong in ["$abc\r\n", "$-1\r\n", "$536870913\r\n"] {
            let wrong = format!("*1\r\n{wrong}");
            assert_eq!(said(wrong.as_bytes()), "Protocol error: invalid bulk length", "{wrong}");
        }
    }

    #[test]
    fn empty_command_is_consumed() {
        for nothing in ["*0\r\n", "*-1\r\n", "*-100\r\n", "\n", "   \r\n"] {
            let commands = read(nothing.as_bytes(), &[], usize::MAX).unwrap();
            assert_eq!(commands, [(nothing.as_bytes().to_vec(), vec![])], "{nothing:?}");
        }
    }

    #[test]
    fn partial_first_line_has_no_arguments() {
        let mut parser = RequestParser::default();
        let first = encode(&[b"GET".to_vec(), b"key".to_vec()]);
        for begun in [&b"DEL k"[..], b"*2", b""] {
            assert_eq!(parser.parse(&first, LIMITS), Ok(ParseStatus::Complete(first.len())));
            assert_eq!(parser.arguments(&first).len(), 2);
            assert_eq!(parser.parse(begun, LIMITS), Ok(ParseStatus::Incomplete));
            assert!(parser.arguments(begun).is_empty(), "{begun:?}");
        }
    }

    #[test]
    fn nul_byte_hides_the_line_end() {
        for hidden in [&b"*1\r\n\x004\r\nPING\r\n"[..], b"*1\r\n$\x004\r\nPING\r\n", b"*1\x00\r\n"]
        {
            assert_eq!(read(hidden, &[], usize::MAX), Ok(vec![]), "{hidden:?}");
        }
    }

    #[test]
    fn any_byte_after_carriage_return_ends_a_line() {
        let commands = read(b"*1\rX$4\rYPINGZZ", &[], usize::MAX).unwrap();
        assert_eq!(commands, [(b"*1\rX$4\rYPINGZZ".to_vec(), vec![b"PING".to_vec()])]);
    }

    proptest! {
        #[test]
        fn commands_parse_the_same_in_any_split(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            streaming_at in prop::option::of(0_usize..60),
        ) {
            let input: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len())).collect();
            cuts.sort_unstable();
            let found = read(&input, &cuts, streaming_at.unwrap_or(usize::MAX)).unwrap();
            let raw: Vec<u8> = found.iter().flat_map(|(raw, _)| raw.clone()).collect();
            prop_assert_eq!(&raw, &input);
            prop_assert_eq!(found.len(), commands.len());
            for ((raw, words), command) in found.iter().zip(&commands) {
                prop_assert_eq!(raw, &encode(command));
                if streaming_at.is_none() {
                    prop_assert_eq!(words, command);
                } else {
                    prop_assert_eq!(words, &command[..words.len()]);
                }
            }
        }

        #[test]
        fn arbitrary_input_parses_the_same_bytewise(
            input in prop::collection::vec(prop::sample::select(&b"*$0123\r\n \
                -\"'\\xaG\0"[..]), 0..40),
        ) {
            let whole = read(&input, &[], usize::MAX);
            let cuts: Vec<_> = (0..input.len()).collect();
            prop_assert_eq!(read(&input, &cuts, usize::MAX), whole);
        }
    }
}
