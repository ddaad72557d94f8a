//! A future that is polled only after its own waker fired.
//!
//! A task that waits for several futures polls all of them whenever one wakes it. A connection
//! wakes up for each request. Its other events, such as a stop or a deadline, happen once. Polling
//! these takes locks and timers that threads share, each time in vain.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::lock;

/// A future that is polled only after its own waker fired.
pub(crate) struct PollOnWake<F> {
    future: F,
    wake_flag: Arc<WakeFlag>,
    /// The waker that the inner future receives; it sets the wake flag.
    waker: Waker,
    /// A copy of the waker in the wake flag, so it can be compared without the lock.
    task: Option<Waker>,
}

struct WakeFlag {
    is_woken: AtomicBool,
    /// The waker of the outer task. It stays registered, so that no wake-up is lost.
    task: Mutex<Option<Waker>>,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Release);
        if let Some(task) = &*lock(&self.task) {
            task.wake_by_ref();
        }
    }
}

impl<F> PollOnWake<F> {
    pub(crate) fn new(future: F) -> Self {
        // Set, because the future was never polled.
        let wake_flag =
            Arc::new(WakeFlag { is_woken: AtomicBool::new(true), task: Mutex::new(None) });
        Self { future, waker: Waker::from(Arc::clone(&wake_flag)), wake_flag, task: None }
    }

    /// Changes the inner future. The next poll polls it again.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut F)) {
        change(&mut self.future);
        self.wake_flag.is_woken.store(true, Release);
    }
}

impl<F: Future + Unpin> Future for PollOnWake<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            lock(&this.wake_flag.task).clone_from(&this.task);
        }
        // After the registration of the task: every later wake-up wakes it.
        if !this.wake_flag.is_woken.load(Acquire) || !this.wake_flag.is_woken.swap(false, AcqRel) {
            return Poll::Pending;
        }
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::sync::oneshot;

    use super::*;

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
    }

    #[tokio::test]
    async fn inner_future_is_polled_only_after_wake() {
        let (polls, (say, said)) = (AtomicUsize::new(0), oneshot::channel());
        let mut said = Box::pin(said);
        let counted = poll_fn(|cx| {
            polls.fetch_add(1, Relaxed);
            said.as_mut().poll(cx)
        });
        let mut seldom = PollOnWake::new(Box::pin(counted));
        for _ in 0..3 {
            assert!(poll_once(&mut seldom).await.is_pending());
        }
        assert_eq!(polls.load(Relaxed), 1);
        say.send(7).unwrap();
        assert_eq!((seldom.await, polls.load(Relaxed)), (Ok(7), 2));
    }

    #[tokio::test]
    async fn last_waker_is_woken() {
        let (say, said) = oneshot::channel::<()>();
        let mut seldom = PollOnWake::new(Box::pin(said));
        assert!(poll_once(&mut seldom).await.is_pending());
        let waits = tokio::spawn(seldom);
        tokio::task::yield_now().await;
        say.send(()).unwrap();
        assert_eq!(waits.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn replaced_future_is_polled_again() {
        let mut seldom =
            PollOnWake::new(Box::pin(pending()) as Pin<Box<dyn Future<Output = ()> + Send>>);
        assert!(poll_once(&mut seldom).await.is_pending());
        seldom.update(|future| *future = Box::pin(async {}));
        seldom.await;
    }
}
