//! A client's stream: TCP, TLS over TCP, a unix socket, a buffer of this process, or a simulation.
//!
//! An end of stream without TLS's `close_notify` counts as a normal end. The protocols inside mark
//! the end of each request themselves. An attacker that cuts a connection therefore changes
//! nothing: only complete requests are executed.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::tcp;

/// A stream of a simulated network.
pub trait SimulatedStream: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug> SimulatedStream for S {}

/// A client's stream.
#[derive(Debug)]
pub enum ClientStream {
    /// TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
    /// A buffer, for a client in this process. Nothing is read from it.
    Local(BytesMut),
    /// The client of a simulation.
    Simulated(Box<dyn SimulatedStream>),
}

/// A stream that is registered with no runtime, so it can move to another thread.
pub(crate) enum DetachedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl ClientStream {
    /// Returns the address of the client; `None` without one, as on a unix socket.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Tls(stream) => stream.get_ref().0.peer_addr().ok(),
            Self::Unix(_) | Self::Local(_) | Self::Simulated(_) => None,
        }
    }

    /// Whether the peer is on this machine: over loopback or a unix socket.
    pub(crate) fn is_local_peer(&self) -> bool {
        let stream = match self {
            Self::Unix(_) => return true,
            Self::Local(_) | Self::Simulated(_) => return false,
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback())
    }

    /// Deregisters the stream from its runtime.
    ///
    /// # Errors
    /// `Unsupported` for a stream that never moves: of TLS, a buffer or a simulation. Otherwise the
    /// error of the deregistration.
    pub(crate) fn detach(self) -> io::Result<DetachedStream> {
        Ok(match self {
            Self::Tcp(stream) => DetachedStream::Tcp(stream.into_std()?),
            // A TLS stream is created on the thread where it stays.
            Self::Tls(_) | Self::Local(_) | Self::Simulated(_) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Self::Unix(stream) => DetachedStream::Unix(stream.into_std()?),
        })
    }
}

impl DetachedStream {
    /// Registers the stream with the runtime of this thread.
    ///
    /// # Errors
    /// The error of the registration, or of the TCP options of a closed socket.
    pub(crate) fn attach(self) -> io::Result<ClientStream> {
        Ok(match self {
            Self::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                tcp::configure_client(&stream)?;
                ClientStream::Tcp(stream)
            }
            Self::Unix(stream) => ClientStream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

impl AsyncRead for ClientStream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buffer) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                read => read,
            },
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Local(_) => Poll::Pending,
            Self::Simulated(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for ClientStream {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Local(buffer) => {
                buffer.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            Self::Simulated(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Local(buffer) => {
                let before = buffer.len();
                for slice in slices {
                    buffer.extend_from_slice(slice);
                }
                Poll::Ready(Ok(buffer.len() - before))
            }
            Self::Simulated(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Local(_) => Poll::Ready(Ok(())),
            Self::Simulated(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Local(_) => Poll::Ready(Ok(())),
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
