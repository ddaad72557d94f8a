//! `rest.cors_origins`: the web pages that may use the front end from a browser.

use std::fmt;

use http::{HeaderValue, Method, Uri};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::sync_token;

/// The origins of pages that may read responses. An empty list allows none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorsOrigins(Vec<String>);

const EXPECTED: &str = "origins such as \"https://app.example\", or \"*\" for all";

impl CorsOrigins {
    /// Returns the layer that answers preflight requests and adds the headers; `None` if no origin
    /// is allowed.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        if self.0.is_empty() {
            return None;
        }
        let origins = self.0.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
        let allowed = if self.0.iter().any(|origin| origin == "*") {
            AllowOrigin::from(Any)
        } else {
            AllowOrigin::list(origins)
        };
        // The headers of SDKs have many names, and none has a right of its own.
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([sync_token::HEADER.clone()])
            .max_age(std::time::Duration::from_secs(600));
        Some(layer)
    }

    fn from_words<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let words = words.map(str::trim).filter(|word| !word.is_empty());
        let check = |word: &str| {
            if is_origin(word) {
                Ok(word.to_owned())
            } else {
                Err(format!("invalid value: string {word:?}, expected {EXPECTED}"))
            }
        };
        words.map(check).collect::<Result<_, _>>().map(Self)
    }
}

/// Whether a browser could send the text as an origin: a scheme and an authority in small letters.
fn is_origin(text: &str) -> bool {
    let is_exact = |uri: &Uri| {
        uri.scheme_str().zip(uri.authority()).is_some_and(|(scheme, authority)| {
            text == format!("{scheme}://{authority}") && !authority.as_str().contains('@')
        })
    };
    let is_uri = || text.parse::<Uri>().is_ok_and(|uri| is_exact(&uri));
    text == "*" || (!text.contains(char::is_uppercase) && is_uri())
}

/// Serializes the list in the form of the environment variables: one string, separated by commas.
impl Serialize for CorsOrigins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.join(","))
    }
}

impl<'de> Deserialize<'de> for CorsOrigins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OriginVisitor)
    }
}

struct OriginVisitor;

impl<'de> Visitor<'de> for OriginVisitor {
    type Value = CorsOrigins;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    /// Parses the form of the environment variables: origins separated by commas.
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<CorsOrigins, E> {
        CorsOrigins::from_words(text.split(',')).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<CorsOrigins, A::Error> {
        let mut origins = Vec::new();
        while let Some(word) = words.next_element::<String>()? {
            origins.push(word);
        }
        let origins = origins.iter().map(String::as_str);
        CorsOrigins::from_words(origins).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_origins_are_accepted() {
        for (text, expected) in [
            ("*", true),
            ("https://app.example", true),
            ("http://127.0.0.1:3000", true),
            ("http://[::1]:3000", true),
            ("https://app.example/", false),
            ("https://app.example/path", false),
            ("https://App.example", false),
            ("https://user@app.example", false),
            ("app.example", false),
            ("*.example", false),
            ("null", false),
            ("https://", false),
            ("https://a b", false),
        ] {
            assert_eq!(is_origin(text), expected, "{text}");
        }
        let list: CorsOrigins =
            serde_json::from_str(r#""https://a.example, http://b.example:1""#).unwrap();
        let same: CorsOrigins =
            serde_json::from_str(r#"["https://a.example","http://b.example:1"]"#).unwrap();
        assert_eq!(list, same);
        assert!(list.layer().is_some() && CorsOrigins::default().layer().is_none());
    }
}
