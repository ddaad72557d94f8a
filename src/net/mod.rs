//! Bytes on their way: sockets, streams, buffers and time-outs, with no protocol.

mod client_stream;
mod poll_on_wake;
mod progress;
pub(crate) mod tcp;
mod write_buf;

pub use self::client_stream::Stream;
pub(crate) use self::client_stream::Unattended;
pub(crate) use self::poll_on_wake::Seldom;
pub(crate) use self::progress::{Activity, Inspector, Observed};
pub(crate) use self::write_buf::{LARGE, Output};
