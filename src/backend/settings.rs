//! The settings of the connection to Redis.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::{Address, ConnectionAddr};
use super::seeds::Seeds;
use crate::settings::{self, RuleViolation, Secret, out_of_range, violations, zero_timeouts};

/// The source of the address of Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Mode {
    /// The configured `redis.url`.
    #[default]
    Standalone,
    /// The sentinels, which report the primary.
    Sentinel,
    /// The nodes of a cluster, which report the slots.
    Cluster,
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        settings::parse_choice(
            &text,
            [
                ("standalone", Self::Standalone),
                ("sentinel", Self::Sentinel),
                ("cluster", Self::Cluster),
            ],
        )
    }
}

/// The section `[redis]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The source of the address of Redis.
    pub mode: Mode,
    /// The address of Redis and the database. With sentinels or a cluster, its host and port are
    /// not used.
    pub url: Address,
    /// The addresses of the sentinels, or of some nodes of the cluster.
    pub seeds: Seeds,
    /// The name of the primary at the sentinels.
    pub sentinel_master: String,
    /// The ACL user for the sentinels; empty: the default user.
    pub sentinel_username: String,
    /// The file with the password for the sentinels, read again at every connection attempt; empty:
    /// no password.
    pub sentinel_password_file: PathBuf,
    /// The ACL user; empty: the user of the URL, or the default user.
    pub username: String,
    /// The password; empty: the password of the URL, or none.
    pub password: Secret,
    /// The file with the password, read again at every connection attempt.
    pub password_file: PathBuf,
    /// The certificate authorities that may have signed Redis's certificate (PEM); empty: those of
    /// the system.
    pub tls_ca_file: PathBuf,
    /// The proxy's client certificate (PEM), for a Redis that requires one.
    pub tls_cert_file: PathBuf,
    /// The private key of that certificate (PEM).
    pub tls_key_file: PathBuf,
    /// The timeout of a connection attempt, TLS handshake and login included.
    #[serde(with = "settings::duration")]
    pub connect_timeout: Duration,
    /// The timeout of a fetch, from its first step to its last.
    #[serde(with = "settings::duration")]
    pub response_timeout: Duration,
    /// The silence after which a connection gets a PING; with tracking, the longest interval of
    /// PINGs. Sentinels and cluster nodes are polled at this interval too.
    #[serde(with = "settings::duration")]
    pub ping_interval: Duration,
    /// The interval at which the probe writes its own key and measures the delay of the
    /// invalidation; zero: never.
    #[serde(with = "settings::duration")]
    pub probe_interval: Duration,
    /// The maximum delay between two connection attempts.
    #[serde(with = "settings::duration")]
    pub reconnect_delay_max: Duration,
    /// The maximum number of concurrent fetches.
    #[serde(with = "settings::count")]
    pub max_fetches: usize,
    /// The maximum number of queued fetches, and of reads that wait for a fence.
    #[serde(with = "settings::count")]
    pub max_queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            url: Address::default(),
            seeds: Seeds::default(),
            sentinel_master: String::new(),
            sentinel_username: String::new(),
            sentinel_password_file: PathBuf::new(),
            username: String::new(),
            password: Secret::default(),
            password_file: PathBuf::new(),
            tls_ca_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(1),
            probe_interval: Duration::ZERO,
            reconnect_delay_max: Duration::from_millis(500),
            max_fetches: 1024,
            max_queue: 4096,
        }
    }
}

impl Settings {
    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let set = |path: &PathBuf| !path.as_os_str().is_empty();
        let tls_files = [&self.tls_ca_file, &self.tls_cert_file, &self.tls_key_file];
        let tls_unused = !self.uses_tls() && tls_files.into_iter().any(set);
        let tls_half = set(&self.tls_cert_file) != set(&self.tls_key_file);
        let two_passwords = !self.password.is_empty() && set(&self.password_file);
        let ping =
            format!("found {:?}, expected at least {PING_INTERVAL_MIN:?}", self.ping_interval);
        let own = violations([
            (
                two_passwords,
                "redis.password_file",
                "redis.password is set too, expected one of the two",
            ),
            (
                tls_unused,
                "redis.url",
                "found a url without TLS beside files for TLS, expected rediss://",
            ),
            (self.ping_interval < PING_INTERVAL_MIN, "redis.ping_interval", &ping),
            (
                tls_half,
                "redis.tls_cert_file",
                "found one of the two, expected redis.tls_key_file with it, or neither",
            ),
        ]);
        let limits = out_of_range([(self.max_fetches, "redis.max_fetches")]);
        let timeouts = zero_timeouts([
            (self.connect_timeout, "redis.connect_timeout"),
            (self.response_timeout, "redis.response_timeout"),
        ]);
        [own, self.mode_violations(), limits, timeouts].concat()
    }

    fn mode_violations(&self) -> Vec<RuleViolation> {
        let by_sentinels = self.mode == Mode::Sentinel;
        let by_cluster = self.mode == Mode::Cluster;
        let unix = matches!(self.url.addr, ConnectionAddr::Unix(_));
        let file = !self.sentinel_password_file.as_os_str().is_empty();
        let needs = "found, expected redis.mode = \"sentinel\" with it";
        violations([
            (
                !by_sentinels && !by_cluster && !self.seeds.is_empty(),
                "redis.seeds",
                "found, expected redis.mode = \"sentinel\" or \"cluster\" with it",
            ),
            (!by_sentinels && !self.sentinel_master.is_empty(), "redis.sentinel_master", needs),
            (!by_sentinels && !self.sentinel_username.is_empty(), "redis.sentinel_username", needs),
            (!by_sentinels && file, "redis.sentinel_password_file", needs),
            (
                by_sentinels && (self.seeds.is_empty() || self.sentinel_master.is_empty()),
                "redis.mode",
                "found \"sentinel\", expected redis.seeds and redis.sentinel_master with it: \
                    where the sentinels are, and \
                 how they call the primary",
            ),
            (
                by_cluster && self.seeds.is_empty(),
                "redis.mode",
                "found \"cluster\", expected redis.seeds with it: where some nodes of the \
                    cluster are",
            ),
            (
                by_cluster && unix,
                "redis.url",
                "found a unix socket, expected redis:// or rediss:// with a cluster",
            ),
            (
                by_cluster && self.url.database != 0,
                "redis.url",
                "found a database, of which a cluster has only the first",
            ),
            (
                by_cluster && !self.probe_interval.is_zero(),
                "redis.probe_interval",
                "found a probe, whose key would be in one slot, expected none with a cluster",
            ),
            (
                by_sentinels && unix,
                "redis.url",
                "found a unix socket, expected redis:// or rediss:// with sentinels",
            ),
        ])
    }

    /// Returns the settings for one node of a cluster.
    pub(crate) fn for_node(&self, host: &str, port: u16) -> Self {
        let tls = self.url.is_tls() || self.seeds.is_tls();
        let addr = ConnectionAddr::Tcp { host: host.to_owned(), port, tls };
        Self { url: Address { addr, ..self.url.clone() }, ..self.clone() }
    }

    /// Returns the hosts and ports of the seeds.
    pub(crate) fn seed_addrs(&self) -> Vec<(String, u16)> {
        let address = |seed: &ConnectionAddr| match seed {
            ConnectionAddr::Tcp { host, port, .. } => Some((host.clone(), *port)),
            ConnectionAddr::Unix(_) => None,
        };
        self.seeds.0.iter().filter_map(address).collect()
    }

    /// Returns whether cluster nodes are preferably addressed by hostname, because their
    /// certificates may contain it.
    pub(crate) fn prefers_hostnames(&self) -> bool {
        self.uses_tls()
    }

    /// Returns whether any connection uses TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.url.is_tls() || self.seeds.is_tls()
    }
}

/// The minimum PING interval. More PINGs would be a load of their own.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(10);
