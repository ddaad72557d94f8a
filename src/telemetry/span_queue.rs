//! The queue of spans for the collector.
//!
//! One thread with its own runtime sends spans in batches. A finished span enters a queue of
//! limited length, and no caller waits. A span that finds no room, or that the collector rejects,
//! is counted and dropped. The standard variables `OTEL_BSP_*` set the limits.

use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self as threads, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::settings::variable;
use crate::sync::lock;

/// The limits of the queue and of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchLimits {
    /// The most spans in the queue.
    queue: usize,
    /// The most spans in a batch.
    batch: usize,
    /// The time that the first span of a batch waits for others.
    delay: Duration,
    /// The longest time that a batch may take, with all its attempts.
    export: Duration,
}

impl BatchLimits {
    /// Reads the standard variables, or takes their defaults.
    fn from_environment() -> Self {
        let queue = positive("OTEL_BSP_MAX_QUEUE_SIZE", 2048);
        Self {
            queue,
            batch: positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).min(queue),
            delay: Duration::from_millis(positive("OTEL_BSP_SCHEDULE_DELAY", 5000)),
            export: Duration::from_millis(positive("OTEL_BSP_EXPORT_TIMEOUT", 30_000)),
        }
    }
}

fn positive<N: FromStr + PartialOrd + Default>(name: &str, default: N) -> N {
    variable(name)
        .and_then(|text| text.parse().ok())
        .filter(|number| *number > N::default())
        .unwrap_or(default)
}

/// A processor that passes finished spans to the thread that sends them.
#[derive(Debug)]
pub(super) struct SpanQueue {
    spans: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
    end: Mutex<Option<Shutdown>>,
}

/// The channels that end the thread and report its end.
#[derive(Debug)]
struct Shutdown {
    request: oneshot::Sender<()>,
    done: threads::Receiver<()>,
}

impl SpanQueue {
    /// Starts the thread, which sends spans with `exporter` on `runtime`. Spans that are lost are
    /// added to `dropped`.
    ///
    /// # Errors
    /// [`io::Error`] if the system refuses the thread.
    pub(super) fn start<E: SpanExporter + 'static>(
        runtime: Runtime,
        mut exporter: E,
        resource: &Resource,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        exporter.set_resource(resource);
        let limits = BatchLimits::from_environment();
        let (spans, queued) = mpsc::channel(limits.queue);
        let (request, ending) = oneshot::channel();
        let (ended, done) = threads::sync_channel(1);
        let sender = SpanSender { exporter, limits, dropped: Arc::clone(&dropped), failing: false };
        std::thread::Builder::new().name("traces".to_owned()).spawn(move || {
            runtime.block_on(sender.run(queued, ending));
            _ = ended.send(());
        })?;
        Ok(Self { spans, dropped, end: Mutex::new(Some(Shutdown { request, done })) })
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure(
            "spans are sent as they come, and waited for at the end only".to_owned(),
        ))
    }

    /// Sends the queued spans, within `patience`.
    fn shutdown_with_timeout(&self, patience: Duration) -> OTelSdkResult {
        let end = lock(&self.end).take();
        let Some(Shutdown { request, done }) = end else {
            return Err(OTelSdkError::AlreadyShutdown);
        };
        _ = request.send(());
        match done.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => Err(OTelSdkError::Timeout(patience)),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

struct SpanSender<E> {
    exporter: E,
    limits: BatchLimits,
    dropped: Arc<AtomicU64>,
    /// Whether the last batch was lost. So a series of failures logs one line.
    failing: bool,
}

impl<E: SpanExporter> SpanSender<E> {
    async fn run(
        mut self,
        mut queued: mpsc::Receiver<SpanData>,
        mut ending: oneshot::Receiver<()>,
    ) {
        loop {
            let mut batch = Vec::with_capacity(self.limits.batch);
            tokio::select! {
                () = self.fill(&mut batch, &mut queued) => {}
                _ = &mut ending, if !queued.is_closed() => queued.close(),
            }
            if batch.is_empty() && queued.is_closed() && queued.is_empty() {
                return;
            }
            if !batch.is_empty() {
                self.send(batch).await;
            }
        }
    }

    /// Collects spans until the batch is full, its first span has waited long enough, or the queue
    /// is closed.
    async fn fill(&self, batch: &mut Vec<SpanData>, queued: &mut mpsc::Receiver<SpanData>) {
        let max = self.limits.batch;
        queued.recv_many(batch, max).await;
        let due = Instant::now() + self.limits.delay;
        while batch.len() < max
            && let Ok(1..) = timeout_at(due, queued.recv_many(batch, max - batch.len())).await
        {
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len();
        let sent = timeout(self.limits.export, self.exporter.export(batch)).await;
        match sent.unwrap_or(Err(OTelSdkError::Timeout(self.limits.export))) {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the collector accepts spans again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.fetch_add(spans as u64, Relaxed);
                if !self.failing {
                    tracing::warn!(%error, "the collector does not accept spans; they are dropped");
                }
                self.failing = true;
            }
        }
    }
}
