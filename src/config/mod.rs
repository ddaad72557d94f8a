//! The configuration: defaults < file < environment < flags, every problem reported at once.
//!
//! Each module owns its `Settings`; this file composes them. A value is checked by itself first, against the type
//! of its key, so that one bad value hides no other. What is good is put together and held against the rules that
//! concern several keys. A configuration with any problem is never given out.

mod problems;
mod sources;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::problems::problem_at;
pub use self::problems::{Problem, Problems};
pub use self::sources::{Environment, Sources, environment};
use crate::settings::{self, RuleViolation, violations};
use crate::{backend, cache, http, resp, telemetry, warmup};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Reads over HTTP.
    pub http: http::Settings,
    /// Clients of Redis.
    pub resp: resp::Settings,
    /// The operator's routes.
    pub admin: http::AdminSettings,
    /// The Redis behind.
    pub redis: backend::Settings,
    /// The cache.
    pub cache: cache::Settings,
    /// What is kept for the next start.
    pub warm: warmup::Settings,
    /// Logs.
    pub telemetry: telemetry::Settings,
    /// The process.
    pub daemon: DaemonSettings,
}

/// `[daemon]`. It is here, and not with the daemon, because the daemon knows the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonSettings {
    /// How long requests in flight may take to finish when the daemon is told to stop.
    #[serde(with = "settings::duration")]
    pub drain_timeout: Duration,
    /// Threads that serve; zero: one a processor.
    #[serde(with = "settings::count")]
    pub worker_threads: usize,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(8), worker_threads: 0 }
    }
}

impl DaemonSettings {
    /// How many threads serve.
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
    /// The configuration as a file would say it, secrets masked.
    ///
    /// # Errors
    /// None that can happen; the writer of TOML wants it so.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// What is wrong although each value by itself is right: the key to be named, and the text.
    fn violations(&self) -> Vec<RuleViolation> {
        let shared = self.http.listen.conflicts_with(&self.admin.listen);
        let others = [&self.http.listen, &self.admin.listen];
        let resp_shared = others.iter().any(|listen| self.resp.listen.conflicts_with(listen));
        let own = [
            self.http.violations(),
            self.resp.violations(),
            self.admin.violations(),
            self.redis.violations(),
            self.cache.violations(),
            self.warm.violations(),
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
                    self.http.listen.unix_path().is_some(),
                    "http.listen",
                    "found a unix socket, expected host:port",
                ),
                (
                    self.admin.listen.unix_path().is_some(),
                    "admin.listen",
                    "found a unix socket, expected host:port",
                ),
            ]),
        ];
        own.concat()
    }

    /// Whether no listener lets in strangers unasked, as far as the addresses written here say so. The daemon holds it against
    /// those that it has in the end, by name or from systemd.
    ///
    /// # Errors
    /// Each that does.
    pub fn check_exposure(&self) -> Result<(), Problems> {
        let listeners = [
            ("http", "http.allow_unprotected", &self.http.listen, self.http.auth_requirement()),
            ("resp", "resp.allow_unprotected", &self.resp.listen, self.resp.auth_requirement()),
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
