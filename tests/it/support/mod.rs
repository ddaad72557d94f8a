//! The harness of the integration tests: a Redis for each test, the real proxy binary, a relay
//! between the two that can fail, and plain clients.
//!
//! Each test owns its temporary directory, sockets and processes; all of them end with the value
//! that stands for them. No test waits for a fixed time if it can observe the event. It waits
//! within a bound and fails with the evidence.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod authority;
pub(crate) mod browser;
pub(crate) mod clients;
pub(crate) mod cluster;
pub(crate) mod collector;
pub(crate) mod env;
pub(crate) mod fault_stage;
pub(crate) mod http;
mod http2;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod metrics;
mod monitor;
pub(crate) mod mounts;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis_server;
pub(crate) mod relay;
pub(crate) mod resp_client;
pub(crate) mod resp_pair;
pub(crate) mod script;
pub(crate) mod secret_file;
pub(crate) mod sentinel;
pub(crate) mod serving;
pub(crate) mod skip;
pub(crate) mod unlogged_proxy;
mod wait;

pub(crate) use authority::Authority;
pub(crate) use http2::Http2;
pub(crate) use monitor::Monitor;
pub(crate) use proxy::{Proxy, Reload};
pub(crate) use redis_server::RedisServer;
pub(crate) use relay::Relay;
pub(crate) use rustix::process::Signal;
pub(crate) use wait::{eventually, within};
