//! Faults of the proxy's own process.
//!
//! Promise: exhausted descriptors, clock steps, reload storms and a kill harm no client beyond the
//! connections that they end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::fault_stage::{DOWN, FaultStage, NO_REDIS, VALUE, assert_prompt, query};
use crate::support::http::Client;
use crate::support::resp_client::RespClient;
use crate::support::resp_pair::LASTING;
use crate::support::serving::{config, lines_with_message, metric, request, text};
use crate::support::skip::skipped_without;
use crate::support::unlogged_proxy::UnloggedProxy;
use crate::support::{Proxy, RedisServer, Signal, eventually};

#[test]
fn exhausted_descriptors_spare_open_connections() {
    let stage = FaultStage::start(LASTING);
    stage.proxy.expect_log("cannot accept connections");
    let mut client = Client::connect(stage.proxy.http());
    let (mut linked, mut unlinked) = (stage.connect(), stage.connect());
    assert_eq!(client.get("/keys/hot").status, 200);
    assert_eq!(query(&mut linked, "PING").0, "+PONG\\r\\n");
    assert_eq!(query(&mut unlinked, "GET hot").0, VALUE);
    // The proxy has raised its soft limit to this.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let limit = Rlimit { current, maximum };
        prlimit(Some(pid(&stage.proxy)), Resource::Nofile, limit).expect("a limit that may be set");
    };
    limit(Some(settled(&stage.proxy)));

    let mut waiting = Client::connect(stage.proxy.http());
    waiting.send_raw(&request("hot"));
    stage.proxy.wait_for_log(|line| line.has_message("cannot accept connections"));
    assert_eq!(client.get("/keys/hot").body, b"value");
    assert_eq!(client.get("/keys/cold").body, b"value");
    assert_eq!(query(&mut linked, "SET other value").0, "+OK\\r\\n");
    assert_prompt(&query(&mut unlinked, "GET hot"), VALUE);
    assert_prompt(&query(&mut unlinked, "INCR n"), &format!("{NO_REDIS}Too many open files"));

    limit(maximum);
    let begun = Instant::now();
    assert_eq!(waiting.read_response().body, b"value");
    assert_eq!(query(&mut unlinked, "INCR n").0, ":1\\r\\n");
    stage.assert_well();
    assert_eq!(
        lines_with_message(&stage.proxy, "cannot accept connections"),
        1,
        "one line an outage"
    );
    eprintln!("descriptors again: served after {:?}", begun.elapsed());
}

fn pid(proxy: &Proxy) -> Pid {
    i32::try_from(proxy.pid()).ok().and_then(Pid::from_raw).expect("a process has a number")
}

/// Returns the lowest number of a free descriptor once closed connections have released theirs.
/// With that limit none can be opened. The number of open ones would not do: a connection that was
/// closed among others leaves a free number below it.
fn settled(proxy: &Proxy) -> u64 {
    let lowest_free = || {
        let folder = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("it runs");
        let open: BTreeSet<u64> =
            folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        let used = open.iter().zip(0..).take_while(|(open, number)| *open == number);
        u64::try_from(used.count()).expect("not so many")
    };
    let (mut seen, mut same) = (0, 0);
    eventually("no descriptor comes or goes", || {
        let now = lowest_free();
        same = if now == seen { same + 1 } else { 0 };
        seen = now;
        (same > 50).then_some(())
    });
    seen
}

/// The beginning of the warning about too few descriptors.
const FEW_FILES: &str = "too few open files";

/// Starts a proxy with a limit on open files; returns its connection limits for HTTP and RESP.
#[track_caller]
fn connection_limits(open_files: u32, more: &str) -> (Proxy, [f64; 2]) {
    let config = config("redis://127.0.0.1:1", &format!("resp.listen = \"127.0.0.1:0\"\n{more}"));
    let proxy = Proxy::builder(&config).open_files(open_files).start();
    proxy.expect_log(DOWN);
    let limits = ["http", "resp"].map(|front_end| {
        metric(&proxy, &format!("connections_limit{{front_end=\"{front_end}\"}}"))
    });
    assert!(limits[0] + 2.0 * limits[1] < f64::from(open_files), "{limits:?}");
    (proxy, limits)
}

#[test]
fn few_descriptors_are_shared_by_the_settings_ratio() {
    for open_files in [1024, 4096, 20_000] {
        let (proxy, [http, resp]) = connection_limits(open_files, "");
        let used = (http + 2.0 * resp) / f64::from(open_files);
        assert!((http - resp).abs() <= 1.0 && used > 0.75, "{open_files}: {http} {resp}");
        proxy.expect_log(FEW_FILES);
        let line = proxy.wait_for_log(|line| line.is_trouble() && line.text().contains(FEW_FILES));
        for (field, expected) in [
            ("open_files", f64::from(open_files)),
            ("http_max_connections", 10_000.0),
            ("http_admitted", http),
            ("resp_max_connections", 10_000.0),
            ("resp_admitted", resp),
        ] {
            let found = line.field(field).and_then(|found| found.parse().ok());
            assert_eq!(found, Some(expected), "{field}: {}", line.text());
        }
        assert!(line.text().contains("LimitNOFILE"), "the action: {}", line.text());
        eprintln!("ulimit -n {open_files}: HTTP {http}, RESP {resp}");
    }
}

#[test]
fn each_front_end_gets_a_tenth_of_the_descriptors() {
    for (settings, small) in [
        ("http.max_connections = 100000\nresp.max_connections = 1000", 1),
        ("http.max_connections = 1000\nresp.max_connections = 100000", 0),
    ] {
        let (proxy, limits) = connection_limits(4096, settings);
        proxy.expect_log(FEW_FILES);
        let descriptors = limits[small] * [1.0, 2.0][small];
        assert!((360.0..=420.0).contains(&descriptors), "{settings}: {limits:?}");
    }
    // A front end that needs less than its share leaves the rest to the other.
    let (proxy, [http, resp]) = connection_limits(4096, "http.max_connections = 10");
    proxy.expect_log(FEW_FILES);
    assert!((http - 10.0).abs() < 0.1 && resp > 1800.0, "{http} {resp}");
}

#[test]
fn enough_descriptors_lower_no_limit() {
    let settings = "http.max_connections = 100\nresp.max_connections = 50";
    // An unexpected warning would fail the test.
    let (_proxy, [http, resp]) = connection_limits(1024, settings);
    assert_eq!([http, resp].map(|limit| limit.to_string()), ["100", "50"]);
}

/// The path of Debian's libfaketime.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const STAMP: &str = "config_last_reload_success_timestamp_seconds";

#[test]
fn clock_steps_do_not_change_lifetimes() {
    if !Path::new(FAKETIME).exists() {
        return skipped_without("libfaketime", "it is Debian's package of this name");
    }
    let directory = tempfile::tempdir().unwrap();
    let clock = directory.path().join("clock");
    let set = |offset: &str| {
        let next = directory.path().join("next");
        fs::write(&next, offset).unwrap();
        fs::rename(next, &clock).unwrap();
    };
    set("+0");
    let redis = RedisServer::start();
    redis.command(&["SET", "key", "value"]);
    let path = clock.display().to_string();
    let faked = [
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", &path),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DONT_RESET", "1"),
    ];
    let proxy =
        UnloggedProxy::start_with(&redis.url(), "cache.ttl = \"2s\"", Stdio::null(), &faked);
    eventually("the proxy is ready", || proxy.is_ready().then_some(()));
    let mut client = Client::connect(proxy.http());
    let mut wire = RespClient::connect(proxy.resp());
    let reload = || {
        let before = proxy.metric("config_reloads_total{result=\"success\"}");
        proxy.signal(Signal::HUP);
        eventually("a reload", || {
            (proxy.metric("config_reloads_total{result=\"success\"}") > before).then_some(())
        });
        proxy.metric(STAMP)
    };
    let now = reload();
    for (offset, seconds) in [("+36000", 36_000.0), ("-36000", -36_000.0)] {
        let kept = client.get("/keys/key");
        assert_eq!(kept.status, 200);
        let begun = Instant::now();
        set(offset);
        let received = reload();
        assert!(
            (received - now - seconds).abs() < 600.0,
            "the clock was not set: {}",
            received - now
        );
        let after = client.get("/keys/key");
        if begun.elapsed() < Duration::from_secs(1) {
            assert!(
                after.header("cache-status").is_some_and(|status| status.contains("; hit;")),
                "{after:?}"
            );
            assert!(
                after.header("age").is_some_and(|age| ["0", "1", "2"].contains(&age)),
                "{after:?}"
            );
        }
        assert_eq!(query(&mut wire, "GET key").0, VALUE);
        eventually("its time is over", || {
            let status = client.get("/keys/key").header("cache-status").map(str::to_owned);
            status.is_some_and(|status| status.contains("fwd=miss")).then_some(())
        });
    }
    assert_eq!(proxy.end(), Some(0));
}

#[test]
fn wall_clock_is_used_only_for_display() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read_to_string(&path).unwrap().contains("SystemTime") {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(
        found,
        ["exemplars.rs", "fast_path.rs", "mod.rs", "top.rs"],
        "a clock that may be set decides nothing"
    );
}

#[test]
fn reload_storm_costs_no_client() {
    const STORM: u32 = 300;
    let stage = FaultStage::start(LASTING);
    let mut client = Client::connect(stage.proxy.http());
    let mut wire = stage.connect();
    let goes_on = AtomicBool::new(true);
    let (asked, longest) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut asked, mut longest) = (0_u32, Duration::ZERO);
            while goes_on.load(Relaxed) {
                let begun = Instant::now();
                let response = client.get("/keys/hot");
                assert_eq!(text(&response), "value");
                assert_eq!(query(&mut wire, "GET hot").0, VALUE);
                assert_eq!(query(&mut wire, &format!("SET n {asked}")).0, "+OK\\r\\n");
                assert!(query(&mut wire, "GET n").0.ends_with(&format!("\\n{asked}\\r\\n")));
                longest = longest.max(begun.elapsed());
                asked += 1;
            }
            (asked, longest)
        });
        for _ in 0..STORM {
            stage.proxy.signal(Signal::HUP);
            thread::sleep(Duration::from_millis(2));
        }
        goes_on.store(false, Relaxed);
        reader.join().expect("every answer is right")
    });
    let reloads = eventually("reloads", || {
        Some(lines_with_message(&stage.proxy, "config reloaded")).filter(|&count| count > 0)
    });
    assert!(asked > 0);
    stage.assert_well();
    eprintln!(
        "{STORM} SIGHUP, {reloads} reloads: {asked} rounds of four answers, the longest {longest:?}"
    );
}

#[test]
fn client_waits_through_a_supervised_restart() {
    let redis = RedisServer::start();
    redis.command(&["SET", "key", "value"]);
    let mut proxy = UnloggedProxy::start(&redis.url(), "", Stdio::null());
    eventually("the proxy is ready", || proxy.is_ready().then_some(()));
    let mut before = (Client::connect(proxy.http()), RespClient::connect(proxy.resp()));
    assert_eq!(before.0.get("/keys/key").body, b"value");
    assert_eq!(query(&mut before.1, "GET key").0, VALUE);
    let begun = Instant::now();
    let (mut http, mut resp) = proxy.restart_after_kill(&redis.url(), "", |proxy| {
        let mut http = Client::connect(proxy.http());
        http.send_raw(&request("key"));
        let mut resp = RespClient::connect(proxy.resp());
        resp.send("GET key\r\n");
        (http, resp)
    });
    assert_eq!(http.read_response().body, b"value");
    assert_eq!(resp.answer(), b"$5\r\nvalue\r\n");
    let took = begun.elapsed();
    // An established connection sees the end, and nothing else.
    assert_eq!(query(&mut before.1, "GET key").0, "UnexpectedEof");
    assert_eq!(proxy.end(), Some(0));
    eprintln!("killed and started again: served after {took:?}");
}
