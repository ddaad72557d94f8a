//! The scanner that finds the ends of RESP replies. No I/O.
//!
//! The scanner only counts elements. A reply is one element, and an aggregate replaces itself by
//! its elements. The reply ends when no element remains. The scanner must know every RESP type: a
//! wrong end would match all later replies to the wrong commands.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use super::request::parse_digits;

/// The input is not valid RESP. The start of the next reply is unknown, so the connection cannot be
/// used further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis sent an invalid reply")]
pub struct InvalidReply;

/// The summary of a complete reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplySummary {
    /// The first bytes of the reply, padded with zeros: its type, and the beginning of its text.
    pub head: [u8; 7],
}

impl ReplySummary {
    /// Whether the reply is a push, which answers no command.
    pub fn is_push(&self) -> bool {
        self.head[0] == b'>'
    }

    /// Whether the reply is an error.
    pub fn is_error(&self) -> bool {
        matches!(self.head[0], b'-' | b'!')
    }

    /// Whether the reply is `+OK`.
    pub fn is_ok(&self) -> bool {
        self.head.starts_with(b"+OK\r")
    }

    /// Whether the reply is `+RESET`: the session is as on a new connection.
    pub fn is_reset(&self) -> bool {
        self.head.starts_with(b"+RESET")
    }

    /// Whether the reply may be that of `HELLO`: a map in RESP3, an array of more than nine
    /// elements in RESP2.
    pub fn is_hello_reply(&self) -> bool {
        self.head[0] == b'%' || (self.head[0] == b'*' && self.head[2].is_ascii_digit())
    }

    /// Whether the reply is a `-NOAUTH` error: the client must authenticate.
    pub fn is_noauth(&self) -> bool {
        self.head == *b"-NOAUTH"
    }

    /// Whether the reply is `+QUEUED`: the command is queued for `EXEC`.
    pub fn is_queued(&self) -> bool {
        self.head == *b"+QUEUED"
    }
}

/// Finds the end of each reply in the bytes that Redis sends.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    /// The number of elements of the current reply that are still to come; zero: the next byte
    /// begins a reply.
    remaining: u64,
    element: Element,
    head: [u8; 7],
    head_len: usize,
    /// Whether the reply began with attributes, and the element that defines it is still to come.
    after_attributes: bool,
}

/// The part of an element that the next byte belongs to.
#[derive(Debug, Default, Clone, Copy)]
enum Element {
    /// The type of an element.
    #[default]
    Type,
    /// A line that is the whole element.
    Line,
    /// The same line after a carriage return: a line feed would end it.
    LineReturn,
    /// The length in the header of an element.
    Length { of: LengthOf, length: u64, digits: u32, is_negative: bool },
    /// The line feed after a length. The length is `None` for a null value.
    LengthEnd { of: LengthOf, length: Option<u64> },
    /// The remaining bytes of a body with a length, its line end included.
    Body(u64),
}

/// The unit of a length.
#[derive(Debug, Clone, Copy)]
enum LengthOf {
    Bytes,
    Elements,
    Pairs,
    /// Pairs of attributes, which precede an element.
    Attributes,
}

/// Returns the length of the first reply, if it is a bulk string that has arrived whole. Most are,
/// and the steps for each byte of a header cost more than all of this.
fn whole_bulk(input: &[u8]) -> Option<usize> {
    /// More digits are left to the steps, which check for overflow.
    const MAX_DIGITS: usize = 9;
    let behind = input.strip_prefix(b"$")?;
    let digits = behind.iter().take(MAX_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = behind.split_at(digits);
    let rest = rest.strip_prefix(b"\r\n")?;
    let with_end = parse_digits(digits)? + 2;
    (rest.len() >= with_end).then(|| input.len() - rest.len() + with_end)
}

impl ReplyScanner {
    /// Whether a reply has begun and is incomplete.
    pub fn is_mid_reply(&self) -> bool {
        self.remaining > 0
    }

    /// Scans `input` up to the end of the current reply. Returns the number of bytes scanned, and
    /// the summary if the reply is complete.
    ///
    /// # Errors
    /// `InvalidReply` if the input is not valid RESP.
    pub fn scan(&mut self, input: &[u8]) -> Result<(usize, Option<ReplySummary>), InvalidReply> {
        if self.remaining == 0
            && let Some(length) = whole_bulk(input)
        {
            self.head = [0; 7];
            self.head_len = 0;
            self.keep_head(&input[..length]);
            return Ok((length, Some(ReplySummary { head: self.head })));
        }
        let mut at = 0;
        while at < input.len() {
            if self.remaining == 0 {
                self.remaining = 1;
                self.head_len = 0;
            }
            if self.head_len == 0
                || (self.after_attributes && self.remaining == 1 && self.at_element_start())
            {
                self.after_attributes = false;
                self.head = [0; 7];
                self.head_len = 0;
            }
            let from = at;
            at += self.step(&input[at..])?;
            self.keep_head(&input[from..at]);
            if self.remaining == 0 {
                return Ok((at, Some(ReplySummary { head: self.head })));
            }
        }
        Ok((at, None))
    }

    fn at_element_start(&self) -> bool {
        matches!(self.element, Element::Type)
    }

    fn keep_head(&mut self, bytes: &[u8]) {
        let room = &mut self.head[self.head_len..];
        let kept = room.len().min(bytes.len());
        room[..kept].copy_from_slice(&bytes[..kept]);
        self.head_len += kept;
    }

    /// Consumes at least one byte and returns the number of bytes consumed.
    fn step(&mut self, input: &[u8]) -> Result<usize, InvalidReply> {
        match self.element {
            Element::Type => {
                self.element = match input[0] {
                    b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Element::Line,
                    b'$' | b'=' | b'!' => length_of(LengthOf::Bytes),
                    b'*' | b'~' | b'>' => length_of(LengthOf::Elements),
                    b'%' => length_of(LengthOf::Pairs),
                    b'|' => length_of(LengthOf::Attributes),
                    _ => return Err(InvalidReply),
                };
                Ok(1)
            }
            Element::Line | Element::LineReturn => self.line(input),
            Element::Length { .. } => {
                self.length_byte(input[0])?;
                Ok(1)
            }
            Element::LengthEnd { of, length } if input[0] == b'\n' => {
                self.on_length(of, length)?;
                Ok(1)
            }
            Element::LengthEnd { .. } => Err(InvalidReply),
            Element::Body(left) => {
                let taken = left.min(input.len() as u64);
                if taken == left {
                    self.end_element(0)?;
                } else {
                    self.element = Element::Body(left - taken);
                }
                Ok(usize::try_from(taken).unwrap_or(input.len()))
            }
        }
    }

    fn line(&mut self, input: &[u8]) -> Result<usize, InvalidReply> {
        let end = memchr::memchr(b'\n', input);
        let is_behind_return = match &input[..end.unwrap_or(input.len())] {
            [] => matches!(self.element, Element::LineReturn),
            [.., last] => *last == b'\r',
        };
        self.element = if is_behind_return { Element::LineReturn } else { Element::Line };
        let Some(end) = end else { return Ok(input.len()) };
        if is_behind_return {
            self.end_element(0)?;
        }
        Ok(end + 1)
    }

    fn length_byte(&mut self, byte: u8) -> Result<(), InvalidReply> {
        let Element::Length { of, length, digits, is_negative } = &mut self.element else {
            return Err(InvalidReply);
        };
        match byte {
            b'-' if *digits == 0 && !*is_negative => *is_negative = true,
            b'0'..=b'9' => {
                let longer = length
                    .checked_mul(10)
                    .and_then(|length| length.checked_add(u64::from(byte - b'0')));
                *length = longer.ok_or(InvalidReply)?;
                *digits += 1;
            }
            b'\r' if *digits > 0 && (!*is_negative || *length == 1) => {
                let length = if *is_negative { None } else { Some(*length) };
                self.element = Element::LengthEnd { of: *of, length };
            }
            _ => return Err(InvalidReply),
        }
        Ok(())
    }

    fn on_length(&mut self, of: LengthOf, length: Option<u64>) -> Result<(), InvalidReply> {
        let Some(length) = length else { return self.end_element(0) };
        match of {
            LengthOf::Bytes => {
                self.element = Element::Body(length.checked_add(2).ok_or(InvalidReply)?);
                Ok(())
            }
            LengthOf::Elements => self.end_element(length),
            LengthOf::Pairs => self.end_element(length.checked_mul(2).ok_or(InvalidReply)?),
            LengthOf::Attributes => {
                let more = length
                    .checked_mul(2)
                    .and_then(|more| more.checked_add(1))
                    .ok_or(InvalidReply)?;
                // Attributes of the last element of an aggregate do not describe the reply itself.
                self.after_attributes |= self.remaining == 1 && self.head[0] == b'|';
                self.end_element(more)
            }
        }
    }

    /// Ends an element. `inner` elements replace it.
    fn end_element(&mut self, inner: u64) -> Result<(), InvalidReply> {
        self.remaining = (self.remaining - 1).checked_add(inner).ok_or(InvalidReply)?;
        self.element = Element::Type;
        Ok(())
    }
}

fn length_of(of: LengthOf) -> Element {
    Element::Length { of, length: 0, digits: 0, is_negative: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the replies of `input`, which arrives in pieces of at most `size` bytes.
    fn frames(input: &[u8], size: usize) -> Result<Vec<(Vec<u8>, ReplySummary)>, InvalidReply> {
        let mut scanner = ReplyScanner::default();
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        for mut piece in input.chunks(size) {
            while !piece.is_empty() {
                let (length, over) = scanner.scan(piece)?;
                frame.extend_from_slice(&piece[..length]);
                piece = &piece[length..];
                if let Some(over) = over {
                    frames.push((std::mem::take(&mut frame), over));
                }
            }
        }
        assert_eq!(scanner.is_mid_reply(), !frame.is_empty());
        Ok(frames)
    }

    const KINDS: [&str; 26] = [
        "+OK\r\n",
        "-ERR no\r\n",
        ":1\r\n",
        "$3\r\na\r\n\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        "_\r\n",
        "#t\r\n",
        ",1.5\r\n",
        "(12345678901234567890\r\n",
        "!5\r\nERR x\r\n",
        "=7\r\ntxt:abc\r\n",
        "%1\r\n+a\r\n:1\r\n",
        "~2\r\n:1\r\n:2\r\n",
        ">3\r\n+message\r\n+a\r\n+b\r\n",
        "|1\r\n+ttl\r\n:1\r\n+OK\r\n",
        "*2\r\n|1\r\n+ttl\r\n:1\r\n+OK\r\n:2\r\n",
        "%0\r\n",
        "*3\r\n*0\r\n*-1\r\n%1\r\n+k\r\n~0\r\n",
        "+QUEUED\r\n",
        "|0\r\n:1\r\n",
        "+a\nb\r\n",
        "-a\rb\n\r\r\n",
    ];

    #[test]
    fn every_reply_type_ends_at_its_last_byte() {
        for kind in KINDS {
            for size in [1, 2, 3, 1000] {
                let input = kind.repeat(3);
                let found = frames(input.as_bytes(), size).unwrap();
                assert_eq!(found.len(), 3, "{kind:?}");
                assert!(found.iter().all(|(frame, _)| frame == kind.as_bytes()), "{kind:?}");
            }
        }
    }

    #[test]
    fn reply_summary_is_read_from_the_head() {
        let of = |text: &str| frames(text.as_bytes(), 1).unwrap()[0].1;
        assert!(of("+QUEUED\r\n").is_queued());
        assert!(!of("+OK\r\n").is_queued());
        assert!(of("-ERR\r\n").is_error() && of("!3\r\nERR\r\n").is_error());
        assert!(of(">1\r\n:1\r\n").is_push());
        assert_eq!(&of("|1\r\n+ttl\r\n:1\r\n+OK\r\n").head[..3], b"+OK");
        assert_eq!(
            &of("|1\r\n+a\r\n+b\r\n|1\r\n+c\r\n|1\r\n+d\r\n+e\r\n+f\r\n-ERR\r\n").head[..4],
            b"-ERR"
        );
        assert!(of(">2\r\n+message\r\n|1\r\n+a\r\n+b\r\n+c\r\n").is_push());
        assert!(!of("*1\r\n|1\r\n+a\r\n+b\r\n-ERR\r\n").is_error());
    }

    #[test]
    fn invalid_reply_is_an_error() {
        for wrong in [
            "x",
            "$a\r\n",
            "$\r\n",
            "$--1\r\n",
            "*99999999999999999999\r\n",
            "%18446744073709551615\r\n",
        ] {
            assert_eq!(frames(wrong.as_bytes(), 1), Err(InvalidReply), "{wrong:?}");
        }
        for wrong in ["$1\n", "$1\r2\r\n", "$1\r\r\n", "$-2\r\n", "*-0\r\n"] {
            assert_eq!(frames(wrong.as_bytes(), 1), Err(InvalidReply), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn reply_is_the_same_however_it_is_split(
            picks in prop::collection::vec(0..KINDS.len(), 1..20),
            size in 1_usize..40,
        ) {
            let input: String = picks.iter().map(|pick| KINDS[*pick]).collect();
            let found = frames(input.as_bytes(), size).unwrap();
            let text = |frame: &Vec<u8>| String::from_utf8(frame.clone()).unwrap();
            let texts: Vec<_> = found.iter().map(|(frame, _)| text(frame)).collect();
            let expected: Vec<_> = picks.iter().map(|pick| KINDS[*pick].to_owned()).collect();
            prop_assert_eq!(texts, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(input: Vec<u8>, size in 1_usize..10) {
            let whole = frames(&input, usize::MAX);
            prop_assert_eq!(frames(&input, size), whole);
        }
    }
}
