//! The place of `otlp.rs` in a program that is built without the feature `otlp`: traces cannot be
//! enabled.

use super::otel_variables::is_enabled;
use super::settings::Settings;

/// The reason why traces cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Traces are enabled, and this program has no exporter.
    #[error(
        "traces: this program was built without the feature otlp; build it with the feature, or \
         set telemetry.traces = \"off\" and OTEL_TRACES_EXPORTER=none"
    )]
    NotBuilt,
}

impl TracesError {
    /// Returns whether the configuration is the reason, and not the system.
    pub fn is_configuration(&self) -> bool {
        true
    }
}

/// The export of spans, which this program lacks.
pub(super) enum TracePipeline {}

impl TracePipeline {
    /// Starts nothing.
    ///
    /// # Errors
    /// [`TracesError::NotBuilt`] if traces are enabled.
    pub(super) fn start(settings: &Settings) -> Result<Option<Self>, TracesError> {
        if is_enabled(settings.traces) { Err(TracesError::NotBuilt) } else { Ok(None) }
    }

    pub(super) fn tracer(&self) -> opentelemetry_sdk::trace::SdkTracer {
        match *self {}
    }

    pub(super) fn dropped(&self) -> u64 {
        match *self {}
    }

    pub(super) fn shutdown(&self) {
        match *self {}
    }
}
