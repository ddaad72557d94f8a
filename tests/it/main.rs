//! What the README promises, tried on the real program in front of a real Redis: one module a promise.

mod architecture;
mod backend;
mod caching;
mod lifecycle;
mod metrics;
mod readme;
mod reload;
mod stage;
mod support;
