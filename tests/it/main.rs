//! Integration tests of the real program in front of a real Redis: one module for each promise of
//! the documents.

mod access;
mod architecture;
mod backend;
mod caching;
mod cluster;
mod config;
mod expiry;
mod faults;
mod fuzz;
mod haproxy;
mod hot_keys;
mod http_drain;
mod kept_replies;
mod lifecycle;
mod limits;
mod log_filter;
mod memory;
mod memory_bound;
mod metrics;
mod no_cache;
mod operations;
mod protocol;
mod readme;
mod reads;
mod reload;
mod resp;
mod rights;
mod sentinel;
mod startup;
mod support;
mod systemd;
mod tls;
mod traces;
mod tracking;
mod warmup;
