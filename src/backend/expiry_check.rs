//! Whether any key of the database has a time to live, which Redis says of all of them at once (`INFO keyspace`).
//!
//! Where none has, one such question stands for the `PTTL` of every value that was read just before it. The rules that must
//! not be broken: it is asked behind those reads, on a connection over which Redis tells of changes; no value is given out
//! before its answer has come; and only of Redis and Valkey themselves, which count at that very moment, whatever else may
//! speak their protocol. A key that lost its time to live in between was changed, which is told before that answer, and one
//! that gets it later is told of like any other change.
//!
//! <https://redis.io/docs/latest/commands/info/>

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::fetch_command::UnexpectedReply;

/// Asks who answers, and whether keys have a time to live.
pub(super) const INFO_SERVER_KEYSPACE: &[u8] =
    b"*3\r\n$4\r\nINFO\r\n$6\r\nserver\r\n$8\r\nkeyspace\r\n";
/// Asks whether keys have a time to live.
pub(super) const INFO_KEYSPACE: &[u8] = b"*2\r\n$4\r\nINFO\r\n$8\r\nkeyspace\r\n";

/// The programs that count at the moment they are asked.
const TRUSTED_SERVERS: [&str; 2] = ["redis-server", "valkey-server"];

/// How long Redis is not asked again after it said that some keys have a time to live.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a database.
#[derive(Debug)]
pub(super) struct ExpiryCheck {
    database: u32,
    /// Whether values are to be asked for with their times to live; none: they are, and Redis is not asked about all any more.
    expiry: Option<Expiry>,
    /// When it may be asked again, after it said that some have.
    retry_at: Instant,
}

/// Whether keys have a time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// No key has one.
    NoKeys,
    /// Some key may have one.
    SomeKeys,
}

impl ExpiryCheck {
    pub(super) fn new(database: u32) -> Self {
        Self { database, expiry: Some(Expiry::SomeKeys), retry_at: Instant::now() }
    }

    /// Whether values may be asked for alone, with [`INFO_KEYSPACE`] behind them.
    pub(super) fn no_key_expires(&self) -> bool {
        self.expiry == Some(Expiry::NoKeys)
    }

    /// Whether it is time for [`INFO_SERVER_KEYSPACE`].
    pub(super) fn is_due(&self) -> bool {
        self.expiry == Some(Expiry::SomeKeys) && self.retry_at <= Instant::now()
    }

    /// Takes the answer to [`INFO_SERVER_KEYSPACE`]. Who does not say, is not to be relied on, or refuses, is not asked again.
    pub(super) fn on_server_info(&mut self, answer: &Value) {
        self.expiry = trusted_expiry(answer, self.database);
    }

    /// Takes the answer to [`INFO_KEYSPACE`]. Where keys may have a time to live by what came before it, that stands: an answer that
    /// was on its way then changes nothing.
    ///
    /// # Errors
    /// It is not what Redis answers to that.
    pub(super) fn on_keyspace_info(&mut self, answer: &Value) -> Result<Expiry, UnexpectedReply> {
        let expiry = match answer {
            // It may be refused from now on.
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

    /// Has values asked for with their times to live from here on, and does not ask again soon.
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

/// What INFO says over RESP3. No value of a key is of this type, so that one is never taken for it.
fn info(answer: &Value) -> Option<&str> {
    match answer {
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

fn expiry(text: &str, database: u32) -> Option<Expiry> {
    let (_, databases) = text.split_once("# Keyspace\r\n")?;
    let name = format!("db{database}:");
    // A database without keys is left out.
    let Some(counts) = databases.lines().find_map(|line| line.strip_prefix(&name)) else {
        return Some(Expiry::NoKeys);
    };
    let expires = counts.split(',').find_map(|count| count.strip_prefix("expires="))?;
    Some(if expires == "0" { Expiry::NoKeys } else { Expiry::SomeKeys })
}

#[cfg(test)]
mod tests {
    use redis::VerbatimFormat;

    use super::*;

    const KEYSPACE: &str = "# Keyspace\r\ndb0:keys=7,expires=0,avg_ttl=0\r\ndb1:keys=1,expires=1,avg_ttl=9,subexpiry=0\r\n";

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
