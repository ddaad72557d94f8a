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
    pub(super) async fn serve(self: Box<Self>) {
        let Self { stream, tls, service, drain, guards: _guards } = *self;
        // An error here means that the socket is closed already.
        let Ok(stream) = stream.attach() else { return };
        let stream = match tls {
            // The state of a handshake is large. Boxed, it takes no room after the handshake, and
            // none without TLS.
            Some(tls) => Box::pin(handshake(stream, tls, drain.clone())).await,
            None => Some(stream),
        };
        if let Some(stream) = stream {
            service.serve(stream, drain).await;
        }
    }
}

async fn handshake(
    stream: ClientStream,
    (tls, refused): (Tls, TlsRefusals),
    drain: Drain,
) -> Option<ClientStream> {
    match stream {
        ClientStream::Tcp(stream) => tls.accept(stream, drain, &refused).await,
        other => Some(other),
    }
}
