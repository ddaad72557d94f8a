//! Overload by clients on both front ends.
//!
//! Promise: a client beyond a limit is rejected at once, takes bounded resources, and harms no
//! other client.
//!
//! Model: many clients misbehave while others read as usual. Limits of one front end are among the
//! tests of that front end.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

use std::io::{Read, Write};
use std::mem;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::fault_stage::{FaultStage, PROMPT, VALUE, query};
use crate::support::http::{Client, get};
use crate::support::log::LogLine;
use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, show};
use crate::support::resp_pair::{LASTING, resp_config};
use crate::support::serving::{await_metric, await_ready, metric, request, text};
use crate::support::{Proxy, RedisServer, eventually, within};

const MEBIBYTE: u64 = 1 << 20;
const HTTP_CLIENTS: &str = r#"connections{front_end="http"}"#;
const RESP_CLIENTS: &str = r#"connections{front_end="resp"}"#;
const OVERLOADED: &str = r#"backend_errors_total{kind="overloaded"}"#;

/// Returns the 99th percentile and the maximum.
fn tail(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let longest = *times.last().expect("some times");
    (times[times.len() * 99 / 100 - 1], longest)
}

/// Reads a hundred hits over each front end; panics if one is wrong. Returns their times.
fn hits(stage: &FaultStage) -> Vec<Duration> {
    let mut rounds = 0..100;
    hits_while(stage, || rounds.next().is_some())
}

fn hits_while(stage: &FaultStage, mut goes_on: impl FnMut() -> bool) -> Vec<Duration> {
    let (mut client, mut wire) = (Client::connect(stage.proxy.http()), stage.connect());
    let mut times = Vec::new();
    while goes_on() {
        let begun = Instant::now();
        assert_eq!(text(&client.get("/keys/hot")), "value");
        times.push(begun.elapsed());
        let hit = query(&mut wire, "GET hot");
        assert_eq!(hit.0, VALUE);
        times.push(hit.1);
    }
    times
}

#[test]
fn dribbled_body_holds_no_connection() {
    let stage = FaultStage::start(LASTING);
    let mut stream = TcpStream::connect(stage.proxy.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(b"GET /keys/hot HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        .unwrap();
    let begun = Instant::now();
    // Bytes are sent for as long as they are accepted.
    let mut dribble = stream.try_clone().unwrap();
    let sent = within(Duration::from_secs(10), || dribble.write_all(b"x").err());
    assert!(sent.is_some(), "the connection is still open");
    let mut answer = Vec::new();
    // Bytes behind the end may have reset the connection.
    _ = stream.read_to_end(&mut answer);
    eventually("the connection is given back", || {
        (metric(&stage.proxy, HTTP_CLIENTS) < 1.0).then_some(())
    });
    eprintln!("a body that dribbles: ended after {:?}", begun.elapsed());
}

#[test]
fn announced_sizes_allocate_nothing() {
    const EACH: usize = 60;
    let stage = FaultStage::start(LASTING);
    let before = resident(stage.proxy.pid());
    let bombs = [
        "*2147483647\r\n",
        "*1048576\r\n$536870912\r\n",
        "*2\r\n$3\r\nGET\r\n$536870912\r\n",
        "*1048576\r\n$3\r\nDEL\r\n$1\r\na\r\n",
        "*1\r\n*1048576\r\n",
        "*1\r\n$-2147483648\r\n",
        "*-2147483648\r\n$99999999999999999999\r\n",
    ];
    let send = |bomb: &&str| {
        let mut wire = stage.connect();
        wire.send(bomb);
        wire
    };
    let wires: Vec<_> =
        bombs.iter().flat_map(|bomb| (0..EACH).map(move |_| bomb)).map(send).collect();
    let (p99, longest) = tail(hits(&stage));
    let more = resident(stage.proxy.pid()).saturating_sub(before);
    assert!(more < 30 * MEBIBYTE, "{more} bytes more");
    assert!(p99 < PROMPT, "{p99:?}");
    let count = wires.len();
    drop(wires);
    eventually("all are gone", || (metric(&stage.proxy, RESP_CLIENTS) < 2.0).then_some(()));
    eprintln!(
        "{count} bombs: {} KiB more, hits in {p99:?} (99 %), {longest:?} at most",
        more >> 10
    );
}

#[test]
fn connection_flood_leaves_clients_unharmed() {
    const PLACES: usize = 20;
    const FLOOD: usize = 300;
    let few = format!("{LASTING}\nresp.max_connections = {PLACES}");
    let stage = FaultStage::start(&few);
    let flood = |address| {
        // The replies stay unread.
        (0..FLOOD).filter_map(|_| TcpStream::connect(address).ok()).collect::<Vec<_>>()
    };
    let is_over = AtomicBool::new(false);
    let (held, times) = thread::scope(|scope| {
        let reader = scope.spawn(|| hits_while(&stage, || !is_over.load(Relaxed)));
        eventually("the reader is here", || {
            (metric(&stage.proxy, RESP_CLIENTS) > 0.0).then_some(())
        });
        let floods = [stage.proxy.resp_address(), stage.proxy.http()]
            .map(|address| scope.spawn(move || flood(address)));
        let held = floods.map(|flood| flood.join().unwrap());
        is_over.store(true, Relaxed);
        (held, reader.join().unwrap())
    });
    let refused = r#"connections_refused_total{front_end="resp"}"#;
    let most = u32::try_from(FLOOD - PLACES).unwrap();
    eventually("those too many are refused", || {
        (metric(&stage.proxy, refused) >= f64::from(most)).then_some(())
    });
    let (p99, longest) = tail(times);
    assert!(p99 < PROMPT, "{p99:?}");
    drop(held);
    eventually("there is room again", || {
        (query(&mut stage.connect(), "GET hot").0 == VALUE).then_some(())
    });
    eprintln!("{FLOOD} connections to each: hits in {p99:?} (99 %), {longest:?} at most");
}

#[test]
fn admin_connection_flood_leaves_clients_unharmed() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&resp_config(&redis.url(), "admin.max_connections = 2"));
    await_ready(&proxy);
    let mut held = within(Duration::from_secs(10), || {
        // Earlier requests may still be counted.
        let mut clients = [(); 2].map(|()| Client::connect(proxy.admin()));
        clients.iter_mut().all(|client| client.get("/livez").status == 200).then_some(clients)
    });
    let refused = get(proxy.admin(), "/metrics");
    assert_eq!(
        (refused.status, refused.header("content-type")),
        (503, Some("application/problem+json"))
    );
    assert_eq!(get(proxy.http(), "/keys/nothing").status, 404);
    let received = held.as_mut().expect("two operators")[0].get("/metrics");
    assert!(
        text(&received).contains("redis_proxy_connections{front_end=\"admin\"} 2\n"),
        "{}",
        text(&received)
    );
    assert!(
        !text(&received).contains("redis_proxy_connections_refused_total{front_end=\"admin\"} 0\n"),
        "not counted"
    );
    drop(held);
    eventually("there is room again", || {
        (get(proxy.admin(), "/livez").status == 200).then_some(())
    });
}

#[test]
fn stalled_readers_share_one_value() {
    const READERS: u32 = 60;
    let stage = FaultStage::start(LASTING);
    let large = "v".repeat(8 << 20);
    stage.redis.command(&["SET", "large", &large]);
    assert_eq!(get(stage.proxy.http(), "/keys/large").body.len(), large.len());
    let before = resident(stage.proxy.pid());
    let mut http: Vec<_> = (0..READERS).map(|_| Client::connect(stage.proxy.http())).collect();
    for client in &mut http {
        client.send_raw(&request("large"));
    }
    let mut resp: Vec<_> = (0..READERS).map(|_| stage.connect()).collect();
    for wire in &mut resp {
        wire.send("GET large\r\n");
    }
    let is_taken_up = || {
        metric(&stage.proxy, r#"reads_total{front_end="resp",outcome="hit"}"#) >= f64::from(READERS)
    };
    eventually("all have asked", || is_taken_up().then_some(()));
    let (p99, longest) = tail(hits(&stage));
    let more = resident(stage.proxy.pid()).saturating_sub(before);
    assert!(
        more < 32 * MEBIBYTE,
        "{more} bytes more; a buffer for each reader would take {} bytes each",
        large.len()
    );
    assert!(p99 < PROMPT, "{p99:?}");
    assert_eq!(http[0].read_response().body.len(), large.len());
    assert_eq!(resp[0].answer().len(), large.len() + "$8388608\r\n\r\n".len());
    eprintln!(
        "{READERS} of each who read nothing: {} KiB more, hits in {p99:?}, {longest:?} at most",
        more >> 10
    );
}

/// Limits that a flood exceeds, and a lease that outlasts the test.
const NARROW: &str = "cache.ttl = \"1h\"\ncache.coherence = \"tracking\"\n\
    cache.coherence_timeout = \"60s\"\n\
                      redis.response_timeout = \"20s\"\nredis.max_fetches = 8\n\
                      redis.max_queue = 16";

#[test]
fn cold_key_flood_is_rejected_and_hits_continue() {
    const FLOOD: usize = 200;
    const TAKEN: usize = 8 + 16;
    let stage = FaultStage::start(NARROW);
    for number in 0..FLOOD {
        let (key, value) = (format!("cold/{number}"), number.to_string());
        stage.redis.command(&["SET", &key, &value]);
    }
    stage.relay.stall();
    let mut clients: Vec<_> = (0..FLOOD).map(|_| Client::connect(stage.proxy.http())).collect();
    let begun = Instant::now();
    clients
        .iter_mut()
        .enumerate()
        .for_each(|(number, client)| client.send_raw(&request(&format!("cold/{number}"))));
    let refused = u32::try_from(FLOOD - TAKEN).unwrap();
    await_metric(&stage.proxy, OVERLOADED, f64::from(refused));
    // None has waited for `redis.response_timeout`.
    let took = begun.elapsed();
    assert!(took < 2 * PROMPT, "{refused} were refused within {took:?}");
    let more = get(stage.proxy.http(), "/keys/cold/more");
    assert_eq!((more.status, more.header("retry-after")), (503, Some("1")));
    assert!(metric(&stage.proxy, "inflight_fetches") <= 24.0);
    let (p99, longest) = tail(hits(&stage));
    assert!(p99 < PROMPT, "{p99:?}");
    stage.relay.resume();
    let mut statuses = Vec::new();
    for (number, client) in clients.iter_mut().enumerate() {
        let response = client.read_response();
        assert!(response.status != 200 || text(&response) == number.to_string());
        statuses.push(response.status);
    }
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(503)), (TAKEN, FLOOD - TAKEN));
    stage.assert_well();
    eprintln!(
        "{refused} of {FLOOD} cold reads refused in {took:?}, hits in {p99:?} (99 %), {longest:?} \
            at most"
    );
}

#[test]
fn reads_waiting_for_a_lease_are_bounded() {
    const PLACES: usize = 16;
    const FLOOD: usize = 40;
    let stage = FaultStage::start(NARROW);
    stage.relay.stall_old();
    let current = b"GET /keys/hot HTTP/1.1\r\nHost: x\r\nCache-Control: no-cache\r\n\r\n";
    let mut clients: Vec<_> = (0..FLOOD).map(|_| Client::connect(stage.proxy.http())).collect();
    for client in &mut clients {
        client.send_raw(current);
    }
    let refused = f64::from(u32::try_from(FLOOD - PLACES).unwrap());
    await_metric(&stage.proxy, OVERLOADED, refused);
    // A RESP client is served by Redis over a dedicated connection.
    let mut wire = stage.connect();
    assert_eq!(query(&mut wire, "SET hot other").0, "+OK\\r\\n");
    assert_eq!(query(&mut wire, "GET hot").0, "$5\\r\\nother\\r\\n");
    await_metric(&stage.proxy, OVERLOADED, refused + 1.0);
    stage.relay.resume();
    let statuses: Vec<_> = clients.iter_mut().map(|client| client.read_response().status).collect();
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(503)), (PLACES, FLOOD - PLACES));
}

#[test]
fn full_queue_serves_stale_values() {
    let short = NARROW.replace("\"1h\"", "\"100ms\"");
    let stage = FaultStage::start(&format!("{short}\ncache.stale_if_error = \"1h\""));
    stage.relay.stall();
    let mut waiting: Vec<_> = (0..24).map(|_| Client::connect(stage.proxy.http())).collect();
    waiting
        .iter_mut()
        .enumerate()
        .for_each(|(number, client)| client.send_raw(&request(&format!("cold/{number}"))));
    await_metric(&stage.proxy, "inflight_fetches", 24.0);
    let old = eventually("the value's time is over", || {
        let response = get(stage.proxy.http(), "/keys/hot");
        response
            .header("cache-status")
            .is_some_and(|status| status.contains("ttl=-"))
            .then_some(response)
    });
    assert_eq!((old.status, text(&old)), (200, "value".to_owned()));
    assert_eq!(stage.as_client("GET hot").0, VALUE);
    stage.relay.resume();
    stage.redis.command(&["SET", "hot", "other"]);
    eventually("never once Redis answers", || {
        (stage.over_http("hot").0 == "200 other").then_some(())
    });
}

#[test]
fn oversized_value_fails_over_http_not_over_resp() {
    const LIMIT: usize = 1024;
    let stage = FaultStage::start(&format!("{LASTING}\nhttp.max_value = {LIMIT}"));
    for (key, length) in [("at", LIMIT), ("beyond", LIMIT + 1)] {
        stage.redis.command(&["SET", key, &"v".repeat(length)]);
    }
    assert_eq!(stage.over_http("at").0, format!("200 {}", "v".repeat(LIMIT)));
    let refused = get(stage.proxy.http(), "/keys/beyond");
    assert_eq!(refused.status, 502);
    assert!(text(&refused).contains("value-too-large"), "{}", text(&refused));
    let entries = metric(&stage.proxy, "cache_entries");
    let mut wire = stage.connect();
    for _ in 0..3 {
        assert_eq!(wire.query(&["GET", "beyond"]).len(), "$1025\r\n\r\n".len() + LIMIT + 1);
        assert_eq!(wire.query(&["GET", "at"]).len(), "$1024\r\n\r\n".len() + LIMIT);
    }
    assert!(metric(&stage.proxy, "cache_entries") <= entries, "it was kept");
}

/// The warning about a read over which Redis closes connections.
const REFUSED: &str = "kept from the shared connection";
/// The number of times that a lost connection emptied the cache.
const EMPTIED: &str = r#"invalidations_total{kind="disconnect"}"#;

/// Starts a proxy in front of a Redis that closes the connection over the reply to `GET large`
/// and to `HGETALL hash`, which have 5 MB each.
fn stage_with_output_limit() -> FaultStage {
    let stage = FaultStage::start(LASTING);
    stage.proxy.expect_log(REFUSED);
    stage.redis.command(&["SET", "large", &"v".repeat(5 << 20)]);
    let field = "f".repeat(50 << 10);
    let mut hash = vec!["HSET".to_owned(), "hash".to_owned()];
    hash.extend((0..100).flat_map(|number| [number.to_string(), field.clone()]));
    stage.redis.command(&hash);
    stage.redis.limit_output();
    stage
}

/// Asserts that `hot` is answered from memory over both front ends.
#[track_caller]
fn assert_hot_is_hit(stage: &FaultStage) {
    let status = get(stage.proxy.http(), "/keys/hot");
    let status = status.header("cache-status").unwrap_or_default();
    assert!(status.contains("; hit"), "{status}");
    let calls = stage.redis.calls("get");
    assert_eq!(stage.as_client("GET hot").0, VALUE);
    assert_eq!(stage.redis.calls("get"), calls, "Redis was asked");
}

/// Sends a read over HTTP, without waiting for its reply.
fn start_read(stage: &FaultStage, key: &str) -> Client {
    let mut client = Client::connect(stage.proxy.http());
    client.send_raw(&request(key));
    client
}

#[test]
fn read_beyond_redis_output_limit_empties_cache_once() {
    let stage = stage_with_output_limit();
    let mut emptied = metric(&stage.proxy, EMPTIED);
    for command in ["GET large", "HGETALL hash"] {
        emptied += 1.0;
        for round in 0..5 {
            // Redis closes the connection of the client, as it would without the proxy.
            let ended = stage.as_client(command);
            assert!(["UnexpectedEof", "ConnectionReset"].contains(&&*ended.0), "{ended:?}");
            if command == "GET large" {
                let refused = get(stage.proxy.http(), "/keys/large");
                assert_eq!(refused.status, 502, "{}", text(&refused));
                assert!(text(&refused).contains("value-too-large"), "{}", text(&refused));
            }
            assert_eq!(metric(&stage.proxy, EMPTIED).to_string(), emptied.to_string(), "{round}");
            // Fetched again after the loss of the connection.
            assert_eq!(stage.over_http("hot").0, "200 value");
            assert_hot_is_hit(&stage);
        }
    }
    // Other reads of the same key are kept.
    let mut wire = stage.connect();
    for _ in 0..2 {
        assert_eq!(query(&mut wire, "HLEN hash").0, ":100\\r\\n");
    }
    let calls = stage.redis.calls("hlen");
    assert_eq!(query(&mut wire, "HLEN hash").0, ":100\\r\\n");
    assert_eq!(stage.redis.calls("hlen"), calls);
}

#[test]
fn reads_beside_one_beyond_redis_output_limit_are_kept() {
    const BESIDE: usize = 10;
    let stage = stage_with_output_limit();
    for number in 0..BESIDE {
        stage.redis.command(&["SET", &format!("small/{number}"), &number.to_string()]);
    }
    let emptied = metric(&stage.proxy, EMPTIED);
    // All are pending when Redis closes the connection.
    stage.relay.stall();
    let start_small = |number| start_read(&stage, &format!("small/{number}"));
    let mut small: Vec<_> = (0..BESIDE / 2).map(start_small).collect();
    let mut large = start_read(&stage, "large");
    small.extend((BESIDE / 2..BESIDE).map(start_small));
    await_metric(&stage.proxy, "inflight_fetches", 11.0);
    stage.relay.resume();
    // A busy machine may be late with the next connection.
    let refused = large.read_response().status;
    assert!([502, 503].contains(&refused), "{refused}");
    for (number, client) in small.iter_mut().enumerate() {
        let response = client.read_response();
        assert!(response.status == 503 || text(&response) == number.to_string(), "{response:?}");
    }
    for number in 0..BESIDE {
        let (key, value) = (format!("small/{number}"), format!("200 {number}"));
        eventually("a read beside it succeeds", || {
            (stage.over_http(&key).0 == value).then_some(())
        });
    }
    eventually("the large read is refused", || {
        (get(stage.proxy.http(), "/keys/large").status == 502).then_some(())
    });
    let calls = stage.redis.calls("get");
    for number in 0..BESIDE {
        assert_eq!(stage.over_http(&format!("small/{number}")).0, format!("200 {number}"));
    }
    assert_eq!(stage.redis.calls("get"), calls, "Redis was asked");
    assert!((metric(&stage.proxy, EMPTIED) - emptied - 1.0).abs() < 0.5);
}

/// Makes Redis close the connection over 20 replies together, which are far below its limit one by
/// one. Returns a function that reads all of them at once and returns whether each was read.
fn limit_replies_together(stage: &FaultStage) -> impl FnMut() -> bool {
    const TOGETHER: usize = 20;
    for number in 0..TOGETHER {
        stage.redis.command(&["SET", &format!("medium/{number}"), &"v".repeat(200 << 10)]);
    }
    stage.redis.limit_output();
    let mut clients: Vec<_> = (0..TOGETHER).map(|_| Client::connect(stage.proxy.http())).collect();
    // Each read is one of Redis, and all are sent behind the same fence.
    move || {
        for (number, client) in clients.iter_mut().enumerate() {
            let head = format!("GET /keys/medium/{number} HTTP/1.1\r\nhost: a\r\n");
            client.send_raw(format!("{head}cache-control: no-cache\r\n\r\n").as_bytes());
        }
        let statuses: Vec<_> =
            clients.iter_mut().map(|client| client.read_response().status).collect();
        statuses.iter().all(|status| *status == 200)
    }
}

#[test]
fn replies_beyond_output_limit_together_are_read_fewer_at_a_time() {
    let stage = FaultStage::straight(LASTING);
    let mut is_whole_round = limit_replies_together(&stage);
    let mut emptied = metric(&stage.proxy, EMPTIED);
    let mut is_calm_round = || {
        let is_whole = is_whole_round();
        let before = mem::replace(&mut emptied, metric(&stage.proxy, EMPTIED));
        is_whole && emptied.to_string() == before.to_string()
    };
    // Each close lowers the number of pending reads, until they end no connection.
    let mut calm = 0;
    let is_bound = (0..15).any(|_| {
        calm = if is_calm_round() { calm + 1 } else { 0 };
        calm == 5
    });
    assert!(is_bound, "they end the connection for ever");
}

#[test]
fn replies_of_a_remote_redis_are_read_fewer_at_a_time_too() {
    let stage = FaultStage::start(LASTING);
    let mut is_whole_round = limit_replies_together(&stage);
    // A read gives up before there is another connection.
    stage.relay.delay(Duration::from_millis(15));
    eventually("fewer are sent at a time", || {
        is_whole_round();
        stage.proxy.log_lines().iter().any(sends_fewer).then_some(())
    });
}

/// Whether this is the log line for a bound on pending reads.
fn sends_fewer(line: &LogLine) -> bool {
    line.text().contains("fewer reads are sent at a time")
}

#[test]
fn different_large_reads_of_a_remote_redis_are_bounded() {
    const READS: usize = 100;
    let stage = FaultStage::start(LASTING);
    stage.proxy.expect_log(REFUSED);
    for number in 0..READS {
        stage.redis.command(&["SET", &format!("large/{number}"), &"v".repeat(150 << 10)]);
    }
    stage.redis.limit_output_to("100kb");
    // No read is tried by its own reader, and none comes again soon.
    stage.relay.delay(Duration::from_millis(60));
    let mut numbers = (0..READS).cycle();
    eventually("fewer are sent at a time", || {
        let started = numbers.by_ref().take(5).map(|number| format!("large/{number}"));
        let mut clients: Vec<_> = started.map(|key| start_read(&stage, &key)).collect();
        for client in &mut clients {
            assert_ne!(client.read_response().status, 200);
        }
        stage.proxy.log_lines().iter().any(sends_fewer).then_some(())
    });
}

#[test]
fn losing_one_large_reply_bounds_no_reads() {
    const PENDING: usize = 9;
    let stage = FaultStage::start(LASTING);
    for round in 0..5 {
        let large = format!("large/{round}");
        stage.redis.command(&["SET", &large, &"v".repeat(50 << 10)]);
        stage.relay.stall();
        let start_small = |number| start_read(&stage, &format!("cold/{round}/{number}"));
        let mut large = start_read(&stage, &large);
        let small: Vec<_> = (0..PENDING).map(start_small).collect();
        await_metric(&stage.proxy, "inflight_fetches", 10.0);
        stage.relay.cut_once();
        stage.relay.resume();
        assert!([200, 503].contains(&large.read_response().status));
        for mut client in small {
            assert!([404, 503].contains(&client.read_response().status));
        }
        stage.assert_well();
    }
    assert!(metric(&stage.proxy, EMPTIED) > 4.5, "the connection was not lost");
    assert!(!stage.proxy.log_lines().iter().any(sends_fewer));
}

#[test]
fn restarted_redis_leaves_no_read_refused() {
    const PENDING: usize = 40;
    let mut stage = FaultStage::straight(LASTING);
    stage.redis.pause();
    let mut clients: Vec<_> = (0..PENDING).map(|_| Client::connect(stage.proxy.http())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send_raw(&request(&format!("cold/{number}")));
    }
    await_metric(&stage.proxy, "inflight_fetches", 40.0);
    stage.redis.restart();
    for client in &mut clients {
        assert!([404, 503].contains(&client.read_response().status));
    }
    stage.assert_well();
    for number in 0..PENDING {
        assert_eq!(stage.over_http(&format!("cold/{number}")).0, "404");
    }
    let calls = stage.redis.calls("get");
    for number in 0..PENDING {
        assert_eq!(stage.over_http(&format!("cold/{number}")).0, "404");
    }
    assert_eq!(stage.redis.calls("get"), calls, "Redis was asked");
}

#[test]
fn hostile_key_names_forge_no_output() {
    const MARK: &str = "forged";
    let stage = FaultStage::start(&format!(
        "{LASTING}\ntelemetry.log_filter = \"trace\"\nadmin.hotkeys = 100"
    ));
    let names = [
        "a\r\nx-forged: yes\r\n\r\nforged",
        "a\n{\"level\":\"ERROR\",\"message\":\"forged\"}",
        "\u{1b}[2J\u{1b}[31mforged\u{7}",
        "forged\0\u{85}\u{2028}",
    ];
    let mut client = Client::connect(stage.proxy.http());
    for name in names {
        for path in [
            crate::support::http::key_path(name.as_bytes()),
            format!("/metrics/{MARK}%0d%0ax:%20y"),
        ] {
            let response = client.get(path);
            assert_eq!(response.header("x-forged"), None);
            assert!(!text(&response).contains(MARK), "{}", text(&response));
        }
        // A forbidden command, an unknown one, and a client name.
        let mut wire = RespClient::connect(stage.proxy.resp_address());
        assert_eq!(show(&wire.query(&["GET", name])), "$-1\\r\\n");
        wire.query(&[name, "x"]);
        wire.query(&["AUTH", name, name]);
        wire.query(&["HELLO", "3", "AUTH", name, name]);
        wire.send(name);
        stage.as_client("PING");
    }
    // An outage makes the proxy log the state of every part.
    stage.relay.cut_once();
    stage.assert_well();
    for line in stage.proxy.log_lines() {
        let is_one = serde_json::from_str::<serde_json::Value>(line.text())
            .is_ok_and(|line| line.is_object());
        assert!(is_one && !line.has_message(MARK), "{}", line.text());
        assert!(!line.text().contains(|letter: char| letter.is_control()), "{:?}", line.text());
    }
    let hottest = text(&get(stage.proxy.admin(), "/hotkeys?top=100"));
    assert!(
        hottest.contains("forged") && !hottest.contains(|letter: char| letter.is_control()),
        "{hottest}"
    );
    let metrics = text(&get(stage.proxy.admin(), "/metrics"));
    assert!(!metrics.contains(MARK), "a name in the metrics");
}

#[test]
fn http2_rapid_reset_is_bounded() {
    const RESETS: u32 = 5000;
    let stage = FaultStage::start(NARROW);
    stage.relay.stall();
    let mut stream = TcpStream::connect(stage.proxy.http()).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // An empty SETTINGS frame.
    bytes.extend(frame(4, 0, 0, &[]));
    for number in 0..RESETS {
        let path = format!("/keys/cold{number:05}");
        // GET, http, the path and the host.
        let mut head = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        head.extend_from_slice(path.as_bytes());
        head.extend_from_slice(b"\x01\x01x");
        let stream = number * 2 + 1;
        // END_HEADERS and END_STREAM, and then CANCEL.
        bytes.extend(frame(1, 0x5, stream, &head));
        bytes.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    let begun = Instant::now();
    // The proxy may close the connection before the end.
    _ = stream.write_all(&bytes);
    let (p99, longest) = tail(hits(&stage));
    assert!(p99 < PROMPT, "{p99:?}");
    let flights = metric(&stage.proxy, "inflight_fetches");
    assert!(flights <= 24.0, "{flights} flights");
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // Bytes behind the end may have reset the connection.
    _ = stream.read_to_end(&mut answer);
    eventually("the connection is given back", || {
        (metric(&stage.proxy, HTTP_CLIENTS) < 1.0).then_some(())
    });
    let took = begun.elapsed();
    stage.relay.resume();
    stage.assert_well();
    eprintln!(
        "{RESETS} resets: ended after {took:?}, {flights} flights, hits in {p99:?} (99 %), \
            {longest:?} at most"
    );
}

/// Returns an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
