//! The answers of several nodes, put together into the one that a single Redis would give.

use bytes::{Bytes, BytesMut};

use crate::net::WriteBuf;
use crate::protocol::ReplyScanner;
use crate::protocol::{write_array_length, write_error};

/// How answers are put together. An error among them is the answer, the first in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gather {
    /// There is one, which is passed on as it comes.
    Pass,
    /// It answers a question of ours, and must not be an error.
    Silent,
    /// It answers what the client has been answered already.
    Ignored,
    /// The first; all say the same.
    First,
    /// Whole numbers, added.
    Sum,
    /// Of arrays of whole numbers, the least at each place.
    Least,
    /// Arrays, one behind the other.
    Chain,
    /// Arrays whose elements go to these places.
    Places(Vec<Vec<usize>>),
}

/// Writes what `answers` come to.
pub(super) fn write_together(gather: &Gather, answers: &[BytesMut], output: &mut WriteBuf) {
    if *gather == Gather::Ignored {
        return;
    }
    if let Some(error) = answers.iter().find(|answer| matches!(answer.first(), Some(b'-' | b'!'))) {
        return output.push(Bytes::copy_from_slice(error));
    }
    let done = match gather {
        Gather::Silent | Gather::Ignored => Some(()),
        Gather::Pass | Gather::First => {
            answers.first().map(|answer| output.push(Bytes::copy_from_slice(answer)))
        }
        Gather::Sum => sum(answers)
            .map(|sum| output.tail().extend_from_slice(format!(":{sum}\r\n").as_bytes())),
        Gather::Least => least(answers, output),
        Gather::Chain => chain(answers, output),
        Gather::Places(places) => in_places(places, answers, output),
    };
    if done.is_none() {
        write_error(
            output.tail(),
            "ERR redis-proxy: the nodes of the cluster gave answers that do not go together",
        );
    }
}

fn sum(answers: &[BytesMut]) -> Option<i64> {
    answers.iter().map(|answer| integer(answer)).sum()
}

fn integer(answer: &[u8]) -> Option<i64> {
    let digits = answer.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

fn least(answers: &[BytesMut], output: &mut WriteBuf) -> Option<()> {
    let mut least: Option<Vec<i64>> = None;
    for answer in answers {
        let numbers: Vec<i64> =
            elements(answer)?.into_iter().map(integer).collect::<Option<_>>()?;
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

fn chain(answers: &[BytesMut], output: &mut WriteBuf) -> Option<()> {
    let parts: Vec<_> = answers.iter().map(|answer| elements(answer)).collect::<Option<_>>()?;
    write_array_length(output.tail(), parts.iter().map(Vec::len).sum());
    for element in parts.into_iter().flatten() {
        output.push(Bytes::copy_from_slice(element));
    }
    Some(())
}

fn in_places(places: &[Vec<usize>], answers: &[BytesMut], output: &mut WriteBuf) -> Option<()> {
    let mut all = vec![&[][..]; places.iter().map(Vec::len).sum()];
    for (places, answer) in places.iter().zip(answers) {
        let elements = elements(answer)?;
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

/// The elements of an array, as they came.
fn elements(answer: &[u8]) -> Option<Vec<&[u8]>> {
    let end = memchr::memchr(b'\n', answer)?;
    if !matches!(answer.first(), Some(b'*' | b'~')) {
        return None;
    }
    let mut rest = &answer[end + 1..];
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

    fn together(gather: &Gather, answers: &[&str]) -> String {
        let answers: Vec<_> = answers.iter().map(|answer| BytesMut::from(*answer)).collect();
        let mut output = WriteBuf::default();
        write_together(gather, &answers, &mut output);
        String::from_utf8(output.tail().to_vec()).unwrap()
    }

    #[test]
    fn answers_become_one() {
        assert_eq!(together(&Gather::First, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
        assert_eq!(together(&Gather::Sum, &[":3\r\n", ":0\r\n", ":40\r\n"]), ":43\r\n");
        assert_eq!(
            together(&Gather::Least, &["*2\r\n:1\r\n:1\r\n", "*2\r\n:1\r\n:0\r\n"]),
            "*2\r\n:1\r\n:0\r\n"
        );
        assert_eq!(
            together(&Gather::Chain, &["*1\r\n$1\r\na\r\n", "*0\r\n", "*1\r\n$1\r\nb\r\n"]),
            "*2\r\n$1\r\na\r\n$1\r\nb\r\n"
        );
        let places = Gather::Places(vec![vec![2, 0], vec![1]]);
        let answers = ["*2\r\n$1\r\nc\r\n$-1\r\n", "*1\r\n$2\r\nbb\r\n"];
        assert_eq!(together(&places, &answers), "*3\r\n$-1\r\n$2\r\nbb\r\n$1\r\nc\r\n");
    }

    #[test]
    fn an_error_among_them_is_the_answer_and_what_does_not_go_together_is_one() {
        assert_eq!(
            together(&Gather::Sum, &[":3\r\n", "-NO one\r\n", "-NO two\r\n"]),
            "-NO one\r\n"
        );
        for (gather, answers) in [
            (Gather::Sum, vec![":3\r\n", "+OK\r\n"]),
            (Gather::Places(vec![vec![0], vec![1]]), vec!["*2\r\n:1\r\n:2\r\n", "*1\r\n:1\r\n"]),
            (Gather::Chain, vec!["+OK\r\n"]),
        ] {
            assert!(together(&gather, &answers).starts_with("-ERR redis-proxy"), "{gather:?}");
        }
    }
}
