//! Bearer tokens (RFC 6750): who sends one of those in a file may ask for everything, and all others for signs of life.
//!
//! A token is only ever compared by its digest, with every token there is and in the same time for each, so that how long it
//! takes tells nothing of them. It is taken from nowhere but the one `Authorization` header, and is never repeated.

use std::fs;
use std::path::{Path, PathBuf};

use blake3::Hash;
use http::{HeaderValue, Request, header};

use super::reloadable::{FileError, Prepare, Reloadable};

/// What is asked of whoever comes over HTTP.
#[derive(Clone)]
pub struct BearerAuth(Reloadable<Vec<Hash>>);

/// Marks a request that was let through without a token: it is to be told no more than whether all is well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unauthenticated;

/// The signs of life, which are told to everybody: whoever looks after the daemon often cannot send a token.
const PUBLIC_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// Why a request is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// It shows no token.
    MissingToken,
    InvalidToken,
    /// It is not clear what it shows.
    MultipleHeaders,
}

impl BearerAuth {
    /// Lets through who has one of the tokens in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or has another line than a token or a comment, or no token.
    pub fn load(key: &'static str, path: PathBuf) -> Result<Self, FileError> {
        Reloadable::load(move || read_tokens(key, &path)).map(Self)
    }

    /// For reloads.
    pub fn reloader(&self) -> Prepare {
        self.0.reloader()
    }

    /// Lets a request through, which is marked if it may only ask for signs of life.
    ///
    /// # Errors
    /// It shows no token, a wrong one, or more than one.
    pub(crate) fn authenticate<B>(&self, request: &mut Request<B>) -> Result<(), AuthError> {
        let shown =
            request.headers().get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        let Err(denied) = self.check(shown) else { return Ok(()) };
        if PUBLIC_PATHS.contains(&request.uri().path()) {
            request.extensions_mut().insert(Unauthenticated);
            return Ok(());
        }
        Err(denied)
    }

    /// Whether a request with these `Authorization` headers may ask for everything.
    pub(crate) fn is_authorized<'a>(&self, shown: impl Iterator<Item = &'a [u8]>) -> bool {
        self.check(shown).is_ok()
    }

    fn check<'a>(&self, mut shown: impl Iterator<Item = &'a [u8]>) -> Result<(), AuthError> {
        let (first, second) = (shown.next(), shown.next());
        if second.is_some() {
            return Err(AuthError::MultipleHeaders);
        }
        let shown = first.and_then(parse_bearer).ok_or(AuthError::MissingToken)?;
        let shown = blake3::hash(shown);
        // Not `any`, which would stop at the first that is right.
        let right = self.0.get().iter().filter(|token| **token == shown).count();
        if right > 0 { Ok(()) } else { Err(AuthError::InvalidToken) }
    }
}

/// The token in `Bearer <token>`; the scheme is the same in capitals, and spaces may be more than one (RFC 9110, 11.4).
fn parse_bearer(credentials: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = credentials.split_at_checked(SCHEME.len())?;
    let is_bearer =
        scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(|byte| *byte == b' ');
    let start = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    is_bearer.then(|| &rest[start..])
}

/// The digests of the tokens in a file: one a line, blank lines and those that begin with `#` left out.
fn read_tokens(key: &'static str, path: &Path) -> Result<Vec<Hash>, FileError> {
    let wrong = |problem: &dyn std::fmt::Display| FileError::new(key, path, problem);
    let text = fs::read(path).map_err(|error| wrong(&error))?;
    let mut digests = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate() {
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        if !is_valid_token(line) {
            let number = number + 1;
            return Err(wrong(&format_args!(
                "line {number}: found what can be no token, expected letters, digits and -._~+/, then any number of ="
            )));
        }
        digests.push(blake3::hash(line));
    }
    if digests.is_empty() {
        Err(wrong(&"found no token in it, expected one a line"))
    } else {
        Ok(digests)
    }
}

/// Whether it can be sent as a bearer token (RFC 6750, section 2.1: `b64token`).
fn is_valid_token(word: &[u8]) -> bool {
    let end = word.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    end > 0
        && word[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_follows_the_bearer_scheme() {
        for (credentials, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("BEARER   abc", Some("abc")),
            ("Bearer ", Some("")),
            ("Bearer", Some("")),
            ("Bearer abc def", Some("abc def")),
            ("Bearer\tabc", None),
            ("Bearerabc", None),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ] {
            assert_eq!(
                parse_bearer(credentials.as_bytes()),
                expected.map(str::as_bytes),
                "{credentials:?}"
            );
        }
    }

    #[test]
    fn token_syntax_is_token68() {
        for token in ["a", "aB9-._~+/", "YWJj==", "a="] {
            assert!(is_valid_token(token.as_bytes()), "{token}");
        }
        for token in ["", "=", "a=b", "a b", "a,b", "ä", "a\tb", "a#"] {
            assert!(!is_valid_token(token.as_bytes()), "{token}");
        }
    }
}
