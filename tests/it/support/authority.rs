//! A certificate authority with the files for the programs under test, new for each test.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::RedisServer;

/// A certificate authority with its files.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "an authority");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("a file");
        let issuer = Issuer::new(parameters, key);
        Self { directory, issuer }
    }

    /// Returns the file of its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Returns the setting by which the proxy trusts it for Redis.
    pub(crate) fn trusted(&self) -> String {
        format!("redis.tls_ca_file = \"{}\"", self.file().display())
    }

    /// Issues a certificate. Returns the files of the certificate and its key.
    pub(crate) fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new([name.to_owned()]).expect("a name");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |extension: &str, text: String| {
            let path = self.directory.path().join(format!("{name}.{extension}"));
            fs::write(&path, text).expect("a file");
            path
        };
        (write("pem", certificate.pem()), write("key", key.serialize_pem()))
    }

    /// Returns the files of its own certificate and key, as a server may use them by mistake.
    pub(crate) fn own_pair(&self) -> (PathBuf, PathBuf) {
        let key = self.directory.path().join("ca.key");
        fs::write(&key, self.issuer.key().serialize_pem()).expect("a file");
        (self.file(), key)
    }

    /// Starts a Redis with a certificate of this authority.
    pub(crate) fn redis(&self, name: &str, asks_for_certificate: bool) -> RedisServer {
        let (certificate, key) = self.issue(name);
        let builder = RedisServer::builder().tls(&certificate, &key, &self.file());
        if asks_for_certificate {
            builder.require_client_certificate().start()
        } else {
            builder.start()
        }
    }
}
