//! A connection on its way from who accepted it to who serves it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{Drain, Service, Tls};
use crate::metrics::{ConnectionGuard, RejectCounter};
use crate::net::{ClientStream, DetachedStream};

/// A connection on its way to its worker.
pub(super) struct Accepted {
    pub(super) stream: DetachedStream,
    /// Within TLS, if so, and the count of those with whom it was not agreed on.
    pub(super) tls: Option<(Tls, RejectCounter)>,
    pub(super) service: Arc<dyn Service>,
    pub(super) drain: Drain,
    pub(super) guards: ConnectionGuards,
}

/// What a connection takes up until it is dropped.
pub(super) struct ConnectionGuards {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _open: ConnectionGuard,
}

impl Accepted {
    /// Serves it, where it is to stay.
    pub(super) async fn serve(self) {
        let Self { stream, tls, service, drain, guards: _guards } = self;
        // A socket that cannot be moved is gone already.
        let Ok(stream) = stream.attach() else { return };
        let stream = match (stream, tls) {
            (ClientStream::Tcp(stream), Some((tls, refused))) => {
                tls.accept(stream, drain.clone(), &refused).await
            }
            (stream, _) => Some(stream),
        };
        if let Some(stream) = stream {
            service.serve(stream, drain).await;
        }
    }
}
