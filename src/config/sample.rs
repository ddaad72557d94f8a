//! The shipped file, `redis-proxy.toml`: the one place with a text for every key. Here it becomes
//! the descriptions of the schema and the file of `redis-proxy init`.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::problems::Problems;
use super::sources::{Layer, Sources};

const SAMPLE: &str = include_str!("../../redis-proxy.toml");

/// A line of the shipped file with its meaning.
enum Line<'a> {
    Comment(&'a str),
    Section(&'a str),
    /// The name and the value.
    Key(&'a str, &'a str),
    Other,
}

impl<'a> Line<'a> {
    fn new(line: &'a str) -> Self {
        if let Some(text) = line.strip_prefix('#') {
            return Self::Comment(text.trim_start());
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Self::Section(section);
        }
        line.split_once(" = ").map_or(Self::Other, |(key, value)| Self::Key(key, value))
    }
}

/// Returns the text of each section and of each key, by its name such as `cache` or `cache.ttl`.
pub(super) fn descriptions() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut section, mut comment) = ("", Vec::new());
    for line in SAMPLE.lines().map(Line::new) {
        let name = match line {
            Line::Comment(text) => {
                comment.push(text);
                continue;
            }
            Line::Section(name) => {
                section = name;
                Some(name.to_owned())
            }
            Line::Key(key, _) => Some(format!("{section}.{key}")),
            Line::Other => None,
        };
        let text = std::mem::take(&mut comment).join(" ");
        found.extend(name.map(|name| (name, text)));
    }
    found
}

/// Renders the file of `redis-proxy init`: the shipped file with every key commented out, except
/// those that the flags of `sources` set.
///
/// # Errors
/// [`Problems`] with every problem of the flags.
pub fn initial_file(sources: &Sources) -> Result<String, Problems> {
    let config = sources.load()?;
    let typed = Layer::from_config(&config);
    let set = sources.flags_layer();
    let mut section = "";
    let mut lines = Vec::new();
    for line in SAMPLE.lines().filter(|line| !line.starts_with("#:")) {
        match Line::new(line) {
            Line::Section(name) => {
                section = name;
                lines.push(line.to_owned());
            }
            Line::Key(name, shipped) => {
                let key = format!("{section}.{name}");
                // The one key for which the shipped file has another value.
                let default = if key == "resp.listen" { "\"\"" } else { shipped };
                lines.push(match (set.get(&key), typed.get(&key)) {
                    (Some(text), Some(value)) => format!("{name} = {}", as_typed(text, value)),
                    _ => format!("#{name} = {default}"),
                });
            }
            Line::Comment(_) | Line::Other => lines.push(line.to_owned()),
        }
    }
    Ok(lines.join("\n") + "\n")
}

/// Renders the text of a flag in the type of its key. A text stays as it was given, because the
/// loaded value hides secrets.
fn as_typed(text: &Value, value: &Value) -> String {
    match value.kind {
        ValueKind::String(_) => toml_value(text),
        _ => toml_value(value),
    }
}

fn toml_value(value: &Value) -> String {
    match &value.kind {
        ValueKind::Boolean(is) => is.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        ValueKind::Float(number) => format!("{number:?}"),
        ValueKind::Array(values) => {
            format!("[{}]", values.iter().map(toml_value).collect::<Vec<_>>().join(", "))
        }
        ValueKind::String(text) => toml::Value::from(text.as_str()).to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::cli::Flags;

    fn sources(flags: Flags) -> Sources {
        Sources { flags, environment: BTreeMap::new() }
    }

    #[test]
    fn every_key_and_section_has_a_description() {
        let found = descriptions();
        for key in Layer::from_config(&Config::default()).keys() {
            let section = key.split('.').next().unwrap();
            assert!(found.get(key).is_some_and(|text| !text.is_empty()), "{key}");
            assert!(found.get(section).is_some_and(|text| !text.is_empty()), "{section}");
        }
        assert!(found["redis.ping_interval"].starts_with("How often the proxy sends a PING"));
        assert!(found["warm"].starts_with("A warm start"));
    }

    #[test]
    fn initial_file_without_flags_sets_nothing() {
        let text = initial_file(&sources(Flags::default())).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        let active: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(toml::from_str::<Config>(&active).unwrap(), Config::default(), "{active}");
    }

    #[test]
    fn initial_file_sets_what_flags_set() {
        let flags = Flags {
            k: Some("5000".to_owned()),
            redis_host: Some("db".to_owned()),
            password: Some("a\"b".to_owned().into()),
            set: vec![
                "http.allow_keys=a:*,b".to_owned(),
                "telemetry.traces_ratio=0.5".to_owned(),
                "http.allow_unprotected=true".to_owned(),
            ],
            ..Flags::default()
        };
        let sources = sources(flags);
        let config: Config = toml::from_str(&initial_file(&sources).unwrap()).unwrap();
        assert_eq!(config, sources.load().unwrap());
        assert_eq!(config.redis.password.reveal(), "a\"b");
        assert!(config.http.allow_unprotected);
        assert_eq!(config.cache.capacity, 5000);
    }

    #[test]
    fn initial_file_refuses_bad_flags() {
        let flags = Flags { ttl: Some("soon".to_owned()), ..Flags::default() };
        assert!(initial_file(&sources(flags)).is_err());
    }
}
