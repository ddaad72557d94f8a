//! The flights that a client's reads wait for, in the order of its commands.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};

use super::step::Task;
use crate::commands::FetchOutcome;

/// The flights of one client. They take no memory before its first miss.
#[derive(Default)]
pub(super) struct Flights(Option<Box<State>>);

#[derive(Default)]
struct State {
    /// The first flight that has begun. Most clients have no other: in `rest` it would need an
    /// allocation and a waker of its own.
    first: Option<Task<FetchOutcome>>,
    /// The other flights that have begun.
    rest: FuturesOrdered<Task<FetchOutcome>>,
    /// The outcomes of flights that have ended before their turn.
    ended: VecDeque<FetchOutcome>,
    /// Flights that have not begun. They do so once a read is the first of the pending replies.
    waiting: VecDeque<Task<FetchOutcome>>,
}

impl Flights {
    /// Adds a flight behind the others.
    pub(super) fn push(&mut self, flight: Task<FetchOutcome>) {
        self.0.get_or_insert_default().waiting.push_back(flight);
    }

    /// Begins all flights. Ready with the outcome of the first one; pending if there is none.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<FetchOutcome> {
        let Some(flights) = &mut self.0 else { return Poll::Pending };
        flights.begin();
        flights.poll_begun(cx);
        flights.take_ended().map_or(Poll::Pending, Poll::Ready)
    }

    /// Polls the flights that have begun, while another reply is first. Readers of other clients
    /// may wait for them.
    pub(super) fn poll_begun(&mut self, cx: &mut Context<'_>) {
        if let Some(flights) = &mut self.0 {
            flights.poll_begun(cx);
        }
    }
}

impl State {
    fn begin(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.first.is_none() && self.rest.is_empty() && self.ended.is_empty() {
            self.first = self.waiting.pop_front();
        }
        if !self.waiting.is_empty() {
            self.rest.extend(self.waiting.drain(..));
        }
    }

    fn poll_begun(&mut self, cx: &mut Context<'_>) {
        if let Some(first) = &mut self.first
            && let Poll::Ready(outcome) = first.poll_unpin(cx)
        {
            self.first = None;
            self.ended.push_front(outcome);
        }
        // Most clients have one flight. The poll of an empty list costs several atomic operations.
        if self.rest.is_empty() {
            return;
        }
        while let Poll::Ready(Some(outcome)) = self.rest.poll_next_unpin(cx) {
            self.ended.push_back(outcome);
        }
    }

    /// Takes the outcome of the first flight, if that has ended.
    fn take_ended(&mut self) -> Option<FetchOutcome> {
        if self.first.is_some() { None } else { self.ended.pop_front() }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;

    /// Adds a flight. It ends with the sent text as its outcome.
    fn push(flights: &mut Flights) -> oneshot::Sender<&'static str> {
        let (sender, receiver) = oneshot::channel::<&str>();
        flights.push(Box::pin(async {
            FetchOutcome::Forward(Bytes::from(receiver.await.unwrap_or_default()))
        }));
        sender
    }

    fn poll_first(flights: &mut Flights) -> Option<Bytes> {
        match flights.poll_first(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(FetchOutcome::Forward(text)) => Some(text),
            Poll::Ready(_) => panic!("another outcome"),
            Poll::Pending => None,
        }
    }

    fn poll_begun(flights: &mut Flights) {
        flights.poll_begun(&mut Context::from_waker(Waker::noop()));
    }

    #[test]
    fn outcomes_have_the_order_of_the_flights() {
        let mut flights = Flights::default();
        assert_eq!(poll_first(&mut flights), None);
        let [first, second, third] = [(); 3].map(|()| push(&mut flights));
        assert_eq!(poll_first(&mut flights), None);
        third.send("third").unwrap();
        assert_eq!(poll_first(&mut flights), None);
        first.send("first").unwrap();
        assert_eq!(poll_first(&mut flights).unwrap(), "first");
        assert_eq!(poll_first(&mut flights), None);
        let fourth = push(&mut flights);
        fourth.send("fourth").unwrap();
        second.send("second").unwrap();
        for expected in ["second", "third", "fourth"] {
            assert_eq!(poll_first(&mut flights).unwrap(), expected);
        }
        assert_eq!(poll_first(&mut flights), None);
    }

    #[test]
    fn flights_go_on_behind_another_reply() {
        let mut flights = Flights::default();
        let [first, second] = [(); 2].map(|()| push(&mut flights));
        assert_eq!(poll_first(&mut flights), None);
        let later = push(&mut flights);
        for sender in [second, first] {
            sender.send("begun").unwrap();
        }
        poll_begun(&mut flights);
        later.send("later").unwrap();
        poll_begun(&mut flights);
        let state = flights.0.as_ref().unwrap();
        assert_eq!((state.ended.len(), state.waiting.len()), (2, 1));
        for expected in ["begun", "begun", "later"] {
            assert_eq!(poll_first(&mut flights).unwrap(), expected);
        }
    }
}
