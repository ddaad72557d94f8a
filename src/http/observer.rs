//! The records of each response: a count by class of its status and, if the access log is on, a
//! line.
//!
//! The rule that must not be broken: a line has no query, which may hold a token, and without
//! `telemetry.access_log_keys` no key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::routes::OPERATOR_ROUTES;
use crate::metrics::{FrontEnd, Metrics, ResponseCounter};
use crate::server::Refusals;
use crate::telemetry;
use crate::telemetry::AccessLogMode;

/// The longest path in a line, in bytes.
const LONGEST_PATH: usize = 512;
/// The path of the keys, which is named in lines without them.
const KEYS: &str = "/keys/";

/// The records of one listener. Clones share them.
#[derive(Clone)]
pub struct Observer {
    front_end: FrontEnd,
    responses: ResponseCounter,
    refusals: Arc<Refusals>,
    log: Option<Arc<AccessLog>>,
}

/// The access log of a listener.
struct AccessLog {
    mode: AccessLogMode,
    /// The part of the responses that get a line.
    sample: f64,
    has_keys: bool,
    rest_path: String,
}

/// A request that gets a line, perhaps, when it is answered.
pub(super) struct Pending {
    log: Arc<AccessLog>,
    front_end: FrontEnd,
    client: Option<SocketAddr>,
    method: String,
    path: String,
    begun: Instant,
}

impl Observer {
    /// Counts the responses of a listener. There is no access log.
    pub fn new(metrics: &Metrics, front_end: FrontEnd) -> Self {
        let responses = metrics.response_counter(front_end);
        Self { front_end, responses, refusals: Arc::default(), log: None }
    }

    /// The same with an access log by these settings. `rest_path` is the path of REST.
    #[must_use]
    pub fn with_access_log(self, settings: &telemetry::Settings, rest_path: &str) -> Self {
        let is_on = settings.access_log != AccessLogMode::Off;
        let log = is_on.then(|| {
            Arc::new(AccessLog {
                mode: settings.access_log,
                sample: settings.access_log_sample.0,
                has_keys: settings.access_log_keys,
                rest_path: rest_path.to_owned(),
            })
        });
        Self { log, ..self }
    }

    /// Whether lines are written, so the address of the client is needed.
    pub(super) fn is_logging(&self) -> bool {
        self.log.is_some()
    }

    /// Notes a request; `None` without an access log.
    #[inline]
    pub(super) fn begin(
        &self,
        client: Option<SocketAddr>,
        request: impl FnOnce() -> (String, String),
    ) -> Option<Box<Pending>> {
        let log = Arc::clone(self.log.as_ref()?);
        let (method, path) = request();
        let (front_end, begun) = (self.front_end, Instant::now());
        Some(Box::new(Pending { log, front_end, client, method, path, begun }))
    }

    /// Counts a response, and writes the line of its request.
    #[inline]
    pub(super) fn finish(&self, status: StatusCode, pending: Option<Box<Pending>>) {
        self.responses.count(status.as_u16());
        if let Some(pending) = pending {
            pending.log(status);
        }
    }

    /// Logs a client that has no valid token.
    pub(super) fn refused(&self, client: Option<SocketAddr>) {
        self.refusals.log(self.front_end, "token", client);
    }
}

impl Pending {
    fn log(&self, status: StatusCode) {
        if !self.log.wants(status, rand::random()) {
            return;
        }
        let (route, path) = self.log.shown(self.front_end, &self.path);
        let took = self.begun.elapsed();
        tracing::info!(
            front_end = self.front_end.name(),
            client = self.client.map(tracing::field::display),
            method = self.method,
            route,
            path,
            status = status.as_u16(),
            took = ?Duration::from_micros(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            "request"
        );
    }
}

impl AccessLog {
    /// Whether a response gets a line. `chance` is from 0 to 1.
    fn wants(&self, status: StatusCode, chance: f64) -> bool {
        // A key that does not exist is no error.
        let is_error = status.is_server_error()
            || (status.is_client_error() && status != StatusCode::NOT_FOUND);
        (is_error || self.mode == AccessLogMode::All) && chance < self.sample
    }

    /// Returns the route and, if keys are logged, the path without its query. A path of REST ends
    /// behind the command, because its arguments may be values or passwords.
    fn shown<'a>(&'a self, front_end: FrontEnd, path: &'a str) -> (&'a str, Option<&'a str>) {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let rest = match front_end {
            FrontEnd::Rest => Some(""),
            _ => Some(&*self.rest_path).filter(|rest| !rest.is_empty()),
        };
        let command = rest.and_then(|rest| path.strip_prefix(rest)?.strip_prefix('/'));
        let mut routes = OPERATOR_ROUTES.into_iter().chain([KEYS]);
        let (route, path) = match (command, rest) {
            (Some(command), Some(rest)) => {
                let arguments = command.find('/').map_or(0, |at| command.len() - at);
                let route = if rest.is_empty() { "/" } else { rest };
                (route, &path[..path.len() - arguments])
            }
            _ => (routes.find(|route| path.starts_with(route)).unwrap_or("other"), path),
        };
        let mut ends = (0..=path.len().min(LONGEST_PATH)).rev();
        let end = ends.find(|end| path.is_char_boundary(*end)).unwrap_or_default();
        (route, self.has_keys.then_some(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(mode: AccessLogMode, sample: f64, has_keys: bool) -> AccessLog {
        AccessLog { mode, sample, has_keys, rest_path: "/rest".to_owned() }
    }

    #[test]
    fn line_depends_on_mode_status_and_chance() {
        let status = |code| StatusCode::from_u16(code).unwrap();
        for (mode, code, expected) in [
            (AccessLogMode::All, 200, true),
            (AccessLogMode::All, 404, true),
            (AccessLogMode::Errors, 200, false),
            (AccessLogMode::Errors, 304, false),
            (AccessLogMode::Errors, 404, false),
            (AccessLogMode::Errors, 401, true),
            (AccessLogMode::Errors, 503, true),
        ] {
            assert_eq!(log(mode, 1.0, false).wants(status(code), 0.99), expected, "{code}");
            assert!(!log(mode, 0.0, false).wants(status(code), 0.0), "{code}");
        }
        let sampled = log(AccessLogMode::All, 0.25, false);
        assert!(sampled.wants(status(200), 0.2) && !sampled.wants(status(200), 0.25));
    }

    #[test]
    fn line_has_no_query_and_no_key_unless_asked_for() {
        let (without, with) =
            (log(AccessLogMode::All, 1.0, false), log(AccessLogMode::All, 1.0, true));
        for (path, route, shown) in [
            ("/keys/secret", "/keys/", "/keys/secret"),
            ("/rest/set/key/secret?_token=x", "/rest", "/rest/set"),
            ("/rest/", "/rest", "/rest/"),
            ("/restless/a", "other", "/restless/a"),
            ("/status.json", "/status", "/status.json"),
            ("/cache/secret", "/cache", "/cache/secret"),
            ("/secret", "other", "/secret"),
        ] {
            assert_eq!(without.shown(FrontEnd::Http, path), (route, None));
            assert_eq!(with.shown(FrontEnd::Http, path), (route, Some(shown)));
        }
        for (path, shown) in [("/auth/secret", "/auth"), ("/pipeline", "/pipeline"), ("/", "/")] {
            assert_eq!(with.shown(FrontEnd::Rest, path), ("/", Some(shown)));
        }
        let long = format!("/keys/{}", "ä".repeat(1000));
        let (_, shown) = with.shown(FrontEnd::Http, &long);
        assert_eq!(shown.map(str::len), Some(LONGEST_PATH));
    }
}
