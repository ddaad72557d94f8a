//! `SWAPDB` with a reply that its client does not read.
//!
//! Promise: Redis pushes nothing for `SWAPDB`, so the proxy drops everything when it is answered,
//! also if the client does not read the answer, or is gone.

use std::thread;

use crate::support::http::get;
use crate::support::resp_client::{RespClient, words};
use crate::support::resp_pair::{LASTING, resp_config};
use crate::support::serving::{await_metric, await_ready};
use crate::support::{Proxy, RedisServer, eventually};

/// The bytes of the only member of a set. So many answers fill every buffer on their way.
const MEMBER: usize = 20_000;
/// Commands before `SWAPDB`. They take more than the 16 KiB that Redis reads at once, so it serves
/// other clients before `SWAPDB`.
const COMMANDS: usize = 1_000;

/// Swaps the databases while the value of one is fetched, and asserts that the other one is served
/// in the end.
#[track_caller]
fn assert_swap_is_noticed(is_client_gone: bool) {
    let redis = RedisServer::start();
    redis.command(&["SET", "k", "old"]);
    redis.command(&["SADD", "set", &"m".repeat(MEMBER)]);
    redis.command(&["SWAPDB", "0", "1"]);
    redis.command(&["SET", "k", "new"]);
    redis.command(&["SWAPDB", "0", "1"]);
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    await_ready(&proxy);
    let mut client = RespClient::connect(proxy.resp_address());
    client.query_line("SRANDMEMBER set");

    redis.pause();
    client.send([words("SRANDMEMBER set").repeat(COMMANDS), words("SWAPDB 0 1")].concat());
    await_metric(&proxy, "commands_total{command=\"swapdb\"}", 1.0);
    let client = (!is_client_gone).then_some(client);
    thread::scope(|scope| {
        let fetched = scope.spawn(|| get(proxy.http(), "/keys/k"));
        await_metric(&proxy, "inflight_fetches", 1.0);
        redis.resume();
        assert_eq!(fetched.join().unwrap().status, 200);
    });
    let is_new = || (get(proxy.http(), "/keys/k").body == b"new").then_some(());
    eventually("the swap is noticed", is_new);
    drop(client);
}

#[test]
fn swap_by_a_client_that_does_not_read_is_noticed() {
    assert_swap_is_noticed(false);
}

#[test]
fn swap_by_a_client_that_is_gone_is_noticed() {
    assert_swap_is_noticed(true);
}
