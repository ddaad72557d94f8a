//! Histories written by hand, of one key, for the tests of the models. Times are in microseconds.

use super::history;
use super::is_legal;
use crate::models::Promise;
use crate::record::{Claims, How, Kind, Line};

pub(crate) const PUSH: i64 = 250_000;
pub(crate) const LEASE: i64 = 1_000_000;
const KEY: &str = "key";

#[derive(Clone, Default)]
pub(crate) struct History {
    lines: Vec<Line>,
    ttl: Option<i64>,
}

/// Whether the checker finds an order that the promise allows.
pub(crate) fn accepts<P: Promise>(history: History) -> bool {
    let history = history.parsed();
    history
        .keys
        .iter()
        .flat_map(|key| P::histories(key, &history.terms))
        .all(|part| is_legal::<P>(&part) == Some(true))
}

impl History {
    pub(crate) fn parsed(self) -> history::History {
        let claims = Claims { push: PUSH, lease: LEASE, ttl: self.ttl };
        history::History::of(claims, self.lines.into_iter())
    }

    fn with(mut self, line: Line) -> Self {
        self.lines.push(Line { key: line.key.or_else(|| Some(KEY.to_owned())), ..line });
        self
    }

    pub(crate) fn write(self, client: &str, value: &str, call: i64, returned: i64) -> Self {
        let value = Some(value.to_owned());
        self.with(Line { value, ..Line::new(client, Kind::Write, call, Some(returned)) })
    }

    /// A write through the proxy.
    pub(crate) fn proxied(self, client: &str, value: &str, call: i64, returned: i64) -> Self {
        let (value, how) = (Some(value.to_owned()), Some(How::Proxied));
        self.with(Line { value, how, ..Line::new(client, Kind::Write, call, Some(returned)) })
    }

    /// The change to another end, which found a value.
    pub(crate) fn expire(self, client: &str, ttl: i64, call: i64, returned: i64) -> Self {
        let (ttl, found) = (Some(ttl), Some(true));
        self.with(Line { ttl, found, ..Line::new(client, Kind::Expire, call, Some(returned)) })
    }

    /// The change to no end, which found a value.
    pub(crate) fn persist(self, client: &str, call: i64, returned: i64) -> Self {
        let found = Some(true);
        self.with(Line { found, ..Line::new(client, Kind::Persist, call, Some(returned)) })
    }

    /// A write whose outcome is unknown.
    pub(crate) fn unknown(self, client: &str, value: &str, call: i64) -> Self {
        let value = Some(value.to_owned());
        self.with(Line { value, ..Line::new(client, Kind::Write, call, None) })
    }

    pub(crate) fn expiring(
        self,
        client: &str,
        value: &str,
        ttl: i64,
        call: i64,
        returned: i64,
    ) -> Self {
        let (value, ttl) = (Some(value.to_owned()), Some(ttl));
        self.with(Line { value, ttl, ..Line::new(client, Kind::Write, call, Some(returned)) })
    }

    pub(crate) fn remove(self, client: &str, call: i64, returned: i64) -> Self {
        self.with(Line::new(client, Kind::Remove, call, Some(returned)))
    }

    pub(crate) fn removal(self, prefix: &str, call: i64, returned: i64) -> Self {
        let key = Some(format!("{prefix}*"));
        self.with(Line { key, ..Line::new("flusher", Kind::Remove, call, Some(returned)) })
    }

    fn read(
        self,
        client: &str,
        value: Option<&str>,
        (how, stale): (How, Option<bool>),
        (call, returned): (i64, i64),
    ) -> Self {
        let (value, how) = (value.map(str::to_owned), Some(how));
        self.with(Line { value, how, stale, ..Line::new(client, Kind::Read, call, Some(returned)) })
    }

    pub(crate) fn cached(self, client: &str, value: &str, call: i64, returned: i64) -> Self {
        self.read(client, Some(value), (How::Cached, None), (call, returned))
    }

    pub(crate) fn cached_absence(self, client: &str, call: i64, returned: i64) -> Self {
        self.read(client, None, (How::Cached, None), (call, returned))
    }

    /// A cached read with or without a mark as stale.
    pub(crate) fn marked(
        self,
        client: &str,
        value: &str,
        stale: Option<bool>,
        call: i64,
        returned: i64,
    ) -> Self {
        self.read(client, Some(value), (How::Cached, stale), (call, returned))
    }

    pub(crate) fn current(self, client: &str, value: &str, call: i64, returned: i64) -> Self {
        self.read(client, Some(value), (How::Current, Some(false)), (call, returned))
    }

    pub(crate) fn current_absence(self, client: &str, call: i64, returned: i64) -> Self {
        self.read(client, None, (How::Current, Some(false)), (call, returned))
    }

    pub(crate) fn direct(self, client: &str, value: &str, call: i64, returned: i64) -> Self {
        self.read(client, Some(value), (How::Direct, None), (call, returned))
    }

    pub(crate) fn direct_absence(self, client: &str, call: i64, returned: i64) -> Self {
        self.read(client, None, (How::Direct, None), (call, returned))
    }

    /// A period, by its name in the format.
    pub(crate) fn period(self, op: &str, from: i64, until: i64) -> Self {
        let op = match op {
            "fault" => Kind::Fault,
            "failover" => Kind::Failover,
            _ => Kind::Grace,
        };
        self.with(Line::new("adversary", op, from, Some(until)))
    }

    /// The moment from which the writers use another primary.
    pub(crate) fn switch(self, moment: i64) -> Self {
        self.with(Line::new("adversary", Kind::Switch, moment, Some(moment)))
    }

    pub(crate) fn ttl_mode(self, ttl: i64) -> Self {
        Self { ttl: Some(ttl), ..self }
    }
}
