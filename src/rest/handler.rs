//! Requests, from their head to their response.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tower_http::cors::CorsLayer;
use tracing::{Instrument as _, Span};

use super::answer::{Format, error};
use super::events::{self, EventStream, NoStream};
use super::request::{BadRequest, Commands, DecodeLimits, query_token};
use super::response::Strings;
use super::rights::{Denied, StreamKind, stream_refusal};
use super::run::RunError;
use super::scripts::Scripts;
use super::settings::Settings;
use super::sync_token::{self, ConnectionWrites, Progress, Seen, SyncTokens};
use crate::access::{FileError, Prepare, TokenFile, TokenRights, parse_bearer};
use crate::http::{FastPathResult, Handler, ResponseWriter, SimpleRequest};
use crate::metrics::{FrontEnd, RejectReason};
use crate::proxy::Proxy;
use crate::resp::{self, KeySpecs, LocalClients};
use crate::server::Drain;
use crate::telemetry::spans::{self, Route};

/// The front end, at a path. Clones share it, and with it the writes of one connection.
#[derive(Clone)]
pub struct Rest(pub(super) Arc<Shared>, Mount, ConnectionWrites);

/// The place of the front end on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mount {
    /// Below `rest.path`, beside other routes.
    Path,
    /// The whole listener.
    Root,
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) tokens: TokenFile,
    pub(super) clients: LocalClients,
    /// The clients of streams, each with a connection to Redis to itself.
    pub(super) stream_clients: LocalClients,
    /// The places for streams.
    pub(super) streams: Arc<Semaphore>,
    pub(super) proxy: Proxy,
    /// Which arguments are keys, once Redis has reported it. Only tokens with keys need it.
    pub(super) key_specs: OnceCell<KeySpecs>,
    pub(super) scripts: Scripts,
    pub(super) denied: Denied,
    pub(super) sync_tokens: SyncTokens,
    pub(super) cors: Option<CorsLayer>,
    /// The names of commands, by their labels.
    pub(super) names: Vec<&'static str>,
}

impl Rest {
    /// A front end for `proxy`, which caches keys of at most `max_key` bytes. Of `resp`, the lists
    /// of cached commands apply.
    ///
    /// # Errors
    /// [`FileError`] if the file of tokens cannot be used.
    pub fn prepare(
        settings: Settings,
        resp: &resp::Settings,
        max_key: usize,
        proxy: Proxy,
    ) -> Result<Self, FileError> {
        let tokens = settings.tokens()?;
        let login = settings.redis_login()?.map(Arc::new);
        let of_clients = resp::Settings {
            cache_also: resp.cache_also.clone(),
            cache_except: resp.cache_except.clone(),
            info: resp.info,
            max_bulk: settings.max_body,
            // A body is held whole, with the lengths of its words in front of them.
            max_query_buffer: crate::settings::ByteSize(settings.max_body.0.saturating_mul(8)),
            max_output_buffer: settings.max_response,
            ..resp::Settings::default()
        };
        let of_client = |pool| {
            let (front_end, proxy) = (FrontEnd::Rest, proxy.clone());
            LocalClients::new(front_end, of_clients.clone(), max_key, pool, login.clone(), proxy)
        };
        let (clients, stream_clients) = (of_client(Some(settings.max_upstream)), of_client(None));
        let streams = Arc::new(Semaphore::new(settings.max_streams));
        let (key_specs, scripts) = (OnceCell::new(), Scripts::default());
        let denied = Denied::new(settings.deny_commands.clone());
        let cors = settings.cors_origins.layer();
        let sync_tokens = SyncTokens::new(rand::random(), Instant::now());
        let shared = Shared {
            settings,
            tokens,
            clients,
            stream_clients,
            streams,
            proxy,
            key_specs,
            scripts,
            denied,
            sync_tokens,
            cors,
            names: crate::commands::names(),
        };
        Ok(Self(Arc::new(shared), Mount::Root, ConnectionWrites::default()))
    }

    /// Returns the function that reads the tokens again at a reload.
    pub fn reloader(&self) -> Prepare {
        self.0.tokens.reloader()
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn cors(&self) -> Option<&CorsLayer> {
        self.0.cors.as_ref()
    }

    /// Returns the front end below `rest.path`, if that is set.
    pub fn beside_others(&self) -> Option<Self> {
        let is_wanted = !self.0.settings.path.is_empty();
        is_wanted.then(|| Self(Arc::clone(&self.0), Mount::Path, ConnectionWrites::default()))
    }

    /// Returns the writes that a request with this token, which arrived at `now`, has to see.
    pub(super) fn seen(&self, token: Option<&[u8]>, now: Instant) -> Seen {
        self.0.sync_tokens.read(token, now, &self.2)
    }

    /// Returns the tokens, for other routes that they admit to.
    pub fn tokens(&self) -> TokenFile {
        self.0.tokens.clone()
    }

    /// Returns the path below the front end's own, if it is one of its paths.
    fn path_below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let below = self.below(path.as_bytes())?;
        Some(&path[path.len() - below.len()..])
    }

    /// The same for a path that may not be text.
    fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let own = match self.1 {
            Mount::Path => &*self.0.settings.path,
            Mount::Root => "",
        };
        let below = path.strip_prefix(own.as_bytes())?;
        if below.is_empty() { Some(below) } else { below.strip_prefix(b"/") }
    }

    /// Returns the form of a request for a path, if it is one of the front end's own.
    pub(super) fn form_of(&self, path: &[u8]) -> Option<Form> {
        self.below(path).map(Form::of)
    }
}

/// A handler that leaves the paths of the REST front end to it, and all others to `others`.
#[derive(Clone)]
pub struct WithRest<H> {
    rest: Option<Rest>,
    others: H,
}

impl<H> WithRest<H> {
    /// Serves `rest`, if there is one, beside `others`.
    pub fn new(rest: Option<Rest>, others: H) -> Self {
        Self { rest, others }
    }

    fn rest_for(&self, path: &str) -> Option<&Rest> {
        self.rest.as_ref().filter(|rest| rest.path_below(path).is_some())
    }

    fn rest_of(&self, request: &SimpleRequest<'_>) -> Option<&Rest> {
        self.rest.as_ref().filter(|rest| rest.form_of(request.path()).is_some())
    }
}

impl<H: Handler> Handler for WithRest<H> {
    fn for_connection(&self) -> Self {
        Self {
            rest: self.rest.as_ref().map(Handler::for_connection),
            others: self.others.for_connection(),
        }
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        match self.rest_for(request.uri().path()) {
            // Its future is large. Boxed, it does not enlarge that of a read.
            Some(rest) => Box::pin(rest.layered(request)).await,
            None => self.others.handle(request).await,
        }
    }

    fn authenticates(&self, path: &str) -> bool {
        self.rest_for(path).is_some() || self.others.authenticates(path)
    }

    fn refusal(&self, path: &str, status: StatusCode, title: &str) -> Option<Response<Body>> {
        match self.rest_for(path) {
            Some(_) => Some(error(status, &format!("ERR {title}")).map(Body::from)),
            None => self.others.refusal(path, status, title),
        }
    }

    fn handle_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        match self.rest_of(request) {
            Some(rest) => rest.handle_simple(request, now, answer),
            None => self.others.handle_simple(request, now, answer),
        }
    }

    fn awaits_body(&self, request: &SimpleRequest<'_>, now: Instant) -> bool {
        match self.rest_of(request) {
            Some(rest) => rest.awaits_body(request, now),
            None => self.others.awaits_body(request, now),
        }
    }
}

/// The front end on a listener of its own.
impl Handler for Rest {
    fn for_connection(&self) -> Self {
        Self(Arc::clone(&self.0), self.1, ConnectionWrites::default())
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.layered(request).await
    }

    fn authenticates(&self, _path: &str) -> bool {
        true
    }

    fn refusal(&self, _path: &str, status: StatusCode, title: &str) -> Option<Response<Body>> {
        Some(error(status, &format!("ERR {title}")).map(Body::from))
    }

    fn handle_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        self.answer_simple(request, now, answer)
    }

    fn awaits_body(&self, request: &SimpleRequest<'_>, now: Instant) -> bool {
        self.simple_job(request, now).is_some()
    }
}

/// A request that is answered without its commands.
pub(super) struct Rejection(pub(super) StatusCode, pub(super) String);

impl From<BadRequest> for Rejection {
    fn from(error: BadRequest) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<RunError> for Rejection {
    fn from(error: RunError) -> Self {
        Self(StatusCode::BAD_GATEWAY, error.to_string())
    }
}

/// The form of a request, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One command, in the body.
    Single,
    /// Commands that run one after the other.
    Pipeline,
    /// Commands that run as one transaction.
    Transaction,
    /// One command, in the path.
    Path,
}

impl Form {
    /// The form for a path below the front end's own.
    fn of(path: &[u8]) -> Self {
        match path {
            b"" => Self::Single,
            b"pipeline" => Self::Pipeline,
            b"multi-exec" => Self::Transaction,
            _ => Self::Path,
        }
    }

    /// The route in traces, without what a client put into the path.
    fn route(self) -> &'static str {
        match self {
            Self::Single => "/",
            Self::Pipeline => "/pipeline",
            Self::Transaction => "/multi-exec",
            Self::Path => "/{command}",
        }
    }
}

/// The part of a request that does not depend on its commands.
pub(super) struct Job {
    pub(super) form: Form,
    pub(super) rights: TokenRights,
    pub(super) format: Format,
    pub(super) seen: Seen,
}

impl Rest {
    /// Returns the response to a request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_head = request.method() == Method::HEAD;
        let form = self.form_of(request.uri().path().as_bytes()).unwrap_or(Form::Path);
        let span = spans::request_span(&request, Route::Rest(form.route()));
        let progress = Arc::new(Progress::default());
        let (head, body) = request.into_parts();
        let mut is_body_left = head.version != Version::HTTP_2 && !body.is_end_stream();
        let answered = self.respond(head, body, form, &mut is_body_left, &progress, &span);
        let answered = answered.instrument(span.clone());
        let answered = timeout(self.0.settings.timeout, answered).await;
        let mut response = self.complete(answered, &progress);
        spans::record_status(&span, response.status());
        if is_body_left {
            // The connection ends with the rest of the body. Unannounced, that would cost the
            // client its next request.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if is_head { without_body(response) } else { response }
    }

    /// Returns the response to a request that has ended, with its token, and counts it.
    pub(super) fn complete<B: From<Bytes>>(
        &self,
        answered: Result<Result<Response<B>, Rejection>, Elapsed>,
        progress: &Progress,
    ) -> Response<B> {
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(Rejection(status, text))) => rejected(status, &text).map(B::from),
            Err(_) => {
                let text = "ERR redis-proxy: rest.timeout expired";
                error(StatusCode::GATEWAY_TIMEOUT, text).map(B::from)
            }
        };
        self.0.proxy.record_rest_request(response.status().as_str());
        let now = Instant::now();
        self.2.record(progress.last_write(now));
        let token = progress.token(&self.0.sync_tokens, now);
        if let Some(token) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
            response.headers_mut().insert(sync_token::HEADER.clone(), token);
        }
        response
    }

    async fn respond(
        &self,
        head: http::request::Parts,
        body: Incoming,
        form: Form,
        is_body_left: &mut bool,
        progress: &Arc<Progress>,
        span: &Span,
    ) -> Result<Response<Body>, Rejection> {
        let rights = self.authenticate(&head.headers, head.uri.query())?;
        let shown = head.headers.get(&sync_token::HEADER).map(HeaderValue::as_bytes);
        let seen = self.seen(shown, Instant::now());
        progress.begin(seen);
        let has_body = match head.method {
            Method::POST | Method::PUT => true,
            Method::GET | Method::HEAD => false,
            _ => {
                let text = "ERR method not allowed, expected GET, POST, PUT or HEAD";
                return Err(Rejection(StatusCode::METHOD_NOT_ALLOWED, text.into()));
            }
        };
        let value = |name| head.headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let format = format(value(ENCODING), value(RESPONSE_FORMAT))?;
        let job = Job { form, rights, format, seen };
        let body = if has_body { self.read(body).await? } else { Bytes::new() };
        *is_body_left &= !has_body;
        let path = self.path_below(head.uri.path()).unwrap_or_default();
        if let Some((command, kind)) = wanted_stream(&head, path) {
            let drain = head.extensions.get().cloned().unwrap_or_else(Drain::never);
            // Boxed, it does not enlarge the future of each command.
            return Box::pin(self.begin_stream(&job, &command, kind, drain)).await;
        }
        let commands = match (form, has_body) {
            (Form::Path, _) | (Form::Single, false) => {
                Commands::path(path, &body, head.uri.query())?
            }
            (form, true) => self.decode(form, &body)?,
            (_, false) => {
                let text = "ERR method not allowed, expected POST";
                return Err(Rejection(StatusCode::METHOD_NOT_ALLOWED, text.into()));
            }
        };
        let labels = commands.iter().map(|words| self.0.clients.find(words.get(0)).label);
        spans::record_commands(span, labels.map(|label| self.0.names[label]));
        self.execute(&job, &commands, progress).await.map(|response| response.map(Body::from))
    }

    /// Returns the commands of a body.
    pub(super) fn decode(&self, form: Form, body: &[u8]) -> Result<Commands, BadRequest> {
        let limits = DecodeLimits { max_commands: self.0.settings.max_commands };
        if form == Form::Single { Commands::single(body) } else { Commands::pipeline(body, limits) }
    }

    /// Returns the rights of the request's token.
    fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<TokenRights, Rejection> {
        let shown = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        self.rights(shown, query).ok_or_else(|| {
            self.0.proxy.record_rejected(FrontEnd::Rest, RejectReason::Token);
            let text = "WRONGPASS invalid or missing auth token";
            Rejection(StatusCode::UNAUTHORIZED, text.into())
        })
    }

    /// Returns the rights of the token in these `Authorization` headers, or without one in the
    /// query.
    pub(super) fn rights<'a>(
        &self,
        mut shown: impl Iterator<Item = &'a [u8]>,
        query: Option<&str>,
    ) -> Option<TokenRights> {
        match (shown.next(), shown.next()) {
            (None, _) => query_token(query).and_then(|token| self.0.tokens.rights(&token)),
            (Some(one), None) => parse_bearer(one).and_then(|token| self.0.tokens.rights(token)),
            // It is not clear which one counts.
            (Some(_), Some(_)) => None,
        }
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Rejection> {
        let max = self.0.settings.max_body;
        let rejected = |error: axum::BoxError| {
            if error.is::<LengthLimitError>() {
                let text = format!("ERR the body is larger than {max}");
                Rejection(StatusCode::PAYLOAD_TOO_LARGE, text)
            } else {
                Rejection(StatusCode::BAD_REQUEST, "ERR the body ended early".into())
            }
        };
        let mut body = Limited::new(body, max.0);
        // A small body arrives whole, and is not collected.
        let Some(first) = body.frame().await else { return Ok(Bytes::new()) };
        let first = first.map_err(rejected)?.into_data().unwrap_or_default();
        if body.is_end_stream() {
            return Ok(first);
        }
        let rest = body.collect().await.map_err(rejected)?.to_bytes();
        Ok(if rest.is_empty() { first } else { [first, rest].concat().into() })
    }

    async fn begin_stream(
        &self,
        job: &Job,
        command: &Commands,
        kind: StreamKind,
        drain: Drain,
    ) -> Result<Response<Body>, Rejection> {
        let settings = &self.0.settings;
        let words = command.iter().next().ok_or(BadRequest::EmptyCommand)?;
        if let Some(refusal) = stream_refusal(settings, &job.rights, kind, words) {
            return Err(self.rejection(&refusal));
        }
        let place = Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| {
            let text = "ERR redis-proxy: there are rest.max_streams streams already";
            Rejection(StatusCode::SERVICE_UNAVAILABLE, text.into())
        })?;
        let stream = EventStream {
            client: self.0.stream_clients.client(None),
            kind,
            max_message: settings.max_response.0,
            patience: settings.timeout,
            drain,
            place,
            open: self.0.proxy.open_stream(),
        };
        let info = self.0.clients.find(words.get(0));
        stream.begin(command, info).await.map_err(|error| match error {
            NoStream::Refused(text) => bad_request(&text),
            NoStream::Lost(text) => Rejection(StatusCode::BAD_GATEWAY, text),
        })
    }
}

/// Returns the command and the kind of the stream of events that a request wants, if it wants one.
/// The body of such a request is empty, or an empty list.
fn wanted_stream(head: &http::request::Parts, path: &str) -> Option<(Commands, StreamKind)> {
    let is_wanted = head.method != Method::HEAD && events::is_accepted(&head.headers);
    let command = is_wanted.then(|| Commands::path(path, b"", head.uri.query()).ok()).flatten()?;
    let kind = StreamKind::of(command.iter().next()?.get(0))?;
    Some((command, kind))
}

/// Returns the response to `HEAD`: that to `GET` without its body.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response.map(|_| Body::empty())
}

pub(super) fn bad_request(text: &str) -> Rejection {
    Rejection(StatusCode::BAD_REQUEST, text.to_owned())
}

fn rejected(status: StatusCode, text: &str) -> Response<Bytes> {
    let mut response = error(status, text);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"redis-proxy\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    } else if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST, PUT, HEAD"));
    }
    response
}

/// The headers that choose the form of a response.
pub(super) const ENCODING: &str = "upstash-encoding";
pub(super) const RESPONSE_FORMAT: &str = "upstash-response-format";

/// Returns the form of the response that a request wants by the values of its headers.
pub(super) fn format(encoding: &[u8], response_format: &[u8]) -> Result<Format, Rejection> {
    let strings =
        if encoding.eq_ignore_ascii_case(b"base64") { Strings::Base64 } else { Strings::Text };
    match (response_format.to_ascii_lowercase().as_slice(), strings) {
        (b"" | b"json", _) => Ok(Format::Json(strings)),
        (b"resp2", Strings::Text) => Ok(Format::Resp2),
        (b"resp2", Strings::Base64) => Err(bad_request("ERR resp2 cannot be combined with base64")),
        _ => Err(bad_request("ERR unknown Upstash-Response-Format, expected json or resp2")),
    }
}
