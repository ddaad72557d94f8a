//! The head of a simple request over HTTP/1.1: `GET` or `HEAD` of a path without a body, or `POST`
//! to a path with a body of known length.
//!
//! A request is simple if it has no field that affects the connection, and no ambiguous part. Every
//! other request counts as complex, and is not rejected here. httparse finds the parts of a head,
//! and hyper uses it as well. The bytes after the path are nearly always the same in all requests
//! of a connection. In that case they are only compared: equal bytes have equal parts.

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
    framing: Framing,
    /// Whether none of them affects the response.
    is_plain: bool,
}

/// The length of the body of a simple request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Framing {
    /// The method has no body.
    #[default]
    NoBody,
    /// The one `Content-Length`.
    Length(usize),
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
    /// The same without a part of its body.
    LacksBody(SimpleRequest<'a>, usize),
    /// Any other input.
    Complex,
}

/// The method of a simple request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimpleMethod {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `POST`.
    Post,
}

/// A `GET` or `HEAD` of a path without a body, or a `POST` with one.
pub struct SimpleRequest<'a> {
    method: SimpleMethod,
    path: &'a [u8],
    body_length: usize,
    /// The part of the body that has arrived.
    body: &'a [u8],
    /// The bytes after the path.
    rest: &'a [u8],
    fields: &'a [Field],
    is_plain: bool,
}

impl HeadParser {
    /// Parses `bytes`, which begin at the start of a request.
    pub(super) fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> ParsedHead<'a> {
        if let Some((method, path, length)) = self.parse_same(bytes) {
            return self.parsed(method, path, &self.remembered, &bytes[length..], length);
        }
        let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut headers) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return ParsedHead::Incomplete,
            Err(_) => return ParsedHead::Complex,
        };
        let method = match request.method {
            Some("GET") => SimpleMethod::Get,
            Some("HEAD") => SimpleMethod::Head,
            Some("POST") => SimpleMethod::Post,
            _ => return ParsedHead::Complex,
        };
        let path = request
            .path
            .map(str::as_bytes)
            .filter(|path| request.version == Some(1) && is_simple_path(path));
        let Some(path) = path else {
            return ParsedHead::Complex;
        };
        let Some(framing) = simple_framing(method, request.headers) else {
            return ParsedHead::Complex;
        };
        let rest = &bytes[subslice_range(path, bytes).end + 1..length];
        let is_remembered = self.remember(rest, request.headers, framing);
        let rest = if is_remembered { &self.remembered } else { rest };
        self.parsed(method, path, rest, &bytes[length..], length)
    }

    /// Returns a simple request with the fields that are remembered. Its head has `length` bytes,
    /// and `behind` are the bytes after it.
    #[inline]
    fn parsed<'a>(
        &'a self,
        method: SimpleMethod,
        path: &'a [u8],
        rest: &'a [u8],
        behind: &'a [u8],
        length: usize,
    ) -> ParsedHead<'a> {
        let (fields, is_plain) = (&*self.fields, self.is_plain);
        let Framing::Length(body_length) = self.framing else {
            let (body_length, body) = (0, &[][..]);
            let request = SimpleRequest { method, path, body_length, body, rest, fields, is_plain };
            return ParsedHead::Simple(request, length);
        };
        let body = &behind[..body_length.min(behind.len())];
        let request = SimpleRequest { method, path, body_length, body, rest, fields, is_plain };
        if body.len() == body_length {
            ParsedHead::Simple(request, length + body_length)
        } else {
            ParsedHead::LacksBody(request, length + body_length)
        }
    }

    /// Parses a request that equals the last one after its path. Returns its method, its path, and
    /// the length of its head in bytes.
    fn parse_same<'a>(&self, bytes: &'a [u8]) -> Option<(SimpleMethod, &'a [u8], usize)> {
        let (method, target) = match bytes {
            [b'G', b'E', b'T', b' ', target @ ..] => (SimpleMethod::Get, target),
            [b'H', b'E', b'A', b'D', b' ', target @ ..] => (SimpleMethod::Head, target),
            [b'P', b'O', b'S', b'T', b' ', target @ ..] => (SimpleMethod::Post, target),
            _ => return None,
        };
        let end = target.iter().position(|byte| !PATH_BYTES[usize::from(*byte)])?;
        let (path, rest) = target.split_at(end);
        // A length of a body is simple for some methods only.
        let is_same = !self.remembered.is_empty()
            && (self.framing == Framing::NoBody) == (method != SimpleMethod::Post)
            && path.starts_with(b"/")
            && rest.strip_prefix(b" ")?.starts_with(&self.remembered);
        is_same.then(|| (method, path, bytes.len() - rest.len() + 1 + self.remembered.len()))
    }

    /// Remembers the bytes after the path of a simple request and the positions of its fields.
    /// Returns whether the bytes fit.
    fn remember(&mut self, rest: &[u8], headers: &[Header<'_>], framing: Framing) -> bool {
        let field = |header: &Header<'_>| Field {
            name: subslice_range(header.name.as_bytes(), rest),
            value: subslice_range(header.value, rest),
        };
        self.framing = framing;
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
    /// Returns the method.
    pub fn method(&self) -> SimpleMethod {
        self.method
    }

    /// Returns the length of the body, which is 0 without one.
    pub fn body_length(&self) -> usize {
        self.body_length
    }

    /// Returns the body, as far as it has arrived.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    /// Returns the path as it was sent.
    pub fn path(&self) -> &[u8] {
        self.path
    }

    /// Whether the response has a body, which a response to `HEAD` has not.
    pub fn wants_body(&self) -> bool {
        self.method != SimpleMethod::Head
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

/// Returns the length of the body of a request with these fields, if they are those of a simple
/// request:
///
/// - Exactly one field is `Host` (RFC 9112, section 3.2).
/// - No field frames a body or affects the connection, but for the one `Content-Length` of a
///   `POST`.
/// - No field expects an interim response.
/// - The body is not encoded.
fn simple_framing(method: SimpleMethod, fields: &[Header<'_>]) -> Option<Framing> {
    const NOT_SIMPLE: [&str; 8] = [
        "content-encoding",
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
    let has_one_host = fields.iter().filter(|field| is(field, "host")).count() == 1;
    if !has_one_host || !fields.iter().all(is_simple) {
        return None;
    }
    let mut lengths = fields.iter().filter(|field| is(field, "content-length"));
    match (method, lengths.next(), lengths.next()) {
        (SimpleMethod::Post, Some(length), None) => {
            simple_length(length.value).map(Framing::Length)
        }
        (SimpleMethod::Get | SimpleMethod::Head, None, _) => Some(Framing::NoBody),
        _ => None,
    }
}

/// Returns the value of a `Content-Length` that has digits alone.
fn simple_length(value: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(value).ok()?;
    // A number may begin with a sign.
    let length: u32 = digits.parse().ok().filter(|_| value[0].is_ascii_digit())?;
    usize::try_from(length).ok()
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
        Plain {
            path: Vec<u8>,
            method: SimpleMethod,
            body: Vec<u8>,
            length: usize,
        },
        /// Some of the body is here.
        Started {
            body: Vec<u8>,
            length: usize,
        },
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
                method: request.method(),
                body: request.body().to_owned(),
                length: *length,
            },
            ParsedHead::LacksBody(request, length) => {
                assert!(request.body().len() < request.body_length());
                Found::Started { body: request.body().to_owned(), length: *length }
            }
            ParsedHead::Complex => Found::Other,
        }
    }

    /// Returns the values of all fields, looked up by name.
    fn fields(head: &ParsedHead<'_>) -> Vec<Vec<u8>> {
        let (ParsedHead::Simple(request, _) | ParsedHead::LacksBody(request, _)) = head else {
            return Vec::new();
        };
        ["host", "x", "accept"]
            .iter()
            .flat_map(|name| request.values(name).map(<[u8]>::to_vec))
            .collect()
    }

    fn plain(path: &str, length: usize) -> Found {
        Found::Plain { path: path.into(), method: SimpleMethod::Get, body: Vec::new(), length }
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
        let (method, body) = (SimpleMethod::Head, Vec::new());
        assert_eq!(
            look(head),
            Found::Plain { path: "/keys/a".into(), method, body, length: head.len() }
        );
    }

    #[test]
    fn post_has_the_body_of_its_length() {
        for (fields, body) in [
            ("Host: x\r\nContent-Length: 5\r\n", "12345"),
            ("content-LENGTH:0005 \r\nHost: x\r\nContent-Type: text/plain\r\n", "\r\n\r\n1"),
            ("Content-Length: 0\r\nHost: x\r\nConnection: keep-alive\r\n", ""),
        ] {
            let request = format!("POST /rest HTTP/1.1\r\n{fields}\r\n{body}");
            let (length, head) = (request.len(), request.len() - body.len());
            let (path, method) = (b"/rest".to_vec(), SimpleMethod::Post);
            let whole = Found::Plain { path, method, body: body.into(), length };
            for behind in ["", "POST", "\r\n"] {
                assert_eq!(look(format!("{request}{behind}").as_bytes()), whole, "{fields}");
            }
            for cut in 0..length {
                let part = &request.as_bytes()[..cut];
                let expected = if cut < head {
                    Found::Part
                } else {
                    Found::Started { body: part[head..].into(), length }
                };
                assert_eq!(look(part), expected, "{fields} {cut}");
            }
        }
    }

    #[test]
    fn body_in_doubt_leaves_the_fast_path() {
        for fields in [
            "",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: -3\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length: 3.0\r\n",
            "Content-Length: \r\n",
            "Content-Length: 4294967296\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\nContent-Encoding: gzip\r\n",
            "Content-Length: 3\r\nExpect: 100-continue\r\n",
            "Content-Length: 3\r\nConnection: close\r\n",
            "Content-Length: 3\r\nTrailer: x\r\n",
        ] {
            let request = format!("POST /rest HTTP/1.1\r\nHost: x\r\n{fields}\r\nabc");
            assert_eq!(look(request.as_bytes()), Found::Other, "{fields}");
        }
    }

    #[test]
    fn ambiguous_heads_leave_the_fast_path() {
        for line in [
            "POST /keys/a HTTP/1.1",
            "PUT /keys/a HTTP/1.1",
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
                "(GET|HEAD|POST|PUT) [/a#]{1,3} HTTP/1\\.[01]\r?\n(Host: \
                    [ab]?\r\n){0,2}((X|Accept|TE|Content-Length): ?[ab0-2]{0,2}\r\n){0,2}\r\nG?",
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
