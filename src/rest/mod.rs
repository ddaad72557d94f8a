//! The REST front end: commands over HTTP, by Upstash's contract.
//!
//! Model: a request is decoded to commands (`request`). Each is judged by its kind and by the
//! rights of the request's token (`rights`). Those that may run do so on a client in this process
//! ([`LocalClients`](crate::resp::LocalClients)), where each goes through the same decision as a
//! Redis client's. So a read that memory can answer touches no socket of Redis, and everything else
//! of the request goes out as one pipeline. The replies are encoded as JSON (`response`).
//!
//! The rules that must not be broken:
//! - A request runs nothing before its token is known (invariant A3). The token comes from the
//!   file of this front end alone.
//! - No reply reaches another request. A request that does not end in order closes its stream to
//!   Redis.

mod answer;
mod cors;
mod events;
mod execute;
mod handler;
mod layers;
mod request;
mod response;
mod rights;
mod run;
mod scripts;
mod settings;
mod simple;
mod sync_token;

pub use self::cors::CorsOrigins;
pub use self::handler::{Rest, WithRest};
pub use self::settings::Settings;

/// The pure decoders and encoders, for the fuzz targets.
#[doc(hidden)]
pub mod codec {
    pub use super::request::{BadRequest, Commands, DecodeLimits, Words, query_token};
    pub use super::response::{Strings, elements, error_text, write_reply};
}
