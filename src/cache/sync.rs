//! What threads share, by the name of this module, so that a test can put its own in its place and try every order of
//! steps.
//!
//! With the feature `shuttle`, which is for tests only, locks and atomics are shuttle's: it lets one thread run at a time
//! and changes threads only where one of these is touched. The store and the swapped pointer are not shuttle's; what
//! touches them says so with [`preemption_point`], and is one step. Figures that only tell are plain atomics of the
//! standard library: nothing depends on when they change.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

#[cfg(not(feature = "shuttle"))]
pub(super) use crate::sync::lock;
#[cfg(feature = "shuttle")]
pub(super) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(feature = "shuttle"))]
pub(super) use std::sync::{Mutex, MutexGuard, atomic};

/// Locks `mutex`, as [`crate::sync::lock`] does.
#[cfg(feature = "shuttle")]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Says that another thread may come in between here.
#[cfg(not(feature = "shuttle"))]
#[inline]
pub(super) fn preemption_point() {}

/// Lets another thread come in between here. Any access to an atomic of shuttle's does.
#[cfg(feature = "shuttle")]
pub(super) fn preemption_point() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

/// A pointer that is replaced whole: each access is a step of its own.
pub(super) struct Swapped<T>(ArcSwap<T>);

impl<T> Swapped<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ArcSwap::from_pointee(value))
    }

    #[inline]
    pub(super) fn load(&self) -> Guard<Arc<T>> {
        preemption_point();
        self.0.load()
    }

    pub(super) fn swap(&self, value: Arc<T>) -> Arc<T> {
        preemption_point();
        self.0.swap(value)
    }
}
