//! Purge and explain: `DELETE /cache`, `GET /cache/{key}` and `redis-proxy explain`.
//!
//! Promise: what is purged is not answered from memory any more, replies and fetches in progress
//! included; and only peers of this machine on the operators' listener, or tokens with the right
//! `purge`, may do it.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cluster::RedisCluster;
use crate::support::fault_stage::DOWN;
use crate::support::http::{Client, Response};
use crate::support::resp_client::RespClient;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{
    assert_hit, await_ready, behind_relay, cache_status, config, metric, proxy, read,
    request_and_await_flight, set, text, value,
};
use crate::support::{Proxy, RedisServer, eventually, http};

const BASE: &str = "cache.ttl = \"1h\"\nresp.listen = \"127.0.0.1:0\"\n";

fn delete(proxy: &Proxy, path: &str) -> Response {
    Client::connect(proxy.admin()).request("DELETE", path, &[])
}

/// Purges, and returns the number of entries.
#[track_caller]
fn purged(proxy: &Proxy, path: &str) -> u64 {
    let response = delete(proxy, path);
    assert_eq!(response.status, 200, "{path}: {}", text(&response));
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    body["purged"].as_u64().expect("a number")
}

#[track_caller]
fn explain(proxy: &Proxy, key: &str) -> Value {
    let response = http::get(proxy.admin(), format!("/cache/{key}"));
    assert_eq!(response.status, 200, "{}", text(&response));
    serde_json::from_slice(&response.body).expect("JSON")
}

fn evictions(proxy: &Proxy, store: &str) -> f64 {
    metric(proxy, &format!("{store}_evictions_total{{cause=\"purged\"}}"))
}

fn fill(redis: &RedisServer, proxy: &Proxy, keys: &[&str]) {
    for key in keys {
        set(redis, key, key);
        value(proxy, key);
        assert_hit(&read(proxy, key));
    }
}

fn is_hit(proxy: &Proxy, key: &str) -> bool {
    cache_status(&read(proxy, key)).contains("; hit")
}

mod dropped {
    use super::*;

    #[test]
    fn purged_values_are_fetched_again() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        let keys = ["a:1", "a:2", "a/b c", "b:1"];
        fill(&redis, &proxy, &keys);
        for (path, gone, count) in [
            ("/cache/a:1", &keys[..1], 1),
            ("/cache/a%2Fb%20c", &keys[2..3], 1),
            ("/cache/none", &keys[..0], 0),
            ("/cache?prefix=a:", &keys[..2], 2),
            ("/cache?prefix=a%3A", &keys[..2], 2),
            ("/cache", &keys[..], 4),
        ] {
            for key in keys {
                assert_eq!(value(&proxy, key), key);
            }
            let before = evictions(&proxy, "cache");
            assert_eq!(purged(&proxy, path), count, "{path}");
            let counted = evictions(&proxy, "cache") - before;
            assert_eq!(counted.to_string(), count.to_string(), "{path}");
            for key in keys {
                assert_eq!(!is_hit(&proxy, key), gone.contains(&key), "{path}: {key}");
            }
        }
    }

    #[test]
    fn replies_go_with_their_keys() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        let mut client = RespClient::connect(proxy.resp_address());
        for key in ["a:s", "b:s"] {
            redis.command(&["SADD", key, "member"]);
        }
        let reads = [["SMEMBERS", "a:s", ""], ["SMEMBERS", "b:s", ""], ["SINTER", "b:s", "a:s"]];
        let mut calls = |read: &[&str; 3]| {
            let words: Vec<_> = read.iter().filter(|word| !word.is_empty()).collect();
            let name = read[0].to_lowercase();
            let before = redis.calls(&name);
            client.query(&words);
            redis.calls(&name) - before
        };
        for (path, gone) in [
            ("/cache/a:s", [1, 0, 1]),
            ("/cache?prefix=a", [1, 0, 1]),
            ("/cache?prefix=none", [0, 0, 0]),
            ("/cache", [1, 1, 1]),
        ] {
            for read in &reads {
                calls(read);
            }
            assert_eq!(reads.each_ref().map(&mut calls), [0, 0, 0], "before {path}");
            purged(&proxy, path);
            assert_eq!(reads.each_ref().map(&mut calls), gone, "{path}");
        }
        assert_eq!(evictions(&proxy, "replies").to_string(), "2");
    }

    #[test]
    fn fetch_in_progress_is_not_stored() {
        for path in ["/cache/key", "/cache?prefix=k", "/cache"] {
            let (redis, relay, proxy) = behind_relay(BASE);
            set(&redis, "key", "value");
            relay.stall();
            let mut reader = request_and_await_flight(&proxy, "key", 1);
            purged(&proxy, path);
            relay.resume();
            assert_eq!(text(&reader.read_response()), "value", "{path}");
            assert_eq!(metric(&proxy, "cache_entries").to_string(), "0", "{path}");
            assert!(!is_hit(&proxy, "key"), "{path}");
        }
    }

    #[test]
    fn reply_in_progress_is_not_kept() {
        for path in ["/cache/h", "/cache?prefix=h", "/cache"] {
            let (redis, relay, proxy) = behind_relay(BASE);
            redis.command(&["HSET", "h", "f", "v"]);
            let mut client = RespClient::connect(proxy.resp_address());
            // Otherwise the client's connection would be opened while the relay stands still.
            client.query(&["PING"]);
            let begun = redis.calls("hget");
            relay.stall();
            client.send(crate::support::resp_client::command(&["HGET", "h", "f"]));
            eventually("the fetch is in progress", || {
                let state = explain(&proxy, "h");
                let fetches = metric(&proxy, "replies_entries") + metric(&proxy, "cache_entries");
                (state["kept"] == false && fetches < 1.0).then_some(())
            });
            std::thread::sleep(std::time::Duration::from_millis(100));
            purged(&proxy, path);
            relay.resume();
            client.answer();
            assert_eq!(metric(&proxy, "replies_entries").to_string(), "0", "{path}");
            client.query(&["HGET", "h", "f"]);
            assert_eq!(redis.calls("hget") - begun, 2, "{path}");
        }
    }

    #[test]
    fn unclear_purge_drops_nothing() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        fill(&redis, &proxy, &["key"]);
        for (method, path, expected) in [
            ("DELETE", "/cache?prefix=", 400),
            ("DELETE", "/cache?prefx=k", 400),
            ("DELETE", "/cache?", 400),
            ("DELETE", "/cache/key?x=1", 400),
            ("DELETE", "/cache/k%6", 400),
            ("DELETE", "/cache/", 404),
            ("POST", "/cache", 405),
            ("GET", "/cache", 405),
            ("PUT", "/cache/key", 405),
        ] {
            let response = Client::connect(proxy.admin()).request(method, path, &[]);
            assert_eq!(response.status, expected, "{method} {path}: {}", text(&response));
            assert!(is_hit(&proxy, "key"), "{method} {path}");
        }
    }

    #[test]
    fn purge_in_ttl_mode_ends_old_values() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &format!("{BASE}cache.coherence = \"ttl\""));
        fill(&redis, &proxy, &["key"]);
        set(&redis, "key", "new");
        assert_eq!(value(&proxy, "key"), "key");
        assert_eq!(purged(&proxy, "/cache/key"), 1);
        assert_eq!(value(&proxy, "key"), "new");
    }

    #[test]
    fn purge_reaches_every_primary() {
        let cluster = RedisCluster::of(3);
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
        let settings = format!("{BASE}daemon.worker_threads = 1\n{}", cluster.settings());
        let proxy = Proxy::start(&format!("{listen}{settings}"));
        proxy.expect_log(DOWN);
        await_ready(&proxy);
        let keys: Vec<_> = (0..9).map(|number| format!("k:{number}")).collect();
        for key in &keys {
            cluster.set(key, key);
        }
        for (path, count) in [("/cache/k:1", 1), ("/cache?prefix=k:", 9), ("/cache", 9)] {
            for key in &keys {
                eventually("the key is kept", || is_hit(&proxy, key).then_some(()));
            }
            assert_eq!(purged(&proxy, path), count, "{path}");
        }
        assert_eq!(explain(&proxy, "k:1")["last_invalidation"]["cause"], "all");
    }
}

mod explanation {
    use super::*;

    #[test]
    fn key_is_explained() {
        let redis = RedisServer::start();
        let more = format!(
            "{BASE}cache.rules = [{{ keys = \"s:*\", ttl = \"5m\" }}, \
                {{ keys = \"off:*\", mode = \"off\" }}, {{ keys = \"see:*\", mode = \"observe\" }}]"
        );
        let proxy = proxy(&redis, &more);
        let mut client = RespClient::connect(proxy.resp_address());
        let answer = |key: &str| explain(&proxy, key)["answer"].as_str().expect("text").to_owned();
        assert!(answer("s:1").contains("not fetched yet"));
        assert_eq!(explain(&proxy, "s:1")["kept"], false);
        redis.command(&["SET", "s:1", "value", "EX", "60"]);
        value(&proxy, "s:1");
        client.query(&["TYPE", "s:1"]);
        client.query(&["TTL", "s:1"]);
        let state = explain(&proxy, "s:1");
        assert_eq!((&state["kept"], &state["answer"]), (&json!(true), &json!("from memory")));
        assert_eq!((&state["rule"], &state["mode"]), (&json!("s:*"), &json!("cache")));
        assert_eq!(state["ttl_seconds"], 300.0);
        assert_eq!(state["replies"], json!({ "TTL": 1, "TYPE": 1 }));
        assert_eq!(state["last_invalidation"], Value::Null);
        assert_eq!(state["coherence"], "tracking");
        let entry = &state["value"];
        assert_eq!((&entry["state"], &entry["value_bytes"]), (&json!("fresh"), &json!(5)));
        let expires = entry["expires_in_seconds"].as_f64().expect("seconds");
        assert!(expires > 50.0 && expires <= 60.0, "{entry}");
        // A write ends the value and the replies, and says so.
        set(&redis, "s:1", "other");
        eventually("the write is pushed", || {
            (explain(&proxy, "s:1")["kept"] == false).then_some(())
        });
        assert!(answer("s:1").contains("since the last invalidation"));
        assert_eq!(explain(&proxy, "s:1")["last_invalidation"]["cause"], "key");
        assert_eq!(explain(&proxy, "s:1")["replies"], json!({}));
        value(&proxy, "s:1");
        purged(&proxy, "/cache/s:1");
        assert_eq!(explain(&proxy, "s:1")["last_invalidation"]["cause"], "purged");
        for (key, expected) in [("off:1", "mode off"), ("see:1", "mode observe")] {
            set(&redis, key, "value");
            value(&proxy, key);
            assert!(answer(key).contains(expected), "{key}");
        }
        assert_eq!(read(&proxy, "absent").status, 404);
        assert!(answer("absent").contains("known to be absent"));
    }

    #[test]
    fn explain_command_prints_the_state() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        fill(&redis, &proxy, &["a key/1"]);
        let admin = proxy.admin().to_string();
        let output = Proxy::spawn_raw(&["explain", "a key/1", "--admin", &admin], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("answer             from memory\n"), "{text}");
        assert!(text.contains("value              fresh, 7 bytes, age "), "{text}");
    }
}

mod access {
    use super::*;

    /// Sends a request to `path` on the listener for reads.
    fn request(proxy: &Proxy, method: &str, path: &str, token: &str) -> u16 {
        let authorization = format!("Bearer {token}");
        let headers: &[(&str, &str)] =
            if token.is_empty() { &[] } else { &[("Authorization", &authorization)] };
        Client::connect(proxy.http()).request(method, path, headers).status
    }

    /// Starts a proxy without a listener for operators.
    fn without_admin(redis: &RedisServer, more: &str) -> Proxy {
        let proxy = Proxy::start(&format!(
            "http.listen = \"127.0.0.1:0\"\nredis.url = \"{}\"\n{more}\n",
            redis.url()
        ));
        eventually("the proxy is ready", || {
            (http::get(proxy.http(), "/readyz").status == 200).then_some(())
        });
        proxy
    }

    #[test]
    fn listener_for_reads_requires_a_token_that_may_purge() {
        let redis = RedisServer::start();
        let proxy = without_admin(&redis, "");
        for (method, path) in [("DELETE", "/cache"), ("DELETE", "/cache/k"), ("GET", "/cache/k")] {
            for token in ["", "any"] {
                assert_eq!(request(&proxy, method, path, token), 401, "{method} {path} {token}");
            }
        }
        let tokens = SecretFile::new("reader\npurger purge\n");
        let more = format!("http.tokens_file = \"{}\"", tokens.name());
        let proxy = without_admin(&redis, &more);
        for (token, expected) in [("", 401), ("other", 401), ("reader", 401), ("purger", 200)] {
            assert_eq!(request(&proxy, "DELETE", "/cache", token), expected, "{token}");
            assert_eq!(request(&proxy, "DELETE", "/cache?prefix=a", token), expected, "{token}");
            assert_eq!(request(&proxy, "GET", "/cache/k", token), expected, "{token}");
        }
        assert_eq!(request(&proxy, "GET", "/report", "reader"), 200);
        assert_eq!(request(&proxy, "GET", "/report", ""), 401);
        // A reload takes the right away.
        tokens.write("reader\npurger\n");
        proxy.signal(crate::support::Signal::HUP);
        eventually("the right is gone", || {
            (request(&proxy, "DELETE", "/cache", "purger") == 401).then_some(())
        });
    }

    #[test]
    fn scoped_token_purges_only_its_keys() {
        let redis = RedisServer::start();
        let tokens = SecretFile::new("all purge\nscoped purge keys=a:*\nreader\n");
        let more = format!(
            "rest.path = \"/rest\"\nrest.tokens_file = \"{}\"\n\
                http.allow_keys = [\"a:*\", \"b:*\"]",
            tokens.name()
        );
        let proxy = without_admin(&redis, &more);
        for (path, all, scoped) in [
            ("/cache/a:1", 200, 200),
            ("/cache/b:1", 200, 403),
            ("/cache/c:1", 403, 403),
            ("/cache?prefix=a:", 200, 200),
            ("/cache?prefix=a", 403, 403),
            ("/cache?prefix=b:", 200, 403),
            ("/cache", 403, 403),
        ] {
            for (token, expected) in [("all", all), ("scoped", scoped), ("reader", 401), ("", 401)]
            {
                assert_eq!(request(&proxy, "DELETE", path, token), expected, "{path} {token}");
            }
        }
        assert_eq!(request(&proxy, "GET", "/cache/a:1", "scoped"), 200);
        assert_eq!(request(&proxy, "GET", "/cache/b:1", "scoped"), 403);
    }

    #[test]
    fn peer_on_a_unix_socket_needs_no_token() {
        let redis = RedisServer::start();
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let proxy = Proxy::builder(&config(&redis.url(), BASE).replace("admin.listen", "#"))
            .argument("--set")
            .argument(format!("admin.listen=unix://{}", socket.display()))
            .start();
        eventually("the value is kept", || is_hit(&proxy, "key").then_some(()));
        let mut peer = UnixStream::connect(&socket).expect("the socket");
        let request = "DELETE /cache/key HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        peer.write_all(request.as_bytes()).expect("a request");
        let mut response = String::new();
        peer.read_to_string(&mut response).expect("a response");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("\"purged\":1"), "{response}");
    }

    #[test]
    fn page_of_another_host_purges_nothing() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, BASE);
        fill(&redis, &proxy, &["key"]);
        let mut client = Client::connect(proxy.admin());
        client.send_raw(b"DELETE /cache HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        assert_eq!(client.read_response().status, 401);
        assert!(is_hit(&proxy, "key"));
        assert_eq!(
            metric(&proxy, "rejected_total{front_end=\"admin\",reason=\"token\"}").to_string(),
            "1"
        );
    }

    #[test]
    fn listener_of_reads_has_no_cache_routes_beside_one_for_operators() {
        let redis = RedisServer::start();
        let tokens = SecretFile::new("purger purge\n");
        let more = format!("http.tokens_file = \"{}\"", tokens.name());
        let proxy = Proxy::start(&config(&redis.url(), &more));
        await_ready(&proxy);
        assert_eq!(request(&proxy, "DELETE", "/cache", "purger"), 404);
        assert_eq!(request(&proxy, "DELETE", "/cache", ""), 401);
        assert_eq!(purged(&proxy, "/cache"), 0);
    }
}
