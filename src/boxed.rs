//! Boxes for large futures.

use std::pin::Pin;

/// Returns a box with the future that `make` returns.
///
/// The box is allocated first, so that the future is built in its place. [`Box::pin`] gets a future
/// that is on the stack, which must be dropped if the allocation fails. So it is copied from there,
/// as often as it was wrapped before.
#[inline]
pub(crate) fn pinned<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}
