//! `[rest]`: commands over HTTP, by Upstash's contract.
//!
//! Promise: a request gets what Redis would reply to its commands, in JSON. A request without a
//! token gets nothing. Reads are answered from memory.

#[path = "rest/clients.rs"]
mod clients;
#[path = "rest/contract.rs"]
mod contract;
#[path = "rest/isolation.rs"]
mod isolation;
#[path = "rest/rights.rs"]
mod rights;
#[path = "rest/support.rs"]
mod support;
