//! The HTTP responses of the front end.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::response::{Strings, write_error, write_reply};
use crate::protocol::InvalidReply;

/// The form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json(Strings),
    /// The replies as Redis sends them.
    Resp2,
}

/// The body of a response, as far as it is known.
pub(super) struct Writer {
    format: Format,
    body: Vec<u8>,
    is_list: bool,
    count: usize,
    /// Whether the last reply is an error.
    is_error: bool,
}

/// The room of a body at first, in bytes. Without it the smallest body would grow several times.
const FIRST_ROOM: usize = 512;

impl Writer {
    /// A writer of one reply.
    pub(super) fn single(format: Format) -> Self {
        let body = Vec::with_capacity(FIRST_ROOM);
        Self { format, body, is_list: false, count: 0, is_error: false }
    }

    /// A writer of a list of replies.
    pub(super) fn list(format: Format) -> Self {
        Self { is_list: true, ..Self::single(format) }
    }

    /// Adds a reply of Redis.
    ///
    /// # Errors
    /// [`InvalidReply`] if the bytes are not one RESP2 reply.
    pub(super) fn add(&mut self, reply: &[u8]) -> Result<(), InvalidReply> {
        let Format::Json(strings) = self.format else {
            self.is_error = reply.first() == Some(&b'-');
            self.body.extend_from_slice(reply);
            return Ok(());
        };
        self.separate();
        self.is_error = write_reply(&mut self.body, reply, strings)?;
        Ok(())
    }

    /// Adds an error of the proxy's own.
    pub(super) fn add_error(&mut self, text: &str) {
        self.is_error = true;
        if self.format == Format::Resp2 {
            self.body.extend_from_slice(&resp2_error(text));
            return;
        }
        self.separate();
        write_error(&mut self.body, text.as_bytes());
    }

    fn separate(&mut self) {
        if self.is_list {
            self.body.push(if self.count == 0 { b'[' } else { b',' });
        }
        self.count += 1;
    }

    /// The number of bytes written.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// Returns the response. A single error is a client error; those of a list are not.
    pub(super) fn finish(mut self) -> Whole {
        let is_json = self.format != Format::Resp2;
        if self.is_list && is_json {
            self.body.push(b']');
        }
        let is_bad = self.is_error && !self.is_list;
        let status = if is_bad { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        Whole { status, is_json, body: self.body }
    }
}

/// A response with all replies.
pub(super) struct Whole {
    status: StatusCode,
    is_json: bool,
    pub(super) body: Vec<u8>,
}

impl Whole {
    /// Whether it is JSON, and no error.
    pub(super) fn is_plain(&self) -> bool {
        self.is_json && self.status == StatusCode::OK
    }

    /// Returns it with its headers.
    pub(super) fn into_response(self) -> Response<Bytes> {
        respond(self.status, if self.is_json { JSON } else { RESP }, self.body)
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const RESP: HeaderValue = HeaderValue::from_static("application/octet-stream");

fn resp2_error(text: &str) -> Vec<u8> {
    let line = text.replace(['\r', '\n'], " ");
    [b"-", line.as_bytes(), b"\r\n"].concat()
}

/// Returns a response with one error.
pub(super) fn error(status: StatusCode, text: &str) -> Response<Bytes> {
    let mut body = Vec::new();
    write_error(&mut body, text.as_bytes());
    respond(status, JSON, body)
}

fn respond(status: StatusCode, content_type: HeaderValue, body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    // A path style request is a GET, which a cache on the way could keep otherwise.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
