//! The commands of one request, run on a client in this process.
//!
//! The rule that must not be broken: a stream to Redis returns to the pool only if every reply has
//! come and every command is known to leave no state. In all other cases, a cancelled request among
//! them, the client is dropped and its stream is closed.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};

use super::rights::is_stateless;
use super::sync_token::Progress;
use crate::commands::CommandInfo;
use crate::protocol::{InvalidReply, ReplyScanner};
use crate::resp::LocalClient;

/// The reason why no further reply comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RunError {
    /// The connection to Redis was lost. The command may have run.
    #[error("ERR redis-proxy: the connection to Redis was lost, so the command may have run")]
    Lost,
    /// The replies are larger than the limit.
    #[error("ERR redis-proxy: the response is larger than rest.max_response")]
    TooLarge,
    /// Redis sent no valid reply.
    #[error("ERR redis-proxy: invalid reply from Redis")]
    Invalid,
}

impl From<InvalidReply> for RunError {
    fn from(_: InvalidReply) -> Self {
        Self::Invalid
    }
}

/// Commands that run on one client.
pub(super) struct Run {
    client: LocalClient,
    progress: Arc<Progress>,
    commands: BytesMut,
    /// The number of commands whose reply has not come.
    pending: usize,
    scanner: ReplyScanner,
    held: BytesMut,
    /// The bytes of `held` that were returned as replies.
    returned: usize,
    /// The bytes of `held` that are scanned.
    scanned: usize,
    /// The most bytes of all replies, or of each message.
    max: usize,
    /// The bytes that may still come.
    room: usize,
    is_stateless: bool,
}

impl Run {
    /// Runs commands on `client` as a part of the request with this progress, with replies of at
    /// most `max` bytes.
    pub(super) fn new(client: LocalClient, max: usize, progress: Arc<Progress>) -> Self {
        Self {
            client,
            progress,
            commands: BytesMut::new(),
            pending: 0,
            scanner: ReplyScanner::default(),
            held: BytesMut::new(),
            returned: 0,
            scanned: 0,
            max,
            room: max,
            is_stateless: true,
        }
    }

    /// Adds a command, which `write` writes.
    pub(super) fn add(
        &mut self,
        name: &[u8],
        info: CommandInfo,
        write: impl FnOnce(&mut BytesMut),
    ) {
        self.is_stateless &= is_stateless(info.is_known, name);
        self.pending += 1;
        write(&mut self.commands);
    }

    /// Sends the commands that were added.
    pub(super) fn send(&mut self) {
        self.progress.sent();
        self.client.send(std::mem::take(&mut self.commands));
    }

    /// Returns the next reply.
    ///
    /// # Errors
    /// [`RunError`] if it does not come. No further one comes then.
    pub(super) async fn reply(&mut self) -> Result<&[u8], RunError> {
        let reply = self.frame().await?;
        self.pending -= 1;
        Ok(&self.held[reply])
    }

    /// Returns the next message of a command that opens a stream of them, its confirmation first.
    ///
    /// # Errors
    /// [`RunError`] if the stream has ended.
    pub(super) async fn message(&mut self) -> Result<&[u8], RunError> {
        // Its first bytes may have come with the last one.
        self.room = self.max.saturating_sub(self.held.len() - self.returned);
        let message = self.frame().await?;
        Ok(&self.held[message])
    }

    /// Returns the place of the next frame in `held`.
    async fn frame(&mut self) -> Result<Range<usize>, RunError> {
        loop {
            let (length, frame) = self.scanner.scan(&self.held[self.scanned..])?;
            self.scanned += length;
            if let Some(frame) = frame {
                let reply = self.returned..self.scanned;
                self.returned = self.scanned;
                // A push answers no command, so replies cannot be matched to commands any more.
                return if frame.is_push() { Err(RunError::Invalid) } else { Ok(reply) };
            }
            self.held.advance(std::mem::take(&mut self.returned));
            self.scanned = self.held.len();
            let more = self.client.replies().await.ok_or(RunError::Lost)?;
            self.room = self.room.checked_sub(more.len()).ok_or(RunError::TooLarge)?;
            self.held.unsplit(more);
        }
    }

    /// Ends the run. Once every reply has come, it has ended in order.
    pub(super) fn finish(self) {
        if self.pending > 0 || self.returned < self.held.len() {
            return;
        }
        self.progress.finished(self.client.last_write());
        if self.is_stateless {
            self.client.finish();
        }
    }
}
