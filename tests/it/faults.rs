//! Whatever goes wrong around it, the proxy says so, goes on with what it can, and gets well by itself.
//!
//! Model: one fault a test, done to a real Redis, to the line to it, or to the proxy's own process. Each test tells what
//! clients of both front ends see, for how long, and that nobody has to do anything for it to end. `docs/reliability.md` has
//! a row for each. Faults of one front end alone are among that front end's tests.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod line;
mod logs;
mod process;
mod redis;
pub(crate) mod stage;
mod unheard;

/// What the log says in an outage.
const DOWN: &str = "no link to Redis";
