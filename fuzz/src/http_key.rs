//! Keys in the path of an HTTP request: decoded as another library decodes them, and rejected where
//! RFC 3986 says so.

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use redis_proxy::key::percent_decode;

/// Checks `input` as a key, once as a path and once as its bytes.
///
/// # Panics
///
/// If it is not decoded to the bytes that were escaped.
pub fn check(input: &[u8]) {
    let wrong_at = first_bad_escape(input);
    match percent_decode(input) {
        Ok(decoded) => {
            assert_eq!(wrong_at, None);
            assert_eq!(*decoded, *percent_encoding::percent_decode(input).collect::<Vec<_>>());
        }
        Err(error) => {
            assert_eq!(Some(error.offset), wrong_at);
            assert!(
                error.found.starts_with('%')
                    && error.found.chars().all(|letter| matches!(letter, ' '..='~'))
            );
        }
    }
    let escaped = percent_encode(input, NON_ALPHANUMERIC).to_string();
    assert_eq!(percent_decode(escaped.as_bytes()).as_deref(), Ok(input));
}

/// Returns the position of the first `%` without two hexadecimal digits behind it. The two digits
/// of an escape are no `%` themselves.
fn first_bad_escape(escaped: &[u8]) -> Option<usize> {
    let is_good = |at: usize| {
        let digits = escaped.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    (0..escaped.len()).find(|at| escaped[*at] == b'%' && !is_good(*at))
}
