//! The replies of several nodes, combined into the one that a single Redis would send.

use bytes::Bytes;

use crate::net::WriteBuf;
use crate::protocol::ReplyScanner;
use crate::protocol::{write_array_length, write_error};

/// The rule by which the replies of several nodes become one. If any reply is an error, the first
/// error is the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Aggregate {
    /// There is one reply, which is passed on as it arrives.
    Pass,
    /// The reply to a command of the proxy's own. It must not be an error.
    Silent,
    /// The reply to a command that the client already has a reply to.
    Ignored,
    /// The first reply; all are equal.
    First,
    /// The sum of integers.
    Sum,
    /// The minimum at each index of arrays of integers.
    Min,
    /// The concatenation of arrays.
    Concat,
    /// An array with the elements of these indexes, one list for each reply.
    Reorder(Vec<Vec<usize>>),
}

/// Writes the combination of `replies`. Writes an error if they do not have the shape that the rule
/// expects.
pub(super) fn write_aggregate(aggregate: &Aggregate, replies: &[&[u8]], output: &mut WriteBuf) {
    if *aggregate == Aggregate::Ignored {
        return;
    }
    if let Some(error) = replies.iter().find(|reply| matches!(reply.first(), Some(b'-' | b'!'))) {
        return output.push(Bytes::copy_from_slice(error));
    }
    let done = match aggregate {
        Aggregate::Silent | Aggregate::Ignored => Some(()),
        Aggregate::Pass | Aggregate::First => {
            replies.first().map(|reply| output.push(Bytes::copy_from_slice(reply)))
        }
        Aggregate::Sum => sum(replies)
            .map(|sum| output.tail().extend_from_slice(format!(":{sum}\r\n").as_bytes())),
        Aggregate::Min => min(replies, output),
        Aggregate::Concat => concat(replies, output),
        Aggregate::Reorder(places) => reorder(places, replies, output),
    };
    if done.is_none() {
        write_error(
            output.tail(),
            "ERR redis-proxy: the nodes of the cluster gave replies that do not go together",
        );
    }
}

fn sum(replies: &[&[u8]]) -> Option<i64> {
    replies.iter().map(|reply| integer(reply)).sum()
}

fn integer(reply: &[u8]) -> Option<i64> {
    let digits = reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

fn min(replies: &[&[u8]], output: &mut WriteBuf) -> Option<()> {
    let mut least: Option<Vec<i64>> = None;
    for reply in replies {
        let numbers: Vec<i64> = elements(reply)?.into_iter().map(integer).collect::<Option<_>>()?;
        least = Some(match least {
            None => numbers,
            Some(least) => {
                least.into_iter().zip(numbers).map(|(one, other)| one.min(other)).collect()
            }
        });
    }
    let least = least?;
    write_array_length(output.tail(), least.len());
    for number in least {
        output.tail().extend_from_slice(format!(":{number}\r\n").as_bytes());
    }
    Some(())
}

fn concat(replies: &[&[u8]], output: &mut WriteBuf) -> Option<()> {
    let parts: Vec<_> = replies.iter().map(|reply| elements(reply)).collect::<Option<_>>()?;
    write_array_length(output.tail(), parts.iter().map(Vec::len).sum());
    for element in parts.into_iter().flatten() {
        output.push(Bytes::copy_from_slice(element));
    }
    Some(())
}

fn reorder(places: &[Vec<usize>], replies: &[&[u8]], output: &mut WriteBuf) -> Option<()> {
    let mut all = vec![&[][..]; places.iter().map(Vec::len).sum()];
    for (places, reply) in places.iter().zip(replies) {
        let elements = elements(reply)?;
        if elements.len() != places.len() {
            return None;
        }
        for (place, element) in places.iter().zip(elements) {
            *all.get_mut(*place)? = element;
        }
    }
    write_array_length(output.tail(), all.len());
    for element in all {
        output.push(Bytes::copy_from_slice(element));
    }
    Some(())
}

/// The elements of an array, each in its encoded form.
fn elements(reply: &[u8]) -> Option<Vec<&[u8]>> {
    let end = memchr::memchr(b'\n', reply)?;
    if !matches!(reply.first(), Some(b'*' | b'~')) {
        return None;
    }
    let mut rest = &reply[end + 1..];
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let (length, frame) = ReplyScanner::default().scan(rest).ok()?;
        frame?;
        elements.push(&rest[..length]);
        rest = &rest[length..];
    }
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn together(aggregate: &Aggregate, replies: &[&str]) -> String {
        let replies: Vec<_> = replies.iter().map(|reply| reply.as_bytes()).collect();
        let mut output = WriteBuf::default();
        write_aggregate(aggregate, &replies, &mut output);
        String::from_utf8(output.tail().to_vec()).unwrap()
    }

    #[test]
    fn replies_are_combined_by_rule() {
        assert_eq!(together(&Aggregate::First, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
        assert_eq!(together(&Aggregate::Sum, &[":3\r\n", ":0\r\n", ":40\r\n"]), ":43\r\n");
        assert_eq!(
            together(&Aggregate::Min, &["*2\r\n:1\r\n:1\r\n", "*2\r\n:1\r\n:0\r\n"]),
            "*2\r\n:1\r\n:0\r\n"
        );
        assert_eq!(
            together(&Aggregate::Concat, &["*1\r\n$1\r\na\r\n", "*0\r\n", "*1\r\n$1\r\nb\r\n"]),
            "*2\r\n$1\r\na\r\n$1\r\nb\r\n"
        );
        let places = Aggregate::Reorder(vec![vec![2, 0], vec![1]]);
        let replies = ["*2\r\n$1\r\nc\r\n$-1\r\n", "*1\r\n$2\r\nbb\r\n"];
        assert_eq!(together(&places, &replies), "*3\r\n$-1\r\n$2\r\nbb\r\n$1\r\nc\r\n");
    }

    #[test]
    fn error_wins_and_mismatched_replies_are_an_error() {
        assert_eq!(
            together(&Aggregate::Sum, &[":3\r\n", "-NO one\r\n", "-NO two\r\n"]),
            "-NO one\r\n"
        );
        for (aggregate, replies) in [
            (Aggregate::Sum, vec![":3\r\n", "+OK\r\n"]),
            (
                Aggregate::Reorder(vec![vec![0], vec![1]]),
                vec!["*2\r\n:1\r\n:2\r\n", "*1\r\n:1\r\n"],
            ),
            (Aggregate::Concat, vec!["+OK\r\n"]),
        ] {
            assert!(
                together(&aggregate, &replies).starts_with("-ERR redis-proxy"),
                "{aggregate:?}"
            );
        }
    }
}
