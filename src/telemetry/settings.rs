//! What can be configured of logs and traces.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::settings::{self, Ratio};

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
        settings::parse_choice(&text, [("text", Self::Text), ("json", Self::Json)])
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
    pub(super) fn filter(&self) -> EnvFilter {
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
        settings::parse_choice(&text, [("off", Self::Off), ("otlp", Self::Otlp)])
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
        settings::parse_choice(&text, [("grpc", Self::Grpc), ("http/protobuf", Self::HttpProtobuf)])
    }
}

/// Where a collector is; empty: at the standard's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector(pub(super) String);

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

/// An environment variable that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
