//! What can be configured of reads over HTTP and of the operator's routes.

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

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where reads are served.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// A file of tokens, of which whoever asks must send one; empty: nobody has to.
    pub tokens_file: PathBuf,
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
    /// Connections at most.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// How long a connection may go without moving a byte while no request is being answered.
    #[serde(with = "settings::duration")]
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    #[serde(with = "settings::duration")]
    pub header_timeout: Duration,
    /// How large the headers of a request may be.
    pub max_header: ByteSize,
    /// The longest key.
    pub max_key: ByteSize,
    /// The largest value that is given out.
    pub max_value: ByteSize,
    /// What caches further on may do with an answer.
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
    /// What stands between strangers and the keys.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        if self.allow_unprotected {
            AuthRequirement::Waived
        } else if self.tokens_file.as_os_str().is_empty()
            && !self.tls_files().requires_client_cert()
        {
            AuthRequirement::None("http.tokens_file, http.tls_client_ca_file, ")
        } else {
            AuthRequirement::Enforced
        }
    }

    /// What holds for every connection.
    pub fn limits(&self) -> Limits {
        let Self { idle_timeout, header_timeout, max_header, .. } = *self;
        Limits { idle_timeout, header_timeout, max_header: max_header.0 }
    }

    /// What is asked of whoever comes, if anything.
    ///
    /// # Errors
    /// The file of tokens cannot be used.
    pub(crate) fn bearer_auth(&self) -> Result<Option<BearerAuth>, FileError> {
        let is_asked = !self.tokens_file.as_os_str().is_empty();
        is_asked.then(|| BearerAuth::load("http.tokens_file", self.tokens_file.clone())).transpose()
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

/// How this section calls what belongs to TLS.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "http.tls_cert_file",
    key_file: "http.tls_key_file",
    client_ca_file: "http.tls_client_ca_file",
    handshake_timeout: "http.tls_handshake_timeout",
};

/// The least that hyper reads at once.
const MIN_HEADER: usize = 8 << 10;

/// The value of the `Cache-Control` header of answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheControl(pub(super) HeaderValue);

impl Default for CacheControl {
    /// To be kept, but never given again without asking here, which costs one 304.
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
                "invalid value: string {text:?}, expected a Cache-Control header such as \"no-cache\" or \"max-age=5\""
            )
        })
    }
}

impl From<CacheControl> for String {
    fn from(CacheControl(value): CacheControl) -> Self {
        value.to_str().unwrap_or_default().to_owned()
    }
}

/// What is spoken within, in the order in which it is preferred (RFC 7301).
const HTTP_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// Where the operator's routes are served; empty: beside `/keys/`.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// Connections at most, when there is such a listener.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// How many keys are counted at once, to tell which are read most; 0: none.
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
    /// What stands between strangers and the figures.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        if self.allow_unprotected { AuthRequirement::Waived } else { AuthRequirement::None("") }
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let text = format!("found {}, expected at most {MAX_HOT_KEYS}", self.hotkeys);
        let own = violations([(self.hotkeys > MAX_HOT_KEYS, "admin.hotkeys", &text)]);
        [own, out_of_range([(self.max_connections, "admin.max_connections")])].concat()
    }
}

/// More keys than anybody looks at.
pub(super) const MAX_HOT_KEYS: usize = 65_536;
