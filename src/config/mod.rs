//! The configuration: defaults < file < environment < flags. Every problem is reported at once.
//!
//! Each module owns its `Settings`; this file composes them. `sources.rs` reads the layers and
//! checks each value by itself. `known_keys.rs` finds the key that an unknown name means.
//! `schema.rs` and `sample.rs` describe all keys. This file checks the rules that concern several
//! keys.

mod key_rules;
mod known_keys;
mod problems;
mod sample;
mod schema;
mod sources;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::known_keys::Environment;
use self::problems::problem_at;
pub use self::problems::{Problem, Problems};
pub use self::sample::initial_file;
pub use self::schema::json_schema;
pub use self::sources::{Sources, environment};
use crate::settings::{self, RuleViolation, violations};
use crate::{backend, cache, http, resp, rest, telemetry, verify, warmup};

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[http]`: the listener for reads over HTTP.
    pub http: http::Settings,
    /// `[resp]`: the listener for Redis clients.
    pub resp: resp::Settings,
    /// `[rest]`: commands over HTTP.
    pub rest: rest::Settings,
    /// `[admin]`: the listener for operators.
    pub admin: http::AdminSettings,
    /// `[redis]`: the upstream Redis.
    pub redis: backend::Settings,
    /// `[cache]`: the cache.
    pub cache: cache::Settings,
    /// `[warm]`: the keys that are fetched after a restart.
    pub warm: warmup::Settings,
    /// `[verify]`: the comparison of answers from memory with Redis.
    pub verify: verify::Settings,
    /// `[telemetry]`: logs and traces.
    pub telemetry: telemetry::Settings,
    /// `[daemon]`: the process.
    pub daemon: DaemonSettings,
}

/// `[daemon]`. It is defined here because the daemon depends on this module. In the daemon's module
/// it would close an import cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonSettings {
    /// The longest time that requests in flight get to finish after a shutdown signal.
    #[serde(with = "settings::duration")]
    pub drain_timeout: Duration,
    /// The number of worker threads. Zero means one for each CPU.
    #[serde(with = "settings::count")]
    pub worker_threads: usize,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(8), worker_threads: 0 }
    }
}

impl DaemonSettings {
    /// Returns the number of worker threads.
    pub(crate) fn threads(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    fn violations(&self) -> Vec<RuleViolation> {
        let text = format!(
            "found {}, expected at most 1024, or 0 for one a processor",
            self.worker_threads
        );
        violations([(self.worker_threads > 1024, "daemon.worker_threads", &text)])
    }
}

impl Config {
    /// Renders the configuration as a TOML file, with secrets masked.
    ///
    /// # Errors
    /// [`toml::ser::Error`] if a value has no TOML form. No value of this type lacks one.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Returns the violations of rules, each with its key and a text. Each value is valid by
    /// itself.
    fn violations(&self) -> Vec<RuleViolation> {
        let shared = self.http.listen.conflicts_with(&self.admin.listen);
        let others = [&self.http.listen, &self.admin.listen];
        let resp_shared = others.iter().any(|listen| self.resp.listen.conflicts_with(listen));
        let others = [&self.http.listen, &self.admin.listen, &self.resp.listen];
        let is_rest_taken = others.iter().any(|listen| self.rest.listen.conflicts_with(listen));
        let own = [
            self.http.violations(),
            self.resp.violations(),
            self.rest.violations(),
            self.admin.violations(),
            self.redis.violations(),
            self.cache.violations(),
            self.warm.violations(),
            self.verify.violations(),
            self.daemon.violations(),
            violations([
                (
                    shared,
                    "admin.listen",
                    "the same as http.listen, expected another, or \"\" to serve both there",
                ),
                (
                    resp_shared,
                    "resp.listen",
                    "the same as another listener, expected one of its own",
                ),
                (
                    is_rest_taken,
                    "rest.listen",
                    "the same as another listener, expected one of its own; rest.path serves it \
                        beside /keys",
                ),
                (
                    self.http.listen.unix_path().is_some(),
                    "http.listen",
                    "found a unix socket, expected host:port",
                ),
            ]),
        ];
        own.concat()
    }

    /// Returns the targets of `telemetry.log_filter` that no log line has, for a warning.
    pub fn unknown_log_targets(&self) -> Vec<&str> {
        self.telemetry.log_filter.unknown_targets()
    }

    /// Returns a note for each rule of `cache.rules` that takes a part of the keys of another.
    pub fn overlapping_rules(&self) -> Vec<String> {
        key_rules::overlaps(&self.cache.rules)
    }

    /// Checks that every listener that other hosts can reach has authentication or a waiver
    /// (invariant A1). Only addresses written as IP addresses are checked. The daemon checks again
    /// with the addresses that it binds, including resolved names and sockets from systemd.
    ///
    /// # Errors
    /// [`Problems`] with one problem for each listener without either.
    pub fn check_exposure(&self) -> Result<(), Problems> {
        let listeners = [
            ("http", "http.allow_unprotected", &self.http.listen, self.http.auth_requirement()),
            ("resp", "resp.allow_unprotected", &self.resp.listen, self.resp.auth_requirement()),
            ("rest", "rest.tokens_file", &self.rest.listen, self.rest.auth_requirement()),
            ("admin", "admin.allow_unprotected", &self.admin.listen, self.admin.auth_requirement()),
        ];
        let unprotected =
            listeners.into_iter().filter_map(|(section, key, listen, auth_requirement)| {
                let unprotected =
                    auth_requirement.check(section, listen.ip()?, &listen.to_string()).err()?;
                Some(problem_at(key, None, unprotected.message()))
            });
        let problems: Vec<_> = unprotected.collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }
}
