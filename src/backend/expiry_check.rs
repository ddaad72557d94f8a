//! The expiry check: one `INFO keyspace` reports whether any key of the database has a time to
//! live.
//!
//! If no key has one, that request replaces the `PTTL` of every value read just before it. The
//! rules that must not be broken:
//!
//! - It is sent behind those reads, on a connection with tracking.
//! - No value is delivered before its reply arrives.
//! - Only Redis and Valkey are believed. They count at that very moment; other servers with the
//!   same protocol may not.
//!
//! A key that lost its time to live in between was changed, and its push arrives before that reply.
//! A key that gets one later is pushed like any other change.
//!
//! <https://redis.io/docs/latest/commands/info/>

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::fetch_command::UnexpectedReply;

/// The request for the server's identity and the expiry counts.
pub(super) const INFO_SERVER_KEYSPACE: &[u8] =
    b"*3\r\n$4\r\nINFO\r\n$6\r\nserver\r\n$8\r\nkeyspace\r\n";
/// The request for the expiry counts.
pub(super) const INFO_KEYSPACE: &[u8] = b"*2\r\n$4\r\nINFO\r\n$8\r\nkeyspace\r\n";

/// The programs that count expiring keys at the moment of the request.
const TRUSTED_SERVERS: [&str; 2] = ["redis-server", "valkey-server"];

/// The pause before the next check after some keys had a time to live.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The state of the expiry check of one database.
#[derive(Debug)]
pub(super) struct ExpiryCheck {
    database: u32,
    /// The last result. `None`: the server is not trusted, so every value is fetched with its
    /// `PTTL`.
    expiry: Option<Expiry>,
    /// The earliest time of the next check after some keys had a time to live.
    retry_at: Instant,
}

/// The result of an expiry check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// No key has a time to live.
    NoKeys,
    /// Some key may have a time to live.
    SomeKeys,
}

impl ExpiryCheck {
    pub(super) fn new(database: u32) -> Self {
        Self { database, expiry: Some(Expiry::SomeKeys), retry_at: Instant::now() }
    }

    /// Whether values may be fetched without `PTTL`, followed by [`INFO_KEYSPACE`].
    pub(super) fn no_key_expires(&self) -> bool {
        self.expiry == Some(Expiry::NoKeys)
    }

    /// Whether [`INFO_SERVER_KEYSPACE`] is due.
    pub(super) fn is_due(&self) -> bool {
        self.expiry == Some(Expiry::SomeKeys) && self.retry_at <= Instant::now()
    }

    /// Applies the reply to [`INFO_SERVER_KEYSPACE`].
    ///
    /// A server that refuses, omits the counts or is not trusted is never checked again.
    pub(super) fn on_server_info(&mut self, answer: &Value) {
        self.expiry = trusted_expiry(answer, self.database);
    }

    /// Parses the reply to [`INFO_KEYSPACE`].
    ///
    /// Never lifts an earlier [`Expiry::SomeKeys`]: a reply that was already under way then changes
    /// nothing.
    ///
    /// # Errors
    /// [`UnexpectedReply`] if it is no reply to this request.
    pub(super) fn on_keyspace_info(&mut self, answer: &Value) -> Result<Expiry, UnexpectedReply> {
        let expiry = match answer {
            // Redis may have started to refuse INFO, so the values still need their PTTL.
            Value::ServerError(_) => Expiry::SomeKeys,
            answer => {
                info(answer).and_then(|text| expiry(text, self.database)).ok_or(UnexpectedReply)?
            }
        };
        if expiry == Expiry::SomeKeys {
            self.defer();
        }
        Ok(expiry)
    }

    /// Makes the following fetches include `PTTL`, and delays the next check by [`RETRY_INTERVAL`].
    pub(super) fn defer(&mut self) {
        if self.expiry.is_some() {
            self.expiry = Some(Expiry::SomeKeys);
            self.retry_at = Instant::now() + RETRY_INTERVAL;
        }
    }
}

fn trusted_expiry(answer: &Value, database: u32) -> Option<Expiry> {
    let text = info(answer)?;
    let program = text.lines().find_map(|line| line.strip_prefix("executable:"))?;
    let name = program.rsplit('/').next().unwrap_or_default();
    TRUSTED_SERVERS.contains(&name).then(|| expiry(text, database)).flatten()
}

/// Returns the text of an INFO reply over RESP3.
///
/// No value of a key has this type, so a value is never mistaken for it.
fn info(answer: &Value) -> Option<&str> {
    match answer {
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

fn expiry(text: &str, database: u32) -> Option<Expiry> {
    // INFO omits a database without keys.
    let Some(counts) = counts(text, database).ok()? else { return Some(Expiry::NoKeys) };
    let expires = count(counts, "expires=")?;
    Some(if expires == "0" { Expiry::NoKeys } else { Expiry::SomeKeys })
}

/// Parses the reply to [`INFO_KEYSPACE`]. Returns whether it reports that no field of a hash has a
/// time to live; `false` for an error reply.
///
/// # Errors
/// [`UnexpectedReply`] if it is no reply to this request.
pub(super) fn no_field_expires(answer: &Value, database: u32) -> Result<bool, UnexpectedReply> {
    if let Value::ServerError(_) = answer {
        return Ok(false);
    }
    let counts = counts(info(answer).ok_or(UnexpectedReply)?, database)?;
    Ok(counts.is_none_or(|counts| count(counts, "subexpiry=") == Some("0")))
}

/// Returns the counts of a database; `None` if it has no keys.
///
/// # Errors
/// [`UnexpectedReply`] if the text has no section for them.
fn counts(text: &str, database: u32) -> Result<Option<&str>, UnexpectedReply> {
    let (_, databases) = text.split_once("# Keyspace\r\n").ok_or(UnexpectedReply)?;
    let name = format!("db{database}:");
    Ok(databases.lines().find_map(|line| line.strip_prefix(&name)))
}

fn count<'a>(counts: &'a str, name: &str) -> Option<&'a str> {
    counts.split(',').find_map(|count| count.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use redis::VerbatimFormat;

    use super::*;

    const KEYSPACE: &str = "# \
        Keyspace\r\ndb0:keys=7,expires=0,avg_ttl=0\r\ndb1:keys=1,expires=1,avg_ttl=9,subexpiry=0\r\n";

    fn said(text: &str) -> Value {
        Value::VerbatimString { format: VerbatimFormat::Text, text: text.to_owned() }
    }

    #[test]
    fn expiry_check_reads_its_own_database() {
        let databases = [(0, Expiry::NoKeys), (1, Expiry::SomeKeys), (10, Expiry::NoKeys)];
        for (database, expected) in databases {
            assert_eq!(
                ExpiryCheck::new(database).on_keyspace_info(&said(KEYSPACE)),
                Ok(expected),
                "{database}"
            );
        }
        assert_eq!(
            ExpiryCheck::new(0).on_keyspace_info(&said("# Keyspace\r\n")),
            Ok(Expiry::NoKeys)
        );
    }

    #[test]
    fn field_expiry_needs_an_explicit_zero() {
        let databases = "# Keyspace\r\ndb0:keys=1,expires=1,avg_ttl=9,subexpiry=0\r\ndb1:keys=1,\
            expires=0,avg_ttl=0,subexpiry=12\r\ndb2:keys=1,expires=0,avg_ttl=0\r\n";
        for (database, expected) in [(0, true), (1, false), (2, false), (3, true)] {
            assert_eq!(no_field_expires(&said(databases), database), Ok(expected), "{database}");
        }
        assert_eq!(no_field_expires(&said("# Server\r\n"), 0), Err(UnexpectedReply));
        assert_eq!(no_field_expires(&Value::Nil, 0), Err(UnexpectedReply));
    }

    #[test]
    fn malformed_keyspace_reply_is_unknown() {
        let odd =
            [said(""), said("# Server\r\n"), said("# Keyspace\r\ndb0:keys=1\r\n"), Value::Nil];
        for odd in odd.into_iter().chain([Value::BulkString(KEYSPACE.as_bytes().to_vec())]) {
            assert_eq!(ExpiryCheck::new(0).on_keyspace_info(&odd), Err(UnexpectedReply), "{odd:?}");
            assert_eq!(trusted_expiry(&odd, 0), None, "{odd:?}");
        }
    }

    #[test]
    fn expiry_check_trusts_known_servers_only() {
        for (program, is_one) in [
            ("executable:/usr/bin/redis-server\r\n", true),
            ("executable:valkey-server\r\n", true),
            ("executable:/usr/bin/other\r\n", false),
            ("executable:/redis-server/other\r\n", false),
            ("", false),
        ] {
            let answer = said(&format!("# Server\r\n{program}\r\n{KEYSPACE}"));
            assert_eq!(trusted_expiry(&answer, 0), is_one.then_some(Expiry::NoKeys), "{program}");
        }
    }
}
