//! Sentinels.
//!
//! Promise: the proxy follows the primary that the sentinels name, and serves no value from before
//! a failover after it.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, cmd};

use crate::support::fault_stage::{DOWN, PROMPT};
use crate::support::resp_client::{RespClient, command};
use crate::support::sentinel::{MASTER, Watched, information};
use crate::support::serving::{
    assert_hit, await_metric, await_ready, metric, read, readyz, set, text, value,
};
use crate::support::{Proxy, RedisServer, eventually, within};

const SILENT: &str = "a sentinel does not reply";
/// Nothing expires by age, and failures are noticed quickly.
const SETTINGS: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    redis.ping_interval = \"100ms\"\n\
                        redis.connect_timeout = \"1s\"\n";
/// The longest time in which the proxy follows a failover.
const FOLLOWS: Duration = Duration::from_secs(10);

fn config(watched: &Watched, more: &str) -> String {
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
        resp.listen = \"127.0.0.1:0\"\n";
    format!(
        "{listen}resp.max_connections = 100\ndaemon.worker_threads = 1\n{SETTINGS}{}{more}",
        watched.settings()
    )
}

fn started(watched: &Watched) -> Proxy {
    let proxy = Proxy::start(&config(watched, ""));
    proxy.expect_log(DOWN);
    // Possible on a busy machine.
    proxy.expect_log(SILENT);
    await_ready(&proxy);
    proxy
}

/// Connects a Redis client through the proxy.
fn client(proxy: &Proxy) -> Connection {
    let client =
        redis::Client::open(format!("redis://{}", proxy.resp_address())).expect("an address");
    client.get_connection().expect("the proxy takes a client")
}

/// Waits until the key has this value through the proxy; returns the time until then.
#[track_caller]
fn await_value(proxy: &Proxy, key: &str, expected: &str) -> Duration {
    let begun = Instant::now();
    let seen = within(FOLLOWS, || {
        let response = read(proxy, key);
        (response.status == 200 && text(&response) == expected).then_some(())
    });
    assert!(seen.is_some(), "{key} is not {expected}, /readyz: {:?}", readyz(proxy));
    begun.elapsed()
}

/// Returns the number of reads from a Redis.
fn reads_of(redis: &RedisServer) -> u64 {
    redis.calls("get")
}

/// Kills the connections of the proxy and no others.
fn kill_links(redis: &RedisServer) {
    let mut connection = redis.connection();
    let clients: String =
        cmd("CLIENT").arg("LIST").query(&mut connection).expect("redis-server lists its clients");
    let links = clients.lines().filter(|line| line.contains(" name=redis-proxy "));
    for id in links.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()) {
        // The connection may be gone already.
        let _: RedisResult<u64> =
            cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut connection);
    }
}

/// Makes the first Redis a replica, as the sentinels will in the end.
fn demote(watched: &Watched) {
    let port = watched.address(1).port().to_string();
    watched.redis[0].command(&["REPLICAOF", "127.0.0.1", &port]);
}

/// Returns whether this node is reported as up, or nothing without a series for it.
fn is_up(proxy: &Proxy, role: &str, node: impl std::fmt::Display) -> Option<bool> {
    let value = metric(proxy, &format!("node_up{{node=\"{node}\",role=\"{role}\"}}"));
    (!value.is_nan()).then_some(value > 0.0)
}

#[test]
fn reads_go_to_the_named_primary() {
    let watched = Watched::by(1);
    let proxy = started(&watched);
    set(&watched.redis[0], "key", "value");
    assert_eq!(value(&proxy, "key"), "value");
    assert_hit(&read(&proxy, "key"));
    set(&watched.redis[0], "key", "another");
    await_value(&proxy, "key", "another");
    assert_eq!(reads_of(&watched.redis[1]), 0);
    let (status, received) = readyz(&proxy);
    assert_eq!(status, 200);
    let received: serde_json::Value = serde_json::from_str(&received).expect("JSON");
    let (redis, sentinel) = (watched.address(0), watched.sentinels[0].address());
    let expected = serde_json::json!([
        { "node": redis.to_string(), "role": "redis", "up": true },
        { "node": sentinel.to_string(), "role": "sentinel", "up": true },
    ]);
    assert_eq!(received["nodes"], expected);
    assert_eq!(is_up(&proxy, "redis", redis), Some(true));
    assert_eq!(is_up(&proxy, "sentinel", sentinel), Some(true));
}

#[test]
fn failover_is_followed_and_drops_old_values() {
    let watched = Watched::by(1);
    let proxy = started(&watched);
    set(&watched.redis[0], "kept", "before");
    assert_eq!(value(&proxy, "kept"), "before");
    let mut holder = client(&proxy);
    cmd("SELECT").arg(1).exec(&mut holder).expect("a database");
    let mut new = client(&proxy);
    cmd("SET").arg("written").arg("by a client").exec(&mut new).expect("a write");

    watched.fail_over();
    set(&watched.redis[1], "kept", "after");
    await_value(&proxy, "kept", "after");
    assert_hit(&read(&proxy, "kept"));
    // The session state of a client is lost with its connection, so the client's connection ends
    // too.
    let cut: RedisResult<()> = cmd("GET").arg("written").exec(&mut holder);
    assert!(cut.expect_err("a connection that has ended").is_io_error());
    let mut writer = client(&proxy);
    cmd("SET")
        .arg("written")
        .arg("afterwards")
        .exec(&mut writer)
        .expect("a write to the new primary");
    assert_eq!(await_value(&proxy, "written", "afterwards").as_secs(), 0);
    assert!(metric(&proxy, "invalidations_total{kind=\"disconnect\"}") >= 1.0);
    assert_eq!(is_up(&proxy, "redis", watched.address(1)), Some(true));
    assert_eq!(is_up(&proxy, "redis", watched.address(0)), None, "the old node is still reported");
}

#[test]
fn demoted_primary_acting_as_one_is_never_read() {
    let watched = Watched::by(1);
    let proxy = started(&watched);
    set(&watched.redis[0], "key", "before");
    assert_eq!(value(&proxy, "key"), "before");
    let mut holder = client(&proxy);
    cmd("SELECT").arg(1).exec(&mut holder).expect("a database");
    watched.make_stubborn();

    watched.fail_over();
    set(&watched.redis[1], "key", "after");
    await_value(&proxy, "key", "after");
    assert!(information(&watched.redis[0]).contains("role:master"), "the test is no test any more");
    // The old primary did not close it.
    let cut: RedisResult<()> = cmd("SET").arg("lost").arg("write").exec(&mut holder);
    assert!(cut.expect_err("a connection that has ended").is_io_error());
    let exists: u64 =
        cmd("DBSIZE").query(&mut watched.redis[0].connection()).expect("redis-server answers");
    assert_eq!(exists, 1, "a write went to the old primary");
    let before = reads_of(&watched.redis[0]);
    for number in 0..20 {
        let key = format!("new/{number}");
        set(&watched.redis[1], &key, "new");
        assert_eq!(value(&proxy, &key), "new");
        // A new link each time.
        kill_links(&watched.redis[1]);
        await_value(&proxy, "key", "after");
    }
    assert_eq!(reads_of(&watched.redis[0]), before);
}

#[test]
fn killed_primary_returns_as_a_replica() {
    let mut watched = Watched::by(3);
    let proxy = started(&watched);
    set(&watched.redis[0], "key", "before");
    assert_eq!(value(&proxy, "key"), "before");
    let acknowledged: u64 =
        cmd("WAIT").arg(1).arg(5000).query(&mut watched.redis[0].connection()).expect("WAIT");
    assert_eq!(acknowledged, 1);
    let killed = Instant::now();
    watched.redis[0].stop();
    watched.await_failover(1);
    let elected = killed.elapsed();
    await_value(&proxy, "key", "before");
    note(&format!("killed: elected after {elected:?}, read again after {:?}", killed.elapsed()));
    set(&watched.redis[1], "key", "after");
    await_value(&proxy, "key", "after");

    // It reports itself as a primary until the sentinels demote it.
    watched.redis[0].restart();
    set(&watched.redis[1], "later", "value");
    assert_eq!(value(&proxy, "later"), "value");
    demote(&watched);
    kill_links(&watched.redis[1]);
    await_value(&proxy, "key", "after");
    assert_eq!(reads_of(&watched.redis[0]), 0);
}

#[test]
fn isolated_primary_is_not_read_after_return() {
    let watched = Watched::over_relays(1);
    let proxy = started(&watched);
    set(&watched.redis[0], "key", "before");
    assert_eq!(value(&proxy, "key"), "before");
    watched.relays[0].stall();
    watched.await_failover(1);
    set(&watched.redis[1], "key", "after");
    await_value(&proxy, "key", "after");
    watched.relays[0].resume();
    assert!(information(&watched.redis[0]).contains("role:master"), "the test is no test any more");
    for number in 0..5 {
        let key = format!("new/{number}");
        set(&watched.redis[1], &key, "only there");
        // The sentinels close the connections to a promoted replica, so a read may fail. It never
        // comes from the other Redis, which does not have the key.
        let found = eventually("the key is read", || {
            let response = read(&proxy, &key);
            (response.status != 503).then(|| (response.status, text(&response)))
        });
        assert_eq!(found, (200, "only there".to_owned()));
        kill_links(&watched.redis[1]);
        await_value(&proxy, "key", "after");
    }
    demote(&watched);
    await_value(&proxy, "key", "after");
}

#[test]
fn new_link_needs_a_sentinel_old_one_does_not() {
    let mut watched = Watched::by(3);
    let proxy = started(&watched);
    proxy.expect_log(SILENT);
    set(&watched.redis[0], "key", "value");
    assert_eq!(value(&proxy, "key"), "value");
    watched.sentinels[0].stop();
    watched.sentinels[1].pause();
    kill_links(&watched.redis[0]);
    await_value(&proxy, "key", "value");
    watched.sentinels[1].stop();
    watched.sentinels[2].stop();
    for sentinel in &watched.sentinels {
        eventually("its silence is logged", || {
            (is_up(&proxy, "sentinel", sentinel.address()) == Some(false)).then_some(())
        });
    }
    set(&watched.redis[0], "key", "still read");
    await_value(&proxy, "key", "still read");
    // No sentinel can report a demotion meanwhile.
    kill_links(&watched.redis[0]);
    eventually("the reason", || {
        let (status, received) = readyz(&proxy);
        (status == 503 && received.contains("no sentinel answers")).then_some(())
    });
    watched.sentinels[2].restart();
    await_value(&proxy, "key", "still read");
}

#[test]
fn attempts_at_hung_primary_end_at_failover() {
    // The sentinel fails over only when the test wants it to.
    let patient = "sentinel down-after-milliseconds main 60000";
    let reader: Vec<_> = "--user proxy on >word ~* &* +@all".split(' ').collect();
    let watched = Watched::with("", 1, &[patient], &reader);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "word").expect("a password");
    let slow = "redis.connect_timeout = \"25s\"\nredis.reconnect_delay_max = \"25s\"\n\
        redis.response_timeout = \"500ms\"\nredis.username = \"proxy\"\n\
        redis.password = \"word\"\nresp.username = \"proxy\"\n";
    let login = format!("{slow}resp.password_file = \"{}\"\n", file.path().display());
    let proxy =
        Proxy::start(&config(&watched, &login).replace("redis.connect_timeout = \"1s\"\n", ""));
    proxy.expect_log(DOWN);
    proxy.expect_log(SILENT);
    await_ready(&proxy);
    set(&watched.redis[0], "key", "value");
    let copied = watched.redis[0].command(&["WAIT", "1", "10000"]);
    assert_eq!(copied, redis::Value::Int(1), "the replica has the value");
    assert_eq!(value(&proxy, "key"), "value");
    watched.redis[0].pause();
    eventually("the silent link is given up", || (readyz(&proxy).0 == 503).then_some(()));
    // The proxy logs in for the client, at the primary that hangs.
    let mut client = RespClient::connect(proxy.resp_address());
    client.send([command(&["AUTH", "proxy", "word"]), command(&["SET", "by", "client"])].concat());
    watched.fail_over();
    let switched = Instant::now();
    await_value(&proxy, "key", "value");
    let read = switched.elapsed();
    let answers = client.answers(2);
    assert_eq!(answers, [b"+OK\r\n", b"+OK\r\n"], "what the client sent was not sent on yet");
    let written = switched.elapsed();
    note(&format!("after the failover: read {read:?}, written {written:?}"));
    assert!(written < PROMPT, "after the failover: read {read:?}, written {written:?}");
}

#[test]
fn unknown_primary_name_is_reported() {
    let watched = Watched::by(1);
    let name = "redis.sentinel_master = \"main\"";
    let proxy =
        Proxy::start(&config(&watched, "").replace(name, "redis.sentinel_master = \"nowhere\""));
    proxy.expect_log(DOWN);
    eventually("the reason", || {
        let (status, received) = readyz(&proxy);
        (status == 503
            && received.contains(r#"know no primary called \"nowhere\" (redis.sentinel_master)"#))
        .then_some(())
    });
    // The name may be configured later.
    let primary = watched.address(0);
    let monitor = ["SENTINEL", "MONITOR", "nowhere", "127.0.0.1", &primary.port().to_string(), "1"];
    watched.sentinels[0].command(&monitor).expect("the sentinel takes a name");
    set(&watched.redis[0], "key", "value");
    await_value(&proxy, "key", "value");
}

#[test]
fn sentinels_may_have_their_own_login() {
    // The permissions that the README requires, without the test's own user.
    let rights = "resetchannels &+switch-master +subscribe +sentinel|master \
        +sentinel|get-master-addr-by-name";
    let lines = [
        "user test on >test ~* &* +@all",
        &format!("user proxy on >secret {rights}"),
        "user default off",
    ];
    let reader = "--user proxy on >word ~* +get +pttl +client|tracking +client|trackinginfo +role";
    let reader: Vec<_> = reader.split(' ').collect();
    let watched = Watched::with("test:test@", 1, &lines, &reader);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "secret").expect("a password");
    let login = |user: &str| {
        let path = file.path().display();
        format!(
            "redis.sentinel_username = \"{user}\"\nredis.sentinel_password_file = \"{path}\"\n\
             redis.username = \"proxy\"\nredis.password = \"word\"\n"
        )
    };
    let proxy = Proxy::start(&config(&watched, &login("proxy")));
    proxy.expect_log(DOWN);
    set(&watched.redis[0], "key", "value");
    await_value(&proxy, "key", "value");
    watched.fail_over();
    set(&watched.redis[1], "key", "after");
    await_value(&proxy, "key", "after");
    let outsider = Proxy::start(&config(&watched, &login("stranger")));
    outsider.expect_log(DOWN);
    outsider.expect_log(SILENT);
    eventually("the reason", || readyz(&outsider).1.contains("no sentinel answers").then_some(()));
    let (_, received) = readyz(&outsider);
    assert!(received.contains("WRONGPASS") && !received.contains("secret"), "{received}");
}

#[test]
fn replica_named_as_primary_is_not_read() {
    let watched = Watched::by(1);
    let (port, name) = (watched.address(1).port().to_string(), format!("\"{MASTER}\""));
    // A sentinel that has just learned of the replica does not know its role yet.
    watched.redis[1].command(&["CONFIG", "SET", "replica-priority", "0"]);
    watched.sentinels[0]
        .command(&["SENTINEL", "MONITOR", "wrong", "127.0.0.1", &port, "9"])
        .expect("a name");
    let proxy = Proxy::start(&config(&watched, "").replace(&name, "\"wrong\""));
    proxy.expect_log(DOWN);
    eventually("the reason, or the sentinel knows better", || {
        let (status, received) = readyz(&proxy);
        (status == 503 && received.contains("it is a replica (ROLE)")).then_some(())
    });
    assert_eq!(reads_of(&watched.redis[1]), 0);
}

#[test]
fn hit_never_waits_for_a_sentinel() {
    let watched = Watched::by(1);
    let proxy = started(&watched);
    set(&watched.redis[0], "key", "value");
    assert_eq!(value(&proxy, "key"), "value");
    watched.sentinels[0].pause();
    proxy.expect_log(SILENT);
    for _ in 0..100 {
        assert_hit(&read(&proxy, "key"));
    }
    watched.sentinels[0].resume();
    await_metric(&proxy, "backend_duration_seconds_count", 1.0);
}

/// Prints a measurement; shown with `--nocapture`.
#[expect(clippy::print_stderr, reason = "figures of a test are for a run by hand")]
fn note(text: &str) {
    eprintln!("{text}");
}
