//! A file of bearer tokens with rights: one token a line, with options behind it.
//!
//! Only digests are kept. Each comparison covers every token in the file and takes the same time,
//! otherwise the response time would disclose tokens.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use blake3::Hash;

use super::allowlist::KeyAllowlist;
use super::bearer::is_valid_token;
use super::reloadable::{FileError, Prepare, Reloadable};

/// The rights of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRights {
    /// Whether the token may change nothing.
    pub is_read_only: bool,
    /// Whether the token may empty the cache.
    pub may_purge: bool,
    /// The keys that the token may use. An empty list allows all.
    pub keys: KeyAllowlist,
}

/// The tokens of a file. Clones share them.
#[derive(Clone)]
pub struct TokenFile(Reloadable<Vec<(Hash, TokenRights)>>);

impl TokenFile {
    /// Loads the tokens from the file at `path`. `key` is the configuration key that names the
    /// file.
    ///
    /// # Errors
    /// `FileError` if the file cannot be read, holds no token, or has a line that is neither a
    /// token nor a comment.
    pub fn load(key: &'static str, path: PathBuf) -> Result<Self, FileError> {
        Reloadable::load(move || read(key, &path)).map(Self)
    }

    /// Returns the function that reads the file again at a reload.
    pub fn reloader(&self) -> Prepare {
        self.0.reloader()
    }

    /// Returns the rights of a token; `None` if it is not in the file.
    pub fn rights(&self, token: &[u8]) -> Option<TokenRights> {
        let shown = blake3::hash(token);
        let mut found = None;
        // `find` would stop at the first match, and its duration would depend on the position of
        // the token.
        for (digest, rights) in self.0.get().iter() {
            if *digest == shown {
                found = Some(rights.clone());
            }
        }
        found
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<(Hash, TokenRights)>, FileError> {
    let wrong = |problem: &dyn Display| FileError::new(key, path, problem);
    let text = fs::read(path).map_err(|error| wrong(&error))?;
    parse(&text).map_err(|problem| wrong(&problem))
}

/// Parses the file, skipping blank lines and lines that begin with `#`.
fn parse(text: &[u8]) -> Result<Vec<(Hash, TokenRights)>, String> {
    let mut tokens: Vec<(Hash, TokenRights)> = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate() {
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let number = number + 1;
        let (digest, rights) =
            parse_line(line).map_err(|problem| format!("line {number}: {problem}"))?;
        if tokens.iter().any(|(other, _)| *other == digest) {
            return Err(format!("line {number}: found a token a second time, expected it once"));
        }
        tokens.push((digest, rights));
    }
    if tokens.is_empty() {
        Err("found no token in it, expected one a line".into())
    } else {
        Ok(tokens)
    }
}

fn parse_line(line: &[u8]) -> Result<(Hash, TokenRights), &'static str> {
    const NO_TOKEN: &str = "found what can be no token, expected letters, digits and -._~+/, then \
        any number of =";
    const NO_OPTION: &str = "found an unknown option behind the token, expected read-only, purge \
        or keys=prefix*,...";
    const NO_KEYS: &str = "found an invalid list of keys, expected keys=name,prefix*,...";
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let token = words.next().filter(|word| is_valid_token(word)).ok_or(NO_TOKEN)?;
    let mut rights = TokenRights::default();
    for option in words {
        match option {
            b"read-only" => rights.is_read_only = true,
            b"purge" => rights.may_purge = true,
            _ => {
                let keys = option.strip_prefix(b"keys=").ok_or(NO_OPTION)?;
                let keys = std::str::from_utf8(keys).ok().and_then(KeyAllowlist::parse);
                rights.keys = keys.filter(|keys| !keys.allows_all()).ok_or(NO_KEYS)?;
            }
        }
    }
    Ok((blake3::hash(token), rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_token() {
        let text =
            b"# comment\n\nfull\nreader  read-only\r\nscoped keys=a:*,b read-only\nall purge";
        let found: Vec<_> = parse(text).unwrap().into_iter().map(|(_, rights)| rights).collect();
        let keys = |text| KeyAllowlist::parse(text).unwrap();
        let plain = TokenRights::default();
        assert_eq!(
            found,
            [
                plain.clone(),
                TokenRights { is_read_only: true, ..plain.clone() },
                TokenRights { is_read_only: true, keys: keys("a:*,b"), ..plain.clone() },
                TokenRights { may_purge: true, ..plain },
            ]
        );
    }

    #[test]
    fn doubtful_line_rejects_the_file() {
        for text in [
            "",
            "# only\n",
            "a b",
            "tok readonly",
            "tok keys=",
            "tok keys=a*b",
            "tok keys=a,,b",
            "tok keys",
            "tok KEYS=a",
            "a,b",
            "ok\nok",
            "ok\nok read-only",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let error = parse(b"secret\nsecret-two x").unwrap_err();
        assert!(error.starts_with("line 2:") && !error.contains("secret"), "{error}");
    }
}
