//! Rules by prefix: what a lookup finds and what a fetch leaves behind.

use super::*;

pub(super) fn with_rule(keys: &str, change: impl FnOnce(&mut KeyRule)) -> Settings {
    let mut rule = KeyRule::new(keys.to_owned().try_into().unwrap());
    change(&mut rule);
    Settings { rules: vec![rule], ..settings(10) }
}

fn with_mode(mode: RuleMode) -> Settings {
    with_rule("k*", |rule| rule.mode = mode)
}

#[tokio::test]
async fn observed_key_is_kept_and_never_served() {
    let cache = cache(with_mode(RuleMode::Observe));
    let would_hit = |key: &str| {
        cache
            .lookup_for(key.as_bytes(), cache.clock().time(Instant::now()), LookupUse::Observe)
            .is_some()
    };
    assert!(!would_hit("k"));
    for _ in 0..3 {
        assert_eq!(outcome(&cache, "k").await, Outcome::Miss);
        assert!(cache.lookup(b"k", Instant::now()).is_none() && would_hit("k"));
    }
    cache.invalidate(b"k");
    assert!(!would_hit("k"));
    assert_eq!(outcome(&cache, "other").await, Outcome::Miss);
    assert_eq!(outcome(&cache, "other").await, Outcome::Hit);
}

#[tokio::test]
async fn readers_of_an_observed_key_share_a_fetch() {
    let cache = cache(with_mode(RuleMode::Observe));
    let (sender, receiver) = oneshot::channel();
    let fetch = |_, _| async { receiver.await.unwrap() };
    let leader = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), fetch);
    let follower = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), |_, _| async {
        panic!("a second one")
    });
    let (leader, follower, ()) =
        tokio::join!(leader, follower, async { sender.send(value("v")).unwrap() });
    assert_eq!(leader.unwrap().outcome, Outcome::Miss);
    assert_eq!(follower.unwrap().outcome, Outcome::Coalesced);
}

#[tokio::test]
async fn key_that_is_off_opens_no_flight_and_leaves_nothing() {
    let cache = cache(with_mode(RuleMode::Off));
    for _ in 0..2 {
        assert_eq!(outcome(&cache, "k").await, Outcome::Bypass);
    }
    assert_eq!((keys(&cache), cache.statistics().flights), (Vec::new(), 0));
}

#[tokio::test]
async fn fetch_is_stored_by_the_rules_at_its_end() {
    for (changed, is_kept) in [
        (with_mode(RuleMode::Off), false),
        (with_mode(RuleMode::Observe), true),
        (with_rule("k*", |rule| rule.max_value = Some(crate::settings::ByteSize(1))), false),
        (with_rule("k*", |rule| rule.ttl = Some(Duration::ZERO)), false),
    ] {
        let cache = cache(settings(10));
        let (sender, receiver) = oneshot::channel();
        let fetch = |_, _| async { receiver.await.unwrap() };
        let read = cache.get_or_fetch(b"k", ReadMode::Default, Instant::now(), fetch);
        let change = async {
            cache.apply(&changed);
            sender.send(value("value")).unwrap();
        };
        let (answer, ()) = tokio::join!(read, change);
        assert_eq!(answer.unwrap().outcome, Outcome::Miss);
        assert_eq!(!keys(&cache).is_empty(), is_kept, "{changed:?}");
    }
}

#[tokio::test]
async fn changed_rule_removes_what_it_does_not_allow() {
    let cache = cache(settings(10));
    for key in ["k1", "k2", "other"] {
        outcome(&cache, key).await;
    }
    cache.apply(&with_rule("k*", |rule| rule.max_value = Some(crate::settings::ByteSize(2))));
    assert_eq!(keys(&cache).len(), 3);
    cache.apply(&with_rule("k1*", |rule| rule.max_value = Some(crate::settings::ByteSize(1))));
    assert_eq!(keys(&cache).len(), 2);
    cache.apply(&with_mode(RuleMode::Off));
    assert_eq!(keys(&cache), ["other"]);
}

#[tokio::test]
async fn rule_with_a_stale_time_keeps_entries_of_a_lost_connection() {
    let stale = with_rule("k*", |rule| rule.stale_if_error = Some(60 * SECOND));
    let cache = cache(stale);
    cache.start_tracking(Instant::now());
    for key in ["k", "other"] {
        outcome(&cache, key).await;
    }
    cache.suspend_tracking();
    let answer = read(&cache, "k", Fetched::Failed(Failure::Down)).await;
    assert_eq!(answer.unwrap().outcome, Outcome::Stale);
    let answer = read(&cache, "other", Fetched::Failed(Failure::Down)).await;
    assert_eq!(answer.unwrap_err(), (Outcome::Miss, Failure::Down));
}
