//! Pub/sub, monitoring and client-side tracking.
//!
//! Promise: a client receives every push in order with its replies, in RESP2 and RESP3.

use std::net::SocketAddr;

use crate::support::resp_client::{RespClient, command, show, words};
use crate::support::resp_pair::RespPair;

#[test]
fn subscribers_receive_published_messages() {
    let ways = RespPair::start();
    for connect in [RespClient::connect, RespClient::connect_resp3] {
        ways.same(|address| hear(address, connect));
    }
}

fn hear(address: SocketAddr, connect: fn(SocketAddr) -> RespClient) -> Vec<String> {
    let (mut subscriber, mut publisher) = (connect(address), RespClient::connect(address));
    publisher.query_line("SET key value");
    let mut heard = Vec::new();
    let mut hear = |subscriber: &mut RespClient, count: usize| {
        heard.extend(subscriber.answers(count).iter().map(|answer| show(answer)));
    };
    // From memory first, and in order with pipelined commands.
    subscriber.send(
        [
            words("GET key"),
            words("GET key"),
            words("SUBSCRIBE news weather"),
            words("PSUBSCRIBE n*"),
        ]
        .concat(),
    );
    hear(&mut subscriber, 5);
    for line in ["PUBLISH news one", "PUBLISH weather two", "PUBLISH none x", "PUBLISH silence x"] {
        publisher.query_line(line);
    }
    hear(&mut subscriber, 4);
    // A command outside of pub/sub is an error in RESP2 and works in RESP3.
    subscriber.send(
        [words("GET key"), words("PING"), words("UNSUBSCRIBE news"), words("PUNSUBSCRIBE")]
            .concat(),
    );
    hear(&mut subscriber, 4);
    subscriber
        .send([words("SSUBSCRIBE shard"), words("UNSUBSCRIBE"), words("SUNSUBSCRIBE")].concat());
    hear(&mut subscriber, 3);
    // Afterwards it is an ordinary connection.
    publisher.query_line("SET key changed");
    subscriber.send(
        [
            words("GET key"),
            words("UNSUBSCRIBE"),
            words("GET key"),
            words("RESET"),
            words("GET key"),
        ]
        .concat(),
    );
    hear(&mut subscriber, 5);
    heard
}

#[test]
fn published_burst_arrives_in_order() {
    const MESSAGES: usize = 20_000;
    let ways = RespPair::start();
    let address = ways.through();
    let mut subscriber = RespClient::connect(address);
    subscriber.query_line("SUBSCRIBE news");
    let mut publisher = RespClient::connect(address);
    let publish: Vec<u8> =
        (0..MESSAGES).flat_map(|number| words(&format!("PUBLISH news {number}"))).collect();
    publisher.send(publish);
    for number in 0..MESSAGES {
        let expected = format!(
            "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${}\r\n{number}\r\n",
            number.to_string().len()
        );
        assert_eq!(show(&subscriber.answer()), show(expected.as_bytes()));
    }
    assert!(publisher.answers(MESSAGES).iter().all(|answer| answer == b":1\r\n"));
}

#[test]
fn oversized_subscription_is_streamed() {
    let ways = RespPair::start();
    let channels: Vec<_> =
        (0..30_000).map(|number| format!("channel-with-a-long-enough-name:{number:020}")).collect();
    let subscribe: Vec<_> =
        ["SUBSCRIBE"].into_iter().chain(channels.iter().map(String::as_str)).collect();
    for connect in [RespClient::connect, RespClient::connect_resp3] {
        ways.same(|address| {
            let mut wire = connect(address);
            wire.send(
                [
                    command(&subscribe),
                    words("AUTH default wrong x"),
                    words("PING"),
                    words("GET key"),
                ]
                .concat(),
            );
            let received = wire.answers(channels.len() + 3);
            let mut other = RespClient::connect(address);
            other.query_line(&format!("PUBLISH {} message", channels[29_999]));
            (
                received[0].clone(),
                show(&received.concat()[..]).len(),
                show(&received[channels.len() - 1]),
                show(&wire.answer()),
            )
        });
    }
}

#[test]
fn client_side_tracking_pushes_are_delivered() {
    let ways = RespPair::start();
    ways.same(|address| {
        let (mut reader, mut writer) =
            (RespClient::connect_resp3(address), RespClient::connect(address));
        writer.query_line("SET key one");
        let mut received = Vec::new();
        for line in ["GET key", "CLIENT TRACKING ON", "GET key"] {
            received.push(reader.reply_to(line));
        }
        writer.query_line("SET key two");
        // The pushes, and then a reply.
        received.push(show(&reader.answer()));
        received.push(reader.reply_to("GET key"));
        received
    });
}

#[test]
fn client_reply_off_is_honoured() {
    let ways = RespPair::start();
    ways.same(|address| {
        let mut wire = RespClient::connect(address);
        wire.query_line("SET key value");
        wire.query_line("GET key");
        for line in ["CLIENT REPLY OFF", "GET key", "SET key other", "GET key"] {
            wire.send(words(line));
        }
        let mut received = vec![wire.reply_to("CLIENT REPLY ON"), wire.reply_to("GET key")];
        wire.send([words("CLIENT REPLY SKIP"), words("GET key")].concat());
        received.extend([wire.reply_to("PING"), wire.reply_to("GET key")]);
        received
    });
}

#[test]
fn monitor_shows_commands_of_others() {
    let ways = RespPair::start();
    ways.same(|address| {
        let (mut monitor, mut other) = (RespClient::connect(address), RespClient::connect(address));
        let received = monitor.reply_to("MONITOR");
        other.query_line("SET seen yes");
        loop {
            let line = String::from_utf8(monitor.answer()).unwrap();
            if line.contains("\"seen\"") {
                return (received, line.split('"').skip(1).map(str::to_owned).collect::<Vec<_>>());
            }
        }
    });
}
