//! Finds HTTP/1 request lines with a fragment.
//!
//! A client must not send a `#` in a request target (RFC 9112, section 3.2). The http crate
//! silently cuts the target at the `#`, so a key other than the requested one would be read. The
//! received bytes are therefore inspected. A request line is the first non-empty line at the start,
//! or after the empty line that ends a head.
//!
//! A body is skipped by its length (RFC 9112, section 6). Otherwise a line of it could be taken for
//! a request line. hyper rejects a request of which the length is ambiguous and closes the
//! connection, so nothing depends on how such a body is skipped.

/// The position of the next byte within a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LineState {
    /// The start of the request line, or of an empty line before it.
    BeforeRequest,
    /// The request line.
    RequestLine,
    /// The start of a header line, or of the empty line that ends the head.
    BeforeHeader,
    /// A header line.
    HeaderLine,
    /// A body, of which this number of bytes is left.
    Body(u64),
    /// The line with the size of a chunk.
    ChunkSize,
    /// A chunk with its line end, of which this number of bytes is left.
    Chunk(u64),
    /// The start of a trailer line, or of the empty line that ends a chunked body.
    BeforeTrailer,
    /// A trailer line.
    TrailerLine,
}

/// The beginning of a line, as much as the headers about the body need.
const LINE_KEPT: usize = 64;

/// Tracks the request lines of a connection.
#[derive(Debug)]
pub(crate) struct RequestLines {
    state: LineState,
    /// The number of request lines begun so far.
    requests: usize,
    /// The beginning of the current header or chunk size line.
    line: Vec<u8>,
    /// The length of the body, by the headers so far.
    length: u64,
    is_chunked: bool,
}

impl RequestLines {
    pub(crate) fn new() -> Self {
        Self {
            state: LineState::BeforeRequest,
            requests: 0,
            line: Vec::new(),
            length: 0,
            is_chunked: false,
        }
    }

    /// Inspects the next bytes of the connection. Returns the number, counted from 1, of the first
    /// request in them with a `#` in its request line.
    pub(crate) fn inspect(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut bad = None;
        while let Some(&first) = bytes.first() {
            if let LineState::Body(left) | LineState::Chunk(left) = self.state {
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.skip(left - skipped as u64);
                bytes = &bytes[skipped..];
                continue;
            }
            self.begin_line(first);
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.state == LineState::RequestLine && memchr::memchr(b'#', line).is_some() {
                bad = bad.or(Some(self.requests));
            }
            if matches!(self.state, LineState::HeaderLine | LineState::ChunkSize) {
                let room = LINE_KEPT - self.line.len();
                self.line.extend_from_slice(&line[..room.min(line.len())]);
            }
            if end.is_some() {
                self.end_line();
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        bad
    }

    fn begin_line(&mut self, first: u8) {
        // An empty line is "\n" or "\r\n". A carriage return alone does not decide.
        if matches!(first, b'\r' | b'\n') {
            return;
        }
        match self.state {
            LineState::BeforeRequest => {
                self.state = LineState::RequestLine;
                self.requests += 1;
            }
            LineState::BeforeHeader => self.state = LineState::HeaderLine,
            LineState::BeforeTrailer => self.state = LineState::TrailerLine,
            _ => {}
        }
    }

    /// A part of a body has passed, of which this number of bytes is left.
    fn skip(&mut self, left: u64) {
        self.state = match (self.state, left) {
            (LineState::Body(_), 0) => LineState::BeforeRequest,
            (LineState::Body(_), left) => LineState::Body(left),
            (_, 0) => LineState::ChunkSize,
            (_, left) => LineState::Chunk(left),
        };
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        self.state = match self.state {
            LineState::RequestLine => LineState::BeforeHeader,
            LineState::HeaderLine => {
                self.read_header(&line);
                LineState::BeforeHeader
            }
            LineState::BeforeHeader => self.begin_body(),
            LineState::ChunkSize => chunk(&line),
            LineState::TrailerLine => LineState::BeforeTrailer,
            _ => LineState::BeforeRequest,
        };
        // The next line uses the same memory.
        line.clear();
        self.line = line;
    }

    fn read_header(&mut self, line: &[u8]) {
        let Some(colon) = memchr::memchr(b':', line) else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            self.length = length.unwrap_or_default();
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked = true;
        }
    }

    /// A head has ended.
    fn begin_body(&mut self) -> LineState {
        let (length, is_chunked) =
            (std::mem::take(&mut self.length), std::mem::take(&mut self.is_chunked));
        match length {
            _ if is_chunked => LineState::ChunkSize,
            0 => LineState::BeforeRequest,
            length => LineState::Body(length),
        }
    }
}

/// Returns the state behind the line with the size of a chunk.
fn chunk(line: &[u8]) -> LineState {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    match size {
        None | Some(0) => LineState::BeforeTrailer,
        // With its line end.
        Some(size) => LineState::Chunk(size.saturating_add(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "GET /keys/a HTTP/1.1\r\nHost: x\r\nX-Log: see #5 HTTP/1.1\r\n\r\n";
    const BAD: &str = "GET /keys/a#b HTTP/1.1\r\nHost: x\r\n\r\n";

    fn first_bad(text: &str, pieces: usize) -> Option<usize> {
        let mut guard = RequestLines::new();
        text.as_bytes().chunks(pieces).find_map(|piece| guard.inspect(piece))
    }

    proptest! {
        #[test]
        fn first_bad_request_is_found_in_any_split(
            before in 0..4_usize,
            after in 0..3_usize,
            pieces in 1..200_usize,
        ) {
            let text = format!("\r\n{}{BAD}{}", GOOD.repeat(before), GOOD.repeat(after));
            prop_assert_eq!(first_bad(&text, pieces), Some(before + 1));
            prop_assert_eq!(first_bad(&GOOD.repeat(before), pieces), None);
        }

        #[test]
        fn body_is_no_request_line(
            before in 0..3_usize,
            pieces in 1..200_usize,
            body in "[a-z#\r\n ]{1,40}",
        ) {
            let size = body.len();
            let length =
                format!("POST /a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: {size}\r\n\r\n{body}");
            let head = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunked = format!("{head}{size:x};a=#\r\n{body}\r\n0\r\nT: #\r\n\r\n");
            let text = format!("{}{length}{chunked}", GOOD.repeat(before));
            prop_assert_eq!(first_bad(&text, pieces), None);
            prop_assert_eq!(first_bad(&format!("{text}{BAD}"), pieces), Some(before + 3));
        }

        #[test]
        fn arbitrary_bytes_are_accepted(bytes: Vec<u8>) {
            RequestLines::new().inspect(&bytes);
        }
    }
}
