//! However a connection ends, what was said on it before is done, or known not to be.

use std::time::Duration;

use super::ways::{LASTING, Ways, is_straight, resp_config};
use super::wire::{Wire, show, words};
use crate::support::{Proxy, RedisServer, within};

#[test]
fn who_says_no_more_is_answered_though_the_command_could_have_waited() {
    let ways = Ways::start();
    ways.same(|address| {
        let commands =
            ["XREAD STREAMS none 0", "XREAD COUNT 1 STREAMS none other 0 0", "BLPOP list 0"];
        commands.map(|line| {
            Wire::connect(address).ask_line("RPUSH list job");
            let mut wire = Wire::connect(address);
            // Its last word comes while all it has said before is unanswered.
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
fn a_state_that_could_not_be_had_ends_the_connection() {
    const NO_REDIS: &str = "-LOADING redis-proxy: upstream unavailable";
    if is_straight() {
        return;
    }
    let mut redis = RedisServer::start();
    redis.stop();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log("no link to Redis");
    for line in
        ["SELECT 1", "WATCH key", "HELLO 3", "AUTH default x", "SUBSCRIBE news", "CLIENT REPLY OFF"]
    {
        let mut wire = Wire::connect(proxy.resp_address());
        wire.send(words(line));
        let told = show(&wire.rest());
        assert!(told.starts_with(NO_REDIS), "{line}: {told}");
    }
    // One that needs none stays.
    let mut wire = Wire::connect(proxy.resp_address());
    for line in ["PING", "SET key value", "BLPOP list 1"] {
        let told = wire.told_line(line);
        assert!(told.starts_with(NO_REDIS), "{line}: {told}");
    }
}
