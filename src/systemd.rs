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
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Sockets that were bound for the daemon before it started, by name (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, TcpListener>);

/// A socket that was handed to the daemon and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Not what it has to be.
    #[error("the socket {name:?} that was handed over is not a listening TCP socket: {error}")]
    Socket {
        /// Its name.
        name: String,
        /// What the system says of it.
        error: io::Error,
    },
    /// Nobody has asked for it.
    #[error("a socket called {0:?} was handed over, expected FileDescriptorName=http or admin, each once")]
    Name(String),
}

impl Inherited {
    /// Takes what was handed to this process. A socket alone may have any name and is that of `names[0]`.
    ///
    /// # Errors
    /// A socket of another kind, or one whose name is not in `names`.
    pub fn take(names: &[&str]) -> Result<Self, InheritError> {
        let given = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut sockets = ListenFd::from_env();
        let mut given = given.split(':');
        let mut inherited = BTreeMap::new();
        for index in 0..sockets.len() {
            let name = given.next().unwrap_or_default();
            let alone = sockets.len() == 1 && !names.contains(&name);
            let name = if alone { names[0] } else { name }.to_owned();
            let socket = sockets.take_tcp_listener(index);
            let socket = socket.map_err(|error| InheritError::Socket { name: name.clone(), error })?;
            let unknown = !names.contains(&&*name);
            if let Some(socket) = socket
                && (unknown || inherited.insert(name.clone(), socket).is_some())
            {
                return Err(InheritError::Name(name));
            }
        }
        Ok(Self(inherited))
    }

    /// Whether there is a socket of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Gives the socket of this name away.
    pub fn remove(&mut self, name: &str) -> Option<TcpListener> {
        self.0.remove(name)
    }
}

/// How often the daemon has to say that it is alive; `None`: never.
pub fn watchdog_interval() -> Option<Duration> {
    // Twice as often as it is required to, as `sd_watchdog_enabled(3)` advises.
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

/// The daemon listens.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon reads its configuration again; [`ready`] says that it has.
pub fn reloading() {
    // Without the time, systemd 253 and newer would take the reload for a failure.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic time to tell systemd"),
    }
}

/// The daemon is going down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// A line for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// All that serves is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
