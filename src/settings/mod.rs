//! The building blocks of every module's `Settings`: value types, listen addresses and rules.

mod list;
mod listen;
mod memory;
mod rules;
mod types;

pub use self::list::{InvalidList, list_words};
pub use self::listen::Listen;
pub(crate) use self::listen::UNIX;
pub use self::memory::{MemorySize, Percent, available_memory};
pub use self::rules::{RuleViolation, out_of_range, violations, zero_timeouts};
pub use self::types::{
    ByteSize, MASK, Ratio, Secret, count, duration, optional_duration, parse_choice,
};
