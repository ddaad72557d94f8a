//! The shared state of the cache: its locks and atomics. A test can replace them and try every
//! order of steps.
//!
//! The feature `shuttle`, for tests only, replaces them by shuttle's types. Shuttle runs one thread
//! at a time and switches threads only where one of these is touched. The store and the swapped
//! pointer are not shuttle's types. Code that touches them calls [`preemption_point`] and then
//! counts as one step. Counters that only report are plain atomics of the standard library: no
//! decision depends on when they change.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

#[cfg(not(feature = "shuttle"))]
pub(super) use crate::sync::lock;
#[cfg(feature = "shuttle")]
pub(super) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(feature = "shuttle"))]
pub(super) use std::sync::{Mutex, MutexGuard, atomic};

/// Locks `mutex`, like [`crate::sync::lock`].
#[cfg(feature = "shuttle")]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Marks a point where another thread may run. Does nothing outside the model checker.
#[cfg(not(feature = "shuttle"))]
#[inline]
pub(super) fn preemption_point() {}

/// Lets the model checker switch threads here. Any access to an atomic of shuttle does that.
#[cfg(feature = "shuttle")]
pub(super) fn preemption_point() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

/// A pointer that is replaced as a whole. Each access is one step for the model checker.
pub(super) struct Swapped<T>(ArcSwap<T>);

impl<T> Swapped<T> {
    pub(super) fn new(value: Arc<T>) -> Self {
        Self(ArcSwap::from(value))
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
