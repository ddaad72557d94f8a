//! A model of one Redis, 7.0 or 8.0: the commands that the proxy and the clients of a simulation
//! send, with tracking, logical expiry, users and the role of a primary or replica.
//!
//! It is a pure function of the commands and the time, and does no I/O. Its replies and pushes, and
//! their order, are compared with a real redis-server by random commands
//! ([`differential`](super::differential)).
//!
//! A key that has expired is absent to each command at once, but it is deleted, and its readers get
//! their push, only when a command finds it or the active expiry comes by. So it is in Redis.
//!
//! A replica runs the commands of its primary again ([`Model::replay`]), and serves no data before
//! it is promoted. [`cluster`] has what a node of a cluster does.
//!
//! The model lacks: other types than strings and hashes, `WATCH`, scripts, blocking commands,
//! pub/sub, databases beside 0, ACL rules beside those of two users, `BCAST`, `OPTIN`, `OPTOUT`,
//! `NOLOOP` and `REDIRECT` of tracking, the limit of its table, the eviction of keys, the protocol
//! of replication, and the protocol of a cluster's nodes among themselves.

mod admin;
pub(super) mod cluster;
mod commands;
mod hashes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem::take;

use self::cluster::View;
use self::commands::{Kind, Spec};
use self::hashes::{Fields, flat};
use super::resp::{Protocol, bulk};

pub(super) type Key = Vec<u8>;

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(Vec<u8>),
    Hash(Fields),
}

#[derive(Clone)]
struct Entry {
    value: Value,
    /// The time of its end, in milliseconds.
    expires_at: Option<u64>,
}

/// A change of a key, for the oracle.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) key: Key,
    /// The value as one text; `None`: the key is absent.
    pub(super) content: Option<Vec<u8>>,
    /// The contents that follow with time, each behind the end of the one before, in milliseconds.
    pub(super) later: Vec<(u64, Option<Vec<u8>>)>,
}

/// The version of a Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Version {
    /// 7.0, in which fields have no time to live, and every login gets a reply.
    #[default]
    Seven,
    /// 8.0.
    Eight,
}

/// Whether Redis requires a login.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Access {
    #[default]
    Open,
    /// There are two [`USERS`].
    Users,
}

/// A user with its password, and the first letter of the keys that it may use; `None`: all.
pub(super) struct User {
    pub(super) name: &'static str,
    pub(super) password: &'static str,
    keys: Option<u8>,
}

impl User {
    pub(super) fn may_use(&self, key: &[u8]) -> bool {
        self.keys.is_none_or(|first| key.first() == Some(&first))
    }
}

/// The users of a Redis that requires a login.
pub(super) const USERS: [User; 2] = [
    User { name: "default", password: "secret", keys: None },
    User { name: "alice", password: "wonder", keys: Some(b's') },
];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Role {
    #[default]
    Primary,
    Replica,
}

struct Client {
    /// `None`: it has not logged in.
    user: Option<&'static User>,
    protocol: Protocol,
    is_tracking: bool,
    /// The commands behind `MULTI`.
    queued: Option<Vec<Vec<Vec<u8>>>>,
    is_aborted: bool,
    /// The last command was `ASKING`.
    is_asking: bool,
    output: Vec<u8>,
}

/// A Redis.
#[derive(Default)]
pub(super) struct Model {
    version: Version,
    access: Access,
    role: Role,
    /// `None`: it belongs to no cluster.
    cluster: Option<View>,
    keys: BTreeMap<Key, Entry>,
    clients: BTreeMap<u64, Client>,
    /// The clients that have read each key.
    readers: BTreeMap<Key, BTreeSet<u64>>,
    /// The invalidations for the current client. They follow its reply. `None`: all keys.
    deferred: Vec<Option<Key>>,
    current: u64,
    next_client: u64,
    now: u64,
    changes: Vec<Change>,
    /// The writes that have run, for a replica.
    executed: Vec<Vec<Vec<u8>>>,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NO_PERMISSION_7: &str = "NOPERM this user has no permissions to access one of the keys used \
    as arguments";
const NO_PERMISSION_8: &str = "NOPERM No permissions to access a key";
const MASTER_DOWN: &str = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is \
    set to 'no'.";
const SYNTAX: &str = "ERR syntax error";
const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

/// The text of a reply that is no error, or the error.
type Outcome = Result<(), String>;

impl Model {
    pub(super) fn new(version: Version, access: Access) -> Self {
        Self { version, access, ..Self::default() }
    }

    /// Connects a client, and returns its number.
    pub(super) fn connect(&mut self) -> u64 {
        self.next_client += 1;
        let client = Client {
            user: (self.access == Access::Open).then_some(&USERS[0]),
            protocol: Protocol::Resp2,
            is_tracking: false,
            queued: None,
            is_aborted: false,
            is_asking: false,
            output: Vec::new(),
        };
        self.clients.insert(self.next_client, client);
        self.next_client
    }

    pub(super) fn disconnect(&mut self, client: u64) {
        self.clients.remove(&client);
    }

    pub(super) fn is_connected(&self, client: u64) -> bool {
        self.clients.contains_key(&client)
    }

    /// Returns the bytes for a client, which are sent now.
    pub(super) fn take_output(&mut self, client: u64) -> Vec<u8> {
        self.clients.get_mut(&client).map(|client| take(&mut client.output)).unwrap_or_default()
    }

    /// Returns the clients for which there are bytes.
    pub(super) fn with_output(&self) -> Vec<u64> {
        let waiting = self.clients.iter().filter(|(_, client)| !client.output.is_empty());
        waiting.map(|(id, _)| *id).collect()
    }

    /// Returns the writes that have run since the last call.
    pub(super) fn take_executed(&mut self) -> Vec<Vec<Vec<u8>>> {
        take(&mut self.executed)
    }

    /// Connects a client that is logged in as the default user.
    pub(super) fn connect_logged_in(&mut self) -> u64 {
        let client = self.connect();
        self.client_of(client).user = Some(&USERS[0]);
        client
    }

    /// Runs a write of the primary, at the time at which it ran there.
    pub(super) fn replay(&mut self, command: &[Vec<u8>], now: u64) {
        let client = self.connect_logged_in();
        (self.current, self.now) = (client, now);
        let spec = Spec::find(&command[0], self.version).expect("the primary knows it");
        _ = self.dispatch(spec.name, command);
        self.disconnect(client);
        self.changes.clear();
        self.deferred.clear();
    }

    /// Becomes a replica with the data of `primary`. All clients are disconnected.
    pub(super) fn follow(&mut self, primary: &Self) {
        self.restart();
        self.role = Role::Replica;
        self.keys.clone_from(&primary.keys);
        self.executed.clear();
    }

    /// Becomes a primary. Returns its data at `now`, as changes.
    pub(super) fn promote(&mut self, now: u64) -> Vec<Change> {
        (self.role, self.now) = (Role::Primary, now);
        self.keys.keys().map(|key| self.change_of(key)).collect()
    }

    /// Returns the changes of keys since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        take(&mut self.changes)
    }

    /// Runs a command of a client at `now`, in milliseconds.
    pub(super) fn run(&mut self, client: u64, command: &[Vec<u8>], now: u64) {
        (self.current, self.now) = (client, now);
        let outcome = self.run_or_queue(command);
        if let Err(error) = outcome {
            self.write(format!("-{error}\r\n").as_bytes());
        }
        let is_asking = command[0].eq_ignore_ascii_case(b"asking");
        if self.client().queued.is_none() && !is_asking {
            self.client().is_asking = false;
        }
        for key in take(&mut self.deferred) {
            self.push(client, key.as_deref());
        }
    }

    /// Deletes a key that has expired at `now`, as the active expiry does.
    pub(super) fn expire(&mut self, key: &[u8], now: u64) {
        (self.current, self.now) = (0, now);
        self.delete_if_expired(key);
    }

    /// Returns the keys that have expired at `now` and are not deleted yet.
    pub(super) fn expired(&self, now: u64) -> Vec<Key> {
        let is_over = |entry: &Entry| entry.expires_at.is_some_and(|end| end < now);
        self.keys.iter().filter(|(_, entry)| is_over(entry)).map(|(key, _)| key.clone()).collect()
    }

    /// Drops all keys and clients, as a restart without a saved file does.
    pub(super) fn restart_empty(&mut self) {
        self.drop_keys();
        self.restart();
    }

    /// Drops all clients.
    pub(super) fn restart(&mut self) {
        self.clients.clear();
        self.readers.clear();
    }

    fn drop_keys(&mut self) {
        for key in take(&mut self.keys).into_keys() {
            self.changes.push(Change { key, content: None, later: Vec::new() });
        }
    }

    fn client(&mut self) -> &mut Client {
        self.client_of(self.current)
    }

    fn client_of(&mut self, client: u64) -> &mut Client {
        self.clients.get_mut(&client).expect("a client runs a command")
    }

    fn write(&mut self, bytes: &[u8]) {
        self.client().output.extend_from_slice(bytes);
    }

    fn bulk(&mut self, text: &[u8]) {
        bulk(&mut self.client().output, text);
    }

    #[expect(clippy::unnecessary_wraps, reason = "the last step of many commands")]
    fn integer(&mut self, number: i64) -> Outcome {
        self.write(format!(":{number}\r\n").as_bytes());
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the last step of many commands")]
    fn ok(&mut self) -> Outcome {
        self.write(b"+OK\r\n");
        Ok(())
    }

    fn null(&mut self) {
        let is_new = self.client().protocol == Protocol::Resp3;
        self.write(if is_new { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Writes the head of a map of this many fields, or of a set or an array.
    fn head(&mut self, kind: char, items: usize) {
        let head = match (self.client().protocol, kind) {
            (Protocol::Resp2, '%') => format!("*{}\r\n", 2 * items),
            (Protocol::Resp2, _) => format!("*{items}\r\n"),
            (Protocol::Resp3, _) => format!("{kind}{items}\r\n"),
        };
        self.write(head.as_bytes());
    }

    fn optional(&mut self, text: Option<Vec<u8>>) {
        match text {
            Some(text) => self.bulk(&text),
            None => self.null(),
        }
    }

    fn run_or_queue(&mut self, command: &[Vec<u8>]) -> Outcome {
        let checked = check(command, self.version);
        let is_queued = self.client().queued.is_some();
        let permitted = checked.and_then(|spec| {
            self.permit(spec, command)?;
            self.check_redirect(spec, command)?;
            self.check_role(spec).map(|()| spec)
        });
        let spec = match permitted {
            Ok(spec) => spec,
            Err(error) => {
                let is_queued = self.client().queued.is_some();
                self.client().is_aborted |= is_queued;
                return Err(error);
            }
        };
        if is_queued && !["exec", "discard", "multi"].contains(&spec.name) {
            // Redis keeps no command of a transaction that it will not run.
            let is_aborted = self.client().is_aborted;
            let queued = self.client().queued.as_mut().expect("a transaction");
            queued.extend((!is_aborted).then(|| command.to_vec()));
            self.write(b"+QUEUED\r\n");
            return Ok(());
        }
        self.call(spec, command)
    }

    /// Checks that the command may run at this node. A redirected `EXEC` ends its transaction.
    fn check_redirect(&mut self, spec: &Spec, command: &[Vec<u8>]) -> Outcome {
        let checked = self.check_slot(spec, command);
        if checked.is_err() && spec.name == "exec" {
            self.client().queued = None;
            self.client().is_aborted = false;
        }
        checked
    }

    /// A replica serves no data.
    fn check_role(&self, spec: &Spec) -> Outcome {
        let is_refused = self.role == Role::Replica && spec.kind != Kind::Other;
        if is_refused { Err(MASTER_DOWN.to_owned()) } else { Ok(()) }
    }

    /// Whether the client may run a command here.
    fn permit(&mut self, spec: &Spec, command: &[Vec<u8>]) -> Outcome {
        match self.client().user {
            None if !["auth", "hello"].contains(&spec.name) => {
                return Err("NOAUTH Authentication required.".to_owned());
            }
            Some(user) if !spec.keys(command).iter().all(|key| user.may_use(key)) => {
                return Err(match self.version {
                    Version::Seven => NO_PERMISSION_7,
                    Version::Eight => NO_PERMISSION_8,
                }
                .to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs a command, and remembers what it has read.
    fn call(&mut self, spec: &Spec, command: &[Vec<u8>]) -> Outcome {
        let outcome = self.dispatch(spec.name, command);
        if spec.kind == Kind::Write {
            self.executed.push(command.to_vec());
        }
        if spec.kind == Kind::Read && self.client().is_tracking {
            for key in spec.keys(command) {
                self.readers.entry(key.clone()).or_default().insert(self.current);
            }
        }
        outcome
    }

    fn dispatch(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        match name {
            "get" | "mget" | "exists" | "strlen" | "ttl" | "pttl" | "type" => {
                self.read(name, command)
            }
            "hget" | "hgetall" | "hlen" | "hset" | "hdel" | "hpexpire" | "hpttl" | "hpersist" => {
                self.hash(name, command)
            }
            "set" => self.set(command),
            "mset" => self.mset(command),
            "del" | "unlink" => self.del(&command[1..]),
            "expire" | "pexpire" => self.pexpire(name, command),
            "persist" => self.persist(&command[1]),
            "flushall" => self.flush(command),
            "multi" | "exec" | "discard" => self.transaction(name),
            _ => self.administer(name, command),
        }
    }

    /// Deletes `key` if it has expired.
    fn delete_if_expired(&mut self, key: &[u8]) {
        let is_over = |entry: &Entry| entry.expires_at.is_some_and(|end| end < self.now);
        if self.keys.get(key).is_some_and(is_over) {
            self.keys.remove(key);
            self.invalidate(key);
        }
    }

    fn find(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.delete_if_expired(key);
        self.keys.get_mut(key)
    }

    fn text(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        match self.find(key).map(|entry| &entry.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Hash(_)) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn read(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let key = &command[1];
        match name {
            "get" => {
                let text = self.text(key)?;
                self.optional(text);
                Ok(())
            }
            "mget" => {
                self.head('*', command.len() - 1);
                for key in &command[1..] {
                    let text = self.text(key).unwrap_or_default();
                    self.optional(text);
                }
                Ok(())
            }
            "exists" => {
                let found = command[1..].iter().filter(|key| self.find(key).is_some()).count();
                self.integer(i64::try_from(found).unwrap_or(0))
            }
            "strlen" => {
                let length = self.text(key)?.map_or(0, |text| text.len());
                self.integer(i64::try_from(length).unwrap_or(0))
            }
            "type" => {
                let kind = match self.find(key).map(|entry| &entry.value) {
                    None => "none",
                    Some(Value::Text(_)) => "string",
                    Some(Value::Hash(_)) => "hash",
                };
                self.write(format!("+{kind}\r\n").as_bytes());
                Ok(())
            }
            _ => {
                let now = self.now;
                let left = self.find(key).map(|entry| entry.expires_at.map(|end| end - now));
                self.integer(match left {
                    None => -2,
                    Some(None) => -1,
                    Some(Some(left)) => {
                        let left = i64::try_from(left).unwrap_or(i64::MAX);
                        if name == "ttl" { (left + 500) / 1000 } else { left }
                    }
                })
            }
        }
    }

    fn store(&mut self, key: &[u8], value: Value, expires_at: Option<u64>) {
        self.keys.insert(key.to_vec(), Entry { value, expires_at });
        self.changed(key);
    }

    fn remove(&mut self, key: &[u8]) {
        self.keys.remove(key);
        self.changed(key);
    }

    /// Reports a change of `key` to its readers and to the oracle.
    fn changed(&mut self, key: &[u8]) {
        let change = self.change_of(key);
        self.changes.push(change);
        self.invalidate(key);
    }

    /// Returns the state of a key as a change.
    fn change_of(&self, key: &[u8]) -> Change {
        let entry = self.keys.get(key);
        let expires_at = entry.and_then(|entry| entry.expires_at);
        let (content, mut later) = match entry.map(|entry| &entry.value) {
            None => (None, Vec::new()),
            Some(Value::Text(text)) => (Some(text.clone()), Vec::new()),
            Some(Value::Hash(fields)) => {
                let live = fields.values().filter(|field| !field.is_over(self.now));
                let mut ends: Vec<_> = live.filter_map(|field| field.expires_at).collect();
                ends.sort_unstable();
                ends.dedup();
                let later = ends.into_iter().map(|end| (end, flat(fields, end + 1)));
                (flat(fields, self.now), later.collect())
            }
        };
        if let Some(end) = expires_at {
            later.retain(|(earlier, _)| *earlier < end);
            later.push((end, None));
        }
        Change { key: key.to_vec(), content, later }
    }

    fn invalidate(&mut self, key: &[u8]) {
        for client in self.readers.remove(key).unwrap_or_default() {
            if client == self.current {
                self.deferred.push(Some(key.to_vec()));
            } else {
                self.push(client, Some(key));
            }
        }
    }

    /// Writes an invalidation for a client, if it still tracks.
    fn push(&mut self, client: u64, key: Option<&[u8]>) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        if !client.is_tracking || client.protocol == Protocol::Resp2 {
            return;
        }
        client.output.extend_from_slice(b">2\r\n$10\r\ninvalidate\r\n");
        match key {
            Some(key) => {
                client.output.extend_from_slice(b"*1\r\n");
                bulk(&mut client.output, key);
            }
            None => client.output.extend_from_slice(b"_\r\n"),
        }
    }

    fn set(&mut self, command: &[Vec<u8>]) -> Outcome {
        let [_, key, text, options @ ..] = command else { return Err(SYNTAX.to_owned()) };
        let word = options.first().map(|word| word.to_ascii_lowercase()).unwrap_or_default();
        let expires_at = match (&word[..], options.len()) {
            (b"", 0) => None,
            (b"keepttl", 1) => self.find(key).and_then(|entry| entry.expires_at),
            (b"px" | b"ex", 2) => {
                let number = parse(&options[1])?;
                let millis = if word == b"ex" { number.saturating_mul(1000) } else { number };
                if millis <= 0 {
                    return Err("ERR invalid expire time in 'set' command".to_owned());
                }
                Some(self.now + u64::try_from(millis).unwrap_or(0))
            }
            _ => return Err(SYNTAX.to_owned()),
        };
        self.store(key, Value::Text(text.clone()), expires_at);
        self.ok()
    }

    fn mset(&mut self, command: &[Vec<u8>]) -> Outcome {
        if command.len().is_multiple_of(2) {
            return Err(wrong_arity("mset"));
        }
        for pair in command[1..].chunks(2) {
            self.store(&pair[0], Value::Text(pair[1].clone()), None);
        }
        self.ok()
    }

    fn del(&mut self, keys: &[Vec<u8>]) -> Outcome {
        let mut removed = 0;
        for key in keys {
            if self.find(key).is_some() {
                self.remove(key);
                removed += 1;
            }
        }
        self.integer(removed)
    }

    fn pexpire(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let [_, key, number] = command else {
            let option = String::from_utf8_lossy(&command[3]);
            return Err(format!("ERR Unsupported option {option}"));
        };
        let number = parse(number)?;
        let millis = if name == "expire" { number.saturating_mul(1000) } else { number };
        let now = self.now;
        let Some(entry) = self.find(key) else { return self.integer(0) };
        if millis <= 0 {
            self.remove(key);
        } else {
            entry.expires_at = Some(now + u64::try_from(millis).unwrap_or(0));
            self.changed(key);
        }
        self.integer(1)
    }

    fn persist(&mut self, key: &[u8]) -> Outcome {
        let had = self.find(key).and_then(|entry| entry.expires_at.take()).is_some();
        if had {
            self.changed(key);
        }
        self.integer(had.into())
    }

    fn flush(&mut self, command: &[Vec<u8>]) -> Outcome {
        if command.len() > 1 {
            return Err(SYNTAX.to_owned());
        }
        self.drop_keys();
        self.readers.clear();
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            // Redis 8.0 sends it before the reply.
            if client == self.current && self.version == Version::Seven {
                self.deferred.push(None);
            } else {
                self.push(client, None);
            }
        }
        self.ok()
    }

    fn transaction(&mut self, name: &str) -> Outcome {
        let queued = self.client().queued.take();
        let is_aborted = take(&mut self.client().is_aborted);
        match (name, queued) {
            ("multi", None) => {
                self.client().queued = Some(Vec::new());
                self.ok()
            }
            ("multi", queued) => {
                (self.client().queued, self.client().is_aborted) = (queued, is_aborted);
                Err("ERR MULTI calls can not be nested".to_owned())
            }
            ("discard", Some(_)) => self.ok(),
            (_, None) => Err(format!("ERR {} without MULTI", name.to_uppercase())),
            (_, Some(_)) if is_aborted => {
                Err("EXECABORT Transaction discarded because of previous errors.".to_owned())
            }
            (_, Some(commands)) => {
                self.write(format!("*{}\r\n", commands.len()).as_bytes());
                for command in commands {
                    let spec = Spec::find(&command[0], self.version);
                    let spec = spec.expect("a queued command is known");
                    if let Err(error) = self.call(spec, &command) {
                        self.write(format!("-{error}\r\n").as_bytes());
                    }
                }
                Ok(())
            }
        }
    }
}

/// Returns the facts of a command that Redis knows, with as many arguments as it demands.
fn check(command: &[Vec<u8>], version: Version) -> Result<&'static Spec, String> {
    let name = String::from_utf8_lossy(&command[0]).into_owned();
    let Some(spec) = Spec::find(&command[0], version) else {
        let mut arguments = String::new();
        for argument in &command[1..] {
            _ = write!(arguments, "'{}' ", String::from_utf8_lossy(argument));
        }
        return Err(format!("ERR unknown command '{name}', with args beginning with: {arguments}"));
    };
    if spec.accepts(command.len()) { Ok(spec) } else { Err(wrong_arity(spec.name)) }
}

fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

fn parse(number: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| NOT_A_NUMBER.to_owned())
}
