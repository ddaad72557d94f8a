//! The life of the process: build, run, reload, drain.
//!
//! It wires the parts together and decides nothing else. A reload is prepared whole before anything of it is put
//! in force, so a configuration that is refused changes nothing.

mod fd_limit;
pub mod health;
mod reload;
mod shutdown;
mod systemd;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use self::fd_limit::{Means, within_means};
use self::reload::{Reload, Reloaded, finished};
pub use self::shutdown::Ending;
use self::systemd::{InheritError, Inherited, Notifier};
use crate::access::{FileError, Gate, Reread};
use crate::backend::{Backend, Mode, PrepareError};
use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::config::{Config, Problems, Sources};
use crate::http::{self, Http};
use crate::metrics::{FrontEnd, Metrics, Refusal};
use crate::proxy::Proxy;
use crate::resp::Resp;
use crate::server::{BindError, Drain, DrainControl, Listener, Serve, Serving, Tls, Workers};
use crate::telemetry::Telemetry;
use crate::telemetry::hot_keys::HotKeys;
use crate::upstream::Upstream;
use crate::warmup::{Permits, Warm};

/// Why the daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that the configuration names cannot be used.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A file of a front end cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket that was handed over cannot be used.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The system gives no threads, signals or the like.
    #[error("the system refuses what the daemon needs: {0}")]
    System(#[from] io::Error),
    /// Two metrics of one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A daemon that listens but does not serve yet.
pub struct Daemon {
    config: Config,
    sources: Sources,
    telemetry: Telemetry,
    signals: Signals,
    notifier: Arc<Notifier>,
    listeners: Vec<Listener>,
    /// What else a reload reads.
    files: Arc<Vec<Reread>>,
    workers: Arc<Workers>,
    link: Option<Running>,
    proxy: Proxy,
    upstream: Upstream,
    /// None where nothing is kept for the next start.
    warm: Option<Warm>,
    metrics: Arc<Metrics>,
}

impl Daemon {
    /// Builds everything from `config`; afterwards the listeners are bound. Does not wait for Redis. `sources` is
    /// where a reload finds the configuration.
    ///
    /// # Errors
    /// A file that cannot be used, an address that is taken, or a system out of means.
    pub async fn build(
        config: Config,
        sources: Sources,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        // Before anything else, so that an early signal is obeyed and not fatal.
        let signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
        let notifier = Arc::new(Notifier::start()?);
        let inherited = Inherited::take(&[
            FrontEnd::Http.name(),
            FrontEnd::Resp.name(),
            FrontEnd::Admin.name(),
        ])?;
        let means = within_means(&config);
        let metrics = Arc::new(Metrics::new(&crate::commands::names())?);
        let (upstream, link) = upstream(&config, &metrics)?;
        let looked_at = upstream.clone();
        metrics.tell_of_cache(move || looked_at.statistics())?;
        let looked_at = telemetry.clone();
        metrics.tell_of_spans_dropped(move || looked_at.spans_dropped())?;
        let looked_at = telemetry.clone();
        metrics.tell_of_lines_dropped(move || looked_at.lines_dropped())?;
        let looked_at = upstream.clone();
        metrics.tell_of_nodes(move || looked_at.nodes())?;
        let hot_keys = HotKeys::keeping(config.admin.hotkeys, config.warm.kept());
        let proxy = Proxy::new(upstream.clone(), Arc::clone(&metrics), hot_keys.clone());
        let warm =
            (config.warm.kept() > 0).then(|| warm(&config, &inherited, hot_keys, proxy.clone()));
        let (listeners, files) = listeners(&config, inherited, means, &proxy, &metrics).await?;
        let workers = Arc::new(Workers::start(config.daemon.threads())?);
        // A connection knows of the metrics, so these must not keep alive who serves it.
        let (looked_at, own) = (Arc::downgrade(&workers), Handle::current());
        let of_workers = move || looked_at.upgrade().map_or(0, |workers| workers.alive_tasks());
        metrics.tell_of_tasks(move || own.metrics().num_alive_tasks() + of_workers())?;
        let (link, files) = (Some(link), Arc::new(files));
        Ok(Self {
            config,
            sources,
            telemetry,
            signals,
            notifier,
            listeners,
            files,
            workers,
            link,
            proxy,
            upstream,
            warm,
            metrics,
        })
    }

    /// Serves until told to stop.
    pub async fn run(mut self) -> Ending {
        let (mut control, drain) = Drain::new();
        let mut tasks = self.start(&drain);
        // What is left of it are the listeners' and connections' own.
        drop(drain);
        self.notifier.ready();
        let (mut reload, mut reload_wanted) = (None, false);
        loop {
            tokio::select! {
                signal = self.signals.next() => match signal {
                    Some(SIGHUP) => reload_wanted = true,
                    _ => return self.drain(&mut control).await,
                },
                reloaded = finished(&mut reload) => self.settle(reloaded),
                ended = tasks.join_next() => {
                    tracing::error!(?ended, "a part of the daemon ended that must not; giving up");
                    return Ending::Failed;
                }
            }
            if reload_wanted && reload.is_none() {
                reload_wanted = false;
                self.notifier.reloading();
                reload = Some(self.reload());
            }
        }
    }

    /// Starts what goes on for as long as the daemon lives: none of it ends by itself.
    fn start(&mut self, drain: &Drain) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for listener in std::mem::take(&mut self.listeners) {
            // The operator can look on to the end.
            let drain = if listener.front_end() == FrontEnd::Admin {
                Drain::never()
            } else {
                drain.clone()
            };
            tasks.spawn(listener.accept(Arc::clone(&self.workers), drain));
        }
        if let Some(link) = self.link.take() {
            tasks.spawn(link);
        }
        tasks.spawn(sweep(self.upstream.clone()));
        if let Some(warm) = self.warm.clone() {
            tasks.spawn(warm.run());
        }
        if self.notifier.is_heard() {
            tasks.spawn(report(self.proxy.clone(), Arc::clone(&self.notifier)));
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

    /// Puts the rest of a new configuration in force, or says why the one in force stays.
    fn settle(&mut self, reloaded: Result<Result<Reloaded, Problems>, JoinError>) {
        match reloaded {
            Ok(Ok(Reloaded { config, evicted, took })) => {
                self.telemetry.set_filter(&config.telemetry.log_filter);
                self.config = config;
                self.metrics.config_reloaded();
                let cache = &self.config.cache;
                self.proxy.cache_changed(cache);
                tracing::info!(capacity = cache.capacity, ttl = ?cache.ttl, evicted, ?took, "config reloaded");
            }
            Ok(Err(problems)) => {
                self.metrics.config_refused();
                tracing::error!(%problems, "config refused");
            }
            Err(error) => {
                self.metrics.config_refused();
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

    async fn drain(&mut self, control: &mut DrainControl) -> Ending {
        self.proxy.drain();
        self.notifier.stopping();
        // Beside the drain, for which nobody waits longer because of it.
        let keeping = self.warm.clone().map(|warm| tokio::spawn(async move { warm.keep().await }));
        let patience = self.config.daemon.drain_timeout;
        shutdown::drain(control, &mut self.signals, &self.metrics, patience, keeping).await
    }
}

/// What is kept for the next start: of the keys that a listener gives out.
fn warm(config: &Config, inherited: &Inherited, hot_keys: HotKeys, proxy: Proxy) -> Warm {
    let serves_resp = inherited.has(FrontEnd::Resp.name()) || !config.resp.listen.is_off();
    let (http, resp) = (config.http.allow.clone(), serves_resp.then(|| config.resp.allow.clone()));
    let longest = config.http.max_key.0;
    let permits: Permits = Box::new(move |key| {
        key.len() <= longest
            && (http.permits(key) || resp.as_ref().is_some_and(|allow| allow.permits(key)))
    });
    Warm::new(config.warm.clone(), config.redis.max_fetches, permits, hot_keys, proxy)
}

/// The listeners of `config`, and what a reload has to read for them; those for reads let in as many clients as `means`
/// allows.
async fn listeners(
    config: &Config,
    mut inherited: Inherited,
    means: Means,
    proxy: &Proxy,
    metrics: &Arc<Metrics>,
) -> Result<(Vec<Listener>, Vec<Reread>), StartError> {
    let admin = &config.admin;
    let limits = config.http.limits();
    let gate = config.http.gate()?;
    let mut files: Vec<_> = gate.iter().map(Gate::reread).collect();
    let (http_tls, resp_tls) = (config.http.tls()?, config.resp.tls()?);
    files.extend([&http_tls, &resp_tls].into_iter().flatten().map(Tls::reread));
    let serving = |service, tls, max_connections, protection| Serving {
        service,
        tls,
        max_connections,
        protection,
    };
    let is_admin_apart = inherited.has(FrontEnd::Admin.name()) || !admin.listen.is_off();
    let beside = if is_admin_apart {
        Router::new()
    } else {
        http::router(proxy.clone(), config.http.allow.clone())
    };
    let reads = http::Keys::new(proxy.clone(), config.http.clone(), beside);
    let gate = gate.map(|gate| (gate, metrics.refusals(FrontEnd::Http, Refusal::Token)));
    let reads: Arc<dyn Serve> = Arc::new(Http::new(reads, limits.clone(), gate));
    let reads = serving(reads, http_tls, means.http, config.http.protection());
    let mut services = vec![(FrontEnd::Http, &config.http.listen, reads)];
    if is_admin_apart {
        let operators = Arc::new(Http::new(http::router_alone(proxy.clone()), limits, None));
        let operators = serving(operators, None, admin.max_connections, admin.protection());
        services.push((FrontEnd::Admin, &admin.listen, operators));
    }
    if inherited.has(FrontEnd::Resp.name()) || !config.resp.listen.is_off() {
        let resp =
            Arc::new(Resp::prepare(config.resp.clone(), config.http.max_key.0, proxy.clone())?);
        files.extend(resp.reread());
        let resp = serving(resp, resp_tls, means.resp, config.resp.protection());
        services.push((FrontEnd::Resp, &config.resp.listen, resp));
    }
    let mut listeners = Vec::new();
    for (front_end, listen, serving) in services {
        let socket = inherited.remove(front_end.name());
        metrics.connections_limit(front_end, serving.max_connections);
        listeners
            .push(Listener::bind(front_end, listen, socket, serving, Arc::clone(metrics)).await?);
    }
    Ok((listeners, files))
}

/// Keeps the line of `systemctl status` true.
async fn report(proxy: Proxy, notifier: Arc<Notifier>) {
    loop {
        notifier.status(proxy.summary());
        tokio::time::sleep(REPORT_INTERVAL).await;
    }
}

/// Says so, for as long as every worker serves.
async fn feed_watchdog(workers: Arc<Workers>, notifier: Arc<Notifier>, interval: Duration) {
    loop {
        workers.alive().await;
        notifier.alive();
        tokio::time::sleep(interval).await;
    }
}

/// How old the line of `systemctl status` may be.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// What is behind the proxy, and what has to run for it.
fn upstream(config: &Config, metrics: &Arc<Metrics>) -> Result<(Upstream, Running), PrepareError> {
    let (redis, max_value) = (config.redis.clone(), config.http.max_value.0);
    if redis.mode == Mode::Cluster {
        let means = (Handle::current(), Arc::clone(metrics));
        let cluster = Cluster::prepare(redis, config.cache.clone(), max_value, means)?;
        return Ok((Upstream::Cluster(cluster.clone()), Box::pin(cluster.run())));
    }
    let cache = Cache::new(config.cache.clone(), Handle::current());
    let (backend, link) = Backend::prepare(redis, max_value, cache.clone(), Arc::clone(metrics))?;
    Ok((Upstream::One(cache, backend), Box::pin(link.run())))
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Forgets entries whose time is over, so that memory is not held for what nobody may be given. A sweep looks at
/// every entry; the pause after it is fifty times as long as it took, so it never costs more than a fiftieth of a
/// processor.
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
