//! Those who read, and have each of their reads judged.
//!
//! Model: a client of the proxy with one connection, which remembers for each key the version it saw last. Half of the
//! clients wait for every answer; the others go away from one that is not here at once and ask for something else, so
//! that they still read from memory while Redis keeps everybody else waiting. Every fourth read asks for what is
//! current and is allowed no age at all. Beside them one thread reads straight from Redis and allows for nothing either:
//! should it find a breach, then the history is wrong, and no verdict on the proxy is worth anything.
//!
//! The rule: a breach is looked at again after a moment, when all that was noted late is noted, before it counts.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use rand::Rng;
use redis::cmd;

use super::history::{Moment, millis};
use super::oracle::{Answer, Breach, Demand, Read, STALE, Verdict, judge};
use super::report::Tally;
use super::world::{Door, KEYS, Pace, World, skewed};
use crate::stage::request;
use crate::support::http::{Client, Response, key_path};

pub(super) const READERS: usize = 4;
const GAP: Duration = Duration::from_millis(2);
/// For how long half of the readers wait for an answer.
const IMPATIENCE: Duration = Duration::from_millis(20);
const STRAIGHT_GAP: Duration = Duration::from_millis(10);
/// By then every thread has noted what happened before.
const SECOND_LOOK: Duration = Duration::from_millis(150);

/// Reads until the soak ends.
pub(super) fn read(world: &World, address: SocketAddr, number: usize) -> Tally {
    let thread = format!("reader {number}");
    let mut random = world.random(&thread);
    let mut reader = Reader { world, thread, seen: vec![0; KEYS], tally: Tally::default() };
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
    while world.is_read() {
        pace.wait();
        let key = skewed(&mut random, KEYS);
        let demand = if random.random_ratio(1, 4) { Demand::Current } else { Demand::Usual };
        let began = world.clock.now();
        client.send_raw(&question(&format!("{{soak}}key/{key}"), demand));
        match client.try_read_response() {
            Ok(response) => reader.take(key, began, demand, response),
            Err(error) if !is_patient && error.kind() == ErrorKind::WouldBlock => {
                reader.tally.given_up += 1;
                client = connect();
            }
            Err(error) => {
                world.violation(format!(
                    "key/{key}: the proxy's connection to a client broke: {error}"
                ));
                client = connect();
            }
        }
    }
    reader.tally
}

/// Asks now one proxy, now another, for what is current, until the soak ends. What is no older than its question is so
/// wherever it was asked, so what one proxy has told, no other may be behind.
pub(super) fn wander(world: &World, addresses: &[SocketAddr]) -> Tally {
    let mut random = world.random("wanderer");
    let mut reader = Reader {
        world,
        thread: "the wanderer".to_owned(),
        seen: vec![0; KEYS],
        tally: Tally::default(),
    };
    let mut clients: Vec<_> = addresses.iter().map(|address| Client::connect(*address)).collect();
    let mut pace = Pace::every(GAP);
    while world.is_read() {
        pace.wait();
        let (key, number) = (skewed(&mut random, KEYS), random.random_range(0..clients.len()));
        let began = world.clock.now();
        clients[number].send_raw(&question(&format!("{{soak}}key/{key}"), Demand::Current));
        match clients[number].try_read_response() {
            Ok(response) => reader.take(key, began, Demand::Current, response),
            Err(error) => {
                world.violation(format!(
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
        Demand::Current => {
            let path = key_path(key.as_bytes());
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nCache-Control: no-cache\r\n\r\n")
                .into_bytes()
        }
    }
}

struct Reader<'a> {
    world: &'a World,
    thread: String,
    /// The latest version of each key.
    seen: Vec<u64>,
    tally: Tally,
}

impl Reader<'_> {
    fn take(&mut self, key: usize, began: Moment, demand: Demand, response: Response) {
        let ended = self.world.clock.now();
        let outcome = outcome(&response);
        self.tally.reads += 1;
        self.tally.current += u64::from(demand == Demand::Current);
        self.tally.suffered(
            self.world,
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
        self.check_stale(key, &read);
        match verdict(self.world, key, &read, self.seen[key]) {
            Ok(verdict) => {
                self.seen[key] = verdict.version;
                self.tally.count(self.world, &verdict, began);
            }
            Err(breach) => {
                self.world.violation(tell(self.world, &self.thread, key, &read, &breach));
            }
        }
    }

    /// An answer that is none is due to a fault, and to nothing else.
    fn take_refusal(&mut self, key: usize, began: Moment, status: u16, response: &Response) {
        let ended = self.world.clock.now();
        self.tally.no_answers += 1;
        let is_peace = || self.world.weather.is_peace(began, ended);
        if ![502, 503, 504].contains(&status) || is_peace() && second_look(is_peace) {
            let (began, body) = (millis(began), String::from_utf8_lossy(&response.body));
            self.world.violation(format!(
                "key/{key}: status {status} at {began}, with no fault in force: {body}"
            ));
        }
    }

    /// A stale value needs a setting that allows it and a Redis that is gone.
    fn check_stale(&self, key: usize, read: &Read) {
        let weather = &self.world.weather;
        let is_wrong =
            || read.demand == Demand::Current || !weather.may_be_stale(read.began, read.ended);
        if read.outcome == STALE && is_wrong() && second_look(is_wrong) {
            let (began, around) = (millis(read.began), weather.tell(read.began, read.ended));
            self.world
                .violation(format!("key/{key}: a stale value at {began}, in force: {around}"));
        }
    }
}

pub(super) fn second_look(is_wrong: impl Fn() -> bool) -> bool {
    thread::sleep(SECOND_LOOK);
    is_wrong()
}

pub(super) fn verdict(
    world: &World,
    key: usize,
    read: &Read,
    seen: u64,
) -> Result<Verdict, Breach> {
    let bound = |from, to| match read.demand {
        Demand::Usual => world.weather.bound(from, to),
        Demand::Current => world.weather.bound_of_current(read.began, read.ended),
    };
    let judge = || judge(&world.keys[key].lock().unwrap(), read, seen, bound);
    judge().or_else(|_| {
        thread::sleep(SECOND_LOOK);
        judge()
    })
}

/// Reads from Redis itself until the soak's writers end.
pub(super) fn read_straight(world: &World) {
    let mut random = world.random("straight reader");
    let mut door = Door::to(world, 0);
    let mut pace = Pace::every(STRAIGHT_GAP);
    while world.is_written() {
        pace.wait();
        let moves = world.moves();
        let Some(connection) = door.open() else {
            continue;
        };
        let key = skewed(&mut random, KEYS);
        let began = world.clock.now();
        if world.moves() != moves {
            continue;
        }
        match cmd("GET").arg(format!("{{soak}}key/{key}")).query::<Option<Vec<u8>>>(connection) {
            Ok(value) => {
                check_straight(world, key, began, value.map_or(Answer::Absent, Answer::Value));
            }
            Err(error) => door.close(&error),
        }
    }
}

pub(super) fn check_straight(world: &World, key: usize, began: Moment, answer: Answer) {
    let read = Read {
        began,
        ended: world.clock.now(),
        answer,
        outcome: "straight",
        demand: Demand::Current,
    };
    let verdict = judge(&world.keys[key].lock().unwrap(), &read, 0, |_, _| Duration::ZERO);
    if let Err(breach) = verdict {
        let told = tell(world, "the harness, from Redis itself,", key, &read, &breach);
        world.violation(format!("the harness is wrong: {told}"));
    }
}

/// A violation with all there is to know about it.
pub(super) fn tell(world: &World, who: &str, key: usize, read: &Read, breach: &Breach) -> String {
    let took = millis(read.ended.saturating_sub(read.began));
    let answer = match &read.answer {
        Answer::Value(value) => String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned(),
        Answer::Absent => "nothing".to_owned(),
    };
    let around = world.weather.tell(read.began.saturating_sub(Duration::from_secs(2)), read.ended);
    let states = world.keys[key].lock().unwrap().tell(breach.version(), read.ended);
    format!(
        "key/{key}: {breach}\n  {who} asked ({:?}) at {}, was answered {took} later ({}): {answer}\n  \
         in force from 2 s before: {around}\n{states}",
        read.demand,
        millis(read.began),
        read.outcome,
    )
}

/// What the proxy says it did.
fn outcome(response: &Response) -> &'static str {
    let status = response.header("cache-status").unwrap_or_default();
    let words = [
        ("detail=negative_hit", "negative_hit"),
        ("; hit", "hit"),
        ("collapsed", "coalesced"),
        ("fwd=miss", "miss"),
    ];
    // What was fetched just now may be stale at once, with a lifetime of zero.
    if status.contains("; hit") && status.contains("ttl=-") {
        return STALE;
    }
    words.iter().find(|(word, _)| status.contains(word)).map_or("bypass", |(_, outcome)| outcome)
}
