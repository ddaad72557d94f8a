//! The HTTP API: keys, values, statuses and headers.
//!
//! Promise: any key and any value, byte for byte, with the right status and caching headers.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::support::http::{Client, Response, get, key_path};
use crate::support::serving::{FLIGHTS, Serving, serving, serving_from};
use crate::support::{RedisServer, eventually};

/// Characters that RFC 3986 allows in a path unescaped, without `/`.
const LEGAL_IN_A_PATH: &str = "abcXYZ0189-._~!$&'()*+,;=:@";

#[track_caller]
fn assert_value(client: &mut Client, path: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
    let path = path.as_ref();
    let response = client.get(path);
    let shown = path.escape_ascii();
    assert_eq!(response.status, 200, "{shown}: {response:?}");
    assert!(response.body == value.as_ref(), "{shown}: a value of {} bytes", response.body.len());
}

/// Asserts an RFC 9457 problem with that status; returns the last word of its type.
#[track_caller]
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let body: Json = serde_json::from_slice(&response.body).expect("a body of JSON");
    assert_eq!(body["status"], status, "{body}");
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()), "{body}");
    let kind = body["type"].as_str().expect("a problem has a type");
    let name = kind.strip_prefix("urn:redis-proxy:problem:");
    name.expect("a type of this program").to_owned()
}

/// Parses `Cache-Status`: asserts the name of this cache and returns the parameters.
#[track_caller]
fn cache_status(response: &Response) -> Vec<(String, String)> {
    let header = response.header("cache-status").expect("a Cache-Status header");
    let mut words = header.split(';').map(str::trim);
    assert_eq!(words.next(), Some("redis-proxy"), "{header}");
    let parameter = |word: &str| {
        let (name, value) = word.split_once('=').unwrap_or((word, "?1"));
        (name.to_owned(), value.to_owned())
    };
    words.map(parameter).collect()
}

fn has(parameters: &[(String, String)], name: &str, value: &str) -> bool {
    let wanted = (name.to_owned(), value.to_owned());
    parameters.contains(&wanted)
}

fn escaped_in_lower_case(key: &[u8]) -> String {
    key.iter().fold(String::from("/keys/"), |mut path, byte| {
        write!(path, "%{byte:02x}").expect("a string takes all");
        path
    })
}

// Keys

#[test]
fn every_byte_can_be_percent_encoded() {
    let serving = serving(&[]);
    let keys: Vec<_> = (0..=255).map(|byte| vec![b'k', byte, byte]).collect();
    let mut words = vec![b"MSET".to_vec()];
    words.extend(keys.iter().flat_map(|key| [key.clone(), [b"is ", &key[..]].concat()]));
    serving.redis.command(&words);
    let mut client = serving.client();
    for key in &keys {
        let value = [b"is ", &key[..]].concat();
        assert_value(&mut client, key_path(key), &value);
        assert_value(&mut client, escaped_in_lower_case(key), &value);
    }
}

#[test]
fn key_may_contain_every_byte() {
    let serving = serving(&[]);
    let key: Vec<u8> = (0..=255).collect();
    serving.set(&key, "all");
    assert_value(&mut serving.client(), key_path(&key), "all");
}

#[test]
fn unreserved_characters_need_no_escape() {
    let serving = serving(&[]);
    serving.set(LEGAL_IN_A_PATH, "as it is");
    assert_value(&mut serving.client(), format!("/keys/{LEGAL_IN_A_PATH}"), "as it is");
}

#[test]
fn slash_is_equal_raw_and_escaped() {
    let serving = serving(&[]);
    let mut client = serving.client();
    for key in ["a/b", "a//b", "/", "//", "///", "/a", "a/", "keys/", "/keys/a"] {
        serving.set(key, format!("value of {key}"));
        assert_value(&mut client, format!("/keys/{key}"), format!("value of {key}"));
        assert_value(&mut client, key_path(key.as_bytes()), format!("value of {key}"));
    }
}

#[test]
fn dot_segments_are_part_of_the_key() {
    let serving = serving(&[]);
    let mut client = serving.client();
    for key in
        [".", "..", "...", "./a", "../a", "a/../b", "a/./b", "a/..", "../../metrics", "a/.hidden"]
    {
        serving.set(key, format!("value of {key}"));
        assert_value(&mut client, format!("/keys/{key}"), format!("value of {key}"));
        let escaped = key.replace('.', "%2e");
        assert_value(&mut client, format!("/keys/{escaped}"), format!("value of {key}"));
    }
}

#[test]
fn plus_is_not_a_space() {
    let serving = serving(&[]);
    serving.set("a+b", "plus");
    serving.set("a b", "space");
    let mut client = serving.client();
    assert_value(&mut client, "/keys/a+b", "plus");
    assert_value(&mut client, "/keys/a%2Bb", "plus");
    assert_value(&mut client, "/keys/%61+b", "plus");
    assert_value(&mut client, "/keys/a%20b", "space");
}

#[test]
fn key_is_decoded_once() {
    let serving = serving(&[]);
    serving.set("%41", "percent");
    serving.set("A", "letter");
    let mut client = serving.client();
    assert_value(&mut client, "/keys/%2541", "percent");
    assert_value(&mut client, "/keys/%41", "letter");
}

#[test]
fn non_ascii_key_is_equal_raw_and_escaped() {
    let serving = serving(&[]);
    serving.set("schlüssel/鍵", "text");
    let mut client = serving.client();
    assert_value(&mut client, "/keys/schlüssel/鍵", "text");
    assert_value(&mut client, key_path("schlüssel/鍵".as_bytes()), "text");
}

#[test]
fn invalid_raw_byte_never_reads_another_key() {
    let serving = serving(&[]);
    serving.set("a", "another");
    for illegal in [
        &b"\""[..],
        b"<",
        b">",
        b"\\",
        b"^",
        b"`",
        b"{",
        b"|",
        b"}",
        b"\x7f",
        b"\xff",
        b"\x80z",
        b"\x01",
    ] {
        let key = [b"a", illegal].concat();
        serving.set(&key, "this one");
        let response = get(serving.address(), [b"/keys/", &key[..]].concat());
        let right = response.status == 400 || response.body == b"this one";
        assert!(right, "{}: {response:?}", key.escape_ascii());
    }
}

#[test]
fn number_sign_is_not_a_fragment() {
    let serving = serving(&[]);
    serving.set("a", "another");
    serving.set("a#b", "this one");
    assert_value(&mut serving.client(), "/keys/a%23b", "this one");
    // A fragment is never sent (RFC 9110, section 7.1), so a client that sends one means the
    // character.
    let response = get(serving.address(), "/keys/a#b");
    let right = response.status == 400 || response.body == b"this one";
    assert!(right, "another key was read: {response:?}");
}

// Requests that are refused

#[test]
fn empty_key_is_a_bad_request() {
    let serving = serving(&[]);
    assert_eq!(problem(&get(serving.address(), "/keys/"), 400), "empty-key");
}

#[test]
fn malformed_escape_is_a_bad_request() {
    let serving = serving(&[]);
    let mut client = serving.client();
    let malformed = [
        "%", "a%", "%4", "a%4", "%zz", "%4g", "%g4", "%%41", "%41%", "%-1", "%+1", "%0x41",
        "%u0041", "%4/", "a/%", "%é",
    ];
    for key in malformed {
        assert_eq!(problem(&client.get(format!("/keys/{key}")), 400), "bad-escape", "{key}");
    }
    assert_eq!(serving.redis.calls("get"), 0, "Redis is not asked");
}

#[test]
fn query_is_a_bad_request() {
    let serving = serving(&[]);
    serving.set("a", "another");
    serving.set("a?b", "this one");
    let mut client = serving.client();
    for path in ["/keys/a?b", "/keys/a?", "/keys/?", "/keys/a?b?c"] {
        assert_eq!(problem(&client.get(path), 400), "query", "{path}");
    }
    assert_value(&mut client, "/keys/a%3Fb", "this one");
}

#[test]
fn unknown_path_is_not_found() {
    let serving = serving(&[]);
    let mut client = serving.client();
    for path in [
        "/",
        "/keys",
        "/key/a",
        "/KEYS/a",
        "//keys/a",
        "/k%65ys/a",
        "/keysa",
        "/metrics",
        "/livez/",
    ] {
        assert_eq!(problem(&client.get(path), 404), "no-such-route", "{path}");
    }
}

#[test]
fn other_methods_are_rejected_with_allow() {
    let serving = serving(&[]);
    serving.set("a", "value");
    let mut client = serving.client();
    for method in ["PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "get"] {
        let response = client.request(method, "/keys/a", &[]);
        assert_eq!(problem(&response, 405), "method-not-allowed", "{method}");
        assert_eq!(response.header("allow"), Some("GET, HEAD"), "{method}");
    }
    assert_eq!(serving.redis.calls("get"), 0, "Redis is not asked");
}

#[test]
fn key_longer_than_max_key_is_rejected() {
    let serving = serving(&[("HTTP__MAX_KEY", "8")]);
    serving.set("12345678", "long enough");
    let mut client = serving.client();
    assert_value(&mut client, "/keys/12345678", "long enough");
    // The limit is on the key, not on its escaped form.
    assert_value(&mut client, escaped_in_lower_case(b"12345678"), "long enough");
    assert_eq!(problem(&client.get("/keys/123456789"), 414), "key-too-long");
}

#[test]
fn key_of_64_kib_is_rejected_cleanly() {
    let serving = serving(&[]);
    serving.set("a", "value");
    for length in [16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, 1 << 20] {
        let response = get(serving.address(), format!("/keys/{}", "k".repeat(length)));
        let right = if length > 16 << 10 { &[414, 431][..] } else { &[404] };
        assert!(right.contains(&response.status), "{length}: {response:?}");
        assert_value(&mut serving.client(), "/keys/a", "value");
    }
}

#[test]
fn wrong_type_key_is_a_conflict() {
    let serving = serving(&[]);
    serving.redis.command(&["RPUSH", "list", "one"]);
    for _ in 0..2 {
        assert_eq!(problem(&get(serving.address(), "/keys/list"), 409), "wrong-type");
    }
}

#[test]
fn absent_key_is_404_until_it_exists() {
    let serving = serving(&[]);
    assert_eq!(problem(&get(serving.address(), "/keys/a"), 404), "no-such-key");
    // Absence is cached, until Redis has pushed the invalidation.
    serving.set("a", "value");
    eventually("the key is found", || {
        (get(serving.address(), "/keys/a").status == 200).then_some(())
    });
    assert_value(&mut serving.client(), "/keys/a", "value");
}

#[test]
fn errors_reveal_nothing_about_the_upstream() {
    let redis = RedisServer::builder().tcp().start();
    let (url, port) = (redis.tcp_url(), redis.tcp_address().port().to_string());
    let mut serving = serving_from(redis, &url, &[("REDIS__RESPONSE_TIMEOUT", "200ms")]);
    serving.proxy.expect_log("no connection to Redis");
    serving.redis.command(&["RPUSH", "list", "one"]);
    let address = serving.address();
    let mut errors = vec![
        (400, get(address, "/keys/%")),
        (404, get(address, "/keys/absent")),
        (409, get(address, "/keys/list")),
    ];
    serving.redis.command(&["ACL", "SETUSER", "default", "resetkeys", "~allowed"]);
    errors.push((502, get(address, "/keys/forbidden")));
    serving.redis.pause();
    errors.push((504, get(address, "/keys/slow")));
    serving.redis.resume();
    serving.redis.stop();
    errors.push((
        503,
        eventually("Redis is gone", || {
            let response = get(address, "/keys/gone");
            (response.status == 503).then_some(response)
        }),
    ));
    assert_eq!(errors[errors.len() - 1].1.header("retry-after"), Some("1"));
    for (status, error) in &errors {
        problem(error, *status);
        let text = String::from_utf8_lossy(&error.body);
        for secret in [
            "127.0.0.1",
            port.as_str(),
            "os error",
            "refused the",
            "Operation against",
            "ACL",
            "user",
        ] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

// Values

#[test]
fn values_are_byte_exact() {
    let serving = serving(&[]);
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut client = serving.client();
    for (key, value) in [
        ("empty", &b""[..]),
        ("zero", b"\0"),
        ("lines", b"a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        ("binary", &every_byte),
        ("number", b"007"),
    ] {
        serving.set(key, value);
        // From Redis, then from memory.
        for _ in 0..2 {
            assert_value(&mut client, format!("/keys/{key}"), value);
        }
    }
}

#[test]
fn value_headers_give_length_and_forbid_sniffing() {
    let serving = serving(&[]);
    serving.set("page", "<script>");
    let response = get(serving.address(), "/keys/page");
    assert_eq!(response.header("content-length"), Some("8"));
    assert_eq!(response.header("content-type"), Some("application/octet-stream"));
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
}

#[test]
fn value_of_20_megabytes_arrives_whole() {
    let serving = serving(&[]);
    // No part repeats where a mistake would put it.
    let value: Vec<u8> = (0_u32..5_000_000)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    serving.set("big", &value);
    let mut client = serving.client();
    for _ in 0..2 {
        assert_value(&mut client, "/keys/big", &value);
    }
}

#[test]
fn value_larger_than_max_value_is_rejected() {
    let serving = serving(&[("HTTP__MAX_VALUE", "10")]);
    serving.set("right", "0123456789");
    serving.set("large", "0123456789+");
    let mut client = serving.client();
    assert_value(&mut client, "/keys/right", "0123456789");
    for _ in 0..2 {
        let refused = client.get("/keys/large");
        assert_eq!(problem(&refused, 502), "value-too-large");
        assert_eq!(refused.header("etag"), None);
    }
    assert_eq!(
        serving.metric("cache_entries").to_string(),
        "1",
        "what is not given out is not kept"
    );
}

// Headers

#[test]
fn etags_are_equal_only_for_equal_values() {
    let serving = serving(&[]);
    for (key, value) in [("a", "same"), ("b", "same"), ("c", "other"), ("d", "")] {
        serving.set(key, value);
    }
    let mut client = serving.client();
    let mut etag = |key: &str| {
        let response = client.get(format!("/keys/{key}"));
        response.header("etag").expect("an ETag").to_owned()
    };
    let (a, b, c, d) = (etag("a"), etag("b"), etag("c"), etag("d"));
    assert_eq!(a, b);
    assert_eq!(a, etag("a"), "from memory as from Redis");
    assert!(a != c && a != d && c != d);
    let inner = a.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    assert!(inner.is_some_and(|inner| inner.len() >= 16 && !inner.contains('"')), "{a}");
}

#[test]
fn if_none_match_answers_304() {
    let serving = serving(&[]);
    serving.set("a", "value");
    let mut client = serving.client();
    let etag = client.get("/keys/a").header("etag").expect("an ETag").to_owned();
    let weak = format!("W/{etag}");
    let listed = format!("\"x\", {weak},\"y\"");
    for (condition, status) in [
        (etag.as_str(), 304),
        (&weak, 304),
        (&listed, 304),
        ("*", 304),
        ("\"x\"", 200),
        ("W/\"x\", \"y\"", 200),
        (etag.trim_matches('"'), 200),
        ("", 200),
    ] {
        for method in ["GET", "HEAD"] {
            let response = client.request(method, "/keys/a", &[("If-None-Match", condition)]);
            assert_eq!(response.status, status, "{method} {condition}");
            assert_eq!(response.header("etag"), Some(&*etag));
            assert!(
                response.header("cache-control").is_some()
                    && response.header("cache-status").is_some()
            );
            let body: &[u8] = if (method, status) == ("GET", 200) { b"value" } else { b"" };
            assert_eq!(response.body, body);
        }
    }
}

#[test]
fn if_none_match_may_span_several_lines() {
    let serving = serving(&[]);
    serving.set("a", "value");
    let mut client = serving.client();
    let etag = client.get("/keys/a").header("etag").expect("an ETag").to_owned();
    let headers = [("If-None-Match", "\"x\""), ("if-none-match", &*etag)];
    assert_eq!(client.request("GET", "/keys/a", &headers).status, 304);
}

#[test]
fn not_modified_never_misstates_the_length() {
    let serving = serving(&[]);
    serving.set("a", "value");
    let response = serving.client().request("GET", "/keys/a", &[("If-None-Match", "*")]);
    assert_eq!(response.status, 304);
    // RFC 9110, section 8.6: absent, or the length of a 200 response.
    let length = response.header("content-length");
    assert!(length.is_none_or(|length| length == "5"), "{length:?}");
}

#[test]
fn absent_key_ignores_conditions() {
    let serving = serving(&[]);
    let response = serving.client().request("GET", "/keys/a", &[("If-None-Match", "*")]);
    assert_eq!(problem(&response, 404), "no-such-key");
}

#[test]
fn age_is_sent_only_from_memory() {
    let serving = serving(&[]);
    serving.set("a", "value");
    let mut client = serving.client();
    assert_eq!(client.get("/keys/a").header("age"), None, "of a miss");
    assert_eq!(client.get("/keys/a").header("age"), Some("0"), "of a hit");
    eventually("the value is a second old", || {
        (client.get("/keys/a").header("age") == Some("1")).then_some(())
    });
}

#[test]
fn cache_control_is_configured_and_errors_no_store() {
    let by_default = serving(&[]);
    by_default.set("a", "value");
    let mut client = by_default.client();
    assert_eq!(client.get("/keys/a").header("cache-control"), Some("no-cache"));
    assert_eq!(client.get("/keys/absent").header("cache-control"), Some("no-store"));
    assert_eq!(client.get("/keys/%").header("cache-control"), Some("no-store"));
    by_default.redis.command(&["RPUSH", "list", "one"]);
    assert_eq!(client.get("/keys/list").header("cache-control"), Some("no-store"));

    let configured = serving(&[("HTTP__CACHE_CONTROL", "public, max-age=5")]);
    configured.set("a", "value");
    let response = get(configured.address(), "/keys/a");
    assert_eq!(response.header("cache-control"), Some("public, max-age=5"));
}

#[test]
fn cache_status_distinguishes_hit_and_miss() {
    let serving = serving(&[("CACHE__TTL", "30s")]);
    serving.set("a", "value");
    let mut client = serving.client();
    let miss = cache_status(&client.get("/keys/a"));
    assert!(has(&miss, "fwd", "miss") && !has(&miss, "hit", "?1"), "{miss:?}");
    let hit = cache_status(&client.get("/keys/a"));
    assert!(has(&hit, "hit", "?1") && !has(&hit, "fwd", "miss"), "{hit:?}");
    let ttl = hit.iter().find(|(name, _)| name == "ttl").expect("a ttl");
    assert!((25..=30).contains(&ttl.1.parse().unwrap_or(0)), "{hit:?}");
}

#[test]
fn cache_status_reports_negative_hits() {
    let serving = serving(&[("CACHE__NEGATIVE_TTL", "30s")]);
    let mut client = serving.client();
    let first = client.get("/keys/a");
    assert!(has(&cache_status(&first), "fwd", "miss"), "{first:?}");
    let second = client.get("/keys/a");
    assert_eq!(problem(&second, 404), "no-such-key");
    let status = cache_status(&second);
    assert!(has(&status, "hit", "?1") && has(&status, "detail", "negative_hit"), "{status:?}");
    assert!(second.header("age").is_some());
    assert_eq!(serving.redis.calls("get"), 1);
}

#[test]
fn cache_status_reports_shared_fetches() {
    let serving = serving(&[]);
    serving.set("a", "value");
    serving.set("hot", "value");
    let (mut first, mut second, mut third) = (serving.client(), serving.client(), serving.client());
    third.get("/keys/hot");
    serving.redis.pause();
    first.send_raw(b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
    serving.await_metric(FLIGHTS, 1);
    second.send_raw(b"GET /keys/a HTTP/1.1\r\nHost: x\r\n\r\n");
    // The one worker has seen the second request by the time it has answered later ones.
    (0..3).for_each(|_| _ = third.get("/keys/hot"));
    serving.redis.resume();
    let (first, second) =
        (cache_status(&first.read_response()), cache_status(&second.read_response()));
    assert!(has(&first, "fwd", "miss") && !has(&first, "collapsed", "?1"), "{first:?}");
    assert!(has(&second, "fwd", "miss") && has(&second, "collapsed", "?1"), "{second:?}");
    assert_eq!(serving.redis.calls("get"), 2, "one for each key");
}

/// Returns the headers without those that depend on the time.
fn lasting_headers(response: &Response) -> Vec<(String, String)> {
    let lasting = |(name, value): &(String, String)| {
        let value = value.split("; ttl=").next().unwrap_or_default();
        (name.to_lowercase(), value.to_owned())
    };
    let mut headers: Vec<_> = response.headers.iter().map(lasting).collect();
    headers.retain(|(name, _)| name != "date" && name != "age");
    headers.sort();
    headers
}

#[test]
fn hit_and_miss_have_the_headers_that_hyper_sends() {
    let serving = serving(&[("CACHE__TTL", "1h")]);
    serving.set("a", "value");
    serving.set("b", "value");
    let (mut fast, mut hyper) = (serving.client(), serving.client());
    for outcome in ["miss", "hit"] {
        // hyper serves a request that gives the length of its body.
        let slow = hyper.request("GET", "/keys/b", &[("Content-Length", "0")]);
        let fast = fast.get("/keys/a");
        assert_eq!(lasting_headers(&fast), lasting_headers(&slow), "{outcome}");
        for response in [fast, slow] {
            assert_eq!(response.header("age").is_some(), outcome == "hit", "{response:?}");
            let status = cache_status(&response);
            let ttl = status.iter().find(|(name, _)| name == "ttl").expect("a ttl");
            assert!((3500..=3600).contains(&ttl.1.parse().unwrap_or(0)), "{status:?}");
        }
    }
}

#[test]
fn head_equals_get_without_body() {
    let serving =
        serving(&[("HTTP__MAX_KEY", "8"), ("HTTP__MAX_VALUE", "8"), ("CACHE__NEGATIVE_TTL", "0")]);
    serving.set("a", "value");
    serving.set("empty", "");
    serving.set("large", "123456789");
    serving.redis.command(&["RPUSH", "list", "one"]);
    let mut client = serving.client();
    for key in ["a", "empty", "large"] {
        client.get(format!("/keys/{key}"));
    }
    for (path, status) in [
        ("/keys/a", 200),
        ("/keys/empty", 200),
        ("/keys/absent", 404),
        ("/nothing", 404),
        ("/keys/", 400),
        ("/keys/%", 400),
        ("/keys/a?b", 400),
        ("/keys/123456789", 414),
        ("/keys/large", 502),
        ("/keys/list", 409),
    ] {
        let (get, head) = (client.get(path), client.head(path));
        assert_eq!((get.status, head.status), (status, status), "{path}");
        assert_eq!(lasting_headers(&get), lasting_headers(&head), "{path}");
    }
    // A body would be taken for the next response.
    assert_value(&mut client, "/keys/a", "value");
}

#[test]
fn head_reads_through_the_cache() {
    let serving: Serving = serving(&[]);
    serving.set("a", "value");
    let mut client = serving.client();
    assert!(has(&cache_status(&client.head("/keys/a")), "fwd", "miss"));
    assert!(has(&cache_status(&client.get("/keys/a")), "hit", "?1"));
    assert_eq!(serving.redis.calls("get"), 1);
}
