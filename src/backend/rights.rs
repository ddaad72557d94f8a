//! The rights of the proxy's user, which Redis may take away while the connection lasts.
//!
//! Redis closes no connection of a user that is disabled, gets another password or loses keys.
//! Values that were read before would stay in memory. So the rights are proven again and again:
//!
//! - Each renewal of the lease repeats the login. A rejection ends the connection.
//! - With the optional right `acl|getuser`, each renewal also compares the rules of the user with
//!   those of the last time. A change empties the cache.
//! - Without that right, `PTTL` of kept keys is requested in rotation, in [rounds](KeyCheck). A
//!   refusal empties the cache.
//!
//! The rule that must not be broken: only the refusal of a *kept* key empties the cache. The
//! refusal of a key that a client requested just starts a round. Otherwise a client could empty the
//! cache by reading forbidden keys.

use std::convert::Infallible;
use std::mem::take;
use std::sync::Mutex;
use std::time::Duration;

use blake3::Hash;
use bytes::BytesMut;
use redis::{Cmd, Value};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::address::Address;
use super::credentials::{DEFAULT_USER, Login};
use super::error::{BackendError, NO_PERMISSION};
use super::fetch_command::{write_expiry, write_value};
use super::multiplexed::Multiplexed;
use super::signals::SupervisorSignals;
use super::value::text;
use crate::cache::{Cache, Entry, ReplyProbe, WalkPosition};
use crate::key::Key;
use crate::metrics::{Invalidation, Metrics};
use crate::sync::lock;

/// The proof of the rights of one connection. The rules outlast it, because entries do so in TTL
/// mode.
#[derive(Default)]
pub(super) struct Rights(Mutex<State>);

#[derive(Default)]
struct State {
    /// The login to repeat; `None`: Redis accepts none.
    login: Option<Cmd>,
    /// The request for the rules of the user.
    rules_request: Cmd,
    /// The digest of the rules; `None`: Redis does not permit to read them.
    rules: Option<Hash>,
    /// The place among the strings at which the next round goes on.
    position: WalkPosition,
    /// The commands and keys of kept replies that are still to be checked. `None`: strings are
    /// checked.
    replies: Option<ReplyProbe>,
}

/// Whether the rules differ from those of the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Same,
    Changed,
}

impl Rights {
    /// Prepares the proofs of a new connection, which has logged in. Fetches must not use it yet.
    /// Otherwise a change between them and the first reading of the rules would stay unseen.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] if the connection ends.
    pub(super) async fn begin(
        &self,
        connection: &Multiplexed,
        login: Option<&Login>,
    ) -> Result<Rules, BackendError> {
        let repeated = match login {
            Some(login) => Some(login.command()),
            None => default_login(connection).await?,
        };
        let mut request = redis::cmd("ACL");
        request.arg("GETUSER").arg(login.map_or(DEFAULT_USER, Login::user));
        let rules = digest(&connection.send(&request).await?);
        let mut state = lock(&self.0);
        let is_changed = state.rules.is_some() && state.rules != rules;
        (state.login, state.rules_request, state.rules) = (repeated, request, rules);
        Ok(if is_changed { Rules::Changed } else { Rules::Same })
    }

    /// Sends the proofs and `last`. Returns the reply to `last`, and the result of the comparison.
    /// If Redis rejects the login, the connection ends.
    ///
    /// # Errors
    /// [`BackendError::Disconnected`] if the connection ends.
    pub(super) async fn prove(
        &self,
        connection: &Multiplexed,
        last: Cmd,
    ) -> Result<(Value, Rules), BackendError> {
        let (login, mut commands) = {
            let state = lock(&self.0);
            let rules = state.rules.is_some().then(|| state.rules_request.clone());
            (state.login.clone(), Vec::from_iter(rules))
        };
        commands.push(last);
        let mut replies = connection.send_after_login(login.as_ref(), &commands).await?;
        let reply = replies.pop().ok_or(BackendError::Disconnected)?;
        Ok((reply, replies.first().map_or(Rules::Same, |rules| self.compare(rules))))
    }

    fn compare(&self, reply: &Value) -> Rules {
        // Redis may be busy. It changes no rules then.
        if matches!(reply, Value::ServerError(error) if error.code() != NO_PERMISSION) {
            return Rules::Same;
        }
        let (rules, mut state) = (digest(reply), lock(&self.0));
        let is_same = state.rules == rules;
        state.rules = rules;
        if is_same { Rules::Same } else { Rules::Changed }
    }

    /// Whether each renewal compares the rules, so that no rounds are needed.
    fn are_compared(&self) -> bool {
        lock(&self.0).rules.is_some()
    }
}

/// Returns the login of a client without credentials, if Redis accepts it.
///
/// Redis rejects it as soon as the default user needs a password or is disabled.
async fn default_login(connection: &Multiplexed) -> Result<Option<Cmd>, BackendError> {
    let mut login = redis::cmd("AUTH");
    login.arg(DEFAULT_USER).arg("");
    Ok((connection.send(&login).await? == Value::Okay).then_some(login))
}

/// Returns a digest of the rules in a reply to `ACL GETUSER`; `None` for an error.
///
/// The passwords are left out, because the login proves them. So a password that is added for a
/// rotation empties no cache.
fn digest(reply: &Value) -> Option<Hash> {
    let is_rule = |name: &Value| text(name) != Some("passwords");
    let fields: Vec<&Value> = match reply {
        Value::ServerError(_) => return None,
        Value::Map(fields) => {
            let fields = fields.iter().filter(|(name, _)| is_rule(name));
            fields.flat_map(|(name, value)| [name, value]).collect()
        }
        Value::Array(items) => {
            items.chunks(2).filter(|field| is_rule(&field[0])).flatten().collect()
        }
        other => vec![other],
    };
    Some(blake3::hash(format!("{fields:?}").as_bytes()))
}

/// Drops everything that was read with other rules. They need not permit less than these.
pub(super) fn on_rules_changed(cache: &Cache<BackendError>, metrics: &Metrics, redis: &Address) {
    empty(cache, metrics);
    tracing::info!(%redis, "the rules of the proxy's user changed at Redis; the cache was emptied");
}

fn empty(cache: &Cache<BackendError>, metrics: &Metrics) {
    metrics.record_invalidations(Invalidation::Rights, 1);
    cache.invalidate_all();
}

/// The most kept keys that are checked in one round.
const ROUND_MAX: usize = 4096;
/// The most keys that are checked with one write. Fetches that arrive meanwhile wait for Redis to
/// reply to this number.
const BATCH: usize = 128;
/// The minimum time from the beginning of a round to that of the next.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// The size in bytes of the largest value or reply that is read, to check the right to its command
/// as well.
const READ_MAX: usize = 1024;

/// The check of kept keys. Its rounds go on where the last one ended.
///
/// The rotation goes by the index of an entry in the store, which stays the same while it is kept.
/// The keys of kept replies follow, as they were at that time. So each key that is kept during a
/// whole rotation is checked once in it, whatever else is inserted or evicted meanwhile.
pub(super) struct KeyCheck<'a> {
    pub(super) rights: &'a Rights,
    pub(super) cache: &'a Cache<BackendError>,
    pub(super) metrics: &'a Metrics,
    pub(super) signals: &'a SupervisorSignals,
    pub(super) redis: &'a Address,
    /// The interval of the rounds, unless a refused fetch starts one earlier.
    pub(super) interval: Duration,
}

impl KeyCheck<'_> {
    /// Runs rounds on the connection, if the rules of the user are not compared.
    pub(super) async fn run(&self, connection: &Multiplexed) -> Infallible {
        loop {
            let begun = Instant::now();
            if !self.rights.are_compared() {
                // The driver reports the end of the connection.
                _ = self.round(connection).await;
            }
            sleep_until(begun + ROUND_INTERVAL).await;
            tokio::select! {
                () = sleep_until(begun + self.interval) => {}
                () = self.signals.fetch_forbidden.notified() => {}
            }
        }
    }

    /// Checks keys up to the end of the rotation, [`ROUND_MAX`] of them at most.
    async fn round(&self, connection: &Multiplexed) -> Result<(), BackendError> {
        let (mut checked, mut has_read) = (0, false);
        while checked < ROUND_MAX {
            let Some(batch) = self.next_batch() else { break };
            checked += batch.entries.len() + batch.replies.keys.len();
            let small = batch.entries.iter().find(|entry| !has_read && entry.size() <= READ_MAX);
            has_read |= small.is_some();
            let replies = request(connection, &batch, small).await?;
            if replies.iter().any(is_refusal) {
                empty(self.cache, self.metrics);
                tracing::warn!(
                    redis = %self.redis,
                    "a kept key is forbidden to the proxy's user now; the cache was emptied"
                );
                break;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Returns the next keys: first those of strings, then those of replies. `None` at the end of
    /// the rotation.
    fn next_batch(&self) -> Option<Batch> {
        if let Some(replies) = &mut lock(&self.rights.0).replies
            && !replies.keys.is_empty()
        {
            let keys = replies.keys.split_off(replies.keys.len().saturating_sub(BATCH));
            let replies = ReplyProbe { commands: take(&mut replies.commands), keys };
            return Some(Batch { entries: Vec::new(), replies });
        }
        if lock(&self.rights.0).replies.take().is_some() {
            return None;
        }
        let mut position = lock(&self.rights.0).position;
        let entries = self.cache.walk(&mut position, BATCH);
        let mut state = lock(&self.rights.0);
        state.position = position;
        if entries.is_none() {
            // All replies that are kept now. Those that are kept later belong to the next rotation.
            state.replies = Some(self.cache.reply_probe(READ_MAX));
        }
        Some(Batch { entries: entries.unwrap_or_default(), replies: ReplyProbe::default() })
    }
}

/// Kept keys that are checked with one write.
struct Batch {
    entries: Vec<Entry>,
    replies: ReplyProbe,
}

/// Returns the replies to `PTTL` of the keys, to `GET` of the `small` one, and to the commands.
async fn request(
    connection: &Multiplexed,
    batch: &Batch,
    small: Option<&Entry>,
) -> Result<Vec<Value>, BackendError> {
    let Batch { entries, replies: ReplyProbe { commands: probes, keys: reply_keys } } = batch;
    if entries.is_empty() && reply_keys.is_empty() {
        return Ok(Vec::new());
    }
    let write = |commands: &mut BytesMut| {
        if let Some(entry) = small {
            write_value(entry.key(), commands);
        }
        let keys = entries.iter().map(Entry::key);
        for key in keys.chain(reply_keys.iter().map(Key::as_bytes)) {
            write_expiry(key, commands);
        }
        for probe in probes {
            commands.extend_from_slice(probe.as_bytes());
        }
        entries.len() + reply_keys.len() + probes.len() + usize::from(small.is_some())
    };
    connection.send_batch(None, write).await
}

fn is_refusal(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == NO_PERMISSION)
}
