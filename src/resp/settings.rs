//! `[resp]`: the listener for Redis clients.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{AuthRequirement, FileError, KeyAllowlist, Reloadable};
use crate::commands::{CommandList, Credentials, cached_names, opt_in_names};
use crate::server::{Tls, TlsFiles, TlsKeys};
use crate::settings::{self, ByteSize, Listen, RuleViolation, out_of_range, violations};

/// `[resp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The address that serves Redis clients. Empty disables the listener.
    pub listen: Listen,
    /// Whether other hosts may reach this listener without authentication.
    pub allow_unprotected: bool,
    /// The most client connections that may be open.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// The longest time that a connection may be idle while no reply is pending. Zero means no
    /// limit, as in Redis.
    #[serde(with = "settings::duration")]
    pub idle_timeout: Duration,
    /// The file with the password of this listener. A client that shows it has the proxy's own
    /// rights. Empty means that Redis authenticates clients.
    pub password_file: PathBuf,
    /// The user name that belongs to the password. Empty means the default user; clients may then
    /// omit the name.
    pub username: String,
    /// The certificate of the listener. Empty means no TLS.
    pub tls_cert_file: PathBuf,
    /// The private key of the certificate.
    pub tls_key_file: PathBuf,
    /// The authorities of client certificates. Empty means that clients need no certificate.
    pub tls_client_ca_file: PathBuf,
    /// The longest time that a TLS handshake may take.
    #[serde(with = "settings::duration")]
    pub tls_handshake_timeout: Duration,
    /// The keys that clients may use. An empty list allows all keys.
    pub allow_keys: KeyAllowlist,
    /// The commands of modules with replies that are kept on the operator's word.
    pub cache_also: CommandList,
    /// The commands that are not answered from memory.
    pub cache_except: CommandList,
    /// Whether the replies to `INFO`, `INFO everything` and their like have the section of the
    /// proxy. `INFO redis_proxy` has it always.
    pub info: bool,
    /// The largest argument of a command, in bytes.
    pub max_bulk: ByteSize,
    /// The most arguments of a command.
    #[serde(with = "settings::count")]
    pub max_arguments: usize,
    /// The most bytes of a command that are buffered. A longer command is forwarded as it arrives.
    pub max_query_buffer: ByteSize,
    /// The most bytes of replies that a client has not read yet. Beyond it no more commands of that
    /// client are read.
    pub max_output_buffer: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            allow_unprotected: false,
            max_connections: 10_000,
            idle_timeout: Duration::ZERO,
            password_file: PathBuf::new(),
            username: String::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            tls_handshake_timeout: Duration::from_secs(10),
            allow_keys: KeyAllowlist::default(),
            cache_also: CommandList::default(),
            cache_except: CommandList::default(),
            info: false,
            max_bulk: ByteSize(512 << 20),
            max_arguments: 1 << 20,
            max_query_buffer: ByteSize(1 << 20),
            max_output_buffer: ByteSize(64 << 20),
        }
    }
}

impl Settings {
    /// Returns the authentication of the listener. The proxy's own login at Redis does not count,
    /// because Redis may accept clients without any.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        let has_secret = !self.password_file.as_os_str().is_empty();
        AuthRequirement::new(
            self.allow_unprotected,
            has_secret || self.tls_files().requires_client_cert(),
            "resp.password_file, resp.tls_client_ca_file, ",
        )
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles::new(&self.tls_cert_file, &self.tls_key_file, &self.tls_client_ca_file)
    }

    /// Returns the errors of all files that the listener needs.
    pub(crate) fn file_errors(&self) -> Vec<FileError> {
        let mut errors = Tls::file_errors(&self.tls_files(), TLS_KEYS);
        errors.extend(self.credentials().err());
        errors
    }

    /// Loads the login that the front end requires, if it requires one.
    ///
    /// # Errors
    /// [`FileError`] if the password file cannot be read, or is empty.
    pub(super) fn credentials(&self) -> Result<Option<Reloadable<Credentials>>, FileError> {
        let (user, path) = (self.username.clone(), self.password_file.clone());
        let is_set = !path.as_os_str().is_empty();
        is_set.then(|| Reloadable::load(move || Credentials::read(&user, &path))).transpose()
    }

    /// Loads the TLS files, if TLS is configured.
    ///
    /// # Errors
    /// [`FileError`] for a file that cannot be used.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, FileError> {
        Tls::load(self.tls_files(), TLS_KEYS, self.tls_handshake_timeout, &[])
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let buffer = format!(
            "found {}, expected at least 256KiB, of which a line may have 64",
            self.max_query_buffer
        );
        let output = format!("found {}, expected at least 64KiB", self.max_output_buffer);
        let name_alone = !self.username.is_empty() && self.password_file.as_os_str().is_empty();
        let tls_on_unix = self.listen.unix_path().is_some() && self.tls_files().is_enabled();
        let also = self.cache_also.violation(opt_in_names());
        let except = self.cache_except.violation(cached_names().chain(STRING_READS));
        let own = violations([
            (
                tls_on_unix,
                "resp.tls_cert_file",
                "found with a unix socket, on which no TLS is spoken",
            ),
            (
                name_alone,
                "resp.username",
                "found a name without a password, expected resp.password_file with it",
            ),
            (self.max_query_buffer.0 < 256 << 10, "resp.max_query_buffer", &buffer),
            (self.max_output_buffer.0 < 64 << 10, "resp.max_output_buffer", &output),
            (also.is_some(), "resp.cache_also", also.as_deref().unwrap_or_default()),
            (except.is_some(), "resp.cache_except", except.as_deref().unwrap_or_default()),
            (self.max_arguments == 0, "resp.max_arguments", "found 0, expected at least 1"),
        ]);
        let tls = self.tls_files().violations(TLS_KEYS, self.tls_handshake_timeout);
        [own, out_of_range([(self.max_connections, "resp.max_connections")]), tls].concat()
    }
}

/// The commands that are answered from the cache of strings.
const STRING_READS: [&str; 6] = ["get", "mget", "exists", "strlen", "getrange", "substr"];

/// The keys of this section that concern TLS.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "resp.tls_cert_file",
    key_file: "resp.tls_key_file",
    client_ca_file: "resp.tls_client_ca_file",
    handshake_timeout: "resp.tls_handshake_timeout",
};
