//! The section `# redis_proxy` behind Redis's own in a reply to `INFO`.
//!
//! Model: such a reply is held until it is whole, because the length in front of it changes. Any
//! other reply in its place, such as an error or `QUEUED`, is passed on as it is. So is a reply
//! that is too large to be held.

use bytes::{Bytes, BytesMut};

use crate::protocol::{Protocol, write_text};

/// A larger reply gets no section, in bytes. Redis's own takes about 10 KB.
const MAX_HELD: usize = 1 << 20;

/// The reply to `INFO` that is arriving.
#[derive(Debug, Default)]
pub(super) struct InfoReply {
    held: BytesMut,
    /// Whether the reply was too large, so its rest is passed on as it comes.
    is_passed: bool,
}

impl InfoReply {
    /// Adds the next piece of the reply. Returns the bytes that leave now. `section` is called when
    /// the reply is whole.
    pub(super) fn add(
        &mut self,
        piece: &[u8],
        is_whole: bool,
        section: impl FnOnce() -> String,
    ) -> Bytes {
        self.held.extend_from_slice(piece);
        self.is_passed |= self.held.len() > MAX_HELD;
        if !self.is_passed && !is_whole {
            return Bytes::new();
        }
        let held = self.held.split();
        let is_passed = self.is_passed;
        self.is_passed = is_passed && !is_whole;
        if is_passed {
            return held.freeze();
        }
        with_section(&held, &section()).unwrap_or_else(|| held.freeze())
    }
}

/// Returns the text of `reply` with `section` behind it; `None` if the reply is no text.
fn with_section(reply: &[u8], section: &str) -> Option<Bytes> {
    let head = memchr::memchr(b'\n', reply)? + 1;
    let body = reply[head..].strip_suffix(b"\r\n")?;
    let (protocol, text) = match reply[0] {
        b'$' => (Protocol::Resp2, body),
        b'=' => (Protocol::Resp3, body.strip_prefix(b"txt:")?),
        _ => return None,
    };
    let separator: &[u8] = if text.is_empty() { b"" } else { b"\r\n" };
    let mut out = BytesMut::new();
    write_text(&mut out, &[text, separator, section.as_bytes()].concat(), protocol);
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: &str = "# redis_proxy\r\na:1\r\n";

    /// Adds the reply in pieces of `size` bytes.
    fn add(info: &mut InfoReply, reply: &[u8], size: usize) -> Vec<u8> {
        let mut passed = Vec::new();
        let mut pieces = reply.chunks(size).peekable();
        while let Some(piece) = pieces.next() {
            let is_whole = pieces.peek().is_none();
            passed.extend_from_slice(&info.add(piece, is_whole, || SECTION.to_owned()));
        }
        passed
    }

    #[test]
    fn section_follows_a_text_and_nothing_else() {
        let mut info = InfoReply::default();
        for (reply, expected) in [
            ("$0\r\n\r\n", "$20\r\n# redis_proxy\r\na:1\r\n\r\n"),
            ("$4\r\nb:2\n\r\n", "$26\r\nb:2\n\r\n# redis_proxy\r\na:1\r\n\r\n"),
            ("=4\r\ntxt:\r\n", "=24\r\ntxt:# redis_proxy\r\na:1\r\n\r\n"),
            ("=8\r\ntxt:b:2\n\r\n", "=30\r\ntxt:b:2\n\r\n# redis_proxy\r\na:1\r\n\r\n"),
            ("=7\r\nmkd:abc\r\n", "=7\r\nmkd:abc\r\n"),
            ("$-1\r\n", "$-1\r\n"),
            ("+QUEUED\r\n", "+QUEUED\r\n"),
            ("-NOAUTH no\r\n", "-NOAUTH no\r\n"),
        ] {
            for size in [1, 3, 100] {
                let passed = add(&mut info, reply.as_bytes(), size);
                assert_eq!(String::from_utf8_lossy(&passed), expected, "{reply:?} {size}");
            }
        }
    }

    #[test]
    fn reply_that_is_too_large_is_passed_on_unchanged() {
        let mut info = InfoReply::default();
        let length = MAX_HELD + 10;
        let large = format!("${length}\r\n{}\r\n", "x".repeat(length));
        assert!(add(&mut info, large.as_bytes(), 1000) == large.as_bytes());
        let small = add(&mut info, b"$0\r\n\r\n", 100);
        assert!(small.starts_with(b"$20\r\n"), "{small:?}");
    }
}
