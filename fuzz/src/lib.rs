//! Properties that hold for any input: one module for each target, with one `check` that panics on
//! a violation.
//!
//! The fuzz targets run the checks on bytes from libFuzzer, and `cargo test` (tests/it/fuzz.rs) on
//! those kept in `corpus/`. A check compares the code with something written differently: a plain
//! reference, another library, or the same code with the same bytes in another split.

pub mod answers;
pub mod config;
pub mod http_connection;
pub mod http_key;
pub mod pieces;
pub mod push;
pub mod redis_request;
pub mod resp_reply;
pub mod resp_request;
pub mod rest_request;
