//! The address of a Redis: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and
//! database.
//!
//! The password in it is never printed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use crate::settings::{MASK, Secret};
use crate::telemetry::spans;

const DEFAULT_PORT: u16 = 6379;
const ALLOWED: &str = "redis://[user:password@]host[:port][/database], the same with rediss:// \
    for TLS, \
                       or unix:///path/to/socket[?db=database]";

/// The address of a Redis, with the login and the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The endpoint to connect to.
    pub addr: ConnectionAddr,
    /// The user in the address; empty if it names none.
    pub username: String,
    /// The password in the address; empty if it has none.
    pub password: Secret,
    /// The number of the database.
    pub database: u32,
}

/// The endpoint of a Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionAddr {
    /// A TCP endpoint.
    Tcp {
        /// The host name or IP address, an IPv6 address without brackets.
        host: String,
        /// The TCP port.
        port: u16,
        /// Whether connections use TLS.
        tls: bool,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Default for Address {
    fn default() -> Self {
        Self {
            addr: ConnectionAddr::Tcp {
                host: "127.0.0.1".to_owned(),
                port: DEFAULT_PORT,
                tls: false,
            },
            username: String::new(),
            password: Secret::default(),
            database: 0,
        }
    }
}

/// Formats scheme and endpoint, without login and database.
impl fmt::Display for ConnectionAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                write!(f, "{}://{}:{port}", if *tls { "rediss" } else { "redis" }, bracketed(host))
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl ConnectionAddr {
    /// Returns the name of the node in labels: `host:port`, or the path of the socket.
    pub fn node(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } => format!("{}:{port}", bracketed(host)),
            Self::Unix(path) => path.display().to_string(),
        }
    }
}

impl Address {
    /// Records this Redis as the target of the current fetch's span.
    pub(super) fn record_span_target(&self) {
        match &self.addr {
            ConnectionAddr::Tcp { host, port, .. } => {
                spans::record_target(host, Some(*port), self.database);
            }
            ConnectionAddr::Unix(path) => {
                spans::record_target(&path.to_string_lossy(), None, self.database);
            }
        }
    }

    /// Whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.addr, ConnectionAddr::Tcp { tls: true, .. })
    }

    /// Returns the address as text, password included, with the host or the port replaced.
    ///
    /// Serves `--redis_host` and `--redis_port`. An invalid host is reported when the text is
    /// parsed. A unix socket becomes a TCP address.
    pub fn with_host_and_port(&self, new_host: Option<&str>, new_port: Option<u16>) -> String {
        let (scheme, host, port) = match &self.addr {
            ConnectionAddr::Tcp { host, port, tls } => {
                (if *tls { "rediss" } else { "redis" }, host.as_str(), *port)
            }
            ConnectionAddr::Unix(_) => ("redis", "127.0.0.1", DEFAULT_PORT),
        };
        let (host, port) = (new_host.unwrap_or(host), new_port.unwrap_or(port));
        format!(
            "{scheme}://{}{}:{port}/{}",
            self.login(self.password.reveal()),
            bracketed(host),
            self.database
        )
    }

    fn login(&self, password: &str) -> String {
        match (&*self.username, password) {
            ("", "") => String::new(),
            (username, "") => format!("{}@", escape(username)),
            (username, password) => format!("{}:{}@", escape(username), escape(password)),
        }
    }
}

/// Returns the host, an IPv6 address in brackets to separate it from the port.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

fn escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// The characters to escape in a path; otherwise the parser would not read them back as part of it.
const IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Formats the address as in a config file, with the password masked.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mask = if self.password.is_empty() { "" } else { MASK };
        let login = self.login(mask).replace("%2A", "*");
        match &self.addr {
            ConnectionAddr::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                write!(f, "{scheme}://{login}{}:{port}/{}", bracketed(host), self.database)
            }
            ConnectionAddr::Unix(path) => {
                let path = path.to_string_lossy();
                write!(
                    f,
                    "unix://{login}{}?db={}",
                    utf8_percent_encode(&path, IN_PATH),
                    self.database
                )
            }
        }
    }
}

/// An address that cannot be parsed. Its message names the problem and never repeats the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {problem}, expected {ALLOWED}")]
pub struct InvalidAddress {
    problem: String,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        // The message repeats only the scheme: in a malformed address the password may be anywhere.
        let bad = |problem: &dyn fmt::Display| InvalidAddress {
            problem: format!("{scheme:?} address with {problem}"),
        };
        let url = Url::parse(text).map_err(|error| bad(&error))?;
        let addr = addr(&url).ok_or_else(|| bad(&"another scheme, or without host or path"))?;
        let after_host = &url[url::Position::BeforePath..];
        if matches!(addr, ConnectionAddr::Tcp { .. }) && after_host.contains('@') {
            return Err(bad(
                &"a login that is not escaped: '@' is written %40, ':' %3A, '/' %2F, '?' %3F, \
                    '#' %23",
            ));
        }
        if url.fragment().is_some() || url.query_pairs().any(|(name, _)| name != "db") {
            return Err(bad(&"something else than db= behind a '?'"));
        }
        let database =
            database(&url, &addr).parse().map_err(|_| bad(&"a database that is not a number"))?;
        let decode = |part: &str| {
            let decoded = crate::key::percent_decode(part.as_bytes())
                .map_err(|_| bad(&"a bad escape in the login"))?;
            String::from_utf8(decoded.into_owned()).map_err(|_| bad(&"a login that is not UTF-8"))
        };
        Ok(Self {
            addr,
            username: decode(url.username())?,
            password: Secret::from(decode(url.password().unwrap_or_default())?),
            database,
        })
    }
}

fn addr(url: &Url) -> Option<ConnectionAddr> {
    match url.scheme() {
        "redis" | "rediss" => {
            let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
            let port = url.port().unwrap_or(DEFAULT_PORT);
            Some(ConnectionAddr::Tcp { host: host.to_owned(), port, tls: url.scheme() == "rediss" })
        }
        // A path that does not start at the root is no socket path: the text only resembles an
        // address.
        "unix" | "redis+unix"
            if url.host_str().is_none_or(str::is_empty)
                && url.path().len() > 1
                && url.path().starts_with('/') =>
        {
            let path = crate::key::percent_decode(url.path().as_bytes()).ok()?;
            Some(ConnectionAddr::Unix(String::from_utf8(path.into_owned()).ok()?.into()))
        }
        _ => None,
    }
}

/// Returns the text of the database number: the parameter `db`, or the path of a TCP address, or
/// `0`.
fn database(url: &Url, addr: &ConnectionAddr) -> String {
    let parameter =
        url.query_pairs().find(|(name, _)| name == "db").map(|(_, value)| value.into_owned());
    let path = match addr {
        ConnectionAddr::Tcp { .. } => url.path().trim_matches('/'),
        ConnectionAddr::Unix(_) => "",
    };
    parameter
        .or_else(|| (!path.is_empty()).then(|| path.to_owned()))
        .unwrap_or_else(|| "0".to_owned())
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_address_parses_back() {
        for text in [
            "redis://127.0.0.1:6379/0",
            "redis://user@example.org:7000/3",
            "rediss://[::1]:6380/0",
            "unix:///run/redis/redis.sock?db=2",
            "unix:///run/with%20space/50%25%3F%23?db=0",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let login: Address = "redis://us%3Aer:p%40ss@host/5".parse().unwrap();
        assert_eq!(
            (&*login.username, login.password.reveal(), login.database),
            ("us:er", "p@ss", 5)
        );
        assert_eq!("redis://host".parse::<Address>().unwrap().to_string(), "redis://host:6379/0");
    }

    #[test]
    fn password_is_not_printed() {
        let address: Address = "redis://user:hunter2@host/0".parse().unwrap();
        assert_eq!(address.to_string(), "redis://user:********@host:6379/0");
        assert!(!format!("{address:?}").contains("hunter2"));
        for bad in [
            "redis://user:hunter2@host/x",
            "http://user:hunter2@host",
            "redis://u:hunter2@h:port",
            "unix:*//hunter2",
            "u:hunter2@host",
            "redis://u:a@b/hunter2@host:1/0",
            "redis://u:12?hunter2@host",
            "redis://u:1#hunter2@host",
            "redis://user:hunter2",
            "redis://:hunter2",
            "redis://user:hunter2/0",
            "redis://host/0?password=hunter2",
            "unix:///run/r.sock?db=0&pass=hunter2",
            "unix://hunter2",
            "hunter2",
        ] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains("expected redis://"), "{error}");
        }
    }

    #[test]
    fn host_and_port_are_replaced_separately() {
        let address: Address = "redis://u:p%40@host:1/2".parse().unwrap();
        assert_eq!(address.with_host_and_port(Some("other"), None), "redis://u:p%40@other:1/2");
        assert_eq!(address.with_host_and_port(None, Some(9)), "redis://u:p%40@host:9/2");
        let unix: Address = "unix:///run/r.sock?db=2".parse().unwrap();
        assert_eq!(unix.with_host_and_port(Some("::1"), None), "redis://[::1]:6379/2");
    }
}
