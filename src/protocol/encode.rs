//! The encoder of RESP replies. No I/O.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use bytes::{BufMut as _, BytesMut};

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2, the version of every new connection.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

/// Writes the header of a bulk string. The value and a line end must follow.
pub(crate) fn write_bulk_length(out: &mut BytesMut, length: usize) {
    write_number(out, b'$', length);
}

/// The most bytes of a bulk string besides its value.
pub(crate) const BULK_OVERHEAD: usize = 32;

/// Writes a bulk string.
pub(crate) fn write_bulk(out: &mut BytesMut, value: &[u8]) {
    out.reserve(value.len() + BULK_OVERHEAD);
    write_bulk_length(out, value.len());
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Writes a text: a verbatim string in RESP3, a bulk string in RESP2.
pub(crate) fn write_text(out: &mut BytesMut, text: &[u8], protocol: Protocol) {
    match protocol {
        Protocol::Resp2 => write_bulk(out, text),
        Protocol::Resp3 => {
            write_number(out, b'=', text.len() + 4);
            out.put_slice(b"txt:");
            out.put_slice(text);
            out.put_slice(b"\r\n");
        }
    }
}

/// Writes a null value.
pub(crate) fn write_null(out: &mut BytesMut, protocol: Protocol) {
    out.put_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// Writes a non-negative integer.
pub(crate) fn write_integer(out: &mut BytesMut, number: usize) {
    write_number(out, b':', number);
}

/// Writes the header of an array of `length` elements, which must follow.
pub(crate) fn write_array_length(out: &mut BytesMut, length: usize) {
    write_number(out, b'*', length);
}

/// Writes a command of `length` words: its name and its arguments.
pub(crate) fn write_command<'a>(
    out: &mut BytesMut,
    length: usize,
    words: impl Iterator<Item = &'a [u8]>,
) {
    write_array_length(out, length);
    words.for_each(|word| write_bulk(out, word));
}

/// Writes an error: a code and a one-line text. Line breaks in `text` become spaces, otherwise they
/// would end the reply.
pub(crate) fn write_error(out: &mut BytesMut, text: impl AsRef<[u8]>) {
    out.put_u8(b'-');
    out.extend(
        text.as_ref().iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }),
    );
    out.put_slice(b"\r\n");
}

fn write_number(out: &mut BytesMut, kind: u8, number: usize) {
    let digit = |digit: usize| b'0' + digit.to_le_bytes()[0];
    let (tens, ones) = (number / 10, number % 10);
    // Nearly all lengths are short. One write of an array costs a third of three writes.
    match number {
        0..=9 => out.put_slice(&[kind, digit(ones), b'\r', b'\n']),
        10..=99 => out.put_slice(&[kind, digit(tens), digit(ones), b'\r', b'\n']),
        100..=999 => {
            out.put_slice(&[kind, digit(tens / 10), digit(tens % 10), digit(ones), b'\r', b'\n']);
        }
        _ => {
            out.put_u8(kind);
            out.put_slice(itoa::Buffer::new().format(number).as_bytes());
            out.put_slice(b"\r\n");
        }
    }
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
