//! The configuration of reads over HTTP and of the operator's routes.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::service::Limits;
use crate::access::{AuthRequirement, BearerAuth, FileError, KeyAllowlist};
use crate::server::{Tls, TlsFiles, TlsKeys};
use crate::settings::{
    self, ByteSize, Listen, RuleViolation, out_of_range, violations, zero_timeouts,
};

/// The section `[http]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The listen address for reads.
    pub listen: Listen,
    /// Whether the listener may be reachable from other hosts without authentication.
    pub allow_unprotected: bool,
    /// The file of bearer tokens; empty: no token is required.
    pub tokens_file: PathBuf,
    /// The listener's certificate; empty: no TLS.
    pub tls_cert_file: PathBuf,
    /// The private key of the certificate.
    pub tls_key_file: PathBuf,
    /// The authorities that sign client certificates; empty: clients need no certificate.
    pub tls_client_ca_file: PathBuf,
    /// The timeout of the TLS handshake.
    #[serde(with = "settings::duration")]
    pub tls_handshake_timeout: Duration,
    /// The keys that the listener serves; empty: all.
    pub allow_keys: KeyAllowlist,
    /// The maximum number of connections.
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
    /// The maximum length of a key.
    pub max_key: ByteSize,
    /// The maximum size of a value in a response.
    pub max_value: ByteSize,
    /// The `Cache-Control` header of responses, for downstream caches.
    pub cache_control: CacheControl,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Listen::from_static("127.0.0.1:8080"),
            allow_unprotected: false,
            tokens_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            tls_handshake_timeout: Duration::from_secs(10),
            allow_keys: KeyAllowlist::default(),
            max_connections: 10_000,
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            max_header: ByteSize(64 << 10),
            max_key: ByteSize(16 << 10),
            max_value: ByteSize(512 << 20),
            cache_control: CacheControl::default(),
        }
    }
}

impl Settings {
    /// Returns the authentication that protects the keys.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        let has_secret = !self.tokens_file.as_os_str().is_empty();
        AuthRequirement::new(
            self.allow_unprotected,
            has_secret || self.tls_files().requires_client_cert(),
            "http.tokens_file, http.tls_client_ca_file, ",
        )
    }

    /// Returns the limits of every connection.
    pub fn limits(&self) -> Limits {
        let Self { idle_timeout, header_timeout, max_header, .. } = *self;
        Limits { idle_timeout, header_timeout, max_header: max_header.0 }
    }

    /// Returns the bearer authentication; `None` if no token is required.
    ///
    /// # Errors
    /// `FileError` if the file of tokens cannot be used.
    pub(crate) fn bearer_auth(&self) -> Result<Option<BearerAuth>, FileError> {
        let is_asked = !self.tokens_file.as_os_str().is_empty();
        is_asked.then(|| BearerAuth::load("http.tokens_file", self.tokens_file.clone())).transpose()
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles::new(&self.tls_cert_file, &self.tls_key_file, &self.tls_client_ca_file)
    }

    /// Returns the errors of all files that the listener needs.
    pub(crate) fn file_errors(&self) -> Vec<FileError> {
        let mut errors = Tls::file_errors(&self.tls_files(), TLS_KEYS);
        errors.extend(self.bearer_auth().err());
        errors
    }

    /// Returns the TLS configuration; `None` if TLS is off.
    ///
    /// # Errors
    /// `FileError` if a file cannot be used.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, FileError> {
        Tls::load(self.tls_files(), TLS_KEYS, self.tls_handshake_timeout, &HTTP_PROTOCOLS)
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let small = self.max_header.0 < MIN_HEADER;
        let header = format!(
            "found {}, expected at least 8KiB, which ordinary clients need",
            self.max_header
        );
        let own = violations([
            (
                self.listen.is_off(),
                "http.listen",
                "found \"\", expected an address: there is no other way to read",
            ),
            (small, "http.max_header", &header),
        ]);
        let limits = out_of_range([(self.max_connections, "http.max_connections")]);
        let timeouts = zero_timeouts([
            (self.idle_timeout, "http.idle_timeout"),
            (self.header_timeout, "http.header_timeout"),
        ]);
        let tls = self.tls_files().violations(TLS_KEYS, self.tls_handshake_timeout);
        [own, limits, timeouts, tls].concat()
    }
}

/// The names of this section's TLS keys.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "http.tls_cert_file",
    key_file: "http.tls_key_file",
    client_ca_file: "http.tls_client_ca_file",
    handshake_timeout: "http.tls_handshake_timeout",
};

/// The smallest buffer that hyper accepts, in bytes.
pub(crate) const MIN_HEADER: usize = 8 << 10;

/// The value of the `Cache-Control` header of responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheControl(pub(super) HeaderValue);

impl Default for CacheControl {
    /// Returns `no-cache`: a downstream cache may store a response, but must revalidate it, which
    /// costs one 304.
    fn default() -> Self {
        Self(HeaderValue::from_static("no-cache"))
    }
}

impl TryFrom<String> for CacheControl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let printable = !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        HeaderValue::try_from(&text).ok().filter(|_| printable).map(Self).ok_or_else(|| {
            format!(
                "invalid value: string {text:?}, expected a Cache-Control header such as \
                    \"no-cache\" or \"max-age=5\""
            )
        })
    }
}

impl From<CacheControl> for String {
    fn from(CacheControl(value): CacheControl) -> Self {
        value.to_str().unwrap_or_default().to_owned()
    }
}

/// The ALPN protocols, most preferred first (RFC 7301).
pub(crate) const HTTP_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The section `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// The listen address of the operator's routes; empty: they are served beside `/keys/`.
    pub listen: Listen,
    /// Whether the listener may be reachable from other hosts without authentication.
    pub allow_unprotected: bool,
    /// The maximum number of connections, if there is such a listener.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// The number of keys that are counted at once to find the most read ones; 0: none.
    #[serde(with = "settings::count")]
    pub hotkeys: usize,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            allow_unprotected: false,
            max_connections: 64,
            hotkeys: 0,
        }
    }
}

impl AdminSettings {
    /// Returns the authentication that protects the operator's routes.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        AuthRequirement::new(self.allow_unprotected, false, "")
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let text = format!("found {}, expected at most {MAX_HOT_KEYS}", self.hotkeys);
        let own = violations([(self.hotkeys > MAX_HOT_KEYS, "admin.hotkeys", &text)]);
        [own, out_of_range([(self.max_connections, "admin.max_connections")])].concat()
    }
}

/// The maximum of `admin.hotkeys`, more keys than an operator can use.
pub(super) const MAX_HOT_KEYS: usize = 65_536;
