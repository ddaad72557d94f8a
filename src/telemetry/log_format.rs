//! The format of log lines.
//!
//! journald stamps each line with the time, so text for it has none. A JSON line that is written
//! while a traced request is served names its trace, by the names of OpenTelemetry's log model.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use opentelemetry::trace::TraceContextExt as _;
use tracing::{Event, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer as LineWriter;
use tracing_subscriber::fmt::{self as lines, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::log_writer::LogWriter;
use super::settings::{LogFormat, variable};

/// Builds the layer that formats lines for standard error.
pub(super) fn layer<S>(format: LogFormat, writer: LogWriter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = lines::layer().with_writer(move || writer.clone());
    match format {
        LogFormat::Text => {
            let layer = layer.with_ansi(io::stderr().is_terminal() && terminal_has_colours());
            if is_journal() { layer.without_time().boxed() } else { layer.boxed() }
        }
        LogFormat::Json => layer.json().flatten_event(true).map_event_format(WithTrace).boxed(),
    }
}

/// Whether the environment leaves colours on (`NO_COLOR`, <https://no-color.org>), and the terminal
/// can show them.
fn terminal_has_colours() -> bool {
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// Whether standard error is connected to systemd's journal (`JOURNAL_STREAM`, systemd.exec(5)).
fn is_journal() -> bool {
    let Some(stream) = variable("JOURNAL_STREAM") else { return false };
    let is_it = |error: File| {
        Some(stream == error.metadata().ok().map(|file| format!("{}:{}", file.dev(), file.ino()))?)
    };
    io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .ok()
        .and_then(|error| is_it(error.into()))
        .unwrap_or(false)
}

/// JSON lines, with their trace and span.
struct WithTrace<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: LineWriter<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // The lines' filter lets no span through, so the span is read without it.
        let traced = Span::current().context();
        let traced = traced.span().span_context().clone();
        if !traced.is_valid() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0.format_event(context, LineWriter::new(&mut line), event)?;
        let open = line.trim_end().strip_suffix('}').unwrap_or(&line);
        writeln!(
            writer,
            "{open},\"trace_id\":\"{}\",\"span_id\":\"{}\"}}",
            traced.trace_id(),
            traced.span_id()
        )
    }
}
