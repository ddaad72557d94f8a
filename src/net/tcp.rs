//! The TCP options of the daemon's connections, to clients and to Redis.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::SockRef;
use tokio::net::TcpStream;

/// The interval of Redis's own keepalive probes to its clients (`tcp-keepalive`).
const KEEPALIVE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(100);
/// The most bytes that are written to a client's socket and not sent, because the client's window
/// is full. Half of it costs a hit of 1 MiB a tenth more CPU.
const MAX_UNSENT: u32 = 256 << 10;

/// Sets `TCP_NODELAY`, so short replies leave at once, and keepalive, which detects a peer that
/// vanished silently.
///
/// # Errors
/// The error of the socket option that failed, because the socket is already closed.
pub(crate) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(())
}

/// Sets the options of a connection to a client: those of every connection, and a bound for what is
/// written and not sent.
///
/// Without the bound, the system accepts megabytes at once, and then nothing until the client has
/// taken a third of them. A slow reader would look like one that takes nothing. With it, writes
/// progress as the client does.
///
/// # Errors
/// The error of the socket option that failed, because the socket is already closed.
pub(super) fn configure_client(stream: &TcpStream) -> io::Result<()> {
    configure(stream)?;
    SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT)
}
