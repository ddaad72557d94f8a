//! The connection of one client to one node of a cluster.
//!
//! The rule that must not be broken (invariant K1): replies are matched to commands only by the
//! order in which *this* connection was written. So bytes are queued and the reply to them is
//! expected in one step, in [`Node::send`]. Otherwise a redirected command could take the first
//! reply of the connection, which belongs to another command.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::in_flight::PartId;
use crate::cluster::NodeId;
use crate::protocol::{ReplyScanner, ReplySummary};
use crate::resp::dedicated::DedicatedConnection;

/// A connection to one node.
pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) connection: DedicatedConnection,
    scanner: ReplyScanner,
    /// The replies that will come, in this order.
    expected: VecDeque<Expected>,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    Part(PartId),
    /// The reply to a command of the proxy's own.
    Dropped,
}

/// The result of reading from a node.
pub(super) enum Received {
    /// A piece of the reply to a part, and what the reply is if it ends here.
    Piece { id: PartId, bytes: BytesMut, frame: Option<ReplySummary> },
    /// Something that is not for the client.
    Nothing,
    /// The connection has ended.
    Lost,
    /// There is no reply, or one that nothing was sent for. Replies cannot be matched to commands
    /// any more.
    Desync,
}

impl Node {
    pub(super) fn new(name: NodeId) -> Self {
        Self {
            name,
            connection: DedicatedConnection::new(),
            scanner: ReplyScanner::default(),
            expected: VecDeque::new(),
        }
    }

    /// Queues the command of a part.
    pub(super) fn send(&mut self, id: PartId, command: Bytes) {
        self.connection.out.push(command);
        self.expected.push_back(Expected::Part(id));
    }

    /// Queues a command and drops its reply.
    pub(super) fn send_own(&mut self, command: Bytes) {
        self.connection.out.push(command);
        self.expected.push_back(Expected::Dropped);
    }

    /// Whether a reply is to come.
    pub(super) fn is_busy(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Returns the parts with a pending reply, in the order in which they were sent.
    pub(super) fn expected(&self) -> Vec<PartId> {
        let parts = self.expected.iter().filter_map(|expected| match expected {
            Expected::Part(id) => Some(*id),
            Expected::Dropped => None,
        });
        parts.collect()
    }

    /// Reads the next piece of the reply that comes next.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        if self.connection.input.is_empty()
            && !matches!(ready!(self.connection.poll_read(cx)), Ok(1..))
        {
            return Poll::Ready(Received::Lost);
        }
        Poll::Ready(self.receive().unwrap_or(Received::Desync))
    }

    /// The next piece of what has been read. `None`: it is no reply to anything that was sent.
    fn receive(&mut self) -> Option<Received> {
        let expected = *self.expected.front()?;
        let (length, frame) = self.scanner.scan(&self.connection.input).ok()?;
        let bytes = self.connection.input.split_to(length);
        if frame.is_some_and(|frame| frame.is_push()) {
            return None;
        }
        if frame.is_some() {
            self.expected.pop_front();
        }
        Some(match expected {
            Expected::Part(id) => Received::Piece { id, bytes, frame },
            Expected::Dropped => Received::Nothing,
        })
    }
}
