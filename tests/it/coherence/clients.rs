//! Those who read and write as clients of Redis, through the proxy, and have each of their reads judged.
//!
//! Model: a client has one connection, and most of what it asks is what readers over HTTP ask, judged by the same oracle.
//! Besides it writes keys of its own and reads them back on the same connection, where only what it has just written will do.
//! A connection that Redis is lost to may end, and what a connection has seen binds it and no other.
//!
//! The rule: an error, or a connection that ends, is due to a fault. A value that stands in is not marked as such in this
//! protocol, so one that is too old counts as one where it may be, and must have been written all the same.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::history::{Moment, millis};
use super::oracle::{Answer, Demand, Read, STALE};
use super::readers::{second_look, tell, verdict};
use super::report::Tally;
use super::world::{KEYS, Pace, World, skewed};
use crate::resp::wire::{Wire, command, show};

pub(super) const CLIENTS: usize = 3;
const GAP: Duration = Duration::from_millis(3);
/// Of its own.
const OWN_KEYS: usize = 5;
const OUTCOME: &str = "by a Redis client";

/// Reads and writes until the soak ends.
pub(super) fn talk(world: &World, address: SocketAddr, number: usize) -> Tally {
    let thread = format!("client {number}");
    let random = world.random(&thread);
    let mut client = Client {
        world,
        thread,
        random,
        address,
        wire: Wire::connect(address),
        heard: world.clock.now(),
        seen: vec![0; KEYS],
        connections: 0,
        written: 0,
        tally: Tally::default(),
    };
    let mut pace = Pace::every(GAP);
    while world.is_read() {
        pace.wait();
        match client.random.random_range(0..10) {
            0..2 if world.is_written() => client.write_and_read(),
            2..4 => client.read(2),
            _ => client.read(1),
        }
    }
    client.tally
}

struct Client<'a> {
    world: &'a World,
    thread: String,
    random: StdRng,
    address: SocketAddr,
    wire: Wire,
    /// When the connection was last known to be well.
    heard: Moment,
    /// The latest version of each key that this connection saw.
    seen: Vec<u64>,
    /// How many connections it had before.
    connections: u64,
    /// How many values of its own it wrote.
    written: u64,
    tally: Tally,
}

/// What a client was told.
enum Told {
    Values(Vec<Answer>),
    Refusal(String),
    End,
}

impl Client<'_> {
    fn read(&mut self, count: usize) {
        let keys: Vec<_> = (0..count).map(|_| skewed(&mut self.random, KEYS)).collect();
        let names = keys.iter().map(|key| format!("{{soak}}key/{key}"));
        let words: Vec<_> =
            [if count == 1 { "GET" } else { "MGET" }.to_owned()].into_iter().chain(names).collect();
        let began = self.world.clock.now();
        self.wire.send(command(&words));
        let told = self.told();
        let ended = self.world.clock.now();
        self.tally.client_reads += 1;
        self.tally.suffered(self.world, "resp", (began, ended), matches!(told, Told::Values(_)));
        match told {
            Told::Values(answers) => {
                self.heard = ended;
                let read =
                    |answer| Read { began, ended, answer, outcome: OUTCOME, demand: Demand::Usual };
                keys.iter().zip(answers).for_each(|(key, answer)| self.judge(*key, read(answer)));
            }
            Told::Refusal(error) => self.refused(began, &error),
            Told::End => self.ended(),
        }
    }

    fn judge(&mut self, key: usize, mut read: Read) {
        let mut judged = verdict(self.world, key, &read, self.seen[key]);
        if judged.is_err() && self.world.weather.may_be_stale(read.began, read.ended) {
            read.outcome = STALE;
            judged = verdict(self.world, key, &read, self.seen[key]);
        }
        match judged {
            Ok(verdict) => {
                self.seen[key] = verdict.version;
                self.tally.count(self.world, &verdict, read.began);
            }
            Err(breach) => {
                self.world.violation(tell(self.world, &self.thread, key, &read, &breach));
            }
        }
    }

    /// Nobody else writes the key, and nobody empties the database meanwhile, so there is but one right answer.
    fn write_and_read(&mut self) {
        let _with_others = self.world.all.read().unwrap();
        self.written += 1;
        // What the connection before this one sent may still be done.
        let (thread, connection) = (self.thread.replace(' ', "-"), self.connections);
        let key = format!("own/{thread}/{connection}/{}", self.random.random_range(0..OWN_KEYS));
        let value = format!("{key}#{}", self.written);
        let (set, get) = (command(&["SET", &key, &value]), command(&["GET", &key]));
        let began = self.world.clock.now();
        let told = if self.random.random_bool(0.5) {
            self.wire.send([set, get].concat());
            let set = self.told_of_write();
            (set, self.told())
        } else {
            self.wire.send(set);
            let set = self.told_of_write();
            self.wire.send(get);
            (set, self.told())
        };
        let ended = self.world.clock.now();
        self.tally.own_writes += 1;
        self.tally.suffered(
            self.world,
            "resp",
            (began, ended),
            matches!(told, (Ok(()), Told::Values(_))),
        );
        match told {
            (_, Told::End) => self.ended(),
            (Err(error), _) | (_, Told::Refusal(error)) => self.refused(began, &error),
            (Ok(()), Told::Values(answers)) => {
                self.heard = ended;
                if !matches!(&answers[..], [Answer::Value(found)] if *found == value.as_bytes()) {
                    let found = match &answers[0] {
                        Answer::Value(found) => String::from_utf8_lossy(found).into_owned(),
                        Answer::Absent => "nothing".to_owned(),
                    };
                    let (when, around) = (millis(began), self.world.weather.tell(began, ended));
                    let text = format!(
                        "{}: wrote {value} at {when} and read {found}, in force: {around}",
                        self.thread
                    );
                    self.world.violation(text);
                }
            }
        }
    }

    /// Whether a write was done.
    fn told_of_write(&mut self) -> Result<(), String> {
        match self.wire.try_answer() {
            Ok(answer) if answer == b"+OK\r\n" => Ok(()),
            Ok(answer) => Err(show(&answer)),
            Err(_) => Err("the end".to_owned()),
        }
    }

    fn told(&mut self) -> Told {
        match self.wire.try_answer() {
            Ok(answer) if answer[0] == b'-' => Told::Refusal(show(&answer)),
            Ok(answer) => Told::Values(values(&answer)),
            Err(error) => {
                let is_timeout = error.kind() != std::io::ErrorKind::UnexpectedEof;
                assert!(!is_timeout, "{}: no answer and no end: {error}", self.thread);
                Told::End
            }
        }
    }

    fn refused(&mut self, began: Moment, error: &str) {
        self.tally.client_refusals += 1;
        let ended = self.world.clock.now();
        let is_peace = || self.world.weather.is_peace(began, ended);
        if is_peace() && second_look(is_peace) {
            let when = millis(began);
            self.world.violation(format!(
                "{}: refused at {when} with no fault in force: {error}",
                self.thread
            ));
        }
        // After one of several answers was an error, there is no telling what the others belong to.
        self.connect();
    }

    fn ended(&mut self) {
        self.tally.client_ends += 1;
        let (since, now) = (self.heard, self.world.clock.now());
        let is_peace = || self.world.weather.is_peace(since, now);
        if is_peace() && second_look(is_peace) {
            let when = millis(now);
            self.world.violation(format!(
                "{}: the connection ended before {when}, with no fault in force",
                self.thread
            ));
        }
        self.connect();
    }

    fn connect(&mut self) {
        self.wire = Wire::connect(self.address);
        self.connections += 1;
        self.heard = self.world.clock.now();
        self.seen = vec![0; KEYS];
    }
}

/// The values in an answer to `GET` or `MGET`.
fn values(answer: &[u8]) -> Vec<Answer> {
    let (line, rest) = split_line(answer);
    if line.first() != Some(&b'*') {
        return vec![value(answer).0];
    }
    let (mut rest, mut values) = (rest, Vec::new());
    while !rest.is_empty() {
        let (one, length) = value(rest);
        values.push(one);
        rest = &rest[length..];
    }
    values
}

/// The value at the front, and how long it is on the wire.
fn value(bytes: &[u8]) -> (Answer, usize) {
    let (line, rest) = split_line(bytes);
    let length: i64 = String::from_utf8_lossy(&line[1..]).parse().expect("the length of a value");
    match usize::try_from(length) {
        Ok(length) => (Answer::Value(rest[..length].to_vec()), line.len() + 2 + length + 2),
        Err(_) => (Answer::Absent, line.len() + 2),
    }
}

fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\r\n").expect("the end of a line");
    (&bytes[..end], &bytes[end + 2..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_their_answers() {
        let text = |answer: &[u8]| {
            let show = |value| match value {
                Answer::Value(value) => String::from_utf8(value).unwrap(),
                Answer::Absent => "-".to_owned(),
            };
            values(answer).into_iter().map(show).collect::<Vec<_>>()
        };
        assert_eq!(text(b"$5\r\na\r\nbc\r\n"), ["a\r\nbc"]);
        assert_eq!(text(b"$-1\r\n"), ["-"]);
        assert_eq!(text(b"*3\r\n$1\r\na\r\n$-1\r\n$0\r\n\r\n"), ["a", "-", ""]);
    }
}
