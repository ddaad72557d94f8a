//! The part of the load that ready-made tools do not have: GETs at a fixed rate, and misses beside the same reads
//! straight over one link.
//!
//! At a fixed rate a read is timed from when it was due, so a server that is late for one is charged for all that waited
//! behind it. The client never sleeps: it has a core of its own, and a timer is less exact than what it measures.
//!
//! Usage: `load paced PORT CONNECTIONS RATE SECONDS KEYS`; prints reads and their 50th, 99th and 99.9th percentile in µs.
//! `load straight PORT TASKS SECONDS ROUNDS`; prints for each round reads a second straight, as pairs with the time to live
//! over a tracked link, and through the cache.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use redis::aio::MultiplexedConnection;
use redis_proxy::backend::{self, Backend};
use redis_proxy::cache::{self, Cache, Demand};
use redis_proxy::hotkeys::HotKeys;
use redis_proxy::metrics::{FrontEnd, Metrics};
use redis_proxy::proxy::{Proxy, Upstream};
use tokio::runtime::{Builder, Handle};
use tracing::Span;

/// The same as the daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = arguments.iter().skip(1).map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    match (arguments.first().map(String::as_str), &numbers[..]) {
        (Some("paced"), [port, connections, rate, seconds, keys]) => {
            let mut paced = Paced::connect(u16::try_from(*port)?, *connections, *keys)?;
            report(paced.run(*rate, Duration::from_secs(*seconds))?)
        }
        (Some("straight"), [port, tasks, seconds, rounds]) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(compare(u16::try_from(*port)?, *tasks, Duration::from_secs(*seconds), *rounds))
        }
        _ => anyhow::bail!("see the head of bench/load.rs for its arguments"),
    }
}

fn report(mut latencies: Vec<Duration>) -> anyhow::Result<()> {
    ensure!(!latencies.is_empty(), "no read was answered");
    latencies.sort_unstable();
    let at = |permille: usize| latencies[(latencies.len() - 1) * permille / 1000].as_micros();
    Ok(writeln!(io::stdout(), "{} {} {} {}", latencies.len(), at(500), at(990), at(999))?)
}

/// Connections over which reads go out at a fixed rate.
struct Paced {
    connections: Vec<Connection>,
    keys: u64,
    latencies: Vec<Duration>,
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
    fn connect(port: u16, connections: u64, keys: u64) -> anyhow::Result<Self> {
        let connections = (0..connections).map(|_| Connection::open(port)).collect::<io::Result<_>>()?;
        Ok(Self { connections, keys, latencies: Vec::new() })
    }

    /// The latency of each read.
    fn run(&mut self, rate: u64, time: Duration) -> anyhow::Result<Vec<Duration>> {
        let (begun, between) = (Instant::now(), Duration::from_secs(1) / u32::try_from(rate)?);
        let mut next = begun;
        let mut turn = 0;
        while begun.elapsed() < time {
            if next <= Instant::now() {
                turn = (turn + 1) % self.connections.len();
                self.connections[turn].ask(rand::rng().random_range(0..self.keys), next)?;
                next += between;
            }
            self.receive()?;
        }
        while self.connections.iter().any(|connection| !connection.due.is_empty()) {
            ensure!(begun.elapsed() < time + LAST_ANSWERS, "reads were not answered");
            self.receive()?;
        }
        Ok(std::mem::take(&mut self.latencies))
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        for connection in self.connections.iter_mut().filter(|connection| !connection.due.is_empty()) {
            connection.receive(&mut self.latencies)?;
        }
        Ok(())
    }
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
        // So short that the socket takes it whole, or is so far behind that the measurement has failed.
        self.stream.write_all(format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n").as_bytes())
    }

    fn receive(&mut self, latencies: &mut Vec<Duration>) -> anyhow::Result<()> {
        let mut buffer = [0; 64 * ANSWER];
        match self.stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("the server hung up"),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        while self.received.len() >= ANSWER {
            ensure!(self.received.starts_with(b"$100\r\n"), "a read was not answered with a value of 100 bytes");
            self.received.drain(..ANSWER);
            let due = self.due.pop_front().context("an answer to no read")?;
            latencies.push(now.saturating_duration_since(due));
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
    let redis = backend::Settings { url: format!("redis://127.0.0.1:{port}").parse()?, ..backend::Settings::default() };
    let cache = Cache::new(settings, Handle::current());
    let (backend, link) = Backend::prepare(redis, 1 << 20, cache.clone(), Arc::clone(&metrics))?;
    tokio::spawn(link.run());
    Ok(Proxy::new(Upstream::One(cache, backend), metrics, HotKeys::new(0)))
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
    let answer = proxy.get(FrontEnd::Resp, key.as_bytes(), Demand::Usual, &Span::none()).await?;
    ensure!(!answer.outcome.from_memory(), "found a key in memory that ought to have left it");
    Ok(())
}

/// Reads a second of `tasks` that each read one key after the other.
async fn rate<F>(tasks: u64, time: Duration, read: impl Fn(String) -> F + Clone + Send + 'static) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let begun = Instant::now();
    let readers: Vec<_> = (0..tasks)
        .map(|task| {
            let read = read.clone();
            tokio::spawn(async move {
                let mut reads = 0_u32;
                let keys = (task * KEYS / tasks..).map(|number| format!("key:{:012}", number % KEYS));
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
