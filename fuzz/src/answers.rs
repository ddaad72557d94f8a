//! What a link reads: each answer is what another reader takes it for, however it comes.

use std::task::{Context, Poll, Waker};

use redis::{Value, parse_redis_value};
use redis_proxy::backend::ReplyDecoder;
use redis_proxy::protocol::{InvalidReply, ReplyScanner};

use super::pieces::{cut, split};

/// The first four bytes cut the rest, which is taken for what Redis sends.
///
/// # Panics
/// If an answer is taken for another, or is none.
pub fn check(input: &[u8]) {
    let Some((cuts, stream)) = split(input) else { return };
    // What is no answer may be seen when the line has ended in which it is.
    let stream = &[stream, &[b'\n'; LONGEST_HEADER]].concat()[..];
    let expected = expected(stream);
    assert_eq!(read(&[stream]), expected, "{}", stream.escape_ascii());
    assert_eq!(read(&cut(stream, cuts)), expected, "in pieces: {}", stream.escape_ascii());
}

/// No type with its number is longer.
const LONGEST_HEADER: usize = 24;

/// The answers, and whether what follows is none.
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
                    Err(InvalidReply) => return (answers, true),
                }
            }
        }
    }
    (answers, false)
}

/// As the scanner divides them and the redis crate reads them.
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
