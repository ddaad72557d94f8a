//! A log without a reader, or on a full disk.
//!
//! Promise: no request, reload or shutdown waits for the log; lines without room are dropped and
//! counted.

use std::fs::{self, File};
use std::io::{ErrorKind, PipeWriter, Read, Write, pipe};
use std::path::Path;

use rustix::io::ioctl_fionbio;

use crate::support::http::{self, Client};
use crate::support::mounts::Volume;
use crate::support::resp_client::RespClient;
use crate::support::unlogged_proxy::UnloggedProxy;
use crate::support::{RedisServer, Signal, eventually};

/// Each reload writes a line, from the thread that handles signals and keeps the link.
const RELOADS: u32 = 20;
const DROPPED: &str = "log_lines_dropped_total";
const RELOADED: &str = "config_reloads_total{result=\"success\"}";

#[test]
fn unread_log_blocks_nothing() {
    let (mut reader, mut writer) = pipe().unwrap();
    fill(&mut writer);
    let mut redis = RedisServer::start();
    let proxy = UnloggedProxy::start(&redis.url(), "telemetry.log_filter = \"debug\"", writer);
    serves_reloads_and_reconnects(&mut redis, &proxy);
    // Within the bound of `end`: it waits a second for its last lines, not for the reader.
    assert_eq!(proxy.end(), Some(0));
    let mut log = Vec::new();
    reader.read_to_end(&mut log).unwrap();
    assert!(log.iter().all(|byte| *byte == b'x'), "there was room for a line");
}

#[test]
fn full_log_disk_costs_only_lines() {
    let mut redis = RedisServer::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let proxy = UnloggedProxy::start(&redis.url(), "telemetry.log_filter = \"debug\"", full);
    serves_reloads_and_reconnects(&mut redis, &proxy);
    eventually("the lines are counted", || {
        (proxy.metric(DROPPED) >= f64::from(RELOADS)).then_some(())
    });
    assert_eq!(proxy.end(), Some(0));
}

#[test]
fn freed_log_disk_is_written_again() {
    let Some(disk) = Volume::new(64) else { return };
    let (log, filler) = (disk.path("log"), disk.path("filler"));
    let mut redis = RedisServer::start();
    let proxy =
        UnloggedProxy::start(&redis.url(), "telemetry.log_filter = \"debug\"", appending_to(&log));
    eventually("the first lines", || {
        fs::read_to_string(&log).unwrap().contains("listening").then_some(())
    });
    // The last page of the log is filled too.
    for file in [&filler, &log] {
        fill_disk(file);
    }
    let before = fs::metadata(&log).unwrap().len();
    serves_reloads_and_reconnects(&mut redis, &proxy);
    eventually("the lines are counted", || {
        (proxy.metric(DROPPED) >= f64::from(RELOADS)).then_some(())
    });
    assert_eq!(fs::metadata(&log).unwrap().len(), before, "the disk was not full");

    fs::remove_file(&filler).unwrap();
    let received = || fs::read_to_string(&log).unwrap().matches("config reloaded").count();
    let (dropped, written) = (proxy.metric(DROPPED), received());
    for number in 1..=RELOADS {
        proxy.signal(Signal::HUP);
        eventually("a reload", || {
            (proxy.metric(RELOADED) >= f64::from(RELOADS + number)).then_some(())
        });
    }
    eventually("their lines", || (received() == written + RELOADS as usize).then_some(()));
    assert_eq!(
        proxy.metric(DROPPED).to_string(),
        dropped.to_string(),
        "lines were dropped although there was room"
    );
    assert_eq!(proxy.end(), Some(0));
}

/// Fills the file system to the last byte.
fn fill_disk(file: &Path) {
    let mut filler = appending_to(file);
    let error = loop {
        if let Err(error) = filler.write_all(b"x") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
}

fn appending_to(file: &Path) -> File {
    File::options().create(true).append(true).open(file).unwrap()
}

#[test]
fn buffered_lines_are_written_after_a_stall() {
    let (mut reader, mut writer) = pipe().unwrap();
    let filled = fill(&mut writer);
    let redis = RedisServer::start();
    let proxy = UnloggedProxy::start(&redis.url(), "", writer);
    eventually("the proxy is ready", || proxy.is_ready().then_some(()));
    reader.read_exact(&mut vec![0; filled]).unwrap();
    assert_eq!(proxy.end(), Some(0));
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    for line in ["listening", "connected to Redis", "stopped"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

/// Asserts that both front ends serve, that reloads work, and that a restarted Redis is found.
fn serves_reloads_and_reconnects(redis: &mut RedisServer, proxy: &UnloggedProxy) {
    redis.command(&["SET", "key", "before"]);
    eventually("the proxy is ready", || proxy.is_ready().then_some(()));
    let mut client = Client::connect(proxy.http());
    let mut wire = RespClient::connect(proxy.resp());
    assert_eq!(client.get("/keys/key").body, b"before");
    assert_eq!(wire.reply_to_words(&["GET", "key"]), "$6\\r\\nbefore\\r\\n");
    for number in 1..=RELOADS {
        proxy.signal(Signal::HUP);
        eventually("a reload", || (proxy.metric(RELOADED) >= f64::from(number)).then_some(()));
    }
    redis.restart();
    redis.command(&["SET", "key", "after"]);
    eventually("the new value", || {
        (http::get(proxy.http(), "/keys/key").body == b"after").then_some(())
    });
    assert_eq!(
        RespClient::connect(proxy.resp()).reply_to_words(&["GET", "key"]),
        "$5\\r\\nafter\\r\\n"
    );
}

/// Fills the pipe; returns the number of bytes.
fn fill(pipe: &mut PipeWriter) -> usize {
    // The process under test gets a blocking pipe, as usual.
    ioctl_fionbio(&*pipe, true).unwrap();
    let mut filled = 0;
    while let Ok(taken) = pipe.write(b"x") {
        filled += taken;
    }
    ioctl_fionbio(&*pipe, false).unwrap();
    filled
}
