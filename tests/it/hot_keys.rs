//! `/hotkeys`, the list of the most read keys.
//!
//! Promise: it counts the reads of both front ends, and only if it is enabled.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use serde_json::{Value, json};

use crate::support::http::{self, Response};
use crate::support::serving::{proxy, read, set, text};
use crate::support::{Proxy, RedisServer};

fn hotkeys(proxy: &Proxy, query: &str) -> Response {
    http::get(proxy.admin(), format!("/hotkeys{query}"))
}

fn hottest(proxy: &Proxy, query: &str) -> Value {
    let response = hotkeys(proxy, query);
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&response.body).expect("JSON")
}

#[test]
fn hottest_keys_come_first_with_their_reads() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "admin.hotkeys = 100");
    set(&redis, "orders:1", "value");
    for (key, times) in [("orders:1", 5), ("absent", 3), ("odd \"\\\u{1b}\u{e4}/%key", 2)] {
        for _ in 0..times {
            assert_eq!(read(&proxy, key).status, if key == "orders:1" { 200 } else { 404 });
        }
    }
    let all = hottest(&proxy, "");
    let expected = json!([
        { "key": "orders:1", "reads": 5, "error": 0 },
        { "key": "absent", "reads": 3, "error": 0 },
        { "key": "odd%20%22%5C%1B%C3%A4/%25key", "reads": 2, "error": 0 },
    ]);
    assert_eq!((&all["keys"], &all["reads"]), (&expected, &json!(10)));
    assert!(all["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    let first = hottest(&proxy, "?top=1");
    assert_eq!(first["keys"], json!([expected[0]]));
    // A key in the output is a path as it stands.
    assert_eq!(http::get(proxy.http(), "/keys/odd%20%22%5C%1B%C3%A4/%25key").status, 404);
    assert_eq!(hottest(&proxy, "")["keys"][2]["reads"], 3);
}

#[test]
fn resp_reads_count_too() {
    let redis = RedisServer::start();
    let proxy = proxy(
        &redis,
        "admin.hotkeys = 100\nresp.listen = \"127.0.0.1:0\"\nresp.max_connections = 10",
    );
    set(&redis, "key", "value");
    let line = proxy.wait_for_log(|line| {
        line.has_message("listening") && line.field("front_end").as_deref() == Some("resp")
    });
    let address = line.field("address").expect("an address");
    let client = redis::Client::open(format!("redis://{address}")).expect("an address");
    let mut connection = client.get_connection().expect("a connection");
    for _ in 0..4 {
        let value: String = redis::cmd("GET").arg("key").query(&mut connection).expect("a value");
        assert_eq!(value, "value");
    }
    let values: Vec<Option<String>> =
        redis::cmd("MGET").arg(&["key", "key"]).query(&mut connection).expect("values");
    assert_eq!(values.len(), 2);
    assert_eq!(hottest(&proxy, "")["keys"][0], json!({ "key": "key", "reads": 6, "error": 0 }));
}

#[test]
fn disabled_hotkeys_explain_how_to_enable() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    let response = hotkeys(&proxy, "?top=20");
    assert_eq!(response.status, 404);
    assert!(text(&response).contains("admin.hotkeys"), "{}", text(&response));
    for query in ["?top=many", "?top=-1", "?least=1"] {
        assert_eq!(hotkeys(&proxy, query).status, 400, "{query}");
    }
}
