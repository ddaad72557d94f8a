//! `redis-proxy health`: queries the health of a running daemon, for containers and scripts.

use std::io;

use crate::client::{TIMEOUT, Target};

/// The kind of health that is queried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    /// Readiness: the proxy can answer reads.
    Ready,
    /// Liveness: the process serves.
    Live,
}

impl HealthCheck {
    fn path(self) -> &'static str {
        match self {
            Self::Ready => "/readyz",
            Self::Live => "/livez",
        }
    }
}

/// Sends a health check to a daemon. Returns whether the status is 200, and the body of the
/// response.
///
/// # Errors
/// [`io::Error`] if there is no connection or no response within 2 seconds, or if the response is
/// not HTTP (`InvalidData`).
pub fn check(target: &Target, health_check: HealthCheck) -> io::Result<(bool, String)> {
    let response = target.get(health_check.path(), TIMEOUT)?;
    Ok((response.status == 200, response.body))
}
