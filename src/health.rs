//! `redis-proxy health`: asks a running daemon whether it is well, for containers and scripts.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use crate::server::Listen;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Can reads be answered?
    Ready,
    /// Does the process serve?
    Live,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Ready => "/readyz",
            Self::Live => "/livez",
        }
    }
}

/// Long enough for a busy machine, and shorter than whoever asks waits for us.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any of the answers has.
const LONGEST_ANSWER: usize = 64 << 10;

/// Asks the daemon that listens on `listen`; returns whether it says yes, and what it says.
///
/// # Errors
/// Nobody answers there, or not in HTTP.
pub fn ask(listen: &Listen, question: Question) -> io::Result<(bool, String)> {
    let until = Instant::now() + PATIENCE;
    let mut stream = connect(listen)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", question.path())?;
    let answer = read_until(stream, until)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let (Some(status), Some((_, body))) = (status, answer.split_once("\r\n\r\n")) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"));
    };
    Ok((status == "200", body.trim().to_owned()))
}

/// Reads to the end, and no longer than `until`, however slowly it comes.
fn read_until(mut stream: TcpStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while answer.len() < LONGEST_ANSWER {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
    Ok(answer)
}

fn connect(listen: &Listen) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in listen.to_string().to_socket_addrs()? {
        match TcpStream::connect_timeout(&reachable(address), PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Who listens on every address is asked on the machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
