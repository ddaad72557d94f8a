//! Malformed and unusual commands.
//!
//! Promise: the proxy accepts and rejects the same bytes as Redis, with the same errors and the
//! same closed connections.

use std::net::SocketAddr;

use crate::support::resp_client::{RespClient, show};
use crate::support::resp_pair::RespPair;

/// Bytes, and the number of their replies.
type Case<'a> = (&'a [u8], usize);

const PROTOCOL_ERRORS: [Case<'static>; 32] = [
    (b"*x\r\n", 1),
    (b"*\r\n", 1),
    (b"*1x\r\n", 1),
    (b"*+1\r\n", 1),
    (b"* 1\r\n", 1),
    (b"*01\r\n", 1),
    (b"*-\r\n", 1),
    (b"*1.0\r\n", 1),
    (b"*2147483648\r\n", 1),
    (b"*9223372036854775808\r\n", 1),
    (b"*1\r\n+PING\r\n", 1),
    (b"*1\r\n:4\r\n", 1),
    (b"*1\r\nPING\r\n", 1),
    (b"*1\r\n*1\r\n", 1),
    (b"*1\r\n\r\n", 1),
    (b"*1\r\n\xff\r\n", 1),
    (b"*1\r\n$\r\n", 1),
    (b"*1\r\n$x\r\n", 1),
    (b"*1\r\n$-1\r\n", 1),
    (b"*1\r\n$-0\r\n", 1),
    (b"*1\r\n$04\r\n", 1),
    (b"*1\r\n$4 \r\n", 1),
    (b"*1\r\n$536870913\r\n", 1),
    (b"*1\r\n$99999999999999999999\r\n", 1),
    (b"*2\r\n$3\r\nGET\r\n:1\r\n", 1),
    (b"*2\r\n$4\r\nECHO\r\n$1\r\naXX*1\r\n!\r\n", 2),
    (b"GET \"key\r\n", 1),
    (b"GET 'key\r\n", 1),
    (b"GET \"key\"x\r\n", 1),
    (b"GET 'key'x\r\n", 1),
    (b"\"\r\n", 1),
    (b"PING\r\nGET a\r\n*1\r\n$x\r\n", 3),
];

const INLINE: [Case<'static>; 24] = [
    (b"PING\r\n", 1),
    (b"PING\n", 1),
    (b"pInG hello\r\n", 1),
    (b"  PING  \t hello \r\n", 1),
    (b"SET key \"a b\"\r\nGET key\r\n", 2),
    (b"SET key 'a \\' \"b'\r\nGET key\r\n", 2),
    (b"SET key \"\\x00\\xFF\\n\\r\\t\\b\\a\\\\\\q\\\"\"\r\nGET key\r\n", 2),
    (b"SET key \"\"\r\nGET key\r\nSTRLEN key\r\n", 3),
    (b"SET \"\" ''\r\nGET ''\r\n", 2),
    (b"SET k\"e\"y x\r\n", 1),
    (b"ECHO \"\\xZZ\"\r\n", 1),
    (b"ECHO \x0b\x0ca\x0b\r\n", 1),
    (b"GET key extra\r\n", 1),
    (b"$4\r\n", 1),
    (b"+OK\r\n", 1),
    (b":1\r\n", 1),
    (b"\r\n", 0),
    (b"\n", 0),
    (b" \t \r\n", 0),
    (b"*0\r\n", 0),
    (b"*-1\r\n", 0),
    (b"*-2147483648\r\n", 0),
    (b"\r\n*0\r\n\r\nPING\r\n*-1\r\nGET key\r\n", 2),
    (b"\xff\xfe x\r\n", 1),
];

#[test]
fn malformed_command_errors_match_redis() {
    let ways = RespPair::start();
    for (bytes, answers) in PROTOCOL_ERRORS {
        let (_, is_closed) = same_exchange(&ways, bytes, answers);
        assert!(is_closed, "{}", show(bytes));
    }
}

#[test]
fn overlong_line_is_rejected() {
    let ways = RespPair::start();
    let long = |start: &[u8]| [start, &vec![b'1'; 65_540][..]].concat();
    for start in [&b"*"[..], b"*1\r\n$", b"PING "] {
        same_exchange(&ways, &long(start), 1);
    }
    // A line with an end is accepted up to the limit of Redis.
    same_exchange(&ways, &[b"ECHO ", &vec![b'x'; 60_000][..], b"\r\n"].concat(), 1);
}

#[test]
fn inline_commands_are_accepted() {
    let ways = RespPair::start();
    for (bytes, answers) in INLINE {
        same_exchange(&ways, bytes, answers);
    }
}

#[test]
fn http_request_on_resp_port_closes() {
    let ways = RespPair::start();
    for bytes in
        [&b"POST / HTTP/1.1\r\n"[..], b"Host: example\r\n", b"GET / HTTP/1.1\r\nHost: example\r\n"]
    {
        same_exchange(&ways, bytes, usize::from(bytes.starts_with(b"GET")));
    }
}

#[test]
fn pipeline_may_be_split_anywhere() {
    let pipeline: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\n\r\n$3\r\n*1\r\n$1\r\r\nGET k\r\n\
        *2\r\n$3\r\nGET\r\n$1\r\nk\r\n\r\n*0\r\n\
                            *3\r\n$4\r\nMGET\r\n$1\r\nk\r\n$6\r\nabsent\r\nSET k \"q\\\"\"\r\n\
                            *2\r\n$6\r\nSTRLEN\r\n$1\r\nk\r\n";
    let ways = RespPair::start();
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        let received = |wire: &mut RespClient| {
            wire.answers(6).iter().map(|answer| show(answer)).collect::<Vec<_>>()
        };
        let whole = {
            wire.send(pipeline);
            received(&mut wire)
        };
        for cut in 1..pipeline.len() {
            wire.send(&pipeline[..cut]);
            // Every replied command was read, and probably the bytes behind it too.
            std::thread::yield_now();
            wire.send(&pipeline[cut..]);
            assert_eq!(received(&mut wire), whole, "cut at {cut}");
        }
        whole
    });
}

#[test]
fn absent_and_wrong_type_replies_match_redis() {
    const READS: [&str; 11] = [
        "GET absent",
        "MGET absent list string",
        "EXISTS absent list string string",
        "STRLEN absent",
        "GETRANGE absent 0 -1",
        "GET list",
        "STRLEN list",
        "GETRANGE list 0 -1",
        "SUBSTR string 1 2",
        "GETRANGE string -2 -1",
        "MGET list",
    ];
    let ways = RespPair::start();
    for hello in ["HELLO 2", "HELLO 3", "PING"] {
        ways.same(|address| {
            let mut wire = RespClient::connect(address);
            wire.query_line(hello);
            wire.query_line("RPUSH list 1");
            wire.query_line("SET string value");
            // The second time from memory, where the value is there.
            let twice = READS.iter().chain(&READS);
            twice.map(|line| format!("{line}: {}", wire.reply_to(line))).collect::<Vec<_>>()
        });
    }
    ways.expect_from_memory(4.0, || {
        let mut wire = RespClient::connect(ways.through());
        ["GET absent", "GET string", "STRLEN string", "EXISTS absent"]
            .map(|line| wire.reply_to(line))
    });
}

/// Returns the replies to bytes and whether the connection is closed then; equal over both paths.
#[track_caller]
fn same_exchange(ways: &RespPair, bytes: &[u8], answers: usize) -> (String, bool) {
    let sent = show(bytes);
    let (_, received, is_closed) = ways.same(|address| {
        let (received, is_closed) = exchange(address, bytes, answers);
        (sent.clone(), received, is_closed)
    });
    (received, is_closed)
}

#[track_caller]
fn exchange(address: SocketAddr, bytes: &[u8], answers: usize) -> (String, bool) {
    let mut wire = RespClient::connect(address);
    wire.send(bytes);
    let received = |wire: &mut RespClient| {
        wire.try_answer().map_or_else(|error| error.to_string(), |answer| show(&answer))
    };
    let received: Vec<_> = (0..answers).map(|_| received(&mut wire)).collect();
    let Some(is_closed) = wire.is_closed() else {
        panic!("neither closed nor answered behind {}; received {received:?}", show(bytes));
    };
    (received.join(" "), is_closed)
}
