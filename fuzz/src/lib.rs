//! What must hold for whatever bytes come in: one module for each target, with one `check` that panics where it does not.
//!
//! The fuzz targets run the checks on bytes that libFuzzer makes up, and `cargo test` (tests/it/fuzz.rs) on those kept in
//! `corpus/`. A check holds the code against something that was written otherwise: a reference as plain as can be, another
//! library, or the same code given the same bytes in other pieces.

pub mod answers;
pub mod config;
pub mod http_connection;
pub mod http_key;
pub mod pieces;
pub mod push;
pub mod redis_request;
pub mod resp_reply;
pub mod resp_request;
