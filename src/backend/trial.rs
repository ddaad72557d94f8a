//! The trial of a suspect: the read is sent alone, to see whether Redis closes the connection over
//! it ([`suspects`](super::suspects)).

use std::sync::Arc;

use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::connector::{Connected, Connector};
use super::error::BackendError;
use super::hello::drive_until;
use super::reply_decoder::Frame;
use super::supervisor::ConnectionState;
use super::suspects::{ALONE_WAIT, SUSPICION, SentRead, Suspicion};
use super::throttle::LEAST_LIMIT;

/// The number of connections that Redis closes over a read alone before that is taken as proof. One
/// alone may have been lost for another reason.
const CLOSES_FOR_PROOF: usize = 2;

impl Shared {
    /// Whether a read must be sent alone before it is sent as usual.
    ///
    /// # Errors
    /// [`BackendError::OutputLimit`] if it is refused.
    pub(super) fn is_trial_due(&self, read: SentRead<'_>) -> Result<bool, BackendError> {
        match self.suspects.suspicion(read) {
            Suspicion::None => Ok(self.throttle.suspects_all()),
            Suspicion::Suspected | Suspicion::ToProve => Ok(true),
            Suspicion::Refused => Err(BackendError::OutputLimit),
        }
    }

    /// Sends a read alone, as [`try_alone`](Self::try_alone) does. Records the size of its reply if
    /// the end of the shared connection lost it.
    ///
    /// # Errors
    /// The errors of [`try_alone`](Self::try_alone).
    pub(super) async fn try_read(
        &self,
        read: SentRead<'_>,
        deadline: Instant,
    ) -> Result<(), BackendError> {
        let is_lost = self.suspects.suspicion(read) == Suspicion::Suspected;
        let tried = self.try_alone(read, deadline).await;
        if is_lost {
            self.throttle.try_lost(&tried);
        }
        tried.map(drop)
    }

    /// Tries a suspect once there is a connection, without its reader, which gave up before.
    /// Otherwise no read of a remote Redis would be tried whose readers all give up.
    pub(super) fn try_later(self: &Arc<Self>, read: SentRead<'_>) {
        let Ok(turn) = Arc::clone(&self.suspects.later).try_acquire_owned() else { return };
        let (shared, read) = (Arc::clone(self), read.to_owned());
        tokio::spawn(async move {
            let mut state = shared.state.clone();
            let up = state.wait_for(|state| matches!(state, ConnectionState::Up(..)));
            let is_up = timeout(SUSPICION, up).await.is_ok_and(|state| state.is_ok());
            let read = read.as_sent();
            if is_up && shared.is_trial_due(read) == Ok(true) {
                let deadline = Instant::now() + shared.settings.response_timeout;
                _ = shared.try_read(read, deadline).await;
            }
            drop(turn);
        });
    }

    /// Sends a read alone and discards its reply, to see whether Redis closes the connection over
    /// it. If that stays unknown, it passes, unless it was refused before or every read must get
    /// its reply alone first.
    ///
    /// Returns the size of the reply in bytes, at most [`LEAST_LIMIT`]; `None` if it is unknown.
    ///
    /// # Errors
    /// [`BackendError::OutputLimit`] if Redis does, or did before and enough other reads are being
    /// sent alone. For another read that does not pass, [`BackendError::Overloaded`] if enough are
    /// being sent alone, or the error of the connection.
    async fn try_alone(
        &self,
        read: SentRead<'_>,
        deadline: Instant,
    ) -> Result<Option<usize>, BackendError> {
        let until = deadline.min(Instant::now() + ALONE_WAIT);
        let permit = timeout_at(until, self.suspects.permits.acquire()).await;
        let Some(_permit) = permit.ok().and_then(Result::ok) else {
            let was_refused = self.suspects.was_refused(read);
            let error =
                if was_refused { BackendError::OutputLimit } else { BackendError::Overloaded };
            return self.pass_untried(read, error);
        };
        // Another reader may have had the proof meanwhile.
        if self.suspects.suspicion(read) == Suspicion::Refused {
            return Err(BackendError::OutputLimit);
        }
        for _ in 0..CLOSES_FOR_PROOF {
            match self.send_alone(read, deadline).await {
                Ok(AloneEnd::Closed) => {}
                Ok(AloneEnd::Replied(size)) => {
                    self.suspects.clear(read);
                    return Ok(Some(size));
                }
                Err(error) => return self.pass_untried(read, error),
            }
        }
        if self.suspects.refuse(read) {
            tracing::warn!(
                redis = self.topology.last_known().map(|endpoint| display(endpoint.address)),
                command = %read.name(),
                "Redis closes the connection over the reply to a read \
                    (client-output-buffer-limit); the read is kept from the shared connection"
            );
        }
        Err(BackendError::OutputLimit)
    }

    /// Returns the result for a read that could not be sent alone, for the reason `error`. It
    /// passes, as every read does without suspicions, unless it must get its reply alone first.
    fn pass_untried(
        &self,
        read: SentRead<'_>,
        error: BackendError,
    ) -> Result<Option<usize>, BackendError> {
        let is_proof_needed = self.throttle.suspects_all() || self.suspects.was_refused(read);
        if is_proof_needed { Err(error) } else { Ok(None) }
    }

    /// Sends a read over a connection of its own.
    ///
    /// # Errors
    /// The error of the connection, unless Redis closed it while the read was pending.
    async fn send_alone(
        &self,
        read: SentRead<'_>,
        deadline: Instant,
    ) -> Result<AloneEnd, BackendError> {
        let (dialer, topology) = (Arc::clone(&self.dialer), Arc::clone(&self.topology));
        let mut connector = Connector::new(&self.settings, dialer, topology);
        let until = deadline.min(Instant::now() + self.settings.connect_timeout);
        let connected = timeout_at(until, connector.connect_anew()).await;
        let Connected { connection, mut driver, .. } =
            connected.unwrap_or_else(|_| Err(connector.timeout_error()))?;
        // No more of the reply is buffered than its size needs.
        let sent =
            connection.send_for_frame(Some(deadline), LEAST_LIMIT, |commands| read.write(commands));
        match drive_until(&mut driver, sent).await {
            Ok((_, Frame::Reply(reply))) => Ok(AloneEnd::Replied(reply.len())),
            Ok((_, Frame::TooLarge | Frame::NoRoom)) => Ok(AloneEnd::Replied(LEAST_LIMIT)),
            Ok((_, Frame::Error(_) | Frame::Push(_))) => Ok(AloneEnd::Replied(0)),
            Err(_) if connection.is_closed_by_redis() => Ok(AloneEnd::Closed),
            Err(error) => Err(error),
        }
    }
}

/// The end of a read that was sent alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AloneEnd {
    /// Redis replied. The reply has this many bytes, or more if it is [`LEAST_LIMIT`].
    Replied(usize),
    /// Redis closed the connection.
    Closed,
}
