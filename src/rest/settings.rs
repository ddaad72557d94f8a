//! `[rest]`: commands over HTTP.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cors::CorsOrigins;
use crate::access::{FileError, TokenFile};
use crate::commands::CommandList;
use crate::settings::{self, ByteSize, RuleViolation, out_of_range, violations, zero_timeouts};

/// `[rest]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The path of the front end on the HTTP listener. Empty disables it.
    pub path: String,
    /// The file of tokens with their rights. Without it the front end is not served.
    pub tokens_file: PathBuf,
    /// The commands that no token may use, each by its name, or as `NAME|SUBCOMMAND`.
    pub deny_commands: CommandList,
    /// The origins of web pages that may use the front end from a browser; empty: none.
    pub cors_origins: CorsOrigins,
    /// The size above which a response is compressed for a client that can read that; 0: never.
    pub compress_above: ByteSize,
    /// The largest body of a request, in bytes.
    pub max_body: ByteSize,
    /// The largest response, in bytes.
    pub max_response: ByteSize,
    /// The most commands of a request.
    #[serde(with = "settings::count")]
    pub max_commands: usize,
    /// The most connections to Redis for forwarded commands.
    #[serde(with = "settings::count")]
    pub max_upstream: usize,
    /// The most streams of events, each with a connection to Redis.
    #[serde(with = "settings::count")]
    pub max_streams: usize,
    /// Whether `/monitor` is served.
    pub allow_monitor: bool,
    /// The longest time that a request may take, its body included.
    #[serde(with = "settings::duration")]
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: String::new(),
            tokens_file: PathBuf::new(),
            deny_commands: CommandList::of(DENIED),
            cors_origins: CorsOrigins::default(),
            compress_above: ByteSize(1 << 10),
            max_body: ByteSize(10 << 20),
            max_response: ByteSize(64 << 20),
            max_commands: 10_000,
            max_upstream: 64,
            max_streams: 256,
            allow_monitor: false,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Whether the front end is served.
    pub fn is_enabled(&self) -> bool {
        !self.path.is_empty()
    }

    /// Loads the tokens.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be used.
    pub(crate) fn tokens(&self) -> Result<TokenFile, FileError> {
        TokenFile::load("rest.tokens_file", self.tokens_file.clone())
    }

    /// Returns the errors of all files that the front end needs.
    pub(crate) fn file_errors(&self) -> Vec<FileError> {
        if self.is_enabled() { self.tokens().err().into_iter().collect() } else { Vec::new() }
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let path = format!(
            "found {:?}, expected / and a name, such as \"/rest\", beside /keys and the \
                operator's routes",
            self.path
        );
        let own = violations([
            (self.is_enabled() && !is_valid_path(&self.path), "rest.path", &path),
            (
                self.is_enabled() && self.tokens_file.as_os_str().is_empty(),
                "rest.tokens_file",
                "found \"\", expected a file of tokens: the front end writes, so it is never \
                    served without",
            ),
            (self.max_body.0 < 1024, "rest.max_body", "expected at least 1KiB"),
            (self.max_response.0 < 1024, "rest.max_response", "expected at least 1KiB"),
        ]);
        let limits = out_of_range([
            (self.max_commands, "rest.max_commands"),
            (self.max_upstream, "rest.max_upstream"),
            (self.max_streams, "rest.max_streams"),
        ]);
        let timeouts = zero_timeouts([(self.timeout, "rest.timeout")]);
        [own, limits, timeouts].concat()
    }
}

/// The paths that belong to other routes of the listener.
const TAKEN: [&str; 6] = ["/keys", "/metrics", "/livez", "/readyz", "/hotkeys", "/status"];

/// Whether the path is some segments of unreserved characters, and no other route's.
fn is_valid_path(path: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte))
    };
    let is_taken =
        TAKEN.iter().any(|taken| path == *taken || path.starts_with(&format!("{taken}/")));
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment)) && !is_taken
}

/// The default of `rest.deny_commands`: commands that empty, stop, reconfigure or disclose a whole
/// server.
const DENIED: &[&str] = &[
    "ACL",
    "BGREWRITEAOF",
    "BGSAVE",
    "CLUSTER",
    "CONFIG",
    "DEBUG",
    "FAILOVER",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION|FLUSH",
    "FUNCTION|RESTORE",
    "KEYS",
    "LATENCY",
    "MIGRATE",
    "MODULE",
    "PFDEBUG",
    "PFSELFTEST",
    "REPLICAOF",
    "RESTORE-ASKING",
    "SAVE",
    "SCRIPT|FLUSH",
    "SCRIPT|KILL",
    "SHUTDOWN",
    "SLAVEOF",
    "SLOWLOG",
    "SWAPDB",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_apart_from_other_routes() {
        for (path, expected) in [
            ("/rest", true),
            ("/rest/v1", true),
            ("/key", true),
            ("/keys-rest", true),
            ("/", false),
            ("rest", false),
            ("/rest/", false),
            ("/re st", false),
            ("/r%65st", false),
            ("/../keys", false),
            ("/keys", false),
            ("/keys/a", false),
            ("/metrics", false),
        ] {
            assert_eq!(is_valid_path(path), expected, "{path}");
        }
    }

    #[test]
    fn front_end_without_tokens_is_a_violation() {
        let keys = |settings: &Settings| {
            settings.violations().into_iter().map(|one| one.key).collect::<Vec<_>>()
        };
        let off = Settings::default();
        assert!(keys(&off).is_empty() && !off.is_enabled());
        let on = Settings { path: "/rest".into(), ..off };
        assert_eq!(keys(&on), ["rest.tokens_file"]);
    }
}
