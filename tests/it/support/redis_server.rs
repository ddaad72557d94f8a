//! A real Redis for one test.
//!
//! Model: one `redis-server` process in one temporary directory, without persistence. It always
//! listens on a unix socket there, and optionally on TCP and TLS ports of 127.0.0.1. A restarted
//! server is an empty one at the same addresses.
//!
//! The test inspects the server over the unix socket as a user of its own, so that passwords and
//! ACLs for the proxy never lock the test out. The statistics of the server show only `auth` and
//! the commands of the test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{
    Connection, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, Value,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use super::wait::{eventually, within};

const BOUND: Duration = Duration::from_secs(10);
const PORT_ATTEMPTS: usize = 5;
/// The environment variable that names another program, to run the tests with another version or
/// kind of Redis.
const PROGRAM: &str = "REDIS_SERVER";
const TEST_USER: &str = "integration-test";

/// A place in memory for files.
const SHARED_MEMORY: &str = "/dev/shm";

/// Returns a directory for the files of a server, in memory if there is such a place.
///
/// Sentinels and the nodes of a cluster sync their configuration to the disk at each step. On a
/// busy disk that took 5 seconds, and a sentinel that has stood still starts no failover for 30.
pub(super) fn server_directory() -> TempDir {
    let in_memory = tempfile::tempdir_in(SHARED_MEMORY);
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// A running `redis-server`; dropping it ends the process.
pub(crate) struct RedisServer {
    directory: TempDir,
    options: RedisServerBuilder,
    ports: Ports,
    process: Child,
}

/// The settings of a [`RedisServer`] to be started.
#[derive(Default)]
pub(crate) struct RedisServerBuilder {
    tcp: bool,
    tls: Option<TlsFiles>,
    require_client_certificate: bool,
    arguments: Vec<String>,
}

struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

#[derive(Clone, Copy)]
struct Ports {
    tcp: Option<u16>,
    tls: Option<u16>,
}

#[derive(PartialEq)]
enum Startup {
    Answering,
    PortTaken,
}

#[derive(Clone, Copy, PartialEq)]
enum PortsTaken {
    ChooseOthers,
    TryAgain,
}

impl RedisServerBuilder {
    /// Adds a listener on a free TCP port.
    pub(crate) fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Adds a listener on a free TLS port, with these PEM files.
    pub(crate) fn tls(mut self, certificate: &Path, key: &Path, authority: &Path) -> Self {
        self.tls = Some(TlsFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            authority: authority.to_owned(),
        });
        self
    }

    /// Rejects TLS clients without a certificate of the authority.
    pub(crate) fn require_client_certificate(mut self) -> Self {
        self.require_client_certificate = true;
        self
    }

    /// Adds command-line arguments, one word each: `["--maxmemory", "1mb"]`.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }

    /// Starts the server and waits until it replies; panics with its log if it does not.
    pub(crate) fn start(self) -> RedisServer {
        let directory = server_directory();
        let ports = self.choose_ports();
        let process = self.launch(directory.path(), ports);
        let mut server = RedisServer { directory, options: self, ports, process };
        server.settle(PortsTaken::ChooseOthers);
        server
    }

    fn choose_ports(&self) -> Ports {
        Ports { tcp: self.tcp.then(free_port), tls: self.tls.is_some().then(free_port) }
    }

    fn launch(&self, directory: &Path, ports: Ports) -> Child {
        // Truncated, lest the failure of the previous process be taken for this one's.
        let log = File::create(log_in(directory)).expect("the server's log file");
        Command::new(program())
            .args(base_arguments(directory, ports.tcp))
            .args(self.tls_arguments(ports.tls))
            .args(["--user", TEST_USER, "on", "nopass", "~*", "&*", "+@all"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle to the log"))
            .stderr(log)
            .spawn()
            .expect("redis-server starts")
    }

    fn tls_arguments(&self, port: Option<u16>) -> Vec<String> {
        let (Some(files), Some(port)) = (&self.tls, port) else {
            return Vec::new();
        };
        let clients = if self.require_client_certificate { "yes" } else { "no" };
        let words = [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", text(&files.certificate)),
            ("--tls-key-file", text(&files.key)),
            ("--tls-ca-cert-file", text(&files.authority)),
            ("--tls-auth-clients", clients.to_owned()),
        ];
        words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

impl RedisServer {
    /// Starts a server on its unix socket only.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    pub(crate) fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.directory.path())
    }

    /// `unix:///path/of/the/socket`
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", text(&self.socket()))
    }

    /// `redis://127.0.0.1:port`
    pub(crate) fn tcp_url(&self) -> String {
        format!("redis://{}", self.tcp_address())
    }

    /// `rediss://127.0.0.1:port`
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://{}", self.tls_address())
    }

    pub(crate) fn tcp_address(&self) -> SocketAddr {
        let port = self.ports.tcp.expect("a server built with tcp()");
        (Ipv4Addr::LOCALHOST, port).into()
    }

    pub(crate) fn tls_address(&self) -> SocketAddr {
        let port = self.ports.tls.expect("a server built with tls()");
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Returns a connection that may run every command, whatever the ACLs of others.
    pub(crate) fn connection(&self) -> Connection {
        self.try_connection().expect("a connection to redis-server")
    }

    /// Runs one command on a new connection.
    pub(crate) fn command<Word: AsRef<[u8]>>(&self, words: &[Word]) -> Value {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word.as_ref());
        }
        command.query(&mut self.connection()).expect("redis-server runs the command")
    }

    /// Lets the server close the connection of a client over replies of more than 1 MiB.
    pub(crate) fn limit_output(&self) {
        self.limit_output_to("1mb");
    }

    /// Lets the server close the connection of a client over larger replies, such as `1mb`.
    pub(crate) fn limit_output_to(&self, size: &str) {
        let limit = format!("normal {size} 0 0");
        self.command(&["CONFIG", "SET", "client-output-buffer-limit", &limit]);
    }

    /// Returns how often the server has run a command, subcommands as in `config|get`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let statistics: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut self.connection())
            .expect("redis-server tells its statistics");
        let start = format!("cmdstat_{command}:calls=");
        statistics
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Freezes the process: it keeps its connections and sends no replies.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        // The state is left to be seen again, so that pausing a paused server makes no difference.
        let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        eventually("redis-server stands still", || {
            waitid(WaitId::Pid(self.process_id()), look).expect("redis-server is a child")
        });
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process; its addresses refuse connections from here on.
    pub(crate) fn stop(&mut self) {
        // The process may be gone already; a paused one dies as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts an empty server at the same addresses, in place of the previous one.
    pub(crate) fn restart(&mut self) {
        self.relaunch();
        self.settle(PortsTaken::TryAgain);
    }

    /// Returns the log of the server since its latest start.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(log_in(self.directory.path())).expect("the server's log");
        String::from_utf8_lossy(&log).into_owned()
    }

    fn try_connection(&self) -> RedisResult<Connection> {
        connect(&self.socket())
    }

    fn answers(&self) -> bool {
        self.try_connection()
            .and_then(|mut connection| redis::cmd("PING").exec(&mut connection))
            .is_ok()
    }

    fn relaunch(&mut self) {
        self.stop();
        self.process = self.options.launch(self.directory.path(), self.ports);
    }

    /// Waits until the server replies. Another program can take a free port before the server binds
    /// it, which costs an attempt and no more.
    fn settle(&mut self, remedy: PortsTaken) {
        for _ in 0..PORT_ATTEMPTS {
            if self.await_startup() == Startup::Answering {
                return;
            }
            if remedy == PortsTaken::ChooseOthers {
                self.ports = self.options.choose_ports();
            }
            self.relaunch();
        }
        panic!("no port for redis-server:\n{}", self.log());
    }

    fn await_startup(&mut self) -> Startup {
        let answering = within(BOUND, || {
            let ended = self.process.try_wait().expect("redis-server is a child");
            match ended {
                Some(_) => Some(false),
                None => self.answers().then_some(true),
            }
        });
        match answering {
            Some(true) => Startup::Answering,
            Some(false) if self.log().contains("Address already in use") => Startup::PortTaken,
            _ => panic!("redis-server does not answer:\n{}", self.log()),
        }
    }

    fn process_id(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.process_id(), signal).expect("redis-server takes the signal");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Connects to the server behind this socket, as a user that may run every command.
pub(crate) fn connect(socket: &Path) -> RedisResult<Connection> {
    // With protocol 2 and no library name, the counts of `hello` and `client` are those of the
    // proxy.
    let settings = RedisConnectionInfo::default()
        .set_username(TEST_USER)
        .set_password("")
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let server = ConnectionAddr::Unix(socket.to_owned())
        .into_connection_info()?
        .set_redis_settings(settings);
    let connection = redis::Client::open(server)?.get_connection_with_timeout(BOUND)?;
    connection.set_read_timeout(Some(BOUND))?;
    connection.set_write_timeout(Some(BOUND))?;
    Ok(connection)
}

fn base_arguments(directory: &Path, tcp_port: Option<u16>) -> Vec<String> {
    let words = [
        ("--dir", text(directory)),
        ("--unixsocket", text(&socket_in(directory))),
        ("--bind", Ipv4Addr::LOCALHOST.to_string()),
        ("--port", tcp_port.unwrap_or(0).to_string()),
        ("--save", String::new()),
        ("--appendonly", "no".to_owned()),
    ];
    words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

/// Returns the program to start: `redis-server`, or another one with the same arguments.
pub(super) fn program() -> OsString {
    std::env::var_os(PROGRAM)
        .filter(|program| !program.is_empty())
        .unwrap_or_else(|| "redis-server".into())
}

fn socket_in(directory: &Path) -> PathBuf {
    directory.join("redis.sock")
}

fn log_in(directory: &Path) -> PathBuf {
    directory.join("log")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path that is text").to_owned()
}
