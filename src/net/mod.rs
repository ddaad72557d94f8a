//! Byte transport: sockets, streams, buffers and timeouts, independent of any protocol.

mod client_stream;
mod lingering_close;
pub(crate) mod pem;
mod poll_on_wake;
mod progress;
pub(crate) mod tcp;
mod write_buf;

pub(crate) use self::client_stream::DetachedStream;
pub use self::client_stream::{ClientStream, SimulatedStream};
pub(crate) use self::lingering_close::LingeringClose;
pub(crate) use self::poll_on_wake::PollOnWake;
pub(crate) use self::progress::{Inspector, IoProgress, TrackedIo};
pub(crate) use self::write_buf::{WriteBuf, ZERO_COPY_MIN};
