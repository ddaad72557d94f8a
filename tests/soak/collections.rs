//! Hashes, sets and sorted sets: their writers, and the reads of Redis clients.
//!
//! Model: each collection has a history like a string. A version of it is one text: the value of
//! its field, or its member. A write replaces the text in one step, with or without an end. An end
//! is that of the key or, where the server has it, of the field. A read may ask for several
//! collections at once; the texts in its reply have the names of their keys, and each is judged by
//! itself.
//!
//! The rule: a collection has one type for ever, and one thread writes it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use redis::{Connection, Pipeline, RedisResult, Value, cmd};

use super::history::{Begun, Effect, Found, Known};
use super::oracle::Answer;
use super::simulation::{DirectConnection, KEYS, Pace, Simulation, skewed};

pub(super) const COLLECTIONS: usize = 60;
pub(super) const WRITERS: usize = 2;
const GAP: Duration = Duration::from_millis(12);
const FIELD: &str = "field";
/// The score of each member, which shows in replies with scores.
const SCORE: &str = "0.5";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Hash,
    Set,
    SortedSet,
}

const KINDS: [Kind; 3] = [Kind::Hash, Kind::Set, Kind::SortedSet];

/// The end of a value.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Never,
    Key,
    Field,
}

fn kind(number: usize) -> Kind {
    KINDS[number % KINDS.len()]
}

/// Returns the key of a collection.
pub(super) fn name(number: usize) -> String {
    let kind = match kind(number) {
        Kind::Hash => "hash",
        Kind::Set => "set",
        Kind::SortedSet => "sorted",
    };
    format!("{{soak}}{kind}/{number}")
}

/// A read of one collection or of several.
pub(super) struct CollectionRead {
    pub(super) words: Vec<String>,
    /// The collections that its reply shows.
    pub(super) shown: Vec<usize>,
}

impl CollectionRead {
    pub(super) fn choose(random: &mut StdRng) -> Self {
        let one = skewed(random, COLLECTIONS);
        // Another one of the same kind.
        let other = (one + KINDS.len() * random.random_range(1..4)) % COLLECTIONS;
        let of_one: &[&str] = match kind(one) {
            Kind::Hash => {
                &["HGETALL K", "HGETALL K", "HGET K field", "HMGET K none field", "HVALS K"]
            }
            Kind::Set => &["SMEMBERS K", "SMEMBERS K", "SINTER K K", "SDIFF K O", "SUNION K O"],
            Kind::SortedSet => &[
                "ZRANGE K 0 -1",
                "ZRANGE K 0 -1 WITHSCORES",
                "ZRANGEBYSCORE K 0 1",
                "ZREVRANGE K 0 -1",
                "ZUNION 2 K O WITHSCORES",
                "ZDIFF 2 K O",
            ],
        };
        let line = of_one[random.random_range(0..of_one.len())];
        let word = |word: &str| match word {
            "K" => name(one),
            "O" => name(other),
            word => word.to_owned(),
        };
        let is_of_both = line.contains("UNION");
        let shown = if is_of_both { vec![one, other] } else { vec![one] };
        Self { words: line.split(' ').map(word).collect(), shown }
    }

    /// Returns the read of the whole collection.
    pub(super) fn whole(number: usize) -> Self {
        let key = name(number);
        let words: &[&str] = match kind(number) {
            Kind::Hash => &["HGETALL", &key],
            Kind::Set => &["SMEMBERS", &key],
            Kind::SortedSet => &["ZRANGE", &key, "0", "-1"],
        };
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self { words, shown: vec![number] }
    }

    /// Returns what a reply says of each collection that it shows, by the index of its history.
    pub(super) fn answers(&self, reply: &Value) -> Vec<(usize, Answer)> {
        let mut texts = Vec::new();
        collect(reply, &mut texts);
        let answer = |number: &usize| {
            let start = format!("{}#", name(*number));
            let own: Vec<_> =
                texts.iter().filter(|text| text.starts_with(start.as_bytes())).collect();
            // Two texts at once are no version of it.
            let answer = match &own[..] {
                [] => Answer::Absent,
                all => Answer::Value(all.iter().flat_map(|text| text.iter().copied()).collect()),
            };
            (KEYS + number, answer)
        };
        self.shown.iter().map(answer).collect()
    }
}

/// Collects the strings of a reply.
fn collect(reply: &Value, texts: &mut Vec<Vec<u8>>) {
    match reply {
        Value::BulkString(text) => texts.push(text.clone()),
        Value::Array(items) | Value::Set(items) => {
            for item in items {
                collect(item, texts);
            }
        }
        Value::Map(pairs) => {
            for (name, value) in pairs {
                collect(name, texts);
                collect(value, texts);
            }
        }
        _ => {}
    }
}

/// Changes every `WRITERS`th collection until the soak ends.
pub(super) fn write(simulation: &Simulation, number: usize) {
    let mut random = simulation.random(&format!("collection writer {number}"));
    let mut door = DirectConnection::to(simulation, 0);
    let mut pace = Pace::every(GAP);
    let mut has_field_expiry = None;
    while simulation.is_written() {
        pace.wait();
        let _with_others = simulation.all.read().unwrap();
        let Some(connection) = door.open() else { continue };
        if has_field_expiry.is_none() {
            has_field_expiry = knows_field_expiry(connection).ok();
        }
        let own = random.random_range(0..COLLECTIONS / WRITERS) * WRITERS + number;
        let outcome =
            change(simulation, &mut random, own, has_field_expiry == Some(true), connection);
        if let Err(error) = outcome {
            door.close(&error);
        }
    }
}

fn knows_field_expiry(connection: &mut Connection) -> RedisResult<bool> {
    let received: Vec<Value> = cmd("COMMAND").arg("INFO").arg("HPEXPIRE").query(connection)?;
    Ok(received.first().is_some_and(|command| *command != Value::Nil))
}

/// Changes one collection, and records it.
fn change(
    simulation: &Simulation,
    random: &mut StdRng,
    number: usize,
    has_field_expiry: bool,
    connection: &mut Connection,
) -> RedisResult<()> {
    let life = Duration::from_millis(random.random_range(10..1500));
    let end = match random.random_range(0..10) {
        0..2 => End::Key,
        2..5 if has_field_expiry && kind(number) == Kind::Hash => End::Field,
        _ => End::Never,
    };
    let is_removal = random.random_ratio(1, 8);
    let (effect, by) = match end {
        _ if is_removal => (Effect::Absence, "UNLINK"),
        End::Never => (Effect::Value, "a new member"),
        End::Key => (Effect::Expiring(life), "PEXPIRE"),
        End::Field => (Effect::Expiring(life), "HPEXPIRE"),
    };
    let sent = simulation.clock.now();
    let (known, begun) = {
        let mut history = simulation.keys[KEYS + number].lock().unwrap();
        (history.known(sent), history.begin(by, effect, sent))
    };
    let outcome = if is_removal {
        cmd("UNLINK").arg(name(number)).exec(connection)
    } else {
        replacement(number, &begun, known, end).exec(connection)
    };
    let now = simulation.clock.now();
    let done = outcome.is_ok().then_some((Found::Value, now));
    let client = format!("collection writer {}", number % WRITERS);
    simulation.record.change(&client, (effect, &begun), sent, done);
    let count = if outcome.is_ok() { &simulation.writes } else { &simulation.unacknowledged };
    count.fetch_add(1, Relaxed);
    let mut history = simulation.keys[KEYS + number].lock().unwrap();
    match outcome {
        Ok(()) => history.done(&begun, Found::Value, now),
        Err(_) => history.lost(),
    }
    outcome
}

/// Returns the commands that replace the text of a collection in one step.
fn replacement(number: usize, begun: &Begun, known: Known, end: End) -> Pipeline {
    let (key, text) = (name(number), &begun.text);
    let mut commands = redis::pipe();
    commands.atomic();
    // A field can be overwritten in place, unless an end of the key would stay.
    let is_in_place = kind(number) == Kind::Hash && matches!(known, Known::Value | Known::Absent);
    if !is_in_place {
        commands.cmd("DEL").arg(&key);
    }
    match kind(number) {
        Kind::Hash => commands.cmd("HSET").arg(&key).arg(FIELD).arg(text),
        Kind::Set => commands.cmd("SADD").arg(&key).arg(text),
        Kind::SortedSet => commands.cmd("ZADD").arg(&key).arg(SCORE).arg(text),
    };
    let life = begun.life.unwrap_or_default().as_millis().to_string();
    match end {
        End::Never => {}
        End::Key => _ = commands.cmd("PEXPIRE").arg(&key).arg(life),
        End::Field => {
            _ = commands.cmd("HPEXPIRE").arg(&key).arg(life).arg("FIELDS").arg(1).arg(FIELD);
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn text(answer: &Answer) -> String {
        match answer {
            Answer::Value(value) => String::from_utf8_lossy(value).into_owned(),
            Answer::Absent => "-".to_owned(),
        }
    }

    #[test]
    fn texts_are_told_apart_by_their_keys() {
        let (one, other) = ("{soak}set/1#7#aa.", "{soak}set/4#8#b.");
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let union = CollectionRead { words: Vec::new(), shown: vec![1, 4] };
        for (reply, expected) in [
            (vec![], ["-", "-"]),
            (vec![bulk(one)], [one, "-"]),
            (vec![bulk(other), bulk(one)], [one, other]),
            (vec![bulk("field"), Value::Nil, Value::Set(vec![bulk(other)])], ["-", other]),
        ] {
            let answers = union.answers(&Value::Array(reply));
            let found: Vec<_> = answers.iter().map(|(_, answer)| text(answer)).collect();
            assert_eq!(found, expected);
            assert_eq!([answers[0].0, answers[1].0], [KEYS + 1, KEYS + 4]);
        }
    }

    #[test]
    fn torn_collection_is_no_version() {
        let reply =
            ["{soak}set/1#7#aa.", "{soak}set/1#8#b."].map(|text| Value::BulkString(text.into()));
        let read = CollectionRead::whole(1);
        let answers = read.answers(&Value::Array(reply.to_vec()));
        assert_eq!(text(&answers[0].1), "{soak}set/1#7#aa.{soak}set/1#8#b.");
    }

    #[test]
    fn every_read_is_about_collections_of_one_kind() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let read = CollectionRead::choose(&mut random);
            assert!(read.shown.iter().all(|number| kind(*number) == kind(read.shown[0])));
            let has_name = |number: &usize| read.words.contains(&name(*number));
            assert!(read.shown.iter().all(has_name), "{:?}", read.words);
        }
    }
}
