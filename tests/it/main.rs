//! What the README promises, tried on the real program in front of a real Redis: one module a promise.

mod architecture;
mod backend;
mod caching;
mod coherence;
mod config;
mod current;
mod fuzz;
mod hotkeys;
mod lifecycle;
mod metrics;
mod operations;
mod protocol;
mod readme;
mod reads;
mod reload;
mod resp;
mod sentinel;
mod stage;
mod support;
mod systemd;
mod traces;
mod tracking;
