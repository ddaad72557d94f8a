//! The key of a value: any bytes, compared and hashed byte by byte.
//!
//! Nothing here may change a byte. Otherwise Redis would be queried for another key than the client
//! escaped.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// The name of a value in Redis: any bytes, of any length. It may be empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Returns the bytes, as they are sent to Redis.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the bytes of its allocation: two counters, and the bytes of the key. `block_size`
    /// returns the size of the block for a size and an alignment.
    pub fn footprint(&self, block_size: impl Fn(usize, usize) -> usize) -> usize {
        let word = size_of::<usize>();
        block_size((2 * word + self.0.len()).next_multiple_of(word), word)
    }

    /// Whether the key has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }
}

impl<const LENGTH: usize> From<&[u8; LENGTH]> for Key {
    fn from(bytes: &[u8; LENGTH]) -> Self {
        Self::from(&bytes[..])
    }
}

impl From<&Self> for Key {
    fn from(key: &Self) -> Self {
        key.clone()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A key, or its bytes. A [`Key`] is not allocated again where it has to be kept.
pub trait AsKey: Copy + AsRef<[u8]> + Into<Key> {}
impl<K: Copy + AsRef<[u8]> + Into<Key>> AsKey for K {}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Escapes the bytes. Otherwise a key in a log line could break the line or colour the terminal.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{found}\" at byte {offset} is not an escape: '%' takes two hexadecimal digits, and '%' \
        itself is written %25"
)]
pub struct BadEscape {
    /// The position of the `%`, in bytes from the start of the escaped key.
    pub offset: usize,
    /// The `%` and at most the two bytes after it, escaped for printing.
    pub found: String,
}

/// Percent-decodes `escaped` (RFC 3986, section 2.1) to bytes. A `+` remains a `+`. Borrows if
/// nothing is escaped.
///
/// # Errors
/// [`BadEscape`] for the first `%` that is not followed by two hexadecimal digits.
pub fn percent_decode(escaped: &[u8]) -> Result<Cow<'_, [u8]>, BadEscape> {
    let Some(first) = memchr::memchr(b'%', escaped) else {
        return Ok(Cow::Borrowed(escaped));
    };
    let mut decoded = Vec::with_capacity(escaped.len());
    decoded.extend_from_slice(&escaped[..first]);
    let mut offset = first;
    while offset < escaped.len() {
        if escaped[offset] == b'%' {
            decoded.push(escape_at(escaped, offset)?);
            offset += 3;
        } else {
            decoded.push(escaped[offset]);
            offset += 1;
        }
    }
    Ok(Cow::Owned(decoded))
}

fn escape_at(escaped: &[u8], offset: usize) -> Result<u8, BadEscape> {
    let digit = |index: usize| {
        let byte = *escaped.get(offset + index)?;
        char::from(byte).to_digit(16)
    };
    match (digit(1), digit(2)) {
        (Some(high), Some(low)) => Ok(u8::try_from(high * 16 + low).unwrap_or(u8::MAX)),
        _ => Err(BadEscape {
            offset,
            found: escaped[offset..escaped.len().min(offset + 3)].escape_ascii().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escape_all(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |escaped, byte| escaped + &format!("%{byte:02x}"))
    }

    #[test]
    fn malformed_escape_is_reported_with_offset() {
        for (escaped, offset, found) in [
            ("%", 0, "%"),
            ("ab%", 2, "%"),
            ("%4", 0, "%4"),
            ("%zz", 0, "%zz"),
            ("x%4gy", 1, "%4g"),
            ("%%41", 0, "%%4"),
        ] {
            let error = percent_decode(escaped.as_bytes()).unwrap_err();
            assert_eq!((error.offset, error.found.as_str()), (offset, found), "{escaped}");
        }
    }

    #[test]
    fn key_prints_on_one_line() {
        assert_eq!(format!("{:?}", Key::from(&b"a\r\n\x1b[31m\xff"[..])), r#""a\r\n\x1b[31m\xff""#);
    }

    proptest! {
        #[test]
        fn decoding_reverses_escaping(bytes: Vec<u8>) {
            let escaped = escape_all(&bytes);
            prop_assert_eq!(&*percent_decode(escaped.as_bytes()).unwrap(), &bytes[..]);
        }

        #[test]
        fn text_without_escapes_decodes_to_itself(text in "[^%]*") {
            let decoded = percent_decode(text.as_bytes()).unwrap();
            prop_assert!(matches!(decoded, Cow::Borrowed(b) if b == text.as_bytes()));
        }

        #[test]
        fn arbitrary_input_never_panics(bytes: Vec<u8>) {
            if let Ok(decoded) = percent_decode(&bytes) {
                prop_assert!(decoded.len() <= bytes.len());
            }
        }
    }
}
