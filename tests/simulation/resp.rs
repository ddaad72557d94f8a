//! The protocol of Redis as the model and the clients of a simulation need it: requests are parsed,
//! and replies are written and parsed.

use std::ops::Range;

/// The version of the protocol on a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Protocol {
    Resp2,
    Resp3,
}

/// Takes the next complete command from the front of `input`.
pub(super) fn take_command(input: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    loop {
        let (command, length) = parse_command(input)?;
        input.drain(..length);
        if !command.is_empty() {
            return Some(command);
        }
    }
}

/// Returns the command at the front of `input`, and its length.
fn parse_command(input: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (line, mut at) = line(input, 0)?;
    let Some(count) = input[line.clone()].strip_prefix(b"*") else {
        let words = input[line].split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        return Some((words.map(<[u8]>::to_vec).collect(), at));
    };
    let mut command = Vec::new();
    for _ in 0..number(count) {
        let (head, begin) = self::line(input, at)?;
        let end = begin + usize::try_from(number(&input[head.start + 1..head.end])).ok()?;
        command.push(input.get(begin..end)?.to_vec());
        at = end + 2;
    }
    (at <= input.len()).then_some((command, at))
}

/// Returns the line that begins at `from`, and the place behind it.
fn line(input: &[u8], from: usize) -> Option<(Range<usize>, usize)> {
    let end = from + input.get(from..)?.windows(2).position(|pair| pair == b"\r\n")?;
    Some((from..end, end + 2))
}

fn number(digits: &[u8]) -> i64 {
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Returns a command as a client sends it.
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut output = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bulk(&mut output, word);
    }
    output
}

pub(super) fn bulk(output: &mut Vec<u8>, text: &[u8]) {
    output.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    output.extend_from_slice(text);
    output.extend_from_slice(b"\r\n");
}

/// A reply, or a push.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Text(Vec<u8>),
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Null,
    Array(Vec<Reply>),
    Push(Vec<Reply>),
}

/// Takes the next complete reply from the front of `input`.
pub(super) fn take_reply(input: &mut Vec<u8>) -> Option<Reply> {
    let (reply, length) = parse_reply(input, 0)?;
    input.drain(..length);
    Some(reply)
}

/// Returns the reply that begins at `from`, and the place behind it.
fn parse_reply(input: &[u8], from: usize) -> Option<(Reply, usize)> {
    let (head, mut at) = line(input, from)?;
    let (kind, rest) = (input[head.start], &input[head.start + 1..head.end]);
    let count = number(rest);
    let items = match kind {
        b'+' => return Some((Reply::Simple(rest.to_vec()), at)),
        b'-' => return Some((Reply::Error(rest.to_vec()), at)),
        b':' => return Some((Reply::Integer(count), at)),
        b'_' => return Some((Reply::Null, at)),
        b'$' | b'*' if count < 0 => return Some((Reply::Null, at)),
        b'$' | b'=' => {
            let end = at + usize::try_from(count).ok()?;
            let text = input.get(at..end)?.to_vec();
            return (end + 2 <= input.len()).then_some((Reply::Text(text), end + 2));
        }
        b'%' => 2 * count,
        b'*' | b'~' | b'>' => count,
        other => panic!("the reply begins with {:?}", char::from(other)),
    };
    let mut parts = Vec::new();
    for _ in 0..items {
        let (part, end) = parse_reply(input, at)?;
        parts.push(part);
        at = end;
    }
    Some((if kind == b'>' { Reply::Push(parts) } else { Reply::Array(parts) }, at))
}
