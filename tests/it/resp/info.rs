//! The section of the proxy in `INFO`.
//!
//! Promise: `INFO redis_proxy` has the counts of `/metrics`. Any other reply to `INFO` is Redis's
//! own, unless `resp.info` adds the section.

use super::cluster::Stage;
use crate::support::cluster::RedisCluster;
use crate::support::resp_client::RespClient;
use crate::support::resp_pair::{AS_READER, LASTING, READER_AND_OTHER, RespPair, is_straight};
use crate::support::serving::metric;
use crate::support::{Proxy, RedisServer, eventually};

const SECTION: &str = "# redis_proxy";
const OWN: &str = "INFO redis_proxy";

/// Returns the value of a field of the section in a reply.
fn field(reply: &str, name: &str) -> Option<String> {
    let field = format!("redis_proxy_{name}:");
    let rest = reply.split_once(&field)?.1;
    rest.split("\r\n").next().map(str::to_owned)
}

fn text(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}

fn ask(client: &mut RespClient, line: &str) -> String {
    text(&client.query_line(line))
}

#[test]
fn own_section_has_the_counts_of_the_metrics() {
    let pair = RespPair::between(|server| server, LASTING);
    let Some(proxy) = pair.proxy() else { return };
    let mut client = RespClient::connect(pair.through());
    for line in ["SET a 1", "GET a", "GET a", "GET a", "LRANGE l 0 -1", "LRANGE l 0 -1"] {
        client.query_line(line);
    }
    let reply = ask(&mut client, OWN);
    assert!(reply.starts_with('$') && reply.contains(SECTION), "{reply}");
    for (name, series) in [
        ("hits", "cache_hits_total"),
        ("misses", "cache_misses_total"),
        ("entries", "cache_entries"),
        ("replies", "replies_entries"),
        ("max_memory_bytes", "cache_max_memory_bytes"),
    ] {
        let found = field(&reply, name).and_then(|value| value.parse::<f64>().ok());
        assert_eq!(found, Some(metric(proxy, series)), "{name} in {reply}");
    }
    assert_eq!(field(&reply, "hits").as_deref(), Some("3"), "{reply}");
    assert_eq!(field(&reply, "hit_ratio").as_deref(), Some("0.6000"), "{reply}");
    assert_eq!(field(&reply, "coherence").as_deref(), Some("tracking"), "{reply}");
    assert_eq!(field(&reply, "version").as_deref(), Some(env!("CARGO_PKG_VERSION")), "{reply}");
    let mut resp3 = RespClient::connect_resp3(pair.through());
    let reply = ask(&mut resp3, OWN);
    assert!(reply.starts_with('=') && reply.contains("\r\ntxt:# redis_proxy"), "{reply}");
}

#[test]
fn other_info_is_the_reply_of_redis() {
    let pair = RespPair::start();
    let Some(_) = pair.proxy() else { return };
    let mut client = RespClient::connect(pair.through());
    for line in ["INFO", "INFO everything", "INFO all", "INFO server"] {
        let reply = ask(&mut client, line);
        assert!(!reply.contains(SECTION) && reply.contains("redis_version"), "{line}: {reply}");
    }
    pair.same_answers(&["INFO nonesuch", "MULTI", OWN, "EXEC"]);
    let reply = ask(&mut client, "INFO server redis_proxy");
    assert!(reply.contains("redis_version:") && reply.contains(SECTION), "{reply}");
}

#[test]
fn setting_adds_the_section_to_info() {
    let pair = RespPair::between(|server| server, &format!("{LASTING}\nresp.info = true"));
    let Some(_) = pair.proxy() else { return };
    let clients = [RespClient::connect(pair.through()), RespClient::connect_resp3(pair.through())];
    for mut client in clients {
        for line in ["INFO", "INFO everything", "info ALL", "INFO default"] {
            let reply = ask(&mut client, line);
            assert!(reply.contains("redis_version:"), "{line}: {reply}");
            let (_, behind) = reply.split_once("\r\n\r\n# redis_proxy\r\n").expect(line);
            assert!(!behind.contains('#'), "{line}: {behind}");
        }
        let reply = ask(&mut client, "INFO server");
        assert!(!reply.contains(SECTION), "{reply}");
        // In a pipeline each reply keeps its place.
        client.send("SET k v\r\nINFO\r\nGET k\r\nINFO redis_proxy\r\nPING\r\n");
        let replies: Vec<_> = client.answers(5).iter().map(|reply| text(reply)).collect();
        assert_eq!((&*replies[0], &*replies[4]), ("+OK\r\n", "+PONG\r\n"));
        assert!(replies[1].contains("# Server") && replies[1].contains(SECTION), "{replies:?}");
        assert!(replies[3].contains(SECTION) && !replies[3].contains("# Server"), "{replies:?}");
    }
    pair.same_answers(&["MULTI", "INFO nonesuch", OWN, "EXEC", "INFO nonesuch"]);
}

#[test]
fn section_needs_the_login_that_redis_requires() {
    if is_straight() {
        return;
    }
    let users = [&["--requirepass", "secret"], &READER_AND_OTHER[..]].concat();
    let settings = format!("{LASTING}\n{AS_READER}\nresp.info = true");
    let pair = RespPair::between(|server| server.arguments(&users), &settings);
    let mut client = RespClient::connect(pair.through());
    for line in [OWN, "INFO", "INFO server redis_proxy"] {
        assert_eq!(ask(&mut client, line), "-NOAUTH Authentication required.\r\n", "{line}");
    }
    for login in ["AUTH other other-secret", "AUTH reader reader-secret"] {
        client.query_line(login);
        assert!(ask(&mut client, OWN).contains(SECTION), "{login}");
    }
}

#[test]
fn section_needs_the_password_of_the_listener() {
    if is_straight() {
        return;
    }
    let file = crate::support::secret_file::SecretFile::new("front\n");
    let settings = format!(
        "{LASTING}\nresp.password_file = \"{}\"\nresp.allow_keys = [\"public:*\"]",
        file.name()
    );
    let pair = RespPair::between(|server| server, &settings);
    let mut client = RespClient::connect(pair.through());
    assert!(ask(&mut client, OWN).starts_with("-NOAUTH"));
    client.query_line("AUTH front");
    assert!(ask(&mut client, OWN).contains(SECTION));
    assert!(ask(&mut client, "INFO").starts_with("-NOPERM"));
}

#[test]
fn own_section_is_answered_while_redis_is_down() {
    if is_straight() {
        return;
    }
    let redis = RedisServer::builder().tcp().start();
    let url = redis.tcp_url();
    let proxy = Proxy::start(&crate::support::resp_pair::resp_config(&url, LASTING));
    crate::support::serving::await_ready(&proxy);
    let mut client = RespClient::connect(proxy.resp_address());
    proxy.expect_log("connection to Redis");
    drop(redis);
    eventually("the section shows that nothing is kept current", || {
        let reply = ask(&mut client, OWN);
        (field(&reply, "coherence")? == "none").then_some(())
    });
}

#[test]
fn cluster_has_the_section_too() {
    if is_straight() {
        return;
    }
    let stage = Stage::over(RedisCluster::of(3), &[], "resp.info = true\n");
    let mut client = stage.through();
    assert!(ask(&mut client, OWN).contains(SECTION));
    let reply = ask(&mut client, "INFO");
    assert!(reply.contains("redis_version:") && reply.contains(SECTION), "{reply}");
    let replies = ["MULTI", OWN, "EXEC"].map(|line| ask(&mut client, line));
    assert_eq!(replies[1], "+QUEUED\r\n", "{replies:?}");
}
