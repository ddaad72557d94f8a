//! Finds request lines of HTTP/1 that have a fragment.
//!
//! No client may send a `#` in a request target (RFC 9112, section 3.2), but the http crate cuts the target there
//! without a word, and another key than the one asked for would be read. So the bytes are looked at as they come in:
//! a request line is the first line that is not empty after the start or after the empty line that ends a head. The
//! bodies of requests, of which none here has a use, are taken for lines too; that can misplace a verdict on requests
//! behind a body, no more.

/// Where in a request the next byte is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LineState {
    /// At the start of a line that is the request line, unless it is empty.
    BeforeRequest,
    /// In the request line.
    RequestLine,
    /// At the start of a header line, which ends the head if it is empty.
    BeforeHeader,
    /// In a header line.
    HeaderLine,
}

/// Follows the lines of a connection.
#[derive(Debug)]
pub(crate) struct RequestLines {
    state: LineState,
    /// Request lines begun so far.
    requests: usize,
}

impl RequestLines {
    pub(crate) fn new() -> Self {
        Self { state: LineState::BeforeRequest, requests: 0 }
    }

    /// Takes the next bytes of the connection. Returns the number, counted from 1, of the first request in them whose
    /// request line has a `#`.
    pub(crate) fn inspect(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut bad = None;
        while let Some(&first) = bytes.first() {
            self.begin_line(first);
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.state == LineState::RequestLine && memchr::memchr(b'#', line).is_some() {
                bad = bad.or(Some(self.requests));
            }
            if end.is_some() {
                self.end_line();
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        bad
    }

    fn begin_line(&mut self, first: u8) {
        // An empty line is "\n" or "\r\n"; a carriage return says nothing yet.
        if matches!(first, b'\r' | b'\n') {
            return;
        }
        match self.state {
            LineState::BeforeRequest => {
                self.state = LineState::RequestLine;
                self.requests += 1;
            }
            LineState::BeforeHeader => self.state = LineState::HeaderLine,
            LineState::RequestLine | LineState::HeaderLine => {}
        }
    }

    fn end_line(&mut self) {
        self.state = match self.state {
            LineState::RequestLine | LineState::HeaderLine => LineState::BeforeHeader,
            LineState::BeforeHeader | LineState::BeforeRequest => LineState::BeforeRequest,
        };
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
        fn first_bad_request_is_found_in_any_split(before in 0..4_usize, after in 0..3_usize, pieces in 1..200_usize) {
            let text = format!("\r\n{}{BAD}{}", GOOD.repeat(before), GOOD.repeat(after));
            prop_assert_eq!(first_bad(&text, pieces), Some(before + 1));
            prop_assert_eq!(first_bad(&GOOD.repeat(before), pieces), None);
        }

        #[test]
        fn arbitrary_bytes_are_accepted(bytes: Vec<u8>) {
            RequestLines::new().inspect(&bytes);
        }
    }
}
