//! Shutdown of the RESP front end.
//!
//! Promise: every pending reply is sent within `daemon.drain_timeout`, and a client without one
//! delays nothing.

use std::time::{Duration, Instant};

use crate::support::resp_client::{RespClient, bulk, show, words};
use crate::support::resp_pair::{LASTING, is_straight, resp_config};
use crate::support::serving::{await_metric, await_ready, relay_url};
use crate::support::{Proxy, RedisServer, Relay, Signal, eventually, within};

/// More than all buffers between Redis and a client hold.
const LARGE: usize = 24 << 20;

/// Starts a proxy with a long drain timeout.
fn start() -> Option<(Proxy, RedisServer)> {
    if is_straight() {
        return None;
    }
    let redis = RedisServer::start();
    let proxy = Proxy::start(&resp_config(
        &redis.url(),
        &format!("{LASTING}\ndaemon.drain_timeout = \"20s\""),
    ));
    await_ready(&proxy);
    Some((proxy, redis))
}

/// Sends SIGTERM and asserts that the proxy goes on while replies are pending.
#[track_caller]
fn stop_in_vain(proxy: &Proxy) {
    const ENOUGH: Duration = Duration::from_millis(600);
    proxy.signal(Signal::TERM);
    proxy.wait_for_log(|line| line.has_message("stopping"));
    let ended = within(ENOUGH, || {
        proxy.log_lines().iter().any(|line| line.has_message("stopped")).then_some(())
    });
    assert_eq!(ended, None, "it ended without what it owes");
}

#[test]
fn drain_answers_sent_commands() {
    const COMMANDS: u32 = 1000;
    const CLIENTS: u32 = 4;
    if is_straight() {
        return;
    }
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let proxy = Proxy::start(&resp_config(&relay_url(&relay), LASTING));
    await_ready(&proxy);
    let mut wires: Vec<_> =
        (0..CLIENTS).map(|_| RespClient::connect(proxy.resp_address())).collect();
    for wire in &mut wires {
        assert_eq!(wire.reply_to("SET key value"), "+OK\\r\\n");
        assert_eq!(wire.reply_to("GET key"), "$5\\r\\nvalue\\r\\n");
    }
    relay.stall();
    for wire in &mut wires {
        for number in 0..COMMANDS / 2 {
            wire.send([words(&format!("ECHO {number}")), words("GET key")].concat());
        }
    }
    await_metric(&proxy, "commands_total{command=\"echo\"}", f64::from(CLIENTS * COMMANDS / 2));
    stop_in_vain(&proxy);
    relay.resume();
    for wire in &mut wires {
        for number in 0..COMMANDS / 2 {
            assert_eq!(wire.answer(), bulk(number.to_string()));
            assert_eq!(wire.answer(), bulk("value"));
        }
        assert_eq!(show(&wire.rest()), "");
    }
    proxy.finish();
}

#[test]
fn drain_waits_for_a_slow_reader() {
    let Some((proxy, redis)) = start() else { return };
    let value = vec![b'v'; LARGE];
    redis.command(&[b"SET", &b"key"[..], &value]);
    // Forwarded, from memory, and in front of a blocking command.
    let talks = [&["GETEX key"][..], &["GET key"], &["GETEX key", "BLPOP list 0"]];
    let mut wires = talks.map(|talk| {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(talk.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
        wire
    });
    let both = |command: &str| {
        proxy.metrics().value(&format!("redis_proxy_commands_total{{command=\"{command}\"}}"))
    };
    eventually("all are taken up", || {
        ((both("getex"), both("get"), both("blpop")) == (Some(2.0), Some(1.0), Some(1.0)))
            .then_some(())
    });
    stop_in_vain(&proxy);
    for wire in &mut wires {
        assert!(wire.rest() == bulk(&value), "the value is cut");
    }
    proxy.finish();
}

#[test]
fn drain_closes_clients_without_pending_replies() {
    let Some((proxy, redis)) = start() else { return };
    let talks = [
        &["MULTI", "SET a 1"][..],
        &["MULTI x"],
        &["WATCH a"],
        &["SUBSCRIBE news"],
        &["SET a 1"],
        &["GET a"],
    ];
    let mut wires = talks.map(|talk| {
        let mut wire = RespClient::connect(proxy.resp_address());
        for line in talk {
            wire.query_line(line);
        }
        wire
    });
    let mut blocked = RespClient::connect(proxy.resp_address());
    blocked.send(words("BLPOP list 0"));
    eventually("it waits", || {
        format!("{:?}", redis.command(&["CLIENT", "LIST"])).contains("cmd=blpop").then_some(())
    });
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    for wire in wires.iter_mut().chain([&mut blocked]) {
        assert_eq!(show(&wire.rest()), "");
    }
    proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}

#[test]
fn drain_timeout_cuts_blocked_clients() {
    if is_straight() {
        return;
    }
    let redis = RedisServer::start();
    let settings = format!("{LASTING}\ndaemon.drain_timeout = \"1s\"");
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    proxy.expect_log("connections were cut");
    let mut waiting = RespClient::connect(proxy.resp_address());
    waiting.send(words("BLPOP list 0"));
    let is_blocked = || format!("{:?}", redis.command(&["CLIENT", "LIST"])).contains("cmd=blpop");
    eventually("it waits", || is_blocked().then_some(()));
    proxy.signal(Signal::TERM);
    assert_eq!(show(&waiting.rest()), "");
    proxy.finish();
    // The blocked command is gone from Redis, so it takes no element.
    eventually("its link is gone", || (!is_blocked()).then_some(()));
    redis.command(&["RPUSH", "list", "job"]);
    assert_eq!(redis.command(&["LLEN", "list"]), redis::Value::Int(1));
}
