//! What the line to Redis can be like: cut, half open, mad, or very slow.

use crate::support::eventually;
use crate::support::fault_stage::{
    AT_ONCE, FaultStage, NO_REDIS, QUICK, VALUE, ask, assert_at_once,
};
use crate::support::resp_pair::LASTING;
use crate::support::serving::readyz;

#[test]
fn cut_link_fails_fast_and_recovers() {
    let stage = FaultStage::start(QUICK);
    let mut client = stage.connect();
    stage.relay.cut();
    eventually("the loss is known", || (readyz(&stage.proxy).0 == 503).then_some(()));
    for key in ["hot", "cold"] {
        assert_at_once(&stage.over_http(key), "503");
        assert_at_once(&ask(&mut client, &format!("GET {key}")), NO_REDIS);
    }
    stage.relay.resume();
    let took = stage.assert_well();
    assert_eq!(ask(&mut client, "GET hot").0, VALUE);
    eprintln!("cut: well again after {took:?}");
}

#[test]
fn half_open_connection_blocks_at_most_response_timeout() {
    let stage = FaultStage::start(QUICK);
    let mut client = stage.connect();
    stage.relay.stall_old();
    let written = stage.redis.command(&["SET", "hot", "other"]);
    assert_eq!(written, redis::Value::Okay);
    let (http, resp) = (stage.over_http("cold"), ask(&mut client, "GET cold"));
    let longest = std::time::Duration::from_millis(800) * 2 + AT_ONCE;
    assert!(http.1 < longest && resp.1 < longest, "{http:?} {resp:?}");
    eventually("the change is known over HTTP", || {
        (stage.over_http("hot").0 == "200 other").then_some(())
    });
    assert_eq!(stage.as_client("GET hot").0, "$5\\r\\nother\\r\\n");
    let took = stage.assert_well();
    eprintln!("half open: over HTTP {http:?}, as a client {resp:?}, well again after {took:?}");
}

#[test]
fn invalid_protocol_is_never_a_value() {
    let stage = FaultStage::start(LASTING);
    stage.proxy.expect_log("Redis sent a client what is no answer");
    let mut client = stage.connect();
    assert_eq!(ask(&mut client, "PING").0, "+PONG\\r\\n");
    for garbage in [&b"\x00\xff\xfe mad\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
        stage.relay.inject(garbage);
        // It ends, as the answers behind it would be anybody's.
        let told = ask(&mut client, "PING").0;
        assert!(["UnexpectedEof", "+PONG\\r\\n"].contains(&&*told), "{told}");
        stage.assert_well();
        assert_eq!(stage.over_http("cold").0, "200 value");
        assert_eq!(stage.as_client("GET cold").0, VALUE);
        client = stage.connect();
        assert_eq!(ask(&mut client, "PING").0, "+PONG\\r\\n");
    }
}

#[test]
fn bytewise_replies_are_whole() {
    let stage = FaultStage::start(LASTING);
    stage.redis.command(&["SET", "long", &"v".repeat(3000)]);
    stage.relay.byte_at_a_time();
    let mut client = stage.connect();
    assert_eq!(stage.over_http("long").0, format!("200 {}", "v".repeat(3000)));
    assert_eq!(ask(&mut client, "STRLEN long").0, ":3000\\r\\n");
    assert_eq!(ask(&mut client, "SET long short").0, "+OK\\r\\n");
    assert_eq!(ask(&mut client, "GET long").0, "$5\\r\\nshort\\r\\n");
    stage.assert_well();
}
