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
mod clients;
mod cluster;
mod desync;
mod differential;
mod disconnects;
mod drain;
mod faults;
mod identity;
mod limits;
mod malformed;
mod memory;
mod pipelines;
mod pubsub;
mod read_your_writes;
mod timeouts;
mod transactions;
mod ttl_mode;
