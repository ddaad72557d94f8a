//! Streams of events: `/subscribe`, `/psubscribe` and `/monitor` as server-sent events.
//!
//! Model: a stream has a connection to Redis to itself. A task takes messages from it and hands
//! them to the body of the response. At most [`BUFFER`] bytes wait for the reader there. While they
//! do, nothing more is read from Redis, which bounds the rest by its own
//! `client-output-buffer-limit`. A reader that takes nothing for `rest.timeout` loses its stream.
//!
//! The rule that must not be broken: the connection ends with its stream, and serves no other
//! request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::request::Commands;
use super::response::{elements, error_text, text_of};
use super::rights::StreamKind;
use super::run::Run;
use super::sync_token::Progress;
use crate::commands::CommandInfo;
use crate::metrics::ConnectionGuard;
use crate::resp::LocalClient;
use crate::server::Drain;

/// The most bytes that wait for a reader.
const BUFFER: u32 = 256 << 10;
/// The interval of comments on a silent stream. They show that a client is gone, and keep the
/// connection from counting as idle.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A comment. Clients ignore it.
const COMMENT: &[u8] = b": \n\n";

/// Whether a request with these headers takes a stream of events.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut types =
        accepted.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    types.any(|one| {
        let name = one.split(';').next().unwrap_or_default().trim();
        name.eq_ignore_ascii_case("text/event-stream")
    })
}

/// The reason why a stream does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoStream {
    /// Redis replied with this error.
    Refused(String),
    /// Redis is not reached, or was lost.
    Lost(String),
}

/// A stream before its first message.
pub(super) struct EventStream {
    pub(super) client: LocalClient,
    pub(super) kind: StreamKind,
    /// The largest message, in bytes.
    pub(super) max_message: usize,
    /// The longest time for which a reader may take nothing.
    pub(super) patience: Duration,
    pub(super) drain: Drain,
    /// The place among the streams.
    pub(super) place: OwnedSemaphorePermit,
    /// Counts it as open.
    pub(super) open: ConnectionGuard,
}

impl EventStream {
    /// Sends the command, and returns the response once Redis has confirmed it.
    pub(super) async fn begin(
        self,
        command: &Commands,
        info: CommandInfo,
    ) -> Result<Response<Body>, NoStream> {
        let Self { client, kind, max_message, patience, drain, place, open } = self;
        let progress = Arc::new(Progress::default());
        let mut run = Run::new(client, max_message, progress);
        for words in command.iter() {
            run.add(words.get(0), info, |out| words.write(out));
        }
        run.send();
        let message = run.message().await.map_err(|error| NoStream::Lost(error.to_string()))?;
        if let Some(text) = error_text(message) {
            return Err(NoStream::Refused(String::from_utf8_lossy(text).into_owned()));
        }
        let first = event(kind, message);
        let (sender, receiver) = Sender::new(patience);
        tokio::spawn(pump(run, kind, first, sender, drain, (place, open)));
        Ok(response(receiver))
    }
}

/// Takes messages to the reader until one of both is gone.
async fn pump(
    mut run: Run,
    kind: StreamKind,
    first: Option<Vec<u8>>,
    mut sender: Sender,
    mut drain: Drain,
    _held: (OwnedSemaphorePermit, ConnectionGuard),
) {
    let mut next = first;
    loop {
        if let Some(event) = next.take()
            && !sender.send(event).await
        {
            return;
        }
        next = tokio::select! {
            () = sender.events.closed() => return,
            () = drain.signaled() => return,
            message = run.message() => match message {
                Ok(message) => event(kind, message),
                Err(_) => return,
            },
            () = sleep(KEEPALIVE) => Some(COMMENT.to_vec()),
        };
    }
}

/// An event with the room that it takes until the reader has it.
type Held = (Bytes, Option<OwnedSemaphorePermit>);

/// The end of the buffer that is filled.
struct Sender {
    events: UnboundedSender<Held>,
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Sender {
    fn new(patience: Duration) -> (Self, UnboundedReceiver<Held>) {
        let (events, receiver) = unbounded_channel();
        (Self { events, room: Arc::new(Semaphore::new(BUFFER as usize)), patience }, receiver)
    }

    /// Hands an event over once there is room. Returns whether the reader still takes events.
    async fn send(&mut self, event: Vec<u8>) -> bool {
        // A larger event waits until the buffer is empty.
        let size = u32::try_from(event.len()).unwrap_or(BUFFER).min(BUFFER);
        let room = Arc::clone(&self.room).acquire_many_owned(size);
        let Ok(Ok(room)) = timeout(self.patience, room).await else {
            tracing::info!("a reader of events took nothing for rest.timeout; its stream ends");
            return false;
        };
        self.events.send((event.into(), Some(room))).is_ok()
    }
}

fn response(events: UnboundedReceiver<Held>) -> Response<Body> {
    // The room is free once the event is on its way.
    let events = UnboundedReceiverStream::new(events)
        .map(|(event, room)| (drop(room), Ok::<_, Infallible>(event)).1);
    let mut response = Response::new(Body::from_stream(events));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Otherwise nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Returns the event for a message of Redis; `None` if the message has another form.
fn event(kind: StreamKind, message: &[u8]) -> Option<Vec<u8>> {
    match kind {
        StreamKind::Subscription => {
            let parts = elements(message)?.into_iter().map(text_of).collect::<Option<Vec<_>>>()?;
            Some(data(&parts.join(&b","[..])))
        }
        StreamKind::Monitor => match text_of(message)? {
            b"OK" => Some(data(b"\"OK\"")),
            line => Some(data(line)),
        },
    }
}

/// Writes an event. Each of its lines has its own field, which clients put together again.
fn data(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut event = Vec::with_capacity(text.len() + 8);
    for line in text.split('\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line.as_bytes());
        event.push(b'\n');
    }
    event.push(b'\n');
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_event() {
        use StreamKind::{Monitor, Subscription};
        for (kind, message, expected) in [
            (
                Subscription,
                "*3\r\n$9\r\nsubscribe\r\n$4\r\nchat\r\n:1\r\n",
                Some("data: subscribe,chat,1\n\n"),
            ),
            (
                Subscription,
                "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\na, b\r\n",
                Some("data: message,c,a, b\n\n"),
            ),
            (
                Subscription,
                "*4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nc1\r\n$0\r\n\r\n",
                Some("data: pmessage,c*,c1,\n\n"),
            ),
            (
                Subscription,
                "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$8\r\na\r\nb\nc\rd\r\n",
                Some("data: message,c,a\ndata: b\ndata: c\ndata: d\n\n"),
            ),
            (Subscription, "+OK\r\n", None),
            (Subscription, "*1\r\n*0\r\n", None),
            (Monitor, "+OK\r\n", Some("data: \"OK\"\n\n")),
            (Monitor, "+1.5 [0 x] \"GET\" \"a\"\r\n", Some("data: 1.5 [0 x] \"GET\" \"a\"\n\n")),
        ] {
            let found = event(kind, message.as_bytes());
            let found = found.map(|event| String::from_utf8(event).unwrap());
            assert_eq!(found.as_deref(), expected, "{message:?}");
        }
    }

    #[test]
    fn stream_begins_only_where_it_is_wanted() {
        for (accept, expected) in [
            ("text/event-stream", true),
            ("text/html, Text/Event-Stream;q=0.5", true),
            ("*/*", false),
            ("text/event-stream-x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(is_accepted(&headers), expected, "{accept}");
        }
        for (name, expected) in [
            ("subscribe", Some(StreamKind::Subscription)),
            ("PSUBSCRIBE", Some(StreamKind::Subscription)),
            ("Monitor", Some(StreamKind::Monitor)),
            ("get", None),
        ] {
            assert_eq!(StreamKind::of(name.as_bytes()), expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn buffer_for_a_slow_reader_is_bounded() {
        let (mut sender, mut receiver) = Sender::new(Duration::from_secs(1));
        let part = vec![b'x'; BUFFER as usize / 4];
        for _ in 0..4 {
            assert!(sender.send(part.clone()).await);
        }
        assert!(!sender.send(vec![b'x']).await, "more than the buffer waits");
        drop(receiver.recv().await);
        assert!(sender.send(part.clone()).await);
        for _ in 0..4 {
            drop(receiver.recv().await);
        }
        // One that is larger than the buffer waits alone.
        assert!(sender.send(vec![b'x'; 4 * BUFFER as usize]).await);
        assert!(!sender.send(part).await);
    }
}
