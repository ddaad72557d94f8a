//! Logs and traces: lines on standard error, as text or JSON, and spans over OTLP.
//!
//! Lines and traces are independent: the filter of the lines lets no span through and stops none.
//! Neither a slow or missing collector nor a reader that leaves standard error unread delays the
//! daemon.

pub mod hot_keys;
mod log_filter;
mod log_format;
mod log_writer;
mod otel_variables;
#[cfg_attr(not(feature = "otlp"), path = "no_otlp.rs")]
mod otlp;
mod settings;
#[cfg(feature = "otlp")]
mod span_queue;
pub mod spans;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, reload};

pub use self::log_filter::LogFilter;
use self::log_writer::LogWriter;
use self::otlp::TracePipeline;
pub use self::otlp::TracesError;
pub use self::settings::{AccessLogMode, Collector, LogFormat, Protocol, Settings, Traces};
use self::spans::TARGET;

/// The handle of the log and of the traces, if these are enabled. Clones share both.
#[derive(Clone)]
pub struct Telemetry {
    set_filter: Arc<dyn Fn(Targets) + Send + Sync>,
    tracing: Option<Arc<TracePipeline>>,
    writer: LogWriter,
}

/// The longest time that the last lines may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason why logging or tracing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Traces are enabled and cannot start.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// This process already has a subscriber.
    #[error("cannot begin to log: {0}")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
    /// The system refuses a descriptor or a thread for the lines.
    #[error("cannot begin to log: {0}")]
    LogWriter(#[from] io::Error),
}

impl Telemetry {
    /// Starts logging, and tracing if it is enabled.
    ///
    /// # Errors
    /// [`StartError::Traces`] if the configuration of traces cannot be used. [`StartError::Logs`]
    /// if this process already has a subscriber. [`StartError::LogWriter`] if the system refuses a
    /// descriptor or a thread.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let tracing = TracePipeline::start(settings)?.map(Arc::new);
        let spans = tracing.as_ref().map(|tracing| {
            let layer = tracing_opentelemetry::layer().with_tracer(tracing.tracer());
            // Only the attributes that the conventions name.
            let layer = layer
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false);
            layer.with_context_activation(false).with_filter(only_spans())
        });
        let (filter, handle) = reload::Layer::new(settings.log_filter.filter());
        let writer = LogWriter::start()?;
        let panics = writer.clone();
        std::panic::set_hook(Box::new(move |panic| panics.log_panic(panic)));
        let lines = log_format::layer(settings.log_format, writer.clone())
            .with_filter(no_spans().and(filter));
        match spans {
            Some(spans) => tracing_subscriber::registry().with(lines).with(spans).try_init()?,
            // `None` as a layer is not the same: it could want any span, so each span would be
            // evaluated.
            None => tracing_subscriber::registry().with(lines).try_init()?,
        }
        for problem in otel_variables::invalid_variables(tracing.is_some()) {
            tracing::warn!(problem, "invalid environment variable ignored");
        }
        // It fails only if the subscriber is gone. Then no line is written either.
        let set_filter = Arc::new(move |filter| _ = handle.reload(filter));
        let telemetry = Self { set_filter, tracing, writer };
        telemetry.set_filter(&settings.log_filter);
        Ok(telemetry)
    }

    /// Replaces the filter of log lines. Warns of targets that no line has.
    pub fn set_filter(&self, filter: &LogFilter) {
        let unknown = filter.unknown_targets();
        if !unknown.is_empty() {
            // Otherwise the filter itself could suppress the warning.
            (self.set_filter)(Targets::new().with_default(LevelFilter::WARN));
            tracing::warn!(?unknown, "telemetry.log_filter names crates that log nothing here");
        }
        (self.set_filter)(filter.filter());
    }

    /// Returns the number of spans that no collector received.
    pub fn spans_dropped(&self) -> u64 {
        self.tracing.as_ref().map_or(0, |tracing| tracing.dropped())
    }

    /// Returns the number of log lines that were not written.
    pub fn lines_dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Waits until earlier lines are written, at most a second.
    pub fn flush(&self) {
        self.writer.flush_within(FLUSH_TIMEOUT);
    }

    /// Sends the queued spans, in at most two seconds.
    pub fn shutdown(&self) {
        if let Some(tracing) = &self.tracing {
            tracing.shutdown();
        }
    }
}

/// Selects the spans of traces. Events are excluded, so logged text stays out of the traces.
fn only_spans<S>() -> impl Filter<S> {
    filter_fn(|what| what.is_span() && what.target() == TARGET)
        .with_max_level_hint(LevelFilter::INFO)
}

/// Excludes all spans. So without traces no layer wants a span, and none is created.
fn no_spans<S>() -> impl Filter<S> {
    filter_fn(|what| !what.is_span()).with_max_level_hint(LevelFilter::TRACE)
}
