//! `redis_proxy_rejected_total`, the counter of rejected clients.
//!
//! Promise: each rejection is counted once, by front end and reason, and nothing else is counted.

use crate::support::http::{Client, get};
use crate::support::resp_client::RespClient;
use crate::support::resp_pair::{LASTING, resp_config};
use crate::support::secret_file::SecretFile;
use crate::support::serving::{await_ready, metric};
use crate::support::{Proxy, RedisServer};

const TOKEN: &str = "Bearer first-token-0123456789";
/// Every label pair of the counter.
const REASONS: [(&str, &str); 7] = [
    ("http", "token"),
    ("http", "key"),
    ("http", "tls"),
    ("resp", "login"),
    ("resp", "key"),
    ("resp", "command"),
    ("resp", "tls"),
];

/// Asserts these counts, and zero for every other pair.
#[track_caller]
fn assert_refused(proxy: &Proxy, expected: &[(&str, &str, u32)]) {
    let received = REASONS.map(|(front_end, reason)| {
        let count = metric(
            proxy,
            &format!("rejected_total{{front_end=\"{front_end}\",reason=\"{reason}\"}}"),
        );
        (front_end, reason, count.to_string())
    });
    let expected = REASONS.map(|(front_end, reason)| {
        let of = expected.iter().find(|of| (of.0, of.1) == (front_end, reason));
        (front_end, reason, of.map_or(0, |of| of.2).to_string())
    });
    assert_eq!(received, expected);
    for front_end in ["http", "resp", "admin"] {
        let full =
            metric(proxy, &format!("connections_refused_total{{front_end=\"{front_end}\"}}"));
        assert!(full.abs() < f64::EPSILON, "{front_end}: counted under two names");
    }
}

#[test]
fn http_rejections_count_tokens_and_keys_only() {
    let (redis, file) = (RedisServer::start(), SecretFile::new("first-token-0123456789"));
    let config = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nhttp.tokens_file = \"{}\"\n\
         http.allow_keys = [\"public:*\"]\nredis.url = \"{}\"",
        file.name(),
        redis.url()
    );
    let proxy = Proxy::start(&config);
    await_ready(&proxy);
    assert_refused(&proxy, &[]);
    let status = |method: &str, path: &str, shown: &[&str]| {
        let headers: Vec<_> = shown.iter().map(|value| ("Authorization", *value)).collect();
        Client::connect(proxy.http()).request(method, path, &headers).status
    };
    assert_eq!(status("GET", "/keys/public:a", &[TOKEN]), 404);
    assert_refused(&proxy, &[]);
    assert_eq!(status("GET", "/keys/public:a", &[]), 401);
    assert_eq!(status("HEAD", "/keys/secret", &["Bearer wrong"]), 401);
    assert_eq!(status("GET", "/nowhere", &[TOKEN, TOKEN]), 400);
    assert_refused(&proxy, &[("http", "token", 3)]);
    assert_eq!(status("GET", "/keys/secret", &[TOKEN]), 403);
    assert_eq!(status("HEAD", "/keys/nothing", &[TOKEN]), 403);
    assert_refused(&proxy, &[("http", "token", 3), ("http", "key", 2)]);
    assert_eq!(status("GET", "/keys/%zz", &[TOKEN]), 400);
    assert_eq!(status("POST", "/keys/secret", &[TOKEN]), 405);
    assert_eq!(get(proxy.http(), "/livez").status, 404, "the operator's routes are elsewhere");
    assert_eq!(get(proxy.admin(), "/readyz").status, 200);
    assert_refused(&proxy, &[("http", "token", 3), ("http", "key", 2)]);
}

#[test]
fn resp_rejections_are_counted_by_reason() {
    let (redis, file) = (RedisServer::start(), SecretFile::new("word"));
    let settings = format!(
        "{LASTING}\nresp.password_file = \"{}\"\nresp.allow_keys = [\"public:*\"]\n\
            resp.max_query_buffer = \"256KiB\"",
        file.name()
    );
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    let client = |password: &str| {
        let url = format!("redis://:{password}@{}", proxy.resp_address());
        redis::Client::open(url).and_then(|client| client.get_connection())
    };
    let begins_with = |wire: &mut RespClient, line: &str, expected: &str| {
        let answer = wire.query_line(line);
        assert!(
            answer.starts_with(expected.as_bytes()),
            "{line}: {}",
            String::from_utf8_lossy(&answer)
        );
    };
    let mut inside = client("word").expect("the password is right");
    let none: Option<String> =
        redis::cmd("GET").arg("public:a").query(&mut inside).expect("a key that is allowed");
    assert_eq!(none, None);
    assert_refused(&proxy, &[]);

    let mut outsider = RespClient::connect(proxy.resp_address());
    begins_with(&mut outsider, "AUTH wrong", "-WRONGPASS");
    begins_with(&mut outsider, "GET public:a", "-NOAUTH");
    begins_with(&mut outsider, "HELLO 3", "-NOAUTH");
    assert_refused(&proxy, &[("resp", "login", 3)]);
    begins_with(&mut outsider, "AUTH", "-ERR wrong number");
    begins_with(&mut outsider, "HELLO 2 AUTH default word AUTH default word", "-ERR syntax");
    assert_refused(&proxy, &[("resp", "login", 3)]);

    begins_with(&mut outsider, "AUTH word", "+OK");
    begins_with(&mut outsider, "GET secret", "-NOPERM");
    begins_with(&mut outsider, "MGET public:a secret", "-NOPERM");
    begins_with(&mut outsider, "FLUSHALL", "-NOPERM");
    assert_refused(&proxy, &[("resp", "login", 3), ("resp", "key", 2), ("resp", "command", 1)]);
    // A command too long to be held, of which only the beginning is known.
    outsider
        .send(format!("*3\r\n$3\r\nSET\r\n$8\r\npublic:a\r\n$400000\r\n{}", "x".repeat(300_000)));
    let answer = outsider.answer();
    assert!(answer.starts_with(b"-NOPERM"), "{}", String::from_utf8_lossy(&answer));
    assert_refused(&proxy, &[("resp", "login", 3), ("resp", "key", 2), ("resp", "command", 2)]);
    // The client pipelines more commands behind the wrong password.
    assert!(client("wrong").is_err());
    assert!(metric(&proxy, r#"rejected_total{front_end="resp",reason="login"}"#) > 3.0);
}
