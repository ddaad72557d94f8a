//! `[resp]`

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{AuthRequirement, FileError, KeyAllowlist};
use crate::server::{Tls, TlsFiles, TlsKeys};
use crate::settings::{self, ByteSize, Listen, RuleViolation, out_of_range, violations};

/// `[resp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where clients of Redis are served; empty: nowhere.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// Connections at most.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// How long a connection may be silent while nothing is owed to it; zero: for ever, as with Redis.
    #[serde(with = "settings::duration")]
    pub idle_timeout: Duration,
    /// A file that holds the password by which clients get what the proxy itself may read; empty: Redis decides who they are.
    pub password_file: PathBuf,
    /// The name that goes with it; empty: that of the default user, which need not be said.
    pub username: String,
    /// The listener's certificate; empty: no TLS.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_key_file: PathBuf,
    /// The authorities one of which must have signed a client's certificate; empty: clients need none.
    pub tls_client_ca_file: PathBuf,
    /// How long the beginning of TLS may take.
    #[serde(with = "settings::duration")]
    pub tls_handshake_timeout: Duration,
    /// The keys that are given out; none: all.
    pub allow_keys: KeyAllowlist,
    /// The largest argument of a command.
    pub max_bulk: ByteSize,
    /// Arguments of a command at most.
    #[serde(with = "settings::count")]
    pub max_arguments: usize,
    /// As much of a command is held; what is longer is passed on as it comes.
    pub max_query_buffer: ByteSize,
    /// Bytes of answers that a client has not taken yet, beyond which no more of its commands are read.
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
            max_bulk: ByteSize(512 << 20),
            max_arguments: 1 << 20,
            max_query_buffer: ByteSize(1 << 20),
            max_output_buffer: ByteSize(64 << 20),
        }
    }
}

impl Settings {
    /// What stands between strangers and Redis. That the proxy logs in there proves nothing: Redis may ask no one else.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        if self.allow_unprotected {
            AuthRequirement::Waived
        } else if self.password_file.as_os_str().is_empty()
            && !self.tls_files().requires_client_cert()
        {
            AuthRequirement::None("resp.password_file, resp.tls_client_ca_file, ")
        } else {
            AuthRequirement::Enforced
        }
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            certificates: self.tls_cert_file.clone(),
            key: self.tls_key_file.clone(),
            client_authorities: self.tls_client_ca_file.clone(),
        }
    }

    /// TLS, if it is spoken.
    ///
    /// # Errors
    /// A file that cannot be used.
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
            (self.max_arguments == 0, "resp.max_arguments", "found 0, expected at least 1"),
        ]);
        let tls = self.tls_files().violations(TLS_KEYS, self.tls_handshake_timeout);
        [own, out_of_range([(self.max_connections, "resp.max_connections")]), tls].concat()
    }
}

/// How this section calls what belongs to TLS.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "resp.tls_cert_file",
    key_file: "resp.tls_key_file",
    client_ca_file: "resp.tls_client_ca_file",
    handshake_timeout: "resp.tls_handshake_timeout",
};
