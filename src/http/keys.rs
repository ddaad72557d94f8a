//! Reads over HTTP: `GET` and `HEAD /keys/{key}`.
//!
//! The key is the rest of the path, percent-decoded to bytes; the body is the value, byte for byte. What the
//! answer is worth is told by the standard headers: a strong `ETag` (RFC 9110, section 8.8.3), `Age` (RFC 9111,
//! section 5.1), `Cache-Control`, and `Cache-Status` (RFC 9211). Errors are problem details (RFC 9457) that say
//! what was wrong with the request and nothing about what is behind the proxy.

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::headers::{any_in_lists, demand, etag, is_weakly, put, put_standing};
use super::problem::Problem;
use super::request_head::PlainRequest;
use super::service::{PlainAnswer, Routes, Taken};
use super::settings::Settings;
use crate::cache::{Answer, Demand, Freshness, Value};
use crate::key::percent_decode;
use crate::metrics::{FrontEnd, Refusal};
use crate::proxy::Proxy;
use crate::telemetry::spans::{self, Route};

const PREFIX: &str = "/keys/";

/// The routes of this front end: `/keys/`, past any router since it is most of all that is asked for, and every path that
/// is nobody else's.
#[derive(Clone)]
pub struct Keys {
    http: Arc<Http>,
    others: Router,
}

struct Http {
    proxy: Proxy,
    settings: Settings,
    /// What stands in the head of an answer with a fresh value between its tag and how long it stays so.
    behind_tag: Vec<u8>,
}

impl Keys {
    /// Serves reads through `proxy`, and beside them the routes of `others`.
    pub fn new(proxy: Proxy, settings: Settings, others: Router) -> Self {
        let others = others.fallback(no_route);
        let cache_control = settings.cache_control.0.as_bytes();
        let behind_tag =
            [b"\r\ncache-control: ", cache_control, b"\r\ncache-status: redis-proxy; hit; ttl="]
                .concat();
        Self { http: Arc::new(Http { proxy, settings, behind_tag }), others }
    }
}

impl Routes for Keys {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !request.uri().path().starts_with(PREFIX) {
            return self.others.answer(request).await;
        }
        let span = spans::request(&request, Route::Keys);
        let response = respond(&self.http, &request, &span);
        // Nothing is entered and left again where nobody wants a span.
        let response = if span.is_disabled() {
            response.await
        } else {
            response.instrument(span.clone()).await
        };
        spans::responded(&span, response.status());
        response
    }

    fn answer_plain(
        &self,
        request: &PlainRequest<'_>,
        now: Instant,
        answer: PlainAnswer<'_>,
    ) -> Taken {
        match request.path().strip_prefix(PREFIX.as_bytes()).map(|escaped| self.http.key(escaped)) {
            // A span is made of all that a request has.
            Some(Ok(key)) if !spans::is_wanted() => self.http.give(&key, request, now, answer),
            _ => Taken::Left,
        }
    }
}

async fn no_route(request: axum::extract::Request) -> Response<Body> {
    let span = spans::request(&request, Route::None);
    let response = span.in_scope(|| Problem::NoRoute.into_response().map(Body::from));
    spans::responded(&span, response.status());
    response
}

async fn respond<B>(http: &Http, request: &Request<B>, span: &Span) -> Response<Body> {
    let escaped = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Problem::MethodNotAllowed.into_response().map(Body::from);
    }
    let values = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    let demand = demand(values(header::CACHE_CONTROL));
    let response = match http.read(escaped, request.uri().query(), demand, span).await {
        Ok(answer) => http.answer(&answer, values(header::IF_NONE_MATCH)),
        Err(problem) => problem.into_response(),
    };
    if request.method() == Method::HEAD { without_body(response) } else { response.map(Body::from) }
}

impl Http {
    async fn read(
        &self,
        escaped: &str,
        query: Option<&str>,
        demand: Demand,
        span: &Span,
    ) -> Result<Answer, Problem> {
        if query.is_some() {
            return Err(Problem::Query);
        }
        let key = self.key(escaped.as_bytes()).inspect_err(|problem| {
            if matches!(problem, Problem::NotAllowed) {
                self.proxy.refused(FrontEnd::Http, Refusal::Key);
            }
        })?;
        self.proxy.get(FrontEnd::Http, &key, demand, span).await.map_err(Problem::Backend)
    }

    /// The key of this name, if it may be asked for.
    fn key<'a>(&self, escaped: &'a [u8]) -> Result<Cow<'a, [u8]>, Problem> {
        let key = percent_decode(escaped).map_err(Problem::BadEscape)?;
        if key.is_empty() {
            return Err(Problem::EmptyKey);
        }
        if key.len() > self.settings.max_key.0 {
            return Err(Problem::KeyTooLong { length: key.len(), most: self.settings.max_key });
        }
        if !self.settings.allow.permits(&key) {
            return Err(Problem::NotAllowed);
        }
        Ok(key)
    }

    /// Gives what is in memory to a plain request, or asks for it.
    fn give(
        self: &Arc<Self>,
        key: &[u8],
        request: &PlainRequest<'_>,
        now: Instant,
        to: PlainAnswer<'_>,
    ) -> Taken {
        let none_match = request.values("if-none-match");
        let demand = demand(request.values("cache-control"));
        let found = if demand == Demand::Usual { self.proxy.lookup(key, now) } else { None };
        let Some(found) = found else {
            // One list is as good as several.
            let tags = none_match.collect::<Vec<_>>().join(&b',');
            let (http, key) = (Arc::clone(self), key.to_vec());
            return Taken::Waits(Box::pin(async move {
                match http.proxy.get(FrontEnd::Http, &key, demand, &Span::none()).await {
                    Ok(answer) => http.answer(&answer, iter::once(&*tags)),
                    Err(error) => Problem::Backend(error).into_response(),
                }
            }));
        };
        self.proxy.count_key(key, now);
        let outcome = found.outcome;
        match (found.entry.value(), found.freshness) {
            (Some(value), Freshness::Fresh { remaining })
                if none_match.clone().next().is_none() =>
            {
                self.give_fresh(value, remaining, found.age, to);
            }
            _ => to.whole(&self.answer(&found, none_match)),
        }
        self.proxy.count(FrontEnd::Http, outcome, 1, now.elapsed());
        Taken::Answered
    }

    /// Gives a fresh value from memory, as [`answer`](Self::answer) would say it, but without making a map of its headers.
    fn give_fresh(
        &self,
        value: Value<'_>,
        remaining: Duration,
        age: Duration,
        mut to: PlainAnswer<'_>,
    ) {
        let mut digits = itoa::Buffer::new();
        to.head(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nx-content-type-options: nosniff\r\netag: ",
        );
        to.head(&etag(value));
        to.head(&self.behind_tag);
        to.head(digits.format(remaining.as_secs()).as_bytes());
        to.head(b"\r\nage: ");
        to.head(digits.format(age.as_secs()).as_bytes());
        to.head(b"\r\n");
        to.body(value.bytes, || value.to_bytes());
    }

    fn answer<'a>(
        &self,
        answer: &Answer,
        none_match: impl Iterator<Item = &'a [u8]>,
    ) -> Response<Bytes> {
        let Some(value) = answer.entry.value() else {
            let mut response = Problem::Absent.into_response();
            put_standing(answer, response.headers_mut());
            return response;
        };
        if any_in_lists(none_match, |tag| is_weakly(tag, &etag(value))) {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            self.put_version(answer, value, response.headers_mut());
            return response;
        }
        let mut response = Response::new(value.to_bytes());
        // For all that are put in, so that it grows but once.
        response.headers_mut().reserve(HEADERS);
        self.put_headers(answer, value, response.headers_mut());
        response
    }

    /// What the answer that has the value says of it; how long it is, whoever sends it says.
    fn put_headers(&self, answer: &Answer, value: Value<'_>, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // A value is data, whatever a browser takes it for.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.put_version(answer, value, headers);
    }

    /// Which value it is, and how things stand with it.
    fn put_version(&self, answer: &Answer, value: Value<'_>, headers: &mut HeaderMap) {
        put(headers, header::ETAG, &etag(value));
        headers.insert(header::CACHE_CONTROL, self.settings.cache_control.0.clone());
        put_standing(answer, headers);
    }
}

/// As many headers as an answer has.
const HEADERS: usize = 8;

/// The headers of an answer alone (RFC 9110, section 9.3.2), the length of the body among them.
fn without_body(mut response: Response<Bytes>) -> Response<Body> {
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response.map(|_| Body::empty())
}
