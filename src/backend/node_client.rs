//! Questions about a cluster, put to one of its nodes.
//!
//! They go over a link of their own, which is made when it is needed and again when it was lost, so that an answer never waits
//! behind values, and a replica can be asked like a primary. Nothing is read over it.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connector::Connector;
use super::dial::{Dialer, PrepareError};
use super::error::{BackendError, error_reply, unreachable};
use super::multiplexed::{Multiplexed, handshake_command};
use super::settings::{Mode, Settings};
use super::topology::Topology;
use super::tracking::text;

/// Who asks one node.
pub(crate) struct NodeClient {
    settings: Settings,
    connector: Connector,
    connection: Option<(Multiplexed, DriverTask)>,
}

/// What moves the bytes of a link, until it is dropped.
struct DriverTask(JoinHandle<BackendError>);

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NodeClient {
    /// A scout that asks the node which `settings.url` leads to.
    ///
    /// # Errors
    /// A certificate, key or password file that cannot be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, PrepareError> {
        let settings = Settings { mode: Mode::Standalone, ..settings.clone() };
        let dialer = Arc::new(Dialer::new(&settings)?);
        let topology = Arc::new(Topology::prepare(&settings, &dialer)?);
        let connector = Connector::new(&settings, dialer, topology);
        Ok(Self { settings, connector, connection: None })
    }

    /// The answer to a command, within `connect_timeout`.
    ///
    /// # Errors
    /// The node does not answer.
    pub(crate) async fn send(&mut self, command: &Cmd) -> Result<Value, BackendError> {
        let answer = timeout(self.settings.connect_timeout, self.send_reconnecting(command)).await;
        let answer = answer.unwrap_or(Err(BackendError::TimedOut));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// The text that is the answer to a command.
    ///
    /// # Errors
    /// The node does not answer, or not with a text.
    pub(crate) async fn send_for_text(&mut self, command: &Cmd) -> Result<String, BackendError> {
        match self.send(command).await? {
            Value::ServerError(error) => Err(error_reply(error.code())),
            answer => text(&answer)
                .map(str::to_owned)
                .ok_or_else(|| unreachable(&"found no text for an answer")),
        }
    }

    async fn send_reconnecting(&mut self, command: &Cmd) -> Result<Value, BackendError> {
        if let Some((connection, _)) = &self.connection
            && let Ok(answer) = handshake_command(connection, command).await
        {
            return Ok(answer);
        }
        self.connector.read_login().await?;
        self.connector.resolve_endpoint().await?;
        let connected = self.connector.connect_untracked().await?;
        let driver_task = DriverTask(tokio::spawn(connected.driver));
        let (connection, _) = self.connection.insert((connected.connection, driver_task));
        handshake_command(connection, command).await
    }
}
