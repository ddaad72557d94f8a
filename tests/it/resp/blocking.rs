//! Promise: commands behind a blocking one are executed, answered or dropped as straight at Redis.
//!
//! Model: a blocking command and a mix behind it go out in one write, both ways. The replies until
//! the close and the keys that the mix has set have to be the same. Redis 7.0, Redis 8.0 and
//! Valkey 8.1 do this:
//!
//! | the client | while the command blocks | where it does not block |
//! |---|---|---|
//! | sends `QUIT` | replies to all, then closes | the same |
//! | sends a protocol error | replies to all, the error, then closes (1) | the same |
//! | closes its sending side | closes at once, executes nothing | replies to all, then closes |
//! | the same after `QUIT` or an error | closes at once, executes nothing | the same |
//! | closes or resets | closes at once, takes no element | |
//!
//! (1) Redis 8.0 sends the error with the next bytes of the client; the proxy sends it at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::cluster::RedisCluster;
use crate::support::env::number;
use crate::support::resp_client::{RespClient, show, words};
use crate::support::resp_pair::{LASTING, RespPair, is_straight, resp_config};
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer, Signal, eventually, within};

/// Commands that block, for milliseconds and for ever.
const BLOCKING: [[&str; 2]; 8] = [
    ["BLPOP none 0.1", "BLPOP none 0"],
    ["BRPOP none 0.1", "BRPOP none 0"],
    ["BLMOVE none other LEFT RIGHT 0.1", "BLMOVE none other LEFT RIGHT 0"],
    ["BLMPOP 0.1 1 none LEFT", "BLMPOP 0 1 none LEFT"],
    ["BZPOPMIN none 0.1", "BZPOPMIN none 0"],
    ["XREAD BLOCK 100 STREAMS none $", "XREAD BLOCK 0 STREAMS none $"],
    ["WAIT 1 100", "WAIT 1 0"],
    // Behind a read that is fetched.
    ["GET none\r\nBLPOP none 0.1", "GET none\r\nBLPOP none 0"],
];

/// What follows a blocking command.
struct Mix {
    lines: &'static str,
    /// Replies to it before it ends.
    replies: usize,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Quit,
    ProtocolError,
    /// The connection stays open.
    None,
}

const fn mix(lines: &'static str, replies: usize, end: End) -> Mix {
    Mix { lines, replies, end }
}

const QUIT: Mix = mix("SET w 1\r\nQUIT\r\n", 2, End::Quit);
const PROTOCOL_ERROR: Mix = mix("SET w 1\r\n*1\r\n!3\r\n", 1, End::ProtocolError);

/// `^` stands for a word too long for a line, and `~` for one longer than the proxy holds.
const MIXES: [Mix; 20] = [
    QUIT,
    PROTOCOL_ERROR,
    mix("QUIT\r\n", 1, End::Quit),
    mix("SET w 1\r\nQUIT\r\nSET v 1\r\n", 2, End::Quit),
    mix("*x\r\n", 0, End::ProtocolError),
    mix("SET w 1\r\n*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$999999999999\r\n", 1, End::ProtocolError),
    mix("SET w 1\r\nGET \"a\r\n", 1, End::ProtocolError),
    mix("SET w 1\r\n^", 1, End::ProtocolError),
    mix("*3\r\n$3\r\nSET\r\n$1\r\nw\r\n$1000000\r\n~\r\nQUIT\r\n", 2, End::Quit),
    mix("SET w 1\r\n*3\r\n$3\r\nSET\r\n$1000000\r\n~\r\n!1\r\n", 1, End::ProtocolError),
    mix("MULTI\r\nSET w 1\r\nEXEC\r\nQUIT\r\n", 4, End::Quit),
    mix("SELECT 1\r\nSET v 1\r\nSELECT 0\r\nSET w 1\r\nQUIT\r\n", 5, End::Quit),
    mix("AUTH default x\r\nSET w 1\r\nQUIT\r\n", 3, End::Quit),
    mix("RESET\r\nSET w 1\r\nQUIT\r\n", 3, End::Quit),
    mix("GET w\r\nSET w 1\r\nGET w\r\nQUIT\r\n", 4, End::Quit),
    mix("BLPOP full 0.05\r\nSET w 1\r\nQUIT\r\n", 3, End::Quit),
    mix("SET w 1\r\nSUBSCRIBE news\r\nQUIT\r\n", 3, End::Quit),
    mix("SET w 1\r\nCLIENT REPLY OFF\r\nSET v 1\r\nQUIT\r\n", 1, End::Quit),
    mix("SET w 1\r\nSUBSCRIBE news\r\n", 2, End::None),
    mix("AUTH default x\r\nSET w 1\r\n*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$5\r\nab", 2, End::None),
];

impl Mix {
    /// The bytes of the blocking command and of the mix, which go out at once.
    fn behind(&self, blocking: &str) -> Vec<u8> {
        let lines = self.lines.replace('^', &"x".repeat(70_000));
        let lines = lines.replace('~', &"x".repeat(1_000_000));
        format!("{blocking}\r\n{lines}").into_bytes()
    }
}

/// Servers to compare, and a proxy that holds little of a command.
fn start() -> RespPair {
    RespPair::between(|server| server, &format!("{LASTING}\nresp.max_query_buffer = \"256KiB\""))
}

/// The server that is reached at this address.
fn server(ways: &RespPair, address: SocketAddr) -> &RedisServer {
    let [straight, behind] = ways.servers();
    if address == ways.straight() { straight } else { behind }
}

/// Empties the server, but for one list with an element.
fn prepare(server: &RedisServer) {
    server.command(&["FLUSHALL"]);
    server.command(&["RPUSH", "full", "one", "two"]);
}

/// The replies to all that was sent, and the keys that it has set.
fn outcome(server: &RedisServer, replies: &[u8]) -> (String, String) {
    (show(replies), format!("{:?}", server.command(&["MGET", "w", "v"])))
}

fn await_blocked(server: &RedisServer, count: usize) {
    eventually("as many clients are blocked", || {
        let info = format!("{:?}", server.command(&["INFO", "clients"]));
        info.contains(&format!("blocked_clients:{count}\\r")).then_some(())
    });
}

#[test]
fn commands_behind_a_blocking_one_are_executed_before_the_end() {
    let ways = start();
    let same = |blocking: &str, mix: &Mix| {
        ways.same(|address| {
            let server = server(&ways, address);
            prepare(server);
            let mut wire = RespClient::connect(address);
            wire.send(mix.behind(blocking));
            let count = blocking.lines().count() + mix.replies;
            let mut replies = wire.answers(count).concat();
            match mix.end {
                End::Quit => {}
                // Redis 8.0 sends the error with the next bytes only.
                End::ProtocolError => wire.send("x"),
                End::None => return outcome(server, &replies),
            }
            replies.extend(wire.rest());
            outcome(server, &replies)
        })
    };
    for mix in &MIXES {
        let (replies, keys) = same("BLPOP none 0.1", mix);
        assert!(replies.starts_with("*-1\\r\\n"), "{:?}: {replies}", mix.lines);
        let is_error = replies.contains("-ERR Protocol error");
        assert_eq!(is_error, mix.end == End::ProtocolError, "{:?}: {replies}", mix.lines);
        assert_eq!(keys.contains('1'), mix.lines.contains("SET w 1"), "{:?}: {keys}", mix.lines);
    }
    for [blocking, _] in BLOCKING {
        same(blocking, &QUIT);
        same(blocking, &PROTOCOL_ERROR);
    }
}

#[test]
fn half_close_drops_a_blocked_command_and_all_behind_it() {
    let ways = start();
    let same = |blocking: &str, mix: &Mix, is_blocked_first: bool| {
        let (replies, keys) = ways.same(|address| {
            let server = server(&ways, address);
            prepare(server);
            let mut wire = RespClient::connect(address);
            wire.send(mix.behind(blocking));
            if is_blocked_first {
                await_blocked(server, 1);
            }
            wire.end_sending();
            let replies = wire.rest();
            await_blocked(server, 0);
            outcome(server, &replies)
        });
        assert!(!keys.contains('1'), "{blocking} {:?}: {replies} {keys}", mix.lines);
    };
    for mix in &MIXES {
        same("BLPOP none 0", mix, false);
        same("BLPOP none 0", mix, true);
    }
    for [_, blocking] in BLOCKING {
        same(blocking, &QUIT, true);
        same(blocking, &mix("SET w 1\r\n", 1, End::None), false);
    }
}

#[test]
fn half_close_behind_a_command_that_need_not_block_loses_nothing() {
    let ways = start();
    // The state of the connection is nothing that another one could take over.
    for before in ["BLPOP full 0", "WATCH key\r\nBLPOP full 0", "GET none\r\nWAIT 0 0"] {
        for mix in &MIXES {
            let is_second_blocked = mix.lines.contains("BLPOP");
            ways.same(|address| {
                let server = server(&ways, address);
                prepare(server);
                let mut wire = RespClient::connect(address);
                wire.query_line("SELECT 0");
                // All of it, and its end, come while nothing is answered.
                server.pause();
                wire.send_what_is_taken(&mix.behind(before));
                wire.end_sending();
                let patience = Duration::from_millis(50);
                assert_eq!(within(patience, || None::<()>), None);
                server.resume();
                let (replies, keys) = outcome(server, &wire.rest());
                let is_set = mix.lines.contains("SET w 1");
                assert!(is_second_blocked || keys.contains('1') == is_set, "{replies} {keys}");
                (replies, keys)
            });
        }
    }
}

#[test]
fn close_behind_a_blocked_quit_takes_no_element() {
    let ways = start();
    for mix in [&QUIT, &PROTOCOL_ERROR, &MIXES[16]] {
        for is_reset in [false, true] {
            ways.same(|address| {
                let server = server(&ways, address);
                prepare(server);
                let mut wire = RespClient::connect(address);
                if is_reset {
                    // A reply that is not read resets the connection.
                    wire.send("PING\r\n");
                }
                wire.send(mix.behind("BLPOP none 0"));
                await_blocked(server, 1);
                drop(wire);
                await_blocked(server, 0);
                let pushed = format!("{:?}", server.command(&["RPUSH", "none", "job"]));
                (pushed, outcome(server, &[]))
            });
        }
    }
}

#[test]
fn quit_behind_a_long_block_outlives_every_timer() {
    /// Longer than a connection that is closing may stand still.
    const BLOCKED: Duration = Duration::from_secs(33);
    // It takes as long as that.
    if number("RESP_LONG").is_none() {
        return;
    }
    let more = format!("{LASTING}\nresp.idle_timeout = \"1s\"");
    let ways = RespPair::between(|server| server, &more);
    let server = ways.servers()[1];
    let mut wires = [&QUIT, &PROTOCOL_ERROR].map(|mix| {
        let mut wire = RespClient::connect(ways.through());
        wire.send(mix.behind("BLPOP list 0"));
        wire
    });
    await_blocked(server, 2);
    assert_eq!(within(BLOCKED, || None::<()>), None);
    await_blocked(server, 2);
    server.command(&["RPUSH", "list", "job", "job"]);
    for (wire, end) in wires.iter_mut().zip(["+OK", "-ERR"]) {
        let popped = "*2\\r\\n$4\\r\\nlist\\r\\n$3\\r\\njob\\r\\n+OK\\r\\n";
        if end == "-ERR" {
            wire.send("x");
        }
        let replies = show(&wire.rest());
        assert!(replies.starts_with(&format!("{popped}{end}")), "{replies}");
    }
}

/// A proxy that takes its time to stop.
fn slow_to_stop() -> (Proxy, RedisServer) {
    let redis = RedisServer::start();
    let more = format!("{LASTING}\ndaemon.drain_timeout = \"20s\"");
    let proxy = Proxy::start(&resp_config(&redis.url(), &more));
    await_ready(&proxy);
    (proxy, redis)
}

#[test]
fn stop_ends_a_blocked_client_that_has_sent_quit() {
    if is_straight() {
        return;
    }
    let (proxy, redis) = slow_to_stop();
    let mut wires = [&QUIT, &PROTOCOL_ERROR].map(|mix| {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(mix.behind("BLPOP none 0"));
        wire
    });
    await_blocked(&redis, 2);
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    for wire in &mut wires {
        assert_eq!(show(&wire.rest()), "");
    }
    proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    await_blocked(&redis, 0);
}

#[test]
fn stop_waits_for_replies_in_front_of_a_subscription() {
    if is_straight() {
        return;
    }
    let (proxy, redis) = slow_to_stop();
    let mut wire = RespClient::connect(proxy.resp_address());
    wire.query_line("SET n 1");
    redis.pause();
    wire.send([words("INCR n"), words("SUBSCRIBE news")].concat());
    eventually("both are taken up", || {
        let subscribed = proxy.metrics().value("redis_proxy_commands_total{command=\"subscribe\"}");
        (subscribed == Some(1.0)).then_some(())
    });
    proxy.signal(Signal::TERM);
    proxy.wait_for_log(|line| line.has_message("stopping"));
    let enough = Duration::from_millis(600);
    let has_ended =
        || proxy.log_lines().iter().any(|line| line.has_message("stopped")).then_some(());
    assert_eq!(within(enough, has_ended), None, "it ended without what it owes");
    redis.resume();
    let replies = show(&wire.rest());
    assert!(replies.starts_with(":2\\r\\n"), "{replies}");
    proxy.finish();
}

/// The same before a cluster.
#[test]
fn cluster_executes_commands_behind_a_blocking_one() {
    if is_straight() {
        return;
    }
    let (cluster, proxy) = before_cluster();
    let plain = RedisServer::builder().tcp().start();
    for lines in [
        "SET {q}w 1\r\nQUIT\r\n",
        "SET other 1\r\nQUIT\r\n",
        "QUIT\r\n",
        "SET {q}w 1\r\n*1\r\n!3\r\n",
        "MULTI\r\nSET {q}w 1\r\nEXEC\r\nQUIT\r\n",
        "GET {q}w\r\nSET {q}w 1\r\nGET {q}w\r\nQUIT\r\n",
    ] {
        let replies = [plain.tcp_address(), proxy.resp_address()].map(|address| {
            RespClient::connect(address).query_line("DEL {q}w");
            let mut wire = RespClient::connect(address);
            wire.send(format!("BLPOP {{q}}none 0.1\r\n{lines}"));
            let first = wire.answers(2).concat();
            if lines.contains('!') {
                // Redis 8.0 sends the error with the next bytes only.
                wire.send("x");
            }
            let replies = show(&[first, wire.rest()].concat());
            (replies, RespClient::connect(address).reply_to("EXISTS {q}w"))
        });
        assert_eq!(replies[1], replies[0], "{lines:?}");
    }
    drop((proxy, cluster));
}

/// No blocked command outlives its client at the nodes either.
#[test]
fn cluster_drops_a_blocked_command_of_a_closed_client() {
    if is_straight() {
        return;
    }
    let (cluster, proxy) = before_cluster();
    let await_blocked = |is_awaited: bool| {
        eventually("a node has a blocked client, or none", || {
            let is_blocked = cluster.nodes.iter().any(|node| {
                let info = format!("{:?}", node.command(&["INFO", "clients"]));
                !info.contains("blocked_clients:0\\r")
            });
            (is_blocked == is_awaited).then_some(())
        });
    };
    for lines in ["", "SET {q}w 1\r\n", "QUIT\r\n", "SET {q}w 1\r\nQUIT\r\n", "*1\r\n!3\r\n"] {
        for is_half in [true, false] {
            let mut wire = RespClient::connect(proxy.resp_address());
            wire.send(format!("BLPOP {{q}}none 0\r\n{lines}"));
            await_blocked(true);
            if is_half {
                wire.end_sending();
                assert_eq!(show(&wire.rest()), "", "{lines:?}");
            }
            drop(wire);
            await_blocked(false);
            assert_eq!(
                RespClient::connect(proxy.resp_address()).reply_to("EXISTS {q}w"),
                ":0\\r\\n"
            );
        }
    }
    drop(proxy);
}

/// Three primaries, and a proxy that ends before they do.
fn before_cluster() -> (RedisCluster, Proxy) {
    let cluster = RedisCluster::of(3);
    let settings = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
                    resp.listen = \"127.0.0.1:0\"\ndaemon.worker_threads = 2\n\
                    http.max_connections = 100\nresp.max_connections = 100\n\
                    redis.ping_interval = \"100ms\"\n";
    let proxy = Proxy::start(&format!("{settings}{LASTING}\n{}", cluster.settings()));
    proxy.expect_log("no connection to Redis");
    await_ready(&proxy);
    (cluster, proxy)
}

/// A command that need not block, others behind it, and a client that closes its sending side.
#[test]
fn cluster_half_close_behind_a_ready_list_loses_nothing() {
    if is_straight() {
        return;
    }
    let (cluster, proxy) = before_cluster();
    let plain = RedisServer::builder().tcp().start();
    for lines in ["SET {q}w 1\r\n", "SET {q}w 1\r\nQUIT\r\n", "SET other 1\r\nGET other\r\n"] {
        let replies = [plain.tcp_address(), proxy.resp_address()].map(|address| {
            RespClient::connect(address).query_line("DEL {q}w");
            let mut wire = RespClient::connect(address);
            wire.query_line("RPUSH {q}full job");
            wire.send(format!("BLPOP {{q}}full 0\r\n{lines}"));
            wire.end_sending();
            (show(&wire.rest()), RespClient::connect(address).reply_to("EXISTS {q}w"))
        });
        assert_eq!(replies[1], replies[0], "{lines:?}");
    }
    drop((proxy, cluster));
}
