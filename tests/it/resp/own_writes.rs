//! Who has written reads what was written, whatever the command was, and nobody goes back in time.
//!
//! Model: 64 connections write and read at once, pipelined and not, while others read every key over HTTP and RESP, so that
//! what is old is always at hand. Each connection has keys of its own, of which it knows what they hold; some keys are
//! everybody's, and hold numbers that only rise. Now and then one empties the database, with all others waiting until it
//! has, and after that everybody begins with a write.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::number;
use super::ways::Ways;
use super::wire::{Wire, bulk, command, show};
use crate::support::http::Client;

const CONNECTIONS: usize = 64;
const PAIRS: u64 = 100_000;
const PAIRS_UNTOLD: u64 = 10_000;
const OWN_KEYS: usize = 4;
const SHARED_KEYS: usize = 4;
/// So many pairs of one connection in one piece at most.
const DEPTH: usize = 8;
const FLUSHES: u64 = 40;
/// A number that rises over every flush: what is begun after one is larger than all before.
const RAISE: &str = "local found = tonumber(redis.call('GET', KEYS[1]) or ARGV[1]) \
                     redis.call('SET', KEYS[1], found + 1) return redis.call('GET', KEYS[1])";

const SET_AND_DELETE: &str =
    "redis.call('SET', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2]) return 1";
/// It does not say which key it writes.
const HIDDEN: &str = "redis.call('SET', 'own:' .. ARGV[1], ARGV[2]) return 1";

/// What all take part in.
struct Common {
    address: SocketAddr,
    promise: Promise,
    seed: u64,
    pairs: u64,
    done: AtomicU64,
    /// How often the database was emptied; held for writing meanwhile.
    flushes: RwLock<u64>,
    is_over: AtomicBool,
    stale: Mutex<Vec<String>>,
    reads_beside: AtomicUsize,
}

/// What is promised.
#[derive(Clone, Copy, PartialEq)]
enum Promise {
    /// Own writes, whatever the command, and that nobody goes back.
    All,
    /// Own writes by commands that say which keys they write.
    NamedWrites,
}

#[test]
fn a_connection_reads_what_it_has_written() {
    let stale = write_and_read(&Ways::start(), Promise::All, number("RESP_PAIRS").unwrap_or(PAIRS));
    assert_eq!(stale, 0);
}

#[test]
fn it_does_where_redis_tells_nobody_of_changes() {
    let ways = Ways::between(|server| server, "cache.ttl = \"1h\"\ncache.coherence = \"ttl\"");
    let stale =
        write_and_read(&ways, Promise::NamedWrites, number("RESP_PAIRS").unwrap_or(PAIRS_UNTOLD));
    assert_eq!(stale, 0);
}

/// Returns how many reads were stale; the first is on the screen.
fn write_and_read(ways: &Ways, promise: Promise, pairs: u64) -> usize {
    let common = Common {
        address: ways.through(),
        promise,
        seed: number("RESP_SEED").unwrap_or_else(|| rand::rng().random()),
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
        "{} pairs, {} reads beside them, {:?} reads over RESP from memory, seed {}",
        common.done.load(SeqCst),
        common.reads_beside.load(SeqCst),
        ways.answered_from_memory(),
        common.seed
    );
    if let Some(first) = stale.first() {
        eprintln!("RESP_SEED={}: {} stale, the first:\n{first}", common.seed, stale.len());
    }
    if let Some(from_memory) = ways.answered_from_memory() {
        assert!(from_memory > 1000.0, "only {from_memory} reads were answered from memory");
    }
    stale.len()
}

impl Common {
    /// How often the database was emptied by the time so many pairs are done.
    fn flushes_due(&self) -> u64 {
        1 + self.done.load(SeqCst) * FLUSHES / self.pairs.max(1)
    }

    fn found_stale(&self, text: String) {
        let mut stale = self.stale.lock().unwrap();
        stale.push(text);
        // Enough to see what is wrong.
        if stale.len() > 20 {
            self.done.store(self.pairs, SeqCst);
        }
    }
}

fn shared_key(number: usize) -> String {
    format!("shared:{number}")
}

/// One of the 64.
struct Writer<'a> {
    common: &'a Common,
    number: usize,
    random: StdRng,
    wire: Wire,
    /// What its own keys hold.
    own: HashMap<String, String>,
    /// The highest number seen in each shared key.
    seen: [u64; SHARED_KEYS],
    flushes: u64,
    turn: u64,
}

/// What is to come, in order, for a piece that is sent.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    said: Vec<String>,
    expected: Vec<Expected>,
}

enum Expected {
    Exactly(Vec<u8>),
    /// The number of a shared key.
    Risen(usize),
    Anything,
}

impl<'a> Writer<'a> {
    fn new(common: &'a Common, number: usize) -> Self {
        let random = StdRng::seed_from_u64(common.seed.wrapping_add(number as u64));
        let wire = Wire::connect(common.address);
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

    /// Writes and reads so many times.
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
                let said = piece.said.join("\n  ");
                self.common.found_stale(format!(
                    "connection {} said\n  {said}\nanswer {index} is to {:?}\nexpected {expected}\nfound    {}",
                    self.number,
                    piece.said[index],
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
        match self.random.random_range(0..16) {
            0..3 => {
                piece.add(&["SET", &key, &value], Expected::Exactly(b"+OK\r\n".to_vec()));
                self.own.insert(key, value);
            }
            3 => {
                piece.add(&["MSET", &key, &value, &other, &value], ok());
                self.own.extend([(key, value.clone()), (other, value)]);
            }
            4 => {
                piece.add(&["EVAL", SET_AND_DELETE, "2", &key, &other, &value], exactly(b":1\r\n"));
                self.own.insert(key, value);
                self.own.remove(&other);
            }
            5 if self.common.promise == Promise::All => {
                let name = key.trim_start_matches("own:");
                piece.add(&["EVAL", HIDDEN, "0", name, &value], exactly(b":1\r\n"));
                self.own.insert(key, value);
            }
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
                let deleted = format!(":{}\r\n", u8::from(old.is_some()));
                piece.add(&["DEL", &key], exactly(deleted.as_bytes()));
                self.own.remove(&key);
            }
            9 => {
                piece.add(&["PEXPIRE", &key, "-1"], Expected::Anything);
                self.own.remove(&key);
            }
            10 => {
                piece.add(&["SET", &key, "41"], ok());
                piece.add(&["INCR", &key], Expected::Exactly(b":42\r\n".to_vec()));
                self.own.insert(key, "42".to_owned());
            }
            11 => {
                piece.add(&["MULTI"], ok());
                piece.add(&["SET", &key, &value], Expected::Exactly(b"+QUEUED\r\n".to_vec()));
                piece.add(&["GET", &key], Expected::Exactly(b"+QUEUED\r\n".to_vec()));
                let replies = [b"*2\r\n+OK\r\n", &bulk(&value)[..]].concat();
                piece.add(&["EXEC"], Expected::Exactly(replies));
                self.own.insert(key, value);
            }
            12 => {
                piece.add(&["APPEND", &key, "+"], Expected::Anything);
                self.own.insert(key, old.unwrap_or_default() + "+");
            }
            13 => {
                piece.add(&["COPY", &key, &other, "REPLACE"], Expected::Anything);
                self.own.extend(old.map(|old| (other, old)));
            }
            _ => {
                let number = self.random.random_range(0..SHARED_KEYS);
                let (key, least) = (shared_key(number), self.flushes * 1_000_000_000);
                let command = ["EVAL", RAISE, "1", &key, &least.to_string()];
                piece.add(&command, Expected::Risen(number));
            }
        }
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
                // Nobody may have written it since the database was emptied.
                let is_there = self.seen[number] > self.flushes * 1_000_000_000;
                let expected = if is_there { Expected::Risen(number) } else { Expected::Anything };
                piece.add(&["GET", &shared_key(number)], expected);
            }
        }
    }

    /// Empties the database while nobody else writes or reads, and looks.
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
            // What is in memory now is to be gone, though Redis will tell nobody.
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
        // By themselves, so that memory may answer.
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
        self.said.push(words.join(" "));
        self.expected.push(expected);
    }
}

fn ok() -> Expected {
    Expected::Exactly(b"+OK\r\n".to_vec())
}

fn exactly(reply: &[u8]) -> Expected {
    Expected::Exactly(reply.to_vec())
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

/// Reads all, and sees that no number of a shared key goes back.
fn read_over_resp(common: &Common) {
    let mut wire = Wire::connect(common.address);
    let keys = all_keys();
    let mut seen = [0; SHARED_KEYS];
    while !common.is_over.load(SeqCst) {
        for key in &keys {
            wire.send(command(&["GET", key]));
        }
        let answers = wire.answers(keys.len());
        for (number, answer) in answers[keys.len() - SHARED_KEYS..].iter().enumerate() {
            // Where there is none, the database was emptied; what is begun then is larger.
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
