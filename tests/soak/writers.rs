//! Writers that change keys straight in Redis, past the proxy.
//!
//! Model: a writer picks one of its keys and a command, records the effect, sends the command, and
//! records the acknowledgement. A command with an effect that depends on the key reports the state
//! that it found. One more thread flushes the database now and then, and another writes other
//! values to the same names in another database.
//!
//! The rule: the effect of a command is recorded before the command is sent. After a write with
//! unknown fate, the next write to the same key is one that needs no knowledge.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use redis::{Cmd, Connection, RedisError, RedisResult, Value, cmd};

use super::history::{Begun, Effect, Found, Known, Moment, digits};
use super::simulation::{DirectConnection, KEYS, Pace, Simulation, skewed};

pub(super) const WRITERS: usize = 4;
const GAP: Duration = Duration::from_millis(6);
const FOREIGN_GAP: Duration = Duration::from_millis(10);
/// The number of keys that one command changes.
const TOGETHER: usize = 3;
const SCRIPT: &str = "redis.call('SET', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2]) \
                      redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])";

#[derive(Clone, Copy)]
enum Operation {
    Set,
    SetExpiring,
    Delete,
    Unlink,
    GetAndDelete,
    RenameOnto,
    RenameAway,
    Copy,
    Restore,
    RestoreExpiring,
    SetMany,
    Transaction,
    Script,
    Expire,
    ExpireSoon,
    Persist,
    GetExpiring,
    GetPersistent,
    SetRange,
}

/// Operations on any key; `Set` occurs several times, so that there are values.
const TO_ANY: [Operation; 16] = [
    Operation::Set,
    Operation::Set,
    Operation::Set,
    Operation::Set,
    Operation::SetExpiring,
    Operation::Delete,
    Operation::Unlink,
    Operation::GetAndDelete,
    Operation::RenameOnto,
    Operation::RenameAway,
    Operation::Copy,
    Operation::Restore,
    Operation::RestoreExpiring,
    Operation::SetMany,
    Operation::Transaction,
    Operation::Script,
];
/// Further operations on a value.
const TO_A_VALUE: [Operation; 4] =
    [Operation::SetRange, Operation::Expire, Operation::ExpireSoon, Operation::GetExpiring];
/// Further operations on a value that expires.
const TO_AN_EXPIRING_VALUE: [Operation; 5] = [
    Operation::Persist,
    Operation::GetPersistent,
    Operation::Expire,
    Operation::ExpireSoon,
    Operation::GetExpiring,
];

impl Operation {
    fn choose(random: &mut StdRng, known: Known) -> Self {
        let more: &[Self] = match known {
            Known::Value => &TO_A_VALUE,
            Known::Expiring => &TO_AN_EXPIRING_VALUE,
            Known::Absent | Known::Nothing => &[],
        };
        let choice = random.random_range(0..TO_ANY.len() + more.len());
        TO_ANY.iter().chain(more).nth(choice).copied().unwrap_or(Self::Set)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Set => "SET",
            Self::SetExpiring => "SET PX",
            Self::Delete => "DEL",
            Self::Unlink => "UNLINK",
            Self::GetAndDelete => "GETDEL",
            Self::RenameOnto | Self::RenameAway => "RENAME",
            Self::Copy => "COPY",
            Self::Restore => "RESTORE",
            Self::RestoreExpiring => "RESTORE PX",
            Self::SetMany => "MSET",
            Self::Transaction => "MULTI",
            Self::Script => "EVAL",
            Self::Expire => "EXPIRE",
            Self::ExpireSoon => "PEXPIRE",
            Self::Persist => "PERSIST",
            Self::GetExpiring => "GETEX PX",
            Self::GetPersistent => "GETEX PERSIST",
            Self::SetRange => "SETRANGE",
        }
    }

    /// Returns the effects on one key, or on each of three.
    fn effects(self, random: &mut StdRng) -> Vec<Effect> {
        let life = Duration::from_millis(random.random_range(10..1500));
        match self {
            Self::Set | Self::RenameOnto | Self::Copy | Self::Restore => vec![Effect::Value],
            Self::SetExpiring | Self::RestoreExpiring => vec![Effect::Expiring(life)],
            Self::Delete | Self::Unlink | Self::GetAndDelete | Self::RenameAway => {
                vec![Effect::Absence]
            }
            Self::SetMany => vec![Effect::Value; TOGETHER],
            Self::Transaction | Self::Script => {
                vec![Effect::Value, Effect::Absence, Effect::Expiring(life)]
            }
            Self::Expire => vec![Effect::Retime(Some(Duration::from_secs(1)))],
            Self::ExpireSoon | Self::GetExpiring => vec![Effect::Retime(Some(life))],
            Self::Persist | Self::GetPersistent => vec![Effect::Retime(None)],
            Self::SetRange => vec![Effect::Patch],
        }
    }
}

/// Changes every `WRITERS`th key until the soak ends.
pub(super) fn write(simulation: &Simulation, number: usize) {
    let thread = format!("{{soak}}writer {number}");
    let mut random = simulation.random(&thread);
    let mut door = DirectConnection::to(simulation, 0);
    let mut pace = Pace::every(GAP);
    while simulation.is_written() {
        pace.wait();
        // Redis moves only while this lock is free.
        let _with_others = simulation.all.read().unwrap();
        let Some(connection) = door.open() else {
            continue;
        };
        let first = random.random_range(0..KEYS / WRITERS);
        let numbers = (0..TOGETHER)
            .map(|next| (first + next) % (KEYS / WRITERS) * WRITERS + number)
            .collect();
        let write = Write::begin(simulation, numbers, &mut random);
        let outcome = perform(connection, write.operation, &write.begun, &thread);
        write.end(simulation, &format!("writer {number}"), &outcome);
        if let Err(error) = outcome {
            door.close(&error);
        }
    }
}

/// One command on its way.
struct Write {
    operation: Operation,
    numbers: Vec<usize>,
    sent: Moment,
    effects: Vec<Effect>,
    begun: Vec<Begun>,
}

impl Write {
    fn begin(simulation: &Simulation, numbers: Vec<usize>, random: &mut StdRng) -> Self {
        let sent = simulation.clock.now();
        let known = simulation.keys[numbers[0]].lock().unwrap().known(sent);
        let operation = Operation::choose(random, known);
        let note = |(number, effect): (&usize, &Effect)| {
            let mut history = simulation.keys[*number].lock().unwrap();
            history.begin(operation.name(), *effect, sent)
        };
        let effects = operation.effects(random);
        let begun = numbers.iter().zip(&effects).map(note).collect();
        Self { operation, numbers, sent, effects, begun }
    }

    fn end(&self, simulation: &Simulation, client: &str, outcome: &RedisResult<Found>) {
        let now = simulation.clock.now();
        let done = outcome.as_ref().ok().map(|found| (*found, now));
        for change in self.effects.iter().copied().zip(&self.begun) {
            simulation.record.change(client, change, self.sent, done);
        }
        let count = if outcome.is_ok() { &simulation.writes } else { &simulation.unacknowledged };
        count.fetch_add(1, Relaxed);
        for (number, begun) in self.numbers.iter().zip(&self.begun) {
            let mut history = simulation.keys[*number].lock().unwrap();
            match outcome {
                Ok(found) => history.done(begun, *found, now),
                Err(_) => history.lost(),
            }
        }
    }
}

/// Runs the command. `own` is a name that no other thread uses, for values on their way to their
/// key.
fn perform(
    connection: &mut Connection,
    operation: Operation,
    begun: &[Begun],
    own: &str,
) -> RedisResult<Found> {
    let one = &begun[0];
    let (key, text, life) = (&one.key, &one.text, milliseconds(one));
    let mut prepare = || cmd("SET").arg(own).arg(text).exec(connection);
    match operation {
        Operation::RenameOnto
        | Operation::Copy
        | Operation::Restore
        | Operation::RestoreExpiring => prepare()?,
        _ => {}
    }
    match operation {
        Operation::Set => done(cmd("SET").arg(key).arg(text), connection),
        Operation::SetExpiring => {
            done(cmd("SET").arg(key).arg(text).arg("PX").arg(life), connection)
        }
        Operation::Delete => done(cmd("DEL").arg(key), connection),
        Operation::Unlink => done(cmd("UNLINK").arg(key), connection),
        Operation::GetAndDelete => done(cmd("GETDEL").arg(key), connection),
        Operation::RenameOnto => done(cmd("RENAME").arg(own).arg(key), connection),
        Operation::RenameAway => gone(done(cmd("RENAME").arg(key).arg(own), connection)),
        Operation::Copy => done(cmd("COPY").arg(own).arg(key).arg("REPLACE"), connection),
        Operation::Restore | Operation::RestoreExpiring => restore(connection, own, key, life),
        Operation::SetMany => {
            let pairs: Vec<_> = begun.iter().flat_map(|one| [&one.key, &one.text]).collect();
            done(cmd("MSET").arg(pairs), connection)
        }
        Operation::Transaction => transaction(connection, begun),
        Operation::Script => {
            let keys: Vec<_> = begun.iter().map(|one| &one.key).collect();
            let last = &begun[2];
            let arguments = (text, &last.text, milliseconds(last));
            done(cmd("EVAL").arg(SCRIPT).arg(keys.len()).arg(keys).arg(arguments), connection)
        }
        Operation::Expire => found(cmd("EXPIRE").arg(key).arg(life / 1000), connection),
        Operation::ExpireSoon => found(cmd("PEXPIRE").arg(key).arg(life), connection),
        Operation::Persist => found(cmd("PERSIST").arg(key), connection),
        Operation::GetExpiring => found(cmd("GETEX").arg(key).arg("PX").arg(life), connection),
        Operation::GetPersistent => found(cmd("GETEX").arg(key).arg("PERSIST"), connection),
        Operation::SetRange => {
            let patch = digits(one.version);
            done(cmd("SETRANGE").arg(key).arg(key.len() + 1).arg(patch), connection)
        }
    }
}

fn restore(connection: &mut Connection, from: &str, key: &str, life: u64) -> RedisResult<Found> {
    let dumped: Vec<u8> = cmd("DUMP").arg(from).query(connection)?;
    done(cmd("RESTORE").arg(key).arg(life).arg(dumped).arg("REPLACE"), connection)
}

fn transaction(connection: &mut Connection, begun: &[Begun]) -> RedisResult<Found> {
    let [first, second, third] = begun else {
        return Ok(Found::Nothing);
    };
    let mut transaction = redis::pipe();
    transaction.atomic().cmd("SET").arg(&first.key).arg(&first.text).cmd("DEL").arg(&second.key);
    transaction.cmd("SET").arg(&third.key).arg(&third.text).arg("PX").arg(milliseconds(third));
    transaction.exec(connection)?;
    Ok(Found::Value)
}

/// Returns a TTL in the form of Redis; 0 means none.
fn milliseconds(begun: &Begun) -> u64 {
    begun.life.map_or(0, |life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX))
}

fn done(command: &Cmd, connection: &mut Connection) -> RedisResult<Found> {
    command.exec(connection)?;
    Ok(Found::Value)
}

/// Returns the state that a command found which replies 0 or nothing for a missing key.
fn found(command: &Cmd, connection: &mut Connection) -> RedisResult<Found> {
    let answer: Value = command.query(connection)?;
    let nothing = matches!(answer, Value::Nil | Value::Int(0));
    Ok(if nothing { Found::Nothing } else { Found::Value })
}

/// Maps the error of renaming a missing key to its absence.
fn gone(outcome: RedisResult<Found>) -> RedisResult<Found> {
    let absent = |error: &RedisError| error.to_string().contains("no such key");
    if outcome.as_ref().is_err_and(absent) { Ok(Found::Value) } else { outcome }
}

/// Flushes the database every few seconds.
pub(super) fn flush(simulation: &Simulation) {
    let mut random = simulation.random("flusher");
    let mut door = DirectConnection::to(simulation, 0);
    while simulation.is_written() {
        simulation.wait(Duration::from_millis(random.random_range(1500..5000)));
        let words: &[&str] = [["FLUSHALL"].as_slice(), &["FLUSHALL", "ASYNC"], &["FLUSHDB"]]
            [random.random_range(0..3)];
        let _alone = simulation.all.write().unwrap();
        let Some(connection) = door.open() else {
            continue;
        };
        let begun = simulation.begin_all(words[0]);
        let outcome = cmd(words[0]).arg(&words[1..]).exec(connection);
        if let Err(error) = &outcome {
            door.close(error);
        }
        simulation.end_all(&begun, &outcome);
    }
}

/// Writes to the same names in another database. Invalidations do not distinguish databases, and a
/// value from there must never come out of the proxy.
pub(super) fn write_elsewhere(simulation: &Simulation) {
    let mut random = simulation.random("foreign writer");
    let mut door = DirectConnection::to(simulation, 1);
    let mut pace = Pace::every(FOREIGN_GAP);
    while simulation.is_written() {
        pace.wait();
        let Some(connection) = door.open() else {
            continue;
        };
        let key = format!("{{soak}}key/{}", skewed(&mut random, KEYS));
        let command = match random.random_range(0..200) {
            0 => cmd("FLUSHDB"),
            1..50 => cmd("DEL").arg(key).to_owned(),
            50..80 => cmd("PEXPIRE").arg(key).arg(20).to_owned(),
            _ => cmd("SET").arg(key).arg("of another database").to_owned(),
        };
        match command.exec(connection) {
            Ok(()) => _ = simulation.foreign_writes.fetch_add(1, Relaxed),
            Err(error) => door.close(&error),
        }
    }
}
