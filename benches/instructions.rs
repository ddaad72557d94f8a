//! Cached reads for `scripts/instructions`, which counts their processor instructions.
//!
//! Usage: `instructions READ TIMES`. Everything besides the reads is constant, so the difference of
//! two runs is the cost of the reads.

mod rig;

use std::hint::black_box;

use anyhow::{Context as _, bail};
use redis_proxy::cache::ReadMode;
use redis_proxy::metrics::FrontEnd;
use tokio::time::Instant;
use tracing::Span;

use self::rig::{Client, Rig, key, scattered};

fn main() -> anyhow::Result<()> {
    // Arguments of cargo itself are no reads.
    let arguments: Vec<_> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [read, times] = &arguments[..] else { return Ok(()) };
    let times = times.parse().context("TIMES is a number")?;
    // The same read with rules: one for its keys, and others with the same first byte.
    let (read, prefixes) = match read.strip_suffix("-rules") {
        Some(read) => (read, &["session:*", "key:*", "k*", "key:admin:*", "other:*", "*"][..]),
        None => (read.as_str(), &[][..]),
    };
    let rig = Rig::with_rules(prefixes);
    let keys: Vec<_> = scattered().take(rig::KEYS).map(key).collect();
    let reads = keys.iter().cycle().take(times);
    match read {
        "lookup" => reads.for_each(|key| drop(black_box(rig.proxy.lookup(key, Instant::now())))),
        "get" => rig.runtime.block_on(async {
            for key in reads {
                drop(black_box(
                    rig.proxy.get(FrontEnd::Http, key, ReadMode::Default, &Span::none()).await,
                ));
            }
        }),
        // None of these keys is cached, and each causes an eviction.
        "miss" => (rig::KEYS..rig::KEYS + times).for_each(|number| rig.fetch(&key(number))),
        "http" => ask(&rig, rig.http(), &rig::http_requests(), 1, times),
        "resp-1" => ask(&rig, rig.resp(), &rig::resp_requests(1), 1, times),
        "resp-16" => ask(&rig, rig.resp(), &rig::resp_requests(16), 16, times),
        "resp-50" => ask(&rig, rig.resp(), &rig::resp_requests(50), 50, times),
        "mget-100" => ask(&rig, rig.resp(), &rig::mget_requests(100), 100, times),
        "hget" | "hgetall" => {
            rig.keep_hashes();
            ask(&rig, rig.resp(), &rig::hash_requests(&read.to_uppercase()), 1, times);
        }
        "rest-1" => ask(&rig, rig.rest(), &rig::rest_requests(1), 1, times),
        "rest-50" => ask(&rig, rig.rest(), &rig::rest_requests(50), 50, times),
        _ => bail!("there is no read called {read}"),
    }
    Ok(())
}

/// Reads this many times, `pipeline` at a time, after one read of every key: allocations of the
/// first read are not part of a hit.
fn ask(rig: &Rig, mut client: Client, requests: &[Vec<u8>], pipeline: usize, times: usize) {
    rig.runtime.block_on(async {
        for request in requests.iter().chain(requests.iter().cycle().take(times / pipeline)) {
            client.ask(request, pipeline).await;
        }
    });
}
