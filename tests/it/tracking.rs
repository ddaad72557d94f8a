//! "Fresh: Redis tells of changes": whoever changes a key, and whatever becomes of the link, what is read from memory is
//! what Redis holds.
//!
//! `cache.ttl` is an hour here, so that only what Redis told can be why a read is fresh, and a change that is missed is
//! missed for good. For how long an old value is given is told by the test's own clock, and counts from when Redis had
//! acknowledged the new one.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use redis::RedisResult;

use crate::stage::{
    FLIGHTS, Monitor, ask, ask_and_await_flight, assert_hit, await_metric, await_ready,
    cache_status, config, lines_that_say, linked, metric, proxy, read, reads, readyz, relay_url,
    set, text, value,
};
use crate::support::http::{self, Client, Response};
use crate::support::{Proxy, RedisServer, Relay, Reload, eventually};

const DOWN: &str = "no link to Redis";
/// What is said once where Redis refuses to track.
const UNTRACKED: &str = "Redis does not tell of changes";
/// What is said where Redis remembers fewer keys than are kept.
const SMALL_TABLE: &str = "tracking-table-max-keys";
const CONNECTED: &str = "connected to Redis";
const A_SECOND: Duration = Duration::from_secs(1);
/// What a change may take to be seen on a machine that has much to do.
const SOON: Duration = Duration::from_secs(3);

/// These settings, and a time to live that explains nothing.
fn lasting(more: &str) -> String {
    format!("cache.ttl = \"1h\"\n{more}")
}

/// A proxy that Redis tells of changes.
fn tracked(redis: &RedisServer, more: &str) -> Proxy {
    let proxy = proxy(redis, &lasting(more));
    assert_eq!(coherence(&proxy), "tracking");
    proxy
}

/// The same, over a line that can be made to fail.
fn tracked_over_relay(redis: &RedisServer, more: &str) -> (Relay, Proxy) {
    let relay = Relay::to_socket(redis.socket());
    let proxy = linked(&config(&relay_url(&relay), &lasting(more)));
    assert_eq!(coherence(&proxy), "tracking");
    (relay, proxy)
}

/// By what /readyz says the answers are kept true.
fn coherence(proxy: &Proxy) -> String {
    let told: serde_json::Value =
        serde_json::from_str(&readyz(proxy).1).expect("/readyz tells JSON");
    told["coherence"].as_str().expect("/readyz tells the coherence").to_owned()
}

#[track_caller]
fn await_coherence(proxy: &Proxy, expected: &str) {
    eventually(&format!("the coherence is {expected}"), || {
        (coherence(proxy) == expected).then_some(())
    });
}

/// Returns once the log tells of the link, and so of all that was wrong with it.
#[track_caller]
fn await_told_link(proxy: &Proxy) {
    proxy.wait_for_log(|line| line.says(CONNECTED));
}

fn invalidations(proxy: &Proxy, kind: &str) -> f64 {
    metric(proxy, &format!("invalidations_total{{kind=\"{kind}\"}}"))
}

/// Sees that `redis_proxy_{series}` is `expected`.
#[track_caller]
fn assert_metric(proxy: &Proxy, series: &str, expected: u64) {
    assert_eq!(metric(proxy, series).to_string(), expected.to_string(), "{series}");
}

fn is_hit(response: &Response) -> bool {
    cache_status(response).starts_with("redis-proxy; hit")
}

/// Sets `key` and has it in memory.
#[track_caller]
fn keep(redis: &RedisServer, proxy: &Proxy, key: &str, text: &str) {
    set(redis, key, text);
    eventually("the value is kept", || {
        let response = read(proxy, key);
        (is_hit(&response) && self::text(&response) == text).then_some(())
    });
}

/// What a read gives: its status, and the value if there is one.
fn given(proxy: &Proxy, key: &str) -> (u16, String) {
    let response = read(proxy, key);
    (response.status, if response.status == 200 { text(&response) } else { String::new() })
}

/// What a read has to give, by Redis's own word.
fn truth(redis: &RedisServer, key: &str) -> (u16, String) {
    let answer: RedisResult<Option<Vec<u8>>> =
        redis::cmd("GET").arg(key).query(&mut redis.connection());
    match answer {
        Ok(Some(value)) => (200, String::from_utf8_lossy(&value).into_owned()),
        Ok(None) => (404, String::new()),
        Err(error) if error.code() == Some("WRONGTYPE") => (409, String::new()),
        Err(error) => panic!("{key}: {error}"),
    }
}

/// Runs commands on one connection of somebody else. They are written as `SET K text; DEL K`, where K stands for `key`,
/// O and L for another string and a list of its own, and `<dump>` for what DUMP tells of O.
fn run(redis: &RedisServer, key: &str, commands: &str) {
    let mut connection = redis.connection();
    for command in commands.split("; ") {
        let mut words = redis::Cmd::new();
        for word in command.split(' ') {
            match word {
                "K" => words.arg(key),
                "O" => words.arg(format!("{key} other")),
                "L" => words.arg(format!("{key} list")),
                "<dump>" => {
                    let dump = redis::cmd("DUMP")
                        .arg(format!("{key} other"))
                        .query::<Vec<u8>>(&mut connection);
                    words.arg(dump.expect("Redis dumps the other key"))
                }
                word => words.arg(word),
            };
        }
        let ran = words.exec(&mut connection);
        ran.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

/// Sees that before long, and from then on, `key` is read as Redis has it.
#[track_caller]
fn assert_comes_true(redis: &RedisServer, proxy: &Proxy, key: &str, commands: &str) {
    let begun = Instant::now();
    eventually(&format!("{commands}: the read is true"), || {
        (given(proxy, key) == truth(redis, key)).then_some(())
    });
    assert!(begun.elapsed() < SOON, "{commands}: {:?}", begun.elapsed());
    assert_eq!(given(proxy, key), truth(redis, key), "{commands}");
}

mod writes {
    use super::*;

    /// What is done before the key is read, if not `SET K 41`, and the write after it.
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
    fn a_write_of_any_kind_by_anyone_is_seen() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        for (number, (before, write)) in WRITES.into_iter().enumerate() {
            // A key of its own, so that nothing that is told of an earlier write helps.
            let key = format!("key {number}");
            let bystander = format!("{key} bystander");
            keep(&redis, &proxy, &bystander, "untouched");
            let before = if before.is_empty() { "SET K 41" } else { before };
            run(&redis, &key, &format!("{before}; SET O another; RPUSH L 3 1 2"));
            assert_eq!(value(&proxy, &key), "41");
            assert_hit(&read(&proxy, &key));

            run(&redis, &key, write);
            eventually(&format!("{write} is told of"), || {
                (!is_hit(&read(&proxy, &key))).then_some(())
            });
            assert_comes_true(&redis, &proxy, &key, write);
            if !write.contains("FLUSH") {
                assert_hit(&read(&proxy, &bystander));
            }
        }
    }

    #[test]
    fn another_database_may_cost_a_fetch_but_changes_nothing() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        let told = || invalidations(&proxy, "key") + invalidations(&proxy, "all");
        for (number, write) in ["SET K elsewhere", "DEL K", "FLUSHDB"].into_iter().enumerate() {
            let key = format!("key {number}");
            run(&redis, &key, "SELECT 1; SET K there");
            keep(&redis, &proxy, &key, "here");
            let before = told();
            run(&redis, &key, &format!("SELECT 1; {write}"));
            eventually("Redis tells of it", || (told() > before).then_some(()));
            assert_comes_true(&redis, &proxy, &key, write);
            assert_eq!(value(&proxy, &key), "here", "{write}");
        }
    }

    #[test]
    fn a_key_that_redis_evicts_is_gone() {
        let redis =
            RedisServer::builder().arguments(&["--maxmemory-policy", "allkeys-random"]).start();
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
    fn each_of_a_thousand_writes_in_a_row_is_seen_within_a_second() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        let mut connection = redis.connection();
        let mut client = Client::connect(proxy.http());
        let mut worst = Duration::ZERO;
        for number in 0..1000 {
            let written = redis::cmd("SET").arg("key").arg(number).exec(&mut connection);
            assert_eq!(written, Ok(()));
            let begun = Instant::now();
            eventually("the write is seen", || {
                (text(&client.get("/keys/key")) == number.to_string()).then_some(())
            });
            worst = worst.max(begun.elapsed());
        }
        assert!(worst < A_SECOND, "{worst:?}");
    }

    #[test]
    fn writes_from_all_sides_end_in_what_redis_has() {
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
    fn resizes_in_a_storm_of_writes_lose_no_change() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "cache.capacity = 1000");
        let keys: Vec<String> = (0..1000).map(|key| format!("key {key}")).collect();
        while_reading(&proxy, &keys, || {
            thread::scope(|scope| {
                let writer = scope.spawn(|| write_each(&redis, &keys, "in the storm", 10));
                // There is always room for all, so that an old value that was carried over stays and is found.
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

    /// Writes every key so many times.
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
}

/// Sees that all keys come to be read as Redis has them, and stay so.
#[track_caller]
fn await_truth(redis: &RedisServer, proxy: &Proxy, keys: &[String]) {
    let mut connection = redis.connection();
    let truth: Vec<Option<String>> =
        redis::cmd("MGET").arg(keys).query(&mut connection).expect("Redis tells them");
    let untrue = |key: &&String, value: &Option<String>| {
        value.as_ref().is_some_and(|value| given(proxy, key).1 != *value)
    };
    for attempt in ["come true", "stay true"] {
        eventually(&format!("all keys {attempt}"), || {
            let untrue = keys.iter().zip(&truth).filter(|(key, value)| untrue(key, value)).count();
            (untrue == 0).then_some(())
        });
    }
}

mod absence {
    use super::*;

    #[test]
    fn a_key_that_does_not_exist_is_asked_for_once() {
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
    fn a_key_that_comes_to_be_is_found_however_it_does() {
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
            eventually(&format!("{write} is told of"), || {
                (read(&proxy, &key).status != 404).then_some(())
            });
            assert_comes_true(&redis, &proxy, &key, write);
        }
    }

    #[test]
    fn with_a_negative_ttl_of_zero_it_is_not_kept() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "cache.negative_ttl = 0");
        for number in 1..=3 {
            assert_eq!(read(&proxy, "nothing").status, 404);
            assert_eq!(redis.calls("get"), number);
        }
        assert_metric(&proxy, "cache_entries", 0);
    }

    #[test]
    fn a_negative_ttl_of_its_own_holds_under_tracking_too() {
        const NEGATIVE_TTL: Duration = Duration::from_millis(300);
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "cache.negative_ttl = \"300ms\"");
        let begun = Instant::now();
        assert_eq!(read(&proxy, "nothing").status, 404);
        let answered = Instant::now();
        eventually("Redis is asked again", || {
            let asked = answered.elapsed();
            let again = !is_hit(&read(&proxy, "nothing"));
            assert!(again || asked < NEGATIVE_TTL, "kept for {asked:?}");
            again.then_some(())
        });
        assert!(begun.elapsed() >= NEGATIVE_TTL, "{:?}", begun.elapsed());
        set(&redis, "nothing", "something");
        assert_comes_true(&redis, &proxy, "nothing", "SET");
    }
}

mod expiry {
    use super::*;

    const LIFE: Duration = A_SECOND;

    /// A Redis that lets no key go before it is read, so that it tells of no expiry by itself.
    fn lazy() -> RedisServer {
        let redis = RedisServer::builder().arguments(&["--enable-debug-command", "yes"]).start();
        redis.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        redis
    }

    #[test]
    fn a_value_ends_with_its_key_though_redis_tells_nothing() {
        let redis = lazy();
        let proxy = tracked(&redis, "cache.stale_if_error = \"1h\"");
        redis.command(&["SET", "brief", "value", "PX", "1000"]);
        let written = Instant::now();
        let mut hits = 0;
        eventually("the key expires", || {
            let asked = written.elapsed();
            let response = read(&proxy, "brief");
            if response.status == 404 {
                return Some(());
            }
            // Redis counts in milliseconds.
            assert!(asked < LIFE + Duration::from_millis(2), "given {asked:?} after it was set");
            hits += u32::from(is_hit(&response));
            None
        });
        assert!(hits > 0, "it was kept while it lived");
    }

    #[test]
    fn a_key_that_goes_by_being_read_is_gone_for_good() {
        let redis = lazy();
        let proxy = tracked(&redis, "");
        for number in 0..20 {
            let key = format!("key {number}");
            redis.command(&["SET", &key, "value", "PX", "20"]);
            assert!([200, 404].contains(&read(&proxy, &key).status));
            // Redis lets it go in the middle of the proxy's own transaction, and tells of it there.
            eventually("the key is gone", || (read(&proxy, &key).status == 404).then_some(()));
            assert_eq!(read(&proxy, &key).status, 404);
            set(&redis, &key, "again");
            assert_comes_true(&redis, &proxy, &key, "SET");
        }
    }

    #[test]
    fn a_key_that_is_given_a_longer_life_lives_on() {
        let redis = lazy();
        let proxy = tracked(&redis, "");
        redis.command(&["SET", "key", "value", "PX", "1000"]);
        let written = Instant::now();
        value(&proxy, "key");
        redis.command(&["PERSIST", "key"]);
        eventually("its first life is over", || {
            assert_eq!(value(&proxy, "key"), "value");
            (written.elapsed() > LIFE * 3 / 2).then_some(())
        });
        assert_hit(&read(&proxy, "key"));
    }
}

mod counts {
    use super::*;

    const EVICTED: &str = "cache_evictions_total{cause=\"invalidated\"}";

    #[test]
    fn a_flush_is_one_invalidation_and_leaves_nothing() {
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
    fn each_key_of_a_write_is_counted_if_it_was_read() {
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
    fn a_thousand_hits_cost_redis_nothing_but_pings() {
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
    fn a_fetch_overtaken_by_a_write_is_answered_and_not_kept() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        let mut connection = redis.connection();
        for number in 0.. {
            let key = format!("key {number}");
            set(&redis, &key, "old");
            redis.pause();
            let mut reader = ask_and_await_flight(&proxy, &key, 1);
            let overtaking = redis::cmd("SET").arg(&key).arg("new").get_packed_command();
            connection.send_packed_command(&overtaking).expect("a connection to Redis");
            redis.resume();

            let answer = reader.read_response();
            assert!(["old", "new"].contains(&text(&answer).as_str()), "{answer:?}");
            connection.recv_response().expect("Redis takes the write");
            assert_comes_true(&redis, &proxy, &key, "an overtaking SET");
            // Which of the two Redis serves first is chance.
            if metric(&proxy, "fetches_discarded_total") > 0.0 {
                break;
            }
            assert!(number < 200, "no fetch was ever overtaken");
        }
    }

    #[test]
    fn redis_is_told_who_is_told() {
        let redis = RedisServer::start();
        let _proxy = tracked(&redis, "");
        let clients: String =
            redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap();
        let link = clients
            .lines()
            .find(|line| line.contains(" name=redis-proxy "))
            .expect("a link with its name");
        assert!(link.contains(" resp=3"), "{link}");
        let flags = link
            .split(" flags=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .unwrap_or_default();
        assert!(flags.contains('t'), "tracking: {link}");
        assert!(flags.contains('e'), "not to be evicted: {link}");
    }
}

mod lost_links {
    use super::*;

    const RECONNECTS: &str = "tracking_reconnects_total";
    const DISCONNECTS: &str = "invalidations_total{kind=\"disconnect\"}";

    #[test]
    fn what_is_written_while_a_killed_link_is_made_anew_is_seen() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        proxy.expect_log(DOWN);
        for round in 1..=10 {
            keep(&redis, &proxy, "key", "old");
            keep(&redis, &proxy, "bystander", "untouched");
            // In one step, so that nobody can have been told.
            run(&redis, "key", "MULTI; CLIENT KILL TYPE normal; SET K new; EXEC");
            await_metric(&proxy, RECONNECTS, f64::from(round));
            assert_eq!(value(&proxy, "key"), "new");
            assert!(
                !is_hit(&read(&proxy, "bystander")),
                "what was learnt over a lost link is worth nothing"
            );
            assert_metric(&proxy, DISCONNECTS, u64::try_from(round).unwrap());
            assert_metric(&proxy, "tracking_active", 1);
        }
    }

    #[test]
    fn what_is_written_while_the_line_is_cut_is_seen() {
        let redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, "");
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        keep(&redis, &proxy, "deleted", "old");
        assert_eq!(read(&proxy, "created").status, 404);
        relay.cut();
        assert_incoherent(&proxy);
        run(&redis, "key", "SET K new; DEL deleted; SET created new");
        relay.resume();
        await_ready(&proxy);
        assert_eq!(value(&proxy, "key"), "new");
        assert_eq!(read(&proxy, "deleted").status, 404);
        assert_eq!(value(&proxy, "created"), "new");
        assert_made_anew(&proxy);
    }

    #[test]
    fn a_redis_that_comes_back_empty_is_empty() {
        let mut redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        redis.stop();
        assert_incoherent(&proxy);
        redis.restart();
        await_ready(&proxy);
        assert_eq!(read(&proxy, "key").status, 404);
        assert_made_anew(&proxy);
    }

    #[test]
    fn a_redis_that_comes_back_with_its_data_is_asked_anew() {
        // Otherwise Redis may answer before it has written to its file.
        let always = ["--appendonly", "yes", "--appendfsync", "always"];
        let mut redis = RedisServer::builder().arguments(&always).start();
        let (relay, proxy) = tracked_over_relay(&redis, "");
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        keep(&redis, &proxy, "bystander", "untouched");
        redis.stop();
        relay.cut();
        assert_incoherent(&proxy);
        redis.restart();
        assert_eq!(truth(&redis, "key"), (200, "old".to_owned()));
        set(&redis, "key", "new");
        relay.resume();
        await_ready(&proxy);
        assert_eq!(value(&proxy, "key"), "new");
        assert_eq!(value(&proxy, "bystander"), "untouched");
        assert_made_anew(&proxy);
    }

    /// Sees that nothing is given while there is no link.
    #[track_caller]
    fn assert_incoherent(proxy: &Proxy) {
        eventually("the loss is noticed", || (readyz(proxy).0 == 503).then_some(()));
        assert_eq!(coherence(proxy), "none");
        assert_metric(proxy, "tracking_active", 0);
        assert_metric(proxy, "cache_entries", 0);
        assert_eq!(read(proxy, "key").status, 503);
    }

    /// Sees that the link was lost once and made again, and is as good as the first.
    #[track_caller]
    fn assert_made_anew(proxy: &Proxy) {
        assert_eq!(coherence(proxy), "tracking");
        assert_metric(proxy, "tracking_active", 1);
        assert_metric(proxy, DISCONNECTS, 1);
        assert_metric(proxy, RECONNECTS, 1);
        read(proxy, "key");
        assert!(is_hit(&read(proxy, "key")) || read(proxy, "key").status == 404);
    }
}

mod silence {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);
    /// A link that is not given up for being silent, however soon it is doubted.
    const PATIENT: &str = "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"100ms\"\nredis.response_timeout = \"20s\"";

    /// Reads `key` until memory does not answer any more, which it may do until `TIMEOUT` after `since`. Returns the read
    /// that waits for Redis.
    #[track_caller]
    fn await_doubt(proxy: &Proxy, key: &str, old: &str, since: Instant) -> Client {
        eventually("the old value is given no more", || {
            let asked = since.elapsed();
            let mut client = ask(proxy, key);
            client.read_timeout(TIMEOUT / 3);
            match client.try_read_response() {
                Ok(response) => {
                    assert_hit(&response);
                    assert_eq!(text(&response), old);
                    assert!(asked < TIMEOUT, "given {asked:?} later");
                    None
                }
                // It waits for Redis, if it is not merely slow.
                Err(_) => (metric(proxy, FLIGHTS) > 0.0).then_some(client),
            }
        })
    }

    /// The answer to a read that has been waiting.
    #[track_caller]
    fn answer(mut client: Client) -> String {
        client.read_timeout(Duration::from_secs(10));
        text(&client.read_response())
    }

    #[test]
    fn over_a_half_open_link_an_old_value_is_given_no_longer_than_the_coherence_timeout() {
        let redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
        keep(&redis, &proxy, "key", "old");
        keep(&redis, &proxy, "bystander", "untouched");
        assert_eq!(read(&proxy, "nothing").status, 404);
        let before = redis.calls("get");

        relay.stall();
        set(&redis, "key", "new");
        let reader = await_doubt(&proxy, "key", "old", Instant::now());
        assert_eq!(coherence(&proxy), "none");
        assert_metric(&proxy, "tracking_active", 0);
        relay.resume();

        assert_eq!(answer(reader), "new");
        await_metric(&proxy, "tracking_active", 1.0);
        assert_eq!(value(&proxy, "key"), "new");
        assert_hit(&read(&proxy, "bystander"));
        assert!(is_hit(&read(&proxy, "nothing")));
        // The fetch that waited was overtaken by what Redis had told.
        let gets = redis.calls("get") - before;
        assert!((1..=2).contains(&gets), "only what was changed is asked for again: {gets}");
        assert_eq!(lines_that_say(&proxy, CONNECTED), 1, "the link was not given up");
        assert_metric(&proxy, "invalidations_total{kind=\"disconnect\"}", 0);
    }

    #[test]
    fn while_redis_stands_still_hits_go_on_for_the_coherence_timeout() {
        let redis = RedisServer::start();
        let proxy = tracked(&redis, PATIENT);
        keep(&redis, &proxy, "key", "value");
        keep(&redis, &proxy, "bystander", "untouched");
        let before = redis.calls("get");
        redis.pause();
        let reader = await_doubt(&proxy, "key", "value", Instant::now());
        redis.resume();
        assert_eq!(answer(reader), "value");
        await_metric(&proxy, "tracking_active", 1.0);
        for key in ["key", "bystander"] {
            assert_hit(&read(&proxy, key));
        }
        assert_eq!(redis.calls("get"), before + 1);
        assert_eq!(lines_that_say(&proxy, CONNECTED), 1);
    }

    #[test]
    fn hits_go_on_while_redis_answers_its_pings() {
        let redis = RedisServer::start();
        let proxy =
            tracked(&redis, "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"1h\"");
        keep(&redis, &proxy, "key", "value");
        let begun = Instant::now();
        // A machine that has much to do may answer late, which costs a fetch.
        let (mut hits, mut others) = (0, 0);
        while begun.elapsed() < TIMEOUT * 5 {
            if is_hit(&read(&proxy, "key")) { hits += 1 } else { others += 1 }
        }
        assert!(hits > others, "{hits} hits, {others} others");
    }

    #[test]
    fn a_change_told_behind_a_large_value_is_not_missed_for_longer() {
        let redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
        set(&redis, "large", &"x".repeat(1 << 20));
        keep(&redis, &proxy, "key", "old");
        // 16 KiB each 20 ms: more than a second for the large one.
        relay.delay(Duration::from_millis(20));
        let large = ask_and_await_flight(&proxy, "large", 1);
        eventually("Redis has answered", || (redis.calls("get") == 2).then_some(()));
        set(&redis, "key", "new");
        let written = Instant::now();
        let mut client = Client::connect(proxy.http());
        eventually("the new value", || {
            let asked = written.elapsed();
            let new = text(&client.get("/keys/key")) == "new";
            assert!(new || asked < TIMEOUT, "given {asked:?} later");
            new.then_some(())
        });
        assert_eq!(answer(large).len(), 1 << 20);
    }

    #[test]
    fn a_sign_of_life_proves_nothing_of_what_came_after_the_question() {
        const DELAY: Duration = Duration::from_millis(50);
        let redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, PATIENT);
        for round in 1..=8 {
            keep(&redis, &proxy, "key", "old");
            relay.delay(DELAY);
            let pings = redis.calls("ping");
            eventually("signs of life that are late", || {
                (redis.calls("ping") >= pings + 3).then_some(())
            });
            set(&redis, "key", "new");
            let written = Instant::now();
            // One that was given before the write may still pass, and what Redis tells of the write may not.
            eventually("its moment", || (written.elapsed() > DELAY * round / 6).then_some(()));
            relay.stall();
            let reader = eventually("the old value is given no more", || {
                let asked = written.elapsed();
                let mut client = ask(&proxy, "key");
                client.read_timeout(TIMEOUT / 3);
                let Ok(response) = client.try_read_response() else {
                    return (metric(&proxy, FLIGHTS) > 0.0).then_some(client);
                };
                assert!(text(&response) == "new" || asked < TIMEOUT, "given {asked:?} later");
                None
            });
            relay.resume();
            assert_eq!(answer(reader), "new");
        }
    }

    #[test]
    fn nobody_is_given_what_was_asked_for_long_before_he_came() {
        let redis = RedisServer::start();
        let (relay, proxy) =
            tracked_over_relay(&redis, &format!("{PATIENT}\ndaemon.worker_threads = 1"));
        set(&redis, "key", "old");
        relay.delay(Duration::from_millis(100));
        let mut first = ask_and_await_flight(&proxy, "key", 1);
        eventually("Redis has answered", || (redis.calls("get") == 1).then_some(()));
        // The answer is on its way, and is held there.
        relay.stall();
        set(&redis, "key", "new");
        let written = Instant::now();
        eventually("the coherence timeout is over", || {
            (written.elapsed() > TIMEOUT * 2).then_some(())
        });
        let mut late = ask(&proxy, "key");
        // One worker serves in turn, so the read has begun.
        assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
        relay.resume();
        assert_eq!(
            text(&first.read_response()),
            "old",
            "who asked before the write may be told so"
        );
        assert_eq!(text(&late.read_response()), "new");
    }

    #[test]
    fn another_coherence_timeout_holds_at_once() {
        let redis = RedisServer::start();
        let long = "cache.coherence_timeout = \"1m\"\nredis.ping_interval = \"20s\"\nredis.response_timeout = \"20s\"";
        let proxy = tracked(&redis, long);
        keep(&redis, &proxy, "key", "value");
        let short = long.replace("1m", "300ms");
        assert_eq!(proxy.reload(&config(&redis.url(), &lasting(&short))), Reload::Reloaded);
        redis.pause();
        let reader = await_doubt(&proxy, "key", "value", Instant::now());
        redis.resume();
        assert_eq!(answer(reader), "value");
    }
}

mod stand_ins {
    use super::*;

    const GRACE: &str = "cache.stale_if_error = \"5m\"";

    #[track_caller]
    fn assert_stale(proxy: &Proxy, key: &str, old: &str) {
        let response = read(proxy, key);
        assert_eq!((response.status, text(&response)), (200, old.to_owned()));
        assert!(cache_status(&response).starts_with("redis-proxy; hit; ttl=-"), "{response:?}");
    }

    #[track_caller]
    fn await_loss(proxy: &Proxy) {
        eventually("the loss is noticed", || (readyz(proxy).0 == 503).then_some(()));
    }

    #[test]
    fn old_values_stand_in_while_redis_is_gone_and_never_after() {
        let mut redis = RedisServer::start();
        let proxy = tracked(&redis, GRACE);
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        assert_eq!(read(&proxy, "nothing").status, 404);
        redis.stop();
        await_loss(&proxy);
        for number in 1..=3_u32 {
            assert_stale(&proxy, "key", "old");
            assert_eq!(reads(&proxy, "stale").to_string(), number.to_string());
        }
        assert_eq!(read(&proxy, "nothing").status, 503, "absence does not stand in");
        assert_metric(&proxy, "tracking_active", 0);
        redis.restart();
        await_ready(&proxy);
        assert_eq!(read(&proxy, "key").status, 404);
    }

    #[test]
    fn once_a_new_value_was_given_the_old_one_never_is() {
        let mut redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, GRACE);
        proxy.expect_log(DOWN);
        for round in 0..5 {
            keep(&redis, &proxy, "key", "old");
            relay.cut();
            if round % 2 == 0 {
                redis.stop();
                redis.restart();
            }
            await_loss(&proxy);
            assert_stale(&proxy, "key", "old");
            set(&redis, "key", "new");
            relay.resume();
            eventually("the new value", || (value(&proxy, "key") == "new").then_some(()));
            for _ in 0..100 {
                assert_eq!(value(&proxy, "key"), "new");
            }
        }
    }

    #[test]
    fn once_redis_is_back_the_old_value_is_not_given() {
        let redis = RedisServer::start();
        let (relay, proxy) = tracked_over_relay(&redis, GRACE);
        proxy.expect_log(DOWN);
        for _ in 0..5 {
            keep(&redis, &proxy, "key", "old");
            relay.cut();
            await_loss(&proxy);
            set(&redis, "key", "new");
            relay.resume();
            await_ready(&proxy);
            assert_eq!(value(&proxy, "key"), "new");
        }
    }

    #[test]
    fn a_value_stands_in_while_redis_is_silent() {
        let redis = RedisServer::start();
        let timeouts = "cache.coherence_timeout = \"300ms\"\nredis.ping_interval = \"100ms\"\n\
                        redis.response_timeout = \"500ms\"";
        let (relay, proxy) = tracked_over_relay(&redis, &format!("{GRACE}\n{timeouts}"));
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        relay.stall();
        await_metric(&proxy, "tracking_active", 0.0);
        assert_stale(&proxy, "key", "old");
        set(&redis, "key", "new");
        relay.resume();
        eventually("the new value", || (value(&proxy, "key") == "new").then_some(()));
    }

    #[test]
    fn without_a_grace_nothing_stands_in() {
        let mut redis = RedisServer::start();
        let proxy = tracked(&redis, "");
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        redis.stop();
        await_loss(&proxy);
        assert_eq!(read(&proxy, "key").status, 503);
        assert_metric(&proxy, "cache_entries", 0);
        assert_eq!(reads(&proxy, "stale").to_string(), "0");
    }

    #[test]
    fn the_grace_counts_from_the_loss() {
        const GRACE: Duration = Duration::from_millis(300);
        let mut redis = RedisServer::start();
        let proxy = tracked(&redis, "cache.stale_if_error = \"300ms\"");
        proxy.expect_log(DOWN);
        keep(&redis, &proxy, "key", "old");
        let fetched = Instant::now();
        eventually("the value is older than the grace", || {
            (fetched.elapsed() > GRACE).then_some(())
        });
        let stopped = Instant::now();
        redis.stop();
        // The first answer that is no hit tells that the loss had been noticed.
        let mut noticed = None;
        eventually("the grace is over", || {
            let asked = Instant::now();
            let response = read(&proxy, "key");
            if response.status == 503 {
                return Some(());
            }
            if cache_status(&response).contains("ttl=-") {
                let noticed = *noticed.get_or_insert_with(Instant::now);
                assert!(asked < noticed + GRACE, "{:?} too late", asked - noticed);
            }
            None
        });
        assert!(noticed.is_some(), "it stood in");
        assert!(stopped.elapsed() >= GRACE, "{:?}", stopped.elapsed());
    }
}

mod fallback {
    use super::*;

    const LOGIN: &str = "redis.username = \"reader\"\nredis.password = \"hunter2\"";
    const READING: [&str; 5] = [">hunter2", "~*", "+@read", "+@connection", "+@transaction"];
    const NO_TRACKING: [&str; 2] = ["-client|tracking", "-client|trackinginfo"];

    /// Gives the user rules beside those for reading.
    fn allow(redis: &RedisServer, rules: &[&str]) {
        redis.command(&[["ACL", "SETUSER", "reader", "on"].as_slice(), rules].concat());
    }

    /// A proxy whose user may read but for these.
    fn restricted(redis: &RedisServer, rules: &[&str], more: &str) -> Proxy {
        allow(redis, &[&READING, rules].concat());
        let proxy = Proxy::start(&config(&redis.url(), &lasting(&format!("{LOGIN}\n{more}"))));
        proxy.expect_log(UNTRACKED);
        proxy
    }

    /// Sees that a change is not heard of, and absence not kept.
    #[track_caller]
    fn assert_untracked(redis: &RedisServer, proxy: &Proxy) {
        await_ready(proxy);
        await_told_link(proxy);
        assert_eq!(coherence(proxy), "ttl");
        assert_metric(proxy, "tracking_active", 0);
        keep(redis, proxy, "key", "old");
        set(redis, "key", "new");
        assert_hit(&read(proxy, "key"));
        for _ in 0..2 {
            assert!(!is_hit(&read(proxy, "nothing")));
        }
    }

    fn warnings(proxy: &Proxy, part: &str) -> usize {
        proxy
            .log_lines()
            .iter()
            .filter(|line| line.is_trouble() && line.text().contains(part))
            .count()
    }

    #[test]
    fn nothing_stands_in_for_a_redis_that_answers_and_refuses_to_track() {
        let redis = RedisServer::start();
        let proxy = restricted(
            &redis,
            &[],
            "cache.coherence = \"tracking\"\ncache.stale_if_error = \"1h\"",
        );
        proxy.expect_log(DOWN);
        await_ready(&proxy);
        keep(&redis, &proxy, "key", "old");
        allow(&redis, &NO_TRACKING);
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("the refusal is noticed", || {
            readyz(&proxy).1.contains("CLIENT TRACKING").then_some(())
        });
        assert_eq!(read(&proxy, "key").status, 503);
        assert_metric(&proxy, "cache_entries", 0);
    }

    #[test]
    fn a_user_who_may_not_be_told_gets_values_as_old_as_the_ttl_and_one_warning() {
        let redis = RedisServer::start();
        let proxy = restricted(&redis, &NO_TRACKING, "");
        proxy.expect_log(DOWN);
        assert_untracked(&redis, &proxy);
        for lost in 1..=3 {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            eventually("another link", || {
                (lines_that_say(&proxy, CONNECTED) == lost + 1).then_some(())
            });
        }
        assert_eq!(text(&read(&proxy, "key")), "old", "what is bounded by the TTL outlives a link");
        assert_metric(&proxy, "invalidations_total{kind=\"disconnect\"}", 0);
        assert_metric(&proxy, "tracking_reconnects_total", 0);
        assert_eq!(warnings(&proxy, UNTRACKED), 1);
        let line = proxy.wait_for_log(|line| line.text().contains(UNTRACKED));
        let reason = line.field("reason").unwrap_or_default();
        assert!(reason.contains("CLIENT TRACKING ON") && reason.contains("NOPERM"), "{reason}");
    }

    #[test]
    fn once_redis_allows_it_the_proxy_is_told_without_a_restart() {
        let redis = RedisServer::start();
        let proxy = restricted(&redis, &NO_TRACKING, "");
        assert_untracked(&redis, &proxy);
        assert_eq!(value(&proxy, "key"), "old");
        allow(&redis, &["+client|tracking", "+client|trackinginfo"]);
        await_coherence(&proxy, "tracking");
        assert_metric(&proxy, "tracking_active", 1);
        assert_eq!(value(&proxy, "key"), "new", "what was kept before is dropped");
        keep(&redis, &proxy, "key", "newer");
        set(&redis, "key", "newest");
        assert_comes_true(&redis, &proxy, "key", "SET");
        proxy.wait_for_log(|line| line.says("Redis tells of changes now"));
        assert_eq!(lines_that_say(&proxy, CONNECTED), 1, "over the same link");
        assert_eq!(warnings(&proxy, UNTRACKED), 1);
    }

    #[test]
    fn a_right_that_is_taken_away_is_one_more_warning() {
        let redis = RedisServer::start();
        let proxy = restricted(&redis, &[], "cache.stale_if_error = \"5m\"");
        proxy.expect_log(DOWN);
        await_ready(&proxy);
        assert_eq!(coherence(&proxy), "tracking");
        keep(&redis, &proxy, "key", "old");
        allow(&redis, &NO_TRACKING);
        run(&redis, "key", "MULTI; CLIENT KILL TYPE normal; SET K new; EXEC");
        await_coherence(&proxy, "ttl");
        assert_eq!(value(&proxy, "key"), "new", "what was kept before is dropped");
        eventually("the log tells of the link", || {
            (lines_that_say(&proxy, CONNECTED) == 2).then_some(())
        });
        assert_eq!(warnings(&proxy, UNTRACKED), 1);
    }

    #[test]
    fn a_user_who_may_not_see_whether_he_is_told_is_not_relied_on() {
        let redis = RedisServer::start();
        let proxy = restricted(&redis, &["-client|trackinginfo"], "");
        await_ready(&proxy);
        await_told_link(&proxy);
        assert_eq!(coherence(&proxy), "ttl");
        assert_eq!(warnings(&proxy, "CLIENT TRACKINGINFO"), 1);
    }

    #[test]
    fn a_redis_without_hello_is_read_over_the_older_protocol_with_a_password_too() {
        for (arguments, login) in [
            (["--rename-command", "HELLO", ""].as_slice(), ""),
            (
                &["--rename-command", "HELLO", "", "--requirepass", "hunter2"],
                "redis.password = \"hunter2\"",
            ),
        ] {
            let redis = RedisServer::builder().arguments(arguments).start();
            let proxy = proxy(&redis, &lasting(login));
            proxy.expect_log(UNTRACKED);
            assert_untracked(&redis, &proxy);
            assert_eq!(warnings(&proxy, "HELLO"), 1);
        }
    }

    #[test]
    fn a_proxy_told_to_go_by_the_ttl_asks_for_nothing_else() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, &lasting("cache.coherence = \"ttl\""));
        assert_untracked(&redis, &proxy);
        for command in ["hello", "client|tracking", "client|trackinginfo", "config|get"] {
            assert_eq!(redis.calls(command), 0, "{command}");
        }
    }

    #[test]
    fn a_proxy_told_to_track_is_not_ready_until_redis_allows_it() {
        let redis = RedisServer::start();
        let proxy = restricted(&redis, &NO_TRACKING, "cache.coherence = \"tracking\"");
        proxy.expect_log(DOWN);
        set(&redis, "key", "value");
        proxy.wait_for_log(|line| line.text().contains(DOWN));
        let (status, told) = readyz(&proxy);
        assert!(status == 503 && told.contains("CLIENT TRACKING"), "{status}: {told}");
        assert_eq!(coherence(&proxy), "none");
        assert_eq!(read(&proxy, "key").status, 503);
        allow(&redis, &["+client|tracking", "+client|trackinginfo"]);
        await_ready(&proxy);
        assert_eq!(coherence(&proxy), "tracking");
        assert_eq!(value(&proxy, "key"), "value");
    }

    #[test]
    fn readyz_tells_by_what_the_answers_are_kept_true_before_there_was_a_link() {
        let mut redis = RedisServer::start();
        redis.stop();
        for (mode, expected) in [("auto", "none"), ("tracking", "none"), ("ttl", "ttl")] {
            let proxy =
                Proxy::start(&config(&redis.url(), &format!("cache.coherence = \"{mode}\"")));
            proxy.expect_log(DOWN);
            assert_eq!((readyz(&proxy).0, coherence(&proxy)), (503, expected.to_owned()), "{mode}");
            assert_metric(&proxy, "tracking_active", 0);
        }
    }
}

mod rights {
    use super::*;

    /// Just what a user needs.
    const RULES: [&str; 4] = ["+get", "+pttl", "+client|tracking", "+client|trackinginfo"];

    fn start(redis: &RedisServer, rules: &[&str]) -> Proxy {
        redis.command(
            &[["ACL", "SETUSER", "redis-proxy", "reset", "on", ">hunter2", "~*"].as_slice(), rules]
                .concat(),
        );
        let login = "redis.username = \"redis-proxy\"\nredis.password = \"hunter2\"";
        let timeout = "cache.coherence_timeout = \"300ms\"";
        Proxy::start(&config(&redis.url(), &lasting(&format!("{login}\n{timeout}"))))
    }

    #[test]
    fn four_rights_are_enough_to_be_told() {
        let redis = RedisServer::start();
        let proxy = start(&redis, &RULES);
        await_ready(&proxy);
        assert_eq!(coherence(&proxy), "tracking");
        for number in 0..100 {
            keep(&redis, &proxy, "key", &number.to_string());
        }
        // That a PING is refused proves as much as its answer.
        let begun = Instant::now();
        let mut incoherent = 0;
        while begun.elapsed() < A_SECOND {
            incoherent += u32::from(coherence(&proxy) != "tracking");
        }
        assert!(incoherent < 20, "{incoherent}");
        assert_eq!(lines_that_say(&proxy, CONNECTED), 1);
    }

    #[test]
    fn none_of_the_four_can_be_left_out() {
        for missing in RULES {
            let redis = RedisServer::start();
            let rules: Vec<&str> = RULES.into_iter().filter(|rule| *rule != missing).collect();
            let proxy = start(&redis, &rules);
            proxy.expect_log(UNTRACKED);
            await_ready(&proxy);
            set(&redis, "key", "value");
            let works = read(&proxy, "key").status == 200 && coherence(&proxy) == "tracking";
            assert!(!works, "without {missing}");
        }
    }
}

mod small_tables {
    use super::*;

    const TEN: [&str; 2] = ["--tracking-table-max-keys", "10"];

    /// The warnings so far, each with the two numbers it names.
    fn warnings(proxy: &Proxy) -> Vec<(Option<String>, Option<String>)> {
        let lines = proxy.log_lines();
        let warnings =
            lines.iter().filter(|line| line.level() == "WARN" && line.text().contains(SMALL_TABLE));
        warnings.map(|line| (line.field("capacity"), line.field("limit"))).collect()
    }

    fn named(capacity: &str) -> (Option<String>, Option<String>) {
        (Some(capacity.to_owned()), Some("10".to_owned()))
    }

    #[test]
    fn a_capacity_beyond_what_redis_remembers_is_warned_of_once() {
        let redis = RedisServer::builder().arguments(&TEN).start();
        let proxy = tracked(&redis, "cache.capacity = 11");
        proxy.expect_log(SMALL_TABLE);
        await_told_link(&proxy);
        assert_eq!(warnings(&proxy), [named("11")]);
    }

    #[test]
    fn a_capacity_that_becomes_too_large_is_warned_of_too() {
        let redis = RedisServer::builder().arguments(&TEN).start();
        let proxy = tracked(&redis, "cache.capacity = 10");
        proxy.expect_log(SMALL_TABLE);
        await_told_link(&proxy);
        assert_eq!(warnings(&proxy), []);
        for (capacity, expected) in [("50", vec![named("50")]), ("10", vec![named("50")])] {
            let more = lasting(&format!("cache.capacity = {capacity}"));
            assert_eq!(proxy.reload(&config(&redis.url(), &more)), Reload::Reloaded);
            eventually("the warning", || (warnings(&proxy) == expected).then_some(()));
        }
    }

    #[test]
    fn where_redis_does_not_tell_its_limit_there_is_no_warning() {
        let redis = RedisServer::builder().arguments(&TEN).start();
        redis.command(&["ACL", "SETUSER", "default", "-config"]);
        let proxy = tracked(&redis, "cache.capacity = 1000");
        keep(&redis, &proxy, "key", "old");
        set(&redis, "key", "new");
        assert_comes_true(&redis, &proxy, "key", "SET");
        await_told_link(&proxy);
        assert_eq!(warnings(&proxy), []);
    }

    #[test]
    fn where_redis_forgets_who_read_what_everything_stays_right() {
        let redis = RedisServer::builder().arguments(&TEN).start();
        let proxy = tracked(&redis, "");
        proxy.expect_log(SMALL_TABLE);
        let keys: Vec<String> = (0..100).map(|key| format!("key {key}")).collect();
        for text in ["old", "new", "newer"] {
            for key in &keys {
                set(&redis, key, text);
            }
            await_truth(&redis, &proxy, &keys);
        }
        eventually("the cache keeps no more than Redis remembers", || {
            (metric(&proxy, "cache_entries") <= 10.0).then_some(())
        });
    }
}
