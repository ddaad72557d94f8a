//! Tokens: a request without one gets nothing, and each token does only what it may.

use super::support::{Served, json};
use crate::support::Proxy;
use crate::support::Reload;
use crate::support::secret_file::{assert_not_told, reload};

#[test]
fn request_without_a_token_gets_nothing() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "secret-value"]);
    let full = ("Authorization", "Bearer full-token");
    let plain = ("Content-Type", "text/plain");
    for (method, path, headers, body) in [
        // A web page can send these without a preflight.
        ("POST", "/rest", &[plain][..], r#"["SET","a","x"]"#),
        ("GET", "/rest/set/a/x", &[], ""),
        ("POST", "/rest/pipeline", &[plain], r#"[["SET","a","x"]]"#),
        ("POST", "/rest/multi-exec", &[], r#"[["SET","a","x"]]"#),
        ("POST", "/rest", &[("Authorization", "Bearer wrong")], r#"["SET","a","x"]"#),
        ("POST", "/rest", &[("Authorization", "Basic full-token")], r#"["SET","a","x"]"#),
        ("POST", "/rest", &[full, full], r#"["SET","a","x"]"#),
        ("GET", "/rest/set/a/x?_token=wrong", &[], ""),
        ("GET", "/rest/set/a/x?_token=full-token&_token=full-token", &[], ""),
        ("GET", "/rest/set/a/x?_token=full-token", &[("Authorization", "Bearer x")], ""),
        ("DELETE", "/rest/nothing", &[], ""),
        ("POST", "/rest", &[], "not json"),
    ] {
        let response = served.send(method, path, headers, body);
        assert_eq!(json(&response).0, 401, "{method} {path}");
        assert!(response.header("www-authenticate").is_some());
    }
    assert_eq!(served.redis_text(&["GET", "a"]), "secret-value");
    let by_query = served.send("GET", "/rest/get/a?_token=full-token", &[], "");
    assert_eq!(json(&by_query).0, 200);
    assert_not_told(&served.proxy, &["full-token", "secret-value"]);
}

#[test]
fn other_routes_keep_their_own_tokens() {
    let served = Served::start();
    for path in ["/keys/a", "/restx", "/rest%2Fget/a", "/Rest/get/a"] {
        let response = served.send("GET", path, &[], "");
        assert_eq!(response.status, 404, "{path}");
    }
    let http = crate::support::secret_file::SecretFile::new("http-token\n");
    let config = format!(
        "http.listen = \"127.0.0.1:0\"\nhttp.tokens_file = \"{}\"\nredis.url = \"{}\"\n\
            [rest]\npath = \"/rest\"\ntokens_file = \"{}\"\n",
        http.name(),
        served.redis.url(),
        served.file.name()
    );
    let proxy = Proxy::start(&config);
    let status = |path: &str, token: &str| {
        let authorization = format!("Bearer {token}");
        let mut client = crate::support::http::Client::connect(proxy.http());
        client.request("GET", path, &[("Authorization", &authorization)]).status
    };
    assert_eq!(status("/rest/get/a", "http-token"), 401);
    assert_eq!(status("/rest/get/a", "full-token"), 200);
    assert_eq!(status("/keys/a", "full-token"), 401);
    assert_eq!(status("/metrics", "full-token"), 401);
    assert_eq!(status("/keys/a", "http-token"), 404);
}

#[test]
fn token_does_only_what_it_may() {
    let served = Served::start();
    served.redis.command(&["MSET", "a:1", "1", "b", "2"]);
    for (token, body, code) in [
        ("reader-token", r#"["GET","b"]"#, 200),
        ("reader-token", r#"["SET","b","x"]"#, 403),
        ("reader-token", r#"["EVAL","return 1",0]"#, 403),
        ("reader-token", r#"["SCAN",0]"#, 403),
        ("reader-token", r#"["PFCOUNT","a:1"]"#, 403),
        ("reader-token", r#"["ROLE"]"#, 403),
        ("reader-token", r#"["INFO"]"#, 403),
        ("reader-token", r#"["INFO","redis_proxy"]"#, 200),
        ("scoped-token", r#"["INFO"]"#, 403),
        ("scoped-token", r#"["INFO","redis_proxy"]"#, 200),
        ("scoped-token", r#"["GET","a:1"]"#, 200),
        ("scoped-token", r#"["GET","b"]"#, 403),
        ("scoped-token", r#"["SET","a:2","x"]"#, 200),
        ("scoped-token", r#"["SET","b","x"]"#, 403),
        ("scoped-token", r#"["MSET","a:1","1","b","x"]"#, 403),
        ("scoped-token", r#"["RENAME","b","a:3"]"#, 403),
        ("scoped-token", r#"["EVAL","return redis.call('GET','b')",0]"#, 403),
        ("scoped-token", r#"["EVAL","return 1",1,"a:1"]"#, 403),
        ("scoped-token", r#"["SORT","a:1","BY","b","STORE","b"]"#, 403),
        ("scoped-token", r#"["DBSIZE"]"#, 403),
        ("scoped-token", r#"["SPUBLISH","a:1","x"]"#, 403),
        ("scoped-token", r#"["NONESUCH","a:1"]"#, 403),
        ("scoped-token", r#"["PING"]"#, 200),
        ("scoped-reader", r#"["GET","a:1"]"#, 200),
        ("scoped-reader", r#"["SET","a:1","x"]"#, 403),
        ("scoped-reader", r#"["GET","b"]"#, 403),
    ] {
        let (status, found) = served.post_as(token, "/rest", body);
        assert_eq!(status, code, "{token} {body}: {found}");
        let (_, replies) = served.post_as(token, "/rest/pipeline", &format!("[{body},[\"PING\"]]"));
        assert_eq!(replies[0]["error"].is_string(), code == 403, "{token} {body}: {replies}");
        assert_eq!(replies[1]["result"], "PONG");
    }
    assert_eq!(served.redis_text(&["GET", "b"]), "2");
}

/// Redis's own flags decide which commands change nothing.
#[test]
fn read_only_token_runs_only_what_redis_flags_as_reads() {
    let served = Served::start();
    let commands: Vec<(String, i64, Vec<String>)> = {
        let rows: Vec<Vec<redis::Value>> =
            redis::from_redis_value(served.redis.command(&["COMMAND"])).expect("the commands");
        let row = |row: Vec<redis::Value>| {
            let [name, arity, flags] = row.get(..3).expect("three columns") else { panic!("row") };
            let text = |value: &redis::Value| {
                redis::from_redis_value(value.clone()).expect("a text or a list")
            };
            (text(name), redis::from_redis_value(arity.clone()).expect("a number"), {
                redis::from_redis_value(flags.clone()).expect("flags")
            })
        };
        rows.into_iter().map(row).collect()
    };
    assert!(commands.len() > 200);
    // These show and change nothing of the data. XINFO's flags are those of its subcommands.
    let harmless = ["ping", "echo", "time", "xinfo"];
    let (mut allowed, mut wrong) = (0, Vec::new());
    for (name, arity, flags) in commands {
        let has = |wanted: &str| flags.iter().any(|flag| flag == wanted);
        let is_read = has("readonly") && !has("may_replicate");
        // A missing argument keeps all commands but the shortest from running.
        let words = vec!["x"; usize::try_from(arity.unsigned_abs()).unwrap_or(1) - 1];
        let body = serde_json::to_string(&[vec![&*name], words].concat()).expect("JSON");
        let (_, found) = served.post_as("reader-token", "/rest", &body);
        let text = found["error"].as_str().unwrap_or_default();
        let is_refused = text.starts_with("NOPERM ") || text.contains("is not available");
        allowed += usize::from(!is_refused);
        if !is_refused && !is_read && !harmless.contains(&&*name) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(allowed > 60, "{allowed}");
}

#[test]
fn tokens_are_read_again_at_a_reload() {
    let served = Served::start();
    let status = |token: &str| served.post_as(token, "/rest", r#"["PING"]"#).0;
    assert_eq!((status("full-token"), status("new-token")), (200, 401));
    served.file.write("new-token\nfull-token read-only\n");
    assert_eq!(reload(&served.proxy), Reload::Reloaded);
    assert_eq!((status("full-token"), status("new-token")), (200, 200));
    assert_eq!(served.post("/rest", r#"["SET","a","1"]"#).0, 403);
    served.file.write("new-token unknown-option\n");
    served.proxy.expect_log("config refused");
    assert_eq!(reload(&served.proxy), Reload::Refused);
    assert_eq!(status("new-token"), 200);
}

#[test]
fn front_end_needs_tokens() {
    let (code, log) = Proxy::builder("[rest]\npath = \"/rest\"\n").run_to_end();
    assert!(code != 0 && log.contains("rest.tokens_file"), "{code} {log}");
    let config = "[rest]\npath = \"/rest\"\ntokens_file = \"/nonexistent\"\n";
    let (code, log) = Proxy::builder(config).run_to_end();
    assert!(code != 0 && log.contains("rest.tokens_file"), "{code} {log}");
    let served = Served::start();
    let config = format!("http.listen = \"127.0.0.1:0\"\nredis.url = \"{}\"\n", served.redis.url());
    let off = Proxy::start(&config);
    let mut client = crate::support::http::Client::connect(off.http());
    assert_eq!(client.request("GET", "/rest/get/a?_token=full-token", &[]).status, 404);
}
