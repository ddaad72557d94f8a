//! The filter of log lines, and the words that it may hold.
//!
//! Model: levels by target, separated by commas. `Targets` accepts any word as a target. So a
//! misspelt level, or a space in place of a comma, would be a target that no line has, and would
//! silence the log. Here the levels and the targets are known. A word that is neither is an error,
//! except for the name of another crate, which may be right in another build.

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The filter of log lines: a level, or levels by module, in the syntax of
/// `tracing_subscriber::filter::Targets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const LEVEL_NAMES: &str = "off, error, warn, info, debug or trace";

/// The targets of this program: its rooms, and every module that logs.
const OWN_TARGETS: [&str; 47] = [
    "redis_proxy",
    "redis_proxy::access",
    "redis_proxy::backend",
    "redis_proxy::backend::command_query",
    "redis_proxy::backend::rights",
    "redis_proxy::backend::sentinel",
    "redis_proxy::backend::supervisor",
    "redis_proxy::backend::throttle",
    "redis_proxy::backend::tracking",
    "redis_proxy::backend::trial",
    "redis_proxy::cache",
    "redis_proxy::cli",
    "redis_proxy::client",
    "redis_proxy::cluster",
    "redis_proxy::cluster::discovery",
    "redis_proxy::commands",
    "redis_proxy::config",
    "redis_proxy::console",
    "redis_proxy::daemon",
    "redis_proxy::daemon::fd_limit",
    "redis_proxy::daemon::shutdown",
    "redis_proxy::daemon::systemd",
    "redis_proxy::http",
    "redis_proxy::http::cache_routes",
    "redis_proxy::http::observer",
    "redis_proxy::key",
    "redis_proxy::metrics",
    "redis_proxy::net",
    "redis_proxy::protocol",
    "redis_proxy::proxy",
    "redis_proxy::resp",
    "redis_proxy::resp::cluster",
    "redis_proxy::resp::connection",
    "redis_proxy::rest",
    "redis_proxy::rest::events",
    "redis_proxy::server",
    "redis_proxy::server::listener",
    "redis_proxy::server::refusals",
    "redis_proxy::server::tls",
    "redis_proxy::settings",
    "redis_proxy::status",
    "redis_proxy::telemetry",
    "redis_proxy::telemetry::otlp",
    "redis_proxy::telemetry::span_queue",
    "redis_proxy::upstream",
    "redis_proxy::verify",
    "redis_proxy::warmup",
];

/// The linked crates that log, by the names of their targets.
const LOGGING_CRATES: [&str; 8] =
    ["h2", "hyper_util", "mio", "rustls", "tonic", "tower", "tracing_log", "tracing_opentelemetry"];

/// The similarity, from 0 to 1, below which no word is suggested for another.
const MIN_SIMILARITY: f64 = 0.75;

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogFilter {
    /// Returns the filter, with the HTTP/2 library silenced unless it is named. That library warns
    /// of errors of clients. Otherwise a client could fill the log.
    pub(super) fn filter(&self) -> Targets {
        let directives = format!("h2=off,{}", self.with_base_level());
        // They were parsed when the filter was made.
        directives.parse().unwrap_or_default()
    }

    /// Returns the directives, with the default level for what they do not name. Otherwise
    /// `h2=warn` alone would silence everything else.
    fn with_base_level(&self) -> String {
        let named: Vec<_> = directives(&self.0).collect();
        let default = Self::default().0;
        let base = (!named.iter().any(|directive| is_level(directive))).then_some(&*default);
        base.into_iter().chain(named).collect::<Vec<_>>().join(",")
    }

    /// Returns the targets that neither this program nor a linked crate has, for a warning.
    pub(crate) fn unknown_targets(&self) -> Vec<&str> {
        let targets =
            directives(&self.0).filter_map(|directive| Some(directive.split_once('=')?.0));
        targets.filter(|target| !is_known(target)).collect()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |reason: &str| Err(format!("invalid value: string {text:?}; {reason}"));
        if directives(&text).next().is_none() {
            return wrong(&format!("expected {LEVEL_NAMES}"));
        }
        if let Some(reason) = directives(&text).find_map(problem) {
            return wrong(&reason);
        }
        if directives(&text).collect::<Vec<_>>().join(",").parse::<Targets>().is_err() {
            return wrong("expected levels by module such as \"info,redis_proxy=debug\"");
        }
        Ok(Self(text))
    }
}

/// Splits a filter at its commas.
fn directives(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

/// Returns the problem of one directive: `level`, `target` or `target=level`.
fn problem(directive: &str) -> Option<String> {
    if directive.contains(['[', ']', '{', '}']) {
        return Some(format!("{directive:?} is for spans, and lines are not filtered by spans"));
    }
    if directive.contains(|letter: char| letter.is_whitespace() || letter == ';') {
        return Some(format!("{directive:?} needs a comma between levels"));
    }
    match directive.split_once('=') {
        Some((target, level)) => target_problem(target).or_else(|| level_problem(level)),
        None if is_level(directive) || is_known(directive) => None,
        None => Some(word_problem(directive)),
    }
}

/// Returns the problem of the target in `target=level`. A target of another crate has none.
fn target_problem(target: &str) -> Option<String> {
    if is_known(target) || !resembles_own(target) {
        return None;
    }
    let nearest = nearest(&normalized(target), OWN_TARGETS)?;
    Some(format!("{target:?} is no target of this program; did you mean {nearest:?}?"))
}

fn level_problem(level: &str) -> Option<String> {
    if is_level(level) {
        return None;
    }
    let hint = nearest(level, LEVELS).map_or_else(
        || format!("expected {LEVEL_NAMES}"),
        |near| format!("did you mean {near:?}?"),
    );
    Some(format!("{level:?} is no level; {hint}"))
}

/// Describes a word that stands alone and is neither a level nor a target.
fn word_problem(word: &str) -> String {
    let known = LEVELS.into_iter().chain(OWN_TARGETS).chain(LOGGING_CRATES);
    let hint = nearest(&normalized(word), known).map_or_else(
        || format!("expected {LEVEL_NAMES}"),
        |near| format!("did you mean {near:?}?"),
    );
    format!("{word:?} is no level and no target; {hint}")
}

/// Whether `Targets` takes the word as a level: a name in any case, or a number.
fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

fn is_known(target: &str) -> bool {
    let its_crate = target.split("::").next().unwrap_or_default();
    OWN_TARGETS.contains(&target) || LOGGING_CRATES.contains(&its_crate)
}

/// Whether a target was probably meant to be one of this program.
fn resembles_own(target: &str) -> bool {
    let normalized = normalized(target);
    let its_crate = normalized.split("::").next().unwrap_or_default();
    strsim::normalized_damerau_levenshtein(its_crate, OWN_TARGETS[0]) >= MIN_SIMILARITY
}

/// Returns a target in the form of Rust's paths: `redis-proxy:backend` is meant as
/// `redis_proxy::backend`.
fn normalized(target: &str) -> String {
    let parts = target.split([':', '.', '/']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("::").replace('-', "_").to_lowercase()
}

/// Returns the most similar of the `known` words, if it is similar enough.
fn nearest(word: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    let similarity = |known: &&str| strsim::jaro_winkler(known, word);
    let found = known.into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&found) >= MIN_SIMILARITY).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use toml::{Table, Value};

    use super::*;

    #[test]
    fn filter_without_a_level_keeps_the_default() {
        for (text, expected) in [
            ("h2=warn", "info,h2=warn"),
            ("redis_proxy=debug", "info,redis_proxy=debug"),
            ("redis_proxy", "info,redis_proxy"),
            ("off,h2=warn", "off,h2=warn"),
            ("h2=warn, ERROR", "h2=warn,ERROR"),
        ] {
            let filter = LogFilter::try_from(text.to_owned()).unwrap();
            assert_eq!(filter.with_base_level(), expected, "{text}");
        }
    }

    fn source(path: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    fn words(value: Option<&Value>) -> Vec<String> {
        let list = value.and_then(Value::as_array).into_iter().flatten();
        // An entry of Cargo.lock may have a version behind the name.
        let words = list.filter_map(|entry| entry.as_str()?.split(' ').next());
        words.map(str::to_owned).collect()
    }

    /// Returns the optional dependencies that the default features need.
    fn default_dependencies(manifest: &Table) -> BTreeSet<String> {
        let features = manifest["features"].as_table().unwrap();
        let needed = words(features.get("default"));
        let needed = needed.iter().flat_map(|feature| words(features.get(feature)));
        needed.filter_map(|word| word.strip_prefix("dep:").map(str::to_owned)).collect()
    }

    #[test]
    fn log_crates_are_those_of_the_build() {
        let lock: Table = source("Cargo.lock").parse().unwrap();
        let manifest: Table = source("Cargo.toml").parse().unwrap();
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for package in lock["package"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap().to_owned();
            needs.entry(name).or_default().extend(words(package.get("dependencies")));
        }
        let of_default = default_dependencies(&manifest);
        let is_linked = |(name, value): &(&String, &Value)| {
            let optional = value.get("optional").and_then(Value::as_bool).unwrap_or_default();
            !optional || of_default.contains(*name)
        };
        let dependencies = manifest["dependencies"].as_table().unwrap().iter();
        let mut open: Vec<_> =
            dependencies.filter(is_linked).map(|(name, _)| name.clone()).collect();
        let (mut seen, mut logging) = (BTreeSet::new(), BTreeSet::new());
        while let Some(name) = open.pop() {
            let needed = needs.get(&name).cloned().unwrap_or_default();
            if needed.contains("tracing") || needed.contains("log") {
                logging.insert(name.replace('-', "_"));
            }
            if seen.insert(name) {
                open.extend(needed);
            }
        }
        assert_eq!(logging.iter().map(String::as_str).collect::<Vec<_>>(), LOGGING_CRATES);
    }

    /// Returns the module paths of the files below `folder`, each with its text.
    fn modules(folder: &Path, path: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            let stem = entry.file_stem().unwrap().to_str().unwrap().to_owned();
            let own = match &*stem {
                "lib" | "main" | "mod" => path.to_owned(),
                _ => format!("{path}::{stem}"),
            };
            if entry.is_dir() {
                found.extend(modules(&entry, &own));
            } else {
                found.push((own, fs::read_to_string(&entry).unwrap()));
            }
        }
        found
    }

    #[test]
    fn own_targets_are_the_rooms_and_modules_that_log() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let macros = ["error", "warn", "info", "debug", "trace"].map(|level| {
            // In two parts, otherwise this file would be found.
            format!("tracing::{level}{}", "!(")
        });
        let logs = |text: &str| macros.iter().any(|call| text.contains(call));
        let is_room = |path: &str| path.split("::").count() <= 2;
        let targets: BTreeSet<_> = modules(&source, "redis_proxy")
            .into_iter()
            .filter(|(path, text)| is_room(path) || logs(text))
            .map(|(path, _)| path)
            .filter(|path| path != "redis_proxy::sync" && path != "redis_proxy::boxed")
            .collect();
        assert_eq!(targets.iter().map(String::as_str).collect::<Vec<_>>(), OWN_TARGETS);
    }

    #[test]
    fn nearest_word_needs_some_similarity() {
        assert_eq!(nearest("inof", LEVELS), Some("info"));
        assert_eq!(nearest("xyzzy", LEVELS), None);
        assert_eq!(normalized("redis-proxy:backend"), "redis_proxy::backend");
    }

    #[test]
    fn only_unknown_crates_are_unknown_targets() {
        let filter = |text: &str| LogFilter::try_from(text.to_owned()).unwrap();
        assert_eq!(filter("info,hypr=debug,h2=warn").unknown_targets(), ["hypr"]);
        assert!(filter("redis_proxy::cache=debug,tower::buffer=info").unknown_targets().is_empty());
    }
}
