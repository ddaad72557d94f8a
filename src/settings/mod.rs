//! What the `Settings` of all rooms are made of: types of values, addresses to listen on, and rules.

mod listen;
mod rules;
mod types;

pub use self::listen::Listen;
pub(crate) use self::listen::UNIX;
pub use self::rules::{RuleViolation, out_of_range, violations, zero_timeouts};
pub use self::types::{ByteSize, MASK, Ratio, Secret, count, duration, parse_choice};
