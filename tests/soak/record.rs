//! The record of a soak: the operations of all clients, in an open format.
//!
//! Model: a file with one JSON object a line. The first line has the format, the seed and the
//! claims. Each further line is an operation, in the order in which the operations ended. Times are
//! microseconds since the soak began. A `return` of null means that the outcome is unknown: the
//! operation may take effect at any time after its call, or never. The last lines have the periods
//! of the faults.
//!
//! The rule: the checker knows only this file, so it shares no knowledge with the oracle.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, thread};

use serde::{Deserialize, Serialize};

use super::conditions::Conditions;
use super::history::{Begun, Effect, Found, Moment};
use super::oracle::Answer;

/// The variable with the path of the record.
const VARIABLE: &str = "SOAK_HISTORY";
/// In the place of a path: nothing is recorded. The history of hours would need gigabytes.
const NO_RECORD: &str = "none";
pub(super) const FORMAT: &str = "redis-proxy-history/1";
/// Longer values are cut, and have a digest.
const LONGEST_VALUE: usize = 64;
const START_OF_LONG_VALUE: usize = 40;

/// The first line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Header {
    pub(super) format: String,
    pub(super) seed: u64,
    pub(super) claims: Claims,
}

/// The promises of the documents for the proxy of the soak, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Claims {
    /// The longest time of a push while Redis replies.
    pub(super) push: i64,
    /// The longest age of a value while it does not.
    pub(super) lease: i64,
    /// The time to live, if only that bounds the age.
    pub(super) ttl: Option<i64>,
}

/// The kind of an operation.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The key has this value, for `ttl` if there is one.
    Write,
    Remove,
    /// The value that is there, if any, ends after `ttl`.
    Expire,
    /// The value that is there, if any, has no end.
    Persist,
    Read,
    /// A period in which pushes may be late.
    Fault,
    /// A period in which another Redis becomes the primary.
    Failover,
    /// The moment from which the writers that are straight at Redis use another primary.
    Switch,
    /// A period in which `cache.stale_if_error` is set.
    Grace,
}

/// The way of a read, and of a write.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// Memory may answer.
    Cached,
    /// `Cache-Control: no-cache`.
    Current,
    /// Straight from Redis.
    Direct,
    /// A write through the proxy.
    Proxied,
}

/// A line but the first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Line {
    /// The session: one connection, or the connections of one client that does not pipeline.
    pub(super) client: String,
    pub(super) op: Kind,
    /// A key, or every key with a prefix if it ends with `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The value that was written or read; null is an absent key. The name of a fault.
    pub(super) value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<i64>,
    /// Whether a key was there for `expire` and `persist`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) found: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) how: Option<How>,
    /// Whether the reply was marked as stale. Redis clients do not see that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stale: Option<bool>,
    pub(super) call: i64,
    #[serde(rename = "return")]
    pub(super) returned: Option<i64>,
}

impl Line {
    pub(super) fn new(client: &str, op: Kind, call: i64, returned: Option<i64>) -> Self {
        let client = client.to_owned();
        let (key, value, ttl, found, how, stale) = (None, None, None, None, None, None);
        Self { client, op, key, value, ttl, found, how, stale, call, returned }
    }
}

/// A read that got a reply.
pub(super) struct Seen<'a> {
    pub(super) client: &'a str,
    pub(super) key: &'a str,
    pub(super) answer: &'a Answer,
    pub(super) how: How,
    pub(super) stale: Option<bool>,
    pub(super) began: Moment,
    pub(super) ended: Moment,
}

pub(super) struct Record(Option<Writer>);

struct Writer {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Record {
    /// Begins a record at the path in the environment, or one with the name of the test. There is
    /// none if the path is `none`.
    pub(super) fn begin(seed: u64, claims: Claims) -> Self {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        if path.as_ref().is_some_and(|path| path == NO_RECORD) {
            return Self(None);
        }
        let path = path.map_or_else(of_this_test, PathBuf::from);
        let file = File::create(&path).expect("a file for the history");
        let record = Self(Some(Writer { path, file: Mutex::new(BufWriter::new(file)) }));
        record.append(&Header { format: FORMAT.to_owned(), seed, claims });
        record
    }

    /// Records a change of a key. `done` has the state that it found and the time of its
    /// acknowledgement; without it the outcome is unknown.
    pub(super) fn change(
        &self,
        client: &str,
        (effect, begun): (Effect, &Begun),
        sent: Moment,
        done: Option<(Found, Moment)>,
    ) {
        let op = match effect {
            Effect::Value | Effect::Expiring(_) | Effect::Patch => Kind::Write,
            Effect::Absence => Kind::Remove,
            Effect::Retime(Some(_)) => Kind::Expire,
            Effect::Retime(None) => Kind::Persist,
        };
        let found = done.filter(|_| matches!(effect, Effect::Retime(_)));
        self.append(&Line {
            key: Some(begun.key.clone()),
            value: (op == Kind::Write).then(|| shown(begun.text.as_bytes())),
            ttl: begun.life.map(micros),
            found: found.map(|(found, _)| found == Found::Value),
            ..Line::new(client, op, micros(sent), done.map(|(_, moment)| micros(moment)))
        });
    }

    /// Records a write of one value through the proxy to a key of the client's own.
    pub(super) fn own_write(
        &self,
        client: &str,
        (key, value): (&str, &str),
        sent: Moment,
        acknowledged: Option<Moment>,
    ) {
        self.append(&Line {
            key: Some(key.to_owned()),
            value: Some(shown(value.as_bytes())),
            how: Some(How::Proxied),
            ..Line::new(client, Kind::Write, micros(sent), acknowledged.map(micros))
        });
    }

    /// Records the removal of all keys with this prefix.
    pub(super) fn removal(
        &self,
        client: &str,
        prefix: &str,
        sent: Moment,
        acknowledged: Option<Moment>,
    ) {
        let key = Some(format!("{prefix}*"));
        let line = Line::new(client, Kind::Remove, micros(sent), acknowledged.map(micros));
        self.append(&Line { key, ..line });
    }

    pub(super) fn read(&self, seen: &Seen<'_>) {
        let value = match seen.answer {
            Answer::Value(value) => Some(shown(value)),
            Answer::Absent => None,
        };
        let ended = Some(micros(seen.ended));
        self.append(&Line {
            key: Some(seen.key.to_owned()),
            value,
            how: Some(seen.how),
            stale: seen.stale,
            ..Line::new(seen.client, Kind::Read, micros(seen.began), ended)
        });
    }

    /// Adds the periods, and returns the path of the complete record, if there is one.
    pub(super) fn finish(&self, conditions: &Conditions) -> Option<&Path> {
        let Writer { path, file } = self.0.as_ref()?;
        for (op, periods) in [
            (Kind::Fault, &conditions.trouble),
            (Kind::Failover, &conditions.failovers),
            (Kind::Switch, &conditions.switches),
            (Kind::Grace, &conditions.grace),
        ] {
            periods.each(|name, from, until| {
                let line = Line::new("adversary", op, micros(from), until.map(micros));
                self.append(&Line { value: Some(name.to_owned()), ..line });
            });
        }
        file.lock().unwrap().flush().expect("the history is written");
        Some(path)
    }

    fn append(&self, line: &impl Serialize) {
        let Some(Writer { file, .. }) = &self.0 else { return };
        let text = serde_json::to_string(line).expect("a line of JSON");
        writeln!(file.lock().unwrap(), "{text}").expect("the history is written");
    }
}

/// Returns a path for the test that this thread runs.
fn of_this_test() -> PathBuf {
    let name = thread::current().name().unwrap_or("soak").replace(':', "-");
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{name}.jsonl"))
}

/// Returns a value as text; of a long one the beginning and a digest.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy;
    if value.len() <= LONGEST_VALUE {
        return text(value).into_owned();
    }
    let digest = blake3::hash(value).to_hex();
    format!("{}...{}", text(&value[..START_OF_LONG_VALUE]), &digest[..16])
}

pub(super) fn micros(moment: Moment) -> i64 {
    i64::try_from(moment.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_the_documented_form() {
        let line = Line {
            key: Some("a".to_owned()),
            how: Some(How::Current),
            stale: Some(false),
            ..Line::new("reader 1", Kind::Read, 17, Some(20))
        };
        let text = "{\"client\":\"reader 1\",\"op\":\"read\",\"key\":\"a\",\"value\":null,\
                    \"how\":\"current\",\"stale\":false,\"call\":17,\"return\":20}";
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
        assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
    }

    #[test]
    fn long_values_differ_by_their_digests() {
        let (one, other) = ("a".repeat(100), "a".repeat(99) + "b");
        assert_ne!(shown(one.as_bytes()), shown(other.as_bytes()));
        assert_eq!(shown(one.as_bytes()).len(), START_OF_LONG_VALUE + 3 + 16);
        assert_eq!(shown(b"short"), "short");
    }
}
