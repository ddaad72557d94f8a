//! Commands as Redis reads them (`processInputBuffer` in `networking.c`, `sdssplitargs` in
//! `sds.c`), in the plainest form: all bytes are there, every argument is copied, and there is no
//! state.

use redis_proxy::protocol::{RequestLimits, UNAUTHENTICATED};

/// The largest number of arguments that Redis accepts from any client.
const MOST_ARGUMENTS: i64 = i32::MAX as i64;
/// The longest argument that Redis accepts by default.
const LONGEST_BULK: i64 = 512 << 20;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The bytes of the command.
    pub raw: Vec<u8>,
    /// The arguments.
    pub words: Vec<Vec<u8>>,
}

/// The rest behind the last command.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The beginning of another: its arguments so far, and the number of missing ones.
    Open(Vec<Vec<u8>>, usize),
    /// Invalid input, and the error of Redis.
    Refused(String),
}

/// The reason why no command was read.
enum Stop {
    More(Vec<Vec<u8>>, usize),
    Wrong(String),
}

/// Returns all commands of `stream`, and the rest behind them.
pub fn read(stream: &[u8], limits: RequestLimits) -> (Vec<Command>, End) {
    let mut commands = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let read = if rest[0] == b'*' { read_array(rest, limits) } else { read_line(rest) };
        match read {
            Ok((words, length)) => {
                commands.push(Command { raw: rest[..length].to_vec(), words });
                rest = &rest[length..];
            }
            Err(Stop::More(words, missing)) => return (commands, End::Open(words, missing)),
            Err(Stop::Wrong(text)) => {
                return (commands, End::Refused(format!("Protocol error: {text}")));
            }
        }
    }
    (commands, End::Open(Vec::new(), 0))
}

/// The arguments of the command at the front, and its length.
type Read = Result<(Vec<Vec<u8>>, usize), Stop>;

fn read_array(input: &[u8], limits: RequestLimits) -> Read {
    let (count, mut at) = number_line(input, 0).ok_or_else(|| Stop::More(Vec::new(), 0))?;
    let count =
        allowed(count, i64::MIN, limits.max_arguments, MOST_ARGUMENTS, limits, "multibulk")?;
    let count = usize::try_from(count).unwrap_or(0);
    let mut words = Vec::new();
    while words.len() < count {
        let missing = count - words.len();
        let Some((length, from)) = number_line(input, at) else {
            return Err(Stop::More(words, missing));
        };
        if input[at] != b'$' {
            let found =
                if matches!(input[at], b'\r' | b'\n') { ' ' } else { char::from(input[at]) };
            return Err(Stop::Wrong(format!("expected '$', got '{found}'")));
        }
        let length = allowed(length, 0, limits.max_bulk, LONGEST_BULK, limits, "bulk")?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if input.len() < from + length + 2 {
            return Err(Stop::More(words, missing));
        }
        words.push(input[from..from + length].to_vec());
        at = from + length + 2;
    }
    Ok((words, at))
}

/// Returns `number` if the limits allow it.
fn allowed(
    number: Option<i64>,
    least: i64,
    limit: usize,
    limit_of_all: i64,
    limits: RequestLimits,
    what: &str,
) -> Result<i64, Stop> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    match number {
        Some(number) if (least..=limit).contains(&number) => Ok(number),
        Some(number) if limits == UNAUTHENTICATED && (least..=limit_of_all).contains(&number) => {
            Err(Stop::Wrong(format!("unauthenticated {what} length")))
        }
        _ => Err(Stop::Wrong(format!("invalid {what} length"))),
    }
}

/// Returns the number behind the byte at `from`, and the start of the next line. A carriage return
/// and any byte end a line.
fn number_line(input: &[u8], from: usize) -> Option<(Option<i64>, usize)> {
    let end = from + text_before(&input[from..], b'\r')?;
    let number = input.get(from + 1..end).and_then(|text| {
        let number: i64 = str::from_utf8(text).ok()?.parse().ok()?;
        // Redis accepts a number only in its canonical form.
        (number.to_string().as_bytes() == text).then_some(number)
    });
    (end + 2 <= input.len()).then_some((number, end + 2))
}

/// Returns the number of bytes in front of the first `end`. In C a NUL ends the text.
fn text_before(input: &[u8], end: u8) -> Option<usize> {
    input.iter().take_while(|byte| **byte != 0).position(|byte| *byte == end)
}

fn read_line(input: &[u8]) -> Read {
    let end = text_before(input, b'\n').ok_or_else(|| Stop::More(Vec::new(), 0))?;
    let line = if end > 0 && input[end - 1] == b'\r' { &input[..end - 1] } else { &input[..end] };
    let words =
        words(line).ok_or_else(|| Stop::Wrong("unbalanced quotes in request".to_owned()))?;
    Ok((words, end + 1))
}

/// The position of the next byte in a line.
#[derive(Clone, Copy)]
enum Place {
    Between,
    Bare,
    Quoted(u8),
    /// Behind a closing quote.
    Closed,
}

fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    // Vertical tabs and form feeds are space between words, and part of a word within one.
    let ends_word = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let (mut words, mut word, mut place, mut at) = (Vec::new(), Vec::new(), Place::Between, 0);
    while at < line.len() {
        let byte = line[at];
        let is_quote = matches!(byte, b'"' | b'\'');
        let behind_backslash = if byte == b'\\' { line.get(at + 1) } else { None };
        match (place, behind_backslash) {
            (Place::Between, _) if is_space(byte) => {}
            (Place::Closed, _) if !is_space(byte) => return None,
            (Place::Closed, _) => place = end_word(&mut words, &mut word),
            (Place::Bare, _) if ends_word(byte) => place = end_word(&mut words, &mut word),
            (Place::Between | Place::Bare, _) if is_quote => place = Place::Quoted(byte),
            (Place::Between | Place::Bare, _) => {
                word.push(byte);
                place = Place::Bare;
            }
            (Place::Quoted(quote), _) if byte == quote => place = Place::Closed,
            (Place::Quoted(b'"'), Some(_)) => {
                let (meant, length) = escaped(&line[at + 1..]);
                word.push(meant);
                at += length;
            }
            (Place::Quoted(_), Some(b'\'')) => {
                word.push(b'\'');
                at += 1;
            }
            (Place::Quoted(_), _) => word.push(byte),
        }
        at += 1;
    }
    match place {
        Place::Between => {}
        Place::Bare | Place::Closed => words.push(word),
        Place::Quoted(_) => return None,
    }
    Some(words)
}

fn end_word(words: &mut Vec<Vec<u8>>, word: &mut Vec<u8>) -> Place {
    words.push(std::mem::take(word));
    Place::Between
}

/// Returns the byte that an escape behind a backslash stands for, and its length.
fn escaped(text: &[u8]) -> (u8, usize) {
    let hex =
        text.get(1..3).filter(|digits| text[0] == b'x' && digits.iter().all(u8::is_ascii_hexdigit));
    let hex = hex.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
    match (hex, text[0]) {
        (Some(byte), _) => (byte, 3),
        (None, b'n') => (b'\n', 1),
        (None, b'r') => (b'\r', 1),
        (None, b't') => (b'\t', 1),
        (None, b'b') => (8, 1),
        (None, b'a') => (7, 1),
        (None, other) => (other, 1),
    }
}
