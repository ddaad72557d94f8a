//! A model of one Redis 7.0: the commands that the proxy and the clients of a simulation send, with
//! tracking and logical expiry.
//!
//! It is a pure function of the commands and the time, and does no I/O. Its replies and pushes, and
//! their order, are compared with a real redis-server by random commands
//! ([`differential`](super::differential)).
//!
//! A key that has expired is absent to each command at once, but it is deleted, and its readers get
//! their push, only when a command finds it or the active expiry comes by. So it is in Redis.
//!
//! The model lacks: other types than strings and hashes, fields with a time to live, `WATCH`,
//! scripts, blocking commands, pub/sub, databases beside 0, ACL rules beside the default user's,
//! `BCAST`, `OPTIN`, `OPTOUT`, `NOLOOP` and `REDIRECT` of tracking, the limit of its table, the
//! eviction of keys, replication, sentinels and clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem::take;

use super::resp::{Protocol, bulk};

pub(super) type Key = Vec<u8>;

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
}

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
    pub(super) expires_at: Option<u64>,
}

struct Client {
    protocol: Protocol,
    is_tracking: bool,
    /// The commands behind `MULTI`.
    queued: Option<Vec<Vec<Vec<u8>>>>,
    is_aborted: bool,
    output: Vec<u8>,
}

/// A Redis.
#[derive(Default)]
pub(super) struct Model {
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
}

/// The facts about a command.
struct Spec {
    name: &'static str,
    arity: i64,
    is_read: bool,
    /// The first and last key and the step between keys, as `COMMAND INFO` has them.
    keys: (i64, i64, i64),
}

const fn spec(name: &'static str, arity: i64, is_read: bool, keys: (i64, i64, i64)) -> Spec {
    Spec { name, arity, is_read, keys }
}

const NO_KEYS: (i64, i64, i64) = (0, 0, 0);
const ONE_KEY: (i64, i64, i64) = (1, 1, 1);
const ALL_KEYS: (i64, i64, i64) = (1, -1, 1);

const COMMANDS: [Spec; 34] = [
    spec("acl", -2, false, NO_KEYS),
    spec("auth", -2, false, NO_KEYS),
    spec("client", -2, false, NO_KEYS),
    spec("command", -1, false, NO_KEYS),
    spec("config", -2, false, NO_KEYS),
    spec("del", -2, false, ALL_KEYS),
    spec("discard", 1, false, NO_KEYS),
    spec("echo", 2, false, NO_KEYS),
    spec("exec", 1, false, NO_KEYS),
    spec("exists", -2, true, ALL_KEYS),
    spec("expire", -3, false, ONE_KEY),
    spec("flushall", -1, false, NO_KEYS),
    spec("get", 2, true, ONE_KEY),
    spec("hdel", -3, false, ONE_KEY),
    spec("hello", -1, false, NO_KEYS),
    spec("hget", 3, true, ONE_KEY),
    spec("hgetall", 2, true, ONE_KEY),
    spec("hlen", 2, true, ONE_KEY),
    spec("hset", -4, false, ONE_KEY),
    spec("info", -1, false, NO_KEYS),
    spec("mget", -2, true, ALL_KEYS),
    spec("mset", -3, false, (1, -1, 2)),
    spec("multi", 1, false, NO_KEYS),
    spec("persist", 2, false, ONE_KEY),
    spec("pexpire", -3, false, ONE_KEY),
    spec("ping", -1, false, NO_KEYS),
    spec("pttl", 2, true, ONE_KEY),
    spec("role", 1, false, NO_KEYS),
    spec("select", 2, false, NO_KEYS),
    spec("set", -3, false, ONE_KEY),
    spec("strlen", 2, true, ONE_KEY),
    spec("ttl", 2, true, ONE_KEY),
    spec("type", 2, true, ONE_KEY),
    spec("unlink", -2, false, ALL_KEYS),
];

impl Spec {
    fn find(name: &[u8]) -> Option<&'static Self> {
        COMMANDS.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes()))
    }

    fn accepts(&self, arguments: usize) -> bool {
        let arguments = i64::try_from(arguments).unwrap_or(i64::MAX);
        if self.arity < 0 { arguments >= -self.arity } else { arguments == self.arity }
    }

    fn keys<'a>(&self, command: &'a [Vec<u8>]) -> Vec<&'a Vec<u8>> {
        let (first, last, step) = self.keys;
        let last = if last < 0 { command.len() } else { usize::try_from(last).unwrap_or(0) + 1 };
        let (first, step) =
            (usize::try_from(first).unwrap_or(0), usize::try_from(step).unwrap_or(0));
        if first == 0 { Vec::new() } else { command[first..last].iter().step_by(step).collect() }
    }
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const SYNTAX: &str = "ERR syntax error";
const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

/// The text of a reply that is no error, or the error.
type Outcome = Result<(), String>;

impl Model {
    /// Connects a client, and returns its number.
    pub(super) fn connect(&mut self) -> u64 {
        self.next_client += 1;
        let client = Client {
            protocol: Protocol::Resp2,
            is_tracking: false,
            queued: None,
            is_aborted: false,
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
        for key in take(&mut self.keys).into_keys() {
            self.changes.push(Change { key, content: None, expires_at: None });
        }
        self.restart();
    }

    /// Drops all clients.
    pub(super) fn restart(&mut self) {
        self.clients.clear();
        self.readers.clear();
    }

    fn client(&mut self) -> &mut Client {
        self.clients.get_mut(&self.current).expect("a client runs a command")
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
        let checked = check(command);
        let is_queued = self.client().queued.is_some();
        let spec = match checked {
            Ok(spec) => spec,
            Err(error) => {
                self.client().is_aborted |= is_queued;
                return Err(error);
            }
        };
        if is_queued && !["exec", "discard", "multi"].contains(&spec.name) {
            self.client().queued.as_mut().expect("a transaction").push(command.to_vec());
            self.write(b"+QUEUED\r\n");
            return Ok(());
        }
        self.call(spec, command)
    }

    /// Runs a command, and remembers what it has read.
    fn call(&mut self, spec: &Spec, command: &[Vec<u8>]) -> Outcome {
        let outcome = self.dispatch(spec.name, command);
        if spec.is_read && self.client().is_tracking {
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
            "hget" | "hgetall" | "hlen" | "hset" | "hdel" => self.hash(name, command),
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

    fn hash(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let key = &command[1];
        let mut fields = match self.find(key).map(|entry| &entry.value) {
            None => BTreeMap::new(),
            Some(Value::Hash(fields)) => fields.clone(),
            Some(Value::Text(_)) => return Err(WRONG_TYPE.to_owned()),
        };
        match name {
            "hget" => self.optional(fields.remove(&command[2])),
            "hlen" => return self.integer(i64::try_from(fields.len()).unwrap_or(0)),
            "hgetall" => {
                self.head('%', fields.len());
                for (name, value) in fields {
                    self.bulk(&name);
                    self.bulk(&value);
                }
            }
            "hset" => {
                if !command.len().is_multiple_of(2) {
                    return Err(wrong_arity("hset"));
                }
                let pairs = command[2..].chunks(2);
                let added =
                    pairs.filter(|pair| fields.insert(pair[0].clone(), pair[1].clone()).is_none());
                let added = added.count();
                let expires_at = self.keys.get(key).and_then(|entry| entry.expires_at);
                self.store(key, Value::Hash(fields), expires_at);
                return self.integer(i64::try_from(added).unwrap_or(0));
            }
            _ => {
                let removed =
                    command[2..].iter().filter(|name| fields.remove(*name).is_some()).count();
                if removed > 0 && fields.is_empty() {
                    self.remove(key);
                } else if removed > 0 {
                    let expires_at = self.keys.get(key).and_then(|entry| entry.expires_at);
                    self.store(key, Value::Hash(fields), expires_at);
                }
                return self.integer(i64::try_from(removed).unwrap_or(0));
            }
        }
        Ok(())
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
        let entry = self.keys.get(key);
        let content = entry.map(|entry| match &entry.value {
            Value::Text(text) => text.clone(),
            Value::Hash(fields) => {
                let pairs: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| [&name[..], &value[..]].join(&b'='))
                    .collect();
                pairs.join(&b' ')
            }
        });
        let expires_at = entry.and_then(|entry| entry.expires_at);
        self.changes.push(Change { key: key.to_vec(), content, expires_at });
        self.invalidate(key);
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
        for key in take(&mut self.keys).into_keys() {
            self.changes.push(Change { key, content: None, expires_at: None });
        }
        self.readers.clear();
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            if client == self.current {
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
                    let spec = Spec::find(&command[0]).expect("a queued command is known");
                    if let Err(error) = self.call(spec, &command) {
                        self.write(format!("-{error}\r\n").as_bytes());
                    }
                }
                Ok(())
            }
        }
    }

    fn administer(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let words: Vec<_> =
            command.iter().map(|word| String::from_utf8_lossy(word).to_lowercase()).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        match (name, &words[1..]) {
            ("ping", []) => self.write(b"+PONG\r\n"),
            ("ping" | "echo", [_]) => self.bulk(&command[1]),
            ("hello", rest) => return self.hello(rest),
            ("auth", ["default", _])
            | ("select", ["0"])
            | ("client", ["setname" | "no-evict", _]) => return self.ok(),
            ("auth", [_, _]) => {
                return Err(
                    "WRONGPASS invalid username-password pair or user is disabled.".to_owned()
                );
            }
            ("client", ["id"]) => return self.integer(i64::try_from(self.current).unwrap_or(0)),
            ("client", ["tracking", state]) => return self.track(state),
            ("client", ["trackinginfo"]) => self.tracking_info(),
            ("client", [other, ..]) => {
                return Err(format!("ERR unknown subcommand '{other}'. Try CLIENT HELP."));
            }
            ("config", ["get", "tracking-table-max-keys"]) => {
                self.head('%', 1);
                self.bulk(b"tracking-table-max-keys");
                self.bulk(b"1000000");
            }
            ("acl", ["getuser", "default"]) => self.user(),
            ("command", ["info", names @ ..]) => self.command_info(names),
            ("info", sections) => self.info(sections),
            ("role", []) => self.write(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
            _ => return Err(format!("ERR the model does not know this form of '{name}'")),
        }
        Ok(())
    }

    fn hello(&mut self, rest: &[&str]) -> Outcome {
        match rest {
            [] => {}
            ["2", ..] => self.client().protocol = Protocol::Resp2,
            ["3", ..] => self.client().protocol = Protocol::Resp3,
            _ => return Err("NOPROTO unsupported protocol version".to_owned()),
        }
        let protocol = if self.client().protocol == Protocol::Resp3 { 3 } else { 2 };
        let id = self.current;
        self.head('%', 7);
        for (name, value) in [("server", "redis"), ("version", "7.0.15")] {
            self.bulk(name.as_bytes());
            self.bulk(value.as_bytes());
        }
        self.bulk(b"proto");
        self.integer(protocol)?;
        self.bulk(b"id");
        self.integer(i64::try_from(id).unwrap_or(0))?;
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            self.bulk(name.as_bytes());
            self.bulk(value.as_bytes());
        }
        self.bulk(b"modules");
        self.head('*', 0);
        Ok(())
    }

    fn track(&mut self, state: &str) -> Outcome {
        match state {
            "on" => self.client().is_tracking = true,
            "off" => self.client().is_tracking = false,
            _ => return Err(SYNTAX.to_owned()),
        }
        self.ok()
    }

    fn tracking_info(&mut self) {
        let is_on = self.client().is_tracking;
        self.head('%', 3);
        self.bulk(b"flags");
        self.head('~', 1);
        self.bulk(if is_on { b"on" } else { b"off" });
        self.bulk(b"redirect");
        self.write(if is_on { b":0\r\n" } else { b":-1\r\n" });
        self.bulk(b"prefixes");
        self.head('*', 0);
    }

    fn user(&mut self) {
        self.head('%', 6);
        self.bulk(b"flags");
        self.head('~', 2);
        self.bulk(b"on");
        self.bulk(b"nopass");
        self.bulk(b"passwords");
        self.head('*', 0);
        for (name, rules) in [("commands", "+@all"), ("keys", "~*"), ("channels", "&*")] {
            self.bulk(name.as_bytes());
            self.bulk(rules.as_bytes());
        }
        self.bulk(b"selectors");
        self.head('*', 0);
    }

    /// Writes what the proxy looks at: names, flags, the first key, tips and key specifications.
    fn command_info(&mut self, names: &[&str]) {
        self.head('*', names.len());
        for name in names {
            let Some(spec) = Spec::find(name.as_bytes()) else {
                self.null();
                continue;
            };
            self.head('*', 10);
            self.bulk(spec.name.as_bytes());
            _ = self.integer(spec.arity);
            let flag = if spec.is_read { "readonly" } else { "write" };
            self.head('~', 1);
            self.write(format!("+{flag}\r\n").as_bytes());
            let (first, last, step) = spec.keys;
            for number in [first, last, step] {
                _ = self.integer(number);
            }
            // The categories, tips, key specifications and subcommands.
            for kind in ['~', '*', '*', '*'] {
                self.head(kind, 0);
            }
        }
    }

    fn info(&mut self, sections: &[&str]) {
        let has = |name| sections.is_empty() || sections.contains(&name);
        let mut text = String::new();
        if has("server") {
            text += "# Server\r\nredis_version:7.0.15\r\nexecutable:/usr/bin/redis-server\r\n";
        }
        if has("keyspace") {
            let expiring = self.keys.values().filter(|entry| entry.expires_at.is_some()).count();
            text += if text.is_empty() { "# Keyspace\r\n" } else { "\r\n# Keyspace\r\n" };
            if !self.keys.is_empty() {
                let keys = self.keys.len();
                _ = write!(text, "db0:keys={keys},expires={expiring},avg_ttl=0\r\n");
            }
        }
        if self.client().protocol == Protocol::Resp3 {
            self.write(format!("={}\r\ntxt:{text}\r\n", text.len() + 4).as_bytes());
        } else {
            self.bulk(text.as_bytes());
        }
    }
}

/// Returns the facts of a command that Redis knows, with as many arguments as it demands.
fn check(command: &[Vec<u8>]) -> Result<&'static Spec, String> {
    let name = String::from_utf8_lossy(&command[0]).into_owned();
    let Some(spec) = Spec::find(&command[0]) else {
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
