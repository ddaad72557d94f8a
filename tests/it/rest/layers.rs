//! CORS, compression and the methods.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::support::{Served, json};

const FULL: (&str, &str) = ("Authorization", "Bearer full-token");
const ORIGIN: (&str, &str) = ("Origin", "https://app.example");

#[test]
fn page_of_an_allowed_origin_may_read_responses() {
    let served =
        Served::with("cors_origins = [\"https://app.example\", \"http://127.0.0.1:3000\"]");
    let preflight = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,upstash-encoding,upstash-sync-token"),
        ];
        served.send("OPTIONS", "/rest/pipeline", &headers, "")
    };
    for origin in ["https://app.example", "http://127.0.0.1:3000"] {
        let response = preflight(origin);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("access-control-allow-origin"), Some(origin));
        let methods = response.header("access-control-allow-methods").unwrap_or_default();
        assert!(
            ["GET", "HEAD", "POST", "PUT"].iter().all(|one| methods.contains(one)),
            "{methods}"
        );
        assert_eq!(
            response.header("access-control-allow-headers"),
            Some("authorization,upstash-encoding,upstash-sync-token")
        );
        assert!(response.header("access-control-allow-credentials").is_none());
    }
    let other = preflight("https://other.example");
    assert!(other.header("access-control-allow-origin").is_none(), "{other:?}");
    let response = served.send("POST", "/rest", &[FULL, ORIGIN], r#"["PING"]"#);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(response.header("access-control-expose-headers"), Some("upstash-sync-token"));
    // An error is as readable as a reply.
    let response = served.send("POST", "/rest", &[ORIGIN], r#"["PING"]"#);
    assert_eq!(response.status, 401);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"));
    // The operators' routes and the keys are no part of it.
    let response = served.send("GET", "/keys/a", &[ORIGIN], "");
    assert!(response.header("access-control-allow-origin").is_none());
}

#[test]
fn no_origin_is_allowed_unless_it_is_set() {
    let served = Served::start();
    let response = served.send("OPTIONS", "/rest", &[FULL, ORIGIN], "");
    assert_eq!(json(&response).0, 405);
    let response = served.send("POST", "/rest", &[FULL, ORIGIN], r#"["PING"]"#);
    assert!(response.header("access-control-allow-origin").is_none());
    let all = Served::with("cors_origins = \"*\"");
    let response = all.send("POST", "/rest", &[FULL, ORIGIN], r#"["PING"]"#);
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn large_response_is_compressed_where_wanted() {
    let served = Served::start();
    // The bodies around the limit: {"result":"..."} takes 13 bytes.
    served.redis.command(&["SET", "small", &"x".repeat(1024 - 13)]);
    served.redis.command(&["SET", "large", &"x".repeat(1024 - 12)]);
    let get = |key: &str, wanted: &[(&str, &str)]| {
        let headers = [&[FULL], wanted].concat();
        served.send("POST", "/rest", &headers, format!(r#"["GET","{key}"]"#))
    };
    let gzip = [("Accept-Encoding", "gzip")];
    let plain = get("large", &[]);
    assert_eq!((plain.header("content-encoding"), plain.body.len()), (None, 1025));
    assert_eq!(get("small", &gzip).header("content-encoding"), None);
    let response = get("large", &gzip);
    assert_eq!(response.header("content-encoding"), Some("gzip"));
    assert!(response.body.len() < 200 && response.header("upstash-sync-token").is_some());
    assert_eq!(unzipped(&response.body), plain.body);
    for (wanted, expected) in [
        ("br", Some("br")),
        ("gzip, deflate, br", Some("br")),
        ("gzip;q=0", None),
        ("identity", None),
        ("zstd", None),
    ] {
        let response = get("large", &[("Accept-Encoding", wanted)]);
        assert_eq!(response.header("content-encoding"), expected, "{wanted}");
    }
    let never = Served::with("compress_above = 0");
    never.redis.command(&["SET", "large", &"x".repeat(5000)]);
    let response = never.send("POST", "/rest", &[FULL, gzip[0]], r#"["GET","large"]"#);
    assert_eq!(response.header("content-encoding"), None);
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip runs");
    gzip.stdin.take().expect("a pipe").write_all(bytes).expect("gzip reads");
    gzip.wait_with_output().expect("gzip ends").stdout
}

#[test]
fn head_has_what_get_has_but_the_body() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "1"]);
    for path in ["/rest/get/a", "/rest/incr/x/y", "/rest/get/none"] {
        let get = served.send("GET", path, &[FULL], "");
        let head = served.send("HEAD", path, &[FULL], "");
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
    // A command runs by either method.
    let put = served.send("PUT", "/rest/set/b", &[FULL], "body");
    assert_eq!(put.status, 200);
    assert_eq!(served.redis_text(&["GET", "b"]), "body");
    assert_eq!(json(&served.send("GET", "/rest/incr/n", &[FULL], "")).1["result"], 1);
    assert_eq!(json(&served.send("PUT", "/rest", &[FULL], r#"["INCR","n"]"#)).1["result"], 2);
}
