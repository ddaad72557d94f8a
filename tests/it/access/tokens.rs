//! `http.tokens_file`, bearer authentication.
//!
//! Promise: a request with a valid token may use every route; any other request gets only liveness
//! and readiness.

use crate::support::http::{Client, Response, get};
use crate::support::secret_file::{SecretFile, assert_not_told, reload};
use crate::support::{Proxy, RedisServer, Reload, eventually};

const TOKENS: &str = "# for the shop\n\n  first-token-0123456789  \nc2Vjb25kLXRva2Vu+/==\r\n";
const FIRST: &str = "Bearer first-token-0123456789";
const SECOND: &str = "Bearer c2Vjb25kLXRva2Vu+/==";

struct Guarded {
    proxy: Proxy,
    file: SecretFile,
    redis: RedisServer,
}

/// Starts a proxy that requires tokens, with the admin routes beside the keys.
fn guarded(more: &str) -> Guarded {
    let (redis, file) = (RedisServer::start(), SecretFile::new(TOKENS));
    redis.command(&["SET", "greeting", "hello"]);
    let config = format!(
        "http.listen = \"127.0.0.1:0\"\nhttp.tokens_file = \"{}\"\nredis.url = \"{}\"\n{more}",
        file.name(),
        redis.url()
    );
    let proxy = Proxy::start(&config);
    eventually("the proxy has its link", || {
        (get(proxy.http(), "/readyz").status == 200).then_some(())
    });
    Guarded { proxy, file, redis }
}

impl Guarded {
    fn request(&self, method: &str, path: &str, authorization: &[&str]) -> Response {
        let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", *value)).collect();
        Client::connect(self.proxy.http()).request(method, path, &headers)
    }

    fn status(&self, path: &str, authorization: &str) -> u16 {
        self.request("GET", path, &[authorization]).status
    }
}

#[test]
fn only_valid_tokens_open() {
    let guarded = guarded("admin.hotkeys = 10");
    for right in [FIRST, SECOND, "bearer first-token-0123456789", "BEARER   first-token-0123456789"]
    {
        let response = guarded.request("GET", "/keys/greeting", &[right]);
        assert_eq!((response.status, &*response.body), (200, &b"hello"[..]), "{right}");
    }
    for wrong in [
        "Bearer wrong",
        "Bearer",
        "Bearer ",
        "Bearer first-token-012345678",
        "Bearer first-token-01234567890",
        "Bearer FIRST-TOKEN-0123456789",
        "Bearer first-token-0123456789 c2Vjb25kLXRva2Vu+/==",
        "Bearer first-token-0123456789, Bearer wrong",
        "Bearer # for the shop",
        "Bearer \"first-token-0123456789\"",
        "Bearer\tfirst-token-0123456789",
        "Bearerfirst-token-0123456789",
        "first-token-0123456789",
        "Basic first-token-0123456789",
        "Token first-token-0123456789",
    ] {
        let response = guarded.request("GET", "/keys/greeting", &[wrong]);
        assert_eq!(response.status, 401, "{wrong}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{wrong}");
        let challenge = response.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer realm="), "{wrong}: {challenge}");
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert!(!body.contains("hello") && !body.contains("first-token"), "{wrong}: {body}");
    }
    assert_not_told(&guarded.proxy, &["first-token", "c2Vjb25k"]);
}

#[test]
fn duplicate_or_misplaced_token_is_invalid() {
    let guarded = guarded("");
    let twice = guarded.request("GET", "/keys/greeting", &[FIRST, FIRST]);
    assert_eq!(twice.status, 400);
    assert!(
        twice
            .header("www-authenticate")
            .is_some_and(|challenge| challenge.contains("invalid_request"))
    );
    for path in [
        "/keys/greeting?access_token=first-token-0123456789",
        "/keys/greeting?token=first-token-0123456789",
        "http://first-token-0123456789@proxy/keys/greeting",
        "/keys/first-token-0123456789",
    ] {
        assert_eq!(guarded.request("GET", path, &[]).status, 401, "{path}");
    }
    let headers = [
        ("Cookie", "access_token=first-token-0123456789"),
        ("X-Authorization", FIRST),
        ("Proxy-Authorization", FIRST),
    ];
    for header in headers {
        let response =
            Client::connect(guarded.proxy.http()).request("GET", "/keys/greeting", &[header]);
        assert_eq!(response.status, 401, "{header:?}");
    }
}

#[test]
fn only_probes_need_no_token() {
    let guarded = guarded("admin.hotkeys = 10");
    for path in [
        "/keys/greeting",
        "/keys/",
        "/metrics",
        "/hotkeys",
        "/hotkeys?top=1",
        "/status",
        "/status.json",
        "/status.js",
        "/",
        "/nothing",
        "/livez/",
        "//livez",
    ] {
        for method in ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "TRACE", "PURGE"] {
            let response = guarded.request(method, path, &[]);
            assert_eq!(response.status, 401, "{method} {path}");
            assert_eq!(response.body.is_empty(), method == "HEAD", "{method} {path}");
        }
    }
    for path in [
        "/%6Civez",
        "/livez%2F..%2Fkeys/greeting",
        "/livez/../keys/greeting",
        "/LIVEZ",
        "/readyz;/keys/greeting",
        "*",
    ] {
        assert_eq!(guarded.request("OPTIONS", path, &[]).status, 401, "{path}");
    }
    assert_eq!(guarded.request("GET", "/livez", &[]).status, 200);
    assert_eq!(guarded.request("HEAD", "/readyz", &["Bearer wrong"]).status, 200);
    let received = |authorization: &[&str]| {
        String::from_utf8(guarded.request("GET", "/readyz", authorization).body).unwrap()
    };
    assert_eq!(received(&[]), r#"{"status":"ready"}"#);
    assert!(received(&[FIRST]).contains("coherence"));
    for path in ["/metrics", "/hotkeys", "/status", "/status.json", "/keys/greeting"] {
        assert_eq!(guarded.status(path, SECOND), 200, "{path}");
    }
    assert_eq!(guarded.status("/nothing", SECOND), 404);
}

#[test]
fn readyz_without_token_omits_the_reason() {
    let mut guarded = guarded("");
    guarded.proxy.expect_log("");
    guarded.redis.stop();
    eventually("the loss to be known", || {
        (guarded.request("GET", "/readyz", &[]).status == 503).then_some(())
    });
    let body = String::from_utf8(guarded.request("GET", "/readyz", &[]).body).unwrap();
    assert_eq!(body, r#"{"status":"not ready"}"#);
    assert!(
        String::from_utf8(guarded.request("GET", "/readyz", &[FIRST]).body)
            .unwrap()
            .contains("reason")
    );
}

#[test]
fn every_request_needs_its_own_token() {
    let guarded = guarded("");
    let mut client = Client::connect(guarded.proxy.http());
    let plain = "GET /keys/greeting HTTP/1.1\r\nHost: p\r\n";
    let pipelined = format!(
        "{plain}Authorization: {FIRST}\r\n\r\n{plain}\r\n{plain}authorization: {SECOND}\r\n\r\n\
            {plain}\r\n"
    );
    client.send_raw(pipelined.as_bytes());
    let statuses: Vec<_> = (0..4).map(|_| client.read_response().status).collect();
    assert_eq!(statuses, [200, 401, 200, 401]);
    // A 401 reveals neither whether the key exists nor its source.
    let refused = ["/keys/greeting", "/keys/nothing"].map(|path| guarded.request("GET", path, &[]));
    let without_date = |response: &Response| {
        let headers =
            response.headers.iter().filter(|(name, _)| name != "date").cloned().collect::<Vec<_>>();
        (headers, response.body.clone())
    };
    assert_eq!(without_date(&refused[0]), without_date(&refused[1]));
}

#[test]
fn reload_takes_new_tokens_and_survives_bad_files() {
    let guarded = guarded("");
    let mut kept = Client::connect(guarded.proxy.http());
    assert_eq!(kept.request("GET", "/keys/greeting", &[("Authorization", FIRST)]).status, 200);

    guarded.file.write("third-token\nfirst-token-0123456789\n");
    assert_eq!(guarded.status("/keys/greeting", "Bearer third-token"), 401, "before the reload");
    assert_eq!(reload(&guarded.proxy), Reload::Reloaded);
    let statuses =
        ["Bearer third-token", FIRST, SECOND].map(|token| guarded.status("/keys/greeting", token));
    assert_eq!(statuses, [200, 200, 401]);
    // A revoked token is invalid on open connections too.
    assert_eq!(kept.request("GET", "/keys/greeting", &[("Authorization", SECOND)]).status, 401);
    assert_eq!(kept.request("GET", "/keys/greeting", &[("Authorization", FIRST)]).status, 200);

    guarded.proxy.expect_log("config refused");
    for bad in
        ["fourth-token\nno token at all\n", "", "# nothing\n\n", "sp\u{e4}t\n", "fourth-token=x\n"]
    {
        guarded.file.write(bad);
        assert_eq!(reload(&guarded.proxy), Reload::Refused, "{bad:?}");
        let statuses = ["Bearer third-token", "Bearer fourth-token"]
            .map(|token| guarded.status("/keys/greeting", token));
        assert_eq!(statuses, [200, 401], "{bad:?}");
    }
    std::fs::remove_file(guarded.file.path()).unwrap();
    assert_eq!(reload(&guarded.proxy), Reload::Refused);
    assert_eq!(guarded.status("/keys/greeting", "Bearer third-token"), 200);
    let received = guarded.proxy.wait_for_log(|line| line.text().contains("line 2"));
    assert!(
        received.text().contains("http.tokens_file")
            && received.text().contains(&guarded.file.name()),
        "{}",
        received.text()
    );
    assert_not_told(&guarded.proxy, &["third-token", "fourth-token", "no token at all"]);
}

#[test]
fn bad_token_file_is_reported_by_line_only() {
    for (content, part) in [
        ("good\nbad token\n", "line 2: found"),
        ("# none\n", "found no token"),
        ("=\n", "line 1: found"),
    ] {
        let file = SecretFile::new(content);
        let config =
            format!("http.listen = \"127.0.0.1:0\"\nhttp.tokens_file = \"{}\"", file.name());
        let (code, received) = Proxy::builder(&config).run_to_end();
        assert_eq!(code, 78, "{received}");
        for part in [part, "http.tokens_file", &file.name()] {
            assert!(received.contains(part), "{part:?} is not in {received:?}");
        }
        assert!(!received.contains("bad token") && !received.contains("good"), "{received}");
    }
}

#[test]
fn every_http2_request_needs_its_own_token() {
    let guarded = guarded("");
    let url = format!("http://{}/keys/greeting", guarded.proxy.http());
    for (header, expected) in
        [(format!("authorization: {FIRST}"), "200"), ("authorization: Bearer wrong".into(), "401")]
    {
        for method in ["-i", "-I"] {
            let arguments = [
                "-s",
                "--http2-prior-knowledge",
                "-H",
                &*header,
                method,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                &url,
            ];
            let output = std::process::Command::new("curl").args(arguments).output().expect("curl");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{header} {method}");
        }
    }
}
