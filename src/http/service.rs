//! The service between connections and routes: the handler of requests and the writer of responses.

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

use super::observer::Observer;
use super::request_head::SimpleRequest;
use crate::access::BearerAuth;
use crate::metrics::RejectCounter;
use crate::net::WriteBuf;

/// The limits of a listener's connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest time without any byte sent or received while no request is in flight.
    pub idle_timeout: Duration,
    /// The longest time that the head of a request may take to arrive.
    pub header_timeout: Duration,
    /// The maximum size of a request's headers, in bytes.
    pub max_header: usize,
}

/// A handler of requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Returns the handler for the requests of one connection. Its clones share the state that it
    /// has of that connection, if any.
    #[must_use]
    fn for_connection(&self) -> Self {
        self.clone()
    }

    /// Returns the response to `request`.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;

    /// Whether requests for this path are authenticated by the handler itself. No other
    /// authentication then applies to them.
    fn authenticates(&self, _path: &str) -> bool {
        false
    }

    /// Returns the response to a request that is refused with this status before it is routed, if
    /// the responses for this path have a form of their own. `_title` is the reason.
    fn refusal(&self, _path: &str, _status: StatusCode, _title: &str) -> Option<Response<Body>> {
        None
    }

    /// Answers a simple request that arrived at `_now`, exactly as [`handle`](Self::handle) would.
    /// The default implementation leaves every request to `handle`.
    fn handle_simple(
        &self,
        _request: &SimpleRequest<'_>,
        _now: Instant,
        _answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        FastPathResult::Fallback
    }

    /// Whether a simple request of which a part of the body is missing would be answered by
    /// [`handle_simple`](Self::handle_simple) with it. Its head alone has no answer then.
    fn awaits_body(&self, _request: &SimpleRequest<'_>, _now: Instant) -> bool {
        false
    }
}

impl Handler for Router {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(response) = self.clone().call(request).await;
        response
    }
}

/// The routes of a listener, with its limits and authentication.
#[derive(Clone)]
pub struct HttpService<R> {
    pub(super) handler: R,
    pub(super) limits: Arc<Limits>,
    pub(super) auth: Option<(BearerAuth, RejectCounter)>,
    pub(super) observer: Observer,
}

impl<R: Handler> HttpService<R> {
    /// Creates a service that runs `handler` within `limits`. With `auth`, rejected requests are
    /// counted; without it, every request passes.
    pub fn new(
        handler: R,
        limits: Limits,
        auth: Option<(BearerAuth, RejectCounter)>,
        observer: Observer,
    ) -> Self {
        Self { handler, limits: Arc::new(limits), auth, observer }
    }

    /// Returns the service of one connection.
    pub(super) fn for_connection(&self) -> Self {
        Self {
            handler: self.handler.for_connection(),
            limits: Arc::clone(&self.limits),
            auth: self.auth.clone(),
            observer: self.observer.clone(),
        }
    }

    /// Whether a simple request passes all checks that precede routing.
    pub(super) fn admits(&self, request: &SimpleRequest<'_>) -> bool {
        let authenticates = || {
            let path = std::str::from_utf8(request.path());
            path.is_ok_and(|path| self.handler.authenticates(path))
        };
        let admits = |(auth, _): &(BearerAuth, RejectCounter)| {
            authenticates() || auth.is_authorized(request.values("authorization"))
        };
        request.size() <= self.limits.max_header && self.auth.as_ref().is_none_or(admits)
    }
}

/// The first bytes of an HTTP/2 client with prior knowledge (RFC 9113, section 3.4).
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request target that hyper accepts, in bytes.
pub(super) const LONGEST_TARGET: usize = 64 << 10;

/// The result of the fast path for a simple request.
pub enum FastPathResult {
    /// The response, with this status, is written.
    Done(StatusCode),
    /// This future returns the writer of the response.
    Pending(Pin<Box<dyn Future<Output = AwaitedWriter> + Send>>),
    /// The request is left to [`Handler::handle`].
    Fallback,
}

/// The writer of a response that had to be awaited. Returns its status.
pub(super) type AwaitedWriter = Box<dyn FnOnce(ResponseWriter<'_>) -> StatusCode + Send>;

/// Returns the writer of a complete response.
pub fn writer_of(response: Response<Bytes>) -> AwaitedWriter {
    Box::new(move |to| {
        to.write_response(&response);
        response.status()
    })
}

/// The writer of a response to a simple request.
pub struct ResponseWriter<'a> {
    pub(super) output: &'a mut WriteBuf,
    /// The last lines of the head.
    pub(super) date: &'a [u8],
    pub(super) wants_body: bool,
    pub(super) is_last: bool,
}

impl ResponseWriter<'_> {
    /// Writes a part of the head. The head begins with the status line, and
    /// [`write_body`](Self::write_body) ends it.
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

    /// Writes `Content-Length`, the common last headers, and the body if it is wanted. `whole`
    /// returns the same bytes as an owned buffer, and is called only for large bodies.
    #[inline]
    pub fn write_body(mut self, body: &[u8], whole: impl FnOnce() -> Bytes) {
        self.write_head(b"content-length: ");
        self.write_head(itoa::Buffer::new().format(body.len()).as_bytes());
        self.write_head(b"\r\n");
        self.finish(body, whole);
    }

    /// Writes a complete response.
    pub fn write_response(mut self, response: &Response<Bytes>) {
        let (status, headers) = (response.status(), response.headers());
        self.write_head(b"HTTP/1.1 ");
        self.write_head(status.as_str().as_bytes());
        self.write_head(b" ");
        self.write_head(status.canonical_reason().unwrap_or_default().as_bytes());
        self.write_head(b"\r\n");
        headers.iter().for_each(|(name, value)| self.write_field(name.as_str(), value.as_bytes()));
        // A 304 needs no length. Without one, it does not claim that the body is empty (RFC 9110,
        // section 8.6).
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
