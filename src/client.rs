//! A client of a running proxy's HTTP listener, for the commands that query one.
//!
//! Model: one GET on a connection of its own, over TCP, TLS or a unix socket, with one deadline for
//! all of it. The rule that must not be broken: a token is sent over TLS only to a peer whose
//! certificate was verified.

mod trust;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::StreamOwned;

pub use self::trust::Trust;
use crate::settings::{Listen, Secret};

/// The largest response that is read, in bytes. Every response is shorter.
const MAX_RESPONSE: usize = 4 << 20;
/// The time limit of one request. It is long enough for a busy machine, and shorter than the usual
/// time limit of a container's health check.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// The most headers of a response.
const MAX_HEADERS: usize = 64;

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`
    Tcp(String),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The listener of a proxy, and the way to it.
#[derive(Debug, Clone)]
pub struct Target {
    address: Address,
    tls: Option<Trust>,
    /// It is read for each request, because tokens are exchanged while a command runs.
    token_file: Option<PathBuf>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Target {
    /// The listener at `listen`. `tls` verifies its certificate; without it the listener is
    /// contacted in clear text.
    pub fn of_listener(listen: &Listen, tls: Option<Trust>) -> Self {
        let address = match listen.unix_path() {
            Some(path) => Address::Unix(path.to_owned()),
            None => Address::Tcp(listen.to_string()),
        };
        Self { address, tls, token_file: None }
    }

    /// Parses `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`. `trust`
    /// verifies certificates.
    ///
    /// # Errors
    /// A text with what was found and what was expected.
    pub fn parse(text: &str, trust: Trust) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let authority = rest.trim_end_matches('/');
        let is_address = authority
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            && !authority.contains('/');
        let (address, tls) = match scheme {
            "http" if is_address => (Address::Tcp(authority.to_owned()), None),
            "https" if is_address => (Address::Tcp(authority.to_owned()), Some(trust)),
            "unix" if rest.starts_with('/') => (Address::Unix(rest.into()), None),
            _ => {
                return Err(format!(
                    "found {text:?}, expected host:port, https://host:port or unix:///path"
                ));
            }
        };
        Ok(Self { address, tls, token_file: None })
    }

    /// The same listener, to which the first token of a file is sent.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be read or has no token.
    pub fn with_token_file(self, file: &Path) -> io::Result<Self> {
        read_token(file)?;
        Ok(Self { token_file: Some(file.to_owned()), ..self })
    }

    /// The address for people.
    pub fn shown(&self) -> String {
        match &self.address {
            Address::Tcp(address) if self.tls.is_some() => format!("https://{address}"),
            Address::Tcp(address) => address.clone(),
            Address::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// Sends a GET of `path` and reads the response, within `timeout`.
    ///
    /// # Errors
    /// [`io::Error`] if there is no connection or no whole response in time, if the certificate is
    /// not trusted, or if the response is not HTTP (`InvalidData`).
    pub fn get(&self, path: &str, timeout: Duration) -> io::Result<Response> {
        let until = Instant::now() + timeout;
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let socket = match &self.address {
            Address::Tcp(address) => Socket::Tcp(connect(address, timeout)?),
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
        };
        let socket = DeadlineStream { until, socket };
        match &self.tls {
            None => self.exchange(socket, path, token.as_ref()),
            Some(trust) => {
                let stream = StreamOwned::new(trust.session(self.host())?, socket);
                self.exchange(stream, path, token.as_ref())
            }
        }
    }

    fn host(&self) -> &str {
        match &self.address {
            Address::Tcp(address) => address.rsplit_once(':').map_or("", |(host, _)| host),
            Address::Unix(_) => "localhost",
        }
    }

    fn exchange(
        &self,
        mut stream: impl Read + Write,
        path: &str,
        token: Option<&Secret>,
    ) -> io::Result<Response> {
        let host = match &self.address {
            Address::Tcp(address) => address,
            Address::Unix(_) => "localhost",
        };
        let token = token.map_or_else(String::new, |token| {
            format!("Authorization: Bearer {}\r\n", token.reveal())
        });
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{token}\r\n");
        // In one piece. Otherwise each part of it would be a packet of its own.
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        read_response(&mut stream)
    }
}

/// Reads the first token of a file. Rights may follow it in its line.
fn read_token(file: &Path) -> io::Result<Secret> {
    let wrong =
        |kind, problem: String| io::Error::new(kind, format!("{}: {problem}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| wrong(error.kind(), error.to_string()))?;
    let mut lines = text.lines().map(str::trim);
    let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let token = token.and_then(|line| line.split_whitespace().next());
    let token =
        token.ok_or_else(|| wrong(ErrorKind::InvalidData, "found no token in it".into()))?;
    Ok(token.to_owned().into())
}

fn read_response(stream: &mut impl Read) -> io::Result<Response> {
    let (mut received, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let head = parse_head(&received)?;
        if let Some(Head { status, length: Some(length), from }) = head
            && received.len() >= from.saturating_add(length)
        {
            return Ok(Response { status, body: text(&received[from..from + length]) });
        }
        if received.len() > MAX_RESPONSE {
            return Err(io::Error::new(ErrorKind::InvalidData, "the response is too large"));
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return match head {
                Some(Head { status, length: None, from }) => {
                    Ok(Response { status, body: text(&received[from..]) })
                }
                _ => Err(ErrorKind::UnexpectedEof.into()),
            };
        }
        received.extend_from_slice(&chunk[..read]);
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}

/// The head of a response.
struct Head {
    status: u16,
    /// The length of the body; `None`: it ends with the connection.
    length: Option<usize>,
    /// The start of the body.
    from: usize,
}

/// Parses the head; `None` if it is incomplete.
fn parse_head(received: &[u8]) -> io::Result<Option<Head>> {
    let invalid = || io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP");
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(from) = response.parse(received).map_err(|_| invalid())? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    if value("transfer-encoding").is_some() {
        let problem = "found a chunked response, expected one with its length";
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    let length = value("content-length").map(|length| length.parse().map_err(|_| invalid()));
    let status = response.code.ok_or_else(invalid)?;
    Ok(Some(Head { status, length: length.transpose()?, from }))
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket with one deadline for all reads and writes together. A time limit for each read alone
/// would never end a connection that sends byte by byte.
struct DeadlineStream {
    until: Instant,
    socket: Socket,
}

impl DeadlineStream {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            Err(timed_out(ErrorKind::TimedOut.into()))
        } else {
            Ok(Some(remaining))
        }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let remaining = self.remaining()?;
        let read = match &mut self.socket {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(remaining)?;
                stream.read(bytes)
            }
            Socket::Unix(stream) => {
                stream.set_read_timeout(remaining)?;
                stream.read(bytes)
            }
        };
        read.map_err(timed_out)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let remaining = self.remaining()?;
        let written = match &mut self.socket {
            Socket::Tcp(stream) => {
                stream.set_write_timeout(remaining)?;
                stream.write(bytes)
            }
            Socket::Unix(stream) => {
                stream.set_write_timeout(remaining)?;
                stream.write(bytes)
            }
        };
        written.map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names the end of the time limit, which the system calls "Resource temporarily unavailable".
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, "no whole response in time")
        }
        _ => error,
    }
}

fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&reachable(address), timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the loopback address for a listener on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_has_a_scheme_or_none() {
        for (text, shown) in [
            ("127.0.0.1:9090", "127.0.0.1:9090"),
            ("http://[::1]:9090/", "[::1]:9090"),
            ("https://proxy.example:8443", "https://proxy.example:8443"),
            ("unix:///run/admin.sock", "unix:///run/admin.sock"),
        ] {
            assert_eq!(Target::parse(text, Trust::Any).unwrap().shown(), shown);
        }
        for text in ["", "9090", "host", "host:", ":9090", "host:x", "ftp://a:1", "unix:x", "a:1/b"]
        {
            assert!(Target::parse(text, Trust::Any).is_err(), "{text}");
        }
    }

    #[test]
    fn silent_peer_is_named_as_such() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Target::parse(&address, Trust::Any).unwrap();
        let problem = target.get("/", Duration::from_millis(50)).unwrap_err();
        assert_eq!(problem.kind(), ErrorKind::TimedOut);
        assert_eq!(problem.to_string(), "no whole response in time");
    }

    #[test]
    fn token_is_read_for_each_request() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Returns the head of each request as its body.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let length = head.len();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").unwrap();
                stream.write_all(&head).unwrap();
            }
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::parse(&address, Trust::Any).unwrap();
        let problem = target.clone().with_token_file(file.path()).unwrap_err();
        assert!(problem.to_string().contains("found no token in it"), "{problem}");
        fs::write(file.path(), "# comment\n first purge\nother\n").unwrap();
        let target = target.with_token_file(file.path()).unwrap();
        let head = || target.get("/", TIMEOUT).unwrap().body;
        assert!(head().ends_with("Authorization: Bearer first"), "{}", head());
        fs::write(file.path(), "second\n").unwrap();
        assert!(head().ends_with("Authorization: Bearer second"), "{}", head());
        fs::write(file.path(), "").unwrap();
        assert!(target.get("/", TIMEOUT).is_err());
    }

    #[test]
    fn response_ends_at_its_length_or_with_the_connection() {
        let read = |mut received: &[u8]| {
            let response = read_response(&mut received)?;
            io::Result::Ok((response.status, response.body))
        };
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}rest";
        assert_eq!(read(whole.as_bytes()).unwrap(), (200, "{}".to_owned()));
        let open = "HTTP/1.1 503 no\r\n\r\n{}\n";
        assert_eq!(read(open.as_bytes()).unwrap(), (503, "{}".to_owned()));
        for (received, kind) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\ncontent", ErrorKind::UnexpectedEof),
            ("-ERR\r\n", ErrorKind::InvalidData),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0", ErrorKind::InvalidData),
        ] {
            assert_eq!(read(received.as_bytes()).unwrap_err().kind(), kind, "{received}");
        }
    }
}
