//! Replies that are equal but for the order of members. No I/O.
//!
//! The members of a set and the fields of a hash have no order: Redis may list them in another one
//! at any time. So they are compared as multisets.

use super::resp2::{Element, Elements};

/// The meaning of the order of the members of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberOrder {
    /// The order is a part of the reply.
    Given,
    /// The order is that of a hash or a set, so it means nothing.
    Arbitrary,
}

/// The deepest nesting of aggregates that is compared.
const MAX_DEPTH: usize = 16;

/// Whether two replies in RESP3 are equal. Sets and maps are compared as multisets, and so is the
/// reply itself if `order` is arbitrary. `None` if one of them is not one whole reply, or is nested
/// too deeply.
pub(crate) fn is_equivalent(one: &[u8], other: &[u8], order: MemberOrder) -> Option<bool> {
    if one == other {
        return Some(true);
    }
    Some(canonical(one, order)? == canonical(other, order)?)
}

/// Returns a reply with the members of its sets and maps sorted.
fn canonical(frame: &[u8], order: MemberOrder) -> Option<Vec<u8>> {
    let mut elements = Elements(frame);
    let mut output = Vec::with_capacity(frame.len());
    write(&mut elements, order, MAX_DEPTH, &mut output)?;
    elements.0.is_empty().then_some(output)
}

/// Writes the next element with all its members.
fn write(
    elements: &mut Elements<'_>,
    order: MemberOrder,
    depth: usize,
    output: &mut Vec<u8>,
) -> Option<()> {
    let Element { kind, text, bytes } = elements.next()?;
    output.extend_from_slice(bytes);
    let (members, parts) = match kind {
        b'*' | b'~' => (length(text)?, 1),
        b'%' => (length(text)?, 2),
        // Redis sends neither in a reply that is kept.
        b'|' | b'>' => return None,
        _ => return Some(()),
    };
    let depth = depth.checked_sub(1)?;
    if kind == b'*' && order == MemberOrder::Given {
        return (0..members).try_for_each(|_| write(elements, MemberOrder::Given, depth, output));
    }
    // Their number may be wrong, so no room is reserved for them.
    let mut sorted = Vec::new();
    for _ in 0..members {
        let mut member = Vec::new();
        for _ in 0..parts {
            write(elements, MemberOrder::Given, depth, &mut member)?;
        }
        sorted.push(member);
    }
    sorted.sort_unstable();
    output.extend(sorted.into_iter().flatten());
    Some(())
}

/// Returns the number of members of an aggregate. A nil array has none.
fn length(text: &[u8]) -> Option<usize> {
    if text == b"-1" { Some(0) } else { std::str::from_utf8(text).ok()?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_sets_is_ignored() {
        use MemberOrder::{Arbitrary, Given};
        for (one, other, order, expected) in [
            ("$1\r\na\r\n", "$1\r\na\r\n", Given, Some(true)),
            ("$1\r\na\r\n", "$1\r\nb\r\n", Given, Some(false)),
            ("$1\r\na\r\n", "_\r\n", Given, Some(false)),
            ("~2\r\n:1\r\n:2\r\n", "~2\r\n:2\r\n:1\r\n", Given, Some(true)),
            ("~2\r\n:1\r\n:2\r\n", "~3\r\n:2\r\n:1\r\n:3\r\n", Given, Some(false)),
            ("~2\r\n:1\r\n:2\r\n", "*2\r\n:1\r\n:2\r\n", Given, Some(false)),
            ("%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n", "%2\r\n+b\r\n:2\r\n+a\r\n:1\r\n", Given, Some(true)),
            (
                "%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n",
                "%2\r\n+b\r\n:1\r\n+a\r\n:2\r\n",
                Given,
                Some(false),
            ),
            ("*2\r\n:1\r\n:2\r\n", "*2\r\n:2\r\n:1\r\n", Given, Some(false)),
            ("*2\r\n:1\r\n:2\r\n", "*2\r\n:2\r\n:1\r\n", Arbitrary, Some(true)),
            ("*3\r\n:1\r\n:1\r\n:2\r\n", "*3\r\n:1\r\n:2\r\n:2\r\n", Arbitrary, Some(false)),
            // Only the reply itself has the arbitrary order, not an array in it.
            ("*1\r\n*2\r\n:1\r\n:2\r\n", "*1\r\n*2\r\n:2\r\n:1\r\n", Arbitrary, Some(false)),
            ("*-1\r\n", "_\r\n", Given, Some(false)),
            ("~2\r\n:1\r\n", "~2\r\n:2\r\n:1\r\n", Given, None),
            ("~2\r\n:1\r\n:2\r\n:3\r\n", "~2\r\n:2\r\n:1\r\n", Given, None),
            ("~x\r\n", "~2\r\n:2\r\n:1\r\n", Given, None),
        ] {
            let found = is_equivalent(one.as_bytes(), other.as_bytes(), order);
            assert_eq!(found, expected, "{one:?} {other:?} {order:?}");
        }
    }

    #[test]
    fn deep_nesting_is_not_compared() {
        let nested = |depth: usize, last| "*1\r\n".repeat(depth) + last;
        let compare = |depth| {
            let (one, other) = (nested(depth, ":1\r\n"), nested(depth, ":2\r\n"));
            is_equivalent(one.as_bytes(), other.as_bytes(), MemberOrder::Given)
        };
        assert_eq!((compare(MAX_DEPTH), compare(MAX_DEPTH + 1)), (Some(false), None));
    }
}
