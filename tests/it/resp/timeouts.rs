//! Waits of RESP reads for the shared connection.
//!
//! Promise: a read waits at most 250 ms for the proxy's shared connection before it goes to Redis
//! on its own.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::env::number;
use crate::support::resp_client::{RespClient, show, words};
use crate::support::resp_pair::{LASTING, is_straight, resp_config};
use crate::support::serving::{await_ready, readyz, relay_url};
use crate::support::skip::skipped;
use crate::support::{Proxy, RedisServer, Relay, eventually, within};

#[test]
fn frozen_shared_connection_delays_only_its_readers() {
    const READS: u32 = 80;
    /// The longest that a read waits for its own writes before it goes to Redis.
    const FENCE_TIMEOUT: Duration = Duration::from_millis(250);
    if is_straight() {
        return;
    }
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let settings = format!("{LASTING}\nredis.response_timeout = \"15s\"");
    let proxy = Proxy::start(&resp_config(&relay_url(&relay), &settings));
    proxy.expect_log("no connection to Redis");
    await_ready(&proxy);
    RespClient::connect(proxy.resp_address()).query_line("GET key");
    relay.stall_old();
    let mut wire = RespClient::connect(proxy.resp_address());
    assert_eq!(wire.reply_to("SET key value"), "+OK\\r\\n");
    let begun = Instant::now();
    for _ in 0..READS {
        assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    }
    let took = begun.elapsed();
    // Only the first read waits for the fence, and not for `redis.response_timeout`.
    assert!(took < READS * FENCE_TIMEOUT / 2, "{READS} reads took {took:?}");
    relay.resume();
}

#[test]
fn rejected_proxy_login_delays_no_direct_client() {
    const READS: u32 = 200;
    if is_straight() {
        return;
    }
    let redis = RedisServer::builder().arguments(&["--requirepass", "new"]).start();
    let proxy =
        Proxy::start(&resp_config(&redis.url(), &format!("{LASTING}\nredis.password = \"old\"")));
    proxy.expect_log("");
    let mut wire = RespClient::connect(proxy.resp_address());
    assert_eq!(wire.reply_to("AUTH new"), "+OK\\r\\n");
    wire.query_line("SET key value");
    eventually("Redis has refused the proxy", || {
        readyz(&proxy).1.contains("WRONGPASS").then_some(())
    });
    let begun = Instant::now();
    for _ in 0..READS {
        assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    }
    let took = begun.elapsed();
    // If each read waited for a shared connection, it would take 100 ms.
    assert!(took < READS * Duration::from_millis(50), "{READS} reads took {took:?}");
}

#[test]
fn keepalive_is_invisible_to_the_client() {
    /// The next read from memory after 15 s of silence sends a keepalive.
    const SILENCE: Duration = Duration::from_millis(15_200);
    // The test takes that long.
    if is_straight() || number("RESP_LONG").is_none() {
        return;
    }
    if number("RESP_LONG").is_none() {
        return skipped("it takes 15 s, and RESP_LONG is not set");
    }
    let redis = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "front").unwrap();
    let open = Proxy::start(&resp_config(&redis.url(), LASTING));
    let with_password = format!("{LASTING}\nresp.password_file = \"{}\"", file.display());
    let closed = Proxy::start(&resp_config(&redis.url(), &with_password));
    [&open, &closed].into_iter().for_each(await_ready);
    let mut wires =
        [&open, &open, &open, &closed].map(|proxy| RespClient::connect(proxy.resp_address()));
    wires[3].query_line("AUTH front");
    for wire in &mut wires {
        assert!(wire.reply_to("HELLO 3").starts_with("%7"));
        assert_eq!(wire.reply_to("SET hot value"), "+OK\\r\\n");
        assert_eq!(wire.reply_to("GET hot"), "$5\\r\\nvalue\\r\\n");
    }
    assert_eq!(within(SILENCE, || None::<()>), None);
    let hit = "$5\\r\\nvalue\\r\\n";
    let talks = [
        (&["GET hot"][..], vec![hit]),
        (&["GET hot", "INCR n", "GET hot"], vec![hit, ":1\\r\\n", hit]),
        (
            &["GET hot", "SUBSCRIBE news"],
            vec![hit, ">3\\r\\n$9\\r\\nsubscribe\\r\\n$4\\r\\nnews\\r\\n:1\\r\\n"],
        ),
        (
            &["GET hot", "RESET", "AUTH front", "INCR n", "GET hot"],
            vec![hit, "+RESET\\r\\n", "+OK\\r\\n", ":2\\r\\n", hit],
        ),
    ];
    for (wire, (talk, expected)) in wires.iter_mut().zip(talks) {
        wire.send(talk.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
        let received: Vec<_> =
            wire.answers(expected.len()).iter().map(|answer| show(answer)).collect();
        assert_eq!(received, expected, "{talk:?}");
    }
    eventually("a link is kept awake", || {
        format!("{:?}", redis.command(&["CLIENT", "LIST"])).contains("cmd=ping").then_some(())
    });
    assert_eq!(wires[0].reply_to("SET hot other"), "+OK\\r\\n");
    assert_eq!(wires[0].reply_to("GET hot"), "$5\\r\\nother\\r\\n");
}
