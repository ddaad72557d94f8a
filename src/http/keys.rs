//! Reads over HTTP: `GET` and `HEAD /keys/{key}`.
//!
//! The key is the rest of the path, percent-decoded to bytes. The body is the value, byte for byte.
//! Standard headers describe the value: a strong `ETag` (RFC 9110, section 8.8.3), `Age` (RFC 9111,
//! section 5.1), `Cache-Control`, and `Cache-Status` (RFC 9211). Errors are problem details (RFC
//! 9457): they describe the fault of the request and nothing behind the proxy. A single range of
//! bytes (RFC 9110, section 14) is sent from memory without a copy.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::cache_routes::is_cache_path;
use super::conditions::{Conditions, Verdict};
use super::headers::{etag, insert_header, put_cache_headers, read_mode};
use super::problem::RequestError;
use super::request_head::{SimpleMethod, SimpleRequest};
use super::service::{AwaitedWriter, FastPathResult, Handler, ResponseWriter, writer_of};
use super::settings::Settings;
use crate::boxed::pinned;
use crate::cache::{Answer, Freshness, Outcome, ReadMode, RuleOutcome, Value};
use crate::key::{Key, percent_decode};
use crate::metrics::{FrontEnd, RejectReason};
use crate::proxy::Proxy;
use crate::telemetry::spans::{self, Route};

const PREFIX: &str = "/keys/";

/// The routes of this front end. `/keys/` bypasses the router, because most requests are for it.
/// All other paths go to `others`.
#[derive(Clone)]
pub struct Keys {
    http: Arc<KeyHandler>,
    others: Router,
    /// Whether `others` has the routes that purge keys.
    has_cache_routes: bool,
}

struct KeyHandler {
    proxy: Proxy,
    settings: Settings,
    after_etag: AfterEtag,
}

/// The bytes between the entity tag and the remaining time in the head of a response with a fresh
/// value.
struct AfterEtag {
    hit: Vec<u8>,
    miss: Vec<u8>,
}

impl AfterEtag {
    fn new(cache_control: &[u8]) -> Self {
        let with = |status: &[u8]| {
            let names = [&b"\r\ncache-control: "[..], b"\r\ncache-status: redis-proxy; "];
            [names[0], cache_control, names[1], status, b"; ttl="].concat()
        };
        Self { hit: with(b"hit"), miss: with(b"fwd=miss") }
    }

    /// Returns the bytes for the outcome of an answer, and its age if it is from memory. `None` for
    /// the rarer outcomes.
    fn and_age(&self, answer: &Answer) -> Option<(&[u8], Option<Duration>)> {
        match answer.outcome {
            Outcome::Hit => Some((&self.hit, Some(answer.age))),
            Outcome::Miss => Some((&self.miss, None)),
            _ => None,
        }
    }
}

impl Keys {
    /// Creates a handler that serves reads through `proxy`, and all other paths by the routes of
    /// `others`.
    pub fn new(proxy: Proxy, settings: Settings, others: Router) -> Self {
        let others = others.fallback(no_route);
        let after_etag = AfterEtag::new(settings.cache_control.0.as_bytes());
        let http = Arc::new(KeyHandler { proxy, settings, after_etag });
        Self { http, others, has_cache_routes: false }
    }

    /// Adds the operator's routes to those of `others`.
    #[must_use]
    pub fn with_operators(self, routes: Router) -> Self {
        let others = routes.fallback(no_route);
        Self { others, has_cache_routes: true, ..self }
    }
}

impl Handler for Keys {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if !request.uri().path().starts_with(PREFIX) {
            return self.others.handle(request).await;
        }
        let span = spans::request_span(&request, Route::Keys);
        let response = respond(&self.http, &request, &span);
        // A disabled span skips the cost of entering and leaving it.
        let response = if span.is_disabled() {
            response.await
        } else {
            response.instrument(span.clone()).await
        };
        spans::record_status(&span, response.status());
        response
    }

    /// The routes for purges check their own tokens, because not every token may purge.
    fn authenticates(&self, path: &str) -> bool {
        self.has_cache_routes && is_cache_path(path)
    }

    fn handle_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        if request.method() == SimpleMethod::Post {
            return FastPathResult::Fallback;
        }
        match request
            .path()
            .strip_prefix(PREFIX.as_bytes())
            .map(|escaped| self.http.parse_key(escaped))
        {
            // A span needs the whole request, which the fast path does not have.
            Some(Ok(key)) if !spans::is_enabled() => {
                self.http.respond_simple(&key, request, now, answer)
            }
            _ => FastPathResult::Fallback,
        }
    }
}

async fn no_route(request: axum::extract::Request) -> Response<Body> {
    let span = spans::request_span(&request, Route::None);
    let response = span.in_scope(|| RequestError::NoRoute.into_response().map(Body::from));
    spans::record_status(&span, response.status());
    response
}

async fn respond<B>(http: &KeyHandler, request: &Request<B>, span: &Span) -> Response<Body> {
    let escaped = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return RequestError::MethodNotAllowed.into_response().map(Body::from);
    }
    let values = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    let read_mode = read_mode(values(header::CACHE_CONTROL));
    let is_get = request.method() == Method::GET;
    let conditions = Conditions::of(is_get, |name| {
        request.headers().get_all(name).iter().map(HeaderValue::as_bytes)
    });
    let response = match http.read(escaped, request.uri().query(), read_mode, span).await {
        Ok(answer) => http.response_for(&answer, &conditions),
        Err(problem) => problem.into_response(),
    };
    if is_get { response.map(Body::from) } else { without_body(response) }
}

impl KeyHandler {
    async fn read(
        &self,
        escaped: &str,
        query: Option<&str>,
        read_mode: ReadMode,
        span: &Span,
    ) -> Result<Answer, RequestError> {
        if query.is_some() {
            return Err(RequestError::Query);
        }
        let key = self.parse_key(escaped.as_bytes()).inspect_err(|problem| {
            if matches!(problem, RequestError::NotAllowed) {
                self.proxy.record_rejected(FrontEnd::Http, RejectReason::Key);
            }
        })?;
        self.proxy.get(FrontEnd::Http, &key, read_mode, span).await.map_err(RequestError::Backend)
    }

    /// Returns the decoded key, if it may be read. Runs before any lookup (invariant A4).
    fn parse_key<'a>(&self, escaped: &'a [u8]) -> Result<Cow<'a, [u8]>, RequestError> {
        let key = percent_decode(escaped).map_err(RequestError::BadEscape)?;
        if key.is_empty() {
            return Err(RequestError::EmptyKey);
        }
        if key.len() > self.settings.max_key.0 {
            return Err(RequestError::KeyTooLong { length: key.len(), max: self.settings.max_key });
        }
        if !self.settings.allow_keys.allows(&key) {
            return Err(RequestError::NotAllowed);
        }
        Ok(key)
    }

    /// Answers a simple request from memory, or returns the pending fetch.
    fn respond_simple(
        self: &Arc<Self>,
        key: &[u8],
        request: &SimpleRequest<'_>,
        now: Instant,
        to: ResponseWriter<'_>,
    ) -> FastPathResult {
        // Nearly all requests have no field that affects the response.
        let (read_mode, conditions) = if request.is_plain() {
            (ReadMode::Default, None)
        } else {
            let conditions = Conditions::of(request.wants_body(), |name| request.values(name));
            (read_mode(request.values("cache-control")), Some(conditions))
        };
        let found = if read_mode == ReadMode::Default { self.proxy.lookup(key, now) } else { None };
        let Some(found) = found else {
            let (http, key) = (Arc::clone(self), Key::from(key));
            return FastPathResult::Pending(pinned(|| http.fetch(key, read_mode, conditions)));
        };
        self.proxy.count_hit(key, &found.entry, now);
        let (outcome, rule) = (found.outcome, found.rule);
        let status = self.write_answer(&found, conditions, to);
        self.proxy.record(FrontEnd::Http, outcome, 1, now.elapsed());
        self.proxy.record_rule(rule, RuleOutcome::Read(outcome), 1);
        FastPathResult::Done(status)
    }

    /// Fetches a value that memory did not have. Returns the writer of the response.
    async fn fetch(
        self: Arc<Self>,
        key: Key,
        read_mode: ReadMode,
        conditions: Option<Conditions>,
    ) -> AwaitedWriter {
        let (front_end, span) = (FrontEnd::Http, Span::none());
        let answer = match read_mode {
            ReadMode::Default => self.proxy.get_missed(front_end, &key, &span).await,
            ReadMode::NoCache => {
                Box::pin(self.proxy.get(front_end, key.as_bytes(), read_mode, &span)).await
            }
        };
        match answer {
            Ok(answer) => Box::new(move |to| self.write_answer(&answer, conditions, to)),
            Err(error) => writer_of(RequestError::Backend(error).into_response()),
        }
    }

    /// Writes the response with an answer. Returns its status.
    fn write_answer(
        &self,
        answer: &Answer,
        conditions: Option<Conditions>,
        to: ResponseWriter<'_>,
    ) -> StatusCode {
        if conditions.is_none()
            && let Some(value) = answer.entry.value()
            && let Freshness::Fresh { remaining } = answer.freshness
            && let Some((after_etag, age)) = self.after_etag.and_age(answer)
        {
            write_fresh(value, after_etag, remaining, age, to);
            return StatusCode::OK;
        }
        let response = self.response_for(answer, &conditions.unwrap_or_default());
        to.write_response(&response);
        response.status()
    }

    fn response_for(&self, answer: &Answer, conditions: &Conditions) -> Response<Bytes> {
        let Some(value) = answer.entry.value() else {
            let mut response = RequestError::KeyNotFound.into_response();
            put_cache_headers(answer, response.headers_mut());
            return response;
        };
        let length = value.bytes.len();
        let (status, body) = match conditions.judge(&etag(value), length) {
            Verdict::Whole => (StatusCode::OK, value.to_bytes()),
            Verdict::Part(part) => {
                return self.partial_response(answer, value, part, conditions.continues());
            }
            Verdict::NotModified => (StatusCode::NOT_MODIFIED, Bytes::new()),
            Verdict::Failed => return RequestError::ConditionFailed.into_response(),
            Verdict::Unsatisfiable => return RequestError::Range { length }.into_response(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if status == StatusCode::OK {
            // Space for all headers, so that the map grows only once.
            headers.reserve(HEADERS);
            put_value_headers(headers);
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        self.put_validators(answer, value, headers);
        response
    }

    /// Returns the response with a part of the value. A client that has the rest also has the
    /// headers which describe it (RFC 9110, section 15.3.7).
    fn partial_response(
        &self,
        answer: &Answer,
        value: Value<'_>,
        part: Range<usize>,
        has_rest: bool,
    ) -> Response<Bytes> {
        let range = format!("bytes {}-{}/{}", part.start, part.end - 1, value.bytes.len());
        let mut response = Response::new(value.to_bytes().slice(part));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let headers = response.headers_mut();
        headers.reserve(HEADERS);
        if !has_rest {
            put_value_headers(headers);
        }
        insert_header(headers, header::CONTENT_RANGE, range.as_bytes());
        self.put_validators(answer, value, headers);
        response
    }

    /// Adds the entity tag, `Cache-Control` and the cache headers.
    fn put_validators(&self, answer: &Answer, value: Value<'_>, headers: &mut HeaderMap) {
        insert_header(headers, header::ETAG, &etag(value));
        headers.insert(header::CACHE_CONTROL, self.settings.cache_control.0.clone());
        put_cache_headers(answer, headers);
    }
}

/// Writes a fresh value. `age` is that of a value from memory. The result equals that of
/// [`response_for`](KeyHandler::response_for), but needs no header map.
fn write_fresh(
    value: Value<'_>,
    after_etag: &[u8],
    remaining: Duration,
    age: Option<Duration>,
    mut to: ResponseWriter<'_>,
) {
    let mut digits = itoa::Buffer::new();
    to.write_head(
        b"HTTP/1.1 200 OK\r\ncontent-type: \
            application/octet-stream\r\nx-content-type-options: nosniff\r\n\
            accept-ranges: bytes\r\netag: ",
    );
    to.write_head(&etag(value));
    to.write_head(after_etag);
    to.write_head(digits.format(remaining.as_secs()).as_bytes());
    if let Some(age) = age {
        to.write_head(b"\r\nage: ");
        to.write_head(digits.format(age.as_secs()).as_bytes());
    }
    to.write_head(b"\r\n");
    to.write_body(value.bytes, || value.to_bytes());
}

/// Adds the headers that describe a value. The sender of the body adds `Content-Length`.
fn put_value_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // A value is plain data. Without this header a browser may guess another type.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The number of headers for which a response reserves space.
const HEADERS: usize = 9;

/// Removes the body for a `HEAD` request (RFC 9110, section 9.3.2), and adds the length that it
/// had.
fn without_body(mut response: Response<Bytes>) -> Response<Body> {
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response.map(|_| Body::empty())
}
