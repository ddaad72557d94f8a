//! Tests of the promises of the cache: exact order and size for a sequential reader, and one fetch
//! for many readers. No stale value is kept, and a change of the settings applies at once.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::advance;

use super::*;
use crate::settings::{ByteSize, MemorySize};
use std::sync::atomic::Ordering::Relaxed;

mod reference;
mod refresh;
mod rules;

#[derive(Debug, Clone, PartialEq)]
enum Failure {
    Down,
    Refused,
    Cancelled,
}

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

type TestCache = Cache<Failure>;

const SECOND: Duration = Duration::from_secs(1);

fn settings(capacity: usize) -> Settings {
    Settings { capacity, ttl: 60 * SECOND, ..Settings::default() }
}

fn cache(settings: Settings) -> TestCache {
    Cache::new(settings, Handle::current())
}

fn value(text: &str) -> Fetched<Failure> {
    Fetched::Value(Bytes::copy_from_slice(text.as_bytes()).into(), None)
}

/// Reads `key`. A fetch, if the read starts one, returns `fetched`.
async fn read(
    cache: &TestCache,
    key: &str,
    fetched: Fetched<Failure>,
) -> Result<Answer, (Outcome, Failure)> {
    cache
        .get_or_fetch(key.as_bytes(), ReadMode::Default, Instant::now(), |_, _| async { fetched })
        .await
}

async fn outcome(cache: &TestCache, key: &str) -> Outcome {
    read(cache, key, value(key)).await.unwrap().outcome
}

/// Returns the keys in memory, without changing their order in the LRU list.
fn keys(cache: &TestCache) -> Vec<String> {
    let entries = cache.0.store.load().collect_where(|_| true);
    let mut keys: Vec<_> =
        entries.iter().map(|entry| String::from_utf8_lossy(entry.key()).into_owned()).collect();
    keys.sort();
    keys
}

fn evicted(cache: &TestCache, cause: EvictionCause) -> u64 {
    cache.statistics().evictions[cause as usize]
}

#[tokio::test]
async fn least_recently_read_entry_is_evicted() {
    let cache = cache(settings(3));
    for key in ["a", "b", "c", "a", "d"] {
        outcome(&cache, key).await;
    }
    assert_eq!(keys(&cache), ["a", "c", "d"]);
    assert_eq!((cache.statistics().entries, evicted(&cache, EvictionCause::Capacity)), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn entry_is_not_served_past_its_ttl() {
    let cache = cache(settings(10));
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
    advance(Duration::from_nanos(59_999_999_999)).await;
    assert_eq!(outcome(&cache, "k").await, Outcome::Hit);
    advance(Duration::from_nanos(1)).await;
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
    assert_eq!(evicted(&cache, EvictionCause::Expired), 1);
}

#[tokio::test(start_paused = true)]
async fn age_counts_from_before_the_fetch() {
    let cache = cache(settings(10));
    let slow = async {
        tokio::time::sleep(5 * SECOND).await;
        value("v")
    };
    let answer =
        cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| slow).await.unwrap();
    assert_eq!(answer.age, 5 * SECOND);
    advance(55 * SECOND).await;
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn entry_never_outlives_its_key() {
    let cache = cache(Settings { stale_if_error: 60 * SECOND, ..settings(10) });
    read(&cache, "k", Fetched::Value(Bytes::new().into(), Some(3 * SECOND))).await.unwrap();
    advance(3 * SECOND).await;
    assert_eq!(
        read(&cache, "k", Fetched::Failed(Failure::Down)).await.unwrap_err(),
        (Outcome::Miss, Failure::Down)
    );
}

#[tokio::test(start_paused = true)]
async fn negative_entries_have_their_own_ttl() {
    let cache = cache(settings(10));
    for _ in 0..2 {
        let answer = read(&cache, "k", Fetched::Absent).await.unwrap();
        assert_eq!((answer.outcome, answer.entry.value().is_none()), (Outcome::Miss, true));
    }
    cache.apply(&Settings { negative_ttl: NegativeTtl::Fixed(SECOND), ..settings(10) });
    read(&cache, "k", Fetched::Absent).await.unwrap();
    assert_eq!(outcome(&cache, "k").await, Outcome::NegativeHit);
    advance(SECOND).await;
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn stale_entry_is_served_only_on_failure() {
    let cache = cache(Settings { stale_if_error: 10 * SECOND, ..settings(10) });
    outcome(&cache, "k").await;
    advance(65 * SECOND).await;
    let answer = read(&cache, "k", Fetched::Failed(Failure::Down)).await.unwrap();
    assert_eq!(
        (answer.outcome, answer.freshness),
        (Outcome::Stale, Freshness::Stale { past: 5 * SECOND })
    );
    assert_eq!(answer.entry.value().unwrap().bytes, b"k");
    assert_eq!(read(&cache, "k", value("new")).await.unwrap().outcome, Outcome::Miss);
    advance(70 * SECOND).await;
    assert_eq!(
        read(&cache, "k", Fetched::Failed(Failure::Down)).await.unwrap_err(),
        (Outcome::Miss, Failure::Down)
    );
}

#[tokio::test(start_paused = true)]
async fn replaced_value_is_never_served_stale() {
    for contradiction in [Fetched::Absent, Fetched::ErrorReply(Failure::Refused)] {
        let cache = cache(Settings { stale_if_error: 60 * SECOND, ..settings(10) });
        outcome(&cache, "k").await;
        advance(61 * SECOND).await;
        _ = read(&cache, "k", contradiction).await;
        assert!(read(&cache, "k", Fetched::Failed(Failure::Down)).await.is_err());
        assert_eq!(cache.statistics().entries, 0);
    }
}

#[tokio::test]
async fn error_reaches_all_followers_uncached() {
    let cache = cache(settings(10));
    let (release, gate) = oneshot::channel::<()>();
    let leader = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| async {
        _ = gate.await;
        Fetched::Failed(Failure::Down)
    });
    let others = async {
        let joined =
            futures::future::join_all((0..10).map(|_| read(&cache, "k", value("own")))).await;
        joined.into_iter().all(|answer| answer.unwrap_err() == (Outcome::Coalesced, Failure::Down))
    };
    let release = async {
        tokio::task::yield_now().await;
        release.send(()).unwrap();
    };
    let (leader, others, ()) = tokio::join!(leader, others, release);
    assert_eq!(leader.unwrap_err(), (Outcome::Miss, Failure::Down));
    assert!(others);
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_readers_cause_one_fetch() {
    let cache = cache(settings(10));
    let fetches = Arc::new(AtomicUsize::new(0));
    let readers = (0..1000).map(|_| {
        let (cache, fetches) = (cache.clone(), Arc::clone(&fetches));
        tokio::spawn(async move {
            let fetch = |_, _| async move {
                fetches.fetch_add(1, Relaxed);
                value("v")
            };
            cache
                .get_or_fetch(b"k", ReadMode::Default, Instant::now(), fetch)
                .await
                .unwrap()
                .entry
                .value()
                .unwrap()
                .to_bytes()
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert_eq!(reader.await.unwrap(), "v");
    }
    assert_eq!(fetches.load(Relaxed), 1);
}

#[tokio::test]
async fn cancelled_leader_harms_no_follower() {
    let cache = cache(settings(10));
    let (release, gate) = oneshot::channel::<()>();
    let leader = tokio::spawn({
        let cache = cache.clone();
        async move {
            let fetch = |_, _| async {
                _ = gate.await;
                value("v")
            };
            cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), fetch).await.map(|_| ())
        }
    });
    while cache.statistics().flights == 0 {
        tokio::task::yield_now().await;
    }
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    let follower = read(&cache, "k", value("own"));
    release.send(()).unwrap();
    let answer = follower.await.unwrap();
    assert_eq!(
        (answer.outcome, answer.entry.value().unwrap().bytes),
        (Outcome::Coalesced, &b"v"[..])
    );
}

#[tokio::test]
async fn fetch_before_invalidation_is_not_stored() {
    for flush in [false, true] {
        let cache = cache(settings(10));
        let (release, gate) = oneshot::channel::<()>();
        let old = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| async {
            _ = gate.await;
            value("old")
        });
        let invalidate = async {
            tokio::task::yield_now().await;
            if flush {
                cache.invalidate_all();
            } else {
                cache.invalidate(b"k");
            }
            assert_eq!(
                read(&cache, "k", value("new")).await.unwrap().entry.value().unwrap().bytes,
                b"new"
            );
            release.send(()).unwrap();
        };
        let (old, ()) = tokio::join!(old, invalidate);
        assert_eq!(
            old.unwrap().entry.value().unwrap().bytes,
            b"old",
            "who asked before is answered"
        );
        let kept = read(&cache, "k", value("newer")).await.unwrap();
        assert_eq!((kept.outcome, kept.entry.value().unwrap().bytes), (Outcome::Hit, &b"new"[..]));
        assert_eq!(cache.statistics().flights_discarded, 1);
    }
}

#[tokio::test]
async fn invalidation_and_flush_remove_and_count() {
    let cache = cache(settings(10));
    for key in ["a", "b", "c"] {
        outcome(&cache, key).await;
    }
    cache.invalidate(b"a");
    cache.invalidate(b"never read");
    assert_eq!((keys(&cache).len(), evicted(&cache, EvictionCause::Invalidated)), (2, 1));
    cache.invalidate_all();
    let statistics = cache.statistics();
    assert_eq!(
        (statistics.entries, statistics.bytes, evicted(&cache, EvictionCause::Flushed)),
        (0, 0, 2)
    );
}

#[tokio::test]
async fn smaller_bound_on_memory_applies_at_once() {
    const KEYS: usize = 100;
    let bounded = |mebibytes: usize| Settings {
        max_memory: MemorySize::Bytes(ByteSize(mebibytes << 20)),
        ..settings(KEYS)
    };
    let cache = cache(bounded(20));
    let text = "v".repeat(50_000);
    for number in 0..KEYS {
        read(&cache, &format!("{number:02}"), value(&text)).await.unwrap();
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.entries, statistics.memory.max), (KEYS as u64, 20 << 20));
    let gone = cache.apply(&bounded(1));
    let statistics = cache.statistics();
    assert_eq!(statistics.entries + gone, KEYS as u64);
    assert!(statistics.memory.bytes <= 1 << 20, "{:?}", statistics.memory);
    assert!(statistics.entries > 10, "{} entries", statistics.entries);
    assert_eq!(outcome(&cache, "99").await, Outcome::Hit);
}

#[tokio::test]
async fn resize_keeps_most_recently_read_entries() {
    let cache = cache(settings(100));
    for number in 0..100 {
        outcome(&cache, &format!("{number:02}")).await;
    }
    outcome(&cache, "07").await;
    assert_eq!(cache.apply(&settings(3)), 97);
    assert_eq!(keys(&cache), ["07", "98", "99"]);
    assert_eq!((cache.statistics().entries, evicted(&cache, EvictionCause::Resized)), (3, 97));
    assert_eq!(cache.apply(&settings(5)), 0);
    assert_eq!(keys(&cache), ["07", "98", "99"]);
    // The order of reads was 98, 99, 07.
    for key in ["x", "y", "z"] {
        outcome(&cache, key).await;
    }
    assert_eq!(keys(&cache), ["07", "99", "x", "y", "z"]);
    assert_eq!(
        (evicted(&cache, EvictionCause::Capacity), evicted(&cache, EvictionCause::Resized)),
        (1, 97)
    );
}

#[tokio::test(start_paused = true)]
async fn expired_entries_are_evicted_first() {
    let cache = cache(settings(10));
    outcome(&cache, "old").await;
    advance(40 * SECOND).await;
    outcome(&cache, "young").await;
    advance(SECOND).await;
    assert_eq!(outcome(&cache, "old").await, Outcome::Hit, "and so the most recently read");
    advance(20 * SECOND).await;
    assert_eq!(cache.apply(&settings(1)), 0);
    assert_eq!(
        (keys(&cache), evicted(&cache, EvictionCause::Expired)),
        (vec!["young".to_owned()], 1)
    );
}

#[tokio::test(start_paused = true)]
async fn ttl_change_applies_without_reviving() {
    let cache = cache(settings(10));
    outcome(&cache, "k").await;
    advance(5 * SECOND).await;
    cache.apply(&Settings { ttl: SECOND, ..settings(10) });
    assert_eq!((cache.statistics().entries, evicted(&cache, EvictionCause::Expired)), (0, 1));
    cache.apply(&settings(10));
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
}

#[tokio::test]
async fn policy_change_keeps_entries() {
    let cache = cache(settings(100));
    for number in 0..100 {
        outcome(&cache, &format!("{number}")).await;
    }
    cache.apply(&Settings { policy: Policy::Tinylfu, ..settings(100) });
    assert_eq!(cache.statistics().entries, 100);
    for number in 0..100 {
        assert_eq!(outcome(&cache, &format!("{number}")).await, Outcome::Hit);
        assert_eq!(outcome(&cache, &format!("{number}")).await, Outcome::Hit);
    }
    // Keys that are requested once do not displace keys that are requested often.
    for number in 100..300 {
        outcome(&cache, &format!("{number}")).await;
    }
    let kept = (0..100).filter(|number| keys(&cache).contains(&number.to_string())).count();
    assert!(kept >= 80, "{kept} of 100 kept");
}

#[tokio::test(start_paused = true)]
async fn follower_rejects_a_result_past_its_ttl() {
    let cache = cache(Settings { ttl: Duration::ZERO, ..settings(10) });
    let slow = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| async {
        tokio::time::sleep(SECOND).await;
        value("old")
    });
    let late = async {
        tokio::time::sleep(SECOND / 2).await;
        read(&cache, "k", value("new")).await
    };
    let (first, late) = tokio::join!(slow, late);
    assert_eq!(first.unwrap().entry.value().unwrap().bytes, b"old");
    assert_eq!(late.unwrap().entry.value().unwrap().bytes, b"new");
}

#[tokio::test]
async fn zero_ttl_caches_nothing() {
    let cache = cache(Settings { ttl: Duration::ZERO, ..settings(10) });
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
    assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
    assert_eq!(cache.statistics().entries, 0);
}

/// Runs readers, invalidations and resizes at once. An invalidated value must not return.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_invalidation_is_lost_during_resize() {
    let cache = cache(settings(1000));
    let version = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let keys: Vec<String> = (0..200).map(|number| format!("key{number}")).collect();
    let readers = (0..2).map(|_| {
        let (cache, version, stop, keys) =
            (cache.clone(), Arc::clone(&version), Arc::clone(&stop), keys.clone());
        tokio::spawn(async move {
            while !stop.load(Relaxed) {
                for key in &keys {
                    let version = Arc::clone(&version);
                    let fetch = |_, _| async move { value(&version.load(Relaxed).to_string()) };
                    cache
                        .get_or_fetch(key.as_bytes(), ReadMode::Default, Instant::now(), fetch)
                        .await
                        .unwrap();
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    let resizer = tokio::task::spawn_blocking({
        let (cache, stop) = (cache.clone(), Arc::clone(&stop));
        move || {
            let mut resizes = 0;
            while !stop.load(Relaxed) {
                cache.apply(&settings(if resizes % 2 == 0 { 100 } else { 1000 }));
                resizes += 1;
            }
            resizes
        }
    });
    for round in 1..=300 {
        version.store(round, Relaxed);
        for key in &keys {
            cache.invalidate(key.as_bytes());
            if let Some(answer) = cache.lookup(key.as_bytes(), Instant::now()) {
                let found: usize = std::str::from_utf8(answer.entry.value().unwrap().bytes)
                    .unwrap()
                    .parse()
                    .unwrap();
                assert_eq!(found, round, "{key} came back");
            }
        }
        if round % 100 == 0 {
            cache.invalidate_all();
        }
        tokio::task::yield_now().await;
    }
    stop.store(true, Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(resizer.await.unwrap() > 10);
}

/// Checks that every stored entry is still there or was counted when it left, whatever runs at the
/// same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn resize_under_load_counts_each_entry_once() {
    let cache = cache(settings(3000));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers = (0..2).map(|reader| {
        let (cache, stop) = (cache.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut stored = 0;
            while !stop.load(Relaxed) {
                let key = format!("{reader}:{stored}");
                assert_eq!(outcome(&cache, &key).await, Outcome::Miss);
                stored += 1;
            }
            stored
        })
    });
    let readers: Vec<_> = readers.collect();
    let resizes = tokio::task::spawn_blocking({
        let cache = cache.clone();
        move || {
            [6000, 3000, 6000, 500, 6000, 100, 3000]
                .map(|capacity| cache.apply(&settings(capacity)))
        }
    });
    resizes.await.unwrap();
    stop.store(true, Relaxed);
    let mut stored = 0;
    for reader in readers {
        stored += reader.await.unwrap();
    }
    let statistics = cache.statistics();
    assert_eq!(
        stored,
        statistics.entries + statistics.evictions.iter().sum::<u64>(),
        "{statistics:?}"
    );
    assert_eq!(evicted(&cache, EvictionCause::Expired), 0);
    assert!(statistics.entries <= 3000, "{statistics:?}");
}
