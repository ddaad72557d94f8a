//! HTTP on one connection, from its first byte to its last. Covers the protocol version, the checks
//! before routing, the timeouts, and the end at a drain.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::sleep;

use super::cache_routes::LocalPeer;
use super::fast_path::{FastPath, Handover, Parts};
use super::problem::{ProblemType, denied_response};
use super::request_head::field_size;
use super::service::{Handler, HttpService, LONGEST_TARGET, Limits};
use super::timers::ConnectionTimers;
use crate::net::{ClientStream, LingeringClose, PollOnWake, TrackedIo};
use crate::server::{Drain, Service};
use crate::sync::CountGuard;

impl<R: Handler> Service for HttpService<R> {
    fn serve(
        &self,
        stream: ClientStream,
        drain: Drain,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let limits = Arc::clone(&self.limits);
        let timers = Arc::new(ConnectionTimers::new());
        // Without a log and without tokens nothing needs the address.
        let needs_client = self.observer.is_logging() || self.auth.is_some();
        let client = if needs_client { stream.peer() } else { None };
        let close = LingeringClose::new(drain.quiet_time());
        let http = self.for_connection();
        let mut fast_path = FastPath::new(stream, client, http, Arc::clone(&timers), close);
        // No `async fn`, which would store each of its arguments twice.
        Box::pin(async move {
            let end = serve_simple(&mut fast_path, &timers, &limits, &drain).await;
            let Some(handover) = end else { return };
            // Most connections never need hyper, so they do not have the room for it.
            if let Some(rest) = General::take_over(&handover, fast_path, timers, drain) {
                Box::pin(rest.run()).await;
            }
        })
    }

    fn overload_response(&self) -> Vec<u8> {
        let body = TOO_MANY.body(None);
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n\
             Retry-After: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        answer.into_bytes()
    }
}

/// The problems that are reported before routing.
const HEADER_TOO_LARGE: ProblemType = ProblemType::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "header-too-large",
    "The headers are too large",
);
const NO_HOST: ProblemType = ProblemType::new(
    StatusCode::BAD_REQUEST,
    "no-host",
    "The request does not say which host it is for",
);
const TOO_MANY: ProblemType = ProblemType::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "too-many-connections",
    "There are as many connections as may be",
);
const FRAGMENT: ProblemType =
    ProblemType::new(StatusCode::BAD_REQUEST, "fragment", "A request has no fragment");

/// Drives a connection to its end and returns its output, or `None` if it does not end in time.
/// `finish` starts its shutdown once it is overdue or has to stop.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    stop: impl Future<Output = ()>,
    expired: impl Future<Output = ()>,
    finish: impl FnOnce(Pin<&mut C>),
) -> Option<C::Output> {
    let (expired, stop) = (pin!(expired), pin!(stop));
    // The connection is woken for each request. These two futures need no poll then.
    let (mut expired, stop) = (PollOnWake::new(expired), PollOnWake::new(stop));
    let grace = tokio::select! {
        biased;
        end = connection.as_mut() => return Some(end),
        () = &mut expired => CLOSE_GRACE,
        () = stop => Duration::MAX,
    };
    finish(connection.as_mut());
    tokio::select! {
        end = connection => Some(end),
        () = expired, if grace > CLOSE_GRACE => None,
        () = sleep(grace) => None,
    }
}

/// The time in which an overdue connection may announce its end, as HTTP/2 does.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// Returns the response with `Connection: close`, so that the connection is closed after it.
fn closing_response(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Serves simple requests. Returns the continuation, or `None` if the connection does not end in
/// time.
async fn serve_simple<R: Handler>(
    fast_path: &mut FastPath<R>,
    timers: &ConnectionTimers,
    limits: &Limits,
    drain: &Drain,
) -> Option<Handover> {
    let expired = Box::pin(timers.expired(limits, Some(limits.header_timeout)));
    let idle = Box::pin(timers.idle_in_drain(drain.clone()));
    drive(pin!(fast_path.run()), idle, expired, |_| timers.begin_close()).await
}

/// A connection that continues in hyper.
struct General<R> {
    http: HttpService<R>,
    stream: TrackedIo<ClientStream>,
    is_http2: bool,
    client: Option<SocketAddr>,
    timers: Arc<ConnectionTimers>,
    drain: Drain,
}

impl<R: Handler> General<R> {
    /// Takes over a connection. `None` if it has ended.
    fn take_over(
        handover: &Handover,
        fast_path: FastPath<R>,
        timers: Arc<ConnectionTimers>,
        drain: Drain,
    ) -> Option<Self> {
        let is_http2 = match handover {
            Handover::Closed => return None,
            Handover::Http1 => false,
            Handover::Http2 => true,
        };
        let Parts { stream, unread, client, http } = fast_path.into_parts();
        let inspector = (!is_http2).then(|| timers.fragment_inspector());
        let close = LingeringClose::new(drain.quiet_time());
        let activity = Arc::clone(&timers.activity);
        let stream = TrackedIo::of_client(stream, activity, unread, inspector, close);
        Some(Self { http, stream, is_http2, client, timers, drain })
    }

    async fn run(self) {
        let Self { http, stream, is_http2, client, timers, drain } = self;
        let is_local = stream.get_ref().is_local_peer();
        let limits = Arc::clone(&http.limits);
        let (timers_of_service, drain_of_service) = (Arc::clone(&timers), drain.clone());
        let answer = service_fn(move |mut request: Request<Incoming>| {
            if is_local {
                request.extensions_mut().insert(LocalPeer);
            }
            // Responses without an end, which such a handler may have, end with the drain.
            if http.handler.authenticates(request.uri().path()) {
                request.extensions_mut().insert(drain_of_service.clone());
            }
            http.clone().respond(request, client, Arc::clone(&timers_of_service))
        });
        if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX))
                .serve_connection(TokioIo::new(stream), answer);
            // Later bytes may belong to the connection itself, so the start of a request head is
            // unknown. No header timeout applies.
            let expired = timers.expired(&limits, None);
            // The shutdown begins with GOAWAY for no stream yet. The client can send requests until
            // it receives that, and all of them are answered.
            let stop = async { drain.clone().signaled().await };
            drive(pin!(connection), stop, expired, http2::Connection::graceful_shutdown).await;
        } else {
            // No `pipeline_flush`: with it, hyper delays or loses a response while more input
            // arrives. The buffer is larger than the limit for headers. An oversized head is
            // therefore rejected here, with a problem body.
            let connection = http1::Builder::new()
                .half_close(true)
                .header_read_timeout(None)
                .max_buf_size(limits.max_header.saturating_add(LONGEST_TARGET))
                .serve_connection(TokioIo::new(stream), answer);
            let expired = timers.expired(&limits, Some(limits.header_timeout));
            let idle = timers.idle_in_drain(drain);
            drive(pin!(connection), idle, expired, http1::Connection::graceful_shutdown).await;
        }
    }
}

impl<R: Handler> HttpService<R> {
    /// Returns the response to a request. The connection does not count as idle meanwhile. In a
    /// drain, an HTTP/1 connection ends with it.
    async fn respond(
        self,
        request: Request<Incoming>,
        client: Option<SocketAddr>,
        timers: Arc<ConnectionTimers>,
    ) -> Result<Response<Body>, Infallible> {
        timers.activity.mark_consumed();
        let number = timers.requests.fetch_add(1, Relaxed) + 1;
        let _answering = CountGuard::new(&timers.in_flight);
        let is_http2 = request.version() == Version::HTTP_2;
        let observer = self.observer.clone();
        let pending = observer.begin(client, || {
            (request.method().as_str().to_owned(), request.uri().path().to_owned())
        });
        let response = if timers.has_fragment(number) {
            let detail = "A number sign that belongs to the key is written %23.";
            self.refuse(&request, FRAGMENT, Some(detail))
        } else {
            self.checked_response(request, client).await
        };
        observer.finish(response.status(), pending);
        let is_last = timers.is_draining() && !is_http2;
        Ok(if is_last { closing_response(response) } else { response })
    }

    /// Returns the response to a request that is not routed. The connection is closed after it.
    fn refuse(
        &self,
        request: &Request<Incoming>,
        problem: ProblemType,
        detail: Option<&str>,
    ) -> Response<Body> {
        let own = self.handler.refusal(request.uri().path(), problem.status, problem.title);
        closing_response(own.unwrap_or_else(|| problem.response(detail)))
    }

    /// Returns the response to a request, which is checked before it is routed.
    async fn checked_response(
        self,
        mut request: Request<Incoming>,
        client: Option<SocketAddr>,
    ) -> Response<Body> {
        if request.version() == Version::HTTP_11
            && request.headers().get_all(header::HOST).iter().count() != 1
        {
            return self.refuse(&request, NO_HOST, Some("HTTP/1.1 asks for one Host header."));
        }
        let sizes = request
            .headers()
            .iter()
            .map(|(name, value)| field_size(name.as_str().len(), value.len()));
        if sizes.sum::<usize>() > self.limits.max_header {
            return self.refuse(&request, HEADER_TOO_LARGE, None);
        }
        if let Some((auth, refused)) = &self.auth
            && !self.handler.authenticates(request.uri().path())
            && let Err(denied) = auth.authenticate(&mut request)
        {
            refused.count();
            self.observer.refused(client);
            return denied_response(denied, request.method());
        }
        self.handler.handle(request).await
    }
}
