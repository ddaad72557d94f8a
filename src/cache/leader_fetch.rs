//! The fetch of a flight, in the task of the reader that opened it.
//!
//! A task of its own for each fetch would cost a miss an allocation and two more turns of the
//! runtime. But a fetch belongs to its flight: it must not end because its first reader did. So a
//! fetch that is dropped before its end goes on in a task.
//!
//! A fetch that is not polled holds up its followers. Code that polls several reads must therefore
//! poll each one that it has polled once, whenever it is woken.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::runtime::Handle;

use crate::boxed::pinned;

/// A fetch that outlives its reader.
pub(super) struct LeaderFetch<F>(Option<Pin<Box<F>>>)
where
    F: Future<Output: Send> + Send + 'static;

impl<F> LeaderFetch<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[inline]
    pub(super) fn new(make_fetch: impl FnOnce() -> F) -> Self {
        Self(Some(pinned(make_fetch)))
    }
}

impl<F> Future for LeaderFetch<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(fetch) = &mut self.0 else { return Poll::Pending };
        let result = fetch.poll_unpin(cx);
        if result.is_ready() {
            self.0 = None;
        }
        result
    }
}

impl<F> Drop for LeaderFetch<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        // Without a runtime the program ends. Dropping the fetch then closes its flight.
        if let Some(fetch) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(fetch);
        }
    }
}
