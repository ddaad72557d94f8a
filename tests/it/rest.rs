//! `[rest]`: commands over HTTP, by Upstash's contract.
//!
//! Promise: a request gets what Redis would reply to its commands, in JSON. A request without a
//! token gets nothing. Reads are answered from memory.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed, which is what it should do"
)]

#[path = "rest/clients.rs"]
mod clients;
#[path = "rest/contract.rs"]
mod contract;
#[path = "rest/differential.rs"]
mod differential;
#[path = "rest/events.rs"]
mod events;
#[path = "rest/fast_path.rs"]
mod fast_path;
#[path = "rest/isolation.rs"]
mod isolation;
#[path = "rest/layers.rs"]
mod layers;
#[path = "rest/listener.rs"]
mod listener;
#[path = "rest/rights.rs"]
mod rights;
#[path = "rest/support.rs"]
mod support;
#[path = "rest/sync_token.rs"]
mod sync_token;
