//! HTTP: reads of keys, the operator's routes, and the connections that carry both.

mod admin;
mod cache_routes;
mod conditions;
mod connection;
mod fast_path;
mod fragment_guard;
mod headers;
mod json;
mod keys;
mod observer;
mod problem;
mod request_head;
mod routes;
mod service;
mod settings;
mod timers;

pub use self::admin::{router, standalone_router};
pub use self::cache_routes::{CacheAccess, TrustedPeers};
pub use self::keys::Keys;
pub use self::observer::Observer;
pub use self::request_head::{SimpleMethod, SimpleRequest};
pub(crate) use self::routes::OPERATOR_ROUTES;
pub use self::service::{FastPathResult, Handler, HttpService, Limits, ResponseWriter, writer_of};
pub use self::settings::{AdminSettings, CacheControl, Settings};
pub(crate) use self::settings::{HTTP_PROTOCOLS, MIN_HEADER};
