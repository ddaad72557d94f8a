//! A plain HTTP/1.1 client, blocking and exact to the byte.
//!
//! Model: one keep-alive connection. It sends the bytes of the test and reads a response to its end
//! and not beyond. A response to HEAD is recognised only for one request at a time, so no pipelined
//! request may be HEAD.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);

/// Sends one GET on a new connection.
pub(crate) fn get(address: SocketAddr, path: impl AsRef<[u8]>) -> Response {
    Client::connect(address).get(path)
}

/// Returns the path of a key, with every byte encoded that may need it.
pub(crate) fn key_path(key: &[u8]) -> String {
    let mut path = String::from("/keys/");
    for &byte in key {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").expect("a string takes all");
        }
    }
    path
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The headers in the order received, each byte of a value as the character of that number.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns the first header of that name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A connection to the proxy. Its reads panic after 30 s unless configured otherwise.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    host: String,
    awaits_head: bool,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, BOUND).expect("an HTTP connection");
        stream.set_nodelay(true).expect("a connection to set up");
        stream.set_write_timeout(Some(BOUND)).expect("a connection to set up");
        let client =
            Self { stream: BufReader::new(stream), host: address.to_string(), awaits_head: false };
        client.read_timeout(BOUND);
        client
    }

    pub(crate) fn read_timeout(&self, limit: Duration) {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(limit)).expect("a connection to set up");
    }

    pub(crate) fn get(&mut self, path: impl AsRef<[u8]>) -> Response {
        self.request("GET", path, &[])
    }

    pub(crate) fn head(&mut self, path: impl AsRef<[u8]>) -> Response {
        self.request("HEAD", path, &[])
    }

    /// Sends a request without a body, with a Host header if none is given.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
    ) -> Response {
        let mut request = format!("{method} ").into_bytes();
        request.extend_from_slice(path.as_ref());
        request.extend_from_slice(b" HTTP/1.1\r\n");
        let names_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = [("Host", self.host.as_str())];
        let host = if names_host { &host[..0] } else { &host[..] };
        for (name, value) in host.iter().chain(headers) {
            request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        self.send_raw(&request);
        self.read_response()
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.awaits_head |= bytes.starts_with(b"HEAD ");
        match self.stream.get_mut().write_all(bytes) {
            // A server may reject a request before its end; its response is still to be read.
            Err(error)
                if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {}
            written => written.expect("the proxy takes the bytes"),
        }
    }

    #[track_caller]
    pub(crate) fn read_response(&mut self) -> Response {
        match self.try_read_response() {
            Ok(response) => response,
            Err(error) => panic!("no response: {error}"),
        }
    }

    /// Reads a response if there is one.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` on a closed connection, `WouldBlock` on a silent one.
    pub(crate) fn try_read_response(&mut self) -> io::Result<Response> {
        let status = self.read_status()?;
        let mut response = Response { status, headers: self.read_headers()?, body: Vec::new() };
        let interim = status < 200;
        if !interim && !std::mem::take(&mut self.awaits_head) && ![204, 304].contains(&status) {
            response.body = self.read_body(&response)?;
        }
        Ok(response)
    }

    fn read_status(&mut self) -> io::Result<u16> {
        let line = self.read_line()?;
        let mut words = line.split(' ');
        let version = words.next().filter(|word| word.starts_with("HTTP/1."));
        let status = version.and(words.next()).and_then(|word| word.parse().ok());
        status.ok_or_else(|| invalid(&line))
    }

    fn read_headers(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn read_body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        let encoding = response.header("transfer-encoding").unwrap_or_default();
        if encoding.eq_ignore_ascii_case("chunked") {
            return self.read_chunks();
        }
        if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| invalid(length))?;
            return self.read_exactly(length);
        }
        let mut body = Vec::new();
        self.stream.read_to_end(&mut body)?;
        Ok(body)
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| invalid(&line))?;
            if size == 0 {
                // Trailers have the form of headers and end like them.
                self.read_headers()?;
                return Ok(body);
            }
            body.extend(self.read_exactly(size)?);
            let end = self.read_line()?;
            if !end.is_empty() {
                return Err(invalid(&end));
            }
        }
    }

    fn read_exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a line; returns it without its end.
    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(content) => Ok(content.iter().map(|&byte| char::from(byte)).collect()),
            None if line.ends_with(b"\n") => Err(invalid(&String::from_utf8_lossy(&line))),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not HTTP: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Shutdown, TcpListener};

    use super::*;

    /// Returns a client that receives exactly these bytes and then the end, and the other side,
    /// which takes the bytes of the client.
    fn client_of(bytes: &[u8]) -> (Client, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = Client::connect(listener.local_addr().unwrap());
        let mut server = listener.accept().unwrap().0;
        server.write_all(bytes).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        (client, server)
    }

    #[test]
    fn responses_end_at_their_length() {
        let (mut client, _server) = client_of(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
              2;x=y\r\nab\r\n1\r\n\n\r\n0\r\nTrailer: t\r\n\r\n\
              HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\nContent-Length: 9\r\n\r\n\
              HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\ncd\
              HTTP/1.1 200 OK\r\n\r\nto the end",
        );
        assert_eq!(client.read_response().body, b"ab\n");
        assert_eq!(client.read_response().header("etag"), Some("\"e\""));
        assert_eq!(client.read_response().body, b"cd");
        assert_eq!(client.read_response().body, b"to the end");
        let closed = client.try_read_response().unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn head_response_has_no_body() {
        let (mut client, _server) = client_of(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\
              HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        );
        client.send_raw(b"HEAD / HTTP/1.1\r\n\r\n");
        assert_eq!(client.read_response().body, b"");
        assert_eq!(client.read_response().body, b"x");
    }

    #[test]
    fn key_of_any_bytes_has_a_path() {
        assert_eq!(key_path(b"a-Z_0.~"), "/keys/a-Z_0.~");
        assert_eq!(key_path(b"a/b %\xff"), "/keys/a%2Fb%20%25%FF");
    }
}
