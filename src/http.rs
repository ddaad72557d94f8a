//! Reads over HTTP: `GET` and `HEAD /keys/{key}`.
//!
//! The key is the rest of the path, percent-decoded to bytes; the body is the value, byte for byte. What the
//! answer is worth is told by the standard headers: a strong `ETag` (RFC 9110, section 8.8.3), `Age` (RFC 9111,
//! section 5.1), `Cache-Control`, and `Cache-Status` (RFC 9211). Errors are problem details (RFC 9457) that say
//! what was wrong with the request and nothing about what is behind the proxy.

use std::borrow::Cow;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::access::{Allow, FileError, Gate, Protection};
use crate::backend::BackendError;
use crate::cache::{Answer, Demand, Freshness, Outcome, Value};
use crate::key::{BadEscape, percent_decode};
use crate::metrics::{FrontEnd, Refusal};
use crate::problem::Kind;
use crate::proxy::Proxy;
use crate::server::{
    HTTP_PROTOCOLS, Limits, Listen, PlainAnswer, PlainRequest, Routes, Taken, Tls, TlsFiles,
    TlsKeys,
};
use crate::trace::{self, Route};
use crate::units::{self, ByteSize, Contradiction, absurd_limits, broken, zero_timeouts};

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where reads are served.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// A file of tokens, of which whoever asks must send one; empty: nobody has to.
    pub tokens_file: PathBuf,
    /// The listener's certificate; empty: no TLS.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_key_file: PathBuf,
    /// The authorities one of which must have signed a client's certificate; empty: clients need none.
    pub tls_client_ca_file: PathBuf,
    /// How long the beginning of TLS may take.
    #[serde(with = "units::duration")]
    pub tls_handshake_timeout: Duration,
    /// The keys that are given out; none: all.
    pub allow: Allow,
    /// Connections at most.
    #[serde(with = "units::count")]
    pub max_connections: usize,
    /// How long a connection may go without moving a byte while no request is being answered.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    #[serde(with = "units::duration")]
    pub header_timeout: Duration,
    /// How large the headers of a request may be.
    pub max_header: ByteSize,
    /// The longest key.
    pub max_key: ByteSize,
    /// The largest value that is given out.
    pub max_value: ByteSize,
    /// What caches further on may do with an answer.
    pub cache_control: CacheControl,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Listen::from_static("127.0.0.1:8080"),
            allow_unprotected: false,
            tokens_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            tls_handshake_timeout: Duration::from_secs(10),
            allow: Allow::default(),
            max_connections: 10_000,
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            max_header: ByteSize(64 << 10),
            max_key: ByteSize(16 << 10),
            max_value: ByteSize(512 << 20),
            cache_control: CacheControl::default(),
        }
    }
}

impl Settings {
    /// What stands between strangers and the keys.
    pub(crate) fn protection(&self) -> Protection {
        if self.allow_unprotected {
            Protection::Waived
        } else if self.tokens_file.as_os_str().is_empty() && !self.tls_files().asks_clients() {
            Protection::Missing("http.tokens_file, http.tls_client_ca_file, ")
        } else {
            Protection::Asked
        }
    }

    /// What holds for every connection.
    pub fn limits(&self) -> Limits {
        let Self { idle_timeout, header_timeout, max_header, .. } = *self;
        Limits { idle_timeout, header_timeout, max_header: max_header.0 }
    }

    /// What is asked of whoever comes, if anything.
    ///
    /// # Errors
    /// The file of tokens cannot be used.
    pub(crate) fn gate(&self) -> Result<Option<Gate>, FileError> {
        let is_asked = !self.tokens_file.as_os_str().is_empty();
        is_asked.then(|| Gate::load("http.tokens_file", self.tokens_file.clone())).transpose()
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            certificates: self.tls_cert_file.clone(),
            key: self.tls_key_file.clone(),
            client_authorities: self.tls_client_ca_file.clone(),
        }
    }

    /// TLS, if it is spoken.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, FileError> {
        Tls::load(self.tls_files(), TLS_KEYS, self.tls_handshake_timeout, &HTTP_PROTOCOLS)
    }

    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        let small = self.max_header.0 < SMALLEST_HEADER;
        let header = format!(
            "found {}, expected at least 8KiB, which ordinary clients need",
            self.max_header
        );
        let own = broken([
            (
                self.listen.is_off(),
                "http.listen",
                "found \"\", expected an address: there is no other way to read",
            ),
            (small, "http.max_header", &header),
        ]);
        let limits = absurd_limits([(self.max_connections, "http.max_connections")]);
        let timeouts = zero_timeouts([
            (self.idle_timeout, "http.idle_timeout"),
            (self.header_timeout, "http.header_timeout"),
        ]);
        let tls = self.tls_files().contradictions(TLS_KEYS, self.tls_handshake_timeout);
        [own, limits, timeouts, tls].concat()
    }
}

/// How this section calls what belongs to TLS.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "http.tls_cert_file",
    key_file: "http.tls_key_file",
    client_ca_file: "http.tls_client_ca_file",
    handshake_timeout: "http.tls_handshake_timeout",
};

/// The least that hyper reads at once.
const SMALLEST_HEADER: usize = 8 << 10;

/// The value of the `Cache-Control` header of answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheControl(HeaderValue);

impl Default for CacheControl {
    /// To be kept, but never given again without asking here, which costs one 304.
    fn default() -> Self {
        Self(HeaderValue::from_static("no-cache"))
    }
}

impl TryFrom<String> for CacheControl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let printable = !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        HeaderValue::try_from(&text).ok().filter(|_| printable).map(Self).ok_or_else(|| {
            format!(
                "invalid value: string {text:?}, expected a Cache-Control header such as \"no-cache\" or \"max-age=5\""
            )
        })
    }
}

impl From<CacheControl> for String {
    fn from(CacheControl(value): CacheControl) -> Self {
        value.to_str().unwrap_or_default().to_owned()
    }
}

const PREFIX: &str = "/keys/";

/// The routes of this front end: `/keys/`, past any router since it is most of all that is asked for, and every path that
/// is nobody else's.
#[derive(Clone)]
pub struct Keys {
    http: Arc<Http>,
    others: Router,
}

struct Http {
    proxy: Proxy,
    settings: Settings,
    /// What stands in the head of an answer with a fresh value between its tag and how long it stays so.
    behind_tag: Vec<u8>,
}

impl Keys {
    /// Serves reads through `proxy`, and beside them the routes of `others`.
    pub fn new(proxy: Proxy, settings: Settings, others: Router) -> Self {
        let others = others.fallback(no_route);
        let cache_control = settings.cache_control.0.as_bytes();
        let behind_tag =
            [b"\r\ncache-control: ", cache_control, b"\r\ncache-status: redis-proxy; hit; ttl="]
                .concat();
        Self { http: Arc::new(Http { proxy, settings, behind_tag }), others }
    }
}

impl Routes for Keys {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !request.uri().path().starts_with(PREFIX) {
            return self.others.answer(request).await;
        }
        let span = trace::request(&request, Route::Keys);
        let response = respond(&self.http, &request, &span);
        // Nothing is entered and left again where nobody wants a span.
        let response = if span.is_disabled() {
            response.await
        } else {
            response.instrument(span.clone()).await
        };
        trace::responded(&span, response.status());
        response
    }

    fn answer_plain(
        &self,
        request: &PlainRequest<'_>,
        now: Instant,
        answer: PlainAnswer<'_>,
    ) -> Taken {
        match request.path().strip_prefix(PREFIX.as_bytes()).map(|escaped| self.http.key(escaped)) {
            // A span is made of all that a request has.
            Some(Ok(key)) if !trace::is_wanted() => self.http.give(&key, request, now, answer),
            _ => Taken::Left,
        }
    }
}

async fn no_route(request: axum::extract::Request) -> Response<Body> {
    let span = trace::request(&request, Route::None);
    let response = span.in_scope(|| Problem::NoRoute.into_response().map(Body::from));
    trace::responded(&span, response.status());
    response
}

async fn respond<B>(http: &Http, request: &Request<B>, span: &Span) -> Response<Body> {
    let escaped = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Problem::MethodNotAllowed.into_response().map(Body::from);
    }
    let values = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    let demand = demand(values(header::CACHE_CONTROL));
    let response = match http.read(escaped, request.uri().query(), demand, span).await {
        Ok(answer) => http.answer(&answer, values(header::IF_NONE_MATCH)),
        Err(problem) => problem.into_response(),
    };
    if request.method() == Method::HEAD { without_body(response) } else { response.map(Body::from) }
}

impl Http {
    async fn read(
        &self,
        escaped: &str,
        query: Option<&str>,
        demand: Demand,
        span: &Span,
    ) -> Result<Answer, Problem> {
        if query.is_some() {
            return Err(Problem::Query);
        }
        let key = self.key(escaped.as_bytes()).inspect_err(|problem| {
            if matches!(problem, Problem::NotAllowed) {
                self.proxy.refused(FrontEnd::Http, Refusal::Key);
            }
        })?;
        self.proxy.get(FrontEnd::Http, &key, demand, span).await.map_err(Problem::Backend)
    }

    /// The key of this name, if it may be asked for.
    fn key<'a>(&self, escaped: &'a [u8]) -> Result<Cow<'a, [u8]>, Problem> {
        let key = percent_decode(escaped).map_err(Problem::BadEscape)?;
        if key.is_empty() {
            return Err(Problem::EmptyKey);
        }
        if key.len() > self.settings.max_key.0 {
            return Err(Problem::KeyTooLong { length: key.len(), most: self.settings.max_key });
        }
        if !self.settings.allow.permits(&key) {
            return Err(Problem::NotAllowed);
        }
        Ok(key)
    }

    /// Gives what is in memory to a plain request, or asks for it.
    fn give(
        self: &Arc<Self>,
        key: &[u8],
        request: &PlainRequest<'_>,
        now: Instant,
        to: PlainAnswer<'_>,
    ) -> Taken {
        let none_match = request.values("if-none-match");
        let demand = demand(request.values("cache-control"));
        let found = if demand == Demand::Usual { self.proxy.lookup(key, now) } else { None };
        let Some(found) = found else {
            // One list is as good as several.
            let tags = none_match.collect::<Vec<_>>().join(&b',');
            let (http, key) = (Arc::clone(self), key.to_vec());
            return Taken::Waits(Box::pin(async move {
                match http.proxy.get(FrontEnd::Http, &key, demand, &Span::none()).await {
                    Ok(answer) => http.answer(&answer, iter::once(&*tags)),
                    Err(error) => Problem::Backend(error).into_response(),
                }
            }));
        };
        self.proxy.count_key(key, now);
        let outcome = found.outcome;
        match (found.entry.value(), found.freshness) {
            (Some(value), Freshness::Fresh { remaining })
                if none_match.clone().next().is_none() =>
            {
                self.give_fresh(value, remaining, found.age, to);
            }
            _ => to.whole(&self.answer(&found, none_match)),
        }
        self.proxy.count(FrontEnd::Http, outcome, 1, now.elapsed());
        Taken::Answered
    }

    /// Gives a fresh value from memory, as [`answer`](Self::answer) would say it, but without making a map of its headers.
    fn give_fresh(
        &self,
        value: Value<'_>,
        remaining: Duration,
        age: Duration,
        mut to: PlainAnswer<'_>,
    ) {
        let mut digits = itoa::Buffer::new();
        to.head(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nx-content-type-options: nosniff\r\netag: ",
        );
        to.head(&etag(value));
        to.head(&self.behind_tag);
        to.head(digits.format(remaining.as_secs()).as_bytes());
        to.head(b"\r\nage: ");
        to.head(digits.format(age.as_secs()).as_bytes());
        to.head(b"\r\n");
        to.body(value.bytes, || value.to_bytes());
    }

    fn answer<'a>(
        &self,
        answer: &Answer,
        none_match: impl Iterator<Item = &'a [u8]>,
    ) -> Response<Bytes> {
        let Some(value) = answer.entry.value() else {
            let mut response = Problem::Absent.into_response();
            put_standing(answer, response.headers_mut());
            return response;
        };
        if any_in_lists(none_match, |tag| is_weakly(tag, &etag(value))) {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            self.put_version(answer, value, response.headers_mut());
            return response;
        }
        let mut response = Response::new(value.to_bytes());
        // For all that are put in, so that it grows but once.
        response.headers_mut().reserve(HEADERS);
        self.put_headers(answer, value, response.headers_mut());
        response
    }

    /// What the answer that has the value says of it; how long it is, whoever sends it says.
    fn put_headers(&self, answer: &Answer, value: Value<'_>, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // A value is data, whatever a browser takes it for.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.put_version(answer, value, headers);
    }

    /// Which value it is, and how things stand with it.
    fn put_version(&self, answer: &Answer, value: Value<'_>, headers: &mut HeaderMap) {
        put(headers, header::ETAG, &etag(value));
        headers.insert(header::CACHE_CONTROL, self.settings.cache_control.0.clone());
        put_standing(answer, headers);
    }
}

/// Where an answer came from, and how old it is.
fn put_standing(answer: &Answer, headers: &mut HeaderMap) {
    put(headers, CACHE_STATUS, cache_status(answer).as_bytes());
    if answer.outcome.from_memory() {
        headers.insert(header::AGE, answer.age.as_secs().into());
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    // What no header may hold, none of ours does.
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
}

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// As many headers as an answer has.
const HEADERS: usize = 8;

/// The headers of an answer alone (RFC 9110, section 9.3.2), the length of the body among them.
fn without_body(mut response: Response<Bytes>) -> Response<Body> {
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response.map(|_| Body::empty())
}

/// The tag of a value, in its quotes.
fn etag(value: Value<'_>) -> [u8; 34] {
    /// The digits of each byte.
    static DIGITS: [[u8; 2]; 256] = {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut of_all = [[0; 2]; 256];
        let mut byte = 0;
        while byte < of_all.len() {
            of_all[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
            byte += 1;
        }
        of_all
    };
    let mut text = [b'"'; 34];
    for (at, byte) in value.digest().iter().enumerate() {
        [text[1 + 2 * at], text[2 + 2 * at]] = DIGITS[usize::from(*byte)];
    }
    text
}

/// Whether a member of `If-None-Match` is this tag or any (RFC 9110, section 13.1.2: compared weakly).
fn is_weakly(tag: &[u8], etag: &[u8]) -> bool {
    tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag
}

/// What the `Cache-Control` headers of a request ask for (RFC 9111, section 5.2.1): `no-cache` wants nothing that is not
/// known to be current, and so does `max-age=0`.
fn demand<'a>(cache_control: impl Iterator<Item = &'a [u8]>) -> Demand {
    let current = |directive: &[u8]| {
        directive.eq_ignore_ascii_case(b"no-cache") || directive.eq_ignore_ascii_case(b"max-age=0")
    };
    if any_in_lists(cache_control, current) { Demand::Current } else { Demand::Usual }
}

/// Whether any member of the lists that headers have is `wanted`.
fn any_in_lists<'a>(
    mut lists: impl Iterator<Item = &'a [u8]>,
    wanted: impl Fn(&[u8]) -> bool,
) -> bool {
    lists.any(|list| list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).any(&wanted))
}

/// RFC 9211: where the answer came from, and for how much longer it would be given from memory.
fn cache_status(answer: &Answer) -> String {
    let mut text = String::with_capacity(48);
    text.push_str(match answer.outcome {
        Outcome::Hit | Outcome::Stale => "redis-proxy; hit",
        Outcome::Absent => "redis-proxy; hit; detail=absent",
        Outcome::Miss => "redis-proxy; fwd=miss",
        Outcome::Coalesced => "redis-proxy; fwd=miss; collapsed",
        Outcome::Bypass => "redis-proxy; fwd=bypass",
    });
    let mut add = |name, seconds| {
        text.push_str(name);
        text.push_str(itoa::Buffer::new().format(seconds));
    };
    match answer.freshness {
        Freshness::Fresh { remaining } => add("; ttl=", remaining.as_secs()),
        // Never "-0": what is past is past by a second at least.
        Freshness::Stale { past } => add("; ttl=-", past.as_secs() + 1),
        Freshness::Dead => {}
    }
    text
}

/// Why a request gets no value.
#[derive(Debug)]
enum Problem {
    NoRoute,
    MethodNotAllowed,
    Query,
    BadEscape(BadEscape),
    EmptyKey,
    KeyTooLong { length: usize, most: ByteSize },
    NotAllowed,
    Absent,
    Backend(BackendError),
}

impl Problem {
    fn kind(&self) -> Kind {
        match self {
            Self::NoRoute => {
                Kind::new(StatusCode::NOT_FOUND, "no-such-route", "There is nothing at this path")
            }
            Self::MethodNotAllowed => Kind::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Keys can only be read here",
            ),
            Self::Query => Kind::new(StatusCode::BAD_REQUEST, "query", "A key has no query"),
            Self::BadEscape(_) => Kind::new(
                StatusCode::BAD_REQUEST,
                "bad-escape",
                "The key is not percent-encoded correctly",
            ),
            Self::EmptyKey => Kind::new(StatusCode::BAD_REQUEST, "empty-key", "The key is empty"),
            Self::KeyTooLong { .. } => {
                Kind::new(StatusCode::URI_TOO_LONG, "key-too-long", "The key is too long")
            }
            Self::NotAllowed => {
                Kind::new(StatusCode::FORBIDDEN, "not-allowed", "This key is not given out here")
            }
            Self::Absent => Kind::new(StatusCode::NOT_FOUND, "no-such-key", "There is no such key"),
            Self::Backend(error) => backend_kind(error),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NoRoute => Some("Values are at /keys/{key}.".into()),
            Self::MethodNotAllowed => Some("GET and HEAD are allowed.".into()),
            Self::Query => Some("A question mark that belongs to the key is written %3F.".into()),
            Self::BadEscape(error) => Some(error.to_string()),
            Self::EmptyKey => Some("The path goes on after /keys/ with the key.".into()),
            Self::KeyTooLong { length, most } => {
                Some(format!("It has {length} bytes; {most} are allowed."))
            }
            Self::Backend(BackendError::Unavailable(code) | BackendError::Refused(code)) => {
                Some(format!("Redis answered: {code}"))
            }
            Self::NotAllowed | Self::Absent | Self::Backend(_) => None,
        }
    }

    fn into_response(self) -> Response<Bytes> {
        let mut response = self.kind().response(self.detail().as_deref());
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

fn backend_kind(error: &BackendError) -> Kind {
    let (status, name, title) = match error {
        BackendError::Unreachable(_) | BackendError::NotAdmitted(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "unreachable", "Redis cannot be reached")
        }
        BackendError::Disconnected => {
            (StatusCode::SERVICE_UNAVAILABLE, "disconnected", "The link to Redis was lost")
        }
        BackendError::Overloaded => {
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many reads wait for Redis")
        }
        BackendError::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Redis cannot answer now")
        }
        BackendError::Vanished => {
            (StatusCode::SERVICE_UNAVAILABLE, "going-down", "The proxy is going down")
        }
        BackendError::TimedOut => {
            (StatusCode::GATEWAY_TIMEOUT, "timeout", "Redis did not answer in time")
        }
        BackendError::Refused(_) | BackendError::Redirected(_) => {
            (StatusCode::BAD_GATEWAY, "refused", "Redis answered with an error")
        }
        BackendError::TooLarge => {
            (StatusCode::BAD_GATEWAY, "value-too-large", "The value is larger than is given out")
        }
        BackendError::WrongType => {
            (StatusCode::CONFLICT, "wrong-type", "The key does not hold a string")
        }
    };
    Kind::new(status, name, title)
}
