//! The history that the checker judges, made from the record alone.
//!
//! Model: for each key its changes and its reads, each with the time window in which it took
//! effect. A time to live makes a change of its own: the end of the value, in a window that allows
//! for the clock of Redis. A change without a known outcome has a window without an end. The
//! periods of faults decide the age that the claims allow.
//!
//! The rule: every doubt makes a window longer.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use crate::models::register::Change;
use crate::record::{Claims, FORMAT, Header, How, Kind, Line};

/// Redis counts in whole milliseconds and reads the time before it runs a command.
const END_EARLY: i64 = 2_000;
const END_LATE: i64 = 5_000;
/// The end of the window of a change that may come at any time.
const NEVER: i64 = i64::MAX;
/// The session of changes that no client sends.
const NO_SESSION: u32 = u32::MAX;

pub(crate) struct History {
    pub(crate) terms: Terms,
    pub(crate) keys: Vec<Key>,
    /// The names of the sessions.
    pub(crate) sessions: Vec<String>,
    pub(crate) operations: usize,
}

/// The claims, and the periods in which they allow more.
pub(crate) struct Terms {
    claims: Claims,
    faults: Vec<(i64, i64)>,
    failovers: Vec<(i64, i64)>,
    graces: Vec<(i64, i64)>,
}

pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) changes: Vec<Timed>,
    pub(crate) reads: Vec<Read>,
    /// The values; an index here stands for each.
    pub(crate) values: Vec<String>,
    /// The moment in which each value was first sent.
    sent: HashMap<u32, i64>,
}

pub(crate) struct Timed {
    pub(crate) change: Change,
    pub(crate) session: u32,
    /// The place in the order of the session.
    pub(crate) place: u32,
    pub(crate) window: (i64, i64),
}

pub(crate) struct Read {
    pub(crate) session: u32,
    pub(crate) place: u32,
    pub(crate) value: Option<u32>,
    pub(crate) how: How,
    /// Whether the previous operation of the session was an acknowledged change.
    follows_change: bool,
    stale: Option<bool>,
    pub(crate) call: i64,
    pub(crate) returned: i64,
}

impl Timed {
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.session != NO_SESSION && self.window.1 != NEVER
    }

    fn is_unconditional(&self) -> bool {
        matches!(self.change, Change::Put { .. } | Change::Remove { .. })
    }
}

impl Read {
    /// Whether the promise is that no state before the read can be seen.
    pub(crate) fn must_be_current(&self) -> bool {
        self.how != How::Cached || self.follows_change
    }
}

impl Key {
    /// Returns the moment before which no read can have shown this value.
    pub(crate) fn first_sent(&self, value: Option<u32>) -> i64 {
        let Some(value) = value else { return 0 };
        self.sent.get(&value).copied().unwrap_or(NEVER)
    }

    /// Returns the changes that reads within these moments can show. What had ended before the last
    /// certain value was sent cannot show any more.
    pub(crate) fn changes_within(
        &self,
        (from, until): (i64, i64),
    ) -> impl Iterator<Item = &Timed> + Clone {
        let is_before = |timed: &&Timed| timed.is_unconditional() && timed.window.1 < from;
        let last = self.changes.iter().filter(is_before).map(|timed| timed.window.0).max();
        let first = last.unwrap_or(i64::MIN);
        self.changes.iter().filter(move |timed| timed.window.1 >= first && timed.window.0 <= until)
    }
}

impl Terms {
    /// Returns the moment of the oldest state that this read may show; nothing if it may be stale.
    pub(crate) fn oldest(&self, read: &Read) -> Option<i64> {
        let Claims { push, lease, ttl } = self.claims;
        if read.must_be_current() {
            let learns =
                read.how == How::Current && overlaps(&self.failovers, read.call, read.returned);
            return Some(if learns { read.call - push } else { read.call });
        }
        if self.may_be_stale(read) {
            return None;
        }
        let is_late = overlaps(&self.faults, read.call - push, read.call);
        let age = ttl.map_or(if is_late { lease } else { push }, |ttl| ttl + push);
        Some(read.call - age)
    }

    fn may_be_stale(&self, read: &Read) -> bool {
        read.stale != Some(false)
            && overlaps(&self.faults, read.call, read.returned)
            && overlaps(&self.graces, read.call, read.returned)
    }
}

fn overlaps(periods: &[(i64, i64)], from: i64, until: i64) -> bool {
    periods.iter().any(|period| period.0 <= until && period.1 >= from)
}

impl History {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("the history");
        let mut lines = text.lines();
        let header: Header =
            serde_json::from_str(lines.next().unwrap_or_default()).expect("the first line");
        assert_eq!(header.format, FORMAT);
        Self::of(
            header.claims,
            lines.map(|line| serde_json::from_str(line).expect("a line of the history")),
        )
    }

    pub(crate) fn of(claims: Claims, lines: impl Iterator<Item = Line>) -> Self {
        let mut builder = Builder::default();
        let (mut faults, mut failovers, mut graces) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            let period = (line.call, line.returned.unwrap_or(NEVER));
            match line.op {
                Kind::Fault => faults.push(period),
                Kind::Failover => failovers.push(period),
                Kind::Grace => graces.push(period),
                _ => builder.add(line),
            }
        }
        builder.finish(Terms { claims, faults, failovers, graces })
    }
}

#[derive(Default)]
struct Builder {
    keys: BTreeMap<String, Parts>,
    sessions: BTreeMap<String, Session>,
    /// Removals of all keys with a prefix.
    removals: Vec<(String, Raw)>,
    operations: usize,
}

#[derive(Default)]
struct Session {
    number: u32,
    places: u32,
    follows_change: bool,
}

/// The parts of a key's history.
#[derive(Default)]
struct Parts {
    changes: Vec<Raw>,
    reads: Vec<Read>,
    values: HashMap<String, u32>,
}

/// A change without its number.
#[derive(Clone, Copy)]
struct Raw {
    what: What,
    ttl: Option<i64>,
    session: u32,
    place: u32,
    window: (i64, i64),
}

#[derive(Clone, Copy)]
enum What {
    Put(u32),
    Remove,
    Retime(Option<bool>),
}

impl Builder {
    fn add(&mut self, line: Line) {
        self.operations += 1;
        let window = (line.call, line.returned.unwrap_or(NEVER));
        let (session, place, follows_change) = self.place(&line);
        let name = line.key.expect("a key");
        let raw = |what| Raw { what, ttl: line.ttl, session, place, window };
        if let Some(prefix) = name.strip_suffix('*') {
            return self.removals.push((prefix.to_owned(), raw(What::Remove)));
        }
        let parts = self.keys.entry(name).or_default();
        let next = u32::try_from(parts.values.len()).expect("a number of values");
        let value = line.value.map(|value| *parts.values.entry(value).or_insert(next));
        let (call, returned) = window;
        match line.op {
            Kind::Read => {
                let (how, stale) = (line.how.expect("the demand of a read"), line.stale);
                parts.reads.push(Read {
                    session,
                    place,
                    value,
                    how,
                    follows_change,
                    stale,
                    call,
                    returned,
                });
            }
            Kind::Write => parts.changes.push(raw(What::Put(value.expect("a value")))),
            Kind::Remove => parts.changes.push(raw(What::Remove)),
            _ => parts.changes.push(raw(What::Retime(line.found))),
        }
    }

    /// Returns the session of an operation, its place there, and whether it follows a change.
    fn place(&mut self, line: &Line) -> (u32, u32, bool) {
        let number = u32::try_from(self.sessions.len()).expect("a number of sessions");
        let new = || Session { number, ..Session::default() };
        let session = self.sessions.entry(line.client.clone()).or_insert_with(new);
        session.places += 1;
        let is_change = line.op != Kind::Read && line.returned.is_some();
        let follows_change = std::mem::replace(&mut session.follows_change, is_change);
        (session.number, session.places, follows_change)
    }

    fn finish(mut self, terms: Terms) -> History {
        for (name, parts) in &mut self.keys {
            let of_key = self.removals.iter().filter(|(prefix, _)| name.starts_with(prefix));
            parts.remove(of_key.map(|(_, raw)| *raw));
        }
        let keys = self.keys.into_iter().map(|(name, parts)| parts.finish(name)).collect();
        let mut sessions = vec![String::new(); self.sessions.len()];
        for (name, session) in self.sessions {
            sessions[session.number as usize] = name;
        }
        History { terms, keys, sessions, operations: self.operations }
    }
}

impl Parts {
    /// Adds the removals in the life of the key. The others change nothing that is read, and a key
    /// of a short life would have very many.
    fn remove(&mut self, removals: impl Iterator<Item = Raw>) {
        let first = self.changes.iter().map(|raw| raw.window.0).min().unwrap_or(NEVER);
        let last = self.reads.iter().map(|read| read.returned).max().unwrap_or(0);
        let end = |raw: &Raw| if raw.window.1 == NEVER { raw.window.0 } else { raw.window.1 };
        self.changes.extend(removals.filter(|raw| end(raw) >= first && raw.window.0 <= last));
    }

    fn finish(mut self, name: String) -> Key {
        self.changes.sort_by_key(|raw| raw.window.0);
        let mut changes = Vec::new();
        let mut sent = HashMap::new();
        for (number, raw) in (1..).zip(&self.changes) {
            let ends = raw.ttl.is_some();
            let change = match raw.what {
                What::Put(value) => Change::Put { number, value, ends },
                What::Remove => Change::Remove { number },
                What::Retime(found) => Change::Retime { number, ends, found },
            };
            let Raw { session, place, window, .. } = *raw;
            changes.push(Timed { change, session, place, window });
            if let What::Put(value) = raw.what {
                sent.entry(value).or_insert(window.0);
            }
            if let Some(ttl) = raw.ttl {
                let end = window.1.saturating_add(ttl + END_LATE);
                let window = (window.0 + ttl - END_EARLY, end);
                let change = Change::End { of: number };
                changes.push(Timed { change, session: NO_SESSION, place: 0, window });
            }
        }
        let mut values = vec![String::new(); self.values.len()];
        for (value, index) in self.values {
            values[index as usize] = value;
        }
        Key { name, changes, reads: self.reads, values, sent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::by_hand::History as Lines;

    fn key(lines: Lines) -> Key {
        lines.parsed().keys.pop().expect("a key")
    }

    #[test]
    fn change_has_a_number_and_maybe_an_end() {
        let key = key(Lines::default().expiring("w", "1", 50_000, 10, 20).remove("w", 30, 40));
        let changes: Vec<_> =
            key.changes.iter().map(|timed| (timed.change, timed.window)).collect();
        let put = Change::Put { number: 1, value: 0, ends: true };
        assert_eq!(changes[0], (put, (10, 20)));
        assert_eq!(changes[1], (Change::End { of: 1 }, (48_010, 55_020)));
        assert_eq!(changes[2], (Change::Remove { number: 2 }, (30, 40)));
    }

    #[test]
    fn what_a_later_value_hides_is_left_out() {
        let lines = Lines::default().write("w", "1", 0, 10).unknown("w", "2", 20);
        let key = key(lines.write("w", "3", 30, 40).write("w", "4", 50, 60));
        let within = |from, until| {
            let windows = key.changes_within((from, until));
            windows.map(|timed| timed.window.0).collect::<Vec<_>>()
        };
        assert_eq!(within(41, 45), [20, 30], "an unknown change may still come");
        assert_eq!(within(40, 100), [0, 20, 30, 50]);
        assert_eq!(within(61, 100), [20, 50]);
    }

    #[test]
    fn removal_by_prefix_is_of_each_key_with_it() {
        let lines = Lines::default().write("w", "1", 10, 20).cached("r", "1", 50, 60);
        let changes =
            |prefix, call| key(lines.clone().removal(prefix, call, call + 5)).changes.len();
        assert_eq!([changes("k", 30), changes("key", 30), changes("other", 30)], [2, 2, 1]);
        assert_eq!(
            [changes("k", 0), changes("k", 5), changes("k", 60), changes("k", 61)],
            [1, 2, 2, 1]
        );
    }
}
