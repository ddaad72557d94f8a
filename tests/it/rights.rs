//! Rights of the proxy's user that are taken away while its values are in memory.
//!
//! Promise: a value that the proxy's user may not read any more is served from memory for a bounded
//! time only, and no client can empty memory by reading what is forbidden.
//!
//! `cache.ttl` is an hour, so that only the loss of a right explains the end of a cached value.

use std::fs;

use crate::support::cluster::RedisCluster;
use crate::support::fault_stage::DOWN;
use crate::support::http::Client;
use crate::support::resp_client::RespClient;
use crate::support::sentinel::Watched;
use crate::support::serving::{
    assert_hit, await_metric, await_ready, cache_status, config, lines_with_message, metric, read,
    readyz, set, value,
};
use crate::support::{Proxy, RedisServer, eventually};

const LASTING: &str = "cache.ttl = \"1h\"\nredis.ping_interval = \"100ms\"\n";
const LOGIN: &str = "redis.username = \"proxy\"\nredis.password = \"word\"\n";
const SECRET: &str = "secret";
const PUBLIC: &str = "pub:a";
/// The warning about a lost right.
const LOST_RIGHT: &str = "a kept key is forbidden to the proxy's user now; the cache was emptied";
/// The line about rules that are not the same.
const OTHER_RULES: &str = "the rules of the proxy's user changed at Redis; the cache was emptied";
/// The optional right with which the proxy sees changes of its rights at once.
const GETUSER: &str = "+acl|getuser";
/// The rights for reading, with and without tracking, of one Redis and of several.
const READING: &str = "on >word ~* +get +pttl +ping +multi +exec +client|tracking \
    +client|trackinginfo +role +cluster|info +cluster|nodes";
/// The rules that leave only the public keys.
const NARROWED: [&str; 2] = ["resetkeys", "~pub:*"];
/// The metric of caches emptied because a right was lost.
const EMPTIED: &str = "invalidations_total{kind=\"rights\"}";

fn set_user(redis: &RedisServer, user: &str, rules: &[&str]) {
    redis.command(&[["ACL", "SETUSER", user].as_slice(), rules].concat());
}

/// Returns the rules of a user that may read, and these in addition.
fn reading<'a>(more: &[&'a str]) -> Vec<&'a str> {
    READING.split_ascii_whitespace().chain(more.iter().copied()).collect()
}

/// Starts a proxy that has a secret and a public value in memory.
fn keeping(rules: &[&str], more: &str) -> (Proxy, RedisServer) {
    let redis = RedisServer::start();
    set_user(&redis, "proxy", &reading(rules));
    let proxy = Proxy::start(&config(&redis.url(), &format!("{LASTING}{LOGIN}{more}")));
    await_both(&redis, &proxy);
    (proxy, redis)
}

/// Waits until the proxy has a secret and a public value in memory.
fn await_both(redis: &RedisServer, proxy: &Proxy) {
    proxy.expect_log(LOST_RIGHT);
    proxy.expect_log(DOWN);
    await_ready(proxy);
    for key in [SECRET, PUBLIC] {
        set(redis, key, key);
        await_hit(proxy, key);
    }
}

#[track_caller]
fn await_hit(proxy: &Proxy, key: &str) {
    eventually(&format!("{key} is kept"), || {
        cache_status(&read(proxy, key)).contains("; hit;").then_some(())
    });
}

/// Waits until a read of the key has this status, with and without `no-cache`.
#[track_caller]
fn await_status(proxy: &Proxy, key: &str, expected: u16) {
    eventually(&format!("{key} gets {expected}"), || {
        let no_cache = [("Cache-Control", "no-cache")];
        let current =
            Client::connect(proxy.http()).request("GET", format!("/keys/{key}"), &no_cache);
        [read(proxy, key).status, current.status].iter().all(|one| *one == expected).then_some(())
    });
}

/// Waits until no read is served because Redis rejects the login.
#[track_caller]
fn await_rejected(proxy: &Proxy) {
    await_status(proxy, SECRET, 503);
    assert_eq!(metric(proxy, "cache_entries").to_string(), "0");
    eventually("the reason", || {
        let (status, received) = readyz(proxy);
        (status == 503 && received.contains("WRONGPASS")).then_some(())
    });
}

#[track_caller]
fn assert_narrowing_is_noticed(proxy: &Proxy, redis: &RedisServer, user: &str) {
    set_user(redis, user, &NARROWED);
    await_status(proxy, SECRET, 502);
    assert_eq!(value(proxy, PUBLIC), PUBLIC);
    await_hit(proxy, PUBLIC);
    await_metric(proxy, EMPTIED, 1.0);
    let lines = || lines_with_message(proxy, LOST_RIGHT) + lines_with_message(proxy, OTHER_RULES);
    // The log follows the metric.
    eventually("the reason is in the log", || (lines() > 0).then_some(()));
    assert_eq!(lines(), 1);
}

#[test]
fn narrowed_keys_are_served_no_longer() {
    let (proxy, redis) = keeping(&[], "");
    assert_narrowing_is_noticed(&proxy, &redis, "proxy");
}

#[test]
fn kept_reply_of_narrowed_keys_ends() {
    // All reads, because not every version knows HPTTL.
    let (proxy, redis) =
        keeping(&["+@read", "+command", "+info"], "resp.listen = \"127.0.0.1:0\"\n");
    redis.command(&["HSET", "hash", "field", "value"]);
    let mut client = RespClient::connect(proxy.resp_address());
    assert_eq!(client.query(&["AUTH", "proxy", "word"]), b"+OK\r\n");
    eventually("the reply is kept", || {
        client.query(&["HGETALL", "hash"]);
        (metric(&proxy, "replies_entries") > 0.0).then_some(())
    });
    // No string of these keys is left that would be checked instead.
    redis.command(&["DEL", SECRET, PUBLIC]);
    set_user(&redis, "proxy", &NARROWED);
    eventually("the reply is refused", || {
        client.query(&["HGETALL", "hash"]).starts_with(b"-NOPERM").then_some(())
    });
    proxy.wait_for_log(|line| line.has_message(LOST_RIGHT));
}

#[test]
fn narrowed_keys_are_noticed_by_getuser() {
    let (proxy, redis) = keeping(&[GETUSER], "");
    assert_narrowing_is_noticed(&proxy, &redis, "proxy");
}

#[test]
fn narrowed_keys_are_served_no_longer_in_ttl_mode() {
    for rules in [&[][..], &[GETUSER]] {
        let (proxy, redis) = keeping(rules, "cache.coherence = \"ttl\"");
        assert_narrowing_is_noticed(&proxy, &redis, "proxy");
    }
}

#[test]
fn narrowed_default_user_is_noticed() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&config(&redis.url(), LASTING));
    await_both(&redis, &proxy);
    assert_narrowing_is_noticed(&proxy, &redis, "default");
}

#[test]
fn lost_command_is_noticed() {
    for rules in [&[][..], &[GETUSER]] {
        let (proxy, redis) = keeping(rules, "");
        set_user(&redis, "proxy", &["-get"]);
        await_status(&proxy, SECRET, 502);
        await_status(&proxy, PUBLIC, 502);
    }
}

#[test]
fn lost_command_of_kept_replies_is_noticed() {
    let (proxy, redis) =
        keeping(&["+@read", "+command", "+info"], "resp.listen = \"127.0.0.1:0\"\n");
    redis.command(&["HSET", "hash", "field", "value"]);
    redis.command(&["RPUSH", "list", "x"]);
    let mut client = RespClient::connect(proxy.resp_address());
    assert_eq!(client.query(&["AUTH", "proxy", "word"]), b"+OK\r\n");
    let reads = [["HGET", "hash", "field"].as_slice(), &["HGETALL", "hash"], &["LLEN", "list"]];
    eventually("the replies are kept", || {
        for read in reads {
            client.query(read);
        }
        (metric(&proxy, "replies_entries") > 2.0).then_some(())
    });
    redis.command(&["DEL", SECRET, PUBLIC]);
    set_user(&redis, "proxy", &["-hget", "-llen"]);
    // HGET follows from HGETALL, which stays allowed.
    for read in [reads[0], reads[2]] {
        eventually("the read is refused", || {
            client.query(read).starts_with(b"-NOPERM").then_some(())
        });
    }
    for _ in 0..3 {
        client.query(reads[1]);
        assert!(client.query(reads[0]).starts_with(b"-NOPERM"), "derived again");
    }
}

#[test]
fn disabled_user_is_served_no_longer() {
    for more in ["", "cache.coherence = \"ttl\"", "cache.stale_if_error = \"1h\""] {
        let (proxy, redis) = keeping(&[], more);
        set_user(&redis, "proxy", &["off"]);
        await_rejected(&proxy);
        set_user(&redis, "proxy", &["on"]);
        eventually("a new login", || (read(&proxy, SECRET).status == 200).then_some(()));
    }
}

#[test]
fn deleted_user_is_served_no_longer() {
    for more in ["", "cache.coherence = \"ttl\""] {
        let (proxy, redis) = keeping(&[], more);
        redis.command(&["ACL", "DELUSER", "proxy"]);
        await_rejected(&proxy);
    }
}

#[test]
fn changed_password_is_served_no_longer() {
    let (proxy, redis) = keeping(&[], "");
    set_user(&redis, "proxy", &["resetpass", ">another"]);
    await_rejected(&proxy);
}

#[test]
fn new_password_in_the_file_is_used() {
    let redis = RedisServer::start();
    set_user(&redis, "proxy", &reading(&[]));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "word").unwrap();
    let login = format!(
        "{LASTING}redis.username = \"proxy\"\nredis.password_file = \"{}\"\n",
        file.path().display()
    );
    let proxy = Proxy::start(&config(&redis.url(), &login));
    await_both(&redis, &proxy);
    set_user(&redis, "proxy", &[">another"]);
    fs::write(file.path(), "another").unwrap();
    set_user(&redis, "proxy", &["<word"]);
    eventually("a login with the new password", || {
        (lines_with_message(&proxy, "connected to Redis") == 2).then_some(())
    });
    await_hit(&proxy, SECRET);
}

#[test]
fn password_for_all_ends_open_connections() {
    let redis = RedisServer::start();
    let more = "resp.listen = \"127.0.0.1:0\"\nresp.max_connections = 100\n\
        http.max_connections = 100\n";
    let proxy = Proxy::start(&config(&redis.url(), &format!("{LASTING}{more}")));
    await_both(&redis, &proxy);
    let mut client = RespClient::connect(proxy.resp_address());
    redis.command(&["CONFIG", "SET", "requirepass", "new"]);
    eventually("a client without login gets nothing", || {
        client.reply_to_words(&["GET", SECRET]).starts_with("-NOAUTH").then_some(())
    });
    eventually("the reason", || readyz(&proxy).1.contains("NOAUTH").then_some(()));
}

#[test]
fn forbidden_read_drops_no_other_key() {
    let (proxy, redis) = keeping(&[], "");
    set_user(&redis, "proxy", &NARROWED);
    await_status(&proxy, SECRET, 502);
    await_hit(&proxy, PUBLIC);
    let emptied = metric(&proxy, EMPTIED);
    let rounds = redis.calls("pttl");
    for _ in 0..50 {
        assert_eq!(read(&proxy, "forbidden").status, 502);
    }
    eventually("a round", || (redis.calls("pttl") > rounds).then_some(()));
    assert_hit(&read(&proxy, PUBLIC));
    assert_eq!(metric(&proxy, EMPTIED).to_string(), emptied.to_string());
}

#[test]
fn narrowed_keys_are_noticed_behind_sentinels() {
    let user: Vec<_> = ["--user", "proxy"].into_iter().chain(reading(&[])).collect();
    let watched = Watched::with("", 1, &[], &user);
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    let proxy = Proxy::start(&format!("{listen}{LASTING}{LOGIN}{}", watched.settings()));
    await_both(&watched.redis[0], &proxy);
    assert_narrowing_is_noticed(&proxy, &watched.redis[0], "proxy");
}

#[test]
fn narrowed_keys_are_noticed_in_a_cluster() {
    let user: Vec<_> = ["--user", "proxy"].into_iter().chain(reading(&[])).collect();
    let cluster = RedisCluster::start(3, 0, &user);
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    let proxy = Proxy::start(&format!("{listen}{LASTING}{LOGIN}{}", cluster.settings()));
    proxy.expect_log(LOST_RIGHT);
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let keys = [0, 1, 2].map(|node| cluster.key_of(node, 0));
    for key in &keys {
        cluster.set(key, "value");
        await_hit(&proxy, key);
    }
    set_user(&cluster.nodes[1], "proxy", &NARROWED);
    await_status(&proxy, &keys[1], 502);
    for key in [&keys[0], &keys[2]] {
        assert_hit(&read(&proxy, key));
    }
    for (node, key) in cluster.nodes.iter().zip(&keys) {
        set_user(node, "proxy", &["off"]);
        eventually("a disabled user", || (read(&proxy, key).status == 503).then_some(()));
    }
}
