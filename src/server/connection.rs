//! A connection on its way from who accepted it to who serves it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::stream::Unattended;
use super::{Drain, Serve, Stream, Tls};
use crate::metrics::OpenConnection;

/// A connection on its way to its worker.
pub(super) struct Connection {
    pub(super) stream: Unattended,
    pub(super) tls: Option<Tls>,
    pub(super) service: Arc<dyn Serve>,
    pub(super) drain: Drain,
    pub(super) counted: Counted,
}

/// What a connection takes up until it is dropped.
pub(super) struct Counted {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _open: OpenConnection,
}

impl Connection {
    /// Serves it, where it is to stay.
    pub(super) async fn serve(self) {
        let Self { stream, tls, service, drain, counted: _counted } = self;
        // A socket that cannot be moved is gone already.
        let Ok(stream) = stream.attend() else { return };
        let stream = match (stream, tls) {
            (Stream::Tcp(stream), Some(tls)) => tls.accept(stream, drain.clone()).await,
            (stream, _) => Some(stream),
        };
        if let Some(stream) = stream {
            service.serve(stream, drain).await;
        }
    }
}
