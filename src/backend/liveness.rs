//! Signs of life: whether a link still answers, and until when its answers prove that all changes are known.

use std::pin::pin;

use redis::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connector::{Connector, Granted};
use super::error::BackendError;
use super::multiplexed::Connection;
use super::settings::Settings;
use super::signals::Calls;
use crate::cache::Cache;
use crate::net::IoProgress;

/// Watches one link.
pub(super) struct Liveness<'a> {
    pub(super) settings: &'a Settings,
    pub(super) connector: &'a Connector,
    pub(super) cache: &'a Cache<BackendError>,
    pub(super) calls: &'a Calls,
    pub(super) proved: &'a watch::Sender<Instant>,
}

impl Liveness<'_> {
    /// Returns when a PING went unanswered and not a byte of anything else came either. Without tracking a link is
    /// asked only when it is silent; with it always, since each answer proves that all changes are known.
    pub(super) async fn silence(
        &self,
        connection: &Connection,
        activity: &IoProgress,
        tracking: Option<Granted>,
    ) {
        let mut number = 0_u64;
        let mut asked = tracking.map_or_else(Instant::now, |(_, asked)| asked);
        loop {
            match tracking {
                Some(_) => self.proof_due(asked).await,
                None => sleep_until(activity.last_read() + self.settings.ping_interval).await,
            }
            if tracking.is_none() && activity.last_read().elapsed() < self.settings.ping_interval {
                continue;
            }
            asked = Instant::now();
            number = number.wrapping_add(1);
            let name = number.to_string();
            match self.unless_silent(activity, self.connector.is_in_charge(connection)).await {
                None => return,
                // It vouches for nothing, or the stream has ended, which is the driver's to report.
                Some(Ok(false)) => continue,
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(true)) => {}
            }
            let mut ping = redis::cmd("PING");
            ping.arg(&name);
            match self.unless_silent(activity, connection.ask(&ping)).await {
                None => return,
                // The stream has ended, which is the driver's to report.
                Some(Err(_)) => std::future::pending().await,
                Some(Ok(answer)) if !is_pong(&answer, &name) => self.calls.distrusted.notify_one(),
                Some(Ok(_)) if tracking.is_some() => {
                    self.cache.renew_lease(asked);
                    self.proved.send_replace(asked);
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// Returns when it is time for the next proof: when somebody waits for one, and so often that one answer that is
    /// late leaves no time without.
    async fn proof_due(&self, asked: Instant) {
        let interval = self.settings.ping_interval.min(self.cache.settings().coherence_timeout / 3);
        tokio::select! {
            () = sleep_until(asked + interval) => {}
            () = self.calls.proof.notified() => {}
        }
    }

    /// The answer, however long it takes while bytes come in; `None` when none come either.
    async fn unless_silent<T>(
        &self,
        activity: &IoProgress,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let patience = self.settings.response_timeout;
        let mut answer = pin!(answer);
        let mut until = Instant::now() + patience;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Some(answer),
                () = sleep_until(until) => {}
            }
            until = activity.last_read() + patience;
            if until <= Instant::now() {
                return None;
            }
        }
    }
}

/// Whether this is what Redis answers to a PING with this name: the name, or why it answers nothing else. An answer to
/// another question would prove what is not so.
fn is_pong(answer: &Value, name: &str) -> bool {
    match answer {
        Value::BulkString(echo) => echo == name.as_bytes(),
        Value::ServerError(_) => true,
        _ => false,
    }
}
