//! Exposed listeners.
//!
//! Promise: a listener that other hosts can reach does not start without authentication, unless the
//! configuration allows it.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs;
use std::net::TcpListener;

use crate::support::http::get;
use crate::support::{Proxy, RedisServer};

const SECTIONS: [&str; 3] = ["http", "resp", "admin"];

fn code_and_words(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Proxy::spawn_raw(arguments, environment);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Returns the exit code and output of `check` for `{section}.listen = address`, with `more` in
/// that section.
fn checked(section: &str, address: &str, more: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.toml");
    fs::write(&file, format!("[{section}]\nlisten = \"{address}\"\n{more}\n"))
        .expect("the file is written");
    code_and_words(&["check", "--config", file.to_str().expect("a path that is text")], &[])
}

#[test]
fn exposed_listener_needs_auth_or_opt_in() {
    for section in SECTIONS {
        for address in ["0.0.0.0:7070", "[::]:7070", "10.1.2.3:7070", "[::ffff:10.1.2.3]:7070"] {
            let (code, received) = checked(section, address, "");
            assert_eq!(code, Some(78), "{section} {address}: {received}");
            for part in [
                &format!("{section}.allow_unprotected: "),
                address,
                "is reachable from other hosts without authentication",
                &format!("or {section}.allow_unprotected = true"),
            ] {
                assert!(received.contains(part), "{part:?} is not in {received:?}");
            }
            let (code, received) = checked(section, address, "allow_unprotected = true");
            assert_eq!(code, Some(0), "{section} {address}: {received}");
        }
        for address in [
            "127.0.0.1:7070",
            "127.9.9.9:7070",
            "[::1]:7070",
            "[::ffff:127.0.0.1]:7070",
            "localhost:7070",
        ] {
            let (code, received) = checked(section, address, "");
            assert_eq!(code, Some(0), "{section} {address}: {received}");
        }
    }
    assert_eq!(checked("resp", "unix:///run/proxy.sock", "").0, Some(0));
    assert_eq!(checked("resp", "0.0.0.0:7070", "password_file = \"/run/password\"").0, Some(0));
}

#[test]
fn exposure_check_applies_to_flags_and_daemon() {
    let (code, received) = code_and_words(&["--proxy_host", "0.0.0.0", "--proxy_port", "0"], &[]);
    assert_eq!(code, Some(78), "{received}");
    assert!(
        received.contains("http.allow_unprotected: ") && received.contains("listener 0.0.0.0:"),
        "{received}"
    );
    let (code, received) = code_and_words(
        &["check", "--proxy_host", "0.0.0.0"],
        &[
            ("REDIS_PROXY_HTTP__ALLOW_UNPROTECTED", "true"),
            ("REDIS_PROXY_RESP__ALLOW_UNPROTECTED", "perhaps"),
        ],
    );
    assert_eq!(code, Some(78), "{received}");
    assert!(
        !received.contains("http.") && received.contains("resp.allow_unprotected: "),
        "{received}"
    );
}

#[test]
fn inherited_socket_is_checked_by_its_address() {
    let redis = RedisServer::start();
    let open = TcpListener::bind("0.0.0.0:0").expect("a socket");
    for section in SECTIONS {
        let own = if section == "http" { "" } else { "http.listen = \"127.0.0.1:0\"" };
        let config = format!("{own}\nredis.url = \"{}\"", redis.url());
        let closed = TcpListener::bind("127.0.0.1:0").expect("a socket");
        // A single socket would be that of http, whatever its name.
        let (other, others) =
            if section == "http" { ("admin", &closed) } else { ("http", &closed) };
        let (code, received) =
            Proxy::builder(&config).inherit(&[(section, &open), (other, others)]).run_to_end();
        assert_eq!(code, 78, "{section}: {received}");
        let parts = [
            format!("{section}.allow_unprotected"),
            open.local_addr().expect("an address").to_string(),
        ];
        assert!(parts.iter().all(|part| received.contains(part)), "{section}: {received}");
    }
}

#[test]
fn opted_in_exposed_listener_serves() {
    let redis = RedisServer::start();
    let open = TcpListener::bind("0.0.0.0:0").expect("a socket");
    let config = format!("http.allow_unprotected = true\nredis.url = \"{}\"", redis.url());
    let proxy = Proxy::builder(&config).inherit(&[("http", &open)]).start();
    let port = open.local_addr().expect("an address").port();
    assert_eq!(get(([127, 0, 0, 1], port).into(), "/livez").status, 200);
    proxy.finish();
}
