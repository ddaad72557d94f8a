//! Verification (`[verify]`): answers from memory are compared with Redis.
//!
//! Promise: an answer that is older than Redis although nothing was pushed is found, logged and
//! counted, whatever kind of read it answers. Nothing else counts as stale. No reader waits for it,
//! and without it nothing is compared.
//!
//! `SWAPDB` changes values without a push, so it makes stale answers that are real.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]
#![cfg_attr(
    feature = "planted-faults",
    expect(
        clippy::print_stderr,
        reason = "the time until a planted fault is found is of interest"
    )
)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::cluster::RedisCluster;
use crate::support::resp_client::RespClient;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{
    await_metric, await_ready, config, linked, metric, proxy, read, set, text, value,
};
use crate::support::skip::skipped;
use crate::support::{Proxy, RedisServer, Reload, eventually, http, within};

const BASE: &str = "resp.listen = \"127.0.0.1:0\"\ncache.ttl = \"1h\"\n";
/// Every answer, as fast as they come.
const ALL: &str = "verify.sample = 1.0\nverify.max_rate = 10000\n";
const STALE: &str = "stale answer from memory";

fn verified(proxy: &Proxy, result: &str) -> f64 {
    metric(proxy, &format!("verified_total{{result=\"{result}\"}}"))
}

fn await_verified(proxy: &Proxy, result: &str, count: u32) {
    await_metric(proxy, &format!("verified_total{{result=\"{result}\"}}"), count.into());
}

fn settings(more: &str) -> String {
    format!("{BASE}{ALL}{more}")
}

fn none(count: f64) -> bool {
    count.total_cmp(&0.0).is_eq()
}

#[test]
fn every_kind_of_hit_is_compared() {
    let redis = RedisServer::start();
    let tokens = SecretFile::new("token\n");
    let rest = format!("rest.path = \"/rest\"\nrest.tokens_file = \"{}\"", tokens.name());
    let proxy = proxy(&redis, &settings(&rest));
    set(&redis, "key", "value");
    redis.command(&["HSET", "hash", "field", "one", "other", "two"]);
    redis.command(&["SADD", "set", "a", "b", "c"]);
    redis.command(&["ZADD", "zset", "1", "a", "2", "b"]);
    let mut client = RespClient::connect(proxy.resp_address());
    let (mut web, mut equal) = (http::Client::connect(proxy.http()), 0.0);
    // Each read twice: the first one fetches.
    let mut compared = |what: &str, read: &mut dyn FnMut()| {
        read();
        eventually(&format!("{what} is compared"), || {
            read();
            let now = verified(&proxy, "equal");
            let is_more = now > equal;
            equal = now;
            is_more.then_some(())
        });
    };
    compared("a value over HTTP", &mut || drop(value(&proxy, "key")));
    compared("an absent key", &mut || drop(read(&proxy, "absent")));
    compared("a value over REST", &mut || {
        let head = "GET /rest/get/key HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n";
        web.send_raw(head.as_bytes());
        assert!(text(&web.read_response()).contains("value"));
    });
    for words in [
        &["GET", "key"][..],
        &["MGET", "key", "key"],
        &["STRLEN", "key"],
        &["HGETALL", "hash"],
        &["HGET", "hash", "field"],
        &["HKEYS", "hash"],
        &["SMEMBERS", "set"],
        &["SISMEMBER", "set", "a"],
        &["SUNION", "set", "other"],
        &["ZRANGE", "zset", "0", "-1", "WITHSCORES"],
        &["LRANGE", "list", "0", "-1"],
        &["TYPE", "key"],
    ] {
        compared(&words.join(" "), &mut || drop(client.query(words)));
    }
    for result in ["stale", "unknown"] {
        assert!(none(verified(&proxy, result)), "{result}");
    }
}

#[test]
fn reload_begins_and_ends_comparisons() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, BASE);
    set(&redis, "key", "value");
    (0..100).for_each(|_| drop(value(&proxy, "key")));
    assert_eq!(redis.calls("get"), 1);
    assert_eq!(proxy.reload(&config(&redis.url(), &settings(""))), Reload::Reloaded);
    eventually("an answer is compared", || {
        value(&proxy, "key");
        (!none(verified(&proxy, "equal"))).then_some(())
    });
    assert!(redis.calls("get") > 1);
    let off = config(&redis.url(), &format!("{BASE}verify.max_rate = 5"));
    assert_eq!(proxy.reload(&off), Reload::Reloaded);
    let compared = eventually("the last comparisons are done", || {
        let before = verified(&proxy, "equal");
        thread::sleep(Duration::from_millis(50));
        (verified(&proxy, "equal").total_cmp(&before).is_eq()).then_some(before)
    });
    (0..100).for_each(|_| drop(value(&proxy, "key")));
    assert!(verified(&proxy, "equal").total_cmp(&compared).is_eq());
}

#[test]
fn rate_bounds_the_comparisons() {
    const RATE: u32 = 20;
    let redis = RedisServer::start();
    let more = format!("{BASE}verify.sample = 1.0\nverify.max_rate = {RATE}");
    let proxy = proxy(&redis, &more);
    set(&redis, "key", "value");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        value(&proxy, "key");
    }
    let compared = verified(&proxy, "equal");
    let most = begun.elapsed().as_secs_f64() * f64::from(RATE) + 2.0;
    assert!(compared > 10.0 && compared <= most, "{compared} of {most}");
}

/// A proxy that has values in memory which Redis has replaced without a push.
fn with_stale_answer(more: &str) -> (RedisServer, Proxy) {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &format!("{BASE}{more}"));
    proxy.expect_log(STALE);
    for (database, text) in [("0", "before"), ("1", "after")] {
        let mut connection = redis.connection();
        for key in ["key", "other"] {
            redis::pipe()
                .cmd("SELECT")
                .arg(database)
                .cmd("SET")
                .arg(key)
                .arg(text)
                .cmd("HSET")
                .arg(format!("{key}-hash"))
                .arg("field")
                .arg(text)
                .exec(&mut connection)
                .expect("Redis takes the commands");
        }
    }
    let mut client = RespClient::connect(proxy.resp_address());
    for key in ["key", "other"] {
        assert_eq!(value(&proxy, key), "before");
        for _ in 0..2 {
            client.query(&["HGETALL", &format!("{key}-hash")]);
        }
    }
    redis.command(&["SWAPDB", "0", "1"]);
    assert_eq!(value(&proxy, "key"), "before", "nothing was pushed");
    (redis, proxy)
}

fn begin(redis: &RedisServer, proxy: &Proxy, more: &str) {
    assert_eq!(proxy.reload(&config(&redis.url(), &settings(more))), Reload::Reloaded);
}

#[test]
fn stale_answer_drops_everything() {
    let (redis, proxy) = with_stale_answer("");
    begin(&redis, &proxy, "");
    assert_eq!(value(&proxy, "key"), "before");
    await_verified(&proxy, "stale", 1);
    assert_eq!((value(&proxy, "key"), value(&proxy, "other")), ("after".into(), "after".into()));
    let line = proxy.wait_for_log(|line| line.text().contains(STALE));
    assert_eq!(line.level(), "ERROR");
    assert!(!line.text().contains("before") && !line.text().contains("\"key\""), "{}", line.text());
    let hash = line.field("key_hash").expect("a hash");
    assert_eq!(hash, blake3::hash(b"key").to_hex()[..16]);
    for (name, part) in [
        ("kind", "value"),
        ("age", "s"),
        ("served_ago", "s"),
        ("lease_age", "s"),
        ("lease_remaining", "s"),
        ("generation", ""),
        ("last_invalidation", "unknown"),
        ("connection", "tracking began"),
        ("action", "everything dropped"),
    ] {
        let field = line.field(name).unwrap_or_else(|| panic!("no {name}: {}", line.text()));
        assert!(field.contains(part), "{name}: {field}");
    }
    let status = http::get(proxy.admin(), "/status.json");
    assert!(text(&status).contains("\"stale\":1"), "{}", text(&status));
}

#[test]
fn stale_answer_may_drop_its_key_only() {
    let (redis, proxy) = with_stale_answer("");
    begin(&redis, &proxy, "verify.on_stale = \"log\"");
    assert_eq!(value(&proxy, "key"), "before");
    await_verified(&proxy, "stale", 1);
    eventually("the value of Redis is read", || (value(&proxy, "key") == "after").then_some(()));
    let line = proxy.wait_for_log(|line| line.text().contains(STALE));
    assert_eq!(line.field("action").as_deref(), Some("key dropped"));
    assert!(none(metric(&proxy, "cache_evictions_total{cause=\"flushed\"}")));
    // The other key has its old value until it is compared too.
    assert_eq!(value(&proxy, "other"), "before");
    await_verified(&proxy, "stale", 2);
}

#[test]
fn stale_kept_reply_is_found() {
    for words in [&["HGETALL", "key-hash"][..], &["HGET", "key-hash", "field"]] {
        let (redis, proxy) = with_stale_answer("");
        let mut client = RespClient::connect(proxy.resp_address());
        // Redis has replied to the command before, which derived replies need.
        client.query(&["HGET", "none", "field"]);
        begin(&redis, &proxy, "");
        let found = client.query(words);
        assert!(found.windows(6).any(|part| part == b"before"), "{words:?}");
        await_verified(&proxy, "stale", 1);
        let line = proxy.wait_for_log(|line| line.text().contains(STALE));
        assert_eq!(line.field("kind").as_deref(), Some("reply"));
        let found = client.query(words);
        assert!(found.windows(5).any(|part| part == b"after"), "{words:?}");
    }
}

#[test]
fn ttl_mode_is_unknown() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings("cache.coherence = \"ttl\""));
    set(&redis, "key", "before");
    value(&proxy, "key");
    set(&redis, "key", "after");
    assert_eq!(value(&proxy, "key"), "before", "nothing but the TTL counts");
    await_verified(&proxy, "unknown", 1);
    assert!(none(verified(&proxy, "stale")));
}

#[test]
fn own_expiry_is_not_stale() {
    // Redis finds the end of a key late, so a read finds it first.
    let redis = RedisServer::builder().arguments(&["--hz", "1"]).start();
    let proxy = proxy(&redis, &settings(""));
    let mut client = RespClient::connect(proxy.resp_address());
    let mut connection = redis.connection();
    let mut read_expiring = || {
        let mut pipe = redis::pipe();
        for number in 0..20 {
            let time = 5 + number * 5;
            pipe.cmd("SET").arg(format!("key:{number}")).arg(number).arg("PX").arg(time);
            pipe.cmd("SADD").arg(format!("set:{number}")).arg(number);
            pipe.cmd("PEXPIRE").arg(format!("set:{number}")).arg(time);
        }
        pipe.exec(&mut connection).expect("Redis takes the commands");
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            for number in 0..20 {
                client.query(&["GET", &format!("key:{number}")]);
                client.query(&["SMEMBERS", &format!("set:{number}")]);
            }
        }
    };
    let mut rounds = 0;
    eventually("expiring keys are verified", || {
        read_expiring();
        rounds += 1;
        (rounds >= 26 && verified(&proxy, "equal") > 50.0).then_some(())
    });
    assert!(none(verified(&proxy, "stale")));
}

#[test]
fn order_of_members_is_ignored() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(""));
    // One member more than the table has places, so Redis begins to move them to a larger one.
    let members: Vec<_> = (0..8193).map(|number| format!("member:{number}")).collect();
    for member in &members {
        redis.command(&["SADD", "set", member]);
    }
    let mut client = RespClient::connect(proxy.resp_address());
    let kept = client.query(&["SMEMBERS", "set"]);
    // Each read of a member moves some.
    let before = redis.command(&["SMEMBERS", "set"]);
    let has_moved = members.iter().step_by(100).any(|member| {
        (0..20).for_each(|_| drop(redis.command(&["SISMEMBER", "set", member])));
        redis.command(&["SMEMBERS", "set"]) != before
    });
    if !has_moved {
        return skipped("this server keeps the order");
    }
    eventually("the reply is compared", || {
        assert_eq!(client.query(&["SMEMBERS", "set"]), kept);
        (!none(verified(&proxy, "equal"))).then_some(())
    });
    assert!(none(verified(&proxy, "stale")));
}

/// Reads and writes keys until `is_done` returns true. `write` writes a key.
fn read_and_write(proxy: &Proxy, write: &(dyn Fn(u32, u64) + Sync), is_done: impl Fn() -> bool) {
    const KEYS: u32 = 200;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if is_over.load(Relaxed) {
                    return;
                }
                write(u32::try_from(number * 7 % u64::from(KEYS)).expect("a key"), number);
            }
        });
        for reader in 0..2 {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut client = RespClient::connect(proxy.resp_address());
                let mut web = http::Client::connect(proxy.http());
                for number in (0..KEYS).cycle() {
                    if is_over.load(Relaxed) {
                        return;
                    }
                    let key = format!("key:{{{number}}}");
                    if reader == 0 {
                        web.get(http::key_path(key.as_bytes()));
                        continue;
                    }
                    client.query(&["GET", &key]);
                    client.query(&["HGETALL", &format!("{key}:hash")]);
                    client.query(&["HGET", &format!("{key}:hash"), "field"]);
                    client.query(&["SMEMBERS", &format!("{key}:set")]);
                }
            });
        }
        let done = within(Duration::from_secs(60), || is_done().then_some(()));
        is_over.store(true, Relaxed);
        done.expect("reads and writes are done");
    });
}

fn write_to(redis: &RedisServer) -> impl Fn(u32, u64) + Sync {
    let connection = std::sync::Mutex::new(redis.connection());
    move |key, number| {
        let key = format!("key:{{{key}}}");
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(&key).arg(number);
        pipe.cmd("HSET").arg(format!("{key}:hash")).arg("field").arg(number);
        pipe.cmd("SADD").arg(format!("{key}:set")).arg(number % 10);
        pipe.cmd("SREM").arg(format!("{key}:set")).arg((number + 1) % 10);
        pipe.exec(&mut *connection.lock().expect("a connection"))
            .expect("Redis takes the commands");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn writes_make_nothing_stale() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, &settings(""));
    read_and_write(&proxy, &write_to(&redis), || verified(&proxy, "equal") > 500.0);
    assert!(none(verified(&proxy, "stale")));
}

#[test]
fn moved_slots_make_nothing_stale() {
    let cluster = RedisCluster::of(3);
    let proxy = linked(&format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n{}\n{}",
        cluster.settings(),
        settings("")
    ));
    await_ready(&proxy);
    let writer = std::sync::Mutex::new(RespClient::connect(proxy.resp_address()));
    let write = |key: u32, number: u64| {
        let mut writer = writer.lock().expect("a client");
        let (key, number) = (format!("key:{{{key}}}"), number.to_string());
        writer.query(&["SET", &key, &number]);
        writer.query(&["HSET", &format!("{key}:hash"), "field", &number]);
        writer.query(&["SADD", &format!("{key}:set"), &number[number.len() - 1..]]);
        // Otherwise each key would change between two reads, and no read would be a hit.
        thread::sleep(Duration::from_millis(10));
    };
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for number in 0..20 {
                let slot = cluster.slot(&format!("key:{{{number}}}"));
                let from = cluster.owner(&format!("key:{{{number}}}"));
                cluster.move_slot(slot, from, (from + 1) % 3);
            }
        });
        read_and_write(&proxy, &write, || mover.is_finished() && verified(&proxy, "equal") > 50.0);
        mover.join().expect("slots have moved");
    });
    assert!(none(verified(&proxy, "stale")));
}

/// Returns whether the program has planted faults: the prefix of the variables that turn them on.
fn has_planted_faults() -> bool {
    let program = std::fs::read(env!("CARGO_BIN_EXE_redis-proxy")).expect("the program");
    let name = ["PLANTED", "FAULT_"].join("_");
    memchr::memmem::find(&program, name.as_bytes()).is_some()
}

#[test]
fn release_has_no_planted_faults() {
    assert_eq!(has_planted_faults(), cfg!(feature = "planted-faults"));
}

/// With the feature `planted-faults`: one push in a thousand is ignored.
#[cfg(feature = "planted-faults")]
#[test]
fn ignored_pushes_are_found() {
    for on_stale in ["log", "drop"] {
        let redis = RedisServer::start();
        let more = settings(&format!("verify.on_stale = \"{on_stale}\""));
        let proxy = Proxy::builder(&config(&redis.url(), &more))
            .environment("PLANTED_FAULT_IGNORED_PUSHES", "1000")
            .start();
        await_ready(&proxy);
        proxy.expect_log(STALE);
        let begun = Instant::now();
        read_and_write(&proxy, &write_to(&redis), || !none(verified(&proxy, "stale")));
        eprintln!("{on_stale}: found within {:?}", begun.elapsed());
        proxy.wait_for_log(|line| line.text().contains(STALE));
    }
}
