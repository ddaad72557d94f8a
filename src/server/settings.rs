//! What can be configured of a listener, whatever is spoken there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::settings::{RuleViolation, violations, zero_timeouts};

/// The files of a listener's TLS (PEM), as its section names them.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The listener's certificate, and those between it and its authority.
    pub certificates: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates clients must have; empty: they need none.
    pub client_authorities: PathBuf,
}

/// How a section calls what belongs to TLS.
#[derive(Debug, Clone, Copy)]
pub struct TlsKeys {
    /// The certificate.
    pub cert_file: &'static str,
    /// Its key.
    pub key_file: &'static str,
    /// The clients' authorities.
    pub client_ca_file: &'static str,
    /// How long a handshake may take.
    pub handshake_timeout: &'static str,
}

impl TlsFiles {
    /// Whether TLS is spoken.
    pub fn is_enabled(&self) -> bool {
        is_set(&self.certificates)
    }

    /// Whether clients must show a certificate.
    pub fn requires_client_cert(&self) -> bool {
        is_set(&self.client_authorities)
    }

    /// What is wrong with what a section says, `keys` being its own names.
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
