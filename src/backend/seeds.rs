//! The seeds: addresses of sentinels or cluster nodes, `redis://host:port`, or `rediss://host:port`
//! for TLS.
//!
//! They hold no login. One login, from a file, applies to all of them.

use std::fmt;
use std::str::FromStr;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

use super::address::ConnectionAddr;
use crate::settings::{InvalidList, list_words};

const ALLOWED: &str = "redis://host:port, or rediss://host:port for TLS, and nothing else in it";
const ALLOWED_LIST: &str =
    "a list of redis://host:port or rediss://host:port, or a text with commas between them";

/// The initial addresses, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seeds(pub(super) Vec<ConnectionAddr>);

impl Seeds {
    /// Returns whether there are no seeds.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether at least one seed uses TLS.
    pub fn is_tls(&self) -> bool {
        self.0.iter().any(|seed| matches!(seed, ConnectionAddr::Tcp { tls: true, .. }))
    }
}

/// The error for an invalid seed. Its text names the problem and never repeats the seed, which may
/// contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {problem}, expected {ALLOWED}")]
pub struct InvalidSeed {
    problem: String,
}

fn seed(text: &str) -> Result<ConnectionAddr, InvalidSeed> {
    let bad = |problem: &str| InvalidSeed { problem: problem.to_owned() };
    let url = Url::parse(text).map_err(|_| bad("a text that is no address"))?;
    let tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        scheme => return Err(bad(&format!("{scheme:?}"))),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("a login"));
    }
    if !url.path().trim_matches('/').is_empty() || url.query().is_some() || url.fragment().is_some()
    {
        return Err(bad("something behind the port"));
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match url.port() {
        Some(port) if !host.is_empty() => {
            Ok(ConnectionAddr::Tcp { host: host.to_owned(), port, tls })
        }
        _ => Err(bad("an address without host or port")),
    }
}

impl FromStr for Seeds {
    type Err = InvalidSeed;

    fn from_str(text: &str) -> Result<Self, InvalidSeed> {
        let seeds = list_words(text)
            .map_err(|InvalidList { problem }| InvalidSeed { problem: problem.to_owned() })?
            .into_iter();
        Ok(Self(seeds.map(seed).collect::<Result<_, _>>()?))
    }
}

impl Serialize for Seeds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Serialized as one string: a list that is empty would leave no trace of its key.
        let seeds: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        serializer.serialize_str(&seeds.join(", "))
    }
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SeedsVisitor)
    }
}

struct SeedsVisitor;

impl<'de> Visitor<'de> for SeedsVisitor {
    type Value = Seeds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALLOWED_LIST)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Seeds, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Seeds, A::Error> {
        let mut seeds = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            seeds.push(seed(&text).map_err(de::Error::custom)?);
        }
        Ok(Seeds(seeds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_address_parses_back() {
        let seeds: Seeds = "redis://a:1, rediss://[::1]:2".parse().unwrap();
        assert!(seeds.is_tls());
        let text = serde_json::to_string(&seeds).unwrap();
        assert_eq!(text, r#""redis://a:1, rediss://[::1]:2""#);
        assert_eq!(serde_json::from_str::<Seeds>(&text).unwrap(), seeds);
        assert_eq!(
            serde_json::from_str::<Seeds>(r#"["redis://a:1","rediss://[::1]:2"]"#).unwrap(),
            seeds
        );
        assert!("".parse::<Seeds>().unwrap().is_empty());
    }

    #[test]
    fn seed_is_host_and_port_without_password() {
        for bad in [
            "redis://host",
            "host:26379",
            "http://host:1",
            "unix:///run/redis.sock",
            "redis://:hunter2@host:1",
            "redis://user:hunter2@host:1",
            "redis://host:1/hunter2",
            "redis://host:1?hunter2",
            "redis://host:1,hunter2",
        ] {
            let error = bad.parse::<Seeds>().unwrap_err().to_string();
            assert!(error.contains("expected redis://host:port"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
