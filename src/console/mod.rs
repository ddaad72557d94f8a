//! The commands that show a running proxy: `stat`, a line for each interval, and `top`, a screen.
//!
//! Model: a [`Source`] fetches `/status.json` and compares it with the previous one. What is shown
//! depends on that alone, so it is tested without a terminal.

mod format;
mod screen;
mod snapshot;
mod source;
mod stat;
mod top;

pub use self::source::Source;
pub use self::stat::{Count, stat};
pub use self::top::{once, print_json, top};
