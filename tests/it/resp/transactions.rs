//! Transactions and other session state.
//!
//! Promise: while the state of a connection rules out replies from memory, Redis replies;
//! afterwards memory does again.

use crate::support::resp_client::{RespClient, show, show_without_id, words};
use crate::support::resp_pair::RespPair;

#[test]
fn stateful_session_matches_redis() {
    let ways = RespPair::start();
    let talks: [&[&str]; 13] = [
        &[
            "SET k 1", "GET k", "MULTI", "GET k", "MGET k k", "EXISTS k", "STRLEN k", "INCR k",
            "GET k", "EXEC", "GET k",
        ],
        &["MULTI", "MULTI", "GET k", "DISCARD", "GET k", "EXEC", "GET k"],
        &["MULTI", "NONESUCH", "GET k", "EXEC", "GET k"],
        &["MULTI", "GET", "EXEC", "GET k", "EXEC x", "GET k"],
        &["MULTI x", "GET k", "GET k"],
        &["MULTI", "SET k 5", "RESET", "GET k", "EXEC", "GET k"],
        &["MULTI", "SELECT 1", "GET k", "SET k other", "EXEC", "GET k", "SELECT 0", "GET k"],
        &["WATCH k", "GET k", "MULTI", "GET k", "WATCH k", "EXEC", "GET k", "UNWATCH", "GET k"],
        &["WATCH", "GET k", "WATCH k", "SET k 6", "MULTI", "SET k 7", "EXEC", "GET k"],
        &[
            "SELECT 1",
            "GET k",
            "SET k one",
            "GET k",
            "SELECT 0",
            "GET k",
            "SELECT 16",
            "GET k",
            "SELECT",
            "GET k",
        ],
        &[
            "SELECT 1",
            "RESET",
            "GET k",
            "MOVE k 1",
            "GET k",
            "SET k 8",
            "SWAPDB 0 1",
            "GET k",
            "SWAPDB 0 1",
            "GET k",
        ],
        &[
            "HELLO 3",
            "GET absent",
            "MULTI",
            "HELLO 2",
            "GET absent",
            "EXEC",
            "GET absent",
            "HELLO 2",
            "GET absent",
        ],
        &["EVAL redis.call('SELECT',1)redis.call('SET','k','s')return(1) 0", "GET k", "QUIT"],
    ];
    for talk in talks {
        ways.same(|address| {
            let mut wire = RespClient::connect(address);
            wire.query_line("SET k 1");
            // One by one, then pipelined.
            let received: Vec<_> = talk
                .iter()
                .map(|line| format!("{line}: {}", show_without_id(&wire.query_line(line))))
                .collect();
            let mut wire = RespClient::connect(address);
            wire.send(talk.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
            let at_once: Vec<_> =
                wire.answers(talk.len()).iter().map(|answer| show_without_id(answer)).collect();
            (received, at_once)
        });
    }
}

#[test]
fn watch_detects_changes_of_others() {
    let ways = RespPair::start();
    ways.same(|address| {
        let (mut one, mut other) = (RespClient::connect(address), RespClient::connect(address));
        let mut received = vec![one.reply_to("SET k 1"), one.reply_to("GET k")];
        for change in ["SET k 2", "EXPIRE k 0", "FLUSHALL", "GET k"] {
            received.push(one.reply_to("WATCH k"));
            received.push(other.reply_to(change));
            // Read from Redis, because memory may not have the change yet.
            received.push(one.reply_to("GET k"));
            received.push(one.reply_to("MULTI"));
            received.push(one.reply_to("SET k mine"));
            received.push(one.reply_to("EXEC"));
            received.push(one.reply_to("GET k"));
        }
        received
    });
}

#[test]
fn blocking_pop_keeps_reply_order() {
    let ways = RespPair::start();
    ways.same(|address| {
        let (mut one, mut other) = (RespClient::connect(address), RespClient::connect(address));
        one.query_line("SET k before");
        one.query_line("GET k");
        one.send([words("BLPOP list 0"), words("GET k"), words("STRLEN k")].concat());
        while !show(&other.query_line("CLIENT LIST")).contains("flags=b") {}
        let mut received = vec![other.reply_to("SET k after"), other.reply_to("RPUSH list job")];
        received.extend(one.answers(3).iter().map(|answer| show(answer)));
        received.push(one.reply_to("BLPOP list 0.01"));
        received.push(one.reply_to("GET k"));
        received
    });
}

#[test]
fn memory_serves_again_after_the_state_ends() {
    let ways = RespPair::start();
    let mut wire = RespClient::connect(ways.through());
    let setups: [&[&str]; 9] = [
        &["MULTI", "SET other 1", "EXEC"],
        &["MULTI", "DISCARD"],
        &["WATCH k", "UNWATCH"],
        &["WATCH k", "MULTI", "EXEC"],
        &["SELECT 1", "SELECT 0"],
        &["MULTI", "SELECT 1", "RESET"],
        // A rejected command changes nothing.
        &["MULTI x"],
        &["WATCH"],
        &["EXEC", "DISCARD", "SELECT 99", "HELLO 9", "AUTH default"],
    ];
    wire.query_line("SET k value");
    wire.query_line("GET k");
    for setup in setups {
        for line in setup {
            wire.query_line(line);
        }
        eprintln!("{setup:?}");
        ways.expect_from_memory(3.0, || (0..3).for_each(|_| _ = wire.query_line("GET k")));
    }
    // During the state memory does not reply.
    for line in ["MULTI", "WATCH k", "SELECT 1"] {
        wire.query_line(line);
        ways.expect_from_memory(0.0, || _ = wire.query_line("GET k"));
        wire.query_line("RESET");
    }
}

#[test]
fn select_after_a_queued_select_restores_hits() {
    let ways = RespPair::start();
    for server in ways.servers() {
        server.command(&["SET", "key", "value"]);
    }
    ways.same_answers(&["GET key"]);
    for end in ["EXEC", "DISCARD"] {
        ways.expect_from_memory(2.0, || {
            let received = ways.same_answers(&[
                "MULTI", "SELECT 1", end, "GET key", "SELECT 0", "GET key", "GET key",
            ]);
            assert!(received[6].contains("value"), "{received:#?}");
        });
    }
}
