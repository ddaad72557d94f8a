//! Read-your-writes and monotonic reads.
//!
//! Promise: a connection reads its own writes, whatever the command, and no client sees a value go
//! back.
//!
//! Model: 64 connections write and read at once, pipelined and not, while others read every key
//! over HTTP and RESP, so that old values are always at hand. Each connection owns some keys and
//! knows their values; other keys are shared and hold rising numbers. Now and then one connection
//! empties the database while all others wait, and each of them then begins with a write.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::env::{number, seed};
use crate::support::http::Client;
use crate::support::resp_client::{RespClient, bulk, command, show};
use crate::support::resp_pair::RespPair;

const CONNECTIONS: usize = 64;
/// `RESP_PAIRS=40000` for a longer run.
const PAIRS: u64 = 20_000;
const PAIRS_TTL_MODE: u64 = 3_000;
const OWN_KEYS: usize = 4;
const SHARED_KEYS: usize = 4;
/// The largest number of pairs of a connection in one piece.
const DEPTH: usize = 8;
const FLUSHES: u64 = 40;
/// Returns a number that rises over every flush: the first number after one is larger than all
/// before.
const RAISE: &str = "local found = tonumber(redis.call('GET', KEYS[1]) or ARGV[1]) \
                     redis.call('SET', KEYS[1], found + 1) return redis.call('GET', KEYS[1])";

const SET_AND_DELETE: &str =
    "redis.call('SET', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2]) return 1";
/// Writes a key that is not among the named keys.
const HIDDEN: &str = "redis.call('SET', 'own:' .. ARGV[1], ARGV[2]) return 1";

/// The state that all connections share.
struct Common {
    address: SocketAddr,
    promise: Promise,
    seed: u64,
    pairs: u64,
    done: AtomicU64,
    /// The number of flushes; locked for writing during one.
    flushes: RwLock<u64>,
    is_over: AtomicBool,
    stale: Mutex<Vec<String>>,
    reads_beside: AtomicUsize,
}

/// The promise of a mode.
#[derive(Clone, Copy, PartialEq)]
enum Promise {
    /// Own writes, whatever the command, and monotonic reads.
    All,
    /// Own writes by commands that name the keys they write.
    NamedWrites,
}

#[test]
fn connection_reads_its_own_writes() {
    let stale =
        write_and_read(&RespPair::start(), Promise::All, number("RESP_PAIRS").unwrap_or(PAIRS));
    assert_eq!(stale, 0);
}

#[test]
fn connection_reads_its_own_writes_in_ttl_mode() {
    let ways = RespPair::between(|server| server, "cache.ttl = \"1h\"\ncache.coherence = \"ttl\"");
    let stale =
        write_and_read(&ways, Promise::NamedWrites, number("RESP_PAIRS").unwrap_or(PAIRS_TTL_MODE));
    assert_eq!(stale, 0);
}

/// Returns the number of stale reads and prints the first.
fn write_and_read(ways: &RespPair, promise: Promise, pairs: u64) -> usize {
    let common = Common {
        address: ways.through(),
        promise,
        seed: seed(),
        pairs,
        done: AtomicU64::new(0),
        flushes: RwLock::new(1),
        is_over: AtomicBool::new(false),
        stale: Mutex::default(),
        reads_beside: AtomicUsize::new(0),
    };
    thread::scope(|scope| {
        let common = &common;
        let write = |number| scope.spawn(move || Writer::new(common, number).run());
        let writers: Vec<_> = (0..CONNECTIONS).map(write).collect();
        if let Some(proxy) = ways.proxy() {
            let http = proxy.http();
            scope.spawn(move || read_over_http(common, http));
        }
        scope.spawn(|| read_over_resp(common));
        for writer in writers {
            writer.join().unwrap();
        }
        common.is_over.store(true, SeqCst);
    });
    let stale = common.stale.into_inner().unwrap();
    eprintln!(
        "{} pairs, {} reads beside them, {:?} reads over RESP from memory",
        common.done.load(SeqCst),
        common.reads_beside.load(SeqCst),
        ways.answered_from_memory()
    );
    if let Some(first) = stale.first() {
        eprintln!("{} stale reads, the first:\n{first}", stale.len());
    }
    if let Some(from_memory) = ways.answered_from_memory() {
        assert!(from_memory > 1000.0, "only {from_memory} reads were answered from memory");
    }
    stale.len()
}

impl Common {
    /// Returns the number of flushes due by the current number of pairs.
    fn flushes_due(&self) -> u64 {
        1 + self.done.load(SeqCst) * FLUSHES / self.pairs.max(1)
    }

    fn found_stale(&self, text: String) {
        let mut stale = self.stale.lock().unwrap();
        stale.push(text);
        // Enough to see the cause.
        if stale.len() > 20 {
            self.done.store(self.pairs, SeqCst);
        }
    }
}

fn shared_key(number: usize) -> String {
    format!("shared:{number}")
}

/// One of the 64 connections.
struct Writer<'a> {
    common: &'a Common,
    number: usize,
    random: StdRng,
    wire: RespClient,
    /// The values of its own keys.
    own: HashMap<String, String>,
    /// The highest number seen in each shared key.
    seen: [u64; SHARED_KEYS],
    flushes: u64,
    turn: u64,
}

/// The expected replies of a piece, in order.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    received: Vec<String>,
    expected: Vec<Expected>,
}

/// A write to an own key.
struct Change {
    key: String,
    other: String,
    value: String,
    old: Option<String>,
}

enum Expected {
    Exactly(Vec<u8>),
    /// The index of a shared key.
    Risen(usize),
    Anything,
}

impl<'a> Writer<'a> {
    fn new(common: &'a Common, number: usize) -> Self {
        let random = StdRng::seed_from_u64(common.seed.wrapping_add(number as u64));
        let wire = RespClient::connect(common.address);
        Self {
            common,
            number,
            random,
            wire,
            own: HashMap::new(),
            seen: [0; SHARED_KEYS],
            flushes: 1,
            turn: 0,
        }
    }

    fn run(mut self) {
        while self.common.done.load(SeqCst) < self.common.pairs {
            if *self.common.flushes.read().unwrap() < self.common.flushes_due() {
                self.empty();
            }
            let depth =
                if self.random.random_bool(0.5) { 1 } else { self.random.random_range(1..=DEPTH) };
            let flushes = self.common.flushes.read().unwrap();
            if *flushes != self.flushes {
                self.flushes = *flushes;
                self.own.clear();
            }
            self.turn(depth);
            drop(flushes);
            self.common.done.fetch_add(depth as u64, SeqCst);
        }
    }

    /// Writes and reads this many times.
    fn turn(&mut self, depth: usize) {
        let mut piece = Piece::default();
        let is_pipelined = self.random.random_bool(0.5);
        for _ in 0..depth {
            self.write(&mut piece);
            if !is_pipelined {
                self.say(&std::mem::take(&mut piece));
            }
            self.read(&mut piece);
            if !is_pipelined {
                // Once more, from memory.
                self.read(&mut piece);
                self.say(&std::mem::take(&mut piece));
            }
        }
        self.say(&piece);
    }

    fn say(&mut self, piece: &Piece) {
        self.wire.send(&piece.bytes);
        for (index, expected) in piece.expected.iter().enumerate() {
            let found = self.wire.answer();
            let wrong = match expected {
                Expected::Anything => None,
                Expected::Exactly(expected) => (found != *expected).then(|| show(expected)),
                Expected::Risen(number) => {
                    let value = bulk_number(&found).unwrap_or(0);
                    let least = std::mem::replace(&mut self.seen[*number], value);
                    let is_old = value < least && self.common.promise == Promise::All;
                    is_old.then(|| format!("at least {least}"))
                }
            };
            if let Some(expected) = wrong {
                let received = piece.received.join("\n  ");
                self.common.found_stale(format!(
                    "connection {} received\n  {received}\nanswer {index} is to {:?}\nexpected {expected}\n\
                        found    {}",
                    self.number,
                    piece.received[index],
                    show(&found)
                ));
            }
        }
    }

    fn own_keys(&self) -> impl Iterator<Item = String> + use<> {
        let number = self.number;
        (0..OWN_KEYS).map(move |key| format!("own:{number}:{key}"))
    }

    fn own_key(&mut self) -> String {
        format!("own:{}:{}", self.number, self.random.random_range(0..OWN_KEYS))
    }

    fn value(&mut self) -> String {
        self.turn += 1;
        format!("{}-{}", self.number, self.turn)
    }

    fn write(&mut self, piece: &mut Piece) {
        let (key, other, value) = (self.own_key(), self.own_key(), self.value());
        let old = self.own.get(&key).cloned();
        let change = Change { key, other, value, old };
        match self.random.random_range(0..16) {
            // The keys of a script are unknown to the proxy, unless they are named.
            5 if self.common.promise == Promise::NamedWrites => self.raise(piece),
            choice @ 0..6 => self.write_value(choice, change, piece),
            choice @ 6..14 => self.write_by_old_value(choice, change, piece),
            _ => self.raise(piece),
        }
    }

    /// Writes a value that does not depend on the previous one.
    fn write_value(&mut self, choice: u32, change: Change, piece: &mut Piece) {
        let Change { key, other, value, .. } = change;
        let integer = |number: u8| Expected::Exactly(format!(":{number}\r\n").into_bytes());
        match choice {
            0..3 => {
                piece.add(&["SET", &key, &value], ok());
                self.own.insert(key, value);
            }
            3 => {
                piece.add(&["MSET", &key, &value, &other, &value], ok());
                self.own.insert(key, value.clone());
                self.own.insert(other, value);
            }
            4 => {
                piece.add(&["EVAL", SET_AND_DELETE, "2", &key, &other, &value], integer(1));
                self.own.insert(key, value);
                self.own.remove(&other);
            }
            _ => {
                let name = key.trim_start_matches("own:");
                piece.add(&["EVAL", HIDDEN, "0", name, &value], integer(1));
                self.own.insert(key, value);
            }
        }
    }

    /// Writes by a command with a reply or an effect that depends on the previous value.
    fn write_by_old_value(&mut self, choice: u32, change: Change, piece: &mut Piece) {
        let Change { key, other, value, old } = change;
        let exactly = |text: String| Expected::Exactly(text.into_bytes());
        match choice {
            6 => {
                let expected = if old.is_some() { ok() } else { Expected::Anything };
                piece.add(&["RENAME", &key, &other], expected);
                if let Some(old) = old {
                    self.own.remove(&key);
                    self.own.insert(other, old);
                }
            }
            7 => {
                piece.add(&["GETSET", &key, &value], Expected::Exactly(held(old.as_ref())));
                self.own.insert(key, value);
            }
            8 => {
                let deleted = u8::from(old.is_some());
                piece.add(&["DEL", &key], exactly(format!(":{deleted}\r\n")));
                self.own.remove(&key);
            }
            9 => {
                piece.add(&["PEXPIRE", &key, "-1"], Expected::Anything);
                self.own.remove(&key);
            }
            10 => {
                piece.add(&["SET", &key, "41"], ok());
                piece.add(&["INCR", &key], exactly(":42\r\n".to_owned()));
                self.own.insert(key, "42".to_owned());
            }
            11 => {
                let queued = || Expected::Exactly(b"+QUEUED\r\n".to_vec());
                let both = [b"*2\r\n+OK\r\n", &bulk(&value)[..]].concat();
                piece.add(&["MULTI"], ok());
                piece.add(&["SET", &key, &value], queued());
                piece.add(&["GET", &key], queued());
                piece.add(&["EXEC"], Expected::Exactly(both));
                self.own.insert(key, value);
            }
            12 => {
                piece.add(&["APPEND", &key, "+"], Expected::Anything);
                self.own.insert(key, old.unwrap_or_default() + "+");
            }
            _ => {
                piece.add(&["COPY", &key, &other, "REPLACE"], Expected::Anything);
                self.own.extend(old.map(|old| (other, old)));
            }
        }
    }

    /// Raises the number of a shared key.
    fn raise(&mut self, piece: &mut Piece) {
        let number = self.random.random_range(0..SHARED_KEYS);
        let least = (self.flushes * 1_000_000_000).to_string();
        piece.add(&["EVAL", RAISE, "1", &shared_key(number), &least], Expected::Risen(number));
    }

    fn read(&mut self, piece: &mut Piece) {
        let (key, other) = (self.own_key(), self.own_key());
        let (value, second) = (self.own.get(&key).cloned(), self.own.get(&other).cloned());
        let length = value.as_ref().map_or(0, String::len);
        let number = |number: usize| Expected::Exactly(format!(":{number}\r\n").into_bytes());
        match self.random.random_range(0..10) {
            0..4 => piece.add(&["GET", &key], Expected::Exactly(held(value.as_ref()))),
            4..6 => {
                let expected =
                    [b"*2\r\n".to_vec(), held(value.as_ref()), held(second.as_ref())].concat();
                piece.add(&["MGET", &key, &other], Expected::Exactly(expected));
            }
            6 => piece.add(&["EXISTS", &key], number(usize::from(value.is_some()))),
            7 => piece.add(&["STRLEN", &key], number(length)),
            8 => {
                let part = value.unwrap_or_default();
                piece.add(
                    &["GETRANGE", &key, "1", "-1"],
                    Expected::Exactly(bulk(part.get(1..).unwrap_or_default())),
                );
            }
            _ => {
                let number = self.random.random_range(0..SHARED_KEYS);
                // The key may be absent since the last flush.
                let is_there = self.seen[number] > self.flushes * 1_000_000_000;
                let expected = if is_there { Expected::Risen(number) } else { Expected::Anything };
                piece.add(&["GET", &shared_key(number)], expected);
            }
        }
    }

    /// Empties the database while no other connection is active, and reads.
    fn empty(&mut self) {
        let mut flushes = self.common.flushes.write().unwrap();
        if *flushes >= self.common.flushes_due() {
            return;
        }
        *flushes += 1;
        let mut piece = Piece::default();
        if self.random.random_bool(0.5) {
            piece.add(&["FLUSHDB"], ok());
        } else {
            for words in [&["SELECT", "1"][..], &["FLUSHDB"], &["SELECT", "0"]] {
                piece.add(words, ok());
            }
            self.say(&std::mem::take(&mut piece));
            // Values in memory have to go, although Redis pushes no invalidation.
            for key in self.own_keys().chain((0..SHARED_KEYS).map(shared_key)) {
                piece.add(&["GET", &key], Expected::Anything);
            }
            self.say(&std::mem::take(&mut piece));
            piece.add(&["SWAPDB", "0", "1"], ok());
        }
        for key in self.own_keys() {
            piece.add(&["GET", &key], Expected::Exactly(held(None)));
        }
        self.say(&piece);
        // In a piece of their own, so that memory may answer.
        let mut piece = Piece::default();
        for number in 0..SHARED_KEYS {
            piece.add(&["GET", &shared_key(number)], Expected::Exactly(held(None)));
        }
        self.say(&piece);
    }
}

impl Piece {
    fn add(&mut self, words: &[&str], expected: Expected) {
        self.bytes.extend(command(words));
        self.received.push(words.join(" "));
        self.expected.push(expected);
    }
}

fn ok() -> Expected {
    Expected::Exactly(b"+OK\r\n".to_vec())
}

fn held(value: Option<&String>) -> Vec<u8> {
    value.map_or(b"$-1\r\n".to_vec(), bulk)
}

fn bulk_number(answer: &[u8]) -> Option<u64> {
    let text = str::from_utf8(answer).ok()?;
    text.strip_prefix('$')?.split("\r\n").nth(1)?.parse().ok()
}

fn all_keys() -> Vec<String> {
    let own = (0..CONNECTIONS)
        .flat_map(|connection| (0..OWN_KEYS).map(move |key| format!("own:{connection}:{key}")));
    own.chain((0..SHARED_KEYS).map(shared_key)).collect()
}

fn read_over_http(common: &Common, address: SocketAddr) {
    let mut client = Client::connect(address);
    let paths: Vec<_> = all_keys().iter().map(|key| format!("/keys/{key}")).collect();
    while !common.is_over.load(SeqCst) {
        for path in &paths {
            client.get(path);
        }
        common.reads_beside.fetch_add(paths.len(), SeqCst);
    }
}

/// Reads all keys and checks that the number of a shared key never falls.
fn read_over_resp(common: &Common) {
    let mut wire = RespClient::connect(common.address);
    let keys = all_keys();
    let mut seen = [0; SHARED_KEYS];
    while !common.is_over.load(SeqCst) {
        for key in &keys {
            wire.send(command(&["GET", key]));
        }
        let answers = wire.answers(keys.len());
        for (number, answer) in answers[keys.len() - SHARED_KEYS..].iter().enumerate() {
            // An absent number means a flush; later numbers are larger.
            let Some(value) = bulk_number(answer) else { continue };
            if value < seen[number] && common.promise == Promise::All {
                let key = shared_key(number);
                common.found_stale(format!("a reader of {key} saw {value} after {}", seen[number]));
            }
            seen[number] = value;
        }
        common.reads_beside.fetch_add(keys.len(), SeqCst);
    }
}
