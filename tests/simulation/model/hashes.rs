//! The commands about hashes, and fields with a time to live, as Redis 8.0 has them.
//!
//! A field that has expired is hidden from `HGETALL` and counted by `HLEN`. `HGET` deletes it, and
//! the readers of the key get their push then. The active expiry deletes it without a push.

use std::collections::BTreeMap;

use super::{Entry, Model, Outcome, Value, WRONG_TYPE, parse, wrong_arity};

/// The value of a field, and its end in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) value: Vec<u8>,
    pub(super) expires_at: Option<u64>,
}

impl Field {
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|end| end < now)
    }
}

pub(super) type Fields = BTreeMap<Vec<u8>, Field>;

impl Model {
    pub(super) fn hash(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let key = &command[1];
        let fields = match self.find(key).map(|entry| &entry.value) {
            None => Fields::new(),
            Some(Value::Hash(fields)) => fields.clone(),
            Some(Value::Text(_)) => return Err(WRONG_TYPE.to_owned()),
        };
        match name {
            "hget" => {
                self.hget(key, fields, &command[2]);
                Ok(())
            }
            "hlen" => self.integer(i64::try_from(fields.len()).unwrap_or(0)),
            "hgetall" => {
                let now = self.now;
                let live: Vec<_> = fields.iter().filter(|(_, field)| !field.is_over(now)).collect();
                self.head('%', live.len());
                for (name, field) in live {
                    self.bulk(name);
                    self.bulk(&field.value);
                }
                Ok(())
            }
            "hset" => self.hset(command, fields),
            "hdel" => self.hdel(command, fields),
            _ => self.field_times(name, command, fields),
        }
    }

    /// Returns a field. One that has expired is deleted.
    fn hget(&mut self, key: &[u8], mut fields: Fields, name: &[u8]) {
        let field = fields.remove(name);
        let is_over = field.as_ref().is_some_and(|field| field.is_over(self.now));
        if is_over {
            self.replace_fields(key, fields);
        }
        self.optional(field.filter(|_| !is_over).map(|field| field.value));
    }

    fn hset(&mut self, command: &[Vec<u8>], mut fields: Fields) -> Outcome {
        if !command.len().is_multiple_of(2) {
            return Err(wrong_arity("hset"));
        }
        let mut added = 0;
        for pair in command[2..].chunks(2) {
            let field = Field { value: pair[1].clone(), expires_at: None };
            added += i64::from(fields.insert(pair[0].clone(), field).is_none());
        }
        self.replace_fields(&command[1], fields);
        self.integer(added)
    }

    fn hdel(&mut self, command: &[Vec<u8>], mut fields: Fields) -> Outcome {
        let removed = command[2..].iter().filter(|name| fields.remove(*name).is_some()).count();
        if removed > 0 {
            self.replace_fields(&command[1], fields);
        }
        self.integer(i64::try_from(removed).unwrap_or(0))
    }

    /// Stores the fields of a hash, which keeps its own end. Without fields there is no hash.
    fn replace_fields(&mut self, key: &[u8], fields: Fields) {
        if fields.is_empty() {
            self.remove(key);
        } else {
            let expires_at = self.keys.get(key).and_then(|entry| entry.expires_at);
            self.store(key, Value::Hash(fields), expires_at);
        }
    }

    /// Runs `HPEXPIRE key milliseconds FIELDS n field ..`, `HPTTL key FIELDS n field ..` or
    /// `HPERSIST` of the same form.
    fn field_times(&mut self, name: &str, command: &[Vec<u8>], mut fields: Fields) -> Outcome {
        let words = if name == "hpexpire" { &command[3..] } else { &command[2..] };
        let [word, count, names @ ..] = words else { return Err(wrong_arity(name)) };
        if !word.eq_ignore_ascii_case(b"fields") || parse(count) != Ok(as_number(names.len())) {
            return Err("ERR the model does not know this form of the command".to_owned());
        }
        let (now, mut is_changed) = (self.now, false);
        let millis = if name == "hpexpire" { parse(&command[2])? } else { 0 };
        let mut replies = Vec::new();
        for one in names {
            let Some(field) = fields.get_mut(one).filter(|field| !field.is_over(now)) else {
                replies.push(-2);
                continue;
            };
            replies.push(match (name, field.expires_at) {
                ("hpttl", Some(end)) => i64::try_from(end - now).unwrap_or(i64::MAX),
                ("hpttl" | "hpersist", None) => -1,
                ("hpersist", Some(_)) => {
                    (field.expires_at, is_changed) = (None, true);
                    1
                }
                _ if millis <= 0 => {
                    fields.remove(one);
                    is_changed = true;
                    2
                }
                _ => {
                    field.expires_at = Some(now + u64::try_from(millis).unwrap_or(0));
                    is_changed = true;
                    1
                }
            });
        }
        if is_changed {
            self.replace_fields(&command[1], fields);
        }
        self.head('*', replies.len());
        replies.into_iter().try_for_each(|reply| self.integer(reply))
    }

    /// Deletes the fields of a key that have expired at `now`, as the active expiry does, without
    /// a push.
    pub(in super::super) fn expire_fields(&mut self, key: &[u8], now: u64) {
        let Some(Entry { value: Value::Hash(fields), .. }) = self.keys.get_mut(key) else { return };
        fields.retain(|_, field| !field.is_over(now));
        if fields.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Returns the hashes with a field that has expired at `now` and is not deleted yet.
    pub(in super::super) fn with_expired_fields(&self, now: u64) -> Vec<Vec<u8>> {
        let has_expired = |entry: &Entry| match &entry.value {
            Value::Hash(fields) => fields.values().any(|field| field.is_over(now)),
            Value::Text(_) => false,
        };
        self.keys.iter().filter(|(_, one)| has_expired(one)).map(|(key, _)| key.clone()).collect()
    }
}

fn as_number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns the fields as one text; `None` if there are none.
pub(super) fn flat(fields: &Fields, now: u64) -> Option<Vec<u8>> {
    let live = fields.iter().filter(|(_, field)| !field.is_over(now));
    let pairs: Vec<_> = live.map(|(name, field)| [&name[..], &field.value].join(&b'=')).collect();
    (!pairs.is_empty()).then(|| pairs.join(&b' '))
}
