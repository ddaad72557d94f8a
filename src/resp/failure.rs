//! The error for a client when Redis cannot be reached.

use crate::backend::BackendError;
use crate::net::WriteBuf;
use crate::protocol::write_error;

/// Writes that Redis cannot be reached. The command has not run, so it may be sent again: `LOADING`
/// makes most clients do so.
pub(super) fn write_failure(output: &mut WriteBuf, error: &BackendError) {
    let code = if error.is_transient() { "LOADING" } else { "ERR" };
    write_error(output.tail(), format!("{code} redis-proxy: upstream unavailable: {error}"));
}
