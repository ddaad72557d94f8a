//! `upstash-sync-token`: a request with the token sees the writes that the token names.
//!
//! The connection to Redis of one proxy is slowed, so that an invalidation takes a while. A read
//! without the token may then return the old value, and does, which shows that the tests can fail.
//!
//! Promise: so does a request with an older token for the writes of its own HTTP connection.

use std::time::Duration;

use serde_json::{Value, json as value};

use super::support::{Served, TOKENS, json, request, start_rest};
use crate::support::cluster::RedisCluster;
use crate::support::http::Client;
use crate::support::secret_file::SecretFile;
use crate::support::serving::relay_url;
use crate::support::{Proxy, RedisServer, Relay};

const HEADER: &str = "upstash-sync-token";

/// A client that hands its token back, as the SDKs do.
struct Sdk {
    connection: Client,
    token: String,
}

impl Sdk {
    fn new(proxy: &Proxy) -> Self {
        Self { connection: Client::connect(proxy.http()), token: String::new() }
    }

    /// Sends a request with a token, and keeps that of the response.
    fn post(&mut self, path: &str, body: &str) -> (u16, Value) {
        let token = std::mem::take(&mut self.token);
        let (status, found, token) = self.post_with(&token, path, body);
        self.token = token.expect("a response has a token");
        (status, found)
    }

    fn post_with(&mut self, token: &str, path: &str, body: &str) -> (u16, Value, Option<String>) {
        let headers = [("Authorization", "Bearer full-token"), (HEADER, token)];
        self.connection.send_raw(&request("POST", path, &headers, body.as_bytes()));
        let response = self.connection.read_response();
        let (status, found) = json(&response);
        (status, found, response.header(HEADER).map(str::to_owned))
    }

    fn get(&mut self, key: &str) -> Value {
        self.post("/rest", &format!(r#"["GET","{key}"]"#)).1["result"].clone()
    }
}

/// A client that sends the token of the response before the last one, as some SDKs do.
struct LateSdk {
    sdk: Sdk,
    last: String,
}

impl LateSdk {
    fn new(proxy: &Proxy) -> Self {
        Self { sdk: Sdk::new(proxy), last: String::new() }
    }

    fn post(&mut self, path: &str, body: &str) -> Value {
        let (_, found) = self.sdk.post(path, body);
        std::mem::swap(&mut self.sdk.token, &mut self.last);
        found["result"].clone()
    }

    fn set(&mut self, key: &str, value: &str) {
        assert_eq!(self.post("/rest", &format!(r#"["SET","{key}","{value}"]"#)), "OK");
    }

    fn get(&mut self, key: &str) -> Value {
        self.post("/rest", &format!(r#"["GET","{key}"]"#))
    }
}

#[test]
fn request_without_a_write_returns_the_token_it_came_with() {
    let served = Served::start();
    let mut sdk = Sdk::new(&served.proxy);
    assert_eq!(sdk.get("a"), Value::Null);
    let first = sdk.token.clone();
    for (path, body) in [
        ("/rest", r#"["GET","a"]"#),
        ("/rest", r#"["GET","missed"]"#),
        ("/rest/pipeline", r#"[["MGET","a","b"],["HGETALL","h"],["EXISTS","a"]]"#),
        ("/rest", r#"["FLUSHALL"]"#),
        ("/rest", "not JSON"),
    ] {
        sdk.post(path, body);
        assert_eq!(sdk.token, first, "{path} {body}");
    }
    sdk.post("/rest", r#"["SET","a","1"]"#);
    let second = std::mem::replace(&mut sdk.token, first.clone());
    assert_ne!(first, second);
    sdk.token.clone_from(&second);
    assert_eq!(sdk.get("a"), "1");
    assert_eq!(sdk.token, second);
    for (path, body) in [
        ("/rest/pipeline", r#"[["GET","a"],["INCR","a"],["GET","a"]]"#),
        ("/rest/multi-exec", r#"[["INCR","a"]]"#),
        ("/rest", r#"["LPUSH","a","x"]"#),
    ] {
        let before = sdk.token.clone();
        sdk.post(path, body);
        assert_ne!(sdk.token, before, "{path} {body}");
    }
    let mut nobody = served.client();
    nobody.send_raw(&request("POST", "/rest", &[(HEADER, &second)], br#"["PING"]"#));
    let response = nobody.read_response();
    assert!(response.status == 401 && response.header(HEADER).is_none());
}

#[test]
fn read_with_a_token_sees_the_write_through_another_proxy() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let relay = Relay::to_socket(redis.socket());
    let writer = start_rest(&format!("redis.url = \"{}\"", redis.url()), &file, "");
    let url = format!("redis.url = \"{}\"", relay_url(&relay));
    let reader = start_rest(&url, &file, "cache.ttl = \"1h\"");
    let (mut to_writer, mut to_reader) = (Sdk::new(&writer), Sdk::new(&reader));
    let (mut plain, mut bad) = (Sdk::new(&reader), Sdk::new(&reader));
    for key in ["a", "f"] {
        to_reader.get(key);
    }
    relay.delay(Duration::from_millis(10));
    let (mut old, mut old_hash) = (0, 0);
    for number in 1..=60 {
        let text = number.to_string();
        to_writer.post("/rest", &format!(r#"["SET","a","{text}"]"#));
        to_writer.post("/rest", &format!(r#"["HSET","h","f","{text}"]"#));
        plain.token.clear();
        let body = r#"[["GET","a"],["HGETALL","h"]]"#;
        let without = plain.post("/rest/pipeline", body).1;
        old += u32::from(without[0]["result"] != text);
        old_hash += u32::from(without[1]["result"] != value!(["f", text]));
        // A token that was changed on its way counts as one of another proxy.
        bad.token = format!("{}0", to_writer.token);
        to_reader.token.clone_from(&to_writer.token);
        let sdk = if number % 2 == 0 { &mut bad } else { &mut to_reader };
        let found = sdk.post("/rest/pipeline", body).1;
        assert_eq!(found, value!([{"result": text}, {"result": ["f", text]}]), "{number}");
        // The other way: the reader's token at the writer.
        to_writer.token.clone_from(&to_reader.token);
    }
    assert!(old > 0 && old_hash > 0, "no plain read was early enough to be old: {old} {old_hash}");
}

/// Redis answers the write before the reader's proxy learns of it, in each of these pairs.
#[test]
fn own_write_is_seen_by_the_token_of_the_same_proxy() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let relay = Relay::to_socket(redis.socket());
    let proxy = start_rest(&format!("redis.url = \"{}\"", relay_url(&relay)), &file, "");
    let mut sdk = Sdk::new(&proxy);
    sdk.get("a");
    relay.delay(Duration::from_millis(2));
    for number in 0..200 {
        let body = format!(r#"["SET","a","{number}"]"#);
        assert_eq!(sdk.post("/rest", &body).1, value!({"result": "OK"}));
        let (token, found) = (sdk.token.clone(), sdk.get("a"));
        assert_eq!(found, number.to_string());
        assert_eq!(sdk.token, token);
    }
}

/// The relay passes single bytes slowly. So Redis's short reply to a write is here long before the
/// invalidation.
#[test]
fn late_token_sees_writes_of_connection() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let relay = Relay::to_socket(redis.socket());
    let proxy = start_rest(&format!("redis.url = \"{}\"", relay_url(&relay)), &file, "");
    let (mut simple, mut general, mut apart) =
        (LateSdk::new(&proxy), LateSdk::new(&proxy), LateSdk::new(&proxy));
    // hyper serves this connection from now on.
    general.sdk.post("/rest/get/general", "");
    general.sdk.token.clear();
    for (client, key) in [(&mut simple, "simple"), (&mut apart, "apart")] {
        client.get(key);
    }
    relay.delay(Duration::from_millis(1));
    relay.byte_at_a_time();
    let mut old = 0;
    for number in 1..=6 {
        let text = number.to_string();
        for (client, key) in [(&mut simple, "simple"), (&mut general, "general")] {
            client.set(key, &text);
            assert_eq!(client.get(key), text, "{key}");
        }
        apart.set("apart", &text);
        apart.sdk.connection = Client::connect(proxy.http());
        old += u32::from(apart.get("apart") != text);
    }
    assert!(old > 0, "no read over another connection was early enough to be old");
}

#[test]
fn read_with_a_token_goes_to_redis_in_ttl_mode() {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let line = format!("redis.url = \"{}\"\ncache.coherence = \"ttl\"", redis.url());
    let ttl = "cache.ttl = \"1h\"";
    let (writer, reader) = (start_rest(&line, &file, ttl), start_rest(&line, &file, ttl));
    let (mut to_writer, mut to_reader, mut plain) =
        (Sdk::new(&writer), Sdk::new(&reader), Sdk::new(&reader));
    to_writer.post("/rest", r#"["SET","a","0"]"#);
    assert_eq!(plain.get("a"), "0");
    to_writer.post("/rest", r#"["SET","a","1"]"#);
    to_reader.token.clone_from(&to_writer.token);
    assert_eq!(to_reader.get("a"), "1");
    // A client that has seen no write reads from memory until the entry's end.
    plain.token.clear();
    assert_eq!(plain.get("a"), "0");
    assert_eq!(plain.get("a"), "0");
}

#[test]
fn token_names_the_writes_of_all_primaries_of_a_cluster() {
    let (cluster, file) = (RedisCluster::of(3), SecretFile::new(TOKENS));
    let (writer, reader) =
        (start_rest(&cluster.settings(), &file, ""), start_rest(&cluster.settings(), &file, ""));
    let (mut to_writer, mut to_reader) = (Sdk::new(&writer), Sdk::new(&reader));
    let keys: Vec<_> = (0..3).map(|node| cluster.key_of(node, 0)).collect();
    let line = |words: String| format!("[{words}]");
    let gets: Vec<_> = keys.iter().map(|key| format!(r#"["GET","{key}"]"#)).collect();
    let gets = line(gets.join(","));
    to_reader.post("/rest/pipeline", &gets);
    for number in 0..200 {
        let sets: Vec<_> =
            keys.iter().map(|key| format!(r#"["SET","{key}","{number}"]"#)).collect();
        let (_, found) = to_writer.post("/rest/pipeline", &line(sets.join(",")));
        assert_eq!(found, Value::Array(vec![value!({"result": "OK"}); 3]));
        to_reader.token.clone_from(&to_writer.token);
        let (_, found) = to_reader.post("/rest/pipeline", &gets);
        let expected = Value::Array(vec![value!({"result": number.to_string()}); 3]);
        assert_eq!(found, expected);
        let (_, found) = to_reader.post("/rest", &format!(r#"["MGET","{}"]"#, keys.join("\",\"")));
        assert_eq!(found["result"], value!(vec![number.to_string(); 3]));
    }
}

/// `REST_PAIRS=50000` for a longer run.
#[test]
fn pairs_over_two_proxies_are_never_stale() {
    let pairs = std::env::var("REST_PAIRS").ok().and_then(|text| text.parse().ok());
    let pairs: u32 = pairs.unwrap_or(2000);
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    let line = format!("redis.url = \"{}\"", redis.url());
    let short = "rest.timeout = \"150ms\"";
    let proxies = [start_rest(&line, &file, short), start_rest(&line, &file, short)];
    for proxy in &proxies {
        proxy.expect_log("Redis");
    }
    let workers = 8;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let proxies = &proxies;
            scope.spawn(move || pairs_of(worker, pairs / workers, proxies));
        }
        let redis = &redis;
        scope.spawn(move || {
            for _ in 0..pairs.div_ceil(4000) {
                std::thread::sleep(Duration::from_millis(300));
                redis.pause();
                std::thread::sleep(Duration::from_millis(400));
                redis.resume();
            }
        });
    });
}

/// Writes a value through one proxy and reads it through the other. Some requests are cancelled,
/// and some time out.
fn pairs_of(worker: u32, pairs: u32, proxies: &[Proxy; 2]) {
    let mut sdks = [Sdk::new(&proxies[0]), Sdk::new(&proxies[1])];
    let key = format!("pair:{worker}");
    let (mut done, mut late, mut token) = (0, 0, String::new());
    while done < pairs {
        let number = done + late;
        let (to, from) = ((number % 2) as usize, (number % 3 % 2) as usize);
        if number % 25 == 0 {
            let body = format!(r#"[["ECHO","gone"],["SET","other:{worker}","{number}"]]"#);
            let mut gone = Client::connect(proxies[to].http());
            let full = [("Authorization", "Bearer full-token")];
            gone.send_raw(&request("POST", "/rest/pipeline", &full, body.as_bytes()));
        }
        // A write that timed out may come late, so the next one has another key.
        let key = format!("{key}:{late}");
        let body = format!(r#"[["SET","{key}","{number}"],["ECHO","{key}-{number}"]]"#);
        let (status, found, next) = sdks[to].post_with(&token, "/rest/pipeline", &body);
        token = next.expect("a token");
        if status != 200 {
            assert_eq!(status, 504, "{found}");
            late += 1;
            continue;
        }
        assert_eq!(found[1]["result"], value!(format!("{key}-{number}")));
        let body = format!(r#"[["GET","{key}"],["ECHO","{number}"]]"#);
        let (status, found, next) = sdks[from].post_with(&token, "/rest/pipeline", &body);
        token = next.expect("a token");
        if status != 200 {
            assert_eq!(status, 504, "{found}");
            late += 1;
            continue;
        }
        let expected = value!([{"result": number.to_string()}, {"result": number.to_string()}]);
        assert_eq!(found, expected, "{key}");
        done += 1;
    }
}
