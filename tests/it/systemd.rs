//! The interface to systemd.
//!
//! Promise: the daemon reports its state, feeds the watchdog, and serves on inherited sockets.
//!
//! The supervisor is this test: a real notification socket, and real sockets that the daemon
//! inherits.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::env::SEED;
use crate::support::http::{self, Client};
use crate::support::serving::{await_ready, config, read, readyz, set, value};
use crate::support::{Proxy, RedisServer, Reload, Signal};

/// The socket for the notifications of the daemon.
struct Supervisor {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Supervisor {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket =
            UnixDatagram::bind(directory.path().join("notify")).expect("a notification socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket to set up");
        Self { directory, socket }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    fn message(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the daemon says something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// Returns the next message with this line.
    fn await_line(&self, line: &str) -> String {
        loop {
            let message = self.message();
            if message.lines().any(|found| found.starts_with(line)) {
                return message;
            }
        }
    }

    fn start(&self, redis: &RedisServer, environment: &[(&str, &str)]) -> Proxy {
        let mut builder =
            Proxy::builder(&config(&redis.url(), "")).environment("NOTIFY_SOCKET", self.path());
        for (name, value) in environment {
            builder = builder.environment(name, value);
        }
        builder.start()
    }
}

#[test]
fn ready_reload_and_stop_are_notified() {
    let redis = RedisServer::start();
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&redis, &[]);
    supervisor.await_line("READY=1");
    assert_eq!(http::get(proxy.admin(), "/livez").status, 200, "it listens by then");
    await_ready(&proxy);

    assert_eq!(proxy.reload(&config(&redis.url(), "cache.ttl = \"5s\"")), Reload::Reloaded);
    let reloading = supervisor.await_line("RELOADING=1");
    // Without it, systemd 253 and newer take the reload for a failure.
    let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{reloading}");
    supervisor.await_line("READY=1");

    proxy.signal(Signal::TERM);
    supervisor.await_line("STOPPING=1");
}

#[test]
fn rejected_reload_is_notified_as_finished() {
    let redis = RedisServer::start();
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&redis, &[]);
    supervisor.await_line("READY=1");
    proxy.expect_log("config refused");
    assert_eq!(proxy.reload("nonsense = true"), Reload::Refused);
    supervisor.await_line("RELOADING=1");
    supervisor.await_line("READY=1");
}

#[test]
fn status_reports_link_and_hit_share() {
    let redis = RedisServer::start();
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&redis, &[]);
    await_ready(&proxy);
    set(&redis, "key", "value");
    for _ in 0..4 {
        value(&proxy, "key");
    }
    supervisor.await_line("STATUS=serving, coherence tracking; 75.0 % of 4 reads from memory");
    drop(redis);
    proxy.expect_log("no connection to Redis");
    supervisor.await_line("STATUS=not ready: no connection to Redis");
}

#[test]
fn watchdog_is_fed_while_serving() {
    let redis = RedisServer::start();
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&redis, &[("WATCHDOG_USEC", "200000")]);
    for _ in 0..5 {
        supervisor.await_line("WATCHDOG=1");
    }
    proxy.finish();
}

#[test]
fn sockets_match_by_name() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let (reads, operators) = (listener(), listener());
    let addresses = (address(&reads), address(&operators));
    // The addresses of the configuration are not used then.
    let config = format!("http.listen = \"192.0.2.1:1\"\nredis.url = \"{}\"", redis.url());
    let builder = Proxy::builder(&config).inherit(&[("admin", &operators), ("http", &reads)]);
    let proxy = builder.environment("REDIS_PROXY_ADMIN__LISTEN", "192.0.2.1:2").start();
    assert_eq!((proxy.http(), proxy.admin()), addresses);
    await_ready(&proxy);
    assert_eq!(value(&proxy, "key"), "value");
    assert_eq!(http::get(proxy.http(), "/metrics").status, 404, "that is at the other one");
}

#[test]
fn single_socket_serves_reads_whatever_its_name() {
    let redis = RedisServer::start();
    let reads = listener();
    let config = format!("http.listen = \"192.0.2.1:1\"\nredis.url = \"{}\"", redis.url());
    let proxy = Proxy::builder(&config).inherit(&[("redis-proxy.socket", &reads)]).start();
    assert_eq!(proxy.http(), address(&reads));
    assert_eq!(http::get(proxy.http(), "/livez").status, 200);
}

#[test]
fn unknown_socket_is_reported() {
    let (one, other) = (listener(), listener());
    let builder = Proxy::builder("").inherit(&[("http", &one), ("gopher", &other)]);
    let (code, received) = builder.run_to_end();
    assert_eq!(code, 1, "{received}");
    assert!(
        received.contains("\"gopher\"") && received.contains("http, resp, rest or admin"),
        "{received}"
    );
}

#[test]
fn restart_refuses_no_connection() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let reads = listener();
    let url = redis.url();
    let start = || Proxy::builder(&config(&url, "")).inherit(&[("http", &reads)]).start();
    let first = start();
    assert_eq!(read(&first, "key").status, 200);
    first.finish();
    let mut waiting = Client::connect(address(&reads));
    waiting.send_raw(b"GET /keys/key HTTP/1.1\r\nHost: x\r\n\r\n");
    let _second = start();
    assert_eq!(waiting.read_response().status, 200);
}

#[test]
fn health_exit_code_follows_readyz() {
    let mut redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), ""));
    proxy.expect_log("no connection to Redis");
    await_ready(&proxy);
    let query = |question: &[&str]| {
        let mut health = Command::new(env!("CARGO_BIN_EXE_redis-proxy"));
        health
            .env_remove(SEED)
            .env("REDIS_PROXY_ADMIN__LISTEN", proxy.admin().to_string())
            .arg("health")
            .args(question);
        let output = health.output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, received) = query(&[]);
    assert!(code == Some(0) && received.trim_end() == readyz(&proxy).1, "{code:?} {received}");
    assert!(
        received.contains("\"coherence\":\"tracking\"")
            && received.contains("\"status\":\"ready\""),
        "{received}"
    );
    redis.stop();
    crate::support::eventually("Redis is gone", || {
        (read(&proxy, "key").status == 503).then_some(())
    });
    let (code, received) = query(&[]);
    assert!(code == Some(1) && received.contains("not ready"), "{code:?} {received}");
    assert_eq!(query(&["--live"]), (Some(0), "{\"status\":\"live\"}\n".to_owned()));
    proxy.finish();
}

#[test]
fn health_fails_without_a_listener() {
    let taken = listener();
    let free = address(&taken);
    drop(taken);
    let arguments = ["health", "--proxy_port", &free.port().to_string()];
    let output = Proxy::spawn_raw(&arguments, &[]);
    let received = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{received}");
    assert!(received.contains(&format!("no answer from {free}")), "{received}");
}

#[test]
fn manual_page_and_completions_name_every_flag() {
    let print = |arguments: &[&str]| {
        // With any configuration, even an invalid one.
        let output = Proxy::spawn_raw(arguments, &[("REDIS_PROXY_CACHE__TTL", "nonsense")]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stdout).replace('\\', "")
    };
    let texts = [print(&["man"]), print(&["completions", "bash"]), print(&["completions", "zsh"])];
    for text in texts.iter().chain([&print(&["completions", "fish"])]) {
        for flag in [
            "redis_host",
            "redis_port",
            "password",
            "ttl",
            "proxy_host",
            "config",
            "health",
            "stat",
            "top",
        ] {
            assert!(text.contains(flag), "{flag} is not in\n{text}");
        }
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("an address")
}

#[test]
fn deaf_supervisor_blocks_nothing() {
    let redis = RedisServer::start();
    let supervisor = Supervisor::new();
    let proxy = supervisor.start(&redis, &[]);
    await_ready(&proxy);
    // The socket holds a few dozen messages, of the test and the system; each reload sends two.
    for _ in 0..40 {
        assert_eq!(proxy.reload(&config(&redis.url(), "")), Reload::Reloaded);
    }
    assert_eq!(http::get(proxy.admin(), "/livez").status, 200);
    proxy.finish();
}

#[test]
fn health_ignores_a_rejected_config_file() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), ""));
    proxy.expect_log("config refused");
    await_ready(&proxy);
    let listen = format!("http.listen = \"{}\"\n", proxy.http());
    assert_eq!(
        proxy.reload(&format!("{listen}cache.capacity = 0\nnonsense = true")),
        Reload::Refused
    );
    let file = proxy.config_path();
    let admin = proxy.admin().to_string();
    let output = Proxy::spawn_raw(
        &["health", "--config", file.to_str().expect("a path that is text")],
        &[("REDIS_PROXY_ADMIN__LISTEN", &admin)],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn redis_error_is_one_status_line() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            _ = std::io::Write::write_all(
                &mut stream.expect("a stream"),
                b"-ERR no\nMAINPID=1\r\n",
            );
        }
    });
    let supervisor = Supervisor::new();
    let builder = Proxy::builder(&config(&url, "")).environment("NOTIFY_SOCKET", supervisor.path());
    let proxy = builder.start();
    proxy.expect_log("no connection to Redis");
    let status = supervisor.await_line("STATUS=not ready: no connection to Redis: Redis refused");
    assert_eq!(status.lines().count(), 1, "{status}");
}
