//! "The second read does not touch Redis": what is answered from memory, for how long, and what never is.
//!
//! Whether Redis was asked is told by Redis itself: its count of GETs, or what MONITOR saw. How old an answer may
//! be is told by the test's own clock.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::stage::{
    Http2, Monitor, ask, assert_hit, await_metric, behind_relay, cache_status, metric, proxy, read,
    reads, request, set, text, value,
};
use crate::support::http::{self, Client};
use crate::support::{Proxy, RedisServer, eventually};

#[test]
fn the_second_read_does_not_touch_redis() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    set(&redis, "greeting", "hello");

    let first = read(&proxy, "greeting");
    assert_eq!((first.status, text(&first)), (200, "hello".to_owned()));
    assert!(cache_status(&first).contains("fwd=miss"), "{first:?}");
    for _ in 0..5 {
        let again = read(&proxy, "greeting");
        assert_hit(&again);
        assert_eq!(text(&again), "hello");
    }
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn with_room_for_three_keys_the_least_recently_read_one_goes() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 3");
    for key in ["a", "b", "c", "d"] {
        set(&redis, key, key);
    }

    for key in ["a", "b", "c", "a", "d"] {
        assert_eq!(value(&proxy, key), key);
    }
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "3");
    assert_eq!(redis.calls("get"), 4, "a, b, c and d once each");

    for key in ["a", "c", "d"] {
        assert_hit(&read(&proxy, key));
    }
    assert_eq!(redis.calls("get"), 4, "a, c and d were still there");
    value(&proxy, "b");
    assert_eq!(redis.calls("get"), 5, "b had gone");
}

#[test]
fn the_order_of_reads_is_exact_for_every_sequence() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.capacity = 4");
    for key in 0..8 {
        set(&redis, &key.to_string(), "value");
    }
    let mut client = Client::connect(proxy.http());
    let mut model: Vec<u32> = Vec::new();
    let mut seed = 12_345_u32;
    for step in 0..400 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = (seed >> 16) % 8;
        let response = client.get(format!("/keys/{key}"));
        let expected_hit = model.contains(&key);
        let hit = cache_status(&response).contains("; hit");
        assert_eq!(hit, expected_hit, "step {step}: {key}, kept: {model:?}");
        model.retain(|&kept| kept != key);
        model.insert(0, key);
        model.truncate(4);
    }
}

#[test]
fn a_thousand_readers_of_one_cold_key_are_one_get() {
    const READERS: u32 = 1000;
    allow_open_files();
    let (redis, relay, proxy) =
        behind_relay("redis.response_timeout = \"20s\"\nredis.ping_interval = \"20s\"");
    set(&redis, "cold", "one for all");
    let monitor = Monitor::start(&redis);

    relay.stall();
    let mut readers: Vec<Client> = (0..READERS).map(|_| ask(&proxy, "cold")).collect();
    await_metric(&proxy, "connections{front_end=\"http\"}", f64::from(READERS));
    relay.resume();
    for reader in &mut readers {
        let response = reader.read_response();
        assert_eq!((response.status, text(&response)), (200, "one for all".to_owned()));
    }

    assert_eq!(redis.calls("get"), 1);
    let commands = monitor.commands();
    let gets = commands.iter().filter(|line| line.contains("\"GET\" \"cold\"")).count();
    assert_eq!(gets, 1, "{commands:#?}");
    assert_eq!(reads(&proxy, "miss").to_string(), "1");
    let others = reads(&proxy, "coalesced") + reads(&proxy, "hit");
    assert_eq!(others.to_string(), (READERS - 1).to_string());
    assert!(reads(&proxy, "coalesced") > 0.0);
}

/// A thousand connections need more descriptors than a process usually begins with.
fn allow_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit { current: maximum, maximum };
    assert!(setrlimit(Resource::Nofile, raised).is_ok());
}

#[test]
fn a_reader_who_goes_away_while_fetching_harms_nobody() {
    let (redis, relay, proxy) = behind_relay("daemon.worker_threads = 1");
    set(&redis, "key", "value");
    relay.stall();
    let leader = Client::connect(proxy.http());
    let leader = ask_with_an_answer_unread(&proxy, leader, "key");
    let mut follower = ask(&proxy, "key");
    await_arrivals(&proxy);
    drop(leader);
    await_arrivals(&proxy);
    relay.resume();

    assert_eq!(text(&follower.read_response()), "value");
    assert_hit(&read(&proxy, "key"));
    assert_eq!(redis.calls("get"), 1, "the fetch of the one who left served the others");
}

/// Asks for a key on a connection that will be reset when it is dropped, since it has an answer that is not read.
fn ask_with_an_answer_unread(proxy: &Proxy, mut client: Client, key: &str) -> Client {
    client.send_raw(&[request(""), request(key)].concat());
    await_metric(proxy, "inflight_fetches", 1.0);
    client
}

#[test]
fn a_stream_that_is_reset_while_fetching_harms_nobody() {
    let (redis, relay, proxy) = behind_relay("");
    set(&redis, "key", "value");
    relay.stall();
    let client = Http2::connect(proxy.http());
    let leader = client.send("key");
    await_metric(&proxy, "inflight_fetches", 1.0);
    let follower = client.send("key");
    // What comes later on the same connection is read later.
    assert_eq!(client.answer(client.send("")).0, 400);
    leader.abort();
    assert_eq!(client.answer(client.send("")).0, 400);
    relay.resume();

    assert_eq!(client.answer(follower), (200, "value".into()));
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn a_fetch_nobody_waits_for_any_more_still_fills_the_cache() {
    let (redis, relay, proxy) = behind_relay("");
    set(&redis, "key", "value");
    relay.stall();
    let client = Http2::connect(proxy.http());
    let reader = client.send("key");
    await_metric(&proxy, "inflight_fetches", 1.0);
    reader.abort();
    drop(client);
    await_metric(&proxy, "connections{front_end=\"http\"}", 0.0);
    relay.resume();
    await_metric(&proxy, "inflight_fetches", 0.0);
    assert_hit(&read(&proxy, "key"));
    assert_eq!(redis.calls("get"), 1);
}

#[test]
fn an_error_goes_to_all_who_waited_and_is_not_cached() {
    let (redis, relay, proxy) = behind_relay("daemon.worker_threads = 1");
    redis.command(&["LPUSH", "key", "element"]);
    relay.stall();
    let mut readers: Vec<Client> = (0..10).map(|_| ask(&proxy, "key")).collect();
    await_arrivals(&proxy);
    relay.resume();
    for reader in &mut readers {
        assert_eq!(reader.read_response().status, 409);
    }
    assert_eq!(redis.calls("get"), 1, "one question for all of them");

    redis.command(&["DEL", "key"]);
    set(&redis, "key", "a string now");
    assert_eq!(value(&proxy, "key"), "a string now");
}

/// Returns once the requests sent before have been read, for a proxy with one worker: it serves in turn.
fn await_arrivals(proxy: &Proxy) {
    assert_eq!(http::get(proxy.http(), "/keys/").status, 400);
}

#[test]
fn nothing_older_than_the_ttl_is_given() {
    const TTL: Duration = Duration::from_millis(200);
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"\ncache.ttl = \"200ms\"");
    let mut client = Client::connect(proxy.http());
    let mut connection = redis.connection();
    let mut written: Vec<Instant> = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < TTL * 5 {
        let set = redis::cmd("SET").arg("counter").arg(written.len()).exec(&mut connection);
        assert_eq!(set, Ok(()));
        written.push(Instant::now());
        let asked = Instant::now();
        let response = client.get("/keys/counter");
        let number: usize = text(&response).parse().unwrap();
        if let Some(overwritten) = written.get(number + 1) {
            let age = asked.saturating_duration_since(*overwritten);
            assert!(age < TTL, "value {number} was overwritten {age:?} before it was asked for");
        }
    }
    let gets = redis.calls("get");
    assert!((3..=6).contains(&gets), "once a TTL, not at every read: {gets}");
}

#[test]
fn a_key_is_not_given_longer_than_redis_lets_it_live() {
    const LIFE: Duration = Duration::from_millis(300);
    let redis = RedisServer::start();
    let proxy = proxy(
        &redis,
        "cache.coherence = \"ttl\"\ncache.ttl = \"60s\"\ncache.stale_if_error = \"60s\"",
    );
    redis.command(&["SET", "brief", "value", "PX", "300"]);
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
        hits += u32::from(cache_status(&response).contains("; hit"));
        None
    });
    assert!(hits > 0, "it was cached while it lived");
    assert!(written.elapsed() >= LIFE);
}

#[test]
fn that_a_key_does_not_exist_is_not_remembered_where_redis_does_not_tell_when_it_does() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"");
    assert_eq!(read(&proxy, "nothing").status, 404);
    assert_eq!(read(&proxy, "nothing").status, 404);
    assert_eq!(redis.calls("get"), 2);
    set(&redis, "nothing", "something");
    assert_eq!(value(&proxy, "nothing"), "something");
}

#[test]
fn that_a_key_does_not_exist_is_remembered_for_negative_ttl() {
    const NEGATIVE_TTL: Duration = Duration::from_millis(400);
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.negative_ttl = \"400ms\"");
    assert_eq!(read(&proxy, "nothing").status, 404);
    let again = read(&proxy, "nothing");
    assert_eq!(again.status, 404);
    assert!(cache_status(&again).contains("hit; detail=negative_hit"), "{again:?}");
    assert_eq!(redis.calls("get"), 1);
    assert_eq!(reads(&proxy, "negative_hit").to_string(), "1");

    set(&redis, "nothing", "something");
    let written = Instant::now();
    eventually("the key is found", || {
        let asked = written.elapsed();
        let found = read(&proxy, "nothing").status == 200;
        assert!(found || asked < NEGATIVE_TTL, "not found {asked:?} after it was set");
        found.then_some(())
    });
}

#[test]
fn while_redis_is_down_an_expired_value_stands_in() {
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"100ms\"\ncache.stale_if_error = \"60s\"");
    proxy.expect_log("no link to Redis");
    set(&redis, "key", "old");
    value(&proxy, "key");
    redis.stop();
    let stale = eventually("the value is stale", || {
        let response = read(&proxy, "key");
        assert_eq!((response.status, text(&response)), (200, "old".to_owned()));
        cache_status(&response).contains("ttl=-").then_some(response)
    });
    assert!(cache_status(&stale).starts_with("redis-proxy; hit; ttl=-"), "{stale:?}");
    assert!(stale.header("age").is_some());
    assert!(reads(&proxy, "stale") >= 1.0);
    assert_eq!(read(&proxy, "another").status, 503, "what was never read has no stand-in");

    redis.restart();
    set(&redis, "key", "new");
    let back = Instant::now();
    eventually("the new value", || (value(&proxy, "key") == "new").then_some(()));
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
}

#[test]
fn an_expired_value_stands_in_no_longer_than_the_grace() {
    const LIFE: Duration = Duration::from_millis(100 + 400);
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"100ms\"\ncache.stale_if_error = \"400ms\"");
    proxy.expect_log("no link to Redis");
    set(&redis, "key", "value");
    value(&proxy, "key");
    let fetched = Instant::now();
    redis.stop();
    let mut stood_in = false;
    eventually("the grace is over", || {
        let response = read(&proxy, "key");
        // A read may wait for a link before it takes the stand-in, which must be good when it is given.
        stood_in |= cache_status(&response).contains("ttl=-");
        match response.status {
            503 => Some(()),
            200 => None,
            other => panic!("status {other}"),
        }
    });
    assert!(stood_in);
    assert!(fetched.elapsed() < LIFE + Duration::from_millis(500), "{:?}", fetched.elapsed());
    assert_eq!(read(&proxy, "key").status, 503);
}

#[test]
fn without_a_grace_nothing_stands_in() {
    let mut redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"100ms\"");
    proxy.expect_log("no link to Redis");
    set(&redis, "key", "value");
    value(&proxy, "key");
    let fetched = Instant::now();
    redis.stop();
    eventually("the value is refused", || {
        let asked = fetched.elapsed();
        let status = read(&proxy, "key").status;
        assert!(status == 503 || asked < Duration::from_millis(100), "{status} after {asked:?}");
        (status == 503).then_some(())
    });
    assert_eq!(reads(&proxy, "stale").to_string(), "0");
}

#[test]
fn an_answer_of_redis_is_not_replaced_by_a_stale_value() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = \"50ms\"\ncache.stale_if_error = \"60s\"");
    set(&redis, "key", "value");
    value(&proxy, "key");
    redis.command(&["DEL", "key"]);
    redis.command(&["LPUSH", "key", "element"]);
    eventually("the list is noticed", || (read(&proxy, "key").status == 409).then_some(()));
    redis.command(&["DEL", "key"]);
    assert_eq!(read(&proxy, "key").status, 404);
}

#[test]
fn the_policy_tinylfu_serves_within_its_capacity() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.policy = \"tinylfu\"\ncache.capacity = 5");
    for number in 0..20 {
        let key = number.to_string();
        set(&redis, &key, &key);
        assert_eq!(value(&proxy, &key), key);
    }
    assert!(metric(&proxy, "cache_entries") <= 5.0);
    for _ in 0..10 {
        assert_eq!(value(&proxy, "7"), "7");
    }
    assert_hit(&read(&proxy, "7"));
}

#[test]
fn with_a_ttl_of_zero_nothing_is_kept() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.ttl = 0");
    for number in 1..=3 {
        set(&redis, "key", &number.to_string());
        assert_eq!(value(&proxy, "key"), number.to_string());
        assert_eq!(redis.calls("get"), number);
    }
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "0");
}

#[test]
fn where_redis_does_not_tell_the_value_and_its_time_to_live_are_asked_for_in_one_transaction() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "cache.coherence = \"ttl\"");
    set(&redis, "key", "value");
    let monitor = Monitor::start(&redis);
    value(&proxy, "key");
    let commands = monitor.commands();
    let multi = commands.iter().position(|line| line.contains("\"MULTI\""));
    let transaction = &commands[multi.unwrap()..];
    let client = |line: &str| line.split(['[', ']']).nth(1).map(str::to_owned);
    for (line, expected) in
        transaction.iter().zip(["\"MULTI\"", "\"GET\" \"key\"", "\"PTTL\" \"key\"", "\"EXEC\""])
    {
        assert!(line.contains(expected), "{transaction:#?}");
        assert_eq!(client(line), client(&transaction[0]));
    }
}
