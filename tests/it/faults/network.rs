//! Faults of the network between the proxy and Redis.
//!
//! Promise: a cut, half-open, slow or corrupt connection to Redis blocks no client for longer than
//! `redis.response_timeout`, never turns into a wrong value, and is replaced without help.

use std::time::Duration;

use crate::support::eventually;
use crate::support::fault_stage::{
    FaultStage, NO_REDIS, PROMPT, QUICK, UNHURRIED, VALUE, assert_prompt, query,
};
use crate::support::resp_pair::LASTING;
use crate::support::serving::{lines_with_message, readyz, request_and_await_flight, text};

#[test]
fn cut_link_fails_fast_and_recovers() {
    let stage = FaultStage::start(UNHURRIED);
    let mut client = stage.connect();
    stage.relay.cut();
    assert_prompt(&stage.over_http("cold"), "503");
    eventually("the loss is noticed", || (readyz(&stage.proxy).0 == 503).then_some(()));
    for key in ["hot", "cold"] {
        assert_prompt(&stage.over_http(key), "503");
        assert_prompt(&query(&mut client, &format!("GET {key}")), NO_REDIS);
    }
    stage.relay.resume();
    let took = stage.assert_well();
    assert_eq!(query(&mut client, "GET hot").0, VALUE);
    eprintln!("cut: well again after {took:?}");
}

#[test]
fn half_open_connection_blocks_at_most_response_timeout() {
    let stage = FaultStage::start(&format!("{QUICK}\nredis.connect_timeout = \"200ms\""));
    let mut client = stage.connect();
    // New connections work.
    stage.relay.stall_old();
    let written = stage.redis.command(&["SET", "hot", "other"]);
    assert_eq!(written, redis::Value::Okay);
    let (http, resp) = (stage.over_http("cold"), query(&mut client, "GET cold"));
    let longest = Duration::from_millis(800) * 2 + PROMPT;
    assert!(http.1 < longest && resp.1 < longest, "{http:?} {resp:?}");
    eventually("the change is known over HTTP", || {
        (stage.over_http("hot").0 == "200 other").then_some(())
    });
    assert_eq!(stage.as_client("GET hot").0, "$5\\r\\nother\\r\\n");
    let took = stage.assert_well();
    eprintln!("half open: over HTTP {http:?}, over RESP {resp:?}, well again after {took:?}");

    // New connections are silent too.
    stage.relay.stall();
    eventually("silence is noticed without a read", || {
        (readyz(&stage.proxy).0 == 503).then_some(())
    });
    for _ in 0..3 {
        let http = stage.over_http("cold");
        assert!(["503", "504"].contains(&&*http.0) && http.1 < longest, "{http:?}");
    }
    stage.relay.resume();
    stage.assert_well();
}

#[test]
fn invalid_protocol_is_never_a_value() {
    let stage = FaultStage::start(LASTING);
    stage.proxy.expect_log("invalid reply from Redis");
    let mut client = stage.connect();
    assert_eq!(query(&mut client, "PING").0, "+PONG\\r\\n");
    for (number, garbage) in [
        &b"\x00\xff\xfe mad\r\n"[..],
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"$-7\r\n",
        b"%!?\r\n$3\r\nbad\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let links = lines_with_message(&stage.proxy, "connected to Redis");
        let key = format!("key {number}");
        stage.redis.command(&["SET", &key, "value"]);
        // The garbage arrives while a fetch waits for its reply.
        stage.relay.delay(Duration::from_millis(50));
        let mut reader = request_and_await_flight(&stage.proxy, &key, 1);
        stage.relay.inject(garbage);
        let response = reader.read_response();
        assert!(response.status != 200 || text(&response) == "value", "{response:?}");
        stage.relay.resume();
        // The connection ends: otherwise each later reply would answer another request.
        let received = query(&mut client, "PING").0;
        assert!(["UnexpectedEof", "+PONG\\r\\n"].contains(&&*received), "{received}");
        stage.assert_well();
        eventually("the proxy has dropped its own link", || {
            (lines_with_message(&stage.proxy, "connected to Redis") > links).then_some(())
        });
        stage.assert_well();
        assert_eq!(stage.over_http("cold").0, "200 value");
        assert_eq!(stage.as_client("GET cold").0, VALUE);
        client = stage.connect();
        assert_eq!(query(&mut client, "PING").0, "+PONG\\r\\n");
    }
}

#[test]
fn bytewise_replies_are_whole() {
    let stage = FaultStage::start(LASTING);
    let long = "0123456789\r\n$5\r\n".repeat(200);
    stage.redis.command(&["MSET", "long", &long, "empty", ""]);
    stage.relay.byte_at_a_time();
    let mut client = stage.connect();
    assert_eq!(stage.over_http("long").0, format!("200 {long}"));
    assert_eq!(stage.over_http("empty").0, "200 ");
    assert_eq!(query(&mut client, "STRLEN long").0, format!(":{}\\r\\n", long.len()));
    assert_eq!(query(&mut client, "SET long short").0, "+OK\\r\\n");
    assert_eq!(query(&mut client, "GET long").0, "$5\\r\\nshort\\r\\n");
    stage.assert_well();
}
