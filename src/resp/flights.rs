//! The flights that a client's reads wait for, in the order of its commands.

use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use super::step::Task;
use crate::commands::FetchOutcome;

/// The flights of one client. They take no memory before its first miss.
#[derive(Default)]
pub(super) struct Flights(Option<Box<FuturesOrdered<Task<FetchOutcome>>>>);

impl Flights {
    /// Adds a flight behind the others.
    pub(super) fn push(&mut self, flight: Task<FetchOutcome>) {
        self.0.get_or_insert_default().push_back(flight);
    }

    /// Ready with the outcome of the first flight. Pending if there is none.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<FetchOutcome> {
        let Some(flights) = &mut self.0 else { return Poll::Pending };
        match flights.poll_next_unpin(cx) {
            Poll::Ready(Some(outcome)) => Poll::Ready(outcome),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
