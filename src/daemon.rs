//! The life of the process: build, run, reload, drain.
//!
//! It wires the parts together and decides nothing else. A reload is prepared whole before anything of it is put
//! in force, so a configuration that is refused changes nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use crate::backend::{Backend, BackendError, Link, PrepareError};
use crate::cache::Cache;
use crate::config::{Config, DaemonSettings, Sources};
use crate::metrics::{FrontEnd, Metrics};
use crate::proxy::Proxy;
use crate::server::{BindError, Drain, DrainControl, Limits, Listener, Workers};
use crate::telemetry::FilterHandle;
use crate::{admin, http};

/// Why the daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that the configuration names cannot be used.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system gives no threads, signals or the like.
    #[error("the system refuses what the daemon needs: {0}")]
    System(#[from] io::Error),
    /// Two metrics of one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to, and finished what was in flight or what of it there was time for.
    Drained,
    /// It was told twice.
    Hurried,
}

/// A daemon that listens but does not serve yet.
pub struct Daemon {
    config: Config,
    sources: Sources,
    filter: FilterHandle,
    signals: Signals,
    listeners: Vec<Listener>,
    workers: Arc<Workers>,
    link: Option<Link>,
    proxy: Proxy,
    cache: Cache<BackendError>,
    metrics: Arc<Metrics>,
}

impl Daemon {
    /// Builds everything from `config`; afterwards the listeners are bound. Does not wait for Redis. `sources` is
    /// where a reload finds the configuration.
    ///
    /// # Errors
    /// A file that cannot be used, an address that is taken, or a system out of means.
    pub async fn build(config: Config, sources: Sources, filter: FilterHandle) -> Result<Self, StartError> {
        // Before anything else, so that an early signal is obeyed and not fatal.
        let signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
        raise_descriptor_limit(config.http.max_connections + config.admin.max_connections);
        let metrics = Arc::new(Metrics::new()?);
        let (backend, link) = Backend::prepare(config.redis.clone(), Arc::clone(&metrics))?;
        let cache = Cache::new(config.cache.clone(), Handle::current());
        let proxy = Proxy::new(cache.clone(), backend, Arc::clone(&metrics));
        let listeners = listeners(&config, &proxy, &metrics).await?;
        let workers = Arc::new(Workers::start(worker_threads(&config.daemon))?);
        Ok(Self { config, sources, filter, signals, listeners, workers, link: Some(link), proxy, cache, metrics })
    }

    /// Serves until told to stop.
    pub async fn run(mut self) -> Ending {
        let (mut control, drain) = Drain::new();
        for listener in std::mem::take(&mut self.listeners) {
            // The operator can look on to the end.
            let drain = if listener.front_end() == FrontEnd::Admin { Drain::never() } else { drain.clone() };
            tokio::spawn(listener.accept(Arc::clone(&self.workers), drain));
        }
        drop(drain);
        if let Some(link) = self.link.take() {
            tokio::spawn(link.run());
        }
        tokio::spawn(sweep(self.cache.clone()));
        while let Some(signal) = self.signals.next().await {
            if signal == SIGHUP {
                self.reload().await;
            } else {
                return self.drain(&mut control).await;
            }
        }
        Ending::Drained
    }

    /// Puts the configuration in force as it is written now, or says what is wrong with it and changes nothing.
    async fn reload(&mut self) {
        let begun = Instant::now();
        let new = match self.sources.reload(&self.config) {
            Ok(new) => new,
            Err(problems) => {
                self.metrics.config_refused();
                tracing::error!(%problems, "config refused");
                return;
            }
        };
        let (cache, settings) = (self.cache.clone(), new.cache.clone());
        let resized = tokio::task::spawn_blocking(move || cache.apply(&settings)).await.unwrap_or_default();
        self.filter.set(&new.telemetry.log_filter);
        self.config = new;
        self.metrics.config_reloaded();
        tracing::info!(
            capacity = self.config.cache.capacity,
            ttl = ?self.config.cache.ttl,
            evicted = resized,
            took = ?begun.elapsed(),
            "config reloaded"
        );
    }

    async fn drain(&mut self, control: &mut DrainControl) -> Ending {
        self.proxy.drain();
        let patience = self.config.daemon.drain_timeout;
        tracing::info!(connections = self.metrics.open_connections(), drain_timeout = ?patience, "stopping");
        let hurry = async { while self.signals.next().await.is_some_and(|signal| signal == SIGHUP) {} };
        tokio::select! {
            () = control.drain() => tracing::info!("stopped"),
            () = tokio::time::sleep(patience) => {
                let cut = self.metrics.open_connections();
                tracing::warn!(cut, "stopped; connections were cut because they did not finish in time");
            }
            () = hurry => {
                let cut = self.metrics.open_connections();
                tracing::warn!(cut, "told twice; connections were cut");
                return Ending::Hurried;
            }
        }
        Ending::Drained
    }
}

async fn listeners(config: &Config, proxy: &Proxy, metrics: &Arc<Metrics>) -> Result<Vec<Listener>, BindError> {
    let limits = |max_connections| Limits {
        max_connections,
        idle_timeout: config.http.idle_timeout,
        header_timeout: config.http.header_timeout,
        max_header: config.http.max_header.0,
    };
    let bind =
        |front_end, listen, router, most| Listener::bind(front_end, listen, router, limits(most), Arc::clone(metrics));
    let reads = http::router(proxy.clone(), config.http.clone());
    let operators = admin::router(proxy.clone());
    let (http, admin) = (&config.http, &config.admin);
    if admin.listen.is_off() {
        let all: Router = reads.merge(operators);
        return Ok(vec![bind(FrontEnd::Http, &http.listen, all, http.max_connections).await?]);
    }
    let operators = operators.fallback(http::not_found);
    Ok(vec![
        bind(FrontEnd::Http, &http.listen, reads, http.max_connections).await?,
        bind(FrontEnd::Admin, &admin.listen, operators, admin.max_connections).await?,
    ])
}

fn worker_threads(settings: &DaemonSettings) -> usize {
    match settings.worker_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Forgets entries whose time is over, so that memory is not held for what nobody may be given. A sweep looks at
/// every entry; the pause after it is fifty times as long as it took, so it never costs more than a fiftieth of a
/// processor.
async fn sweep(cache: Cache<BackendError>) {
    let mut pause = Duration::from_secs(1);
    loop {
        tokio::time::sleep(pause).await;
        let (begun, cache) = (Instant::now(), cache.clone());
        if tokio::task::spawn_blocking(move || cache.sweep()).await.is_err() {
            return;
        }
        pause = (begun.elapsed() * 50).max(Duration::from_secs(1));
    }
}

/// A connection needs a descriptor; the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    _ = setrlimit(Resource::Nofile, raised);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let needed = connections as u64 + DESCRIPTORS_BESIDE;
    if most < needed {
        tracing::warn!(most, needed, "the system allows fewer open files than max_connections may need");
    }
}

/// Listeners, the link, event queues, standard streams, and what a reload opens for a moment.
const DESCRIPTORS_BESIDE: u64 = 64;
