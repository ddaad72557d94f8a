//! The head of a simple request: `GET` or `HEAD` of a path over HTTP/1.1, without a body.
//!
//! A request is simple if it has no body, no field that affects the connection, and no ambiguous
//! part. Every other request counts as complex, and is not rejected here. httparse finds the parts
//! of a head, and hyper uses it as well. The bytes after the path are nearly always the same in all
//! requests of a connection. In that case they are only compared: equal bytes have equal parts.

use std::mem::MaybeUninit;
use std::ops::Range;

use httparse::{Header, Request, Status};

use super::conditions::is_condition;

/// The maximum number of header fields of a simple request.
const MAX_FIELDS: usize = 32;
/// The maximum length of the bytes after the path that are remembered for the next request.
const MAX_REMEMBERED: usize = 1 << 10;

/// Parses the request heads of one connection.
#[derive(Default)]
pub(super) struct HeadParser {
    /// The bytes after the path of the last simple request, from the version to the empty line.
    /// Empty if they were too long.
    remembered: Vec<u8>,
    /// The fields of the last simple request, as ranges of the bytes after its path.
    fields: Vec<Field>,
    /// Whether none of them affects the response.
    is_plain: bool,
}

/// The position of a field.
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

/// The result of parsing the next bytes of a connection.
pub(super) enum ParsedHead<'a> {
    /// The head is incomplete.
    Incomplete,
    /// A simple request, with its length in bytes.
    Simple(SimpleRequest<'a>, usize),
    /// Any other input.
    Complex,
}

/// A `GET` or `HEAD` of a path, without a body.
pub struct SimpleRequest<'a> {
    path: &'a [u8],
    wants_body: bool,
    /// The bytes after the path.
    rest: &'a [u8],
    fields: &'a [Field],
    is_plain: bool,
}

impl HeadParser {
    /// Parses `bytes`, which begin at the start of a request.
    pub(super) fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> ParsedHead<'a> {
        if let Some((wants_body, path, length)) = self.parse_same(bytes) {
            let Self { remembered: rest, fields, is_plain } = self;
            let is_plain = *is_plain;
            let request = SimpleRequest { path, wants_body, rest, fields, is_plain };
            return ParsedHead::Simple(request, length);
        }
        let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut headers) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return ParsedHead::Incomplete,
            Err(_) => return ParsedHead::Complex,
        };
        let wants_body = match request.method {
            Some("GET") => true,
            Some("HEAD") => false,
            _ => return ParsedHead::Complex,
        };
        let path = request
            .path
            .map(str::as_bytes)
            .filter(|path| request.version == Some(1) && is_simple_path(path));
        let Some(path) = path else {
            return ParsedHead::Complex;
        };
        if !has_simple_fields(request.headers) {
            return ParsedHead::Complex;
        }
        let rest = &bytes[subslice_range(path, bytes).end + 1..length];
        let rest = if self.remember(rest, request.headers) { &self.remembered } else { rest };
        let (fields, is_plain) = (&*self.fields, self.is_plain);
        ParsedHead::Simple(SimpleRequest { path, wants_body, rest, fields, is_plain }, length)
    }

    /// Parses a request that equals the last one after its path. Returns whether it wants a body,
    /// its path, and its length in bytes.
    fn parse_same<'a>(&self, bytes: &'a [u8]) -> Option<(bool, &'a [u8], usize)> {
        let (wants_body, target) = match bytes {
            [b'G', b'E', b'T', b' ', target @ ..] => (true, target),
            [b'H', b'E', b'A', b'D', b' ', target @ ..] => (false, target),
            _ => return None,
        };
        let end = target.iter().position(|byte| !PATH_BYTES[usize::from(*byte)])?;
        let (path, rest) = target.split_at(end);
        let is_same = !self.remembered.is_empty()
            && path.starts_with(b"/")
            && rest.strip_prefix(b" ")?.starts_with(&self.remembered);
        is_same.then(|| (wants_body, path, bytes.len() - rest.len() + 1 + self.remembered.len()))
    }

    /// Remembers the bytes after the path of a simple request and the positions of its fields.
    /// Returns whether the bytes fit.
    fn remember(&mut self, rest: &[u8], headers: &[Header<'_>]) -> bool {
        let field = |header: &Header<'_>| Field {
            name: subslice_range(header.name.as_bytes(), rest),
            value: subslice_range(header.value, rest),
        };
        self.fields.clear();
        self.fields.extend(headers.iter().map(field));
        self.is_plain = headers.iter().all(|header| {
            let name = header.name.as_bytes();
            !name.eq_ignore_ascii_case(b"cache-control") && !is_condition(name)
        });
        self.remembered.clear();
        let fits = rest.len() <= MAX_REMEMBERED;
        if fits {
            self.remembered.extend_from_slice(rest);
        }
        fits
    }
}

/// Returns the range of `part` within `whole`, which contains it.
fn subslice_range(part: &[u8], whole: &[u8]) -> Range<usize> {
    // An empty slice may point anywhere.
    let from = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    if part.is_empty() { 0..0 } else { from..from + part.len() }
}

impl SimpleRequest<'_> {
    /// Returns the path as it was sent.
    pub fn path(&self) -> &[u8] {
        self.path
    }

    /// Whether the response has a body, which a response to `HEAD` has not.
    pub fn wants_body(&self) -> bool {
        self.wants_body
    }

    /// Whether no field affects the response with a value: neither `Cache-Control` nor a condition
    /// nor a range.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Returns the values of all fields with this name, which must be in lower case.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> + Clone {
        let matches = move |field: &&Field| {
            self.rest[field.name.clone()].eq_ignore_ascii_case(name.as_bytes())
        };
        self.fields.iter().filter(matches).map(|field| &self.rest[field.value.clone()])
    }

    /// Returns the size of all fields as received, in bytes.
    pub(super) fn size(&self) -> usize {
        self.fields.iter().map(|field| field_size(field.name.len(), field.value.len())).sum()
    }
}

/// Whether the fields are those of a simple request:
///
/// - Exactly one field is `Host` (RFC 9112, section 3.2).
/// - No field frames a body or affects the connection.
/// - No field expects an interim response.
fn has_simple_fields(fields: &[Header<'_>]) -> bool {
    const NOT_SIMPLE: [&str; 8] = [
        "content-length",
        "expect",
        "http2-settings",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let is = |field: &Header<'_>, name: &str| field.name.eq_ignore_ascii_case(name);
    let is_simple = |field: &Header<'_>| {
        if is(field, "connection") {
            return field.value.eq_ignore_ascii_case(b"keep-alive");
        }
        !NOT_SIMPLE.iter().any(|name| is(field, name))
    };
    fields.iter().filter(|field| is(field, "host")).count() == 1 && fields.iter().all(is_simple)
}

/// Returns the size of a field as received, in bytes, given the lengths of its name and value.
pub(super) fn field_size(name: usize, value: usize) -> usize {
    name + value + ": \r\n".len()
}

/// The bytes that a simple path may contain: those of RFC 3986, section 3.3, and braces, which are
/// common in keys.
static PATH_BYTES: [bool; 256] = {
    const ITSELF: &[u8] =
        b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@%/{}";
    let mut plain = [false; 256];
    let mut at = 0;
    while at < ITSELF.len() {
        plain[ITSELF[at] as usize] = true;
        at += 1;
    }
    plain
};

/// Whether a request target is only a path.
fn is_simple_path(path: &[u8]) -> bool {
    path.starts_with(b"/") && path.iter().all(|byte| PATH_BYTES[usize::from(*byte)])
}

/// Whether `bytes` contain the empty line that ends a head, given that the first `scanned` bytes do
/// not.
pub(super) fn has_empty_line(bytes: &[u8], scanned: usize) -> bool {
    let bytes = &bytes[scanned.saturating_sub(b"\n\r".len())..];
    let ends = |at: usize| matches!(&bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
    memchr::memchr_iter(b'\n', bytes).any(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq)]
    enum Found {
        Part,
        Plain { path: Vec<u8>, wants_body: bool, length: usize },
        Other,
    }

    fn look(bytes: &[u8]) -> Found {
        found(&HeadParser::default().parse(bytes))
    }

    fn found(head: &ParsedHead<'_>) -> Found {
        match head {
            ParsedHead::Incomplete => Found::Part,
            ParsedHead::Simple(request, length) => Found::Plain {
                path: request.path().to_owned(),
                wants_body: request.wants_body(),
                length: *length,
            },
            ParsedHead::Complex => Found::Other,
        }
    }

    /// Returns the values of all fields, looked up by name.
    fn fields(head: &ParsedHead<'_>) -> Vec<Vec<u8>> {
        let ParsedHead::Simple(request, _) = head else { return Vec::new() };
        ["host", "x", "accept"]
            .iter()
            .flat_map(|name| request.values(name).map(<[u8]>::to_vec))
            .collect()
    }

    fn plain(path: &str, length: usize) -> Found {
        Found::Plain { path: path.into(), wants_body: true, length }
    }

    #[test]
    fn common_requests_take_the_fast_path() {
        for (line, path) in [
            ("GET /keys/a HTTP/1.1", "/keys/a"),
            ("GET /keys/user:{7}/name%20x HTTP/1.1", "/keys/user:{7}/name%20x"),
            ("GET / HTTP/1.1", "/"),
        ] {
            for fields in [
                "Host: x\r\n",
                "host:x\r\nConnection: Keep-Alive\r\n",
                "User-Agent: curl/8\r\nAccept: */*\r\nHOST: x:80\r\nAuthorization: Bearer \
                    t\r\nIf-None-Match: \"a\", *\r\n",
            ] {
                let head = format!("{line}\r\n{fields}\r\n");
                assert_eq!(look(head.as_bytes()), plain(path, head.len()), "{head}");
                assert_eq!(
                    look(format!("{head}GET").as_bytes()),
                    plain(path, head.len()),
                    "{head}"
                );
            }
        }
        let head = b"HEAD /keys/a HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(
            look(head),
            Found::Plain { path: "/keys/a".into(), wants_body: false, length: head.len() }
        );
    }

    #[test]
    fn ambiguous_heads_leave_the_fast_path() {
        for line in [
            "POST /keys/a HTTP/1.1",
            "get /keys/a HTTP/1.1",
            "GET /keys/a HTTP/1.0",
            "GET /keys/a?b HTTP/1.1",
            "GET /keys/a#b HTTP/1.1",
            "GET /keys/a\"b HTTP/1.1",
            "GET /keys/a\u{e4} HTTP/1.1",
            "GET http://x/keys/a HTTP/1.1",
            "GET * HTTP/1.1",
            "PRI * HTTP/2.0",
        ] {
            assert_eq!(
                look(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()),
                Found::Other,
                "{line}"
            );
        }
        for fields in [
            "",
            "Host: x\r\nHost: x\r\n",
            "Host: x\r\nContent-Length: 0\r\n",
            "Host: x\r\ncontent-length: 3\r\n",
            "Host: x\r\nTransfer-Encoding: chunked\r\n",
            "Host: x\r\nExpect: 100-continue\r\n",
            "Host: x\r\nConnection: close\r\n",
            "Host: x\r\nConnection: keep-alive, upgrade\r\n",
            "Host: x\r\nUpgrade: websocket\r\n",
            "Host: x\r\nContent-Length : 3\r\n",
            "Host: x\r\n folded\r\n",
        ] {
            assert_eq!(
                look(format!("GET /keys/a HTTP/1.1\r\n{fields}\r\n").as_bytes()),
                Found::Other,
                "{fields}"
            );
        }
        let many = "X: y\r\n".repeat(MAX_FIELDS);
        assert_eq!(
            look(format!("GET /keys/a HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()),
            Found::Other
        );
    }

    proptest! {
        #[test]
        fn head_ends_with_its_empty_line(
            path in "/keys/[a-z0-9:{}%]{0,20}", agent in "[ -~]{0,20}", behind in "[ -~\r\n]{0,20}",
        ) {
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n");
            for cut in 0..head.len() {
                prop_assert_eq!(look(&head.as_bytes()[..cut]), Found::Part);
                prop_assert!(!has_empty_line(&head.as_bytes()[..cut], 0));
                prop_assert!(has_empty_line(head.as_bytes(), cut));
            }
            prop_assert_eq!(look(format!("{head}{behind}").as_bytes()), plain(&path, head.len()));
        }

        #[test]
        fn parser_keeps_no_state_between_heads(
            parser in proptest::collection::vec(
                "(GET|HEAD|PUT) [/a#]{1,3} HTTP/1\\.[01]\r?\n(Host: \
                    [ab]?\r\n){0,2}((X|Accept|TE): ?[ab]{0,3}\r\n){0,2}\r\nG?",
                1..8,
            ),
            long in any::<bool>(), cut in 0_usize..4,
        ) {
            let mut reads_all = HeadParser::default();
            for mut head in parser {
                if long {
                    head = head.replace("X: ", &format!("X: {}", "x".repeat(MAX_REMEMBERED)));
                }
                for bytes in [&head.as_bytes()[..head.len() - cut], head.as_bytes(), head.as_bytes()] {
                    let mut reads_one = HeadParser::default();
                    let (expected, head) = (reads_one.parse(bytes), reads_all.parse(bytes));
                    prop_assert_eq!(found(&head), found(&expected));
                    prop_assert_eq!(fields(&head), fields(&expected));
                }
            }
        }

        #[test]
        fn arbitrary_head_bytes_never_panic(bytes: Vec<u8>, others: Vec<u8>) {
            let mut parser = HeadParser::default();
            parser.parse(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
            parser.parse(&bytes);
            parser.parse(&others);
        }
    }
}
