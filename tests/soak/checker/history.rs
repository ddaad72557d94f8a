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
    /// The moments in which the writers went on at another primary, in order.
    switches: Vec<i64>,
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
    /// The number of the switch at which the change may be lost.
    pub(crate) switch: Option<u32>,
}

pub(crate) struct Read {
    pub(crate) session: u32,
    pub(crate) place: u32,
    pub(crate) value: Option<u32>,
    pub(crate) how: How,
    /// Whether the previous operation of the session was an acknowledged change.
    follows_change: bool,
    stale: Option<bool>,
    /// The number of the switch before which the primary was that the read may be of.
    pub(crate) switch: Option<u32>,
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
        let is_before = |timed: &&Timed| {
            timed.is_unconditional() && timed.switch.is_none() && timed.window.1 < from
        };
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

    /// Returns the moment of a switch.
    pub(crate) fn switched(&self, number: u32) -> i64 {
        self.switches[number as usize]
    }

    /// Returns the last switch before a moment.
    pub(crate) fn last_switch(&self, until: i64) -> Option<i64> {
        self.switches.iter().copied().filter(|moment| *moment <= until).max()
    }

    /// Returns the number of the switch behind which the proxy may not have known the next primary
    /// yet at this time.
    fn switch_within(&self, (from, until): (i64, i64)) -> Option<u32> {
        let number = self.switches.partition_point(|moment| self.is_known(*moment) < from);
        let has_come = self.switches.get(number).is_some_and(|moment| *moment <= until);
        has_come.then_some(u32::try_from(number).expect("a number of switches"))
    }

    /// Returns the moment in which the proxy knows of the primary to which a switch led.
    fn is_known(&self, switched: i64) -> i64 {
        switched.saturating_add(self.claims.push)
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
        let mut switches = Vec::new();
        for line in lines {
            let period = (line.call, line.returned.unwrap_or(NEVER));
            match line.op {
                Kind::Fault => faults.push(period),
                Kind::Failover => failovers.push(period),
                Kind::Grace => graces.push(period),
                Kind::Switch => switches.push(line.call),
                _ => builder.add(line),
            }
        }
        switches.sort_unstable();
        builder.finish(Terms { claims, faults, failovers, graces, switches })
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
    /// Whether it was sent through the proxy.
    is_proxied: bool,
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
        let is_proxied = line.how == Some(How::Proxied);
        let raw = |what| Raw { what, ttl: line.ttl, session, place, window, is_proxied };
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
                    switch: None,
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
        let keys = self.keys.into_iter().map(|(name, parts)| parts.finish(name, &terms)).collect();
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

    /// Returns the switch at which a change may be lost. It is not lost if the next primary shows
    /// it: to any read that is sent too late for the previous one, or to a straight read.
    fn switch(&self, raw: &Raw, terms: &Terms) -> Option<u32> {
        let What::Put(value) = raw.what else { return None };
        let number = terms.switch_within(raw.window).filter(|_| raw.is_proxied)?;
        let switched = terms.switched(number);
        let is_of_next = |read: &Read| {
            let from = if read.how == How::Direct { switched } else { terms.is_known(switched) };
            read.call > from
        };
        let shows = |read: &Read| read.value == Some(value) && is_of_next(read);
        (!self.reads.iter().any(shows)).then_some(number)
    }

    fn finish(mut self, name: String, terms: &Terms) -> Key {
        self.changes.sort_by_key(|raw| raw.window.0);
        for read in self.reads.iter_mut().filter(|read| read.how != How::Direct) {
            read.switch = terms.switch_within((read.call, read.returned));
        }
        let mut changes = Vec::new();
        let mut sent = HashMap::new();
        for (number, raw) in (1..).zip(&self.changes) {
            let ends = raw.ttl.is_some();
            let change = match raw.what {
                What::Put(value) => Change::Put { number, value, ends },
                What::Remove => Change::Remove { number },
                What::Retime(found) => Change::Retime { number, ends, found },
            };
            let (Raw { session, place, window, .. }, switch) = (*raw, self.switch(raw, terms));
            changes.push(Timed { change, session, place, window, switch });
            if let What::Put(value) = raw.what {
                sent.entry(value).or_insert(window.0);
            }
            if let Some(ttl) = raw.ttl {
                let end = window.1.saturating_add(ttl + END_LATE);
                let window = (window.0 + ttl - END_EARLY, end);
                let change = Change::End { of: number };
                let (session, place, switch) = (NO_SESSION, 0, None);
                changes.push(Timed { change, session, place, window, switch });
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
    use crate::checker::by_hand::{History as Lines, PUSH};

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
    fn write_that_may_be_lost_has_its_switch() {
        let lines = || Lines::default().proxied("c", "1", 10, 20).switch(1000);
        let known = 1000 + PUSH;
        let switch = |lines: Lines| key(lines).changes.last().expect("a change").switch;
        assert_eq!(switch(lines()), None, "before the switch");
        assert_eq!(switch(lines().proxied("c", "2", 990, 1001)), Some(0));
        assert_eq!(switch(lines().proxied("c", "2", known, known + 9)), Some(0));
        assert_eq!(switch(lines().proxied("c", "2", known + 1, known + 9)), None, "too late");
        assert_eq!(switch(lines().write("w", "2", 1001, 1009)), None, "straight");
        let lost = || lines().proxied("c", "2", 1001, 1009).cached("r", "2", known, known + 9);
        assert_eq!(switch(lost()), Some(0));
        let late = lost().cached("s", "2", known + 1, known + 9);
        assert_eq!(switch(late), None, "a later read shows it");
        let straight = lost().direct("s", "2", 1010, 1019);
        assert_eq!(switch(straight), None, "the next primary has it");
    }

    #[test]
    fn read_within_a_push_has_its_switch() {
        let lines = || Lines::default().write("w", "1", 10, 20).switch(1000).switch(2_000_000);
        let switch = |lines: Lines| key(lines).reads.pop().expect("a read").switch;
        let at = |call| switch(lines().cached("r", "1", call, call + 9));
        assert_eq!([at(990), at(991), at(1000 + PUSH)], [None, Some(0), Some(0)]);
        assert_eq!([at(1001 + PUSH), at(2_000_000), at(2_000_001 + PUSH)], [None, Some(1), None]);
        assert_eq!(switch(lines().current("r", "1", 1001, 1009)), Some(0));
        assert_eq!(switch(lines().direct("r", "1", 1001, 1009)), None, "straight");
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
