//! The kept replies, without Redis: what is served, and what is not.

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::types::{Cancelled, Outcome};
use super::super::{Cache, ReplyRead};
use super::*;
use crate::cache::{LookupUse, Settings};
use crate::protocol::Shape;
use crate::settings::ByteSize;

#[derive(Debug, Clone, PartialEq, Eq)]
struct NoReply;

impl From<Cancelled> for NoReply {
    fn from(_: Cancelled) -> Self {
        Self
    }
}

type TestCache = Cache<NoReply>;

const COMMAND: &[u8] = b"*2\r\n$7\r\nHGETALL\r\n$1\r\nh\r\n";
const KEY: &[u8] = b"h";

fn key(bytes: &[u8]) -> Key {
    Key::from(bytes)
}

fn cache_with(settings: Settings) -> TestCache {
    let cache = Cache::new(settings, Handle::current());
    cache.start_tracking(Instant::now());
    cache
}

fn cache() -> TestCache {
    cache_with(Settings::default())
}

fn plain(frame: &'static str) -> ReplyFrame {
    ReplyFrame::new(Bytes::from_static(frame.as_bytes()), Shape::default())
}

fn keepable(frame: &'static str) -> FetchedReply<NoReply> {
    FetchedReply::Keepable(plain(frame), None)
}

fn read_of<'a>(command: &'a [u8], keys: &'a [Key]) -> ReplyRead<'a> {
    ReplyRead { command, name_index: 0, keys }
}

/// Reads the command, with this fetch.
async fn read_by<F>(cache: &TestCache, fetch: impl FnOnce() -> F) -> (Outcome, String)
where
    F: Future<Output = FetchedReply<NoReply>> + Send + 'static,
{
    let (outcome, result) = cache.get_or_fetch_reply(read_of(COMMAND, &[key(KEY)]), fetch).await;
    let text = match result {
        ReplyResult::Reply(reply) => String::from_utf8_lossy(reply.frame().bytes()).into_owned(),
        ReplyResult::Forward => "forward".to_owned(),
        ReplyResult::Failed(NoReply) => "failed".to_owned(),
    };
    (outcome, text)
}

async fn read(cache: &TestCache, frame: &'static str) -> (Outcome, String) {
    read_by(cache, || ready(keepable(frame))).await
}

fn kept(cache: &TestCache) -> Option<String> {
    let reply = cache.lookup_reply(COMMAND, cache.clock().time(Instant::now()), LookupUse::Serve);
    reply.map(|found| String::from_utf8_lossy(found.reply.frame().bytes()).into_owned())
}

type ReplySender = oneshot::Sender<FetchedReply<NoReply>>;

/// Returns a fetch, and the sender of its reply.
fn pending() -> (ReplySender, impl Future<Output = FetchedReply<NoReply>>) {
    let (sender, receiver) = oneshot::channel();
    (sender, async move { receiver.await.unwrap_or(FetchedReply::Failed(NoReply)) })
}

/// Begins a read with a fetch that is pending, and returns it once its flight is open.
async fn begin(cache: &TestCache) -> (ReplySender, tokio::task::JoinHandle<(Outcome, String)>) {
    let (reply, fetch) = pending();
    let (opened, is_open) = oneshot::channel();
    let reader = cache.clone();
    let read = tokio::spawn(async move {
        read_by(&reader, || {
            _ = opened.send(());
            fetch
        })
        .await
    });
    is_open.await.unwrap();
    (reply, read)
}

#[tokio::test]
async fn reply_is_kept_until_a_key_changes() {
    let cache = cache();
    assert_eq!(read(&cache, "one").await, (Outcome::Miss, "one".to_owned()));
    assert_eq!(read(&cache, "two").await, (Outcome::Hit, "one".to_owned()));
    cache.invalidate(b"another key");
    assert_eq!(kept(&cache).as_deref(), Some("one"));
    cache.invalidate(KEY);
    assert_eq!(kept(&cache), None);
    assert_eq!(read(&cache, "two").await, (Outcome::Miss, "two".to_owned()));
}

/// An event of the connection to Redis.
type Event = fn(&TestCache);

#[tokio::test]
async fn emptied_memory_has_no_replies() {
    let events: [(&str, Event); 5] = [
        ("flush", TestCache::invalidate_all),
        ("new connection", |cache| cache.start_tracking(Instant::now())),
        ("lost connection", TestCache::suspend_tracking),
        ("no tracking", TestCache::use_ttl_only),
        ("lost slot", |cache| cache.invalidate_where(|_| false)),
    ];
    for grace in [Duration::ZERO, Duration::from_secs(60)] {
        for (name, event) in events {
            let cache = cache_with(Settings { stale_if_error: grace, ..Settings::default() });
            read(&cache, "one").await;
            event(&cache);
            cache.renew_lease(Instant::now());
            assert_eq!(kept(&cache), None, "{name}");
        }
    }
}

#[tokio::test]
async fn changed_key_keeps_the_reply_out() {
    let cache = cache();
    let (reply, first) = begin(&cache).await;
    cache.invalidate(KEY);
    assert!(reply.send(keepable("old")).is_ok());
    assert_eq!(first.await.unwrap(), (Outcome::Miss, "old".to_owned()));
    assert_eq!(kept(&cache), None);
}

/// Starts a reader that joins the current flight. It has joined once it waits.
async fn follow(cache: &TestCache) -> tokio::task::JoinHandle<(Outcome, String)> {
    let cache = cache.clone();
    let follower = tokio::spawn(async move { read(&cache, "its own").await });
    tokio::task::yield_now().await;
    follower
}

#[tokio::test]
async fn reader_joins_only_a_current_flight() {
    let cache = cache();
    let (reply, first) = begin(&cache).await;
    let follower = follow(&cache).await;
    cache.invalidate(KEY);
    let (newer, second) = begin(&cache).await;
    assert!(newer.send(keepable("new")).is_ok());
    assert_eq!(second.await.unwrap(), (Outcome::Miss, "new".to_owned()));
    assert!(reply.send(keepable("old")).is_ok());
    assert_eq!(first.await.unwrap().1, "old");
    assert_eq!(follower.await.unwrap(), (Outcome::Coalesced, "old".to_owned()));
    assert_eq!(kept(&cache).as_deref(), Some("new"), "an older flight replaced a newer reply");
}

#[tokio::test]
async fn follower_of_an_unkeepable_reply_fetches_again() {
    let cache = cache();
    let (reply, first) = begin(&cache).await;
    let follower = follow(&cache).await;
    assert!(reply.send(FetchedReply::Unkeepable(plain("once"))).is_ok());
    assert_eq!(first.await.unwrap(), (Outcome::Miss, "once".to_owned()));
    // A field may have ended between that request and this reader.
    assert_eq!(follower.await.unwrap(), (Outcome::Miss, "its own".to_owned()));
}

#[tokio::test]
async fn any_changed_key_ends_the_reply() {
    let cache = cache();
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    for changed in keys {
        let fetch = || ready(keepable("union"));
        cache.get_or_fetch_reply(read_of(COMMAND, &keys.map(key)), fetch).await;
        assert!(kept(&cache).is_some());
        cache.invalidate(changed);
        assert_eq!(kept(&cache), None);
    }
}

#[tokio::test]
async fn only_a_keepable_reply_is_kept() {
    for (fetched, expected) in [
        (FetchedReply::Unkeepable(plain("once")), "once"),
        (FetchedReply::Forward, "forward"),
        (FetchedReply::Failed(NoReply), "failed"),
        (FetchedReply::Keepable(plain("over"), Some(Duration::ZERO)), "over"),
    ] {
        let cache = cache();
        assert_eq!(read_by(&cache, || ready(fetched)).await.1, expected);
        assert_eq!(kept(&cache), None, "{expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn reply_ends_at_ttl_and_first_expiry() {
    let settings = Settings {
        ttl: Duration::from_secs(10),
        coherence_timeout: Duration::from_secs(3600),
        ..Settings::default()
    };
    for (expires_in, lasts) in [(None, 10), (Some(3), 3), (Some(60), 10)] {
        let cache = cache_with(settings.clone());
        let expires_in = expires_in.map(Duration::from_secs);
        let fetched = FetchedReply::Keepable(plain("reply"), expires_in);
        read_by(&cache, || ready(fetched)).await;
        tokio::time::advance(Duration::from_millis(lasts * 1000 - 1)).await;
        assert!(kept(&cache).is_some(), "{expires_in:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(kept(&cache), None, "{expires_in:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reply_needs_a_valid_lease() {
    let timeout = Duration::from_secs(3);
    let cache = cache_with(Settings { coherence_timeout: timeout, ..Settings::default() });
    read(&cache, "reply").await;
    tokio::time::advance(timeout).await;
    assert_eq!(kept(&cache), None);
    cache.renew_lease(Instant::now());
    assert!(kept(&cache).is_some(), "the connection was not lost");
}

#[tokio::test(start_paused = true)]
async fn oversized_reply_pauses_its_command() {
    let cache = cache();
    let oversized = || ready(FetchedReply::TooLarge);
    assert_eq!(read_by(&cache, oversized).await, (Outcome::Miss, "forward".to_owned()));
    assert_eq!(read(&cache, "reply").await, (Outcome::Bypass, "forward".to_owned()));
    tokio::time::advance(OVERSIZED_PAUSE).await;
    assert_eq!(read(&cache, "reply").await.1, "reply");
}

#[tokio::test(start_paused = true)]
async fn unkeepable_reply_pauses_its_command_for_a_moment() {
    let cache = cache();
    let unkeepable = || ready(FetchedReply::Unkeepable(plain("once")));
    assert_eq!(read_by(&cache, unkeepable).await, (Outcome::Miss, "once".to_owned()));
    assert_eq!(read(&cache, "reply").await, (Outcome::Bypass, "forward".to_owned()));
    tokio::time::advance(UNKEEPABLE_PAUSE).await;
    assert_eq!(read(&cache, "reply").await.1, "reply");
}

#[tokio::test]
async fn disabled_replies_are_not_fetched() {
    let settings = Settings::default();
    let without = |settings| (Outcome::Bypass, "forward".to_owned(), cache_with(settings));
    let no_memory = Settings { max_reply_memory: ByteSize(0), ..settings.clone() };
    let no_ttl = Settings { ttl: Duration::ZERO, ..settings.clone() };
    for (outcome, text, cache) in [without(no_memory), without(no_ttl)] {
        assert_eq!(read(&cache, "reply").await, (outcome, text));
    }
}

#[tokio::test(start_paused = true)]
async fn reply_without_a_lease_is_kept_for_its_ttl() {
    let settings = Settings { ttl: Duration::from_secs(10), ..Settings::default() };
    let cache: TestCache = Cache::new(settings, Handle::current());
    let read = || async { read(&cache, "reply").await.0 };
    assert_eq!((read().await, read().await), (Outcome::Miss, Outcome::Hit));
    cache.invalidate(KEY);
    assert_eq!((read().await, read().await), (Outcome::Miss, Outcome::Hit));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(read().await, Outcome::Miss);
}

#[tokio::test]
async fn reply_memory_stays_within_its_bound() {
    let bound = 256 << 10;
    let settings = Settings { max_reply_memory: ByteSize(bound), ..Settings::default() };
    let cache = cache_with(settings.clone());
    for number in 0..2000_u32 {
        let frame = ReplyFrame::new(Bytes::from(vec![b'x'; 100]), Shape::default());
        let fetch = || ready(FetchedReply::Keepable(frame, None));
        let name = number.to_ne_bytes();
        cache.get_or_fetch_reply(read_of(&name, &[key(&name)]), fetch).await;
        let (_, bytes) = cache.0.replies.store.size();
        assert!(bytes <= (bound + (8 << 20)) as u64, "{bytes} with the counters");
    }
    let (entries, _) = cache.0.replies.store.size();
    assert!(entries > 200, "{entries}");
    cache.apply(&Settings { max_reply_memory: ByteSize(0), ..settings });
    assert_eq!(cache.0.replies.store.size().0, 0);
}

#[tokio::test]
async fn replies_are_kept_after_a_change_of_their_bound() {
    let with = |bound| Settings { max_reply_memory: ByteSize(bound), ..Settings::default() };
    for (before, after) in [(64 << 20, 128 << 10), (0, 64 << 20), (1 << 10, 64 << 20)] {
        let cache = cache_with(with(before));
        read(&cache, "reply").await;
        cache.apply(&with(after));
        let outcomes = (read(&cache, "reply").await.0, read(&cache, "reply").await.0);
        assert_eq!(outcomes, (Outcome::Miss, Outcome::Hit), "{before} to {after}");
        let others = (0..1000_u32).map(u32::to_ne_bytes);
        others.for_each(|other| cache.invalidate(&other));
        let is_shared = after < 1 << 20; // few counters are for several keys
        assert!(is_shared || read(&cache, "reply").await.0 == Outcome::Hit, "{before} to {after}");
        assert!(cache.0.replies.store.size().1 <= after as u64);
    }
}

#[tokio::test]
async fn replies_count_against_the_bound_of_all_that_is_kept() {
    let cache = cache();
    let memory = || cache.statistics().memory.bytes;
    let empty = memory();
    let frame = ReplyFrame::new(Bytes::from(vec![b'x'; 100_000]), Shape::default());
    read_by(&cache, || ready(FetchedReply::Keepable(frame, None))).await;
    let (_, replies) = cache.0.replies.store.size();
    assert!(replies >= 100_000 && memory() >= empty + 100_000, "{replies} {empty} {}", memory());
    let kept = memory();
    cache.apply(&Settings { max_reply_memory: ByteSize(0), ..Settings::default() });
    assert!(memory() <= kept - 100_000, "{kept} {}", memory());
}

#[tokio::test]
async fn caches_on_one_store_share_no_reply() {
    let settings = Settings::default();
    let store = ReplyStore::new(&settings);
    let primary = || {
        let cache =
            TestCache::with_reply_store(settings.clone(), Handle::current(), Arc::clone(&store));
        cache.start_tracking(Instant::now());
        cache
    };
    let (one, other) = (primary(), primary());
    read(&one, "one").await;
    assert_eq!((kept(&one).as_deref(), kept(&other)), (Some("one"), None));
}

#[tokio::test]
async fn reply_is_derived_only_for_a_command_that_redis_has_replied_to() {
    let cache = cache();
    assert_eq!(read(&cache, "%0\r\n").await.0, Outcome::Miss);
    let may_derive = |name_index| {
        cache
            .lookup_whole(COMMAND, name_index, cache.clock().time(Instant::now()), LookupUse::Serve)
            .is_some()
    };
    assert_eq!([may_derive(0), may_derive(1)], [true, false]);
    let other = ReplyRead { command: b"*1\r\n$4\r\nHGET\r\n", name_index: 1, keys: &[key(KEY)] };
    let fetch = |fetched| move || ready(fetched);
    cache.get_or_fetch_reply(other, fetch(FetchedReply::Forward)).await;
    assert!(!may_derive(1), "Redis sent an error");
    cache.get_or_fetch_reply(other, fetch(keepable("$1\r\n1\r\n"))).await;
    assert!(may_derive(1));
    let probe = cache.reply_probe(5);
    assert_eq!(
        (probe.commands.len(), probe.keys.len()),
        (1, 2),
        "one reply is larger than 5 bytes"
    );
    assert!(!may_derive(1), "nothing proves the right to it any more");
    cache.get_or_fetch_reply(other, fetch(keepable("$1\r\n1\r\n"))).await;
    cache.invalidate_all();
    assert_eq!(read(&cache, "%0\r\n").await.0, Outcome::Miss);
    assert_eq!([may_derive(0), may_derive(1)], [true, false], "another generation");
}
