//! Keeping hot: a refresh is a flight like any other, and only hot keys request one.

use super::rules::with_rule;
use super::*;

fn refreshing(ttl: Duration) -> TestCache {
    cache(with_rule("k*", |rule| (rule.ttl, rule.refresh) = (Some(ttl), true)))
}

/// Returns the keys that are requested, in their order.
async fn requested(cache: &TestCache) -> Vec<String> {
    cache.refreshes().request(b"end");
    let mut keys = Vec::new();
    loop {
        let next = cache.refreshes().next().await;
        match next.key() {
            b"end" => return keys,
            key => keys.push(String::from_utf8_lossy(key).into_owned()),
        }
    }
}

async fn heat(cache: &TestCache, key: &str) {
    for _ in 0..3 {
        outcome(cache, key).await;
    }
}

async fn refresh(cache: &TestCache, fetched: Fetched<Failure>) -> RefreshResult {
    cache.refresh(b"k", |_, _| async { fetched }).await
}

#[tokio::test]
async fn invalidation_of_a_hot_key_requests_a_refresh() {
    let cache = refreshing(60 * SECOND);
    for key in ["k", "k2", "other"] {
        heat(&cache, key).await;
    }
    outcome(&cache, "k3").await;
    for key in ["k", "k2", "k3", "k4", "other", "k"] {
        cache.invalidate(key.as_bytes());
    }
    assert_eq!(requested(&cache).await, ["k", "k2"]);
}

#[tokio::test]
async fn purges_and_flushes_request_nothing() {
    let cache = refreshing(60 * SECOND);
    let drops: [fn(&TestCache); 3] = [
        |cache| assert_eq!(cache.purge(&Purge::Key(b"k".to_vec())), 1),
        |cache| assert_eq!(cache.purge(&Purge::Prefix(b"k".to_vec())), 1),
        |cache| cache.invalidate_all(),
    ];
    for drop in drops {
        heat(&cache, "k").await;
        drop(&cache);
        assert_eq!(keys(&cache), [""; 0]);
        assert_eq!(requested(&cache).await, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn read_in_the_last_part_of_the_ttl_requests_one_refresh() {
    let cache = refreshing(8 * SECOND);
    heat(&cache, "k").await;
    advance(Duration::from_millis(6_999)).await;
    heat(&cache, "k").await;
    assert_eq!(requested(&cache).await, [""; 0]);
    advance(Duration::from_millis(1)).await;
    heat(&cache, "k").await;
    assert_eq!(requested(&cache).await, ["k"]);
    // The entry is fresh, and is fetched all the same.
    assert_eq!(refresh(&cache, value("new")).await, RefreshResult::Stored);
    advance(2 * SECOND).await;
    let answer = read(&cache, "k", value("unused")).await.unwrap();
    assert_eq!((answer.outcome, answer.entry.value().unwrap().bytes), (Outcome::Hit, &b"new"[..]));
    assert_eq!(requested(&cache).await, [""; 0]);
}

#[tokio::test]
async fn readers_join_a_refresh_and_it_joins_none() {
    let cache = refreshing(60 * SECOND);
    let (sender, receiver) = oneshot::channel();
    let refreshed = cache.refresh(b"k", |_, _| async { receiver.await.unwrap() });
    let follower = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| async {
        panic!("a second fetch")
    });
    let other = cache.refresh(b"k", |_, _| async { panic!("a second fetch") });
    let (refreshed, follower, other, ()) =
        tokio::join!(refreshed, follower, other, async { sender.send(value("v")).unwrap() });
    assert_eq!((refreshed, other), (RefreshResult::Stored, RefreshResult::Unneeded));
    assert_eq!(follower.unwrap().outcome, Outcome::Coalesced);
    assert_eq!(refresh(&cache, value("again")).await, RefreshResult::Unneeded);
}

#[tokio::test]
async fn refresh_that_a_write_overtakes_stores_nothing() {
    let cache = refreshing(60 * SECOND);
    let (sender, receiver) = oneshot::channel();
    let refreshed = cache.refresh(b"k", |_, _| async { receiver.await.unwrap() });
    let (refreshed, ()) = tokio::join!(refreshed, async {
        cache.invalidate(b"k");
        sender.send(value("old")).unwrap();
    });
    assert_eq!((refreshed, keys(&cache)), (RefreshResult::Discarded, Vec::new()));
    assert_eq!(refresh(&cache, Fetched::Failed(Failure::Down)).await, RefreshResult::Failed);
    let refused = Fetched::ErrorReply(Failure::Refused);
    assert_eq!(refresh(&cache, refused).await, RefreshResult::Failed);
}

#[tokio::test]
async fn refresh_obeys_the_rule_in_force() {
    let cache = refreshing(60 * SECOND);
    heat(&cache, "k").await;
    cache.apply(&with_rule("k*", |rule| rule.ttl = Some(60 * SECOND)));
    cache.invalidate(b"k");
    assert_eq!(requested(&cache).await, [""; 0]);
    let never = cache.refresh(b"k", |_, _| async { panic!("a fetch") });
    assert_eq!(never.await, RefreshResult::Unneeded);
}
