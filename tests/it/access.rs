//! Access to the listeners.
//!
//! Promise: no listener is exposed by accident, no client is served without the configured
//! credentials, and no client reads a key outside its list.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do"
)]

mod allowlist;
mod exposure;
mod rejections;
mod tokens;
