//! The locks and atomics of this module, so that a test can put its own in their place and try every order of steps.

pub(super) use std::sync::{Mutex, MutexGuard, atomic};
