//! HTTP readers; each of their reads is judged.
//!
//! Model: a client with one connection, which remembers the last version of each key. Half of the
//! clients wait for every reply. The others abandon a reply that is not there at once and read
//! another key, so they still read from memory while Redis delays the rest. Every fourth read is
//! `no-cache` and allows no age at all. One thread reads straight from Redis and allows no age
//! either: a breach there means that the history is wrong, and that no verdict on the proxy is
//! worth anything.
//!
//! The rule: a breach is judged again after a moment, when every late event is recorded, before it
//! counts.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use rand::Rng;
use redis::{Value, cmd};

use super::collections::{COLLECTIONS, CollectionRead};
use super::history::{Moment, millis};
use super::oracle::{Answer, Breach, Demand, Read, STALE, Verdict, judge};
use super::record::{How, Seen};
use super::report::Tally;
use super::simulation::{DirectConnection, KEYS, Pace, Simulation, name, skewed};
use crate::support::http::{Client, Response, key_path};
use crate::support::serving::request;

pub(super) const READERS: usize = 4;
const GAP: Duration = Duration::from_millis(2);
/// The time that half of the readers wait for a reply.
const IMPATIENCE: Duration = Duration::from_millis(20);
const STRAIGHT_GAP: Duration = Duration::from_millis(10);
/// The time in which every thread has recorded earlier events.
const SECOND_LOOK: Duration = Duration::from_millis(150);

/// Reads until the soak ends.
pub(super) fn read(simulation: &Simulation, address: SocketAddr, number: usize) -> Tally {
    let thread = format!("reader {number}");
    let mut random = simulation.random(&thread);
    let mut reader = Reader { simulation, thread, seen: vec![0; KEYS], tally: Tally::default() };
    let is_patient = number.is_multiple_of(2);
    let connect = || {
        let client = Client::connect(address);
        if !is_patient {
            client.read_timeout(IMPATIENCE);
        }
        client
    };
    let mut client = connect();
    let mut pace = Pace::every(GAP);
    while simulation.is_read() {
        pace.wait();
        let key = skewed(&mut random, KEYS);
        let demand = if random.random_ratio(1, 4) { Demand::Current } else { Demand::Usual };
        let began = simulation.clock.now();
        client.send_raw(&question(&format!("{{soak}}key/{key}"), demand));
        match client.try_read_response() {
            Ok(response) => reader.take(key, began, demand, response),
            Err(error) if !is_patient && error.kind() == ErrorKind::WouldBlock => {
                reader.tally.given_up += 1;
                client = connect();
            }
            Err(error) => {
                simulation.violation(format!(
                    "key/{key}: the proxy's connection to a client broke: {error}"
                ));
                client = connect();
            }
        }
    }
    reader.tally
}

/// Sends `no-cache` reads to alternating proxies until the soak ends. Such a reply is no older than
/// its request at any proxy, so no proxy may be behind an earlier reply of another.
pub(super) fn wander(simulation: &Simulation, addresses: &[SocketAddr]) -> Tally {
    let mut random = simulation.random("wanderer");
    let mut reader = Reader {
        simulation,
        thread: "the wanderer".to_owned(),
        seen: vec![0; KEYS],
        tally: Tally::default(),
    };
    let mut clients: Vec<_> = addresses.iter().map(|address| Client::connect(*address)).collect();
    let mut pace = Pace::every(GAP);
    while simulation.is_read() {
        pace.wait();
        let (key, number) = (skewed(&mut random, KEYS), random.random_range(0..clients.len()));
        let began = simulation.clock.now();
        clients[number].send_raw(&question(&format!("{{soak}}key/{key}"), Demand::Current));
        match clients[number].try_read_response() {
            Ok(response) => reader.take(key, began, Demand::Current, response),
            Err(error) => {
                simulation.violation(format!(
                    "key/{key}: the proxy's connection to a client broke: {error}"
                ));
                clients[number] = Client::connect(addresses[number]);
            }
        }
    }
    reader.tally
}

fn question(key: &str, demand: Demand) -> Vec<u8> {
    match demand {
        Demand::Usual => request(key),
        Demand::Current | Demand::Straight => {
            let path = key_path(key.as_bytes());
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nCache-Control: no-cache\r\n\r\n")
                .into_bytes()
        }
    }
}

struct Reader<'a> {
    simulation: &'a Simulation,
    thread: String,
    /// The latest version of each key.
    seen: Vec<u64>,
    tally: Tally,
}

impl Reader<'_> {
    fn take(&mut self, key: usize, began: Moment, demand: Demand, response: Response) {
        let ended = self.simulation.clock.now();
        let outcome = outcome(&response);
        self.tally.reads += 1;
        self.tally.current += u64::from(demand == Demand::Current);
        self.tally.suffered(
            self.simulation,
            "http",
            (began, ended),
            [200, 404].contains(&response.status),
        );
        let answer = match response.status {
            200 => Answer::Value(response.body),
            404 => Answer::Absent,
            status => return self.take_refusal(key, began, status, &response),
        };
        *self.tally.outcomes.entry(outcome).or_default() += 1;
        let read = Read { began, ended, answer, outcome, demand };
        self.record(key, &read);
        self.check_stale(key, &read);
        match verdict(self.simulation, key, &read, self.seen[key]) {
            Ok(verdict) => {
                self.seen[key] = verdict.version;
                self.tally.count(self.simulation, &verdict, began);
            }
            Err(breach) => {
                self.simulation.violation(tell(self.simulation, &self.thread, key, &read, &breach));
            }
        }
    }

    fn record(&self, key: usize, read: &Read) {
        let how = if read.demand == Demand::Current { How::Current } else { How::Cached };
        self.simulation.record.read(&Seen {
            client: &self.thread,
            key: &name(key),
            answer: &read.answer,
            how,
            stale: Some(read.outcome == STALE),
            began: read.began,
            ended: read.ended,
        });
    }

    /// Checks that a failed read has a fault as its cause.
    fn take_refusal(&mut self, key: usize, began: Moment, status: u16, response: &Response) {
        let ended = self.simulation.clock.now();
        self.tally.no_answers += 1;
        let is_peace = || self.simulation.conditions.is_peace(began, ended);
        if ![502, 503, 504].contains(&status) || is_peace() && second_look(is_peace) {
            let (began, body) = (millis(began), String::from_utf8_lossy(&response.body));
            self.simulation.violation(format!(
                "key/{key}: status {status} at {began}, with no fault in force: {body}"
            ));
        }
    }

    /// Checks that a stale value has a grace and a lost Redis as its cause.
    fn check_stale(&self, key: usize, read: &Read) {
        let conditions = &self.simulation.conditions;
        let is_wrong =
            || read.demand == Demand::Current || !conditions.may_be_stale(read.began, read.ended);
        if read.outcome == STALE && is_wrong() && second_look(is_wrong) {
            let (began, around) = (millis(read.began), conditions.tell(read.began, read.ended));
            self.simulation
                .violation(format!("key/{key}: a stale value at {began}, in force: {around}"));
        }
    }
}

pub(super) fn second_look(is_wrong: impl Fn() -> bool) -> bool {
    thread::sleep(SECOND_LOOK);
    is_wrong()
}

pub(super) fn verdict(
    simulation: &Simulation,
    key: usize,
    read: &Read,
    seen: u64,
) -> Result<Verdict, Breach> {
    let bound = |from, to| match read.demand {
        Demand::Usual => simulation.conditions.bound(from, to),
        Demand::Current | Demand::Straight => {
            simulation.conditions.bound_of_current(read.began, read.ended)
        }
    };
    let judge = || judge(&simulation.keys[key].lock().unwrap(), read, seen, bound);
    judge().or_else(|_| {
        thread::sleep(SECOND_LOOK);
        judge()
    })
}

/// Reads from Redis itself until the writers end.
pub(super) fn read_straight(simulation: &Simulation) {
    let mut random = simulation.random("straight reader");
    let mut door = DirectConnection::to(simulation, 0);
    let mut pace = Pace::every(STRAIGHT_GAP);
    while simulation.is_written() {
        pace.wait();
        let moves = simulation.moves();
        let Some(connection) = door.open() else {
            continue;
        };
        let (began, key) = (simulation.clock.now(), skewed(&mut random, KEYS));
        if simulation.moves() != moves {
            continue;
        }
        if random.random_ratio(1, 4) {
            let read = CollectionRead::whole(skewed(&mut random, COLLECTIONS));
            match cmd(&read.words[0]).arg(&read.words[1..]).query::<Value>(connection) {
                Ok(reply) => {
                    for (history, answer) in read.answers(&reply) {
                        check_straight(simulation, history, began, answer);
                    }
                }
                Err(error) => door.close(&error),
            }
            continue;
        }
        match cmd("GET").arg(format!("{{soak}}key/{key}")).query::<Option<Vec<u8>>>(connection) {
            Ok(value) => {
                check_straight(simulation, key, began, value.map_or(Answer::Absent, Answer::Value));
            }
            Err(error) => door.close(&error),
        }
    }
}

pub(super) fn check_straight(simulation: &Simulation, key: usize, began: Moment, answer: Answer) {
    let read = Read {
        began,
        ended: simulation.clock.now(),
        answer,
        outcome: "straight",
        demand: Demand::Straight,
    };
    simulation.record.read(&Seen {
        client: "straight reader",
        key: &name(key),
        answer: &read.answer,
        how: How::Direct,
        stale: None,
        began,
        ended: read.ended,
    });
    let verdict = judge(&simulation.keys[key].lock().unwrap(), &read, 0, |_, _| Duration::ZERO);
    if let Err(breach) = verdict {
        let received = tell(simulation, "the harness, from Redis itself,", key, &read, &breach);
        simulation.violation(format!("the harness is wrong: {received}"));
    }
}

/// Returns a violation with its full context.
pub(super) fn tell(
    simulation: &Simulation,
    who: &str,
    key: usize,
    read: &Read,
    breach: &Breach,
) -> String {
    let took = millis(read.ended.saturating_sub(read.began));
    let answer = match &read.answer {
        Answer::Value(value) => String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned(),
        Answer::Absent => "nothing".to_owned(),
    };
    let around =
        simulation.conditions.tell(read.began.saturating_sub(Duration::from_secs(2)), read.ended);
    let (name, states) = {
        let history = simulation.keys[key].lock().unwrap();
        (history.key.clone(), history.tell(breach.version(), read.ended))
    };
    format!(
        "{name}: {breach}\n  {who} asked ({:?}) at {}, was answered {took} later ({}): \
            {answer}\n  \
         in force from 2 s before: {around}\n{states}",
        read.demand,
        millis(read.began),
        read.outcome,
    )
}

/// Returns the outcome that the proxy names.
fn outcome(response: &Response) -> &'static str {
    let status = response.header("cache-status").unwrap_or_default();
    let words = [
        ("detail=negative_hit", "negative_hit"),
        ("; hit", "hit"),
        ("collapsed", "coalesced"),
        ("fwd=miss", "miss"),
    ];
    // A value that was just fetched may be stale at once, with a TTL of zero.
    if status.contains("; hit") && status.contains("ttl=-") {
        return STALE;
    }
    words.iter().find(|(word, _)| status.contains(word)).map_or("bypass", |(_, outcome)| outcome)
}
