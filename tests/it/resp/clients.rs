//! Real clients: redis-py, node-redis, ioredis, and the programs of Redis.
//!
//! Promise: they work unchanged through the proxy.
//!
//! Model: a program of tests/clients does the work of an application and prints the replies; the
//! text has to be the same straight and through the proxy.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::resp_client::RespClient;
use crate::support::resp_pair::{LASTING, RespPair};
use crate::support::{clients, within};

const BOUND: Duration = Duration::from_secs(120);

#[test]
fn redis_py_over_resp2() {
    compare(clients::python(), "redis_py.py", 2);
}

#[test]
fn redis_py_over_resp3() {
    compare(clients::python(), "redis_py.py", 3);
}

#[test]
fn node_redis_over_resp2() {
    compare(clients::node(), "node_redis.mjs", 2);
}

#[test]
fn node_redis_over_resp3() {
    compare(clients::node(), "node_redis.mjs", 3);
}

#[test]
fn ioredis_over_resp2() {
    compare(clients::node(), "ioredis.mjs", 2);
}

#[test]
fn ioredis_over_resp3() {
    compare(clients::node(), "ioredis.mjs", 3);
}

#[test]
fn redis_cli_reads_lines() {
    let script = "SET key \"a value\"\nGET key\nGET key\nGET absent\nINCR n\nSTRLEN key\n\
        LPUSH list 1 2\nLRANGE list 0 -1\nGET list\n\
                  MULTI\nGET key\nEXEC\nSELECT 1\nGET key\nSELECT 0\nHELLO 3\nHSET h a 1\n\
                  HGETALL h\nGET key\nEVAL \"return 7\" 0\n\
                  CLIENT GETNAME\nNONESUCH a b\nRESET\nGET key\nQUIT\n";
    let ways = RespPair::start();
    for options in [&[][..], &["-3"], &["--no-raw"], &["-3", "--no-raw"]] {
        ways.same(|address| {
            RespClient::connect(address).query(&["FLUSHALL"]);
            let received = run(cli(address).args(options), script.as_bytes());
            // The id of the connection in the reply to HELLO.
            let lines = received
                .lines()
                .filter(|line| !line.contains("\"id\"") && !line.starts_with("id "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
    }
}

#[test]
fn redis_cli_works_interactively() {
    let typed = [
        "SET key value",
        "GET key",
        "get key",
        "GET absent",
        "LPUSH list a b",
        "lrange list 0 -1",
        "SELECT 1",
        "GET key",
    ];
    let Some(python) = clients::python() else { return };
    let ways = RespPair::start();
    let shown = ways.same(|address| {
        let mut terminal = Command::new(python.get_program());
        terminal
            .arg(script("terminal.py"))
            .args([address.ip().to_string(), address.port().to_string()]);
        let shown = run(terminal.args(typed).args(["SUBSCRIBE-NOT x", "QUIT"]), b"");
        shown.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert!(shown.contains(&"127.0.0.1:PORT[1]> GET key".to_owned()), "{shown:#?}");
}

#[test]
fn redis_cli_inserts_in_bulk() {
    const COMMANDS: usize = 100_000;
    let ways = RespPair::start();
    let commands: Vec<_> =
        (0..COMMANDS).map(|number| format!("SET bulk:{number} value-{number}\r\n")).collect();
    ways.same(|address| run(cli(address).arg("--pipe"), commands.concat().as_bytes()));
    let found = ways.same(|address| RespClient::connect(address).reply_to("DBSIZE"));
    assert_eq!(found, format!(":{COMMANDS}\\r\\n"));
    ways.same(|address| RespClient::connect(address).reply_to("GET bulk:99999"));
}

#[test]
fn redis_benchmark_runs_all_its_tests() {
    let ways = RespPair::start();
    for depth in ["1", "16"] {
        let address = ways.through();
        let mut benchmark = Command::new("redis-benchmark");
        at(&mut benchmark, address)
            .args(["-n", "2000", "-c", "20", "-r", "100", "-P", depth, "--csv"]);
        let received = run(&mut benchmark, b"");
        let tests = received.lines().filter(|line| line.starts_with('"')).count();
        assert!(tests >= 18, "only {tests} lines: {received}");
        assert!(!received.to_lowercase().contains("error"), "{received}");
    }
}

/// Runs the program over both paths.
#[track_caller]
fn compare(program: Option<Command>, name: &str, protocol: u8) {
    let Some(mut program) = program else { return };
    program.arg(script(name));
    // A busy machine may keep Redis from a large reply for longer than the default.
    let settings = format!("{LASTING}\nredis.response_timeout = \"60s\"");
    let ways = RespPair::between(|server| server, &settings);
    let transcript = |address: SocketAddr, program: &Command| {
        let mut command = Command::new(program.get_program());
        command.args(program.get_args());
        command.args([address.ip().to_string(), address.port().to_string(), protocol.to_string()]);
        command.env("NODE_PATH", clients::folder().join("node_modules")).env("PYTHONHASHSEED", "0");
        run(&mut command, b"")
    };
    let received = ways.same(|address| {
        transcript(address, &program).lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(received.last().map(String::as_str), Some("done"), "{received:#?}");
    if let Some(from_memory) = ways.answered_from_memory() {
        assert!(from_memory > 10.0, "only {from_memory} reads were answered from memory");
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn cli(address: SocketAddr) -> Command {
    let mut cli = Command::new("redis-cli");
    at(&mut cli, address);
    cli
}

fn at(command: &mut Command, address: SocketAddr) -> &mut Command {
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
}

/// Returns the output of a program, which has to end well and in time.
#[track_caller]
fn run(command: &mut Command, input: &[u8]) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "{}: {error}; scripts/redis-server installs Redis's programs",
                command.get_program().display()
            )
        });
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program may end without reading all of its input; its exit status decides.
    thread::spawn(move || _ = stdin.write_all(&input));
    let received = [read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap())];
    let status = within(BOUND, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
    }
    let [received, complaints] = received.map(|reader| reader.join().unwrap());
    let status = status.unwrap_or_else(|| {
        panic!("not ended within {BOUND:?}: {command:?}\n{received}\n{complaints}")
    });
    assert!(status.success(), "{status}: {command:?}\n{received}\n{complaints}");
    received
}

fn read(mut source: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
