//! Warm start.
//!
//! Promise: a restarted proxy fetches the keys that were hot, within its capacity, its allowlist
//! and a bounded rate.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::serving::{await_metric, metric, proxy, read, set};
use crate::support::{Proxy, RedisServer};

const WARMED: &str = "warmed_total";
const HIT: &str = r#"reads_total{front_end="http",outcome="hit"}"#;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("hot-keys");
    (folder, file)
}

fn warm(redis: &RedisServer, file: &Path, more: &str) -> Proxy {
    proxy(redis, &format!("warm.file = \"{}\"\n{more}", file.display()))
}

fn await_fetched(proxy: &Proxy) {
    proxy.wait_for_log(|line| line.has_message("warm-up finished"));
}

#[test]
fn restarted_proxy_has_hot_keys_in_memory() {
    let redis = RedisServer::start();
    let (_folder, file) = folder();
    let before = warm(&redis, &file, "");
    for (key, times) in [("often", 5), ("odd \n%\u{e4}", 3), ("gone", 2)] {
        set(&redis, key, "before");
        (0..times).for_each(|_| assert_eq!(read(&before, key).status, 200));
    }
    assert_eq!(metric(&before, WARMED).to_string(), "0");
    before.finish();
    let text = fs::read_to_string(&file).expect("the names");
    assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), ["often", "odd%20%0A%25%C3%A4", "gone"]);
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    // Values are those that Redis has now.
    set(&redis, "often", "after");
    redis.command(&["DEL", "gone"]);
    let after = warm(&redis, &file, "");
    await_fetched(&after);
    await_metric(&after, WARMED, 2.0);
    let answer = read(&after, "often");
    assert_eq!(
        (answer.body.as_slice(), metric(&after, HIT).to_string()),
        (b"after".as_slice(), "1".to_owned())
    );
    // Redis pushes an invalidation when they change.
    set(&redis, "often", "later");
    crate::support::eventually("the change is pushed", || {
        (read(&after, "often").body == b"later").then_some(())
    });
    after.finish();
    // With few reads since, the earlier names are kept.
    let text = fs::read_to_string(&file).expect("the names");
    assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), ["often", "odd%20%0A%25%C3%A4", "gone"]);
}

#[test]
fn warm_up_fetches_only_allowed_keys_with_room() {
    let redis = RedisServer::start();
    let (_folder, file) = folder();
    let names: Vec<_> = (0..30).map(|number| format!("public:{number}")).collect();
    for name in &names {
        set(&redis, name, "value");
    }
    set(&redis, "secret", "value");
    set(&redis, "public:too-long", "value");
    fs::write(&file, format!("secret\npublic:too-long\n{}\n", names.join("\n"))).expect("a file");
    let proxy = warm(&redis, &file, "http.allow_keys = [\"public:*\"]\nhttp.max_key = 12");
    await_fetched(&proxy);
    assert_eq!(
        (metric(&proxy, WARMED).to_string(), metric(&proxy, "cache_entries").to_string()),
        { ("30".to_owned(), "30".to_owned()) }
    );
    let small = warm(&redis, &file, "cache.capacity = 10");
    await_fetched(&small);
    let (warmed, entries) = (metric(&small, WARMED), metric(&small, "cache_entries"));
    // The number of concurrent fetches may exceed the room.
    assert!(entries <= 10.0 && (10.0..20.0).contains(&warmed), "{warmed} fetched, {entries} kept");
}

#[test]
fn unusable_warm_up_file_is_a_warning() {
    let redis = RedisServer::start();
    set(&redis, "key", "value");
    let (folder, file) = folder();
    fs::write(&file, b"key\n%zz\n\xff\n").expect("a file");
    let damaged = warm(&redis, &file, "");
    damaged.expect_log("some lines of hot keys are no keys");
    await_metric(&damaged, WARMED, 1.0);
    damaged.finish();
    let directory = folder.path().join("directory");
    fs::create_dir(&directory).expect("a directory");
    let proxy = warm(&redis, &directory, "");
    proxy.expect_log("the names of the hottest keys");
    proxy.wait_for_log(|line| line.has_message("the names of the hottest keys cannot be read"));
    assert_eq!(read(&proxy, "key").status, 200);
    proxy.finish();
    assert!(directory.is_dir());
    let proxy = warm(&redis, &folder.path().join("missing/file"), "");
    proxy.expect_log("the names of the hottest keys were not written");
    assert_eq!(read(&proxy, "key").status, 200);
    proxy.finish();
}

#[test]
fn warm_up_is_off_by_default_and_hides_names() {
    let redis = RedisServer::start();
    let (_folder, file) = folder();
    let proxy = warm(&redis, &file, "");
    read(&proxy, "key");
    assert_eq!(crate::support::http::get(proxy.admin(), "/hotkeys").status, 404);
    proxy.finish();
    assert!(file.exists());
}
