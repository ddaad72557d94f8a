//! The configuration: defaults < file < environment < flags, every problem reported at once.
//!
//! Each module owns its `Settings`; this file composes them. A value is checked by itself first, against the type
//! of its key, so that one bad value hides no other; only when all are good are they put together, and then the
//! rules that concern several keys are checked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{ConfigError, Map, Source, Value, ValueKind};
use serde::{Deserialize, Serialize};

use crate::backend::Address;
use crate::cli::Flags;
use crate::server::Listen;
use crate::units::{Contradiction, MASK, broken};
use crate::{admin, backend, cache, daemon, http, telemetry};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Reads over HTTP.
    pub http: http::Settings,
    /// The operator's routes.
    pub admin: admin::Settings,
    /// The Redis behind.
    pub redis: backend::Settings,
    /// The cache.
    pub cache: cache::Settings,
    /// Logs.
    pub telemetry: telemetry::Settings,
    /// The process.
    pub daemon: daemon::Settings,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, the environment variable or the flag.
    pub origin: String,
    /// The key, such as `cache.ttl`; empty where the whole source is meant.
    pub key: String,
    /// What was found and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, text } = self;
        if key.is_empty() { write!(f, "{origin}: {text}") } else { write!(f, "{origin}: {key}: {text}") }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    fn one(origin: &str, text: String) -> Self {
        Self(vec![Problem { origin: origin.to_owned(), key: String::new(), text }])
    }

    /// Whether the command line is at fault, at least in part.
    pub fn blame_a_flag(&self) -> bool {
        self.0.iter().any(|problem| problem.origin.starts_with("--"))
    }
}

/// The environment variables that matter here.
pub type Environment = BTreeMap<String, String>;

const PREFIX: &str = "REDIS_PROXY_";
/// Read by the command line.
const CONFIG_VARIABLE: &str = "REDIS_PROXY_CONFIG";

/// The variables of this process that may concern the configuration. One that is not UTF-8 becomes a bad value.
pub fn environment() -> Environment {
    let variables = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let ours = variables.filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_VARIABLE);
    ours.map(|(name, value)| (name, value.to_string_lossy().into_owned())).collect()
}

/// Loads the configuration from all its sources.
///
/// # Errors
/// Every problem of every source.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Config, Problems> {
    let known = Keys::of_defaults();
    let mut problems = known.misspelt_variables(environment);
    let mut values = Layer::default();
    if let Some(path) = &flags.config {
        values.put_over(Layer::file(path)?);
    }
    values.put_over(Layer::environment(environment));
    let flags = Layer::flags(flags, &values);
    values.put_over(flags);
    problems.extend(values.0.iter().filter_map(|(key, value)| known.check(key, value)));
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let config: Config =
        values.tree().try_deserialize().map_err(|error| Problems::one("configuration", error.to_string()))?;
    let problems: Vec<_> = config.contradictions().into_iter().map(|(key, text)| values.problem(key, text)).collect();
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

impl Config {
    /// The configuration as a file would say it, secrets masked.
    ///
    /// # Errors
    /// None that can happen; the writer of TOML wants it so.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// The keys in which `new` differs and that take effect only at a start.
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        let mut live = self.clone();
        live.cache = new.cache.clone();
        live.telemetry.log_filter = new.telemetry.log_filter.clone();
        let (old, new_values) = (Layer::of(&live), Layer::of(new));
        let mut keys: Vec<_> = new_values
            .0
            .iter()
            .filter(|(key, value)| !same(old.0.get(*key), value))
            .map(|(key, _)| key.clone())
            .collect();
        // A secret looks the same whatever it is.
        if live.redis.password != new.redis.password {
            keys.push("redis.password".to_owned());
        }
        if live.redis.url != new.redis.url && !keys.iter().any(|key| key == "redis.url") {
            keys.push("redis.url".to_owned());
        }
        keys
    }

    /// What is wrong although each value by itself is right: the key to be named, and the text.
    fn contradictions(&self) -> Vec<Contradiction> {
        let shared = self.http.listen.collides(&self.admin.listen);
        let own = [
            self.http.contradictions(),
            self.admin.contradictions(),
            self.redis.contradictions(),
            self.cache.contradictions(),
            self.daemon.contradictions(),
            broken([(
                shared,
                "admin.listen",
                "the same as http.listen, expected another, or \"\" to serve both there",
            )]),
        ];
        own.concat()
    }
}

/// Values by key, each with its origin.
#[derive(Debug, Default)]
struct Layer(BTreeMap<String, Value>);

impl Layer {
    /// The values of a configuration.
    fn of(config: &Config) -> Self {
        let tree = config::Config::try_from(config).map(|tree| tree.cache);
        tree.map_or_else(|_| Self::default(), |tree| Self::flatten(&tree))
    }

    fn file(path: &Path) -> Result<Self, Problems> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problems::one(&origin, format!("cannot be read: {error}")))?;
        let file = config::File::from_str(&text, config::FileFormat::Toml);
        let values = file.collect().map_err(|error| Problems::one(&origin, format!("is not TOML: {error}")))?;
        let tree = Self::flatten(&Value::new(None, ValueKind::Table(values)));
        let named = |(key, value): (String, Value)| (key, Value::new(Some(&origin), value.kind));
        Ok(Self(tree.0.into_iter().map(named).collect()))
    }

    fn environment(environment: &Environment) -> Self {
        let values = environment.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX)?.to_lowercase();
            // Names without the double underscore are others': a container platform makes some for a service.
            key.contains("__")
                .then(|| (key.replace("__", "."), Value::new(Some(name), ValueKind::String(value.clone()))))
        });
        Self(values.collect())
    }

    /// The flags; `--redis_host` and the like change a part of what the layers `below` say.
    fn flags(flags: &Flags, below: &Self) -> Self {
        let mut layer = Self::default();
        layer.put("--password", "redis.password", flags.password.clone());
        layer.put("--ttl", "cache.ttl", flags.ttl.clone());
        layer.put("--k", "cache.capacity", flags.k.clone());
        let text = |key| below.0.get(key).and_then(|value| value.clone().into_string().ok());
        if let (Some(origin), Ok(listen)) = (
            origin([("--proxy_host", &flags.proxy_host), ("--proxy_port", &flags.proxy_port)]),
            text("http.listen").map_or_else(|| Ok(http::Settings::default().listen), Listen::try_from),
        ) {
            let changed = listen.with_host_and_port(flags.proxy_host.as_deref(), flags.proxy_port.as_deref());
            layer.put(origin, "http.listen", Some(changed));
        }
        if let (Some(origin), Ok(url)) = (
            origin([("--redis_host", &flags.redis_host), ("--redis_port", &flags.redis_port)]),
            text("redis.url").map_or_else(|| Ok(Address::default()), |url| url.parse()),
        ) {
            let port = flags.redis_port.as_deref().map(str::parse);
            let changed = match port.transpose() {
                Ok(port) => url.with_host_and_port(flags.redis_host.as_deref(), port).reveal(),
                // Not a port: left in the text, so that reading it says so.
                Err(_) => format!(
                    "redis://{}:{}",
                    flags.redis_host.as_deref().unwrap_or("127.0.0.1"),
                    flags.redis_port.as_deref().unwrap_or_default()
                ),
            };
            layer.put(origin, "redis.url", Some(changed));
        }
        layer
    }

    fn put(&mut self, origin: &str, key: &str, text: Option<String>) {
        if let Some(text) = text {
            self.0.insert(key.to_owned(), Value::new(Some(&origin.to_owned()), ValueKind::String(text)));
        }
    }

    fn put_over(&mut self, above: Self) {
        self.0.extend(above.0);
    }

    fn flatten(tree: &Value) -> Self {
        let mut values = BTreeMap::new();
        flatten(String::new(), tree, &mut values);
        Self(values)
    }

    /// The values as nested tables.
    fn tree(&self) -> Value {
        let leaves = self.0.iter().map(|(key, value)| (key.as_str(), value));
        nest(leaves)
    }

    fn problem(&self, key: &str, text: &str) -> Problem {
        let origin = self.0.get(key).and_then(Value::origin).unwrap_or("defaults");
        Problem { origin: origin.to_owned(), key: key.to_owned(), text: text.to_owned() }
    }
}

/// The first of `flags` that is given.
fn origin<const N: usize>(flags: [(&'static str, &Option<String>); N]) -> Option<&'static str> {
    flags.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| name)
}

fn flatten(key: String, value: &Value, values: &mut BTreeMap<String, Value>) {
    match &value.kind {
        ValueKind::Table(table) if !table.is_empty() || key.is_empty() => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(key, value, values);
            }
        }
        _ => _ = values.insert(key, value.clone()),
    }
}

fn nest<'a>(leaves: impl Iterator<Item = (&'a str, &'a Value)>) -> Value {
    let mut sections: Map<String, Map<String, Value>> = Map::new();
    for (key, value) in leaves {
        let (section, name) = key.split_once('.').unwrap_or((key, ""));
        let section = sections.entry(section.to_owned()).or_default();
        if !name.is_empty() {
            section.insert(name.to_owned(), value.clone());
        }
    }
    let sections = sections.into_iter().map(|(name, table)| (name, Value::new(None, ValueKind::Table(table))));
    Value::new(None, ValueKind::Table(sections.collect()))
}

fn same(old: Option<&Value>, new: &Value) -> bool {
    old.is_some_and(|old| old.kind == new.kind)
}

/// The keys there are.
struct Keys(Vec<String>);

/// Keys whose values are not repeated in a message.
const SECRET: &str = "redis.password";

impl Keys {
    fn of_defaults() -> Self {
        Self(Layer::of(&Config::default()).0.into_keys().collect())
    }

    /// What is wrong with this value by itself.
    fn check(&self, key: &str, value: &Value) -> Option<Problem> {
        let problem =
            |text| Problem { origin: value.origin().unwrap_or("defaults").to_owned(), key: key.to_owned(), text };
        if self.is_section(key) {
            let empty = matches!(&value.kind, ValueKind::Table(table) if table.is_empty());
            return (!empty).then(|| problem("a value where a section of keys is expected".to_owned()));
        }
        if !self.0.iter().any(|known| known == key) {
            return Some(problem(format!("unknown key; did you mean {}?", self.nearest(key))));
        }
        let alone = nest(std::iter::once((key, value)));
        let error = alone.try_deserialize::<Config>().err()?;
        let text = explain(&error);
        Some(problem(if key == SECRET { format!("{MASK} is not a text") } else { text }))
    }

    fn is_section(&self, key: &str) -> bool {
        self.0.iter().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    fn nearest(&self, key: &str) -> &str {
        let similarity = |known: &String| strsim::jaro_winkler(known, key);
        // Somebody who left out the section has the name right.
        let by_name = self.0.iter().find(|known| known.rsplit('.').next() == key.rsplit('.').next());
        let by_text = self.0.iter().max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
        by_name.or(by_text).map_or("", String::as_str)
    }

    /// Variables that would name a key if their underscores were right.
    fn misspelt_variables(&self, environment: &Environment) -> Vec<Problem> {
        let bare = |text: &str| text.to_lowercase().replace(['_', '.'], "");
        let misspelt = environment.keys().filter(|name| !name[PREFIX.len()..].contains("__")).filter_map(|name| {
            let known = self.0.iter().find(|known| bare(known) == bare(&name[PREFIX.len()..]))?;
            let right = format!("{PREFIX}{}", known.replace('.', "__").to_uppercase());
            Some(Problem {
                origin: name.clone(),
                key: String::new(),
                text: format!("unknown variable; did you mean {right}?"),
            })
        });
        misspelt.collect()
    }
}

/// The words of the innermost error; what goes around them names places inside the library.
fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => explain(error),
        ConfigError::Type { unexpected, expected, .. } => format!("found {unexpected}, expected {expected}"),
        ConfigError::Message(text) => {
            text.replacen("invalid value: ", "found ", 1).replacen("invalid type: ", "found ", 1)
        }
        other => other.to_string(),
    }
}

/// Where to load from again.
#[derive(Debug)]
pub struct Sources {
    /// The command line.
    pub flags: Flags,
    /// The environment of the process, which nobody else can change.
    pub environment: Environment,
}

impl Sources {
    /// Loads the configuration as it is written now.
    ///
    /// # Errors
    /// Every problem of every source.
    pub fn load(&self) -> Result<Config, Problems> {
        load(&self.flags, &self.environment)
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&PathBuf> {
        self.flags.config.as_ref()
    }
}
