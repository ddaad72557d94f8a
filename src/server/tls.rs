//! TLS towards clients: what a listener shows, whom it asks for a certificate, and how long a handshake may take.
//!
//! Certificates are read again at SIGHUP. A connection keeps what it was made with; the next one gets what was read, and no
//! session of before is resumed, so who is not to come in any more does not.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::{Drain, TlsFiles, TlsKeys};
use crate::access::{FileError, Prepare, Reloadable};
use crate::metrics::RejectCounter;
use crate::net::ClientStream;

/// TLS on a listener.
#[derive(Clone)]
pub struct Tls {
    config: Reloadable<ServerConfig>,
    handshake_timeout: Duration,
}

impl Tls {
    /// TLS by `files`, or none if they name nothing; `protocols` are what is spoken within.
    ///
    /// # Errors
    /// A file that cannot be used.
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

    /// For reloads.
    pub fn reloader(&self) -> Prepare {
        self.config.reloader()
    }

    /// The stream within, once both sides have agreed; nothing, if they do not, or not in time.
    /// Who did not come to an end of it is counted among the `refused`, but not who hung up before anything was wrong: many
    /// only look whether somebody listens.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        mut drain: Drain,
        refused: &RejectCounter,
    ) -> Option<ClientStream> {
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
                    refused.count();
                }
                tracing::debug!(%error, "no TLS with a client");
            }
            Err(_) => {
                refused.count();
                tracing::debug!("a client's TLS took too long");
            }
        }
        None
    }
}

/// How long a handshake may still take once the daemon was told to stop.
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
    let wrong_key = |error| FileError::new(keys.key_file, &files.key, error);
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(wrong_key)?;
    let config = builder.with_single_cert(chain, key);
    let mut config =
        config.map_err(|error| FileError::new(keys.cert_file, &files.certificates, error))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
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
    let found =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| FileError::new(key, path, error))?;
    if found.is_empty() {
        Err(FileError::new(key, path, "no certificate in it (PEM)"))
    } else {
        Ok(found)
    }
}
