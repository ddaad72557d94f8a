//! Certificates and private keys in PEM files, and the reasons why a file has none.

use std::fs;
use std::path::Path;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::{Error, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Reads the certificates of a file, the first of which is its owner's.
///
/// # Errors
/// A text for the operator if the file cannot be read or has no certificate.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, Error> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) if has_label(&text, "PRIVATE KEY") => {
            Err("found a private key and no certificate; expected a certificate (PEM)".to_owned())
        }
        Ok(_) => Err("no certificate in it (PEM)".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads the private key of a file.
///
/// # Errors
/// A text for the operator if the file cannot be read or has no key that can be used.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| key_problem(&text, &error))
}

fn key_problem(text: &[u8], error: &Error) -> String {
    // Such a key is either a block of its own kind, or a block with a header that says so.
    if has_label(text, "ENCRYPTED") {
        "the private key is encrypted; expected one without a passphrase (openssl pkey)".to_owned()
    } else if has_label(text, "CERTIFICATE") {
        "found a certificate and no private key; expected a private key (PEM)".to_owned()
    } else if matches!(error, Error::NoItemsFound) {
        "no private key in it (PEM)".to_owned()
    } else {
        error.to_string()
    }
}

fn has_label(text: &[u8], label: &str) -> bool {
    memchr::memmem::find(text, label.as_bytes()).is_some()
}

/// Returns the problem of a private key that does not belong to the certificate that the setting
/// `certificate` names; `None` if the error is another.
pub(crate) fn key_mismatch(error: &rustls::Error, certificate: &str) -> Option<String> {
    matches!(error, rustls::Error::InconsistentKeys(_))
        .then(|| format!("it does not belong to the certificate in {certificate}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: &str) -> String {
        format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n")
    }

    #[test]
    fn file_without_its_item_gets_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problems = |text: &str| {
            fs::write(file.path(), text).unwrap();
            let certificate = certificates(file.path()).err().unwrap_or_default();
            (certificate, private_key(file.path()).err().unwrap_or_default())
        };
        let (certificate, key) = problems("");
        assert!(certificate.contains("no certificate") && key.contains("no private key"));
        assert!(problems(&block("CERTIFICATE")).1.contains("found a certificate"));
        assert!(problems(&block("PRIVATE KEY")).0.contains("found a private key"));
        let legacy = block("RSA PRIVATE KEY").replace("AAAA", "Proc-Type: 4,ENCRYPTED\n\nAAAA");
        for encrypted in [block("ENCRYPTED PRIVATE KEY"), legacy] {
            assert!(problems(&encrypted).1.contains("encrypted"), "{encrypted}");
        }
        let absent = Path::new("/does/not/exist");
        assert!(certificates(absent).unwrap_err().contains("No such file"));
        assert!(private_key(absent).unwrap_err().contains("No such file"));
    }
}
