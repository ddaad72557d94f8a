//! The clients over HTTP: they read strings by `GET /keys/{key}`, alone or in a pipeline, with and
//! without `Cache-Control: no-cache`, and ask whether what they have is still current.
//!
//! A session goes on over its connections, because the promise of monotonic reads is about requests
//! to the same proxy one after the other. It ends with a crash of the program.
//!
//! A response says whether it is stale. So one without that mark is judged by the lease alone, and
//! as a part of its session, whatever fails. A current read is never older than its request.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Status};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{sleep, timeout};

use super::clients::{Ended, PATIENCE, closed};
use super::model::Key;
use super::network::{End, longest};
use super::oracle::Read;
use super::partitions::Views;
use super::run::Stage;
use super::world::lock;

/// The most fields of a response that are parsed.
const MAX_FIELDS: usize = 32;

/// A request for a key.
struct Request {
    key: Key,
    /// Whether it has `Cache-Control: no-cache`.
    is_current: bool,
    /// The version of the value that the client has, which it asks about.
    known: Option<Known>,
    /// A field that leaves the connection to the general code of HTTP.
    is_general: bool,
}

/// A value with its entity tag.
#[derive(Clone)]
struct Known {
    etag: String,
    text: Vec<u8>,
}

/// The parts of a response that are judged.
#[derive(Debug, PartialEq)]
struct Response {
    status: u16,
    /// Whether it is marked as stale.
    is_stale: bool,
    etag: String,
    body: Vec<u8>,
}

/// A connection to the proxy.
struct Connection {
    end: End,
    input: Vec<u8>,
}

/// A session, and the versions that it has.
#[derive(Default)]
struct Session {
    seen: Views,
    known: BTreeMap<Key, Known>,
    /// The number of the program's starts when it began.
    starts: u64,
}

/// Reads over HTTP for as long as the simulation runs.
pub(super) async fn read_over_http(stage: Stage, number: u64) {
    let mut session = Session::default();
    loop {
        let Ok(end) = stage.to_http.connect().await else {
            sleep(stage.world.duration(1, 50)).await;
            continue;
        };
        let mut connection = Connection { end, input: Vec::new() };
        for _ in 0..stage.world.between(1, 400) {
            sleep(stage.world.duration(0, stage.plan.pause)).await;
            match session.go_on(&stage, &mut connection).await {
                Ok(()) => {}
                Err(Ended::Closed) => break,
                Err(Ended::Breach(breach)) => {
                    stage.fail(format!("client {number} over HTTP: {breach}"));
                    return;
                }
            }
        }
    }
}

/// Reads each string once more, as it is now, when all faults are over.
pub(super) async fn read_all(stage: &Stage, keys: &[Key]) -> Result<(), String> {
    let end = stage.to_http.connect().await.map_err(|_| "no connection over HTTP")?;
    let mut connection = Connection { end, input: Vec::new() };
    let mut session = Session::default();
    for key in keys.iter().filter(|key| key.starts_with(b"s")) {
        let key = key.clone();
        let request = Request { key, is_current: true, known: None, is_general: false };
        match session.send(stage, &mut connection, vec![request]).await {
            Ok(()) => {}
            Err(Ended::Breach(breach)) => return Err(format!("over HTTP: {breach}")),
            Err(Ended::Closed) => return Err("a connection over HTTP ended".to_owned()),
        }
    }
    Ok(())
}

/// A connection of its own that reads one key again and again.
pub(super) struct Watch {
    session: Session,
    connection: Connection,
    key: Key,
}

impl Watch {
    /// Connects, and reads the key once.
    pub(super) async fn begin(stage: &Stage, key: Key) -> Result<Self, Ended> {
        let end = stage.to_http.connect().await.map_err(|_| Ended::Closed)?;
        let connection = Connection { end, input: Vec::new() };
        let mut watch = Self { session: Session::default(), connection, key };
        watch.read(stage).await?;
        Ok(watch)
    }

    async fn read(&mut self, stage: &Stage) -> Result<(), Ended> {
        let key = self.key.clone();
        let request = Request { key, is_current: false, known: None, is_general: false };
        self.session.send(stage, &mut self.connection, vec![request]).await
    }

    /// Reads every few milliseconds until this time.
    pub(super) async fn read_until(mut self, stage: &Stage, until: Duration) -> Result<(), Ended> {
        while stage.world.now() < until {
            sleep(stage.world.duration(1, 10)).await;
            self.read(stage).await?;
        }
        Ok(())
    }
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let path = percent_encoded(&self.key);
        let mut head = format!("GET /keys/{path} HTTP/1.1\r\nhost: proxy\r\n").into_bytes();
        if self.is_current {
            head.extend_from_slice(b"cache-control: no-cache\r\n");
        }
        if let Some(Known { etag, .. }) = &self.known {
            head.extend_from_slice(format!("if-none-match: {etag}\r\n").as_bytes());
        }
        if self.is_general {
            head.extend_from_slice(b"te: trailers\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

impl Session {
    async fn go_on(&mut self, stage: &Stage, connection: &mut Connection) -> Result<(), Ended> {
        let count = if stage.world.chance(15) { stage.world.between(2, 4) } else { 1 };
        let requests = (0..count).map(|_| self.next(stage)).collect();
        self.send(stage, connection, requests).await
    }

    fn next(&self, stage: &Stage) -> Request {
        let key = stage.random_key();
        let known = self.known.get(&key).filter(|_| stage.world.chance(30)).cloned();
        let (is_current, is_general) = (stage.world.chance(30), stage.world.chance(2));
        Request { key, is_current, known, is_general }
    }

    /// Sends requests together, and judges their responses.
    async fn send(
        &mut self,
        stage: &Stage,
        connection: &mut Connection,
        requests: Vec<Request>,
    ) -> Result<(), Ended> {
        let sent = stage.world.now();
        if self.starts != stage.program.starts() {
            *self = Self { starts: stage.program.starts(), ..Self::default() };
        }
        self.seen.go_on();
        let was_ready = stage.program.is_ready();
        let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
        connection.end.write_all(&bytes).await.map_err(|_| Ended::Closed)?;
        for request in requests {
            let Connection { end, input } = &mut *connection;
            let response = match timeout(PATIENCE, end.receive(input, take_response)).await {
                Ok(Some(response)) => response,
                Ok(None) => return closed(stage, sent),
                Err(_) => return Err(Ended::Breach("no response over HTTP".to_owned())),
            };
            stage.world.record(|| shown(&request, &response));
            self.judge(stage, sent, was_ready, request, response).map_err(Ended::Breach)?;
        }
        Ok(())
    }

    fn judge(
        &mut self,
        stage: &Stage,
        sent: Duration,
        was_ready: bool,
        request: Request,
        response: Response,
    ) -> Result<(), String> {
        let arrived = stage.world.now();
        let content = match (response.status, request.known) {
            (200, _) => Some(response.body),
            (304, Some(known)) => Some(known.text),
            (404, _) => None,
            (502..=504, _) => {
                stage.counts.errors.fetch_add(1, Relaxed);
                let breach = || format!("status {} while nothing failed", response.status);
                return stage.may_fail_since(sent).then_some(()).ok_or_else(breach);
            }
            (status, _) => return Err(format!("status {status}")),
        };
        stage.counts.reads.fetch_add(1, Relaxed);
        stage.counts.over_http.fetch_add(1, Relaxed);
        let bound = if request.is_current {
            Duration::ZERO
        } else {
            stage.bound_of_marked(sent, was_ready, response.is_stale)
        };
        if response.is_stale && (request.is_current || stage.plan.stale_if_error.is_zero()) {
            return Err(format!("{} is stale", request.key.escape_ascii()));
        }
        let key = request.key;
        let read = Read { key: &key, content: content.as_deref(), sent, arrived, seen: 0, bound };
        let grace = bound.saturating_sub(longest(stage.plan.delay));
        lock(&stage.epochs).judge(&read, &mut self.seen, response.is_stale, grace)?;
        match content {
            Some(text) => drop(self.known.insert(key, Known { etag: response.etag, text })),
            None => drop(self.known.remove(&key)),
        }
        Ok(())
    }
}

/// Returns a key as it is written in a path.
fn percent_encoded(key: &[u8]) -> String {
    let encoded = key.iter().map(|byte| match byte {
        b'0'..=b'9' | b'a'..=b'z' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

/// Returns an exchange as an event. It lacks the date, which is that of the machine.
fn shown(request: &Request, response: &Response) -> String {
    let Request { key, is_current, known, .. } = request;
    let Response { status, is_stale, body, .. } = response;
    format!(
        "GET {}, current: {is_current}, known: {} -> {status}, stale: {is_stale}, {}",
        key.escape_ascii(),
        known.is_some(),
        body.escape_ascii()
    )
}

/// Takes the next complete response from the front of `input`.
fn take_response(input: &mut Vec<u8>) -> Option<Response> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let Status::Complete(begin) = head.parse(input).expect("the head of a response") else {
        return None;
    };
    let value = |name: &str| {
        let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.map_or("", |field| std::str::from_utf8(field.value).expect("text"))
    };
    let status = head.code.expect("a status");
    // A 304 has neither.
    let length = value("content-length").parse().unwrap_or(0);
    let response = Response {
        status,
        is_stale: value("cache-status").contains("ttl=-"),
        etag: value("etag").to_owned(),
        body: input.get(begin..begin + length)?.to_vec(),
    };
    input.drain(..begin + length);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_taken_once_it_is_complete() {
        let stale = "HTTP/1.1 200 OK\r\netag: \"a\"\r\ncache-status: redis-proxy; hit; \
                     ttl=-3\r\ncontent-length: 2\r\n\r\n17";
        let unchanged = "HTTP/1.1 304 Not Modified\r\nETag: \"b\"\r\n\r\n";
        let mut input = Vec::new();
        for byte in stale.bytes() {
            assert_eq!(take_response(&mut input), None);
            input.push(byte);
        }
        input.extend_from_slice(unchanged.as_bytes());
        let response = |status, is_stale, etag: &str, body: &[u8]| Response {
            status,
            is_stale,
            etag: etag.to_owned(),
            body: body.to_vec(),
        };
        assert_eq!(take_response(&mut input), Some(response(200, true, "\"a\"", b"17")));
        assert_eq!(take_response(&mut input), Some(response(304, false, "\"b\"", b"")));
        assert!(input.is_empty());
    }
}
