//! The front end's own password and key allowlist (`resp.allow_keys`).
//!
//! Promise: only an authenticated client is served, and only keys of the list.

use crate::support::resp_client::{RespClient, show};
use crate::support::resp_pair::{LASTING, resp_config};
use crate::support::secret_file::{SecretFile, assert_not_told, reload};
use crate::support::serving::await_ready;
use crate::support::{Proxy, RedisServer, Reload};

const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// Starts a proxy that requires the password in `file`.
fn asking(file: &SecretFile, more: &str) -> (RedisServer, Proxy) {
    let redis = RedisServer::builder().tcp().start();
    let settings = format!("resp.password_file = \"{}\"\n{more}", file.name());
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    (redis, proxy)
}

fn reply_to_new_client(proxy: &Proxy, line: &str) -> String {
    text_of_reply(&mut RespClient::connect(proxy.resp_address()), line)
}

fn text_of_reply(wire: &mut RespClient, line: &str) -> String {
    String::from_utf8_lossy(&wire.query_line(line)).into_owned()
}

#[test]
fn reloaded_password_applies_to_new_connections() {
    let file = SecretFile::new("first\n");
    let (_redis, proxy) = asking(&file, "");
    let mut inside = RespClient::connect(proxy.resp_address());
    assert_eq!(text_of_reply(&mut inside, "AUTH first"), "+OK\r\n");

    file.write("second");
    assert_eq!(reply_to_new_client(&proxy, "AUTH second"), WRONG, "before the reload");
    assert_eq!(reload(&proxy), Reload::Reloaded);
    assert_eq!(reply_to_new_client(&proxy, "AUTH second"), "+OK\r\n");
    assert_eq!(reply_to_new_client(&proxy, "AUTH first"), WRONG);
    assert_eq!(
        text_of_reply(&mut inside, "SET k v"),
        "+OK\r\n",
        "a client that logged in stays so"
    );
    assert_eq!(text_of_reply(&mut inside, "AUTH first"), WRONG);

    proxy.expect_log("config refused");
    file.write("\n");
    assert_eq!(reload(&proxy), Reload::Refused);
    assert_eq!(reply_to_new_client(&proxy, "AUTH second"), "+OK\r\n");
    let line = proxy.wait_for_log(|line| line.text().contains("resp.password_file"));
    assert!(line.text().contains("found nothing in it"), "{}", line.text());
    assert_not_told(&proxy, &["first", "second"]);
}

#[test]
fn unauthenticated_sizes_are_limited_as_in_redis() {
    let file = SecretFile::new("word");
    let (_redis, proxy) = asking(&file, "");
    let mut wire = RespClient::connect(proxy.resp_address());
    // Ten words, and one of 16 KiB.
    let (ten, large) = ([&b"DEL"[..]; 10], vec![b'x'; 16 << 10]);
    assert_eq!(wire.reply_to_words(&ten), "-NOAUTH Authentication required.\\r\\n");
    assert_eq!(
        wire.reply_to_words(&[b"GET", &large[..]]),
        "-NOAUTH Authentication required.\\r\\n"
    );
    for (beyond, said) in [
        ("*11\r\n", "-ERR Protocol error: unauthenticated multibulk length\\r\\n"),
        ("*2\r\n$3\r\nGET\r\n$16385\r\n", "-ERR Protocol error: unauthenticated bulk length\\r\\n"),
    ] {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(beyond);
        assert_eq!(show(&wire.rest()), said, "and the end");
    }
    assert_eq!(text_of_reply(&mut wire, "AUTH word"), "+OK\r\n");
    assert_eq!(wire.reply_to_words(&[&ten[..], &[&b"x"[..]]].concat()), ":0\\r\\n");
    assert_eq!(wire.reply_to_words(&[b"GET", &[&large[..], b"x"].concat()[..]]), "$-1\\r\\n");
}

#[test]
fn configured_username_is_the_only_one() {
    let file = SecretFile::new("word");
    let (_redis, proxy) = asking(&file, "resp.username = \"app\"");
    for right in ["AUTH app word", "HELLO 2 AUTH app word"] {
        assert!(!reply_to_new_client(&proxy, right).starts_with('-'), "{right}");
    }
    for wrong in [
        "AUTH word",
        "AUTH default word",
        "AUTH App word",
        "AUTH app wor",
        "AUTH app words",
        "HELLO 3 AUTH default word",
    ] {
        assert_eq!(reply_to_new_client(&proxy, wrong), WRONG, "{wrong}");
    }
}

#[test]
fn username_without_password_is_rejected() {
    let redis = RedisServer::start();
    let (code, said) =
        Proxy::builder(&resp_config(&redis.url(), "resp.username = \"app\"")).run_to_end();
    assert!(
        code == 78 && said.contains("resp.username: found a name without a password"),
        "{code} {said}"
    );
}

const NO_KEY: &str = "-NOPERM No permissions to access a key\r\n";
const NO_COMMAND: &str = "-NOPERM This user has no permissions to run this command\r\n";

/// Starts a proxy that serves two kinds of keys, with a secret in its memory.
fn listed(more: &str) -> (RedisServer, Proxy) {
    let redis = RedisServer::builder().tcp().start();
    for (key, value) in [
        ("public:a", "for all"),
        ("public:b", "too"),
        ("one", "1"),
        ("secret", "hidden"),
        ("publi", "x"),
    ] {
        redis.command(&["SET", key, value]);
    }
    let settings = format!("{LASTING}\nresp.allow_keys = [\"public:*\", \"one\"]\n{more}");
    let proxy = Proxy::start(&resp_config(&redis.url(), &settings));
    await_ready(&proxy);
    // A listener without a list has brought the secret into the shared memory.
    assert_eq!(crate::support::http::get(proxy.http(), "/keys/secret").body, b"hidden");
    (redis, proxy)
}

#[test]
fn only_allowed_keys_are_served() {
    let (redis, proxy) = listed("");
    let mut wire = RespClient::connect(proxy.resp_address());
    let commands = ["get", "mget", "exists", "strlen", "getrange", "type", "hget", "lcs", "zunion"];
    let asked = commands.map(|command| redis.calls(command));
    for line in [
        "GET secret",
        "GET nothing",
        "get publi",
        "GET public",
        "GET Public:a",
        "GET one:",
        "MGET secret",
        "MGET public:a secret",
        "MGET public:a nothing one",
        "EXISTS secret",
        "TTL secret",
        "EXISTS nothing",
        "EXISTS public:a secret",
        "STRLEN secret",
        "STRLEN nothing",
        "GETRANGE secret 0 -1",
        "SUBSTR nothing 0 -1",
        "TYPE secret",
        "HGET secret f",
        "LCS public:a secret",
        "PFCOUNT nothing",
        "SINTER public:a secret",
        "ZUNION 2 public:a secret",
        "SORT_RO public:a BY secret*",
        // Reads with a wrong number of arguments.
        "GET",
        "GET public:a secret",
        "MGET",
        "STRLEN public:a secret",
        "GETRANGE public:a 0",
        "HGET public:h",
        "ZUNION 2 public:a",
    ] {
        assert_eq!(text_of_reply(&mut wire, line), NO_KEY, "{line}");
    }
    let empty = RespClient::connect(proxy.resp_address()).query(&["GET", ""]);
    assert_eq!(show(&empty), show(NO_KEY.as_bytes()));
    let now = commands.map(|command| redis.calls(command));
    assert_eq!(now, asked, "Redis was asked");
    for (line, expected) in [
        ("GET public:a", "$7\r\nfor all\r\n"),
        ("GET public:nothing", "$-1\r\n"),
        ("GET public:", "$-1\r\n"),
        ("MGET public:a one public:b", "*3\r\n$7\r\nfor all\r\n$1\r\n1\r\n$3\r\ntoo\r\n"),
        ("EXISTS public:a one public:nothing", ":2\r\n"),
        ("STRLEN public:a", ":7\r\n"),
        ("GETRANGE public:a 0 2", "$3\r\nfor\r\n"),
        ("SUBSTR public:a 0 2", "$3\r\nfor\r\n"),
        ("TYPE public:a", "+string\r\n"),
        ("PTTL public:a", ":-1\r\n"),
        ("LCS public:a one", "$0\r\n\r\n"),
        ("HGET public:nothing f", "$-1\r\n"),
        ("SINTER public:nothing public:", "*0\r\n"),
    ] {
        assert_eq!(text_of_reply(&mut wire, line), expected, "{line}");
    }
}

/// Commands that are not known to respect a list of keys.
const FORBIDDEN: [&str; 68] = [
    "SET public:a x",
    "GETEX public:a",
    "GETDEL public:a",
    "GETSET public:a x",
    "DUMP public:a",
    "COPY secret public:copy",
    "RENAME secret public:copy",
    "SORT public:a BY nosort GET secret",
    "OBJECT ENCODING secret",
    "EXPIRETIME secret",
    "TOUCH secret",
    "UNLINK secret",
    "BITOP OR public:a secret",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH secret",
    "UNWATCH",
    "EVAL return(redis.call('get','secret')) 0",
    "EVAL_RO return(redis.call('get',KEYS[1])) 1 public:a",
    "EVALSHA x 0",
    "FCALL f 0",
    "FUNCTION LIST",
    "SCRIPT LOAD return(1)",
    "SCRIPT DEBUG YES",
    "SUBSCRIBE __keyspace@0__:secret",
    "PSUBSCRIBE *",
    "SSUBSCRIBE secret",
    "PUBLISH a b",
    "PUBSUB CHANNELS",
    "MONITOR",
    "SYNC",
    "PSYNC ? -1",
    "REPLCONF listening-port 1",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "DBSIZE",
    "INFO",
    "CONFIG GET *",
    "DEBUG OBJECT secret",
    "MEMORY USAGE secret",
    "SLOWLOG GET",
    "LATENCY LATEST",
    "ACL LIST",
    "ACL SETUSER default nopass",
    "CLIENT",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "CLIENT TRACKING ON BCAST",
    "CLIENT CACHING YES",
    "CLIENT REPLY OFF",
    "CLIENT UNBLOCK 1",
    "SELECT 1",
    "SELECT",
    "SWAPDB 0 1",
    "FLUSHALL",
    "MIGRATE h 1 secret 0 1",
    "XREAD STREAMS secret 0",
    "BLPOP secret 0",
    "WAIT 0 0",
    "SHUTDOWN",
    "MODULE LIST",
    "READONLY",
    "ASKING",
    "JSON.GET secret",
    "NONESUCH secret",
    "GETT secret",
];
/// Commands that concern the connection alone.
const OWN: [&str; 14] = [
    "PING",
    "PING hello",
    "ECHO hello",
    "HELLO 3",
    "HELLO 2",
    "CLIENT SETNAME me",
    "CLIENT GETNAME",
    "CLIENT SETINFO LIB-NAME lib",
    "CLIENT ID",
    "CLIENT INFO",
    "COMMAND COUNT",
    "SELECT 0",
    "RESET",
    "QUIT",
];

#[test]
fn other_commands_are_rejected_by_the_list() {
    let (redis, proxy) = listed("");
    let mut wire = RespClient::connect(proxy.resp_address());
    for line in FORBIDDEN {
        assert_eq!(text_of_reply(&mut wire, line), NO_COMMAND, "{line}");
    }
    assert_eq!(text_of_reply(&mut wire, "GET public:a"), "$7\r\nfor all\r\n", "all is as it was");
    assert_eq!(redis.command(&["GET", "secret"]), redis::Value::BulkString(b"hidden".to_vec()));
    for line in OWN {
        assert!(!text_of_reply(&mut wire, line).starts_with("-NOPERM"), "{line}");
    }
}

#[test]
fn allowlist_has_no_bypass() {
    let (_redis, proxy) = listed("");
    let ask = |sent: &str, count: usize| {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(sent);
        String::from_utf8(wire.answers(count).concat()).unwrap()
    };
    // Inline commands, in any case and quotes.
    assert_eq!(ask("GET secret\r\n", 1), NO_KEY);
    assert_eq!(ask("gEt \"secret\"\n", 1), NO_KEY);
    assert_eq!(ask("GET \"\\x73ecret\"\r\n", 1), NO_KEY);
    assert_eq!(ask("GET 'public:a'\r\n", 1), "$7\r\nfor all\r\n");
    // A command inside an argument is part of the argument.
    let hidden = "*2\r\n$3\r\nGET\r\n$30\r\npublic:\r\n*2\r\n$3\r\nGET\r\n$6\r\nsecr\r\n";
    assert_eq!(ask(hidden, 1), "$-1\r\n");
    // Pipelined between allowed commands, with replies in order.
    let first = "$7\r\nfor all\r\n";
    let answers = ask(
        "GET public:a\r\nGET secret\r\nMULTI\r\nGET secret\r\nEXEC\r\nPING\r\nGET public:a\r\n\
            GET secret\r\n",
        8,
    );
    assert_eq!(
        answers,
        format!("{first}{NO_KEY}{NO_COMMAND}{NO_KEY}{NO_COMMAND}+PONG\r\n{first}{NO_KEY}")
    );
    // The command is too long to be held, and so to be recognised.
    let long = "a".repeat(3 << 20);
    for name in ["secret", "public:"] {
        let mut wire = RespClient::connect(proxy.resp_address());
        wire.send(format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}{long}", name.len() + long.len()));
        assert_eq!(String::from_utf8(wire.answer()).unwrap(), NO_COMMAND, "{name}");
        assert_eq!(wire.is_closed(), Some(true), "{name}");
    }
}

#[test]
fn unauthenticated_client_learns_no_allowlist() {
    let file = SecretFile::new("word");
    let (_redis, proxy) = listed(&format!("resp.password_file = \"{}\"", file.name()));
    for line in ["GET secret", "GET public:a", "SET public:a x"] {
        assert_eq!(
            reply_to_new_client(&proxy, line),
            "-NOAUTH Authentication required.\r\n",
            "{line}"
        );
    }
    let mut wire = RespClient::connect(proxy.resp_address());
    assert_eq!(text_of_reply(&mut wire, "AUTH word"), "+OK\r\n");
    assert_eq!(text_of_reply(&mut wire, "GET secret"), NO_KEY);
    assert_eq!(text_of_reply(&mut wire, "GET one"), "$1\r\n1\r\n");
}
