//! Whether Redis has admitted a client. Until then Redis accepts only small commands.
//!
//! A client without a login is admitted if the default user needs no password, which the proxy may
//! not know. So the replies of Redis decide, and that to a `PING` of the proxy's own if there was
//! none yet.

use super::session::SessionEffect;
use crate::protocol::ReplySummary;

/// The admission of a client by Redis, as its replies show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Admission {
    /// Nothing yet.
    #[default]
    Unknown,
    /// Redis runs the commands of the client.
    Granted,
    /// Redis requires a login first.
    Denied,
}

/// Follows the admission of one client.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmissionTracker {
    shown: Admission,
    /// The number of `RESET` that were sent and are not answered.
    pending_resets: usize,
}

impl AdmissionTracker {
    /// A tracker of a client that Redis has admitted, or that gets an error in any case.
    pub fn granted() -> Self {
        Self { shown: Admission::Granted, pending_resets: 0 }
    }

    /// Returns the admission for the next command.
    #[inline]
    pub fn now(&self) -> Admission {
        if self.pending_resets > 0 { Admission::Unknown } else { self.shown }
    }

    /// A command with this effect was sent.
    pub fn sent(&mut self, effect: &SessionEffect) {
        self.pending_resets += usize::from(*effect == SessionEffect::Reset);
    }

    /// Redis replied to a command with this effect.
    pub fn replied(&mut self, effect: &SessionEffect, frame: ReplySummary) {
        if *effect == SessionEffect::Reset {
            // The client is the default user again.
            self.pending_resets = self.pending_resets.saturating_sub(1);
            self.shown = Admission::Unknown;
        } else if frame.is_noauth() {
            self.shown = Admission::Denied;
        } else if !frame.is_error() {
            self.shown = Admission::Granted;
        }
        // Redis finds some errors before it looks at the login, so they show nothing.
    }

    /// Redis replied to a `PING`.
    pub fn probed(&mut self, frame: ReplySummary) {
        self.shown = if frame.is_noauth() { Admission::Denied } else { Admission::Granted };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_follows_from_replies() {
        use SessionEffect::{Auth, Hello, MayObserveWrite, Neutral, Reset};
        let frame = |reply: &[u8]| {
            let mut head = [0; 7];
            head.iter_mut().zip(reply).for_each(|(to, from)| *to = *from);
            ReplySummary { head }
        };
        let auth = || Auth(super::super::Identity::default_user());
        let (noauth, error) =
            (b"-NOAUTH Authentication required.\r\n", b"-ERR unknown command\r\n");
        for (talk, expected) in [
            (vec![], Admission::Unknown),
            (vec![(Neutral, &b"+PONG\r\n"[..])], Admission::Granted),
            (vec![(MayObserveWrite, b":1\r\n")], Admission::Granted),
            (vec![(MayObserveWrite, error)], Admission::Unknown),
            (vec![(Neutral, noauth)], Admission::Denied),
            (vec![(Neutral, noauth), (MayObserveWrite, error)], Admission::Denied),
            (vec![(Neutral, noauth), (auth(), b"-WRONGPASS x\r\n")], Admission::Denied),
            (vec![(Neutral, noauth), (auth(), b"+OK\r\n")], Admission::Granted),
            (vec![(Hello(None), b"%7\r\n$6\r\n")], Admission::Granted),
            (vec![(auth(), b"+OK\r\n"), (Reset, b"+RESET\r\n")], Admission::Unknown),
        ] {
            let mut tracker = AdmissionTracker::default();
            for (effect, reply) in &talk {
                tracker.sent(effect);
                tracker.replied(effect, frame(reply));
            }
            assert_eq!(tracker.now(), expected, "{talk:?}");
        }
    }

    #[test]
    fn pending_reset_hides_earlier_replies() {
        let pong = ReplySummary { head: *b"+PONG\r\n" };
        let mut tracker = AdmissionTracker::granted();
        tracker.sent(&SessionEffect::Reset);
        tracker.replied(&SessionEffect::Neutral, pong);
        assert_eq!(tracker.now(), Admission::Unknown);
        tracker.replied(&SessionEffect::Reset, ReplySummary { head: *b"+RESET\r" });
        assert_eq!(tracker.now(), Admission::Unknown);
        tracker.replied(&SessionEffect::Neutral, pong);
        assert_eq!(tracker.now(), Admission::Granted);
    }
}
