//! A caching proxy (near cache) for Redis. It serves hot reads from memory, over HTTP and to Redis
//! clients.
//!
//! The road of a read is `http` or `resp` → `proxy` → `cache` → (on a miss) `upstream`; see
//! ARCHITECTURE.md.

pub mod access;
pub mod backend;
pub mod cache;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod config;
#[cfg(feature = "console")]
pub mod console;
pub mod daemon;
pub mod http;
pub mod key;
pub mod metrics;
pub mod net;
pub mod protocol;
pub mod proxy;
pub mod resp;
pub mod rest;
pub mod server;
pub mod settings;
pub mod status;
mod sync;
pub mod telemetry;
pub mod upstream;
pub mod verify;
pub mod warmup;

/// The allocator of the program. A test compares its size classes with those that the cache counts.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
