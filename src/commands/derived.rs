//! Replies that follow from the kept reply to a read of the whole hash or set.
//!
//! `HGETALL` has all fields that a client may see, and its reply ends with the first of them. So
//! the reply to `HGET` of the same hash follows from it, and is right for as long. `HLEN` does not
//! follow: it also counts fields that have expired, until Redis removes them.
//!
//! A collection with many members is not searched, because a search takes time in proportion to
//! their number.

use bytes::BytesMut;

use crate::protocol::{
    Arguments, Protocol, ReplyFrame, Shape, flat_members, write_array_length, write_bulk,
    write_integer, write_null,
};

/// The way in which a reply follows from that for the whole collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Derivation {
    /// `HGET`.
    Field,
    /// `HMGET`.
    Fields,
    /// `HEXISTS`.
    HasField,
    /// `HKEYS`.
    Names,
    /// `HVALS`.
    Values,
    /// `HSTRLEN`.
    FieldLength,
    /// `SISMEMBER`.
    HasMember,
    /// `SMISMEMBER`.
    HaveMembers,
    /// `SCARD`.
    MemberCount,
}

impl Derivation {
    /// The name of the command that reads the whole collection.
    pub(super) fn whole(self) -> &'static [u8] {
        match self {
            Self::Field
            | Self::Fields
            | Self::HasField
            | Self::Names
            | Self::Values
            | Self::FieldLength => b"HGETALL",
            Self::HasMember | Self::HaveMembers | Self::MemberCount => b"SMEMBERS",
        }
    }

    /// Derives the reply to a command from `whole`, the reply for the whole collection in RESP3.
    /// `None` if the collection has more than `max` fields or members.
    pub(super) fn apply(
        self,
        arguments: Arguments<'_>,
        whole: &[u8],
        max: usize,
    ) -> Option<ReplyFrame> {
        let members = flat_members(whole, max)?;
        let mut output = BytesMut::new();
        match self {
            Self::HasMember | Self::HaveMembers | Self::MemberCount => {
                self.write_of_set(arguments, &members, &mut output);
            }
            _ => self.write_of_hash(arguments, &members, &mut output),
        }
        Some(ReplyFrame::new(output.freeze(), Shape::default()))
    }

    fn write_of_hash(self, arguments: Arguments<'_>, members: &[&[u8]], output: &mut BytesMut) {
        let fields = || members.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let value =
            |name: &[u8]| fields().find(|(field, _)| *field == name).map(|(_, value)| value);
        match self {
            Self::Fields => {
                write_array_length(output, arguments.len() - 2);
                arguments.skip(2).for_each(|name| write_value(output, value(name)));
            }
            Self::HasField => write_integer(output, value(arguments.get(2)).is_some().into()),
            Self::FieldLength => {
                write_integer(output, value(arguments.get(2)).map_or(0, <[u8]>::len));
            }
            Self::Names | Self::Values => {
                write_array_length(output, members.len() / 2);
                let is_names = self == Self::Names;
                fields().for_each(|(name, value)| {
                    write_bulk(output, if is_names { name } else { value });
                });
            }
            _ => write_value(output, value(arguments.get(2))),
        }
    }

    fn write_of_set(self, arguments: Arguments<'_>, members: &[&[u8]], output: &mut BytesMut) {
        let has = |name: &[u8]| usize::from(members.contains(&name));
        match self {
            Self::MemberCount => write_integer(output, members.len()),
            Self::HaveMembers => {
                write_array_length(output, arguments.len() - 2);
                arguments.skip(2).for_each(|name| write_integer(output, has(name)));
            }
            _ => write_integer(output, has(arguments.get(2))),
        }
    }
}

fn write_value(output: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        Some(value) => write_bulk(output, value),
        None => write_null(output, Protocol::Resp3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tests::parsed;

    const HASH: &[u8] = b"%2\r\n$1\r\na\r\n$2\r\n11\r\n$1\r\nb\r\n$0\r\n\r\n";
    const SET: &[u8] = b"~2\r\n$1\r\na\r\n$1\r\nb\r\n";

    fn derived(derivation: Derivation, line: &str, whole: &[u8]) -> Option<String> {
        let (input, parser) = parsed(line);
        let frame = derivation.apply(parser.arguments(&input), whole, 2)?;
        Some(String::from_utf8_lossy(frame.bytes()).into_owned())
    }

    #[test]
    fn reply_follows_from_the_whole_collection() {
        for (derivation, line, whole, expected) in [
            (Derivation::Field, "HGET h a", HASH, "$2\r\n11\r\n"),
            (Derivation::Field, "HGET h b", HASH, "$0\r\n\r\n"),
            (Derivation::Field, "HGET h 11", HASH, "_\r\n"),
            (Derivation::Fields, "HMGET h b x a", HASH, "*3\r\n$0\r\n\r\n_\r\n$2\r\n11\r\n"),
            (Derivation::HasField, "HEXISTS h b", HASH, ":1\r\n"),
            (Derivation::HasField, "HEXISTS h x", HASH, ":0\r\n"),
            (Derivation::Names, "HKEYS h", HASH, "*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
            (Derivation::Values, "HVALS h", HASH, "*2\r\n$2\r\n11\r\n$0\r\n\r\n"),
            (Derivation::FieldLength, "HSTRLEN h a", HASH, ":2\r\n"),
            (Derivation::FieldLength, "HSTRLEN h x", HASH, ":0\r\n"),
            (Derivation::Field, "HGET h a", b"%0\r\n", "_\r\n"),
            (Derivation::Names, "HKEYS h", b"%0\r\n", "*0\r\n"),
            (Derivation::HasMember, "SISMEMBER s b", SET, ":1\r\n"),
            (Derivation::HasMember, "SISMEMBER s x", SET, ":0\r\n"),
            (Derivation::HaveMembers, "SMISMEMBER s x a", SET, "*2\r\n:0\r\n:1\r\n"),
            (Derivation::MemberCount, "SCARD s", SET, ":2\r\n"),
            (Derivation::MemberCount, "SCARD s", b"~0\r\n", ":0\r\n"),
        ] {
            assert_eq!(derived(derivation, line, whole).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn larger_or_other_reply_derives_nothing() {
        for whole in [
            &b"%3\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n1\r\n$1\r\nc\r\n$1\r\n1\r\n"[..],
            b"~3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
            b"%1\r\n$1\r\na\r\n:1\r\n",
            b"%2\r\n$1\r\na\r\n$1\r\n1\r\n",
            b"$1\r\na\r\n",
            b"",
        ] {
            assert_eq!(derived(Derivation::Field, "HGET h a", whole), None);
        }
    }
}
