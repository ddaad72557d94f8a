//! The sources of a configuration, and their order: defaults < file < environment < `--set` < other
//! flags.
//!
//! Each value is checked by itself first, against the type of its key. So one bad value hides no
//! other. The valid values are then merged and checked against the rules that concern several keys.
//! A configuration with any problem is never returned, except by [`Sources::load_lenient`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use config::{ConfigError, Map, Source, Value, ValueKind};

use super::Config;
use super::key_rules;
use super::known_keys::{CONFIG_VARIABLE, Environment, KnownKeys, PREFIX};
use super::problems::{Problem, Problems, explain, problem_at};
use crate::backend::Address;
use crate::cache;
use crate::cli::Flags;
use crate::http;
use crate::settings::{Listen, MASK};

/// Returns the variables of this process that may concern the configuration.
pub fn environment() -> Environment {
    let variables =
        std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let ours = variables.filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_VARIABLE);
    ours.map(|(name, value)| (name, value.to_string_lossy().into_owned())).collect()
}

/// The merged configuration of all valid values, and the problems of all others.
struct Loaded {
    config: Config,
    layers: Vec<Layer>,
    problems: Vec<Problem>,
}

impl Loaded {
    fn load(flags: &Flags, environment: &Environment) -> Self {
        let known = known_keys();
        let mut problems = known.misspelt_variables(environment);
        let file = flags.config.as_deref().map_or_else(|| Ok(Layer::default()), Layer::file);
        let file = file.unwrap_or_else(|problem| {
            problems.push(problem);
            Layer::default()
        });
        let variables = Layer::environment(environment);
        problems.extend(invalid_ports(flags));
        problems.extend(invalid_assignments(flags));
        problems.extend(environment.iter().filter_map(invalid_unicode));
        let assignments = Layer::assignments(flags);
        let flags = Layer::flags(flags, &[&assignments, &variables, &file]);
        let mut layers = vec![file, variables, assignments, flags];
        for layer in &mut layers {
            layer.0.retain(|key, value| {
                let found = check(&known, key, value);
                let is_right = found.is_empty();
                problems.extend(found);
                is_right
            });
        }
        let config = merge(&layers).unwrap_or_else(|error| {
            problems.push(problem_at("", None, error.to_string()));
            Config::default()
        });
        let mut loaded = Self { config, layers, problems };
        loaded.add_problems(
            loaded
                .config
                .violations()
                .into_iter()
                .map(|violation| (violation.key.to_owned(), violation.text)),
        );
        loaded
    }

    /// Adds problems, but none for a key that has one already.
    fn add_problems(&mut self, found: impl IntoIterator<Item = (String, String)>) {
        for (key, text) in found {
            if !self.problems.iter().any(|problem| problem.key == key) {
                let value = self.layers.iter().rev().find_map(|layer| layer.0.get(&key));
                self.problems.push(problem_at(&key, value, text));
            }
        }
    }

    fn into_result(self) -> Result<Config, Problems> {
        if self.problems.is_empty() { Ok(self.config) } else { Err(Problems(self.problems)) }
    }
}

/// Merges the layers. A later layer wins over an earlier one.
fn merge(layers: &[Layer]) -> Result<Config, ConfigError> {
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer.clone());
    }
    builder.build()?.try_deserialize()
}

/// Values by key, each with its origin.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(BTreeMap<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

impl Layer {
    /// Flattens a configuration into its keys.
    pub(super) fn from_config(config: &Config) -> Self {
        // Not by `config::Config::try_from`: it merges all keys again after each one, which took a
        // third of the time of a start.
        let tree = serde_json::to_value(config).and_then(serde_json::from_value::<Value>);
        tree.map_or_else(|_| Self::default(), |tree| Self::flatten(&tree))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(super) fn into_values(self) -> BTreeMap<String, Value> {
        self.0
    }

    /// Builds the layer of the flag `--set`.
    fn assignments(flags: &Flags) -> Self {
        let mut layer = Self::default();
        for assignment in &flags.set {
            if let Some((key, text)) = assignment.split_once('=') {
                layer.set(SET, key.trim(), Some(text.trim().to_owned()));
            }
        }
        layer
    }

    fn file(path: &Path) -> Result<Self, Problem> {
        let origin = path.display().to_string();
        let wrong = |text| Problem { origin: origin.clone(), key: String::new(), text };
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let file = config::File::from_str(&text, config::FileFormat::Toml);
        let values = file.collect().map_err(|_| wrong(toml_error(&text)))?;
        let tree = Self::flatten(&Value::new(None, ValueKind::Table(values)));
        let named = |(key, value): (String, Value)| (key, Value::new(Some(&origin), value.kind));
        Ok(Self(tree.0.into_iter().map(named).collect()))
    }

    fn environment(environment: &Environment) -> Self {
        let values = environment.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX)?.to_lowercase();
            // Names without the double underscore are no keys: container platforms define some for
            // each service. `KnownKeys` reports the others.
            key.contains("__").then(|| {
                (key.replace("__", "."), Value::new(Some(name), ValueKind::String(value.clone())))
            })
        });
        Self(values.collect())
    }

    /// Builds the layer of the flags. A flag such as `--redis_host` changes only a part of a value,
    /// so that value is read from the layers `below`, the uppermost first.
    fn flags(flags: &Flags, below: &[&Self]) -> Self {
        let mut layer = Self::default();
        layer.set(
            "--password",
            "redis.password",
            flags.password.as_ref().map(|password| password.reveal().to_owned()),
        );
        layer.set("--ttl", "cache.ttl", flags.ttl.clone());
        layer.set("--k", "cache.capacity", flags.k.clone());
        layer.set("--resp_listen", "resp.listen", flags.resp_listen.clone());
        for key in ["http.max_connections", "resp.max_connections"] {
            layer.set("--max_connections", key, flags.max_connections.clone());
        }
        let value = |key| below.iter().find_map(|layer| layer.0.get(key));
        let text = |key| value(key).and_then(|value| value.clone().into_string().ok());
        let listen = text("http.listen")
            .map_or_else(|| Ok(http::Settings::default().listen), Listen::try_from);
        let (host, port) = (flags.proxy_host.as_deref(), parse_port(flags.proxy_port.as_ref()));
        if let (true, Ok(listen)) = (host.is_some() || port.is_some(), listen) {
            let origin = if host.is_some() { "--proxy_host" } else { "--proxy_port" };
            layer.set(origin, "http.listen", Some(listen.with_host_and_port(host, port)));
        }
        let url = text("redis.url").map_or_else(|| Ok(Address::default()), |url| url.parse());
        let (host, port) = (flags.redis_host.as_deref(), parse_port(flags.redis_port.as_ref()));
        if let (true, Ok(url)) = (host.is_some() || port.is_some(), url) {
            let origin = if host.is_some() { "--redis_host" } else { "--redis_port" };
            layer.set(origin, "redis.url", Some(url.with_host_and_port(host, port)));
        }
        layer
    }

    fn set(&mut self, origin: &str, key: &str, text: Option<String>) {
        if let Some(text) = text {
            self.0.insert(
                key.to_owned(),
                Value::new(Some(&origin.to_owned()), ValueKind::String(text)),
            );
        }
    }

    fn flatten(tree: &Value) -> Self {
        let mut values = BTreeMap::new();
        flatten(String::new(), tree, &mut values);
        Self(values)
    }
}

fn parse_port(port: Option<&String>) -> Option<u16> {
    port?.parse().ok()
}

/// Returns the ports on the command line that are not port numbers. They are reported here because
/// they become parts of addresses, and messages never repeat an address.
fn invalid_ports(flags: &Flags) -> Vec<Problem> {
    let ports = [
        ("--proxy_port", "http.listen", &flags.proxy_port),
        ("--redis_port", "redis.url", &flags.redis_port),
    ];
    let bad = ports
        .into_iter()
        .filter(|(_, _, port)| port.is_some() && parse_port(port.as_ref()).is_none());
    bad.map(|(flag, key, port)| Problem {
        origin: flag.to_owned(),
        key: key.to_owned(),
        text: format!(
            "found {:?}, expected a port number from 0 to 65535",
            port.as_deref().unwrap_or_default()
        ),
    })
    .collect()
}

/// Returns the values of `--set` that assign nothing. They are not repeated, because one may be a
/// password.
fn invalid_assignments(flags: &Flags) -> Vec<Problem> {
    let bad = flags.set.iter().filter(|assignment| !assignment.contains('='));
    bad.map(|_| Problem {
        origin: SET.to_owned(),
        key: String::new(),
        text: "found no =, expected SECTION.KEY=VALUE such as cache.ttl=30s".to_owned(),
    })
    .collect()
}

/// The flag that sets any key.
const SET: &str = "--set";

/// Reports a variable that is not UTF-8. Reading it has put a replacement character in place of
/// each invalid sequence.
fn invalid_unicode((name, value): (&String, &String)) -> Option<Problem> {
    let text = "found bytes that are not UTF-8, expected text".to_owned();
    value.contains(char::REPLACEMENT_CHARACTER).then(|| Problem {
        origin: name.clone(),
        key: String::new(),
        text,
    })
}

/// Describes a TOML syntax error by its position and the parser's reason. The text itself is not
/// repeated, because the line may hold a password. The parser's reasons quote none of it.
fn toml_error(text: &str) -> String {
    let Err(error) = toml::from_str::<toml::Table>(text) else { return "is not TOML".to_owned() };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
    let line = before.matches('\n').count() + 1;
    let reason = error.message().replace('\n', ", ");
    format!("line {line}, column {column}: is not TOML: {reason}")
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

/// The sources to load from, at the start and at each reload. There is no `Debug`, because the
/// environment may hold a password.
#[derive(Clone)]
pub struct Sources {
    /// The command line.
    pub flags: Flags,
    /// The environment of the process. Other processes cannot change it, so a reload uses the same.
    pub environment: Environment,
}

impl Sources {
    /// Loads the configuration from the sources as they are now.
    ///
    /// # Errors
    /// [`Problems`] with every problem of every source.
    pub fn load(&self) -> Result<Config, Problems> {
        Loaded::load(&self.flags, &self.environment).into_result()
    }

    /// Returns a warning for each environment variable that may have been meant as a key and names
    /// none.
    pub fn stray_variables(&self) -> Vec<Problem> {
        known_keys().stray_variables(&self.environment)
    }

    /// Returns the values that the command line alone sets.
    pub(super) fn flags_layer(&self) -> Layer {
        let assignments = Layer::assignments(&self.flags);
        let mut layer = Layer::flags(&self.flags, &[&assignments]);
        for (key, value) in assignments.0 {
            layer.0.entry(key).or_insert(value);
        }
        layer
    }

    /// Loads the valid values of the sources as they are now, and ignores the others.
    pub fn load_lenient(&self) -> Config {
        Loaded::load(&self.flags, &self.environment).config
    }

    /// Loads the configuration that replaces `current` in a running daemon.
    ///
    /// # Errors
    /// [`Problems`] with every problem of every source, including changes that need a restart.
    pub fn reload(&self, current: &Config) -> Result<Config, Problems> {
        let mut loaded = Loaded::load(&self.flags, &self.environment);
        // If a source could not be read at all, its changes are unknown.
        if !loaded.problems.iter().any(|problem| problem.key.is_empty()) {
            let keys = current.needs_restart(&loaded.config);
            loaded.add_problems(
                keys.into_iter().map(|key| (key, "changes only at a restart".to_owned())),
            );
        }
        loaded.into_result()
    }
}

impl Config {
    /// Returns the keys that have another value in `new` and take effect only at a start.
    pub fn needs_restart(&self, new: &Self) -> BTreeSet<String> {
        let mut live = self.clone();
        live.cache = cache::Settings { coherence: self.cache.coherence, ..new.cache.clone() };
        live.telemetry.log_filter = new.telemetry.log_filter.clone();
        live.verify = new.verify.clone();
        let old = Layer::from_config(&live);
        let differs =
            |key: &String, value: &Value| old.0.get(key).is_none_or(|old| old.kind != value.kind);
        let differing = Layer::from_config(new)
            .0
            .into_iter()
            .filter(|(key, value)| differs(key, value))
            .map(|(key, _)| key);
        // Secrets are masked in a layer, so any two look equal there.
        let password = live.redis.password != new.redis.password;
        let url = live.redis.url != new.redis.url;
        let endpoint = live.telemetry.traces_endpoint != new.telemetry.traces_endpoint;
        let secrets = [
            (password, "redis.password"),
            (url, "redis.url"),
            (endpoint, "telemetry.traces_endpoint"),
        ];
        let secrets = secrets.into_iter().filter(|(differs, _)| *differs);
        differing.chain(secrets.map(|(_, key)| key.to_owned())).collect()
    }
}

/// Returns the names of all keys.
pub(super) fn known_keys() -> KnownKeys {
    KnownKeys::new(Layer::from_config(&Config::default()).0.into_keys())
}

/// The key of a secret. Messages never repeat its value.
const SECRET: &str = "redis.password";

/// Checks this value by itself, against the type of its key.
pub(super) fn check(known: &KnownKeys, key: &str, value: &Value) -> Vec<Problem> {
    if key == key_rules::RULES {
        return key_rules::check(value);
    }
    check_one(known, key, value).into_iter().collect()
}

fn check_one(known: &KnownKeys, key: &str, value: &Value) -> Option<Problem> {
    let problem = |text| problem_at(key, Some(value), text);
    if known.is_section(key) {
        let empty = matches!(&value.kind, ValueKind::Table(table) if table.is_empty());
        return (!empty).then(|| problem("a value where a section of keys is expected".to_owned()));
    }
    if !known.contains(key) {
        return Some(problem(format!("unknown key; {}", known.hint(key))));
    }
    let alone = Layer(BTreeMap::from([(key.to_owned(), value.clone())]));
    let error = merge(&[alone]).err()?;
    let text = explain(&error);
    Some(problem(if key == SECRET { format!("{MASK} is not a text") } else { text }))
}
