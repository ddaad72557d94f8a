//! One bound in bytes for large values in flight: values that were fetched and are not kept yet,
//! and values that are no longer kept and still being written to clients.
//!
//! A value asks for room when it has arrived. If there is none, the caller discards it, waits for
//! its turn, and fetches it again. So reading from Redis never stops: the connection also carries
//! the pushes, and an unread push is a stale answer.
//!
//! The rule that must not be broken: room is granted in the order of the requests, and a value that
//! is larger than the whole bound is granted all of it. So each value gets its room once those
//! before it are written.
//!
//! A kept value counts against `cache.max_memory` instead. When it leaves the store while a client
//! still reads it, it is counted here again, whether there is room or not.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::sync::lock;

/// The size in bytes from which a value is counted. The front ends copy smaller values, so each is
/// in its connection's buffer only.
pub(crate) const COUNTED_MIN: usize = 16 << 10;

/// The bytes in flight, and the values that wait for room.
#[derive(Debug)]
pub(crate) struct InFlight {
    state: Mutex<State>,
    /// Values that were discarded because there was no room.
    discarded: AtomicU64,
}

#[derive(Debug)]
struct State {
    max: usize,
    bytes: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    to: oneshot::Sender<Reservation>,
}

/// The reply to a value that asks for room.
#[derive(Debug)]
pub(crate) enum Admission {
    /// There is room.
    Granted(Reservation),
    /// There will be room.
    Waits(Turn),
    /// There is no room, and too many values wait for it.
    Refused,
}

/// Room for a value. Dropping it frees the room.
#[derive(Debug)]
pub(crate) struct Reservation {
    of: Arc<InFlight>,
    bytes: usize,
}

/// A place in the order of the values that wait for room. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Turn(oneshot::Receiver<Reservation>);

impl State {
    /// Whether a value fits, or is alone.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes.saturating_add(bytes) <= self.max
    }
}

impl InFlight {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let state = State { max, bytes: 0, waiting: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), discarded: AtomicU64::new(0) })
    }

    /// Sets the bound, in bytes.
    pub(super) fn set_max(self: &Arc<Self>, max: usize) {
        lock(&self.state).max = max;
        self.grant();
    }

    /// Returns the bytes in flight, and the bound.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.bytes as u64, state.max as u64)
    }

    /// Whether at least half of the room is taken.
    pub(super) fn is_short(&self) -> bool {
        let state = lock(&self.state);
        state.bytes >= state.max / 2
    }

    /// Returns the number of values that were discarded because there was no room.
    pub(super) fn discarded(&self) -> u64 {
        self.discarded.load(Relaxed)
    }

    /// Asks for room. At most `max_waiting` values wait for it.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize, max_waiting: usize) -> Admission {
        let mut state = lock(&self.state);
        // A reader that has given up leaves its place.
        state.waiting.retain(|waiting| !waiting.to.is_closed());
        if state.waiting.is_empty() && state.has_room_for(bytes) {
            state.bytes += bytes;
            return Admission::Granted(Reservation { of: Arc::clone(self), bytes });
        }
        self.discarded.fetch_add(1, Relaxed);
        if state.waiting.len() >= max_waiting {
            return Admission::Refused;
        }
        let (to, turn) = oneshot::channel();
        state.waiting.push_back(Waiting { bytes, to });
        Admission::Waits(Turn(turn))
    }

    /// Counts a value that left the store, whether there is room or not.
    fn add(&self, bytes: usize) {
        lock(&self.state).bytes += bytes;
    }

    /// Frees room, and grants it to the values that wait.
    fn free(self: &Arc<Self>, bytes: usize) {
        lock(&self.state).bytes -= bytes;
        self.grant();
    }

    fn grant(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while let Some(first) = state.waiting.front() {
            let (bytes, is_gone) = (first.bytes, first.to.is_closed());
            if !is_gone && !state.has_room_for(bytes) {
                break;
            }
            let Some(first) = state.waiting.pop_front() else { break };
            if is_gone {
                continue;
            }
            state.bytes += bytes;
            // Without the lock, because a reservation that is not received frees its room.
            drop(state);
            _ = first.to.send(Reservation { of: Arc::clone(self), bytes });
            state = lock(&self.state);
        }
    }
}

impl Reservation {
    /// Whether the room suffices for so many bytes.
    pub(crate) fn covers(&self, bytes: usize) -> bool {
        bytes <= self.bytes
    }

    /// Frees the room beyond so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        if let surplus @ 1.. = self.bytes.saturating_sub(bytes) {
            self.bytes = bytes;
            self.of.free(surplus);
        }
    }

    /// Binds the room to a value: it is free when the last handle to the bytes is dropped.
    pub(crate) fn hold(self, bytes: Bytes) -> FetchedBytes {
        let room = Room(Arc::new(Held { reservation: self, is_counted: AtomicBool::new(true) }));
        let owner = HeldBytes { bytes, _room: room.clone() };
        FetchedBytes { bytes: Bytes::from_owner(owner), room: Some(room) }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.of.free(self.bytes);
        }
    }
}

impl Turn {
    /// Waits for the room. Returns `None` if no more room is granted.
    pub(crate) async fn wait(self) -> Option<Reservation> {
        self.0.await.ok()
    }
}

/// The bytes of a fetched value.
#[derive(Debug, Clone)]
pub struct FetchedBytes {
    pub(super) bytes: Bytes,
    /// The room of a large value.
    pub(super) room: Option<Room>,
}

impl FetchedBytes {
    /// Returns the number of bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty value is one as well")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl From<Bytes> for FetchedBytes {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, room: None }
    }
}

/// The room of a value, which is counted while the value is not in the store.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Held>);

#[derive(Debug)]
struct Held {
    reservation: Reservation,
    is_counted: AtomicBool,
}

impl Room {
    /// The value is in the store from now on.
    pub(super) fn enter_store(&self) {
        if self.0.is_counted.swap(false, AcqRel) {
            self.0.reservation.of.free(self.0.reservation.bytes);
        }
    }

    /// The value is no longer in the store.
    pub(super) fn leave_store(&self) {
        if !self.0.is_counted.swap(true, AcqRel) {
            self.0.reservation.of.add(self.0.reservation.bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !*self.is_counted.get_mut() {
            self.reservation.bytes = 0;
        }
    }
}

/// The owner of the bytes of a large value.
struct HeldBytes {
    bytes: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn granted(admission: Admission) -> Reservation {
        match admission {
            Admission::Granted(reservation) => reservation,
            other => panic!("{other:?}"),
        }
    }

    fn turn(admission: Admission) -> Turn {
        match admission {
            Admission::Waits(turn) => turn,
            other => panic!("{other:?}"),
        }
    }

    fn now(turn: Turn) -> Option<Reservation> {
        turn.wait().now_or_never().flatten()
    }

    #[test]
    fn room_is_granted_in_the_order_of_the_requests() {
        let room = InFlight::new(100);
        let first = granted(room.reserve(60, 9));
        let (second, third) = (turn(room.reserve(50, 9)), turn(room.reserve(10, 9)));
        assert_eq!(room.bytes(), (60, 100), "the third would fit, and waits behind the second");
        drop(first);
        assert_eq!(room.bytes(), (60, 100));
        let (second, third) = (now(second).unwrap(), now(third).unwrap());
        assert!(second.covers(50) && !second.covers(51) && third.covers(10));
        drop((second, third));
        assert_eq!((room.bytes(), room.discarded()), ((0, 100), 2));
    }

    #[test]
    fn value_larger_than_the_bound_passes_alone() {
        let room = InFlight::new(100);
        let small = granted(room.reserve(1, 9));
        let large = turn(room.reserve(1_000, 9));
        drop(small);
        let large = now(large).unwrap();
        let next = turn(room.reserve(1, 9));
        drop(large);
        assert!(now(next).is_some());
    }

    #[test]
    fn reader_that_has_given_up_takes_no_room() {
        let room = InFlight::new(100);
        let first = granted(room.reserve(100, 2));
        let (gone, second) = (turn(room.reserve(100, 2)), turn(room.reserve(90, 2)));
        assert!(matches!(room.reserve(1, 2), Admission::Refused));
        drop(gone);
        let third = turn(room.reserve(10, 2));
        drop(first);
        assert_eq!(room.bytes(), (100, 100));
        // Granted, and not received.
        drop((second, third));
        assert_eq!(room.bytes(), (0, 100));
        assert!(granted(room.reserve(100, 0)).covers(100));
    }

    #[test]
    fn changed_bound_applies_to_those_that_wait() {
        let room = InFlight::new(100);
        let first = granted(room.reserve(80, 9));
        let second = turn(room.reserve(80, 9));
        room.set_max(160);
        let second = now(second).unwrap();
        room.set_max(10);
        let third = turn(room.reserve(5, 9));
        drop(first);
        assert_eq!(room.bytes(), (80, 10));
        drop(second);
        assert!(now(third).is_some());
    }

    #[test]
    fn room_beyond_the_value_is_freed() {
        let room = InFlight::new(100);
        let mut first = granted(room.reserve(100, 9));
        let second = turn(room.reserve(70, 9));
        first.shrink_to(30);
        assert!(now(second).is_some_and(|second| second.covers(70)));
        first.shrink_to(50);
        assert_eq!(room.bytes(), (30, 100));
    }

    #[test]
    fn value_counts_until_its_last_handle_is_dropped() {
        let room = InFlight::new(100);
        let value = granted(room.reserve(40, 9)).hold(Bytes::from(vec![b'v'; 40]));
        let (handle, of) = (value.bytes.clone(), value.room.clone().unwrap());
        drop(value);
        assert_eq!(room.bytes(), (40, 100));
        of.enter_store();
        of.enter_store();
        assert_eq!(room.bytes(), (0, 100), "the store counts it");
        of.leave_store();
        of.leave_store();
        drop(of);
        assert_eq!(room.bytes(), (40, 100), "a client still reads it");
        drop(handle);
        assert_eq!(room.bytes(), (0, 100));
        let kept = granted(room.reserve(40, 9)).hold(Bytes::from(vec![b'v'; 40]));
        kept.room.as_ref().unwrap().enter_store();
        drop(kept);
        assert_eq!(room.bytes(), (0, 100));
    }
}
