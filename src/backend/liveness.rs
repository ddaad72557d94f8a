//! Liveness of a connection: PINGs detect a dead one, and their replies renew the lease.

use std::pin::pin;

use redis::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connector::{Connector, TrackingGranted};
use super::error::BackendError;
use super::multiplexed::Multiplexed;
use super::settings::Settings;
use super::signals::SupervisorSignals;
use crate::cache::Cache;
use crate::net::IoProgress;

/// Watches one connection.
pub(super) struct Liveness<'a> {
    pub(super) settings: &'a Settings,
    pub(super) connector: &'a Connector,
    pub(super) cache: &'a Cache<BackendError>,
    pub(super) signals: &'a SupervisorSignals,
    pub(super) lease_renewed: &'a watch::Sender<Instant>,
}

impl Liveness<'_> {
    /// Returns when a request got no reply within `response_timeout` and no other byte arrived.
    ///
    /// Without tracking, a PING is sent only on a silent connection. With tracking it is always
    /// sent, because each reply renews the lease.
    pub(super) async fn watch(
        &self,
        connection: &Multiplexed,
        progress: &IoProgress,
        tracking: Option<TrackingGranted>,
    ) {
        let mut number = 0_u64;
        let mut requested_at = tracking.map_or_else(Instant::now, |granted| granted.requested_at);
        loop {
            match tracking {
                Some(_) => self.lease_due(requested_at).await,
                None => sleep_until(progress.last_read() + self.settings.ping_interval).await,
            }
            if tracking.is_none() && progress.last_read().elapsed() < self.settings.ping_interval {
                continue;
            }
            requested_at = Instant::now();
            number = number.wrapping_add(1);
            let name = number.to_string();
            match self.unless_stalled(progress, self.connector.may_serve(connection)).await {
                None => return,
                // A node that may not serve renews no lease. The driver reports the end of a
                // stream.
                Some(Ok(false)) => continue,
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(true)) => {}
            }
            let mut ping = redis::cmd("PING");
            ping.arg(&name);
            match self.unless_stalled(progress, connection.send(&ping)).await {
                None => return,
                // The driver reports the end of the stream.
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(answer)) if !is_pong(&answer, &name) => self.signals.desynced.notify_one(),
                Some(Ok(_)) if tracking.is_some() => {
                    self.cache.renew_lease(requested_at);
                    self.lease_renewed.send_replace(requested_at);
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// Returns when the next renewal is due: at once for a waiting fence, otherwise after the
    /// interval.
    ///
    /// The interval is the smaller of `ping_interval` and a third of `coherence_timeout`. Otherwise
    /// one late reply would let the lease expire.
    async fn lease_due(&self, requested_at: Instant) {
        let interval = self.settings.ping_interval.min(self.cache.settings().coherence_timeout / 3);
        tokio::select! {
            () = sleep_until(requested_at + interval) => {}
            () = self.signals.renew_lease.notified() => {}
        }
    }

    /// Returns the result of `answer`; `None` once no byte has arrived for `response_timeout`.
    async fn unless_stalled<T>(
        &self,
        progress: &IoProgress,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let timeout = self.settings.response_timeout;
        let mut answer = pin!(answer);
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
