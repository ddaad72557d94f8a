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

mod cluster;
mod connection;
mod dedicated;
mod execute;
mod failure;
mod fence;
mod lifetime;
mod reply_queue;
mod settings;
mod step;

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;

// For the test that asks a real Redis.
#[doc(hidden)]
pub use self::cluster::KeySpecs;
use self::cluster::Terms;
use self::connection::Connection;
pub use self::settings::Settings;
use crate::access::{FileError, Prepare, Reloadable};
use crate::backend::{BackendError, ConnectAs, EpochStream};
use crate::commands::{CommandTable, Credentials, Memory, Policy};
use crate::net::ClientStream;
use crate::protocol::RequestLimits;
use crate::proxy::Proxy;
use crate::server::{Drain, Service};

/// The state that all connections share.
struct Shared {
    proxy: Proxy,
    settings: Settings,
    credentials: Option<Reloadable<Credentials>>,
    commands: CommandTable,
    policy: Policy,
    /// Before a cluster: which arguments are keys, once a node has reported it.
    key_specs: OnceCell<Arc<KeySpecs>>,
}

impl Shared {
    /// Opens a stream to Redis for one client alone; before a cluster, to all of its nodes.
    async fn open(self: Arc<Self>, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let Some(cluster) = self.proxy.cluster() else { return self.proxy.open(client).await };
        let specs = self.key_specs.get_or_try_init(|| async {
            let specs = KeySpecs::read(&cluster.command_table().await?);
            if specs.is_empty() {
                return Err(BackendError::Unavailable("COMMAND".into()));
            }
            Ok(Arc::new(specs))
        });
        let terms = Terms {
            specs: Arc::clone(specs.await?),
            limits: RequestLimits {
                max_bulk: self.settings.max_bulk.0,
                max_arguments: self.settings.max_arguments,
            },
            most_held: self.settings.max_output_buffer.0,
            patience: cluster.retry_timeout(),
        };
        Ok(cluster::open(cluster.clone(), client, terms))
    }
}

/// The front end.
pub struct Resp(Arc<Shared>);

impl Resp {
    /// A front end for `proxy`, which caches keys of at most `max_key` bytes.
    ///
    /// # Errors
    /// [`FileError`]: the password file cannot be read, or is empty.
    pub fn prepare(settings: Settings, max_key: usize, proxy: Proxy) -> Result<Self, FileError> {
        let (user, path) = (settings.username.clone(), settings.password_file.clone());
        let is_set = !path.as_os_str().is_empty();
        let read = move || Credentials::read(&user, &path);
        let credentials = is_set.then(|| Reloadable::load(read)).transpose()?;
        let identity = proxy.identity();
        let policy = Policy { identity, max_key, allow_keys: settings.allow_keys.clone() };
        Ok(Self(Arc::new(Shared {
            proxy,
            settings,
            credentials,
            commands: CommandTable::new(),
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
        Box::pin(Connection::new(stream, Arc::clone(&self.0), drain).run())
    }

    fn overload_response(&self) -> Vec<u8> {
        b"-ERR max number of clients reached\r\n".to_vec()
    }
}

impl Memory for Proxy {
    fn lookup(&self, key: &[u8], now: tokio::time::Instant) -> Option<crate::cache::Answer> {
        Self::lookup(self, key, now)
    }

    fn count_key(&self, key: &[u8], now: tokio::time::Instant) {
        Self::count_key(self, key, now);
    }

    fn may_fetch(&self) -> bool {
        Self::may_fetch(self)
    }
}
