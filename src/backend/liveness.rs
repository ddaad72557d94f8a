//! Liveness of a connection: PINGs detect a dead one, and their replies renew the lease.
//!
//! The lease is renewed only together with the proof of the user's rights
//! ([`rights`](super::rights)). A PING for a fence between two renewals proves no rights, so it
//! leaves the lease as it is.

use std::pin::pin;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::connector::{Connector, TrackingGranted};
use super::error::BackendError;
use super::multiplexed::Multiplexed;
use super::rights::{self, Rights, Rules};
use super::settings::Settings;
use super::signals::SupervisorSignals;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::net::IoProgress;

/// Watches one connection.
pub(super) struct Liveness<'a> {
    pub(super) settings: &'a Settings,
    pub(super) connector: &'a Connector,
    pub(super) cache: &'a Cache<BackendError>,
    pub(super) signals: &'a SupervisorSignals,
    pub(super) lease_renewed: &'a watch::Sender<Instant>,
    pub(super) rights: &'a Rights,
    pub(super) metrics: &'a Metrics,
    /// Whether a check is overdue, or the node reports that it may not serve.
    pub(super) suspected: &'a watch::Sender<bool>,
}

/// The purpose of the next PING.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A fence waits. The lease was renewed recently.
    Fence,
    /// The lease and the rights are due.
    Renewal,
}

/// The time without a reply to a check after which Redis is suspected to be out of service.
const SUSPECT_AFTER: Duration = Duration::from_millis(250);

impl Liveness<'_> {
    /// Returns when a request got no reply within `response_timeout` and no other byte arrived.
    pub(super) async fn watch(
        &self,
        connection: &Multiplexed,
        progress: &IoProgress,
        tracking: Option<TrackingGranted>,
    ) {
        let mut number = 0_u64;
        let mut renewed_at = tracking.map_or_else(Instant::now, |granted| granted.requested_at);
        loop {
            let purpose = self.next(renewed_at).await;
            let requested_at = Instant::now();
            if purpose == Purpose::Renewal {
                renewed_at = requested_at;
            }
            number = number.wrapping_add(1);
            match self.unless_stalled(progress, self.connector.may_serve(connection)).await {
                None => return,
                // A node that may not serve renews no lease. The driver reports the end of a
                // stream.
                Some(Ok(false)) => {
                    self.suspect(true);
                    continue;
                }
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(true)) => {}
            }
            let name = number.to_string();
            match self.unless_stalled(progress, self.ping(connection, purpose, &name)).await {
                None => return,
                // The driver reports the end of the stream.
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(answer)) if !is_pong(&answer, &name) => self.signals.desynced.notify_one(),
                Some(Ok(_)) => {
                    self.suspect(false);
                    if tracking.is_some() {
                        if purpose == Purpose::Renewal {
                            self.cache.renew_lease(requested_at);
                        }
                        self.lease_renewed.send_replace(requested_at);
                    }
                }
            }
        }
    }

    /// Sends a PING and returns its reply. A renewal proves the rights before.
    async fn ping(
        &self,
        connection: &Multiplexed,
        purpose: Purpose,
        name: &str,
    ) -> Result<Value, BackendError> {
        let mut ping: Cmd = redis::cmd("PING");
        ping.arg(name);
        if purpose == Purpose::Fence {
            return connection.send(&ping).await;
        }
        let (reply, rules) = self.rights.prove(connection, ping).await?;
        if rules == Rules::Changed {
            rights::on_rules_changed(self.cache, self.metrics, self.connector.address());
        }
        Ok(reply)
    }

    /// Returns when the next PING is due: at once for a waiting fence, otherwise for a renewal.
    async fn next(&self, renewed_at: Instant) -> Purpose {
        let due = renewed_at + renewal_interval(self.settings, self.cache);
        tokio::select! {
            () = sleep_until(due) => Purpose::Renewal,
            () = self.signals.renew_lease.notified() => {
                if due <= Instant::now() { Purpose::Renewal } else { Purpose::Fence }
            }
        }
    }

    /// Returns the result of `answer`; `None` once no byte has arrived for `response_timeout`.
    async fn unless_stalled<T>(
        &self,
        progress: &IoProgress,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let timeout = self.settings.response_timeout;
        let mut answer = pin!(self.note_delay(answer));
        let mut until = Instant::now() + timeout;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Some(answer),
                () = sleep_until(until) => {}
            }
            until = progress.last_read() + timeout;
            if until <= Instant::now() {
                return None;
            }
        }
    }

    /// Returns the result of `answer`. Redis is suspected once it is overdue.
    async fn note_delay<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = sleep(SUSPECT_AFTER) => {}
        }
        self.suspect(true);
        answer.await
    }

    /// Publishes whether Redis is suspected to be out of service.
    fn suspect(&self, is_suspected: bool) {
        self.suspected
            .send_if_modified(|before| std::mem::replace(before, is_suspected) != is_suspected);
    }
}

/// Returns the interval of the renewals.
///
/// With tracking it is at most a third of `coherence_timeout`. Otherwise one late reply would let
/// the lease expire.
pub(super) fn renewal_interval(settings: &Settings, cache: &Cache<BackendError>) -> Duration {
    if cache.is_ttl_only() {
        settings.ping_interval
    } else {
        settings.ping_interval.min(cache.settings().coherence_timeout / 3)
    }
}

/// Whether `answer` is possible for a PING with this name: its echo, or an error.
///
/// The reply to another request would renew the lease wrongly.
fn is_pong(answer: &Value, name: &str) -> bool {
    match answer {
        Value::BulkString(echo) => echo == name.as_bytes(),
        Value::ServerError(_) => true,
        _ => false,
    }
}
