//! Closed and half-closed connections.
//!
//! Promise: however a connection ends, its commands are run, or the client knows that they are not.

use std::time::Duration;

use crate::support::resp_client::{RespClient, show, words};
use crate::support::resp_pair::{LASTING, RespPair, is_straight, resp_config};
use crate::support::{Proxy, RedisServer, within};

#[test]
fn half_closed_client_is_answered_by_blocking_commands() {
    let ways = RespPair::start();
    ways.same(|address| {
        let commands =
            ["XREAD STREAMS none 0", "XREAD COUNT 1 STREAMS none other 0 0", "BLPOP list 0"];
        commands.map(|line| {
            RespClient::connect(address).query_line("RPUSH list job");
            let mut wire = RespClient::connect(address);
            // The end of the input arrives while every reply is pending.
            ways.servers().iter().for_each(|server| server.pause());
            wire.send([words("SET key value"), words(line)].concat());
            wire.end_sending();
            assert_eq!(within(Duration::from_millis(100), || None::<()>), None);
            ways.servers().iter().for_each(|server| server.resume());
            show(&wire.rest())
        })
    });
}

#[test]
fn lost_session_state_closes_the_client() {
    const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable";
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log("no connection to Redis");
    for line in
        ["SELECT 1", "WATCH key", "HELLO 3", "AUTH default x", "SUBSCRIBE news", "CLIENT REPLY OFF"]
    {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(words(line));
        let received = show(&wire.rest());
        assert!(received.starts_with(NO_REDIS), "{line}: {received}");
    }
    // A connection without session state stays open.
    let mut wire = RespClient::connect(proxy.resp_address());
    for line in ["PING", "SET key value", "BLPOP list 1"] {
        let received = wire.reply_to(line);
        assert!(received.starts_with(NO_REDIS), "{line}: {received}");
    }
}
