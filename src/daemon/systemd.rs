//! What systemd and the daemon tell each other: the sockets it holds for us, and how we are doing.
//!
//! Where nobody listens (no `NOTIFY_SOCKET`) and nobody holds sockets (no `LISTEN_FDS`), nothing here does anything. What
//! is told is true when it is told: ready once the sockets are listened on, alive only if every thread that serves
//! has just said so.
//!
//! Protocols: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Sockets that were bound for the daemon before it started, by name (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub(super) struct ActivatedSockets(BTreeMap<String, TcpListener>);

/// A socket that was handed to the daemon and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// Not what it has to be.
    #[error("the socket {name:?} that was handed over is not a listening TCP socket: {error}")]
    Socket {
        /// Its name.
        name: String,
        /// What the system says of it.
        error: io::Error,
    },
    /// Nobody has asked for it.
    #[error(
        "a socket called {0:?} was handed over, expected FileDescriptorName=http, resp or admin, each once"
    )]
    Name(String),
}

impl ActivatedSockets {
    /// Takes what was handed to this process. A socket alone may have any name and is that of `names[0]`.
    ///
    /// # Errors
    /// A socket of another kind, or one whose name is not in `names`.
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

    /// Whether there is a socket of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Gives the socket of this name away.
    pub(super) fn remove(&mut self, name: &str) -> Option<TcpListener> {
        self.0.remove(name)
    }
}

/// How often the daemon has to say that it is alive; `None`: never.
pub(super) fn watchdog_interval() -> Option<Duration> {
    // Twice as often as it is required to, as `sd_watchdog_enabled(3)` advises.
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

/// Tells systemd how the daemon is doing, if it wants to know.
///
/// A thread of its own does the telling, since a supervisor that does not listen makes it wait; then what there is no
/// room for is left out.
pub(super) struct Notifier(Option<SyncSender<Message>>);

enum Message {
    States(Vec<NotifyState<'static>>),
    Status(String),
    /// All before this has been told.
    Flush(SyncSender<()>),
}

/// For how long the last message is waited for.
const STOP_TIMEOUT: Duration = Duration::from_millis(100);
/// Messages that may wait to be told.
const QUEUE_LEN: usize = 16;

impl Notifier {
    /// Begins to tell, if there is anybody.
    ///
    /// # Errors
    /// The system gives no thread.
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

    /// Whether there is anybody to tell.
    pub(super) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// The daemon listens.
    pub(super) fn ready(&self) {
        self.send(Message::States(vec![NotifyState::Ready]));
    }

    /// The daemon reads its configuration again; [`ready`](Self::ready) says that it has.
    pub(super) fn reloading(&self) {
        // Without the time, systemd 253 and newer would take the reload for a failure.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(Message::States(vec![NotifyState::Reloading, now])),
            Err(error) => tracing::debug!(%error, "no monotonic time to tell systemd"),
        }
    }

    /// The daemon is going down. Returns once that is told, or nobody has listened for a while: the process may end
    /// before anybody else gets to do anything.
    pub(super) fn stopping(&self) {
        self.send(Message::States(vec![NotifyState::Stopping]));
        let (done, wait) = sync_channel(1);
        self.send(Message::Flush(done));
        _ = wait.recv_timeout(STOP_TIMEOUT);
    }

    /// A line for `systemctl status`.
    pub(super) fn status(&self, text: String) {
        self.send(Message::Status(text));
    }

    /// All that serves is alive.
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
        tracing::debug!(%error, "systemd cannot be told");
    }
}
