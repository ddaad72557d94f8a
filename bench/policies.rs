//! Plays a trace of reads through the real cache under each of its policies, and through plain versions of others.
//!
//! A trace is a file with one read a line, whose first word is the key, a number. One client reads the keys in turn, and a
//! miss is fetched at once, so that every policy sees the same reads.
//!
//! Usage: `policies FILE ENTRIES...`. Prints a line for each number of entries and each policy: the entries, the name,
//! the hits and the reads, separated by tabs.

mod reference;

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use redis_proxy::backend::BackendError;
use redis_proxy::cache::{self, Cache, CoherenceMode, Fetched, Policy, ReadMode};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// The same as the daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, sizes @ ..] = &arguments[..] else {
        anyhow::bail!("Usage: policies FILE ENTRIES...");
    };
    let trace = load(file)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    for size in sizes {
        let entries: usize = size.parse().context("ENTRIES are numbers")?;
        let real = |policy| play(&runtime, &trace, entries, policy);
        for (name, hits) in [
            ("LRU", reference::lru(&trace, entries)),
            ("SIEVE", reference::sieve(&trace, entries)),
            ("S3-FIFO", reference::s3_fifo(&trace, entries)),
            ("optimal", reference::optimal(&trace, entries)),
            ("lru", real(Policy::Lru)?),
            ("tinylfu", real(Policy::Tinylfu)?),
        ] {
            writeln!(std::io::stdout(), "{entries}\t{name}\t{hits}\t{}", trace.len())?;
        }
    }
    Ok(())
}

/// Returns the keys of a trace, numbered from 0 in the order of their first reads.
fn load(file: &str) -> anyhow::Result<Vec<u32>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let mut numbers = HashMap::new();
    let keys = text.lines().filter_map(|line| line.split_whitespace().next()).map(|key| {
        let next = u32::try_from(numbers.len())?;
        Ok(*numbers.entry(key).or_insert(next))
    });
    keys.collect()
}

/// Reads all keys of the trace through the cache. Returns the number of hits.
fn play(runtime: &Runtime, trace: &[u32], capacity: usize, policy: Policy) -> anyhow::Result<u64> {
    let settings = cache::Settings {
        capacity,
        policy,
        ttl: Duration::from_secs(1 << 20),
        coherence: CoherenceMode::Ttl,
        ..cache::Settings::default()
    };
    let cache: Cache<BackendError> = Cache::new(settings, runtime.handle().clone());
    runtime.block_on(async {
        let mut hits = 0;
        for key in trace {
            let key = key.to_be_bytes();
            if cache.lookup(&key, Instant::now()).is_some() {
                hits += 1;
                continue;
            }
            let fetch = |_| async { Fetched::Value(Bytes::from_static(b"value"), None) };
            let answer = cache.get_or_fetch(&key, ReadMode::Default, fetch).await;
            answer.map_err(|(_, error)| error).context("a fetch from nowhere failed")?;
        }
        Ok(hits)
    })
}
