//! The layers around each request: compression where it is wanted, and CORS.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response, header};
use hyper::body::Incoming;
use tower_http::CompressionLevel;
use tower_http::compression::predicate::Predicate;
use tower_http::compression::{Compression, CompressionBody};
use tower_layer::Layer as _;
use tower_service::Service;

use super::handler::Rest;

/// A function as a service.
#[derive(Clone)]
struct ServiceFn<F>(F);

impl<F, R> Service<Request<Incoming>> for ServiceFn<F>
where
    F: FnMut(Request<Incoming>) -> R,
    R: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = R;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> R {
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
        let mut service = Compression::new(ServiceFn(move |request| {
            let own = own.clone();
            async move { Ok(own.answer(request).await) }
        }))
        // A response is compressed while its client waits.
        .quality(CompressionLevel::Fastest)
        .compress_when(LargerThan(above as u64));
        let Ok(response): Result<Response<CompressionBody<Body>>, _> = service.call(request).await;
        response.map(Body::new)
    }
}
