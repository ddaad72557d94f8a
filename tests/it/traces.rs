//! OpenTelemetry traces.
//!
//! Promise: spans reach a real collector, and a failing collector affects no read.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use crate::support::collector::{Collector, Span};
use crate::support::env::SEED;
use crate::support::fault_stage::PROMPT;
use crate::support::http::{Client, key_path};
use crate::support::prometheus::Prometheus;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{
    await_ready, config, metric, read, reads, relay_url, set, text, timed_read,
};
use crate::support::{Proxy, RedisServer, Relay, eventually};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Starts a proxy that exports spans quickly, with these standard variables and this configuration.
fn traced(url: &str, variables: &[(&str, &str)], more: &str) -> Proxy {
    let mut builder =
        Proxy::builder(&config(url, more)).environment("OTEL_BSP_SCHEDULE_DELAY", "20");
    for (name, value) in variables {
        builder = builder.environment(name, value);
    }
    let proxy = builder.start();
    await_ready(&proxy);
    proxy
}

/// Starts a proxy that exports to an HTTP collector at this address.
fn traced_to(url: &str, collector: SocketAddr, more: &str) -> Proxy {
    let endpoint = format!("http://{collector}");
    traced(
        url,
        &[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)],
        more,
    )
}

/// Reads as a traced caller; `flags` is `01` if it is sampled.
fn read_as_child(proxy: &Proxy, key: &str, flags: &str) -> u16 {
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "vendor=x,other=y")];
    Client::connect(proxy.http()).request("GET", key_path(key.as_bytes()), &headers).status
}

/// Starts a collector that accepts everything, and returns its address.
fn accepting_collector() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        listener.incoming().map_while(Result::ok).for_each(|stream| answer_one(stream, "200 OK"));
    });
    address
}

/// Returns the first span of this kind.
fn of_kind<'a>(spans: &'a [Span], kind: &str) -> &'a Span {
    spans.iter().find(|span| span.field("Kind") == kind).expect(kind)
}

/// Traces a miss, a hit and a key of another type over this protocol.
fn assert_traces_of_reads(variables: &[(&str, &str)], collector: &Collector) {
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let proxy = traced(&relay_url(&relay), variables, "redis.probe_interval = 0");
    set(&redis, "secret key", "value");
    redis.command(&["LPUSH", "list", "element"]);

    assert_eq!(read_as_child(&proxy, "secret key", "01"), 200);
    let spans = collector.await_spans(2);
    let (server, client) =
        (of_kind(&spans, "SPAN_KIND_SERVER"), of_kind(&spans, "SPAN_KIND_CLIENT"));
    for span in &spans {
        assert_eq!(
            (span.field("Trace ID"), span.field("TraceState")),
            (TRACE, "vendor=x,other=y"),
            "{span:#?}"
        );
        assert!(!format!("{span:?}").contains("secret"), "a key is secret: {span:#?}");
    }
    assert_eq!((server.field("Parent ID"), server.field("Name")), (PARENT, "GET /keys/{key}"));
    for (name, value) in [
        ("http.request.method", "Str(GET)"),
        ("http.route", "Str(/keys/{key})"),
        ("http.response.status_code", "Int(200)"),
        ("url.path", "Str(/keys/REDACTED)"),
        ("url.scheme", "Str(http)"),
        ("server.address", "Str(127.0.0.1)"),
        ("server.port", &format!("Int({})", proxy.http().port())),
        ("network.protocol.version", "Str(1.1)"),
        ("redis_proxy.outcome", "Str(miss)"),
    ] {
        assert_eq!(server.attribute(name), value, "{name}");
    }
    assert_eq!(client.field("Parent ID"), server.field("ID"));
    assert_eq!(client.field("Name"), format!("GET {}", relay.address()));
    for (name, value) in [
        ("db.system.name", "Str(redis)"),
        ("db.operation.name", "Str(GET)"),
        ("db.namespace", "Str(0)"),
        ("server.address", "Str(127.0.0.1)"),
        ("server.port", &format!("Int({})", relay.address().port())),
    ] {
        assert_eq!(client.attribute(name), value, "{name}");
    }

    assert_eq!(read(&proxy, "secret key").status, 200);
    let hit = collector.await_spans(3).pop().expect("a span");
    assert_eq!((hit.field("Kind"), hit.field("Parent ID")), ("SPAN_KIND_SERVER", ""));
    assert_eq!(hit.attribute("redis_proxy.outcome"), "Str(hit)");
    assert_ne!(hit.field("Trace ID"), TRACE);

    assert_eq!(read(&proxy, "list").status, 409);
    let spans = collector.await_spans(5);
    let fetch = spans
        .iter()
        .find(|span| span.field("Status code") == "STATUS_CODE_ERROR")
        .expect("a failed fetch");
    assert_eq!(
        fetch.field("Kind"),
        "SPAN_KIND_CLIENT",
        "what is wrong is the client's; the proxy has not failed"
    );
    assert_eq!(fetch.attribute("error.type"), "Str(wrong_type)");
    assert_eq!(fetch.attribute("db.response.status_code"), "Str(WRONGTYPE)");
    assert_eq!(metric(&proxy, "spans_dropped_total").to_string(), "0");
}

#[test]
fn grpc_traces_miss_to_redis_and_hit_alone() {
    let Some(collector) = Collector::start() else { return };
    let endpoint = format!("http://{}", collector.grpc);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_SERVICE_NAME", "orders-cache"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    assert_traces_of_reads(&variables, &collector);
    assert!(collector.has_line("-> service.name: Str(orders-cache)"));
    assert!(collector.has_line("-> deployment.environment.name: Str(test)"));
}

#[test]
fn http_traces_miss_to_redis_and_hit_alone() {
    let Some(collector) = Collector::start() else { return };
    let endpoint = format!("http://{}/", collector.http);
    let variables = [
        ("REDIS_PROXY_TELEMETRY__TRACES", "otlp"),
        ("REDIS_PROXY_TELEMETRY__TRACES_ENDPOINT", &endpoint),
    ];
    assert_traces_of_reads(&variables, &collector);
    assert!(collector.has_line("-> service.name: Str(redis-proxy)"));
}

#[test]
fn coalesced_read_links_to_the_fetch() {
    let Some(collector) = Collector::start() else { return };
    let redis = RedisServer::start();
    let relay = Relay::to_socket(redis.socket());
    let proxy = traced_to(&relay_url(&relay), collector.http, "");
    set(&redis, "key", "value");
    relay.stall();
    let mut readers: Vec<Client> = (0..3)
        .map(|_| crate::support::serving::request_and_await_flight(&proxy, "key", 1))
        .collect();
    eventually("all wait", || {
        (metric(&proxy, r#"connections{front_end="http"}"#) >= 3.0).then_some(())
    });
    relay.resume();
    for reader in &mut readers {
        assert_eq!(reader.read_response().status, 200);
    }
    let spans = collector.await_spans(4);
    let fetch = of_kind(&spans, "SPAN_KIND_CLIENT");
    let leader =
        spans.iter().find(|span| span.field("ID") == fetch.field("Parent ID")).expect("the leader");
    assert_eq!((leader.attribute("redis_proxy.outcome"), leader.links.len()), ("Str(miss)", 0));
    let followers: Vec<_> = spans
        .iter()
        .filter(|span| span.attribute("redis_proxy.outcome") == "Str(coalesced)")
        .collect();
    // A late reader gets a hit.
    assert_eq!(followers.len().to_string(), reads(&proxy, "coalesced").to_string());
    assert!(!followers.is_empty());
    for follower in followers {
        let link = (fetch.field("Trace ID").to_owned(), fetch.field("ID").to_owned());
        assert_eq!(follower.links, [link], "{follower:#?}");
        assert_ne!(follower.field("Trace ID"), fetch.field("Trace ID"));
    }
}

#[test]
fn caller_decides_sampling_else_the_ratio() {
    let Some(collector) = Collector::start() else { return };
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let proxy = traced_to(&redis.url(), collector.http, "telemetry.traces_ratio = 0");
    for _ in 0..20 {
        assert_eq!(read(&proxy, "key").status, 200);
        assert_eq!(read_as_child(&proxy, "key", "00"), 200);
    }
    assert_eq!(read_as_child(&proxy, "key", "01"), 200);
    let span = collector.await_spans(1).pop().expect("a span");
    assert_eq!(span.field("Parent ID"), PARENT);
    proxy.finish();

    let endpoint = format!("http://{}", collector.http);
    let standard = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let proxy = traced(&redis.url(), &standard, "telemetry.traces_ratio = 0");
    assert_eq!(read_as_child(&proxy, "key", "00"), 200);
    // Pending spans are sent before the end.
    proxy.finish();
    collector.await_spans(3);
}

/// Returns the metrics in OpenMetrics format.
fn openmetrics(proxy: &Proxy) -> String {
    let headers = [("accept", "application/openmetrics-text; version=1.0.0")];
    let response = Client::connect(proxy.admin()).request("GET", "/metrics", &headers);
    assert_eq!(
        response.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    text(&response)
}

#[test]
fn prometheus_has_exemplars_of_sampled_reads_alone() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    set(&redis, "other", "value");
    let proxy = traced_to(&redis.url(), accepting_collector(), "telemetry.traces_ratio = 0");
    let Some(prometheus) = Prometheus::start(proxy.admin()) else { return };
    for key in ["other", "other", "key"] {
        assert_eq!(read(&proxy, key).status, 200);
    }
    assert_eq!(read_as_child(&proxy, "other", "00"), 200);
    assert!(!openmetrics(&proxy).contains(" # {"), "{}", openmetrics(&proxy));
    redis.command(&["DEL", "key"]);
    eventually("a sampled miss and a sampled hit", || {
        let is_gone = read_as_child(&proxy, "key", "01") == 404;
        (is_gone && reads(&proxy, "negative_hit") > 0.0).then_some(())
    });
    let sampled = openmetrics(&proxy);
    assert!(sampled.contains(&format!(" # {{trace_id=\"{TRACE}\"}} ")), "{sampled}");
    let text_format = text(&Client::connect(proxy.admin()).get("/metrics"));
    assert!(!text_format.contains(TRACE), "{text_format}");

    for (selector, label, value) in [
        ("redis_proxy_request_duration_seconds_bucket{outcome=\"miss\"}", "front_end", "http"),
        ("redis_proxy_request_duration_seconds_bucket", "outcome", "negative_hit"),
        ("redis_proxy_backend_duration_seconds_bucket", "job", "redis-proxy"),
    ] {
        let kept = eventually(selector, || {
            let kept = prometheus.exemplars(selector);
            kept.iter().any(|(labels, _)| labels[label] == value).then_some(kept)
        });
        let traces: Vec<_> = kept.iter().flat_map(|(_, traces)| traces).collect();
        assert!(traces.iter().all(|trace| *trace == TRACE), "{selector}: {kept:?}");
    }
}

#[test]
fn tracing_is_off_by_default() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let collector = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    collector.set_nonblocking(true).expect("a listener to set up");
    let endpoint = format!("http://{}", collector.local_addr().expect("an address"));
    for variables in [
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_TRACES_EXPORTER", "none")]
            .as_slice(),
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())],
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_SDK_DISABLED", "true"),
        ],
    ] {
        let proxy = traced(&redis.url(), variables, "");
        assert_eq!(read_as_child(&proxy, "key", "01"), 200);
        // Any pending span would be sent before the end.
        proxy.finish();
        assert!(collector.accept().is_err(), "{variables:?}");
    }
}

const LOST: &str = "the collector does not accept spans";

/// Sends many reads, none of which may fail or be slow.
fn assert_reads_go_on(proxy: &Proxy) {
    let mut worst = Duration::ZERO;
    let mut client = Client::connect(proxy.http());
    for _ in 0..500 {
        let begun = Instant::now();
        assert_eq!(client.get("/keys/key").status, 200);
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < PROMPT, "{worst:?}");
}

#[test]
fn lost_collector_costs_spans_but_no_reads() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    // It does not listen, and no other test gets its port.
    let unused = TcpSocket::new_v4().expect("a socket");
    unused.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = unused.local_addr().expect("an address");
    for protocol in ["grpc", "http/protobuf"] {
        let proxy = traced_to(
            &redis.url(),
            address,
            &format!("telemetry.traces_protocol = \"{protocol}\""),
        );
        proxy.expect_log(LOST);
        assert_reads_go_on(&proxy);
        eventually("dropped spans are counted", || {
            (metric(&proxy, "spans_dropped_total") > 0.0).then_some(())
        });
        let (response, took) = timed_read(&proxy, "key");
        assert_eq!((response.status, text(&response).as_str()), (200, "value"));
        assert!(took < PROMPT, "{took:?}");
        proxy.expect_log("not all spans could be sent");
    }
}

#[test]
fn hung_collector_blocks_neither_reads_nor_exit() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let variables = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "20"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
    ];
    let proxy = traced(&redis.url(), &variables, "");
    proxy.expect_log(LOST);
    proxy.expect_log("not all spans could be sent");
    assert_reads_go_on(&proxy);
    // Some spans are in flight, twenty are queued, and the others are dropped.
    let dropped = metric(&proxy, "spans_dropped_total");
    assert!((500.0 - 40.0..=502.0).contains(&dropped), "{dropped}");
    let begun = Instant::now();
    proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn rejecting_collector_is_logged_once() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let refusing = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = refusing.local_addr().expect("an address");
    thread::spawn(move || {
        for (number, stream) in refusing.incoming().map_while(Result::ok).enumerate() {
            answer_one(stream, if number < 3 { "400 Bad Request" } else { "200 OK" });
        }
    });
    let proxy = traced_to(&redis.url(), address, "");
    proxy.expect_log(LOST);
    eventually("it is taken back", || {
        assert_eq!(read(&proxy, "key").status, 200);
        proxy
            .log_lines()
            .iter()
            .any(|line| line.has_message("the collector accepts spans again"))
            .then_some(())
    });
    let complaints = proxy.log_lines().iter().filter(|line| line.text().contains(LOST)).count();
    assert_eq!(complaints, 1);
    assert!(metric(&proxy, "spans_dropped_total") >= 3.0);
}

/// Reads one request with its body and responds.
fn answer_one(mut stream: std::net::TcpStream, status: &str) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|end| end + 4);
        let whole = head.is_some_and(|head| {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            request.len() >= head + length.unwrap_or(0)
        });
        if whole {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // The client may be gone.
    let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
}

#[test]
fn log_lines_carry_their_trace_id() {
    let redis = RedisServer::start();
    redis.command(&["LPUSH", "list", "element"]);
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = unused.local_addr().expect("an address");
    let debug = "telemetry.log_filter = \"info,redis_proxy=debug\"";
    let proxy = traced_to(&redis.url(), address, debug);
    proxy.expect_log(LOST);
    proxy.expect_log("not all spans could be sent");
    assert_eq!(read_as_child(&proxy, "list", "01"), 409);
    let line = proxy.wait_for_log(|line| line.has_message("fetch failed"));
    assert_eq!(line.field("trace_id").as_deref(), Some(TRACE), "{}", line.text());
    assert_eq!(line.field("span_id").map(|id| id.len()), Some(16), "{}", line.text());
    assert_ne!(line.field("span_id").as_deref(), Some(PARENT));
    let outside = proxy.wait_for_log(|line| line.has_message("listening"));
    assert_eq!(outside.field("trace_id"), None);
    drop(unused);
}

#[test]
fn invalid_otel_variables_are_reported() {
    let redis = RedisServer::start();
    let variables =
        [("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke-signals")];
    let proxy = traced(&redis.url(), &variables, "telemetry.traces = \"otlp\"");
    proxy.expect_log("OTEL_");
    for part in ["OTEL_TRACES_SAMPLER: found", "OTEL_EXPORTER_OTLP_PROTOCOL: found"] {
        proxy.wait_for_log(|line| line.text().contains(part));
    }
    proxy.finish();
    let proxy = traced(&redis.url(), &[("OTEL_TRACES_EXPORTER", "jaeger")], "");
    proxy.expect_log("OTEL_");
    proxy.wait_for_log(|line| line.text().contains("OTEL_TRACES_EXPORTER: found"));
    proxy.finish();
    let wrong = Proxy::builder(&config(&redis.url(), "telemetry.traces = \"otlp\""))
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url");
    let (code, received) = wrong.run_to_end();
    assert_eq!(code, 78, "{received}");
    assert!(received.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{received}");
}

#[test]
fn journal_lines_have_no_timestamp() {
    let line = |variable: &str| {
        // The journal is recognised by device and inode of standard error.
        let script = format!("export JOURNAL_STREAM={variable}; exec \"$0\" \"$@\"");
        let mut child = Command::new("bash")
            .args([
                "-c",
                &script,
                env!("CARGO_BIN_EXE_redis-proxy"),
                "--proxy_port",
                "0",
                "--redis_port",
                "1",
            ])
            .env_remove(SEED)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let mut line = String::new();
        let mut log =
            std::io::BufReader::new(child.stderr.take().expect("standard error is piped"));
        std::io::BufRead::read_line(&mut log, &mut line).expect("a line");
        child.kill().expect("a proxy to end");
        child.wait().expect("a child");
        line
    };
    let to_journal = line("$(stat -L -c %d:%i /proc/$$/fd/2)");
    assert!(to_journal.trim_start().starts_with("INFO redis_proxy"), "{to_journal}");
    let elsewhere = line("1:1");
    assert!(elsewhere.starts_with("20"), "{elsewhere}");
}

#[test]
fn rest_request_is_one_span_with_the_names_of_its_commands() {
    let Some(collector) = Collector::start() else { return };
    let (redis, tokens) = (RedisServer::start(), SecretFile::new("token\n"));
    let rest = format!("rest.path = \"/rest\"\nrest.tokens_file = \"{}\"", tokens.name());
    let proxy = traced_to(&redis.url(), collector.http, &rest);
    let body = r#"[["SET","secret key","x"],["INCR","secret"],["NONESUCH-secret"]]"#;
    let head = format!(
        "POST /rest/pipeline HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\
            traceparent: 00-{TRACE}-{PARENT}-01\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut client = Client::connect(proxy.http());
    client.send_raw(head.as_bytes());
    assert_eq!(client.read_response().status, 200);
    let spans = collector.await_spans(1);
    let span = of_kind(&spans, "SPAN_KIND_SERVER");
    assert_eq!((span.field("Trace ID"), span.field("Parent ID")), (TRACE, PARENT));
    assert_eq!(span.field("Name"), "POST /pipeline");
    for (name, value) in [
        ("http.route", "Str(/pipeline)"),
        ("http.response.status_code", "Int(200)"),
        ("db.operation.batch.size", "Int(3)"),
        ("url.path", "Str(/REDACTED)"),
    ] {
        assert_eq!(span.attribute(name), value, "{name}");
    }
    for name in ["set", "incr", "other"] {
        assert!(collector.has_line(&format!("-> Name: {name}")), "{name}");
    }
    assert!(!format!("{spans:?}").contains("secret"), "an argument is secret: {spans:#?}");
}
