//! Reads over Redis's own protocol, and everything else a client of Redis says.
//!
//! A client speaks to the proxy as it would to Redis. What can be answered from memory is, and all else goes to Redis over
//! a link of the client's own and comes back, byte for byte, in order. The rule that must not be broken: a client is never
//! told what Redis would not have told it on that connection at that moment. So an answer from memory is given only to
//! who could have read it (`standing`), and only when memory holds all that this client has been told already: after
//! anything it was told by Redis that memory may not know yet, it waits for a fence
//! ([`Proxy::fence`](crate::proxy::Proxy::fence)).
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

mod command;
mod connection;
mod link;
mod login;
mod output;
mod owed;
mod read;
mod reply;
mod request;
mod serve;
mod standing;

use std::fs;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::command::Commands;
pub use self::command::names;
use self::connection::Connection;
pub use self::reply::{Frame, NoReply, Protocol, ReplyScanner};
pub use self::request::{Arguments, Progress, ProtocolError, RequestLimits, RequestParser, UNAUTHENTICATED};
use self::standing::Origin;
use crate::access::Protection;
use crate::proxy::Proxy;
use crate::server::{Drain, Listen, Serve, Stream};
use crate::units::{self, ByteSize, Contradiction, Secret, absurd_limits, broken};

/// `[resp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where clients of Redis are served; empty: nowhere.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// Connections at most.
    #[serde(with = "units::count")]
    pub max_connections: usize,
    /// How long a connection may be silent while nothing is owed to it; zero: for ever, as with Redis.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// A file that holds the password by which clients get what the proxy itself may read; empty: Redis decides who they are.
    pub password_file: PathBuf,
    /// The largest argument of a command.
    pub max_bulk: ByteSize,
    /// Arguments of a command at most.
    #[serde(with = "units::count")]
    pub max_arguments: usize,
    /// As much of a command is held; what is longer is passed on as it comes.
    pub max_query_buffer: ByteSize,
    /// Bytes of answers that a client has not taken yet, beyond which no more of its commands are read.
    pub max_output_buffer: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            allow_unprotected: false,
            max_connections: 10_000,
            idle_timeout: Duration::ZERO,
            password_file: PathBuf::new(),
            max_bulk: ByteSize(512 << 20),
            max_arguments: 1 << 20,
            max_query_buffer: ByteSize(1 << 20),
            max_output_buffer: ByteSize(64 << 20),
        }
    }
}

impl Settings {
    /// What stands between strangers and Redis. That the proxy logs in there proves nothing: Redis may ask no one else.
    pub(crate) fn protection(&self) -> Protection {
        if self.allow_unprotected {
            Protection::Waived
        } else if self.password_file.as_os_str().is_empty() {
            Protection::Missing("resp.password_file, ")
        } else {
            Protection::Asked
        }
    }

    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        let buffer = format!("found {}, expected at least 256KiB, of which a line may have 64", self.max_query_buffer);
        let output = format!("found {}, expected at least 64KiB", self.max_output_buffer);
        let own = broken([
            (self.max_query_buffer.0 < 256 << 10, "resp.max_query_buffer", &buffer),
            (self.max_output_buffer.0 < 64 << 10, "resp.max_output_buffer", &output),
            (self.max_arguments == 0, "resp.max_arguments", "found 0, expected at least 1"),
        ]);
        [own, absurd_limits([(self.max_connections, "resp.max_connections")])].concat()
    }
}

/// The file of the front end's password cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("resp.password_file: \"{}\" cannot be used: {problem}", path.display())]
pub struct PasswordError {
    path: PathBuf,
    problem: String,
}

/// What all connections share.
struct Shared {
    proxy: Proxy,
    settings: Settings,
    password: Option<Secret>,
    commands: Commands,
    origin: Origin,
    /// The longest key that is kept.
    max_key: usize,
}

/// The front end.
pub struct Resp(Arc<Shared>);

impl Resp {
    /// A front end for `proxy`, which keeps values of keys of at most `max_key` bytes.
    ///
    /// # Errors
    /// The file of the password cannot be read, or is empty.
    pub fn prepare(settings: Settings, max_key: usize, proxy: Proxy) -> Result<Self, PasswordError> {
        let password = password(&settings)?;
        let (user, database) = proxy.origin();
        let origin = Origin { user, database };
        Ok(Self(Arc::new(Shared { proxy, settings, password, commands: Commands::new(), origin, max_key })))
    }
}

fn password(settings: &Settings) -> Result<Option<Secret>, PasswordError> {
    let path = &settings.password_file;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let wrong = |problem: String| PasswordError { path: path.clone(), problem };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(wrong("found nothing in it, expected a password".to_owned()));
    }
    Ok(Some(Secret::from(password.to_owned())))
}

impl Serve for Resp {
    fn serve(&self, stream: Stream, drain: Drain) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Connection::new(stream, Arc::clone(&self.0), drain).run())
    }

    fn refusal(&self) -> Vec<u8> {
        b"-ERR max number of clients reached\r\n".to_vec()
    }
}
