//! The head of a plain request: `GET` or `HEAD` of a path over HTTP/1.1, with nothing behind it.
//!
//! Whether a request is plain is decided by what it has not: no body, nothing about how the connection goes on, and nothing
//! that would be read in more than one way. What is not known to be plain is not, and no verdict on it is given here.
//! httparse, which hyper reads heads with as well, finds its parts.

use httparse::{EMPTY_HEADER, Header, Request, Status};

/// Lines of the head that a plain request has at most, the first not counted.
const MOST_FIELDS: usize = 32;

/// Room for the fields of a head.
pub(super) struct Fields<'a>([Header<'a>; MOST_FIELDS]);

impl Fields<'_> {
    pub(super) fn new() -> Self {
        Self([EMPTY_HEADER; MOST_FIELDS])
    }
}

/// What a connection's next bytes are.
pub(super) enum Head<'a> {
    /// Not whole yet.
    Part,
    /// A plain request, and how many bytes it has.
    Plain(PlainRequest<'a>, usize),
    /// Anything else.
    Other,
}

/// `GET` or `HEAD` of a path, without a body.
pub struct PlainRequest<'a> {
    path: &'a str,
    wants_body: bool,
    fields: &'a [Header<'a>],
}

impl<'a> Head<'a> {
    /// Looks at `bytes`, which begin where a request does.
    pub(super) fn of(bytes: &'a [u8], Fields(fields): &'a mut Fields<'a>) -> Self {
        let mut request = Request::new(fields);
        let length = match request.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Self::Part,
            Err(_) => return Self::Other,
        };
        let wants_body = match request.method {
            Some("GET") => true,
            Some("HEAD") => false,
            _ => return Self::Other,
        };
        let Some(path) = request.path.filter(|path| request.version == Some(1) && is_plain_path(path)) else {
            return Self::Other;
        };
        let plain = PlainRequest { path, wants_body, fields: request.headers };
        if plain.has_plain_fields() { Self::Plain(plain, length) } else { Self::Other }
    }
}

impl PlainRequest<'_> {
    /// The path, as it was sent.
    pub fn path(&self) -> &str {
        self.path
    }

    /// Whether the answer is to have its body; that to `HEAD` has none.
    pub fn wants_body(&self) -> bool {
        self.wants_body
    }

    /// The values of all fields of this name, which is in small letters.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> + Clone {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// How large the fields are, as they came.
    pub(super) fn size(&self) -> usize {
        size_of_fields(self.fields.iter().map(|field| (field.name, field.value)))
    }

    /// Whether it names its host once (RFC 9112, section 3.2) and has no field that frames a body, asks something of the
    /// connection, or waits to be asked on.
    fn has_plain_fields(&self) -> bool {
        const NOT_PLAIN: [&str; 8] = [
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
        let is_plain = |field: &Header<'_>| {
            if is(field, "connection") {
                return field.value.eq_ignore_ascii_case(b"keep-alive");
            }
            !NOT_PLAIN.iter().any(|name| is(field, name))
        };
        self.values("host").count() == 1 && self.fields.iter().all(is_plain)
    }
}

/// How large fields are, as they came.
pub(super) fn size_of_fields<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> usize {
    fields.map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum()
}

/// Whether it is a path and nothing but, of bytes that mean themselves (RFC 3986, section 3.3, and the braces, which many a
/// key has).
fn is_plain_path(path: &str) -> bool {
    const ITSELF: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@%/{}";
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut at = 0;
        while at < ITSELF.len() {
            plain[ITSELF[at] as usize] = true;
            at += 1;
        }
        plain
    };
    path.starts_with('/') && path.bytes().all(|byte| PLAIN[usize::from(byte)])
}

/// Whether the empty line that ends a head is in `bytes`, if it was not in the first `looked_at` of them.
pub(super) fn has_empty_line(bytes: &[u8], looked_at: usize) -> bool {
    let bytes = &bytes[looked_at.saturating_sub(b"\n\r".len())..];
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
        Plain { path: String, wants_body: bool, length: usize },
        Other,
    }

    fn look(bytes: &[u8]) -> Found {
        match Head::of(bytes, &mut Fields::new()) {
            Head::Part => Found::Part,
            Head::Plain(request, length) => {
                Found::Plain { path: request.path().to_owned(), wants_body: request.wants_body(), length }
            }
            Head::Other => Found::Other,
        }
    }

    fn plain(path: &str, length: usize) -> Found {
        Found::Plain { path: path.to_owned(), wants_body: true, length }
    }

    #[test]
    fn what_clients_of_a_cache_send_is_plain() {
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
                assert_eq!(look(format!("{head}GET").as_bytes()), plain(path, head.len()), "{head}");
            }
        }
        let head = b"HEAD /keys/a HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(look(head), Found::Plain { path: "/keys/a".into(), wants_body: false, length: head.len() });
    }

    #[test]
    fn what_could_be_read_in_another_way_is_not() {
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
            assert_eq!(look(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), Found::Other, "{line}");
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
            assert_eq!(look(format!("GET /keys/a HTTP/1.1\r\n{fields}\r\n").as_bytes()), Found::Other, "{fields}");
        }
        let many = "X: y\r\n".repeat(MOST_FIELDS);
        assert_eq!(look(format!("GET /keys/a HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()), Found::Other);
    }

    proptest! {
        #[test]
        fn a_head_is_whole_with_its_empty_line_and_not_before(
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
        fn any_bytes_are_looked_at(bytes: Vec<u8>) {
            look(&bytes);
        }
    }
}
