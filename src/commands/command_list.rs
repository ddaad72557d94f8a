//! Lists of commands in the settings: those that are kept in addition, and those that are not.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::settings::list_words;

/// The names of commands, in capitals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandList(Vec<String>);

impl CommandList {
    /// A list of these names, which are in capitals.
    pub fn of(names: &[&str]) -> Self {
        Self(names.iter().map(|&name| name.to_owned()).collect())
    }

    /// Whether the list has the command, or the command with this subcommand as
    /// `NAME|SUBCOMMAND`.
    pub fn denies(&self, name: &[u8], subcommand: &[u8]) -> bool {
        let denies = |one: &String| {
            let Some((command, of_it)) = one.as_bytes().split_at_checked(name.len()) else {
                return false;
            };
            command.eq_ignore_ascii_case(name)
                && match of_it {
                    [] => true,
                    [b'|', of_it @ ..] => subcommand.eq_ignore_ascii_case(of_it),
                    _ => false,
                }
        };
        self.0.iter().any(denies)
    }

    /// Whether the list has the command, or the command with some subcommand.
    pub fn names(&self, name: &[u8]) -> bool {
        let names = |one: &String| {
            one.split('|').next().is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(name))
        };
        self.0.iter().any(names)
    }

    /// Whether the list has the command.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|one| one.eq_ignore_ascii_case(name))
    }

    /// Returns the first name that is not among `known`, and all of these.
    pub fn violation<'a>(&self, known: impl Iterator<Item = &'a str>) -> Option<String> {
        let known: Vec<_> = known.map(str::to_ascii_uppercase).collect();
        let wrong = self.0.iter().find(|name| !known.contains(name))?;
        Some(format!("found {wrong}, expected some of: {}", known.join(", ")))
    }

    fn from_words<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        Self(words.map(|word| word.trim().to_ascii_uppercase()).collect())
    }
}

/// Serializes the list in the form of the environment variables: one string, separated by commas.
impl Serialize for CommandList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.join(","))
    }
}

impl<'de> Deserialize<'de> for CommandList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = CommandList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names of commands, such as \"HGETALL\"")
    }

    /// Parses the form of the environment variables: names separated by commas.
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<CommandList, E> {
        Ok(CommandList::from_words(list_words(text).map_err(E::custom)?.into_iter()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<CommandList, A::Error> {
        let mut names = Vec::new();
        while let Some(word) = words.next_element::<String>()? {
            if word.trim().is_empty() {
                return Err(serde::de::Error::custom("found an empty name, expected a command"));
            }
            names.push(word);
        }
        Ok(CommandList::from_words(names.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &str) -> CommandList {
        CommandList::from_words(list_words(words).unwrap().into_iter())
    }

    #[test]
    fn list_finds_its_commands_whatever_the_case() {
        let list = list("hget, JSON.GET ");
        for (name, expected) in [("HGET", true), ("hGet", true), ("json.get", true), ("get", false)]
        {
            assert_eq!(list.contains(name), expected, "{name}");
        }
        assert_eq!(list.0, ["HGET", "JSON.GET"]);
    }

    #[test]
    fn unknown_name_is_reported_with_the_known_ones() {
        let known = || ["hget", "get"].into_iter();
        assert_eq!(list("").violation(known()), None);
        assert_eq!(list("GET,hget").violation(known()), None);
        let expected = "found SET, expected some of: HGET, GET";
        assert_eq!(list("hget,set").violation(known()).as_deref(), Some(expected));
    }
}
