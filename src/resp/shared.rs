//! The state that all connections of the front end share.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::cluster::{KeySpecs, Terms, open};
use super::dedicated::Opened;
use super::pool::Pool;
use super::settings::Settings;
use crate::access::Reloadable;
use crate::backend::{BackendError, ConnectAs, EpochStream, OtherLogin};
use crate::commands::{CommandTable, Credentials, Identity, Policy};
use crate::metrics::FrontEnd;
use crate::protocol::RequestLimits;
use crate::proxy::Proxy;
use crate::server::Refusals;

/// The state that all connections share.
pub(super) struct Shared {
    /// The front end of the connections, for metrics.
    pub(super) front_end: FrontEnd,
    /// The identity of a new client.
    pub(super) identity: Identity,
    /// The login to Redis of clients that are logged in; `None`: that of the proxy.
    pub(super) login: Option<Arc<OtherLogin>>,
    /// The streams that clients of this process share, one after the other.
    pub(super) pool: Option<Pool>,
    pub(super) proxy: Proxy,
    /// The log of clients without a valid login.
    pub(super) refusals: Refusals,
    pub(super) settings: Settings,
    pub(super) credentials: Option<Reloadable<Credentials>>,
    pub(super) commands: CommandTable,
    pub(super) policy: Policy,
    /// Before a cluster: which arguments are keys, once a node has reported it.
    pub(super) key_specs: OnceCell<Arc<KeySpecs>>,
}

impl Shared {
    /// Returns a stream to Redis for one client alone: a new one, or one that the pool keeps.
    pub(super) async fn open(self: Arc<Self>, client: ConnectAs) -> Result<Opened, BackendError> {
        let Some(pool) = &self.pool else {
            return Ok(Opened { stream: self.open_new(client).await?, permit: None });
        };
        let permit = pool.acquire().await?;
        let stream = match pool.take().await {
            Some(stream) => stream,
            None => self.open_new(client).await?,
        };
        Ok(Opened { stream, permit: Some(permit) })
    }

    /// Opens a stream to Redis; before a cluster, to all of its nodes.
    async fn open_new(&self, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let client = match &self.login {
            Some(login) if client == ConnectAs::ProxyUser => ConnectAs::Other(Arc::clone(login)),
            _ => client,
        };
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
        Ok(open(cluster.clone(), client, terms))
    }
}
