//! Problems of a configuration.

use std::fmt;

use config::{ConfigError, Value};

use crate::access::FileError;

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, the environment variable or the flag that holds the value.
    pub origin: String,
    /// The key, such as `cache.ttl`. Empty if the problem concerns the whole source.
    pub key: String,
    /// The value that was found, and the values that are allowed.
    pub text: String,
}

impl Problem {
    /// Describes a file that the configuration names and that cannot be used.
    pub(crate) fn from_file_error(error: &FileError) -> Self {
        Self {
            origin: error.path.display().to_string(),
            key: error.key.clone(),
            text: error.problem.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, text } = self;
        let line = if key.is_empty() {
            format!("{origin}: {text}")
        } else {
            format!("{origin}: {key}: {text}")
        };
        f.write_str(&printable(&line))
    }
}

/// Escapes control characters, because TOML allows any text as a key. Otherwise a key could break
/// the line or colour the terminal.
fn printable(line: &str) -> String {
    let letters = line.chars().map(|letter| {
        if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() }
    });
    letters.collect()
}

/// All problems of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Concatenates the problems of several checks.
    pub(crate) fn merge(found: impl IntoIterator<Item = Option<Self>>) -> Self {
        Self(found.into_iter().flatten().flat_map(|problems| problems.0).collect())
    }

    /// Whether at least one problem is on the command line.
    pub fn has_flag_error(&self) -> bool {
        self.0.iter().any(|problem| problem.origin.starts_with("--"))
    }
}

pub(super) fn problem_at(key: &str, value: Option<&Value>, text: String) -> Problem {
    let origin = value.and_then(Value::origin).unwrap_or("defaults");
    Problem { origin: origin.to_owned(), key: key.to_owned(), text }
}

/// Returns the text of the innermost error. The outer ones name places inside the library.
pub(super) fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => explain(error),
        ConfigError::Type { unexpected, expected, .. } => {
            format!("found {unexpected}, expected {expected}")
        }
        ConfigError::Message(text) => {
            text.replacen("invalid value: ", "found ", 1).replacen("invalid type: ", "found ", 1)
        }
        other => other.to_string(),
    }
}
