//! Clients in this process: another front end's requests, run as commands of a Redis client.
//!
//! Model: a [`LocalClient`] is a client's connection without a socket. It lives for one request and
//! begins as the proxy's own user. So each command goes through the same decision as a Redis
//! client's, and reads see the writes before them. Dropping it closes its stream to Redis;
//! [`LocalClient::finish`] returns the stream to the pool.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::connection::Connection;
use super::fence::Fences;
use super::lifetime::ConnState;
use super::memory_reader::MemoryReader;
use super::pool::Pool;
use super::settings::Settings;
use super::shared::Shared;
use crate::backend::OtherLogin;
use crate::commands::{CommandInfo, CommandTable, Identity, Policy};
use crate::metrics::FrontEnd;
use crate::net::ClientStream;
use crate::proxy::Proxy;
use crate::server::{Drain, Refusals};

/// The origin of clients in this process.
#[derive(Clone)]
pub struct LocalClients {
    shared: Arc<Shared>,
    /// Clients end with their requests, for which the drain waits anyway.
    drain: Drain,
}

/// A client in this process.
pub struct LocalClient {
    /// It is large. Boxed, it does not enlarge each future that holds the client.
    connection: Box<Connection>,
    has_ended: bool,
}

impl LocalClients {
    /// Clients of `front_end`. Keys of at most `max_key` bytes are cached. They share at most
    /// `pool` streams to Redis; with `None` each has its own. The streams log in with `login`, or
    /// as the proxy does.
    pub fn new(
        front_end: FrontEnd,
        settings: Settings,
        max_key: usize,
        pool: Option<usize>,
        login: Option<Arc<OtherLogin>>,
        proxy: Proxy,
    ) -> Self {
        let commands = CommandTable::configured(&settings.cache_also, &settings.cache_except);
        let identity = proxy.identity();
        let info = settings.info;
        let allow_keys = settings.allow_keys.clone();
        let policy = Policy { identity, max_key, allow_keys, info };
        let shared = Arc::new(Shared {
            front_end,
            identity: Identity::Proxy,
            login,
            pool: pool.map(Pool::new),
            proxy,
            refusals: Refusals::default(),
            settings,
            credentials: None,
            commands,
            policy,
            key_specs: OnceCell::new(),
        });
        Self { shared, drain: Drain::never() }
    }

    /// Returns the facts about the command of this name.
    pub fn find(&self, name: &[u8]) -> CommandInfo {
        self.shared.commands.find(name)
    }

    /// The commands of a new client, as far as memory answers them. It has seen the writes until
    /// `since`, and sent its commands at `now`.
    pub fn reader(&self, since: Option<Instant>, now: Instant) -> MemoryReader<'_> {
        MemoryReader::new(&self.shared, since, now)
    }

    /// A new client, which has seen the writes until `since`.
    pub fn client(&self, since: Option<Instant>) -> LocalClient {
        let client = ClientStream::Local(BytesMut::new());
        let (shared, drain) = (Arc::clone(&self.shared), self.drain.clone());
        let mut connection = Box::new(Connection::new(client, shared, drain));
        connection.fences = Fences::since(since);
        LocalClient { connection, has_ended: false }
    }
}

impl LocalClient {
    /// Sends commands, each whole. They are run while [`replies`](Self::replies) waits.
    pub fn send(&mut self, commands: BytesMut) {
        self.connection.input.unsplit(commands);
    }

    /// Returns the next bytes of replies. `None` at the end of the connection.
    pub async fn replies(&mut self) -> Option<BytesMut> {
        poll_fn(|cx| {
            if !self.has_ended {
                self.has_ended = self.connection.poll(cx).is_ready();
            }
            let ClientStream::Local(output) = &mut self.connection.client else {
                return Poll::Ready(None);
            };
            match (output.is_empty(), self.has_ended) {
                (false, _) => Poll::Ready(Some(output.split())),
                (true, true) => Poll::Ready(None),
                (true, false) => Poll::Pending,
            }
        })
        .await
    }

    /// Returns the time of the last reply that may reflect a write.
    pub fn last_write(&self) -> Option<Instant> {
        self.connection.fences.last_write()
    }

    /// Returns the stream to Redis to the pool, if nothing is pending on it. The caller knows that
    /// no command left a state that the session does not show. Otherwise it drops the client.
    pub fn finish(mut self) {
        let connection = &mut self.connection;
        let is_quiet = connection.state == ConnState::Commands
            && connection.session.is_pristine()
            && connection.replies.is_empty()
            && !connection.scanner.is_mid_reply()
            && !connection.keepalive_pending;
        let Some(pool) = connection.shared.pool.as_ref().filter(|_| is_quiet) else { return };
        if let Some(opened) = connection.redis.take_quiet() {
            pool.put(opened);
        }
    }
}
