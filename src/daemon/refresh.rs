//! The fetches of keys that are kept hot (`refresh = true` of a rule).
//!
//! A refresh is an ordinary flight, so every rule of the cache holds for it. The rule that must not
//! be broken: refreshes never take more than half of the fetches, nor more than
//! `cache.refresh_rate` a second. Otherwise they would delay the misses of other keys.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::cache::Pace;
use crate::upstream::Upstream;

/// The most concurrent refreshes.
const MAX_CONCURRENT: usize = 64;

/// Fetches each key that is requested, at most at the rate in force. `max_fetches` is the most
/// concurrent fetches of all kinds. Never returns.
pub(super) async fn run(upstream: Upstream, max_fetches: usize) {
    let most = (max_fetches / 2).clamp(1, MAX_CONCURRENT);
    let refreshes = Arc::clone(upstream.refreshes());
    let (mut pace, mut fetches) = (Pace::default(), JoinSet::new());
    loop {
        let next = refreshes.next().await;
        while let Err(until) = pace.start(Instant::now(), refreshes.rate()) {
            sleep_until(until).await;
        }
        while fetches.try_join_next().is_some() {}
        if fetches.len() >= most {
            fetches.join_next().await;
        }
        let (upstream, refreshes) = (upstream.clone(), Arc::clone(&refreshes));
        fetches.spawn(async move {
            let result = upstream.refresh(next.key()).await;
            refreshes.finish(next, result);
        });
    }
}
