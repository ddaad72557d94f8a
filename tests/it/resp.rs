//! The RESP front end.
//!
//! Promise: a Redis client can use the proxy instead of Redis and gets the same replies.
//!
//! Model: the same bytes go to two fresh Redis servers, to one straight and to the other through
//! the proxy, and the replies have to be equal. Where only the proxy has a limit or a fault, the
//! test names the expected reply. With `RESP_STRAIGHT=1` the proxy is left out, which shows that
//! the tests demand nothing that Redis does not do; tests of the proxy alone are then skipped.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod access;
mod blocking;
mod clients;
mod cluster;
mod cluster_pipelines;
mod command_flags;
mod desync;
mod differential;
mod disconnects;
mod drain;
mod faults;
mod identity;
mod info;
mod kept;
mod kept_cluster;
mod limits;
mod malformed;
mod memory;
mod pipelines;
mod pubsub;
mod read_your_writes;
mod reply_protocols;
mod swapdb;
mod timeouts;
mod transactions;
mod ttl_mode;
