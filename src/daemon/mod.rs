//! The life of the process: build, run, reload, drain.
//!
//! This module wires the parts together and decides nothing else. A reload prepares every file
//! before it commits any (invariant A5), so a refused configuration changes nothing.

mod bad_files;
pub mod explain;
mod fd_limit;
pub mod health;
mod listeners;
mod memory;
mod refresh;
mod reload;
pub mod report;
mod shutdown;
mod start_error;
mod systemd;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

pub use self::bad_files::BadFiles;
use self::fd_limit::fit_fd_limit;
use self::listeners::Parts;
pub use self::memory::return_memory_sooner;
use self::reload::{Reload, ReloadOutcome, reload_finished};
pub use self::shutdown::ExitReason;
pub use self::start_error::StartError;
use self::systemd::{ActivatedSockets, Notifier};
use crate::access::Prepare;
use crate::backend::{Backend, CommandNames, Mode, Network, PrepareError};
use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::commands::kept_names;
use crate::config::{Config, Problems, Sources};
use crate::metrics::{FrontEnd, Metrics};
use crate::proxy::Proxy;
use crate::server::{Drain, DrainControl, Listener, Workers};
use crate::status::Status;
use crate::telemetry::Telemetry;
use crate::telemetry::hot_keys::HotKeys;
use crate::upstream::Upstream;
use crate::verify::{Samples, Verifier};
use crate::warmup::{KeyFilter, Warmup};

/// A daemon that has bound its listeners and does not accept yet.
pub struct Daemon {
    config: Config,
    sources: Sources,
    telemetry: Telemetry,
    signals: Signals,
    notifier: Arc<Notifier>,
    listeners: Vec<Listener>,
    /// The other files that a reload reads.
    files: Arc<Vec<Prepare>>,
    workers: Arc<Workers>,
    upstream_task: Option<BoxTask>,
    status: Status,
    proxy: Proxy,
    upstream: Upstream,
    /// `None` if no keys are saved for the next start.
    warm: Option<Warmup>,
    verifier: Verifier,
    /// `None` once they are being checked.
    samples: Option<Samples>,
    metrics: Arc<Metrics>,
}

impl Daemon {
    /// Builds every part from `config` and binds the listeners. Does not wait for Redis. A reload
    /// loads the configuration from `sources`.
    ///
    /// # Errors
    /// [`StartError`] if a file cannot be used, an address is taken, or the system refuses a
    /// resource.
    pub async fn build(
        config: Config,
        sources: Sources,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        let (names, serves_resp) = (config.clone(), !config.resp.listen.is_off());
        Self::build_parts(config, sources, telemetry).await.map_err(|error| match error {
            StartError::Prepare(_) | StartError::File(_) => {
                BadFiles::find(&names, serves_resp).map_or(error, StartError::Files)
            }
            error => error,
        })
    }

    async fn build_parts(
        config: Config,
        sources: Sources,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        // First of all: otherwise an early signal would end the process at once.
        let signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
        let notifier = Arc::new(Notifier::start()?);
        let activated = ActivatedSockets::from_env(&[
            FrontEnd::Http.name(),
            FrontEnd::Resp.name(),
            FrontEnd::Rest.name(),
            FrontEnd::Admin.name(),
        ])?;
        let fd_budget = fit_fd_limit(&config);
        warn_about_capacity(&config);
        let metrics = Arc::new(Metrics::new(&crate::commands::names())?);
        let (upstream, upstream_task) = upstream(&config, &metrics)?;
        let source = upstream.clone();
        metrics.register_cache(move || source.statistics())?;
        let source = telemetry.clone();
        metrics.register_spans_dropped(move || source.spans_dropped())?;
        let source = telemetry.clone();
        metrics.register_lines_dropped(move || source.lines_dropped())?;
        let source = upstream.clone();
        metrics.register_nodes(move || source.nodes())?;
        let hot_keys = HotKeys::with_warmup(config.admin.hotkeys, config.warm.keys_to_save());
        let (verifier, samples) = Verifier::new(&config.verify);
        let proxy = Proxy::new(upstream.clone(), Arc::clone(&metrics), hot_keys.clone())
            .with_verifier(verifier.clone());
        let warm = (config.warm.keys_to_save() > 0)
            .then(|| warm(&config, &activated, hot_keys, proxy.clone()));
        let status = Status::new(proxy.clone(), Arc::clone(&metrics));
        let parts =
            Parts { config: &config, fd_budget, status: &status, proxy: &proxy, metrics: &metrics };
        let (listeners, files) = listeners::bind(parts, activated).await?;
        let workers = Arc::new(Workers::start(config.daemon.threads())?);
        // Connections hold the metrics. A strong reference here would close a cycle and keep the
        // workers alive.
        let (source, own) = (Arc::downgrade(&workers), Handle::current());
        let of_workers = move || source.upgrade().map_or(0, |workers| workers.alive_tasks());
        metrics.register_tasks(move || own.metrics().num_alive_tasks() + of_workers())?;
        let (upstream_task, files) = (Some(upstream_task), Arc::new(files));
        Ok(Self {
            config,
            sources,
            telemetry,
            signals,
            notifier,
            listeners,
            files,
            workers,
            upstream_task,
            status,
            proxy,
            upstream,
            warm,
            verifier,
            samples: Some(samples),
            metrics,
        })
    }

    /// Serves until a shutdown signal arrives or a critical task ends.
    pub async fn run(mut self) -> ExitReason {
        let (mut control, drain) = Drain::new(self.config.daemon.drain_timeout);
        let mut tasks = self.start(&drain);
        // The remaining clones belong to listeners and connections. The drain ends with the last of
        // them.
        drop(drain);
        self.notifier.ready();
        let (mut reload, mut reload_wanted) = (None, false);
        loop {
            tokio::select! {
                signal = self.signals.next() => match signal {
                    Some(SIGHUP) => reload_wanted = true,
                    _ => return self.drain(&mut control).await,
                },
                reloaded = reload_finished(&mut reload) => self.finish_reload(reloaded),
                ended = tasks.join_next() => {
                    tracing::error!(?ended, "critical task exited; shutting down");
                    return ExitReason::TaskFailed;
                }
            }
            if reload_wanted && reload.is_none() {
                reload_wanted = false;
                self.notifier.reloading();
                reload = Some(self.reload());
            }
        }
    }

    /// Starts the tasks that run as long as the daemon. None of them ends by itself.
    fn start(&mut self, drain: &Drain) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for listener in std::mem::take(&mut self.listeners) {
            // Operators can watch until the end of the drain.
            let drain = if listener.front_end() == FrontEnd::Admin {
                Drain::never()
            } else {
                drain.clone()
            };
            tasks.spawn(listener.accept(Arc::clone(&self.workers), drain));
        }
        if let Some(upstream_task) = self.upstream_task.take() {
            tasks.spawn(upstream_task);
        }
        tasks.spawn(sweep(self.upstream.clone()));
        tasks.spawn(refresh::run(self.upstream.clone(), self.config.redis.max_fetches));
        if let Some(samples) = self.samples.take() {
            let (upstream, metrics) = (self.upstream.clone(), Arc::clone(&self.metrics));
            tasks.spawn(self.verifier.clone().run(samples, upstream, metrics));
        }
        tasks.spawn(self.status.clone().run());
        tasks.spawn(memory::return_freed_memory());
        if let Some(warm) = self.warm.clone() {
            tasks.spawn(warm.run());
        }
        if self.notifier.is_enabled() {
            tasks.spawn(report_status(self.proxy.clone(), Arc::clone(&self.notifier)));
        }
        if let Some(interval) = systemd::watchdog_interval() {
            tasks.spawn(feed_watchdog(
                Arc::clone(&self.workers),
                Arc::clone(&self.notifier),
                interval,
            ));
        }
        tasks
    }

    /// Applies the rest of a new configuration, or logs why the current one remains.
    fn finish_reload(&mut self, reloaded: Result<Result<ReloadOutcome, Problems>, JoinError>) {
        match reloaded {
            Ok(Ok(ReloadOutcome { config, evicted, took })) => {
                self.telemetry.set_filter(&config.telemetry.log_filter);
                self.verifier.apply(&config.verify);
                self.config = config;
                self.metrics.record_config_reload();
                let cache = &self.config.cache;
                self.proxy.cache_settings_changed(cache);
                warn_about_capacity(&self.config);
                tracing::info!(capacity = cache.capacity, ttl = ?cache.ttl, evicted, ?took, "config reloaded");
            }
            Ok(Err(problems)) => {
                self.metrics.record_config_rejected();
                tracing::error!(%problems, "config refused");
            }
            Err(error) => {
                self.metrics.record_config_rejected();
                tracing::error!(%error, "config refused");
            }
        }
        self.notifier.ready();
    }

    fn reload(&self) -> Reload {
        reload::start(
            self.sources.clone(),
            self.config.clone(),
            Arc::clone(&self.files),
            self.upstream.clone(),
        )
    }

    async fn drain(&mut self, control: &mut DrainControl) -> ExitReason {
        self.proxy.start_drain();
        self.notifier.stopping();
        // Runs beside the drain, otherwise it would prolong the shutdown.
        let saving = self.warm.clone().map(|warm| tokio::spawn(async move { warm.save().await }));
        let patience = self.config.daemon.drain_timeout;
        shutdown::drain(control, &mut self.signals, &self.metrics, patience, saving).await
    }
}

/// Builds the warm-up of the keys that at least one listener serves.
fn warm(config: &Config, activated: &ActivatedSockets, hot_keys: HotKeys, proxy: Proxy) -> Warmup {
    let serves_resp = activated.has(FrontEnd::Resp.name()) || !config.resp.listen.is_off();
    let (http, resp) =
        (config.http.allow_keys.clone(), serves_resp.then(|| config.resp.allow_keys.clone()));
    let longest = config.http.max_key.0;
    let permits: KeyFilter = Box::new(move |key| {
        key.len() <= longest
            && (http.allows(key) || resp.as_ref().is_some_and(|allow| allow.allows(key)))
    });
    Warmup::new(config.warm.clone(), config.redis.max_fetches, permits, hot_keys, proxy)
}

/// Logs a warning if the cache can never have as many entries as its capacity.
fn warn_about_capacity(config: &Config) {
    if let Some(warning) = config.cache.capacity_warning() {
        tracing::warn!("{warning}");
    }
}

/// Keeps the line of `systemctl status` up to date.
async fn report_status(proxy: Proxy, notifier: Arc<Notifier>) {
    loop {
        notifier.status(proxy.status_line());
        tokio::time::sleep(REPORT_INTERVAL).await;
    }
}

/// Notifies systemd's watchdog as long as every worker responds.
async fn feed_watchdog(workers: Arc<Workers>, notifier: Arc<Notifier>, interval: Duration) {
    loop {
        workers.check_alive().await;
        notifier.watchdog();
        tokio::time::sleep(interval).await;
    }
}

/// The greatest age of the line of `systemctl status`.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Builds the upstream, and the task that keeps it connected.
fn upstream(config: &Config, metrics: &Arc<Metrics>) -> Result<(Upstream, BoxTask), PrepareError> {
    let (redis, max_value) = (config.redis.clone(), config.http.max_value.0);
    let names: CommandNames = kept_names().into();
    if redis.mode == Mode::Cluster {
        let (cache, runtime, metrics) =
            (config.cache.clone(), Handle::current(), Arc::clone(metrics));
        let cluster =
            Cluster::prepare(Network::System, redis, cache, max_value, names, runtime, metrics)?;
        return Ok((Upstream::Cluster(cluster.clone()), Box::pin(cluster.run())));
    }
    let cache = Cache::new(config.cache.clone(), Handle::current());
    let metrics = Arc::clone(metrics);
    let (backend, upstream_task) =
        Backend::prepare(Network::System, redis, max_value, names, cache.clone(), metrics)?;
    Ok((Upstream::Standalone(cache, backend), Box::pin(upstream_task.run())))
}

type BoxTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Removes expired entries, otherwise they would hold memory until they are evicted. A sweep looks
/// at every entry. The pause after it is fifty times its duration, so sweeps use at most a fiftieth
/// of a CPU.
async fn sweep(upstream: Upstream) {
    let mut pause = Duration::from_secs(1);
    loop {
        tokio::time::sleep(pause).await;
        let (begun, upstream) = (Instant::now(), upstream.clone());
        if tokio::task::spawn_blocking(move || upstream.sweep()).await.is_err() {
            return;
        }
        pause = (begun.elapsed() * 50).max(Duration::from_secs(1));
    }
}
