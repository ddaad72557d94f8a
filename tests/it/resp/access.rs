//! Who is let in: the front end's own name and password, read again at SIGHUP.

use super::ways::resp_config;
use super::wire::Wire;
use crate::access::{SecretFile, assert_not_told, reload};
use crate::stage::await_ready;
use crate::support::{Proxy, RedisServer, Reload};

const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// A proxy that asks for what is in `file`.
fn asking(file: &SecretFile, more: &str) -> (RedisServer, Proxy) {
    let redis = RedisServer::builder().tcp().start();
    let settings = format!("resp.password_file = \"{}\"\n{more}", file.name());
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    (redis, proxy)
}

fn said(proxy: &Proxy, line: &str) -> String {
    told(&mut Wire::connect(proxy.resp_address()), line)
}

fn told(wire: &mut Wire, line: &str) -> String {
    String::from_utf8_lossy(&wire.ask_line(line)).into_owned()
}

#[test]
fn a_new_password_is_asked_of_who_comes_after_the_reload() {
    let file = SecretFile::new("first\n");
    let (_redis, proxy) = asking(&file, "");
    let mut inside = Wire::connect(proxy.resp_address());
    assert_eq!(told(&mut inside, "AUTH first"), "+OK\r\n");

    file.write("second");
    assert_eq!(said(&proxy, "AUTH second"), WRONG, "before the reload");
    assert_eq!(reload(&proxy), Reload::Reloaded);
    assert_eq!(said(&proxy, "AUTH second"), "+OK\r\n");
    assert_eq!(said(&proxy, "AUTH first"), WRONG);
    assert_eq!(told(&mut inside, "SET k v"), "+OK\r\n", "who is in, stays in");
    assert_eq!(told(&mut inside, "AUTH first"), WRONG);

    proxy.expect_log("config refused");
    file.write("\n");
    assert_eq!(reload(&proxy), Reload::Refused);
    assert_eq!(said(&proxy, "AUTH second"), "+OK\r\n");
    let told = proxy.wait_for_log(|line| line.text().contains("resp.password_file"));
    assert!(told.text().contains("found nothing in it"), "{}", told.text());
    assert_not_told(&proxy, &["first", "second"]);
}

#[test]
fn a_name_of_its_own_is_the_only_one_that_counts() {
    let file = SecretFile::new("word");
    let (_redis, proxy) = asking(&file, "resp.username = \"app\"");
    for right in ["AUTH app word", "HELLO 2 AUTH app word"] {
        assert!(!said(&proxy, right).starts_with('-'), "{right}");
    }
    for wrong in [
        "AUTH word",
        "AUTH default word",
        "AUTH App word",
        "AUTH app wor",
        "AUTH app words",
        "HELLO 3 AUTH default word",
    ] {
        assert_eq!(said(&proxy, wrong), WRONG, "{wrong}");
    }
}

#[test]
fn a_name_without_a_password_is_refused() {
    let redis = RedisServer::start();
    let (code, said) = Proxy::builder(&resp_config(&redis.url(), "resp.username = \"app\"")).run_to_end();
    assert!(code == 78 && said.contains("resp.username: found a name without a password"), "{code} {said}");
}
