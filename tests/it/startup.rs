//! Messages of a start: the first line, and fatal errors.
//!
//! Promise: the first line names the version, the configuration file and the process. A failed
//! start names every file that cannot be used, and the action that mends it, in the configured log
//! format.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs::{self, File};
use std::io::Read;
use std::process::Output;
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::support::serving::config;
use crate::support::{Authority, Proxy, RedisServer, Signal};

const LOG_FORMAT: (&str, &str) = ("REDIS_PROXY_TELEMETRY__LOG_FORMAT", "json");

/// Starts a proxy that ends by itself with this configuration. Returns the exit code and the lines
/// of standard error that are errors.
fn failed_start(content: &str, environment: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redis-proxy.toml");
    fs::write(&file, content).unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "--proxy_port", "0"];
    let Output { status, stderr, .. } = Proxy::spawn_raw(&arguments, environment);
    let text = String::from_utf8(stderr).expect("messages are text");
    // Lines of the log have a level.
    let is_error = |line: &&str| !line.contains(" INFO ") && !line.contains(" WARN ");
    (status.code(), text.lines().filter(is_error).map(str::to_owned).collect())
}

#[test]
fn first_line_has_version_config_file_and_pid() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), ""));
    let line = proxy.log_lines().swap_remove(0);
    assert!(line.has_message("starting redis-proxy"), "{}", line.text());
    assert_eq!(line.field("version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(line.field("config"), proxy.config_path().to_str().map(str::to_owned));
    assert_eq!(line.field("pid"), Some(proxy.pid().to_string()));
}

#[test]
fn failed_start_names_every_bad_file() {
    let mut content = "[redis]\nurl = \"rediss://127.0.0.1:1\"\n".to_owned();
    content += "tls_ca_file = \"/nowhere/ca\"\npassword_file = \"/nowhere/redis\"\n";
    content += "[http]\ntokens_file = \"/nowhere/tokens\"\n";
    content += "tls_cert_file = \"/nowhere/cert\"\ntls_key_file = \"/nowhere/key\"\n";
    content += "[resp]\nlisten = \"127.0.0.1:0\"\npassword_file = \"/nowhere/resp\"\n";
    let (code, lines) = failed_start(&content, &[]);
    assert_eq!(code, Some(78), "{lines:#?}");
    for (key, path) in [
        ("redis.tls_ca_file", "/nowhere/ca"),
        ("redis.password_file", "/nowhere/redis"),
        ("http.tokens_file", "/nowhere/tokens"),
        ("http.tls_cert_file", "/nowhere/cert"),
        ("resp.password_file", "/nowhere/resp"),
    ] {
        let names = |line: &&String| line.contains(key) && line.contains(path);
        assert_eq!(lines.iter().filter(names).count(), 1, "{key} in {lines:#?}");
    }
}

#[test]
fn empty_password_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "\n").unwrap();
    let content = format!("redis.password_file = \"{}\"\n", file.path().display());
    let (code, lines) = failed_start(&content, &[]);
    assert_eq!(code, Some(78), "{lines:#?}");
    assert!(
        lines[0].contains("redis.password_file") && lines[0].contains("it is empty"),
        "{lines:#?}"
    );
}

#[test]
fn key_of_another_certificate_is_blamed() {
    let authority = Authority::new();
    let ((certificate, _), (_, key)) = (authority.issue("one"), authority.issue("other"));
    let pair = |section: &str| {
        let (certificate, key) = (certificate.display(), key.display());
        format!("{section}.tls_cert_file = \"{certificate}\"\n{section}.tls_key_file = \"{key}\"\n")
    };
    // Without an authority of its own, a system that has none would be the first problem.
    let redis = format!("redis.url = \"rediss://127.0.0.1:1\"\n{}\n", authority.trusted());
    for (section, more) in [("http", ""), ("redis", &*redis)] {
        let (code, lines) = failed_start(&format!("{more}{}", pair(section)), &[]);
        assert_eq!(code, Some(78), "{lines:#?}");
        for part in [
            format!("{section}.tls_key_file"),
            key.display().to_string(),
            format!("does not belong to the certificate in {section}.tls_cert_file"),
        ] {
            assert!(lines.len() == 1 && lines[0].contains(&part), "{part} in {lines:#?}");
        }
    }
}

#[test]
fn fatal_errors_are_json_where_the_log_is() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let listen = format!("admin.listen = \"{}\"\n", taken.local_addr().unwrap());
    for (code, content, parts) in [
        (78, "[cache]\nttl = \"x\"\ncapasity = 1\n", &["cache.ttl", "cache.capasity"][..]),
        (78, "[cache\n", &["TOML"]),
        (78, "[http]\ntokens_file = \"/nowhere/tokens\"\n", &["http.tokens_file"]),
        (78, "[http]\nlisten = \"0.0.0.0:0\"\n", &["http.allow_unprotected"]),
        (1, &listen, &["admin.listen"]),
    ] {
        let (ended, lines) = failed_start(content, &[LOG_FORMAT]);
        assert_eq!(ended, Some(code), "{lines:#?}");
        let errors: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .filter(|line: &Value| line["level"] == "ERROR")
            .collect();
        for part in parts {
            assert!(
                errors.iter().any(|line| line["timestamp"].is_string()
                    && line["message"].as_str().unwrap().contains(part)),
                "{part} in {lines:#?}"
            );
        }
    }
}

/// Returns standard error of a proxy that has a terminal there.
fn on_a_terminal(environment: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let inner = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let redis = RedisServer::start();
    let mut builder = Proxy::builder(&config(&redis.url(), ""));
    for (name, value) in environment {
        builder = builder.environment(name, value);
    }
    let builder = builder.environment(LOG_FORMAT.0, "text");
    let (mut command, _directory) = builder.into_command();
    command.env_remove("NO_COLOR").env("TERM", "xterm");
    command.envs(environment.iter().copied());
    let mut child = command.stderr(inner).spawn().unwrap();
    drop(command);
    let reader = thread::spawn(move || {
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        // The read fails once the last other end is closed.
        while let Ok(length @ 1..) = File::from(terminal.try_clone().unwrap()).read(&mut piece) {
            text.extend_from_slice(&piece[..length]);
            if String::from_utf8_lossy(&text).contains("listening") {
                break;
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let text = reader.join().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn no_color_and_dumb_terminals_get_plain_text() {
    assert!(on_a_terminal(&[]).contains('\u{1b}'), "colours on a terminal");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let text = on_a_terminal(&[plain]);
        assert!(text.contains("listening") && !text.contains('\u{1b}'), "{plain:?}: {text:?}");
    }
    // By its definition (no-color.org), an empty variable changes nothing.
    assert!(on_a_terminal(&[("NO_COLOR", "")]).contains('\u{1b}'));
}
