//! No reply reaches another request.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use serde_json::json as value;

use super::support::{Served, TOKENS, json, request, start_rest};
use crate::support::cluster::RedisCluster;
use crate::support::http::Client;
use crate::support::secret_file::SecretFile;

const FULL: (&str, &str) = ("Authorization", "Bearer full-token");

#[test]
fn concurrent_requests_get_their_own_replies() {
    let served = Served::with("max_upstream = 3");
    thread::scope(|scope| {
        for client in 0..8 {
            let served = &served;
            scope.spawn(move || {
                for round in 0..100 {
                    let word = format!("{client}-{round}");
                    let body = format!(
                        r#"[["ECHO","{word}"],["SET","own:{client}","{word}"],
                            ["GET","own:{client}"]]"#
                    );
                    let (_, replies) = served.post("/rest/pipeline", &body);
                    let expected = value!([{"result": word}, {"result": "OK"}, {"result": word}]);
                    assert_eq!(replies, expected);
                }
            });
        }
    });
    let connections = served.redis_text(&["CLIENT", "LIST"]).lines().count();
    // The shared connection and that of the test come in addition.
    assert!(connections <= 3 + 2, "{connections}");
}

#[test]
fn timed_out_request_leaves_no_reply_behind() {
    let served = Served::with("timeout = \"300ms\"\nmax_upstream = 1");
    served.proxy.expect_log("Redis");
    served.post("/rest", r#"["SET","a","1"]"#);
    for round in 0..3 {
        served.redis.pause();
        let (status, found) = served.post("/rest", &format!(r#"["ECHO","late-{round}"]"#));
        assert_eq!(status, 504, "{found}");
        served.redis.resume();
        let (status, found) = served.post("/rest", &format!(r#"["ECHO","next-{round}"]"#));
        assert_eq!((status, found), (200, value!({"result": format!("next-{round}")})));
    }
}

#[test]
fn request_of_a_client_that_is_gone_leaves_no_reply_behind() {
    let served = Served::with("max_upstream = 1");
    for round in 0..50 {
        let body = format!(r#"[["SET","a","{round}"],["ECHO","gone-{round}"]]"#);
        let mut client = served.client();
        client.send_raw(&request("POST", "/rest/pipeline", &[FULL], body.as_bytes()));
        drop(client);
        let (status, found) = served.post("/rest", &format!(r#"["ECHO","next-{round}"]"#));
        assert_eq!((status, found), (200, value!({"result": format!("next-{round}")})));
    }
}

#[test]
fn connection_is_used_again_unless_its_state_is_unknown() {
    let served = Served::start();
    // One client connection stays on one worker, which has its own connections to Redis.
    let mut client = served.client();
    let mut run = |body: &str| {
        client.send_raw(&request("POST", "/rest", &[FULL], body.as_bytes()));
        client.read_response();
        served.connections_of("set")
    };
    let body = r#"["SET","a","1"]"#;
    let first = run(body);
    assert!(first.len() == 1 && run(body) == first && run(body) == first, "{first:?}");
    run(r#"["NONESUCH"]"#);
    let after = run(body);
    assert!(after.len() == 1 && after != first, "{after:?} {first:?}");
}

#[test]
fn request_that_would_block_is_refused_whatever_the_names() {
    let served = Served::with("max_upstream = 1");
    served.redis.command(&["XGROUP", "CREATE", "s", "streams", "0", "MKSTREAM"]);
    for line in [
        r#"["XREADGROUP","GROUP","streams","c","BLOCK",0,"STREAMS","s",">"]"#,
        r#"["XREADGROUP","GROUP","streams","streams","COUNT",1,"block",0,"STREAMS","s",">"]"#,
        r#"["XREAD","COUNT",1,"BLOCK",0,"STREAMS","s","$"]"#,
    ] {
        let (status, found) = served.post("/rest", line);
        assert_eq!(
            (status, found["error"].as_str().map(|text| text.contains("is not available"))),
            (400, Some(true)),
            "{line}: {found}"
        );
    }
    let plain = r#"["XREADGROUP","GROUP","streams","block","STREAMS","s",">"]"#;
    assert_eq!(served.post("/rest", plain), (200, value!({"result": null})));
}

#[test]
fn idle_connections_that_redis_closed_are_not_used_under_load() {
    let served = Served::start();
    let stop = AtomicBool::new(false);
    let hits = format!("[{}]", vec![r#"["GET","hot"]"#; 500].join(","));
    let hits = request("POST", "/rest/pipeline", &[FULL], hits.as_bytes());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                // Busy workers look at their sockets less often.
                let mut client = served.client();
                while !stop.load(Relaxed) {
                    client.send_raw(&hits);
                    client.read_response();
                }
            });
        }
        let mut clients: Vec<_> = (0..16).map(|_| served.client()).collect();
        let set = request("POST", "/rest", &[FULL], br#"["SET","a","1"]"#);
        let mut lost = 0;
        for _ in 0..60 {
            for client in &mut clients {
                client.send_raw(&set);
            }
            for client in &mut clients {
                lost += u32::from(client.read_response().status != 200);
            }
            for id in served.connections_of("set") {
                served.redis.command(&["CLIENT", "KILL", "ID", id.trim_start_matches("id=")]);
            }
        }
        stop.store(true, Relaxed);
        assert_eq!(lost, 0);
    });
}

#[test]
fn idle_connection_that_redis_closed_is_not_used() {
    let served = Served::start();
    let mut client = served.client();
    let body = br#"["SET","a","1"]"#;
    for _ in 0..3 {
        client.send_raw(&request("POST", "/rest", &[FULL], body));
        assert_eq!(json(&client.read_response()), (200, value!({"result": "OK"})));
        for id in served.connections_of("set") {
            let id = id.trim_start_matches("id=");
            served.redis.command(&["CLIENT", "KILL", "ID", id]);
        }
    }
}

#[test]
fn idle_connection_that_a_node_of_a_cluster_closed_is_not_used() {
    let (cluster, file) = (RedisCluster::of(3), SecretFile::new(TOKENS));
    let proxy = start_rest(&cluster.settings(), &file, "");
    let keys: Vec<_> = (0..3).map(|node| cluster.key_of(node, 0)).collect();
    let mut client = Client::connect(proxy.http());
    for round in 0..20 {
        let words: Vec<_> = keys.iter().map(|key| format!(r#"["SET","{key}","1"]"#)).collect();
        let body = format!("[{}]", words.join(","));
        client.send_raw(&request("POST", "/rest/pipeline", &[FULL], body.as_bytes()));
        let expected = value!([{"result": "OK"}, {"result": "OK"}, {"result": "OK"}]);
        assert_eq!(json(&client.read_response()), (200, expected), "{round}");
        let node = &cluster.nodes[round % 3];
        let list: String =
            redis::from_redis_value(node.command(&["CLIENT", "LIST"])).expect("a text");
        for line in list.lines().filter(|line| line.contains("cmd=set ")) {
            let id = line.split(' ').next().unwrap_or_default().trim_start_matches("id=");
            node.command(&["CLIENT", "KILL", "ID", id]);
        }
    }
}
