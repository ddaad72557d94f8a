//! No reply reaches another request.

use std::thread;

use serde_json::json as value;

use super::support::{Served, json, request};

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
