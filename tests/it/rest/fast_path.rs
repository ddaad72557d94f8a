//! Requests of REST on the fast path of HTTP.
//!
//! Promise: a request gets the same response whether the fast path answers it or hyper, and however
//! its bytes arrive. Both of them have the same rules for tokens, limits, counts and the log.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Served, TOKENS, request, start_rest};
use crate::fuzz::checks::http_connection::{compare, of_fast_path};
use crate::support::http::{Client, Response};
use crate::support::secret_file::SecretFile;
use crate::support::{RedisServer, Signal, eventually};

/// The token of the front ends that are compared without a Redis.
const TOKEN: (&str, &str) = ("Authorization", "Bearer t");
const FULL: (&str, &str) = ("Authorization", "Bearer full-token");

/// The bytes of a request with a body, as the front ends without a Redis take it.
fn post(path: &str, more: &[(&str, &str)], body: &str) -> Vec<u8> {
    request("POST", path, &[&[TOKEN], more].concat(), body.as_bytes())
}

/// Whether the fast path alone answers all these bytes.
fn is_fast(bytes: &[u8]) -> bool {
    !of_fast_path(&[bytes]).contains("418")
}

/// The first line of each response. A body without a line end may be in front of it.
fn statuses(responses: &str) -> Vec<&str> {
    let starts = responses.match_indices("HTTP/1.1 ").map(|(start, _)| &responses[start..]);
    starts.filter_map(|response| response.lines().next()).collect()
}

#[test]
fn response_is_that_of_hyper_whatever_the_split() {
    for (bytes, is_expected_fast) in [
        (post("/rest", &[], r#"["GET","a"]"#), true),
        (post("/rest/", &[], r#"["GET","a"]"#), true),
        (post("/rest", &[], r#"["GET","b"]"#), true),
        (post("/rest", &[], r#"["GET","no-redis"]"#), true),
        (post("/rest", &[], r#"["SET","a","x"]"#), true),
        (post("/rest/pipeline", &[], r#"[["GET","a"],["MGET","a","b"],["STRLEN","a"]]"#), true),
        (post("/rest/pipeline", &[], r#"[["GET","a"],["GET","no-redis"],["GET","a"]]"#), true),
        (post("/rest/pipeline", &[], r#"[["GET","a"],["FLUSHALL"],["BLPOP","q",0]]"#), true),
        (post("/rest/pipeline", &[("Upstash-Encoding", "base64")], r#"[["GET","a"]]"#), true),
        (post("/rest", &[("Upstash-Response-Format", "resp2")], r#"["GET","a"]"#), true),
        (post("/rest/multi-exec", &[], r#"[["GET","a"]]"#), true),
        (post("/rest", &[], ""), true),
        (post("/rest", &[], "{}"), true),
        (post("/rest", &[], r#"["GET","a"#), true),
        (post("/rest", &[], r#"["FLUSHALL"]"#), true),
        (post("/rest/pipeline", &[], "[]"), true),
        (post("/rest/pipeline", &[], &format!("[{}]", ["[\"PING\"]"; 9].join(","))), true),
        (post("/rest", &[("Upstash-Response-Format", "x")], r#"["GET","a"]"#), false),
        (post("/rest", &[TOKEN], r#"["GET","a"]"#), false),
        (post("/rest", &[("Transfer-Encoding", "chunked")], "0\r\n\r\n"), false),
        (post("/rest", &[("Content-Length", "11")], r#"["GET","a"]"#), false),
        (post("/rest", &[("Expect", "100-continue")], r#"["GET","a"]"#), false),
        (post("/rest", &[("Content-Encoding", "gzip")], r#"["GET","a"]"#), false),
        (post("/rest?_token=t", &[], r#"["GET","a"]"#), false),
        (post("/rest/get/a", &[], ""), false),
        (post("/rest/subscribe/c", &[("Accept", "text/event-stream")], ""), false),
        (post("/restless", &[], r#"["GET","a"]"#), false),
        (post("/keys/a", &[], r#"["GET","a"]"#), false),
        (request("PUT", "/rest", &[TOKEN], br#"["GET","a"]"#), false),
        (request("GET", "/rest", &[TOKEN], br#"["GET","a"]"#), false),
        (request("POST", "/rest", &[], br#"["GET","a"]"#), false),
        (request("POST", "/rest", &[("Authorization", "Bearer x")], br#"["GET","a"]"#), false),
    ] {
        let text = String::from_utf8_lossy(&bytes);
        let whole = compare(&[&bytes]);
        assert!(!statuses(&whole).is_empty(), "{text}");
        assert_eq!(is_fast(&bytes), is_expected_fast, "{text}");
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(compare(&[first, second]), whole, "{cut} {text}");
        }
    }
}

#[test]
fn body_of_two_pieces_stays_on_the_fast_path() {
    let bytes = post("/rest", &[], r#"["GET","a"]"#);
    let whole = of_fast_path(&[&bytes]);
    assert_eq!(statuses(&whole), ["HTTP/1.1 200 OK"]);
    for cut in 1..bytes.len() {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(of_fast_path(&[first, second]), whole, "{cut}");
    }
    // A body that does not end is left to hyper, and so is a long one.
    let cut = &bytes[..bytes.len() - 1];
    assert_eq!(statuses(&of_fast_path(&[cut])), ["HTTP/1.1 418 I'm a teapot"]);
    let long = post("/rest", &[], &format!(r#"["GET","{}"]"#, "x".repeat(64 << 10)));
    let (first, second) = long.split_at(100);
    assert_eq!(statuses(&of_fast_path(&[first, second]))[0], "HTTP/1.1 418 I'm a teapot");
}

#[test]
fn pipelined_requests_keep_their_order() {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let mixed = [
        post("/rest", &[], r#"["GET","a"]"#),
        get("/keys/a"),
        post("/rest", &[], r#"["GET","no-redis"]"#),
        post("/rest/pipeline", &[], r#"[["GET","a"],["GET","b"]]"#),
        get("/keys/b"),
        post("/rest", &[], "[]"),
        post("/rest", &[], r#"["GET","b"]"#),
    ];
    let fast = mixed.concat();
    assert!(is_fast(&fast));
    assert_eq!(statuses(&compare(&[&fast])).len(), mixed.len());
    // The first that is not simple takes the connection to hyper.
    let all = [&fast[..], &post("/rest/get/a", &[], ""), &fast].concat();
    let whole = compare(&[&all]);
    assert_eq!(statuses(&whole).len(), 2 * mixed.len() + 1);
    for cut in (1..all.len()).step_by(7) {
        let (first, second) = all.split_at(cut);
        assert_eq!(compare(&[first, second]), whole, "{cut}");
    }
}

/// A connection that hyper serves.
fn of_hyper(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.send_raw(b"GET /keys/x?query HTTP/1.1\r\nHost: x\r\n\r\n");
    client.read_response();
    client
}

/// A response without its date, and without the time of a token that has one.
fn undated(mut response: Response) -> Response {
    response.headers.retain(|(name, _)| name != "date");
    for (name, value) in &mut response.headers {
        let is_timed = value.split('.').nth(1).is_some_and(|time| time != "0");
        if name == "upstash-sync-token" && is_timed {
            value.truncate(value.find('.').unwrap_or_default());
        }
    }
    response
}

#[test]
fn response_is_that_of_hyper_before_a_real_redis() {
    let served =
        Served::with("max_body = \"64KiB\"\nmax_response = \"32KiB\"\ncompress_above = 1000");
    served.redis.command(&["HSET", "h", "f", "1"]);
    served.redis.command(&["SET", "a", "é\"\n"]);
    served.redis.command(&["SET", "a:1", "1"]);
    served.redis.command(&["SET", "long", &"x".repeat(20 << 10)]);
    served.redis.command(&["SET", "too-long", &"x".repeat(33 << 10)]);
    let many = format!("[{}]", vec![r#"["GET","a"]"#; 2000].join(","));
    let (reader, scoped) =
        (("Authorization", "Bearer reader-token"), ("Authorization", "Bearer scoped-token"));
    let (base64, resp2) = (("Upstash-Encoding", "base64"), ("Upstash-Response-Format", "resp2"));
    let (foreign, gzip) = (("upstash-sync-token", "1.x"), ("Accept-Encoding", "gzip"));
    for (path, headers, body) in [
        ("/rest", &[FULL][..], r#"["GET","a"]"#),
        ("/rest", &[FULL, base64], r#"["GET","a"]"#),
        ("/rest", &[FULL, resp2], r#"["GET","a"]"#),
        ("/rest", &[FULL, gzip], r#"["GET","a"]"#),
        ("/rest", &[FULL, foreign], r#"["GET","a"]"#),
        ("/rest", &[FULL], r#"["GET","none"]"#),
        ("/rest", &[FULL], r#"["GET","long"]"#),
        ("/rest", &[FULL, ("Accept-Encoding", "identity")], r#"["GET","long"]"#),
        ("/rest", &[FULL], r#"["GET","too-long"]"#),
        ("/rest", &[FULL], r#"["HGETALL","h"]"#),
        ("/rest", &[FULL], r#"["hget","h","f"]"#),
        ("/rest", &[FULL], r#"["LPUSH","a","x"]"#),
        ("/rest", &[FULL], r#"["GET","h"]"#),
        ("/rest", &[FULL], r#"["NONESUCH"]"#),
        ("/rest", &[FULL], r#"["SUBSCRIBE","c"]"#),
        ("/rest", &[FULL], r#"["INFO","redis_proxy","x"]"#),
        ("/rest", &[reader], r#"["GET","a"]"#),
        ("/rest", &[reader], r#"["SET","a","x"]"#),
        ("/rest", &[scoped], r#"["GET","a:1"]"#),
        ("/rest", &[scoped], r#"["GET","a"]"#),
        ("/rest", &[scoped], r#"["SET","a:2","1"]"#),
        ("/rest/pipeline", &[FULL], r#"[["GET","a"],["SET","b","1"],["GET","b"],["INCR","a"]]"#),
        ("/rest/pipeline", &[FULL], r#"[["GET","a"],["GET","too-long"],["GET","a"]]"#),
        ("/rest/pipeline", &[reader], r#"[["GET","a"],["SET","a","x"],["GET","none"]]"#),
        ("/rest/pipeline", &[scoped], r#"[["GET","a:1"],["GET","a"],["EVAL","x",0]]"#),
        ("/rest/pipeline", &[FULL], &many),
        ("/rest/multi-exec", &[FULL], r#"[["SET","c","1"],["INCR","c"]]"#),
        ("/rest/multi-exec", &[FULL], r#"[["SET","c","1"],["NONESUCH"]]"#),
        ("/rest", &[FULL], "[\"GET\",\"a\u{1}\"]"),
        ("/rest", &[("Authorization", "Bearer wrong")], r#"["GET","a"]"#),
        ("/rest", &[FULL, base64, resp2], r#"["GET","a"]"#),
        ("/rest", &[FULL], &"x".repeat((64 << 10) + 1)),
    ] {
        let bytes = request("POST", path, headers, body.as_bytes());
        let ask = |client: &mut Client| {
            client.send_raw(&bytes);
            undated(client.read_response())
        };
        // What is kept, and which keys of commands are known, is the same for both from now on.
        ask(&mut of_hyper(served.proxy.http()));
        let expected = ask(&mut of_hyper(served.proxy.http()));
        let found = ask(&mut served.client());
        let start = &body[..body.len().min(60)];
        assert_eq!(found, expected, "{path} {headers:?} {start}");
    }
}

#[test]
fn compressed_response_has_the_bytes_of_hyper() {
    let served = Served::with("compress_above = 100");
    served.redis.command(&["SET", "long", &"x".repeat(5000)]);
    served.redis.command(&["SET", "short", "x"]);
    for (encoding, body) in [
        ("gzip", r#"["GET","long"]"#),
        ("br, gzip", r#"["GET","long"]"#),
        ("br;q=0", r#"["GET","long"]"#),
        ("gzip", r#"["GET","short"]"#),
        ("gzip", r#"["GETRANGE","long","0","-1"]"#),
        ("gzip", r#"["EVAL","return redis.call('GET','long')",0]"#),
    ] {
        let accepted = ("Accept-Encoding", encoding);
        let bytes = request("POST", "/rest", &[FULL, accepted], body.as_bytes());
        let ask = |client: &mut Client| {
            client.send_raw(&bytes);
            let mut response = undated(client.read_response());
            // hyper does not know the length before the response is compressed.
            let differs = ["content-length", "transfer-encoding"];
            response.headers.retain(|(name, _)| !differs.contains(&&**name));
            response
        };
        ask(&mut of_hyper(served.proxy.http()));
        let (expected, found) =
            (ask(&mut of_hyper(served.proxy.http())), ask(&mut served.client()));
        assert_eq!(found, expected, "{encoding} {body}");
    }
}

/// The counts that requests change, by series.
fn counts(served: &Served) -> Vec<(String, f64)> {
    let metrics = served.proxy.metrics();
    let families = [
        "redis_proxy_commands_total",
        "redis_proxy_http_responses_total",
        "redis_proxy_reads_total",
        "redis_proxy_rejected_total",
        "redis_proxy_request_duration_seconds_count",
        "redis_proxy_rest_requests_total",
        "redis_proxy_rule_reads_total",
    ];
    let is_counted = |line: &&str| {
        families.iter().any(|family| line.starts_with(family)) && !line.contains("\"admin\"")
    };
    let series = metrics.text().lines().filter(is_counted).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse().ok()?))
    });
    series.collect()
}

/// The differences of counts, without those that are zero.
fn difference(before: &[(String, f64)], after: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let earlier = |series: &str| {
        before.iter().find(|(name, _)| name == series).map_or(0.0, |(_, value)| *value)
    };
    let changed = after.into_iter().map(|(series, value)| {
        let change = value - earlier(&series);
        (series, change)
    });
    changed.filter(|(_, change)| *change > 0.5).collect()
}

#[test]
fn requests_are_counted_as_by_hyper() {
    let served = Served::with("[cache]\nrules = [{ keys = \"a*\" }]");
    served.redis.command(&["HSET", "h", "f", "1"]);
    for key in ["a", "a:1", "b"] {
        served.redis.command(&["SET", key, "1"]);
    }
    let post = |path: &str, token: &str, body: &str| {
        let authorization = format!("Bearer {token}");
        request("POST", path, &[("Authorization", &authorization)], body.as_bytes())
    };
    let requests = [
        post("/rest", "full-token", r#"["GET","a"]"#),
        post("/rest", "full-token", r#"["HGETALL","h"]"#),
        post("/rest", "full-token", r#"["SET","c","1"]"#),
        post("/rest", "full-token", r#"["FLUSHALL"]"#),
        post("/rest", "full-token", "not json"),
        post("/rest", "scoped-token", r#"["GET","b"]"#),
        post("/rest/pipeline", "full-token", r#"[["GET","a"],["MGET","a:1","b"],["GET","none"]]"#),
        post("/rest/pipeline", "full-token", r#"[["GET","a"],["INCR","n"],["STRLEN","b"]]"#),
        post("/rest/pipeline", "reader-token", r#"[["GET","b"],["SET","a","2"],["GET","a:1"]]"#),
        post("/rest/multi-exec", "full-token", r#"[["GET","a"],["INCR","n"]]"#),
        post("/rest", "wrong-token", r#"["GET","a"]"#),
    ];
    let run = |connect: &dyn Fn() -> Client| {
        let mut clients: Vec<_> = requests.iter().map(|_| connect()).collect();
        let before = counts(&served);
        for (client, bytes) in clients.iter_mut().zip(&requests) {
            client.send_raw(bytes);
            client.read_response();
        }
        difference(&before, counts(&served))
    };
    let of_hyper = || of_hyper(served.proxy.http());
    run(&of_hyper);
    let expected = run(&of_hyper);
    assert!(expected.len() > 12, "{expected:?}");
    assert_eq!(run(&|| served.client()), expected);
}

#[test]
fn each_token_is_judged_by_itself_on_one_connection() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "1"]);
    let mut client = served.client();
    let mut ask = |token: &str, body: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", &*authorization)];
        client.send_raw(&request("POST", "/rest", &headers, body.as_bytes()));
        client.read_response().status
    };
    assert_eq!(ask("full-token", r#"["SET","a","1"]"#), 200);
    assert_eq!(ask("reader-token", r#"["SET","a","2"]"#), 403);
    assert_eq!(ask("reader-token", r#"["GET","a"]"#), 200);
    served.file.write("reader-token keys=x\n");
    served.proxy.signal(Signal::HUP);
    eventually("the token has its new rights", || {
        (ask("reader-token", r#"["GET","a"]"#) == 403).then_some(())
    });
    assert_eq!(ask("full-token", r#"["GET","a"]"#), 401);
}

#[test]
fn body_that_comes_late_has_the_timeout_of_the_request() {
    let served = Served::with("timeout = \"500ms\"");
    let bytes = request("POST", "/rest", &[FULL], br#"["PING"]"#);
    let (head, body) = bytes.split_at(bytes.len() - 3);
    let mut client = served.client();
    client.send_raw(head);
    let begun = Instant::now();
    let response = client.read_response();
    assert_eq!((response.status, response.header("connection")), (504, Some("close")));
    assert!(begun.elapsed() >= Duration::from_millis(500));
    // A body that comes within that time is answered.
    let mut client = served.client();
    client.send_raw(head);
    thread::sleep(Duration::from_millis(200));
    client.send_raw(body);
    let found: Value = serde_json::from_slice(&client.read_response().body).expect("JSON");
    assert_eq!(found["result"], "PONG");
}

#[test]
fn listener_with_tokens_of_its_own_admits_those_of_rest_to_rest() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let tokens = SecretFile::new("key-token\n");
    let more = format!("http.tokens_file = \"{}\"", tokens.name());
    let proxy = start_rest(&format!("redis.url = \"{}\"", redis.url()), &file, &more);
    redis.command(&["SET", "a", "1"]);
    let mut client = Client::connect(proxy.http());
    let mut ask = |bytes: &[u8]| {
        client.send_raw(bytes);
        client.read_response().status
    };
    let body = br#"["GET","a"]"#;
    let get = b"GET /keys/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-token\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(ask(&request("POST", "/rest", &[FULL], body)), 200);
        assert_eq!(ask(get), 200);
    }
    let wrong = ("Authorization", "Bearer key-token");
    assert_eq!(ask(&request("POST", "/rest", &[wrong], body)), 401);
}

#[test]
fn line_of_the_access_log_is_that_of_hyper() {
    let served = Served::with("[telemetry]\naccess_log = \"all\"\naccess_log_keys = true");
    let bytes = request("POST", "/rest/pipeline", &[FULL], br#"[["PING"]]"#);
    for client in [&mut of_hyper(served.proxy.http()), &mut served.client()] {
        client.send_raw(&bytes);
        assert_eq!(client.read_response().status, 200);
    }
    let lines = eventually("both requests have a line", || {
        let log = served.proxy.log_lines();
        let lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line.text()).ok());
        let lines = lines.filter(|line| line["route"] == "/rest");
        let lines: Vec<_> = lines
            .map(|line| ["front_end", "method", "path", "status"].map(|name| line[name].clone()))
            .collect();
        (lines.len() == 2).then_some(lines)
    });
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[0][1], "POST");
}
