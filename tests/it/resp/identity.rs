//! Cached replies and the identity of clients.
//!
//! Promise: a cached reply goes only to clients that could read it from Redis: the proxy's own
//! user, or a client with the front end's password.

use std::fs;

use tempfile::TempDir;

use crate::support::resp_client::{RespClient, show, show_without_id, words};
use crate::support::resp_pair::{
    AS_READER, LASTING, READER_AND_OTHER, RespPair, is_straight, resp_config,
};
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer};

/// Returns ACL arguments that require a login. Besides `reader` and `other` there is only one user,
/// who may write and not read.
fn users() -> Vec<&'static str> {
    let writer = ["--user", "writer", "on", ">writer-secret", "~*", "&*", "+@all", "-get", "-mget"];
    [&["--requirepass", "default-secret"], &READER_AND_OTHER[..], &["-flushall"], &writer].concat()
}

#[test]
fn authenticated_proxy_gives_nothing_to_anonymous() {
    let ways = logged_in();
    let lines = [
        "GET secret",
        "MGET secret open",
        "EXISTS secret",
        "STRLEN secret",
        "GETRANGE secret 0 1",
        "PING",
        "AUTH wrong",
        "AUTH reader wrong",
        "GET secret",
        "AUTH nobody x",
        "HELLO 3 AUTH reader wrong",
        "HELLO 3",
        "GET secret",
        "SET secret x",
        "MULTI",
        "GET secret",
        "EXEC",
        "AUTH",
        "AUTH a b c",
        "GET secret",
    ];
    let received = ways.expect_from_memory(0.0, || ways.same_answers(&lines));
    assert!(received[0].contains("-NOAUTH"), "{received:#?}");
    assert!(!received.iter().any(|line| line.contains("hidden")), "{received:#?}");
}

#[test]
fn proxy_user_is_answered_from_memory() {
    let ways = logged_in();
    let from_memory = |hello: &str| {
        ways.expect_from_memory(2.0, || {
            let mut wire = RespClient::connect(ways.through());
            let greeting = wire.reply_to(hello);
            assert!(!greeting.starts_with('-'), "{greeting}");
            assert_eq!(wire.reply_to("GET secret"), "$6\\r\\nhidden\\r\\n");
            assert_eq!(wire.reply_to("GET secret"), "$6\\r\\nhidden\\r\\n");
        });
    };
    from_memory("AUTH reader reader-secret");
    from_memory("HELLO 3 AUTH reader reader-secret");
    from_memory("HELLO 2 AUTH reader reader-secret SETNAME me");
}

#[test]
fn other_user_gets_its_own_view_from_redis() {
    let ways = logged_in();
    ways.expect_from_memory(0.0, || {
        let received = ways.same_answers(&[
            "AUTH other other-secret",
            "GET secret",
            "MGET open secret",
            "EXISTS secret",
            "STRLEN secret",
            "GET open",
            "GET open",
            "AUTH writer writer-secret",
            "GET secret",
            "GET open",
            "STRLEN secret",
            "AUTH default-secret",
            "GET secret",
            "GET secret",
        ]);
        assert!(received[1].contains("-NOPERM"), "{received:#?}");
        assert!(received[5].contains("public"), "{received:#?}");
        assert!(received[8].contains("-NOPERM"), "{received:#?}");
    });
}

#[test]
fn switching_user_switches_replies() {
    let ways = logged_in();
    let lines = [
        "AUTH reader reader-secret",
        "GET secret",
        "AUTH other other-secret",
        "GET secret",
        "AUTH reader wrong",
        "GET secret",
        "AUTH reader reader-secret",
        "GET secret",
        "RESET",
        "GET secret",
        "HELLO 3 AUTH other other-secret",
        "GET secret",
        "GET open",
    ];
    // One by one, and pipelined.
    ways.expect_from_memory(2.0, || {
        let received = ways.same(|address| {
            let mut wire = RespClient::connect(address);
            lines.iter().map(|line| show_without_id(&wire.query_line(line))).collect::<Vec<_>>()
        });
        let hidden: Vec<_> =
            received.iter().map(|line| u8::from(line.contains("hidden"))).collect();
        assert_eq!(hidden, [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], "{received:#?}");
    });
    // From 7.2 on, Redis sends no reply to a login that it rejects behind other commands.
    let at_once: Vec<_> = lines.into_iter().filter(|line| !line.contains("wrong")).collect();
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        wire.send(at_once.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
        wire.answers(at_once.len()).iter().map(|answer| show_without_id(answer)).collect::<Vec<_>>()
    });
}

#[test]
fn proxy_without_login_serves_the_default_user() {
    let ways = RespPair::between(
        |server| server.arguments(&["--user", "other", "on", ">secret", "~open*", "+@all"]),
        LASTING,
    );
    for server in ways.servers() {
        server.command(&["SET", "secret", "hidden"]);
    }
    RespClient::connect(ways.through()).query_line("GET secret");
    let lines = [
        "GET secret",
        "AUTH default anything",
        "GET secret",
        "AUTH other wrong",
        "GET secret",
        "AUTH other secret",
        "GET secret",
    ];
    ways.expect_from_memory(3.0, || {
        let received = ways.same_answers(&lines);
        assert!(received[6].contains("-NOPERM"), "{received:#?}");
    });
}

#[test]
fn front_end_password_makes_the_proxy_user() {
    if is_straight() {
        return;
    }
    let (_redis, proxy, _directory) = with_password(AS_READER);
    let mut wire = RespClient::connect(proxy.resp_address());
    let talk = [
        ("GET secret", "-NOAUTH Authentication required.\\r\\n"),
        ("SET secret x", "-NOAUTH Authentication required.\\r\\n"),
        ("PING", "-NOAUTH Authentication required.\\r\\n"),
        ("NONESUCH", "-NOAUTH Authentication required.\\r\\n"),
        ("AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled.\\r\\n"),
        (
            "AUTH reader front",
            "-WRONGPASS invalid username-password pair or user is disabled.\\r\\n",
        ),
        (
            "AUTH reader reader-secret",
            "-WRONGPASS invalid username-password pair or user is disabled.\\r\\n",
        ),
        (
            "AUTH default default-secret",
            "-WRONGPASS invalid username-password pair or user is disabled.\\r\\n",
        ),
        ("AUTH", "-ERR wrong number of arguments for \\'auth\\' command\\r\\n"),
        ("AUTH a b c", "-ERR syntax error\\r\\n"),
        ("GET secret", "-NOAUTH Authentication required.\\r\\n"),
        ("AUTH front", "+OK\\r\\n"),
        ("GET secret", "$6\\r\\nhidden\\r\\n"),
        ("ACL WHOAMI", "$6\\r\\nreader\\r\\n"),
        ("SET own value", "+OK\\r\\n"),
        ("GET own", "$5\\r\\nvalue\\r\\n"),
        ("AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled.\\r\\n"),
        ("GET own", "$5\\r\\nvalue\\r\\n"),
        ("RESET", "+RESET\\r\\n"),
        ("GET secret", "-NOAUTH Authentication required.\\r\\n"),
        ("AUTH default front", "+OK\\r\\n"),
        ("GET secret", "$6\\r\\nhidden\\r\\n"),
    ];
    for (line, expected) in talk {
        assert_eq!(wire.reply_to(line), expected, "{line}");
    }
    for hello in [
        "HELLO",
        "HELLO 3",
        "HELLO 2 SETNAME me",
        "HELLO 3 AUTH default wrong",
        "HELLO 3 AUTH reader reader-secret",
    ] {
        let mut wire = RespClient::connect(proxy.resp_address());
        let received = wire.reply_to(hello);
        assert!(
            received.starts_with("-NOAUTH HELLO must") || received.starts_with("-WRONGPASS"),
            "{hello}: {received}"
        );
        assert_eq!(wire.reply_to("GET secret"), "-NOAUTH Authentication required.\\r\\n");
    }
    let mut wire = RespClient::connect(proxy.resp_address());
    let greeting = wire.reply_to("HELLO 3 AUTH default front SETNAME me");
    assert!(greeting.starts_with("%7"), "{greeting}");
    assert_eq!(wire.reply_to("GET secret"), "$6\\r\\nhidden\\r\\n");
    assert_eq!(wire.reply_to("GET absent"), "_\\r\\n");
    assert_eq!(wire.reply_to("CLIENT GETNAME"), "$2\\r\\nme\\r\\n");
}

#[test]
fn login_behind_a_read_keeps_reply_order() {
    if is_straight() {
        return;
    }
    let (redis, proxy, _directory) = with_password(AS_READER);
    redis.command(&["RPUSH", "list", "item"]);
    let mut wire = RespClient::connect(proxy.resp_address());
    assert_eq!(wire.reply_to("AUTH front"), "+OK\\r\\n");
    // Memory has not seen the list yet, so the read goes to Redis in the end.
    wire.send(
        [
            words("GET list"),
            words("HELLO 3 AUTH default front"),
            words("GET secret"),
            words("GET none"),
        ]
        .concat(),
    );
    let received: Vec<_> = wire.answers(4).iter().map(|answer| show(answer)).collect();
    assert!(received[0].starts_with("-WRONGTYPE"), "{received:#?}");
    assert!(received[1].starts_with("%7"), "{received:#?}");
    assert_eq!(received[2..], ["$6\\r\\nhidden\\r\\n", "_\\r\\n"]);
    // A user name may equal a keyword.
    let mut wire = RespClient::connect(proxy.resp_address());
    let received = wire.reply_to("HELLO 3 SETNAME auth AUTH default front");
    assert!(received.starts_with("%7"), "{received}");
}

#[test]
fn anonymous_client_input_is_limited() {
    if is_straight() {
        return;
    }
    // The limits of Redis for unauthenticated clients, compared with Redis itself.
    let (redis, proxy, _directory) = with_password(AS_READER);
    for sent in ["*11\r\n", "*2\r\n$3\r\nGET\r\n$16385\r\n", "*10\r\n$4\r\nPING\r\n$x\r\n"] {
        let [expected, found] = [redis.tcp_address(), proxy.resp_address()].map(|address| {
            let mut wire = RespClient::connect(address);
            wire.send(sent);
            (show(&wire.answer()), wire.is_closed())
        });
        assert_eq!(found, expected, "{sent:?}");
    }
}

#[test]
fn empty_password_file_is_rejected() {
    if is_straight() {
        return;
    }
    let redis = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [("missing", None), ("empty", Some("")), ("blank", Some("\n"))] {
        let file = directory.path().join(name);
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let settings = format!("resp.password_file = \"{}\"", file.display());
        let (code, received) = Proxy::builder(&resp_config(&redis.url(), &settings)).run_to_end();
        assert!(code != 0 && received.contains("resp.password_file"), "{name}: {code} {received}");
    }
}

/// Starts both paths, with a secret in the memory of a proxy that reads as `reader`.
fn logged_in() -> RespPair {
    let ways =
        RespPair::between(|server| server.arguments(&users()), &format!("{LASTING}\n{AS_READER}"));
    for server in ways.servers() {
        server.command(&["SET", "secret", "hidden"]);
        server.command(&["SET", "open", "public"]);
    }
    let mut wire = RespClient::connect(ways.through());
    for line in ["AUTH reader reader-secret", "GET secret", "GET open"] {
        wire.query_line(line);
    }
    ways
}

/// Starts a proxy with a password of its own and a secret in its memory.
fn with_password(settings: &str) -> (RedisServer, Proxy, TempDir) {
    let redis = RedisServer::builder().tcp().arguments(&users()).start();
    redis.command(&["SET", "secret", "hidden"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "front\n").unwrap();
    let settings = format!("{LASTING}\nresp.password_file = \"{}\"\n{settings}", file.display());
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    let mut wire = RespClient::connect(proxy.resp_address());
    for line in ["AUTH front", "GET secret"] {
        wire.query_line(line);
    }
    (redis, proxy, directory)
}
