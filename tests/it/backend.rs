//! "Any Redis, and clear answers when it fails": every way to Redis, and every way it can be gone.
//!
//! A failing Redis is told by the status, by /readyz and by one line in the log; none of them tells a secret. And
//! it is over as soon as Redis is back: within a second at most.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::stage::{
    ask, ask_and_await_flight, assert_hit, await_metric, await_ready, behind_relay, config,
    lines_that_say, linked, metric, proxy, read, readyz, relay_url, set, text, timed_read, value,
};
use crate::support::http::{self, Client};
use crate::support::redis_server::free_port;
use crate::support::sentinel::Watched;
use crate::support::{Authority, Proxy, RedisServer, Relay, eventually};

const DOWN: &str = "no link to Redis";
/// What is said once where Redis refuses to track.
const UNTRACKED: &str = "Redis does not tell of changes";
const SECRET: &str = "hunter2";
/// What an answer may take that nothing holds up.
const AT_ONCE: Duration = Duration::from_millis(500);
const A_SECOND: Duration = Duration::from_secs(1);

mod ways_there {
    use super::*;

    #[test]
    fn redis_is_reached_over_tcp() {
        let redis = RedisServer::builder().tcp().start();
        set(&redis, "key", "over TCP");
        assert_eq!(value(&linked(&config(&redis.tcp_url(), "")), "key"), "over TCP");
    }

    #[test]
    fn the_number_of_the_database_is_part_of_the_address() {
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
    fn a_database_that_does_not_exist_is_named_by_readyz() {
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
    fn the_password_is_taken_from_the_config_the_url_or_a_file() {
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
    fn the_password_is_taken_from_a_systemd_credential() {
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
    fn a_rotated_password_file_is_read_at_the_next_connect() {
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
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("a new link", || {
            (lines_that_say(&proxy, "connected to Redis") == 2).then_some(())
        });
        assert_eq!(value(&proxy, "key"), "unlocked again");
    }

    #[test]
    fn a_user_who_may_only_read_public_keys_is_enough_for_these() {
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
    fn a_wrong_password_is_named_but_not_told() {
        let redis = RedisServer::builder().arguments(&["--requirepass", "another"]).start();
        let proxy = Proxy::start(&config(&redis.url(), &format!("redis.password = \"{SECRET}\"")));
        assert_unusable(&proxy, "WRONGPASS");
        assert_tells_no_secret(&proxy);
    }

    #[test]
    fn a_missing_password_is_named() {
        let redis = locked();
        let proxy = Proxy::start(&config(&redis.url(), ""));
        assert_unusable(&proxy, "NOAUTH");
    }

    #[test]
    fn a_server_that_repeats_the_login_does_not_make_the_proxy_tell_it() {
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
    fn a_refused_login_is_not_tried_again_for_every_read() {
        let redis = RedisServer::builder().arguments(&["--requirepass", "another"]).start();
        let proxy = Proxy::start(&config(&redis.url(), "redis.password = \"wrong\""));
        proxy.expect_log(DOWN);
        let before = redis.calls("auth");
        let begun = Instant::now();
        while begun.elapsed() < A_SECOND {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        // The pauses grow from 50 ms to half a second; with one attempt a read there would be 20.
        let attempts = redis.calls("auth") - before;
        assert!(attempts < 12, "{attempts} attempts");
    }

    fn assert_tells_no_secret(proxy: &Proxy) {
        let (_, ready) = readyz(proxy);
        let error = text(&read(proxy, "private:key"));
        let log: Vec<_> = proxy.log_lines().iter().map(|line| line.text().to_owned()).collect();
        for told in [ready, error, proxy.metrics().text().to_owned(), log.join("\n")] {
            assert!(!told.contains(SECRET), "{told}");
        }
    }
}

mod tls {
    use super::*;

    #[test]
    fn redis_is_reached_over_tls_with_an_authority_of_ones_own() {
        let authority = Authority::new();
        let redis = authority.redis("127.0.0.1", false);
        set(&redis, "key", "over TLS");
        let proxy = linked(&config(&redis.tls_url(), &authority.trusted()));
        assert_eq!(value(&proxy, "key"), "over TLS");
    }

    #[test]
    fn redis_is_shown_the_certificate_it_asks_for() {
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
    fn a_certificate_of_another_authority_is_refused() {
        let redis = Authority::new().redis("127.0.0.1", false);
        let other = Authority::new();
        let proxy = Proxy::start(&config(&redis.tls_url(), &other.trusted()));
        assert_unusable(&proxy, "certificate");
    }

    #[test]
    fn a_certificate_for_another_name_is_refused() {
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
        proxy.expect_log("a sentinel does not answer");
        assert_unusable(&proxy, "certificate");
    }
}

mod outages {
    use super::*;

    #[test]
    fn with_no_redis_there_the_proxy_starts_and_says_so() {
        let mut redis = RedisServer::start();
        redis.stop();
        let proxy = Proxy::start(&config(&redis.url(), ""));
        assert_unusable(&proxy, "");
        assert_eq!(http::get(proxy.admin(), "/livez").status, 200);
        let (response, took) = timed_read(&proxy, "key");
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(took < AT_ONCE, "{took:?}");

        redis.restart();
        set(&redis, "key", "there now");
        assert_eq!(value(&proxy, "key"), "there now", "the first read works");
        assert_eq!(readyz(&proxy).0, 200);
    }

    #[test]
    fn a_long_outage_ends_with_the_first_read_after_it() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.reconnect_delay_max = \"60s\"");
        proxy.expect_log(DOWN);
        redis.stop();
        // The pause between two attempts grows with each of them.
        for _ in 0..12 {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        redis.restart();
        set(&redis, "key", "there again");
        assert_eq!(value(&proxy, "key"), "there again");
    }

    #[test]
    fn a_restarted_redis_is_read_within_a_second() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        proxy.expect_log(DOWN);
        for round in 0..3 {
            redis.stop();
            eventually("reads fail", || (read(&proxy, "key").status == 503).then_some(()));
            redis.restart();
            let key = format!("key {round}");
            set(&redis, &key, "value");
            await_value(&proxy, &key, "value");
            let link_failures = metric(&proxy, "backend_up").to_string();
            assert_eq!(link_failures, "1");
        }
    }

    #[test]
    fn while_redis_stands_still_hits_go_on_and_misses_time_out() {
        let redis = RedisServer::start();
        let timeouts = "redis.response_timeout = \"300ms\"\nredis.ping_interval = \"200ms\"";
        let proxy = proxy(&redis, &format!("cache.coherence = \"ttl\"\n{timeouts}"));
        proxy.expect_log(DOWN);
        set(&redis, "hot", "in memory");
        set(&redis, "cold", "in Redis");
        value(&proxy, "hot");

        redis.pause();
        for _ in 0..3 {
            let (hit, took) = timed_read(&proxy, "hot");
            assert_hit(&hit);
            assert!(took < AT_ONCE, "{took:?}");
            let (miss, took) = timed_read(&proxy, "cold");
            assert_eq!(miss.status, 504, "{}", text(&miss));
            assert!(took < Duration::from_millis(300) + AT_ONCE, "{took:?}");
        }
        redis.resume();
        await_value(&proxy, "cold", "in Redis");
    }

    #[test]
    fn a_line_that_was_cut_is_used_again_once_it_is_whole() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        set(&redis, "key", "value");
        relay.cut();
        let (response, took) = timed_read(&proxy, "key");
        assert_eq!(response.status, 503);
        assert!(took < AT_ONCE, "{took:?}");
        relay.resume();
        await_value(&proxy, "key", "value");
    }

    #[test]
    fn a_link_lost_for_a_moment_costs_no_read() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        for number in 0..5 {
            let key = number.to_string();
            set(&redis, &key, &key);
            relay.cut_once();
            assert_eq!(value(&proxy, &key), key);
        }
    }

    #[test]
    fn a_link_lost_under_a_request_costs_no_read() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        set(&redis, "key", "value");
        relay.stall();
        let mut reader = ask_and_await_flight(&proxy, "key", 1);
        relay.cut_once();
        relay.resume();
        assert_eq!(text(&reader.read_response()), "value");
    }

    #[test]
    fn a_value_that_takes_too_long_does_not_hold_up_the_others() {
        let (redis, relay, proxy) = behind_relay("redis.response_timeout = \"500ms\"");
        proxy.expect_log(DOWN);
        set(&redis, "big", &"x".repeat(4 << 20));
        set(&redis, "small", "value");
        // 16 KiB each 20 ms: five seconds for the big one.
        relay.delay(Duration::from_millis(20));
        assert_eq!(read(&proxy, "big").status, 504);
        await_value(&proxy, "small", "value");
    }

    #[test]
    fn a_half_open_link_is_given_up_and_made_anew() {
        let timeouts = "redis.response_timeout = \"200ms\"\nredis.ping_interval = \"100ms\"\n\
                        redis.connect_timeout = \"200ms\"";
        let (redis, relay, proxy) = behind_relay(timeouts);
        proxy.expect_log(DOWN);
        set(&redis, "key", "value");
        relay.stall();
        eventually("silence is noticed without a read", || (readyz(&proxy).0 == 503).then_some(()));
        for _ in 0..3 {
            let (response, took) = timed_read(&proxy, "key");
            assert!([503, 504].contains(&response.status), "{}", text(&response));
            assert!(took < Duration::from_millis(200) + AT_ONCE, "{took:?}");
        }
        relay.resume();
        await_value(&proxy, "key", "value");
    }

    #[test]
    fn an_idle_link_that_answers_its_pings_is_kept() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.ping_interval = \"20ms\"");
        let before = redis.calls("ping");
        eventually("pings", || (redis.calls("ping") >= before + 10).then_some(()));
        assert_eq!(lines_that_say(&proxy, "connected to Redis"), 1);
        assert_eq!(metric(&proxy, "backend_up").to_string(), "1");
    }

    #[test]
    fn an_outage_is_one_warning_and_one_line_when_it_is_over() {
        let mut redis = RedisServer::start();
        let proxy = proxy(&redis, "redis.reconnect_delay_max = \"20ms\"");
        proxy.expect_log(DOWN);
        redis.stop();
        eventually("Redis is gone", || (readyz(&proxy).0 == 503).then_some(()));
        // Each of these reads makes the link be tried at once.
        for _ in 0..10 {
            assert_eq!(read(&proxy, "key").status, 503);
        }
        redis.restart();
        await_ready(&proxy);
        // Lines come a moment after what they tell of.
        eventually("it is over", || {
            (lines_that_say(&proxy, "connected to Redis") == 2).then_some(())
        });
        let told: Vec<_> = proxy.log_lines().iter().map(|line| line.text().to_owned()).collect();
        let warnings = proxy.log_lines().iter().filter(|line| line.is_trouble()).count();
        assert_eq!(warnings, 1, "{told:#?}");
    }
}

mod odd_answers {
    use super::*;

    #[test]
    fn a_slow_line_is_waited_for() {
        let (redis, relay, proxy) = behind_relay("");
        set(&redis, "key", "value");
        relay.delay(Duration::from_millis(100));
        let (response, took) = timed_read(&proxy, "key");
        assert_eq!(text(&response), "value");
        assert!(took >= Duration::from_millis(200), "there and back: {took:?}");
        assert_hit(&read(&proxy, "key"));
    }

    #[test]
    fn an_answer_may_come_a_byte_at_a_time() {
        let (redis, relay, proxy) = behind_relay("");
        let long = "0123456789\r\n$5\r\n".repeat(500);
        set(&redis, "key", &long);
        set(&redis, "empty", "");
        relay.byte_at_a_time();
        assert_eq!(value(&proxy, "key"), long);
        assert_eq!(value(&proxy, "empty"), "");
    }

    #[test]
    fn many_answers_may_come_at_once() {
        let (redis, relay, proxy) = behind_relay("");
        for number in 0..100 {
            set(&redis, &number.to_string(), &format!("value {number}"));
        }
        relay.stall();
        let readers: Vec<Client> =
            (0..100).map(|number| ask(&proxy, &number.to_string())).collect();
        await_metric(&proxy, "inflight_fetches", 100.0);
        relay.resume();
        for (number, mut reader) in readers.into_iter().enumerate() {
            assert_eq!(text(&reader.read_response()), format!("value {number}"));
        }
    }

    #[test]
    fn a_link_that_speaks_no_redis_is_dropped() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        set(&redis, "key", "value");
        relay.inject(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        eventually("another link", || {
            (lines_that_say(&proxy, "connected to Redis") == 2).then_some(())
        });
        await_value(&proxy, "key", "value");
    }

    #[test]
    fn garbage_before_an_answer_is_never_taken_for_it() {
        let (redis, relay, proxy) = behind_relay("");
        proxy.expect_log(DOWN);
        for (number, garbage) in
            [b"\0\xff\r\n".as_slice(), b"$-7\r\n", b"%!?\r\n$3\r\nbad\r\n"].into_iter().enumerate()
        {
            let key = number.to_string();
            set(&redis, &key, "good");
            relay.delay(Duration::from_millis(50));
            let mut reader = ask_and_await_flight(&proxy, &key, 1);
            relay.inject(garbage);
            let response = reader.read_response();
            assert!(response.status != 200 || text(&response) == "good", "{response:?}");
            relay.resume();
            await_value(&proxy, &key, "good");
        }
    }

    #[test]
    fn an_answer_too_many_is_a_matter_of_a_moment() {
        const READERS: usize = 16;
        let (redis, relay, proxy) = behind_relay("cache.ttl = 0");
        proxy.expect_log(DOWN);
        for key in 0..READERS {
            set(&redis, &key.to_string(), &key.to_string());
        }
        relay.delay(Duration::from_millis(10));
        // They keep the link busy, so that it never comes to rest on its own.
        let recovered = thread::scope(|scope| {
            let proxy = &proxy;
            let readers: Vec<_> = (0..READERS)
                .map(|key| scope.spawn(move || read_for_a_second(proxy, key)))
                .collect();
            await_metric(proxy, "inflight_fetches", 16.0);
            relay.inject(b"+OK\r\n");
            readers.into_iter().all(|reader| reader.join().unwrap())
        });
        assert!(recovered, "an answer that nobody asked for shifts all that come after it");
    }

    /// Reads a key that has its own name as value for a second and more; returns whether the last read found it.
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
    fn a_replica_without_its_primary_is_unavailable() {
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
    fn a_redis_that_has_no_room_for_writes_is_read() {
        let redis = RedisServer::start();
        let proxy = proxy(&redis, "");
        set(&redis, "key", "value");
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        redis.command(&["GET", "key"]);
        assert_eq!(value(&proxy, "key"), "value");
    }

    #[test]
    fn a_redis_that_runs_a_long_script_is_unavailable() {
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
    fn too_many_misses_for_redis_do_not_cost_the_link() {
        let limits = "redis.max_fetches = 4\nredis.response_timeout = \"300ms\"\nredis.ping_interval = \"10s\"";
        let (redis, relay, proxy) = behind_relay(limits);
        set(&redis, "key", "value");
        // Forty answers a second at most, and twice as many questions.
        relay.delay(Duration::from_millis(50));
        let mut readers: Vec<Client> =
            (0..80).map(|number| ask(&proxy, &number.to_string())).collect();
        let answers: Vec<_> =
            readers.iter_mut().map(|reader| reader.read_response().status).collect();
        assert!(answers.iter().filter(|status| **status == 404).count() >= 4, "{answers:?}");
        assert!(answers.contains(&504), "{answers:?}");
        // A lost link would be a warning, which no line here expects.
        assert_eq!(lines_that_say(&proxy, "connected to Redis"), 1);
    }

    #[test]
    fn with_all_places_taken_one_more_miss_is_refused_at_once_and_hits_are_not() {
        let limits = "redis.max_fetches = 2\nredis.max_queue = 2\n\
                      redis.response_timeout = \"10s\"\nredis.ping_interval = \"10s\"";
        let (redis, relay, proxy) = behind_relay(limits);
        for key in ["hot", "0", "1", "2", "3", "more"] {
            set(&redis, key, key);
        }
        value(&proxy, "hot");
        relay.stall();
        let mut readers: Vec<Client> =
            (0..4).map(|number| ask(&proxy, &number.to_string())).collect();
        await_metric(&proxy, "inflight_fetches", 4.0);

        let (refused, took) = timed_read(&proxy, "more");
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        assert!(took < AT_ONCE, "{took:?}");
        let (hit, took) = timed_read(&proxy, "hot");
        assert_hit(&hit);
        assert!(took < AT_ONCE, "{took:?}");
        assert_eq!(metric(&proxy, "backend_errors_total{kind=\"overloaded\"}").to_string(), "1");

        relay.resume();
        for (number, reader) in readers.iter_mut().enumerate() {
            assert_eq!(text(&reader.read_response()), number.to_string());
        }
        assert_eq!(value(&proxy, "more"), "more");
    }

    #[test]
    fn a_fetch_waits_for_its_turn_no_longer_than_the_response_timeout() {
        let limits = "redis.max_fetches = 1\nredis.response_timeout = \"300ms\"\nredis.ping_interval = \"10s\"";
        let redis = RedisServer::start();
        let relay = Relay::to_socket(redis.socket());
        let proxy = linked(&config(&relay_url(&relay), limits));
        proxy.expect_log(DOWN);
        relay.stall();
        let begun = Instant::now();
        let mut first = ask(&proxy, "first");
        let mut second = ask(&proxy, "second");
        assert_eq!(first.read_response().status, 504);
        assert_eq!(second.read_response().status, 504);
        assert!(begun.elapsed() < Duration::from_millis(300) + AT_ONCE, "{:?}", begun.elapsed());
    }
}

/// Reads until `key` has this value, and sees that it took no longer than a second.
#[track_caller]
fn await_value(proxy: &Proxy, key: &str, expected: &str) {
    let begun = Instant::now();
    eventually(&format!("{key} is read"), || {
        let response = read(proxy, key);
        assert!(response.status >= 500 || response.status == 200, "{response:?}");
        if response.status == 200 {
            assert_eq!(text(&response), expected, "{key}");
        }
        (response.status == 200).then_some(())
    });
    assert!(begun.elapsed() < A_SECOND, "took {:?}", begun.elapsed());
}

/// Sees that reads are refused quickly, and that /readyz and the log say why.
#[track_caller]
fn assert_unusable(proxy: &Proxy, reason: &str) {
    proxy.expect_log(DOWN);
    let line =
        proxy.wait_for_log(|line| line.says("no link to Redis; trying again until there is"));
    let logged = line.field("reason").unwrap_or_default();
    assert!(!logged.is_empty() && logged.contains(reason), "{logged:?}");
    let (status, told) = readyz(proxy);
    assert_eq!(status, 503);
    assert!(told.contains(reason), "{told}");
    let (response, took) = timed_read(proxy, "key");
    assert_eq!(response.status, 503, "{}", text(&response));
    assert!(took < AT_ONCE, "{took:?}");
}
