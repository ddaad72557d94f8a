//! HTTP on a connection, from its first byte to its last: which version it speaks, what is refused before any route sees
//! it, for how long it may be idle or take over a head, and how it ends when the daemon drains.

use std::convert::Infallible;
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

use super::fast_path::{Plain, Rest};
use super::problem::{Kind, denied_response};
use super::request_head::size_of_field;
use super::service::{Http, LONGEST_TARGET, Routes};
use super::timers::Watch;
use crate::net::{Observed, Seldom, Stream};
use crate::server::{Drain, Serve};
use crate::sync::CountGuard;

impl<R: Routes> Serve for Http<R> {
    fn serve(&self, stream: Stream, drain: Drain) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.clone().run(stream, drain))
    }

    fn refusal(&self) -> Vec<u8> {
        let body = TOO_MANY.body(None);
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n\
             Retry-After: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        answer.into_bytes()
    }
}

/// For how long after the daemon was told to stop a connection still listens: a request may be on its way, or here
/// and unread.
const LAST_WORD: Duration = Duration::from_millis(50);
/// What is refused before any route sees it.
const HEADER_TOO_LARGE: Kind = Kind::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "header-too-large",
    "The headers are too large",
);
const NO_HOST: Kind =
    Kind::new(StatusCode::BAD_REQUEST, "no-host", "The request does not say which host it is for");
const TOO_MANY: Kind = Kind::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "too-many-connections",
    "There are as many connections as may be",
);
const FRAGMENT: Kind = Kind::new(StatusCode::BAD_REQUEST, "fragment", "A request has no fragment");

/// Drives a connection to its end, and returns what that says, if it came to it. When it is overdue, or the daemon drains, it
/// is told to finish.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    mut drain: Drain,
    overdue: impl Future<Output = ()>,
    finish: impl FnOnce(Pin<&mut C>),
) -> Option<C::Output> {
    let overdue = pin!(overdue);
    let stop = pin!(async {
        drain.begun().await;
        sleep(LAST_WORD).await;
    });
    // The connection is woken for each request, and these are not.
    let (mut overdue, stop) = (Seldom::new(overdue), Seldom::new(stop));
    let patience = tokio::select! {
        biased;
        end = connection.as_mut() => return Some(end),
        () = &mut overdue => FAREWELL,
        () = stop => Duration::MAX,
    };
    finish(connection.as_mut());
    tokio::select! {
        end = connection => Some(end),
        () = overdue, if patience > FAREWELL => None,
        () = sleep(patience) => None,
    }
}

/// How long an overdue connection has to say that it ends, as HTTP/2 does.
const FAREWELL: Duration = Duration::from_millis(100);

/// An answer after which the connection is closed.
fn last_answer(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

impl<R: Routes> Http<R> {
    async fn run(self, stream: Stream, drain: Drain) {
        let limits = Arc::clone(&self.limits);
        let watch = Arc::new(Watch::new());
        let plain = Plain::new(stream, self.clone(), Arc::clone(&watch));
        let overdue = watch.overdue(&limits, Some(limits.header_timeout));
        let rest = drive(pin!(plain.run()), drain.clone(), overdue, |_| watch.finish()).await;
        let (stream, first, is_http2) = match rest {
            None | Some(Rest::Nothing) => return,
            Some(Rest::Http1(stream, first)) => (stream, first, false),
            Some(Rest::Http2(stream, first)) => (stream, first, true),
        };
        let inspector = (!is_http2).then(|| watch.fragment_inspector());
        let stream = Observed::resuming(stream, Arc::clone(&watch.activity), first, inspector);
        let watching = Arc::clone(&watch);
        let answer = service_fn(move |request| self.clone().answer(request, Arc::clone(&watching)));
        if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX))
                .serve_connection(TokioIo::new(stream), answer);
            // Later bytes may be of the connection itself, so there is no telling when a head begins.
            let overdue = watch.overdue(&limits, None);
            drive(pin!(connection), drain, overdue, http2::Connection::graceful_shutdown).await;
        } else {
            // No `pipeline_flush`: with it hyper holds an answer back, or loses it, while more bytes have come in. Room
            // for more than the head may have, so that it is refused here, in words.
            let connection = http1::Builder::new()
                .half_close(true)
                .header_read_timeout(None)
                .max_buf_size(limits.max_header.saturating_add(LONGEST_TARGET))
                .serve_connection(TokioIo::new(stream), answer);
            let overdue = watch.overdue(&limits, Some(limits.header_timeout));
            drive(pin!(connection), drain, overdue, http1::Connection::graceful_shutdown).await;
        }
    }
}

impl<R: Routes> Http<R> {
    /// An answer, during which the connection is not idle.
    async fn answer(
        self,
        mut request: Request<Incoming>,
        watch: Arc<Watch>,
    ) -> Result<Response<Body>, Infallible> {
        watch.activity.settle();
        let number = watch.requests.fetch_add(1, Relaxed) + 1;
        let _answering = CountGuard::new(&watch.answering);
        if watch.has_fragment(number) {
            return Ok(last_answer(
                FRAGMENT.response(Some("A number sign that belongs to the key is written %23.")),
            ));
        }
        if request.version() == Version::HTTP_11
            && request.headers().get_all(header::HOST).iter().count() != 1
        {
            return Ok(last_answer(NO_HOST.response(Some("HTTP/1.1 asks for one Host header."))));
        }
        let sizes = request
            .headers()
            .iter()
            .map(|(name, value)| size_of_field(name.as_str().len(), value.len()));
        if sizes.sum::<usize>() > self.limits.max_header {
            return Ok(last_answer(HEADER_TOO_LARGE.response(None)));
        }
        if let Some((gate, refused)) = &self.gate
            && let Err(denied) = gate.authenticate(&mut request)
        {
            refused.count();
            return Ok(denied_response(denied, request.method()));
        }
        Ok(self.routes.answer(request).await)
    }
}
