//! The command line. Values of the configuration remain text here. They are parsed with the other
//! sources, so a bad value is reported in the same way.

mod manual;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

pub use self::manual::{write_manual, write_manuals};
use crate::settings::Secret;

/// Caching proxy for Redis: serves hot reads from memory, over HTTP and to Redis clients.
///
/// Every key of the configuration can also be set in the environment, as in
/// `REDIS_PROXY_CACHE__TTL=30s`. Flags win over the environment, the environment over the file, the
/// file over the defaults.
#[derive(Debug, Parser)]
#[command(name = "redis-proxy", version)]
pub struct Cli {
    /// The command to run instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags that set keys of the configuration.
    #[command(flatten)]
    pub flags: Flags,
}

/// The commands other than serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Check the configuration and exit: 0 if it is valid, 78 if not. Opens no socket and reads no
    /// secret.
    Check,
    /// Check whether a running proxy with this configuration can answer reads, and exit: 0 if so, 1
    /// if not.
    Health {
        /// Check only whether the process serves, regardless of Redis
        #[arg(long)]
        live: bool,
    },
    /// Print how many reads of each rule (`cache.rules`) needed no request to Redis, or with mode
    /// "observe" would have needed none, from a running proxy.
    Report {
        /// Where the proxy serves `/report`; without it, the listener of the configuration
        #[arg(long, value_name = "HOST:PORT")]
        admin: Option<String>,
    },
    /// Print whether a running proxy answers reads of a key from memory, and why: age, expiry,
    /// rule, kept replies, last invalidation.
    Explain {
        /// The key
        key: String,
        /// Where the proxy serves `/cache`; without it, the listener of the configuration
        #[arg(long, value_name = "HOST:PORT")]
        admin: Option<String>,
        /// A file with a token that has the right purge, which every listener but that of operators
        /// requires
        #[arg(long = "token-file", value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Write a commented configuration file, in which the flags set their keys, as in `redis-proxy
    /// init --redis_host db --set cache.capacity=5000`.
    Init {
        /// The file to write; - for standard output
        #[arg(default_value = "redis-proxy.toml")]
        file: PathBuf,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
    /// Print the JSON schema of the configuration file, for editors.
    Schema,
    /// Print a manual page, in roff.
    Man {
        /// The command whose page is printed; without one, the page of redis-proxy itself
        name: Option<String>,
        /// Write the pages of all commands into this directory instead
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "name")]
        directory: Option<PathBuf>,
    },
    /// Print the completion script for a shell.
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Writes the completion script for `shell` to `out`.
pub fn write_completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "redis-proxy", out);
}

/// The flags that set keys of the configuration.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// The configuration file (TOML)
    #[arg(long, short, global = true, value_name = "FILE", env = "REDIS_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set any key of the configuration, as in `--set cache.ttl=30s`; repeatable
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the configuration in force, secrets masked, and exit
    #[arg(long = "print-config", alias = "print_config", global = true)]
    pub print_config: bool,
    /// Host of the upstream Redis [redis.url]
    #[arg(long = "redis_host", visible_alias = "redis-host", global = true, value_name = "HOST")]
    pub redis_host: Option<String>,
    /// Port of the upstream Redis [redis.url]
    #[arg(long = "redis_port", visible_alias = "redis-port", global = true, value_name = "PORT")]
    pub redis_port: Option<String>,
    /// Password for Redis; every user of this machine can see it, so prefer a file [redis.password]
    #[arg(long, global = true, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub password: Option<Secret>,
    /// Longest age of a cached value: seconds, or with a unit as in 90s, 5m [cache.ttl]
    #[arg(long, global = true, value_name = "DURATION", allow_hyphen_values = true)]
    pub ttl: Option<String>,
    /// Maximum number of cached keys [cache.capacity]
    #[arg(
        long,
        visible_alias = "capacity",
        global = true,
        value_name = "KEYS",
        allow_hyphen_values = true
    )]
    pub k: Option<String>,
    /// Host or IP address of the HTTP listener [http.listen]
    #[arg(long = "proxy_host", visible_alias = "proxy-host", global = true, value_name = "HOST")]
    pub proxy_host: Option<String>,
    /// Port of the HTTP listener [http.listen]
    #[arg(long = "proxy_port", visible_alias = "proxy-port", global = true, value_name = "PORT")]
    pub proxy_port: Option<String>,
    /// Address of the RESP listener: host:port or <unix:///path> [resp.listen]
    #[arg(
        long = "resp_listen",
        visible_alias = "resp-listen",
        global = true,
        value_name = "ADDRESS"
    )]
    pub resp_listen: Option<String>,
    /// Maximum number of client connections of each listener [`http.max_connections`,
    /// `resp.max_connections`]
    #[arg(
        long = "max_connections",
        visible_alias = "max-connections",
        global = true,
        value_name = "CONNECTIONS",
        allow_hyphen_values = true
    )]
    pub max_connections: Option<String>,
}
