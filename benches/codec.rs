//! The Redis protocol: finding the ends of commands and of replies, sixteen of them in a buffer.

mod rig;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use redis_proxy::protocol::{ParseStatus, ReplyScanner, RequestLimits, RequestParser};

const BATCH: usize = 16;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(BATCH as u64));
    let requests = rig::resp_requests(BATCH).swap_remove(0);
    group.bench_function("requests", |bencher| bencher.iter(|| black_box(parse(&requests))));
    let replies = [b"$100\r\n", rig::VALUE, b"\r\n"].concat().repeat(BATCH);
    group.bench_function("replies", |bencher| bencher.iter(|| black_box(scan(&replies))));
    group.finish();
    criterion.final_summary();
}

/// Returns the total length of the keys in `input`.
fn parse(mut input: &[u8]) -> usize {
    let limits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1 << 10 };
    let mut parser = RequestParser::default();
    let mut bytes = 0;
    while let Ok(ParseStatus::Complete(length)) = parser.parse(input, limits) {
        bytes += parser.arguments(input).get(1).len();
        input = &input[length..];
    }
    bytes
}

/// Returns the number of replies in `input`.
fn scan(mut input: &[u8]) -> usize {
    let mut scanner = ReplyScanner::default();
    let mut replies = 0;
    while let Ok((length, Some(_))) = scanner.scan(input) {
        replies += 1;
        input = &input[length..];
    }
    replies
}
