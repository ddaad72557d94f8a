//! Plays a trace of reads through the real cache under each of its policies, and through plain
//! versions of others.
//!
//! A trace is a file with one read a line, whose first word is the key, a number. A second word is
//! the size of its value in bytes. One client reads the keys in turn, and a miss is fetched at
//! once, so that every policy sees the same reads.
//!
//! Usage: `policies FILE BOUND...`. A bound is a number of entries, or an amount of memory such as
//! `32MiB`. Prints a line for each bound and each policy: the bound, the name, the hits, the reads,
//! and the bytes of both, separated by tabs. With a bound on memory, the proxy's own policies are
//! under `cache.max_memory`.

mod reference;

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use redis_proxy::backend::BackendError;
use redis_proxy::cache::{self, Cache, CoherenceMode, Fetched, Policy, ReadMode};
use redis_proxy::settings::{ByteSize, MemorySize};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// The same as the daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, bounds @ ..] = &arguments[..] else {
        anyhow::bail!("Usage: policies FILE BOUND...");
    };
    let (keys, sizes) = load(file)?;
    let trace = Trace { keys: &keys, sizes: &sizes };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    for bound in bounds {
        for (name, hits) in played(&runtime, &trace, bound)? {
            let reads = Hits { reads: keys.len() as u64, bytes: sizes.iter().sum() };
            writeln!(
                std::io::stdout(),
                "{bound}\t{name}\t{}\t{}\t{}\t{}",
                hits.reads,
                reads.reads,
                hits.bytes,
                reads.bytes
            )?;
        }
    }
    Ok(())
}

/// The reads of a trace, each with the size of its value. The keys are numbered from 0 in the order
/// of their first reads.
struct Trace<'a> {
    keys: &'a [u32],
    sizes: &'a [u64],
}

/// The reads that were hits, and the bytes of their values. The plain versions with a bound in
/// entries count no bytes.
struct Hits {
    reads: u64,
    bytes: u64,
}

fn load(file: &str) -> anyhow::Result<(Vec<u32>, Vec<u64>)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let mut numbers = HashMap::new();
    let (mut keys, mut sizes) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let next = u32::try_from(numbers.len())?;
        keys.push(*numbers.entry(key).or_insert(next));
        sizes.push(words.next().map_or(Ok(SIZE), str::parse).context("a size is a number")?);
    }
    Ok((keys, sizes))
}

/// The size of a value in a trace without sizes, in bytes.
const SIZE: u64 = 5;

/// Plays the trace under each policy with this bound.
fn played(
    runtime: &Runtime,
    trace: &Trace<'_>,
    bound: &str,
) -> anyhow::Result<Vec<(&'static str, Hits)>> {
    let own = |settings: &cache::Settings| {
        let with = |policy| play(runtime, trace, cache::Settings { policy, ..settings.clone() });
        anyhow::Ok([("lru", with(Policy::Lru)?), ("tinylfu", with(Policy::Tinylfu)?)])
    };
    if let Some(mebibytes) = bound.strip_suffix("MiB") {
        let bytes = mebibytes.parse::<usize>().context("a bound is a number")? << 20;
        let max_memory = MemorySize::Bytes(ByteSize(bytes));
        let capacity = trace.keys.len();
        let (reads, hit_bytes) = reference::lru_of_bytes(trace.keys, trace.sizes, bytes as u64);
        let mut all = vec![("LRU", Hits { reads, bytes: hit_bytes })];
        all.extend(own(&cache::Settings { capacity, max_memory, ..cache::Settings::default() })?);
        return Ok(all);
    }
    let capacity: usize = bound.parse().context("a bound is a number")?;
    let plain = |reads| Hits { reads, bytes: 0 };
    let mut all = vec![
        ("LRU", plain(reference::lru(trace.keys, capacity))),
        ("SIEVE", plain(reference::sieve(trace.keys, capacity))),
        ("S3-FIFO", plain(reference::s3_fifo(trace.keys, capacity))),
        ("optimal", plain(reference::optimal(trace.keys, capacity))),
    ];
    let max_memory = MemorySize::Percent(50);
    all.extend(own(&cache::Settings { capacity, max_memory, ..cache::Settings::default() })?);
    Ok(all)
}

/// Reads all keys of the trace through the cache.
fn play(runtime: &Runtime, trace: &Trace<'_>, settings: cache::Settings) -> anyhow::Result<Hits> {
    let settings = cache::Settings {
        ttl: Duration::from_secs(1 << 20),
        coherence: CoherenceMode::Ttl,
        ..settings
    };
    let cache: Cache<BackendError> = Cache::new(settings, runtime.handle().clone());
    runtime.block_on(async {
        let mut hits = Hits { reads: 0, bytes: 0 };
        for (key, size) in trace.keys.iter().zip(trace.sizes) {
            let key = key.to_be_bytes();
            if cache.lookup(&key, Instant::now()).is_some() {
                hits.reads += 1;
                hits.bytes += size;
                continue;
            }
            let value = vec![b'v'; usize::try_from(*size)?];
            let fetch = |_, _| async { Fetched::Value(Bytes::from(value).into(), None) };
            let answer = cache.get_or_fetch(&key, ReadMode::Default, Instant::now(), fetch).await;
            answer.map_err(|(_, error)| error).context("a fetch from nowhere failed")?;
        }
        Ok(hits)
    })
}
