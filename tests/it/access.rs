//! Access to the listeners.
//!
//! Promise: no listener is exposed by accident, no client is served without the configured
//! credentials, and no client reads a key outside its list.

mod allowlist;
mod exposure;
mod rejections;
mod tokens;
