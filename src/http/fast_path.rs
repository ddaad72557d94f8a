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

use super::request_head::{Head, Heads, has_empty_line};
use super::service::{HTTP2_PREFACE, Http, LONGEST_TARGET, PlainAnswer, Routes, Taken};
use super::timers::Watch;
use crate::net::{Output, Stream};
use crate::sync::CountGuard;

/// The date that answers have (RFC 9110, section 6.6.1), and the end of their heads behind it.
struct Date {
    text: String,
    /// Until then it is that.
    until: Instant,
}

impl Date {
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
pub(super) struct Plain<R> {
    stream: Stream,
    http: Http<R>,
    watch: Arc<Watch>,
    input: BytesMut,
    heads: Heads,
    /// So much of the input is known to hold no whole head.
    looked_at: usize,
    /// Whether no request was taken up yet.
    is_first: bool,
    output: Output,
    /// When something last came that is to be looked at.
    now: Instant,
    date: Date,
}

/// How a connection goes on after its last plain request.
pub(super) enum Rest {
    /// Not at all.
    Nothing,
    /// As hyper says, with these bytes first.
    Http1(Stream, Bytes),
    /// The same, and it began with these bytes.
    Http2(Stream, Bytes),
}

/// What is to be done once all answers are written.
enum Next {
    TakeMore,
    Read,
    Wait(Waiting),
    HandOver,
}

/// An answer that is to come.
struct Waiting {
    response: Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>,
    wants_body: bool,
}

/// Bytes asked for at once.
const READ: usize = 8 << 10;
/// So many bytes of answers are written before more requests are taken up.
const ENOUGH: usize = 64 << 10;
/// How long the end of a connection may take to be said.
const LAST_FLUSH: Duration = Duration::from_secs(1);

impl<R: Routes> Plain<R> {
    pub(super) fn new(stream: Stream, http: Http<R>, watch: Arc<Watch>) -> Self {
        let now = Instant::now();
        Self {
            stream,
            http,
            watch,
            input: BytesMut::new(),
            heads: Heads::default(),
            looked_at: 0,
            is_first: true,
            output: Output::default(),
            now,
            date: Date::new(now),
        }
    }

    /// Answers plain requests for as long as no other comes.
    pub(super) async fn run(mut self) -> Rest {
        loop {
            let next = self.take_requests();
            if self.write().await.is_err() {
                return Rest::Nothing;
            }
            match next {
                Next::TakeMore => {}
                Next::Read => match self.read().await {
                    Ok(1..) => {}
                    // What a part of a head is worth, hyper says.
                    Ok(0) if !self.input.is_empty() => return self.hand_over(),
                    Ok(0) => {
                        _ = timeout(LAST_FLUSH, self.stream.shutdown()).await;
                        return Rest::Nothing;
                    }
                    Err(_) => return Rest::Nothing,
                },
                Next::Wait(waiting) => self.wait(waiting).await,
                Next::HandOver => return self.hand_over(),
            }
        }
    }

    /// Takes up what has come in, as far as it is plain and can be answered at once.
    fn take_requests(&mut self) -> Next {
        while !self.input.is_empty() {
            if self.watch.is_finishing() {
                return Next::HandOver;
            }
            if self.output.len() >= ENOUGH {
                return Next::TakeMore;
            }
            if self.looked_at > 0 && !has_empty_line(&self.input, self.looked_at) {
                return self.await_rest();
            }
            let (request, length) = match self.heads.read(&self.input) {
                Head::Plain(request, length) => (request, length),
                Head::Part => return self.await_rest(),
                Head::Other => {
                    return if self.is_first && self.may_be_preface() {
                        Next::Read
                    } else {
                        Next::HandOver
                    };
                }
            };
            let wants_body = request.wants_body();
            let date = self.date.at(self.now);
            let answer = PlainAnswer { output: &mut self.output, date, wants_body, is_last: false };
            let taken = if self.http.lets_in(&request) {
                self.http.routes.answer_plain(&request, self.now, answer)
            } else {
                Taken::Left
            };
            if matches!(taken, Taken::Left) {
                return Next::HandOver;
            }
            (self.is_first, self.looked_at) = (false, 0);
            self.watch.activity.settle();
            if length < self.input.len() {
                self.input.advance(length);
                self.watch.activity.note_unsettled(self.now);
            } else {
                // So what comes next is read to where this was.
                self.input.clear();
            }
            if let Taken::Waits(response) = taken {
                return Next::Wait(Waiting { response, wants_body });
            }
        }
        Next::Read
    }

    /// The input is no whole head yet. One that is longer than any may be is refused by hyper.
    fn await_rest(&mut self) -> Next {
        self.looked_at = self.input.len();
        let most = self.http.limits.max_header.saturating_add(LONGEST_TARGET);
        if self.looked_at > most { Next::HandOver } else { Next::Read }
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
                self.watch.activity.note_written(Instant::now());
            }
            ready!(written)?;
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
    }

    /// How many bytes have come; none, if there will be no more, or none are wanted.
    async fn read(&mut self) -> io::Result<usize> {
        if self.input.capacity() - self.input.len() < READ / 2 {
            self.input.reserve(READ);
        }
        let read = poll_fn(|cx| {
            if self.watch.is_finishing() {
                return Poll::Ready(Ok(0));
            }
            pin!(self.stream.read_buf(&mut self.input)).poll(cx)
        });
        let count = read.await?;
        if count > 0 {
            self.now = Instant::now();
            self.watch.activity.note_read(self.now);
        }
        Ok(count)
    }

    async fn wait(&mut self, Waiting { response, wants_body }: Waiting) {
        let answering = CountGuard::new(&self.watch.answering);
        let response = response.await;
        drop(answering);
        self.now = Instant::now();
        self.watch.activity.note_written(self.now);
        let is_last = self.watch.is_finishing() && self.input.is_empty();
        let date = self.date.at(self.now);
        PlainAnswer { output: &mut self.output, date, wants_body, is_last }.whole(&response);
    }

    fn hand_over(self) -> Rest {
        let is_http2 = self.is_first && self.input.starts_with(HTTP2_PREFACE);
        let rest = if is_http2 { Rest::Http2 } else { Rest::Http1 };
        rest(self.stream, self.input.freeze())
    }
}
