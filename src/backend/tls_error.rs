//! The reasons why TLS with Redis fails, in words that name the setting to change.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::error::{BackendError, auth_rejected, unreachable};

/// Returns the error of a handshake with the server `host`.
pub(super) fn handshake_failed(error: &io::Error, host: &str) -> BackendError {
    match tls_error(error) {
        Some(error) => auth_rejected(&explain(error, host)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => unreachable(
            &"the connection was closed during the TLS handshake; a port without TLS needs \
              redis:// in redis.url or redis.seeds",
        ),
        None => unreachable(error),
    }
}

/// Returns the error of a connection that Redis ended by a TLS alert; `None` if it did not. With
/// TLS 1.3 Redis rejects a client certificate only after the client has completed the handshake.
pub(super) fn alert(error: &io::Error) -> Option<BackendError> {
    match tls_error(error)? {
        Error::AlertReceived(alert) => Some(auth_rejected(&explain_alert(*alert))),
        _ => None,
    }
}

/// Returns the reason for a handshake that does not end.
pub(super) fn handshake_timed_out() -> BackendError {
    unreachable(
        &"no TLS connection in time; if the port is one without TLS, use redis:// in redis.url or \
          redis.seeds",
    )
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn explain(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(problem) => explain_certificate(problem, host),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::InvalidMessage(_) => {
            "the reply is no TLS; a port without TLS needs redis:// in redis.url or redis.seeds"
                .to_owned()
        }
        error => error.to_string(),
    }
}

fn explain_certificate(problem: &CertificateError, host: &str) -> String {
    // rustls has no variant for it; the verifier's error is inside of another.
    if format!("{problem:?}").contains("CaUsedAsEndEntity") {
        return "Redis uses the certificate of an authority (CA:TRUE) as its own; issue one for \
                Redis by that authority"
            .to_owned();
    }
    match problem {
        CertificateError::UnknownIssuer => "the certificate of Redis is by no authority in \
             redis.tls_ca_file, or the system's where that is empty"
            .to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "the certificate of Redis is not for {host}, its host in redis.url or redis.seeds: \
                 {problem}"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the certificate of Redis has expired: {problem}")
        }
        problem => format!("the certificate of Redis is invalid: {problem}"),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => format!(
            "Redis rejected the TLS handshake ({alert:?}); if it requires a client certificate, \
             set redis.tls_cert_file and redis.tls_key_file"
        ),
        AlertDescription::ProtocolVersion => {
            "Redis and the proxy have no TLS version in common (tls-protocols of Redis)".to_owned()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired => {
            format!("Redis rejected the client certificate in redis.tls_cert_file ({alert:?})")
        }
        alert => format!("Redis ended the TLS connection ({alert:?})"),
    }
}
