//! Streams of events: `/subscribe`, `/psubscribe` and `/monitor`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::support::{Served, TOKENS, json, request, start_rest};
use crate::support::cluster::RedisCluster;
use crate::support::memory::resident;
use crate::support::secret_file::SecretFile;
use crate::support::{Proxy, Signal, eventually};

const FULL: (&str, &str) = ("Authorization", "Bearer full-token");
const EVENTS: (&str, &str) = ("Accept", "text/event-stream");

/// A client that reads a stream of events.
struct Reader {
    socket: TcpStream,
    text: String,
}

impl Reader {
    /// Sends a request as `@upstash/redis` does, with an empty list as its body.
    fn open(proxy: &Proxy, path: &str, token: &str) -> Self {
        let mut socket = TcpStream::connect(proxy.http()).expect("a connection");
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", &*authorization), EVENTS];
        socket.write_all(&request("POST", path, &headers, b"[]")).expect("a request");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        Self { socket, text: String::new() }
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                self.text.push_str(&String::from_utf8_lossy(&bytes[..length]));
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Reads until this text has come.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.text.contains(text) {
            assert!(self.read() && begun.elapsed().as_secs() < 20, "{text:?} in {:?}", self.text);
        }
    }

    /// Reads to the end of the stream.
    #[track_caller]
    fn expect_end(&mut self) {
        let begun = Instant::now();
        while self.read() && !self.text.ends_with("\r\n0\r\n\r\n") {
            assert!(begun.elapsed().as_secs() < 20, "no end: {:?}", self.text);
        }
    }
}

#[test]
fn messages_come_as_events() {
    let served = Served::start();
    let mut chat = Reader::open(&served.proxy, "/rest/subscribe/chat%2Froom", "full-token");
    chat.expect("HTTP/1.1 200 OK");
    chat.expect("content-type: text/event-stream");
    chat.expect("data: subscribe,chat/room,1\n\n");
    let mut pattern = Reader::open(&served.proxy, "/rest/psubscribe/chat*", "reader-token");
    pattern.expect("data: psubscribe,chat*,1\n\n");
    let (status, found) = served.post("/rest/publish/chat%2Froom/hello%2C%20you", "");
    assert_eq!((status, found["result"].as_i64()), (200, Some(2)));
    served.post("/rest", r#"["PUBLISH","chat/room","{\"a\":1}\nsecond"]"#);
    chat.expect("data: message,chat/room,hello, you\n\n");
    chat.expect("data: message,chat/room,{\"a\":1}\ndata: second\n\n");
    pattern.expect("data: pmessage,chat*,chat/room,hello, you\n\n");
    drop(chat);
    eventually("the subscription ends with its reader", || {
        served.post("/rest", r#"["PUBLISH","chat/room","x"]"#);
        let counts = served.post("/rest", r#"["PUBSUB","NUMSUB","chat/room"]"#).1;
        (counts["result"][1] == 0).then_some(())
    });
}

#[test]
fn stream_needs_a_right_and_its_header() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "1"]);
    for (path, headers, code) in [
        ("/rest/subscribe/c", &[EVENTS][..], 401),
        ("/rest/subscribe/c", &[FULL], 400),
        ("/rest/subscribe/c", &[("Authorization", "Bearer scoped-token"), EVENTS], 403),
        ("/rest/subscribe", &[FULL, EVENTS], 400),
        ("/rest/monitor", &[FULL, EVENTS], 400),
        ("/rest/ssubscribe/c", &[FULL, EVENTS], 400),
    ] {
        let (status, found) = json(&served.send("POST", path, headers, "[]"));
        assert!(status == code && found["error"].is_string(), "{path} {headers:?}: {found}");
    }
    let (status, found) = json(&served.send("GET", "/rest/get/a", &[FULL, EVENTS], ""));
    assert_eq!((status, found["result"].as_str()), (200, Some("1")));
    let denied = Served::with("deny_commands = [\"SUBSCRIBE\"]\nallow_monitor = true");
    let response = denied.send("POST", "/rest/subscribe/c", &[FULL, EVENTS], "[]");
    assert_eq!(json(&response).0, 403);
    let reader = ("Authorization", "Bearer reader-token");
    assert_eq!(json(&denied.send("POST", "/rest/monitor", &[reader, EVENTS], "[]")).0, 403);
    let mut monitor = Reader::open(&denied.proxy, "/rest/monitor", "full-token");
    monitor.expect("data: \"OK\"\n\n");
    denied.redis.command(&["SET", "shown", "1"]);
    monitor.expect("\"SET\" \"shown\" \"1\"\n\n");
}

#[test]
fn streams_are_counted_apart_and_limited() {
    let served = Served::with("max_streams = 2\nmax_upstream = 1");
    let mut open: Vec<_> = (0..2)
        .map(|_| {
            let mut reader = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
            reader.expect("data: subscribe,c,1");
            reader
        })
        .collect();
    let (status, found) = json(&served.send("POST", "/rest/subscribe/c", &[FULL, EVENTS], "[]"));
    assert!(status == 503 && found["error"].is_string(), "{status} {found}");
    // They hold up no other request.
    assert_eq!(served.post("/rest", r#"["SET","a","1"]"#).0, 200);
    open.pop();
    eventually("there is a place again", || {
        served.post("/rest", r#"["PUBLISH","c","x"]"#);
        let mut reader = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
        while reader.text.is_empty() && reader.read() {}
        reader.text.starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn slow_reader_loses_its_stream_and_holds_up_no_other() {
    let served = Served::with("timeout = \"3s\"");
    let mut fast = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
    let mut slow = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
    fast.expect("data: subscribe,c,1");
    slow.expect("data: subscribe,c,1");
    let memory = resident(served.proxy.pid());
    let message = format!(r#"["PUBLISH","c","{}"]"#, "x".repeat(100_000));
    for number in 0..300 {
        let (status, _) = served.post("/rest", &message);
        assert_eq!(status, 200);
        fast.text.clear();
        served.post("/rest", &format!(r#"["PUBLISH","c","end-{number}"]"#));
        fast.expect(&format!("data: message,c,end-{number}\n\n"));
    }
    eventually("the slow reader has lost its stream", || {
        let counts = served.post("/rest", r#"["PUBSUB","NUMSUB","c"]"#).1;
        (counts["result"][1] == 1).then_some(())
    });
    let more = resident(served.proxy.pid()).saturating_sub(memory);
    assert!(more < 24 << 20, "{more} bytes for a reader that takes nothing");
    served.post("/rest", r#"["PUBLISH","c","last"]"#);
    fast.expect("data: message,c,last\n\n");
}

#[test]
fn streams_end_with_redis_and_with_the_drain() {
    let served = Served::start();
    let mut first = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
    first.expect("data: subscribe,c,1");
    served.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    first.expect_end();
    let mut second = Reader::open(&served.proxy, "/rest/subscribe/c", "full-token");
    second.expect("data: subscribe,c,1");
    let begun = Instant::now();
    served.proxy.signal(Signal::TERM);
    second.expect_end();
    served.proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn messages_of_a_cluster_come_as_events() {
    let (cluster, file) = (RedisCluster::of(3), SecretFile::new(TOKENS));
    let proxy = start_rest(&cluster.settings(), &file, "");
    let mut reader = Reader::open(&proxy, "/rest/subscribe/c", "full-token");
    reader.expect("data: subscribe,c,1\n\n");
    for (number, node) in cluster.nodes.iter().enumerate() {
        let text = format!("from-{number}");
        eventually("the message arrives", || {
            node.command(&["PUBLISH", "c", &text]);
            reader.read();
            reader.text.contains(&format!("data: message,c,{text}\n\n")).then_some(())
        });
    }
}
