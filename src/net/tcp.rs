//! The TCP options of every connection of the daemon, to clients and to Redis.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// The interval of Redis's own keepalive probes to its clients (`tcp-keepalive`).
const KEEPALIVE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(100);

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
