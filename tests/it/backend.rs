//! Addresses, logins, TLS, outages and limits of the upstream Redis.
//!
//! Promise: any Redis can be reached, and a failing one is reported by the status, by /readyz and
//! by one log line, none of which reveals a secret. Reads resume as soon as Redis is back.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::fault_stage::{DOWN, PROMPT};
use crate::support::http::{self, Client, Response};
use crate::support::log::LogLine;
use crate::support::redis_server::free_port;
use crate::support::sentinel::Watched;
use crate::support::serving::{
    await_metric, await_ready, behind_relay, config, lines_with_message, linked, metric, proxy,
    read, readyz, relay_url, request_and_await_flight, set, start_read, text, timed_read, value,
};
use crate::support::{Authority, Proxy, RedisServer, Relay, eventually};

/// The warning where Redis denies tracking.
const UNTRACKED: &str = "Redis sends no invalidations";
const SECRET: &str = "hunter2";
const A_SECOND: Duration = Duration::from_secs(1);

mod addresses {
    use super::*;

    #[test]
    fn redis_is_reached_over_tcp() {
        let redis = RedisServer::builder().tcp().start();
        set(&redis, "key", "over TCP");
        assert_eq!(value(&linked(&config(&redis.tcp_url(), "")), "key"), "over TCP");
    }

    #[test]
    fn url_selects_the_database() {
        let redis = RedisServer::builder().tcp().start();
        let mut connection = redis.connection();
        redis::cmd("SELECT").arg(3).exec(&mut connection).unwrap();
        redis::cmd("SET").arg("key").arg("of three").exec(&mut connection).unwrap();
        set(&redis, "key", "of zero");
        for (url, expected) in [
            (format!("{}?db=3", redis.url()), "of three"),
            (format!("{}/3", redis.tcp_url()), "of three"),
            (format!("{}?db=0", redis.url()), "of zero"),
            (redis.tcp_url(), "of zero"),
        ] {
            assert_eq!(value(&linked(&config(&url, "")), "key"), expected, "{url}");
        }
    }

    #[test]
    fn missing_database_is_reported_by_readyz() {
        let redis = RedisServer::start();
        let proxy = Proxy::start(&config(&format!("{}?db=99", redis.url()), ""));
        assert_unusable(&proxy, "DB index is out of range");
    }
}

mod logins {
    use super::*;

    fn locked() -> RedisServer {
        RedisServer::builder().tcp().arguments(&["--requirepass", SECRET]).start()
    }

    #[test]
    fn password_comes_from_config_url_or_file() {
        let redis = locked();
        set(&redis, "key", "unlocked");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, format!("{SECRET}\n")).unwrap();
        for config in [
            config(&redis.url(), &format!("redis.password = \"{SECRET}\"")),
            config(&format!("redis://:{SECRET}@{}", redis.tcp_address()), ""),
            config(&redis.url(), &format!("redis.password_file = \"{}\"", file.display())),
        ] {
            let proxy = linked(&config);
            assert_eq!(value(&proxy, "key"), "unlocked", "{config}");
            assert_tells_no_secret(&proxy);
        }
    }

    #[test]
    fn password_comes_from_a_systemd_credential() {
        let redis = locked();
        set(&redis, "key", "unlocked");
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("redis-password"), SECRET).unwrap();
        let proxy = Proxy::builder(&config(&redis.url(), ""))
            .environment("CREDENTIALS_DIRECTORY", directory.path())
            .start();
        await_ready(&proxy);
        assert_eq!(value(&proxy, "key"), "unlocked");
    }

    #[test]
    fn rotated_password_file_is_read_on_reconnect() {
        let redis = locked();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, SECRET).unwrap();
        let password_file = format!("redis.password_file = \"{}\"", file.display());
        let proxy = linked(&config(&redis.url(), &password_file));
        proxy.expect_log(DOWN);

        set(&redis, "key", "unlocked again");
        redis.command(&["CONFIG", "SET", "requirepass", "rotated"]);
        fs::write(&file, "rotated").unwrap();
        eventually("a new link", || {
            (lines_with_message(&proxy, "connected to Redis") == 2).then_some(())
        });
        assert_eq!(value(&proxy, "key"), "unlocked again");
    }

    #[test]
    fn minimal_key_permissions_suffice() {
        let redis = RedisServer::start();
        let rules = [">hunter2", "~public:*", "+get", "+pttl", "+multi", "+exec"];
        redis.command(&[["ACL", "SETUSER", "reader", "on"].as_slice(), &rules].concat());
        set(&redis, "public:key", "for all");
        set(&redis, "private:key", "for few");
        let login = "redis.username = \"reader\"\nredis.password = \"hunter2\"";
        let proxy = proxy(&redis, login);
        proxy.expect_log(UNTRACKED);
        assert_eq!(value(&proxy, "public:key"), "for all");
        assert_eq!(read(&proxy, "private:key").status, 502);
        assert_eq!(value(&proxy, "public:key"), "for all");
        assert_tells_no_secret(&proxy);
    }

    #[test]
    fn wrong_password_is_reported_without_the_secret() {
        let redis = RedisServer::builder().arguments(&["--requirepass", "another"]).start();
        let proxy = Proxy::start(&config(&redis.url(), &format!("redis.password = \"{SECRET}\"")));
        assert_unusable(&proxy, "WRONGPASS");
        assert_tells_no_secret(&proxy);
    }

    #[test]
    fn missing_password_is_reported() {
        let redis = locked();
        let proxy = Proxy::start(&config(&redis.url(), ""));
        assert_unusable(&proxy, "NOAUTH");
    }

    #[test]
    fn echoed_login_is_not_repeated() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("an address");
        thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.expect("a connection");
                _ = stream.read(&mut [0; 1024]);
                let answer = format!(
                    "-ERR unknown command 'AUTH', with args beginning with: '{SECRET}'\r\n"
                );
                _ = stream.write_all(answer.as_bytes());
            }
        });
        let proxy = Proxy::start(&config(
            &format!("redis://{address}"),
            &format!("redis.password = \"{SECRET}\""),
        ));
        proxy.expect_log(UNTRACKED);
        assert_unusable(&proxy, "refused the login: ERR");
        assert_tells_no_secret(&proxy);
    }

    #[test]
    fn rejected_login_is_not_retried_per_read() {
        let redis = RedisServer::builder().arguments(&["--requirepass", "another"]).start();
        let proxy = Proxy::start(&config(&redis.url(), "redis.password = \"wrong\""));
        proxy.expect_log(DOWN);
        let before = redis.calls("auth");
        let begun = Instant::now();
        while begun.elapsed() < A_SECOND {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        // The pauses grow from 50 ms to half a second. With an attempt for each read there would be
        // 20.
        let attempts = redis.calls("auth") - before;
        assert!(attempts < 12, "{attempts} attempts");
    }

    fn assert_tells_no_secret(proxy: &Proxy) {
        let (_, ready) = readyz(proxy);
        let error = text(&read(proxy, "private:key"));
        let log: Vec<_> = proxy.log_lines().iter().map(|line| line.text().to_owned()).collect();
        for received in [ready, error, proxy.metrics().text().to_owned(), log.join("\n")] {
            assert!(!received.contains(SECRET), "{received}");
        }
    }
}

mod tls {
    use super::*;

    #[test]
    fn tls_works_with_a_private_ca() {
        let authority = Authority::new();
        let redis = authority.redis("127.0.0.1", false);
        set(&redis, "key", "over TLS");
        let proxy = linked(&config(&redis.tls_url(), &authority.trusted()));
        assert_eq!(value(&proxy, "key"), "over TLS");
    }

    #[test]
    fn client_certificate_is_presented_to_redis() {
        let authority = Authority::new();
        let redis = authority.redis("127.0.0.1", true);
        set(&redis, "key", "to a known client");
        let (certificate, key) = authority.issue("client");
        let files = format!(
            "{}\nredis.tls_cert_file = \"{}\"\nredis.tls_key_file = \"{}\"",
            authority.trusted(),
            certificate.display(),
            key.display()
        );
        let known = linked(&config(&redis.tls_url(), &files));
        assert_eq!(value(&known, "key"), "to a known client");

        let unknown = Proxy::start(&config(&redis.tls_url(), &authority.trusted()));
        assert_unusable(&unknown, "");
    }

    #[test]
    fn certificate_of_another_ca_is_rejected() {
        let redis = Authority::new().redis("127.0.0.1", false);
        let other = Authority::new();
        let proxy = Proxy::start(&config(&redis.tls_url(), &other.trusted()));
        assert_unusable(&proxy, "certificate");
    }

    #[test]
    fn certificate_for_another_name_is_rejected() {
        let authority = Authority::new();
        let redis = authority.redis("localhost", false);
        set(&redis, "key", "by its name");
        let by_address = Proxy::start(&config(&redis.tls_url(), &authority.trusted()));
        assert_unusable(&by_address, "certificate");

        let named = format!("rediss://localhost:{}", redis.tls_address().port());
        let by_name = linked(&config(&named, &authority.trusted()));
        assert_eq!(value(&by_name, "key"), "by its name");
    }

    #[test]
    fn certificate_of_an_authority_itself_is_explained() {
        let authority = Authority::new();
        let (certificate, key) = authority.own_pair();
        let redis = RedisServer::builder().tls(&certificate, &key, &authority.file()).start();
        let proxy = Proxy::start(&config(&redis.tls_url(), &authority.trusted()));
        assert_unusable(&proxy, "certificate of an authority");
    }

    #[test]
    fn url_without_tls_to_a_tls_port_is_explained() {
        let redis = Authority::new().redis("127.0.0.1", false);
        for mode in ["tracking", "ttl"] {
            let url = format!("redis://{}", redis.tls_address());
            let more = format!("cache.coherence = \"{mode}\"");
            assert_unusable(&Proxy::start(&config(&url, &more)), "rediss://");
        }
    }

    #[test]
    fn url_with_tls_to_a_plain_port_is_explained() {
        let redis = RedisServer::builder().tcp().start();
        let url = format!("rediss://{}", redis.tcp_address());
        let timeout = "redis.connect_timeout = \"300ms\"";
        let authority = Authority::new();
        let more = format!("{}\n{timeout}", authority.trusted());
        assert_unusable(&Proxy::start(&config(&url, &more)), "redis://");
    }

    #[test]
    fn missing_client_certificate_is_explained() {
        let authority = Authority::new();
        let redis = authority.redis("127.0.0.1", true);
        for version in ["TLSv1.2", "TLSv1.3"] {
            redis.command(&["CONFIG", "SET", "tls-protocols", version]);
            let proxy = Proxy::start(&config(&redis.tls_url(), &authority.trusted()));
            assert_unusable(&proxy, "redis.tls_cert_file");
        }
    }

    #[test]
    fn sentinels_are_reached_over_tls() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue("127.0.0.1");
        let port = free_port();
        let lines = [
            format!("tls-port {port}"),
            format!("tls-cert-file {}", certificate.display()),
            format!("tls-key-file {}", key.display()),
            format!("tls-ca-cert-file {}", authority.file().display()),
            "tls-auth-clients no".to_owned(),
        ];
        let watched = Watched::with("", 1, &lines.each_ref().map(String::as_str), &[]);
        set(&watched.redis[0], "key", "from a sentinel's word");
        let plain = format!("redis://{}", watched.sentinels[0].address());
        let settings = watched.settings().replace(&plain, &format!("rediss://127.0.0.1:{port}"));
        let listen = "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n";
        let proxy = linked(&format!("{listen}{settings}{}", authority.trusted()));
        assert_eq!(value(&proxy, "key"), "from a sentinel's word");

        let other = Authority::new();
        let proxy = Proxy::start(&format!("{listen}{settings}{}", other.trusted()));
        proxy.expect_log("a sentinel does not reply");
        assert_unusable(&proxy, "certificate");
    }
}

mod outages {
    use super::*;

    #[test]
    fn start_without_redis_succeeds_and_is_reported() {
        let mut redis = RedisServer::start();
        redis.stop();
        let proxy = Proxy::start(&config(&redis.url(), ""));
        assert_unusable(&proxy, "");
        assert_eq!(http::get(proxy.admin(), "/livez").status, 200);
        let (response, took) = timed_read(&proxy, "key");
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(took < PROMPT, "{took:?}");

        redis.restart();
        set(&redis, "key", "there now");
        assert_eq!(value(&proxy, "key"), "there now", "the first read works");
        assert_eq!(readyz(&proxy).0, 200);
    }

    #[test]
    fn first_read_after_a_long_outage_succeeds() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.reconnect_delay_max = \"60s\"");
        proxy.expect_log(DOWN);
        redis.stop();
        // The pause grows with each attempt.
        for _ in 0..12 {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        redis.restart();
        set(&redis, "key", "there again");
        assert_eq!(value(&proxy, "key"), "there again");
    }

    #[test]
    fn momentary_link_loss_fails_no_read() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        assert_losses_fail_no_read(&proxy, |key| {
            set(&redis, key, key);
            relay.cut_once();
            read(&proxy, key)
        });
    }

    #[test]
    fn link_lost_during_a_request_fails_no_read() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        assert_losses_fail_no_read(&proxy, |key| {
            set(&redis, key, key);
            relay.stall();
            let mut reader = request_and_await_flight(&proxy, key, 1);
            relay.cut_once();
            relay.resume();
            reader.read_response()
        });
    }

    /// Asserts that reads survive five losses of the link. A busy machine may be late with the new
    /// link, for which a read waits 100 ms only; such a round does not count.
    #[track_caller]
    fn assert_losses_fail_no_read(proxy: &Proxy, lose: impl Fn(&str) -> Response) {
        let mut survived = 0;
        for round in 0..100 {
            let key = round.to_string();
            await_ready(proxy);
            let response = lose(&key);
            assert!([200, 503].contains(&response.status), "{}", text(&response));
            if response.status == 200 {
                assert_eq!(text(&response), key);
                survived += 1;
            }
            if survived == 5 {
                return;
            }
        }
        assert!(survived == 5, "{survived} of 100 reads survived the loss of the link");
    }

    #[test]
    fn slow_value_does_not_delay_other_reads() {
        let (redis, relay, proxy) = behind_relay("redis.response_timeout = \"500ms\"");
        proxy.expect_log(DOWN);
        set(&redis, "big", &"x".repeat(4 << 20));
        set(&redis, "small", "value");
        // 16 KiB each 20 ms: five seconds for the large value.
        relay.delay(Duration::from_millis(20));
        assert_eq!(read(&proxy, "big").status, 504);
        await_value(&proxy, "small", "value");
    }

    #[test]
    fn idle_link_with_ping_replies_is_kept() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.ping_interval = \"20ms\"");
        let before = redis.calls("ping");
        eventually("pings", || (redis.calls("ping") >= before + 10).then_some(()));
        assert_eq!(lines_with_message(&proxy, "connected to Redis"), 1);
        assert_eq!(metric(&proxy, "backend_up").to_string(), "1");
    }

    #[test]
    fn changed_reason_of_an_outage_is_logged_and_counted() {
        let mut redis = RedisServer::builder().arguments(&["--requirepass", SECRET]).start();
        let proxy = Proxy::start(&config(&redis.url(), "redis.reconnect_delay_max = \"20ms\""));
        proxy.expect_log(DOWN);
        let logged = |part: &str| {
            let line = proxy.wait_for_log(|line| {
                line.text().contains(DOWN)
                    && line.field("reason").is_some_and(|reason| reason.contains(part))
            });
            assert_eq!(line.level(), "WARN");
        };
        logged("NOAUTH");
        redis.stop();
        logged("Connection refused");
        for key in ["a", "b", "c"] {
            assert_eq!(read(&proxy, key).status, 503);
        }
        for kind in ["auth", "unreachable"] {
            let series = format!("backend_errors_total{{kind=\"{kind}\"}}");
            assert!(metric(&proxy, &series) >= 1.0, "{kind}");
        }
        redis.restart();
        redis.command(&["CONFIG", "SET", "requirepass", ""]);
        let end = proxy.wait_for_log(|line| line.has_message("connected to Redis"));
        let failed = end.field("failed_fetches").and_then(|reads| reads.parse().ok());
        assert!(failed.is_some_and(|failed: u32| failed >= 3), "{}", end.text());
        assert!(end.field("outage").is_some(), "{}", end.text());
    }

    #[test]
    fn outage_logs_each_reason_and_its_end_once() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.reconnect_delay_max = \"20ms\"");
        proxy.expect_log(DOWN);
        redis.stop();
        eventually("Redis is gone", || (readyz(&proxy).0 == 503).then_some(()));
        // Each of these reads triggers an attempt to connect.
        for _ in 0..10 {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        redis.restart();
        await_ready(&proxy);
        // Log lines come a moment after their event.
        eventually("it is over", || {
            (lines_with_message(&proxy, "connected to Redis") == 2).then_some(())
        });
        let mut warnings = proxy.log_lines();
        warnings.retain(LogLine::is_trouble);
        let reasons: HashSet<_> = warnings.iter().map(|line| line.field("reason")).collect();
        assert!(!warnings.is_empty() && warnings.len() == reasons.len(), "{warnings:#?}");
    }
}

mod unusual_replies {
    use super::*;

    #[test]
    fn pipelined_replies_in_one_packet_are_read() {
        let (redis, relay, proxy) = behind_relay("");
        for number in 0..100 {
            set(&redis, &number.to_string(), &format!("value {number}"));
        }
        relay.stall();
        let readers: Vec<Client> =
            (0..100).map(|number| start_read(&proxy, &number.to_string())).collect();
        await_metric(&proxy, "inflight_fetches", 100.0);
        relay.resume();
        for (number, mut reader) in readers.into_iter().enumerate() {
            assert_eq!(text(&reader.read_response()), format!("value {number}"));
        }
    }

    #[test]
    fn surplus_reply_disrupts_only_for_a_moment() {
        const READERS: usize = 16;
        let (redis, relay, proxy) = behind_relay("cache.ttl = 0");
        proxy.expect_log(DOWN);
        for key in 0..READERS {
            set(&redis, &key.to_string(), &key.to_string());
        }
        relay.delay(Duration::from_millis(10));
        // The readers keep the link busy, so that it never idles.
        let recovered = thread::scope(|scope| {
            let proxy = &proxy;
            let readers: Vec<_> = (0..READERS)
                .map(|key| scope.spawn(move || read_for_a_second(proxy, key)))
                .collect();
            await_metric(proxy, "inflight_fetches", 16.0);
            relay.inject(b"+OK\r\n");
            readers.into_iter().all(|reader| reader.join().unwrap())
        });
        assert!(recovered, "a surplus reply shifts all later ones");
    }

    /// Reads a key with its own name as value for more than a second; returns whether the last read
    /// succeeded.
    fn read_for_a_second(proxy: &Proxy, key: usize) -> bool {
        let begun = Instant::now();
        let mut client = Client::connect(proxy.http());
        loop {
            let response = client.get(format!("/keys/{key}"));
            assert!(response.status != 200 || text(&response) == key.to_string(), "{response:?}");
            if begun.elapsed() > A_SECOND * 3 / 2 {
                return response.status == 200;
            }
        }
    }

    #[test]
    fn replica_without_primary_is_unavailable() {
        let redis = RedisServer::builder().arguments(&["--replica-serve-stale-data", "no"]).start();
        let proxy = proxy(&redis, "");
        proxy.expect_log(DOWN);
        redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
        let response = read(&proxy, "key");
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(text(&response).contains("MASTERDOWN"), "{}", text(&response));
        redis.command(&["REPLICAOF", "NO", "ONE"]);
        set(&redis, "key", "on its own");
        await_value(&proxy, "key", "on its own");
    }

    #[test]
    fn redis_running_a_long_script_is_unavailable() {
        let redis = RedisServer::builder().arguments(&["--busy-reply-threshold", "10"]).start();
        let proxy = proxy(&redis, "");
        set(&redis, "key", "after the script");
        let mut connection = redis.connection();
        let script = connection.send_packed_command(
            &redis::cmd("EVAL").arg("while true do end").arg(0).get_packed_command(),
        );
        script.unwrap();
        let response = eventually("Redis is busy", || {
            let response = read(&proxy, "missing");
            (response.status != 404).then_some(response)
        });
        assert_eq!(response.status, 503, "{}", text(&response));
        assert!(text(&response).contains("BUSY"), "{}", text(&response));
        redis.command(&["SCRIPT", "KILL"]);
        await_value(&proxy, "key", "after the script");
    }
}

mod limits {
    use super::*;

    #[test]
    fn excess_misses_do_not_cost_the_link() {
        let limits =
            "redis.max_fetches = 4\nredis.response_timeout = \"1s\"\nredis.ping_interval = \"10s\"";
        let (redis, relay, proxy) = behind_relay(limits);
        set(&redis, "key", "value");
        // At most ten replies in the time in which 80 fetches wait.
        relay.delay(Duration::from_millis(200));
        let mut readers: Vec<Client> =
            (0..80).map(|number| start_read(&proxy, &number.to_string())).collect();
        let answers: Vec<_> =
            readers.iter_mut().map(|reader| reader.read_response().status).collect();
        assert!(answers.iter().filter(|status| **status == 404).count() >= 4, "{answers:?}");
        assert!(answers.contains(&504), "{answers:?}");
        // A lost link would log a warning, which fails the test.
        assert_eq!(lines_with_message(&proxy, "connected to Redis"), 1);
    }

    #[test]
    fn queued_fetch_waits_at_most_response_timeout() {
        const TIMEOUT: Duration = Duration::from_secs(3);
        let limits =
            "redis.max_fetches = 1\nredis.response_timeout = \"3s\"\nredis.ping_interval = \"10s\"";
        let redis = RedisServer::start();
        let relay = Relay::to_socket(redis.socket());
        let proxy = linked(&config(&relay_url(&relay), limits));
        proxy.expect_log(DOWN);
        relay.stall();
        let begun = Instant::now();
        let mut first = start_read(&proxy, "first");
        let mut second = start_read(&proxy, "second");
        assert_eq!(first.read_response().status, 504);
        assert_eq!(second.read_response().status, 504);
        // One after the other they would take twice the timeout.
        assert!(begun.elapsed() < 2 * TIMEOUT, "{:?}", begun.elapsed());
    }
}

/// Reads until `key` has this value.
#[track_caller]
fn await_value(proxy: &Proxy, key: &str, expected: &str) {
    eventually(&format!("{key} is read"), || {
        let response = read(proxy, key);
        assert!(response.status >= 500 || response.status == 200, "{response:?}");
        if response.status == 200 {
            assert_eq!(text(&response), expected, "{key}");
        }
        (response.status == 200).then_some(())
    });
}

/// Asserts that reads fail promptly, and that /readyz and the log name the reason.
#[track_caller]
fn assert_unusable(proxy: &Proxy, reason: &str) {
    proxy.expect_log(DOWN);
    let line = proxy.wait_for_log(|line| line.has_message("no connection to Redis; retrying"));
    let logged = line.field("reason").unwrap_or_default();
    assert!(!logged.is_empty() && logged.contains(reason), "{logged:?}");
    let (status, received) = readyz(proxy);
    assert_eq!(status, 503);
    assert!(received.contains(reason), "{received}");
    let (response, took) = timed_read(proxy, "key");
    assert_eq!(response.status, 503, "{}", text(&response));
    assert!(took < PROMPT, "{took:?}");
}
