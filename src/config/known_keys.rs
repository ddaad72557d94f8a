//! The names of all keys, and the key that an unknown name probably means.
//!
//! A name is compared with the keys of its own section first. Names that other programs use for the
//! same thing (`host`, `maxmemory`) resemble no key here, so a table has them.

use std::collections::BTreeMap;

use super::problems::Problem;

/// The environment variables that may concern the configuration, by name.
pub type Environment = BTreeMap<String, String>;

/// The beginning of the names of all variables.
pub(super) const PREFIX: &str = "REDIS_PROXY_";
/// The variable that names the file. The command line reads it, so it is no key.
pub(super) const CONFIG_VARIABLE: &str = "REDIS_PROXY_CONFIG";

/// The names of all keys.
pub(super) struct KnownKeys(Vec<String>);

/// The similarity, from 0 to 1, below which no key is suggested for another.
const MIN_SIMILARITY: f64 = 0.8;

/// Former names of keys, and their names now. Otherwise a former name would suggest another key.
const RENAMED: [(&str, &str); 4] = [
    ("cache.ttl_absent", "cache.negative_ttl"),
    ("cache.stale_grace", "cache.stale_if_error"),
    ("http.allow", "http.allow_keys"),
    ("resp.allow", "resp.allow_keys"),
];

/// Names by which other programs and earlier habits call a key: the section, the names, and the key
/// of the section. Rows of the most common sections come first, because a name without a section
/// takes the first row that has it.
const SYNONYMS: [(&str, &[&str], &str); 33] = [
    ("http", &["host", "port", "bind", "addr", "address", "interface"], "listen"),
    ("http", &["maxclients", "max_clients", "connections"], "max_connections"),
    ("http", &["timeout", "keepalive", "keep_alive"], "idle_timeout"),
    ("http", &["cert", "cert_file", "certificate", "tls_cert"], "tls_cert_file"),
    ("http", &["key", "key_file", "tls_key"], "tls_key_file"),
    ("http", &["token", "tokens", "token_file"], "tokens_file"),
    ("resp", &["host", "port", "bind", "addr", "address", "interface"], "listen"),
    ("resp", &["maxclients", "max_clients", "connections"], "max_connections"),
    ("resp", &["timeout", "keepalive", "keep_alive"], "idle_timeout"),
    ("resp", &["cert", "cert_file", "certificate", "tls_cert"], "tls_cert_file"),
    ("resp", &["key", "key_file", "tls_key"], "tls_key_file"),
    ("resp", &["password", "requirepass"], "password_file"),
    ("resp", &["user"], "username"),
    ("admin", &["host", "port", "bind", "addr", "address", "interface"], "listen"),
    ("redis", &["host", "hostname", "port", "server", "addr", "address", "endpoint", "uri"], "url"),
    ("redis", &["db", "database", "ssl", "tls", "socket", "path"], "url"),
    ("redis", &["user"], "username"),
    ("redis", &["pass", "auth", "requirepass"], "password"),
    ("redis", &["timeout", "read_timeout", "socket_timeout"], "response_timeout"),
    ("redis", &["hosts", "nodes", "sentinels"], "seeds"),
    ("redis", &["master", "master_name", "service_name"], "sentinel_master"),
    ("redis", &["ca", "ca_file", "cacert", "tls_ca"], "tls_ca_file"),
    (
        "cache",
        &["size", "max_size", "max_entries", "entries", "max_keys", "keys", "limit"],
        "capacity",
    ),
    ("cache", &["maxmemory", "memory", "max_bytes", "memory_limit"], "max_memory"),
    ("cache", &["expire", "expires", "expiry", "expiration", "max_age", "lifetime"], "ttl"),
    ("cache", &["eviction", "eviction_policy", "maxmemory_policy", "algorithm"], "policy"),
    ("warm", &["path", "filename", "state_file"], "file"),
    ("warm", &["count", "max_keys", "size", "capacity"], "keys"),
    ("telemetry", &["level", "log", "loglevel", "log_level", "filter"], "log_filter"),
    ("telemetry", &["format"], "log_format"),
    ("telemetry", &["endpoint", "otlp", "otlp_endpoint", "collector"], "traces_endpoint"),
    ("daemon", &["threads", "workers"], "worker_threads"),
    ("daemon", &["grace_period", "shutdown_timeout", "timeout"], "drain_timeout"),
];

/// Other names of the variable that names the configuration file.
const CONFIG_NAMES: [&str; 5] = ["conf", "configfile", "configpath", "configuration", "cfg"];

impl KnownKeys {
    pub(super) fn new(keys: impl IntoIterator<Item = String>) -> Self {
        Self(keys.into_iter().collect())
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|known| known == key)
    }

    pub(super) fn is_section(&self, key: &str) -> bool {
        self.0.iter().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Returns the hint for an unknown key: the one that was probably meant, or all of its section.
    pub(super) fn hint(&self, key: &str) -> String {
        if let Some(meant) = self.meant_by(key) {
            return format!("did you mean {meant}?");
        }
        let section = key.split('.').next().unwrap_or_default();
        if self.is_section(section) {
            let keys: Vec<_> = self.keys_of(section).collect();
            return format!("the keys of [{section}] are {}", keys.join(", "));
        }
        format!("the sections are {}", self.sections().join(", "))
    }

    /// Returns the key, or the section, that was probably meant.
    fn meant_by(&self, key: &str) -> Option<String> {
        if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == key) {
            return Some((*new).to_owned());
        }
        let Some((section, name)) = key.split_once('.') else {
            return self.with_last_part(key).or_else(|| self.nearest_section(key));
        };
        let section = if self.is_section(section) {
            section.to_owned()
        } else {
            self.nearest_section(section)?
        };
        self.meant_in(&section, name).or_else(|| self.with_same_last_part(name))
    }

    /// Returns the key of this section that a name probably means.
    fn meant_in(&self, section: &str, name: &str) -> Option<String> {
        let name = name.replace('-', "_").to_lowercase();
        let synonym = SYNONYMS
            .iter()
            .find(|(in_section, names, _)| *in_section == section && names.contains(&&*name))
            .map(|(.., key)| format!("{section}.{key}"));
        let nearest = || {
            let similarity = |known: &str| strsim::jaro_winkler(last_part(known), &name);
            most_similar(self.keys_of(section), similarity).map(str::to_owned)
        };
        synonym.or_else(nearest)
    }

    /// Returns the key of any section that has this last part, or for which it is a synonym.
    fn with_last_part(&self, name: &str) -> Option<String> {
        let synonym = || {
            let name = name.replace('-', "_").to_lowercase();
            let row = SYNONYMS.iter().find(|(_, names, _)| names.contains(&&*name))?;
            Some(format!("{}.{}", row.0, row.2))
        };
        self.with_same_last_part(name).or_else(synonym)
    }

    /// Returns the key of any section that has this last part. Where several have it, reads over
    /// HTTP are the usual case.
    fn with_same_last_part(&self, name: &str) -> Option<String> {
        let name = name.replace('-', "_").to_lowercase();
        let of_http = format!("http.{name}");
        if self.contains(&of_http) {
            return Some(of_http);
        }
        self.0.iter().find(|known| last_part(known) == name).cloned()
    }

    fn nearest_section(&self, section: &str) -> Option<String> {
        let similarity = |known: &str| strsim::jaro_winkler(known, section);
        most_similar(self.sections().into_iter(), similarity).map(str::to_owned)
    }

    fn keys_of<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        let of_section = move |known: &&String| {
            known.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
        };
        self.0.iter().filter(of_section).map(String::as_str)
    }

    fn sections(&self) -> Vec<&str> {
        let mut sections: Vec<_> =
            self.0.iter().filter_map(|known| Some(known.split_once('.')?.0)).collect();
        sections.dedup();
        sections
    }

    /// Returns a problem for each variable that names no key and resembles one.
    pub(super) fn misspelt_variables(&self, environment: &Environment) -> Vec<Problem> {
        let found = unknown_variables(environment).filter_map(|name| {
            let meant = self.variable_meant_by(&name[PREFIX.len()..])?;
            Some(variable_problem(name, &format!("did you mean {meant}?")))
        });
        found.collect()
    }

    /// Returns a warning for each variable that names no key and resembles none.
    pub(super) fn stray_variables(&self, environment: &Environment) -> Vec<Problem> {
        let found = unknown_variables(environment)
            .filter(|name| self.variable_meant_by(&name[PREFIX.len()..]).is_none())
            .map(|name| variable_problem(name, "the form of a key is REDIS_PROXY_SECTION__KEY"));
        found.collect()
    }

    /// Returns the variable that was probably meant by one without two underscores.
    fn variable_meant_by(&self, name: &str) -> Option<String> {
        let name = bare(name);
        if CONFIG_NAMES.contains(&&*name) {
            return Some(CONFIG_VARIABLE.to_owned());
        }
        let exact = self.0.iter().find(|known| bare(known) == name).cloned();
        let synonym = || {
            let row = SYNONYMS.iter().find(|(section, names, _)| {
                names.iter().any(|other| bare(section) + &bare(other) == name)
            })?;
            Some(format!("{}.{}", row.0, row.2))
        };
        let by_last_part = || {
            // A single word such as `PATH` may well be meant for another program.
            let is_specific =
                |name: &&str| name.contains('_') || ["host", "port", "loglevel"].contains(name);
            let last = SYNONYMS.iter().flat_map(|(_, names, _)| *names).copied();
            let last = last.filter(is_specific);
            let own = self.0.iter().map(|known| last_part(known));
            let same = own.chain(last).find(|other| bare(other) == name)?;
            self.with_last_part(same)
        };
        let nearest = || {
            let similarity =
                |known: &str| strsim::normalized_damerau_levenshtein(&bare(known), &name);
            most_similar(self.0.iter().map(String::as_str), similarity).map(str::to_owned)
        };
        let key = exact.or_else(synonym).or_else(by_last_part).or_else(nearest)?;
        Some(format!("{PREFIX}{}", key.replace('.', "__").to_uppercase()))
    }
}

/// Returns the variables that name no key, because they lack the two underscores, except for those
/// that a container platform sets for a service or a link called redis-proxy.
fn unknown_variables(environment: &Environment) -> impl Iterator<Item = &String> {
    let unknown = environment.iter().filter(|(name, value)| {
        let name = &name[PREFIX.len()..];
        !name.contains("__") && !is_from_platform(name, value)
    });
    unknown.map(|(name, _)| name)
}

/// Whether Kubernetes or Docker sets such a variable: `SERVICE_HOST`, `SERVICE_PORT_HTTP`,
/// `PORT=tcp://10.0.0.1:80`, `PORT_80_TCP_ADDR`.
///
/// A `PORT` that is no URL is not theirs. It is probably meant as a setting.
fn is_from_platform(name: &str, value: &str) -> bool {
    let (name, has_url) = (format!("_{name}"), value.contains("://"));
    let is_of_a_port = name
        .split_once("_PORT_")
        .is_some_and(|(_, rest)| rest.starts_with(|letter: char| letter.is_ascii_digit()));
    let is_of_a_service = name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
    // Docker passes the variables of a linked container under its name.
    let is_of_a_link =
        name.starts_with("_ENV_") || name.ends_with("_NAME") && value.starts_with('/');
    is_of_a_service || is_of_a_port || is_of_a_link || (has_url && name.ends_with("_PORT"))
}

fn variable_problem(name: &str, hint: &str) -> Problem {
    let text = format!("unknown variable; {hint}");
    Problem { origin: name.to_owned(), key: String::new(), text }
}

/// Returns a name in lower case without dots and underscores.
fn bare(name: &str) -> String {
    name.to_lowercase().replace(['_', '.'], "")
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Returns the candidate with the greatest similarity, if that is enough.
fn most_similar<'a>(
    candidates: impl Iterator<Item = &'a str>,
    similarity: impl Fn(&str) -> f64,
) -> Option<&'a str> {
    let (found, most) = candidates
        .map(|candidate| (candidate, similarity(candidate)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (most > MIN_SIMILARITY).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::sources::known_keys;
    use super::*;

    #[test]
    fn synonyms_name_a_key_and_are_none() {
        let known = known_keys();
        for (section, names, key) in SYNONYMS {
            assert!(known.contains(&format!("{section}.{key}")), "{section}.{key}");
            for name in names {
                assert!(!known.contains(&format!("{section}.{name}")), "{section}.{name}");
            }
        }
        for (old, new) in RENAMED {
            assert!(known.contains(new) && !known.contains(old), "{old} {new}");
        }
    }

    #[test]
    fn variables_of_the_projects_tests_are_not_refused() {
        let known = known_keys();
        for name in ["TEST_SEED", "TEST_CLIENTS", "PIPELINE_SECONDS"] {
            assert_eq!(known.variable_meant_by(name), None, "{name}");
        }
    }

    #[test]
    fn platform_variables_are_told_from_settings() {
        for (name, value, expected) in [
            ("SERVICE_HOST", "10.0.0.1", true),
            ("ADMIN_SERVICE_PORT_HTTP", "80", true),
            ("PORT", "tcp://10.0.0.1:80", true),
            ("ADMIN_PORT", "tcp://10.0.0.1:80", true),
            ("PORT_80_TCP_PORT", "80", true),
            ("ENV_TTL", "60", true),
            ("NAME", "/app/redis-proxy", true),
            ("PORT", "80", false),
            ("REDIS_PORT", "6379", false),
            ("HTTP_PORT", "8080", false),
            ("SERVICE", "x", false),
        ] {
            assert_eq!(is_from_platform(name, value), expected, "{name}={value}");
        }
    }

    #[test]
    fn name_without_a_section_prefers_the_usual_key() {
        let known = known_keys();
        for (name, expected) in [
            ("ttl", Some("cache.ttl")),
            ("port", Some("http.listen")),
            ("listen", Some("http.listen")),
            ("telemety", Some("telemetry")),
            ("colour", None),
            ("warm.path", Some("warm.file")),
            ("warm.hostname", None),
            ("cache.tls_key_file", Some("http.tls_key_file")),
        ] {
            assert_eq!(known.meant_by(name).as_deref(), expected, "{name}");
        }
    }
}
