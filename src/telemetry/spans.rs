//! What traces tell of: a span for each request, and one for each fetch.
//!
//! The names are those of OpenTelemetry's semantic conventions for HTTP servers and for Redis. A key never gets into a
//! span, since whoever reads traces may not read keys. Where traces are off no span is made: a request costs the look at
//! one flag, no time is taken and no memory asked for. Nothing here asks whether spans are wanted but by making one: with
//! filters for each layer, `tracing::enabled!` can take the next line of the log with it.

use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header, uri::Authority};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// What spans are known by to those who collect them.
pub const TARGET: &str = module_path!();

/// Stands where a key would.
const REDACTED_PATH: &str = "/keys/REDACTED";

/// What is asked for over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A key.
    Keys,
    /// Nothing there is.
    None,
}

/// Whether anybody wants the span of a request.
pub fn is_enabled() -> bool {
    tracing::span_enabled!(tracing::Level::INFO)
}

/// The span of a request, a child of the span that its `traceparent` names.
pub fn request_span<B>(request: &Request<B>, route: Route) -> Span {
    let (headers, uri) = (request.headers(), request.uri());
    let span = tracing::info_span!(
        "request",
        "otel.name" = request_name(request.method(), route),
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "http.request.method" = method_name(request.method()),
        "http.route" = (route == Route::Keys).then_some("/keys/{key}"),
        "http.response.status_code" = Empty,
        "url.path" = if route == Route::Keys { REDACTED_PATH } else { "/REDACTED" },
        "url.scheme" = "http",
        "server.address" = Empty,
        "server.port" = Empty,
        "network.protocol.version" = if request.version() == Version::HTTP_2 { "2" } else { "1.1" },
        "user_agent.original" =
            headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()),
        "redis_proxy.outcome" = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        // It has not begun yet, so it takes a parent.
        _ = span.set_parent(
            TraceContextPropagator::new()
                .extract_with_context(&Context::new(), &HeaderExtractor(headers)),
        );
        if let Some(server) = authority(uri, headers) {
            span.record("server.address", server.host());
            span.record("server.port", i64::from(server.port_u16().unwrap_or(80)));
        }
    }
    span
}

fn request_name(method: &Method, route: Route) -> &'static str {
    match (method_name(method), route) {
        ("GET", Route::Keys) => "GET /keys/{key}",
        ("HEAD", Route::Keys) => "HEAD /keys/{key}",
        ("_OTHER", _) => "HTTP",
        (method, _) => method,
    }
}

/// The method, if it is one of those that everybody knows: others could be anything.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

/// Who the client says it speaks with.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host = || headers.get(header::HOST)?.to_str().ok()?.parse().ok();
    uri.authority().cloned().or_else(host)
}

/// The request of this span was answered.
pub fn record_status(span: &Span, status: StatusCode) {
    if span.is_disabled() {
        return;
    }
    // Signed, as OpenTelemetry has its numbers; others become text.
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("error.type", status.as_str());
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a command of a Redis client that has to wait for a fetch. Redis's protocol has no place for the caller's
/// span, so it has no parent. One that memory answers at once has none: it takes less than a span would.
pub fn command_span(name: &'static str) -> Span {
    tracing::info_span!(
        "command",
        "otel.name" = name,
        "otel.kind" = "server",
        "db.system.name" = "redis",
        "db.operation.name" = name,
        "redis_proxy.outcome" = Empty,
    )
}

/// The read of this span had this outcome.
pub fn record_outcome(span: &Span, name: &str) {
    span.record("redis_proxy.outcome", name);
}

/// The span of a fetch, a child of the read that causes it.
pub fn fetch_span() -> Span {
    tracing::info_span!(
        "fetch",
        "otel.name" = Empty,
        "otel.kind" = "client",
        "otel.status_code" = Empty,
        "db.system.name" = "redis",
        "db.operation.name" = "GET",
        "db.namespace" = Empty,
        "db.response.status_code" = Empty,
        "server.address" = Empty,
        "server.port" = Empty,
        "error.type" = Empty,
    )
}

/// The fetch that goes on here asks this server; `port` is none for a unix socket, whose path is its address.
pub fn record_target(address: &str, port: Option<u16>, database: u32) {
    let span = Span::current();
    if !span.is_disabled() {
        span.record(
            "otel.name",
            port.map_or_else(|| format!("GET {address}"), |port| format!("GET {address}:{port}")),
        );
        span.record("server.address", address);
        span.record("server.port", port.map(i64::from));
        span.record("db.namespace", database.to_string());
    }
}

/// The fetch that goes on here failed; `kind` says how, and `code` is the first word of Redis's error.
pub fn record_failure(kind: &str, code: Option<&str>) {
    let span = Span::current();
    span.record("error.type", kind);
    span.record("db.response.status_code", code);
    span.record("otel.status_code", "ERROR");
}

/// The read that goes on here waits for the fetch of this span, which another has caused.
pub fn follow(fetch: &Span) {
    if !fetch.is_disabled() {
        Span::current().follows_from(fetch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_names_have_low_cardinality() {
        let name = |method: &str, route| {
            request_name(&Method::from_bytes(method.as_bytes()).unwrap(), route)
        };
        assert_eq!(name("GET", Route::Keys), "GET /keys/{key}");
        assert_eq!(name("HEAD", Route::Keys), "HEAD /keys/{key}");
        assert_eq!(name("GET", Route::None), "GET");
        assert_eq!(name("DELETE", Route::Keys), "DELETE");
        assert_eq!(name("BREW", Route::Keys), "HTTP");
    }

    #[test]
    fn disabled_tracing_creates_no_span() {
        let span = request_span(&Request::new(()), Route::Keys);
        assert!(span.is_none() && fetch_span().is_none() && !is_enabled());
        record_status(&span, StatusCode::OK);
        record_outcome(&span, "hit");
        record_target("localhost", Some(6379), 0);
        record_failure("timeout", None);
        follow(&span);
    }
}
