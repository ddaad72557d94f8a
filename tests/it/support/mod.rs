//! What every integration test stands on: a Redis of its own, the real proxy binary, a line
//! between the two that can be made to fail, and a plain HTTP client.
//!
//! Everything belongs to one test: its own temporary directory, sockets and processes, all of
//! which end when the value that stands for them is dropped. Nothing waits for a fixed time; a
//! test waits for what it can observe, within a bound, and fails with the evidence otherwise.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod authority;
pub(crate) mod clients;
pub(crate) mod cluster;
pub(crate) mod collector;
pub(crate) mod http;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod mounts;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis_server;
pub(crate) mod relay;
pub(crate) mod sentinel;
pub(crate) mod skip;
mod wait;

pub(crate) use authority::Authority;
pub(crate) use proxy::{Proxy, Reload};
pub(crate) use redis_server::RedisServer;
pub(crate) use relay::Relay;
pub(crate) use rustix::process::Signal;
pub(crate) use wait::{eventually, within};
