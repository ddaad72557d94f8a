//! Faults of Redis: killed, frozen, slow, full, loading, demoted or replaced.
//!
//! Promise: misses fail at once or within `redis.response_timeout`, errors name the cause, and
//! reads resume by themselves.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::support::fault_stage::{
    DOWN, FaultStage, NO_REDIS, PROMPT, QUICK, UNHURRIED, VALUE, assert_prompt, query,
};
use crate::support::resp_client::{RespClient, show};
use crate::support::resp_pair::{LASTING, resp_config};
use crate::support::serving::{await_ready, metric, read, readyz, text};
use crate::support::{Proxy, RedisServer, eventually, mounts};

#[test]
fn redis_killed_fails_fast_and_recovers() {
    let mut stage = FaultStage::straight(UNHURRIED);
    let mut client = stage.connect();
    for round in 1..=3_u32 {
        stage.redis.stop();
        eventually("the loss is noticed", || (readyz(&stage.proxy).0 == 503).then_some(()));
        assert!(metric(&stage.proxy, "cache_entries") < 0.5);
        for key in ["hot", "cold"] {
            assert_prompt(&stage.over_http(key), "503");
            assert_prompt(&query(&mut client, &format!("GET {key}")), NO_REDIS);
        }
        assert_prompt(&query(&mut client, "SET hot other"), NO_REDIS);
        // Redis restarts empty, so memory has to be empty too.
        stage.redis.restart();
        let took = stage.assert_well();
        assert_eq!(stage.over_http("hot").0, "404");
        assert_eq!(query(&mut client, "GET hot").0, "$-1\\r\\n");
        assert_eq!(metric(&stage.proxy, "backend_up").to_string(), "1");
        assert_eq!(metric(&stage.proxy, "tracking_active").to_string(), "1");
        for series in ["invalidations_total{kind=\"disconnect\"}", "tracking_reconnects_total"] {
            assert_eq!(metric(&stage.proxy, series).to_string(), round.to_string(), "{series}");
        }
        stage.redis.command(&["MSET", "hot", "value", "cold", "value"]);
        eprintln!("killed and restarted empty: well again after {took:?}");
    }
}

#[test]
fn frozen_redis_blocks_at_most_response_timeout() {
    let ttl_only = QUICK.replace("\"tracking\"", "\"ttl\"");
    for (settings, is_tracked) in [(QUICK, true), (&ttl_only, false)] {
        let stage = FaultStage::start(settings);
        let mut writer = stage.connect();
        query(&mut writer, "PING");
        stage.redis.pause();
        // Without tracking, hits go on; otherwise until the lease ends.
        if !is_tracked {
            for _ in 0..3 {
                assert_prompt(&stage.over_http("hot"), "200 value");
                assert_prompt(&stage.as_client("GET hot"), VALUE);
            }
        }
        let (http, resp) = (stage.over_http("cold"), stage.as_client("GET cold"));
        let longest = Duration::from_millis(800) + PROMPT;
        assert!(["504", "503"].contains(&&*http.0) && http.1 < longest, "{http:?}");
        assert!(resp.0.starts_with(NO_REDIS) && resp.1 < longest, "{resp:?}");
        writer.send("SET hot other\r\n");
        stage.redis.resume();
        // Redis runs the command that it received while frozen.
        assert_eq!(show(&writer.answer()), "+OK\\r\\n");
        let took = stage.assert_well();
        if is_tracked {
            assert_eq!(stage.over_http("hot").0, "200 other");
        }
        eprintln!("frozen: over HTTP {http:?}, over RESP {resp:?}, well again after {took:?}");
    }
}

#[test]
fn slow_redis_does_not_slow_hits() {
    const DELAY: Duration = Duration::from_millis(500);
    let stage = FaultStage::start(LASTING);
    stage.relay.delay(DELAY);
    let mut client = stage.connect();
    // If hits waited for Redis, each would take longer than the delay.
    let fastest = |hit: &mut dyn FnMut() -> Duration| (0..5).map(|_| hit()).min();
    let over_http = fastest(&mut || stage.over_http("hot").1);
    let over_resp = fastest(&mut || query(&mut client, "GET hot").1);
    assert!(over_http < Some(DELAY) && over_resp < Some(DELAY), "{over_http:?} {over_resp:?}");
    let (http, resp) = (stage.over_http("cold"), query(&mut client, "SET cold other"));
    assert_eq!((&*http.0, &*resp.0), ("200 value", "+OK\\r\\n"));
    // The delay applies to both directions.
    assert!(http.1 >= 2 * DELAY && resp.1 >= 2 * DELAY, "{http:?} {resp:?}");
    assert_eq!(query(&mut client, "GET cold").0, "$5\\r\\nother\\r\\n");
    stage.relay.resume();
    stage.assert_well();
}

#[test]
fn redis_out_of_memory_rejects_writes_and_is_read() {
    let stage = FaultStage::start(LASTING);
    let mut client = stage.connect();
    stage.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = query(&mut client, "SET hot other");
    assert!(refused.0.starts_with("-OOM command not allowed"), "{refused:?}");
    for key in ["hot", "cold"] {
        assert_eq!(stage.over_http(key).0, "200 value");
        assert_eq!(query(&mut client, &format!("GET {key}")).0, VALUE);
    }
    stage.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    stage.assert_well();
}

#[test]
fn loading_redis_is_reported_then_read() {
    // Loading takes a millisecond for each key, and Redis replies in between.
    let slow = ["--enable-debug-command", "yes", "--key-load-delay", "1000"];
    let heard = ["--loading-process-events-interval-bytes", "1024"];
    let stage = FaultStage::before(
        RedisServer::builder().arguments(&slow).arguments(&heard).start(),
        LASTING,
    );
    stage.redis.command(&[
        "EVAL",
        "for i = 1, 600 do redis.call('SET', i, string.rep('x', 200)) end",
        "0",
    ]);
    let mut client = stage.connect();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| stage.redis.command(&["DEBUG", "RELOAD"]));
        let received = eventually("Redis says that it loads", || {
            let received = query(&mut client, "PING");
            is_loading(&received.0).then_some(received)
        });
        let http = stage.over_http("cold");
        assert_prompt(&http, "503");
        assert!(is_loading(&query(&mut client, "GET cold").0));
        let begun = Instant::now();
        loading.join().expect("it has loaded");
        eprintln!(
            "loading: over HTTP {http:?}, as a client {received:?}, for {:?} more",
            begun.elapsed()
        );
    });
    stage.assert_well();
    assert_eq!(stage.over_http("cold").0, "200 value");
}

/// Whether Redis reports that it is loading; the words differ between the kinds of Redis.
fn is_loading(received: &str) -> bool {
    received.starts_with("-LOADING ") && received.contains("is loading the dataset")
}

#[test]
fn replica_is_read_and_rejects_writes() {
    let primary = RedisServer::builder().tcp().start();
    let stage = FaultStage::start(LASTING);
    let port = primary.tcp_address().port().to_string();
    stage.redis.command(&["REPLICAOF", "127.0.0.1", &port]);
    primary.command(&["SET", "hot", "primary"]);
    eventually("the primary's value over HTTP", || {
        (stage.over_http("hot").0 == "200 primary").then_some(())
    });
    let mut client = stage.connect();
    let expected = "$7\\r\\nprimary\\r\\n";
    eventually("and as a client", || (query(&mut client, "GET hot").0 == expected).then_some(()));
    let refused = query(&mut client, "SET hot other");
    assert!(refused.0.starts_with("-READONLY"), "{refused:?}");
    assert_eq!(query(&mut client, "GET hot").0, expected);
    primary.command(&["SET", "hot", "again"]);
    eventually("the proxy learns of a write to the primary", || {
        (stage.over_http("hot").0 == "200 again").then_some(())
    });
    stage.redis.command(&["REPLICAOF", "NO", "ONE"]);
    stage.assert_well();
}

const FULL: &str = "max number of clients reached";

#[test]
fn redis_at_maxclients_is_reported() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut operator = redis.connection();
    let mut say =
        |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut operator).unwrap();
    say(&["CONFIG", "SET", "maxclients", "1"]);
    say(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("readyz has Redis's reason", || readyz(&proxy).1.contains(FULL).then_some(()));
    let line = proxy.wait_for_log(|line| line.text().contains(DOWN) && line.text().contains(FULL));
    assert_eq!(line.level(), "WARN", "the log has Redis's reason too");
    assert!(metric(&proxy, "backend_errors_total{kind=\"unavailable\"}") >= 1.0);
    let received = read(&proxy, "key");
    assert_eq!(
        (received.status, received.header("retry-after")),
        (503, Some("1")),
        "{}",
        text(&received)
    );
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.send("GET key\r\n");
    assert_eq!(show(&wire.answer()), format!("-ERR {FULL}\\r\\n"));
    say(&["CONFIG", "SET", "maxclients", "100"]);
    let begun = Instant::now();
    await_ready(&proxy);
    assert_eq!(read(&proxy, "key").status, 404);
    assert_eq!(
        RespClient::connect(proxy.resp_address()).reply_to_words(&["GET", "key"]),
        "$-1\\r\\n"
    );
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[test]
fn changed_password_is_read_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let (of_redis, of_clients) = (directory.path().join("redis"), directory.path().join("clients"));
    fs::write(&of_redis, "old").unwrap();
    fs::write(&of_clients, "front").unwrap();
    let redis = RedisServer::builder().arguments(&["--requirepass", "old"]).start();
    let files = format!(
        "redis.password_file = \"{}\"\nresp.password_file = \"{}\"\n{LASTING}",
        of_redis.display(),
        of_clients.display()
    );
    let proxy = Proxy::start(&resp_config(&redis.url(), &files));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let connect = || {
        let mut wire = RespClient::connect(proxy.resp_address());
        assert_eq!(query(&mut wire, "AUTH front").0, "+OK\\r\\n");
        wire
    };
    let mut before = connect();
    assert_eq!(query(&mut before, "SET key value").0, "+OK\\r\\n");
    redis.command(&["CONFIG", "SET", "requirepass", "new"]);
    eventually("the login is refused", || readyz(&proxy).1.contains("WRONGPASS").then_some(()));
    assert_eq!(read(&proxy, "key").status, 503);
    // An authenticated connection of a client stays valid.
    assert_eq!(query(&mut before, "GET key").0, VALUE);
    let refused = query(&mut connect(), "GET key");
    assert_prompt(
        &refused,
        "-ERR redis-proxy: upstream unavailable: Redis refused the login: WRONGPASS",
    );
    fs::write(&of_redis, "new").unwrap();
    let begun = Instant::now();
    await_ready(&proxy);
    assert_eq!(read(&proxy, "key").status, 200);
    assert_eq!(query(&mut connect(), "GET key").0, VALUE);
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[test]
fn replacement_redis_is_found_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("redis");
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    first.command(&["SET", "key", "first"]);
    second.command(&["SET", "key", "second"]);
    symlink(first.socket(), &name).unwrap();
    let proxy = Proxy::start(&resp_config(&format!("unix://{}", name.display()), LASTING));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut client = RespClient::connect(proxy.resp_address());
    assert_eq!(text(&read(&proxy, "key")), "first");
    assert_eq!(query(&mut client, "GET key").0, "$5\\r\\nfirst\\r\\n");
    fs::remove_file(&name).unwrap();
    symlink(second.socket(), &name).unwrap();
    let begun = Instant::now();
    first.stop();
    eventually("the second is read", || {
        let response = read(&proxy, "key");
        (response.status == 200 && text(&response) == "second").then_some(())
    });
    assert_eq!(query(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    let took = begun.elapsed();
    assert!(took < PROMPT, "{took:?}");
    // The values of the first Redis never return.
    for _ in 0..50 {
        assert_eq!(text(&read(&proxy, "key")), "second");
        assert_eq!(query(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    }
    eprintln!("another Redis behind the same name: read after {took:?}");
}

#[test]
fn changed_dns_address_is_resolved_after_loss() {
    let Some(namespace) = mounts::apart() else { return };
    let mut first = RedisServer::builder().tcp().start();
    let port = first.tcp_address().port();
    let elsewhere = ["--bind", "127.0.0.2", "--port", &port.to_string()];
    let second = RedisServer::builder().arguments(&elsewhere).start();
    first.command(&["SET", "key", "first"]);
    second.command(&["SET", "key", "second"]);
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    // Overwritten and not replaced, because the mount holds the file and not its name.
    let points_at =
        |address: &str| fs::write(&hosts, format!("{address} redis.example\n")).unwrap();
    points_at("127.0.0.1");
    let config = resp_config(&format!("redis://redis.example:{port}"), LASTING);
    let proxy = Proxy::builder(&config).hosts(&hosts, &namespace).start();
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut client = RespClient::connect(proxy.resp_address());
    assert_eq!(text(&read(&proxy, "key")), "first");
    assert_eq!(query(&mut client, "GET key").0, "$5\\r\\nfirst\\r\\n");

    // The name alone changes nothing while the first Redis replies.
    points_at("127.0.0.2");
    assert_eq!(text(&read(&proxy, "key")), "first");
    let begun = Instant::now();
    first.stop();
    eventually("the second is read", || {
        let response = read(&proxy, "key");
        (response.status == 200 && text(&response) == "second").then_some(())
    });
    let took = begun.elapsed();
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(query(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    // The connections of the proxy and of its client go to the other address.
    let peers: String = redis::cmd("CLIENT").arg("LIST").query(&mut second.connection()).unwrap();
    let by_name = format!("laddr=127.0.0.2:{port} ");
    assert!(peers.matches(&by_name).count() >= 1, "{peers}");
    first.restart();
    first.command(&["SET", "key", "back, and unread"]);
    for _ in 0..50 {
        assert_eq!(text(&read(&proxy, "key")), "second");
        assert_eq!(query(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    }
    eprintln!("the same name at another address: read after {took:?}");
}
