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
mod gather;
mod key_table;
mod link;
mod login;
mod owed;
mod permit;
mod read;
mod route;
mod router;
mod serve;
mod standing;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blake3::Hash;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use self::command::Commands;
pub use self::command::names;
use self::connection::Connection;
// For the test that asks a real Redis.
#[doc(hidden)]
pub use self::key_table::KeyTable;
use self::router::Terms;
use self::standing::DEFAULT_USER;
use crate::access::{AuthRequirement, FileError, KeyAllowlist, Prepare, Reloadable};
use crate::backend::{BackendError, CacheIdentity, ConnectAs, EpochStream};
use crate::net::ClientStream;
use crate::protocol::RequestLimits;
use crate::proxy::Proxy;
use crate::server::{Drain, Service, Tls, TlsFiles, TlsKeys};
use crate::settings::{self, ByteSize, Listen, RuleViolation, out_of_range, violations};

/// `[resp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where clients of Redis are served; empty: nowhere.
    pub listen: Listen,
    /// Whether strangers may reach it although nothing asks them who they are.
    pub allow_unprotected: bool,
    /// Connections at most.
    #[serde(with = "settings::count")]
    pub max_connections: usize,
    /// How long a connection may be silent while nothing is owed to it; zero: for ever, as with Redis.
    #[serde(with = "settings::duration")]
    pub idle_timeout: Duration,
    /// A file that holds the password by which clients get what the proxy itself may read; empty: Redis decides who they are.
    pub password_file: PathBuf,
    /// The name that goes with it; empty: that of the default user, which need not be said.
    pub username: String,
    /// The listener's certificate; empty: no TLS.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_key_file: PathBuf,
    /// The authorities one of which must have signed a client's certificate; empty: clients need none.
    pub tls_client_ca_file: PathBuf,
    /// How long the beginning of TLS may take.
    #[serde(with = "settings::duration")]
    pub tls_handshake_timeout: Duration,
    /// The keys that are given out; none: all.
    pub allow_keys: KeyAllowlist,
    /// The largest argument of a command.
    pub max_bulk: ByteSize,
    /// Arguments of a command at most.
    #[serde(with = "settings::count")]
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
            username: String::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_client_ca_file: PathBuf::new(),
            tls_handshake_timeout: Duration::from_secs(10),
            allow_keys: KeyAllowlist::default(),
            max_bulk: ByteSize(512 << 20),
            max_arguments: 1 << 20,
            max_query_buffer: ByteSize(1 << 20),
            max_output_buffer: ByteSize(64 << 20),
        }
    }
}

impl Settings {
    /// What stands between strangers and Redis. That the proxy logs in there proves nothing: Redis may ask no one else.
    pub(crate) fn auth_requirement(&self) -> AuthRequirement {
        if self.allow_unprotected {
            AuthRequirement::Waived
        } else if self.password_file.as_os_str().is_empty()
            && !self.tls_files().requires_client_cert()
        {
            AuthRequirement::None("resp.password_file, resp.tls_client_ca_file, ")
        } else {
            AuthRequirement::Enforced
        }
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            certificates: self.tls_cert_file.clone(),
            key: self.tls_key_file.clone(),
            client_authorities: self.tls_client_ca_file.clone(),
        }
    }

    /// TLS, if it is spoken.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, FileError> {
        Tls::load(self.tls_files(), TLS_KEYS, self.tls_handshake_timeout, &[])
    }

    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let buffer = format!(
            "found {}, expected at least 256KiB, of which a line may have 64",
            self.max_query_buffer
        );
        let output = format!("found {}, expected at least 64KiB", self.max_output_buffer);
        let name_alone = !self.username.is_empty() && self.password_file.as_os_str().is_empty();
        let tls_on_unix = self.listen.unix_path().is_some() && self.tls_files().is_enabled();
        let own = violations([
            (
                tls_on_unix,
                "resp.tls_cert_file",
                "found with a unix socket, on which no TLS is spoken",
            ),
            (
                name_alone,
                "resp.username",
                "found a name without a password, expected resp.password_file with it",
            ),
            (self.max_query_buffer.0 < 256 << 10, "resp.max_query_buffer", &buffer),
            (self.max_output_buffer.0 < 64 << 10, "resp.max_output_buffer", &output),
            (self.max_arguments == 0, "resp.max_arguments", "found 0, expected at least 1"),
        ]);
        let tls = self.tls_files().violations(TLS_KEYS, self.tls_handshake_timeout);
        [own, out_of_range([(self.max_connections, "resp.max_connections")]), tls].concat()
    }
}

/// How this section calls what belongs to TLS.
const TLS_KEYS: TlsKeys = TlsKeys {
    cert_file: "resp.tls_cert_file",
    key_file: "resp.tls_key_file",
    client_ca_file: "resp.tls_client_ca_file",
    handshake_timeout: "resp.tls_handshake_timeout",
};

/// What all connections share.
struct Shared {
    proxy: Proxy,
    settings: Settings,
    login: Option<Reloadable<Login>>,
    commands: Commands,
    origin: CacheIdentity,
    /// The longest key that is kept.
    max_key: usize,
    /// Before a cluster: which words are keys, once a node has said so.
    key_table: OnceCell<Arc<KeyTable>>,
}

impl Shared {
    /// A stream to Redis for one client alone; before a cluster, to all of it.
    async fn open(self: Arc<Self>, client: ConnectAs) -> Result<EpochStream, BackendError> {
        let Some(cluster) = self.proxy.cluster() else { return self.proxy.open(client).await };
        let table = self.key_table.get_or_try_init(|| async {
            let table = KeyTable::read(&cluster.command_table().await?);
            if table.is_empty() {
                return Err(BackendError::Unavailable("COMMAND".into()));
            }
            Ok(Arc::new(table))
        });
        let terms = Terms {
            table: Arc::clone(table.await?),
            limits: RequestLimits {
                max_bulk: self.settings.max_bulk.0,
                max_arguments: self.settings.max_arguments,
            },
            most_held: self.settings.max_output_buffer.0,
            patience: cluster.retry_timeout(),
        };
        Ok(router::open(cluster.clone(), client, terms))
    }
}

/// The front end.
pub struct Resp(Arc<Shared>);

impl Resp {
    /// A front end for `proxy`, which keeps values of keys of at most `max_key` bytes.
    ///
    /// # Errors
    /// The file of the password cannot be read, or is empty.
    pub fn prepare(settings: Settings, max_key: usize, proxy: Proxy) -> Result<Self, FileError> {
        let (user, path) = (settings.username.clone(), settings.password_file.clone());
        let is_asked = !path.as_os_str().is_empty();
        let login =
            is_asked.then(|| Reloadable::load(move || Login::read(&user, &path))).transpose()?;
        let origin = proxy.identity();
        Ok(Self(Arc::new(Shared {
            proxy,
            settings,
            login,
            commands: Commands::new(),
            origin,
            max_key,
            key_table: OnceCell::new(),
        })))
    }

    /// For reloads: what is read from files.
    pub fn reloader(&self) -> Option<Prepare> {
        self.0.login.as_ref().map(Reloadable::reloader)
    }
}

/// What a client has to say to be let in.
struct Login {
    user: String,
    password: Hash,
}

impl Login {
    fn read(user: &str, path: &Path) -> Result<Self, FileError> {
        let wrong = |problem: &dyn Display| FileError::new("resp.password_file", path, problem);
        let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(wrong(&"found nothing in it, expected a password"));
        }
        Ok(Self { user: user.to_owned(), password: blake3::hash(password.as_bytes()) })
    }

    /// Whether it is right. The digests are compared, so that the time it takes tells nothing.
    fn is(&self, user: &[u8], password: &[u8]) -> bool {
        let is_password = blake3::hash(password) == self.password;
        let is_user = match &*self.user {
            "" => user.eq_ignore_ascii_case(DEFAULT_USER),
            name => user == name.as_bytes(),
        };
        is_password & is_user
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
