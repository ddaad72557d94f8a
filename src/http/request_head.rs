//! The head of a plain request: `GET` or `HEAD` of a path over HTTP/1.1, with nothing behind it.
//!
//! Whether a request is plain is decided by what it has not: no body, nothing about how the connection goes on, and nothing
//! that would be read in more than one way. What is not known to be plain is not, and no verdict on it is given here.
//! httparse, which hyper reads heads with as well, finds its parts. What is behind the path is nearly always the same in all
//! requests of a connection, and then it is compared instead: the same bytes have the same parts.

use std::mem::MaybeUninit;
use std::ops::Range;

use httparse::{Header, Request, Status};

/// Lines of the head that a plain request has at most, the first not counted.
const MAX_FIELDS: usize = 32;
/// What is longer than this behind the path is not kept for the next request.
const MAX_REMEMBERED: usize = 1 << 10;

/// Reads the heads of one connection's requests.
#[derive(Default)]
pub(super) struct HeadParser {
    /// What was behind the path of the last plain request, from the version to the empty line; nothing, if it was too long.
    remembered: Vec<u8>,
    /// The fields of the last plain request, in what was behind its path.
    fields: Vec<Field>,
}

/// Where a field stands.
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

/// What a connection's next bytes are.
pub(super) enum ParsedHead<'a> {
    /// Not whole yet.
    Incomplete,
    /// A plain request, and how many bytes it has.
    Simple(SimpleRequest<'a>, usize),
    /// Anything else.
    Complex,
}

/// `GET` or `HEAD` of a path, without a body.
pub struct SimpleRequest<'a> {
    path: &'a [u8],
    wants_body: bool,
    /// What is behind the path.
    rest: &'a [u8],
    fields: &'a [Field],
}

impl HeadParser {
    /// Looks at `bytes`, which begin where a request does.
    pub(super) fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> ParsedHead<'a> {
        if let Some((wants_body, path, length)) = self.parse_same(bytes) {
            return ParsedHead::Simple(
                SimpleRequest { path, wants_body, rest: &self.remembered, fields: &self.fields },
                length,
            );
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
        ParsedHead::Simple(SimpleRequest { path, wants_body, rest, fields: &self.fields }, length)
    }

    /// The request in front, if behind its path it is the last one again: whether it wants the body, its path, its length.
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

    /// Keeps what is behind the path of a plain request, if it is not too long, and where its fields are in it.
    fn remember(&mut self, rest: &[u8], headers: &[Header<'_>]) -> bool {
        let field = |header: &Header<'_>| Field {
            name: subslice_range(header.name.as_bytes(), rest),
            value: subslice_range(header.value, rest),
        };
        self.fields.clear();
        self.fields.extend(headers.iter().map(field));
        self.remembered.clear();
        let fits = rest.len() <= MAX_REMEMBERED;
        if fits {
            self.remembered.extend_from_slice(rest);
        }
        fits
    }
}

/// Where `part`, which is one of `whole`, stands in it.
fn subslice_range(part: &[u8], whole: &[u8]) -> Range<usize> {
    // One without bytes may be anywhere.
    let from = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    if part.is_empty() { 0..0 } else { from..from + part.len() }
}

impl SimpleRequest<'_> {
    /// The path, as it was sent.
    pub fn path(&self) -> &[u8] {
        self.path
    }

    /// Whether the answer is to have its body; that to `HEAD` has none.
    pub fn wants_body(&self) -> bool {
        self.wants_body
    }

    /// The values of all fields of this name, which is in small letters.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> + Clone {
        let matches = move |field: &&Field| {
            self.rest[field.name.clone()].eq_ignore_ascii_case(name.as_bytes())
        };
        self.fields.iter().filter(matches).map(|field| &self.rest[field.value.clone()])
    }

    /// How large the fields are, as they came.
    pub(super) fn size(&self) -> usize {
        self.fields.iter().map(|field| field_size(field.name.len(), field.value.len())).sum()
    }
}

/// Whether they name the host once (RFC 9112, section 3.2) and none of them frames a body, asks something of the connection,
/// or waits to be asked on.
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

/// How large a field is whose name and value are so long, as it came.
pub(super) fn field_size(name: usize, value: usize) -> usize {
    name + value + ": \r\n".len()
}

/// The bytes of a path that mean themselves (RFC 3986, section 3.3, and the braces, which many a key has).
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

/// Whether it is a path and nothing but.
fn is_simple_path(path: &[u8]) -> bool {
    path.starts_with(b"/") && path.iter().all(|byte| PATH_BYTES[usize::from(*byte)])
}

/// Whether the empty line that ends a head is in `bytes`, if it was not in the first `scanned` of them.
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

    /// The values of all fields, as they are found by their names.
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
                "User-Agent: curl/8\r\nAccept: */*\r\nHOST: x:80\r\nAuthorization: Bearer t\r\nIf-None-Match: \"a\", *\r\n",
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
                "(GET|HEAD|PUT) [/a#]{1,3} HTTP/1\\.[01]\r?\n(Host: [ab]?\r\n){0,2}((X|Accept|TE): ?[ab]{0,3}\r\n){0,2}\r\nG?",
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
