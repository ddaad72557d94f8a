//! The encoder of responses: replies of Redis in RESP2 become JSON. No I/O.
//!
//! Model: a reply is complete when it is encoded. Null, integers, strings and arrays keep their
//! shape; arrays may be nested to any depth, so no recursion follows them. Errors are text.
//!
//! The rule that must not be broken: every response is JSON, whatever bytes Redis sent. Otherwise
//! the client would throw away the replies of all commands of the request.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::protocol::{InvalidReply, parse_digits};

/// The form of strings in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strings {
    /// As text. Bytes that are not UTF-8 become U+FFFD.
    Text,
    /// As base64, but for the literal `OK`.
    Base64,
}

/// Writes a complete reply as `{"result":...}` or `{"error":...}`. Returns whether it is an error.
///
/// # Errors
/// [`InvalidReply`] if the bytes are not one RESP2 reply.
pub fn write_reply(
    out: &mut Vec<u8>,
    reply: &[u8],
    strings: Strings,
) -> Result<bool, InvalidReply> {
    if let Some(text) = error_text(reply) {
        write_error(out, text);
        return Ok(true);
    }
    out.extend_from_slice(b"{\"result\":");
    let rest = write_value(out, reply, strings)?;
    out.push(b'}');
    if rest.is_empty() { Ok(false) } else { Err(InvalidReply) }
}

/// Writes `{"error":...}`.
pub(super) fn write_error(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(b"{\"error\":");
    write_text(out, text);
    out.push(b'}');
}

/// Returns the text of a reply that is an error.
pub fn error_text(reply: &[u8]) -> Option<&[u8]> {
    Some(reply.strip_prefix(b"-")?.trim_ascii_end())
}

/// Returns the elements of a reply that is an array; `None` if it is another reply, or null.
pub fn elements(reply: &[u8]) -> Option<Vec<&[u8]>> {
    let (Head::Array(count), mut rest) = head(reply).ok()? else { return None };
    let mut elements = Vec::with_capacity(count.min(rest.len()));
    for _ in 0..count {
        let length = length_of(rest).ok()?;
        let (element, behind) = rest.split_at(length);
        elements.push(element);
        rest = behind;
    }
    rest.is_empty().then_some(elements)
}

/// Returns the text of a string or an integer; `None` for another reply.
pub(super) fn text_of(reply: &[u8]) -> Option<&[u8]> {
    match head(reply).ok()? {
        (Head::Line(text) | Head::Integer(text), b"") => Some(text),
        (Head::Bulk(length), rest) => {
            bulk(rest, length).ok().and_then(|(value, rest)| rest.is_empty().then_some(value))
        }
        _ => None,
    }
}

/// The most bytes of a line that is read byte by byte.
const SHORT_LINE: usize = 6;

/// The first line of an element.
enum Head<'a> {
    Line(&'a [u8]),
    Error(&'a [u8]),
    Integer(&'a [u8]),
    Bulk(usize),
    Array(usize),
    Null,
}

/// Reads the first line of an element. Returns the bytes behind it too.
fn head(reply: &[u8]) -> Result<(Head<'_>, &[u8]), InvalidReply> {
    let (line, rest) = first_line(reply).ok_or(InvalidReply)?;
    let (kind, text) = line.split_first().ok_or(InvalidReply)?;
    let length = || match text {
        b"-1" => Ok(None),
        digits => parse_digits(digits).map(Some).ok_or(InvalidReply),
    };
    let head = match kind {
        b'+' => Head::Line(text),
        b'-' => Head::Error(text),
        b':' => Head::Integer(text),
        b'$' => length()?.map_or(Head::Null, Head::Bulk),
        b'*' => length()?.map_or(Head::Null, Head::Array),
        _ => return Err(InvalidReply),
    };
    Ok((head, rest))
}

/// Returns the first line without its end, and the bytes behind it.
fn first_line(reply: &[u8]) -> Option<(&[u8], &[u8])> {
    // The line of a short length is found faster without a search.
    let is_end = |at: &usize| reply.get(*at..at + 2) == Some(b"\r\n");
    if let Some(end) = (2..=SHORT_LINE).find(is_end).filter(|_| reply.first() == Some(&b'$')) {
        return Some((&reply[..end], &reply[end + 2..]));
    }
    let end = memchr::memchr_iter(b'\n', reply).find(|end| reply[..*end].ends_with(b"\r"))?;
    Some((&reply[..end - 1], &reply[end + 1..]))
}

/// Returns the bytes of a bulk string of this length, and those behind it.
fn bulk(rest: &[u8], length: usize) -> Result<(&[u8], &[u8]), InvalidReply> {
    let (value, behind) = rest.split_at_checked(length).ok_or(InvalidReply)?;
    Ok((value, behind.strip_prefix(b"\r\n").ok_or(InvalidReply)?))
}

/// Returns the length of the first element.
fn length_of(reply: &[u8]) -> Result<usize, InvalidReply> {
    let (mut remaining, mut rest) = (1_usize, reply);
    while remaining > 0 {
        let (head, behind) = head(rest)?;
        remaining -= 1;
        rest = behind;
        match head {
            Head::Bulk(length) => rest = bulk(rest, length)?.1,
            Head::Array(count) => remaining = remaining.checked_add(count).ok_or(InvalidReply)?,
            _ => {}
        }
    }
    Ok(reply.len() - rest.len())
}

/// Writes the first element as JSON. Returns the bytes behind it.
fn write_value<'a>(
    out: &mut Vec<u8>,
    reply: &'a [u8],
    strings: Strings,
) -> Result<&'a [u8], InvalidReply> {
    // The number of elements that each open array still lacks.
    let mut open: Vec<usize> = Vec::new();
    let mut rest = reply;
    loop {
        let (head, behind) = head(rest)?;
        rest = behind;
        match head {
            Head::Line(text) => write_string(out, text, strings),
            Head::Error(text) => write_text(out, text),
            Head::Integer(text) if is_json_integer(text) => out.extend_from_slice(text),
            Head::Integer(_) => return Err(InvalidReply),
            Head::Null => out.extend_from_slice(b"null"),
            Head::Bulk(length) => {
                let (value, behind) = bulk(rest, length)?;
                rest = behind;
                write_string(out, value, strings);
            }
            Head::Array(count) => {
                out.push(b'[');
                if count > 0 {
                    open.push(count);
                    continue;
                }
                out.push(b']');
            }
        }
        loop {
            let Some(left) = open.last_mut() else { return Ok(rest) };
            *left -= 1;
            if *left > 0 {
                out.push(b',');
                break;
            }
            open.pop();
            out.push(b']');
        }
    }
}

/// Whether the text is an integer in JSON too, which has no sign before a positive one.
fn is_json_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.iter().all(u8::is_ascii_digit)
}

fn write_string(out: &mut Vec<u8>, value: &[u8], strings: Strings) {
    match strings {
        Strings::Base64 if value != b"OK" => {
            out.push(b'"');
            let start = out.len();
            let length = base64::encoded_len(value.len(), true).unwrap_or(usize::MAX);
            out.resize(start.saturating_add(length), 0);
            // The room is exact, so nothing is left out.
            let written = STANDARD.encode_slice(value, &mut out[start..]).unwrap_or_default();
            out.truncate(start + written);
            out.push(b'"');
        }
        Strings::Base64 | Strings::Text => write_text(out, value),
    }
}

/// Writes a JSON string.
fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return;
    }
    // The check is much faster than the replacement, which is rarely needed.
    let valid = std::str::from_utf8(text);
    let text = valid.map_or_else(|_| String::from_utf8_lossy(text), Cow::Borrowed);
    // A write to memory does not fail.
    _ = serde_json::to_writer(&mut *out, &*text);
}

/// Whether the text is the same in JSON: ASCII, and nothing that has to be escaped.
fn is_plain(text: &[u8]) -> bool {
    // Without an early end, many bytes are compared at once.
    let is_special = |byte: u8| {
        u8::from(byte < b' ') | u8::from(byte >= 0x80) | u8::from(byte == b'"' || byte == b'\\')
    };
    text.iter().fold(0, |found, byte| found | is_special(*byte)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(reply: &str, strings: Strings) -> String {
        let mut out = Vec::new();
        write_reply(&mut out, reply.as_bytes(), strings).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn reply_keeps_its_shape() {
        for (reply, text, base64) in [
            ("+OK\r\n", r#"{"result":"OK"}"#, r#"{"result":"OK"}"#),
            ("+PONG\r\n", r#"{"result":"PONG"}"#, r#"{"result":"UE9ORw=="}"#),
            ("$2\r\nOK\r\n", r#"{"result":"OK"}"#, r#"{"result":"OK"}"#),
            (":-12\r\n", r#"{"result":-12}"#, r#"{"result":-12}"#),
            ("$-1\r\n", r#"{"result":null}"#, r#"{"result":null}"#),
            ("*-1\r\n", r#"{"result":null}"#, r#"{"result":null}"#),
            ("*0\r\n", r#"{"result":[]}"#, r#"{"result":[]}"#),
            ("$0\r\n\r\n", r#"{"result":""}"#, r#"{"result":""}"#),
            ("$4\r\na\"\r\n\r\n", r#"{"result":"a\"\r\n"}"#, r#"{"result":"YSINCg=="}"#),
            (
                "*3\r\n*2\r\n:1\r\n$1\r\na\r\n*0\r\n*1\r\n*1\r\n$-1\r\n",
                r#"{"result":[[1,"a"],[],[[null]]]}"#,
                r#"{"result":[[1,"YQ=="],[],[[null]]]}"#,
            ),
            (
                "*2\r\n-ERR x\r\n+OK\r\n",
                r#"{"result":["ERR x","OK"]}"#,
                r#"{"result":["ERR x","OK"]}"#,
            ),
            (
                "-NOSCRIPT a \"b\"\r\n",
                r#"{"error":"NOSCRIPT a \"b\""}"#,
                r#"{"error":"NOSCRIPT a \"b\""}"#,
            ),
        ] {
            assert_eq!(json(reply, Strings::Text), text, "{reply:?}");
            assert_eq!(json(reply, Strings::Base64), base64, "{reply:?}");
        }
        for byte in 0..0x80_u8 {
            let (mut out, mut expected) = (Vec::new(), Vec::new());
            write_text(&mut out, &[b'a', byte]);
            serde_json::to_writer(&mut expected, &format!("a{}", char::from(byte))).unwrap();
            assert_eq!(out, expected, "{byte}");
        }
        let mut out = Vec::new();
        write_reply(&mut out, b"$2\r\na\xff\r\n", Strings::Text).unwrap();
        assert_eq!(out, "{\"result\":\"a\u{fffd}\"}".as_bytes());
    }

    #[test]
    fn deep_reply_is_encoded() {
        let reply = ["*1\r\n".repeat(200_000), ":1\r\n".into()].concat();
        assert_eq!(json(&reply, Strings::Text).len(), 2 * 200_000 + r#"{"result":1}"#.len());
    }

    #[test]
    fn invalid_reply_is_an_error() {
        for reply in [
            "",
            "+OK",
            "?\r\n",
            ":x\r\n",
            ":+1\r\n",
            ":01\r\n",
            "$3\r\nab\r\n",
            "$x\r\n",
            "*1\r\n",
            "$1\r\nab\r\n",
            "+OK\r\n+OK\r\n",
            "$-2\r\n",
            "*18446744073709551615\r\n",
            "%1\r\n:1\r\n:1\r\n",
        ] {
            assert!(
                write_reply(&mut Vec::new(), reply.as_bytes(), Strings::Text).is_err(),
                "{reply:?}"
            );
        }
    }

    #[test]
    fn elements_of_an_array_are_split() {
        let found = elements(b"*3\r\n+OK\r\n*2\r\n:1\r\n$1\r\na\r\n-ERR x\r\n").unwrap();
        assert_eq!(found, [&b"+OK\r\n"[..], b"*2\r\n:1\r\n$1\r\na\r\n", b"-ERR x\r\n"]);
        for reply in ["*-1\r\n", "+OK\r\n", "*2\r\n:1\r\n", "*1\r\n:1\r\n:2\r\n", "*99999999\r\n"] {
            assert_eq!(elements(reply.as_bytes()), None, "{reply:?}");
        }
    }

    proptest! {
        #[test]
        fn any_string_is_json_and_returns_from_base64(value: Vec<u8>) {
            let reply = [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat();
            let mut out = Vec::new();
            write_reply(&mut out, &reply, Strings::Base64).unwrap();
            let decoded: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let text = decoded["result"].as_str().unwrap();
            let bytes = if text == "OK" { b"OK".to_vec() } else { STANDARD.decode(text).unwrap() };
            prop_assert_eq!(&bytes, &value);
            out.clear();
            write_reply(&mut out, &reply, Strings::Text).unwrap();
            let decoded: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let text = decoded["result"].as_str().unwrap();
            prop_assert_eq!(text, &*String::from_utf8_lossy(&value));
        }
    }
}
