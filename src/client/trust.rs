//! The verification of a listener's certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};

use crate::net::pem;

/// The certificates that are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Any. Only for requests without a secret to this machine.
    Any,
    /// The first certificate of this file, whatever its name: that of the listener's own settings.
    Only(PathBuf),
    /// Those of the authorities in this file; `None`: of the system's.
    Authorities(Option<PathBuf>),
}

impl Trust {
    /// Starts a session with `host`.
    pub(super) fn session(&self, host: &str) -> io::Result<ClientConnection> {
        let builder = ClientConfig::builder();
        let provider = Arc::clone(builder.crypto_provider());
        let config = match self {
            Self::Authorities(file) => {
                builder.with_root_certificates(authorities(file.as_deref())?)
            }
            own => {
                let only = match own {
                    Self::Only(file) => certificates(file)?.into_iter().next(),
                    _ => None,
                };
                let verifier = Arc::new(AcceptCert { provider, only });
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        ClientConnection::new(Arc::new(config.with_no_client_auth()), name)
            .map_err(io::Error::other)
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let wrong = |problem| io::Error::other(format!("{}: {problem}", file.display()));
    pem::certificates(file).map_err(wrong)
}

fn authorities(file: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(io::Error::other)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// A verifier that accepts one certificate; `only` of `None`: any.
#[derive(Debug)]
struct AcceptCert {
    provider: Arc<CryptoProvider>,
    only: Option<CertificateDer<'static>>,
}

impl ServerCertVerifier for AcceptCert {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.only.as_ref().is_none_or(|only| only == shown) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
