//! The clients: sessions that read and write through the proxy, and writers straight at Redis.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{sleep, timeout};

use super::http;
use super::model::{Key, USERS, User, Version};
use super::network::{End, longest};
use super::oracle::Read;
use super::partitions::Views;
use super::resp::{Reply, command, take_reply};
use super::run::Stage;
use super::world::lock;

/// The longest time that a client waits for a reply.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The reply that a command has to get.
enum Expected {
    /// The content of these keys, of one or of several.
    One(Key),
    Several(Vec<Key>),
    Hash(Key),
    /// A hash has this value in its only field that a client writes.
    Written(Key, Vec<u8>),
    /// Each key has its value.
    AllWritten(Vec<(Key, Vec<u8>)>),
    Deleted(Key),
    Any,
    /// The login of this user.
    LoggedIn(&'static User),
    /// The error of a wrong login.
    Refused,
    /// The results of a transaction.
    Transaction(Vec<Expected>),
}

/// A connection to the proxy, and what it has seen.
struct Session {
    end: End,
    input: Vec<u8>,
    opened: Duration,
    /// Whether the proxy was connected when the last commands were sent.
    was_ready: bool,
    seen: Views,
    /// The user that it has logged in as; `None`: it has not, or that is not certain.
    user: Option<&'static User>,
}

/// The reason for the end of a session.
pub(super) enum Ended {
    Closed,
    Breach(String),
}

/// Reads and writes through the proxy for as long as the simulation runs.
pub(super) async fn read_and_write(stage: Stage, number: u64) {
    loop {
        let Some(mut session) = Session::open(&stage).await else {
            sleep(stage.world.duration(1, 50)).await;
            continue;
        };
        for _ in 0..stage.world.between(1, 400) {
            sleep(stage.world.duration(0, stage.plan.pause)).await;
            match session.go_on(&stage).await {
                Ok(()) => {}
                Err(Ended::Closed) => break,
                Err(Ended::Breach(breach)) => {
                    stage.fail(format!("client {number}: {breach}"));
                    return;
                }
            }
        }
    }
}

/// A command, and the reply that it has to get.
type Sent = (Vec<u8>, Expected);

/// Returns a login with the right password, or with a wrong one.
fn login(user: &'static User, is_right: bool) -> Sent {
    let password = if is_right { user.password } else { "wrong" };
    let command = command(&[b"AUTH", user.name.as_bytes(), password.as_bytes()]);
    (command, if is_right { Expected::LoggedIn(user) } else { Expected::Refused })
}

/// Returns commands with logins between them, of which Redis may leave one without a reply.
fn logins(stage: &Stage) -> Vec<Sent> {
    let user = &USERS[stage.world.index(USERS.len())];
    let read = || {
        let key = stage.random_key();
        (command(&[b"GET", &key]), Expected::One(key))
    };
    let login = login(user, stage.world.chance(50));
    match stage.world.between(1, 3) {
        1 => vec![login],
        2 => vec![read(), login, read()],
        _ => vec![set(stage), login, set(stage), read()],
    }
}

/// Returns the next commands of a client, which it sends together.
fn steps(stage: &Stage) -> Vec<Sent> {
    let key = || stage.random_key();
    let get = || {
        let key = key();
        (command(&[b"GET", &key]), Expected::One(key))
    };
    match stage.world.between(1, 100) {
        1..=60 => vec![get()],
        61..=70 => {
            let keys: Vec<_> = (0..stage.world.between(1, 4)).map(|_| key()).collect();
            let words: Vec<&[u8]> =
                std::iter::once(&b"MGET"[..]).chain(keys.iter().map(|key| &key[..])).collect();
            vec![(command(&words), Expected::Several(keys))]
        }
        71..=76 => vec![set(stage)],
        77..=78 => {
            let key = key();
            vec![(command(&[b"DEL", &key]), Expected::Deleted(key))]
        }
        79..=81 => vec![set(stage), get(), get()],
        82..=86 => {
            let read = get();
            let Expected::One(key) = &read.1 else { unreachable!("it is a GET") };
            let written = set_key(stage, stage.sibling(key));
            let results = Expected::Transaction(vec![read.1, written.1]);
            let steps =
                [command(&[b"MULTI"]), read.0, written.0].map(|command| (command, Expected::Any));
            steps.into_iter().chain([(command(&[b"EXEC"]), results)]).collect()
        }
        87..=88 => vec![mset(stage)],
        89..=93 => {
            let key = stage.random_hash();
            vec![(command(&[b"HGETALL", &key]), Expected::Hash(key))]
        }
        _ => (0..stage.world.between(2, 6)).map(|_| get()).collect(),
    }
}

fn mset(stage: &Stage) -> Sent {
    let one = stage.random_key();
    let other = if stage.world.chance(70) { stage.sibling(&one) } else { stage.random_key() };
    let pairs = [one, other].map(|key| (key, stage.next_text()));
    let [(one, first), (other, second)] = &pairs;
    (command(&[b"MSET", one, first, other, second]), Expected::AllWritten(pairs.into()))
}

fn set(stage: &Stage) -> Sent {
    set_key(stage, stage.random_key())
}

fn set_key(stage: &Stage, key: Key) -> Sent {
    let text = stage.next_text();
    let millis = stage.world.between(1, stage.plan.life).to_string();
    let words: &[&[u8]] = if stage.world.chance(20) {
        &[b"SET", &key, &text, b"PX", millis.as_bytes()]
    } else {
        &[b"SET", &key, &text]
    };
    (command(words), Expected::Written(key, text))
}

impl Session {
    async fn open(stage: &Stage) -> Option<Self> {
        let end = stage.to_proxy.connect().await.ok()?;
        let opened = stage.world.now();
        let (input, seen) = (Vec::new(), Views::default());
        Some(Self { end, input, opened, was_ready: false, seen, user: None })
    }

    /// Sends the next commands. A login comes before all others.
    async fn go_on(&mut self, stage: &Stage) -> Result<(), Ended> {
        let steps = if stage.has_users() && self.user.is_none() {
            vec![login(&USERS[usize::from(stage.world.chance(40))], true)]
        } else if stage.has_users() && stage.world.chance(5) {
            logins(stage)
        } else {
            steps(stage)
        };
        self.send(stage, steps).await
    }

    /// Sends commands together, and judges their replies.
    async fn send(&mut self, stage: &Stage, steps: Vec<Sent>) -> Result<(), Ended> {
        let sent = stage.world.now();
        self.seen.go_on();
        self.was_ready = stage.program.is_ready();
        let bytes: Vec<u8> = steps.iter().flat_map(|(command, _)| command.clone()).collect();
        self.end.write_all(&bytes).await.map_err(|_| Ended::Closed)?;
        for (command, expected) in steps {
            let reply = match timeout(PATIENCE, self.end.receive(&mut self.input, take_reply)).await
            {
                Ok(Some(reply)) => reply,
                Ok(None) => return closed(stage, sent),
                Err(_) if stage.conditions.has_lost_since(self.opened) => {
                    return Err(Ended::Closed);
                }
                Err(_) => {
                    return Err(Ended::Breach(format!("no reply to {}", command.escape_ascii())));
                }
            };
            stage.world.record(|| format!("{} -> {reply:?}", command.escape_ascii()));
            self.judge(stage, sent, &expected, &reply).map_err(Ended::Breach)?;
        }
        Ok(())
    }

    fn judge(
        &mut self,
        stage: &Stage,
        sent: Duration,
        expected: &Expected,
        reply: &Reply,
    ) -> Result<(), String> {
        let now = stage.world.now();
        if self.has_to_be_refused(expected) {
            return match reply {
                Reply::Error(_) => Ok(()),
                other => Err(format!("{other:?} in the place of an error")),
            };
        }
        if let Reply::Error(error) = reply {
            if let Expected::LoggedIn(_) = expected {
                self.user = None;
            }
            stage.counts.errors.fetch_add(1, Relaxed);
            let error = error.escape_ascii();
            return if stage.may_fail_since(sent) {
                Ok(())
            } else {
                Err(format!("an error while nothing failed: {error}"))
            };
        }
        match (expected, reply) {
            (Expected::One(key), Reply::Text(text)) => {
                self.judge_read(stage, sent, key, Some(text))
            }
            (Expected::One(key), Reply::Null) => self.judge_read(stage, sent, key, None),
            (Expected::Several(keys), Reply::Array(replies)) if keys.len() == replies.len() => {
                keys.iter().zip(replies).try_for_each(|(key, reply)| match reply {
                    Reply::Text(text) => self.judge_read(stage, sent, key, Some(text)),
                    Reply::Null => self.judge_read(stage, sent, key, None),
                    other => Err(format!("MGET returned {other:?}")),
                })
            }
            (Expected::Hash(key), Reply::Array(fields)) => {
                let mut pairs = Vec::new();
                for pair in fields.chunks(2) {
                    let [Reply::Text(name), Reply::Text(value)] = pair else {
                        return Err(format!("HGETALL returned {fields:?}"));
                    };
                    pairs.push([&name[..], &value[..]].join(&b'='));
                }
                pairs.sort();
                let content = (!pairs.is_empty()).then(|| pairs.join(&b' '));
                self.judge_read(stage, sent, key, content.as_deref())
            }
            (Expected::Written(key, text), Reply::Simple(_)) => self.note_written(stage, key, text),
            (Expected::AllWritten(pairs), Reply::Simple(_)) => {
                pairs.iter().try_for_each(|(key, text)| self.note_written(stage, key, text))
            }
            (Expected::Deleted(key), Reply::Integer(_)) => {
                // Without a state since then, the key was absent before.
                lock(&stage.epochs).note_deleted(key, sent, now, &mut self.seen);
                Ok(())
            }
            (Expected::LoggedIn(user), Reply::Simple(_)) => {
                self.user = Some(user);
                Ok(())
            }
            (Expected::Transaction(results), Reply::Array(replies))
                if results.len() == replies.len() =>
            {
                results
                    .iter()
                    .zip(replies)
                    .try_for_each(|(result, reply)| self.judge(stage, sent, result, reply))
            }
            (Expected::Any, _) => Ok(()),
            (_, other) => Err(format!("a reply of the wrong kind: {other:?}")),
        }
    }

    fn note_written(&mut self, stage: &Stage, key: &[u8], text: &[u8]) -> Result<(), String> {
        let has_run = lock(&stage.epochs).note_written(key, text, &mut self.seen);
        let breach = "a write was acknowledged that Redis has not run";
        if has_run { Ok(()) } else { Err(breach.to_owned()) }
    }

    fn judge_read(
        &mut self,
        stage: &Stage,
        sent: Duration,
        key: &[u8],
        content: Option<&[u8]>,
    ) -> Result<(), String> {
        stage.counts.reads.fetch_add(1, Relaxed);
        let arrived = stage.world.now();
        let (bound, may_be_stale) = stage.bound(sent, self.was_ready);
        let read = Read { key, content, sent, arrived, seen: 0, bound };
        // An entry of a previous primary may be served for as long as any that is superseded.
        let grace = bound.saturating_sub(longest(stage.plan.delay));
        lock(&stage.epochs).judge(&read, &mut self.seen, may_be_stale, grace)
    }

    /// Whether the reply is an error, whatever happens: to a wrong login, or about a key that the
    /// user may not read.
    fn has_to_be_refused(&self, expected: &Expected) -> bool {
        match expected {
            Expected::Refused => true,
            Expected::Hash(key) => self.user.is_some_and(|user| !user.may_use(key)),
            _ => false,
        }
    }
}

/// The end of a connection, which is a breach while nothing fails.
pub(super) fn closed(stage: &Stage, sent: Duration) -> Result<(), Ended> {
    if stage.may_fail_since(sent) {
        return Err(Ended::Closed);
    }
    Err(Ended::Breach("the proxy closed a connection while nothing failed".to_owned()))
}

/// Changes keys straight at Redis for as long as the simulation runs.
pub(super) async fn write(stage: Stage) {
    loop {
        sleep(stage.world.duration(0, stage.plan.write_pause)).await;
        let (key, text) = (stage.random_key(), stage.next_text());
        let millis = stage.world.between(1, stage.plan.life).to_string();
        let hash = stage.random_hash();
        let field = format!("f{}", stage.world.between(1, 3)).into_bytes();
        let has_field_ends = stage.plan.version == Version::Eight;
        let words: &[&[u8]] = match stage.world.between(1, 100) {
            1..=5 if has_field_ends && stage.world.chance(20) => {
                &[b"HPERSIST", &hash, b"FIELDS", b"1", &field]
            }
            1..=5 if has_field_ends => {
                &[b"HPEXPIRE", &hash, millis.as_bytes(), b"FIELDS", b"1", &field]
            }
            1..=55 => &[b"SET", &key, &text],
            56..=67 => &[b"SET", &key, &text, b"PX", millis.as_bytes()],
            68..=74 => &[b"DEL", &key],
            75..=79 => &[b"PEXPIRE", &key, millis.as_bytes()],
            80..=82 => &[b"PERSIST", &key],
            83..=94 => &[b"HSET", &hash, &field, &text],
            95..=97 => &[b"HDEL", &hash, &field],
            98..=99 => &[b"DEL", &hash],
            _ if stage.world.chance(10) => &[b"FLUSHALL"],
            _ => &[b"PEXPIRE", &hash, millis.as_bytes()],
        };
        if stage.servers.write(words) {
            stage.counts.writes.fetch_add(1, Relaxed);
        }
    }
}

/// Reads each key once more when all faults are over. Every read has to be answered, and right.
pub(super) async fn read_all(stage: &Stage) -> Result<(), String> {
    let mut session = Session::open(stage).await.ok_or("no connection after all faults")?;
    let keys: Vec<_> = lock(&stage.epochs).keys().into_iter().collect();
    http::read_all(stage, &keys).await.map_err(|breach| format!("after all faults: {breach}"))?;
    if stage.has_users() {
        let login = session.send(stage, vec![login(&USERS[0], true)]).await;
        login.map_err(|_| "no login after all faults")?;
    }
    for key in keys {
        let step = if key.starts_with(b"h") {
            (command(&[b"HGETALL", &key]), Expected::Hash(key))
        } else {
            (command(&[b"GET", &key]), Expected::One(key))
        };
        match session.send(stage, vec![step]).await {
            Ok(()) => {}
            Err(Ended::Breach(breach)) => return Err(format!("after all faults: {breach}")),
            Err(Ended::Closed) => return Err("the connection ended after all faults".to_owned()),
        }
    }
    Ok(())
}
