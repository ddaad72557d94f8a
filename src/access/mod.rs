//! Access control: the authentication that a listener requires, and the keys that it serves.
//!
//! The rule that must not be broken: a doubtful case is rejected.
//!
//! - An exposed listener without authentication does not start, unless a waiver is configured
//!   (invariant A1).
//! - A file that cannot be used is rejected as a whole (invariant A5).
//! - A request is rejected before any lookup (invariants A3 and A4). Otherwise the response, or the
//!   time it takes, would disclose data behind the proxy.

mod allowlist;
mod bearer;
mod exposure;
mod purge_tokens;
mod reloadable;
mod token_file;

pub use self::allowlist::KeyAllowlist;
pub use self::bearer::BearerAuth;
pub(crate) use self::bearer::{AuthError, Unauthenticated, parse_bearer};
pub use self::exposure::{AuthRequirement, UnprotectedListener, is_exposed};
pub use self::purge_tokens::PurgeTokens;
pub use self::reloadable::{Commit, FileError, Prepare, Reloadable};
pub use self::token_file::{TokenFile, TokenRights};
