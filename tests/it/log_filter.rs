//! The filter of log lines.
//!
//! Promise: a misspelt level or target of this program is an error that names the right one, at the
//! start and at a reload. So no typing error silences the log.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::process::Output;

use crate::support::serving::{config, lines_with_message, proxy};
use crate::support::{Proxy, RedisServer, Reload};

const FILTER: &str = "REDIS_PROXY_TELEMETRY__LOG_FILTER";

/// Checks a filter. Returns the exit code and standard error.
fn check(filter: &str) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Proxy::spawn_raw(&["check"], &[(FILTER, filter)]);
    (status.code(), String::from_utf8(stderr).expect("messages are text"))
}

#[test]
fn misspelt_log_filter_is_an_error_with_the_right_word() {
    for (filter, expected) in [
        ("inof", "did you mean \"info\"?"),
        ("warning", "did you mean \"warn\"?"),
        ("info,redis_proxy=debgu", "did you mean \"debug\"?"),
        ("info,h2=wran", "did you mean \"warn\"?"),
        ("info,redis_proxi=debug", "did you mean \"redis_proxy\"?"),
        ("info,redis-proxy=debug", "did you mean \"redis_proxy\"?"),
        ("info,redis_proxy::backnd=debug", "did you mean \"redis_proxy::backend\"?"),
        ("redis_proxy:backend=debug", "did you mean \"redis_proxy::backend\"?"),
        ("info redis_proxy=debug", "a comma"),
        ("info; redis_proxy=debug", "a comma"),
        ("xyzzy", "off, error, warn, info, debug or trace"),
        ("info,[span]=debug", "spans"),
        ("", "off, error, warn, info, debug or trace"),
    ] {
        let (code, text) = check(filter);
        assert_eq!(code, Some(78), "{filter}: {text}");
        let source = format!("redis-proxy: {FILTER}: telemetry.log_filter: ");
        assert!(text.starts_with(&source) && text.contains(expected), "{filter}: {text}");
    }
}

#[test]
fn known_log_targets_are_accepted_silently() {
    for filter in [
        "off",
        "INFO",
        "warn,redis_proxy=debug",
        "info, h2=warn",
        "info,rustls=debug,hyper_util=info",
        "redis_proxy",
        "info,redis_proxy::backend=off,redis_proxy::cache=debug",
        "info,redis_proxy::backend::supervisor=trace,",
    ] {
        assert_eq!(check(filter), (Some(0), String::new()), "{filter}");
    }
}

#[test]
fn unknown_crate_in_the_log_filter_is_a_warning() {
    let (code, text) = check("info,hypr=debug");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("redis-proxy: warning: ") && text.contains("\"hypr\""), "{text}");

    // The warning is logged although the filter silences everything else.
    let redis = RedisServer::start();
    let settings = config(&redis.url(), "telemetry.log_filter = \"info\"");
    let proxy = Proxy::start(&settings);
    proxy.expect_log("hypr");
    let unknown = config(&redis.url(), "telemetry.log_filter = \"error,hypr=debug\"");
    assert_eq!(proxy.reload(&settings), Reload::Reloaded);
    proxy.start_reload(&unknown);
    let line = proxy.wait_for_log(|line| line.text().contains("hypr"));
    assert_eq!(line.level(), "WARN");
}

#[test]
fn reload_with_a_misspelt_filter_keeps_the_old_one() {
    let redis = RedisServer::start();
    let proxy = proxy(&redis, "");
    proxy.expect_log("config refused");
    for filter in ["inof", "info redis_proxy=debug", "info,redis_proxi=debug"] {
        let misspelt = config(&redis.url(), &format!("telemetry.log_filter = \"{filter}\""));
        assert_eq!(proxy.reload(&misspelt), Reload::Refused, "{filter}");
    }
    let before = lines_with_message(&proxy, "config reloaded");
    assert_eq!(proxy.reload(&config(&redis.url(), "")), Reload::Reloaded);
    assert_eq!(lines_with_message(&proxy, "config reloaded"), before + 1);
}
