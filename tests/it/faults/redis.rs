//! What Redis itself can be like: full, and whatever else keeps it from answering.

use super::DOWN;
use crate::resp::ways::{LASTING, resp_config};
use crate::resp::wire::{Wire, show};
use crate::stage::{await_ready, read, readyz, text};
use crate::support::{Proxy, RedisServer, eventually};

const FULL: &str = "max number of clients reached";

#[test]
fn a_redis_that_takes_no_more_clients_says_so_to_everybody() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(&resp_config(&redis.url(), LASTING));
    proxy.expect_log(DOWN);
    await_ready(&proxy);
    let mut operator = redis.connection();
    let mut say = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut operator).unwrap();
    say(&["CONFIG", "SET", "maxclients", "1"]);
    say(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("readyz has Redis's reason", || readyz(&proxy).1.contains(FULL).then_some(()));
    let line = proxy.wait_for_log(|line| line.says("no link to Redis; trying again until there is"));
    let told = read(&proxy, "key");
    assert_eq!((told.status, told.header("retry-after")), (503, Some("1")), "{}", text(&told));
    let mut wire = Wire::connect(proxy.resp_address());
    wire.send("GET key\r\n");
    assert_eq!(show(&wire.answer()), format!("-ERR {FULL}\\r\\n"), "{line:?}");
    say(&["CONFIG", "SET", "maxclients", "100"]);
    await_ready(&proxy);
    assert_eq!(read(&proxy, "key").status, 404);
    assert_eq!(Wire::connect(proxy.resp_address()).told(&["GET", "key"]), "$-1\\r\\n");
}
