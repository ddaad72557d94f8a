//! `redis-proxy stat` and `redis-proxy top`.
//!
//! Promise: they show the state of a running proxy, in a terminal of any size, and leave the
//! terminal as it was.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::env::SEED;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{await_ready, config, proxy, read, set};
use crate::support::skip::skipped_without;
use crate::support::{Authority, Proxy, RedisServer, eventually};

/// The program's output with these arguments, which have to succeed.
fn print(arguments: &[&str]) -> String {
    let output = Proxy::spawn_raw(arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The error of the program with these arguments, which have to fail with `code`.
fn error(arguments: &[&str], code: i32) -> String {
    let output = Proxy::spawn_raw(arguments, &[]);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn stat_prints_a_line_for_each_interval() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "key", "value");
    let admin = proxy.admin().to_string();
    let reader = std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            for _ in 0..10 {
                assert_eq!(read(&proxy, "key").status, 200);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let printed = print(&["stat", "--admin", &admin, "-i", "200ms", "-n", "3"]);
        reads.join().expect("the reads");
        printed
    });
    let lines: Vec<_> = reader.lines().collect();
    assert_eq!(lines.len(), 4, "{reader}");
    assert!(lines[0].contains("reads/s") && lines[0].contains("hit ratio"), "{reader}");
    for line in &lines[1..] {
        assert!(line.ends_with("  fresh"), "{reader}");
    }
    assert!(lines[1..].iter().any(|line| line.contains('%')), "{reader}");
}

#[test]
fn top_prints_once_as_text_and_as_json() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "admin.hotkeys = 10");
    set(&redis, "key", "value");
    (0..5).for_each(|_| assert_eq!(read(&proxy, "key").status, 200));
    let admin = proxy.admin().to_string();
    let arguments = ["top", "--admin", &admin, "--once", "-i", "100ms"];
    let text = print(&arguments);
    for part in ["[fresh]", "hit ", "5  key", "entries: 1", &admin] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let json = print(&[&arguments[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).expect("one document");
    assert_eq!(json["reads"]["total"], 5);
    assert_eq!(json["rates"]["reads"], 0.0);
    let problem = error(&["top", "--admin", &admin], 1);
    assert!(problem.contains("no terminal"), "{problem}");
}

#[test]
fn address_token_and_certificate_come_from_the_configuration() {
    let (redis, authority) = (RedisServer::start(), Authority::new());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let free = listener.local_addr().expect("an address");
    drop(listener);
    let tokens = SecretFile::new("# comment\nsecret-token\n");
    let tls = crate::tls::settings("http", &authority.issue("localhost"));
    let proxy = Proxy::start(&format!(
        "http.listen = \"{free}\"\nhttp.tokens_file = \"{}\"\nredis.url = \"{}\"\n{tls}",
        tokens.name(),
        redis.url()
    ));
    let file = proxy.config_path();
    let by_config = ["top", "--config", file.to_str().expect("a path"), "--once", "--json"];
    eventually("it answers", || Proxy::spawn_raw(&by_config, &[]).status.success().then_some(()));
    let address = format!("https://localhost:{}", free.port());
    let by_address = ["top", "--admin", &address, "--once", "--json"];
    let problem = error(&by_address, 1);
    assert!(problem.contains("certificate"), "{problem}");
    let ca_file = authority.file();
    let with_ca = [&by_address[..], &["--ca-file", ca_file.to_str().expect("a path")]].concat();
    let problem = error(&with_ca, 1);
    assert!(problem.contains("status 401: a token is needed"), "{problem}");
    print(&[&with_ca[..], &["--token-file", &tokens.name()]].concat());
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let lost = unused.local_addr().expect("an address").to_string();
    drop(unused);
    for command in [&["top", "--once"][..], &["top", "--json"], &["stat"]] {
        let problem = error(&[command, &["--admin", &lost]].concat(), 1);
        assert!(problem.contains(&format!("no answer from {lost}: ")), "{problem}");
    }
    let problem = error(&["top", "--admin", "nonsense", "--once"], 1);
    assert!(problem.contains("expected host:port"), "{problem}");
}

#[test]
fn unix_socket_is_an_address_too() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let admin = proxy.admin();
    // The two requests of one call.
    let relay = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut client, _) = listener.accept().expect("a client");
            let mut to = std::net::TcpStream::connect(admin).expect("the listener");
            let (mut from, mut back) =
                (to.try_clone().expect("a handle"), client.try_clone().expect("a handle"));
            let answers = std::thread::spawn(move || {
                _ = std::io::copy(&mut from, &mut back);
                _ = back.shutdown(std::net::Shutdown::Both);
            });
            _ = std::io::copy(&mut client, &mut to);
            answers.join().expect("the answers");
        }
    });
    let address = format!("unix://{}", path.display());
    let text = print(&["top", "--admin", &address, "--once", "-i", "100ms"]);
    assert!(text.contains("[fresh]"), "{text}");
    relay.join().expect("the relay");
}

/// A terminal in tmux, on a server of its own.
struct Terminal {
    directory: TempDir,
}

impl Terminal {
    /// Starts a shell in a terminal of this size; `None` without tmux.
    fn start(width: u16, height: u16) -> Option<Self> {
        let directory = TempDir::new().expect("a directory");
        let terminal = Self { directory };
        if Command::new("tmux").arg("-V").output().is_err() {
            skipped_without("tmux", "Debian's package tmux has it");
            return None;
        }
        let (width, height) = (width.to_string(), height.to_string());
        let shell = "env PS1='READY> ' LC_ALL=C.UTF-8 sh";
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, shell]);
        terminal.await_text("READY>");
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.env_remove("TMUX").env_remove(SEED).env("LC_ALL", "C.UTF-8");
        tmux.args(["-u", "-f", "/dev/null", "-S"]).arg(self.directory.path().join("socket"));
        let output = tmux.args(arguments).output().expect("tmux");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the number of the process that the shell waits for.
    fn child(&self) -> String {
        let pane = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let children = Command::new("pgrep").args(["-P", pane.trim()]).output().expect("pgrep");
        String::from_utf8_lossy(&children.stdout).trim().to_owned()
    }

    /// The screen as text.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Whether anything on the screen has a colour other than the terminal's own.
    fn has_colours(&self) -> bool {
        let screen = self.tmux(&["capture-pane", "-p", "-e"]);
        let codes = screen.split("\u{1b}[").skip(1).filter_map(|part| part.split_once('m'));
        let mut numbers = codes.flat_map(|(codes, _)| codes.split(';').map(str::parse::<u8>));
        numbers.any(|code| matches!(code, Ok(30..=38 | 90..=97)))
    }

    fn await_text(&self, text: &str) -> String {
        eventually(&format!("{text} is on the screen"), || {
            let screen = self.screen();
            screen.contains(text).then_some(screen)
        })
    }

    fn type_line(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.tmux(&["send-keys", "Enter"]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.directory.path().join("socket")).arg("kill-server");
        _ = tmux.output();
    }
}

#[test]
fn top_fills_the_terminal_and_leaves_it_as_it_was() {
    let Some(terminal) = Terminal::start(80, 24) else { return };
    let mut redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), "admin.hotkeys = 10"));
    await_ready(&proxy);
    proxy.expect_log("connection to Redis");
    set(&redis, "key", "value");
    (0..5).for_each(|_| assert_eq!(read(&proxy, "key").status, 200));
    let program = env!("CARGO_BIN_EXE_redis-proxy");
    let line = format!("{program} top -i 200ms --admin {}", proxy.admin());
    terminal.type_line(&line);
    terminal.await_text("[fresh]");
    // The last title that is drawn.
    let screen = terminal.await_text("events");
    for part in ["up 0s", "hits", "negative_hit", "hot keys", "key", "http", "events"] {
        let part = if part == "up 0s" { "redis-proxy" } else { part };
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
    assert!(!screen.contains("READY>"), "{screen}");
    assert!(terminal.has_colours());
    save("top-80x24", &screen);

    terminal.tmux(&["resize-window", "-x", "200", "-y", "60"]);
    let screen = terminal.await_text("last 15 minutes");
    assert!(screen.lines().any(|line| line.chars().count() > 150), "{screen}");
    redis.stop();
    let screen = terminal.await_text("[down]");
    let screen = if screen.contains("is down") { screen } else { terminal.await_text("is down") };
    save("top-200x60", &screen);

    terminal.tmux(&["send-keys", "q"]);
    terminal.await_text("READY>");
    terminal.type_line("clear; stty -a | grep -o ' icanon' && echo code $?");
    terminal.await_text("code 0");

    // Without colours, and ended by a signal.
    terminal.type_line(&format!("NO_COLOR=1 {line}; echo ended $?"));
    terminal.await_text("hot keys");
    assert!(!terminal.has_colours());
    let child = terminal.child();
    assert!(Command::new("kill").arg(&child).status().expect("kill").success(), "{child}");
    let screen = terminal.await_text("ended 0");
    assert!(!screen.contains("negative_hit"), "the screen is as before:\n{screen}");
    proxy.finish();
}

#[test]
fn top_ends_with_its_terminal() {
    let Some(terminal) = Terminal::start(80, 24) else { return };
    let redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), ""));
    let program = env!("CARGO_BIN_EXE_redis-proxy");
    terminal.type_line(&format!("{program} top --admin {}", proxy.admin()));
    terminal.await_text("events");
    let child = Path::new("/proc").join(terminal.child());
    assert!(child.exists());
    drop(terminal);
    eventually("the process has ended", || (!child.exists()).then_some(()));
    proxy.finish();
}

/// Writes a screen to a file, to be looked at, if `REDIS_PROXY_SCREENS` names a directory.
fn save(name: &str, screen: &str) {
    if let Some(directory) = std::env::var_os("REDIS_PROXY_SCREENS") {
        let file = std::path::Path::new(&directory).join(format!("{name}.txt"));
        std::fs::write(file, screen).expect("a file");
    }
}
