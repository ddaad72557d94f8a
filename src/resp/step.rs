//! The steps of a round of polling.

use std::ops::BitOr;
use std::pin::Pin;

/// Work that a connection waits for.
pub(super) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Whether a step of a round has moved anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Progress,
    Idle,
}

impl Step {
    pub(super) fn progress_if(moved: bool) -> Self {
        if moved { Self::Progress } else { Self::Idle }
    }
}

impl BitOr for Step {
    type Output = Self;

    /// Returns whether one of two steps has moved anything. Both have been taken.
    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self::progress_if(self == Self::Progress || other == Self::Progress)
    }
}
