//! Commands of clients, in pieces: they equal those that Redis would read, in any split and with
//! streaming from any point.

use redis_proxy::protocol::{ParseStatus, RequestLimits, RequestParser, UNAUTHENTICATED};

use super::pieces::{cut, split};
use super::redis_request::{self, Command, End};

const LIMITS: [RequestLimits; 3] = [
    RequestLimits { max_bulk: 512 << 20, max_arguments: 1 << 20 },
    UNAUTHENTICATED,
    RequestLimits { max_bulk: 12, max_arguments: 4 },
];
/// A longer line is rejected as soon as it has come in, so that the split matters.
const LONGEST: usize = 64 << 10;

/// Checks commands; the first four bytes define the split of the rest. The fifth selects the
/// limits, the sixth the size from which an incomplete command is streamed.
///
/// # Panics
///
/// If commands are read otherwise than by Redis.
pub fn check(input: &[u8]) {
    let Some((cuts, rest)) = split(input) else { return };
    let [limits, let_go_at, stream @ ..] = rest else { return };
    if stream.len() > LONGEST {
        return;
    }
    let limits = LIMITS[usize::from(*limits) % LIMITS.len()];
    let pieces = cut(stream, cuts);
    let expected = redis_request::read(stream, limits);
    assert_eq!(read(&[stream], limits), expected, "in one piece");
    assert_eq!(read(&pieces, limits), expected, "in pieces");
    check_letting_go(stream, &pieces, limits, usize::from(*let_go_at), &expected);
}

/// Returns the commands that a parser finds.
fn read(pieces: &[&[u8]], limits: RequestLimits) -> (Vec<Command>, End) {
    let mut parser = RequestParser::default();
    let (mut commands, mut held) = (Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match parser.parse(&held, limits) {
                Ok(ParseStatus::Complete(length)) => {
                    let words = words(&parser, &held);
                    commands.push(Command { raw: held.drain(..length).collect(), words });
                }
                Ok(ParseStatus::Incomplete) => break,
                Ok(ParseStatus::Streamed(length)) => {
                    panic!("{length} bytes of a command that was not let go of")
                }
                Err(error) => return (commands, End::Refused(error.to_string())),
            }
        }
    }
    (commands, End::Open(words(&parser, &held), parser.remaining()))
}

fn words(parser: &RequestParser, held: &[u8]) -> Vec<Vec<u8>> {
    let arguments = parser.arguments(held);
    let words: Vec<_> = arguments.skip(0).map(<[u8]>::to_vec).collect();
    assert_eq!(arguments.len(), words.len());
    assert!(words.iter().enumerate().all(|(index, word)| word == arguments.get(index)));
    words
}

/// Checks that a streamed command is forwarded unchanged, and ends where the command ends.
fn check_letting_go(
    stream: &[u8],
    pieces: &[&[u8]],
    limits: RequestLimits,
    let_go_at: usize,
    (commands, end): &(Vec<Command>, End),
) {
    let mut parser = RequestParser::default();
    let mut commands = commands.iter();
    let (mut held, mut passed, mut passed_of_all) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let had_let_go = parser.is_streaming();
            match parser.parse(&held, limits) {
                Ok(ParseStatus::Complete(length)) => {
                    let command = commands.next().expect("no more commands than there are");
                    if !had_let_go {
                        assert_eq!(words(&parser, &held), command.words);
                    }
                    passed.extend(held.drain(..length));
                    assert_eq!(passed, command.raw);
                    assert!(!parser.is_streaming() && parser.remaining() == 0);
                    passed_of_all.append(&mut passed);
                }
                Ok(ParseStatus::Streamed(length)) => {
                    assert!(had_let_go);
                    passed.extend(held.drain(..length));
                    break;
                }
                Ok(ParseStatus::Incomplete) if held.len() < let_go_at => break,
                Ok(ParseStatus::Incomplete) => {
                    assert!(!had_let_go);
                    let known = words(&parser, &held);
                    let all = commands.clone().next().map(|command| command.words.as_slice());
                    assert!(all.is_none_or(|all| all.starts_with(&known)), "{known:?} of {all:?}");
                    let length = parser.start_streaming(&held);
                    passed.extend(held.drain(..length));
                    if !parser.is_streaming() {
                        assert_eq!(length, 0, "of a command that nothing is known of");
                        break;
                    }
                }
                Err(error) => return assert_eq!(*end, End::Refused(error.to_string())),
            }
        }
    }
    assert_eq!(commands.next(), None);
    assert!(matches!(end, End::Open(..)), "{end:?}");
    assert_eq!([passed_of_all, passed, held].concat(), stream);
}
