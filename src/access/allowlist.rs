//! The allowlist of a listener: the keys that it serves, each given by its whole name or by a
//! prefix.
//!
//! A key outside the list gets the same response whether it exists or not, before any lookup. Only
//! its name is checked (invariant A4).

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::settings::list_words;

/// The keys that may be read. An empty list allows all keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyAllowlist(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// This key alone.
    Whole(String),
    /// All keys that begin with this prefix.
    Prefix(String),
}

impl KeyAllowlist {
    /// Whether all keys are allowed.
    pub fn allows_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Parses patterns separated by commas. Returns `None` if one of them is invalid.
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|word| Pattern::parse(word).ok()).collect::<Option<_>>().map(Self)
    }

    /// Whether all keys that begin with `prefix` are allowed.
    pub fn allows_prefix(&self, prefix: &[u8]) -> bool {
        let covers = |pattern: &Pattern| match pattern {
            Pattern::Whole(_) => false,
            Pattern::Prefix(own) => prefix.starts_with(own.as_bytes()),
        };
        self.allows_all() || self.0.iter().any(covers)
    }

    /// Whether this key is allowed.
    pub fn allows(&self, key: &[u8]) -> bool {
        let matches = |pattern: &Pattern| match pattern {
            Pattern::Whole(whole) => key == whole.as_bytes(),
            Pattern::Prefix(prefix) => key.starts_with(prefix.as_bytes()),
        };
        self.allows_all() || self.0.iter().any(matches)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let prefix = text.strip_suffix('*');
        // Rejects text that serialization could not write back: the list is joined with commas, and
        // a `*` at the end marks a prefix.
        if text.is_empty() || text.trim() != text || prefix.unwrap_or(text).contains(['*', ',']) {
            return Err(format!("invalid value: string {text:?}, expected {EXPECTED}"));
        }
        Ok(prefix
            .map_or_else(|| Self::Whole(text.to_owned()), |prefix| Self::Prefix(prefix.to_owned())))
    }
}

const EXPECTED: &str = "keys, each by its whole name or, with a * at the end, by how it begins, \
    such as \"public:*\", without commas";

/// Serializes the list in the form of the environment variables: one string, separated by commas.
impl Serialize for KeyAllowlist {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words = self.0.iter().map(|pattern| match pattern {
            Pattern::Whole(whole) => whole.clone(),
            Pattern::Prefix(prefix) => format!("{prefix}*"),
        });
        serializer.serialize_str(&words.collect::<Vec<_>>().join(","))
    }
}

impl<'de> Deserialize<'de> for KeyAllowlist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PatternVisitor)
    }
}

struct PatternVisitor;

impl<'de> Visitor<'de> for PatternVisitor {
    type Value = KeyAllowlist;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    /// Parses the form of the environment variables: patterns separated by commas.
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<KeyAllowlist, E> {
        let words = list_words(text).map_err(E::custom)?.into_iter();
        words.map(Pattern::parse).collect::<Result<_, _>>().map(KeyAllowlist).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<KeyAllowlist, A::Error> {
        let mut patterns = Vec::new();
        while let Some(word) = words.next_element::<String>()? {
            patterns.push(Pattern::parse(&word).map_err(serde::de::Error::custom)?);
        }
        Ok(KeyAllowlist(patterns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(words: &str) -> KeyAllowlist {
        PatternVisitor.visit_str::<serde::de::value::Error>(words).unwrap()
    }

    #[test]
    fn key_matches_by_name_or_prefix() {
        let list = allow("public:*, one");
        for (key, expected) in [
            ("public:", true),
            ("public:a", true),
            ("public:*", true),
            ("one", true),
            ("public", false),
            ("Public:a", false),
            (" public:a", false),
            ("one ", false),
            ("one\0", false),
            ("on", false),
            ("", false),
            ("*", false),
        ] {
            assert_eq!(list.allows(key.as_bytes()), expected, "{key:?}");
        }
        assert!(allow("").allows(b"anything") && allow("*").allows(b"\xff"));
        assert!(!allow("*").allows_all() && list.allows(b"public:\xff\0"));
    }

    #[test]
    fn prefix_is_allowed_if_all_of_it_is() {
        let list = allow("public:*, one");
        for (prefix, expected) in
            [("public:", true), ("public:a", true), ("public", false), ("one", false), ("", false)]
        {
            assert_eq!(list.allows_prefix(prefix.as_bytes()), expected, "{prefix:?}");
        }
        assert!(allow("").allows_prefix(b"") && allow("*").allows_prefix(b"a"));
    }

    #[test]
    fn star_is_allowed_only_at_the_end() {
        for bad in ["*a", "a*b*", "a**", "**", "a,,b", ",", "a,"] {
            let error =
                PatternVisitor.visit_str::<serde::de::value::Error>(bad).unwrap_err().to_string();
            let is_word = !bad.contains(',');
            let expected = if is_word { "expected keys" } else { "a comma too many" };
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }
}
