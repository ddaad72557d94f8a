//! A primary, its replica, and the sentinels that watch them.
//!
//! Model: two `redis-server` processes, of which the second replicates the first, and some
//! `redis-server --sentinel` processes that know each other. They take a primary for dead after
//! half a second unless configured otherwise. After the setup every sentinel knows the replica, so
//! a failover can begin at once.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Connection, FromRedisValue, RedisResult, Value, cmd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::redis_server::{connect, free_port, program, server_directory};
use super::wait::{eventually, within};
use super::{RedisServer, Relay};

/// The name of the primary.
pub(crate) const MASTER: &str = "main";
/// Longer than a sentinel that has stood still starts no failover.
const BOUND: Duration = Duration::from_secs(60);
/// A failover takes less, unless a sentinel has aborted it.
const FAILOVER: Duration = Duration::from_secs(5);
const PORT_ATTEMPTS: usize = 5;

/// One running sentinel; dropping it ends the process.
pub(crate) struct Sentinel {
    directory: TempDir,
    port: u16,
    /// `user:password@`, for the commands of the test.
    login: String,
    lines: Vec<String>,
    process: Child,
}

impl Sentinel {
    /// Starts a sentinel for the primary at this address, with this quorum. `lines` are added to
    /// its configuration.
    pub(crate) fn start(primary: SocketAddr, quorum: usize, login: &str, lines: &[String]) -> Self {
        let mut directory = server_directory();
        let mut all = vec![
            format!("dir {}", directory.path().display()),
            "bind 127.0.0.1".to_owned(),
            format!("sentinel monitor {MASTER} {} {} {quorum}", primary.ip(), primary.port()),
            format!("sentinel down-after-milliseconds {MASTER} 500"),
            format!("sentinel failover-timeout {MASTER} 3000"),
        ];
        all.extend_from_slice(lines);
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            let process = launch(&directory, port, &all);
            let mut sentinel =
                Self { directory, port, login: login.to_owned(), lines: all, process };
            if sentinel.answers() {
                // Polls often, because the default of ten seconds would slow every test.
                let often = ["SENTINEL", "DEBUG", "INFO-PERIOD", "200", "PUBLISH-PERIOD", "300"];
                sentinel.command(&often).expect("the sentinel takes the command");
                return sentinel;
            }
            // Another program has taken the port meanwhile.
            sentinel.stop();
            directory = std::mem::replace(&mut sentinel.directory, server_directory());
            all = std::mem::take(&mut sentinel.lines);
        }
        panic!("no port for a sentinel");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Runs a command.
    pub(crate) fn command(&self, words: &[&str]) -> RedisResult<Value> {
        cmd(words[0]).arg(&words[1..]).query(&mut self.connection()?)
    }

    /// Kills the process.
    pub(crate) fn stop(&mut self) {
        // The process may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again with its state.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let log = File::create(self.directory.path().join("log")).expect("the sentinel's log file");
        self.process = spawn(&self.config(), log);
        eventually("the sentinel answers", || self.connection().ok());
    }

    /// Freezes the process.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.process), Signal::STOP)
            .expect("the sentinel takes the signal");
    }

    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT)
            .expect("the sentinel takes the signal");
    }

    /// Returns the port of the primary that it names.
    pub(crate) fn primary(&self) -> u16 {
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(MASTER);
        let address: RedisResult<(String, u16)> =
            self.connection().and_then(|mut connection| question.query(&mut connection));
        address.expect("the sentinel knows the primary").1
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("sentinel.conf")
    }

    fn connection(&self) -> RedisResult<Connection> {
        let client = redis::Client::open(format!("redis://{}{}", self.login, self.address()))?;
        client.get_connection_with_timeout(BOUND)
    }

    fn answers(&mut self) -> bool {
        let answering =
            within(BOUND, || match self.process.try_wait().expect("the sentinel is a child") {
                Some(_) => Some(false),
                None => self.connection().is_ok().then_some(true),
            });
        answering.unwrap_or(false)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.stop();
    }
}

fn launch(directory: &TempDir, port: u16, lines: &[String]) -> Child {
    let config = directory.path().join("sentinel.conf");
    fs::write(&config, format!("port {port}\n{}\n", lines.join("\n")))
        .expect("the sentinel's configuration");
    spawn(&config, File::create(directory.path().join("log")).expect("the sentinel's log file"))
}

fn spawn(config: &PathBuf, log: File) -> Child {
    let mut command = Command::new(program());
    command.arg(config).arg("--sentinel").stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a second handle to the log")).stderr(log);
    command.spawn().expect("a sentinel starts")
}

/// A primary, a replica, and sentinels; they end in reverse order.
pub(crate) struct Watched {
    pub(crate) sentinels: Vec<Sentinel>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) redis: [RedisServer; 2],
}

impl Watched {
    /// Starts them with this many sentinels.
    pub(crate) fn by(sentinels: usize) -> Self {
        Self::with("", sentinels, &[], &[])
    }

    /// Starts them with a login for the test, lines for the configuration of the sentinels, and
    /// arguments for both Redis servers.
    pub(crate) fn with(login: &str, sentinels: usize, lines: &[&str], arguments: &[&str]) -> Self {
        let primary = RedisServer::builder().tcp().arguments(&QUICK).arguments(arguments).start();
        let of = primary.tcp_address().port().to_string();
        let replica = RedisServer::builder().tcp().arguments(&QUICK).arguments(arguments);
        let replica = replica.arguments(&["--replicaof", "127.0.0.1", &of]).start();
        let address = primary.tcp_address();
        Self::watch([primary, replica], Vec::new(), address, login, sentinels, lines)
    }

    /// Starts them so that all clients, the sentinels included, reach each Redis over a relay of
    /// its own.
    pub(crate) fn over_relays(sentinels: usize) -> Self {
        let primary = RedisServer::builder().tcp().arguments(&QUICK).start();
        let first = Relay::to_socket(primary.socket());
        let of = first.address().port().to_string();
        // The relay needs the socket of a running server, and the server announces the address of
        // its relay.
        let replica = RedisServer::builder().tcp().arguments(&QUICK).start();
        let second = Relay::to_socket(replica.socket());
        let announce = |redis: &RedisServer, relay: &Relay| {
            let port = relay.address().port().to_string();
            redis.command(&[
                "CONFIG",
                "SET",
                "replica-announce-ip",
                "127.0.0.1",
                "replica-announce-port",
                &port,
            ]);
        };
        announce(&primary, &first);
        announce(&replica, &second);
        replica.command(&["REPLICAOF", "127.0.0.1", &of]);
        let address = first.address();
        Self::watch([primary, replica], vec![first, second], address, "", sentinels, &[])
    }

    fn watch(
        redis: [RedisServer; 2],
        relays: Vec<Relay>,
        primary: SocketAddr,
        login: &str,
        sentinels: usize,
        lines: &[&str],
    ) -> Self {
        eventually("the replica has a copy", || {
            information(&redis[1]).contains("master_link_status:up").then_some(())
        });
        let lines: Vec<_> = lines.iter().map(|&line| line.to_owned()).collect();
        let start = |_| Sentinel::start(primary, sentinels / 2 + 1, login, &lines);
        let watched = Self { sentinels: (0..sentinels).map(start).collect(), relays, redis };
        watched.sentinels.iter().for_each(|one| watched.await_known(one));
        watched
    }

    /// Waits until this sentinel knows the others and the replica.
    fn await_known(&self, sentinel: &Sentinel) {
        let count = |what: &str| match sentinel.command(&["SENTINEL", what, MASTER]) {
            Ok(Value::Array(known)) => known.len(),
            _ => 0,
        };
        let known = within(BOUND, || {
            (count("SENTINELS") + 1 == self.sentinels.len() && count("REPLICAS") == 1).then_some(())
        });
        assert!(known.is_some(), "a sentinel did not find the others and the replica");
    }

    /// Returns the keys of `[redis]` that lead to it.
    pub(crate) fn settings(&self) -> String {
        let seeds: Vec<_> =
            self.sentinels.iter().map(|one| format!("\"redis://{}\"", one.address())).collect();
        format!(
            "redis.mode = \"sentinel\"\nredis.sentinel_master = \"{MASTER}\"\nredis.seeds = [{}]\n",
            seeds.join(", ")
        )
    }

    /// Returns the address of one of the two.
    pub(crate) fn address(&self, number: usize) -> SocketAddr {
        self.relays.get(number).map_or_else(|| self.redis[number].tcp_address(), Relay::address)
    }

    /// Makes the first sentinel promote the second Redis, and waits until all sentinels know it.
    pub(crate) fn fail_over(&self) {
        self.fail_over_to(1);
    }

    /// Makes the first sentinel promote one of the two.
    pub(crate) fn fail_over_to(&self, number: usize) {
        // A sentinel may abort, as when the replica lags behind; then the command is sent again.
        let done = within(BOUND, || {
            let reply = self.sentinels[0].command(&["SENTINEL", "FAILOVER", MASTER]);
            reply.ok().and_then(|_| within(FAILOVER, || self.all_name(number).then_some(())))
        });
        assert!(done.is_some(), "no failover:\n{}", self.sentinels[0].log());
    }

    /// Waits until all sentinels name this one of the two as the primary.
    pub(crate) fn await_failover(&self, number: usize) {
        let done = within(BOUND, || self.all_name(number).then_some(()));
        assert!(done.is_some(), "no failover:\n{}", self.sentinels[0].log());
    }

    fn all_name(&self, number: usize) -> bool {
        let expected = self.address(number).port();
        self.sentinels.iter().all(|one| one.primary() == expected)
    }

    /// Makes the first Redis ignore sentinels that demote it: it goes on as a primary, as one that
    /// they cannot reach.
    pub(crate) fn make_stubborn(&self) {
        let users = ["ACL", "SETUSER", "default", "-replicaof", "-slaveof"];
        self.redis[0].command(&users);
    }
}

/// Replication begins at once.
const QUICK: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// Returns the `INFO replication` reply of a Redis.
pub(crate) fn information(redis: &RedisServer) -> String {
    in_the_end(redis, &["INFO", "replication"])
}

/// Returns the reply of a Redis that closes all connections while it becomes a replica.
pub(crate) fn in_the_end<T: FromRedisValue>(redis: &RedisServer, words: &[&str]) -> T {
    let query = || cmd(words[0]).arg(&words[1..]).query(&mut connect(&redis.socket())?);
    eventually("redis-server answers", || query().ok())
}
