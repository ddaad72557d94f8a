//! TLS towards clients: the listener's certificate, the verification of client certificates, and
//! the handshake timeout.
//!
//! Certificates are read again at SIGHUP. An open connection keeps its configuration, and the next
//! one gets the new one. A reload starts with no TLS sessions, so an excluded client cannot return
//! by session resumption.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::refusals::TlsRefusals;
use super::{Drain, TlsFiles, TlsKeys};
use crate::access::{FileError, Prepare, Reloadable};
use crate::net::{ClientStream, pem};

/// The TLS configuration of a listener. Clones share it.
#[derive(Clone)]
pub struct Tls {
    config: Reloadable<ServerConfig>,
    handshake_timeout: Duration,
}

impl Tls {
    /// Loads TLS from `files`, or returns `None` if they name no certificate. `protocols` are the
    /// ALPN protocols, most preferred first.
    ///
    /// # Errors
    /// `FileError` if a file cannot be used.
    pub(crate) fn load(
        files: TlsFiles,
        keys: TlsKeys,
        handshake_timeout: Duration,
        protocols: &'static [&'static [u8]],
    ) -> Result<Option<Self>, FileError> {
        if !files.is_enabled() {
            return Ok(None);
        }
        let config = Reloadable::load(move || server_config(&files, keys, protocols))?;
        Ok(Some(Self { config, handshake_timeout }))
    }

    /// Returns the errors of all `files`.
    pub(crate) fn file_errors(files: &TlsFiles, keys: TlsKeys) -> Vec<FileError> {
        if !files.is_enabled() {
            return Vec::new();
        }
        let mut errors = Vec::new();
        if files.requires_client_cert() {
            errors.extend(client_verifier(keys.client_ca_file, &files.client_authorities).err());
        }
        errors.extend(certificates(keys.cert_file, &files.certificates).err());
        errors.extend(private_key(files, keys).err());
        if errors.is_empty() {
            errors.extend(server_config(files, keys, &[]).err());
        }
        errors
    }

    /// Returns the function that reads the files again at a reload.
    pub fn reloader(&self) -> Prepare {
        self.config.reloader()
    }

    /// Runs the handshake, and returns the TLS stream; `None` if it fails or takes too long.
    ///
    /// Failed handshakes are recorded in `refusals`. A client that disconnects before an error is
    /// not counted, because port scans and probes do that.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        mut drain: Drain,
        refusals: &TlsRefusals,
    ) -> Option<ClientStream> {
        let client = stream.peer_addr().ok();
        let handshake =
            timeout(self.handshake_timeout, TlsAcceptor::from(self.config.get()).accept(stream));
        let agreed = tokio::select! {
            biased;
            agreed = handshake => agreed,
            () = async { drain.signaled().await; sleep(DRAIN_GRACE).await } => return None,
        };
        match agreed {
            Ok(Ok(stream)) => return Some(ClientStream::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                if error.kind() == ErrorKind::InvalidData {
                    refusals.record(client);
                }
                tracing::debug!(%error, "TLS handshake of a client failed");
            }
            Err(_) => {
                refusals.record(client);
                tracing::debug!("TLS handshake of a client timed out");
            }
        }
        None
    }
}

/// The time that a handshake may still take after the stop signal.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

fn server_config(
    files: &TlsFiles,
    keys: TlsKeys,
    protocols: &[&[u8]],
) -> Result<ServerConfig, FileError> {
    let builder = ServerConfig::builder();
    let builder = if files.requires_client_cert() {
        builder.with_client_cert_verifier(client_verifier(
            keys.client_ca_file,
            &files.client_authorities,
        )?)
    } else {
        builder.with_no_client_auth()
    };
    let chain = certificates(keys.cert_file, &files.certificates)?;
    let config = builder.with_single_cert(chain, private_key(files, keys)?);
    let mut config = config.map_err(|error| match pem::key_mismatch(&error, keys.cert_file) {
        Some(problem) => FileError::new(keys.key_file, &files.key, problem),
        None => FileError::new(keys.cert_file, &files.certificates, error),
    })?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn private_key(files: &TlsFiles, keys: TlsKeys) -> Result<PrivateKeyDer<'static>, FileError> {
    pem::private_key(&files.key)
        .map_err(|problem| FileError::new(keys.key_file, &files.key, problem))
}

fn client_verifier(
    key: &'static str,
    path: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, FileError> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(key, path)? {
        authorities.add(certificate).map_err(|error| FileError::new(key, path, error))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(authorities)).build();
    verifier.map_err(|error| FileError::new(key, path, error))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    pem::certificates(path).map_err(|problem| FileError::new(key, path, problem))
}
