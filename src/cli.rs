//! The command line. Values of the configuration remain text here. They are parsed with the other
//! sources, so a bad value is reported in the same way.

mod manual;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
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
    /// Print a line about a running proxy for each interval: reads, hit ratio, memory, clients.
    Stat {
        /// The proxy.
        #[command(flatten)]
        watch: Watch,
        /// The number of lines; without it there is no end
        #[arg(long, short = 'n', value_name = "LINES")]
        count: Option<u64>,
    },
    /// Show a running proxy on the terminal: reads by outcome, memory, hot keys, connections,
    /// nodes, events. The key q ends it.
    Top {
        /// The proxy.
        #[command(flatten)]
        watch: Watch,
        /// Print the screen once, as text, and exit
        #[arg(long)]
        once: bool,
        /// Print /status.json with rates, as a line for each interval, or one with --once
        #[arg(long)]
        json: bool,
    },
    /// Print how many reads of each rule (`cache.rules`) needed no request to Redis, or with mode
    /// "observe" would have needed none, from a running proxy.
    Report {
        /// The proxy.
        #[command(flatten)]
        peer: Peer,
    },
    /// Print whether a running proxy answers reads of a key from memory, and why: age, expiry,
    /// rule, kept replies, last invalidation. Without `--token-file` this works on the machine of a
    /// proxy that has `[admin] listen`. Elsewhere the token needs the right purge.
    Explain {
        /// The key
        key: String,
        /// The proxy.
        #[command(flatten)]
        peer: Peer,
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

/// The running proxy that a command watches.
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// The proxy.
    #[command(flatten)]
    pub peer: Peer,
    /// The time between two looks, as in 500ms or 5s
    #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
}

/// A running proxy that a command queries.
#[derive(Debug, Clone, Args)]
pub struct Peer {
    /// The listener with the operator's routes: HOST:PORT, `https://HOST:PORT` or
    /// `unix:///PATH`. By default that of the configuration, on this machine
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// A file with a bearer token. By default the first one of `http.tokens_file`, if the
    /// configuration gives the address
    #[arg(long = "token-file", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The authorities of the certificate (PEM). By default those of the system
    #[arg(long = "ca-file", value_name = "FILE", requires = "admin")]
    pub ca_file: Option<PathBuf>,
}

/// Parses the time between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_bad = parsed < Duration::from_millis(100) || parsed > Duration::from_secs(3600);
    if is_bad { Err("expected 100ms to 1h".to_owned()) } else { Ok(parsed) }
}

/// The commands that print what does not depend on the configuration.
const WITHOUT_CONFIG: [&str; 3] = ["schema", "man", "completions"];

/// Parses the command line.
///
/// # Errors
/// [`clap::Error`] for a wrong command line, and for the help and version texts. A flag of the
/// configuration is an error for a command that does not read it. Otherwise it would be ignored
/// silently. Its environment variable is not, because it applies to all commands.
pub fn parse() -> Result<Cli, clap::Error> {
    let mut program = Cli::command();
    let matches = program.try_get_matches_from_mut(std::env::args_os())?;
    if let Some((name, own)) =
        matches.subcommand().filter(|(name, _)| WITHOUT_CONFIG.contains(name))
        && let Some(flag) = configuration_flag(own)
    {
        let text = format!("--{flag} has no effect on {name}, which reads no configuration");
        return Err(program.error(ErrorKind::ArgumentConflict, text));
    }
    Cli::from_arg_matches(&matches)
}

/// Returns a flag of the configuration that the command line has.
fn configuration_flag(matches: &ArgMatches) -> Option<String> {
    let flags = Flags::augment_args(clap::Command::new(""));
    let is_given = |flag: &&clap::Arg| {
        matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    flags.get_arguments().find(is_given).and_then(|flag| flag.get_long().map(str::to_owned))
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
    /// Address of the RESP listener: host:port or `unix:///path` [resp.listen]
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
