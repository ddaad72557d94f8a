//! What the README promises, tried on the real program in front of a real Redis: one module a promise.

mod access;
mod architecture;
mod backend;
mod caching;
mod coherence;
mod config;
mod current;
mod faults;
mod fuzz;
mod hotkeys;
mod lifecycle;
mod limits;
mod metrics;
mod operations;
mod protocol;
mod readme;
mod reads;
mod reload;
mod resp;
mod stage;
mod support;
mod systemd;
mod tls;
mod traces;
mod tracking;
