//! The client for administrative commands to one node of a cluster.
//!
//! It has its own connection, made when it is needed and again after a loss. So a reply never waits
//! behind values, and a replica can be queried like a primary. No keys are read over it.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connector::Connector;
use super::dial::{Dialer, PrepareError};
use super::error::{BackendError, error_reply, unreachable};
use super::multiplexed::Multiplexed;
use super::network::Network;
use super::settings::{Mode, Settings};
use super::topology::Topology;
use super::value::text;

/// A client for administrative commands to one cluster node.
pub(crate) struct NodeClient {
    settings: Settings,
    connector: Connector,
    connection: Option<(Multiplexed, DriverTask)>,
}

/// The task that drives a connection. It is aborted when this is dropped.
struct DriverTask(JoinHandle<BackendError>);

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NodeClient {
    /// Creates a client of the node at `settings.url`. It connects with the first command.
    ///
    /// # Errors
    /// [`PrepareError`] if a certificate, key or password file cannot be used.
    pub(crate) fn new(network: Network, settings: &Settings) -> Result<Self, PrepareError> {
        let settings = Settings { mode: Mode::Standalone, ..settings.clone() };
        let dialer = Arc::new(Dialer::new(&settings)?.on(network));
        let topology = Arc::new(Topology::prepare(&settings, &dialer)?);
        let connector = Connector::new(&settings, dialer, topology);
        Ok(Self { settings, connector, connection: None })
    }

    /// Sends a command and returns its reply, which may be an error reply. Connects first if there
    /// is no connection.
    ///
    /// # Errors
    /// - [`BackendError::TimedOut`] if connecting and the reply together take longer than
    ///   `connect_timeout`.
    /// - [`BackendError::Unreachable`] if the node cannot be reached, or not in time, the login
    ///   cannot be read, or the connection ends.
    /// - [`BackendError::AuthRejected`] if the node rejects the login.
    pub(crate) async fn send(&mut self, command: &Cmd) -> Result<Value, BackendError> {
        let answer = timeout(self.settings.connect_timeout, self.send_reconnecting(command)).await;
        let answer = answer.unwrap_or_else(|_| Err(self.timeout_error()));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    fn timeout_error(&self) -> BackendError {
        match self.connection {
            Some(_) => BackendError::TimedOut,
            None => self.connector.timeout_error(),
        }
    }

    /// Sends a command and returns its reply as text.
    ///
    /// # Errors
    /// The errors of [`send`](Self::send), the error reply of the node, or
    /// [`BackendError::Unreachable`] if the reply is no text.
    pub(crate) async fn send_for_text(&mut self, command: &Cmd) -> Result<String, BackendError> {
        match self.send(command).await? {
            Value::ServerError(error) => Err(error_reply(error.code())),
            answer => {
                text(&answer).map(str::to_owned).ok_or_else(|| unreachable(&"the reply is no text"))
            }
        }
    }

    async fn send_reconnecting(&mut self, command: &Cmd) -> Result<Value, BackendError> {
        if let Some((connection, _)) = &self.connection
            && let Ok(answer) = connection.send(command).await
        {
            return Ok(answer);
        }
        let connected = self.connector.connect_anew().await?;
        let driver_task = DriverTask(tokio::spawn(connected.driver));
        let (connection, _) = self.connection.insert((connected.connection, driver_task));
        connection.send(command).await
    }
}
