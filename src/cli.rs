//! The command line. Values of the config are kept as text here: they are read where all values are, so that a
//! bad one is reported like any other.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::settings::Secret;

/// Answers hot reads of a Redis from its own memory, over HTTP.
///
/// Every key of the configuration can also be set in the environment, as in `REDIS_PROXY_CACHE__TTL=30s`. Flags win
/// over the environment, the environment over the file, the file over the defaults.
#[derive(Debug, Parser)]
#[command(name = "redis-proxy", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What is configured on the command line.
    #[command(flatten)]
    pub flags: Flags,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Check the configuration and exit: 0 if it is right, 78 if not. Opens no socket and reads no secret.
    Check,
    /// Ask a running proxy with this configuration whether reads can be answered, and exit: 0 if so, 1 if not.
    Health {
        /// Ask only whether the process serves, whatever becomes of Redis
        #[arg(long)]
        live: bool,
    },
    /// Print the manual page, in roff.
    Man,
    /// Print what completes the command line in a shell.
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Writes the manual page.
///
/// # Errors
/// What `out` reports.
pub fn write_man(out: &mut dyn Write) -> io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(out)
}

/// Writes what completes the command line in `shell`.
pub fn write_completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "redis-proxy", out);
}

/// What is configured on the command line.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// The configuration file (TOML)
    #[arg(long, short, global = true, value_name = "FILE", env = "REDIS_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the configuration in force, secrets masked, and exit
    #[arg(long = "print-config", alias = "print_config", global = true)]
    pub print_config: bool,
    /// Host of the Redis behind [redis.url]
    #[arg(long = "redis_host", visible_alias = "redis-host", global = true, value_name = "HOST")]
    pub redis_host: Option<String>,
    /// Port of the Redis behind [redis.url]
    #[arg(long = "redis_port", visible_alias = "redis-port", global = true, value_name = "PORT")]
    pub redis_port: Option<String>,
    /// Password for Redis; every user of this machine can see it, so a file is better [redis.password]
    #[arg(long, global = true, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub password: Option<Secret>,
    /// How old a cached value may be: seconds, or with a unit as in 90s, 5m [cache.ttl]
    #[arg(long, global = true, value_name = "DURATION", allow_hyphen_values = true)]
    pub ttl: Option<String>,
    /// How many keys are cached at most [cache.capacity]
    #[arg(
        long,
        visible_alias = "capacity",
        global = true,
        value_name = "KEYS",
        allow_hyphen_values = true
    )]
    pub k: Option<String>,
    /// Address to listen on [http.listen]
    #[arg(long = "proxy_host", visible_alias = "proxy-host", global = true, value_name = "HOST")]
    pub proxy_host: Option<String>,
    /// Port to listen on [http.listen]
    #[arg(long = "proxy_port", visible_alias = "proxy-port", global = true, value_name = "PORT")]
    pub proxy_port: Option<String>,
    /// Address to listen on for Redis clients: `host:port` or `unix:///path` [resp.listen]
    #[arg(
        long = "resp_listen",
        visible_alias = "resp-listen",
        global = true,
        value_name = "ADDRESS"
    )]
    pub resp_listen: Option<String>,
    /// How many client connections each listener accepts at most [`http.max_connections`, `resp.max_connections`]
    #[arg(
        long = "max_connections",
        visible_alias = "max-connections",
        global = true,
        value_name = "CONNECTIONS",
        allow_hyphen_values = true
    )]
    pub max_connections: Option<String>,
}
