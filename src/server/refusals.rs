//! The log of refused clients: who, where and why, at most one line a second.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{FrontEnd, RejectCounter};
use crate::sync::lock;

/// The time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// The refusals of one listener for which there is a limit of lines.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Limit>);

#[derive(Debug, Default)]
struct Limit {
    /// The time of the last line.
    last: Option<Instant>,
    /// The refusals since then.
    suppressed: u64,
}

impl Limit {
    /// Returns the number of refusals without a line before this one; `None`: it gets no line.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Refusals {
    /// Logs that `client` was refused. A client of a unix socket has no address.
    pub fn log(&self, front_end: FrontEnd, reason: &'static str, client: Option<SocketAddr>) {
        let Some(suppressed) = lock(&self.0).admit(Instant::now()) else { return };
        let client = client.map(tracing::field::display);
        tracing::info!(front_end = front_end.name(), reason, client, suppressed, "client refused");
    }
}

/// The records of failed TLS handshakes.
pub(super) struct TlsRefusals {
    pub(super) front_end: FrontEnd,
    pub(super) counter: RejectCounter,
    pub(super) log: Arc<Refusals>,
}

impl TlsRefusals {
    /// Counts and logs a failed handshake of `client`.
    pub(super) fn record(&self, client: Option<SocketAddr>) {
        self.counter.count();
        self.log.log(self.front_end, "tls", client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_has_the_number_of_those_without() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(limit.admit(start), Some(0));
        for millis in [0, 500, 999] {
            assert_eq!(limit.admit(start + Duration::from_millis(millis)), None);
        }
        assert_eq!(limit.admit(start + INTERVAL), Some(3));
        assert_eq!(limit.admit(start + INTERVAL * 3), Some(0));
    }
}
