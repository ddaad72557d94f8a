//! What the README promises, tried on the real program in front of a real Redis: one module a promise.

mod architecture;
mod config;
mod protocol;
mod readme;
mod reads;
mod serving;
mod support;
