//! The streams to Redis that clients of this process share, one after the other.
//!
//! Model: a client that needs Redis takes a stream, or a permit to open one. At its end it returns
//! the stream, if nothing is pending on it. The permits bound the streams in use. Those in use and
//! those that are idle are never more than the permits.
//!
//! The rule that must not be broken: an idle stream owes no reply. Otherwise the next client would
//! take the reply to another client's command for its own. So a stream on which anything arrives
//! while it is idle is closed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::{self, ThreadId};
use std::time::Duration;

use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::dedicated::Opened;
use crate::backend::{BackendError, EpochStream};
use crate::sync::lock;

/// The longest time that a stream may be idle. Otherwise Redis, or a firewall on the way, could
/// have closed it unseen.
const MAX_IDLE: Duration = Duration::from_secs(15);

/// The streams that are idle, and the permits for those in use.
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    max: usize,
    /// The oldest first.
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    stream: EpochStream,
    /// The thread with the runtime of the stream. On another one each wake-up would cross threads.
    thread: ThreadId,
    since: Instant,
}

impl Pool {
    /// A pool for at most `max` streams.
    pub(super) fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), max, idle: Mutex::default() }
    }

    /// Waits for the permit to use a stream.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] never: the semaphore is not closed.
    pub(super) async fn acquire(&self) -> Result<OwnedSemaphorePermit, BackendError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|_| BackendError::Unavailable("POOL".into()))
    }

    /// Takes an idle stream of this thread, on which nothing has arrived.
    pub(super) async fn take(&self) -> Option<EpochStream> {
        while let Some(mut stream) = self.take_latest() {
            // The runtime reports the end of a stream only after it has polled the system, which it
            // does before it continues a task that yields. Otherwise a stream that Redis has closed
            // meanwhile would seem to be open.
            yield_now().await;
            if is_quiet(&mut stream).await {
                return Some(stream);
            }
        }
        None
    }

    fn take_latest(&self) -> Option<EpochStream> {
        let (now, own) = (Instant::now(), thread::current().id());
        let mut idle = lock(&self.idle);
        while idle.front().is_some_and(|oldest| oldest.since + MAX_IDLE < now) {
            idle.pop_front();
        }
        let latest = idle.iter().rposition(|one| one.thread == own);
        let taken = latest.and_then(|index| idle.remove(index)).map(|one| one.stream);
        if taken.is_none() && idle.len() + self.in_use() > self.max {
            // A stream of another thread makes room for the one to be opened.
            idle.pop_front();
        }
        taken
    }

    /// Returns the number of permits in use.
    fn in_use(&self) -> usize {
        self.max - self.permits.available_permits().min(self.max)
    }

    /// Returns a stream that owes no reply.
    pub(super) fn put(&self, opened: Opened) {
        let Opened { stream, permit } = opened;
        let idle = Idle { stream, thread: thread::current().id(), since: Instant::now() };
        lock(&self.idle).push_back(idle);
        drop(permit);
    }
}

/// Whether nothing has arrived on an idle stream, neither its end nor a byte.
async fn is_quiet(stream: &mut EpochStream) -> bool {
    if stream.is_revoked() {
        return false;
    }
    let mut byte = [0];
    poll_fn(|cx| {
        let mut buffer = ReadBuf::new(&mut byte);
        Poll::Ready(Pin::new(&mut *stream).poll_read(cx, &mut buffer).is_pending())
    })
    .await
}
