//! One simulation: the proxy, the model of Redis, clients and faults, on one thread.
//!
//! The proxy is the one of the program: its supervisor, cache and RESP front end, built as the
//! daemon builds them. Only the network is another.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis_proxy::backend::{self, Backend, Network};
use redis_proxy::cache::{self, Cache, CoherenceMode};
use redis_proxy::commands::{kept_names, names};
use redis_proxy::metrics::Metrics;
use redis_proxy::net::ClientStream;
use redis_proxy::proxy::Proxy;
use redis_proxy::resp::{self, Resp};
use redis_proxy::server::{Drain, Service as _};
use redis_proxy::settings::{ByteSize, MemorySize};
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle};
use tokio::time::sleep;

use super::clients::{read_all, read_and_write, write};
use super::conditions::Conditions;
use super::faults;
use super::model::Key;
use super::network::{Path, longest};
use super::oracle::History;
use super::redis::Redis;
use super::world::{World, lock, ms};

/// The time of the faults in a dense simulation.
const FAULTS: Duration = Duration::from_secs(60);
/// The time after the faults in which all has to recover.
const RECOVERY: Duration = Duration::from_secs(20);
/// The delays over the path from a client to the proxy, in milliseconds.
const CLIENT_DELAY: (u64, u64) = (0, 3);
/// The limits of the program's configuration.
const MAX_VALUE: usize = 1 << 20;
const MAX_KEY: usize = 16 << 10;

/// The choices of a seed for the whole simulation.
pub(super) struct Plan {
    /// The time of the faults.
    time: Duration,
    keys: u64,
    clients: u64,
    /// The longest pauses of clients, writers and faults, in milliseconds.
    pub(super) pause: u64,
    pub(super) write_pause: u64,
    pub(super) fault_pause: u64,
    /// The longest time to live that is set, and the longest fault, in milliseconds.
    pub(super) life: u64,
    pub(super) fault: u64,
    /// The bounds of the delay of a piece between proxy and Redis, in milliseconds.
    pub(super) delay: (u64, u64),
    coherence_timeout: Duration,
    stale_if_error: Duration,
    ttl: Duration,
    capacity: usize,
    pub(super) ping_interval: Duration,
    pub(super) response_timeout: Duration,
}

impl Plan {
    /// Half of the plans are dense: short timeouts, and something happens every few milliseconds.
    /// The others have the timeouts of the defaults, and last longer.
    fn choose(world: &World) -> Self {
        let pace = [1, 1, 1, 6, 6, 40][world.index(6)];
        let coherence_timeout = if pace == 1 { world.duration(300, 1500) } else { ms(3000) };
        let is_served_stale = world.chance(40);
        Self {
            time: FAULTS * u32::try_from(pace).unwrap_or(1),
            keys: world.between(2, 8),
            clients: world.between(2, 5),
            pause: pace * world.between(10, 120),
            write_pause: pace * world.between(40, 400),
            fault_pause: pace * world.between(800, 6000),
            life: pace * 4000,
            fault: if pace == 1 { 2000 } else { 8000 },
            delay: (0, world.between(1, 15)),
            coherence_timeout,
            stale_if_error: if is_served_stale { 2 * coherence_timeout } else { Duration::ZERO },
            ttl: Duration::from_secs(world.between(2, 3600)),
            capacity: usize::try_from(world.between(4, 1000)).unwrap_or(0),
            ping_interval: coherence_timeout / 3,
            response_timeout: if pace == 1 { world.duration(400, 2000) } else { ms(5000) },
        }
    }
}

/// The counts of a simulation.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) faults: AtomicU64,
}

/// The parts that clients and faults share.
#[derive(Clone)]
pub(super) struct Stage(Arc<Parts>);

pub(super) struct Parts {
    pub(super) world: World,
    pub(super) plan: Plan,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) conditions: Conditions,
    pub(super) redis: Redis,
    pub(super) to_redis: Path,
    pub(super) to_proxy: Path,
    pub(super) proxy: Proxy,
    pub(super) counts: Counts,
    texts: AtomicU64,
    breach: Mutex<Option<String>>,
}

impl std::ops::Deref for Stage {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    pub(super) fn random_key(&self) -> Key {
        format!("s{}", self.world.between(1, self.plan.keys)).into_bytes()
    }

    pub(super) fn random_hash(&self) -> Key {
        format!("h{}", self.world.between(1, 2)).into_bytes()
    }

    /// Returns a text that was never written before.
    pub(super) fn next_text(&self) -> Vec<u8> {
        self.texts.fetch_add(1, Relaxed).to_string().into_bytes()
    }

    /// Returns the time for which a superseded value may still be read by a command of `sent`, and
    /// whether stale values may be served. `was_ready`: the proxy was connected at that time.
    pub(super) fn bound(&self, sent: Duration, was_ready: bool) -> (Duration, bool) {
        if was_ready && !self.conditions.may_be_late(sent) {
            return (longest(self.plan.delay), false);
        }
        let stale_if_error = self.plan.stale_if_error;
        (self.plan.coherence_timeout + stale_if_error, !stale_if_error.is_zero())
    }

    pub(super) fn fail(&self, breach: String) {
        self.world.record(|| format!("breach: {breach}"));
        lock(&self.breach).get_or_insert(breach);
    }

    pub(super) fn has_failed(&self) -> bool {
        lock(&self.breach).is_some()
    }
}

/// The result of a simulation.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) breach: Option<String>,
    /// The digest of the trace.
    pub(super) trace: String,
    pub(super) events: u64,
    pub(super) time: Duration,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) errors: u64,
    pub(super) faults: u64,
    pub(super) from_memory: u64,
}

/// Runs the simulation of a seed. With `is_printed` its events go to standard error.
pub(super) fn run(seed: u64, is_printed: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(simulate(seed, is_printed))
}

async fn simulate(seed: u64, is_printed: bool) -> Outcome {
    let world = World::new(seed, is_printed);
    let plan = Plan::choose(&world);
    let (to_redis, at_redis) = Path::new(&world, plan.delay);
    let (to_proxy, mut at_proxy) = Path::new(&world, CLIENT_DELAY);
    let history = Arc::new(Mutex::new(History::default()));
    let redis = Redis::start(&world, Arc::clone(&history), at_redis);
    let proxy = start_proxy(&plan, &to_redis);
    let front_end = Resp::prepare(resp::Settings::default(), MAX_KEY, proxy.clone());
    let front_end = front_end.expect("a front end");
    tokio::spawn(async move {
        while let Some(end) = at_proxy.recv().await {
            tokio::spawn(front_end.serve(ClientStream::Simulated(Box::new(end)), Drain::never()));
        }
    });
    let stage = Stage(Arc::new(Parts {
        world: world.clone(),
        history,
        conditions: Conditions::default(),
        redis,
        to_redis,
        to_proxy,
        proxy: proxy.clone(),
        counts: Counts::default(),
        texts: AtomicU64::new(0),
        breach: Mutex::default(),
        plan,
    }));
    // The first connection takes a moment.
    stage.conditions.disturb(ms(1000), ms(1000));
    for number in 0..stage.plan.clients {
        tokio::spawn(read_and_write(stage.clone(), number));
    }
    for _ in 0..2 {
        tokio::spawn(write(stage.clone()));
    }
    faults::cause(&stage, stage.plan.time).await;
    if !stage.has_failed() {
        sleep(RECOVERY).await;
        if let Err(breach) = read_all(&stage).await {
            stage.fail(breach);
        }
    }
    let (trace, events) = world.trace();
    let counts = &stage.counts;
    Outcome {
        breach: lock(&stage.breach).clone(),
        trace: format!("{trace:016x}"),
        events,
        time: world.now(),
        reads: counts.reads.load(Relaxed),
        writes: counts.writes.load(Relaxed),
        errors: counts.errors.load(Relaxed),
        faults: counts.faults.load(Relaxed),
        from_memory: proxy.read_totals().from_memory,
    }
}

/// Builds the proxy as the daemon does, on the simulated network.
fn start_proxy(plan: &Plan, to_redis: &Path) -> Proxy {
    let settings = cache::Settings {
        capacity: plan.capacity,
        max_memory: MemorySize::Bytes(ByteSize(64 << 20)),
        ttl: plan.ttl,
        stale_if_error: plan.stale_if_error,
        coherence: CoherenceMode::Auto,
        coherence_timeout: plan.coherence_timeout,
        ..cache::Settings::default()
    };
    let redis = backend::Settings {
        response_timeout: plan.response_timeout,
        ping_interval: plan.ping_interval,
        ..backend::Settings::default()
    };
    let cache = Cache::new(settings, Handle::current());
    let metrics = Arc::new(Metrics::new(&names()).expect("metrics"));
    let (backend, supervisor) = Backend::prepare_on(
        Network::Simulated(Arc::new(to_redis.clone())),
        redis,
        MAX_VALUE,
        kept_names().into(),
        cache.clone(),
        Arc::clone(&metrics),
    )
    .expect("a backend");
    tokio::spawn(supervisor.run());
    let upstream = Upstream::Standalone(cache, backend);
    let swept = upstream.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            swept.sweep();
        }
    });
    Proxy::new(upstream, metrics, HotKeys::new(0))
}
