//! Finds HTTP/1 request lines with a fragment.
//!
//! A client must not send a `#` in a request target (RFC 9112, section 3.2). The http crate
//! silently cuts the target at the `#`, so a key other than the requested one would be read. The
//! received bytes are therefore inspected. A request line is the first non-empty line at the start,
//! or after the empty line that ends a head.
//!
//! Request bodies are unused here, and their lines are inspected as well. This can misattribute a
//! fragment to a request behind a body, and has no other effect.

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
}

/// Tracks the request lines of a connection.
#[derive(Debug)]
pub(crate) struct RequestLines {
    state: LineState,
    /// The number of request lines begun so far.
    requests: usize,
}

impl RequestLines {
    pub(crate) fn new() -> Self {
        Self { state: LineState::BeforeRequest, requests: 0 }
    }

    /// Inspects the next bytes of the connection. Returns the number, counted from 1, of the first
    /// request in them with a `#` in its request line.
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
        fn arbitrary_bytes_are_accepted(bytes: Vec<u8>) {
            RequestLines::new().inspect(&bytes);
        }
    }
}
