//! However commands are cut into packets, each is answered as if it had come by itself.

use std::time::Duration;

use super::ways::Ways;
use super::wire::{Wire, command, show, words};
use crate::support::within;

#[test]
fn a_transaction_begun_behind_the_end_of_another_is_one() {
    let ways = Ways::start();
    for end in ["EXEC", "DISCARD", "RESET"] {
        let told = ways.same(|address| {
            let mut wire = Wire::connect(address);
            for line in ["SET hot value", "GET hot"] {
                wire.ask_line(line);
            }
            wire.send(["MULTI", "SET a 1", end, "MULTI"].map(words).concat());
            let mut told: Vec<_> = wire.answers(4).iter().map(|answer| show(answer)).collect();
            // The answers are here, so only what is remembered of them tells that this is to be queued.
            told.extend(
                ["GET hot", "MGET hot", "EXEC", "GET hot"].map(|line| wire.told_line(line)),
            );
            told
        });
        assert_eq!(told[4], "+QUEUED\\r\\n", "{told:#?}");
    }
}

#[test]
fn a_watch_said_behind_the_end_of_a_transaction_holds() {
    let ways = Ways::start();
    for end in ["EXEC", "DISCARD", "UNWATCH"] {
        let mut wire = Wire::connect(ways.through());
        for line in ["SET k 1", "GET k"] {
            wire.ask_line(line);
        }
        wire.send(["WATCH k", "MULTI", end, "WATCH k"].map(words).concat());
        wire.answers(4);
        let is_still_in_multi = end == "UNWATCH";
        let expected = if is_still_in_multi { "+QUEUED\\r\\n" } else { "$1\\r\\n1\\r\\n" };
        ways.expect_from_memory(0.0, || {
            assert_eq!(wire.told_line("GET k"), expected, "behind {end}");
        });
    }
}

#[test]
fn what_is_wrong_at_the_end_of_a_long_command_takes_no_answer_from_those_before() {
    /// For what was sent to be taken up while the first answer is still to come.
    const TAKEN_UP: Duration = Duration::from_millis(200);
    let ways = Ways::start();
    ways.same(|address| {
        let mut wire = Wire::connect(address);
        for line in ["SET hot value", "GET hot", "GET hot"] {
            wire.ask_line(line);
        }
        ways.servers().iter().for_each(|server| server.pause());
        // A word is missing, and what stands in its place is none.
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
