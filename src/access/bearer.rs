//! Bearer tokens (RFC 6750): a request with a token from the file may read everything. All others
//! may only read the health endpoints (invariant A3).
//!
//! Tokens are compared by digest only. Each comparison covers every token in the file and takes the
//! same time, otherwise the response time would disclose tokens. A token is read only from the
//! single `Authorization` header, and is never repeated in a response or a log line.

use std::fs;
use std::path::{Path, PathBuf};

use blake3::Hash;
use http::{HeaderValue, Request, header};

use super::reloadable::{FileError, Prepare, Reloadable};

/// The bearer authentication of an HTTP listener. Clones share the tokens.
#[derive(Clone)]
pub struct BearerAuth(Reloadable<Vec<Token>>);

/// A token of the file.
#[derive(Clone, Copy)]
struct Token {
    digest: Hash,
    may_purge: bool,
}

/// Marks a request that passed without a token. It may learn only whether the daemon is well, and
/// no detail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unauthenticated;

/// The health endpoints, which need no token: the tools that supervise the daemon often cannot send
/// one.
const PUBLIC_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// The reasons for which a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// The request has no bearer token.
    MissingToken,
    InvalidToken,
    /// The request has several `Authorization` headers, so its token is ambiguous.
    MultipleHeaders,
}

impl BearerAuth {
    /// Loads the tokens from the file at `path`. `key` is the configuration key that names the
    /// file.
    ///
    /// # Errors
    /// `FileError` if the file cannot be read, holds no token, or has a line that is neither a
    /// token nor a comment.
    pub fn load(key: &'static str, path: PathBuf) -> Result<Self, FileError> {
        Reloadable::load(move || read_tokens(key, &path)).map(Self)
    }

    /// Returns the function that reads the file again at a reload.
    pub fn reloader(&self) -> Prepare {
        self.0.reloader()
    }

    /// Authenticates a request. A request without a valid token passes only to the health
    /// endpoints, and is marked as [`Unauthenticated`].
    ///
    /// # Errors
    /// - `AuthError::MissingToken` if the request has no bearer token.
    /// - `AuthError::InvalidToken` if the token is not in the file.
    /// - `AuthError::MultipleHeaders` if there are several `Authorization` headers.
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

    /// Whether a request with these `Authorization` headers may read everything.
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
        // Counts all matches. `any` would stop at the first match, and its duration would depend on
        // the position of the token.
        let right = self.0.get().iter().filter(|token| token.digest == shown).count();
        if right > 0 { Ok(()) } else { Err(AuthError::InvalidToken) }
    }
}

impl BearerAuth {
    /// Whether a token has the right `purge`.
    pub(super) fn may_purge(&self, token: &[u8]) -> bool {
        let shown = blake3::hash(token);
        // Counts all matches, as above.
        let tokens = self.0.get();
        let found = tokens.iter().filter(|token| token.digest == shown && token.may_purge);
        found.count() > 0
    }
}

/// Returns the token in `Bearer <token>`, or `None` for another scheme. The scheme is
/// case-insensitive, and several spaces may follow it (RFC 9110, section 11.4).
pub(crate) fn parse_bearer(credentials: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = credentials.split_at_checked(SCHEME.len())?;
    let is_bearer =
        scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(|byte| *byte == b' ');
    let start = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    is_bearer.then(|| &rest[start..])
}

/// Reads the tokens in a file: one token a line, with `purge` behind it if it has that right. Skips
/// blank lines and lines that begin with `#`.
fn read_tokens(key: &'static str, path: &Path) -> Result<Vec<Token>, FileError> {
    let wrong = |problem: &dyn std::fmt::Display| FileError::new(key, path, problem);
    let text = fs::read(path).map_err(|error| wrong(&error))?;
    let mut digests = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate() {
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let Some(token) = parse_token(line) else {
            let number = number + 1;
            return Err(wrong(&format_args!(
                "line {number}: found what can be no token, expected letters, digits and -._~+/, \
                    then any number of =; and purge behind it, or nothing"
            )));
        };
        digests.push(token);
    }
    if digests.is_empty() {
        Err(wrong(&"found no token in it, expected one a line"))
    } else {
        Ok(digests)
    }
}

fn parse_token(line: &[u8]) -> Option<Token> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let token = words.next().filter(|word| is_valid_token(word))?;
    let may_purge = match words.next() {
        None => false,
        Some(word) if word == b"purge" => true,
        Some(_) => return None,
    };
    words.next().is_none().then(|| Token { digest: blake3::hash(token), may_purge })
}

/// Whether a word can be sent as a bearer token (RFC 6750, section 2.1: `b64token`).
pub(super) fn is_valid_token(word: &[u8]) -> bool {
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
    fn purge_is_the_only_option() {
        let may_purge = |line: &str| parse_token(line.as_bytes()).map(|token| token.may_purge);
        for (line, expected) in [
            ("abc", Some(false)),
            ("abc purge", Some(true)),
            ("abc\t purge", Some(true)),
            ("abc purge purge", None),
            ("abc read-only", None),
            ("abc PURGE", None),
        ] {
            assert_eq!(may_purge(line), expected, "{line}");
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
