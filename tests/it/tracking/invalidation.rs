//! Invalidations: writes, absence, expiry and flushes.
//!
//! Promise: a change of a key by any client and any command reaches memory, and nothing else leaves
//! it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::{
    assert_comes_true, assert_metric, await_truth, invalidations, is_hit, keep, lasting, run,
    tracked,
};
use crate::support::http::{self, Client};
use crate::support::serving::{
    assert_hit, await_metric, cache_status, config, metric, proxy, read, reads,
    request_and_await_flight, set, text, value,
};
use crate::support::{Monitor, Proxy, RedisServer, Reload, eventually};

/// Preparations of the key, if not `SET K 41`, and the write after the read.
const WRITES: [(&str, &str); 38] = [
    ("", "SET K new"),
    ("", "SET K 41"),
    ("", "SET K new PX 100000"),
    ("SET K 41 PX 100000", "SET K new KEEPTTL"),
    ("", "SET K new GET"),
    ("", "DEL K"),
    ("", "UNLINK K"),
    ("", "EXPIRE K 0"),
    ("", "PEXPIRE K 50"),
    ("", "PEXPIREAT K 1"),
    ("SET K 41 PX 100000", "PERSIST K"),
    ("", "GETEX K PX 50"),
    ("SET K 41 PX 100000", "GETEX K PERSIST"),
    ("", "GETDEL K"),
    ("", "GETSET K new"),
    ("", "APPEND K 0"),
    ("", "SETRANGE K 1 x"),
    ("", "INCR K"),
    ("", "INCRBYFLOAT K 0.5"),
    ("", "SETBIT K 7 1"),
    ("", "BITFIELD K SET u8 0 65"),
    ("", "BITOP NOT K O"),
    ("", "MSET O 1 K new"),
    ("", "RENAME K O"),
    ("", "RENAME O K"),
    ("", "COPY O K REPLACE"),
    ("", "MOVE K 1"),
    ("", "RESTORE K 0 <dump> REPLACE"),
    ("", "EVAL return(redis.call('SET',KEYS[1],'new')) 1 K"),
    ("", "EVAL return(redis.call('DEL',ARGV[1])) 0 K"),
    ("", "MULTI; SET K newer; SET K new; EXEC"),
    ("", "MULTI; DEL K; SET K new; EXEC"),
    ("", "SORT L STORE K"),
    ("", "DEL K; LPUSH K element"),
    ("", "DEL K; SET K new"),
    ("", "FLUSHDB; SET K new"),
    ("", "FLUSHALL ASYNC; SET K new"),
    ("", "SELECT 1; SET K elsewhere; FLUSHDB; SELECT 0; SET K new"),
];

#[test]
fn any_write_by_any_client_is_seen() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    for (number, (before, write)) in WRITES.into_iter().enumerate() {
        // A key of its own, so that the invalidation of an earlier write does not help.
        let key = format!("key {number}");
        let bystander = format!("{key} bystander");
        keep(&redis, &proxy, &bystander, "untouched");
        let before = if before.is_empty() { "SET K 41" } else { before };
        run(&redis, &key, &format!("{before}; SET O another; RPUSH L 3 1 2"));
        assert_eq!(value(&proxy, &key), "41");
        assert_hit(&read(&proxy, &key));

        run(&redis, &key, write);
        eventually(&format!("{write} is pushed"), || (!is_hit(&read(&proxy, &key))).then_some(()));
        assert_comes_true(&redis, &proxy, &key, write);
        if !write.contains("FLUSH") {
            assert_hit(&read(&proxy, &bystander));
        }
    }
}

#[test]
fn foreign_database_write_costs_at_most_a_fetch() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    let received = || invalidations(&proxy, "key") + invalidations(&proxy, "all");
    for (number, write) in ["SET K elsewhere", "DEL K", "FLUSHDB"].into_iter().enumerate() {
        let key = format!("key {number}");
        run(&redis, &key, "SELECT 1; SET K there");
        keep(&redis, &proxy, &key, "here");
        let before = received();
        run(&redis, &key, &format!("SELECT 1; {write}"));
        eventually("Redis tells of it", || (received() > before).then_some(()));
        assert_comes_true(&redis, &proxy, &key, write);
        assert_eq!(value(&proxy, &key), "here", "{write}");
    }
}

#[test]
fn evicted_key_is_gone() {
    let redis = RedisServer::builder().arguments(&["--maxmemory-policy", "allkeys-random"]).start();
    let proxy = tracked(&redis, "cache.negative_ttl = 0");
    keep(&redis, &proxy, "key", "value");
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    eventually("the key is evicted", || {
        (redis.command(&["DBSIZE"]) == redis::Value::Int(0)).then_some(())
    });
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_comes_true(&redis, &proxy, "key", "an eviction");
    assert_eq!(read(&proxy, "key").status, 404);
}

#[test]
fn each_of_a_thousand_writes_is_seen() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    let mut connection = redis.connection();
    let mut client = Client::connect(proxy.http());
    for number in 0..1000 {
        let written = redis::cmd("SET").arg("key").arg(number).exec(&mut connection);
        assert_eq!(written, Ok(()));
        eventually("the write is seen", || {
            (text(&client.get("/keys/key")) == number.to_string()).then_some(())
        });
    }
}

#[test]
fn concurrent_writes_converge_to_redis() {
    const KEYS: usize = 50;
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
    while_reading(&proxy, &keys, || {
        thread::scope(|scope| {
            for writer in 0..3 {
                let (redis, keys) = (&redis, &keys);
                scope.spawn(move || write_each(redis, keys, &format!("by {writer}"), 40));
            }
        });
    });
    await_truth(&redis, &proxy, &keys);
}

#[test]
fn resizes_during_writes_lose_no_change() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "cache.capacity = 1000");
    let keys: Vec<String> = (0..1000).map(|key| format!("key {key}")).collect();
    while_reading(&proxy, &keys, || {
        thread::scope(|scope| {
            let writer = scope.spawn(|| write_each(&redis, &keys, "in the storm", 10));
            // There is always room for all, so that an old value that survived a resize is found.
            let mut capacities = [2000, 1500, 3000, 1000].into_iter().cycle();
            while !writer.is_finished() {
                let capacity = capacities.next().expect("there is always another");
                let more = lasting(&format!("cache.capacity = {capacity}"));
                assert_eq!(proxy.reload(&config(&redis.url(), &more)), Reload::Reloaded);
            }
        });
    });
    await_truth(&redis, &proxy, &keys);
    assert!(invalidations(&proxy, "key") > 0.0);
}

/// Calls `change` while two clients read `keys` over and over.
fn while_reading(proxy: &Proxy, keys: &[String], change: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = Client::connect(proxy.http());
                while !over.load(Relaxed) {
                    for key in keys {
                        client.get(http::key_path(key.as_bytes()));
                    }
                }
            });
        }
        change();
        over.store(true, Relaxed);
    });
}

/// Writes every key this many times.
fn write_each(redis: &RedisServer, keys: &[String], text: &str, rounds: usize) {
    let mut connection = redis.connection();
    for round in 0..rounds {
        for key in keys {
            let written =
                redis::cmd("SET").arg(key).arg(format!("{text} {round}")).exec(&mut connection);
            written.expect("Redis takes the write");
        }
    }
}

#[test]
fn absent_key_is_fetched_once() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    for _ in 0..3 {
        assert_eq!(read(&proxy, "nothing").status, 404);
    }
    assert_eq!(redis.calls("get"), 1);
    assert_eq!(reads(&proxy, "negative_hit").to_string(), "2");
    assert!(
        cache_status(&read(&proxy, "nothing"))
            .starts_with("redis-proxy; hit; detail=negative_hit; ttl=3")
    );
}

#[test]
fn created_key_is_found_by_any_command() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    for (number, write) in [
        "SET K new",
        "SET K new NX",
        "MSET K new",
        "RENAME O K",
        "COPY O K",
        "RESTORE K 0 <dump>",
        "APPEND K new",
        "INCR K",
        "SETBIT K 1 1",
        "EVAL return(redis.call('SET',KEYS[1],'new')) 1 K",
        "MULTI; SET K new; EXEC",
        "SELECT 1; SET K from-there; MOVE K 0",
        "RPUSH K element",
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key {number}");
        run(&redis, &key, "SET O another");
        assert_eq!(read(&proxy, &key).status, 404);
        let again = read(&proxy, &key);
        assert!(again.status == 404 && is_hit(&again), "{again:?}");
        run(&redis, &key, write);
        eventually(&format!("{write} is pushed"), || {
            (read(&proxy, &key).status != 404).then_some(())
        });
        assert_comes_true(&redis, &proxy, &key, write);
    }
}

#[test]
fn absent_keys_cached_for_their_ttl() {
    const NEGATIVE_TTL: Duration = Duration::from_secs(1);
    for mode in ["tracking", "ttl"] {
        let redis = RedisServer::start();
        let settings = format!("cache.coherence = \"{mode}\"\ncache.negative_ttl = \"1s\"");
        let proxy = proxy(&redis, &lasting(&settings));
        let begun = Instant::now();
        assert_eq!(read(&proxy, "nothing").status, 404);
        let answered = Instant::now();
        let mut hits = 0;
        eventually("Redis is read again", || {
            let elapsed = answered.elapsed();
            let again = read(&proxy, "nothing");
            assert_eq!(again.status, 404);
            if !is_hit(&again) {
                return Some(());
            }
            assert!(cache_status(&again).contains("hit; detail=negative_hit"), "{again:?}");
            assert!(elapsed < NEGATIVE_TTL, "kept for {elapsed:?}");
            hits += 1;
            None
        });
        assert!(begun.elapsed() >= NEGATIVE_TTL, "{:?}", begun.elapsed());
        assert_eq!(reads(&proxy, "negative_hit").to_string(), hits.to_string());
        assert_eq!(redis.calls("get"), 2);
        set(&redis, "nothing", "something");
        eventually("the key is found", || (read(&proxy, "nothing").status == 200).then_some(()));
    }
}

#[test]
fn zero_negative_ttl_caches_no_absence() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "cache.negative_ttl = 0");
    for number in 1..=3 {
        assert_eq!(read(&proxy, "nothing").status, 404);
        assert_eq!(redis.calls("get"), number);
    }
    assert_metric(&proxy, "cache_entries", 0);
}

/// Long enough for a few reads on a busy machine.
const LIFE: Duration = Duration::from_secs(2);

/// Starts a Redis that expires keys only when they are read, so that it pushes nothing on its own.
fn lazy() -> RedisServer {
    let redis = RedisServer::builder().arguments(&["--enable-debug-command", "yes"]).start();
    redis.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    redis
}

#[test]
fn value_is_not_served_past_its_key_ttl() {
    for mode in ["tracking", "ttl"] {
        let redis = lazy();
        let settings = format!("cache.coherence = \"{mode}\"\ncache.stale_if_error = \"1h\"");
        let proxy = proxy(&redis, &lasting(&settings));
        let begun = Instant::now();
        redis.command(&["SET", "brief", "value", "PX", &LIFE.as_millis().to_string()]);
        let written = Instant::now();
        let mut hits = 0;
        eventually("the key expires", || {
            let elapsed = written.elapsed();
            let response = read(&proxy, "brief");
            if response.status == 404 {
                return Some(());
            }
            // Redis counts in milliseconds.
            assert!(elapsed < LIFE + Duration::from_millis(2), "served {elapsed:?} after the SET");
            hits += u32::from(is_hit(&response));
            None
        });
        assert!(hits > 0, "it was cached during its life");
        assert!(begun.elapsed() >= LIFE);
    }
}

#[test]
fn lazily_expired_key_stays_gone() {
    let redis = lazy();
    let proxy = tracked(&redis, "");
    for number in 0..20 {
        let key = format!("key {number}");
        redis.command(&["SET", &key, "value", "PX", "20"]);
        assert!([200, 404].contains(&read(&proxy, &key).status));
        // Redis expires it within the proxy's own transaction, and pushes the invalidation there.
        eventually("the key is gone", || (read(&proxy, &key).status == 404).then_some(()));
        assert_eq!(read(&proxy, &key).status, 404);
        set(&redis, &key, "again");
        assert_comes_true(&redis, &proxy, &key, "SET");
    }
}

#[test]
fn prolonged_key_lives_on() {
    let redis = lazy();
    let proxy = tracked(&redis, "");
    redis.command(&["SET", "key", "value", "PX", &LIFE.as_millis().to_string()]);
    let written = Instant::now();
    value(&proxy, "key");
    redis.command(&["PERSIST", "key"]);
    eventually("the first TTL is over", || {
        assert_eq!(value(&proxy, "key"), "value");
        (written.elapsed() > LIFE + LIFE / 4).then_some(())
    });
    assert_hit(&read(&proxy, "key"));
}

const EVICTED: &str = "cache_evictions_total{cause=\"invalidated\"}";

#[test]
fn flush_is_one_invalidation() {
    for flush in ["FLUSHALL", "FLUSHDB"] {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        for key in ["a", "b", "c"] {
            keep(&redis, &proxy, key, "value");
        }
        redis.command(&[flush]);
        await_metric(&proxy, "invalidations_total{kind=\"all\"}", 1.0);
        assert_metric(&proxy, "cache_entries", 0);
        assert_metric(&proxy, "cache_bytes", 0);
        assert_metric(&proxy, "cache_evictions_total{cause=\"flushed\"}", 3);
        assert_metric(&proxy, EVICTED, 0);
        assert_eq!(read(&proxy, "a").status, 404, "{flush}");
    }
}

#[test]
fn each_read_key_of_a_write_is_counted() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    for key in ["a", "b", "c", "d"] {
        keep(&redis, &proxy, key, "old");
    }
    redis.command(&["MSET", "a", "new", "b", "new", "c", "new", "never read", "new"]);
    await_metric(&proxy, EVICTED, 3.0);
    assert_metric(&proxy, "invalidations_total{kind=\"key\"}", 3);
    assert_metric(&proxy, "cache_entries", 1);
    assert_hit(&read(&proxy, "d"));
    for key in ["a", "b", "c"] {
        assert_eq!(value(&proxy, key), "new");
    }
    for kind in ["all", "disconnect"] {
        assert_metric(&proxy, &format!("invalidations_total{{kind=\"{kind}\"}}"), 0);
    }
}

#[test]
fn thousand_hits_cost_redis_only_pings() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    keep(&redis, &proxy, "key", "value");
    let monitor = Monitor::start(&redis);
    let mut client = Client::connect(proxy.http());
    for _ in 0..1000 {
        assert_hit(&client.get("/keys/key"));
    }
    let commands = monitor.commands();
    // The test itself logs in, to end the monitoring.
    let known = |line: &String| line.contains("\"PING\"") || line.contains("\"AUTH\"");
    assert!(commands.iter().all(known), "{commands:#?}");
}

#[test]
fn overtaken_fetch_is_answered_not_stored() {
    let redis = RedisServer::start();
    let proxy = tracked(&redis, "");
    let mut connection = redis.connection();
    for number in 0.. {
        let key = format!("key {number}");
        set(&redis, &key, "old");
        redis.pause();
        let mut reader = request_and_await_flight(&proxy, &key, 1);
        let overtaking = redis::cmd("SET").arg(&key).arg("new").get_packed_command();
        connection.send_packed_command(&overtaking).expect("a connection to Redis");
        redis.resume();

        let answer = reader.read_response();
        assert!(["old", "new"].contains(&text(&answer).as_str()), "{answer:?}");
        connection.recv_response().expect("Redis takes the write");
        assert_comes_true(&redis, &proxy, &key, "an overtaking SET");
        // The order in which Redis runs the two is random.
        if metric(&proxy, "fetches_discarded_total") > 0.0 {
            break;
        }
        assert!(number < 200, "no fetch was ever overtaken");
    }
}

#[test]
fn tracking_connection_is_named_and_flagged() {
    let redis = RedisServer::start();
    let _proxy = tracked(&redis, "");
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap();
    let link = clients
        .lines()
        .find(|line| line.contains(" name=redis-proxy "))
        .expect("a link with its name");
    assert!(link.contains(" resp=3"), "{link}");
    let flags =
        link.split(" flags=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    assert!(flags.contains('t'), "tracking: {link}");
    assert!(flags.contains('e'), "not to be evicted: {link}");
}
