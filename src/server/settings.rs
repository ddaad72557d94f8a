//! The configuration of a listener that is the same for all front ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::settings::{RuleViolation, violations, zero_timeouts};

/// The TLS files of a listener (PEM), from its configuration section.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The listener's certificate and the intermediate certificates.
    pub certificates: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities that sign client certificates; empty: clients need no certificate.
    pub client_authorities: PathBuf,
}

/// The names of a section's TLS keys, for error texts.
#[derive(Debug, Clone, Copy)]
pub struct TlsKeys {
    /// The name of the certificate's key.
    pub cert_file: &'static str,
    /// The name of the private key's key.
    pub key_file: &'static str,
    /// The name of the client authorities' key.
    pub client_ca_file: &'static str,
    /// The name of the handshake timeout's key.
    pub handshake_timeout: &'static str,
}

impl TlsFiles {
    pub(crate) fn new(certificates: &Path, key: &Path, client_authorities: &Path) -> Self {
        Self {
            certificates: certificates.to_owned(),
            key: key.to_owned(),
            client_authorities: client_authorities.to_owned(),
        }
    }

    /// Whether TLS is enabled.
    pub fn is_enabled(&self) -> bool {
        is_set(&self.certificates)
    }

    /// Whether clients must present a certificate.
    pub fn requires_client_cert(&self) -> bool {
        is_set(&self.client_authorities)
    }

    /// Returns the violations of the section's TLS rules; `keys` are the names to report.
    pub(crate) fn violations(
        &self,
        keys: TlsKeys,
        handshake_timeout: Duration,
    ) -> Vec<RuleViolation> {
        let (cert, key) = (self.is_enabled(), is_set(&self.key));
        let needs =
            |other: &str| format!("found without what belongs to it, expected {other} with it");
        let own = violations([
            (cert && !key, keys.cert_file, &needs(keys.key_file)),
            (key && !cert, keys.key_file, &needs(keys.cert_file)),
            (self.requires_client_cert() && !cert, keys.client_ca_file, &needs(keys.cert_file)),
        ]);
        [own, zero_timeouts([(handshake_timeout, keys.handshake_timeout)])].concat()
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}
