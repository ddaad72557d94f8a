//! What answers requests, and what it answers with, between the connection and the routes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{BufMut as _, Bytes};
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tower_service::Service as _;

use super::request_head::SimpleRequest;
use crate::access::BearerAuth;
use crate::metrics::RejectCounter;
use crate::net::WriteBuf;

/// What holds for the connections of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a connection may go without moving a byte while no request is being answered.
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    pub header_timeout: Duration,
    /// How large the headers of a request may be, in bytes.
    pub max_header: usize,
}

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The answer to `request`.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;

    /// Takes up a plain request, of which [`handle`](Self::handle) would make the same; the bytes of it came in at `now`.
    /// By default all are left to that.
    fn handle_simple(
        &self,
        _request: &SimpleRequest<'_>,
        _now: Instant,
        _answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        FastPathResult::Fallback
    }
}

impl Handler for Router {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(response) = self.clone().call(request).await;
        response
    }
}

/// The routes that are served, and what holds for who asks.
#[derive(Clone)]
pub struct HttpService<R> {
    pub(super) handler: R,
    pub(super) limits: Arc<Limits>,
    pub(super) auth: Option<(BearerAuth, RejectCounter)>,
}

impl<R: Handler> HttpService<R> {
    /// Serves `handler` within `limits`, to everybody or to whom the `auth` lets through; the others are counted.
    pub fn new(handler: R, limits: Limits, auth: Option<(BearerAuth, RejectCounter)>) -> Self {
        Self { handler, limits: Arc::new(limits), auth }
    }

    /// Whether no verdict stands against a plain request before it is routed.
    pub(super) fn admits(&self, request: &SimpleRequest<'_>) -> bool {
        let admits = |(auth, _): &(BearerAuth, RejectCounter)| {
            auth.is_authorized(request.values("authorization"))
        };
        request.size() <= self.limits.max_header && self.auth.as_ref().is_none_or(admits)
    }
}

/// What a client of HTTP/2 with prior knowledge says first (RFC 9113, section 3.4).
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request target that hyper takes.
pub(super) const LONGEST_TARGET: usize = 64 << 10;

/// What becomes of a plain request.
pub enum FastPathResult {
    /// It is answered.
    Done,
    /// It will be answered so, once this is ready.
    Pending(Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>),
    /// It is left to [`Handler::handle`].
    Fallback,
}

/// Where the answer to a plain request is written.
pub struct ResponseWriter<'a> {
    pub(super) output: &'a mut WriteBuf,
    /// The last lines of the head.
    pub(super) date: &'a [u8],
    pub(super) wants_body: bool,
    pub(super) is_last: bool,
}

impl ResponseWriter<'_> {
    /// Writes a part of the head, which begins with the line of the status and is ended by [`write_body`](Self::write_body).
    #[inline]
    pub fn write_head(&mut self, part: &[u8]) {
        self.output.tail().put_slice(part);
    }

    fn write_field(&mut self, name: &str, value: &[u8]) {
        self.write_head(name.as_bytes());
        self.write_head(b": ");
        self.write_head(value);
        self.write_head(b"\r\n");
    }

    /// Writes how long the body is, what every answer has, and the body, if it is wanted. `whole` makes the same bytes, to be
    /// kept until they are written, and is asked only for many.
    #[inline]
    pub fn write_body(mut self, body: &[u8], whole: impl FnOnce() -> Bytes) {
        self.write_head(b"content-length: ");
        self.write_head(itoa::Buffer::new().format(body.len()).as_bytes());
        self.write_head(b"\r\n");
        self.finish(body, whole);
    }

    /// Writes a whole answer.
    pub fn write_response(mut self, response: &Response<Bytes>) {
        let (status, headers) = (response.status(), response.headers());
        self.write_head(b"HTTP/1.1 ");
        self.write_head(status.as_str().as_bytes());
        self.write_head(b" ");
        self.write_head(status.canonical_reason().unwrap_or_default().as_bytes());
        self.write_head(b"\r\n");
        headers.iter().for_each(|(name, value)| self.write_field(name.as_str(), value.as_bytes()));
        // One that says nothing of a body does not say either that there is none (RFC 9110, section 8.6).
        let says_enough =
            status == StatusCode::NOT_MODIFIED || headers.contains_key(header::CONTENT_LENGTH);
        let (body, whole) = (response.body(), || response.body().clone());
        if says_enough { self.finish(body, whole) } else { self.write_body(body, whole) }
    }

    fn finish(mut self, body: &[u8], whole: impl FnOnce() -> Bytes) {
        if self.is_last {
            self.write_head(b"connection: close\r\n");
        }
        self.write_head(self.date);
        if self.wants_body {
            self.output.push_slice_or(body, whole);
        }
    }
}
