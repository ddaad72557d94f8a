//! Fetches of replies that may be kept, and their time.
//!
//! Promise: a reply is kept no longer than any of its keys and fields, and only where Redis
//! confirms the command.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis_proxy::backend::{
    self, Backend, BackendError, CommandNames, FetchedReply, ForwardReason, Network, ReplyRequest,
    RequestedFields,
};
use redis_proxy::cache::{self, Cache};
use redis_proxy::key::Key;
use redis_proxy::metrics::Metrics;
use tokio::runtime::{Builder, Runtime};

use crate::support::{RedisServer, eventually};

const NAMES: [&str; 7] = ["LRANGE", "HGET", "HGETALL", "HKEYS", "HLEN", "SINTER", "SRANDMEMBER"];
const LIMIT: usize = 1 << 20;
/// A time to live that does not pass during a test, in milliseconds.
const LONG: &str = "1000000";

/// A backend without a front end, connected to a Redis.
struct Stage {
    runtime: Runtime,
    backend: Backend,
}

impl Stage {
    fn new(redis: &RedisServer) -> Self {
        Self::at(&redis.url())
    }

    fn at(url: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let settings =
            backend::Settings { url: url.parse().expect("a URL"), ..backend::Settings::default() };
        let cache =
            Cache::<BackendError>::new(cache::Settings::default(), runtime.handle().clone());
        let names: CommandNames = NAMES.map(str::to_owned).into();
        let metrics = Arc::new(Metrics::new(&[]).expect("metrics"));
        let (backend, supervisor) =
            Backend::prepare(Network::System, settings, LIMIT, names, cache, metrics)
                .expect("a backend");
        runtime.spawn(supervisor.run());
        eventually("a connection", || backend.state().ok());
        Self { runtime, backend }
    }

    fn fetch(&self, words: &[&str], fields: RequestedFields) -> FetchedReply {
        self.fetch_within(LIMIT, words, fields)
    }

    fn fetch_within(&self, limit: usize, words: &[&str], fields: RequestedFields) -> FetchedReply {
        let name = words[0];
        let keys = if name == "SINTER" { &words[1..] } else { &words[1..2] };
        let request = ReplyRequest {
            command: redis::cmd(name).arg(&words[1..]).get_packed_command().into(),
            name_index: NAMES.iter().position(|one| *one == name).unwrap_or(usize::MAX),
            keys: keys.iter().map(|key| Key::from(key.as_bytes())).collect(),
            fields,
        };
        self.runtime.block_on(self.backend.fetch_reply(&request, limit)).expect("a reply")
    }
}

fn named(names: &[&'static str]) -> RequestedFields {
    RequestedFields::Named(names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect())
}

#[track_caller]
fn assert_without_end(reply: &FetchedReply, expected: &str) {
    let frame = Bytes::copy_from_slice(expected.as_bytes());
    assert_eq!(*reply, FetchedReply::Keepable { frame, expires_in: None });
}

#[track_caller]
fn assert_ends(reply: &FetchedReply) {
    let end = match reply {
        FetchedReply::Keepable { expires_in, .. } => *expires_in,
        _ => None,
    };
    let is_right = end.is_some_and(|end| !end.is_zero() && end <= Duration::from_secs(1000));
    assert!(is_right, "{reply:?}");
}

#[track_caller]
fn assert_forwarded(reply: &FetchedReply, reason: ForwardReason) {
    assert_eq!(*reply, FetchedReply::Forward(reason));
}

#[test]
fn reply_ends_with_its_first_key() {
    let redis = RedisServer::start();
    let stage = Stage::new(&redis);
    let list = || stage.fetch(&["LRANGE", "list", "0", "-1"], RequestedFields::None);
    assert_without_end(&list(), "*0\r\n");
    redis.command(&["RPUSH", "list", "a"]);
    assert_without_end(&list(), "*1\r\n$1\r\na\r\n");
    redis.command(&["PEXPIRE", "list", LONG]);
    assert_ends(&list());
    for key in ["one", "two"] {
        redis.command(&["SADD", key, "m"]);
    }
    let both = || stage.fetch(&["SINTER", "one", "two"], RequestedFields::None);
    assert_without_end(&both(), "~1\r\n$1\r\nm\r\n");
    redis.command(&["PEXPIRE", "two", LONG]);
    assert_ends(&both());
}

#[test]
fn what_cannot_be_kept_is_forwarded() {
    let redis = RedisServer::start();
    let stage = Stage::new(&redis);
    redis.command(&["SADD", "set", "m"]);
    redis.command(&["RPUSH", "list", "abcdef"]);
    let random = stage.fetch(&["SRANDMEMBER", "set"], RequestedFields::None);
    assert_forwarded(&random, ForwardReason::Unconfirmed);
    let unlisted = stage.fetch(&["SMEMBERS", "set"], RequestedFields::None);
    assert_forwarded(&unlisted, ForwardReason::Unconfirmed);
    let wrong = stage.fetch(&["LRANGE", "set", "0", "-1"], RequestedFields::None);
    assert_forwarded(&wrong, ForwardReason::ErrorReply);
    let large = stage.fetch_within(10, &["LRANGE", "list", "0", "-1"], RequestedFields::None);
    assert_forwarded(&large, ForwardReason::TooLarge);
}

#[test]
fn missing_rights_cause_forwarding() {
    let redis = RedisServer::builder().tcp().start();
    redis.command(&["RPUSH", "list", "a"]);
    for (denied, reason) in
        [("-command", ForwardReason::Unconfirmed), ("-pttl", ForwardReason::ErrorReply)]
    {
        let rights = ["ACL", "SETUSER", "reader", "reset", "on", ">pw", "~*", "+@all", denied];
        redis.command(&rights);
        let stage = Stage::at(&redis.tcp_url().replace("redis://", "redis://reader:pw@"));
        let list = stage.fetch(&["LRANGE", "list", "0", "-1"], RequestedFields::None);
        assert_forwarded(&list, reason);
    }
}

#[test]
fn reply_about_a_hash_ends_with_its_first_field() {
    let redis = RedisServer::start();
    let stage = Stage::new(&redis);
    redis.command(&["HSET", "hash", "f", "1", "g", "2"]);
    let field = |name: &'static str| stage.fetch(&["HGET", "hash", name], named(&[name]));
    let all = || stage.fetch(&["HGETALL", "hash"], RequestedFields::All);
    let names = || stage.fetch(&["HKEYS", "hash"], RequestedFields::All);
    let length = || stage.fetch(&["HLEN", "hash"], RequestedFields::Unnamed);
    assert_without_end(&field("f"), "$1\r\n1\r\n");
    assert_without_end(&field("absent"), "_\r\n");
    assert_without_end(&all(), "%2\r\n$1\r\nf\r\n$1\r\n1\r\n$1\r\ng\r\n$1\r\n2\r\n");
    assert_without_end(&names(), "*2\r\n$1\r\nf\r\n$1\r\ng\r\n");
    assert_without_end(&length(), ":2\r\n");
    let has_field_expiry = redis::cmd("HPEXPIRE")
        .arg(&["hash", LONG, "FIELDS", "1", "g"])
        .exec(&mut redis.connection())
        .is_ok();
    if !has_field_expiry {
        return;
    }
    assert_without_end(&field("f"), "$1\r\n1\r\n");
    assert_ends(&field("g"));
    assert_ends(&all());
    assert_ends(&names());
    assert_eq!(length(), FetchedReply::Unkeepable { frame: Bytes::from_static(b":2\r\n") });
    // Fields of another key limit no reply but that of HLEN.
    let absent = stage.fetch(&["HGETALL", "absent"], RequestedFields::All);
    assert_without_end(&absent, "%0\r\n");
}
