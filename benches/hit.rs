//! The cost of a cached read: in memory alone, counted, and as a whole request of either front end
//! over a socket.

mod rig;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use redis_proxy::cache::ReadMode;
use redis_proxy::metrics::FrontEnd;
use tokio::time::Instant;
use tracing::Span;

use self::rig::{Client, Rig, key, scattered};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let rig = Rig::new();
    in_memory(&mut criterion, &rig);
    whole(&mut criterion, &rig, "http", rig.http(), &rig::http_requests(), 1);
    for pipeline in [1, 16, 64] {
        let requests = rig::resp_requests(pipeline);
        whole(
            &mut criterion,
            &rig,
            &format!("resp, {pipeline} at a time"),
            rig.resp(),
            &requests,
            pipeline,
        );
    }
    criterion.final_summary();
}

fn in_memory(criterion: &mut Criterion, rig: &Rig) {
    let keys: Vec<_> = scattered().take(rig::KEYS).map(key).collect();
    let mut group = criterion.benchmark_group("hit");
    let mut turns = (0..rig::KEYS).cycle();
    let mut next = || turns.next().map_or(&keys[0], |turn| &keys[turn]);
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| black_box(rig.proxy.lookup(next(), Instant::now())));
    });
    group.bench_function("get", |bencher| {
        bencher.iter(|| {
            black_box(rig.runtime.block_on(rig.proxy.get(
                FrontEnd::Http,
                next(),
                ReadMode::Default,
                &Span::none(),
            )))
        });
    });
}

/// Measures whole requests with `reads` reads each.
fn whole(
    criterion: &mut Criterion,
    rig: &Rig,
    name: &str,
    mut client: Client,
    requests: &[Vec<u8>],
    reads: usize,
) {
    let mut group = criterion.benchmark_group("hit");
    group.throughput(Throughput::Elements(reads as u64));
    let mut turns = requests.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher
            .iter(|| turns.next().map(|request| rig.runtime.block_on(client.ask(request, reads))));
    });
}
