//! The cost of counting reads and of exporting the counts.

mod rig;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use redis_proxy::cache::Outcome;
use redis_proxy::metrics::{Exposition, FrontEnd};

use self::rig::Rig;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let rig = Rig::new();
    let mut group = criterion.benchmark_group("metrics");
    for reads in [1, 64] {
        group.throughput(Throughput::Elements(reads));
        group.bench_function(format!("{reads} reads"), |bencher| {
            let took = black_box(Duration::from_micros(10));
            bencher.iter(|| rig.metrics.record_reads(FrontEnd::Resp, Outcome::Hit, reads, took));
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("scrape", |bencher| {
        bencher.iter(|| black_box(rig.proxy.metrics(Exposition::Text)));
    });
    group.finish();
    criterion.final_summary();
}
