//! Requests of each form, and what they get.

use serde_json::{Value, json as value};

use super::support::{Served, json, request};

const FULL: (&str, &str) = ("Authorization", "Bearer full-token");

#[test]
fn command_runs_by_body_and_by_path() {
    let served = Served::start();
    assert_eq!(
        served.post("/rest", r#"["SET","a","1","EX",100]"#),
        (200, value!({"result": "OK"}))
    );
    for (method, path, body, expected) in [
        ("POST", "/rest/", r#"["GET","a"]"#, value!({"result": "1"})),
        ("GET", "/rest/get/a", "", value!({"result": "1"})),
        ("PUT", "/rest/set/b%2Fc?EX=100", "v", value!({"result": "OK"})),
        ("POST", "/rest", r#"["GET","b/c"]"#, value!({"result": "v"})),
        ("POST", "/rest", r#"["GET","absent"]"#, value!({"result": null})),
        ("POST", "/rest", r#"["INCRBY","a",2]"#, value!({"result": 3})),
        ("POST", "/rest", r#"["HSET","h","f",1.50,"g",true]"#, value!({"result": 2})),
        ("POST", "/rest", r#"["HGETALL","h"]"#, value!({"result": ["f", "1.50", "g", "true"]})),
    ] {
        let response = served.send(method, path, &[FULL], body);
        assert_eq!(json(&response), (200, expected), "{method} {path} {body}");
        assert_eq!(response.header("content-type"), Some("application/json"));
    }
    let head = served.send("HEAD", "/rest/get/a", &[FULL], "");
    assert_eq!((head.status, &*head.body), (200, &b""[..]));
}

#[test]
fn answer_before_the_body_announces_the_close() {
    const BODY: &str = r#"["PING"]"#;
    let served = Served::start();
    for (method, token, status) in [("POST", "wrong", 401), ("DELETE", "full-token", 405)] {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", &*authorization)];
        let whole = request(method, "/rest", &headers, BODY.as_bytes());
        let mut client = served.client();
        client.send_raw(&whole[..whole.len() - BODY.len()]);
        let response = client.read_response();
        let found = (response.status, response.header("connection"));
        assert_eq!(found, (status, Some("close")), "{method} {token}");
    }
    for body in [BODY, "[]"] {
        let response = served.send("POST", "/rest", &[FULL], body);
        assert_eq!(response.header("connection"), None, "{body}");
    }
}

#[test]
fn pipeline_sees_its_own_writes() {
    let served = Served::start();
    served.post("/rest", r#"["GET","a"]"#);
    for round in 0..50 {
        let body = format!(r#"[["GET","a"],["SET","a","{round}"],["GET","a"],["MGET","a","b"]]"#);
        let (status, replies) = served.post("/rest/pipeline", &body);
        let new = round.to_string();
        assert_eq!(status, 200);
        assert_eq!(replies[2]["result"], value!(new), "{replies}");
        assert_eq!(replies[3]["result"], value!([new, null]), "{replies}");
    }
}

#[test]
fn pipeline_of_hits_touches_no_socket() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "1"]);
    let body = format!("[{}]", vec![r#"["GET","a"]"#; 50].join(","));
    served.post("/rest/pipeline", &body);
    let (hits, before) = (served.reads("hit"), served.redis.calls("get"));
    let (status, replies) = served.post("/rest/pipeline", &body);
    assert_eq!((status, replies), (200, Value::Array(vec![value!({"result": "1"}); 50])));
    assert!((served.reads("hit") - hits - 50.0).abs() < 0.5);
    assert_eq!(served.redis.calls("get"), before);
}

#[test]
fn errors_stay_in_their_place() {
    let served = Served::start();
    let body =
        r#"[["SET","a","x"],["INCR","a"],["BLPOP","q",0],["FLUSHALL"],["NONESUCH"],["GET","a"]]"#;
    let (status, replies) = served.post("/rest/pipeline", body);
    let text = |at: usize| replies[at]["error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (status, &replies[0], &replies[5]),
        (200, &value!({"result": "OK"}), &value!({"result": "x"}))
    );
    assert!(text(1).starts_with("ERR value is not an integer"), "{replies}");
    assert_eq!(text(2), "ERR Command is not available: 'BLPOP'");
    assert!(text(3).starts_with("NOPERM "), "{replies}");
    assert!(text(4).starts_with("ERR unknown command"), "{replies}");
    for (body, code, start) in [
        (r#"["INCR","a"]"#, 400, "ERR value"),
        (r#"["LPUSH","a","x"]"#, 400, "WRONGTYPE "),
        (r#"["EVALSHA","ffffffffffffffffffffffffffffffffffffffff",0]"#, 400, "NOSCRIPT "),
        (r#"["SUBSCRIBE","c"]"#, 400, "ERR Command is not available"),
        (r#"["FLUSHALL"]"#, 403, "NOPERM "),
    ] {
        let (status, found) = served.post("/rest", body);
        let text = found["error"].as_str().unwrap_or_default();
        assert!(status == code && text.starts_with(start), "{body}: {status} {found}");
    }
}

#[test]
fn transaction_runs_whole_or_not_at_all() {
    let served = Served::start();
    let body = r#"[["SET","a","1"],["INCR","a"],["LPUSH","a","x"],["GET","a"]]"#;
    let (status, replies) = served.post("/rest/multi-exec", body);
    assert_eq!(
        (status, &replies[1], &replies[3]),
        (200, &value!({"result": 2}), &value!({"result": "2"}))
    );
    assert!(replies[2]["error"].as_str().unwrap_or_default().starts_with("WRONGTYPE"));
    for (body, code) in [
        (r#"[["SET","a","9"],["INCR"]]"#, 400),
        (r#"[["SET","a","9"],["NONESUCH"]]"#, 400),
        (r#"[["SET","a","9"],["MULTI"]]"#, 400),
        (r#"[["SET","a","9"],["FLUSHALL"]]"#, 403),
    ] {
        let (status, found) = served.post("/rest/multi-exec", body);
        assert!(status == code && found["error"].is_string(), "{body}: {status} {found}");
        assert_eq!(served.post("/rest", r#"["GET","a"]"#).1, value!({"result": "2"}), "{body}");
    }
}

#[test]
fn strings_are_base64_where_wanted() {
    let served = Served::start();
    served.redis.command(&["SET", "a", "hello"]);
    let base64 = ("Upstash-Encoding", "base64");
    let body = r#"[["GET","a"],["SET","b","OK"],["GET","b"],["MGET","a","none"],
        ["INCR","n"],["PING"],["INCR","a"]]"#;
    let response = served.send("POST", "/rest/pipeline", &[FULL, base64], body);
    let (_, replies) = json(&response);
    let found: Vec<_> =
        replies.as_array().unwrap().iter().map(|one| one["result"].clone()).collect();
    let expected = value!(["aGVsbG8=", "OK", "OK", ["aGVsbG8=", null], 1, "UE9ORw==", null]);
    assert_eq!(Value::Array(found), expected);
    assert!(replies[6]["error"].as_str().unwrap().starts_with("ERR value"));
}

#[test]
fn resp2_is_what_redis_sends() {
    let served = Served::start();
    let resp2 = ("Upstash-Response-Format", "resp2");
    let body = r#"[["SET","a","1"],["MGET","a","b"],["HGETALL","none"],["INCR"]]"#;
    let response = served.send("POST", "/rest/pipeline", &[FULL, resp2], body);
    let text = String::from_utf8(response.body).unwrap();
    assert!(text.starts_with("+OK\r\n*2\r\n$1\r\n1\r\n$-1\r\n*0\r\n-ERR wrong number"), "{text}");
    for headers in [
        &[FULL, resp2, ("Upstash-Encoding", "base64")][..],
        &[FULL, ("Upstash-Response-Format", "x")],
    ] {
        let (status, _) = json(&served.send("POST", "/rest", headers, r#"["PING"]"#));
        assert_eq!(status, 400);
    }
    let (status, _) =
        json(&served.send("POST", "/rest/multi-exec", &[FULL, resp2], r#"[["PING"]]"#));
    assert_eq!(status, 400);
}

#[test]
fn bad_input_gets_its_error_in_json() {
    let served = Served::with("max_body = \"64KiB\"\nmax_commands = 100\nmax_response = \"32KiB\"");
    let many = |count: usize| format!("[{}]", vec![r#"["PING"]"#; count].join(","));
    let deep = format!("[{}{}]", "[".repeat(10_000), "]".repeat(10_000));
    let long = "x".repeat(64 << 10);
    for (path, body, code) in [
        ("/rest", "", 400),
        ("/rest", "not json", 400),
        ("/rest", r#"{"a":1}"#, 400),
        ("/rest", "[]", 400),
        ("/rest", r#"[["GET","a"]]"#, 400),
        ("/rest", r#"["SET","a",null]"#, 400),
        ("/rest", r#"["SET","a",{"b":1}]"#, 400),
        ("/rest", r#"["EXPIRE","a",99999999999999999999999999]"#, 400),
        ("/rest", deep.as_str(), 400),
        ("/rest", long.as_str(), 400),
        ("/rest", &format!("{long}x"), 413),
        ("/rest/pipeline", "[]", 400),
        ("/rest/pipeline", r#"["GET","a"]"#, 400),
        ("/rest/pipeline", "[[]]", 400),
        ("/rest/pipeline", &many(101), 400),
        ("/rest/multi-exec", "[]", 400),
        ("/rest/get/%zz", "", 400),
        ("/rest/nonesuch/a", "", 400),
        ("/rest//a", "", 400),
    ] {
        let (status, found) = served.post(path, body);
        let start = &body[..body.len().min(40)];
        assert!(status == code && found["error"].is_string(), "{path} {start}: {status} {found}");
    }
    assert_eq!(served.post("/rest/pipeline", &many(100)).0, 200);
    let invalid = served.send("POST", "/rest", &[FULL], b"[\"GET\",\"\xff\"]");
    assert_eq!(json(&invalid).0, 400);
    served.redis.command(&["SET", "big", &"x".repeat(33 << 10)]);
    assert_eq!(served.post("/rest", r#"["GET","big"]"#).0, 502);
    for method in ["DELETE", "PATCH", "BREW"] {
        let response = served.send(method, "/rest/get/a", &[FULL], "");
        assert_eq!(json(&response).0, 405, "{method}");
        assert!(response.header("allow").is_some());
    }
    assert_eq!(json(&served.send("GET", "/rest/pipeline", &[FULL], "")).0, 405);
}

/// With the default limits.
#[test]
fn largest_requests_are_served_and_larger_ones_refused() {
    let served = Served::start();
    let most = 10 << 20;
    let set = |size: usize| {
        let around = r#"["SET","a",""]"#.len();
        format!(r#"["SET","a","{}"]"#, "x".repeat(size - around))
    };
    let many = |count: usize| format!("[{}]", vec![r#"["PING"]"#; count].join(","));
    let (opened, words) = ("[".repeat(most), "x".repeat(most));
    let quoted = format!("[\"{}", "\\\"".repeat(most / 2 - 1));
    for (path, body, code) in [
        ("/rest", set(most), 200),
        ("/rest", set(most + 1), 413),
        ("/rest", words, 400),
        ("/rest", opened.clone(), 400),
        ("/rest/pipeline", opened.clone(), 400),
        ("/rest/multi-exec", opened, 400),
        ("/rest", quoted, 400),
        ("/rest/pipeline", many(10_000), 200),
        ("/rest/pipeline", many(10_001), 400),
        ("/rest/pipeline", many(100_000), 400),
        ("/rest/multi-exec", many(100_000), 400),
    ] {
        let (status, found) = served.post(path, &body);
        let start = &body[..body.len().min(20)];
        let is_text = code == 200 || found["error"].is_string();
        assert!(status == code && is_text, "{path} {start} {}: {status}", body.len());
        assert_eq!(served.post("/rest", r#"["STRLEN","a"]"#).1["result"], most - 14, "{start}");
    }
}

#[test]
fn read_beyond_redis_output_limit_empties_cache_once() {
    let served = Served::start();
    for part in ["no connection to Redis", "kept from the shared connection"] {
        served.proxy.expect_log(part);
    }
    served.redis.command(&["SET", "hot", "value"]);
    served.redis.command(&["SET", "large", &"v".repeat(5 << 20)]);
    served.redis.command(&["HSET", "hash", "field", &"v".repeat(5 << 20)]);
    served.redis.limit_output();
    let emptied = || {
        let series = "redis_proxy_invalidations_total{kind=\"disconnect\"}";
        served.proxy.metrics().value(series).unwrap_or_default().to_string()
    };
    for (body, expected) in [(r#"["GET","large"]"#, "1"), (r#"["HGETALL","hash"]"#, "2")] {
        for _ in 0..5 {
            // The connection of the request is lost, not that of all.
            assert_eq!(served.post("/rest", body).0, 502, "{body}");
            assert_eq!(emptied(), expected, "{body}");
            for _ in 0..2 {
                assert_eq!(served.post("/rest", r#"["GET","hot"]"#).1, value!({"result": "value"}));
            }
        }
    }
    // Of the two reads in each round, memory answers all but the first after a loss.
    assert!(served.reads("hit") >= 18.0, "{}", served.reads("hit"));
}

#[test]
fn head_that_is_refused_before_routing_gets_its_error_in_json() {
    let served = Served::start();
    let long = format!("X-Long: {}\r\n", "x".repeat(70 << 10));
    for (head, code) in [
        ("GET /rest/get/a#b HTTP/1.1\r\nHost: x\r\n", 400),
        ("GET /rest/get/a HTTP/1.1\r\n", 400),
        (&*format!("GET /rest/get/a HTTP/1.1\r\nHost: x\r\n{long}"), 431),
    ] {
        let mut client = served.client();
        let request = format!("{head}Authorization: Bearer full-token\r\n\r\n");
        client.send_raw(request.as_bytes());
        let response = client.read_response();
        let (status, found) = json(&response);
        let text = found["error"].as_str().unwrap_or_default();
        assert!(status == code && text.starts_with("ERR "), "{status} {found}");
        assert_eq!(response.header("content-type"), Some("application/json"));
    }
    let mut client = served.client();
    client.send_raw(b"GET /keys/a#b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read_response().header("content-type"), Some("application/problem+json"));
}

#[test]
fn body_with_number_signs_is_no_fragment() {
    let served = Served::start();
    let mut client = served.client();
    for body in ["#", "\n\n#a\n\n#b\n", "GET /keys/a#b HTTP/1.1\r\n\r\n", "a\r\n\r\n#"] {
        let request = super::support::request("POST", "/rest/set/a", &[FULL], body.as_bytes());
        client.send_raw(&request);
        assert_eq!(json(&client.read_response()), (200, value!({"result": "OK"})), "{body:?}");
        assert_eq!(served.redis_text(&["GET", "a"]), body);
    }
}
