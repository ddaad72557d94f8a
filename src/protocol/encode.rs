//! Answers as Redis sends them: how to write one. No I/O.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use bytes::{BufMut as _, BytesMut};

/// The version of the protocol that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2, with which every connection begins.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

/// Writes a value, but for what is in it: that and a line end follow.
pub(crate) fn write_bulk_length(out: &mut BytesMut, length: usize) {
    write_number(out, b'$', length);
}

/// Writes a value.
pub(crate) fn write_bulk(out: &mut BytesMut, value: &[u8]) {
    out.reserve(value.len() + 32);
    write_bulk_length(out, value.len());
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Writes that there is no value.
pub(crate) fn write_null(out: &mut BytesMut, protocol: Protocol) {
    out.put_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// Writes a whole number that is not negative.
pub(crate) fn write_integer(out: &mut BytesMut, number: usize) {
    write_number(out, b':', number);
}

/// Writes that an array of so many elements follows.
pub(crate) fn write_array_length(out: &mut BytesMut, length: usize) {
    write_number(out, b'*', length);
}

/// Writes an error: a code, and a text of one line.
pub(crate) fn write_error(out: &mut BytesMut, text: impl AsRef<[u8]>) {
    out.put_u8(b'-');
    out.extend(
        text.as_ref().iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }),
    );
    out.put_slice(b"\r\n");
}

fn write_number(out: &mut BytesMut, kind: u8, number: usize) {
    out.put_u8(kind);
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integer_is_encoded_in_decimal(number: usize) {
            let mut out = BytesMut::new();
            write_integer(&mut out, number);
            prop_assert_eq!(out.to_vec(), format!(":{number}\r\n").into_bytes());
        }
    }
}
