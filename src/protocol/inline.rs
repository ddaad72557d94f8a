//! Inline commands: lines of words, quoted by Redis's rules.

use std::ops::Range;

/// Splits a line into words like Redis's `sdssplitargs`: `"` with escapes, `'` with `\'`. Returns
/// `None` if a quote is not closed, or is closed in the middle of a word.
pub(super) fn split_words(
    line: &[u8],
    words: &mut Vec<u8>,
    ranges: &mut Vec<Range<usize>>,
) -> Option<()> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // C's `isspace` includes vertical tabs.
        while let [0x0b, after @ ..] = rest {
            rest = after.trim_ascii_start();
        }
        if rest.is_empty() {
            return Some(());
        }
        let begin = words.len();
        rest = take_word(rest, words)?;
        ranges.push(begin..words.len());
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn take_word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'"' => return end_of_quote(take_quoted(after, words)?),
            b'\'' => return end_of_quote(take_single_quoted(after, words)?),
            // Vertical tabs and form feeds do not end a word. They are white space only between
            // words.
            b' ' | b'\t' | b'\n' | b'\r' => return Some(rest),
            byte => {
                words.push(*byte);
                after
            }
        };
    }
    Some(rest)
}

/// Checks that a closing quote ends its word, and returns the rest of the line.
fn end_of_quote(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|byte| is_space(*byte)).then_some(rest)
}

fn take_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, after @ ..]
                if digit(*high).is_some() && digit(*low).is_some() =>
            {
                words.push(digit(*high)? * 16 + digit(*low)?);
                after
            }
            [b'\\', letter, after @ ..] => {
                words.push(match letter {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    letter => *letter,
                });
                after
            }
            [b'"', after @ ..] => return Some(after),
            [byte, after @ ..] => {
                words.push(*byte);
                after
            }
            [] => return None,
        };
    }
}

fn take_single_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'\'', after @ ..] => {
                words.push(b'\'');
                after
            }
            [b'\'', after @ ..] => return Some(after),
            [byte, after @ ..] => {
                words.push(*byte);
                after
            }
            [] => return None,
        };
    }
}
