//! What can be configured of Redis.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::{Address, ConnectionAddr};
use super::seeds::Seeds;
use crate::settings::{self, RuleViolation, Secret, out_of_range, violations, zero_timeouts};

/// How it is told where Redis is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Mode {
    /// By its address.
    #[default]
    Standalone,
    /// By sentinels.
    Sentinel,
    /// By the nodes of a cluster.
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

/// `[redis]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How it is told where Redis is.
    pub mode: Mode,
    /// Where Redis is, and which database. Where sentinels or the nodes of a cluster tell host and port, those in it say
    /// nothing.
    pub url: Address,
    /// The sentinels, or some nodes of the cluster.
    pub seeds: Seeds,
    /// The name by which the sentinels know the primary.
    pub sentinel_master: String,
    /// The ACL user to the sentinels; empty: the default user.
    pub sentinel_username: String,
    /// A file that holds the password for the sentinels, read anew at every connect; empty: they want none.
    pub sentinel_password_file: PathBuf,
    /// The ACL user; empty: the default user, or the one in the URL.
    pub username: String,
    /// The password; empty: none, or the one in the URL.
    pub password: Secret,
    /// A file that holds the password, read anew at every connect.
    pub password_file: PathBuf,
    /// The authorities that Redis's certificate may be from (PEM); empty: the system's.
    pub tls_ca_file: PathBuf,
    /// The proxy's own certificate (PEM), for a Redis that asks for one.
    pub tls_cert_file: PathBuf,
    /// The private key of that certificate (PEM).
    pub tls_key_file: PathBuf,
    /// How long connecting may take, TLS and login included.
    #[serde(with = "settings::duration")]
    pub connect_timeout: Duration,
    /// How long a fetch may take, from its first step to its last.
    #[serde(with = "settings::duration")]
    pub response_timeout: Duration,
    /// A link silent for so long is asked for a sign of life.
    #[serde(with = "settings::duration")]
    pub ping_interval: Duration,
    /// How often the proxy writes to a key of its own and measures how long it takes until that is told; zero: never.
    #[serde(with = "settings::duration")]
    pub probe_interval: Duration,
    /// How long to wait at most between two attempts to connect.
    #[serde(with = "settings::duration")]
    pub reconnect_delay_max: Duration,
    /// Fetches in progress at most.
    #[serde(with = "settings::count")]
    pub max_fetches: usize,
    /// Fetches that may wait for their turn, and reads that may wait for a proof.
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
                "found \"sentinel\", expected redis.seeds and redis.sentinel_master with it: where the sentinels are, and \
                 how they call the primary",
            ),
            (
                by_cluster && self.seeds.is_empty(),
                "redis.mode",
                "found \"cluster\", expected redis.seeds with it: where some nodes of the cluster are",
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

    /// Those for one node of a cluster.
    pub(crate) fn for_node(&self, host: &str, port: u16) -> Self {
        let tls = self.url.is_tls() || self.seeds.is_tls();
        let addr = ConnectionAddr::Tcp { host: host.to_owned(), port, tls };
        Self { url: Address { addr, ..self.url.clone() }, ..self.clone() }
    }

    /// Where the seeds are.
    pub(crate) fn seed_addrs(&self) -> Vec<(String, u16)> {
        let address = |seed: &ConnectionAddr| match seed {
            ConnectionAddr::Tcp { host, port, .. } => Some((host.clone(), *port)),
            ConnectionAddr::Unix(_) => None,
        };
        self.seeds.0.iter().filter_map(address).collect()
    }

    /// Whether a node of a cluster is better called by its name, which its certificate may hold.
    pub(crate) fn prefers_hostnames(&self) -> bool {
        self.uses_tls()
    }

    /// Whether TLS is spoken to anybody.
    pub(super) fn uses_tls(&self) -> bool {
        self.url.is_tls() || self.seeds.is_tls()
    }
}

/// More PINGs than this would be work of their own.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(10);
