//! The Redis protocol, RESP2 and RESP3, as bytes: the ends of commands and replies, and the
//! encoding of replies. No I/O.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

mod encode;
mod equivalence;
mod inline;
mod reply_frame;
mod reply_scanner;
mod request;
mod resp2;

pub use self::encode::Protocol;
pub(crate) use self::encode::{
    BULK_OVERHEAD, write_array_length, write_bulk, write_bulk_length, write_command, write_error,
    write_integer, write_null, write_text,
};
pub use self::equivalence::MemberOrder;
pub(crate) use self::equivalence::is_equivalent;
pub use self::reply_frame::ReplyFrame;
pub use self::reply_scanner::{InvalidReply, ReplyScanner, ReplySummary};
pub use self::request::{
    Arguments, ParseStatus, ProtocolError, RequestLimits, RequestParser, UNAUTHENTICATED,
};
pub(crate) use self::request::{is_one_of, parse_digits, parse_integer, plain_gets};
pub(crate) use self::resp2::flat_members;
pub use self::resp2::{Nil, Resp2Form, Shape, write_resp2};

#[cfg(test)]
pub(crate) mod tests {
    use super::{ParseStatus, RequestLimits, RequestParser};

    /// Parses a line of words as one inline command. Returns its bytes and the parser that has read
    /// it.
    pub(crate) fn parsed(line: &str) -> (Vec<u8>, RequestParser) {
        let (input, mut parser) = (format!("{line}\r\n").into_bytes(), RequestParser::default());
        let limits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1024 };
        assert_eq!(parser.parse(&input, limits), Ok(ParseStatus::Complete(input.len())));
        (input, parser)
    }
}
