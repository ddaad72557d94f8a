//! Attacks on the match between requests and replies (desynchronisation).
//!
//! Promise: no sequence of commands makes the proxy take a client for another user.
//!
//! Model: `other` may read some keys, and `secret` is in the memory of a proxy that reads as
//! `reader`. The commands of `other` try to have a reply of Redis taken for the reply to another
//! command, such as a rejected login. Then a read of the secret shows whether memory answers. The
//! reply to `ECHO` ends the exchange.

use std::fs;

use crate::support::resp_client::{RespClient, bulk, command, show, show_without_id, words};
use crate::support::resp_pair::{
    AS_READER, LASTING, READER_AND_OTHER, RespPair, is_straight, resp_config,
};
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer};

const NEVER_RIGHT: &str = "AUTH reader wrong";

#[test]
fn push_reply_never_changes_identity() {
    let ways = with_secret(&[]);
    let mut wire = RespClient::connect(ways.through());
    assert!(wire.reply_to("HELLO 3 AUTH other other-secret").starts_with("%7"));
    // Longer than the part that is held, and answered by a push alone.
    let channel = "x".repeat(2 << 20);
    assert!(wire.query(&["SUBSCRIBE", &channel]).starts_with(b">3\r\n"));
    assert!(wire.reply_to(NEVER_RIGHT).starts_with("-WRONGPASS"));
    assert_eq!(wire.reply_to("PING"), "+PONG\\r\\n");
    expect_no_secret(&mut wire);
}

#[test]
fn renamed_subscribe_never_changes_identity() {
    let ways = with_secret(&["--rename-command", "SUBSCRIBE", "listen"]);
    let mut wire = RespClient::connect(ways.through());
    assert!(wire.reply_to("HELLO 3 AUTH other other-secret").starts_with("%7"));
    // From here on one reply is missing, because the proxy does not know the renamed command. Each
    // reply is taken for that of the previous command, and OK for the reply to a rejected login.
    assert!(wire.reply_to("listen news").starts_with(">3"));
    for line in ["RESET", "AUTH other other-secret", NEVER_RIGHT, "CLIENT SETNAME me", "PING"] {
        wire.query_line(line);
    }
    expect_no_secret(&mut wire);
}

#[test]
fn script_debug_never_changes_identity() {
    expect_no_secret_of_a_debugger(&with_secret(&[]), "SCRIPT DEBUG YES");
}

#[test]
fn renamed_script_debug_never_changes_identity() {
    let ways = with_secret(&["--rename-command", "SCRIPT", "lua"]);
    expect_no_secret_of_a_debugger(&ways, "lua DEBUG YES");
}

/// Redis and Valkey, from 7.2 on, send no reply to a rejected login while another is pending.
#[test]
fn rejected_auth_without_reply_never_changes_identity() {
    let ways = with_secret(&[]);
    for login in [NEVER_RIGHT, "HELLO 3 AUTH reader wrong"] {
        let mut wire = RespClient::connect(ways.through());
        assert_eq!(wire.reply_to("AUTH other other-secret"), "+OK\\r\\n");
        wire.send(["ECHO in-front", login, "CLIENT SETNAME me"].map(words).concat());
        while wire.answer() != b"+OK\r\n" {}
        expect_no_secret(&mut wire);

        // From EXEC on one reply is missing.
        let behind = ["RESET", "AUTH other other-secret", NEVER_RIGHT, "CLIENT SETNAME me", "PING"];
        let mut wire = RespClient::connect(ways.through());
        for line in ["AUTH other other-secret", "MULTI", login] {
            wire.query_line(line);
        }
        wire.send(words("EXEC"));
        for line in behind {
            wire.send(words(line));
        }
        while wire.answer() != b"+PONG\r\n" {}
        expect_no_secret(&mut wire);
    }
}

#[test]
fn repeated_auth_in_hello_matches_redis() {
    let ways = with_secret(&[]);
    for (first, last) in [
        ("reader reader-secret", "other other-secret"),
        ("reader wrong", "other other-secret"),
        ("other x", "reader y"),
    ] {
        let received = ways.same(|address| {
            let mut wire = RespClient::connect(address);
            let hello = show_without_id(
                &wire.query_line(&format!("HELLO 3 AUTH {first} SETNAME auth AUTH {last}")),
            );
            (
                hello,
                ["GET secret", "GET open", "MGET secret", "EXISTS secret"]
                    .map(|line| wire.reply_to(line)),
            )
        });
        assert!(!received.1.concat().contains("hidden"), "{received:?}");
    }
}

#[test]
fn front_end_password_allows_one_auth_per_hello() {
    if is_straight() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "front").unwrap();
    let redis = RedisServer::builder()
        .arguments(&["--user", "other", "on", ">other-secret", "~open*", "+@all"])
        .start();
    let settings = format!("{LASTING}\nresp.password_file = \"{}\"", file.display());
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    let mut wire = RespClient::connect(proxy.resp_address());
    // Redis would judge the second login, over a connection of the proxy's user.
    let received = wire.reply_to("HELLO 3 AUTH default front AUTH other other-secret");
    assert_eq!(received, "-ERR syntax error\\r\\n");
    assert_eq!(wire.reply_to("ACL WHOAMI"), "-NOAUTH Authentication required.\\r\\n");
}

#[test]
fn runtime_requirepass_bypasses_memory() {
    let ways = RespPair::start();
    ways.servers().iter().for_each(|server| _ = server.command(&["SET", "secret", "hidden"]));
    let warm = RespClient::connect(ways.through()).query_line("GET secret");
    assert_eq!(warm, bulk("hidden"));
    ways.servers()
        .iter()
        .for_each(|server| _ = server.command(&["CONFIG", "SET", "requirepass", "late"]));
    let received = ways.same_answers(&[
        "PING",
        "GET secret",
        "MGET secret",
        "EXISTS secret",
        "AUTH wrong",
        "STRLEN secret",
        "AUTH late",
        "GET secret",
    ]);
    assert!(received[7].contains("hidden"), "{received:#?}");
}

/// Starts both paths, with a secret in the memory of a proxy that reads as `reader`, and these
/// arguments for Redis.
fn with_secret(arguments: &[&str]) -> RespPair {
    let arguments = [&["--user", "default", "off"], &READER_AND_OTHER[..], arguments].concat();
    let ways = RespPair::between(
        |server| server.arguments(&arguments),
        &format!("{LASTING}\n{AS_READER}"),
    );
    for server in ways.servers() {
        server.command(&["MSET", "secret", "hidden", "open", "public"]);
    }
    let mut wire = RespClient::connect(ways.through());
    for line in ["AUTH reader reader-secret", "GET secret"] {
        wire.query_line(line);
    }
    ways
}

/// Reads the secret in front of further replies of Redis, and asserts that it stays hidden.
#[track_caller]
fn expect_no_secret(wire: &mut RespClient) {
    wire.send(["GET secret", "PING", "MGET secret", "PING"].map(words).concat());
    wire.send(command(&["ECHO", "end"]));
    let mut received = Vec::new();
    while received.last() != Some(&bulk("end")) {
        received.push(wire.answer());
    }
    let received: Vec<_> = received.iter().map(|answer| show(answer)).collect();
    assert!(!received.concat().contains("hidden"), "{received:#?}");
}

#[track_caller]
fn expect_no_secret_of_a_debugger(ways: &RespPair, debug: &str) {
    for login in [NEVER_RIGHT, "HELLO 3 AUTH reader wrong"] {
        let mut wire = RespClient::connect(ways.through());
        assert_eq!(wire.reply_to("AUTH other other-secret"), "+OK\\r\\n");
        assert_eq!(wire.reply_to(debug), "+OK\\r\\n");
        // From here on a debugger replies to every command, without errors.
        assert!(wire.reply_to("EVAL return(1) 0").contains("Stopped"));
        wire.query_line(login);
        assert!(!wire.reply_to("GET secret").contains("hidden"), "after {login}");
    }
}
