//! Requests of the REST front end: the commands of a body are those that a plain JSON decoder
//! finds, and each has the words that the RESP parser reads from it.

use bytes::BytesMut;
use redis_proxy::protocol::{ParseStatus, RequestLimits, RequestParser};
use redis_proxy::rest::codec::{Commands, DecodeLimits};

/// Checks `input` as a body, as a path and as a query.
///
/// # Panics
///
/// If the commands are not those of the input.
pub fn check(input: &[u8]) {
    let decoded: Option<Vec<serde_json::Value>> = serde_json::from_slice(input).ok();
    if let Ok(commands) = Commands::single(input) {
        // A number may be out of the range of a plain decoder.
        let words = decoded.unwrap_or_default();
        let strings = words.iter().zip(commands.iter().next().expect("one command").iter());
        for (word, found) in strings.filter(|(word, _)| word.is_string()) {
            assert_eq!(word.as_str().map(str::as_bytes), Some(found));
        }
        assert_eq!(commands.len(), 1);
        check_words(&commands);
    }
    if let Ok(commands) = Commands::pipeline(input, DecodeLimits { max_commands: 8 }) {
        assert!(!commands.is_empty() && commands.len() <= 8);
        let lines = decoded_lines(input);
        for (words, found) in lines.iter().zip(commands.iter()) {
            assert_eq!(words.len(), found.len());
            let strings = words.iter().zip(found.iter()).filter(|(word, _)| word.is_string());
            strings.for_each(|(word, found)| {
                assert_eq!(word.as_str().map(str::as_bytes), Some(found));
            });
        }
        assert!(lines.is_empty() || lines.len() == commands.len());
        check_words(&commands);
    }
    let text = String::from_utf8_lossy(input);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    if let Ok(commands) = Commands::path(path, input, Some(query)) {
        check_words(&commands);
    }
}

/// The words of a body as a plain decoder finds them; empty if a number is out of its range.
fn decoded_lines(input: &[u8]) -> Vec<Vec<serde_json::Value>> {
    serde_json::from_slice(input).unwrap_or_default()
}

/// The RESP parser has to read the words that were decoded.
fn check_words(commands: &Commands) {
    let limits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1 << 20 };
    for command in commands.iter() {
        let (mut written, mut parser) = (BytesMut::new(), RequestParser::default());
        command.write(&mut written);
        assert_eq!(parser.parse(&written, limits), Ok(ParseStatus::Complete(written.len())));
        let arguments = parser.arguments(&written);
        assert!(arguments.skip(0).eq(command.iter()) && !command.get(0).is_empty());
    }
}
