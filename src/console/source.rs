//! The source of the data of a running proxy.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::snapshot::{Rates, Snapshot};
use crate::client::Target;

/// The longest time that a response may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A running proxy, and its last state.
pub struct Source {
    target: Target,
    interval: Duration,
    /// The time of the last request.
    begun: Option<Instant>,
    last: Option<(Instant, Snapshot)>,
}

/// A new state.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// The document as it came.
    pub(super) document: serde_json::Value,
    pub(super) snapshot: Snapshot,
    /// The rates since the previous state, if there is one.
    pub(super) rates: Option<Rates>,
    /// The events since the previous state.
    pub(super) events: Vec<String>,
}

impl Source {
    /// A source of states of the proxy at `target`, one for each `interval`.
    pub fn new(target: Target, interval: Duration) -> Self {
        Self { target, interval, begun: None, last: None }
    }

    /// The address for people.
    pub(super) fn shown(&self) -> String {
        self.target.shown()
    }

    /// Waits until the interval since the last request has passed.
    pub(super) fn wait(&self) {
        let elapsed = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        std::thread::sleep(self.interval.saturating_sub(elapsed));
    }

    /// Fetches the state.
    ///
    /// # Errors
    /// [`io::Error`] if the proxy does not answer, or with something else.
    pub(super) fn fetch(&mut self) -> io::Result<Update> {
        self.begun = Some(Instant::now());
        let response = self.target.get("/status.json", TIMEOUT)?;
        if response.status != 200 {
            let reason = match response.status {
                401 => ": a token is needed (--token-file)",
                404 => ": the proxy serves no status there",
                _ => "",
            };
            return Err(io::Error::other(format!("status {}{reason}", response.status)));
        }
        let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
        let snapshot = Snapshot::parse(&response.body).map_err(invalid)?;
        let document: serde_json::Value = serde_json::from_str(&response.body).map_err(invalid)?;
        if !document.is_object() {
            return Err(io::Error::new(ErrorKind::InvalidData, "the answer is no state"));
        }
        let now = Instant::now();
        let (rates, events) = match &self.last {
            None => (None, Vec::new()),
            Some((at, last)) => {
                let elapsed = now.saturating_duration_since(*at);
                (snapshot.rates_since(last, elapsed), snapshot.events_since(last, elapsed))
            }
        };
        self.last = Some((now, snapshot.clone()));
        Ok(Update { document, snapshot, rates, events })
    }

    /// Fetches the first state.
    ///
    /// # Errors
    /// [`io::Error`] with the address. Its kind is that of no other error, otherwise a connection
    /// that the proxy closed would look like a closed standard output.
    pub(super) fn fetch_first(&mut self) -> io::Result<Update> {
        self.fetch().map_err(|error| {
            io::Error::other(format!("no answer from {}: {error}", self.target.shown()))
        })
    }

    /// Fetches two states, an interval apart, and returns the second one with its rates.
    ///
    /// # Errors
    /// Those of [`fetch_first`](Self::fetch_first).
    pub(super) fn fetch_rates(&mut self) -> io::Result<Update> {
        self.fetch_first()?;
        self.wait();
        self.fetch_first()
    }
}
