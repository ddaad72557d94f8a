//! A Redis Cluster behind HTTP.
//!
//! Promise: each key is read at the node that serves it, and the proxy follows every move of a
//! slot.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::thread;
use std::time::{Duration, Instant};

use crate::support::cluster::{RedisCluster, try_query};
use crate::support::fault_stage::{DOWN, PROMPT};
use crate::support::resp_client::{RespClient, bulk, command};
use crate::support::serving::{
    assert_hit, await_ready, cache_status, metric, read, readyz, text, value,
};
use crate::support::{Authority, Proxy, RedisServer, within};

/// Nothing expires by age, and failures are noticed quickly.
const SETTINGS: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    redis.ping_interval = \"100ms\"\n\
                        redis.connect_timeout = \"1s\"\ncache.coherence_timeout = \"1s\"\n";
/// Timeouts far above [`PROMPT`], so that a prompt answer has waited for no node that hangs.
const UNHURRIED: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    redis.ping_interval = \"100ms\"\ncache.coherence_timeout = \"1s\"\n\
    redis.connect_timeout = \"25s\"\nredis.response_timeout = \"25s\"\n\
    resp.listen = \"127.0.0.1:0\"\n";
/// The longest time in which the proxy follows a change of the nodes.
const FOLLOWS: Duration = Duration::from_secs(10);

fn started(cluster: &RedisCluster) -> Proxy {
    started_with(cluster, "")
}

fn started_with(cluster: &RedisCluster, more: &str) -> Proxy {
    configured(cluster, &format!("{SETTINGS}{more}"))
}

fn configured(cluster: &RedisCluster, settings: &str) -> Proxy {
    let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
    let proxy = Proxy::start(&format!(
        "{listen}daemon.worker_threads = 1\n{settings}{}",
        cluster.settings()
    ));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    proxy
}

/// Waits until the key has this value through the proxy; returns the time until then.
#[track_caller]
fn await_value(proxy: &Proxy, key: &str, expected: &str) -> Duration {
    let begun = Instant::now();
    let mut last = String::new();
    let seen = within(FOLLOWS, || {
        let response = read(proxy, key);
        last = format!("{} {}", response.status, text(&response));
        (response.status == 200 && text(&response) == expected).then_some(())
    });
    assert!(seen.is_some(), "{key} is not {expected} but {last}, /readyz: {:?}", readyz(proxy));
    begun.elapsed()
}

/// Waits until the key is a hit.
#[track_caller]
fn await_hit(proxy: &Proxy, key: &str) {
    let hit = within(FOLLOWS, || cache_status(&read(proxy, key)).contains("; hit;").then_some(()));
    assert!(hit.is_some(), "{key} is not kept");
}

/// Returns one key of each primary.
fn keys(cluster: &RedisCluster, number: usize) -> [String; 3] {
    [0, 1, 2].map(|node| cluster.key_of(node, number))
}

#[test]
fn keys_are_read_and_invalidated_at_their_node() {
    let cluster = RedisCluster::of(3);
    let proxy = started(&cluster);
    for key in keys(&cluster, 0) {
        cluster.set(&key, "first");
        assert_eq!(value(&proxy, &key), "first");
        assert_hit(&read(&proxy, &key));
        cluster.set(&key, "second");
        await_value(&proxy, &key, "second");
        assert_hit(&read(&proxy, &key));
    }
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "3");
    assert!(readyz(&proxy).1.contains(&cluster.port(2).to_string()), "{}", readyz(&proxy).1);
    let node = format!("node_up{{node=\"127.0.0.1:{}\",role=\"redis\"}}", cluster.port(1));
    assert_eq!(metric(&proxy, &node).to_string(), "1");
}

#[test]
fn lost_primary_leaves_keys_of_other_nodes_cached() {
    let mut cluster = RedisCluster::start(3, 3, &["--cluster-require-full-coverage", "no"]);
    let proxy = started(&cluster);
    let keys = keys(&cluster, 0);
    for key in &keys {
        cluster.set(key, "before");
        assert_eq!(value(&proxy, key), "before");
    }
    let copied: u64 = try_query(&cluster.nodes[0], &["WAIT", "1", "5000"]).expect("WAIT");
    assert_eq!(copied, 1);
    let killed = Instant::now();
    cluster.nodes[0].stop();
    assert_hit(&read(&proxy, &keys[1]));
    assert_hit(&read(&proxy, &keys[2]));
    cluster.await_primary(3);
    let elected = killed.elapsed();
    await_value(&proxy, &keys[0], "before");
    note(&format!("killed: elected after {elected:?}, read again after {:?}", killed.elapsed()));
    assert_hit(&read(&proxy, &keys[1]));
    cluster.set(&keys[0], "after");
    await_value(&proxy, &keys[0], "after");
    assert_eq!(readyz(&proxy).0, 200);
}

#[test]
fn start_without_a_usable_node_names_the_reason() {
    let single = RedisServer::builder().tcp().start();
    let secured = RedisServer::builder().tcp().arguments(&["--requirepass", "secret"]).start();
    for (scheme, port, reason) in [
        ("redis", single.tcp_address().port(), "is it a node of a cluster? (see redis.mode)"),
        ("redis", secured.tcp_address().port(), "NOAUTH"),
        ("redis", 1, "refused"),
        ("rediss", single.tcp_address().port(), "use redis:// in redis.url or redis.seeds"),
    ] {
        let authority = Authority::new();
        let proxy = Proxy::start(&format!(
            "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
             redis.mode = \"cluster\"\nredis.connect_timeout = \"1s\"\n{}\n\
             redis.seeds = [\"{scheme}://127.0.0.1:{port}\"]\n",
            if scheme == "rediss" { authority.trusted() } else { String::new() }
        ));
        let line = proxy.wait_for_log(|line| {
            line.has_message("no node of the cluster reports the slots; retrying")
        });
        assert!(line.text().contains(reason), "{reason} in {}", line.text());
        assert_eq!(line.field("node"), Some(format!("127.0.0.1:{port}")));
        let (status, state) = readyz(&proxy);
        assert!(status == 503 && state.contains(reason), "{reason} in {state}");
        assert_eq!(read(&proxy, "key").status, 503, "{reason}");
        proxy.expect_log("no node of the cluster reports the slots");
    }
}

#[test]
fn moving_slot_is_followed_there_and_back() {
    let cluster = RedisCluster::of(3);
    let proxy = started(&cluster);
    let key = cluster.key_of(0, 0);
    let slot = cluster.slot(&key);
    cluster.set(&key, "at home");
    assert_eq!(value(&proxy, &key), "at home");
    cluster.begin_to_move(slot, 0, 1);
    assert_eq!(value(&proxy, &key), "at home");
    // A missing key is read at the target node, and nothing of that is kept.
    let sibling = format!("{key}/sibling");
    assert_eq!(read(&proxy, &sibling).status, 404);
    let _: String = asking(&cluster, 1, &["SET", &sibling, "new"]);
    assert_eq!(value(&proxy, &sibling), "new");
    let _: String = asking(&cluster, 1, &["SET", &sibling, "newer"]);
    assert_eq!(value(&proxy, &sibling), "newer");
    cluster.move_keys(slot, 0, 1);
    assert_eq!(value(&proxy, &key), "at home");
    cluster.end_to_move(slot, 0, 1);
    cluster.set(&key, "away");
    await_value(&proxy, &key, "away");
    await_hit(&proxy, &key);
    cluster.move_slot(slot, 1, 0);
    cluster.set(&key, "at home again");
    await_value(&proxy, &key, "at home again");
    await_hit(&proxy, &key);
}

#[test]
fn promoted_replica_replaces_the_old_primary() {
    let cluster = RedisCluster::with_replicas(3);
    let proxy = started(&cluster);
    let keys = keys(&cluster, 0);
    for key in &keys {
        cluster.set(key, "before");
        assert_eq!(value(&proxy, key), "before");
    }
    for (turn, replica) in [3, 0, 3].into_iter().enumerate() {
        cluster.fail_over_to(replica);
        let expected = format!("after {turn}");
        let set =
            || try_query::<String>(&cluster.nodes[replica], &["SET", &keys[0], &expected]).ok();
        assert!(within(FOLLOWS, set).is_some(), "it does not serve what it took over");
        await_value(&proxy, &keys[0], &expected);
        await_hit(&proxy, &keys[0]);
        assert_hit(&read(&proxy, &keys[1]));
    }
}

/// Sets keys of the first primary, and waits until its replica has them.
fn set_and_copy(cluster: &RedisCluster, keys: &[&str], value: &str) {
    for key in keys {
        cluster.set(key, value);
    }
    let size = |node: usize| try_query::<u64>(&cluster.nodes[node], &["DBSIZE"]).ok();
    let copied = within(FOLLOWS, || (size(3)? == size(0)?).then_some(()));
    assert!(copied.is_some(), "the replica has {:?} of {:?} keys", size(3), size(0));
}

/// Waits until the nodes have replaced the first primary. Its clients ask again and again from now
/// on; they must have their answers soon after that.
#[track_caller]
fn await_answers_after_failover(cluster: &RedisCluster, proxy: &Proxy, keys: [&str; 2]) {
    let [over_http, over_resp] = keys;
    let query = |words: &[&str], expected: &[u8]| {
        let mut client = RespClient::connect(proxy.resp_address());
        client.send(command(words));
        client.try_answer().is_ok_and(|answer| answer == expected)
    };
    thread::scope(|scope| {
        let clients = [
            ("HTTP", scope.spawn(|| persist(|| read(proxy, over_http).status == 200))),
            ("GET", scope.spawn(|| persist(|| query(&["GET", over_resp], &bulk("before"))))),
            ("SET", scope.spawn(|| persist(|| query(&["SET", over_http, "after"], b"+OK\r\n")))),
        ];
        cluster.await_primary(3);
        let switched = Instant::now();
        for (name, client) in clients {
            let answered = client.join().expect("a client that ends");
            let took = answered.map(|answered| answered.saturating_duration_since(switched));
            note(&format!("{name}: answered {took:?} after the failover"));
            let is_prompt = took.is_some_and(|took| took < PROMPT);
            assert!(is_prompt, "{name}: answered {took:?} after the failover");
        }
    });
    await_value(proxy, over_http, "after");
}

/// Repeats a request until it succeeds; returns the time of the success.
fn persist(mut attempt: impl FnMut() -> bool) -> Option<Instant> {
    within(FOLLOWS * 4, || attempt().then(Instant::now))
}

#[test]
fn hung_primary_holds_no_request_past_its_failover() {
    let cluster = RedisCluster::with_replicas(3);
    let proxy = configured(&cluster, UNHURRIED);
    let keys = [1, 2].map(|number| cluster.key_of(0, number));
    let keys = keys.each_ref().map(String::as_str);
    set_and_copy(&cluster, &keys, "before");
    cluster.nodes[0].pause();
    await_answers_after_failover(&cluster, &proxy, keys);
}

#[test]
fn hung_replica_delays_no_failover() {
    let mut cluster = RedisCluster::with_replicas(3);
    let proxy = configured(&cluster, UNHURRIED);
    let keys = [1, 2].map(|number| cluster.key_of(0, number));
    let keys = keys.each_ref().map(String::as_str);
    set_and_copy(&cluster, &keys, "before");
    cluster.nodes[4].pause();
    cluster.nodes[0].stop();
    await_answers_after_failover(&cluster, &proxy, keys);
}

#[test]
fn hung_primary_is_retired_and_stays_so_when_it_continues() {
    let cluster = RedisCluster::with_replicas(3);
    let proxy = configured(&cluster, UNHURRIED);
    let key = cluster.key_of(0, 0);
    set_and_copy(&cluster, &[key.as_str()], "before");
    assert_eq!(value(&proxy, &key), "before");
    let mut waiting = RespClient::connect(proxy.resp_address());
    waiting.send(command(&["BLPOP", &format!("{key}/list"), "0"]));
    let blocked = || cluster.nodes[0].command(&["CLIENT", "LIST", "TYPE", "NORMAL"]);
    let is_blocked =
        within(FOLLOWS, || format!("{:?}", blocked()).contains("flags=b").then_some(()));
    assert!(is_blocked.is_some(), "{:?}", blocked());

    cluster.nodes[0].pause();
    cluster.await_primary(3);
    // A frozen node is not listed as a replica but as a failed primary without slots.
    let id = cluster.id_seen_by(1, 0);
    let is_listed = |line: &str| line.contains(" master,fail - ") && line.ends_with("connected");
    let listed = within(FOLLOWS, || {
        cluster
            .view(1)
            .lines()
            .find(|line| line.starts_with(&id))
            .filter(|line| is_listed(line))?;
        Some(())
    });
    assert!(listed.is_some(), "the test is no test any more:\n{}", cluster.view(1));
    let _: String = try_query(&cluster.nodes[3], &["SET", &key, "after"]).expect("it is served");
    await_value(&proxy, &key, "after");
    let node = format!("node_up{{node=\"127.0.0.1:{}\",role=\"redis\"}}", cluster.port(0));
    let retired = within(FOLLOWS, || metric(&proxy, &node).is_nan().then_some(()));
    assert!(retired.is_some(), "it is still a shard: {:?}", readyz(&proxy));
    await_hit(&proxy, &key);
    assert_eq!(metric(&proxy, "cache_entries").to_string(), "1", "its entries are kept");
    assert_eq!(waiting.rest(), b"", "its client has no end");

    cluster.nodes[0].resume();
    let is_demoted = within(FOLLOWS, || {
        assert_eq!(value(&proxy, &key), "after");
        (!cluster.is_primary(0)).then_some(())
    });
    assert!(is_demoted.is_some(), "it does not learn that it was replaced");
    let _: String = try_query(&cluster.nodes[3], &["SET", &key, "later"]).expect("it is served");
    await_value(&proxy, &key, "later");
    await_hit(&proxy, &key);
}

#[test]
fn flush_of_one_primary_drops_only_its_keys() {
    let cluster = RedisCluster::of(3);
    let proxy = started(&cluster);
    let keys = keys(&cluster, 0);
    for key in &keys {
        cluster.set(key, "value");
        assert_eq!(value(&proxy, key), "value");
    }
    cluster.nodes[1].command(&["FLUSHALL"]);
    let gone = within(FOLLOWS, || (read(&proxy, &keys[1]).status == 404).then_some(()));
    assert!(gone.is_some());
    assert_hit(&read(&proxy, &keys[0]));
    assert_hit(&read(&proxy, &keys[2]));
}

#[test]
fn minimal_permissions_suffice() {
    let rights = "+get +pttl +client|tracking +client|trackinginfo +role +cluster|info \
        +cluster|nodes +asking";
    let user: Vec<_> = "--user proxy on >secret ~*".split(' ').chain(rights.split(' ')).collect();
    let cluster = RedisCluster::start(3, 0, &user);
    let login = "redis.username = \"proxy\"\nredis.password = \"secret\"\n";
    let proxy = started_with(&cluster, login);
    for key in keys(&cluster, 0) {
        cluster.set(&key, "first");
        assert_eq!(value(&proxy, &key), "first");
        cluster.set(&key, "second");
        await_value(&proxy, &key, "second");
        await_hit(&proxy, &key);
    }
    let slot = cluster.slot(&cluster.key_of(0, 0));
    cluster.begin_to_move(slot, 0, 1);
    let key = cluster.key_of(0, 0);
    cluster.move_keys(slot, 0, 1);
    assert_eq!(value(&proxy, &key), "second", "of a slot that is on its way");
    assert!(readyz(&proxy).1.contains("tracking"), "{}", readyz(&proxy).1);
}

#[test]
fn cluster_is_reached_over_tls() {
    let authority = Authority::new();
    let cluster = RedisCluster::over_tls(3, &authority);
    let proxy = started_with(&cluster, &format!("{}\n", authority.trusted()));
    for key in keys(&cluster, 0) {
        cluster.set(&key, "within");
        assert_eq!(value(&proxy, &key), "within");
        await_hit(&proxy, &key);
    }
}

/// Sends a command with `ASKING` to the node that imports the slot.
fn asking<T: redis::FromRedisValue>(cluster: &RedisCluster, node: usize, words: &[&str]) -> T {
    let mut commands = redis::pipe();
    commands.cmd("ASKING").ignore().cmd(words[0]).arg(&words[1..]);
    let (answer,) =
        commands.query(&mut cluster.nodes[node].connection()).expect("the node answers");
    answer
}

/// Prints a measurement; shown with `--nocapture`.
#[expect(clippy::print_stderr, reason = "figures of a test are for a run by hand")]
fn note(text: &str) {
    eprintln!("{text}");
}
