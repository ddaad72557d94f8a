//! A near cache for Redis in a daemon of its own: hot reads are answered from memory, over HTTP and
//! over Redis's own protocol.
//!
//! The road of a read is `http` or `resp` → `proxy` → `cache` → (on a miss) `backend`; see ARCHITECTURE.md.

pub mod access;
mod activity;
pub mod admin;
pub mod backend;
pub mod cache;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod daemon;
mod frame;
pub mod health;
pub mod hotkeys;
pub mod http;
pub mod key;
pub mod metrics;
mod output;
mod problem;
pub mod proxy;
mod request_line;
pub mod resp;
mod seldom;
pub mod server;
pub mod systemd;
mod tcp;
pub mod telemetry;
pub mod trace;
pub mod units;
pub mod warm;
