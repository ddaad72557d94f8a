//! The fast path of HTTP/1.1: simple requests, one after another, served without hyper.
//!
//! The general processing of a request in hyper takes several times as long as a cache hit. Simple
//! requests are therefore processed here. The rule: a request is processed here only if every part
//! of it is understood. The first other request hands the connection to hyper, with all unprocessed
//! bytes. Only hyper's side rejects requests that are not simple; otherwise the two paths could
//! differ.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::{Instant, timeout};

use super::observer;
use super::request_head::{HeadParser, ParsedHead, SimpleMethod, SimpleRequest, has_empty_line};
use super::service::{
    AwaitedWriter, FastPathResult, HTTP2_PREFACE, Handler, HttpService, LONGEST_TARGET,
    ResponseWriter,
};
use super::timers::ConnectionTimers;
use crate::net::{ClientStream, LingeringClose, WriteBuf};
use crate::sync::CountGuard;

/// The `Date` header of responses (RFC 9110, section 6.6.1) and the empty line that ends their
/// heads.
struct DateHeader {
    text: String,
    /// The end of the second for which `text` is valid.
    until: Instant,
}

impl DateHeader {
    fn new(now: Instant) -> Self {
        Self { text: String::new(), until: now }
    }

    fn at(&mut self, now: Instant) -> &[u8] {
        if now >= self.until {
            let time = SystemTime::now();
            let past =
                time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
            self.text = format!("date: {}\r\n\r\n", httpdate::fmt_http_date(time));
            self.until =
                now + Duration::from_secs(1).saturating_sub(Duration::from_nanos(past.into()));
        }
        self.text.as_bytes()
    }
}

/// A connection that has received only simple requests so far.
pub(super) struct FastPath<R> {
    stream: ClientStream,
    /// The address of the client, if requests are logged.
    client: Option<SocketAddr>,
    http: HttpService<R>,
    timers: Arc<ConnectionTimers>,
    input: BytesMut,
    /// The free space for each read, in bytes.
    read_chunk: usize,
    parser: HeadParser,
    /// The number of input bytes that are known to hold no complete head.
    scanned: usize,
    /// Whether no request has been processed yet.
    is_first: bool,
    output: WriteBuf,
    /// The time of the last read, or of the last awaited response.
    now: Instant,
    date: DateHeader,
    /// Whether the output ends with the last response.
    is_last_written: bool,
    close: LingeringClose,
}

/// The continuation of a connection after its last simple request.
pub(super) enum Handover {
    /// The connection is closed.
    Closed,
    /// The connection continues in hyper, which first receives the unprocessed input.
    Http1,
    /// The same for HTTP/2; the connection began with these bytes.
    Http2,
}

/// The parts of a connection that continues in hyper.
pub(super) struct Parts<R> {
    pub(super) stream: ClientStream,
    /// The input that is not processed.
    pub(super) unread: Bytes,
    pub(super) client: Option<SocketAddr>,
    pub(super) http: HttpService<R>,
}

/// The next step after all pending responses are written.
enum Next {
    ParseMore,
    Read,
    /// Read until the input has this length: the body of the next request ends there.
    ReadBody(usize),
    Wait(PendingResponse),
    HandOver,
    Close,
}

/// A response that is not ready yet.
struct PendingResponse {
    response: Pin<Box<dyn Future<Output = AwaitedWriter> + Send>>,
    wants_body: bool,
    pending: Option<Box<observer::Pending>>,
}

/// Returns the method and the path of a request.
fn request_line(request: &SimpleRequest<'_>) -> (String, String) {
    let method = match request.method() {
        SimpleMethod::Get => "GET",
        SimpleMethod::Head => "HEAD",
        SimpleMethod::Post => "POST",
    };
    (method.to_owned(), String::from_utf8_lossy(request.path()).into_owned())
}

/// The free space for each read, in bytes, until a read fills it. The first request after a silence
/// needs memory that the allocator may have given back, and each page of it costs a page fault.
const SMALL_CHUNK: usize = 1 << 10;
/// The free space for each read behind one that filled it.
const READ_CHUNK: usize = 8 << 10;
/// The longest request with an awaited body, in bytes. hyper reads a longer one in pieces.
const LONGEST_AWAITED: usize = 64 << 10;
/// The time for which the rest of a body is awaited. Clients send it at once, or in a second
/// packet. A later one has hyper's timeouts.
const BODY_WAIT: Duration = Duration::from_millis(100);
/// The number of pending response bytes that are written before more requests are processed.
const WRITE_HIGH_WATER: usize = 64 << 10;

impl<R: Handler> FastPath<R> {
    pub(super) fn new(
        stream: ClientStream,
        client: Option<SocketAddr>,
        http: HttpService<R>,
        timers: Arc<ConnectionTimers>,
        close: LingeringClose,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            client,
            http,
            timers,
            input: BytesMut::new(),
            read_chunk: SMALL_CHUNK,
            parser: HeadParser::default(),
            scanned: 0,
            is_first: true,
            output: WriteBuf::default(),
            now,
            date: DateHeader::new(now),
            is_last_written: false,
            close,
        }
    }

    /// Serves simple requests until another kind arrives or the connection ends.
    pub(super) async fn run(&mut self) -> Handover {
        loop {
            let next = self.parse_requests();
            if self.write().await.is_err() {
                return Handover::Closed;
            }
            match next {
                Next::ParseMore => {}
                Next::Read => match self.read().await {
                    Ok(1..) => {}
                    // hyper decides about an incomplete head.
                    Ok(0) if !self.input.is_empty() => return self.hand_over(),
                    Ok(0) => return self.close().await,
                    Err(_) => return Handover::Closed,
                },
                // Boxed, it does not enlarge the future of each request.
                Next::ReadBody(length) => match Box::pin(self.read_body(length)).await {
                    Ok(true) => {}
                    Ok(false) => return self.hand_over(),
                    Err(_) => return Handover::Closed,
                },
                Next::Wait(pending) => self.await_response(pending).await,
                Next::HandOver => return self.hand_over(),
                Next::Close => return self.close().await,
            }
        }
    }

    pub(super) fn into_parts(self) -> Parts<R> {
        let Self { stream, input, client, http, .. } = self;
        Parts { stream, unread: input.freeze(), client, http }
    }

    async fn close(&mut self) -> Handover {
        _ = poll_fn(|cx| self.close.poll(Pin::new(&mut self.stream), cx)).await;
        Handover::Closed
    }

    /// Processes the received requests that are simple and can be answered at once.
    fn parse_requests(&mut self) -> Next {
        while !self.input.is_empty() {
            if self.timers.should_close() {
                return Next::HandOver;
            }
            if self.output.len() >= WRITE_HIGH_WATER {
                return Next::ParseMore;
            }
            if self.scanned > 0 && !has_empty_line(&self.input, self.scanned) {
                return self.need_more();
            }
            let (request, length) = match self.parser.parse(&self.input) {
                ParsedHead::Simple(request, length) => (request, length),
                ParsedHead::LacksBody(request, length) => {
                    let is_awaited = length <= LONGEST_AWAITED
                        && self.http.admits(&request)
                        && self.http.handler.awaits_body(&request, self.now);
                    return if is_awaited { Next::ReadBody(length) } else { Next::HandOver };
                }
                ParsedHead::Incomplete => return self.need_more(),
                ParsedHead::Complex => {
                    return if self.is_first && self.may_be_preface() {
                        Next::Read
                    } else {
                        Next::HandOver
                    };
                }
            };
            let wants_body = request.wants_body();
            let pending = self.http.observer.begin(self.client, || request_line(&request));
            let date = self.date.at(self.now);
            let is_last = self.timers.is_draining() && length == self.input.len();
            let answer = ResponseWriter { output: &mut self.output, date, wants_body, is_last };
            let taken = if self.http.admits(&request) {
                self.http.handler.handle_simple(&request, self.now, answer)
            } else {
                FastPathResult::Fallback
            };
            if matches!(taken, FastPathResult::Fallback) {
                return Next::HandOver;
            }
            (self.is_first, self.scanned) = (false, 0);
            self.timers.activity.mark_consumed();
            if length < self.input.len() {
                self.input.advance(length);
                self.timers.activity.mark_unconsumed(self.now);
            } else {
                // Clearing makes the next read reuse the same memory.
                self.input.clear();
            }
            match taken {
                FastPathResult::Pending(response) => {
                    return Next::Wait(PendingResponse { response, wants_body, pending });
                }
                FastPathResult::Done(status) => self.http.observer.finish(status, pending),
                FastPathResult::Fallback => {}
            }
            self.is_last_written = is_last;
        }
        if self.is_last_written { Next::Close } else { Next::Read }
    }

    /// Waits for the rest of a head. hyper rejects a head above the size limit.
    fn need_more(&mut self) -> Next {
        self.scanned = self.input.len();
        let most = self.http.limits.max_header.saturating_add(LONGEST_TARGET);
        if self.scanned > most { Next::HandOver } else { Next::Read }
    }

    /// Whether the input may be the beginning of the HTTP/2 preface.
    fn may_be_preface(&self) -> bool {
        self.input.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&self.input)
    }

    async fn write(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let mut has_waited = false;
        poll_fn(|cx| {
            let before = self.output.len();
            let written = self.output.poll_write(Pin::new(&mut self.stream), cx);
            if written.is_pending() || has_waited {
                has_waited = true;
                self.timers.activity.set_write_blocked(written.is_pending());
            }
            // A write that completes at once needs no timestamp. Its request, or the reply from
            // Redis, was recorded at the same time.
            if has_waited && self.output.len() < before {
                self.timers.activity.record_written(Instant::now());
            }
            ready!(written)?;
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
    }

    /// Returns the number of bytes read. Zero means that the input has ended or that the connection
    /// should close.
    async fn read(&mut self) -> io::Result<usize> {
        let read = poll_fn(|cx| {
            if self.timers.should_close() {
                return Poll::Ready(Ok(0));
            }
            if self.input.capacity() - self.input.len() < self.read_chunk / 2 {
                self.input.reserve(self.read_chunk);
            }
            let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
            if read.is_pending() && self.timers.is_silent() && self.input.is_empty() {
                // The next request allocates them again. Everything is written.
                self.input = BytesMut::new();
                self.output = WriteBuf::default();
                self.read_chunk = SMALL_CHUNK;
            }
            read
        });
        let count = read.await?;
        if count > 0 {
            if self.input.len() == self.input.capacity() {
                // The client sends more than fits.
                self.read_chunk = READ_CHUNK;
            }
            self.timers.end_silence();
            self.now = Instant::now();
            self.timers.activity.record_read(self.now);
        }
        Ok(count)
    }

    /// Reads the rest of a body, which ends at `length`. Returns whether it came soon. Meanwhile
    /// the request is in flight, as it is while hyper reads a body.
    async fn read_body(&mut self, length: usize) -> io::Result<bool> {
        let _in_flight = CountGuard::new(&Arc::clone(&self.timers).in_flight);
        self.timers.activity.mark_consumed();
        self.input.reserve(length - self.input.len());
        let whole = async {
            while self.input.len() < length {
                if self.read().await? == 0 {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        timeout(BODY_WAIT, whole).await.unwrap_or(Ok(false))
    }

    async fn await_response(
        &mut self,
        PendingResponse { response, wants_body, pending }: PendingResponse,
    ) {
        let in_flight = CountGuard::new(&self.timers.in_flight);
        let write = response.await;
        drop(in_flight);
        self.now = Instant::now();
        self.timers.activity.record_written(self.now);
        self.is_last_written = self.timers.is_draining() && self.input.is_empty();
        let (date, is_last) = (self.date.at(self.now), self.is_last_written);
        let status = write(ResponseWriter { output: &mut self.output, date, wants_body, is_last });
        self.http.observer.finish(status, pending);
    }

    fn hand_over(&self) -> Handover {
        let is_http2 = self.is_first && self.input.starts_with(HTTP2_PREFACE);
        if is_http2 { Handover::Http2 } else { Handover::Http1 }
    }
}
