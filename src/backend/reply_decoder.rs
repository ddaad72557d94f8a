//! The decoder of replies: it splits the bytes from Redis into RESP values.
//!
//! Bulk strings, integers and nulls, the replies to reads, are parsed here, because they are the
//! most frequent. So are verbatim strings: many reads share a reply to `INFO`
//! ([`expiry_check`](super::expiry_check)), on which the redis crate spends 12,000 instructions.
//! For all other types, the scanner finds the end of the reply and the redis crate parses it. A
//! large value is collected in its own buffer. So an announced length allocates little memory
//! before its bytes arrive.
//!
//! A reply can also be returned as its bytes. One with more bytes than a limit is then discarded
//! while it arrives. The bytes are copied, because a slice of the read buffer would keep all of it.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use redis::{Value, VerbatimFormat, parse_redis_value};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::protocol::{InvalidReply, ReplyScanner};

/// Decodes replies from the bytes that were read.
#[derive(Debug, Default)]
pub struct ReplyDecoder {
    input: BytesMut,
    /// Finds the end of the reply at the start of `input`, unless its type is parsed here.
    scanner: ReplyScanner,
    /// The number of bytes of `input` that the scanner has seen.
    scanned: usize,
    large: Option<LargeValue>,
    /// Whether the start of the current reply was discarded, because the reply is too large.
    is_discarding: bool,
}

/// A reply that was requested as its bytes, or a push before it.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// All bytes of a reply that is no error.
    Reply(Bytes),
    /// An error reply.
    Error(Value),
    /// A reply with more bytes than the limit. The bytes were discarded.
    TooLarge,
    /// A reply for which there is no room in flight. The bytes were discarded.
    NoRoom,
    /// A push, whatever its size.
    Push(Value),
}

/// A value that has arrived in part.
#[derive(Debug)]
struct LargeValue {
    length: usize,
    bytes: Vec<u8>,
}

impl LargeValue {
    /// Makes room for exactly the rest, once the room that an announced length gets is full.
    ///
    /// The operating system provides the memory as the bytes arrive. Doubling the room instead
    /// would copy the value at every step. The buffers left behind are as large as the value
    /// together, and the allocator keeps them for a second.
    fn reserve(&mut self) {
        if self.bytes.capacity() == self.bytes.len() {
            self.bytes.reserve_exact(self.length - self.bytes.len());
        }
    }
}

/// The number of bytes requested by one read.
const READ: usize = 32 << 10;
/// The size in bytes from which a value is collected in its own buffer.
pub(super) const LARGE_VALUE_MIN: usize = 64 << 10;
/// The most memory in bytes that an announced length may allocate before its bytes arrive.
const AHEAD: usize = 1 << 20;
/// A length in bytes above that of any type byte with a number and its line end.
const LONGEST_HEADER: usize = 24;
const LINE_END: &[u8; 2] = b"\r\n";

impl ReplyDecoder {
    /// Reads more bytes from `stream` and returns their number; zero at the end of the stream.
    ///
    /// # Errors
    /// The I/O error of the stream.
    pub fn poll_read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Some(large) = self.large.as_mut().filter(|_| self.input.is_empty())
            && let left @ 1.. = large.length - large.bytes.len()
        {
            // To its place at once. Otherwise each byte would be copied, and read in small pieces.
            large.reserve();
            let mut place = (&mut large.bytes).limit(left);
            return pin!(stream.read_buf(&mut place)).poll(cx);
        }
        self.input.reserve(READ);
        pin!(stream.read_buf(&mut self.input)).poll(cx)
    }

    /// Returns the next complete reply of the bytes read so far, or `None` if more bytes are
    /// needed.
    ///
    /// # Errors
    /// [`InvalidReply`] if the bytes are not valid RESP.
    pub fn next_reply(&mut self) -> Result<Option<Value>, InvalidReply> {
        if self.large.is_some() {
            return self.rest_of_large();
        }
        if self.scanned > 0 {
            return self.scan();
        }
        match (self.input.first(), self.header()) {
            (None, _) => Ok(None),
            (Some(b'$'), Some((-1, header))) => Ok(Some(self.passed(header, Value::Nil))),
            (Some(b'$'), Some((length @ 0.., header))) => {
                self.value(usize::try_from(length).map_err(|_| InvalidReply)?, header)
            }
            (Some(b':'), Some((number, header))) => {
                Ok(Some(self.passed(header, Value::Int(number))))
            }
            (Some(b'='), Some((length @ 0.., header))) => match self.text(length, header) {
                Some((text, end)) => {
                    let format = VerbatimFormat::Text;
                    Ok(Some(self.passed(end, Value::VerbatimString { format, text })))
                }
                None => self.scan(),
            },
            (Some(b'$' | b':'), None) if self.is_within_line() => Ok(None),
            _ if self.input.starts_with(b"_\r\n") => {
                Ok(Some(self.passed(b"_\r\n".len(), Value::Nil)))
            }
            _ => self.scan(),
        }
    }

    /// Returns the next complete reply as its bytes, or `None` if more bytes are needed. A reply of
    /// more than `limit` bytes is discarded while it arrives.
    ///
    /// # Errors
    /// [`InvalidReply`] if the bytes are not valid RESP, if the reply has attributes, or if a large
    /// value has begun, which nothing requested.
    pub fn next_frame(&mut self, limit: usize) -> Result<Option<Frame>, InvalidReply> {
        if self.large.is_some() {
            return Err(InvalidReply);
        }
        let is_complete = self.scan_ahead()?;
        // A push has no limit, because a discarded invalidation would leave a stale entry.
        let is_push = !self.is_discarding && self.input.first() == Some(&b'>');
        if !is_push && self.scanned > limit {
            self.is_discarding = true;
        }
        if self.is_discarding {
            self.input.advance(std::mem::take(&mut self.scanned));
        }
        if !is_complete {
            return Ok(None);
        }
        if std::mem::take(&mut self.is_discarding) {
            return Ok(Some(Frame::TooLarge));
        }
        match self.input.first() {
            Some(b'>') => self.parse_scanned().map(|push| Some(Frame::Push(push))),
            Some(b'-' | b'!') => self.parse_scanned().map(|error| Some(Frame::Error(error))),
            // No read of Redis has attributes, and a push may follow them.
            Some(b'|') => Err(InvalidReply),
            _ => {
                let bytes = Bytes::copy_from_slice(&self.input[..self.scanned]);
                self.input.advance(std::mem::take(&mut self.scanned));
                Ok(Some(Frame::Reply(bytes)))
            }
        }
    }

    /// Returns the number behind the type byte of `input`, and the length of the line with its end.
    /// Returns `None` if the line is incomplete or holds no valid number.
    fn header(&self) -> Option<(i64, usize)> {
        let line = &self.input[..self.input.len().min(LONGEST_HEADER)];
        let end = memchr::memchr(b'\r', line)?;
        if line.get(end + 1) != Some(&b'\n') {
            return None;
        }
        let digits = line.get(1..end)?;
        let (is_negative, digits) =
            digits.strip_prefix(b"-").map_or((false, digits), |digits| (true, digits));
        if digits.is_empty() {
            return None;
        }
        let number = digits.iter().try_fold(0_i64, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        })?;
        if is_negative && number == 0 {
            return None;
        }
        Some((if is_negative { -number } else { number }, end + LINE_END.len()))
    }

    /// Returns whether more bytes may complete the header at the start of `input`.
    fn is_within_line(&self) -> bool {
        self.input.len() < LONGEST_HEADER && memchr::memchr(b'\n', &self.input).is_none()
    }

    fn passed(&mut self, length: usize, value: Value) -> Value {
        self.input.advance(length);
        value
    }

    fn value(&mut self, length: usize, header: usize) -> Result<Option<Value>, InvalidReply> {
        let end = header.checked_add(length).ok_or(InvalidReply)?;
        match self.input.get(end..end + LINE_END.len()) {
            Some(line_end) if line_end == LINE_END => {
                let value = self.input[header..end].to_vec();
                Ok(Some(self.passed(end + LINE_END.len(), Value::BulkString(value))))
            }
            Some(_) => Err(InvalidReply),
            None if length < LARGE_VALUE_MIN => Ok(None),
            None => {
                self.input.advance(header);
                self.large =
                    Some(LargeValue { length, bytes: Vec::with_capacity(length.min(AHEAD)) });
                self.rest_of_large()
            }
        }
    }

    /// Returns the text of the verbatim string at the start of `input`, and its end. Returns `None`
    /// if it is incomplete, or no text.
    fn text(&self, length: i64, header: usize) -> Option<(String, usize)> {
        let end = header.checked_add(usize::try_from(length).ok()?)?;
        let bytes = self.input.get(header..end.checked_add(LINE_END.len())?)?;
        let text = bytes.strip_suffix(LINE_END)?.strip_prefix(b"txt:")?;
        Some((str::from_utf8(text).ok()?.to_owned(), end + LINE_END.len()))
    }

    fn rest_of_large(&mut self) -> Result<Option<Value>, InvalidReply> {
        let Some(large) = &mut self.large else { return Ok(None) };
        let part = self.input.len().min(large.length - large.bytes.len());
        // In steps, because the room for the whole value exists only once a part has arrived.
        let mut rest = &self.input[..part];
        while !rest.is_empty() {
            large.reserve();
            let free = large.bytes.capacity() - large.bytes.len();
            let (now, later) = rest.split_at(rest.len().min(free));
            large.bytes.extend_from_slice(now);
            rest = later;
        }
        self.input.advance(part);
        if large.bytes.len() < large.length || self.input.len() < LINE_END.len() {
            return Ok(None);
        }
        if !self.input.starts_with(LINE_END) {
            return Err(InvalidReply);
        }
        let value = self.large.take().map(|large| Value::BulkString(large.bytes));
        self.input.advance(LINE_END.len());
        Ok(value)
    }

    fn scan(&mut self) -> Result<Option<Value>, InvalidReply> {
        if self.scan_ahead()? { self.parse_scanned().map(Some) } else { Ok(None) }
    }

    /// Scans the bytes that the scanner has not seen, and returns whether a reply ends there.
    fn scan_ahead(&mut self) -> Result<bool, InvalidReply> {
        let (length, over) = self.scanner.scan(&self.input[self.scanned..])?;
        self.scanned += length;
        Ok(over.is_some())
    }

    /// Removes the scanned reply from `input`, and parses it.
    fn parse_scanned(&mut self) -> Result<Value, InvalidReply> {
        let frame = self.input.split_to(std::mem::take(&mut self.scanned));
        parse_redis_value(&frame).map_err(|_| InvalidReply)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    /// Decodes `input`, which arrives in pieces of at most `size` bytes.
    fn answers(input: &[u8], size: usize) -> Result<Vec<Value>, InvalidReply> {
        let (mut reader, mut answers) = (ReplyDecoder::default(), Vec::new());
        for piece in input.chunks(size) {
            reader.input.extend_from_slice(piece);
            while let Some(answer) = reader.next_reply()? {
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    /// Decodes `input`, which arrives in pieces of at most `size` bytes, as frames of at most
    /// `limit` bytes. Also returns the most bytes that were buffered.
    fn frames(
        input: &[u8],
        size: usize,
        limit: usize,
    ) -> Result<(Vec<Frame>, usize), InvalidReply> {
        let (mut reader, mut frames, mut most) = (ReplyDecoder::default(), Vec::new(), 0);
        for piece in input.chunks(size) {
            reader.input.extend_from_slice(piece);
            most = most.max(reader.input.len());
            while let Some(frame) = reader.next_frame(limit)? {
                frames.push(frame);
            }
        }
        Ok((frames, most))
    }

    fn frame(bytes: &[u8]) -> Frame {
        Frame::Reply(Bytes::copy_from_slice(bytes))
    }

    fn bulk(bytes: &[u8]) -> Value {
        Value::BulkString(bytes.to_vec())
    }

    const KINDS: [&[u8]; 17] = [
        b"$3\r\na\r\n\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"_\r\n",
        b":0\r\n",
        b":-2\r\n",
        b":9223372036854775807\r\n",
        b"+OK\r\n",
        b"-ERR no\r\n",
        b"*2\r\n$1\r\na\r\n:1\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"*-1\r\n",
        b"#t\r\n",
        b"=9\r\ntxt:a\r\nbc\r\n",
        b"=4\r\ntxt:\r\n",
        b"=5\r\nmkd:a\r\n",
    ];

    #[test]
    fn announced_length_allocates_nothing() {
        let mut reader = ReplyDecoder::default();
        reader.input.extend_from_slice(b"$9223372036854775000\r\nx");
        assert_eq!(reader.next_reply(), Ok(None));
        assert!(reader.large.is_some_and(|large| large.bytes.capacity() <= AHEAD));
    }

    #[test]
    fn large_value_takes_no_more_than_its_bytes() {
        let value = vec![b'v'; 5 * AHEAD / 2];
        let sent = [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat();
        for size in [30_000, AHEAD, usize::MAX] {
            let values = answers(&sent, size).unwrap();
            let [Value::BulkString(bytes)] = &values[..] else { panic!("{} values", values.len()) };
            assert_eq!((bytes.capacity(), bytes.len()), (value.len(), value.len()), "{size}");
        }
    }

    #[test]
    fn large_value_is_whole_in_any_split() {
        let value: Vec<u8> =
            (0..3 * LARGE_VALUE_MIN).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let sent = [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n:1\r\n"].concat();
        for size in [1, 7, 1000, LARGE_VALUE_MIN, usize::MAX] {
            assert_eq!(answers(&sent, size), Ok(vec![bulk(&value), Value::Int(1)]), "{size}");
        }
        let wrong = [format!("${}\r\n", value.len()).as_bytes(), &value, b"x\n:1\r\n"].concat();
        assert_eq!(answers(&wrong, 1000), Err(InvalidReply));
    }

    #[test]
    fn frame_above_the_limit_is_discarded() {
        let map = b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n*1\r\n_\r\n";
        let sent = [&map[..], b":7\r\n"].concat();
        for size in [1, 2, 5, usize::MAX] {
            let kept = frames(&sent, size, map.len()).unwrap().0;
            assert_eq!(kept, [frame(map), frame(b":7\r\n")], "{size}");
            let discarded = frames(&sent, size, map.len() - 1).unwrap().0;
            assert_eq!(discarded, [Frame::TooLarge, frame(b":7\r\n")], "{size}");
        }
    }

    #[test]
    fn too_large_frame_is_not_buffered() {
        let members = b"$3\r\na\r\n\r\n>2\r\n+a\r\n+b\r\n".repeat(20_000);
        let many = [b"*40000\r\n", &members[..], b":1\r\n"].concat();
        let value = vec![b'>'; 1 << 20];
        let long = [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n:1\r\n"].concat();
        for sent in [many, long] {
            for size in [7, 1000] {
                let (frames, most) = frames(&sent, size, 100).unwrap();
                assert_eq!(frames, [Frame::TooLarge, frame(b":1\r\n")], "{size}");
                assert!(most <= 100 + size, "{most} bytes buffered");
            }
        }
    }

    #[test]
    fn push_before_a_frame_has_no_limit() {
        let push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
        let sent = [&push[..], b"*2\r\n:1\r\n:2\r\n", push, b"+OK\r\n"].concat();
        let push = || Frame::Push(parse_redis_value(push).unwrap());
        for size in [1, 3, usize::MAX] {
            let found = frames(&sent, size, 5).unwrap().0;
            assert_eq!(found, [push(), Frame::TooLarge, push(), frame(b"+OK\r\n")], "{size}");
        }
    }

    #[test]
    fn error_instead_of_a_frame_is_recognised() {
        for error in [&b"-MOVED 1 h:1\r\n"[..], b"!12\r\nWRONGTYPE no\r\n"] {
            let found = frames(error, 1, 100).unwrap().0;
            assert_eq!(found, [Frame::Error(parse_redis_value(error).unwrap())]);
        }
        assert_eq!(frames(b"|1\r\n+a\r\n+b\r\n>1\r\n+c\r\n", 1, 100), Err(InvalidReply));
    }

    #[test]
    fn invalid_reply_is_an_error() {
        for wrong in [
            "x",
            "$a\r\n",
            "$-2\r\n",
            "$1\r\nab\r\n",
            ":1x\r\n",
            ":99999999999999999999\r\n",
            "$1\nx\r\n\r\n",
        ] {
            let more = [wrong.as_bytes(), &[b'\n'; LONGEST_HEADER]].concat();
            assert_eq!(answers(&more, 1), Err(InvalidReply), "{wrong:?}");
            assert_eq!(answers(&more, usize::MAX), Err(InvalidReply), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn large_value_is_read_to_its_place() {
        let value = vec![7; 3 * AHEAD + 5];
        let (header, end) = (format!("${}\r\n", value.len()), b"\r\n:1\r\n");
        for first in [0, 1, 100] {
            let (before, behind) = value.split_at(first);
            let sent = [header.as_bytes(), before, behind, end].concat();
            let (mut reader, mut stream) = (ReplyDecoder::default(), &sent[..]);
            let mut answers = Vec::new();
            // The header arrives with the first bytes, as from a socket.
            reader.input.extend_from_slice(&sent[..header.len() + first]);
            stream = &stream[header.len() + first..];
            loop {
                while let Some(answer) = reader.next_reply().unwrap() {
                    answers.push(answer);
                }
                let read = poll_fn(|cx| reader.poll_read(&mut stream, cx)).await.unwrap();
                if read == 0 {
                    break;
                }
                assert!(reader.input.capacity() < LARGE_VALUE_MIN, "it is collected twice");
            }
            assert_eq!(answers, [bulk(&value), Value::Int(1)]);
        }
    }

    proptest! {
        #[test]
        fn replies_match_the_redis_crate_in_any_split(
            picks in prop::collection::vec(0..KINDS.len(), 1..20),
            size in 1_usize..40,
        ) {
            let input: Vec<u8> = picks.iter().flat_map(|pick| KINDS[*pick]).copied().collect();
            let value = |pick: &usize| parse_redis_value(KINDS[*pick]).unwrap();
            let expected: Vec<_> = picks.iter().map(value).collect();
            prop_assert_eq!(answers(&input, size), Ok(expected));
        }

        #[test]
        fn frames_match_the_replies_in_any_split(
            picks in prop::collection::vec(0..KINDS.len(), 1..20),
            size in 1_usize..40,
        ) {
            let input: Vec<u8> = picks.iter().flat_map(|pick| KINDS[*pick]).copied().collect();
            let expected = picks.iter().map(|pick| match KINDS[*pick] {
                push @ [b'>', ..] => Frame::Push(parse_redis_value(push).unwrap()),
                error @ [b'-', ..] => Frame::Error(parse_redis_value(error).unwrap()),
                bytes => frame(bytes),
            });
            prop_assert_eq!(frames(&input, size, 100).unwrap().0, expected.collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_value_round_trips(value: Vec<u8>, number: i64, size in 1_usize..40) {
            let (head, tail) = (format!("${}\r\n", value.len()), format!("\r\n:{number}\r\n"));
            let input = [head.as_bytes(), &value, tail.as_bytes()].concat();
            prop_assert_eq!(answers(&input, size), Ok(vec![bulk(&value), Value::Int(number)]));
        }
    }
}
