//! Pipelines in any packets.
//!
//! Promise: each command is answered as if it had come alone, whatever the packets and its
//! neighbours.

use std::time::Duration;

use crate::support::resp_client::{RespClient, command, show, words};
use crate::support::resp_pair::RespPair;
use crate::support::within;

#[test]
fn transaction_after_another_in_a_pipeline_is_atomic() {
    let ways = RespPair::start();
    for end in ["EXEC", "DISCARD", "RESET"] {
        let received = ways.same(|address| {
            let mut wire = RespClient::connect(address);
            for line in ["SET hot value", "GET hot"] {
                wire.query_line(line);
            }
            wire.send(["MULTI", "SET a 1", end, "MULTI"].map(words).concat());
            let mut received: Vec<_> = wire.answers(4).iter().map(|answer| show(answer)).collect();
            // All replies have arrived, so only the session state shows that this is to be queued.
            received
                .extend(["GET hot", "MGET hot", "EXEC", "GET hot"].map(|line| wire.reply_to(line)));
            received
        });
        assert_eq!(received[4], "+QUEUED\\r\\n", "{received:#?}");
    }
}

#[test]
fn watch_after_exec_in_a_pipeline_holds() {
    let ways = RespPair::start();
    for end in ["EXEC", "DISCARD", "UNWATCH"] {
        let mut wire = RespClient::connect(ways.through());
        for line in ["SET k 1", "GET k"] {
            wire.query_line(line);
        }
        wire.send(["WATCH k", "MULTI", end, "WATCH k"].map(words).concat());
        wire.answers(4);
        let is_still_in_multi = end == "UNWATCH";
        let expected = if is_still_in_multi { "+QUEUED\\r\\n" } else { "$1\\r\\n1\\r\\n" };
        ways.expect_from_memory(0.0, || {
            assert_eq!(wire.reply_to("GET k"), expected, "behind {end}");
        });
    }
}

#[test]
fn late_protocol_error_keeps_earlier_replies() {
    /// The time in which the proxy accepts input while the first reply is pending.
    const TAKEN_UP: Duration = Duration::from_millis(200);
    let ways = RespPair::start();
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        for line in ["SET hot value", "GET hot", "GET hot"] {
            wire.query_line(line);
        }
        ways.servers().iter().for_each(|server| server.pause());
        // A word is missing, and the bytes in its place are invalid.
        let long =
            [b"*4\r\n", &command(&[&b"SET"[..], b"key", &vec![b'x'; 1_048_600]])[4..]].concat();
        for sent in [&[words("PING"), words("GET hot")].concat(), &long, &b"X5\r\n"[..]] {
            wire.send(sent);
            assert_eq!(within(TAKEN_UP, || None::<()>), None);
        }
        ways.servers().iter().for_each(|server| server.resume());
        show(&wire.rest())
    });
}
