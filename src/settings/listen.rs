//! The listen address of a listener, in its configured form.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The listen address of a listener: `host:port`, `unix:///path`, or empty for no listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(String);

impl Listen {
    /// Creates an address from a literal, for defaults. The text is not checked.
    pub fn from_static(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Whether the listener is disabled.
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path of a unix socket; `None` for a TCP address.
    pub fn unix_path(&self) -> Option<&Path> {
        self.0.strip_prefix(UNIX).map(Path::new)
    }

    /// Returns the IP address; `None` if the host is a name or there is none.
    pub fn ip(&self) -> Option<IpAddr> {
        let (host, _) = self.0.rsplit_once(':')?;
        host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// Whether both listeners need the same port of the same address.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        !self.is_off() && self == other && !self.0.ends_with(":0")
    }

    /// Returns the address with another host or port, for the flags `--proxy_host` and
    /// `--proxy_port`.
    pub fn with_host_and_port(&self, host: Option<&str>, port: Option<u16>) -> String {
        let (old_host, old_port) = self.0.rsplit_once(':').unwrap_or(("127.0.0.1", "8080"));
        let host = host.unwrap_or(old_host);
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        port.map_or_else(|| format!("{host}:{old_port}"), |port| format!("{host}:{port}"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.0
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let valid = match text.rsplit_once(':') {
            None => text.is_empty(),
            Some(_) if text.starts_with(UNIX) => text.len() > UNIX.len() + 1,
            Some((host, port)) => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let host_is_one = bare
                    .map_or(!host.is_empty() && !host.contains([':', '[', ']', '/']), |host| {
                        host.parse::<std::net::Ipv6Addr>().is_ok()
                    });
                host_is_one && port.parse::<u16>().is_ok()
            }
        };
        if valid {
            return Ok(Self(text));
        }
        Err(format!(
            "invalid value: string {text:?}, expected host:port such as \"127.0.0.1:8080\" or \
                \"[::1]:8080\", or for resp and admin unix:///path"
        ))
    }
}

/// The prefix of a unix socket's address. The path that follows is absolute.
pub(crate) const UNIX: &str = "unix://";
