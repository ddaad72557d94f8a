//! Requests, from their head to their response.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};
use tower_http::cors::CorsLayer;
use tracing::{Instrument as _, Span};

use super::answer::{Format, Writer, error};
use super::events::{self, EventStream, NoStream};
use super::request::{BadRequest, Commands, DecodeLimits, Words, query_token};
use super::response::{Strings, elements, error_text};
use super::rights::{Denied, Refusal, StreamKind, key_refusal, refusal, stream_refusal};
use super::run::{Run, RunError};
use super::scripts::Scripts;
use super::settings::Settings;
use super::sync_token::{self, Progress, SyncTokens};
use crate::access::{FileError, Prepare, TokenFile, TokenRights, parse_bearer};
use crate::commands::CommandInfo;
use crate::http::{FastPathResult, Handler, ResponseWriter, SimpleRequest};
use crate::metrics::{FrontEnd, RejectReason};
use crate::protocol::{ParseStatus, RequestLimits, RequestParser};
use crate::proxy::Proxy;
use crate::resp::{self, KeySpecs, LocalClients};
use crate::server::Drain;
use crate::telemetry::spans::{self, Route};

/// The front end, at a path. Clones share it.
#[derive(Clone)]
pub struct Rest(Arc<Shared>, Mount);

/// The place of the front end on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mount {
    /// Below `rest.path`, beside other routes.
    Path,
    /// The whole listener.
    Root,
}

struct Shared {
    settings: Settings,
    tokens: TokenFile,
    clients: LocalClients,
    /// The clients of streams, each with a connection to Redis to itself.
    stream_clients: LocalClients,
    /// The places for streams.
    streams: Arc<Semaphore>,
    proxy: Proxy,
    /// Which arguments are keys, once Redis has reported it. Only tokens with keys need it.
    key_specs: OnceCell<KeySpecs>,
    scripts: Scripts,
    denied: Denied,
    sync_tokens: SyncTokens,
    cors: Option<CorsLayer>,
    /// The names of commands, by their labels.
    names: Vec<&'static str>,
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
        Ok(Self(Arc::new(shared), Mount::Root))
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
        is_wanted.then(|| Self(Arc::clone(&self.0), Mount::Path))
    }

    /// Returns the tokens, for other routes that they admit to.
    pub fn tokens(&self) -> TokenFile {
        self.0.tokens.clone()
    }

    /// Returns the path below the front end's own, if it is one of its paths.
    fn path_below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let own = match self.1 {
            Mount::Path => &*self.0.settings.path,
            Mount::Root => "",
        };
        let below = path.strip_prefix(own)?;
        if below.is_empty() { Some("") } else { below.strip_prefix('/') }
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
}

impl<H: Handler> Handler for WithRest<H> {
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
            Some(_) => Some(error(status, &format!("ERR {title}"))),
            None => self.others.refusal(path, status, title),
        }
    }

    fn handle_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        answer: ResponseWriter<'_>,
    ) -> FastPathResult {
        self.others.handle_simple(request, now, answer)
    }
}

/// The front end on a listener of its own.
impl Handler for Rest {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.layered(request).await
    }

    fn authenticates(&self, _path: &str) -> bool {
        true
    }

    fn refusal(&self, _path: &str, status: StatusCode, title: &str) -> Option<Response<Body>> {
        Some(error(status, &format!("ERR {title}")))
    }
}

/// A request that is answered without its commands.
struct Rejection(StatusCode, String);

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

/// The part of a request that does not depend on its commands.
struct Job<'a> {
    rights: TokenRights,
    format: Format,
    progress: &'a Arc<Progress>,
}

impl Rest {
    /// Returns the response to a request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_head = request.method() == Method::HEAD;
        let route = self.route(request.uri().path());
        let span = spans::request_span(&request, Route::Rest(route));
        let progress = Arc::new(Progress::default());
        let (head, body) = request.into_parts();
        let mut is_body_left = head.version != Version::HTTP_2 && !body.is_end_stream();
        let answered = self.respond(head, body, &mut is_body_left, &progress, &span);
        let answered = answered.instrument(span.clone());
        let answered = timeout(self.0.settings.timeout, answered).await;
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(Rejection(status, text))) => rejected(status, &text),
            Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "ERR redis-proxy: rest.timeout expired"),
        };
        spans::record_status(&span, response.status());
        self.0.proxy.record_rest_request(response.status().as_str());
        let token = progress.token(&self.0.sync_tokens, Instant::now());
        if let Some(token) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
            response.headers_mut().insert(sync_token::HEADER.clone(), token);
        }
        if is_body_left {
            // The connection ends with the rest of the body. Unannounced, that would cost the
            // client its next request.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if is_head { without_body(response) } else { response }
    }

    async fn respond(
        &self,
        head: http::request::Parts,
        body: Incoming,
        is_body_left: &mut bool,
        progress: &Arc<Progress>,
        span: &Span,
    ) -> Result<Response<Body>, Rejection> {
        let rights = self.authenticate(&head.headers, head.uri.query())?;
        let seen = head.headers.get(&sync_token::HEADER).map(HeaderValue::as_bytes);
        progress.begin(self.0.sync_tokens.read(seen, Instant::now()));
        let has_body = match head.method {
            Method::POST | Method::PUT => true,
            Method::GET | Method::HEAD => false,
            _ => {
                let text = "ERR method not allowed, expected GET, POST, PUT or HEAD";
                return Err(Rejection(StatusCode::METHOD_NOT_ALLOWED, text.into()));
            }
        };
        let format = format(&head.headers)?;
        let job = Job { rights, format, progress };
        let body = if has_body { self.read(body).await? } else { Bytes::new() };
        *is_body_left &= !has_body;
        let path = self.path_below(head.uri.path()).unwrap_or_default();
        if let Some((command, kind)) = wanted_stream(&head, path) {
            let drain = head.extensions.get().cloned().unwrap_or_else(Drain::never);
            // Boxed, it does not enlarge the future of each command.
            return Box::pin(self.begin_stream(&job, &command, kind, drain)).await;
        }
        let commands = self.decode(path, has_body, &body, head.uri.query())?;
        let labels = commands.iter().map(|words| self.0.clients.find(words.get(0)).label);
        spans::record_commands(span, labels.map(|label| self.0.names[label]));
        match path {
            "pipeline" => self.pipeline(&job, &commands).await,
            "multi-exec" => self.transaction(&job, &commands).await,
            _ => self.single(&job, &commands).await,
        }
    }

    /// Returns the commands of a request. One with `has_body` is a `POST` or `PUT`.
    fn decode(
        &self,
        path: &str,
        has_body: bool,
        body: &[u8],
        query: Option<&str>,
    ) -> Result<Commands, Rejection> {
        let limits = DecodeLimits { max_commands: self.0.settings.max_commands };
        match (path, has_body) {
            ("pipeline" | "multi-exec", true) => Ok(Commands::pipeline(body, limits)?),
            ("pipeline" | "multi-exec", false) => {
                let text = "ERR method not allowed, expected POST";
                Err(Rejection(StatusCode::METHOD_NOT_ALLOWED, text.into()))
            }
            ("", true) => Ok(Commands::single(body)?),
            (path, _) => Ok(Commands::path(path, body, query)?),
        }
    }

    /// Returns the route of a path, without what a client put into it.
    fn route(&self, path: &str) -> &'static str {
        match self.path_below(path).unwrap_or_default() {
            "" => "/",
            "pipeline" => "/pipeline",
            "multi-exec" => "/multi-exec",
            _ => "/{command}",
        }
    }

    /// Returns the rights of the request's token.
    fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<TokenRights, Rejection> {
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let rights = match (shown.next(), shown.next()) {
            (None, _) => query_token(query).and_then(|token| self.0.tokens.rights(&token)),
            (Some(one), None) => {
                parse_bearer(one.as_bytes()).and_then(|token| self.0.tokens.rights(token))
            }
            // It is not clear which one counts.
            (Some(_), Some(_)) => None,
        };
        rights.ok_or_else(|| {
            self.0.proxy.record_rejected(FrontEnd::Rest, RejectReason::Token);
            let text = "WRONGPASS invalid or missing auth token";
            Rejection(StatusCode::UNAUTHORIZED, text.into())
        })
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
        job: &Job<'_>,
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

    /// Runs one command.
    async fn single(
        &self,
        job: &Job<'_>,
        commands: &Commands,
    ) -> Result<Response<Body>, Rejection> {
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job.progress);
        self.add_all(&mut run, &job.rights, specs, commands)?;
        run.send();
        let mut writer = Writer::single(job.format);
        writer.add(run.reply().await?).map_err(RunError::from)?;
        run.finish();
        Ok(writer.finish())
    }

    /// Runs commands one after the other. Each has its reply or its error in its place.
    async fn pipeline(
        &self,
        job: &Job<'_>,
        commands: &Commands,
    ) -> Result<Response<Body>, Rejection> {
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job.progress);
        let mut refusals = Vec::with_capacity(commands.len());
        for command in commands.iter() {
            let info = self.0.clients.find(command.get(0));
            let refusal = self.refusal(&job.rights, specs, info, command);
            match &refusal {
                Some(refusal) => self.count(refusal),
                None => self.add(&mut run, info, command),
            }
            refusals.push(refusal);
        }
        run.send();
        let mut writer = Writer::list(job.format);
        let mut failed = None;
        for refusal in &refusals {
            match (refusal, failed) {
                (Some(refusal), _) => writer.add_error(&refusal.text()),
                (None, Some(error)) => writer.add_error(error),
                (None, None) => match run.reply().await {
                    Ok(reply) => writer.add(reply).map_err(RunError::from)?,
                    // A client would take a part of the replies for all of them.
                    Err(RunError::Lost) => {
                        failed = Some(LOST);
                        writer.add_error(LOST);
                    }
                    Err(error) => return Err(error.into()),
                },
            }
            if writer.len() > self.0.settings.max_response.0 {
                return Err(RunError::TooLarge.into());
            }
        }
        run.finish();
        Ok(writer.finish())
    }

    /// Runs commands as one transaction, or none of them.
    async fn transaction(
        &self,
        job: &Job<'_>,
        commands: &Commands,
    ) -> Result<Response<Body>, Rejection> {
        if job.format == Format::Resp2 {
            return Err(bad_request("ERR resp2 is not supported for multi-exec"));
        }
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job.progress);
        self.add_line(&mut run, b"MULTI", b"*1\r\n$5\r\nMULTI\r\n");
        self.add_all(&mut run, &job.rights, specs, commands)?;
        self.add_line(&mut run, b"EXEC", b"*1\r\n$4\r\nEXEC\r\n");
        run.send();
        let mut refused = None;
        // The replies to MULTI and to each command that is queued.
        for _ in 0..=commands.len() {
            let reply = run.reply().await?;
            refused = refused.or_else(|| error_text(reply).map(<[u8]>::to_vec));
        }
        let reply = run.reply().await?;
        let replies = elements(reply).filter(|replies| replies.len() == commands.len());
        let Some(replies) = replies else {
            let own = || error_text(reply).map(<[u8]>::to_vec);
            let text = refused.or_else(own).unwrap_or_else(|| b"ERR transaction discarded".into());
            run.finish();
            return Err(bad_request(&String::from_utf8_lossy(&text)));
        };
        let mut writer = Writer::list(job.format);
        for reply in replies {
            writer.add(reply).map_err(RunError::from)?;
        }
        run.finish();
        Ok(writer.finish())
    }

    fn run(&self, progress: &Arc<Progress>) -> Run {
        let client = self.0.clients.client(progress.seen().time());
        Run::new(client, self.0.settings.max_response.0, Arc::clone(progress))
    }

    /// Adds commands that run all or not at all: the first refused one rejects the request.
    fn add_all(
        &self,
        run: &mut Run,
        rights: &TokenRights,
        specs: Option<&KeySpecs>,
        commands: &Commands,
    ) -> Result<(), Rejection> {
        for command in commands.iter() {
            let info = self.0.clients.find(command.get(0));
            if let Some(refusal) = self.refusal(rights, specs, info, command) {
                return Err(self.rejection(&refusal));
            }
            self.add(run, info, command);
        }
        Ok(())
    }

    fn add(&self, run: &mut Run, info: CommandInfo, command: Words<'_>) {
        let name = command.get(0);
        match self.0.scripts.replacement(command) {
            None => run.add(name, info, |out| command.write(out)),
            Some((index, word)) => {
                run.add(name, info, |out| command.write_with(index, &word, out));
            }
        }
    }

    fn add_line(&self, run: &mut Run, name: &[u8], line: &[u8]) {
        run.add(name, self.0.clients.find(name), |out| out.extend_from_slice(line));
    }

    /// Returns the reason why a command does not run. `specs` are those of these rights.
    fn refusal(
        &self,
        rights: &TokenRights,
        specs: Option<&KeySpecs>,
        info: CommandInfo,
        command: Words<'_>,
    ) -> Option<Refusal> {
        let found = refusal(&self.0.denied, rights, info, command);
        let Some(specs) = specs.filter(|_| found.is_none()) else { return found };
        let mut input = BytesMut::new();
        command.write(&mut input);
        let mut parser = RequestParser::default();
        let limits = RequestLimits { max_bulk: usize::MAX, max_arguments: usize::MAX };
        if parser.parse(&input, limits) != Ok(ParseStatus::Complete(input.len())) {
            return Some(Refusal::Key);
        }
        let arguments = parser.arguments(&input);
        let keys = || {
            let indexes = if info.is_known { specs.keys(arguments) } else { Vec::new() };
            indexes.into_iter().map(|index| arguments.get(index)).collect()
        };
        key_refusal(rights, info.class, arguments, keys)
    }

    /// Returns which arguments of commands are keys; `None` for a token that may use all keys.
    async fn specs_for(&self, rights: &TokenRights) -> Result<Option<&KeySpecs>, Rejection> {
        if rights.keys.allows_all() {
            return Ok(None);
        }
        // Boxed, it does not enlarge the future of each request.
        Box::pin(self.key_specs()).await.map(Some)
    }

    /// Returns which arguments of commands are keys, as Redis reports it.
    async fn key_specs(&self) -> Result<&KeySpecs, Rejection> {
        let unavailable = |text: &str| {
            let text = format!("ERR redis-proxy: cannot find the keys of commands: {text}");
            Rejection(StatusCode::SERVICE_UNAVAILABLE, text)
        };
        let read = self.0.key_specs.get_or_try_init(|| async {
            let own = Arc::default();
            let mut run = Run::new(self.0.clients.client(None), MAX_COMMAND_TABLE, own);
            self.add_line(&mut run, b"COMMAND", b"*1\r\n$7\r\nCOMMAND\r\n");
            run.send();
            let reply = run.reply().await.map_err(|error| unavailable(&error.to_string()))?;
            let parsed = redis::parse_redis_value(reply);
            run.finish();
            let parsed = parsed.map_err(|_| unavailable("no valid reply to COMMAND"))?;
            let specs = KeySpecs::read(&parsed);
            if specs.is_empty() { Err(unavailable("no reply to COMMAND")) } else { Ok(specs) }
        });
        read.await
    }

    fn count(&self, refusal: &Refusal) {
        let reason =
            if *refusal == Refusal::Key { RejectReason::Key } else { RejectReason::Command };
        self.0.proxy.record_rejected(FrontEnd::Rest, reason);
    }

    fn rejection(&self, refusal: &Refusal) -> Rejection {
        self.count(refusal);
        let status =
            if refusal.is_of_token() { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
        Rejection(status, refusal.text())
    }
}

/// The error in the place of each reply that was lost.
const LOST: &str = "ERR redis-proxy: the connection to Redis was lost, so the command may have run";

/// The largest reply to `COMMAND`. That of Redis 8 with all its modules has less than 1 MiB.
const MAX_COMMAND_TABLE: usize = 16 << 20;

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

fn bad_request(text: &str) -> Rejection {
    Rejection(StatusCode::BAD_REQUEST, text.to_owned())
}

fn rejected(status: StatusCode, text: &str) -> Response<Body> {
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

static ENCODING: HeaderName = HeaderName::from_static("upstash-encoding");
static RESPONSE_FORMAT: HeaderName = HeaderName::from_static("upstash-response-format");

/// Returns the form of the response that a request wants.
fn format(headers: &HeaderMap) -> Result<Format, Rejection> {
    let value = |name: &HeaderName| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let strings = if value(&ENCODING).eq_ignore_ascii_case(b"base64") {
        Strings::Base64
    } else {
        Strings::Text
    };
    match (value(&RESPONSE_FORMAT).to_ascii_lowercase().as_slice(), strings) {
        (b"" | b"json", _) => Ok(Format::Json(strings)),
        (b"resp2", Strings::Text) => Ok(Format::Resp2),
        (b"resp2", Strings::Base64) => Err(bad_request("ERR resp2 cannot be combined with base64")),
        _ => Err(bad_request("ERR unknown Upstash-Response-Format, expected json or resp2")),
    }
}
