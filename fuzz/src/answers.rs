//! The reply decoder of a connection: each reply equals that of another decoder, in any split.

use std::task::{Context, Poll, Waker};

use redis::{Value, parse_redis_value};
use redis_proxy::backend::ReplyDecoder;
use redis_proxy::protocol::ReplyScanner;

use super::pieces::{cut, split};

/// Checks a stream; the first four bytes define the split of the rest.
///
/// # Panics
///
/// If a reply is taken for another, or for none.
pub fn check(input: &[u8]) {
    let Some((cuts, stream)) = split(input) else { return };
    // An invalid reply may be noticed only at the end of its line.
    let stream = &[stream, &[b'\n'; LONGEST_HEADER]].concat()[..];
    let expected = expected(stream);
    assert_eq!(read(&[stream]), expected, "{}", stream.escape_ascii());
    assert_eq!(read(&cut(stream, cuts)), expected, "in pieces: {}", stream.escape_ascii());
}

/// The greatest length of a type with its number.
const LONGEST_HEADER: usize = 24;

/// The replies, and whether the rest is invalid.
type Answers = (Vec<Value>, bool);

fn read(pieces: &[&[u8]]) -> Answers {
    let (mut reader, mut answers) = (ReplyDecoder::default(), Vec::new());
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            let read = reader.poll_read(&mut piece, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(read, Poll::Ready(Ok(1..))), "{read:?}");
            loop {
                match reader.next_reply() {
                    Ok(Some(answer)) => answers.push(answer),
                    Ok(None) => break,
                    Err(_) => return (answers, true),
                }
            }
        }
    }
    (answers, false)
}

/// Returns the replies as the scanner divides them and the redis crate decodes them.
fn expected(mut stream: &[u8]) -> Answers {
    let (mut scanner, mut answers) = (ReplyScanner::default(), Vec::new());
    while !stream.is_empty() {
        let Ok((length, over)) = scanner.scan(stream) else { return (answers, true) };
        if over.is_none() {
            break;
        }
        let Ok(answer) = parse_redis_value(&stream[..length]) else { return (answers, true) };
        answers.push(answer);
        stream = &stream[length..];
    }
    (answers, false)
}
