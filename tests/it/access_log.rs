//! The access log, and the log of refused clients.
//!
//! Promise: a line for a request, if asked for, with no key unless that is asked for, too. A
//! refused client is named by its address, at most once a second.

use serde_json::Value;

use crate::support::http::{self, Client};
use crate::support::resp_client::RespClient;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{proxy, read, set};
use crate::support::{Proxy, RedisServer, eventually};

/// Returns the lines with this message, once there are `count` of them. Requests to the operator's
/// routes do not count: at first the proxy may not be ready.
fn lines(proxy: &Proxy, message: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} lines say {message:?}"), || {
        let log = proxy.log_lines();
        let lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line.text()).ok());
        let lines = lines.filter(|line| line["front_end"] != "admin");
        let found: Vec<_> = lines.filter(|line| line["message"] == message).collect();
        (found.len() >= count).then_some(found)
    })
}

#[test]
fn each_request_has_a_line_without_its_key() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "telemetry.access_log = \"all\"");
    set(&redis, "secret", "value");
    let mut client = Client::connect(proxy.http());
    client.get("/keys/secret");
    client.get("/keys/secret");
    client.request("POST", "/keys/secret", &[]);
    let lines = lines(&proxy, "request", 3);
    let statuses: Vec<_> = lines.iter().map(|line| line["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(200), Some(200), Some(405)]);
    for line in lines {
        assert_eq!(line["route"], "/keys/");
        let client = line["client"].as_str().expect("an address");
        assert!(client.starts_with("127.0.0.1:"), "{client}");
        assert!(line["path"].is_null() && !line.to_string().contains("secret"), "{line}");
        assert!(line["took"].is_string(), "{line}");
    }
}

#[test]
fn errors_alone_have_lines_with_keys_if_asked_for() {
    let redis = RedisServer::start();
    let proxy =
        proxy(&redis, "telemetry.access_log = \"errors\"\ntelemetry.access_log_keys = true");
    set(&redis, "key", "value");
    assert_eq!(read(&proxy, "key").status, 200);
    assert_eq!(read(&proxy, "absent").status, 404);
    assert_eq!(http::get(proxy.http(), "/keys/key?_token=query-secret").status, 400);
    let lines = lines(&proxy, "request", 1);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["status"], &lines[0]["path"]), (&400.into(), &"/keys/key".into()));
    assert!(!proxy.log_lines().iter().any(|line| line.text().contains("query-secret")));
}

#[test]
fn log_is_off_by_default_and_sampled_if_asked_for() {
    let redis = RedisServer::start();
    for settings in ["", "telemetry.access_log = \"all\"\ntelemetry.access_log_sample = 0.0"] {
        let proxy = proxy(&redis, settings);
        assert_eq!(read(&proxy, "absent").status, 404);
        assert!(!proxy.log_lines().iter().any(|line| line.text().contains("\"request\"")));
    }
}

#[test]
fn refused_client_is_named_at_most_once_a_second() {
    let redis = RedisServer::builder().tcp().start();
    let (tokens, password) = (SecretFile::new("token\n"), SecretFile::new("password\n"));
    let proxy = Proxy::start(&format!(
        "http.listen = \"127.0.0.1:0\"\nhttp.tokens_file = \"{}\"\nresp.listen = \"127.0.0.1:0\"\n\
         resp.password_file = \"{}\"\nresp.max_connections = 1\nredis.url = \"{}\"\n",
        tokens.name(),
        password.name(),
        redis.tcp_url()
    ));
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(http::get(proxy.http(), "/keys/key").status, 401);
    }
    let limit = usize::try_from(begun.elapsed().as_secs()).expect("a small number") + 1;
    let mut first = RespClient::connect(proxy.resp_address());
    assert!(first.reply_to_words(&["AUTH", "wrong"]).starts_with("-WRONGPASS"));
    let mut second = RespClient::connect(proxy.resp_address());
    assert!(second.reply_to_words(&["PING"]).contains("max number of clients"));
    let lines = lines(&proxy, "client refused", 3);
    let of = |reason: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["reason"] == reason).collect()
    };
    assert!((1..=limit).contains(&of("token").len()), "{lines:?}");
    assert_eq!((of("login").len(), of("connections").len()), (1, 1), "{lines:?}");
    for line in &lines {
        let client = line["client"].as_str().expect("an address");
        assert!(client.starts_with("127.0.0.1:") && line["suppressed"].is_u64(), "{line}");
    }
}
