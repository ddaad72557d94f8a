//! `[rest]`: commands over HTTP.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cors::CorsOrigins;
use crate::access::{AuthRequirement, FileError, TokenFile};
use crate::backend::OtherLogin;
use crate::commands::CommandList;
use crate::http::{HTTP_PROTOCOLS, Limits, MIN_HEADER, OPERATOR_ROUTES};
use crate::server::{Tls, TlsFiles, TlsKeys};
use crate::settings::{
    self, ByteSize, Listen, RuleViolation, out_of_range, violations, zero_timeouts,
};

/// `[rest]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The path of the front end on the HTTP listener; empty: it is not served there.
    pub path: String,
    /// The listen address of a listener with the contract at `/`; empty: there is none.
    pub listen: Listen,
    /// The file of tokens with their rights. Without it the front end is not served.
    pub tokens_file: PathBuf,
    /// The user of Redis that runs forwarded commands; empty: that of `[redis]`.
    pub redis_username: String,
    /// The file with the password of that user.
    pub redis_password_file: PathBuf,
    /// The listener's certificate; empty: no TLS.
    pub tls_cert_file: PathBuf,
    /// The private key of the certificate.
    pub tls_key_file: PathBuf,
    /// The authorities that sign client certificates; empty: clients need no certificate.
    pub tls_client_ca_file: PathBuf,
    /// The timeout of the TLS handshake.
    #[serde(with = "settings::duration")]
    pub tls_handshake_timeout: Duration,
    /// The maximum number of the listener's connections.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// The longest time without any byte sent or received while no request is in flight.
    #[serde(with = "settings::duration")]
    pub idle_timeout: Duration,
    /// The longest time that the head of a request may take to arrive.
    #[serde(with = "settings::duration")]
    pub header_timeout: Duration,
    /// The maximum size of a request's headers.
    pub max_header: ByteSize,
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
            listen: Listen::default(),
            redis_username: String::new(),
            redis_password_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            tls_handshake_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            max_header: ByteSize(64 << 10),
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
        self.is_beside_keys() || !self.listen.is_off()
    }

    /// Whether the front end is served on the HTTP listener.
    fn is_beside_keys(&self) -> bool {
        !self.path.is_empty()
    }

    /// Returns the authentication of the listener. The front end is never served without tokens.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        AuthRequirement::new(false, !self.tokens_file.as_os_str().is_empty(), "rest.tokens_file, ")
    }

    /// Returns the limits of every connection of the listener.
    pub fn limits(&self) -> Limits {
        let Self { idle_timeout, header_timeout, max_header, .. } = *self;
        Limits { idle_timeout, header_timeout, max_header: max_header.0 }
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles::new(&self.tls_cert_file, &self.tls_key_file, &self.tls_client_ca_file)
    }

    /// Returns the TLS configuration of the listener; `None` if TLS is off.
    ///
    /// # Errors
    /// [`FileError`] if a file cannot be used.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, FileError> {
        Tls::load(self.tls_files(), TLS_KEYS, self.tls_handshake_timeout, &HTTP_PROTOCOLS)
    }

    /// Loads the tokens.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be used.
    pub(crate) fn tokens(&self) -> Result<TokenFile, FileError> {
        TokenFile::load("rest.tokens_file", self.tokens_file.clone())
    }

    /// Returns the login of forwarded commands; `None`: that of the proxy.
    ///
    /// # Errors
    /// [`FileError`] if the password file cannot be used.
    pub(crate) fn redis_login(&self) -> Result<Option<OtherLogin>, FileError> {
        if self.redis_username.is_empty() {
            return Ok(None);
        }
        let (user, path) = (self.redis_username.clone(), self.redis_password_file.clone());
        let login = OtherLogin::new(user, path.clone());
        match login.check() {
            Ok(()) => Ok(Some(login)),
            Err(problem) => Err(FileError::new("rest.redis_password_file", &path, problem)),
        }
    }

    /// Returns the errors of all files that the front end needs.
    pub(crate) fn file_errors(&self) -> Vec<FileError> {
        if !self.is_enabled() {
            return Vec::new();
        }
        let mut errors = Tls::file_errors(&self.tls_files(), TLS_KEYS);
        errors.extend(self.tokens().err());
        errors.extend(self.redis_login().err());
        errors
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let path = format!(
            "found {:?}, expected / and a name, such as \"/rest\", beside /keys and the \
                operator's routes",
            self.path
        );
        let has_password = !self.redis_password_file.as_os_str().is_empty();
        let own = violations([
            (self.is_beside_keys() && !is_valid_path(&self.path), "rest.path", &path),
            (
                self.listen.unix_path().is_some(),
                "rest.listen",
                "found a unix socket, expected host:port",
            ),
            (
                self.is_enabled() && self.tokens_file.as_os_str().is_empty(),
                "rest.tokens_file",
                "found \"\", expected a file of tokens: the front end writes, so it is never \
                    served without",
            ),
            (
                has_password && self.redis_username.is_empty(),
                "rest.redis_password_file",
                "found without what belongs to it, expected rest.redis_username with it",
            ),
            (
                !has_password && !self.redis_username.is_empty(),
                "rest.redis_username",
                "found without what belongs to it, expected rest.redis_password_file with it",
            ),
            (self.max_body.0 < 1024, "rest.max_body", "expected at least 1KiB"),
            (self.max_response.0 < 1024, "rest.max_response", "expected at least 1KiB"),
            (self.max_header.0 < MIN_HEADER, "rest.max_header", "expected at least 8KiB"),
        ]);
        let limits = out_of_range([
            (self.max_commands, "rest.max_commands"),
            (self.max_upstream, "rest.max_upstream"),
            (self.max_streams, "rest.max_streams"),
            (self.max_connections, "rest.max_connections"),
        ]);
        let timeouts = zero_timeouts([
            (self.timeout, "rest.timeout"),
            (self.idle_timeout, "rest.idle_timeout"),
            (self.header_timeout, "rest.header_timeout"),
        ]);
        let tls = self.tls_files().violations(TLS_KEYS, self.tls_handshake_timeout);
        [own, limits, timeouts, tls].concat()
    }
}

/// The names of this section's TLS keys.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "rest.tls_cert_file",
    key_file: "rest.tls_key_file",
    client_ca_file: "rest.tls_client_ca_file",
    handshake_timeout: "rest.tls_handshake_timeout",
};

/// Whether the path is some segments of unreserved characters, and no other route's.
fn is_valid_path(path: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte))
    };
    let mut taken = OPERATOR_ROUTES.into_iter().chain(["/keys"]);
    let is_taken = taken.any(|taken| path == taken || path.starts_with(&format!("{taken}/")));
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
            ("/report", false),
            ("/cache/a", false),
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
