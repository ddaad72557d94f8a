//! The spans of traces: one for each request, and one for each fetch.
//!
//! The names follow OpenTelemetry's semantic conventions for HTTP servers and for Redis. A key
//! never enters a span, because readers of traces may not be allowed to see keys.
//!
//! No span is created while traces are off: a request then costs the test of one flag, no clock and
//! no allocation. The code learns whether spans are wanted only by creating one: with filters for
//! each layer, `tracing::enabled!` can suppress the next line of the log.

use std::borrow::Cow;

use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header, uri::Authority};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of spans, by which the trace filter selects them.
pub const TARGET: &str = module_path!();

/// The path that replaces a path with a key.
const REDACTED_PATH: &str = "/keys/REDACTED";

/// The route of an HTTP request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A key.
    Keys,
    /// A route of the REST front end.
    Rest(&'static str),
    /// No route matches.
    None,
}

/// Whether spans are wanted.
pub fn is_enabled() -> bool {
    tracing::span_enabled!(tracing::Level::INFO)
}

/// Creates the span of a request, as a child of the span in its `traceparent` header.
pub fn request_span<B>(request: &Request<B>, route: Route) -> Span {
    let (headers, uri) = (request.headers(), request.uri());
    let span = tracing::info_span!(
        "request",
        "otel.name" = &*request_name(request.method(), route),
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "http.request.method" = method_name(request.method()),
        "http.route" = route.template(),
        "http.response.status_code" = Empty,
        "url.path" = if route == Route::Keys { REDACTED_PATH } else { "/REDACTED" },
        "url.scheme" = "http",
        "server.address" = Empty,
        "server.port" = Empty,
        "network.protocol.version" = if request.version() == Version::HTTP_2 { "2" } else { "1.1" },
        "user_agent.original" =
            headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()),
        "redis_proxy.outcome" = Empty,
        "db.operation.batch.size" = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        // The span has not started yet, so it accepts a parent.
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

impl Route {
    fn template(self) -> Option<&'static str> {
        match self {
            Self::Keys => Some("/keys/{key}"),
            Self::Rest(route) => Some(route),
            Self::None => None,
        }
    }
}

fn request_name(method: &Method, route: Route) -> Cow<'static, str> {
    match (method_name(method), route) {
        ("GET", Route::Keys) => "GET /keys/{key}".into(),
        ("HEAD", Route::Keys) => "HEAD /keys/{key}".into(),
        ("_OTHER", _) => "HTTP".into(),
        (method, Route::Rest(route)) => format!("{method} {route}").into(),
        (method, _) => method.into(),
    }
}

/// The most commands of a request that its span names.
const MAX_EVENTS: usize = 128;

/// Records the commands of this span's request by their names, each as an event. Arguments are left
/// out.
pub fn record_commands(span: &Span, names: impl ExactSizeIterator<Item = &'static str>) {
    if span.is_disabled() {
        return;
    }
    span.record("db.operation.batch.size", i64::try_from(names.len()).unwrap_or(i64::MAX));
    names.take(MAX_EVENTS).for_each(|name| span.add_event(name, Vec::new()));
}

/// Returns the method if it is a standard one. Otherwise clients could add any text to the names of
/// spans.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

/// Returns the server's address as the client requested it.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host = || headers.get(header::HOST)?.to_str().ok()?.parse().ok();
    uri.authority().cloned().or_else(host)
}

/// Records the status of the response to this span's request.
pub fn record_status(span: &Span, status: StatusCode) {
    if span.is_disabled() {
        return;
    }
    // OpenTelemetry's integers are signed. Other types become text.
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("error.type", status.as_str());
        span.record("otel.status_code", "ERROR");
    }
}

/// Creates the span of a Redis client's command that waits for a fetch. It has no parent, because
/// the Redis protocol cannot carry one. A command that memory answers at once has no span, because
/// it takes less time than a span.
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

/// Records the outcome of this span's read.
pub fn record_outcome(span: &Span, name: &str) {
    span.record("redis_proxy.outcome", name);
}

/// Returns the identity of this span's trace, if the trace is sampled.
pub fn sampled_trace(span: &Span) -> Option<u128> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    let is_sampled = context.is_valid() && context.is_sampled();
    is_sampled.then(|| u128::from_be_bytes(context.trace_id().to_bytes()))
}

/// Returns the identity of the current span's trace, if the trace is sampled.
pub fn current_trace() -> Option<u128> {
    current().as_ref().and_then(sampled_trace)
}

/// Returns the current span. `None` if there is none, or if no trace is exported.
fn current() -> Option<Span> {
    // Asked first, because it costs a tenth of the search for the current span.
    is_enabled().then(Span::current).filter(|span| !span.is_disabled())
}

/// Creates the span of a fetch, as a child of the read that causes it.
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

/// Records the server of the current fetch. A unix socket has no `port`, and its path is the
/// address.
pub fn record_target(address: &str, port: Option<u16>, database: u32) {
    let Some(span) = current() else { return };
    span.record(
        "otel.name",
        port.map_or_else(|| format!("GET {address}"), |port| format!("GET {address}:{port}")),
    );
    span.record("server.address", address);
    span.record("server.port", port.map(i64::from));
    span.record("db.namespace", database.to_string());
}

/// Records the failure of the current fetch. `kind` is its kind, and `code` the first word of
/// Redis's error.
pub fn record_failure(kind: &str, code: Option<&str>) {
    let span = Span::current();
    span.record("error.type", kind);
    span.record("db.response.status_code", code);
    span.record("otel.status_code", "ERROR");
}

/// Records that the current read waits for this fetch of another read.
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
        assert_eq!((sampled_trace(&span), current_trace()), (None, None));
    }
}
