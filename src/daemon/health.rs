//! `redis-proxy health`: queries the health of a running daemon, for containers and scripts.

use std::io;

use super::query::{Query, Transport, get};
use crate::settings::Listen;

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

/// Sends a health check to the daemon that listens on `listen`. Returns whether the status is 200,
/// and the body of the response.
///
/// # Errors
/// The errors of [`get`].
pub fn check(
    listen: &Listen,
    through: Transport,
    health_check: HealthCheck,
) -> io::Result<(bool, String)> {
    let (status, body) = get(listen, through, Query { path: health_check.path(), token: None })?;
    Ok((status == 200, body))
}
