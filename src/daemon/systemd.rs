//! The interface to systemd: socket activation, notifications and the watchdog.
//!
//! Nothing here has an effect without `NOTIFY_SOCKET` or `LISTEN_FDS`. Every notification is true
//! when it is sent: ready once the sockets are bound, and alive only after every worker has just
//! responded.
//!
//! Protocols: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Sockets that systemd bound before the daemon started, by name (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub(super) struct ActivatedSockets(BTreeMap<String, TcpListener>);

/// A socket that systemd passed and that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The socket is not a listening TCP socket.
    #[error("the socket {name:?} that was handed over is not a listening TCP socket: {error}")]
    Socket {
        /// The name of the socket.
        name: String,
        /// The error of the system.
        error: io::Error,
    },
    /// No listener has this name, or two sockets have it.
    #[error(
        "a socket called {0:?} was handed over, expected FileDescriptorName=http, resp, rest or \
            admin, each once"
    )]
    Name(String),
}

impl ActivatedSockets {
    /// Takes the sockets that systemd passed to this process. A single socket with an unknown name
    /// counts as `names[0]`.
    ///
    /// # Errors
    /// [`ActivationError::Socket`] for a socket of another kind. [`ActivationError::Name`] if one
    /// of several sockets has a name that is not in `names`, or that another has.
    pub(super) fn from_env(names: &[&str]) -> Result<Self, ActivationError> {
        let given = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut sockets = ListenFd::from_env();
        let mut given = given.split(':');
        let mut activated = BTreeMap::new();
        for index in 0..sockets.len() {
            let name = given.next().unwrap_or_default();
            let alone = sockets.len() == 1 && !names.contains(&name);
            let name = if alone { names[0] } else { name }.to_owned();
            let socket = sockets.take_tcp_listener(index);
            let socket =
                socket.map_err(|error| ActivationError::Socket { name: name.clone(), error })?;
            let unknown = !names.contains(&&*name);
            if let Some(socket) = socket
                && (unknown || activated.insert(name.clone(), socket).is_some())
            {
                return Err(ActivationError::Name(name));
            }
        }
        Ok(Self(activated))
    }

    /// Whether there is a socket with this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Removes the socket with this name and returns it.
    pub(super) fn remove(&mut self, name: &str) -> Option<TcpListener> {
        self.0.remove(name)
    }
}

/// Returns the interval between watchdog notifications, or `None` if the unit has no watchdog.
pub(super) fn watchdog_interval() -> Option<Duration> {
    // Half of the time limit, as `sd_watchdog_enabled(3)` advises.
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

/// Sends notifications to systemd, if the unit requests them.
///
/// A separate thread sends them, because a service manager that does not read makes the sender
/// wait. While the thread waits, further messages are dropped if the queue is full.
pub(super) struct Notifier(Option<SyncSender<Message>>);

enum Message {
    States(Vec<NotifyState<'static>>),
    Status(String),
    /// A mark: all earlier messages have been sent.
    Flush(SyncSender<()>),
}

/// The longest time that the last message is waited for.
const STOP_TIMEOUT: Duration = Duration::from_millis(100);
/// The number of messages that may be queued.
const QUEUE_LEN: usize = 16;

impl Notifier {
    /// Starts the thread that sends notifications, if `NOTIFY_SOCKET` is set.
    ///
    /// # Errors
    /// [`io::Error`] if the system refuses the thread.
    pub(super) fn start() -> io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self(None));
        }
        let (messages, queued) = sync_channel(QUEUE_LEN);
        std::thread::Builder::new()
            .name("systemd".to_owned())
            .spawn(move || queued.iter().for_each(deliver))?;
        Ok(Self(Some(messages)))
    }

    /// Whether systemd requests notifications.
    pub(super) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Reports that the daemon listens.
    pub(super) fn ready(&self) {
        self.send(Message::States(vec![NotifyState::Ready]));
    }

    /// Reports that a reload has begun. [`ready`](Self::ready) reports its end.
    pub(super) fn reloading(&self) {
        // Without the time, systemd 253 and newer would treat the reload as failed.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(Message::States(vec![NotifyState::Reloading, now])),
            Err(error) => tracing::debug!(%error, "no monotonic time for systemd"),
        }
    }

    /// Reports that the shutdown has begun. Returns once that is sent, or after 100 ms. Otherwise
    /// the process could end before its thread has sent it.
    pub(super) fn stopping(&self) {
        self.send(Message::States(vec![NotifyState::Stopping]));
        let (done, wait) = sync_channel(1);
        self.send(Message::Flush(done));
        _ = wait.recv_timeout(STOP_TIMEOUT);
    }

    /// Sets the line of `systemctl status`.
    pub(super) fn status(&self, text: String) {
        self.send(Message::Status(text));
    }

    /// Reports that every worker responds.
    pub(super) fn watchdog(&self) {
        self.send(Message::States(vec![NotifyState::Watchdog]));
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.0 {
            _ = messages.try_send(message);
        }
    }
}

fn deliver(message: Message) {
    let done = match message {
        Message::States(states) => sd_notify::notify(&states),
        Message::Status(text) => sd_notify::notify(&[NotifyState::Status(&text)]),
        Message::Flush(done) => {
            _ = done.try_send(());
            return;
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "cannot notify systemd");
    }
}
