//! `http.allow_keys`, the key allowlist of HTTP.
//!
//! Promise: keys outside the list get the same 403 whether they exist or not, and cause no request
//! to Redis.

use crate::support::http::{Client, Response, get, key_path};
use crate::support::serving::{await_ready, config, reads};
use crate::support::{Proxy, RedisServer, eventually};

const ALLOW: &str = "http.allow_keys = [\"public:*\", \"greeting\"]";

struct Listed {
    proxy: Proxy,
    redis: RedisServer,
}

fn listed(more: &str) -> Listed {
    let redis = RedisServer::start();
    for (key, value) in
        [("public:a", "for all"), ("greeting", "hello"), ("secret", "hidden"), ("publi", "hidden")]
    {
        redis.command(&["SET", key, value]);
    }
    let proxy = Proxy::start(&config(&redis.url(), &format!("{ALLOW}\n{more}")));
    await_ready(&proxy);
    Listed { proxy, redis }
}

impl Listed {
    fn request(&self, method: &str, path: &str) -> Response {
        Client::connect(self.proxy.http()).request(method, path, &[])
    }
}

/// Returns a response without its date.
fn timeless(response: Response) -> Response {
    let headers = response.headers.into_iter().filter(|(name, _)| name != "date").collect();
    Response { headers, ..response }
}

#[test]
fn only_listed_keys_are_served() {
    let listed = listed("");
    for path in ["/keys/public:a", "/keys/public%3Aa", "/keys/%70ublic:a", "/keys/greeting"] {
        assert_eq!(listed.request("GET", path).status, 200, "{path}");
        assert_eq!(listed.request("HEAD", path).status, 200, "{path}");
    }
    assert_eq!(listed.request("GET", "/keys/public:nothing").status, 404);
    for path in [
        "/keys/secret",
        "/keys/publi",
        "/keys/nothing",
        "/keys/Public:a",
        "/keys/public",
        "/keys/%20public:a",
        "/keys/public%253Aa",
        "/keys/public%00:a",
        "/keys//public:a",
        "/keys/./public:a",
        "/keys/x/../public:a",
        "/keys/greeting%00",
        "/keys/greeting/",
        "/keys/greeting%20",
        "/keys/public*",
        "/keys/*",
    ] {
        let response = listed.request("GET", path);
        assert_eq!(
            (response.status, response.header("content-type")),
            (403, Some("application/problem+json")),
            "{path}"
        );
        assert_eq!(response.header("cache-status"), None, "{path}");
        let head = listed.request("HEAD", path);
        assert_eq!((head.status, head.body.len()), (403, 0), "{path}");
    }
    // A prefix allows any continuation: a key is no path.
    for path in ["/keys/public:../secret", "/keys/public:%2F..%2Fsecret", "/keys/public:%00secret"]
    {
        assert_eq!(listed.request("GET", path).status, 404, "{path}");
    }
}

#[test]
fn unlisted_key_reveals_no_existence() {
    let listed = listed("");
    // The key is in memory, because the cache is one for all listeners.
    let before = listed.redis.calls("get") + listed.redis.calls("pttl");
    let answers = ["secret", "nothing"].map(|key| {
        let plain = timeless(listed.request("GET", &key_path(key.as_bytes())));
        let mut client = Client::connect(listed.proxy.http());
        let headers = [("Cache-Control", "no-cache"), ("If-None-Match", "*")];
        [plain, timeless(client.request("GET", key_path(key.as_bytes()), &headers))]
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0][0].status, 403);
    assert_eq!(
        listed.redis.calls("get") + listed.redis.calls("pttl"),
        before,
        "Redis received a read"
    );
    for outcome in ["hit", "miss", "coalesced", "negative_hit", "bypass"] {
        assert!(reads(&listed.proxy, outcome).abs() < f64::EPSILON, "{outcome}");
    }
}

#[test]
fn shared_hotkeys_show_only_listed_keys() {
    let redis = RedisServer::start();
    let listen = "http.listen = \"127.0.0.1:0\"\nresp.listen = \"127.0.0.1:0\"\n\
        resp.max_connections = 500\nhttp.max_connections = 500";
    let proxy = Proxy::start(&format!(
        "{listen}\n{ALLOW}\nadmin.hotkeys = 100\nredis.url = \"{}\"",
        redis.url()
    ));
    eventually("readiness", || (get(proxy.http(), "/readyz").status == 200).then_some(()));
    let mut client = redis::Client::open(format!("redis://{}", proxy.resp_address()))
        .unwrap()
        .get_connection()
        .unwrap();
    for key in ["secret", "secret", "public:a"] {
        let _: Option<String> = redis::cmd("GET").arg(key).query(&mut client).unwrap();
    }
    let received = || String::from_utf8(get(proxy.http(), "/hotkeys?top=1").body).unwrap();
    eventually("the key that may be named", || received().contains("public:a").then_some(()));
    assert!(!received().contains("secret"), "{}", received());
}

#[test]
fn key_list_parses_from_environment() {
    let redis = RedisServer::start();
    redis.command(&["SET", "one", "1"]);
    let builder = Proxy::builder(&config(&redis.url(), "http.allow_keys = [\"two\"]"));
    let proxy = builder.environment("REDIS_PROXY_HTTP__ALLOW_KEYS", "public:*, one").start();
    await_ready(&proxy);
    assert_eq!(["/keys/one", "/keys/two"].map(|path| get(proxy.http(), path).status), [200, 403]);
    for bad in ["[\"a*b\"]", "[\"\"]", "[\"*a\"]", "[\"a,b\"]", "\"a,,b\"", "[\" a\"]", "3"] {
        for section in ["http", "resp"] {
            let output =
                Proxy::builder(&config(&redis.url(), &format!("{section}.allow_keys = {bad}")))
                    .run_to_end();
            assert!(
                output.0 == 78 && output.1.contains(&format!("{section}.allow_keys: found")),
                "{bad}: {output:?}"
            );
        }
    }
}
