//! Who may read: what a listener asks of whoever reaches it, and which keys it gives out.
//!
//! The rule that must not be broken: in doubt nobody gets in. A listener that other machines reach and that asks for nothing
//! does not start unless told to, a file that cannot be used is refused whole, and what is refused is refused before
//! anything is looked up, so that an answer tells nothing about what is behind it, nor does the time it takes.

mod allowlist;
mod bearer;
mod exposure;
mod reloadable;

pub use self::allowlist::KeyAllowlist;
pub use self::bearer::BearerAuth;
pub(crate) use self::bearer::{AuthError, Unauthenticated};
pub use self::exposure::{AuthRequirement, UnprotectedListener, is_exposed};
pub use self::reloadable::{Commit, FileError, Prepare, Reloadable};
