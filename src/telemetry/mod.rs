//! What the daemon says while it runs: lines on standard error, for people or for machines, and traces.
//!
//! Lines and traces do not depend on each other: the lines' filter lets no span through and stops none, and a collector
//! that is slow, gone or refuses is no reason to wait. Nor is a standard error that nobody reads.

mod export;
mod lines;
mod otlp;
mod writer;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};
use url::Url;

pub use self::otlp::TracesError;
use self::otlp::Tracing;
use self::writer::Writer;
use crate::trace::TARGET;
use crate::units::{self, Ratio};

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log_filter: LogFilter,
    /// Whether traces are made.
    pub traces: Traces,
    /// Where their collector is.
    pub traces_endpoint: Collector,
    /// How it is spoken with.
    pub traces_protocol: Protocol,
    /// The part of the traces that begin here which is taken.
    pub traces_ratio: Ratio,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::choose(&text, [("text", Self::Text), ("json", Self::Json)])
    }
}

/// Which log lines are written: a level, or levels by module, as `tracing_subscriber::EnvFilter` reads them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogFilter {
    /// What a client does wrong is no line of the log, or else it could fill it: the library for HTTP/2 warns of some of it,
    /// and is heard only where it is named.
    fn filter(&self) -> EnvFilter {
        EnvFilter::new(format!("h2=off,{}", self.0))
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match EnvFilter::try_new(&text) {
            Ok(_) if !text.trim().is_empty() => Ok(Self(text)),
            _ => Err(format!(
                "invalid value: string {text:?}, expected off, error, warn, info, debug or trace, \
                 or levels by module such as \"info,redis_proxy=debug\""
            )),
        }
    }
}

/// Whether traces are made, and of what kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Traces {
    /// None.
    #[default]
    Off,
    /// For a collector that speaks OTLP.
    Otlp,
}

impl TryFrom<String> for Traces {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::choose(&text, [("off", Self::Off), ("otlp", Self::Otlp)])
    }
}

/// How a collector is spoken with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum Protocol {
    /// OTLP over gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP over HTTP, in Protobuf.
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

impl TryFrom<String> for Protocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::choose(&text, [("grpc", Self::Grpc), ("http/protobuf", Self::HttpProtobuf)])
    }
}

/// Where a collector is; empty: at the standard's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector(String);

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        collector.0
    }
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = Url::parse(&text).ok();
        let right =
            url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        if right || text.is_empty() {
            return Ok(Self(text));
        }
        Err(format!(
            "invalid value: string {text:?}, expected a url such as \"http://127.0.0.1:4318\""
        ))
    }
}

/// What goes on beside the answers: lines, and traces if they are wanted. Clones are of the same.
#[derive(Clone)]
pub struct Telemetry {
    set_filter: Arc<dyn Fn(EnvFilter) + Send + Sync>,
    tracing: Option<Arc<Tracing>>,
    writer: Writer,
}

/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Traces are wanted and cannot be had.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// Somebody in this process has begun already.
    #[error("cannot begin to log: {0}")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
    /// There is nothing to write lines with.
    #[error("cannot begin to log: {0}")]
    Writer(#[from] io::Error),
}

impl Telemetry {
    /// Begins to log, and to send traces if they are wanted.
    ///
    /// # Errors
    /// What is configured for traces cannot be used, somebody in this process has begun already, or the system gives no
    /// thread to write with.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let tracing = Tracing::start(settings)?.map(Arc::new);
        let spans = tracing.as_ref().map(|tracing| {
            let layer = tracing_opentelemetry::layer().with_tracer(tracing.tracer());
            // Only what the conventions name.
            let layer = layer
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false);
            layer.with_context_activation(false).with_filter(only_spans())
        });
        let (filter, handle) = reload::Layer::new(settings.log_filter.filter());
        let writer = Writer::start()?;
        let panics = writer.clone();
        std::panic::set_hook(Box::new(move |panic| panics.tell_of_panic(panic)));
        let lines =
            lines::layer(settings.log_format, writer.clone()).with_filter(no_spans().and(filter));
        match spans {
            Some(spans) => tracing_subscriber::registry().with(lines).with(spans).try_init()?,
            // An absent layer is not the same: for all one knows it might want spans, so each place would have to ask.
            None => tracing_subscriber::registry().with(lines).try_init()?,
        }
        if tracing.is_some() {
            for problem in otlp::misunderstood() {
                tracing::warn!(problem, "not understood");
            }
        }
        // It fails only when the subscriber is gone, and then nobody writes.
        Ok(Self { set_filter: Arc::new(move |filter| _ = handle.reload(filter)), tracing, writer })
    }

    /// From now on lines are written that `filter` lets through.
    pub fn set_filter(&self, filter: &LogFilter) {
        (self.set_filter)(filter.filter());
    }

    /// How many spans no collector got.
    pub fn spans_dropped(&self) -> u64 {
        self.tracing.as_ref().map_or(0, |tracing| tracing.dropped())
    }

    /// How many lines were dropped, as nobody took them.
    pub fn lines_dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Has written what was said, within a second.
    pub fn write_out(&self) {
        self.writer.write_out(LAST_LINES);
    }

    /// Sends what waits to be sent, within two seconds.
    pub fn end(&self) {
        if let Some(tracing) = &self.tracing {
            tracing.end();
        }
    }
}

/// The spans of traces. Events do not get into them, so that what is logged stays here.
fn only_spans<S>() -> impl Filter<S> {
    filter_fn(|what| what.is_span() && what.target() == TARGET)
        .with_max_level_hint(LevelFilter::INFO)
}

/// Lines know nothing of spans, so where traces are off nobody wants a span, and none is made.
fn no_spans<S>() -> impl Filter<S> {
    filter_fn(|what| !what.is_span()).with_max_level_hint(LevelFilter::TRACE)
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
