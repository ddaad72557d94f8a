//! The real proxy binary as a process of one test.
//!
//! Model: a process with a configuration file in a temporary directory and a log on standard error.
//! It has started once its log names its addresses. It has ended well if it ended on SIGTERM, with
//! the expected exit code, and if the test has named every warning and error in the log. A test
//! that does not call `finish` gets the same verdict when the proxy is dropped.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::http;
use super::log::{Log, LogLine};
use super::metrics::Metrics;
use super::wait::within;

const START_BOUND: Duration = Duration::from_secs(20);
const LOG_BOUND: Duration = Duration::from_secs(10);
const END_BOUND: Duration = Duration::from_secs(15);
const RAW_BOUND: Duration = Duration::from_secs(20);
const LOG_FORMAT: &str = "REDIS_PROXY_TELEMETRY__LOG_FORMAT";
const ADMIN_LISTEN: &str = "REDIS_PROXY_ADMIN__LISTEN";

/// A running proxy.
pub(crate) struct Proxy {
    child: Child,
    directory: TempDir,
    log: Arc<Log>,
    http: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    expected_trouble: Mutex<Vec<String>>,
    expected_exit: AtomicI32,
    told_to_end: AtomicBool,
    judged: bool,
}

/// The settings of a [`Proxy`] to be started.
pub(crate) struct ProxyBuilder {
    directory: TempDir,
    command: Command,
    admin: bool,
}

/// The outcome of a changed configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reload {
    Reloaded,
    Refused,
}

impl ProxyBuilder {
    pub(crate) fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.admin |= name == ADMIN_LISTEN && !value.as_ref().is_empty();
        self.command.env(name, value);
        self
    }

    /// Passes these sockets to the proxy, each with its name, as systemd does (`sd_listen_fds(3)`).
    /// They stay open here.
    pub(crate) fn inherit(mut self, sockets: &[(&str, &TcpListener)]) -> Self {
        // Only a shell can choose the number of an inherited descriptor and name the process id in
        // advance.
        let (mut aside, mut in_place) = (String::new(), String::new());
        for (index, (_, socket)) in sockets.iter().enumerate() {
            fcntl_setfd(socket, FdFlags::empty()).expect("a socket to be inherited");
            // Over numbers that none of them has.
            let (number, spare) = (index + 3, index + 10_000);
            write!(aside, "exec {spare}<&{}; ", socket.as_raw_fd()).expect("a string takes all");
            write!(in_place, "exec {number}<&{spare} {spare}<&-; ").expect("a string takes all");
        }
        let mut script = aside + &in_place;
        let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
        script += "export LISTEN_PID=$$";
        let mut shell = behind(&script, &self.command);
        shell.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        self.admin |= names.contains(&"admin");
        self.command = shell;
        self
    }

    /// Limits the number of open files of the proxy.
    pub(crate) fn open_files(mut self, most: u32) -> Self {
        self.command = behind(&format!("ulimit -n {most}"), &self.command);
        self
    }

    /// Puts this file in the place of `hosts(5)` for the proxy alone, in a mount namespace.
    pub(crate) fn hosts(mut self, file: &Path, namespace: &[&str]) -> Self {
        let mounting =
            behind(&format!("mount --bind '{}' /etc/hosts", file.display()), &self.command);
        self.command = within_namespace(namespace, &mounting);
        self
    }

    /// Returns the command that starts it, and the directory that has to outlive it, for a test
    /// that does not read the log.
    pub(crate) fn into_command(self) -> (Command, TempDir) {
        (self.command, self.directory)
    }

    /// Runs the proxy until it ends by itself. Returns the exit code and the messages of its log.
    pub(crate) fn run_to_end(mut self) -> (i32, String) {
        let output = output(&mut self.command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let message = |line: &str| {
            let parsed: Option<Value> = serde_json::from_str(line).ok();
            parsed.and_then(|fields| fields["message"].as_str().map(str::to_owned))
        };
        let lines = text.lines().map(|line| message(line).unwrap_or_else(|| line.to_owned()));
        (exit_code(output.status), lines.collect::<Vec<_>>().join("\n"))
    }

    /// Starts the proxy and waits until it listens; panics with its log if it does not.
    pub(crate) fn start(mut self) -> Proxy {
        let mut child = self
            .command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let log = Log::follow(child.stderr.take().expect("standard error is piped"));
        let mut proxy = Proxy::new(child, self.directory, log);
        proxy.await_addresses(self.admin);
        proxy
    }
}

impl Proxy {
    pub(crate) fn start(config: &str) -> Self {
        Self::builder(config).start()
    }

    /// Returns a builder with this configuration file. The log is JSON unless the environment says
    /// otherwise.
    pub(crate) fn builder(config: &str) -> ProxyBuilder {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = config_in(directory.path());
        fs::write(&file, config).expect("the configuration is written");
        let mut command = command();
        command.env(LOG_FORMAT, "json").arg("--config").arg(file);
        ProxyBuilder { directory, command, admin: sets_admin_listen(config) }
    }

    /// Runs the binary until it ends by itself.
    pub(crate) fn spawn_raw(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        output(command().args(arguments).envs(environment.iter().copied()))
    }

    /// Returns the HTTP address.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http.expect("a proxy that has started")
    }

    /// Returns the RESP address over TCP.
    #[track_caller]
    pub(crate) fn resp_address(&self) -> SocketAddr {
        let address = self.log.wait(LOG_BOUND, |lines| listening_address(lines, "resp"));
        require(address, "the address of the RESP front end in the log")
    }

    /// Returns the address of the REST front end's own listener.
    #[track_caller]
    pub(crate) fn rest_address(&self) -> SocketAddr {
        let address = self.log.wait(LOG_BOUND, |lines| listening_address(lines, "rest"));
        require(address, "the address of the REST front end in the log")
    }

    /// Returns the admin address.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("a configuration with admin.listen")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. After one that requests the end, `finish` sends none of its own.
    pub(crate) fn signal(&self, signal: Signal) {
        let asks_for_the_end = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::KILL];
        if asks_for_the_end.contains(&signal) {
            self.told_to_end.store(true, Ordering::SeqCst);
        }
        kill_process(Pid::from_child(&self.child), signal).expect("the proxy takes the signal");
    }

    /// Returns the path of the configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        config_in(self.directory.path())
    }

    /// Replaces the configuration file, sends SIGHUP, and returns the outcome.
    #[track_caller]
    pub(crate) fn reload(&self, config: &str) -> Reload {
        // Lines before the signal are about earlier configurations.
        let seen = self.log.length();
        self.start_reload(config);
        let outcome =
            self.log.wait(LOG_BOUND, |lines| lines[seen..].iter().find_map(reload_outcome));
        require(outcome, "the configuration reloaded or refused")
    }

    /// Replaces the configuration file and sends SIGHUP.
    pub(crate) fn start_reload(&self, config: &str) {
        let file = self.config_path();
        let next = file.with_extension("next");
        fs::write(&next, config).expect("the configuration is written");
        fs::rename(&next, &file).expect("the configuration is replaced");
        self.signal(Signal::HUP);
    }

    /// Returns the first line of the whole log that matches `predicate`, once there is one.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, predicate: impl Fn(&LogLine) -> bool) -> LogLine {
        let found =
            self.log.wait(LOG_BOUND, |lines| lines.iter().find(|line| predicate(line)).cloned());
        require(found, "the awaited line in the log")
    }

    pub(crate) fn log_lines(&self) -> Vec<LogLine> {
        self.log.lines()
    }

    /// Expects warnings and errors that contain `part`, in any number, including none.
    pub(crate) fn expect_log(&self, part: &str) {
        self.expected_trouble.lock().unwrap().push(part.to_owned());
    }

    /// Expects this exit code; for an end by a signal, 128 and its number.
    pub(crate) fn expect_exit(&self, code: i32) {
        self.expected_exit.store(code, Ordering::SeqCst);
    }

    /// Reads the metrics from the admin address.
    pub(crate) fn metrics(&self) -> Metrics {
        let response = http::get(self.admin(), "/metrics");
        assert_eq!(response.status, 200, "the proxy tells its metrics");
        Metrics::parse(String::from_utf8(response.body).expect("metrics are text"))
    }

    /// Ends the proxy and asserts that it ran well.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.judge();
    }

    fn new(child: Child, directory: TempDir, log: Arc<Log>) -> Self {
        Self {
            child,
            directory,
            log,
            http: None,
            admin: None,
            expected_trouble: Mutex::new(warnings_of_this_machine()),
            expected_exit: AtomicI32::new(0),
            told_to_end: AtomicBool::new(false),
            judged: false,
        }
    }

    fn await_addresses(&mut self, admin: bool) {
        let addresses = self.log.wait(START_BOUND, |lines| {
            let http = listening_address(lines, "http")?;
            let admin = if admin { Some(listening_address(lines, "admin")?) } else { None };
            Some((http, admin))
        });
        let (http, admin) = require(addresses, "the proxy's addresses in the log");
        (self.http, self.admin) = (Some(http), admin);
    }

    #[track_caller]
    fn judge(&mut self) {
        self.judged = true;
        let status = self.end();
        let mut complaints = self.trouble();
        let code = status.map(exit_code);
        if code != Some(self.expected_exit.load(Ordering::SeqCst)) {
            complaints.push(match code {
                Some(code) => format!("exit code {code}"),
                None => format!("no end within {END_BOUND:?} of the signal"),
            });
        }
        let complaints = complaints.join("\n");
        let log = self.log.text();
        assert!(complaints.is_empty(), "the proxy:\n{complaints}\nits log:\n{log}");
    }

    /// Waits for the end of the process; returns no status if it had to be killed.
    fn end(&mut self) -> Option<ExitStatus> {
        if !self.told_to_end.load(Ordering::SeqCst) {
            self.signal(Signal::TERM);
        }
        let ended = ends_within(&mut self.child, END_BOUND);
        let status = end_of(&mut self.child);
        // The last lines of the process are part of the log as well.
        self.log.wait_for_end(LOG_BOUND);
        ended.then_some(status)
    }

    fn trouble(&self) -> Vec<String> {
        let expected = self.expected_trouble.lock().unwrap();
        let is_expected = |line: &LogLine| {
            let mut parts = expected.iter();
            parts.any(|part| line.text().contains(part))
        };
        let mut lines = self.log.lines();
        lines.retain(|line| {
            let panicked = line.text().contains("panicked");
            panicked || line.is_trouble() && !is_expected(line)
        });
        lines.iter().map(|line| format!("unexpected: {}", line.text())).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.judged {
            return;
        }
        if thread::panicking() {
            let status = end_of(&mut self.child);
            self.log.wait_for_end(LOG_BOUND);
            eprintln!("the proxy ({status}), its log:\n{}", self.log.text());
        } else {
            self.judge();
        }
    }
}

/// Returns the warnings of a proxy with the defaults that this machine causes: its limit on open
/// files may be below what `max_connections` of both front ends needs.
fn warnings_of_this_machine() -> Vec<String> {
    let open_files = getrlimit(Resource::Nofile).maximum;
    let is_low = open_files.is_some_and(|open_files| open_files < 32_768);
    if is_low { vec!["too few open files".to_owned()] } else { Vec::new() }
}

/// Panics. The log is printed when the proxy is dropped.
#[track_caller]
fn require<T>(found: Option<T>, what: &str) -> T {
    match found {
        Some(found) => found,
        None => panic!("missing: {what}"),
    }
}

/// Returns the command behind a shell that runs the script first, as the same process.
fn behind(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &format!("{script}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    shell
}

/// Returns the command behind these words, as the same process.
fn within_namespace(namespace: &[&str], command: &Command) -> Command {
    let mut apart = Command::new(namespace[0]);
    apart
        .args(&namespace[1..])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => apart.env(name, value),
            None => apart.env_remove(name),
        };
    }
    apart
}

/// Returns the binary in an environment without its settings.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redis-proxy"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("REDIS_PROXY_") || text == "CREDENTIALS_DIRECTORY" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

fn config_in(directory: &Path) -> PathBuf {
    directory.join("config.toml")
}

/// Whether the configuration sets `admin.listen`. Reads lines instead of parsing, because tests
/// also start proxies with invalid TOML.
fn sets_admin_listen(config: &str) -> bool {
    let mut section = String::new();
    for line in config.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once('=')
            && format!("{section}{}", key.trim()) == "admin.listen"
        {
            let value = value.split('#').next().unwrap_or_default().trim();
            return !["\"\"", "''", "[]"].contains(&value);
        }
    }
    false
}

fn listening_address(lines: &[LogLine], front_end: &str) -> Option<SocketAddr> {
    let line = lines.iter().find(|line| {
        line.has_message("listening") && line.field("front_end").as_deref() == Some(front_end)
    })?;
    line.field("address")?.parse().ok()
}

fn reload_outcome(line: &LogLine) -> Option<Reload> {
    if line.has_message("config reloaded") {
        Some(Reload::Reloaded)
    } else if line.has_message("config refused") {
        Some(Reload::Refused)
    } else {
        None
    }
}

fn drain(mut source: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // After an error, the bytes so far are all there is.
        let _ = source.read_to_end(&mut bytes);
        bytes
    })
}

fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let status = within(limit, || child.try_wait().expect("the proxy is a child"));
    status.is_some()
}

/// Runs a proxy that ends by itself; panics with its output if it does not.
fn output(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the proxy starts");
    let stdout = drain(child.stdout.take().expect("standard output is piped"));
    let stderr = drain(child.stderr.take().expect("standard error is piped"));
    let ended = ends_within(&mut child, RAW_BOUND);
    let output = Output {
        status: end_of(&mut child),
        stdout: stdout.join().expect("standard output is read"),
        stderr: stderr.join().expect("standard error is read"),
    };
    assert!(ended, "did not end within {RAW_BOUND:?}: {output:?}");
    output
}

/// Returns the end of the process, which is killed if it still runs.
fn end_of(child: &mut Child) -> ExitStatus {
    // An error means that the process has ended already.
    let _ = child.kill();
    child.wait().expect("the proxy is a child")
}

/// Returns the exit code as a shell reports it.
fn exit_code(status: ExitStatus) -> i32 {
    let by_signal = || status.signal().map(|number| 128 + number);
    status.code().or_else(by_signal).unwrap_or(-1)
}
