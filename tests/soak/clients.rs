//! RESP clients that read and write through the proxy; each read is checked.
//!
//! Model: a client has one connection. Most of its reads are those of the HTTP readers and are
//! judged by the same oracle. It also writes keys of its own and reads them back on the same
//! connection, where only the last write is valid: strings, and hashes that another connection
//! reads at the same time. It reads [`collections`](super::collections) too. A connection may end
//! when Redis is lost. The versions that a connection saw bind that connection only. After a
//! failover the own keys of an ended connection are read straight from the next primary. So the
//! record shows which of its writes were lost.
//!
//! The rule: an error or a closed connection needs a fault. RESP does not mark stale values, so a
//! value that is too old counts as stale where that is allowed; it must have been written in any
//! case.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use redis::cmd;

use super::collections::CollectionRead;
use super::history::{Moment, millis};
use super::oracle::{Answer, Demand, Read, STALE};
use super::readers::{second_look, tell, verdict};
use super::record::{How, Seen};
use super::report::Tally;
use super::simulation::{DirectConnection, HISTORIES, KEYS, Pace, Simulation, name, skewed};
use crate::support::resp_client::{RespClient, command, show};

pub(super) const CLIENTS: usize = 3;
const GAP: Duration = Duration::from_millis(3);
/// The keys that each client has for itself.
const OWN_KEYS: usize = 5;
const OUTCOME: &str = "by a Redis client";

/// Reads and writes until the soak ends.
pub(super) fn talk(simulation: &Simulation, address: SocketAddr, number: usize) -> Tally {
    let thread = format!("client {number}");
    let random = simulation.random(&thread);
    let mut client = Client {
        simulation,
        thread,
        random,
        address,
        wire: RespClient::connect(address),
        rival: RespClient::connect(address),
        heard: simulation.clock.now(),
        seen: vec![0; HISTORIES],
        connections: 0,
        rivals: 0,
        written: 0,
        own: BTreeSet::new(),
        left: BTreeSet::new(),
        door: DirectConnection::to(simulation, 0),
        tally: Tally::default(),
    };
    let mut pace = Pace::every(GAP);
    while simulation.is_read() {
        pace.wait();
        client.read_left();
        match client.random.random_range(0..20) {
            0..3 if simulation.is_written() => client.write_and_read(Own::String),
            3..5 if simulation.is_written() => client.write_and_read(Own::Hash),
            5..8 => client.read(2),
            8..14 => client.read_collections(),
            _ => client.read(1),
        }
    }
    client.tally
}

struct Client<'a> {
    simulation: &'a Simulation,
    thread: String,
    random: StdRng,
    address: SocketAddr,
    wire: RespClient,
    /// Another connection, which reads what this client writes.
    rival: RespClient,
    /// The last moment in which the connection worked.
    heard: Moment,
    /// The latest version of each key that this connection saw.
    seen: Vec<u64>,
    /// The number of earlier connections.
    connections: u64,
    /// The number of earlier connections of the rival.
    rivals: u64,
    /// The number of values written to own keys.
    written: u64,
    /// The own keys that this connection has written.
    own: BTreeSet<(Own, String)>,
    /// Those that earlier connections have left behind a failover.
    left: BTreeSet<(Own, String)>,
    door: DirectConnection<'a>,
    tally: Tally,
}

/// The type of an own key.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Own {
    String,
    Hash,
}

impl Own {
    fn set(self, key: &str, value: &str) -> Vec<u8> {
        match self {
            Self::String => command(&["SET", key, value]),
            Self::Hash => command(&["HSET", key, "field", value]),
        }
    }

    fn get(self, key: &str) -> Vec<&str> {
        match self {
            Self::String => vec!["GET", key],
            Self::Hash => vec!["HGET", key, "field"],
        }
    }
}

/// The reply that a client received.
enum ReadReply {
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
        let began = self.simulation.clock.now();
        self.wire.send(command(&words));
        let received = self.read_reply();
        let ended = self.simulation.clock.now();
        self.tally.client_reads += 1;
        self.tally.suffered(
            self.simulation,
            "resp",
            (began, ended),
            matches!(received, ReadReply::Values(_)),
        );
        match received {
            ReadReply::Values(answers) => {
                self.heard = ended;
                let read =
                    |answer| Read { began, ended, answer, outcome: OUTCOME, demand: Demand::Usual };
                keys.iter().zip(answers).for_each(|(key, answer)| self.judge(*key, read(answer)));
            }
            ReadReply::Refusal(error) => self.refused(began, &error),
            ReadReply::End => self.ended(),
        }
    }

    fn read_collections(&mut self) {
        let read = CollectionRead::choose(&mut self.random);
        let began = self.simulation.clock.now();
        self.wire.send(command(&read.words));
        let reply = self.wire.try_answer();
        let ended = self.simulation.clock.now();
        self.tally.client_reads += 1;
        let is_answered = reply.as_ref().is_ok_and(|reply| reply[0] != b'-');
        self.tally.suffered(self.simulation, "resp", (began, ended), is_answered);
        match reply {
            Ok(reply) if is_answered => {
                self.heard = ended;
                let reply = redis::parse_redis_value(&reply).expect("a reply");
                for (history, answer) in read.answers(&reply) {
                    let read =
                        Read { began, ended, answer, outcome: OUTCOME, demand: Demand::Usual };
                    self.judge(history, read);
                }
            }
            Ok(error) => self.refused(began, &show(&error)),
            Err(_) => self.ended(),
        }
    }

    /// Returns the name of the session: a connection of this client.
    fn session(&self) -> String {
        format!("{}/{}", self.thread, self.connections)
    }

    fn record(&self, client: &str, key: &str, answer: &Answer, (began, ended): (Moment, Moment)) {
        let (how, stale) = (How::Cached, None);
        self.simulation.record.read(&Seen { client, key, answer, how, stale, began, ended });
    }

    fn judge(&mut self, key: usize, mut read: Read) {
        self.record(&self.session(), &name(key), &read.answer, (read.began, read.ended));
        let mut judged = verdict(self.simulation, key, &read, self.seen[key]);
        if judged.is_err() && self.simulation.conditions.may_be_stale(read.began, read.ended) {
            read.outcome = STALE;
            judged = verdict(self.simulation, key, &read, self.seen[key]);
        }
        match judged {
            Ok(verdict) => {
                self.seen[key] = verdict.version;
                self.tally.count(self.simulation, &verdict, read.began);
            }
            Err(breach) => {
                self.simulation.violation(tell(self.simulation, &self.thread, key, &read, &breach));
            }
        }
    }

    /// Writes an own key and reads it back. No other client writes it, and no flush happens
    /// meanwhile, so exactly one reply is right.
    fn write_and_read(&mut self, own: Own) {
        let _with_others = self.simulation.all.read().unwrap();
        self.written += 1;
        // The commands of the previous connection may still run.
        let (thread, connection) = (self.thread.replace(' ', "-"), self.connections);
        let number = self.random.random_range(0..OWN_KEYS);
        let kind = if own == Own::Hash { "hash/" } else { "" };
        let key = format!("own/{kind}{thread}/{connection}/{number}");
        let value = format!("{key}#{}", self.written);
        let (set, get) = (own.set(&key, &value), command(&own.get(&key)));
        self.own.insert((own, key.clone()));
        let began = self.simulation.clock.now();
        if own == Own::Hash {
            self.rival.send(&get);
        }
        let is_pipelined = self.random.random_bool(0.5);
        self.wire.send(if is_pipelined { [set, get.clone()].concat() } else { set });
        let written = self.read_write_reply();
        let done = written.is_ok().then(|| self.simulation.clock.now());
        self.simulation.record.own_write(&self.session(), (&key, &value), began, done);
        // Later than the acknowledgement. At the same moment it would count as concurrent.
        let call = if is_pipelined { began } else { self.simulation.clock.now() };
        if !is_pipelined {
            self.wire.send(get);
        }
        let received = (written, self.read_reply());
        let ended = self.simulation.clock.now();
        if let (Ok(()), ReadReply::Values(answers)) = &received {
            self.record(&self.session(), &key, &answers[0], (call, ended));
        }
        if own == Own::Hash {
            self.read_as_rival(&key, began);
        }
        self.tally.own_writes += 1;
        self.tally.suffered(
            self.simulation,
            "resp",
            (began, ended),
            matches!(received, (Ok(()), ReadReply::Values(_))),
        );
        match received {
            (_, ReadReply::End) => self.ended(),
            (Err(error), _) | (_, ReadReply::Refusal(error)) => self.refused(began, &error),
            (Ok(()), ReadReply::Values(answers)) => {
                self.heard = ended;
                if !matches!(&answers[..], [Answer::Value(found)] if *found == value.as_bytes()) {
                    let found = match &answers[0] {
                        Answer::Value(found) => String::from_utf8_lossy(found).into_owned(),
                        Answer::Absent => "nothing".to_owned(),
                    };
                    let (when, around) =
                        (millis(began), self.simulation.conditions.tell(began, ended));
                    let text = format!(
                        "{}: wrote {value} at {when} and read {found}, in force: {around}",
                        self.thread
                    );
                    self.simulation.violation(text);
                }
            }
        }
    }

    /// Reads the own keys of ended connections straight from the primary, and records that.
    fn read_left(&mut self) {
        if self.left.is_empty() {
            return;
        }
        // Redis moves only while this lock is free.
        let _with_others = self.simulation.all.read().unwrap();
        for (own, key) in std::mem::take(&mut self.left) {
            let Some(connection) = self.door.open() else { return };
            let (words, began) = (own.get(&key), self.simulation.clock.now());
            match cmd(words[0]).arg(&words[1..]).query::<Option<Vec<u8>>>(connection) {
                Ok(value) => self.simulation.record.read(&Seen {
                    client: &format!("{} straight", self.thread),
                    key: &key,
                    answer: &value.map_or(Answer::Absent, Answer::Value),
                    how: How::Direct,
                    stale: None,
                    began,
                    ended: self.simulation.clock.now(),
                }),
                Err(error) => self.door.close(&error),
            }
        }
    }

    /// Records the reply to the rival, which sent its read at this moment.
    fn read_as_rival(&mut self, key: &str, began: Moment) {
        match self.rival.try_answer() {
            Ok(reply) if reply[0] != b'-' => {
                let rival = format!("rival of {}/{}", self.thread, self.rivals);
                let ended = self.simulation.clock.now();
                self.record(&rival, key, &values(&reply)[0], (began, ended));
            }
            Ok(_) => {}
            Err(_) => {
                self.rival = RespClient::connect(self.address);
                self.rivals += 1;
            }
        }
    }

    /// Returns whether a write was done.
    fn read_write_reply(&mut self) -> Result<(), String> {
        match self.wire.try_answer() {
            // SET, and HSET of an old or a new field.
            Ok(answer) if [&b"+OK\r\n"[..], b":0\r\n", b":1\r\n"].contains(&&answer[..]) => Ok(()),
            Ok(answer) => Err(show(&answer)),
            Err(_) => Err("the end".to_owned()),
        }
    }

    fn read_reply(&mut self) -> ReadReply {
        match self.wire.try_answer() {
            Ok(answer) if answer[0] == b'-' => ReadReply::Refusal(show(&answer)),
            Ok(answer) => ReadReply::Values(values(&answer)),
            Err(error) => {
                let is_timeout = error.kind() != std::io::ErrorKind::UnexpectedEof;
                assert!(!is_timeout, "{}: no answer and no end: {error}", self.thread);
                ReadReply::End
            }
        }
    }

    fn refused(&mut self, began: Moment, error: &str) {
        self.tally.client_refusals += 1;
        let ended = self.simulation.clock.now();
        let is_peace = || self.simulation.conditions.is_peace(began, ended);
        if is_peace() && second_look(is_peace) {
            let when = millis(began);
            self.simulation.violation(format!(
                "{}: refused at {when} with no fault in force: {error}",
                self.thread
            ));
        }
        // After an error among several replies, the rest cannot be matched to their commands.
        self.connect();
    }

    fn ended(&mut self) {
        self.tally.client_ends += 1;
        let (since, now) = (self.heard, self.simulation.clock.now());
        let is_peace = || self.simulation.conditions.is_peace(since, now);
        if is_peace() && second_look(is_peace) {
            let when = millis(now);
            self.simulation.violation(format!(
                "{}: the connection ended before {when}, with no fault in force",
                self.thread
            ));
        }
        self.connect();
    }

    fn connect(&mut self) {
        self.wire = RespClient::connect(self.address);
        self.connections += 1;
        let own = std::mem::take(&mut self.own);
        if self.simulation.conditions.has_switched() {
            self.left.extend(own);
        }
        self.heard = self.simulation.clock.now();
        self.seen = vec![0; HISTORIES];
    }
}

/// Returns the values in a reply to `GET` or `MGET`.
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

/// Returns the value at the front and its length on the wire.
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
    fn values_are_found_in_their_replies() {
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
