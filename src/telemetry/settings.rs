//! `[telemetry]`: logs and traces.

use serde::{Deserialize, Serialize};
use url::Url;

use super::log_filter::LogFilter;
use crate::settings::{self, MASK, Ratio};

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The filter of log lines.
    pub log_filter: LogFilter,
    /// The requests over HTTP that get a log line.
    pub access_log: AccessLogMode,
    /// The part of them that gets one, from 0 to 1.
    pub access_log_sample: Ratio,
    /// Whether these lines have the path with its key.
    pub access_log_keys: bool,
    /// Whether spans are exported.
    pub traces: Traces,
    /// The address of the collector.
    pub traces_endpoint: Collector,
    /// The protocol of the collector.
    pub traces_protocol: Protocol,
    /// The part of the traces beginning here that is exported, from 0 to 1.
    pub traces_ratio: Ratio,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogFormat {
    /// Text for operators.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(&text, [("text", Self::Text), ("json", Self::Json)])
    }
}

/// The requests over HTTP that get a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum AccessLogMode {
    /// None.
    #[default]
    Off,
    /// Those that got an error, but for keys that do not exist.
    Errors,
    /// All.
    All,
}

impl TryFrom<String> for AccessLogMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let choices = [("off", Self::Off), ("errors", Self::Errors), ("all", Self::All)];
        settings::parse_choice(&text, choices)
    }
}

/// The exporter of spans, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Traces {
    /// No export.
    #[default]
    Off,
    /// Export to a collector over OTLP.
    Otlp,
}

impl TryFrom<String> for Traces {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(&text, [("off", Self::Off), ("otlp", Self::Otlp)])
    }
}

/// The protocol of a collector.
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

/// The URL of a collector. Empty means the standard's default. A password in it is masked when the
/// configuration is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector(pub(super) String);

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        let url = Url::parse(&collector.0).ok().filter(|url| url.password().is_some());
        let masked = url.and_then(|mut url| url.set_password(Some(MASK)).ok().map(|()| url.into()));
        masked.unwrap_or(collector.0)
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

/// Returns an environment variable, unless it is empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
