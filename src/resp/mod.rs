//! The RESP front end: clients speak to the proxy as they would to Redis.
//!
//! Model: reads that memory can answer are answered from it. Everything else goes to Redis over a
//! connection of the client's own and comes back byte for byte, in order. [`crate::commands`]
//! decides about each command; a `Connection` moves bytes and executes.
//!
//! The rule that must not be broken: a client never gets a reply that Redis would not have sent on
//! that connection at that moment. So memory serves only a session that could have read the value,
//! and only when memory holds every write that this client has seen. After a reply that may reflect
//! a write, the session waits for a fence ([`Proxy::fence`]).
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

mod batch;
mod cluster;
mod connection;
mod dedicated;
mod execute;
mod failure;
mod fence;
mod flights;
mod info;
mod lifetime;
mod local;
mod memory_reader;
mod pool;
mod reply_queue;
mod settings;
mod shared;
mod step;
mod turn;

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio::time::Instant;

// For the test that asks a real Redis.
#[doc(hidden)]
pub use self::cluster::KeySpecs;
use self::connection::Connection;
pub use self::local::{LocalClient, LocalClients};
pub use self::memory_reader::{MemoryReader, PREFETCHED};
pub use self::settings::Settings;
use self::shared::Shared;
use crate::access::{FileError, Prepare, Reloadable};
use crate::cache::{Answer, Entry, Hit, KeptReply, LookupTime, LookupUse, RuleId, RuleMode};
use crate::commands::{CommandTable, Identity, Memory, Policy};
use crate::metrics::FrontEnd;
use crate::net::ClientStream;
use crate::proxy::Proxy;
use crate::server::{Drain, Refusals, Service};
use crate::verify::ReplySample;

/// The front end.
pub struct Resp(Arc<Shared>);

impl Resp {
    /// A front end for `proxy`, which caches keys of at most `max_key` bytes.
    ///
    /// # Errors
    /// [`FileError`]: the password file cannot be read, or is empty.
    pub fn prepare(settings: Settings, max_key: usize, proxy: Proxy) -> Result<Self, FileError> {
        let credentials = settings.credentials()?;
        let commands = CommandTable::configured(&settings.cache_also, &settings.cache_except);
        let identity = proxy.identity();
        let info = settings.info;
        let allow_keys = settings.allow_keys.clone();
        let policy = Policy { identity, max_key, allow_keys, info };
        Ok(Self(Arc::new(Shared {
            proxy,
            front_end: FrontEnd::Resp,
            identity: Identity::Unauthenticated,
            login: None,
            pool: None,
            refusals: Refusals::default(),
            settings,
            credentials,
            commands,
            policy,
            key_specs: OnceCell::new(),
        })))
    }

    /// The files to read again at a reload.
    pub fn reloader(&self) -> Option<Prepare> {
        self.0.credentials.as_ref().map(Reloadable::reloader)
    }
}

impl Service for Resp {
    fn serve(
        &self,
        stream: ClientStream,
        drain: Drain,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Connection::new(stream, Arc::clone(&self.0), drain).run()
    }

    fn overload_response(&self) -> Vec<u8> {
        b"-ERR max number of clients reached\r\n".to_vec()
    }
}

impl Memory for Proxy {
    fn lookup(&self, key: &[u8], now: LookupTime, purpose: LookupUse) -> Option<Answer> {
        self.lookup_for(key, now, purpose)
    }

    #[inline]
    fn lookup_each<'a>(
        &self,
        keys: &[&'a [u8]],
        now: LookupTime,
        each: impl FnMut(&'a [u8], Option<Hit>) -> bool,
    ) {
        Self::lookup_each(self, keys, now, each);
    }

    fn lookup_reply(
        &self,
        command: &[u8],
        key: &[u8],
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        Self::lookup_reply(self, command, key, now, purpose)
    }

    fn lookup_whole(
        &self,
        command: &[u8],
        key: &[u8],
        derived: usize,
        now: LookupTime,
        purpose: LookupUse,
    ) -> Option<KeptReply> {
        Self::lookup_whole(self, command, key, derived, now, purpose)
    }

    fn rule_of<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Option<(RuleId, RuleMode)> {
        Self::rule_of(self, keys)
    }

    fn may_fetch_replies(&self, may_write: bool) -> bool {
        self.may_fetch() && !(may_write && self.is_ttl_only())
    }

    fn max_hash_fields(&self) -> usize {
        Self::max_hash_fields(self)
    }

    fn count_hit(&self, key: &[u8], entry: &Entry, now: Instant) {
        Self::count_hit(self, key, entry, now);
    }

    fn is_sampled(&self) -> bool {
        Self::is_sampled(self)
    }

    fn verify_reply(&self, sample: ReplySample, now: Instant) {
        Self::verify_reply(self, sample, now);
    }

    fn may_fetch(&self) -> bool {
        Self::may_fetch(self)
    }
}
