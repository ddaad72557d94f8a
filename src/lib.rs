//! A caching proxy (near cache) for Redis. It serves hot reads from memory, over HTTP and to Redis
//! clients.
//!
//! The road of a read is `http` or `resp` → `proxy` → `cache` → (on a miss) `upstream`; see
//! ARCHITECTURE.md.
//!
//! The model checker has only the first modules. The others would take most of the time of its
//! build.

#![cfg_attr(
    feature = "shuttle",
    allow(dead_code, unused_imports, reason = "the users of the cache are left out")
)]

mod boxed;
pub mod cache;
pub mod key;
pub mod protocol;
pub mod settings;
mod sync;
pub mod telemetry;

#[cfg(not(feature = "shuttle"))]
pub mod access;
#[cfg(not(feature = "shuttle"))]
pub mod backend;
#[cfg(not(feature = "shuttle"))]
pub mod cli;
#[cfg(not(feature = "shuttle"))]
pub mod client;
#[cfg(not(feature = "shuttle"))]
pub mod cluster;
#[cfg(not(feature = "shuttle"))]
pub mod commands;
#[cfg(not(feature = "shuttle"))]
pub mod config;
#[cfg(all(feature = "console", not(feature = "shuttle")))]
pub mod console;
#[cfg(not(feature = "shuttle"))]
pub mod daemon;
#[cfg(not(feature = "shuttle"))]
pub mod http;
#[cfg(not(feature = "shuttle"))]
pub mod metrics;
#[cfg(not(feature = "shuttle"))]
pub mod net;
#[cfg(not(feature = "shuttle"))]
pub mod proxy;
#[cfg(not(feature = "shuttle"))]
pub mod resp;
#[cfg(not(feature = "shuttle"))]
pub mod rest;
#[cfg(not(feature = "shuttle"))]
pub mod server;
#[cfg(not(feature = "shuttle"))]
pub mod status;
#[cfg(not(feature = "shuttle"))]
pub mod upstream;
#[cfg(not(feature = "shuttle"))]
pub mod verify;
#[cfg(not(feature = "shuttle"))]
pub mod warmup;

/// The allocator of the program. A test compares its size classes with those that the cache counts.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
