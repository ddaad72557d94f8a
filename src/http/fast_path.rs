//! HTTP/1.1 as the clients of a cache speak it: one plain request behind another.
//!
//! What hyper does for a request in general takes several times as long as a read from memory does, so the plain ones are
//! taken up here. The rule: nothing is taken up that is not understood whole. From the first request on that is of another
//! kind the connection is hyper's, with every byte that is not answered, and all verdicts on what is not plain are given
//! there and nowhere else.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use http::Response;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::request_head::{HeadParser, ParsedHead, has_empty_line};
use super::service::{
    FastPathResult, HTTP2_PREFACE, Handler, HttpService, LONGEST_TARGET, ResponseWriter,
};
use super::timers::ConnectionTimers;
use crate::net::{ClientStream, WriteBuf};
use crate::sync::CountGuard;

/// The date that answers have (RFC 9110, section 6.6.1), and the end of their heads behind it.
struct DateHeader {
    text: String,
    /// Until then it is that.
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

/// A connection whose requests have all been plain so far.
pub(super) struct FastPath<R> {
    stream: ClientStream,
    http: HttpService<R>,
    timers: Arc<ConnectionTimers>,
    input: BytesMut,
    parser: HeadParser,
    /// So much of the input is known to hold no whole head.
    scanned: usize,
    /// Whether no request was taken up yet.
    is_first: bool,
    output: WriteBuf,
    /// When something last came that is to be looked at.
    now: Instant,
    date: DateHeader,
}

/// How a connection goes on after its last plain request.
pub(super) enum Handover {
    /// Not at all.
    Closed,
    /// As hyper says, with these bytes first.
    Http1(ClientStream, Bytes),
    /// The same, and it began with these bytes.
    Http2(ClientStream, Bytes),
}

/// What is to be done once all answers are written.
enum Next {
    ParseMore,
    Read,
    Wait(PendingResponse),
    HandOver,
}

/// An answer that is to come.
struct PendingResponse {
    response: Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>,
    wants_body: bool,
}

/// Bytes asked for at once.
const READ_CHUNK: usize = 8 << 10;
/// So many bytes of answers are written before more requests are taken up.
const WRITE_HIGH_WATER: usize = 64 << 10;
/// How long the end of a connection may take to be said.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl<R: Handler> FastPath<R> {
    pub(super) fn new(
        stream: ClientStream,
        http: HttpService<R>,
        timers: Arc<ConnectionTimers>,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            http,
            timers,
            input: BytesMut::new(),
            parser: HeadParser::default(),
            scanned: 0,
            is_first: true,
            output: WriteBuf::default(),
            now,
            date: DateHeader::new(now),
        }
    }

    /// Answers plain requests for as long as no other comes.
    pub(super) async fn run(mut self) -> Handover {
        loop {
            let next = self.parse_requests();
            if self.write().await.is_err() {
                return Handover::Closed;
            }
            match next {
                Next::ParseMore => {}
                Next::Read => match self.read().await {
                    Ok(1..) => {}
                    // What a part of a head is worth, hyper says.
                    Ok(0) if !self.input.is_empty() => return self.hand_over(),
                    Ok(0) => {
                        _ = timeout(CLOSE_TIMEOUT, self.stream.shutdown()).await;
                        return Handover::Closed;
                    }
                    Err(_) => return Handover::Closed,
                },
                Next::Wait(pending) => self.await_response(pending).await,
                Next::HandOver => return self.hand_over(),
            }
        }
    }

    /// Takes up what has come in, as far as it is plain and can be answered at once.
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
            let date = self.date.at(self.now);
            let answer =
                ResponseWriter { output: &mut self.output, date, wants_body, is_last: false };
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
                // So what comes next is read to where this was.
                self.input.clear();
            }
            if let FastPathResult::Pending(response) = taken {
                return Next::Wait(PendingResponse { response, wants_body });
            }
        }
        Next::Read
    }

    /// The input is no whole head yet. One that is longer than any may be is refused by hyper.
    fn need_more(&mut self) -> Next {
        self.scanned = self.input.len();
        let most = self.http.limits.max_header.saturating_add(LONGEST_TARGET);
        if self.scanned > most { Next::HandOver } else { Next::Read }
    }

    /// Whether it is to be seen yet if HTTP/2 is spoken.
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
            has_waited |= written.is_pending();
            // What is taken at once is taken when it was asked for, or when it came from Redis.
            if has_waited && self.output.len() < before {
                self.timers.activity.record_written(Instant::now());
            }
            ready!(written)?;
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
    }

    /// How many bytes have come; none, if there will be no more, or none are wanted.
    async fn read(&mut self) -> io::Result<usize> {
        if self.input.capacity() - self.input.len() < READ_CHUNK / 2 {
            self.input.reserve(READ_CHUNK);
        }
        let read = poll_fn(|cx| {
            if self.timers.should_close() {
                return Poll::Ready(Ok(0));
            }
            pin!(self.stream.read_buf(&mut self.input)).poll(cx)
        });
        let count = read.await?;
        if count > 0 {
            self.now = Instant::now();
            self.timers.activity.record_read(self.now);
        }
        Ok(count)
    }

    async fn await_response(&mut self, PendingResponse { response, wants_body }: PendingResponse) {
        let in_flight = CountGuard::new(&self.timers.in_flight);
        let response = response.await;
        drop(in_flight);
        self.now = Instant::now();
        self.timers.activity.record_written(self.now);
        let is_last = self.timers.should_close() && self.input.is_empty();
        let date = self.date.at(self.now);
        ResponseWriter { output: &mut self.output, date, wants_body, is_last }
            .write_response(&response);
    }

    fn hand_over(self) -> Handover {
        let is_http2 = self.is_first && self.input.starts_with(HTTP2_PREFACE);
        let rest = if is_http2 { Handover::Http2 } else { Handover::Http1 };
        rest(self.stream, self.input.freeze())
    }
}
