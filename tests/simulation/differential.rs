//! The model of Redis against a real redis-server.
//!
//! Promise: the model sends the same bytes as Redis, replies and pushes in their order.
//!
//! Three connections, with RESP2 or RESP3 and with or without tracking, send the same random
//! commands to both, one at a time. The active expiry of the server is off, and a short life is
//! over before the next command. The order of the fields of a hash is not compared, because it
//! depends on how Redis stores them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::model::{Access, Model, USERS, Version};
use super::number;
use super::resp::{Reply, command, take_reply};
use crate::support::RedisServer;

const SCRIPTS: u64 = 40;
const COMMANDS: usize = 120;
/// A short life of a key, in milliseconds. It is over before the next command, on both servers.
const SHORT: &str = "2";
const OVER: u64 = 5;
/// The life of a key that does not expire during a script.
const LONG: &str = "1000000";

/// The two servers with their connections.
struct Pair {
    streams: Vec<UnixStream>,
    model: Model,
    clients: Vec<u64>,
    now: u64,
}

impl Pair {
    fn new(server: &RedisServer, connections: usize) -> Self {
        let connect = |_| UnixStream::connect(server.socket()).expect("a connection");
        let streams = (0..connections).map(connect).collect();
        let mut model = Model::new(version(server, ""), Access::Open);
        let clients = (0..connections).map(|_| model.connect()).collect();
        Self { streams, model, clients, now: 1_000_000 }
    }

    /// Sends a command on one connection, then `PING` on each. Returns what both servers sent.
    fn send(&mut self, connection: usize, words: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let all = 0..self.streams.len();
        let pings = all.clone().filter(|other| *other != connection);
        let order: Vec<(usize, Vec<Vec<u8>>)> =
            std::iter::once((connection, words.iter().map(|word| word.to_vec()).collect()))
                .chain(pings.map(|other| (other, vec![b"PING".to_vec()])))
                .collect();
        let (mut real, mut modelled) = (vec![Vec::new(); all.len()], vec![Vec::new(); all.len()]);
        for (connection, words) in order {
            let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
            self.streams[connection].write_all(&command(&words)).expect("a request");
            let owned: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
            self.model.run(self.clients[connection], &owned, self.now);
            modelled[connection] = self.model.take_output(self.clients[connection]);
            // A push may follow the reply, so the model says how much there is to read.
            real[connection] = self.receive(connection, modelled[connection].len());
        }
        (real, modelled)
    }

    fn receive(&mut self, connection: usize, length: usize) -> Vec<u8> {
        let mut received = vec![0; length];
        let stream = &mut self.streams[connection];
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut filled = 0;
        while filled < length {
            match stream.read(&mut received[filled..]) {
                Ok(count @ 1..) => filled += count,
                _ => break,
            }
        }
        received.truncate(filled);
        received
    }
}

/// Returns the version of a server with this password of the default user.
fn version(server: &RedisServer, password: &str) -> Version {
    let mut stream = UnixStream::connect(server.socket()).expect("a connection");
    if !password.is_empty() {
        stream.write_all(&command(&[b"AUTH", password.as_bytes()])).expect("a request");
        stream.read_exact(&mut [0; 5]).expect("a reply");
    }
    let Reply::Array(parts) = hello(&mut stream) else { panic!("no reply to HELLO") };
    let is_it = |pair: &[Reply]| pair[0] == Reply::Text(b"version".to_vec());
    let found = parts.chunks(2).find(|pair| is_it(pair)).map(|pair| pair[1].clone());
    match found {
        Some(Reply::Text(text)) if text.starts_with(b"8.") => Version::Eight,
        _ => Version::Seven,
    }
}

/// Returns the next random command about a field with a time to live.
fn random_field_command(random: &mut StdRng) -> Vec<Vec<u8>> {
    let key = format!("k{}", random.random_range(1..5));
    let field = format!("f{}", random.random_range(1..3));
    let life = if random.random_bool(0.3) { SHORT } else { LONG };
    let text = match random.random_range(0..6) {
        0..=2 => format!("HPEXPIRE {key} {life} FIELDS 1 {field}"),
        3 => format!("HPTTL {key} FIELDS 2 f1 f2"),
        4 => format!("HPERSIST {key} FIELDS 1 {field}"),
        _ => format!("HPEXPIRE {key} {life} FIELDS 2 f1 f2"),
    };
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Returns the next random command.
fn random_command(random: &mut StdRng) -> Vec<Vec<u8>> {
    let text = |number: u64, prefix: &str| format!("{prefix}{number}").into_bytes();
    let key = |random: &mut StdRng| text(random.random_range(1..5), "k");
    let (one, two) = (key(random), key(random));
    let value = text(random.random_range(0..1000), "v");
    let field = text(random.random_range(1..3), "f");
    let life = if random.random_bool(0.3) { SHORT } else { LONG }.as_bytes().to_vec();
    let word = |text: &str| text.as_bytes().to_vec();
    match random.random_range(0..34) {
        0..=4 => vec![word("GET"), one],
        5 => vec![word("MGET"), one, two],
        6 => vec![word("EXISTS"), one, two],
        7 => vec![word("STRLEN"), one],
        8..=10 => vec![word("SET"), one, value],
        11..=12 => vec![word("SET"), one, value, word("PX"), life],
        13 => vec![word("SET"), one, value, word("KEEPTTL")],
        14 => vec![word("DEL"), one, two],
        15 => vec![word("UNLINK"), one],
        16 => vec![word("PEXPIRE"), one, life],
        17 => vec![word("PERSIST"), one],
        18 => vec![word("MSET"), one, value.clone(), two, value],
        19..=20 => vec![word("HSET"), one, field, value],
        21 => vec![word("HDEL"), one, field],
        22 => vec![word("HGETALL"), one],
        23 => vec![word("HGET"), one, field],
        24 => vec![word("HLEN"), one],
        25 => vec![word("TYPE"), one],
        26..=27 => vec![word("MULTI")],
        28..=29 => vec![word("EXEC")],
        30 => vec![word("DISCARD")],
        31 if random.random_bool(0.3) => vec![word("FLUSHALL")],
        31 => vec![word("ECHO"), value],
        32 => vec![word("GET")],
        _ => vec![word("EXPIRE"), one, word("-1")],
    }
}

/// Returns bytes for a message, without the difference that times make. With `is_unordered` the
/// order of the lines makes none either.
pub(super) fn shown(all: &[Vec<u8>], is_unordered: bool) -> String {
    let line = |line: &[u8]| {
        let number = line.strip_prefix(b":").and_then(|text| str::from_utf8(text).ok());
        let is_time = number.is_some_and(|text| text.parse::<i64>().unwrap_or(0) > 100_000);
        if is_time { ":time".to_owned() } else { line.escape_ascii().to_string() }
    };
    let each = all.iter().map(|bytes| {
        let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').map(line).collect();
        if is_unordered {
            lines.sort();
        }
        lines.join(" ")
    });
    each.collect::<Vec<_>>().join(" | ")
}

#[test]
fn model_replies_and_pushes_as_redis_does() {
    let server = RedisServer::builder().arguments(&["--enable-debug-command", "yes"]).start();
    let first = number("REDIS_PROXY_TEST_SEED").unwrap_or(1);
    let (version, mut commands, mut pushes) = (version(&server, ""), 0, 0);
    for seed in first..first + number("MODEL_SCRIPTS").unwrap_or(SCRIPTS) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut pair = Pair::new(&server, 3);
        let (mut script, mut sent_short) = (Vec::new(), [false; 3]);
        let mut first = vec![(0, "FLUSHALL"), (0, "DEBUG SET-ACTIVE-EXPIRE 0")];
        for connection in 0..3 {
            if random.random_bool(0.8) {
                first.push((connection, "HELLO 3"));
                first.push((connection, "CLIENT TRACKING ON"));
            }
        }
        for (connection, text) in first {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            if text.starts_with("DEBUG") {
                pair.streams[connection].write_all(&command(&words)).expect("a request");
                assert_eq!(pair.receive(connection, 5), b"+OK\r\n");
            } else if text.starts_with("HELLO") {
                let real = hello(&mut pair.streams[connection]);
                pair.model.run(
                    pair.clients[connection],
                    &words.iter().map(|word| word.to_vec()).collect::<Vec<_>>(),
                    pair.now,
                );
                let mut modelled = pair.model.take_output(pair.clients[connection]);
                assert_eq!(shape(&real), shape(&take_reply(&mut modelled).expect("a reply")));
            } else {
                let (real, modelled) = pair.send(connection, &words);
                assert_eq!(shown(&real, false), shown(&modelled, false), "{text}");
            }
        }
        for _ in 0..COMMANDS {
            let is_field = version == Version::Eight && random.random_bool(0.2);
            let words = if is_field {
                random_field_command(&mut random)
            } else {
                random_command(&mut random)
            };
            let connection = random.random_range(0..3);
            let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
            script.push(format!("{connection}: {}", words.join(&b' ').escape_ascii()));
            let (real, modelled) = pair.send(connection, &words);
            // A queued short life begins with the EXEC of its own connection, so a command of
            // another one does not end it.
            sent_short[connection] |= words.contains(&SHORT.as_bytes());
            if sent_short[connection] && !real[connection].ends_with(b"+QUEUED\r\n") {
                sent_short[connection] = false;
                sleep(Duration::from_millis(OVER));
                pair.now += OVER;
            }
            commands += 1;
            pushes += modelled
                .iter()
                .map(|bytes| bytes.windows(10).filter(|word| word == b"invalidate").count())
                .sum::<usize>();
            let is_unordered = words[0] == b"HGETALL" || words[0] == b"EXEC";
            assert_eq!(
                shown(&real, is_unordered),
                shown(&modelled, is_unordered),
                "REDIS_PROXY_TEST_SEED={seed} MODEL_SCRIPTS=1: redis-server on the left, after\n{}",
                script.join("\n")
            );
        }
    }
    eprintln!("{version:?}: {commands} commands with {pushes} invalidations");
    assert!(pushes > commands / 50, "{pushes} invalidations tell nothing");
}

/// Commands with logins, each line sent as a whole. `/` is between two commands.
const LOGINS: [&str; 12] = [
    "GET s1 / PING / AUTH alice",
    "AUTH alice wrong / SET s1 a / GET s1",
    "AUTH alice wonder / SET s1 a / GET h1 / GET s1",
    "GET s1 / AUTH default wrong / GET s1",
    "AUTH nobody secret / AUTH secret / GET h1",
    "GET s1 / AUTH alice wrong / AUTH alice wrong / SET s1 b",
    "HELLO 3 AUTH alice wrong / PING",
    "PING / HELLO 3 AUTH alice wrong / GET h1",
    "MULTI / GET h1 / EXEC",
    "AUTH alice wonder / MULTI / SET h1 a / EXEC / MGET s1 h1",
    "DEL s1 / DEL h1 / AUTH default secret / DEL s1",
    "AUTH default wrong / ECHO a",
];

#[test]
fn model_answers_logins_as_redis_does() {
    let server = RedisServer::builder().arguments(&["--requirepass", USERS[0].password]).start();
    let mut admin = UnixStream::connect(server.socket()).expect("a connection");
    let exchange = |stream: &mut UnixStream, line: &str, length: Option<usize>| {
        let commands = line.split(" / ").map(|one| one.split(' ').map(str::as_bytes).collect());
        let bytes: Vec<u8> = commands.flat_map(|words: Vec<_>| command(&words)).collect();
        stream.write_all(&bytes).expect("a request");
        let mut received = vec![0; length.unwrap_or(5)];
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let read = stream.read_exact(&mut received);
        (received, read.is_ok())
    };
    for line in ["AUTH secret", "ACL SETUSER alice on >wonder ~s* &* +@all"] {
        assert_eq!(exchange(&mut admin, line, None).0, b"+OK\r\n");
    }
    let mut model = Model::new(version(&server, USERS[0].password), Access::Users);
    let (mut stream, client) =
        (UnixStream::connect(server.socket()).expect("a connection"), model.connect());
    for line in LOGINS {
        for words in line.split(" / ") {
            let words: Vec<_> = words.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            model.run(client, &words, 1_000_000);
        }
        let modelled = model.take_output(client);
        let (real, _) = exchange(&mut stream, line, Some(modelled.len()));
        assert_eq!(real.escape_ascii().to_string(), modelled.escape_ascii().to_string(), "{line}");
    }
}

fn hello(stream: &mut UnixStream) -> Reply {
    stream.write_all(&command(&[b"HELLO", b"3"])).expect("a request");
    receive_reply(stream)
}

pub(super) fn receive_reply(stream: &mut UnixStream) -> Reply {
    let mut received = Vec::new();
    loop {
        let mut piece = [0; 1024];
        let length = stream.read(&mut piece).expect("a reply");
        received.extend_from_slice(&piece[..length]);
        if let Some(reply) = take_reply(&mut received) {
            return reply;
        }
    }
}

/// Returns the names of the fields of a map.
fn shape(map: &Reply) -> Vec<Reply> {
    let Reply::Array(parts) = map else { panic!("{map:?} is no map") };
    parts.iter().step_by(2).cloned().collect()
}

/// Returns the facts about a command that the model reports: the number of arguments, whether it
/// reads or writes, the places of its keys, and its policies in a cluster.
fn facts(command: &Reply) -> String {
    let Reply::Array(parts) = command else { panic!("{command:?} is no command") };
    let words = |reply: &Reply| match reply {
        Reply::Array(items) => items.clone(),
        _ => Vec::new(),
    };
    let text = |reply: &Reply| match reply {
        Reply::Text(text) | Reply::Simple(text) => String::from_utf8_lossy(text).into_owned(),
        other => format!("{other:?}"),
    };
    let flags: Vec<_> = words(&parts[2]).iter().map(text).collect();
    let tips: Vec<_> =
        words(&parts[7]).iter().map(text).filter(|tip| tip.contains("_policy")).collect();
    let access: Vec<_> =
        flags.into_iter().filter(|flag| ["readonly", "write"].contains(&&**flag)).collect();
    let specifications: Vec<_> = words(&parts[8])
        .iter()
        .map(|one| {
            let is_place = |pair: &&[Reply]| text(&pair[0]) != "flags" && text(&pair[0]) != "notes";
            words(one)
                .chunks(2)
                .filter(is_place)
                .map(|pair| format!("{pair:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    format!("{:?} {access:?} {:?} {tips:?} {specifications:?}", parts[1], &parts[3..6])
}

#[test]
fn model_reports_commands_as_redis_does() {
    let server = RedisServer::builder().start();
    let mut stream = UnixStream::connect(server.socket()).expect("a connection");
    _ = hello(&mut stream);
    let mut model = Model::new(version(&server, ""), Access::Open);
    let client = model.connect();
    model.run(client, &[b"HELLO".to_vec(), b"3".to_vec()], 1);
    _ = model.take_output(client);
    model.run(client, &[b"COMMAND".to_vec()], 1);
    let mut output = model.take_output(client);
    let Some(Reply::Array(commands)) = take_reply(&mut output) else { panic!("no commands") };
    for modelled in commands {
        let Reply::Array(parts) = &modelled else { panic!("{modelled:?} is no command") };
        let Reply::Text(name) = &parts[0] else { panic!("{modelled:?} has no name") };
        stream.write_all(&command(&[b"COMMAND", b"INFO", name])).expect("a request");
        let Reply::Array(real) = receive_reply(&mut stream) else { panic!("no facts") };
        // A real one lists its subcommands with keys and arities of their own.
        assert_eq!(facts(&real[0]), facts(&modelled), "{}", name.escape_ascii());
    }
}
