//! The requests of the shared connection that still wait for replies.

use redis::Value;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::error::BackendError;
use crate::backend::reply_decoder::Frame;
use crate::cache::{Admission, COUNTED_MIN, InFlight, Reservation, Turn};
use crate::key::Key;

/// The bound on values in flight, and the most values that wait for room.
pub(super) struct ValueLimits {
    pub(super) in_flight: Arc<InFlight>,
    pub(super) max_queue: usize,
}

/// A request that still waits for replies.
pub(super) struct PendingRequest {
    /// The number of replies still to arrive.
    pub(super) remaining: usize,
    pub(super) replies: Vec<Value>,
    /// The receiver of the replies. `None`: no task waits for them any more.
    pub(super) reply_to: Option<ReplySender>,
    /// The runtime of the receiver, unless the driver runs on it too.
    pub(super) remote_runtime: Option<Handle>,
    /// The time at which the request fails. `None`: it waits as long as there is a driver.
    pub(super) deadline: Option<Instant>,
    pub(super) room: ValueRoom,
    pub(super) on_complete: OnComplete,
}

/// The action that follows the last reply.
pub(super) enum OnComplete {
    /// The replies are delivered.
    Reply,
    /// The replies are delivered. The last one was delivered before them, as its bytes.
    ReplyWithFrame(Box<FrameRequest>),
    /// The replies are held until a shared check has returned whether the key can expire.
    AwaitExpiryCheck(Key),
    /// The reply of a shared check: it decides about the held values.
    ExpiryChecked,
    /// The reply that identifies the server: it decides how the next values are requested.
    ServerIdentified,
    /// The reply to a repeated login: a rejection ends the connection.
    LoggedIn,
}

/// The request for the last reply as its bytes.
pub(super) struct FrameRequest {
    /// The limit of the reply, in bytes.
    pub(super) limit: usize,
    /// The receiver of the reply. `None`: it has been delivered.
    pub(super) frame_to: Option<oneshot::Sender<Frame>>,
}

/// The room in flight of the large value among the replies to a request.
#[derive(Debug)]
pub(crate) enum ValueRoom {
    /// Its values need no room.
    Unlimited,
    /// It has no large value yet.
    None,
    /// There is room for the value, or for that of the last attempt.
    Reserved(Reservation),
    /// There was no room. The value was discarded, and is empty.
    Waits(Turn),
    /// The same, and too many values wait.
    Refused,
}

/// The replies to a request.
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) values: Vec<Value>,
    pub(crate) room: ValueRoom,
}

pub(super) type ReplySender = oneshot::Sender<Result<Replies, BackendError>>;

impl PendingRequest {
    /// A request of the driver's own, which has one reply.
    pub(super) fn without_reader(on_complete: OnComplete) -> Self {
        Self {
            remaining: 1,
            replies: Vec::new(),
            reply_to: None,
            remote_runtime: None,
            deadline: None,
            room: ValueRoom::Unlimited,
            on_complete,
        }
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Asks for room for a reply with a large value. Without room the value is discarded.
    pub(super) fn admit(&mut self, reply: &mut Value, limits: Option<&ValueLimits>) {
        let Some(limits) = limits.filter(|_| !matches!(self.room, ValueRoom::Unlimited)) else {
            return;
        };
        let Some(value) = large_value(reply) else { return };
        let last = std::mem::replace(&mut self.room, ValueRoom::None);
        self.room = match (last, &self.reply_to) {
            // No task waits for it.
            (_, None) => ValueRoom::None,
            (ValueRoom::Reserved(mut room), Some(_)) if room.covers(value.len()) => {
                room.shrink_to(value.len());
                ValueRoom::Reserved(room)
            }
            (_, Some(_)) => limits.in_flight.reserve(value.len(), limits.max_queue).into(),
        };
        if !matches!(self.room, ValueRoom::Reserved(_)) {
            *value = Vec::new();
        }
    }

    /// Asks for room for a large reply. Without room it is discarded. It waits for none, because
    /// its command is then forwarded.
    pub(super) fn admit_frame(&mut self, frame: Frame, limits: Option<&ValueLimits>) -> Frame {
        match (frame, limits) {
            (Frame::Reply(bytes), Some(limits)) if bytes.len() >= COUNTED_MIN => {
                match limits.in_flight.reserve(bytes.len(), 0) {
                    Admission::Granted(room) => {
                        self.room = ValueRoom::Reserved(room);
                        Frame::Reply(bytes)
                    }
                    Admission::Waits(_) | Admission::Refused => Frame::NoRoom,
                }
            }
            (frame, _) => frame,
        }
    }

    /// Returns the limit of the next reply if that is to be delivered as its bytes.
    pub(super) fn frame_limit(&self) -> Option<usize> {
        match &self.on_complete {
            OnComplete::ReplyWithFrame(request) if self.remaining == 1 => Some(request.limit),
            _ => None,
        }
    }
}

impl From<Admission> for ValueRoom {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Granted(room) => Self::Reserved(room),
            Admission::Waits(turn) => Self::Waits(turn),
            Admission::Refused => Self::Refused,
        }
    }
}

/// Returns the value in a reply to `GET`, or to a transaction with one, if it counts as in flight.
fn large_value(reply: &mut Value) -> Option<&mut Vec<u8>> {
    match reply {
        Value::BulkString(value) if value.len() >= COUNTED_MIN => Some(value),
        Value::Array(results) => results.iter_mut().find_map(large_value),
        _ => None,
    }
}
