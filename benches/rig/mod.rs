//! A proxy with every read key in its cache, and its clients: all on one thread, with no Redis and
//! no network.
//!
//! Nothing waits for a clock or another thread, so that the same reads take the same steps each
//! time.

#![allow(dead_code, reason = "each bench uses its own part of it")]
#![expect(clippy::expect_used, reason = "what cannot be set up here cannot be measured")]

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::{Bytes, BytesMut};
use redis_proxy::backend::{self, Backend, BackendError, Network};
use redis_proxy::cache::{
    self, Cache, CoherenceMode, Fetched, FetchedReply, ReadMode, ReplyRead, ReplyResult,
};
use redis_proxy::commands::{Class, CommandTable};
use redis_proxy::key::Key;
use redis_proxy::metrics::{FrontEnd, Metrics};
use redis_proxy::net::ClientStream;
use redis_proxy::protocol::{ReplyFrame, Shape};
use redis_proxy::proxy::Proxy;
use redis_proxy::resp::{self, Resp};
use redis_proxy::rest::{self, Rest, WithRest};
use redis_proxy::server::{Drain, Service};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use redis_proxy::{commands::names, http};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// The allocator of the daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The number of keys.
pub(crate) const KEYS: usize = 10_000;
/// The value of each key, which is text. Its last byte occurs nowhere else in a response.
pub(crate) const VALUE: &[u8] = &{
    let mut value = [b'x'; 100];
    value[99] = END;
    value
};
const END: u8 = b'~';

/// The number of kept hashes, and of the fields of each.
const HASHES: usize = 1_000;
const FIELDS: usize = 20;

/// The default of `http.max_key`.
const MAX_KEY: usize = 16 << 10;

/// The path of REST, and its token.
const REST_PATH: &str = "/rest";
const REST_TOKEN: &str = "token-of-the-bench";

/// A proxy with its runtime.
pub(crate) struct Rig {
    pub(crate) runtime: Runtime,
    pub(crate) cache: Cache<BackendError>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) proxy: Proxy,
}

impl Rig {
    /// Caches all keys without expiry.
    pub(crate) fn new() -> Self {
        Self::with_rules(&[])
    }

    /// The same with rules for keys with these prefixes.
    pub(crate) fn with_rules(prefixes: &[&str]) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Only TTLs bound their freshness, because there is no Redis for a lease.
        let rule = |keys: &&str| cache::KeyRule::new((*keys).to_owned().try_into().expect("keys"));
        let rules = prefixes.iter().map(rule).collect();
        let (ttl, coherence) = (Duration::from_secs(1 << 20), CoherenceMode::Ttl);
        let settings =
            cache::Settings { capacity: KEYS, ttl, coherence, rules, ..cache::Settings::default() };
        let cache = Cache::new(settings, runtime.handle().clone());
        let metrics = Arc::new(Metrics::new(&names()).expect("metrics"));
        let link = Backend::prepare(
            Network::System,
            backend::Settings::default(),
            1 << 20,
            backend::CommandNames::default(),
            cache.clone(),
            Arc::clone(&metrics),
        );
        let (backend, _) = link.expect("a backend that is never asked");
        let proxy = Proxy::new(
            Upstream::Standalone(cache.clone(), backend),
            Arc::clone(&metrics),
            HotKeys::new(0),
        );
        let rig = Self { runtime, cache, metrics, proxy };
        (0..KEYS).for_each(|number| rig.fetch(&key(number)));
        rig
    }

    /// Fetches `key` from nowhere unless it is cached.
    pub(crate) fn fetch(&self, key: &[u8]) {
        let fetch = |_, _| async { Fetched::Value(Bytes::from_static(VALUE).into(), None) };
        let now = Instant::now();
        self.runtime
            .block_on(self.cache.get_or_fetch(key, ReadMode::Default, now, fetch))
            .expect("a value");
    }

    /// Keeps all hashes, and one field of another hash, so that replies to `HGET` may be derived.
    pub(crate) fn keep_hashes(&self) {
        for number in 0..HASHES {
            let mut fields = format!("%{FIELDS}\r\n").into_bytes();
            (0..FIELDS).for_each(|field| {
                fields.extend(bulk(&field_name(field)));
                fields.extend(bulk(&field_value(field)));
            });
            self.keep("HGETALL", &[&key(number)], fields);
        }
        self.keep("HGET", &[b"other", b"field"], b"_\r\n".to_vec());
    }

    /// Keeps the reply to the command `name` with these arguments, of which the first is its key.
    fn keep(&self, name: &str, arguments: &[&[u8]], reply: Vec<u8>) {
        let kept = match CommandTable::new().find(name.as_bytes()).class {
            Class::Kept(command) => Some(command),
            _ => None,
        };
        let command = kept.expect("a command whose reply is kept");
        let words: Vec<_> =
            [name.as_bytes()].into_iter().chain(arguments.iter().copied()).collect();
        let keys = [Key::from(arguments[0])];
        let read =
            ReplyRead { command: &request(&words), name_index: command.index(), keys: &keys };
        let frame = ReplyFrame::new(reply.into(), Shape::default());
        let fetch = || async { FetchedReply::Keepable(frame, None) };
        let (_, result) = self.runtime.block_on(self.cache.get_or_fetch_reply(read, fetch));
        assert!(matches!(result, ReplyResult::Reply(_)), "the reply to {name} is not kept");
    }

    /// Connects an HTTP client.
    pub(crate) fn http(&self) -> Client {
        self.http_beside(None)
    }

    /// Connects an HTTP client of a listener that serves REST too.
    pub(crate) fn rest(&self) -> Client {
        let mut tokens = tempfile::NamedTempFile::new().expect("a file");
        tokens.write_all(REST_TOKEN.as_bytes()).expect("a token");
        let (path, tokens_file) = (REST_PATH.to_owned(), tokens.path().to_owned());
        let settings = rest::Settings { path, tokens_file, ..rest::Settings::default() };
        let of_clients = resp::Settings::default();
        let rest = Rest::prepare(settings, &of_clients, MAX_KEY, self.proxy.clone());
        self.http_beside(rest.expect("a front end").beside_others())
    }

    fn http_beside(&self, rest: Option<Rest>) -> Client {
        let settings = http::Settings::default();
        let limits = settings.limits();
        let keys = http::Keys::new(self.proxy.clone(), settings, Router::new());
        self.client(&http::HttpService::new(
            WithRest::new(rest, keys),
            limits,
            None,
            http::Observer::new(&self.metrics, FrontEnd::Http),
        ))
    }

    /// Connects a RESP client.
    pub(crate) fn resp(&self) -> Client {
        self.client(
            &Resp::prepare(resp::Settings::default(), MAX_KEY, self.proxy.clone())
                .expect("a front end"),
        )
    }

    fn client(&self, front_end: &dyn Service) -> Client {
        let _entered = self.runtime.enter();
        let (client, served) = UnixStream::pair().expect("two ends of a socket");
        self.runtime.spawn(front_end.serve(ClientStream::Unix(served), Drain::never()));
        Client { stream: client, received: BytesMut::new() }
    }
}

/// A client of the proxy.
pub(crate) struct Client {
    stream: UnixStream,
    received: BytesMut,
}

impl Client {
    /// Sends `request` and waits for this many replies, each of which ends with the value and its
    /// trailer.
    pub(crate) async fn ask(&mut self, request: &[u8], answers: usize) {
        self.stream.write_all(request).await.expect("a server");
        self.received.clear();
        let (mut found, mut looked_at) = (0, 0);
        while found < answers {
            assert!(
                self.stream.read_buf(&mut self.received).await.expect("an answer") > 0,
                "the server hung up"
            );
            found += memchr::memchr_iter(END, &self.received[looked_at..]).count();
            looked_at = self.received.len();
        }
    }
}

/// Returns the name of a key.
pub(crate) fn key(number: usize) -> Vec<u8> {
    format!("key:{number:012}").into_bytes()
}

/// Returns keys in an order that no processor cache predicts, each equally often.
pub(crate) fn scattered() -> impl Iterator<Item = usize> {
    (0..).map(|turn: usize| turn.wrapping_mul(7919) % KEYS)
}

/// Returns HTTP reads, one for each key.
pub(crate) fn http_requests() -> Vec<Vec<u8>> {
    let request =
        |number| [b"GET /keys/", &key(number)[..], b" HTTP/1.1\r\nHost: bench\r\n\r\n"].concat();
    scattered().take(KEYS).map(request).collect()
}

/// Returns GETs, `pipeline` in each batch.
pub(crate) fn resp_requests(pipeline: usize) -> Vec<Vec<u8>> {
    let request = |number| [b"*2\r\n$3\r\nGET\r\n$16\r\n", &key(number)[..], b"\r\n"].concat();
    let requests: Vec<_> = scattered().take(KEYS).map(request).collect();
    requests.chunks(pipeline).filter(|batch| batch.len() == pipeline).map(<[_]>::concat).collect()
}

/// Returns `MGET`s of this many keys.
pub(crate) fn mget_requests(number: usize) -> Vec<Vec<u8>> {
    let keys: Vec<_> = scattered().take(KEYS).map(key).collect();
    let read = |keys: &[Vec<u8>]| {
        let words: Vec<_> =
            [&b"MGET"[..]].into_iter().chain(keys.iter().map(Vec::as_slice)).collect();
        request(&words)
    };
    keys.chunks(number).filter(|batch| batch.len() == number).map(read).collect()
}

/// Returns reads of kept hashes by the command `name`. One of a field reads the last one.
pub(crate) fn hash_requests(name: &str) -> Vec<Vec<u8>> {
    let last = field_name(FIELDS - 1);
    let read = |number: usize| match name {
        "HGET" => request(&[b"HGET", &key(number % HASHES), &last]),
        _ => request(&[name.as_bytes(), &key(number % HASHES)]),
    };
    scattered().take(KEYS).map(read).collect()
}

/// Returns a command in RESP.
fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(bulk(word));
    }
    request
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn field_name(number: usize) -> Vec<u8> {
    format!("field:{number:02}").into_bytes()
}

/// Returns the value of a field. Only that of the last field ends a reply.
fn field_value(number: usize) -> Vec<u8> {
    let mut value = vec![b'x'; 32];
    if number == FIELDS - 1 {
        value[31] = END;
    }
    value
}

/// Returns REST requests, each a pipeline of this many `GET`s, or with one a command by itself.
pub(crate) fn rest_requests(pipeline: usize) -> Vec<Vec<u8>> {
    let get = |number| format!(r#"["GET","{}"]"#, String::from_utf8_lossy(&key(number)));
    let gets: Vec<_> = scattered().take(KEYS).map(get).collect();
    let batches = gets.chunks(pipeline).filter(|batch| batch.len() == pipeline);
    let request = |batch: &[String]| match batch {
        [one] => rest_request("", one),
        several => rest_request("/pipeline", &format!("[{}]", several.join(","))),
    };
    batches.map(request).collect()
}

fn rest_request(below: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {REST_PATH}{below} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {REST_TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    head.into_bytes()
}
