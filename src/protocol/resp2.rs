//! The RESP2 form of a reply in RESP3. No I/O.
//!
//! Redis sends most replies in the same bytes in both protocols. Otherwise RESP2 has an array in
//! place of a map or a set, a bulk string in place of a double, and one of two nils. Sorted sets
//! with scores are nested pairs in RESP3 and a flat array in RESP2. A test compares the result with
//! the replies of a running server.
//!
//! A reply is converted element by element, with no stack: an aggregate is only a header, and the
//! headers of nested aggregates change in the same way as the first. Bytes that are no reply are
//! copied as they are.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use bytes::{BufMut as _, BytesMut};

use super::encode::{write_array_length, write_bulk};
use super::request::parse_digits;

/// The nil of a reply in RESP2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Nil {
    /// `$-1`.
    #[default]
    Bulk,
    /// `*-1`.
    Array,
}

/// The difference between the replies of a command in RESP3 and in RESP2, beyond the types.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// The form of a nil, also of a nested one.
    pub nil: Nil,
    /// Whether pairs in the reply are a flat array in RESP2.
    pub flattens_pairs: bool,
}

/// The way to the RESP2 form of a reply. It is found once, when the reply is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resp2Form {
    /// The same bytes.
    Same,
    /// Another first line: the header of an array. The rest is the same.
    Head {
        /// The number of elements of the array.
        elements: usize,
        /// The length of the first line of the RESP3 reply, which it replaces.
        skip: usize,
    },
    /// Other bytes, which [`write_resp2`] writes.
    Converted,
}

impl Resp2Form {
    /// The form of a reply.
    pub fn new(frame: &[u8], shape: Shape) -> Self {
        if has_pairs(frame, shape) {
            return Self::Converted;
        }
        let mut elements = Elements(frame);
        let Some(first) = elements.next() else { return Self::Same };
        let form = match first.kind {
            b'%' | b'~' => Self::Head { elements: first.members(), skip: first.bytes.len() },
            kind if is_in_resp2(kind) => Self::Same,
            _ => return Self::Converted,
        };
        if elements.all(|element| is_in_resp2(element.kind)) { form } else { Self::Converted }
    }
}

/// Writes a reply in RESP2. `frame` is the reply in RESP3.
pub fn write_resp2(frame: &[u8], shape: Shape, output: &mut BytesMut) {
    let mut elements = Elements(frame);
    output.reserve(frame.len());
    if has_pairs(frame, shape) {
        let length = elements.next().map_or(0, |first| first.members());
        write_array_length(output, length.saturating_mul(2));
        for element in elements.by_ref().filter(|element| element.kind != b'*') {
            write_element(&element, shape.nil, output);
        }
    }
    while let Some(element) = elements.next() {
        if element.kind == b'|' {
            elements.skip_members(element.members());
        } else {
            write_element(&element, shape.nil, output);
        }
    }
    output.put_slice(elements.0);
}

/// Returns the strings in a map or a set: each name and its value, or each member. `None` if there
/// are more than `max` fields or members, or if it is another reply.
pub(crate) fn flat_members(frame: &[u8], max: usize) -> Option<Vec<&[u8]>> {
    let mut elements = Elements(frame);
    let first = elements.next().filter(|first| matches!(first.kind, b'%' | b'~'))?;
    if parse_digits(first.text)? > max {
        return None;
    }
    let count = first.members();
    let mut members = Vec::with_capacity(count);
    for element in elements {
        if element.kind != b'$' {
            return None;
        }
        members.push(element.text);
    }
    (members.len() == count).then_some(members)
}

/// Whether the reply is an array of pairs that RESP2 has as a flat one.
fn has_pairs(frame: &[u8], shape: Shape) -> bool {
    let mut elements = Elements(frame);
    let mut is_array = || elements.next().is_some_and(|element| element.kind == b'*');
    shape.flattens_pairs && is_array() && is_array()
}

fn write_element(element: &Element<'_>, nil: Nil, output: &mut BytesMut) {
    match element.kind {
        b'%' | b'~' | b'>' => write_array_length(output, element.members()),
        b',' | b'(' => write_bulk(output, element.text),
        b'_' => output.put_slice(if nil == Nil::Array { b"*-1\r\n" } else { b"$-1\r\n" }),
        b'#' => output.put_slice(if element.text == b"t" { b":1\r\n" } else { b":0\r\n" }),
        // The format of a verbatim string has three letters, and a colon behind it.
        b'=' => write_bulk(output, element.text.get(4..).unwrap_or_default()),
        b'!' => {
            output.put_u8(b'-');
            output.put_slice(element.text);
            output.put_slice(b"\r\n");
        }
        _ => output.put_slice(element.bytes),
    }
}

/// Whether RESP2 has elements of this type.
fn is_in_resp2(kind: u8) -> bool {
    matches!(kind, b'+' | b'-' | b':' | b'$' | b'*')
}

/// One element of a reply; of an aggregate only the header.
pub(super) struct Element<'a> {
    pub(super) kind: u8,
    /// The line behind the type, or the body behind the line.
    pub(super) text: &'a [u8],
    pub(super) bytes: &'a [u8],
}

impl Element<'_> {
    /// The number of elements that follow as its members.
    fn members(&self) -> usize {
        let length = parse_digits(self.text).unwrap_or(0);
        if matches!(self.kind, b'%' | b'|') { length.saturating_mul(2) } else { length }
    }
}

/// The elements of a reply in the order of their bytes, up to the first bytes that are none.
pub(super) struct Elements<'a>(pub(super) &'a [u8]);

impl Elements<'_> {
    /// Skips the next `count` elements with their members.
    fn skip_members(&mut self, mut count: usize) {
        while count > 0 {
            let Some(element) = self.next() else { return };
            count -= 1;
            match element.kind {
                b'*' | b'~' | b'>' | b'%' => count = count.saturating_add(element.members()),
                // Attributes are no element, but precede one.
                b'|' => count = count.saturating_add(element.members()).saturating_add(1),
                _ => {}
            }
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let (kind, rest) = self.0.split_first()?;
        let (kind, mut text) = (*kind, line(rest)?);
        let mut length = text.len() + 3;
        if matches!(kind, b'$' | b'=' | b'!')
            && let Some(size) = parse_digits(text)
        {
            text = self.0.get(length..)?.get(..size)?;
            length = length.checked_add(size)?.checked_add(2)?;
        }
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Element { kind, text, bytes })
    }
}

/// The number of bytes that are searched one by one for the end of a line.
const SHORT: usize = 8;

/// The line at the front, without its end.
fn line(input: &[u8]) -> Option<&[u8]> {
    // Most lines are a length of a few digits. For these the call of a vectorised search costs more
    // than the search itself.
    let short = input.iter().take(SHORT).position(|byte| *byte == b'\n');
    if let Some(line) = short.and_then(|end| input[..end].strip_suffix(b"\r")) {
        return Some(line);
    }
    memchr::memchr_iter(b'\n', input).find_map(|end| input[..end].strip_suffix(b"\r"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Shape = Shape { nil: Nil::Bulk, flattens_pairs: false };
    const NIL_ARRAY: Shape = Shape { nil: Nil::Array, flattens_pairs: false };
    const PAIRS: Shape = Shape { nil: Nil::Bulk, flattens_pairs: true };

    fn resp2(frame: &[u8], shape: Shape) -> Vec<u8> {
        let mut output = BytesMut::new();
        write_resp2(frame, shape, &mut output);
        output.to_vec()
    }

    /// The RESP2 reply as its form says.
    fn by_form(frame: &[u8], shape: Shape) -> Vec<u8> {
        match Resp2Form::new(frame, shape) {
            Resp2Form::Same => frame.to_vec(),
            Resp2Form::Head { elements, skip } => {
                [format!("*{elements}\r\n").as_bytes(), &frame[skip..]].concat()
            }
            Resp2Form::Converted => resp2(frame, shape),
        }
    }

    #[test]
    fn reply_is_converted_by_its_types_and_shape() {
        use Resp2Form::{Converted, Same};
        let head = |elements, skip| Resp2Form::Head { elements, skip };
        for (frame, shape, form, expected) in [
            ("+OK\r\n", PLAIN, Same, "+OK\r\n"),
            ("-ERR no\r\n", PLAIN, Same, "-ERR no\r\n"),
            ("$2\r\n\r\n\r\n", PLAIN, Same, "$2\r\n\r\n\r\n"),
            ("*2\r\n:1\r\n*1\r\n:2\r\n", PLAIN, Same, "*2\r\n:1\r\n*1\r\n:2\r\n"),
            ("%0\r\n", PLAIN, head(0, 4), "*0\r\n"),
            ("%1\r\n+a\r\n$1\r\n_\r\n", PLAIN, head(2, 4), "*2\r\n+a\r\n$1\r\n_\r\n"),
            ("~1\r\n$1\r\na\r\n", PLAIN, head(1, 4), "*1\r\n$1\r\na\r\n"),
            ("%1\r\n+a\r\n%1\r\n+b\r\n_\r\n", PLAIN, Converted, "*2\r\n+a\r\n*2\r\n+b\r\n$-1\r\n"),
            ("_\r\n", PLAIN, Converted, "$-1\r\n"),
            ("_\r\n", NIL_ARRAY, Converted, "*-1\r\n"),
            ("*2\r\n:1\r\n_\r\n", NIL_ARRAY, Converted, "*2\r\n:1\r\n*-1\r\n"),
            (",-inf\r\n", PLAIN, Converted, "$4\r\n-inf\r\n"),
            ("*1\r\n,1.5\r\n", PLAIN, Converted, "*1\r\n$3\r\n1.5\r\n"),
            ("*2\r\n#t\r\n#f\r\n", PLAIN, Converted, "*2\r\n:1\r\n:0\r\n"),
            ("(123\r\n", PLAIN, Converted, "$3\r\n123\r\n"),
            ("=7\r\ntxt:a\r\n\r\n", PLAIN, Converted, "$3\r\na\r\n\r\n"),
            ("!6\r\nERR no\r\n", PLAIN, Converted, "-ERR no\r\n"),
            ("|1\r\n+a\r\n~1\r\n:1\r\n:2\r\n", PLAIN, Converted, ":2\r\n"),
            ("*1\r\n*2\r\n+a\r\n,2\r\n", PAIRS, Converted, "*2\r\n+a\r\n$1\r\n2\r\n"),
            ("*1\r\n*2\r\n+a\r\n:2\r\n", PAIRS, Converted, "*2\r\n+a\r\n:2\r\n"),
            ("*2\r\n+a\r\n+b\r\n", PAIRS, Same, "*2\r\n+a\r\n+b\r\n"),
            ("*0\r\n", PAIRS, Same, "*0\r\n"),
            ("-ERR no\r\n", PAIRS, Same, "-ERR no\r\n"),
        ] {
            let found = resp2(frame.as_bytes(), shape);
            assert_eq!(
                found.escape_ascii().to_string(),
                expected.as_bytes().escape_ascii().to_string()
            );
            assert_eq!(Resp2Form::new(frame.as_bytes(), shape), form, "{frame:?}");
            assert_eq!(by_form(frame.as_bytes(), shape), found, "{frame:?}");
        }
    }

    #[test]
    fn deeply_nested_reply_is_converted() {
        const DEPTH: usize = 1_000_000;
        let frame = ["~1\r\n".repeat(DEPTH), "_\r\n".to_owned()].concat();
        let expected = ["*1\r\n".repeat(DEPTH), "$-1\r\n".to_owned()].concat();
        assert!(resp2(frame.as_bytes(), PLAIN) == expected.as_bytes());
        let attributes = ["|1\r\n".repeat(DEPTH), "_\r\n".to_owned()].concat();
        assert_eq!(resp2(attributes.as_bytes(), PLAIN), b"");
    }

    /// A reply in RESP2.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let line = "[+:-][ -~]{0,9}\r\n".prop_map(String::into_bytes);
        let bulk = prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|body| [format!("${}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat());
        let nil = prop::sample::select(vec![b"$-1\r\n".to_vec(), b"*-1\r\n".to_vec()]);
        let one = prop_oneof![line, bulk, nil];
        one.prop_recursive(4, 32, 4, |inner| {
            prop::collection::vec(inner, 0..4).prop_map(|members| {
                [format!("*{}\r\n", members.len()).into_bytes(), members.concat()].concat()
            })
        })
    }

    fn shape() -> impl Strategy<Value = Shape> {
        (any::<bool>(), any::<bool>()).prop_map(|(is_array, flattens_pairs)| Shape {
            nil: if is_array { Nil::Array } else { Nil::Bulk },
            flattens_pairs,
        })
    }

    proptest! {
        #[test]
        fn reply_without_types_of_resp3_is_unchanged(frame in reply(), is_array: bool) {
            let shape = if is_array { NIL_ARRAY } else { PLAIN };
            prop_assert_eq!(Resp2Form::new(&frame, shape), Resp2Form::Same);
            prop_assert_eq!(resp2(&frame, shape), frame);
        }

        #[test]
        fn any_bytes_are_converted_without_a_panic(
            frame in prop::collection::vec(any::<u8>(), 0..60),
            shape in shape(),
        ) {
            prop_assert_eq!(by_form(&frame, shape), resp2(&frame, shape));
        }

        #[test]
        fn any_bytes_of_the_protocol_are_converted_without_a_panic(
            frame in "([*~%>|$=!,_#(:+-][0-9]{0,2}(\r\n|[a-z\r\n]))*",
            shape in shape(),
        ) {
            prop_assert_eq!(by_form(frame.as_bytes(), shape), resp2(frame.as_bytes(), shape));
        }
    }
}
