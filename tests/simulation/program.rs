//! The program under test: its supervisor, cache and front ends, built as the daemon builds them, on
//! the simulated network. It can drop connections of clients, and crash and start again.
//!
//! A task that is dropped stops at the place where it waits. So a crash may come at each of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use redis_proxy::backend::{self, Backend, Mode, Network};
use redis_proxy::cache::{self, Cache, CoherenceMode};
use redis_proxy::cluster::Cluster;
use redis_proxy::commands::{kept_names, names};
use redis_proxy::http::{self, HttpService, Keys, Observer};
use redis_proxy::metrics::{FrontEnd, Metrics, Node};
use redis_proxy::net::ClientStream;
use redis_proxy::proxy::Proxy;
use redis_proxy::resp::{self, Resp};
use redis_proxy::server::{Drain, Service as _};
use redis_proxy::settings::{ByteSize, MemorySize, Secret};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::model::{Access, USERS};
use super::network::{End, Hosts};
use super::run::Plan;
use super::sentinel::MASTER;
use super::servers::Layout;
use super::world::{World, lock};

/// The limits of the program's configuration.
const MAX_VALUE: usize = 1 << 20;
const MAX_KEY: usize = 16 << 10;

#[derive(Clone)]
pub(super) struct Program(Arc<Shared>);

struct Shared {
    cache: cache::Settings,
    redis: backend::Settings,
    hosts: Hosts,
    process: Mutex<Process>,
}

/// The connections of clients that arrive.
type Ends = mpsc::UnboundedReceiver<End>;

/// The program from a start to a crash.
struct Process {
    upstream: Upstream,
    proxy: Proxy,
    resp: Resp,
    http: HttpService<Keys>,
    /// The supervisor, or the discovery of a cluster; and the sweep of the cache.
    tasks: [AbortHandle; 2],
    connections: Vec<AbortHandle>,
    /// The number of starts before it, and the reads from memory.
    earlier_starts: u64,
    earlier_hits: u64,
}

impl Program {
    /// Starts the program, which serves Redis clients, and clients over HTTP.
    pub(super) fn start(plan: &Plan, hosts: Hosts, at_resp: Ends, at_http: Ends) -> Self {
        let (cache, redis) = (cache_settings(plan), redis_settings(plan));
        let process = Mutex::new(Process::start(&cache, &redis, &hosts));
        let program = Self(Arc::new(Shared { cache, redis, hosts, process }));
        for (front_end, mut ends) in [(FrontEnd::Resp, at_resp), (FrontEnd::Http, at_http)] {
            let serving = program.clone();
            tokio::spawn(async move {
                while let Some(end) = ends.recv().await {
                    lock(&serving.0.process).serve(front_end, end);
                }
            });
        }
        program
    }

    /// Whether the proxy is connected to Redis, or to all primaries of a cluster.
    pub(super) fn is_ready(&self) -> bool {
        let process = lock(&self.0.process);
        let is_down = |node: &Node| node.role == "redis" && !node.up;
        process.proxy.ready().is_ok() && !process.upstream.nodes().iter().any(is_down)
    }

    /// Returns the number of reads that were answered from memory.
    pub(super) fn hits(&self) -> u64 {
        lock(&self.0.process).hits()
    }

    /// Returns the number of starts.
    pub(super) fn starts(&self) -> u64 {
        lock(&self.0.process).earlier_starts + 1
    }

    /// Drops each connection of a client with this chance in percent.
    pub(super) fn drop_connections(&self, world: &World, percent: u64) {
        let mut process = lock(&self.0.process);
        process.connections.retain(|task| !task.is_finished());
        process.connections.iter().filter(|_| world.chance(percent)).for_each(AbortHandle::abort);
    }

    /// Crashes, and starts again with nothing in memory.
    pub(super) fn restart(&self) {
        let Shared { cache, redis, hosts, process } = &*self.0;
        let mut process = lock(process);
        process.tasks.iter().chain(&process.connections).for_each(AbortHandle::abort);
        let next = Process::start(cache, redis, hosts);
        let (earlier_starts, earlier_hits) = (process.earlier_starts + 1, process.hits());
        *process = Process { earlier_starts, earlier_hits, ..next };
    }
}

impl Process {
    fn start(cache: &cache::Settings, redis: &backend::Settings, hosts: &Hosts) -> Self {
        let metrics = Arc::new(Metrics::new(&names()).expect("metrics"));
        let network = Network::Simulated(Arc::new(hosts.clone()));
        let (upstream, running) = upstream(network, cache, redis, &metrics);
        let swept = upstream.clone();
        let sweeping = tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(1)).await;
                swept.sweep();
            }
        });
        let observer = Observer::new(&metrics, FrontEnd::Http);
        let proxy = Proxy::new(upstream.clone(), metrics, HotKeys::new(0));
        let resp = Resp::prepare(resp::Settings::default(), MAX_KEY, proxy.clone());
        let settings = http::Settings::default();
        let limits = settings.limits();
        let keys = Keys::new(proxy.clone(), settings, Router::new());
        Self {
            upstream,
            proxy,
            resp: resp.expect("a front end"),
            http: HttpService::new(keys, limits, None, observer),
            tasks: [running, sweeping.abort_handle()],
            connections: Vec::new(),
            earlier_starts: 0,
            earlier_hits: 0,
        }
    }

    fn serve(&mut self, front_end: FrontEnd, end: End) {
        let (client, drain) = (ClientStream::Simulated(Box::new(end)), Drain::never());
        let task = tokio::spawn(match front_end {
            FrontEnd::Http => self.http.serve(client, drain),
            _ => self.resp.serve(client, drain),
        });
        self.connections.push(task.abort_handle());
    }

    fn hits(&self) -> u64 {
        self.earlier_hits + self.proxy.read_totals().from_memory
    }
}

/// Starts the way to Redis. Returns it, and its task.
fn upstream(
    network: Network,
    cache: &cache::Settings,
    redis: &backend::Settings,
    metrics: &Arc<Metrics>,
) -> (Upstream, AbortHandle) {
    let (redis, names, metrics) = (redis.clone(), kept_names().into(), Arc::clone(metrics));
    if redis.mode == Mode::Cluster {
        let (cache, runtime) = (cache.clone(), Handle::current());
        let cluster = Cluster::prepare(network, redis, cache, MAX_VALUE, names, runtime, metrics);
        let cluster = cluster.expect("a cluster");
        let running = tokio::spawn(cluster.clone().run());
        return (Upstream::Cluster(cluster), running.abort_handle());
    }
    let cache = Cache::new(cache.clone(), Handle::current());
    let prepared = Backend::prepare(network, redis, MAX_VALUE, names, cache.clone(), metrics);
    let (backend, supervisor) = prepared.expect("a backend");
    let running = tokio::spawn(supervisor.run());
    (Upstream::Standalone(cache, backend), running.abort_handle())
}

fn cache_settings(plan: &Plan) -> cache::Settings {
    cache::Settings {
        capacity: plan.capacity,
        max_memory: MemorySize::Bytes(ByteSize(64 << 20)),
        ttl: plan.ttl,
        stale_if_error: plan.stale_if_error,
        coherence: CoherenceMode::Auto,
        coherence_timeout: plan.coherence_timeout,
        ..cache::Settings::default()
    }
}

fn redis_settings(plan: &Plan) -> backend::Settings {
    let password = if plan.access == Access::Users { USERS[0].password } else { "" };
    let seeds = plan.layout.seeds().into_iter().map(|address| format!("redis://{address}"));
    let seeds = seeds.collect::<Vec<_>>().join(",");
    backend::Settings {
        mode: match plan.layout {
            Layout::One => Mode::Standalone,
            Layout::Sentinels => Mode::Sentinel,
            Layout::Cluster(_) => Mode::Cluster,
        },
        seeds: seeds.parse().expect("seeds"),
        sentinel_master: MASTER.to_owned(),
        password: Secret::from(password.to_owned()),
        response_timeout: plan.response_timeout,
        ping_interval: plan.ping_interval,
        ..backend::Settings::default()
    }
}
