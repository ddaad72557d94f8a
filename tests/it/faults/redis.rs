//! What Redis itself can be like: gone, silent, empty, full, busy, or another one.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::DOWN;
use super::stage::{AT_ONCE, NO_REDIS, QUICK, Stage, VALUE, WELL, ask, assert_at_once};
use crate::resp::ways::{LASTING, resp_config};
use crate::resp::wire::{Wire, show};
use crate::stage::{await_ready, read, readyz, text};
use crate::support::{Proxy, RedisServer, eventually, mounts};

#[test]
fn a_redis_that_is_killed_is_refused_for_at_once_and_used_again_when_it_is_back() {
    let mut stage = Stage::straight(QUICK);
    let mut client = stage.connect();
    stage.redis.stop();
    eventually("the loss is known", || (readyz(&stage.proxy).0 == 503).then_some(()));
    for key in ["hot", "cold"] {
        assert_at_once(&stage.over_http(key), "503");
        assert_at_once(&ask(&mut client, &format!("GET {key}")), NO_REDIS);
    }
    assert_at_once(&ask(&mut client, "SET hot other"), NO_REDIS);
    // Memory is empty, as Redis is.
    stage.redis.restart();
    let took = stage.assert_well();
    assert_eq!(stage.over_http("hot").0, "404");
    assert_eq!(ask(&mut client, "GET hot").0, "$-1\\r\\n");
    eprintln!("killed and restarted empty: well again after {took:?}");
}

#[test]
fn a_redis_that_stands_still_is_waited_for_no_longer_than_the_response_timeout() {
    let stage = Stage::start(QUICK);
    let mut writer = stage.connect();
    ask(&mut writer, "PING");
    stage.redis.pause();
    // What is in memory is given for as long as the last sign of life vouches for it.
    assert_at_once(&stage.over_http("hot"), "200 value");
    assert_at_once(&stage.as_client("GET hot"), VALUE);
    let (http, resp) = (stage.over_http("cold"), stage.as_client("GET cold"));
    let longest = Duration::from_millis(800) + AT_ONCE;
    assert!(["504", "503"].contains(&&*http.0) && http.1 < longest, "{http:?}");
    assert!(resp.0.starts_with(NO_REDIS) && resp.1 < longest, "{resp:?}");
    writer.send("SET hot other\r\n");
    stage.redis.resume();
    // What was sent to it is done.
    assert_eq!(show(&writer.answer()), "+OK\\r\\n");
    let took = stage.assert_well();
    assert_eq!(stage.over_http("hot").0, "200 other");
    eprintln!("stopped: over HTTP {http:?}, as a client {resp:?}, well again after {took:?}");
}

#[test]
fn a_redis_that_is_slow_is_waited_for_and_hits_are_not_slowed() {
    const DELAY: Duration = Duration::from_millis(60);
    let stage = Stage::start(LASTING);
    stage.relay.delay(DELAY);
    let mut client = stage.connect();
    for _ in 0..3 {
        assert!(
            stage.over_http("hot").1 < DELAY && ask(&mut client, "GET hot").1 < DELAY,
            "hits wait"
        );
    }
    let (http, resp) = (stage.over_http("cold"), ask(&mut client, "SET cold other"));
    assert_eq!((&*http.0, &*resp.0), ("200 value", "+OK\\r\\n"));
    assert!(http.1 > DELAY && resp.1 > DELAY, "{http:?} {resp:?}");
    assert_eq!(ask(&mut client, "GET cold").0, "$5\\r\\nother\\r\\n");
    stage.relay.resume();
    stage.assert_well();
}

#[test]
fn a_redis_without_room_refuses_writes_in_its_own_words_and_is_read() {
    let stage = Stage::start(LASTING);
    let mut client = stage.connect();
    stage.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = ask(&mut client, "SET hot other");
    assert!(refused.0.starts_with("-OOM command not allowed"), "{refused:?}");
    for key in ["hot", "cold"] {
        assert_eq!(stage.over_http(key).0, "200 value");
        assert_eq!(ask(&mut client, &format!("GET {key}")).0, VALUE);
    }
    stage.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    stage.assert_well();
}

#[test]
fn a_redis_that_loads_its_data_says_so_and_is_read_when_it_has() {
    // A millisecond for each key, and clients are heard in between.
    let slow = ["--enable-debug-command", "yes", "--key-load-delay", "1000"];
    let heard = ["--loading-process-events-interval-bytes", "1024"];
    let stage =
        Stage::before(RedisServer::builder().arguments(&slow).arguments(&heard).start(), LASTING);
    stage.redis.command(&[
        "EVAL",
        "for i = 1, 600 do redis.call('SET', i, string.rep('x', 200)) end",
        "0",
    ]);
    let mut client = stage.connect();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| stage.redis.command(&["DEBUG", "RELOAD"]));
        let told = eventually("Redis says that it loads", || {
            let told = ask(&mut client, "PING");
            is_loading(&told.0).then_some(told)
        });
        let http = stage.over_http("cold");
        assert_at_once(&http, "503");
        assert!(is_loading(&ask(&mut client, "GET cold").0));
        let begun = Instant::now();
        loading.join().expect("it has loaded");
        eprintln!(
            "loading: over HTTP {http:?}, as a client {told:?}, for {:?} more",
            begun.elapsed()
        );
    });
    stage.assert_well();
    assert_eq!(stage.over_http("cold").0, "200 value");
}

/// In its own words, which are not the same for every kind of Redis.
fn is_loading(told: &str) -> bool {
    told.starts_with("-LOADING ") && told.contains("is loading the dataset")
}

#[test]
fn a_replica_is_read_and_refuses_writes_in_its_own_words() {
    let primary = RedisServer::builder().tcp().start();
    let stage = Stage::start(LASTING);
    let port = primary.tcp_address().port().to_string();
    stage.redis.command(&["REPLICAOF", "127.0.0.1", &port]);
    primary.command(&["SET", "hot", "primary"]);
    eventually("the primary's value over HTTP", || {
        (stage.over_http("hot").0 == "200 primary").then_some(())
    });
    let mut client = stage.connect();
    let expected = "$7\\r\\nprimary\\r\\n";
    eventually("and as a client", || (ask(&mut client, "GET hot").0 == expected).then_some(()));
    let refused = ask(&mut client, "SET hot other");
    assert!(refused.0.starts_with("-READONLY"), "{refused:?}");
    assert_eq!(ask(&mut client, "GET hot").0, expected);
    primary.command(&["SET", "hot", "again"]);
    eventually("a write to the primary is told", || {
        (stage.over_http("hot").0 == "200 again").then_some(())
    });
    stage.redis.command(&["REPLICAOF", "NO", "ONE"]);
    stage.assert_well();
}

const FULL: &str = "max number of clients reached";

#[test]
fn a_redis_that_takes_no_more_clients_says_so_to_everybody() {
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
    let told = read(&proxy, "key");
    assert_eq!((told.status, told.header("retry-after")), (503, Some("1")), "{}", text(&told));
    let mut wire = Wire::connect(proxy.resp_address());
    wire.send("GET key\r\n");
    assert_eq!(show(&wire.answer()), format!("-ERR {FULL}\\r\\n"));
    say(&["CONFIG", "SET", "maxclients", "100"]);
    let begun = Instant::now();
    await_ready(&proxy);
    assert_eq!(read(&proxy, "key").status, 404);
    assert_eq!(Wire::connect(proxy.resp_address()).told(&["GET", "key"]), "$-1\\r\\n");
    assert!(begun.elapsed() < WELL, "{:?}", begun.elapsed());
}

#[test]
fn a_password_that_is_changed_at_run_time_is_taken_from_its_file() {
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
        let mut wire = Wire::connect(proxy.resp_address());
        assert_eq!(ask(&mut wire, "AUTH front").0, "+OK\\r\\n");
        wire
    };
    let mut before = connect();
    assert_eq!(ask(&mut before, "SET key value").0, "+OK\\r\\n");
    redis.command(&["CONFIG", "SET", "requirepass", "new"]);
    // Who has logged in stays.
    assert_eq!(read(&proxy, "key").status, 200);
    assert_eq!(ask(&mut before, "GET key").0, VALUE);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("the login is refused", || readyz(&proxy).1.contains("WRONGPASS").then_some(()));
    assert_eq!(read(&proxy, "key").status, 503);
    let refused = ask(&mut connect(), "GET key");
    assert_at_once(
        &refused,
        "-ERR redis-proxy: upstream unavailable: Redis refused the login: WRONGPASS",
    );
    fs::write(&of_redis, "new").unwrap();
    let begun = Instant::now();
    await_ready(&proxy);
    assert_eq!(read(&proxy, "key").status, 200);
    assert_eq!(ask(&mut connect(), "GET key").0, VALUE);
    assert!(begun.elapsed() < WELL, "{:?}", begun.elapsed());
}

#[test]
fn another_redis_behind_the_same_name_is_found_when_the_first_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("redis");
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    first.command(&["SET", "key", "first"]);
    second.command(&["SET", "key", "second"]);
    symlink(first.socket(), &name).unwrap();
    let proxy = Proxy::start(&resp_config(&format!("unix://{}", name.display()), LASTING));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut client = Wire::connect(proxy.resp_address());
    assert_eq!(text(&read(&proxy, "key")), "first");
    assert_eq!(ask(&mut client, "GET key").0, "$5\\r\\nfirst\\r\\n");
    fs::remove_file(&name).unwrap();
    symlink(second.socket(), &name).unwrap();
    let begun = Instant::now();
    first.stop();
    eventually("the second is read", || {
        let response = read(&proxy, "key");
        (response.status == 200 && text(&response) == "second").then_some(())
    });
    assert_eq!(ask(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    let took = begun.elapsed();
    assert!(took < WELL, "{took:?}");
    // What the first had is never given again.
    for _ in 0..50 {
        assert_eq!(text(&read(&proxy, "key")), "second");
        assert_eq!(ask(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    }
    eprintln!("another Redis behind the same name: read after {took:?}");
}

#[test]
fn a_name_that_leads_to_another_address_is_looked_up_again_when_the_first_is_lost() {
    let Some(namespace) = mounts::apart() else { return };
    let mut first = RedisServer::builder().tcp().start();
    let port = first.tcp_address().port();
    let elsewhere = ["--bind", "127.0.0.2", "--port", &port.to_string()];
    let second = RedisServer::builder().arguments(&elsewhere).start();
    first.command(&["SET", "key", "first"]);
    second.command(&["SET", "key", "second"]);
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    // Written over and not replaced, since what is mounted is the file and not its name.
    let points_at =
        |address: &str| fs::write(&hosts, format!("{address} redis.example\n")).unwrap();
    points_at("127.0.0.1");
    let config = resp_config(&format!("redis://redis.example:{port}"), LASTING);
    let proxy = Proxy::builder(&config).hosts(&hosts, &namespace).start();
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut client = Wire::connect(proxy.resp_address());
    assert_eq!(text(&read(&proxy, "key")), "first");
    assert_eq!(ask(&mut client, "GET key").0, "$5\\r\\nfirst\\r\\n");

    // The name alone moves nobody: whoever answers is asked.
    points_at("127.0.0.2");
    assert_eq!(text(&read(&proxy, "key")), "first");
    let begun = Instant::now();
    first.stop();
    eventually("the second is read", || {
        let response = read(&proxy, "key");
        (response.status == 200 && text(&response) == "second").then_some(())
    });
    let took = begun.elapsed();
    assert!(took < WELL, "{took:?}");
    assert_eq!(ask(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    // By links to the other address, of the proxy and of its client.
    let peers: String = redis::cmd("CLIENT").arg("LIST").query(&mut second.connection()).unwrap();
    let by_name = format!("laddr=127.0.0.2:{port} ");
    assert!(peers.matches(&by_name).count() >= 1, "{peers}");
    first.restart();
    first.command(&["SET", "key", "back, and nobody asks"]);
    for _ in 0..50 {
        assert_eq!(text(&read(&proxy, "key")), "second");
        assert_eq!(ask(&mut client, "GET key").0, "$6\\r\\nsecond\\r\\n");
    }
    eprintln!("the same name at another address: read after {took:?}");
}
