//! An accepted connection on its way from the listener to its worker.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::refusals::TlsRefusals;
use super::{Drain, Service, Tls};
use crate::metrics::ConnectionGuard;
use crate::net::{ClientStream, DetachedStream};

/// An accepted connection that its worker has yet to serve.
pub(super) struct Accepted {
    pub(super) stream: DetachedStream,
    /// TLS if the listener has it, with the records of failed handshakes.
    pub(super) tls: Option<(Tls, TlsRefusals)>,
    pub(super) service: Arc<dyn Service>,
    pub(super) drain: Drain,
    pub(super) guards: ConnectionGuards,
}

/// The connection's permit and its place in the count of open connections, both held until it is
/// dropped.
pub(super) struct ConnectionGuards {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _open: ConnectionGuard,
}

impl Accepted {
    /// Serves the connection. Runs on the worker, where the connection stays (invariant A2).
    pub(super) async fn serve(self) {
        let Self { stream, tls, service, drain, guards: _guards } = self;
        // An error here means that the socket is closed already.
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
