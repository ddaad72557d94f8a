//! The cost of a miss without the time of Redis: its flight, its task, its storage and an eviction;
//! and the cost of sharing one.

mod rig;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use futures::future::join_all;
use redis_proxy::cache::{Fetched, ReadMode};
use tokio::time::Instant;

use self::rig::{Rig, VALUE, key};

/// The readers of one cold key.
const READERS: usize = 100;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let rig = Rig::new();
    // None of these keys is cached: each is newer than all others.
    let mut cold = (rig::KEYS..).map(key);
    let mut group = criterion.benchmark_group("flight");
    group.bench_function("miss", |bencher| bencher.iter(|| cold.next().map(|key| rig.fetch(&key))));
    group.throughput(Throughput::Elements(READERS as u64));
    group.bench_function("shared", |bencher| {
        bencher.iter(|| cold.next().map(|key| share(&rig, &key)));
    });
    group.finish();
    criterion.final_summary();
}

fn share(rig: &Rig, key: &[u8]) -> usize {
    let fetch = |_, _| async {
        // The other readers join meanwhile.
        tokio::task::yield_now().await;
        Fetched::Value(Bytes::from_static(VALUE).into(), None)
    };
    let now = Instant::now();
    let reads = (0..READERS).map(|_| rig.cache.get_or_fetch(key, ReadMode::Default, now, fetch));
    rig.runtime.block_on(join_all(reads)).len()
}
