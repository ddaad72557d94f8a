//! Opens streams to Redis: TCP, TLS over TCP, or a unix socket.
//!
//! Every problem with the files named in `[redis]` is reported at the start, before any stream
//! opens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::ConnectionAddr;
use super::direct_writer::DirectWriter;
use super::error::{BackendError, auth_rejected, unreachable};
use super::network::{Network, Stream};
use super::read_after_reset::ReadAfterReset;
use super::settings::Settings;
use super::tls_error;
use crate::net::{pem, tcp};

/// A file named in `[redis]` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("redis.{key}: \"{}\" cannot be used: {problem}", path.display())]
pub struct PrepareError {
    key: &'static str,
    path: PathBuf,
    problem: String,
}

impl PrepareError {
    pub(super) fn new(key: &'static str, path: &Path, problem: &dyn fmt::Display) -> Self {
        Self { key, path: path.to_owned(), problem: problem.to_string() }
    }
}

/// An open stream.
pub(super) struct Dialled {
    pub(super) stream: Box<dyn Stream>,
    /// A second writer. `None`: the stream has none, such as TLS, which encrypts in order.
    pub(super) direct_writer: Option<DirectWriter>,
}

impl Dialled {
    fn new(stream: impl Stream + 'static, direct_writer: Option<DirectWriter>) -> Self {
        Self { stream: Box::new(ReadAfterReset::new(stream)), direct_writer }
    }
}

/// Opens streams with the timeout and TLS settings of `[redis]`.
pub(super) struct Dialer {
    timeout: Duration,
    tls: Option<TlsConnector>,
    network: Network,
}

impl Dialer {
    pub(super) fn new(settings: &Settings) -> Result<Self, PrepareError> {
        let tls = if settings.uses_tls() { Some(tls_connector(settings)?) } else { None };
        Ok(Self { timeout: settings.connect_timeout, tls, network: Network::System })
    }

    /// The same, on another network.
    #[must_use]
    pub(super) fn on(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// Returns the errors of all files that `settings` name for TLS.
    pub(super) fn file_errors(settings: &Settings) -> Vec<PrepareError> {
        if !settings.uses_tls() {
            return Vec::new();
        }
        let has_pair = !settings.tls_cert_file.as_os_str().is_empty();
        let mut errors: Vec<_> =
            root_certificates(&settings.tls_ca_file).err().into_iter().collect();
        if has_pair {
            errors.extend(certificates("tls_cert_file", &settings.tls_cert_file).err());
            errors.extend(private_key(settings).err());
        }
        if errors.is_empty() {
            errors.extend(tls_connector(settings).err());
        }
        errors
    }

    /// Opens a stream to `addr`. Attempt number `attempt` starts with the next address of the host.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if no address accepts; [`BackendError::AuthRejected`] if the
    /// certificate or the host name is invalid for TLS.
    pub(super) async fn dial(
        &self,
        addr: &ConnectionAddr,
        attempt: usize,
    ) -> Result<Dialled, BackendError> {
        if let Network::Simulated(network) = &self.network {
            let stream = network.connect(addr).await.map_err(|error| unreachable(&error))?;
            return Ok(Dialled::new(stream, None));
        }
        let (host, port, tls) = match addr {
            ConnectionAddr::Unix(path) => {
                let stream =
                    UnixStream::connect(path).await.map_err(|error| unreachable(&error))?;
                // Too many open files are no reason to fail: the driver writes then.
                let writer = DirectWriter::new(&stream).ok();
                return Ok(Dialled::new(stream, writer));
            }
            ConnectionAddr::Tcp { host, port, tls } => (host, *port, *tls),
        };
        let stream =
            self.connect_to_any(host, port, attempt).await.map_err(|error| unreachable(&error))?;
        if !tls {
            let writer = DirectWriter::new(&stream).ok();
            return Ok(Dialled::new(stream, writer));
        }
        let tls = self.tls.as_ref().ok_or_else(|| auth_rejected(&"TLS has not been prepared"))?;
        let name = ServerName::try_from(host.clone()).map_err(|error| auth_rejected(&error))?;
        let stream = tls.connect(name, stream).await;
        let stream = stream.map_err(|error| tls_error::handshake_failed(&error, host))?;
        Ok(Dialled::new(stream, None))
    }

    /// Connects to the addresses of `host` in turn. Each gets an equal share of the timeout.
    ///
    /// Each attempt starts with another address. Otherwise an address that drops all packets could
    /// hide the next.
    ///
    /// # Errors
    /// The [`io::Error`] of the last address; `TimedOut` if its share ended, `NotFound` if there is
    /// none.
    async fn connect_to_any(&self, host: &str, port: u16, attempt: usize) -> io::Result<TcpStream> {
        let mut addresses: Vec<_> = lookup_host((host, port)).await?.collect();
        let first = attempt % addresses.len().max(1);
        addresses.rotate_left(first);
        let share = self.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    tcp::configure(&stream)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

fn tls_connector(settings: &Settings) -> Result<TlsConnector, PrepareError> {
    let roots = root_certificates(&settings.tls_ca_file)?;
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = if settings.tls_cert_file.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let certificates = certificates("tls_cert_file", &settings.tls_cert_file)?;
        let config = builder.with_client_auth_cert(certificates, private_key(settings)?);
        config.map_err(|error| match pem::key_mismatch(&error, "redis.tls_cert_file") {
            Some(problem) => PrepareError::new("tls_key_file", &settings.tls_key_file, &problem),
            None => PrepareError::new("tls_cert_file", &settings.tls_cert_file, &error),
        })?
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn private_key(settings: &Settings) -> Result<PrivateKeyDer<'static>, PrepareError> {
    pem::private_key(&settings.tls_key_file)
        .map_err(|problem| PrepareError::new("tls_key_file", &settings.tls_key_file, &problem))
}

fn root_certificates(ca_file: &Path) -> Result<RootCertStore, PrepareError> {
    let mut roots = RootCertStore::empty();
    if ca_file.as_os_str().is_empty() {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(PrepareError::new(
                "tls_ca_file",
                ca_file,
                &"empty, and the system has no root certificates",
            ));
        }
    } else {
        for certificate in certificates("tls_ca_file", ca_file)? {
            roots
                .add(certificate)
                .map_err(|error| PrepareError::new("tls_ca_file", ca_file, &error))?;
        }
    }
    Ok(roots)
}

fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, PrepareError> {
    pem::certificates(path).map_err(|problem| PrepareError::new(key, path, &problem))
}
