//! What the daemon says while it runs: lines on standard error, for people or for machines, and traces.
//!
//! Lines and traces do not depend on each other: the lines' filter lets no span through and stops none, and a collector
//! that is slow, gone or refuses is no reason to wait. Nor is a standard error that nobody reads.

pub mod hot_keys;
mod log_format;
mod log_writer;
mod otlp;
mod settings;
mod span_queue;
pub mod spans;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use self::log_writer::LogWriter;
use self::otlp::TracePipeline;
pub use self::otlp::TracesError;
pub use self::settings::{Collector, LogFilter, LogFormat, Protocol, Settings, Traces};
use self::spans::TARGET;

/// What goes on beside the answers: lines, and traces if they are wanted. Clones are of the same.
#[derive(Clone)]
pub struct Telemetry {
    set_filter: Arc<dyn Fn(EnvFilter) + Send + Sync>,
    tracing: Option<Arc<TracePipeline>>,
    writer: LogWriter,
}

/// How long the last lines may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

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
    LogWriter(#[from] io::Error),
}

impl Telemetry {
    /// Begins to log, and to send traces if they are wanted.
    ///
    /// # Errors
    /// What is configured for traces cannot be used, somebody in this process has begun already, or the system gives no
    /// thread to write with.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let tracing = TracePipeline::start(settings)?.map(Arc::new);
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
        let writer = LogWriter::start()?;
        let panics = writer.clone();
        std::panic::set_hook(Box::new(move |panic| panics.log_panic(panic)));
        let lines = log_format::layer(settings.log_format, writer.clone())
            .with_filter(no_spans().and(filter));
        match spans {
            Some(spans) => tracing_subscriber::registry().with(lines).with(spans).try_init()?,
            // An absent layer is not the same: for all one knows it might want spans, so each place would have to ask.
            None => tracing_subscriber::registry().with(lines).try_init()?,
        }
        if tracing.is_some() {
            for problem in otlp::invalid_variables() {
                tracing::warn!(problem, "invalid environment variable ignored");
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
    pub fn flush(&self) {
        self.writer.flush_within(FLUSH_TIMEOUT);
    }

    /// Sends what waits to be sent, within two seconds.
    pub fn shutdown(&self) {
        if let Some(tracing) = &self.tracing {
            tracing.shutdown();
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
