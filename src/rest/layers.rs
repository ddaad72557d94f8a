//! The layers around each request: compression where it is wanted, and CORS.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::task::consume_budget;
use tower_http::CompressionLevel;
use tower_http::compression::predicate::Predicate;
use tower_http::compression::{Compression, CompressionBody};
use tower_layer::Layer as _;
use tower_service::Service;

use super::handler::Rest;
use super::settings::Settings;

/// A function as a service.
#[derive(Clone)]
struct ServiceFn<F>(F);

impl<F, B, R, T> Service<Request<B>> for ServiceFn<F>
where
    F: FnMut(Request<B>) -> R,
    R: Future<Output = Result<T, Infallible>>,
{
    type Response = T;
    type Error = Infallible;
    type Future = R;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> R {
        (self.0)(request)
    }
}

/// Compresses responses of more than this number of bytes, except streams of events: those would
/// wait for more bytes.
#[derive(Debug, Clone, Copy)]
struct LargerThan(u64);

impl Predicate for LargerThan {
    fn should_compress<B: http_body::Body>(&self, response: &Response<B>) -> bool {
        response.body().size_hint().exact().is_some_and(|size| size > self.0)
    }
}

/// Adds the compression of responses of more than `above` bytes, for clients that can read that.
fn compression<S>(service: S, above: usize) -> Compression<S, LargerThan> {
    Compression::new(service)
        // A response is compressed while its client waits.
        .quality(CompressionLevel::Fastest)
        .compress_when(LargerThan(above as u64))
}

/// The compression that a request accepts.
pub(super) struct Accepted {
    /// The values of `Accept-Encoding`.
    encodings: Vec<HeaderValue>,
    above: usize,
}

impl Accepted {
    /// The compression that a request with these values of `Accept-Encoding` accepts.
    pub(super) fn new<'a>(encodings: impl Iterator<Item = &'a [u8]>, settings: &Settings) -> Self {
        let above = settings.compress_above.0;
        let encodings = encodings.filter(|_| above > 0);
        let encodings = encodings.filter_map(|value| HeaderValue::from_bytes(value).ok());
        Self { encodings: encodings.collect(), above }
    }

    /// Whether a response of this length may have to be compressed.
    pub(super) fn compresses(&self, length: usize) -> bool {
        !self.encodings.is_empty() && length > self.above
    }

    /// Returns a response as the client accepts it. Its length is known, unlike that of a response
    /// that is compressed while it is sent.
    pub(super) async fn compressed(self, response: Response<Bytes>) -> Response<Bytes> {
        let plain = response.clone();
        let mut request = Request::new(());
        for value in self.encodings {
            request.headers_mut().append(header::ACCEPT_ENCODING, value);
        }
        let own = ServiceFn(move |_: Request<()>| {
            std::future::ready(Ok(response.clone().map(Full::new)))
        });
        let Ok(compressed) = compression(own, self.above).call(request).await;
        let (head, mut body) = compressed.into_parts();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame.map(|frame| frame.into_data().unwrap_or_default()) else {
                return plain;
            };
            whole.extend_from_slice(&frame);
            // Others have their turn while a large response is compressed.
            consume_budget().await;
        }
        Response::from_parts(head, whole.freeze())
    }
}

impl Rest {
    /// Returns the response to a request, within all layers.
    pub(super) async fn layered(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(cors) = self.cors() else { return self.compressed(request).await };
        let own = self.clone();
        let mut service = cors.layer(ServiceFn(move |request| {
            let own = own.clone();
            async move { Ok(own.compressed(request).await) }
        }));
        let Ok(response) = service.call(request).await;
        response
    }

    /// Returns the response to a request, compressed if its client can read that and it is large.
    async fn compressed(&self, request: Request<Incoming>) -> Response<Body> {
        let above = self.settings().compress_above.0;
        if above == 0 || !request.headers().contains_key(header::ACCEPT_ENCODING) {
            return self.answer(request).await;
        }
        let own = self.clone();
        let answer = ServiceFn(move |request| {
            let own = own.clone();
            async move { Ok(own.answer(request).await) }
        });
        let mut service = compression(answer, above);
        let Ok(response): Result<Response<CompressionBody<Body>>, _> = service.call(request).await;
        response.map(Body::new)
    }
}
