//! Ranges over HTTP (RFC 9110, section 14).
//!
//! Promise: a single range of bytes is sent from memory, after the conditions of the request. What
//! is not understood is ignored.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

use crate::support::http::{Client, Response};
use crate::support::serving::{Serving, serving};

const VALUE: &str = "0123456789";

/// Starts a proxy where key `a` holds [`VALUE`], in memory. Returns its entity tag too.
fn serving_a() -> (Serving, Client, String) {
    let serving = serving(&[]);
    serving.set("a", VALUE);
    let mut client = serving.client();
    let etag = client.get("/keys/a").header("etag").expect("an ETag").to_owned();
    (serving, client, etag)
}

fn text(response: &Response) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

/// Sends a request by the fast path, and on a new connection by hyper. Asserts that both responses
/// are equal, but for headers of the time and of the connection.
#[track_caller]
fn ask(client: &mut Client, serving: &Serving, method: &str, fields: &[(&str, &str)]) -> Response {
    let fast = client.request(method, "/keys/a", fields);
    let last = [fields, &[("Connection", "close")]].concat();
    let slow = serving.client().request(method, "/keys/a", &last);
    let lasting = |response: &Response| {
        let mut headers = response.headers.clone();
        headers.retain(|(name, _)| {
            !["age", "cache-status", "connection", "date"].contains(&&*name.to_lowercase())
        });
        headers.sort();
        (response.status, headers, response.body.clone())
    };
    assert_eq!(lasting(&fast), lasting(&slow), "{method} {fields:?}");
    fast
}

#[test]
fn single_range_gets_its_bytes() {
    let (serving, mut client, etag) = serving_a();
    for (range, body, of) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=2-5", "2345", "bytes 2-5/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=7-99", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-99", VALUE, "bytes 0-9/10"),
    ] {
        let response = ask(&mut client, &serving, "GET", &[("Range", range)]);
        assert_eq!((response.status, &*text(&response)), (206, body), "{range}");
        assert_eq!(response.header("content-range"), Some(of), "{range}");
        assert_eq!(response.header("etag"), Some(&*etag), "{range}");
        assert_eq!(response.header("content-type"), Some("application/octet-stream"), "{range}");
        assert!(response.header("cache-status").is_some_and(|status| status.contains("hit")));
    }
    assert_eq!(serving.redis.calls("get"), 1, "all come from memory");
}

#[test]
fn value_is_whole_without_a_range_that_is_understood() {
    let (serving, mut client, _) = serving_a();
    for range in ["", "bytes=1-2,4-5", "bytes=5-2", "bytes=x-", "lines=1-2"] {
        let response = ask(&mut client, &serving, "GET", &[("Range", range)]);
        assert_eq!((response.status, &*text(&response)), (200, VALUE), "{range}");
        assert_eq!(response.header("content-range"), None, "{range}");
        assert_eq!(response.header("accept-ranges"), Some("bytes"), "{range}");
    }
    let plain = ask(&mut client, &serving, "GET", &[]);
    assert_eq!((plain.status, plain.header("accept-ranges")), (200, Some("bytes")));
    // A range is for GET alone.
    for range in ["bytes=2-5", "bytes=10-"] {
        let head = ask(&mut client, &serving, "HEAD", &[("Range", range)]);
        assert_eq!((head.status, head.header("content-length")), (200, Some("10")), "{range}");
        assert_eq!(head.header("accept-ranges"), Some("bytes"), "{range}");
    }
}

#[test]
fn range_behind_the_end_is_416_with_the_length() {
    let (serving, mut client, _) = serving_a();
    for range in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
        let response = ask(&mut client, &serving, "GET", &[("Range", range)]);
        assert_eq!((response.status, response.header("content-range")), (416, Some("bytes */10")));
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert!(text(&response).contains("urn:redis-proxy:problem:range"), "{}", text(&response));
    }
    // The connection goes on.
    assert_eq!(text(&client.get("/keys/a")), VALUE);
    let absent = client.request("GET", "/keys/absent", &[("Range", "bytes=0-1")]);
    assert_eq!(absent.status, 404);
}

#[test]
fn conditions_precede_the_range() {
    let (serving, mut client, etag) = serving_a();
    let weak = format!("W/{etag}");
    for (name, tag, status) in [
        ("If-Match", &*etag, 206),
        ("If-Match", "*", 206),
        ("If-Match", "\"other\"", 412),
        ("If-Match", &weak, 412),
        ("If-None-Match", &*etag, 304),
        ("If-None-Match", "\"other\"", 206),
        ("If-Range", &*etag, 206),
        ("If-Range", "\"other\"", 200),
        ("If-Range", &weak, 200),
        ("If-Range", "Sun, 06 Nov 1994 08:49:37 GMT", 200),
    ] {
        let fields = [(name, tag), ("Range", "bytes=2-5")];
        let response = ask(&mut client, &serving, "GET", &fields);
        assert_eq!(response.status, status, "{name}: {tag}");
        match status {
            206 => assert_eq!(text(&response), "2345"),
            200 => assert_eq!(text(&response), VALUE),
            _ => assert_eq!(response.header("content-range"), None),
        }
    }
    let fields = [("If-Range", &*etag), ("Range", "bytes=2-5")];
    let rest = ask(&mut client, &serving, "GET", &fields);
    assert_eq!(rest.header("content-type"), None, "the client has it");
    let head = ask(&mut client, &serving, "HEAD", &[("If-Match", "\"other\"")]);
    assert_eq!(head.status, 412);
}

#[test]
fn range_of_a_miss_is_a_part_too() {
    let serving = serving(&[]);
    serving.set("a", VALUE);
    let mut client = serving.client();
    let response = client.request("GET", "/keys/a", &[("Range", "bytes=2-5")]);
    assert_eq!((response.status, &*text(&response)), (206, "2345"));
    assert!(response.header("cache-status").is_some_and(|status| status.contains("fwd=miss")));
}

#[test]
fn parts_of_a_value_of_100_mib_make_the_whole() {
    const SIZE: usize = 100 << 20;
    const PARTS: usize = 7;
    let serving = serving(&[("CACHE__MAX_MEMORY", "2GiB")]);
    let redis = &serving.redis;
    redis.command(&["SETRANGE", "a", &(SIZE - 1).to_string(), "z"]);
    // Each MiB begins with its number.
    let script =
        "for i = 0, 99 do redis.call('SETRANGE', 'a', i * 1048576, 'part ' .. i .. ';') end";
    redis.command(&["EVAL", script, "0"]);
    let mut client = serving.client();
    let whole = client.get("/keys/a");
    assert_eq!((whole.status, whole.body.len()), (200, SIZE));
    let etag = whole.header("etag").expect("an ETag").to_owned();

    let mut joined = Vec::with_capacity(SIZE);
    for part in 0..PARTS {
        let from = SIZE / PARTS * part;
        let to = if part + 1 == PARTS {
            String::new()
        } else {
            (SIZE / PARTS * (part + 1) - 1).to_string()
        };
        let range = format!("bytes={from}-{to}");
        let fields = [("Range", &*range), ("If-Range", &*etag)];
        let response = client.request("GET", "/keys/a", &fields);
        assert_eq!(response.status, 206, "{range}");
        joined.extend_from_slice(&response.body);
    }
    assert!(joined == whole.body, "{} bytes", joined.len());
    assert!(joined[99 << 20..].starts_with(b"part 99;") && joined.ends_with(b"z"));
    assert_eq!(redis.calls("get"), 1, "all parts come from memory");
}
