//! The nodes of the model's cluster against a real cluster of redis-servers.
//!
//! Promise: a node of the model redirects, refuses and pushes as a node of Redis does.
//!
//! Two connections to each node, some with tracking, send random commands to both, one at a time.
//! Between them slots move, key by key. The views of all nodes are compared once real ones agree.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redis_proxy::cluster::slot;

use super::differential::{receive_reply, shown};
use super::model::cluster::{Member, SLOTS, View};
use super::model::{Access, Model, Version};
use super::number;
use super::resp::{Reply, command, take_reply};
use crate::support::cluster::RedisCluster;
use crate::support::within;

const SCRIPTS: u64 = 8;
const COMMANDS: usize = 150;
const NODES: usize = 3;
/// The first connection to a node is that of its operator.
const CONNECTIONS: usize = 3;
/// The hash tags of the keys: each is in another slot.
const TAGS: [&str; 4] = ["1", "2", "3", "5"];
/// The longest wait for the real nodes to agree.
const BOUND: Duration = Duration::from_secs(20);

/// The slot of a tag.
fn slot_of(tag: &str) -> u16 {
    slot(tag.as_bytes())
}

/// Returns the node that owns a slot at first.
fn first_owner(slot: u16) -> usize {
    // As the real cluster is made.
    let share = |node: usize| node * usize::from(SLOTS) / NODES;
    (0..NODES).rfind(|node| share(*node) <= usize::from(slot)).unwrap_or(0)
}

/// A real cluster, its model, and the connections to both.
struct Pair<'a> {
    real: &'a RedisCluster,
    models: Vec<Model>,
    /// The node, the real connection and the client of the model.
    connections: Vec<(usize, UnixStream, u64)>,
    script: Vec<String>,
    /// The node of each tag, and the node that it moves to.
    owners: [usize; TAGS.len()],
    moving: [Option<usize>; TAGS.len()],
}

impl<'a> Pair<'a> {
    /// Connects to nodes that this view describes.
    fn new(real: &'a RedisCluster, models: Vec<Model>, owners: [usize; TAGS.len()]) -> Self {
        let mut pair = Self {
            real,
            models,
            connections: Vec::new(),
            script: Vec::new(),
            owners,
            moving: [None; TAGS.len()],
        };
        for node in 0..NODES {
            for _ in 0..CONNECTIONS {
                let stream = UnixStream::connect(real.nodes[node].socket()).expect("a connection");
                let timeout = Some(Duration::from_millis(500));
                stream.set_read_timeout(timeout).expect("a timeout");
                let client = pair.models[node].connect();
                pair.connections.push((node, stream, client));
            }
        }
        pair
    }

    /// Returns a node for a command: most often one that has the slot, or gets it.
    fn random_node(&self, words: &[Vec<u8>], random: &mut StdRng) -> usize {
        let tag = words.get(1).and_then(|key| {
            let key = String::from_utf8_lossy(key).into_owned();
            TAGS.iter().position(|tag| key.starts_with(&format!("{{{tag}}}")))
        });
        match tag {
            Some(tag) if random.random_bool(0.6) => self.owners[tag],
            Some(tag) if random.random_bool(0.5) => self.moving[tag].unwrap_or(self.owners[tag]),
            _ => random.random_range(0..NODES),
        }
    }

    fn run(&mut self, connection: usize, words: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let (node, stream, client) = &mut self.connections[connection];
        stream.write_all(&command(words)).expect("a request");
        let owned: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
        self.models[*node].run(*client, &owned, NOW);
        self.receive(connection)
    }

    /// Returns what the model has sent, and as much of Redis.
    fn receive(&mut self, connection: usize) -> (Vec<u8>, Vec<u8>) {
        let (node, stream, client) = &mut self.connections[connection];
        let modelled = self.models[*node].take_output(*client);
        let mut real = vec![0; modelled.len()];
        let outcome = stream.read_exact(&mut real);
        assert!(
            outcome.is_ok(),
            "instead of {}: {} after\n{}",
            modelled.escape_ascii(),
            real.escape_ascii(),
            self.script.join("\n")
        );
        (real, modelled)
    }

    /// Runs a command, then `PING` on every other connection, which shows the pushes.
    fn send(&mut self, connection: usize, words: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let first = self.run(connection, words);
        let others = (0..self.connections.len()).filter(|other| *other != connection);
        let rest = others.map(|other| self.run(other, &[b"PING"])).collect::<Vec<_>>();
        std::iter::once(first).chain(rest).unzip()
    }

    /// Moves one key of a slot, if there is one. Returns what both sent to all connections.
    fn migrate(&mut self, key: &[u8], from: usize, to: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let port = self.real.port(to).to_string();
        let words: [&[u8]; 7] =
            [b"MIGRATE", b"127.0.0.1", port.as_bytes(), key, b"0", b"5000", b"REPLACE"];
        let operator = from * CONNECTIONS;
        let migrated = self.models[from].take_for_migration(key, NOW);
        let expected: &[u8] = if migrated.is_some() { b"+OK\r\n" } else { b"+NOKEY\r\n" };
        if let Some(migrated) = migrated {
            self.models[to].restore(key, migrated, NOW);
        }
        let stream = &mut self.connections[operator].1;
        stream.write_all(&command(&words)).expect("a request");
        let mut real = vec![0; expected.len()];
        stream.read_exact(&mut real).expect("a reply");
        let others = (0..self.connections.len()).filter(|other| *other != operator);
        let rest = others.map(|other| self.run(other, &[b"PING"])).collect::<Vec<_>>();
        std::iter::once((real, expected.to_vec())).chain(rest).unzip()
    }

    fn operate(&mut self, node: usize, words: &[&str]) {
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let (real, modelled) = self.send(node * CONNECTIONS, &bytes);
        assert_eq!(shown(&real, false), shown(&modelled, false), "{words:?} at node {node}");
    }

    /// Ends the move of a tag: its remaining keys move, and all nodes learn of it.
    fn end_move(&mut self, tag: usize, to: usize) {
        let (from, number) = (self.owners[tag], slot_of(TAGS[tag]));
        for key in self.models[from].keys_in(number) {
            let (real, modelled) = self.migrate(&key, from, to);
            assert_eq!(shown(&real, false), shown(&modelled, false), "the last keys move");
        }
        let (text, id) = (number.to_string(), self.real.id(to));
        self.operate(to, &["CLUSTER", "SETSLOT", &text, "NODE", &id]);
        self.operate(from, &["CLUSTER", "SETSLOT", &text, "NODE", &id]);
        let claim = self.models[to].claim(vec![number], None);
        self.models.iter_mut().for_each(|model| model.learn(&claim));
        (self.owners[tag], self.moving[tag]) = (to, None);
        self.compare_views();
    }

    /// The real nodes know the same as the model's, after a while.
    fn compare_views(&mut self) {
        for node in 0..NODES {
            let operator = self.connections[node * CONNECTIONS].2;
            let words: Vec<Vec<u8>> = vec![b"CLUSTER".to_vec(), b"NODES".to_vec()];
            self.models[node].run(operator, &words, NOW);
            let mut output = self.models[node].take_output(operator);
            let Some(Reply::Text(text)) = take_reply(&mut output) else { panic!("no view") };
            let expected = facts(&String::from_utf8_lossy(&text));
            let is_same = || (facts(&self.real.view(node)) == expected).then_some(());
            let found = within(BOUND, is_same);
            assert!(
                found.is_some(),
                "{:?} of node {node}, not {expected:?}",
                facts(&self.real.view(node))
            );
        }
    }
}

/// The time of the model. No key ends.
const NOW: u64 = 1_000_000;

/// Returns the facts of `CLUSTER NODES` that the model has: for each node the identifier, address,
/// flags, primary, epoch and slots.
fn facts(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let address = words[1].split('@').next().unwrap_or_default();
            let slots = words[8..].join(" ");
            format!("{} {address} {} {} {} {slots}", words[0], words[2], words[3], words[6])
        })
        .collect();
    lines.sort();
    lines
}

/// Returns the nodes of the model, as the real ones were made.
fn models(real: &RedisCluster) -> Vec<Model> {
    let members: Vec<_> = (0..NODES)
        .map(|node| Member {
            id: real.id(node),
            address: format!("127.0.0.1:{}", real.port(node)),
            epoch: node as u64 + 1,
            primary: None,
        })
        .collect();
    let owners: Vec<_> = (0..SLOTS).map(|slot| Some(first_owner(slot))).collect();
    let model = |node| {
        let mut model = Model::new(Version::Seven, Access::Open);
        model.join(View::new(node, members.clone(), owners.clone()));
        model
    };
    (0..NODES).map(model).collect()
}

/// Returns the next random command about keys of one tag or two.
fn random_command(random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut key = || {
        let tag = TAGS[random.random_range(0..TAGS.len())];
        format!("{{{tag}}}{}", random.random_range(0..3))
    };
    let (one, other) = (key(), key());
    let near = format!("{}{}", &one[..3], random.random_range(0..3));
    let value = random.random_range(0..1000).to_string();
    let text = match random.random_range(0..36) {
        0..=7 => format!("GET {one}"),
        8..=10 => format!("MGET {one} {near}"),
        11 => format!("MGET {one} {other}"),
        12..=13 => format!("EXISTS {one} {near}"),
        14..=18 => format!("SET {one} {value}"),
        19 => format!("SET {one} {value} PX 1000000"),
        20..=21 => format!("MSET {one} {value} {near} {value}"),
        22 => format!("DEL {one} {near}"),
        23 => format!("DEL {one}"),
        24 => format!("TYPE {one}"),
        25..=29 => "ASKING".to_owned(),
        30..=31 => "MULTI".to_owned(),
        32..=33 => "EXEC".to_owned(),
        34 => "DISCARD".to_owned(),
        _ => "PING".to_owned(),
    };
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Begins, continues or ends the move of a random tag.
fn random_move(pair: &mut Pair<'_>, random: &mut StdRng) -> String {
    let tag = random.random_range(0..TAGS.len());
    let (from, number) = (pair.owners[tag], slot_of(TAGS[tag]).to_string());
    let Some(to) = pair.moving[tag] else {
        let to = (from + random.random_range(1..NODES)) % NODES;
        let (source, target) = (pair.real.id(from), pair.real.id(to));
        pair.operate(to, &["CLUSTER", "SETSLOT", &number, "IMPORTING", &source]);
        pair.operate(from, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &target]);
        pair.moving[tag] = Some(to);
        return format!("{} moves from {from} to {to}", TAGS[tag]);
    };
    if random.random_bool(0.3) {
        pair.end_move(tag, to);
        return format!("{} is at {to}", TAGS[tag]);
    }
    let key = format!("{{{}}}{}", TAGS[tag], random.random_range(0..3));
    let (real, modelled) = pair.migrate(key.as_bytes(), from, to);
    assert_eq!(shown(&real, false), shown(&modelled, false), "{key} moves");
    format!("{key} moves")
}

#[test]
fn nodes_of_the_model_redirect_as_those_of_redis_do() {
    let real = RedisCluster::of(NODES);
    let first = number("REDIS_PROXY_TEST_SEED").unwrap_or(1);
    let (mut all, mut owners) = (models(&real), TAGS.map(|tag| first_owner(slot_of(tag))));
    let (mut commands, mut redirects, mut pushes) = (0, 0, 0);
    for seed in first..first + number("MODEL_SCRIPTS").unwrap_or(SCRIPTS) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut pair = Pair::new(&real, all, owners);
        for node in 0..NODES {
            pair.operate(node, &["FLUSHALL"]);
        }
        for connection in 0..NODES * CONNECTIONS {
            if !connection.is_multiple_of(CONNECTIONS) && random.random_bool(0.7) {
                hello(&mut pair, connection);
                let (real, modelled) = pair.send(connection, &[b"CLIENT", b"TRACKING", b"ON"]);
                assert_eq!(shown(&real, false), shown(&modelled, false));
            }
        }
        for _ in 0..COMMANDS {
            if random.random_bool(0.15) {
                let step = random_move(&mut pair, &mut random);
                pair.script.push(step);
                continue;
            }
            let words = random_command(&mut random);
            let node = pair.random_node(&words, &mut random);
            let connection = node * CONNECTIONS + random.random_range(1..CONNECTIONS);
            let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
            pair.script.push(format!("{connection}: {}", words.join(&b' ').escape_ascii()));
            let (real, modelled) = pair.send(connection, &words);
            let count = |word: &[u8]| {
                let found =
                    |bytes: &Vec<u8>| bytes.windows(word.len()).filter(|one| *one == word).count();
                modelled.iter().map(found).sum::<usize>()
            };
            commands += 1;
            redirects += count(b"-MOVED") + count(b"-ASK") + count(b"-TRYAGAIN");
            pushes += count(b"invalidate");
            assert_eq!(
                shown(&real, false),
                shown(&modelled, false),
                "REDIS_PROXY_TEST_SEED={seed} MODEL_SCRIPTS=1: a real node on the left, after\n{}",
                pair.script.join("\n")
            );
        }
        for tag in 0..TAGS.len() {
            if let Some(to) = pair.moving[tag] {
                pair.end_move(tag, to);
            }
        }
        let Pair { models, connections, owners: last, .. } = pair;
        (all, owners) = (models, last);
        for (node, _, client) in connections {
            all[node].disconnect(client);
        }
    }
    eprintln!("{commands} commands, {redirects} redirections, {pushes} invalidations");
    assert!(redirects > commands / 10 && pushes > commands / 100, "that tells nothing");
}

/// Sends `HELLO 3`, of which the replies differ.
fn hello(pair: &mut Pair<'_>, connection: usize) {
    let (node, stream, client) = &mut pair.connections[connection];
    stream.write_all(&command(&[b"HELLO", b"3"])).expect("a request");
    let words: Vec<Vec<u8>> = vec![b"HELLO".to_vec(), b"3".to_vec()];
    pair.models[*node].run(*client, &words, NOW);
    _ = pair.models[*node].take_output(*client);
    receive_reply(stream);
}
