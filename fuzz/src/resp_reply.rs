//! Replies of Redis, in pieces: each has the right end and the right type.

use redis::{ErrorKind, Value, parse_redis_value};
use redis_proxy::protocol::{ReplyScanner, ReplySummary};

use super::pieces::{cut, split};

/// Checks replies; the first four bytes define the split of the rest. The rest is taken for
/// replies, and then for choices that generate replies.
///
/// # Panics
///
/// If an invalid reply is accepted, or a valid one is missed.
pub fn check(input: &[u8]) {
    let Some((cuts, stream)) = split(input) else { return };
    let whole = scan(&[stream]);
    assert_eq!(scan(&cut(stream, cuts)), whole, "in pieces");
    for (frame, known) in &whole.frames {
        check_frame(frame, *known);
    }
    // In invalid input a number may have a form that Redis never writes and that the other library
    // accepts.
    if !whole.is_refused {
        assert!(
            parse_redis_value(&whole.rest).is_err(),
            "an answer was not seen: {}",
            whole.rest.escape_ascii()
        );
    }
    check_made(stream, cuts);
}

/// The result of a scanner.
#[derive(Debug, PartialEq, Eq)]
struct Scanned {
    frames: Vec<(Vec<u8>, ReplySummary)>,
    /// The rest behind the last reply, if it may still be valid.
    rest: Vec<u8>,
    is_refused: bool,
}

fn scan(pieces: &[&[u8]]) -> Scanned {
    let mut scanner = ReplyScanner::default();
    let (mut frames, mut rest) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            let Ok((length, over)) = scanner.scan(piece) else {
                return Scanned { frames, rest: Vec::new(), is_refused: true };
            };
            assert!(length > 0, "nothing was passed over");
            rest.extend_from_slice(&piece[..length]);
            piece = &piece[length..];
            if let Some(frame) = over {
                frames.push((std::mem::take(&mut rest), frame));
            }
            assert_eq!(scanner.is_mid_reply(), !rest.is_empty());
        }
    }
    Scanned { frames, rest, is_refused: false }
}

/// Checks that the decoder of the proxy's own replies takes all of `frame` for one reply, if for
/// any.
fn check_frame(frame: &[u8], known: ReplySummary) {
    match parse_redis_value(frame) {
        Ok(value) => {
            let short = &frame[..frame.len() - 1];
            assert!(
                parse_redis_value(short).is_err(),
                "more than one answer: {}",
                frame.escape_ascii()
            );
            check_kind(&value, known);
        }
        // The scanner waits for more where a type other than a string or an array is invalid.
        Err(_) if frame.windows(2).any(|bytes| b"!=%|".contains(&bytes[0]) && bytes[1] == b'-') => {
        }
        Err(error) => {
            let is_short = error.kind() == ErrorKind::Io;
            assert!(!is_short, "less than one answer: {} ({error})", frame.escape_ascii());
        }
    }
}

fn check_kind(value: &Value, known: ReplySummary) {
    let mut value = value;
    while let Value::Attribute { data, .. } = value {
        value = data;
    }
    assert_eq!(known.is_push(), matches!(value, Value::Push { .. }), "{value:?}");
    assert_eq!(known.is_error(), matches!(value, Value::ServerError(_)), "{value:?}");
    let is_queued = matches!(value, Value::SimpleString(text) if text.starts_with("QUEUED"));
    assert_eq!(known.is_queued(), is_queued, "{value:?}");
}

/// Checks that generated replies are all found.
fn check_made(choices: &[u8], cuts: [u8; 4]) {
    let mut choices = choices.iter().copied();
    let mut frames = Vec::new();
    while choices.len() > 0 && frames.len() < MOST_FRAMES {
        let mut frame = Vec::new();
        make(&mut choices, DEPTH, &mut frame);
        frames.push(frame);
    }
    let stream = frames.concat();
    for found in [scan(&[&stream]), scan(&cut(&stream, cuts))] {
        assert!(!found.is_refused, "{}", stream.escape_ascii());
        assert!(found.rest.is_empty(), "{}", stream.escape_ascii());
        assert!(
            found.frames.iter().map(|(frame, _)| frame).eq(&frames),
            "{}",
            stream.escape_ascii()
        );
    }
}

/// More replies show nothing more.
const MOST_FRAMES: usize = 64;
/// The depth of nested aggregates.
const DEPTH: u32 = 4;

fn make(choices: &mut dyn Iterator<Item = u8>, depth: u32, frame: &mut Vec<u8>) {
    let (choice, size) = (choices.next().unwrap_or_default(), choices.next().unwrap_or_default());
    let simple = b"+-:_#,(";
    let measured = b"$!=";
    let aggregates = b"*~>%|";
    let pick = |kinds: &[u8]| kinds[usize::from(choice / 4) % kinds.len()];
    match choice % 4 {
        0 => {
            frame.push(pick(simple));
            // A line may contain anything but its own end.
            for byte in choices.take(usize::from(size % 8)) {
                frame.push(if byte == b'\n' && frame.ends_with(b"\r") { b' ' } else { byte });
            }
            frame.extend_from_slice(b"\r\n");
        }
        1 => {
            frame.push(pick(measured));
            let body: Vec<u8> = choices.take(usize::from(size)).collect();
            frame.extend_from_slice(format!("{}\r\n", body.len()).as_bytes());
            frame.extend_from_slice(&body);
            frame.extend_from_slice(b"\r\n");
        }
        2 if depth > 0 => {
            let kind = pick(aggregates);
            let count = size % 5;
            frame.extend_from_slice(format!("{}{count}\r\n", char::from(kind)).as_bytes());
            let elements = match kind {
                b'%' => count * 2,
                b'|' => count * 2 + 1,
                _ => count,
            };
            (0..elements).for_each(|_| make(choices, depth - 1, frame));
        }
        _ => frame.extend_from_slice(if size % 2 == 0 { b"$-1\r\n" } else { b"*-1\r\n" }),
    }
}
