//! "Point a client of Redis at it and change nothing": what the RESP front end answers is what Redis answers.
//!
//! Model: the same bytes go to two fresh Redis servers, to one straight and to the other through the proxy, and what comes
//! back has to be the same. Where that cannot be, since only the proxy has such a limit or such a fault, the test says
//! what is to come. With `RESP_STRAIGHT=1` nothing goes through the proxy, which shows that the tests ask for nothing that
//! Redis does not give; what is about the proxy alone is left out then.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod access;
mod answers;
mod blocking;
mod clients;
mod cluster;
mod cluster_pipelines;
mod command_flags;
mod drain;
mod edges;
mod faults;
mod hangups;
mod hostile;
mod identity;
pub(crate) mod limits;
mod memory;
mod own_writes;
mod patience;
mod pipelines;
mod pubsub;
mod script;
mod transactions;
mod untold;
pub(crate) mod ways;
pub(crate) mod wire;

use std::env;

/// A number that makes a test longer or repeats it.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}
