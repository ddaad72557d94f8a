//! Memory for the input of one client.
//!
//! Promise: commands and keys of one client take a bounded part of the proxy's memory.

use crate::support::memory::resident;
use crate::support::resp_client::{RespClient, bulk, show, words};
use crate::support::resp_pair::{RespPair, is_straight};
use crate::support::serving::metric;
use crate::support::{Proxy, eventually};

const MEBIBYTE: u64 = 1 << 20;

#[test]
fn long_key_is_read_but_not_cached() {
    const KEYS: usize = 100;
    let ways = RespPair::start();
    let Some(proxy) = ways.proxy() else { return };
    let long = |number: usize| format!("{number:06}{}", "k".repeat(900_000));
    ways.behind().command(&["SET", &long(7), "seven"]);
    let mut wire = RespClient::connect(ways.through());
    let before = resident(proxy.pid());
    for number in 0..KEYS {
        let expected = if number == 7 { "$5\\r\\nseven\\r\\n" } else { "$-1\\r\\n" };
        assert_eq!(wire.reply_to_words(&["GET", &long(number)]), expected);
        assert_eq!(
            wire.reply_to_words(&["MGET", "none", &long(number)]),
            format!("*2\\r\\n$-1\\r\\n{expected}")
        );
    }
    let more = resident(proxy.pid()).saturating_sub(before);
    assert!(more < 40 * MEBIBYTE, "{more} bytes more after {KEYS} keys");
    assert!(ways.reads(&["bypass"]) >= Some(100.0), "some were kept");
    // A key of the greatest cached length.
    let longest = "k".repeat(16 << 10);
    wire.reply_to_words(&["GET", &longest]);
    ways.expect_from_memory(1.0, || {
        assert_eq!(wire.reply_to_words(&["GET", &longest]), "$-1\\r\\n");
    });
}

#[test]
fn input_behind_blocked_command_is_bounded() {
    const PAIRS: usize = 150_000;
    const MOST_OWED: f64 = 262_144.0;
    if is_straight() {
        return;
    }
    let ways = RespPair::start();
    let proxy = ways.proxy().unwrap();
    let mut wire = RespClient::connect(ways.through());
    wire.send(words("BLPOP list 0"));
    let mut sender = wire.sender();
    let talk = std::thread::spawn(move || {
        std::io::Write::write_all(&mut sender, &b"PING\r\nINCR n\r\n".repeat(PAIRS))
    });
    eventually("so many are taken up", || (taken(proxy) >= MOST_OWED - 2.0).then_some(()));
    // No more than these are accepted.
    let most = taken(proxy);
    assert!(most <= MOST_OWED, "{most} commands are taken up");
    ways.behind().command(&["RPUSH", "list", "job"]);
    assert_eq!(wire.answer(), [b"*2\r\n", &bulk("list")[..], &bulk("job")].concat());
    for number in 1..=PAIRS {
        assert_eq!(show(&wire.answer()), "+PONG\\r\\n");
        assert_eq!(show(&wire.answer()), format!(":{number}\\r\\n"));
    }
    talk.join().unwrap().unwrap();
}

fn taken(proxy: &Proxy) -> f64 {
    metric(proxy, "commands_total{command=\"ping\"}")
        + metric(proxy, "commands_total{command=\"incr\"}")
}
