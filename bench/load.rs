//! The part of the load that ready-made tools do not have: GETs at a fixed rate, the same load for
//! different protocols, and misses beside the same reads straight over one link.
//!
//! At a fixed rate a read is timed from when it was due, so a server that is late for one is
//! charged for all that waited behind it. The client never sleeps: it has a core of its own, and a
//! timer is less exact than what it measures. The servers take turns, so short that what disturbs
//! the machine disturbs all of them. The first reads of a turn are not counted, since the
//! processor's caches are then still those of the server before; the others are counted in slices.
//!
//! Usage: `load paced CONNECTIONS KEYS RATE TURNS UNCOUNTED SLICE SLICES PORT...`: for each server
//! so many turns, of so many ms that are not counted and so many slices of so many ms. Prints for
//! each all its reads, how long all its turns took, the 50th, 99th and 99.9th percentile of what
//! was counted and the lower quartile of its slices' 99th percentiles, in µs; or `failed` and why.
//! `load straight PORT TASKS SECONDS ROUNDS`; prints for each round reads a second straight, as
//! pairs with the time to live over a tracked link, and through the cache.
//! `load closed READ CONNECTIONS PIPELINE KEYS SIZE WRITE_EVERY MS PORT`: pipelines of reads of
//! values of SIZE bytes, each a GET if READ is 1, an MGET of so many keys if it is more, and an mg
//! of memcached's meta commands if it is 0; prints the commands, the time and the 50th, 99th and
//! 99.9th percentile of a pipeline's latency in µs.

mod closed;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use redis::aio::MultiplexedConnection;
use redis_proxy::backend::{self, Backend, Network};
use redis_proxy::cache::{self, Cache, ReadMode};
use redis_proxy::metrics::{FrontEnd, Metrics};
use redis_proxy::proxy::Proxy;
use redis_proxy::telemetry::hot_keys::HotKeys;
use redis_proxy::upstream::Upstream;
use tokio::runtime::{Builder, Handle};
use tracing::Span;

use self::closed::{Commands, Plan};

/// The same as the daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers =
        arguments.iter().skip(1).map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    match (arguments.first().map(String::as_str), &numbers[..]) {
        (Some("paced"), [connections, keys, rate, turns, uncounted, slice, slices, ports @ ..]) => {
            let plan = PacedPlan {
                keys: *keys,
                between: Duration::from_secs(1)
                    .checked_div(u32::try_from(*rate)?)
                    .context("a rate of 0")?,
                uncounted: Duration::from_millis(*uncounted),
                slice: Duration::from_millis(*slice),
                slices: usize::try_from(*slices)?,
            };
            let servers = ports.iter().map(|port| Paced::connect(*port, *connections)).collect();
            report(take_turns(servers, *turns, &plan))
        }
        (Some("straight"), [port, tasks, seconds, rounds]) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(compare(
                u16::try_from(*port)?,
                *tasks,
                Duration::from_secs(*seconds),
                *rounds,
            ))
        }
        (
            Some("closed"),
            [read, connections, pipeline, keys, size, write_every, milliseconds, port],
        ) => {
            let size = usize::try_from(*size)?;
            let plan = Plan {
                commands: match usize::try_from(*read)? {
                    0 => Commands::meta(size),
                    1 => Commands::resp(size),
                    keys => Commands::mget(size, keys),
                },
                connections: usize::try_from(*connections)?,
                pipeline: usize::try_from(*pipeline)?,
                keys: *keys,
                write_every: usize::try_from(*write_every)?,
                time: Duration::from_millis(*milliseconds),
            };
            let summary = closed::run(u16::try_from(*port)?, &plan)?;
            Ok(writeln!(io::stdout(), "{}", summary.line())?)
        }
        _ => anyhow::bail!("see the head of bench/load.rs for its arguments"),
    }
}

/// What a turn is.
struct PacedPlan {
    keys: u64,
    between: Duration,
    uncounted: Duration,
    slice: Duration,
    slices: usize,
}

/// Who fails has no further turn.
fn take_turns(
    mut servers: Vec<anyhow::Result<Paced>>,
    turns: u64,
    plan: &PacedPlan,
) -> Vec<anyhow::Result<Paced>> {
    for _ in 0..turns {
        for server in &mut servers {
            if let Ok(paced) = server
                && let Err(error) = paced.turn(plan)
            {
                *server = Err(error);
            }
        }
    }
    servers
}

fn report(servers: Vec<anyhow::Result<Paced>>) -> anyhow::Result<()> {
    for server in servers {
        match server.and_then(Paced::summary) {
            Ok(summary) => writeln!(io::stdout(), "{summary}")?,
            Err(error) => writeln!(io::stdout(), "failed {error:#}")?,
        }
    }
    Ok(())
}

/// Connections to one server, over which reads go out at a fixed rate while it has its turn.
struct Paced {
    connections: Vec<Connection>,
    reads: usize,
    time: Duration,
    /// The latencies of each slice of all turns.
    slices: Vec<Vec<Duration>>,
}

struct Connection {
    stream: TcpStream,
    /// When the reads that are not answered yet were due.
    due: VecDeque<Instant>,
    received: Vec<u8>,
}

/// The answers all have the length of the first.
const VALUE: usize = 100;
const ANSWER: usize = "$100\r\n".len() + VALUE + "\r\n".len();

impl Paced {
    fn connect(port: u64, connections: u64) -> anyhow::Result<Self> {
        let port = u16::try_from(port)?;
        let connections =
            (0..connections).map(|_| Connection::open(port)).collect::<io::Result<_>>()?;
        Ok(Self { connections, reads: 0, time: Duration::ZERO, slices: Vec::new() })
    }

    /// Asks for all that is due in one turn, however late, and waits for all answers.
    fn turn(&mut self, plan: &PacedPlan) -> anyhow::Result<()> {
        let begun = Instant::now();
        let counted = begun + plan.uncounted;
        let end = counted + plan.slice * u32::try_from(plan.slices)?;
        let mut next = begun;
        let mut answers = Vec::new();
        let mut place = 0;
        while next < end {
            if next <= Instant::now() {
                place = (place + 1) % self.connections.len();
                self.connections[place].ask(rand::rng().random_range(0..plan.keys), next)?;
                next += plan.between;
            }
            self.receive(&mut answers)?;
        }
        while self.connections.iter().any(|connection| !connection.due.is_empty()) {
            ensure!(end.elapsed() < LAST_ANSWERS, "reads were not answered");
            self.receive(&mut answers)?;
        }
        self.time += begun.elapsed();
        self.reads += answers.len();
        let mut slices = vec![Vec::new(); plan.slices];
        for answer in answers.iter().filter(|answer| answer.due >= counted) {
            let slice = (answer.due - counted).as_nanos() / plan.slice.as_nanos();
            slices[usize::try_from(slice)?].push(answer.latency);
        }
        self.slices.extend(slices);
        Ok(())
    }

    fn receive(&mut self, answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        for connection in
            self.connections.iter_mut().filter(|connection| !connection.due.is_empty())
        {
            connection.receive(answers)?;
        }
        Ok(())
    }

    fn summary(mut self) -> anyhow::Result<String> {
        let slices =
            self.slices.iter_mut().map(|slice| percentile(slice, 990)).collect::<Option<Vec<_>>>();
        let quartile = slices
            .and_then(|mut slices| percentile(&mut slices, 250))
            .context("a slice without reads")?;
        let mut all = self.slices.concat();
        let percentiles =
            [500, 990, 999].map(|permille| percentile(&mut all, permille).unwrap_or_default());
        let figures = [self.time].into_iter().chain(percentiles).chain([quartile]);
        let figures: Vec<_> = figures.map(|figure| figure.as_micros().to_string()).collect();
        Ok(format!("{} {}", self.reads, figures.join(" ")))
    }
}

/// None of nothing.
fn percentile(durations: &mut [Duration], permille: usize) -> Option<Duration> {
    durations.sort_unstable();
    durations.get(durations.len().saturating_sub(1) * permille / 1000).copied()
}

/// A read that was answered.
struct Answer {
    due: Instant,
    latency: Duration,
}

/// How long the last answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, due: VecDeque::new(), received: Vec::new() })
    }

    fn ask(&mut self, number: u64, due: Instant) -> io::Result<()> {
        self.due.push_back(due);
        // So short that the socket takes it whole, or is so far behind that the measurement has
        // failed.
        self.stream.write_all(format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n").as_bytes())
    }

    fn receive(&mut self, answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        let mut buffer = [0; 64 * ANSWER];
        match self.stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("the server hung up"),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        while self.received.len() >= ANSWER {
            ensure!(
                self.received.starts_with(b"$100\r\n"),
                "a read was not answered with a value of 100 bytes"
            );
            self.received.drain(..ANSWER);
            let due = self.due.pop_front().context("an answer to no read")?;
            answers.push(Answer { due, latency: now.saturating_duration_since(due) });
        }
        Ok(())
    }
}

/// Keys that are read in turn, of which the cache keeps so few that it never has the next.
const KEYS: u64 = 1_000_000;
const CAPACITY: usize = 10_000;

async fn compare(port: u16, tasks: u64, time: Duration, rounds: u64) -> anyhow::Result<()> {
    let proxy = proxy(port)?;
    while proxy.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let link = redis::Client::open(("127.0.0.1", port))?.get_multiplexed_async_connection().await?;
    // Nothing is written, so nothing is told.
    let mut tracked = redis::Client::open(format!("redis://127.0.0.1:{port}/?protocol=resp3"))?
        .get_multiplexed_async_connection()
        .await?;
    redis::cmd("CLIENT").arg(&["TRACKING", "ON"]).exec_async(&mut tracked).await?;
    for _ in 0..rounds {
        let (link, tracked, proxy) = (link.clone(), tracked.clone(), proxy.clone());
        let straight = rate(tasks, time, move |key| straight(link.clone(), key)).await?;
        let pairs = rate(tasks, time, move |key| pair(tracked.clone(), key)).await?;
        let missed = rate(tasks, time, move |key| missed(proxy.clone(), key)).await?;
        writeln!(io::stdout(), "{straight:.0} {pairs:.0} {missed:.0}")?;
    }
    Ok(())
}

/// A proxy in this very process, whose link runs beside the reads.
fn proxy(port: u16) -> anyhow::Result<Proxy> {
    let metrics = Arc::new(Metrics::new(&[])?);
    let settings = cache::Settings { capacity: CAPACITY, ..cache::Settings::default() };
    let redis = backend::Settings {
        url: format!("redis://127.0.0.1:{port}").parse()?,
        ..backend::Settings::default()
    };
    let cache = Cache::new(settings, Handle::current());
    let names = backend::CommandNames::default();
    let prepared = Backend::prepare(
        Network::System,
        redis,
        1 << 20,
        names,
        cache.clone(),
        Arc::clone(&metrics),
    );
    let (backend, link) = prepared?;
    tokio::spawn(link.run());
    Ok(Proxy::new(Upstream::Standalone(cache, backend), metrics, HotKeys::new(0)))
}

async fn straight(mut link: MultiplexedConnection, key: String) -> anyhow::Result<()> {
    let value: Vec<u8> = redis::cmd("GET").arg(key).query_async(&mut link).await?;
    ensure!(value.len() == VALUE, "found no value");
    Ok(())
}

/// What a cache asks: the value and its time to live.
async fn pair(mut link: MultiplexedConnection, key: String) -> anyhow::Result<()> {
    let mut pair = redis::pipe();
    pair.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
    let (value, _): (Vec<u8>, i64) = pair.query_async(&mut link).await?;
    ensure!(value.len() == VALUE, "found no value");
    Ok(())
}

async fn missed(proxy: Proxy, key: String) -> anyhow::Result<()> {
    let answer =
        proxy.get(FrontEnd::Resp, key.as_bytes(), ReadMode::Default, &Span::none()).await?;
    ensure!(!answer.outcome.from_memory(), "found a key in memory that ought to have left it");
    Ok(())
}

/// Reads a second of `tasks` that each read one key after the other.
async fn rate<F>(
    tasks: u64,
    time: Duration,
    read: impl Fn(String) -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let begun = Instant::now();
    let readers: Vec<_> = (0..tasks)
        .map(|task| {
            let read = read.clone();
            tokio::spawn(async move {
                let mut reads = 0_u32;
                let keys =
                    (task * KEYS / tasks..).map(|number| format!("key:{:012}", number % KEYS));
                for key in keys.take_while(|_| begun.elapsed() < time) {
                    read(key).await?;
                    reads += 1;
                }
                anyhow::Ok(reads)
            })
        })
        .collect();
    let mut reads = 0.0;
    for reader in readers {
        reads += f64::from(reader.await??);
    }
    Ok(reads / begun.elapsed().as_secs_f64())
}
