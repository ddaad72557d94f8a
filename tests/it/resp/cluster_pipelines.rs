//! Promise: behind a cluster every reply belongs to its command, and every command runs at most
//! once and in its client's order, wherever slots move, nodes fail over and connections are cut.
//!
//! Model: each client has keys of its own, so it knows what each command has to reply. A value
//! names its key and is written once. An error that says that a command has not run (`TRYAGAIN`,
//! `CLUSTERDOWN`, `LOADING`) leaves its keys as they were; where a command may have run or not (its
//! connection was lost, or it was split over slots and failed), its keys may have either value
//! until the next reply tells.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::cluster::Stage;
use crate::support::cluster::{RedisCluster, try_query};
use crate::support::env::{number, seed};
use crate::support::resp_client::{RespClient, bulk, command, show, words};
use crate::support::{RedisServer, eventually, within};

/// No map is asked for by itself, so a move is noticed by a redirect alone.
const NO_DISCOVERY: &str = "redis.ping_interval = \"60s\"\n";

fn stage() -> Stage {
    Stage::over(RedisCluster::of(3), &[], NO_DISCOVERY)
}

/// Sends all lines in one write and returns the replies as text.
#[track_caller]
fn pipelined(wire: &mut RespClient, lines: &[&str]) -> Vec<String> {
    wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    wire.answers(lines.len()).iter().map(|reply| show(reply)).collect()
}

fn text(value: &str) -> String {
    show(&bulk(value))
}

const OK: &str = "+OK\\r\\n";

#[test]
fn commands_of_a_moved_slot_get_their_own_replies() {
    let stage = stage();
    let mut wire = stage.through();
    for key in ["{0}a", "{0}b", "{0}c", "{1}x"] {
        wire.query_line(&format!("SET {key} value-of-{key}"));
    }
    let nodes = ["{0}a", "{1}x"].map(|key| stage.cluster.owner(key));
    stage.cluster.move_slot(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    let lines =
        ["GETEX {0}a", "GETEX {0}b", "GETEX {1}x", "APPEND {0}a +", "GETEX {0}a", "STRLEN {0}c"];
    let expected = [
        text("value-of-{0}a"),
        text("value-of-{0}b"),
        text("value-of-{1}x"),
        ":14\\r\\n".into(),
        text("value-of-{0}a+"),
        ":13\\r\\n".into(),
    ];
    assert_eq!(pipelined(&mut wire, &lines), expected);
    assert!(stage.redirects("followed") >= 1.0 && stage.redirects("returned") < 0.5);
}

#[test]
fn commands_of_a_moving_slot_get_their_own_replies() {
    let stage = stage();
    let mut wire = stage.through();
    for key in ["{0}a", "{0}b"] {
        wire.query_line(&format!("SET {key} value-of-{key}"));
    }
    wire.query_line("SET {1}n 100");
    let nodes = ["{0}a", "{1}n"].map(|key| stage.cluster.owner(key));
    stage.cluster.begin_to_move(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    // A key that does not exist is asked for at the other node, and the keys that exist are still
    // here.
    let lines =
        ["SET {0}w 1", "GET {0}a", "GET {0}b", "INCR {0}m", "STRLEN {0}b", "INCR {1}n", "GET {0}w"];
    let expected = [
        OK.into(),
        text("value-of-{0}a"),
        text("value-of-{0}b"),
        ":1\\r\\n".into(),
        ":13\\r\\n".into(),
        ":101\\r\\n".into(),
        text("1"),
    ];
    assert_eq!(pipelined(&mut wire, &lines), expected);
}

#[test]
fn command_that_a_write_overtook_is_returned_not_run() {
    let stage = stage();
    let mut wire = stage.through();
    wire.query_line("MSET {0}p 0 {0}k value-of-k");
    let (slot, nodes) = stage.begin_to_move("{0}p", "{1}x");
    // `q` does not exist, so `MSET` has to wait until `p` has moved too, which it does not here.
    let received = pipelined(&mut wire, &["MSET {0}p 1 {0}q 1", "SET {0}p 2", "GETEX {0}k"]);
    assert!(received[0].starts_with("-TRYAGAIN redis-proxy: "), "{received:?}");
    assert_eq!(received[1..], [OK.to_owned(), text("value-of-k")]);
    assert!((stage.redirects("returned") - 1.0).abs() < 0.5);
    stage.cluster.move_keys(slot, nodes[0], nodes[1]);
    stage.cluster.end_to_move(slot, nodes[0], nodes[1]);
    assert_eq!(pipelined(&mut wire, &["GET {0}p", "EXISTS {0}q"]), [text("2"), ":0\\r\\n".into()]);
}

#[test]
fn command_of_keys_on_two_nodes_waits_for_the_move() {
    let stage = stage();
    let mut wire = stage.through();
    wire.query_line("MSET {0}p 0 {0}k value-of-k");
    let (slot, nodes) = stage.begin_to_move("{0}p", "{1}x");
    // Reads behind it have run already, and run again behind it.
    let lines = ["MSETNX {0}q 1 {0}p 1", "GETEX {1}x", "STRLEN {0}k", "GETRANGE {0}p 0 -1"];
    wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    eventually("the command is tried again", || (stage.redirects("followed") > 2.0).then_some(()));
    stage.cluster.set_migrated(slot, nodes);
    let received: Vec<_> = wire.answers(lines.len()).iter().map(|reply| show(reply)).collect();
    assert_eq!(received, [":0\\r\\n", "$-1\\r\\n", ":10\\r\\n", "$1\\r\\n0\\r\\n"]);
}

#[test]
fn write_behind_a_rejected_one_is_not_sent_before_it_has_run() {
    let stage = stage();
    let mut wire = stage.through();
    wire.query_line("SET {0}p 0");
    let (slot, nodes) = stage.begin_to_move("{0}p", "{1}x");
    // `q` does not exist, so `MSET` is tried again until `p` has moved too.
    wire.send(words("MSET {0}p 1 {0}q 1"));
    eventually("the command is tried again", || (stage.redirects("followed") > 2.0).then_some(()));
    let from = &stage.cluster.nodes[nodes[0]];
    let sets = from.calls("set");
    wire.send(words("SET {0}p 2"));
    let followed = stage.redirects("followed");
    eventually("more tries", || (stage.redirects("followed") > followed + 3.0).then_some(()));
    assert_eq!(from.calls("set"), sets, "the second write overtook the first");
    stage.cluster.set_migrated(slot, nodes);
    let received: Vec<_> = wire.answers(2).iter().map(|reply| show(reply)).collect();
    assert_eq!(received, [OK, OK]);
    assert_eq!(wire.reply_to("GET {0}p"), text("2"));
}

#[test]
fn write_never_overtakes_a_read_whose_connection_is_lost() {
    let stage = stage();
    let node = &stage.cluster.nodes[stage.cluster.owner("{0}k")];
    let mut answered = 0;
    for round in 0..30 {
        let key = format!("{{0}}k{round}");
        let mut wire = stage.through();
        assert_eq!(wire.reply_to(&format!("LLEN {key}")), ":0\\r\\n");
        let mut killer = RespClient::connect(node.tcp_address());
        node.pause();
        // The node reads the two in this order, so the read gets no reply.
        killer.send(words("CLIENT KILL TYPE normal"));
        wire.send(words(&format!("LLEN {key}")));
        node.resume();
        assert!(killer.answer().starts_with(b":"));
        wire.send(words(&format!("RPUSH {key} x")));
        // A write that was sent over the lost connection ends the client's.
        let [Ok(read), Ok(_)] = [wire.try_answer(), wire.try_answer()] else { continue };
        assert_eq!(show(&read), ":0\\r\\n", "the write overtook the read");
        answered += 1;
    }
    assert!(answered > 0, "the write was always sent too early");
}

#[test]
fn write_whose_connection_is_lost_is_not_sent_again() {
    let stage = stage();
    let mut wire = stage.through();
    let node = &stage.cluster.nodes[stage.cluster.owner("{0}k")];
    assert_eq!(wire.reply_to("LLEN {0}k"), ":0\\r\\n");
    node.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let appends = || {
        let clients = format!("{:?}", node.command(&["CLIENT", "LIST"]));
        clients.matches("cmd=append").count()
    };
    wire.send([words("LLEN {0}k"), words("APPEND {0}k x")].concat());
    eventually("the write waits", || (appends() == 1).then_some(()));
    // It may have run, as far as the proxy can tell.
    node.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(show(&wire.rest()), ":0\\r\\n");
    assert_eq!(appends(), 0);
    node.command(&["CLIENT", "UNPAUSE"]);
    assert_eq!(stage.through().reply_to("EXISTS {0}k"), ":0\\r\\n");
}

#[test]
fn read_over_which_its_node_closes_connections_ends_the_client() {
    let stage = stage();
    stage.proxy.expect_log("client-output-buffer-limit");
    let node = &stage.cluster.nodes[stage.cluster.owner("{0}k")];
    let mut wire = stage.through();
    assert_eq!(wire.reply_to("SETRANGE {0}k 3000000 x"), ":3000001\\r\\n");
    node.limit_output();
    wire.send(words("GETRANGE {0}k 0 -1"));
    assert_eq!(show(&wire.try_rest().unwrap_or_default()), "");
    // Over the shared connection, twice alone, and three times for the client.
    assert!(node.calls("getrange") <= 6, "{} times", node.calls("getrange"));
    // Later clients of the node are served.
    assert_eq!(stage.through().reply_to("STRLEN {0}k"), ":3000001\\r\\n");
}

#[test]
fn split_commands_over_a_moving_slot_reply_in_order() {
    let stage = stage();
    let mut wire = stage.through();
    let keys: Vec<_> = (0..300).map(|number| format!("{{{}}}key-{number}", number % 2)).collect();
    let pairs: Vec<_> = keys.iter().map(|key| format!("{key} value-of-{key}")).collect();
    assert_eq!(wire.reply_to(&format!("MSET {}", pairs.join(" "))), OK);
    let all = format!("MGET {}", keys.join(" "));
    let values: Vec<u8> = keys.iter().flat_map(|key| bulk(format!("value-of-{key}"))).collect();
    let expected = [&b"*300\r\n"[..], &values].concat();
    let nodes = ["{0}x", "{1}x"].map(|key| stage.cluster.owner(key));
    let slot = stage.cluster.slot("{0}x");
    let check = |wire: &mut RespClient, state: &str| {
        assert!(wire.query_line(&all) == expected, "{state}");
        let exist = format!("EXISTS {}", keys.join(" "));
        assert_eq!(wire.reply_to(&exist), ":300\\r\\n", "{state}");
    };
    check(&mut wire, "before");
    stage.cluster.begin_to_move(slot, nodes[0], nodes[1]);
    check(&mut wire, "no key has moved");
    stage.cluster.move_keys(slot, nodes[0], nodes[1]);
    check(&mut wire, "all keys have moved");
    stage.cluster.end_to_move(slot, nodes[0], nodes[1]);
    let mut other = stage.through();
    check(&mut other, "the slot has moved");
    assert_eq!(wire.reply_to(&format!("MSET {}", pairs.join(" "))), OK);
    assert_eq!(wire.reply_to(&format!("DEL {}", keys.join(" "))), ":300\\r\\n");
    assert_eq!(wire.reply_to(&format!("EXISTS {}", keys.join(" "))), ":0\\r\\n");
}

#[test]
fn new_slot_map_is_used_once_all_before_is_answered() {
    let stage = stage();
    let (mut wire, mut other) = (stage.through(), stage.through());
    let nodes = ["{0}k", "{1}k"].map(|key| stage.cluster.owner(key));
    let [from, to] = nodes.map(|node| &stage.cluster.nodes[node]);
    wire.query_line("APPEND {1}k x");
    from.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    wire.send(words("APPEND {0}k x"));
    eventually("the write waits", || {
        let clients = format!("{:?}", from.command(&["CLIENT", "LIST"]));
        clients.contains("cmd=append").then_some(())
    });
    stage.cluster.move_slot(stage.cluster.slot("{0}k"), nodes[0], nodes[1]);
    // A read of the slot is redirected, so the proxy knows.
    assert_eq!(other.reply_to("HGET {0}h f"), "$-1\\r\\n");
    wire.send(words("APPEND {0}k y"));
    for _ in 0..50 {
        assert_eq!(other.reply_to("HGET {0}h f"), "$-1\\r\\n");
        let exists: i64 = try_query(to, &["EXISTS", "{0}k"]).unwrap();
        assert_eq!(exists, 0, "the second write overtook the first");
    }
    from.command(&["CLIENT", "UNPAUSE"]);
    let received: Vec<_> = wire.answers(2).iter().map(|reply| show(reply)).collect();
    assert_eq!(received, [":1\\r\\n", ":2\\r\\n"]);
    assert_eq!(wire.reply_to("GET {0}k"), text("xy"));
}

#[test]
fn blocking_command_holds_up_no_redirected_one() {
    let stage = stage();
    let mut wire = stage.through();
    wire.query_line("SET {0}a value-of-a");
    let nodes = ["{0}a", "{1}x"].map(|key| stage.cluster.owner(key));
    stage.cluster.move_slot(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    wire.send([words("GETEX {0}a"), words("BLPOP {1}q 0"), words("GETEX {0}a")].concat());
    assert_eq!(show(&wire.answer()), text("value-of-a"));
    stage.through().query_line("RPUSH {1}q job");
    assert!(show(&wire.answer()).contains("job"));
    assert_eq!(show(&wire.answer()), text("value-of-a"));
}

#[test]
fn outgrown_buffer_returns_the_redirected_command() {
    let more = format!("{NO_DISCOVERY}resp.max_output_buffer = \"64KiB\"\n");
    let stage = Stage::over(RedisCluster::of(3), &[], &more);
    let mut wire = stage.through();
    let large = "x".repeat(50_000);
    for line in ["SET {0}a 1", "SET {1}large ", "RPUSH {1}list "] {
        let value = if line.ends_with(' ') { &*large } else { "" };
        wire.query_line(&format!("{line}{value}"));
    }
    let nodes = ["{0}a", "{1}x"].map(|key| stage.cluster.owner(key));
    stage.cluster.move_slot(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    let mut lines = vec!["APPEND {0}a 2"];
    lines.extend(["LRANGE {1}list 0 -1"; 20]);
    lines.push("GETEX {0}a");
    wire.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    let replies = wire.answers(lines.len());
    let first = show(&replies[0]);
    assert!(first.starts_with("-TRYAGAIN redis-proxy: "), "{first}");
    assert!(replies[1..21].iter().all(|reply| reply.len() > large.len()));
    let last = show(&replies[21]);
    assert!(last == text("1") || last.starts_with("-TRYAGAIN redis-proxy: "), "{last}");
    assert_eq!(wire.reply_to("GETEX {0}a"), text("1"));
}

#[test]
fn script_error_of_the_form_of_a_redirect_is_a_reply() {
    let stage = stage();
    let mut wire = stage.through();
    let slot = stage.cluster.slot("{0}n");
    let owner = stage.cluster.port(stage.cluster.owner("{0}n"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let unknown = listener.local_addr().unwrap().port();
    let script = "redis.call('INCR', KEYS[1]) return redis.error_reply(ARGV[1])";
    for (number, (code, port)) in
        [("MOVED", owner), ("ASK", owner), ("MOVED", unknown), ("ASK", unknown)].iter().enumerate()
    {
        let error = format!("{code} {slot} 127.0.0.1:{port}");
        let received = wire.reply_to_words(&["EVAL", script, "1", "{0}n", &error]);
        assert_eq!(received, format!("-{error}\\r\\n"));
        assert_eq!(wire.reply_to("GETEX {0}n"), text(&(number + 1).to_string()), "{error}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the proxy connected to an address of a script");
}

#[test]
fn commands_without_keys_keep_no_redirected_one_from_running() {
    let stage = stage();
    let mut wire = stage.through();
    wire.query_line("SET {0}a value-of-a");
    let nodes = ["{0}a", "{1}x"].map(|key| stage.cluster.owner(key));
    stage.cluster.move_slot(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    let received = pipelined(&mut wire, &["GETEX {0}a", "PING", "ECHO x", "SELECT 0", "UNWATCH"]);
    let expected = [&*text("value-of-a"), "+PONG\\r\\n", &*text("x"), OK, OK];
    assert_eq!(received, expected);
}

#[test]
fn watch_of_a_moved_slot_can_be_repeated() {
    let stage = stage();
    let mut wire = stage.through();
    let nodes = ["{0}a", "{1}x"].map(|key| stage.cluster.owner(key));
    stage.cluster.move_slot(stage.cluster.slot("{0}a"), nodes[0], nodes[1]);
    let received = wire.reply_to("WATCH {0}a");
    // The nodes are polled as soon as a check is late, as it may be on a busy machine.
    assert!(received == OK || received.starts_with("-TRYAGAIN redis-proxy: "), "{received}");
    assert_eq!(wire.reply_to("WATCH {0}a"), OK);
}

#[test]
fn unowned_slot_holds_up_a_pipeline_once() {
    let more = format!("{NO_DISCOVERY}redis.response_timeout = \"1s\"\n");
    let stage = Stage::over(RedisCluster::of(3), &[], &more);
    for node in &stage.cluster.nodes {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
        node.command(&["CLUSTER", "DELSLOTS", &stage.cluster.slot("{0}a").to_string()]);
    }
    let mut wire = stage.through();
    let begun = Instant::now();
    let received = pipelined(&mut wire, &["SET {0}a 1"; 30]);
    assert!(received.iter().all(|reply| reply.starts_with('-')), "{received:?}");
    // One after the other they would take 30 s, the bound of a reply being 20.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// The possible values of a key.
type Values = Vec<Option<String>>;

/// A command with keys of one client alone.
#[derive(Debug, Clone)]
enum Step {
    Get(String),
    GetEx(String),
    Strlen(String),
    Set(String, String),
    GetSet(String, String),
    Append(String, String),
    GetDel(String),
    Mget(Vec<String>),
    Mset(Vec<(String, String)>),
    Del(Vec<String>),
    Exists(Vec<String>),
    /// Commands of one slot between `MULTI` and `EXEC`.
    Transaction(Vec<Step>),
}

impl Step {
    fn commands(&self) -> Vec<Vec<u8>> {
        let one = |words: &[&str]| vec![command(words)];
        let many = |name: &str, rest: Vec<&str>| vec![command(&[vec![name], rest].concat())];
        match self {
            Self::Get(key) => one(&["GET", key]),
            Self::GetEx(key) => one(&["GETEX", key]),
            Self::Strlen(key) => one(&["STRLEN", key]),
            Self::Set(key, value) => one(&["SET", key, value]),
            Self::GetSet(key, value) => one(&["GETSET", key, value]),
            Self::Append(key, value) => one(&["APPEND", key, value]),
            Self::GetDel(key) => one(&["GETDEL", key]),
            Self::Mget(keys) => many("MGET", keys.iter().map(String::as_str).collect()),
            Self::Del(keys) => many("DEL", keys.iter().map(String::as_str).collect()),
            Self::Exists(keys) => many("EXISTS", keys.iter().map(String::as_str).collect()),
            Self::Mset(pairs) => {
                many("MSET", pairs.iter().flat_map(|(key, value)| [&**key, &**value]).collect())
            }
            Self::Transaction(steps) => {
                let mut commands = one(&["MULTI"]);
                commands.extend(steps.iter().flat_map(Self::commands));
                commands.extend(one(&["EXEC"]));
                commands
            }
        }
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Self::Get(key)
            | Self::GetEx(key)
            | Self::Strlen(key)
            | Self::GetDel(key)
            | Self::Set(key, _)
            | Self::GetSet(key, _)
            | Self::Append(key, _) => vec![key],
            Self::Mget(keys) | Self::Del(keys) | Self::Exists(keys) => {
                keys.iter().map(String::as_str).collect()
            }
            Self::Mset(pairs) => pairs.iter().map(|(key, _)| &**key).collect(),
            Self::Transaction(steps) => steps.iter().flat_map(Self::keys).collect(),
        }
    }

    /// The reply to the command on keys of these values, which it changes.
    fn run(&self, state: &mut BTreeMap<String, Option<String>>) -> Vec<u8> {
        let value = |state: &BTreeMap<String, Option<String>>, key: &str| state[key].clone();
        let show = |value: Option<String>| value.map_or(b"$-1\r\n".to_vec(), bulk);
        let integer = |number: usize| format!(":{number}\r\n").into_bytes();
        let exists = |state: &BTreeMap<_, Option<_>>, keys: &[String]| {
            keys.iter().filter(|key| state[*key].is_some()).count()
        };
        match self {
            Self::Get(key) | Self::GetEx(key) => show(value(state, key)),
            Self::Strlen(key) => integer(value(state, key).map_or(0, |value| value.len())),
            Self::Set(key, new) => {
                state.insert(key.clone(), Some(new.clone()));
                b"+OK\r\n".to_vec()
            }
            Self::GetSet(key, new) => show(state.insert(key.clone(), Some(new.clone())).flatten()),
            Self::Append(key, more) => {
                let new = value(state, key).unwrap_or_default() + more;
                let length = new.len();
                state.insert(key.clone(), Some(new));
                integer(length)
            }
            Self::GetDel(key) => show(state.insert(key.clone(), None).flatten()),
            Self::Mget(keys) => {
                let values: Vec<_> = keys.iter().flat_map(|key| show(value(state, key))).collect();
                [format!("*{}\r\n", keys.len()).into_bytes(), values].concat()
            }
            Self::Mset(pairs) => {
                state.extend(pairs.iter().map(|(key, new)| (key.clone(), Some(new.clone()))));
                b"+OK\r\n".to_vec()
            }
            Self::Del(keys) => {
                let count = exists(state, keys);
                for key in keys {
                    state.insert(key.clone(), None);
                }
                integer(count)
            }
            Self::Exists(keys) => integer(exists(state, keys)),
            Self::Transaction(steps) => {
                let replies: Vec<_> = steps.iter().flat_map(|step| step.run(state)).collect();
                [format!("*{}\r\n", steps.len()).into_bytes(), replies].concat()
            }
        }
    }

    /// Whether an error leaves open which of its keys it changed.
    fn is_split(&self) -> bool {
        let keys = self.keys();
        keys.iter().any(|key| key[..3] != keys[0][..3])
    }
}

/// The values that the keys of one client may have.
struct Model(BTreeMap<String, Values>);

impl Model {
    /// The states of these keys that are possible. There are few, since a reply soon tells.
    fn states(&self, keys: &[&str]) -> Vec<BTreeMap<String, Option<String>>> {
        let mut states = vec![BTreeMap::new()];
        for key in keys {
            let values = &self.0[*key];
            states = states
                .into_iter()
                .flat_map(|state: BTreeMap<String, Option<String>>| {
                    let known = state.contains_key(*key);
                    let values = if known { vec![state[*key].clone()] } else { values.clone() };
                    values.into_iter().map(move |value| {
                        let mut state = state.clone();
                        state.insert((*key).to_owned(), value);
                        state
                    })
                })
                .collect();
        }
        states
    }

    fn keep(&mut self, states: Vec<BTreeMap<String, Option<String>>>) {
        let mut values: BTreeMap<String, Values> = BTreeMap::new();
        for (key, value) in states.into_iter().flatten() {
            let values = values.entry(key).or_default();
            if !values.contains(&value) {
                values.push(value);
            }
        }
        self.0.extend(values);
    }

    /// Takes account of a reply. The error says what no possible state explains.
    fn replied(&mut self, step: &Step, reply: &[u8]) -> Result<(), String> {
        let before = self.states(&step.keys());
        let mut after = Vec::new();
        let mut possible = Vec::new();
        for mut state in before.clone() {
            let expected = step.run(&mut state);
            if expected == reply {
                after.push(state);
            } else {
                possible.push(show(&expected));
            }
        }
        if after.is_empty() {
            return Err(format!("{step:?}: found {}, expected one of {possible:?}", show(reply)));
        }
        self.keep(after);
        Ok(())
    }

    /// The command may have run or not.
    fn unknown(&mut self, step: &Step) {
        let mut states = self.states(&step.keys());
        for key in step.keys() {
            // Of a split command each key may be as before or not.
            let mut values = self.0[key].clone();
            for mut state in states.clone() {
                step.run(&mut state);
                values.push(state[key].clone());
            }
            values.sort_unstable();
            values.dedup();
            self.0.insert(key.to_owned(), values);
        }
        states.clear();
    }
}

/// Errors of commands that have not run.
fn is_not_run(reply: &[u8]) -> bool {
    ["-TRYAGAIN ", "-CLUSTERDOWN ", "-LOADING ", "-EXECABORT ", "-MASTERDOWN "]
        .iter()
        .any(|code| reply.starts_with(code.as_bytes()))
}

struct Client<'a> {
    stage: &'a Stage,
    model: Model,
    random: SmallRng,
    number: usize,
    written: u64,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    replies: u64,
    not_run: u64,
    lost: u64,
}

const TAGS: [&str; 4] = ["{0}", "{1}", "{3}", "{4}"];
const KEYS: usize = 5;

impl<'a> Client<'a> {
    fn new(stage: &'a Stage, number: usize, seed: u64) -> Self {
        let keys =
            TAGS.iter().flat_map(|tag| (0..KEYS).map(move |key| format!("{tag}{number}-{key}")));
        let model = Model(keys.map(|key| (key, vec![None])).collect());
        let random = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
        Self { stage, model, random, number, written: 0, counts: Counts::default() }
    }

    fn key_of(&mut self, tag: usize) -> String {
        let key = self.random.random_range(0..KEYS);
        format!("{}{}-{key}", TAGS[tag], self.number)
    }

    fn key(&mut self) -> String {
        let tag = self.random.random_range(0..TAGS.len());
        self.key_of(tag)
    }

    fn keys(&mut self) -> Vec<String> {
        let count = self.random.random_range(1..6);
        let mut keys: Vec<_> = (0..count).map(|_| self.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn value(&mut self, key: &str) -> String {
        self.written += 1;
        format!("{key}={};", self.written)
    }

    fn pair(&mut self, key: String) -> (String, String) {
        let value = self.value(&key);
        (key, value)
    }

    fn step(&mut self) -> Step {
        if self.random.random_range(0..12) > 0 {
            let tag = self.random.random_range(0..TAGS.len());
            return self.step_in(tag);
        }
        let tag = self.random.random_range(0..TAGS.len());
        let count = self.random.random_range(1..4);
        let steps: Vec<_> = (0..count).map(|_| self.step_in(tag)).collect();
        let is_of_slot = |step: &Step| step.keys().iter().all(|key| key.starts_with(TAGS[tag]));
        Step::Transaction(steps.into_iter().filter(is_of_slot).collect())
    }

    fn step_in(&mut self, tag: usize) -> Step {
        let key = self.key_of(tag);
        match self.random.random_range(0..14) {
            0 => Step::Get(key),
            1 | 2 => Step::GetEx(key),
            3 => Step::Strlen(key),
            4 | 5 => {
                let (key, value) = self.pair(key);
                Step::Set(key, value)
            }
            6 => {
                let (key, value) = self.pair(key);
                Step::GetSet(key, value)
            }
            7 | 8 => {
                let (key, value) = self.pair(key);
                Step::Append(key, value)
            }
            9 => Step::GetDel(key),
            10 => Step::Mget(self.keys()),
            11 => Step::Del(self.keys()),
            12 => Step::Exists(self.keys()),
            // Within one slot and over several.
            _ => {
                let keys = if self.random.random() {
                    self.keys()
                } else {
                    (0..KEYS).map(|key| format!("{}{}-{key}", TAGS[tag], self.number)).collect()
                };
                Step::Mset(keys.into_iter().map(|key| self.pair(key)).collect())
            }
        }
    }

    /// Sends a pipeline and checks each reply. The error is what no order of events explains.
    fn turn(&mut self, wire: &mut Option<RespClient>) -> Result<(), String> {
        let length =
            if self.random.random_range(0..4) == 0 { 1 } else { self.random.random_range(1..40) };
        let steps: Vec<_> = (0..length).map(|_| self.step()).collect();
        let open = wire.get_or_insert_with(|| self.stage.through());
        open.send(steps.iter().flat_map(Step::commands).flatten().collect::<Vec<u8>>());
        let mut steps = steps.iter();
        while let Some(step) = steps.next() {
            let replies = (0..step.commands().len()).map(|_| open.try_answer());
            let Ok(replies) = replies.collect::<Result<Vec<_>, _>>() else {
                self.counts.lost += 1;
                self.model.unknown(step);
                steps.for_each(|step| self.model.unknown(step));
                *wire = None;
                return Ok(());
            };
            let last = &replies[replies.len() - 1];
            self.counts.replies += 1;
            if !is_not_run(last) {
                self.model.replied(step, last)?;
                continue;
            }
            self.counts.not_run += 1;
            if step.is_split() {
                self.model.unknown(step);
            }
        }
        Ok(())
    }
}

/// The disturbances of a run.
struct Disturber<'a> {
    stage: &'a Stage,
    random: SmallRng,
    moves: u64,
    failovers: u64,
    cuts: u64,
}

impl Disturber<'_> {
    fn disturb(&mut self) {
        let cluster = &self.stage.cluster;
        match self.random.random_range(0..8) {
            0 => self.fail_over(),
            1 => {
                let node = self.random.random_range(0..cluster.nodes.len());
                _ = try_query::<redis::Value>(
                    &cluster.nodes[node],
                    &["CLIENT", "KILL", "TYPE", "normal"],
                );
                self.cuts += 1;
            }
            _ => self.move_slot(),
        }
    }

    fn fail_over(&mut self) {
        let cluster = &self.stage.cluster;
        let shard = self.random.random_range(0..3);
        let replica = if cluster.is_primary(shard) { shard + 3 } else { shard };
        cluster.fail_over_to(replica);
        // Otherwise a slot would be moved to the old primary before it knows of the other.
        cluster.await_agreed();
        cluster.await_whole();
        self.failovers += 1;
    }

    /// Moves a slot to and fro, key by key, and sometimes leaves it half way for a while.
    fn move_slot(&mut self) {
        let cluster = &self.stage.cluster;
        let key = format!("{}x", TAGS[self.random.random_range(0..TAGS.len())]);
        let (slot, from) = (cluster.slot(&key), cluster.owner(&key));
        let shard = (from % 3 + self.random.random_range(1..3)) % 3;
        let to = if cluster.is_primary(shard) { shard } else { shard + 3 };
        cluster.begin_to_move(slot, from, to);
        for _ in 0..self.random.random_range(0..20) {
            cluster.move_key(slot, from, to);
            thread::sleep(Duration::from_millis(self.random.random_range(0..5)));
        }
        cluster.set_migrated(slot, [from, to]);
        // Otherwise a replica that does not know of the move could take over without the slot.
        cluster.await_agreed();
        self.moves += 1;
    }
}

/// `REDIS_PROXY_PIPELINE_SECONDS` and `REDIS_PROXY_TEST_SEED` make it longer, and repeat it.
#[test]
fn random_pipelines_get_the_replies_of_their_commands() {
    let seconds = number("REDIS_PROXY_PIPELINE_SECONDS").unwrap_or(8);
    let seed = seed();
    let more = "redis.response_timeout = \"10s\"\n";
    // Otherwise replicas take over by themselves on a busy machine, without the last writes.
    let patient = ["--cluster-replica-no-failover", "yes"];
    let stage = Stage::over(
        RedisCluster::start(3, 3, &patient),
        &["--cluster-require-full-coverage", "no"],
        more,
    );
    for log in ["no link to", "Redis has moved", "it is no primary", "could not be", "failed"] {
        stage.proxy.expect_log(log);
    }
    let (is_over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds);
    let (counts, disturber) = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let mut client = Client::new(&stage, number, seed);
                let (is_over, turns) = (&is_over, &turns);
                scope.spawn(move || {
                    let _end = super::cluster::Ender(is_over);
                    let mut wire = None;
                    while !is_over.load(SeqCst) {
                        if let Err(problem) = client.turn(&mut wire) {
                            panic!("client {number}: {problem}");
                        }
                        turns.fetch_add(1, SeqCst);
                    }
                    client
                })
            })
            .collect();
        let random = SmallRng::seed_from_u64(seed);
        let mut disturber = Disturber { stage: &stage, random, moves: 0, failovers: 0, cuts: 0 };
        {
            let _end = super::cluster::Ender(&is_over);
            while Instant::now() < until && !is_over.load(SeqCst) {
                let before = turns.load(SeqCst);
                disturber.disturb();
                eventually("the clients go on", || {
                    (turns.load(SeqCst) > before + 4 || is_over.load(SeqCst)).then_some(())
                });
            }
        }
        let mut counts = Counts::default();
        for client in clients {
            let client = client.join().expect("a client whose replies are right");
            stage.check(&client.model);
            counts.replies += client.counts.replies;
            counts.not_run += client.counts.not_run;
            counts.lost += client.counts.lost;
        }
        (counts, disturber)
    });
    let Disturber { moves, failovers, cuts, .. } = disturber;
    eprintln!("{counts:?}, {moves} moves, {failovers} failovers, {cuts} cuts");
    assert!(moves > 0 && counts.replies > 100, "{moves} moves, {counts:?}");
    // A command that has not run is the exception.
    assert!(counts.not_run < counts.replies / 10, "{counts:?}");
}

impl Stage {
    /// Begins to move the slot of `key` to the owner of `destination`. Returns the slot, and the
    /// nodes it moves from and to.
    fn begin_to_move(&self, key: &str, destination: &str) -> (u16, [usize; 2]) {
        let nodes = [key, destination].map(|key| self.cluster.owner(key));
        let slot = self.cluster.slot(key);
        self.cluster.begin_to_move(slot, nodes[0], nodes[1]);
        (slot, nodes)
    }

    fn redirects(&self, result: &str) -> f64 {
        let name = format!("redis_proxy_redirects_total{{result=\"{result}\"}}");
        self.proxy.metrics().value(&name).unwrap_or_default()
    }

    /// The keys have values that they may have, as their nodes say.
    fn check(&self, model: &Model) {
        for (key, values) in &model.0 {
            let owner = self.cluster.owner(key);
            let found: Option<String> =
                try_query(&self.cluster.nodes[owner], &["GET", key]).unwrap();
            assert!(values.contains(&found), "{key}: found {found:?}, expected one of {values:?}");
        }
    }
}

impl RedisCluster {
    /// Returns once all nodes name the same primary for every slot.
    fn await_agreed(&self) {
        let agreed = within(Duration::from_secs(60), || {
            let claims: Vec<_> = (0..self.nodes.len())
                .map(|node| {
                    try_query(&self.nodes[node], &["CLUSTER", "NODES"])
                        .map(|view: String| claims(&view))
                })
                .collect::<Result<_, _>>()
                .ok()?;
            claims.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        });
        assert!(agreed.is_some(), "the nodes do not agree on the primary of every slot");
    }

    /// Moves one key of a slot that is on its way.
    fn move_key(&self, slot: u16, from: usize, to: usize) {
        let question = ["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1"];
        let keys: Vec<String> = try_query(&self.nodes[from], &question).unwrap_or_default();
        let port = self.port(to).to_string();
        for key in keys {
            let node: &RedisServer = &self.nodes[from];
            _ = try_query::<redis::Value>(
                node,
                &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"],
            );
        }
    }

    /// Moves what is left of a slot, and the slot.
    fn set_migrated(&self, slot: u16, [from, to]: [usize; 2]) {
        self.move_keys(slot, from, to);
        self.end_to_move(slot, from, to);
    }
}

/// The primaries and their slots, as one node reports them.
fn claims(view: &str) -> BTreeMap<String, Vec<String>> {
    let lines = view.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let primaries = lines.filter(|words| words.len() > 2 && words[2].contains("master"));
    let slots = |words: &[&str]| {
        let ranges = words.iter().skip(8).filter(|word| !word.starts_with('['));
        ranges.map(|word| (*word).to_owned()).collect()
    };
    primaries.map(|words| (words[0].to_owned(), slots(&words))).collect()
}
