//! Export of traces over OTLP: the exporter for the collector, the sampling and the resource.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::otel_variables::is_enabled;
use super::settings::{Protocol, Settings, variable};
use super::span_queue::SpanQueue;

/// The reason why traces cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The configuration or a standard variable holds a value that cannot be used.
    #[error("traces: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The TLS library supports no protocol version. This cannot happen.
    #[error("traces: TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The system refuses a thread or an event queue.
    #[error("traces: {0}")]
    System(#[from] io::Error),
}

impl TracesError {
    /// Returns whether the configuration is the reason, and not the system.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Exporter(_))
    }
}

/// The export of spans to a collector.
pub(super) struct TracePipeline {
    provider: SdkTracerProvider,
    dropped: Arc<AtomicU64>,
}

impl TracePipeline {
    /// Starts the export, if traces are enabled.
    ///
    /// # Errors
    /// [`TracesError::Exporter`] if the address of the collector is invalid.
    /// [`TracesError::System`] if the system refuses a thread or an event queue.
    pub(super) fn start(settings: &Settings) -> Result<Option<Self>, TracesError> {
        if !is_enabled(settings.traces) {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exporter = {
            // The exporter spawns a task of its own.
            let _inside = runtime.enter();
            exporter(settings)?
        };
        let (resource, dropped) = (resource(), Arc::new(AtomicU64::new(0)));
        let queue = SpanQueue::start(runtime, exporter, &resource, Arc::clone(&dropped))?;
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue);
        let provider = match variable("OTEL_TRACES_SAMPLER") {
            // The SDK reads the variable and its argument by itself.
            Some(_) => provider,
            None => provider.with_sampler(Sampler::ParentBased(Box::new(
                Sampler::TraceIdRatioBased(settings.traces_ratio.0),
            ))),
        };
        Ok(Some(Self { provider: provider.build(), dropped }))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("redis-proxy")
    }

    /// Returns the number of spans that no collector received.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Sends the queued spans. Returns when that is done, or after [`SHUTDOWN_TIMEOUT`].
    pub(super) fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "not all spans could be sent before the end");
        }
    }
}

/// The longest time that the shutdown waits for spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

fn exporter(settings: &Settings) -> Result<SpanExporter, TracesError> {
    let base =
        Some(settings.traces_endpoint.0.trim_end_matches('/')).filter(|base| !base.is_empty());
    let named = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    // The exporter reads the variable by itself.
    let base = if named.is_some() { None } else { base };
    if protocol(settings.traces_protocol) == Protocol::Grpc {
        let mut builder = SpanExporter::builder().with_tonic();
        if named.as_deref().or(base).is_some_and(|endpoint| endpoint.starts_with("https:")) {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        return Ok(match base {
            Some(base) => builder.with_endpoint(base),
            None => builder,
        }
        .build()?);
    }
    let builder = SpanExporter::builder().with_http().with_http_client(HyperClient::new(
        connector()?,
        EXPORT_TIMEOUT,
        None,
    ));
    let builder = builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary);
    Ok(match base {
        Some(base) => builder.with_endpoint(format!("{base}/v1/traces")),
        None => builder,
    }
    .build()?)
}

/// The standard's default for one attempt to send a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the protocol to the collector, by the variables or else by the configuration.
fn protocol(configured: Protocol) -> Protocol {
    let said = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]
        .into_iter()
        .find_map(variable);
    match said.as_deref() {
        Some("grpc") => Protocol::Grpc,
        Some("http/protobuf") => Protocol::HttpProtobuf,
        _ => configured,
    }
}

/// Builds the connector for collectors with and without TLS. It trusts the system's authorities.
fn connector() -> Result<HttpsConnector<HttpConnector>, rustls::Error> {
    let mut authorities = RootCertStore::empty();
    // A system without authorities can still reach a collector without TLS.
    authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build())
}

/// Returns the resource of the traces. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over
/// the program's own name.
fn resource() -> Resource {
    let own = [
        KeyValue::new("service.name", "redis-proxy"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource = Resource::builder_empty().with_attributes(own).with_detectors(&[
        Box::new(TelemetryResourceDetector),
        Box::new(EnvResourceDetector::new()),
    ]);
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name),
        None => resource,
    }
    .build()
}
