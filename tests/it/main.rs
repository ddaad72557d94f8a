//! What the README promises, tried on the real program in front of a real Redis: one module a promise.

mod config;
mod protocol;
mod reads;
mod serving;
mod support;
