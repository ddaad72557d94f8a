//! `rest.listen`: a listener with the contract at `/`; and the login of forwarded commands.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json as value;

use super::support::{TOKENS, json, request};
use crate::support::cluster::RedisCluster;
use crate::support::http::{Client, Response};
use crate::support::secret_file::SecretFile;
use crate::support::serving::await_ready;
use crate::support::{Authority, Proxy, RedisServer, eventually};

const FULL: (&str, &str) = ("Authorization", "Bearer full-token");

/// Starts a proxy with a REST listener and more lines.
fn start(redis: &str, file: &SecretFile, more: &str) -> Proxy {
    let proxy = Proxy::start(&format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
            rest.listen = \"127.0.0.1:0\"\nrest.tokens_file = \"{}\"\n{redis}\n{more}",
        file.name()
    ));
    await_ready(&proxy);
    proxy
}

fn url(redis: &RedisServer) -> String {
    format!("redis.url = \"{}\"", redis.url())
}

fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Response {
    let mut client = Client::connect(address);
    client.send_raw(&request(method, path, &[FULL], body.as_bytes()));
    client.read_response()
}

#[test]
fn own_listener_has_the_contract_at_its_root() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let proxy = start(&url(&redis), &file, "");
    let own = proxy.rest_address();
    for (method, path, body, expected) in [
        ("POST", "/", r#"["SET","a","1"]"#, value!({"result": "OK"})),
        ("GET", "/get/a", "", value!({"result": "1"})),
        ("POST", "/pipeline", r#"[["GET","a"]]"#, value!([{"result": "1"}])),
        ("POST", "/multi-exec", r#"[["INCR","a"]]"#, value!([{"result": 2}])),
    ] {
        assert_eq!(json(&send(own, method, path, body)), (200, expected), "{method} {path}");
    }
    // KEYS is a command here, and metrics are not served.
    assert_eq!(json(&send(own, "GET", "/keys/a", "")).0, 403);
    assert_eq!(json(&send(own, "GET", "/metrics", "")).0, 400);
    let mut nobody = Client::connect(own);
    nobody.send_raw(b"GET /get/a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(json(&nobody.read_response()).0, 401);
    for path in ["/get/a", "/rest/get/a"] {
        assert_eq!(send(proxy.http(), "GET", path, "").status, 404, "{path}");
    }
    let connections = "redis_proxy_connections_limit{front_end=\"rest\"}";
    assert!(proxy.metrics().value(connections).is_some_and(|most| most > 100.0));
    let both = start(&url(&redis), &file, "rest.path = \"/rest\"");
    assert_eq!(json(&send(both.http(), "GET", "/rest/get/a", "")).0, 200);
    assert_eq!(json(&send(both.rest_address(), "GET", "/get/a", "")).0, 200);
    assert_eq!(json(&send(both.rest_address(), "GET", "/rest/get/a", "")).0, 400);
}

#[test]
fn own_listener_has_its_own_limits_and_needs_tokens() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let limits = "rest.max_header = \"8KiB\"\nrest.max_connections = 2\nrest.idle_timeout = \"1s\"";
    let proxy = start(&url(&redis), &file, limits);
    let own = proxy.rest_address();
    let large = ("X-Long", &*"x".repeat(9000));
    let mut client = Client::connect(own);
    client.send_raw(&request("GET", "/get/a", &[FULL, large], b""));
    assert_eq!(json(&client.read_response()).0, 431);
    drop(client);
    eventually("two connections are served, and the next is not", || {
        let mut held = [Client::connect(own), Client::connect(own)];
        let served = held.iter_mut().all(|client| {
            client.send_raw(&request("GET", "/get/a", &[FULL], b""));
            client.try_read_response().is_ok_and(|response| response.status == 200)
        });
        let refused =
            || Client::connect(own).try_read_response().is_ok_and(|one| one.status == 503);
        (served && refused()).then_some(())
    });
    for (more, key) in [
        ("rest.listen = \"127.0.0.1:0\"", "rest.tokens_file"),
        ("rest.listen = \"unix:///s\"\nrest.tokens_file = \"/t\"", "rest.listen"),
        (
            "http.listen = \"127.0.0.1:8080\"\nrest.listen = \"127.0.0.1:8080\"\n\
                rest.tokens_file = \"/t\"",
            "rest.listen",
        ),
        ("rest.redis_username = \"u\"", "rest.redis_password_file"),
        ("rest.redis_password_file = \"/p\"", "rest.redis_username"),
        ("rest.tls_cert_file = \"/c\"", "rest.tls_cert_file"),
    ] {
        let (code, log) = Proxy::builder(more).run_to_end();
        assert!(code != 0 && log.contains(key), "{more}: {code} {log}");
    }
}

#[test]
fn own_listener_speaks_tls() {
    let (redis, file, authority) =
        (RedisServer::start(), SecretFile::new(TOKENS), Authority::new());
    let (certificate, key) = authority.issue("localhost");
    let tls = format!(
        "rest.tls_cert_file = \"{}\"\nrest.tls_key_file = \"{}\"",
        certificate.display(),
        key.display()
    );
    let proxy = start(&url(&redis), &file, &tls);
    let curl = |version: &str| {
        let url = format!("https://localhost:{}/set/a/1", proxy.rest_address().port());
        let authority = authority.file().display().to_string();
        let arguments = ["-sS", version, "--cacert", &authority, "--oauth2-bearer", "full-token"];
        let output = Command::new("curl").args(arguments).arg(url).output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl("--http1.1"), r#"{"result":"OK"}"#);
    assert_eq!(curl("--http2"), r#"{"result":"OK"}"#);
}

#[test]
fn forwarded_commands_run_as_the_second_user() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    redis.command(&["ACL", "SETUSER", "reader", "on", ">read", "~*", "&*", "+@all", "-@write"]);
    redis.command(&["ACL", "SETUSER", "writer", "on", ">write", "~w:*", "&*", "+@all"]);
    let (read, write) = (SecretFile::new("read"), SecretFile::new("write\n"));
    let config = |user: &str| {
        format!(
            "{}\nredis.username = \"reader\"\nredis.password_file = \"{}\"\n{user}",
            url(&redis),
            read.name()
        )
    };
    let alone = start(&config(""), &file, "");
    let (status, found) = json(&send(alone.rest_address(), "POST", "/", r#"["SET","w:a","1"]"#));
    assert!(status == 400 && found["error"].as_str().unwrap_or_default().starts_with("NOPERM"));
    let user = format!(
        "rest.redis_username = \"writer\"\nrest.redis_password_file = \"{}\"",
        write.name()
    );
    let proxy = start(&config(&user), &file, "");
    let run = |body: &str| json(&send(proxy.rest_address(), "POST", "/", body));
    assert_eq!(run(r#"["SET","w:a","1"]"#), (200, value!({"result": "OK"})));
    assert_eq!(run(r#"["ACL","WHOAMI"]"#).0, 403);
    assert_eq!(run(r#"["EVAL","return redis.call('SET','w:b','1')",0]"#).0, 200);
    assert!(run(r#"["SET","other","1"]"#).1["error"].as_str().unwrap().starts_with("NOPERM"));
    // Reads that are kept run as the proxy's own user.
    redis.command(&["SET", "other", "read"]);
    eventually("the read sees the write at Redis", || {
        (run(r#"["GET","other"]"#) == (200, value!({"result": "read"}))).then_some(())
    });
    let list: String = redis::from_redis_value(redis.command(&["CLIENT", "LIST"])).expect("a text");
    let users =
        |user: &str| list.lines().filter(|line| line.contains(&format!(" user={user} "))).count();
    assert!(users("reader") > 0 && users("writer") > 0, "{list}");
    // A password that changes is read again, without a restart.
    redis.command(&["ACL", "SETUSER", "writer", ">next", "<write"]);
    redis.command(&["CLIENT", "KILL", "USER", "writer"]);
    let (status, found) = run(r#"["SET","w:a","2"]"#);
    assert!(status == 400 && found["error"].is_string(), "{status} {found}");
    write.write("next\n");
    assert_eq!(run(r#"["SET","w:a","3"]"#), (200, value!({"result": "OK"})));
}

#[test]
fn forwarded_commands_of_a_cluster_run_as_the_second_user() {
    let (cluster, file) = (RedisCluster::of(3), SecretFile::new(TOKENS));
    let password = SecretFile::new("write");
    for node in &cluster.nodes {
        node.command(&["ACL", "SETUSER", "writer", "on", ">write", "~w:*", "&*", "+@all"]);
    }
    let user = format!(
        "rest.redis_username = \"writer\"\nrest.redis_password_file = \"{}\"",
        password.name()
    );
    let proxy = start(&cluster.settings(), &file, &user);
    let run = |body: &str| json(&send(proxy.rest_address(), "POST", "/pipeline", body));
    let sets: Vec<_> = (0..30).map(|at| format!(r#"["SET","w:{at}","1"]"#)).collect();
    let (status, found) = run(&format!("[{}]", sets.join(",")));
    assert_eq!((status, found), (200, value!(vec![value!({"result": "OK"}); 30])));
    let found = run(r#"[["SET","other","1"]]"#).1;
    assert!(found[0]["error"].as_str().unwrap().starts_with("NOPERM"), "{found}");
}
